"""The map of the package: imports only point up the list below, so that a reader can take the files in its order."""

import ast
import inspect
import re
import tomllib
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import jbp

PACKAGE = Path(jbp.__file__).parent
ORDER = [
    "errors", "meshes", "blocks", "markup", "paint", "programs", "layer", "symbols", "published", "layout", "pair",
    "gather", "patches", "derived", "uses", "recomputed", "reader", "run", "found", "activations", "layers",
    "losses", "outside", "network", "mlp", "model", "readouts", "rows", "ntk", "moments", "gram", "projected",
    "clipping", "examples", "both_modes", "in_jax", "named", "record", "compare", "loss_leaves", "checking",
    "seeds", "ggn", "kronecker", "curvature", "reverse", "kfac", "terms", "chain", "kfra", "testing", "feedback",
    "explain", "flow", "draw", "history", "optimizer", "stream", "descent", "state", "course", "console", "fit",
    "data", "figure", "commands", "__main__",
]  # fmt: skip
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def place(module: str) -> str:
    """`jbp.layers.dense` -> `layers`, a folder has one place; `jbp.pair` -> `pair`."""
    return module.split(".")[1]


def imported(path: Path) -> set[str]:
    """All modules that a file imports, anywhere in it, by their full names."""
    package = ("jbp", *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            found |= {base} if node.module else {f"{base}.{alias.name}" for alias in node.names}
    return found


def of_jbp(path: Path) -> set[str]:
    return {module for module in imported(path) if module.startswith("jbp.")}


files = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


@files
def test_imports_point_one_way(path: Path):
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert here in ORDER, f"{here} has no place on the map"
    above = ORDER[: ORDER.index(here) + (path.parent != PACKAGE)]  # a file of a folder may import its neighbours
    named = {("reverse.py", "compare")}  # the one exception: `Cost.compare`'s local import
    assert {m for m in map(place, of_jbp(path)) if (path.name, m) not in named} <= set(above)


@files
def test_nothing_private_of_jax_is_imported(path: Path):
    assert not [module for module in imported(path) if module.startswith("jax._src")]


def test_readouts_know_no_layer():
    assert {place(module) for module in of_jbp(PACKAGE / "readouts.py")} <= {
        "layer",
        "layout",
        "pair",
        "uses",
        "reader",
    }


def test_the_files_are_found():
    assert of_jbp(PACKAGE / "layers" / "dense.py") == {"jbp.layer", "jbp.pair"}
    assert "jbp.layers.compose" in of_jbp(PACKAGE / "network.py")
    assert "jax" in imported(PACKAGE / "network.py")


# -- circles and names ------------------------------------------------------------------------------------------------

TWICE = {
    "from_function",  # jbp.from_function is a layer, jbp.losses.from_function a loss
    "run",  # a layer's, a recorded one, and what each command does
    "Settings",  # of each command
}


def modules_of(path: Path) -> set[Path]:
    """The files of jbp that a file imports, anywhere in it; of a folder, its `__init__`."""
    found = set()
    for module in of_jbp(path):
        file = PACKAGE.joinpath(*module.split(".")[1:])
        found.add(file.with_suffix(".py") if file.with_suffix(".py").exists() else file / "__init__.py")
    return found


def test_there_is_no_circle():
    """Inside folders neither: the files can be read in an order in which each stands on those before it."""
    imports = {path: modules_of(path) for path in FILES}
    imports[PACKAGE / "reverse.py"] = {p for p in imports[PACKAGE / "reverse.py"] if p.parent.name != "compare"}
    assert len(list(TopologicalSorter(imports).static_order())) >= len(FILES)


def test_a_public_name_is_defined_once():
    where = defaultdict(set)
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            names = [node.name] if hasattr(node, "name") else [t.id for t in targets if isinstance(t, ast.Name)]
            for name in names:
                where[name].add(str(path.relative_to(PACKAGE)))
    assert {n: files for n, files in where.items() if len(files) > 1 and n[0] != "_" and n not in TWICE} == {}


def test_reverse_stands_on_little():
    """Whoever reads it first need not read of comparing, drawing and fitting."""
    seen, todo = set(), [PACKAGE / "reverse.py"]
    while todo:
        path = todo.pop()
        if path not in seen and path.parent.name != "compare":
            seen.add(path)
            todo += modules_of(path) - {PACKAGE / "__init__.py"}
    assert len(seen) <= 20, sorted(str(path.relative_to(PACKAGE)) for path in seen)


def test_every_file_is_on_the_map():
    """The package's docstring has a line for each file and folder, and for nothing else."""
    lines = re.findall(r"^    (\S.*?)  +\S.*$", jbp.__doc__, re.MULTILINE)
    told = [name for line in lines for name in re.findall(r"\w+", line)]
    assert sorted(told) == sorted({path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES})


def test_every_folder_is_installed():
    """An editable install finds a folder that the wheel would lack."""
    told = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(told) == sorted(
        ".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")
    )


def test_public_is_what_the_package_imports_by_name():
    """One list: the imports. A star brings all of them and no other module."""
    imported = re.findall(r"^from \S+ import \w+ as (\w+)$", (PACKAGE / "__init__.py").read_text(), re.MULTILINE)
    assert sorted(imported) == jbp.__all__
    modules = [name for name in jbp.__all__ if inspect.ismodule(getattr(jbp, name))]
    assert modules == ["data", "draw", "losses"]
    for module in modules:
        assert f"`jbp.{module}`" in jbp.__doc__
