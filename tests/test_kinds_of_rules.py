"""Rules in all the forms in which JAX writes them down: hijax's, generic batching, and beside a rule for vmap.

Each kind is a right rule and a wrong one (its gradient twice as large), put wherever a rule may stand.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from by_hand import jvp, numbers, vjp
from jax.custom_batching import custom_vmap
from jax.experimental import hijax
from test_rules import PLACES, names, wrong

import jbp
from jbp.layer import InputError

HiPrim: Any = getattr(hijax, "HiPrim", None) or hijax.VJPHiPrimitive
X, M = numbers(0, 4), numbers(1, 3, 4)


class Sine(HiPrim):
    """sin x · y as hijax has it, its gradient times a factor."""

    def __init__(self, x: Any, y: Any, factor: float):
        self.in_avals, self.out_aval, self.params = (x, {"y": y}), x, {"factor": factor}
        super().__init__()

    def expand(self, x: Any, more: Any) -> Any:
        return jnp.sin(x) * more["y"]

    def vjp_fwd(self, perturbed: Any, x: Any, more: Any) -> Any:
        return self(x, more), (x, more["y"])

    def vjp_bwd_retval(self, saved: Any, g: Any) -> Any:
        x, y = saved
        return self.factor * g * y * jnp.cos(x), {"y": g * jnp.sin(x)}

    def batch(self, axis_data: Any, args: Any, dims: Any) -> Any:
        front = lambda a, d: jnp.broadcast_to(a, (axis_data.size, *a.shape)) if d is None else jnp.moveaxis(a, d, 0)
        (x, more), (dx, dmore) = args, dims
        x, y = front(x, dx), front(more["y"], dmore["y"])
        return Sine(jax.typeof(x), jax.typeof(y), self.factor)(x, {"y": y}), 0


def of_hijax(factor: float) -> Callable:
    return lambda x: Sine(jax.typeof(x), jax.typeof(x), factor)(x, {"y": jnp.ones_like(x)})


def sine(x):
    return jnp.sin(x)


def with_rule(primal: Callable, factor: float, **settings: Any) -> Callable:
    f = jax.custom_vjp(primal)
    f.defvjp(lambda x: (primal(x), x), lambda x, g: (factor * g * jnp.cos(x),), **settings)
    return f


def generic(factor: float) -> Callable:
    return with_rule(sine, factor, generic_batching=True)


def mapped_by_hand(f: Callable) -> Callable:
    """f with its own rule for vmap."""
    g = custom_vmap(f)
    g.def_vmap(lambda size, batched, *args: (f(*args), True))
    return g


def around_vmap(factor: float) -> Callable:
    """A rule for vmap in the primal and in forward: through it alone reverse mode can't go."""
    return with_rule(mapped_by_hand(sine), factor)


def inside_vmap(factor: float) -> Callable:
    return mapped_by_hand(with_rule(sine, factor))


def has_generic_batching() -> bool:
    try:
        generic(1.0)
    except TypeError:
        return False
    return True


GENERIC = pytest.mark.skipif(not has_generic_batching(), reason="this JAX has no defvjp(..., generic_batching=True)")
KINDS = {
    "Sine": of_hijax,
    "generic": generic,
    "around a vmap": around_vmap,
    "inside a vmap": inside_vmap,
}
HOSTS = ("jit", "cond in scan", "vmap", "remat in scan")  # the others are in test_rules, for the usual kind
PLACED = [
    pytest.param(kind, place, marks=GENERIC if kind == "generic" else ())
    for kind in KINDS
    for place in HOSTS
    if not (kind == "Sine" and "remat" in place)  # JAX differentiates a checkpoint in forward mode first
]


@pytest.mark.parametrize(("kind", "place"), PLACED)
def test_a_rule_of_each_kind_is_found_wherever_it_sits(kind: str, place: str):
    """Right, it passes; wrong, it is the call that is named."""
    around, turns = PLACES[place]
    report = vjp(around(KINDS[kind](1.0)), M)
    assert report.ok, report
    assert len(report.calls) == 1
    report = vjp(around(KINDS[kind](2.0)), M)
    assert not report.ok
    (call,) = report.calls
    assert call.name == ("Sine" if kind == "Sine" else "sine" if kind != "around a vmap" else call.name)
    assert wrong(report) == names(report)
    assert ("x", "off by the factor 2.000") in [(leaf.name, leaf.pattern) for leaf in call.leaves]
    assert call.where.startswith(("test_kinds_of_rules.py:", "test_rules.py:"))
    assert call.leaves[0].size % turns == 0


@pytest.mark.parametrize("kind", ["Sine", pytest.param("generic", marks=GENERIC), "around a vmap"])
def test_a_rule_of_each_kind_by_itself_with_all_that_is_checked(kind: str):
    report = vjp(KINDS[kind](1.0), X, checks=True)
    assert report.ok, report
    checks = {check.name: check.ok for check in (*report.checks, *(c for call in report.calls for c in call.checks))}
    assert [checks[name] for name in ("vmap", "scan", "linear in the cotangent", "forward value")] == [True] * 4
    report = vjp(KINDS[kind](2.0), X, checks=True)
    assert report.worst.pattern == "off by the factor 2.000"


def test_the_arguments_of_hijaxs_rule_have_the_names_of_expand():
    f = lambda x, y: Sine(jax.typeof(x), jax.typeof(y), 3.0)(x, {"y": y}).sum()
    (call,) = vjp(f, X, 2 * X).calls
    assert [(leaf.name, leaf.ok) for leaf in call.leaves] == [("x", False), ("more['y']", True)]
    assert call.where.startswith("test_kinds_of_rules.py:")


@GENERIC
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_constants_that_a_rule_with_generic_batching_closes_over(factor: float):
    w = jnp.asarray(X)

    def scaled(x):
        return w * x

    f = jax.custom_vjp(scaled)
    f.defvjp(lambda x: (w * x, ()), lambda _, g: (factor * w * g,), generic_batching=True)
    report = vjp(lambda x: jax.lax.map(f, x).sum(), M)
    assert report.ok == (factor == 1)
    assert [leaf.name for leaf in report.calls[0].leaves] == ["x"]


class Cube(HiPrim):
    """x³ with a rule for forward mode, times a factor."""

    def __init__(self, x: Any, factor: float):
        self.in_avals, self.out_aval, self.params = (x,), x, {"factor": factor}
        super().__init__()

    def expand(self, x: Any) -> Any:
        return x**3

    def jvp(self, primals: Any, tangents: Any) -> Any:
        return self(*primals), self.factor * 3 * primals[0] ** 2 * tangents[0]


@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize(
    "around", [lambda f: f, lambda f: jax.jit(lambda x: 2 * f(x)), lambda f: lambda x: jax.lax.map(f, x)]
)
def test_a_rule_of_hijaxs_for_forward_mode(around: Callable, factor: float):
    f = lambda x: Cube(jax.typeof(x), factor)(x)
    assert jvp(around(f), X).ok == (factor == 1)
    with pytest.raises(InputError, match=r"but a custom_jvp is: Cube\. Use compare_jvp"):
        vjp(around(f), X)


@pytest.mark.skipif(not hasattr(hijax, "vjp_from_jvp"), reason="this JAX makes no reverse rule of a forward one")
def test_a_reverse_rule_that_is_made_of_a_forward_one_is_the_forward_one():
    class Both(Cube):
        if hasattr(hijax, "vjp_from_jvp"):
            vjp_fwd, vjp_bwd_retval = hijax.vjp_from_jvp

    f = lambda x: Both(jax.typeof(x), 2.0)(x)
    assert not jvp(f, X).ok
    with pytest.raises(InputError, match=r"but a custom_jvp is: Both\. Use compare_jvp"):
        vjp(f, X)


def test_a_call_of_hijaxs_without_rules_is_what_it_expands_to():
    """In a primal, where autodiff has to go through it."""

    class Plain(HiPrim):
        def __init__(self, x: Any):
            self.in_avals, self.out_aval, self.params = (x,), x, {}
            super().__init__()

        def expand(self, x: Any) -> Any:
            return jnp.sin(x)

    primal = lambda x: Plain(jax.typeof(x))(x)
    assert vjp(with_rule(primal, 1.0), X).ok
    assert not vjp(with_rule(primal, 2.0), X).ok


def test_through_a_rule_for_vmap_the_oracle_is_reverse_mode_however_large():
    """As kernel libraries write theirs: forward returns residuals through a custom_vmap."""

    @custom_vmap
    def with_residuals(x, w):
        return jnp.tanh(x @ w), (x, w, jnp.tanh(x @ w))

    with_residuals.def_vmap(
        lambda n, b, x, w: (jax.vmap(with_residuals.fun, [0 if i else None for i in b])(x, w), (True, (True,) * 3))
    )

    def dense(factor: float) -> Callable:
        f = jax.custom_vjp(lambda x, w: with_residuals(x, w)[0])

        def backward(saved: Any, g: Any) -> Any:
            x, w, out = saved
            d = g * (1 - out**2)
            return factor * d @ w.T, x.T @ d

        f.defvjp(with_residuals, backward, optimize_remat=True)
        return f

    x, w = numbers(2, 64, 80), numbers(3, 80, 70) / 9
    report = vjp(dense(1.0), x, w)
    assert report.ok, report
    assert not [note for note in report.notes if "mode" in note]
    assert vjp(dense(2.0), x, w).worst.name == "x"


def test_a_custom_jvp_inside_a_rule_for_vmap():
    def rule(factor: float) -> Callable:
        f = jax.custom_jvp(sine)
        f.defjvp(lambda p, t: (jnp.sin(p[0]), factor * jnp.cos(p[0]) * t[0]))
        return lambda x: 2 * mapped_by_hand(f)(x)

    assert jvp(rule(1.0), X).ok
    report = jvp(rule(2.0), X)
    assert (wrong(report), isinstance(report, jbp.Report)) == (["sine"], True)
