"""The README's code prints what its comment says (the accuracy to two points: rounding differs from machine to machine),
and every example runs and holds what it asserts."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_readme(capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    promised = code.rstrip().splitlines()[-1].removeprefix("# ")
    exec(code, {})
    *words, accuracy = capsys.readouterr().out.split()
    *promised_words, promised_accuracy = promised.split()
    assert words == promised_words
    assert abs(int(accuracy.rstrip("%")) - int(promised_accuracy.rstrip("%"))) <= 2


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_example(path):
    runpy.run_path(str(path))["main"]()
