"""What people try first, and what once misled the comparison: many kinks, cancelled gradients, overflow, stops, luck.

Right rules pass, wrong ones that look like them do not.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import numbers, ruled, vjp
from jax import lax

import jbp
from jbp.compare.verdict import Verdict

TIES = np.float32([2, 1, 2, -1, 2])
ZEROS = np.float32([0, 0, 1, -1, 0, 0, 2, -3] * 5)


# -- kinks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at_zero", "right"), [(0.0, True), (1.0, True), (0.3, True), (1.5, False), (-0.2, False)])
def test_a_relu_may_have_any_slope_at_its_kinks_however_many(at_zero: float, right: bool):
    """Under cotangents of both signs: the sum's slopes from both sides say nothing of a rule that takes one at all."""
    rule = ruled(lambda x: jnp.maximum(x, 0), lambda x: jnp.where(x == 0, at_zero + 0 * x, (x > 0).astype(x.dtype)))
    report = vjp(rule, ZEROS)
    assert report.kind is (Verdict.AGREE if right else Verdict.WRONG), report
    assert report.ok == right
    said = next(note for note in report.notes if note.startswith("20 kinks are met at the arguments"))
    assert ("right as well" in said) == right


def by_row(share: Callable) -> Callable:
    f = jax.custom_vjp(lambda x: x.max(-1))
    f.defvjp(
        lambda x: (x.max(-1), x), lambda x, d: (d[:, None] * share(x == x.max(-1, keepdims=True)).astype(d.dtype),)
    )
    return f


def test_ties_may_be_shared_out_in_any_way_that_adds_up():
    x = np.stack([TIES, TIES[::-1] + 1, numbers(5, 5)])
    first = lambda tied: tied & (jnp.cumsum(tied, -1) == 1)
    evenly = lambda tied: tied.astype(np.float32) / tied.sum(-1, keepdims=True).astype(np.float32)
    each = lambda tied: tied  # all of it to each: at two ties twice too much
    assert jbp.compare_vjp(by_row(first), x, timing=False, checks=False).ok
    assert jbp.compare_vjp(by_row(evenly), x, timing=False, checks=False).ok
    assert not jbp.compare_vjp(by_row(each), x, timing=False, checks=False).ok


def test_equal_elements_may_be_sorted_in_any_order():
    x = np.round(2 * numbers(3, 20))

    def by(order: Callable) -> Callable:
        f = jax.custom_vjp(lambda x: jnp.sort(x))
        f.defvjp(lambda x: (jnp.sort(x), order(x)), lambda at, d: (jnp.zeros_like(d).at[at].set(d),))
        return f

    assert jbp.compare_vjp(by(lambda x: jnp.flip(jnp.argsort(-x))), x, timing=False, checks=False).ok
    assert not jbp.compare_vjp(by(lambda x: jnp.argsort(-x)), x, timing=False, checks=False).ok


@pytest.mark.parametrize("equal", [3, 8, 24, 120])
@pytest.mark.parametrize("last", [False, True], ids=["each once", "one twice"])
def test_many_equal_elements_may_stand_in_a_random_order_but_each_once(equal: int, last: bool):
    """What one of them takes twice, another lacks: the sum over them stays, and no mixture of orders gives it.

    Of 120 equal ones there are more exchanges than are tried.
    """
    x = np.random.default_rng(equal).permutation(np.append(np.full(equal, 1.5, np.float32), numbers(4, 4)))
    ties = np.random.default_rng(1).permutation(x.size)

    def order(x):
        at = jnp.lexsort((ties, x))
        tied = x[at][1:] == x[at][:-1]
        first = tied & (jnp.cumsum(tied) == 1)
        return at.at[1:].set(jnp.where(first & last, at[:-1], at[1:]))

    f = jax.custom_vjp(lambda x: jnp.sort(x))
    f.defvjp(lambda x: (jnp.sort(x), order(x)), lambda at, d: (jnp.zeros_like(d).at[at].add(d),))
    weights = np.arange(1.0, x.size + 1).astype(np.float32) ** 1.5
    report = jbp.compare_vjp(lambda x: f(x) @ weights, x, timing=False, checks=False)
    assert report.kind is (jbp.Verdict.UNDECIDED if equal > 100 else jbp.Verdict.WRONG if last else jbp.Verdict.AGREE)


@pytest.mark.parametrize("most", [0.3, 2.0])
def test_more_kinks_than_are_chosen_one_by_one(most: float):
    """A slope at each that is one of its own is not known to be wrong; one that no kink has is wrong."""
    slopes = np.random.default_rng(0).uniform(0, most, 5000).astype(np.float32)
    f = jax.custom_vjp(jax.nn.relu)
    f.defvjp(lambda x: (jax.nn.relu(x), x), lambda x, d: (d * jnp.where(x == 0, slopes, (x > 0).astype(d.dtype)),))
    report = jbp.compare_vjp(f, np.zeros(5000, np.float32), timing=False, checks=False)
    assert report.kind is (jbp.Verdict.WRONG if most > 1 else jbp.Verdict.UNDECIDED)
    assert most > 1 or "so many kinks are met at once" in report.verdict


# -- gradients that are 0 because their terms cancel ------------------------------------------------------------------


def normalized(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


def normalized_backward(x: Any, d: Any, forgets: float = 1.0) -> Any:
    y, rms = normalized(x), jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return (d - d.mean(-1, keepdims=True) - forgets * y * (d * y).mean(-1, keepdims=True)) / rms


def softmaxed_backward(x: Any, d: Any) -> Any:
    p = jax.nn.softmax(x)
    return p * (d - (p * d).sum(-1, keepdims=True))


CANCEL: dict[str, tuple[Callable, Callable]] = {
    "LayerNorm": (normalized, normalized_backward),
    "softmax": (lambda x: jax.nn.softmax(x), softmaxed_backward),
}


@pytest.mark.parametrize("name", CANCEL)
def test_a_gradient_of_0_is_no_measure_of_what_cancels_to_it(name: str):
    """The sum of a softmax, or of a LayerNorm, is a constant."""
    f, backward = CANCEL[name]
    rule = jax.custom_vjp(f)
    rule.defvjp(lambda x: (f(x), x), lambda x, d: (backward(x, d),))
    report = jbp.compare_vjp(lambda x: rule(x).sum(), numbers(2, 4, 8), timing=False)
    assert report.ok, report
    wrong = jax.custom_vjp(f)
    wrong.defvjp(lambda x: (f(x), x), lambda x, d: (backward(x, d) + 1e-3 * d,))
    assert not jbp.compare_vjp(lambda x: wrong(x).sum(), numbers(2, 4, 8), timing=False).ok


def test_the_users_random_numbers_are_not_ours():
    """A cotangent that equals x makes the gradient of x / ‖x‖ cancel, and hides that A @ A has been transposed."""
    x = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    rule = jax.custom_vjp(lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True))

    def backward(x, d, factor=1.0):
        n = jnp.linalg.norm(x, axis=-1, keepdims=True)
        return (factor * (d - x / n * (x / n * d).sum(-1, keepdims=True)) / n,)

    rule.defvjp(lambda x: (x / jnp.linalg.norm(x, axis=-1, keepdims=True), x), backward)
    assert jbp.compare_vjp(rule, x, timing=False).ok
    square = jax.custom_vjp(lambda a: a @ a)
    square.defvjp(lambda a: (a @ a, a), lambda a, d: (a @ d.T + a.T @ d,))
    assert not jbp.compare_vjp(square, x, timing=False, checks=False).ok


# -- where autodiff overflows -----------------------------------------------------------------------------------------

LARGE = np.float32([-3, 0.5, 100, 2])


def naive(x):
    return jnp.log(1 + jnp.exp(x))


@pytest.mark.parametrize(("backward", "right"), [
    (jax.nn.sigmoid, True),
    (jax.grad(lambda x: naive(x).sum()), True),  # NaN at 100, as autodiff
    (lambda x: jax.nn.sigmoid(x) * jnp.where(x > 50, 1.01, 1.0), False),
    (lambda x: jax.nn.sigmoid(x) * jnp.where(x < 0, jnp.nan, 1.0), False),
])  # fmt: skip
def test_where_autodiff_overflows_it_is_no_measure(backward: Callable, right: bool):
    report = vjp(ruled(naive, backward), LARGE)
    assert report.ok == right, report
    assert report.worst.spoiled == 1
    assert any("in 1 of 4 elements autodiff overflows in float32" in note for note in report.notes)


# -- stop_gradient ----------------------------------------------------------------------------------------------------


def test_a_rule_that_goes_through_what_is_stopped_is_wrong():
    """Central differences side with it, and are not asked: the primal says what its derivative is."""
    loss = lambda q, target: (q - lax.stop_gradient(0.9 * target)) ** 2
    off = lambda q, t: 2 * (q - 0.9 * t)
    for share, stops in ((0.0, True), (-0.9, False)):
        f = jax.custom_vjp(loss)
        f.defvjp(lambda q, t: (loss(q, t), (q, t)), lambda s, d, share=share: (d * off(*s), share * d * off(*s)))
        report = jbp.compare_vjp(f, numbers(0, 5), numbers(1, 5), timing=False, checks=False)
        assert report.ok == stops, report
    assert "target: the rule is the derivative as if there were no stop_gradient." in report.notes


def test_a_stop_that_changes_nothing_excuses_as_before():
    """A softmax stops its maximum, which cancels: where autodiff is NaN, differences still decide."""
    f = lambda x: jnp.where(x == 0, jnp.ones_like(x), jnp.sin(x) / x) * jax.nn.softmax(x).sum()
    safe = lambda x: jnp.where(x == 0, 1.0, x)
    slope = lambda x: jnp.where(x == 0, 0.0, (jnp.cos(x) - jnp.sin(x) / safe(x)) / safe(x))
    x = np.float32([0.0, 0.5, -1.5])
    report = vjp(ruled(f, slope), x)
    assert report.kind is Verdict.AGREE, report
    assert report.worst.undecided == 0
    report = vjp(ruled(f, lambda x: slope(x) + jnp.where(x == 0, 1.0, 0.0)), x)
    assert report.kind is Verdict.WRONG
    assert (report.worst.at, report.worst.wrong, report.worst.by) == ((0,), 1, "by central differences")


# -- forward values, second order, tangents ---------------------------------------------------------------------------


def test_integer_outputs_of_a_forward_pass_are_compared():
    both = lambda x: (x.max(), x.argmax())
    for index in (jnp.argmax, jnp.argmin):
        f = jax.custom_vjp(both)
        f.defvjp(lambda x, index=index: ((x.max(), index(x)), x), lambda x, d: (d[0] * (x == x.max()).astype(x.dtype),))
        report = jbp.compare_vjp(f, numbers(0, 6), timing=False)
        assert report.ok == (index is jnp.argmax), report


@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float8_e5m2])
def test_what_rounding_hides_in_a_narrow_dtype_shows_in_float32(narrow: Any):
    x = jnp.asarray(numbers(0, 6), narrow)
    tanh = jax.custom_vjp(jnp.tanh)
    tanh.defvjp(lambda x: ((1.3 * jnp.tanh(x)).astype(x.dtype), x),
                lambda x, d: ((d * (1 - jnp.tanh(x) ** 2)).astype(x.dtype),))  # fmt: skip
    assert not jbp.compare_vjp(tanh, x, timing=False).ok
    rule, oracle = (lambda x: (1.02 * 2 * x).astype(x.dtype)), (lambda x: (2 * x).astype(x.dtype))
    report = jbp.compare(rule, oracle, x, timing=False)
    assert report.values_ok
    assert [check.name for check in report.checks if check.ok is False] == ["in float32"]
    assert jbp.compare(oracle, oracle, x, timing=False).ok


def test_second_order_is_seen_where_arguments_are_zero():
    """At 0 the rule δ (1 − x) of exp is right, and its own derivative has the wrong sign."""
    report = vjp(ruled(jnp.exp, lambda x: 1 - x), np.zeros(3, np.float32), checks=True)
    assert report.values_ok
    assert not report.ok
    assert vjp(ruled(jnp.exp, jnp.exp), np.zeros(3, np.float32), checks=True).ok


def test_where_autodiffs_second_derivative_is_nan_second_order_is_undecided():
    """Where autodiff's own fails by the measure of the rule's, it accuses nobody; elsewhere the same rule fails."""
    f = lambda p: jnp.where(p > 0, p * jnp.log(p), 0 * p)
    slope = lambda p: jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)) + 1, 0.0)
    report = vjp(ruled(f, slope), np.float32([0.2, -1.0, 0.7]), checks=True)
    assert report.ok, report
    wrong = lambda p: jnp.where(p > 0, lax.stop_gradient(jnp.log(jnp.where(p > 0, p, 1))) + 1, 0.0)
    second = {"second order, forward", "second order, reverse"}
    report = vjp(ruled(f, wrong), np.float32([0.2, -1.0, 0.7]), checks=True)
    assert report.kind is Verdict.UNDECIDED, report
    assert {check.name for check in report.checks if check.undecided} == second
    assert not any(check.ok is False for check in report.checks)
    report = vjp(ruled(f, wrong), np.float32([0.2, 1.0, 0.7]), checks=True)
    assert report.kind is Verdict.WRONG
    assert {check.name for check in report.checks if check.ok is False} == second


def tangent_rule(rule: Callable) -> Callable:
    f = jax.custom_jvp(jnp.sin)
    f.defjvp(lambda primals, tangents: rule(*primals, *tangents))
    return f


TANGENTS: dict[str, tuple[Callable, str]] = {
    "right": (lambda x, t: (jnp.sin(x), t * jnp.cos(x)), ""),
    "another value": (lambda x, t: (2 * jnp.sin(x), t * jnp.cos(x)), "forward value"),
    "large tangents dropped": (
        lambda x, t: (jnp.sin(x), jnp.where(jnp.abs(t) > 50, 0.0, t) * jnp.cos(x)), "linear in the tangent",
    ),
    "a constant slope": (lambda x, t: (jnp.sin(x), t * lax.stop_gradient(jnp.cos(x))), "second order, forward"),
    "a while loop": (
        lambda x, t: (
            jnp.sin(x), lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, s[1] * jnp.cos(x)), (0, t))[1]
        ),
        "transposed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TANGENTS)
def test_compare_jvp_looks_at_more_than_tangents(name: str):
    rule, fails = TANGENTS[name]
    report = jbp.compare_jvp(tangent_rule(rule), numbers(0, 4), timing=False)
    assert report.values_ok
    failing = {check.name for check in report.checks if check.ok is False}
    assert fails in failing if fails else not failing, report


# -- where, and how much ----------------------------------------------------------------------------------------------


def test_every_element_of_a_large_leaf_is_looked_at():
    x = (10.0 ** np.random.default_rng(1).uniform(-4, 3, 70_000)).astype(np.float32)
    report = vjp(ruled(lambda x: x**3, lambda x: 3 * x * x * jnp.where(x < 0.1, 2.0, 1.0)), x)
    assert not report.ok
    assert report.worst.wrong > 20_000


def test_points_that_leave_the_domain_are_not_pooled():
    """√(x − 1) at 1.01: nearby points lie below 1, where even the shadow is NaN."""
    report = vjp(ruled(lambda x: jnp.sqrt(x - 1), lambda x: 1.5 / jnp.sqrt(x - 1)), np.float32([1.01, 1.001]))
    assert report.worst.pattern == "off by the factor 3.000"
    assert "UNDECIDED" not in report.verdict


def test_calls_that_are_alike_are_compiled_and_timed_once():
    rule = jax.custom_vjp(jnp.tanh)
    rule.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, d: (d * (1 - y * y),))
    w = numbers(4, 3, 3)

    def f(x):
        for _ in range(5):
            x = rule(x @ w)
        return x.sum()

    report = jbp.compare_vjp(f, numbers(0, 2, 3))
    assert report.ok
    assert [len(call.checks) > 0 for call in report.calls] == [True, False, False, False, False]
    assert [call.race is not None for call in report.calls] == [True, False, False, False, False]


def test_a_loop_that_stops_early_is_told_of():
    """x² by Newton's steps on √ is not converged at 1e-1: the derivative of the limit is not that of where it stops."""

    def root(x):
        return lax.while_loop(lambda s: jnp.max(jnp.abs(s * s - x)) > 0.3, lambda s: 0.5 * (s + x / s), 0 * x + 1)

    report = vjp(ruled(root, lambda x: 0.5 / jnp.sqrt(x)), np.float32([2.0, 3.0]))
    assert not report.ok
    assert any("while loop" in note for note in report.notes)


# -- what a stranger found ---------------------------------------------------------------------------------------------


def vjp_of(f: Callable, backward: Callable) -> Callable:
    rule = jax.custom_vjp(f)
    rule.defvjp(lambda x: (f(x), x), lambda x, d: (backward(x, d),))
    return rule


@pytest.mark.parametrize("row", [np.full((1, 3), 0.1), np.full((1, 17), 0.12573), np.full((4, 5), 1e3)], ids=str)
def test_a_gradient_that_cancels_to_0_is_right_to_the_last_bits_of_its_arguments(row: np.ndarray):
    def backward(x, d, n=None):
        return 2 * d[:, None] * (x - x.mean(-1, keepdims=True)) / (n or x.shape[-1])

    x = row.astype(np.float32)
    kind = lambda f, x: jbp.compare_vjp(f, x, timing=False, checks=False).kind
    assert kind(vjp_of(lambda x: x.var(-1), backward), x) in (jbp.Verdict.AGREE, jbp.Verdict.EMPTY)
    wrong = vjp_of(lambda x: x.var(-1), lambda x, d: backward(x, d) + 1e-3 * d[:, None])
    assert kind(wrong, x) is jbp.Verdict.WRONG


@pytest.mark.parametrize("seed", range(4))
def test_a_layer_norm_far_from_0_is_right_to_the_last_bits_of_its_arguments(seed: int):
    f, backward = CANCEL["LayerNorm"]
    x = 100 + numbers(seed, 1, 3)
    assert jbp.compare_vjp(vjp_of(f, backward), x, timing=False, checks=False).ok
    wrong = vjp_of(f, lambda x, d: backward(x, d, 1.001))
    assert jbp.compare_vjp(wrong, x, timing=False, checks=False).kind is jbp.Verdict.WRONG


@pytest.mark.parametrize(("there", "kind"), [(0.0, "AGREE"), (7.0, "WRONG"), (np.nan, "WRONG"), (1e-2, "WRONG")])
@pytest.mark.parametrize("f", [jnp.sqrt, lambda x: x * jnp.log(x)], ids=["sqrt", "x log x"])
def test_a_slope_of_0_behind_a_where_is_decided_beside_other_elements(f: Callable, there: float, kind: str):
    inside = lambda x: jnp.where(x > 0, x, 1.0)

    def backward(x, d):
        return d * jnp.where(x > 0, jax.vmap(jax.grad(f))(inside(x)), there)

    rule = vjp_of(lambda x: jnp.where(x > 0, f(x), 0.0), backward)
    report = jbp.compare_vjp(rule, np.float32([-1.0, 4.0, -2.0, 0.3]), timing=False, checks=False)
    assert report.kind.name == kind
    assert "Rule and autodiff agree" not in str(report)


@pytest.mark.parametrize("factor", [1.0, 1.005, 1.02])
def test_a_factor_hides_behind_bfloat16_and_not_in_float64(factor: float):
    """The rule casts by name, so that it can't be tried at float32 arguments."""
    numbers16 = lambda seed, *shape: jnp.asarray(numbers(seed, *shape), jnp.bfloat16)

    def backward(saved, d):
        x, w = saved
        return d @ w.T, (factor * jnp.dot(x.T, d, preferred_element_type=jnp.float32)).astype(jnp.bfloat16)

    f = jax.custom_vjp(lambda x, w: x @ w)
    f.defvjp(lambda x, w: (x @ w, (x, w)), backward)
    report = jbp.compare_vjp(f, numbers16(0, 32, 8), numbers16(1, 8, 4), timing=False)
    assert (report.kind is jbp.Verdict.WRONG) == (factor != 1)


def test_a_rule_that_is_wrong_op_by_op_is_found_at_a_kink_too():
    def backward(x, d):
        return d * (x >= 0).astype(d.dtype) * (1.0 if isinstance(x, jax.core.Tracer) else 5.0)

    report = jbp.compare_vjp(vjp_of(jax.nn.relu, backward), np.float32([0, 1]), timing=False)
    assert "without jit FAILS" in report.verdict


@pytest.mark.parametrize("x", [[1, 1], [[1, 1, 0], [2, 0, 1]], [[1, 1], [1, 1]], [[0, 0, 0, 0]] * 3], ids=str)
@pytest.mark.parametrize("each", [False, True], ids=["first", "each"])
def test_tangents_of_ties_are_taken_once(x: Any, each: bool):
    """A rule for forward mode that adds the tangents of all that are largest is wrong for whatever tangent is drawn."""
    f = jax.custom_jvp(lambda x: x.max(-1))

    @f.defjvp
    def rule(primals, tangents):
        (x,), (t,) = primals, tangents
        tied = x == x.max(-1, keepdims=True)
        taken = tied if each else tied & (jnp.cumsum(tied, -1) == 1)
        return x.max(-1), (t * taken.astype(t.dtype)).sum(-1)

    for seed in range(3):
        tangent = (numbers(seed, *np.shape(x)),)
        report = jbp.compare_jvp(f, np.float32(x), tangent=tangent, timing=False, checks=False)
        assert (report.kind is jbp.Verdict.WRONG) == each
