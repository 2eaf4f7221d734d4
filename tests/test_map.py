"""The map of the package: imports only point up the list below, so that a reader can take the files in its order."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import jbp

PACKAGE = Path(jbp.__file__).parent
ORDER = [
    "errors", "programs", "layer", "layout", "pair", "reader", "run", "activations", "layers", "losses", "outside",
    "network", "readouts", "in_jax", "compare", "loss_leaves", "checking", "named", "record", "reverse", "chain",
    "testing", "curvature", "feedback", "explain", "flow", "draw", "history", "optimizer", "stream", "descent",
    "state", "course", "console", "fit", "data", "figure", "commands", "__main__",
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
    assert {place(module) for module in of_jbp(path)} <= set(above)


@files
def test_nothing_private_of_jax_is_imported(path: Path):
    assert not [module for module in imported(path) if module.startswith("jax._src")]


def test_readouts_know_no_layer():
    assert {place(module) for module in of_jbp(PACKAGE / "readouts.py")} <= {"layer", "layout", "pair", "reader"}


def test_the_files_are_found():
    assert of_jbp(PACKAGE / "layers" / "dense.py") == {"jbp.layer", "jbp.pair"}
    assert "jbp.layers.compose" in of_jbp(PACKAGE / "network.py")
    assert "jax" in imported(PACKAGE / "network.py")


@pytest.mark.parametrize("folder", ["draw", "programs", "layers"])
def test_no_circle_in_a_folder(folder: str):
    """Whose modules do not import each other in a circle, inside functions neither."""
    modules = {f"jbp.{folder}.{path.stem}": path for path in (PACKAGE / folder).glob("*.py") if path.stem != "__init__"}
    above = {name: of_jbp(path) & set(modules) for name, path in modules.items()}
    assert len(list(TopologicalSorter(above).static_order())) == len(modules)
