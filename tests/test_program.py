"""What a function may hold besides mathematics: forward passes that JAX may leave out, and output."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import numbers, vjp

import jbp
from jbp.errors import said

X = numbers(0, 4)


def sine(factor: float) -> Callable:
    """Its gradient times a factor; its forward pass is left out where the residuals are not needed."""
    f = jax.custom_vjp(lambda x: jnp.sin(x))
    f.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (factor * g * jnp.cos(x),), optimize_remat=True)
    return f


@pytest.mark.parametrize("around", [lambda f: f, lambda f: lambda x: 2 * f(x), lambda f: jax.checkpoint(f)])
def test_a_rule_with_optimize_remat_is_compared_like_any_other(around: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules["jbp.programs.clock"], "SECONDS", 0.0)
    report = jbp.compare_vjp(around(sine(1.0)), X)
    assert report.ok, report
    wrong = jbp.compare_vjp(around(sine(1.01)), X)
    assert not wrong.ok
    assert wrong.worst.pattern == "off by the factor 1.010"


def test_what_jax_debug_prints_is_printed_by_the_users_runs_alone(capsys: pytest.CaptureFixture):
    def loud(x: Any) -> Any:
        jax.debug.print("forward {}", x[0])
        return jnp.sin(x), x

    def back(x: Any, g: Any) -> tuple[Any]:
        jax.debug.callback(lambda x: print("backward"), x)
        return (g * jnp.cos(x),)

    rule = jax.custom_vjp(lambda x: loud(x)[0])
    rule.defvjp(loud, back)

    def f(x: Any) -> Any:
        def turn(c: Any, _: None) -> tuple[Any, None]:
            jax.debug.print("turn {}", c[0], ordered=True)
            return jax.lax.cond(c[0] > 9, lambda c: c, rule, c), None

        return jax.lax.scan(turn, x, None, length=2)[0]

    report = vjp(f, X)
    assert report.ok, report
    assert len(report.calls) == 1
    jax.effects_barrier()
    assert capsys.readouterr().out == ""
    jax.grad(lambda x: f(x).sum())(X)
    jax.effects_barrier()
    assert sorted({line.split()[0] for line in capsys.readouterr().out.splitlines()}) == ["backward", "forward", "turn"]


def test_of_the_options_of_a_compiler_in_a_hurry_those_that_it_knows_are_kept(monkeypatch: pytest.MonkeyPatch):
    program: Any = sys.modules["jbp.programs.program"]
    assert "xla_backend_optimization_level" in program.quick("cpu")
    assert program.quick("tpu") == {}
    monkeypatch.setattr(program, "QUICK", {"xla_of_tomorrow": 1, "xla_backend_optimization_level": 0})
    program.quick.cache_clear()
    try:
        assert program.quick("cpu") == {"xla_backend_optimization_level": 0}
    finally:
        program.quick.cache_clear()


def test_rule_oracle_and_shadow_in_one_program_give_what_each_gives_by_itself(monkeypatch: pytest.MonkeyPatch):
    program = sys.modules["jbp.programs.program"]
    f = lambda x: jnp.exp(x) * jax.random.normal(jax.random.key(3), x.shape).sum() / jnp.arange(1, 5, dtype=x.dtype)
    rule, oracle = (program.Program(who, g, (X,)) for who, g in (("rule", f), ("oracle", lambda x: 2 * f(x))))
    together = program.Together.of(rule, oracle)
    assert together is program.Together.of(rule, oracle)
    for got, alone in zip(together(X), (rule(X), oracle(X), oracle.exact(X)), strict=True):
        assert got.dtype == alone.dtype
        np.testing.assert_allclose(got, alone, rtol=8 * jnp.finfo(got.dtype).eps)
    assert together.able
    monkeypatch.setattr(program.Program, "compiled", property(lambda self: pytest.fail("compiled by itself")))
    assert jbp.compare(f, f, X, timing=False, checks=False).ok


def test_a_rule_that_raises_as_it_runs_is_named_where_nothing_is_timed():
    def refuses(x: Any) -> Any:
        raise ValueError("not today")

    f = lambda x: jax.pure_callback(refuses, x, x)
    with pytest.raises(jbp.InputError, match=r"the rule fails as it runs: .*not today"):
        jbp.compare(f, jnp.sin, X, timing=False)


def test_a_constant_of_numpy_that_jax_refuses_gets_a_remedy():
    told = said(AssertionError("non-canonical constant: float64[3]"))
    assert told.endswith(
        "Make NumPy constants that the function closes over arrays of JAX, as in jnp.asarray(constant)."
    )
