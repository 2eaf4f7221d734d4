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


def test_readme(capsys, monkeypatch, tmp_path):
    """One block of code after the other, in one session."""
    monkeypatch.chdir(tmp_path)
    first, descent = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    promised = first.rstrip().splitlines()[-1].removeprefix("# ")
    session: dict = {}
    exec(first, session)
    *words, accuracy = capsys.readouterr().out.split()
    *promised_words, promised_accuracy = promised.split()
    assert words == promised_words
    assert abs(int(accuracy.rstrip("%")) - int(promised_accuracy.rstrip("%"))) <= 2
    exec(descent, session)
    run = session["run"]
    assert run.best.theta.shape == session["theta"].shape
    assert (tmp_path / "runs" / "digits").is_dir()


EXAMPLES = sorted(set((ROOT / "examples").glob("*.py")) - {ROOT / "examples" / "draw_networks.py"})  # that is below


SHORTER: dict[str, dict] = {  # less training than for a reader; what it comes to is asserted all the same
    "gpt2": {"steps": 20},
    "kfac_against_adam": {"rates": (1e-2,)},
    "llama": {"epochs": 4},
    "vision_transformer": {"epochs": 10},
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where one of them leaves its pictures
    runpy.run_path(str(path))["main"](**SHORTER.get(path.stem, {}))


def test_the_pictures_in_the_readme_are_those_that_the_example_makes(tmp_path):
    kept = ROOT / "examples" / "pictures"
    shown = {
        ROOT / path
        for path in re.findall(r"(?:\]\(|src=\")(examples/pictures/.*?)[)\"]", (ROOT / "README.md").read_text())
    }
    made = runpy.run_path(str(ROOT / "examples" / "draw_networks.py"))["main"](tmp_path)
    others = {"kfac_against_adam.svg"}  # of an example of its own, which holds times of one machine
    assert {path.name for path in made} == {path.name for path in kept.iterdir()} - others
    assert shown == set(kept.glob("*.svg"))
    for path in made:
        words = [re.findall(r">([^<>\n]+)<", folder.joinpath(path.name).read_text()) for folder in (kept, tmp_path)]
        assert len(words[0]) == len(words[1])  # the numbers may differ in their last digit from machine to machine
        assert path.stat().st_size < 150_000
