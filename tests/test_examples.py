"""The README's code prints what its comment says, and every example runs and holds what it asserts.

The accuracy may differ by two points, since rounding differs from machine to machine.
"""

import re
import runpy
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def as_users_have_it():
    """What people run has JAX's own settings, not the strict ones of these tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_readme(capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    promised = code.rstrip().splitlines()[-1].removeprefix("# ")
    exec(code, {})
    *words, accuracy = capsys.readouterr().out.split()
    *promised_words, promised_accuracy = promised.split()
    assert words == promised_words
    assert abs(int(accuracy.rstrip("%")) - int(promised_accuracy.rstrip("%"))) <= 2


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_example(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where one of them leaves its pictures
    runpy.run_path(str(path))["main"]()
