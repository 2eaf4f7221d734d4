"""Custom rules inside a function: every call is found, judged on what really reaches it, and named.

`sine` and `cube` carry right rules; `wrong_sine` doubles its gradient. All act element by element.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import jvp, numbers, ruled, vjp
from jax import lax

import jbp
from jbp.layer import InputError


def sine(x):
    return jnp.sin(x)


def wrong_sine(x):
    return jnp.sin(x)


def cube(x):
    return x**3


sine, wrong_sine = ruled(sine, jnp.cos), ruled(wrong_sine, lambda x: 2 * jnp.cos(x))
cube = ruled(cube, lambda x: 3 * x**2)
X, M = numbers(0, 4), numbers(1, 3, 4)


def names(report: jbp.Report) -> list[str]:
    return [call.name for call in report.calls]


def wrong(report: jbp.Report) -> list[str]:
    return [call.name for call in report.calls if not call.ok]


# -- wherever it sits -------------------------------------------------------------------------------------------------

X0 = float(np.sort(M[:, 0])[0])  # the first element of all rows but one is larger

PLACES: dict[str, tuple[Callable, int]] = {  # around a rule, and in how many turns it is then called
    "jit": (lambda f: jax.jit(lambda x: jnp.sum(jax.jit(lambda x: f(x) ** 2)(x))), 1),
    "scan": (lambda f: lambda x: jnp.sum(lax.scan(lambda c, x: (f(c + x), None), x[0], x)[0]), 3),
    "scan backwards": (lambda f: lambda x: jnp.sum(lax.scan(lambda c, x: (c, f(x)), x[0], x, reverse=True)[1]), 3),
    "scan in scan": (lambda f: lambda x: jnp.sum(lax.map(lambda row: lax.map(lambda x: f(x), row), x)), 12),
    "cond": (lambda f: lambda x: jnp.sum(lax.cond(x[0, 0] < 9, lambda x: f(x), lambda x: x, x)), 1),
    "cond in scan": (lambda f: lambda x: lax.map(lambda x: lax.cond(x[0] > X0, lambda x: f(x), jnp.exp, x), x), 2),
    "remat": (lambda f: jax.checkpoint(lambda x: jnp.sum(f(x))), 1),
    "remat in scan": (lambda f: lambda x: lax.map(jax.checkpoint(lambda x: f(x) * x), x), 3),
    "vmap": (lambda f: lambda x: jnp.sum(jax.vmap(lambda x: f(x))(x)), 1),
    "fori": (lambda f: lambda x: jnp.sum(lax.fori_loop(0, 2, lambda i, x: f(x), x)), 2),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_rule_is_found_wherever_it_sits(place: str):
    """The wrong one of two is found, and the right one, which gets its wrong δ, is not accused."""
    around, turns = PLACES[place]
    report = vjp(around(lambda x: wrong_sine(sine(x))), M)
    assert not report.values_ok
    assert names(report) == ["wrong_sine", "sine"]
    assert wrong(report) == [report.enters] == ["wrong_sine"]
    call = report.calls[0]
    assert call.where.startswith("test_rules.py:")
    assert [(leaf.name, leaf.pattern) for leaf in call.leaves] == [("x", "off by the factor 2.000")]
    assert any(note.startswith(f"{turns} turns") for note in call.notes) == (turns > 1)
    assert call.leaves[0].size % turns == 0


def test_a_branch_that_is_not_taken_is_said():
    f = lambda x, n: lax.switch(n, [sine, wrong_sine, cube], x)
    right, fails = vjp(f, X, np.int32(0)), vjp(f, X, np.int32(1))
    assert (names(right), right.ok) == (["sine"], True)
    assert "Not reached with these arguments: cube, wrong_sine." in right.notes
    assert (names(fails), fails.ok, fails.enters) == (["wrong_sine"], False, "wrong_sine")


def test_calls_are_numbered_forward_and_listed_in_reverse():
    """The error enters in the first wrong call that the reverse pass meets."""
    report = vjp(lambda x: jnp.sum(sine(wrong_sine(sine(wrong_sine(x))))), 0.3 * X)
    assert names(report) == ["sine#2", "wrong_sine#2", "sine#1", "wrong_sine#1"]
    assert wrong(report) == ["wrong_sine#2", "wrong_sine#1"]
    assert report.enters == "wrong_sine#2"
    assert report.verdict.startswith("The gradients DISAGREE, most in x: off by the factor 4.000")
    assert "The error enters in wrong_sine#2 (test_rules.py:" in report.verdict


def test_each_call_is_judged_on_what_reaches_it():
    """A rule that is wrong for negative numbers only, called on numbers of either sign."""
    relu = ruled(lambda x: jnp.where(x > 0, x, 0 * x), lambda x: jnp.ones_like(x))
    report = vjp(lambda x: jnp.sum(relu(jnp.exp(x))) + jnp.sum(relu(-jnp.exp(x))), X)
    assert wrong(report) == [name for name in names(report) if name.endswith("#2")]
    # x_t + x_{t+1} + … of 1, 1, -9 is negative three times, and would be once in the other order
    turns = np.float32([1, 1, -9])
    f = lambda x: lax.scan(lambda c, x: (c + x, relu(c + x)), jnp.zeros((), x.dtype), x, reverse=True)[1]
    assert np.count_nonzero(vjp(f, turns).calls[0].maps[0]) == 3
    # and on cotangents: one that ignores its own is right where that is 1
    blind = jax.custom_vjp(lambda x: x**2)
    blind.defvjp(lambda x: (x**2, x), lambda x, delta: (2 * x,))
    assert vjp(lambda x: jnp.sum(blind(x)), X).ok
    assert vjp(lambda x: jnp.sum(3 * blind(x)), X).calls[0].leaves[0].pattern == "off by the factor 0.333 = 1/3"


def test_a_shared_jitted_function_is_two_calls():
    shared = jax.jit(lambda x: sine(x) + x)
    report = vjp(lambda x: jnp.sum(shared(shared(x))), X)
    assert names(report) == ["sine#2", "sine#1"]
    assert report.ok


def test_a_rule_inside_another_is_named_and_its_owner_judged():
    """The outer rule is compared with autodiff of its primal without any rule, so the inner one can't mislead it."""
    outer = ruled(lambda x: wrong_sine(x) ** 2, lambda x: 2 * jnp.sin(x) * jnp.cos(x))
    report = vjp(lambda x: jnp.sum(outer(x)), X)
    assert (report.ok, len(report.calls)) == (True, 1)
    assert "Not looked into, under a while loop or another rule: wrong_sine." in report.notes
    misled = ruled(lambda x: wrong_sine(x) ** 2, lambda x: 4 * jnp.sin(x) * jnp.cos(x))
    assert not vjp(lambda x: jnp.sum(misled(x)), X).ok


class FlaxNet(nn.Module):
    """Dense, a rule, Dense, the same rule."""

    rule: Callable

    @nn.compact
    def __call__(self, x):
        return self.rule(nn.Dense(3)(self.rule(nn.Dense(4)(x))))


@eqx.filter_custom_vjp
def gelu(x):
    return jax.nn.gelu(x)


gelu.def_fwd(lambda perturbed, x: (jax.nn.gelu(x), None))
gelu.def_bwd(lambda _, g, perturbed, x: jax.vjp(jax.nn.gelu, x)[1](g)[0])


def test_a_call_bears_the_users_name_and_line_not_those_of_a_library():
    mlp = eqx.nn.MLP(4, 4, 4, 1, activation=sine, final_activation=gelu, key=jax.random.key(0))
    last, first = vjp(lambda x: jax.vmap(mlp)(x), M).calls
    assert [last.name, first.name] == ["gelu", "sine"]
    assert all(call.where.startswith("test_rules.py:") for call in (first, last))
    assert all(call.where.endswith(", <lambda>") for call in (first, last))
    (call,) = vjp(lambda x: 2 * gelu(x), X).calls
    assert call.name == "gelu"
    (alone,) = vjp(gelu, X).calls  # no line of the user's calls it
    assert alone.name == "gelu"
    assert alone.where.startswith("test_rules.py:")
    assert alone.where.endswith(", gelu")


class EquinoxNet(eqx.Module):
    layers: list
    rule: Callable = eqx.field(static=True)

    def __call__(self, x):
        for layer in self.layers:
            x = self.rule(layer(x))
        return x


def test_the_layers_of_a_flax_and_an_equinox_model():
    rule = wrong_sine
    flax = FlaxNet(rule)
    params = flax.init(jax.random.key(0), M)
    keys = jax.random.split(jax.random.key(1))
    equinox = EquinoxNet([eqx.nn.Linear(4, 4, key=keys[0]), eqx.nn.Linear(4, 2, key=keys[1])], rule)
    of_flax = vjp(lambda params, x: jnp.mean(flax.apply(params, x) ** 2), params, M)
    of_equinox = vjp(lambda model, x: jnp.mean(jax.vmap(model)(x) ** 2), equinox, M)
    for report in (of_flax, of_equinox):
        assert names(report) == wrong(report) == ["wrong_sine#2", "wrong_sine#1"]
        assert report.enters == "wrong_sine#2"
    assert "params.params.Dense_0.kernel" in [leaf.name for leaf in of_flax.leaves]
    assert "model.layers.0.weight" in [leaf.name for leaf in of_equinox.leaves]


# -- arguments, outputs, cotangents -----------------------------------------------------------------------------------


def scaled_by(w: Any, factor: float) -> Callable:
    scaled = jax.custom_vjp(lambda x: w * x)
    scaled.defvjp(lambda x: (w * x, ()), lambda _, delta: (factor * w * delta,))
    return lambda x: jnp.sum(lax.map(lambda x: scaled(x), x))


@pytest.mark.parametrize("factor", [1, 2])
def test_constants_that_a_rule_closes_over(factor: float):
    """They are arguments of the call as it is traced; no gradient is taken for them."""
    report = vjp(scaled_by(jnp.asarray(X), factor), M)
    assert report.ok == (factor == 1)
    assert [leaf.name for leaf in report.calls[0].leaves] == ["x"]


def test_a_traced_value_that_a_rule_closes_over_is_said():
    def f(x, w):
        scaled = jax.custom_vjp(lambda x: w * x)
        scaled.defvjp(lambda x: (w * x, ()), lambda _, delta: (w * delta,))
        return jnp.sum(scaled(x))

    with pytest.raises(InputError, match="closes over a traced value of the function around it"):
        vjp(f, X, 2 * X)
    report = vjp(lambda x: f(x, jnp.asarray(X)), X)
    assert report.ok
    assert "Make it an argument of the rule." in report.notes[-1]


@pytest.mark.parametrize("around", [lambda f: f, lambda f: lambda x: 3 * f(x), *(PLACES[p][0] for p in PLACES)])
def test_a_backward_of_another_dtype_is_an_error_that_names_the_rule_and_both_dtypes(around: Callable):
    def slow(x):
        return jnp.sin(x)

    x = jnp.asarray(M, jnp.bfloat16)
    wide = jax.custom_vjp(slow)
    wide.defvjp(lambda x: (slow(x), x), lambda x, g: ((g * jnp.cos(x)).astype(jnp.float32),))
    told = r"the rule of slow returns float32\[.*\] for x, which is bfloat16\[.*\]\. .*dx\.astype\(x\.dtype\)"
    with pytest.raises(InputError, match=told):
        vjp(around(wide), x)


def test_a_backward_of_another_dtype_is_an_error_where_a_cast_around_it_hides_it():
    wide = jax.custom_vjp(lambda x: jnp.sin(x))
    wide.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: ((g * jnp.cos(x)).astype(jnp.float32),))
    with pytest.raises(InputError, match=r"returns float32.* for x, which is bfloat16"):
        vjp(lambda x: wide(x.astype(jnp.bfloat16)).astype(jnp.float32), X)


@jax.custom_vjp
def gathered(table, rows, scale):
    """(table[rows] · scale, its sum): two outputs, an integer argument."""
    out = table[rows] * scale
    return out, jnp.sum(out)


def gathered_backward(saved, deltas):
    table, rows, scale = saved
    delta = deltas[0] + deltas[1]
    return jnp.zeros_like(table).at[rows].add(delta * scale), None, jnp.sum(delta * table[rows])


gathered.defvjp(lambda *args: (gathered(*args), args), gathered_backward)


def test_integer_arguments_and_several_outputs():
    report = vjp(gathered, M, np.array([2, 0, 2]), np.float32(0.7))  # of int64, as NumPy has them
    assert report.ok, report
    assert [leaf.name for leaf in report.leaves] == ["table", "scale"]


def test_given_cotangents_and_tangents_enter_at_the_ends():
    """A rule that forgets its second output is right if nothing comes from there."""
    partly = jax.custom_vjp(gathered.fun)
    partly.defvjp(lambda *args: (gathered(*args), args), lambda saved, d: gathered_backward(saved, (d[0], 0 * d[1])))
    args = M, np.array([2, 0, 2], np.int32), np.float32(0.7)
    assert vjp(partly, *args, cotangent=(numbers(3, 3, 4), np.float32(0))).ok
    assert not vjp(partly, *args, cotangent=(numbers(3, 3, 4), np.float32(1))).ok
    assert not vjp(partly, *args).ok
    with pytest.raises(InputError, match="the cotangent must be like"):
        vjp(partly, *args, cotangent=(numbers(3, 3, 4),))
    scaled = jax.custom_jvp(lambda x, y: x * y)
    scaled.defjvp(lambda p, t: (p[0] * p[1], p[1] * t[0]))  # the term of y is missing
    assert jvp(scaled, X, 2 * X, tangent=(X, 0 * X)).ok
    assert not jvp(scaled, X, 2 * X, tangent=(X, X)).ok
    assert not jvp(scaled, X, 2 * X).ok


def test_complex_rules():
    """f(z) = z |z|² has, for a cotangent c, the gradient 2 |z|² c + z̄² c̄ in JAX's convention."""
    f = lambda z: z * (z * jnp.conj(z))
    rule, dropped = jax.custom_vjp(f), jax.custom_vjp(f)
    rule.defvjp(lambda z: (f(z), z), lambda z, c: (2 * z * jnp.conj(z) * c + jnp.conj(z * z * c),))
    dropped.defvjp(lambda z: (f(z), z), lambda z, c: (2 * z * jnp.conj(z) * c + z * z * jnp.conj(c),))
    z = lax.complex(X, numbers(2, 4))
    assert vjp(rule, z).ok
    assert vjp(lambda z: jnp.sum(jnp.real(rule(2 * z))), z).ok
    report = vjp(dropped, z)
    assert not report.ok
    assert "the rule with neither" in report.notes[-1]


# -- forward mode -----------------------------------------------------------------------------------------------------


@jax.custom_jvp
def softplus(x):
    return jnp.log1p(jnp.exp(x))


@jax.custom_jvp
def wrong_softplus(x):
    return jnp.log1p(jnp.exp(x))


softplus.defjvp(lambda p, t: (softplus(*p), jax.nn.sigmoid(p[0]) * t[0]))
wrong_softplus.defjvp(lambda p, t: (wrong_softplus(*p), -jax.nn.sigmoid(p[0]) * t[0]))


@pytest.mark.parametrize("place", ["jit", "cond in scan", "remat"])
def test_custom_jvps_are_found_as_well(place: str):
    around, _ = PLACES[place]
    report = jvp(around(lambda x: wrong_softplus(softplus(x))), M)
    assert (wrong(report), report.calls[0].leaves[0].pattern) == (["wrong_softplus"], "sign flipped")
    assert len(report.calls) == 2


def test_nothing_to_compare_has_a_clear_message():
    with pytest.raises(InputError, match=r"but a custom_jvp is: softplus\. Use compare_jvp"):
        vjp(softplus, X)
    with pytest.raises(InputError, match=r"root stands|sine stands under a while loop"):
        vjp(lambda x: lax.while_loop(lambda x: jnp.sum(x) > 9, sine, x), X)
    with pytest.raises(InputError, match="no arguments of a float dtype"):
        vjp(lambda n: sine(n.astype(jnp.float32)), np.arange(3))
