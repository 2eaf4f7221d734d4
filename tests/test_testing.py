"""`raise_if_bad`, `assert_vjp`, `assert_gradients`, and what a failure of them looks like under pytest."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbp

X = np.array([[1.0, -2.0, 0.5]], np.float32)


def ruled(sign: float) -> Any:
    f = jax.custom_vjp(lambda x: jnp.sin(x))
    f.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (sign * g * jnp.cos(x),))
    return f


def test_a_right_rule_gives_its_report():
    report = jbp.assert_vjp(ruled(1.0), X, timing=False)
    assert report.ok
    assert report.checks
    assert jbp.assert_vjp(ruled(1.0), X, timing=False, checks=False).checks == ()
    assert jbp.assert_gradients(jnp.cos, jax.grad(lambda x: jnp.sin(x).sum()), X, timing=False).ok
    assert report.raise_if_bad() is report


def test_a_wrong_rule_raises_its_report():
    with pytest.raises(jbp.GradientsDisagree) as error:
        jbp.assert_vjp(ruled(-1.0), X, timing=False)
    assert isinstance(error.value, AssertionError)
    assert not error.value.report.ok
    assert str(error.value) == f"\n{error.value.report}"
    with pytest.raises(jbp.GradientsDisagree, match="sign flipped"):
        jbp.assert_gradients(lambda x: -jnp.cos(x), jax.grad(lambda x: jnp.sin(x).sum()), X, timing=False)


def test_a_failing_check_raises_too():
    """Right values are not enough."""
    f = jax.custom_vjp(lambda x: jnp.sin(x))
    f.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x) + 0.0 * g**2 + jnp.where(g > 9, 1.0, 0.0),))
    assert jbp.assert_vjp(f, X, timing=False, checks=False).ok
    with pytest.raises(jbp.GradientsDisagree, match="linear in the cotangent FAILS"):
        jbp.assert_vjp(f, X, timing=False)


def test_what_cannot_be_compared_is_an_input_error():
    with pytest.raises(jbp.InputError, match="no custom_vjp is called in"):
        jbp.assert_vjp(jnp.sin, X)
    with pytest.raises(jbp.InputError, match="different structures"):
        jbp.assert_gradients(lambda x: (x, x), lambda x: x, X)


TESTS = """
import jax
import jax.numpy as jnp
import numpy as np

import jbp

X = np.ones((1, 3), np.float32)
f = jax.custom_vjp(lambda x: jnp.sin(x))
f.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (-g * jnp.cos(x),))


def test_helper():
    jbp.assert_vjp(f, X, timing=False)  # the caller's line


def test_gradients():
    jbp.assert_gradients(lambda x: 2 * jnp.cos(x), jax.grad(lambda x: jnp.sin(x).sum()), X, timing=False)


def test_report():
    jbp.compare_vjp(f, X, timing=False).raise_if_bad()


def test_right():
    jbp.assert_gradients(jnp.cos, jax.grad(lambda x: jnp.sin(x).sum()), X, timing=False)
"""


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest prints of the tests above."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "test_mine.py").write_text(TESTS)
    line = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", "test_mine.py"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_under_pytest_a_failure_is_the_callers_line_and_the_report(failed: str):
    sections = failed.split("\n_____")
    assert len(sections) == 4
    for section, line in zip(sections[1:], ("assert_vjp(f", "assert_gradients(lambda", "raise_if_bad()"), strict=True):
        assert f">       jbp.{line}" in section or line in section.partition("\nE ")[0]
        report = [text[2:].strip() for text in section.splitlines() if text.startswith("E ")]
        assert any(text.startswith("leaf") and "ulps" in text for text in report)
        assert any("The gradients DISAGREE, most in" in text for text in report)
        assert any("WRONG" in text for text in report)
    assert "sign flipped" in sections[1]
    assert "off by the factor 2.000" in sections[2]


def test_under_pytest_our_frames_are_hidden(failed: str):
    sections = failed.partition("short test summary")[0]  # the summary repeats a whole report where CI is set
    places = [line for line in sections.splitlines() if ".py:" in line and not line.startswith("E ")]
    assert len(places) == 3
    assert all(line.startswith("test_mine.py:") for line in places)
    for hidden in (str(Path("jbp") / "testing.py"), "report.py", "raise GradientsDisagree", "__tracebackhide__"):
        assert hidden not in failed


def test_the_summary_counts_them(failed: str):
    assert "3 failed, 1 passed" in failed
