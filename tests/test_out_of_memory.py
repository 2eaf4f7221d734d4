"""An oracle whose float64 shadow has no memory: it is run in smaller pieces, with the same result, and that is said."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbp
from jbp import losses

PROGRAM = sys.modules["jbp.programs.program"]
X = np.cos(np.arange(15.0, dtype=np.float32)).reshape(5, 3)
Y = np.sin(np.arange(10.0, dtype=np.float32)).reshape(5, 2)
WEIGHTS = np.array([1, 0, 2, 0.5, 3], np.float32)


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch):
    """Each program runs by itself, as it does where arguments are large."""
    monkeypatch.setattr(PROGRAM, "SMALL", 0)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`memory(n)`: from now on the arguments of a program compiled in float64 may have n elements in all."""
    compiled = PROGRAM.Program._wide.func

    def limit(elements: int) -> None:
        def wide(self: Any) -> Callable:
            def run(consts: Any, arrays: Any) -> Any:
                if sum(map(np.size, arrays)) > elements:
                    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")
                return compiled(self)(consts, arrays)

            return run

        monkeypatch.setattr(PROGRAM.Program, "_wide", property(wide))

    return limit


def assert_same(report: jbp.Report, direct: jbp.Report) -> None:
    """Up to the rounding of float64 all errors are those that were measured directly."""
    for got, expected in zip((*report.leaves, report.total), (*direct.leaves, direct.total), strict=True):
        assert got.name == expected.name
        np.testing.assert_allclose(got.scale, expected.scale, rtol=1e-12)
        np.testing.assert_allclose(got.error, expected.error, rtol=1e-6)
        np.testing.assert_allclose(got.oracle_error, expected.oracle_error, rtol=1e-6)


# -- any function: one operation at a time ----------------------------------------------------------------------------


def f(w: jax.Array, x: jax.Array) -> jax.Array:
    return (jnp.tanh(x @ w) ** 2).sum()


def rule(w: jax.Array, x: jax.Array) -> jax.Array:
    a = jnp.tanh(x @ w)
    return x.T @ (2 * a * (1 - a * a))


def compared(rule: Callable) -> jbp.Report:
    return jbp.compare(rule, jax.grad(f), Y[:3], X, timing=False, checks=False)


def test_one_operation_at_a_time_gives_the_same(memory: Callable):
    direct = compared(rule)
    memory(0)
    report = compared(rule)
    assert report.ok
    assert report.notes == (
        "compare: the oracle ran out of memory in float64, and was run again one operation at a time.",
    )
    assert_same(report, direct)


def test_a_wrong_rule_is_caught_without_memory_too(memory: Callable):
    memory(0)
    report = compared(lambda w, x: -rule(w, x))
    assert not report.ok
    assert report.worst.pattern == "sign flipped"


def test_a_custom_vjp_without_memory(memory: Callable):
    square = jax.custom_vjp(lambda x: x * x)
    square.defvjp(lambda x: (x * x, x), lambda x, g: (2 * g * x,))
    direct = jbp.compare_vjp(square, X, timing=False)
    memory(0)
    report = jbp.compare_vjp(square, X, timing=False, checks=False)
    assert report.ok
    assert any("autodiff of <lambda> ran out of memory in float64" in note for note in report.notes)
    assert_same(report, direct)


def test_no_memory_for_one_operation_either(memory: Callable, monkeypatch: pytest.MonkeyPatch):
    def recast(jaxpr: Any) -> Callable:
        def run(*args: Any) -> Any:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")

        return run

    memory(0)
    monkeypatch.setattr(PROGRAM, "recast", recast)
    with pytest.raises(jbp.InputError) as error:
        compared(rule)
    assert str(error.value) == (
        "compare: the oracle runs out of memory in float64, also one operation at a time. Compare on fewer examples."
    )


def test_another_error_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch):
    def wide(self: Any) -> Callable:
        def run(consts: Any, arrays: Any) -> Any:
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")

        return run

    monkeypatch.setattr(PROGRAM.Program, "_wide", property(wide))
    with pytest.raises(jbp.InputError) as error:
        compared(rule)
    assert str(error.value) == "compare: the oracle fails in float64: INTERNAL: something else"


# -- a cost: blocks of examples ---------------------------------------------------------------------------------------


def cost(**settings: Any) -> jbp.Cost:
    return jbp.Cost(jbp.mlp(3, 4, 2), losses.HalfSquaredError(), **settings)


THETA = cost().init(jax.random.key(0))
WHOLE = THETA.size + X.size + Y.size  # elements of θ, x and y; in blocks there is a weight for each example besides
BLOCKS = "The oracle ran out of memory in float64; it was run on {} blocks of examples, and summed."


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["", "weighted"])
@pytest.mark.parametrize(("examples", "blocks"), [(3, 2), (2, 4), (1, 5)])
def test_blocks_of_examples_give_the_same(memory: Callable, reduction: str, weights: Any, examples: int, blocks: int):
    direct = cost(reduction=reduction).compare(THETA, X, Y, weights=weights, timing=False)
    memory(THETA.size + 6 * examples)
    report = cost(reduction=reduction).compare(THETA, X, Y, weights=weights, timing=False)
    assert report.ok
    assert report.notes[-1] == BLOCKS.format(blocks)
    assert_same(report, direct)


def test_a_wrong_layer_is_caught_in_blocks(memory: Callable, monkeypatch: pytest.MonkeyPatch):
    right = jbp.Dense.backward

    def twice(self: Any, params: Any, feedback: Any, saved: Any, delta: Any, read: Any) -> Any:
        delta_x, readings = right(self, params, feedback, saved, delta, read)
        return delta_x, readings._replace(b=2 * readings.b)

    monkeypatch.setattr(jbp.Dense, "backward", twice)
    memory(THETA.size + 6 * 3)
    report = jbp.Cost(jbp.mlp(3, 4, 2), losses.SquaredError()).compare(THETA, X, Y, timing=False)
    assert not report.ok
    assert report.worst.name.endswith(".b")
    assert BLOCKS.format(2) in report.notes


def test_one_example_is_too_large():
    """The message says what to do."""
    with pytest.MonkeyPatch.context() as patch:
        compiled = property(lambda self: _never)
        patch.setattr(PROGRAM.Program, "_wide", compiled)
        with pytest.raises(jbp.InputError) as error:
            cost().compare(THETA, X, Y, timing=False)
    assert str(error.value) == (
        "compare: the oracle runs out of memory in float64, also on one example of float32[5, 3]. Compare a smaller "
        "network."
    )


def _never(consts: Any, arrays: Any) -> Any:
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")


def test_noise_is_not_drawn_anew_in_blocks(memory: Callable):
    """With a key there are no blocks: one operation at a time."""
    memory(0)
    report = cost().compare(THETA, X, Y, context=jbp.Context(key=jax.random.key(0)), timing=False)
    assert report.ok
    assert report.notes == (
        "compare: the oracle ran out of memory in float64, and was run again one operation at a time.",
    )


# -- for real ---------------------------------------------------------------------------------------------------------

FOR_REAL = """
import resource
import jax, numpy as np, jbp
from jbp import losses

cost = jbp.Cost(jbp.mlp(8, 256, 2, activation=jbp.Tanh()), losses.HalfSquaredError())
theta = cost.init(jax.random.key(0))
random = np.random.default_rng(0)
x, y = (random.standard_normal((150_000, k)).astype(np.float32) for k in (8, 2))
cost.compare(theta, x[:8], y[:8], timing=False)  # what this maps once, it keeps

temporary = jax.jit(jax.value_and_grad(cost)).lower(theta, x, y).compile().memory_analysis().temp_size_in_bytes
(mapped,) = (int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
limit = mapped + int(1.8 * temporary)  # enough in float32, not in float64
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
report = cost.compare(theta, x, y, timing=False)
print(report.ok, *report.notes)
"""


in_linux = pytest.mark.skipif(
    not Path("/proc/self/status").exists() or not hasattr(resource, "RLIMIT_AS"),
    reason="the size of a process is read from /proc, and limited as Linux does",
)


@in_linux
def test_for_real_in_a_process_with_little_memory():
    line = [sys.executable, "-c", FOR_REAL]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=_clean(), timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True The oracle ran out of memory in float64; it was run on ")


@in_linux
def test_no_memory_in_the_functions_own_dtype_is_a_message_too():
    """It is the rule itself that can't be run; JAX raises only when the result is read."""
    code = (
        FOR_REAL.replace("1.8 *", "0.7 *")
        .replace("report = ", "try:\n    ")
        .replace("print(report.ok, *report.notes)", "except jbp.InputError as error:\n    print(error)")
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=_clean(), timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("compare: the rule fails as it runs: RESOURCE_EXHAUSTED: Out of memory allocating ")


def _clean() -> dict[str, str]:
    """An environment in which what is freed goes back to the system at once, so that a limit is one."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return kept | {"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
