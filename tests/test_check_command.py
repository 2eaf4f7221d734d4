"""`jbp check module:function`: what it prints, writes and returns, and the one line that each wrong call gets."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jbp.__main__ import main, understood
from jbp.commands import check
from jbp.commands.check import FUNCTION

MODULE = """
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ROWS = 3


def ruled(primal, backward):
    f = jax.custom_vjp(primal)
    f.defvjp(lambda *args: (primal(*args), args), backward)
    return f


def product(x: Float[Array, "N I"], w: Float[Array, "I O"]) -> Float[Array, "N O"]:
    return x @ w


matmul = ruled(product, lambda args, g: (g @ args[1].T, args[0].T @ g))
flipped = ruled(lambda x: 2 * x, lambda args, g: (-2 * g,))
none_wrong = ruled(lambda x: 1 * x.sum(), lambda args, g: (jnp.full_like(args[0], g) if args[0].size else 1 / 0,))
low = ruled(lambda x: x.sum(), lambda args, g: (jnp.full_like(args[0], g * (2 if x16(args[0]) else 1)),))


def x16(x):
    return x.dtype == jnp.bfloat16


def plain(x):
    return jnp.sin(x)


def square(x):
    return (x * x).sum()


def slope(x):
    return 2 * x


def wrong_slope(x):
    return 3 * x


@jax.custom_vjp
def misspells(x):
    return 2 * x


misspells.defvjp(lambda x: (2 * x, None), lambda _, d: (2 * delta,))


def refuses(x):
    raise ValueError("no such shape")


class inside:
    matmul = staticmethod(matmul)


reference = jax.grad(square)
"""
NAME = "layers_of_mine"
LINE = 1 + MODULE[: MODULE.index("raise ValueError")].count("\n")


def _wave(r: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Values that do not depend on the seed, so that few examples differ."""
    return np.cos(np.arange(np.prod(shape))).reshape(shape)


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module above, and some that can't be imported, in the current folder; nothing is timed or optimised."""
    (tmp_path / f"{NAME}.py").write_text(MODULE)
    (tmp_path / "raises_here.py").write_text("x = 1\nraise RuntimeError('no GPU')\n")
    (tmp_path / "leaves_here.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "misspelt.py").write_text("def f(:\n")
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys.modules["jbp.programs.clock"], "SECONDS", 0.0)
    inputs = sys.modules["jbp.compare.shapes"]
    few = {"ones": inputs.STYLES["ones"], "normal": _wave}
    monkeypatch.setattr(inputs, "STYLES", few)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    for name in (NAME, "raises_here", "leaves_here", "misspelt", "needs_more"):
        sys.modules.pop(name, None)


# Hypothesis takes the run-time type checker's random choices for randomness of our own.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")


def told(*line: str) -> int:
    return main(["check", *line])


# -- right, wrong -----------------------------------------------------------------------------------------------------


def test_a_right_rule_is_0_with_shapes_from_its_annotations(capsys: pytest.CaptureFixture, tmp_path: Path):
    line = ["--examples", "3", "--json", "a.json", "--html", "a.html", "--markdown", "a.md"]
    assert told(f"{NAME}:matmul", *line) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "3 generated examples passed; this is one more.\nThe gradients agree: " in out
    numbers = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert numbers["ok"] is True
    assert [(leaf["name"], leaf["shape"]) for leaf in numbers["leaves"]] == [("x", [4, 3]), ("w", [3, 5])]
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert 'src="http' not in page
    assert "The gradients agree" in page
    assert (tmp_path / "a.md").read_text(encoding="utf-8").startswith("### ✅ ")


FILES = {  # files that name a function, and what that function needs besides
    "beside another": ("here/mine.py", "from helper_of_mine import twice\n", {"here/helper_of_mine.py": "twice = 2\n"}),
    "in a package": (
        "here/package_of_mine/inner/mine.py", "from ..helper import twice\n",
        {"here/package_of_mine/__init__.py": "", "here/package_of_mine/inner/__init__.py": "",
         "here/package_of_mine/helper.py": "twice = 2\n"},
    ),
    "of no module's name": ("here/1st layer.py", "twice = 2\n", {}),
    "of the name of a module of Python": ("random.py", "twice = 2\n", {}),
}  # fmt: skip


@pytest.mark.parametrize(("place", "absolute"), [*((place, False) for place in FILES), ("in a package", True)])
def test_a_function_in_a_file(place: str, absolute: bool, tmp_path: Path, capsys: pytest.CaptureFixture):
    name, head, others = FILES[place]
    for path, text in {name: head + MODULE + "\nright = ruled(lambda x: twice * x, lambda args, g: (twice * g,))\n"
                       "wrong = ruled(lambda x: twice * x, lambda args, g: (g,))\n", **others}.items():  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    before, random = set(sys.modules), sys.modules["random"]
    reference = f"{tmp_path / name if absolute else name}"
    try:
        assert told(f"{reference}:right", "--shapes", "N", "--examples", "2") == 0
        assert told(f"{reference}:wrong", "--shapes", "N", "--examples", "2") == 1
        assert sys.modules["random"] is random
    finally:
        for module in [m for m in set(sys.modules) - before if "mine" in m or "layer" in m or "random_of" in m]:
            del sys.modules[module]
    assert "The gradients agree" in capsys.readouterr().out


def test_an_empty_text_is_a_scalar(capsys: pytest.CaptureFixture):
    assert told(f"{NAME}:flipped", "--shapes", "", "--examples", "2") == 1
    assert "x0 = np.array(1.0, np.float32)" in capsys.readouterr().out


def test_a_wrong_rule_is_1_and_printed_as_code(capsys: pytest.CaptureFixture, tmp_path: Path):
    assert told(f"{NAME}:flipped", "--shapes", "N", "--examples", "3", "--json", "a.json", "--markdown", "a.md") == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert "The gradients DISAGREE, most in x: sign flipped" in out
    numbers = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert numbers["ok"] is False
    assert "x0 = np.array([1.0], np.float32)" in numbers["reproduce"]
    assert numbers["reproduce"] in out
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert text.startswith("### ❌ ")
    assert "```python\n" in text


def test_the_code_that_is_printed_runs_by_itself(tmp_path: Path):
    assert told(f"{NAME}:wrong_slope", "--oracle", f"{NAME}:slope", "--shapes", "N", "--json", "a.json") == 1
    code = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["reproduce"]
    assert f"from {NAME} import wrong_slope" in code
    assert f"from {NAME} import slope" in code
    made: list = []
    exec(code, {"print": made.append})
    assert not made[0].ok
    assert made[0].worst.pattern == "off by the factor 1.500"


def test_an_oracle_makes_the_function_a_gradient(capsys: pytest.CaptureFixture):
    line = ["--oracle", f"{NAME}:reference", "--shapes", "N 2", "--examples", "2"]
    assert told(f"{NAME}:slope", *line) == 0
    assert told(f"{NAME}:wrong_slope", *line) == 1
    assert "off by the factor 1.500" in capsys.readouterr().out


def test_dtype_reaches_the_inputs(capsys: pytest.CaptureFixture):
    line = [f"{NAME}:low", "--shapes", "3", "--examples", "2", "--dtype"]
    assert told(*line, "float32") == 0
    assert told(*line, "bfloat16") == 1
    assert "x0 = np.array([1.0, 1.0, 1.0], ml_dtypes.bfloat16)" in capsys.readouterr().out


def test_empty_axes_come_if_they_are_asked_for(capsys: pytest.CaptureFixture):
    line = [f"{NAME}:none_wrong", "--shapes", "N", "--examples", "12"]
    assert told(*line) == 0
    assert told(*line, "--empty", "yes") == 2
    err = capsys.readouterr().err
    assert "raises ZeroDivisionError: division by zero (layers_of_mine.py, line 21). To see it again:" in err
    assert "x0 = np.array([], np.float32).reshape(0,)" in err


def test_every_option_reaches_the_settings(tmp_path: Path):
    files = {name: str(tmp_path / f"a.{name}") for name in ("json", "html")} | {"markdown": str(tmp_path / "a.md")}
    words = "a.b:f --dtype float16 --oracle c:d --examples 7 --seed 3"
    line = ["check", *words.split(), "--shapes", "N I"]
    for name, path in files.items():
        line += [f"--{name}", path]
    settings = check.Settings(
        function="a.b:f", shapes="N I", dtype="float16", oracle="c:d", examples=7, seed=3, empty="yes", **files
    )
    assert understood([*line, "--empty", "yes"]) == ("check", settings)


# -- wrong calls ------------------------------------------------------------------------------------------------------

FLOATS = "one of float32, float16, bfloat16, float64, float8_e4m3fn, float8_e5m2, complex64, complex128"
WRONG: dict[str, str] = {
    "": f"check: expected {FUNCTION}, got none. Write for example jbp check mine/layers.py:softmax",
    "layer_of_mine.py:matmul": "check: there is no file layer_of_mine.py. Name one from the folder that you call it "
    "in.",
    f"{NAME}.py:matmull": f"check: {NAME}.py has no matmull. Did you mean matmul?",
    f"{NAME}.py": f"check: expected {FUNCTION}, got '{NAME}.py'. Write for example mine/layers.py:softmax.",
    "raises_here.py:f": "check: raises_here.py raises RuntimeError when it is imported: no GPU. Mend it first.",
    "needs_more.py:f": "check: needs_more.py can't be imported: No module named 'not_installed_anywhere'. Install what "
    "it needs.",
    f"{NAME}.matmul": f"check: expected {FUNCTION}, got '{NAME}.matmul'. Write for example mine/layers.py:softmax.",
    "a-b:f": f"check: expected {FUNCTION}, got 'a-b:f'. Write for example mine/layers.py:softmax.",
    "layer_of_mine:matmul": "check: there is no module layer_of_mine. Call it from the folder that holds it, or "
    "install it.",
    f"{NAME}.inner:matmul": f"check: there is no module {NAME}.inner. Call it from the folder that holds it, or "
    "install it.",
    f"{NAME}:matmull": f"check: {NAME} has no matmull. Did you mean matmul?",
    f"{NAME}:xyz": f"check: {NAME} has no xyz. Check the name.",
    f"{NAME}:inside.matmull": f"check: {NAME} has no inside.matmull. Did you mean matmul?",
    f"{NAME}:ROWS": f"check: {NAME}:ROWS is int, not a function. Name a function.",
    f"{NAME}:flipped": f"check: the arguments of {NAME}:flipped are not annotated with shapes, as in "
    "Float[Array, 'N I']. Give them with --shapes 'N I, I O'.",
    f"{NAME}:plain --shapes N": "check: f calls no custom_vjp or custom_jvp. If it is a gradient itself, give an "
    "oracle.",
    f"{NAME}:refuses --shapes N": f"check: f raises ValueError: no such shape ({NAME}.py, line {LINE}).",
    f"{NAME}:slope --oracle {NAME}:refuses --shapes N": "check: every example is refused: compare: the oracle raises "
    f"ValueError: no such shape Give shapes that f takes ({NAME}.py, line {LINE}).",
    f"{NAME}:slope --oracle {NAME}:slop --shapes N": f"check: {NAME} has no slop. Did you mean slope?",
    "raises_here:f": "check: raises_here raises RuntimeError when it is imported: no GPU. Mend it first.",
    "leaves_here:f": "check: leaves_here raises SystemExit when it is imported: 3. Mend it first.",
    "misspelt:f": "check: misspelt raises SyntaxError when it is imported: invalid syntax (misspelt.py, line 1). "
    "Mend it first.",
    "needs_more:f": "check: needs_more can't be imported: No module named 'not_installed_anywhere'. Install what it "
    "needs.",
    f"{NAME}:matmul --shape N": "--shape: jbp check has no such option. Did you mean --shapes?",
    f"{NAME}:matmul --shapes N;I": "--shapes: expected axes of each argument, with commas between, got 'N;I'. Write "
    "for example 'N I, I O'.",
    f"{NAME}:matmul --dtype float33": f"--dtype: expected {FLOATS}, got 'float33'. Did you mean float32?",
    f"{NAME}:matmul --dtype int32": f"--dtype: expected {FLOATS}, got 'int32'. Write for example float32.",
    f"{NAME}:matmul --examples 0": "--examples: expected a whole number above 0, got '0'. Write for example 50.",
    f"{NAME}:matmul --empty maybe": "--empty: expected one of no, yes, got 'maybe'. Write for example no.",
    f"{NAME}:matmul --html a.txt": "--html: expected a file that ends in .html, got 'a.txt'. Write for example "
    "report.html.",
    f"{NAME}:matmul --json /no/such/folder/a.json": "--json: expected a file that can be written, got "
    "'/no/such/folder/a.json' (No such file or directory). Name one in a folder of yours.",
    f"{NAME}:matmul again": "again: expected a command first, then options --name VALUE. See: jbp check --help",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_call_gets_one_line_and_exit_code_2(line: str, capsys: pytest.CaptureFixture):
    assert told(*line.split()) == 2
    assert capsys.readouterr() == ("", f"jbp: {WRONG[line]}\n")


def test_shapes_that_the_function_does_not_take(capsys: pytest.CaptureFixture):
    assert told(f"{NAME}:matmul", "--shapes", "N I, N O") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jbp: check: f raises TypeError: dot_general requires contracting dimensions")
    at = 1 + MODULE[: MODULE.index("return x @ w")].count("\n")
    assert err.endswith(f" ({NAME}.py, line {at}).\n")
    assert err.count("\n") == 1


def test_a_rule_that_raises_is_told_of_with_its_line(capsys: pytest.CaptureFixture):
    assert told(f"{NAME}:misspells", "--shapes", "N") == 2
    at = 1 + MODULE[: MODULE.index("2 * delta")].count("\n")
    says = (
        f"the rule of misspells raises NameError: name 'delta' is not defined ({NAME}.py, line {at}). To see it again:"
    )
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("gone", "line"), [("hypothesis", []), ("matplotlib", ["--html", "a.html"])])
def test_without_the_extra_it_says_how_to_install_it(gone: str, line: list[str], capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, gone, None)
    assert told(f"{NAME}:matmul", *line) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"jbp: {gone} is not installed, and ")
    assert "pip install 'jbp[" in err


def test_help(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as done:
        told("--help")
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: jbp check FUNCTION [--option VALUE ...]\n\nCompare the hand-written gradient")
    for option in ("--shapes", "--dtype", "--oracle", "--examples", "--seed", "--empty", "--json", "--html"):
        assert option in out


def test_as_a_program_of_its_own_in_the_folder_of_the_module():
    """The installed command has no "" in its path: the folder is looked in nevertheless."""
    code = "import sys; from jbp.__main__ import main; sys.path.remove(''); sys.exit(main())"
    line = [sys.executable, "-c", code, "check", f"{NAME}:nothing"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"jbp: check: {NAME} has no nothing. Check the name.\n"
