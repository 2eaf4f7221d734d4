"""What is looked at besides values: each check fails for a rule that is made to fail it, and whose values are right."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import numbers
from jax import lax

import jbp
from jbp.compare.report import Check

X, Y = numbers(0, 6), numbers(1, 6)


def ruled(f: Callable, forward: Callable, backward: Callable, **more: Any) -> Callable:
    rule = jax.custom_vjp(f)
    rule.defvjp(forward, backward, **more)
    return rule


def cubed(slope: Callable = lambda x: 3 * x**2, delta: Callable = lambda delta: delta) -> Callable:
    """x³ with slope(x) · δ."""
    return ruled(lambda x: x**3, lambda x: (x**3, x), lambda x, d: (slope(x) * delta(d),))


def checks_of(f: Callable, *args: Any) -> dict[str, Check]:
    """The checks of a rule whose values are right, by name."""
    report = jbp.compare_vjp(f, *args, timing=False)
    assert report.values_ok, report
    assert report.ok == all(check.ok is not False for check in report.checks)
    return {check.name: check for check in report.checks}


def failing(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.ok is False}


SECOND = {"second order, forward", "second order, reverse"}
ALL = {"weak types", "determinism", "without jit", "forward value", "linear in the cotangent", "symbolic zeros", "vmap",
       "scan", *SECOND, "saved"}  # fmt: skip


def test_a_right_rule_passes_all_checks():
    checks = checks_of(cubed(), X)
    assert set(checks) == ALL
    assert all(check.ok for check in checks.values()), checks
    assert checks["forward value"].text == "relative difference 0.0e+00 in float64"


# -- rules made to fail one check -------------------------------------------------------------------------------------


def product(x, y):
    return x * y


def product_forward(x, y):
    """Saves whether both are differentiated, as a tree."""
    return x.value * y.value, (x.value, y.value, () if x.perturbed and y.perturbed else None)


def product_backward(saved, delta):
    """Drops the term of x unless y is differentiated too."""
    x, y, both = saved
    return (y * delta if both is not None else 0 * delta), x * delta


def two_outputs(x):
    return x, x**3


def two_outputs_backward(x, deltas):
    """Of (x, x³) counts a δ that is a symbolic zero as 0.1 too much."""
    first, second = (0.1 + jnp.zeros(x.shape, x.dtype) if isinstance(d, jax.custom_derivatives.SymbolicZero) else d
                     for d in deltas)  # fmt: skip
    return (first + 3 * x**2 * second,)


@jax.custom_batching.custom_vmap
def times(a, b):
    return a * b


@times.def_vmap
def times_mapped(size, batched, a, b):
    """Wrong: twice as much."""
    return 2 * a * b, True


def outside_jit(delta):
    return delta if isinstance(delta, jax.core.Tracer) else 2 * delta


FAILING: dict[str, tuple[Callable, tuple, set[str]]] = {
    "forward gives another value": (
        ruled(lambda x: x**3, lambda x: (1.01 * x**3, x), lambda x, d: (3 * x**2 * d,)), (X,), {"forward value"},
    ),
    "clipped far out": (cubed(delta=lambda d: jnp.clip(d, -50, 50)), (X,), {"linear in the cotangent"}),
    "small δ dropped": (
        cubed(delta=lambda d: jnp.where(jnp.abs(d) < 0.001, 0 * d, d)), (X,), {"linear in the cotangent"},
    ),
    "a term is dropped beside a symbolic zero": (
        ruled(product, product_forward, product_backward, symbolic_zeros=True), (X, Y), {"symbolic zeros"},
    ),
    "a symbolic zero of an output": (
        ruled(two_outputs, lambda x: (two_outputs(x.value), x.value), two_outputs_backward, symbolic_zeros=True), (X,),
        {"symbolic zeros"},
    ),
    "wrong under vmap": (
        ruled(lambda x: x**3, lambda x: (x**3, x), lambda x, d: (times(3 * x**2, d),)), (X,), {"vmap"},
    ),
    "a constant in backward": (cubed(lambda x: 3 * lax.stop_gradient(x) ** 2), (X,), SECOND),
    "half a constant": (cubed(lambda x: 3 * lax.stop_gradient(x) * x), (X,), SECOND),
    "another function outside jit": (cubed(delta=outside_jit), (X,), {"without jit"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILING)
def test_a_rule_fails_the_check_that_is_made_for_it_alone(name: str):
    f, args, expected = FAILING[name]
    assert failing(checks_of(f, *args)) == expected


def test_a_failed_check_is_the_verdict():
    report = jbp.compare_vjp(cubed(lambda x: 3 * lax.stop_gradient(x) ** 2), X, timing=False)
    assert not report.ok
    assert report.verdict.startswith("The values agree, but second order, forward FAILS: relative difference ")
    assert report.verdict.endswith("the rule's values are right beside the arguments too, but their derivative is not")
    with pytest.raises(jbp.GradientsDisagree):
        report.raise_if_bad()


# -- determinism ------------------------------------------------------------------------------------------------------


def test_another_function_at_each_trace_is_caught():
    """A global counter: right when it is traced first, 1 % off from then on."""
    traced = []

    def slope(x):
        traced.append(x)
        return 3 * x**2 * (1 if len(traced) == 1 else 1.01)

    checks = checks_of(cubed(slope), X)
    assert "determinism" in failing(checks)
    assert checks["determinism"].text.startswith("traced again it is another function")


def test_random_numbers_of_numpy_are_caught():
    """Noise of a last bit, drawn as the rule is traced."""
    random = np.random.default_rng(0)
    checks = checks_of(cubed(lambda x: 3 * x**2 * (1 + 1e-7 * random.standard_normal(6).astype(np.float32))), X)
    assert "determinism" in failing(checks)


def noisy_on_the_host(noise: Callable[[], float]) -> Callable:
    def on_the_host(d):
        return (np.asarray(d) * np.float32(1 + noise())).astype(d.dtype)

    return lambda d: jax.pure_callback(on_the_host, jax.ShapeDtypeStruct(d.shape, d.dtype), d)


def test_runs_that_differ_are_caught():
    """A last bit that flips from run to run."""
    runs = []
    checks = checks_of(cubed(delta=noisy_on_the_host(lambda: runs.append(0) or 1.2e-7 * (len(runs) % 2))), X)
    assert failing(checks) >= {"determinism"}
    assert checks["determinism"].text == "two runs of one compiled program differ"


# -- what can't be tried ----------------------------------------------------------------------------------------------


def test_what_cannot_be_tried_says_why_and_fails_nothing():
    """A backward on the host has neither a derivative nor a rule for vmap, and its own precision in the shadow."""
    host = noisy_on_the_host(lambda: 0.0)
    checks = checks_of(cubed(lambda x: host(3 * x**2), host), X)
    assert not failing(checks)
    for name in ("vmap", *SECOND):
        assert checks[name].ok is None
        assert checks[name].text.startswith("can't be tried: ")
    assert "vmap" in checks["vmap"].text
    assert checks["linear in the cotangent"].ok


def test_a_loop_in_backward_has_a_second_order_in_forward_mode_only():
    """x³ = x·x·x: backward multiplies in a while loop."""

    def slope(x):
        return lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, s[1] * x), (0, 3 * jnp.ones_like(x)))[1]

    checks = checks_of(cubed(slope), X)
    assert not failing(checks)
    assert (checks["second order, forward"].ok, checks["second order, reverse"].ok) == (True, None)
    assert (
        "can't be tried: ValueError: Reverse-mode differentiation does not work" in checks["second order, reverse"].text
    )


def test_a_rule_that_calls_itself_has_no_second_order_in_forward_mode():
    inner = cubed()
    outer = ruled(lambda x: x**4, lambda x: (x**4, x), lambda x, d: (4 * inner(x) * d,))
    checks = checks_of(outer, X)
    assert not failing(checks)
    assert checks["second order, forward"].text == (
        "can't be tried: forward mode meets a custom_vjp, inside the rule itself"
    )
    assert checks["second order, reverse"].ok


def test_second_order_at_a_kink_may_be_any_of_its_slopes():
    """relu(x − 1)² has at 1 a first derivative of 0, and beside it second ones of 0 and 2; 2 max(x − 1, 0) has 1."""
    x = np.float32([1.0, 1.7, -1.2])
    square = lambda x: jnp.where(x > 1, x - 1, 0 * x) ** 2

    def with_slope(slope: Callable) -> dict[str, Check]:
        return checks_of(ruled(square, lambda x: (square(x), x), lambda x, d: (slope(x) * d,)), x)

    between = with_slope(lambda x: 2 * jnp.maximum(x - 1, lax.stop_gradient(0 * x)))
    assert not failing(between)
    assert between["second order, forward"].text == "as central differences of the derivative, if not as autodiff's"
    assert failing(with_slope(lambda x: 2 * lax.stop_gradient(jnp.maximum(x - 1, 0 * x)))) == SECOND


def of_a_covariance(f: Callable, gradient: Callable, a: Any) -> jbp.Report:
    return jbp.compare_vjp(ruled(f, lambda a: (f(a), a), lambda a, d: (d * gradient(a),)), a, timing=False)


def test_a_rule_for_symmetric_matrices_may_be_another_function_off_them():
    """∂ log|A| = A⁻¹ where A is symmetric. By Cholesky log|A| is a function of (A + Aᵀ)/2, and A⁻¹ is not."""
    a = np.float32([[4, 1, 0.5], [1, 3, -0.7], [0.5, -0.7, 2]])
    log_det = lambda a: 2 * jnp.log(jnp.diagonal(jnp.linalg.cholesky(a))).sum()
    report = of_a_covariance(log_det, jnp.linalg.inv, a)
    assert (report.kind, report.ok) == (jbp.Verdict.UNDECIDED, True)
    assert report.verdict.endswith(
        "UNDECIDED: second order, forward and second order, reverse: a matrix is symmetric, and the primal reads its "
        "symmetric part alone; the rule is right there, and another function's off symmetric matrices."
    )
    # log|det A| reads all of A: there the rule lacks a transposition, and the symmetric A hides it
    transposed = of_a_covariance(lambda a: jnp.linalg.slogdet(a)[1], jnp.linalg.inv, a)
    assert transposed.kind is jbp.Verdict.WRONG
    assert transposed.verdict.endswith("the rule is right only while a matrix that is symmetric here stays so")
    # and a wrong second order along symmetric matrices is wrong, whatever the primal reads
    stopped = of_a_covariance(log_det, lambda a: lax.stop_gradient(jnp.linalg.inv(a)), a)
    assert stopped.verdict.endswith("the rule's values are right at these arguments, and not beside them")


def test_a_rule_that_is_right_at_the_arguments_alone_says_so():
    """x³ with the slope 3 x² + sin 2π(x − X), at X."""
    report = jbp.compare_vjp(cubed(lambda x: 3 * x**2 + jnp.sin(2 * jnp.pi * (x - X))), X, timing=False)
    assert report.values_ok
    assert report.verdict.endswith("the rule's values are right at these arguments, and not beside them")


# -- integers, types, memory ------------------------------------------------------------------------------------------


def test_integer_arguments_have_gradients_of_float0():
    f = ruled(lambda x, i: x[i], lambda x, i: (x[i], (x, i)), lambda s, d: (jnp.zeros_like(s[0]).at[s[1]].add(d), None))
    checks = checks_of(f, X, np.array([1, 1, 4], np.int32))
    assert not failing(checks)
    assert checks["integer arguments"].text == "gradients of dtype float0"
    assert "integer arguments" not in checks_of(cubed(), X)


SAVED: dict[str, tuple[Callable, Callable, str]] = {  # what forward saves, backward, what is said
    "the argument": (lambda x: x, lambda x, d: (jnp.cos(x) * d,), "0 bytes besides the arguments, autodiff 24"),
    "its cosine": (lambda x: jnp.cos(x), lambda c, d: (c * d,), "24 bytes besides the arguments, autodiff 24"),
    "what is not used": (
        lambda x: (x, jnp.sin(x)), lambda s, d: (jnp.cos(s[0]) * d,),
        "24 bytes besides the arguments, autodiff 24; not used by backward: float32[6]",
    ),
    "one thing twice": (
        lambda x: (c := jnp.cos(x), c), lambda s, d: ((s[0] + s[1]) / 2 * d,),
        "24 bytes besides the arguments, autodiff 24",  # JAX itself keeps one array once
    ),
    "too much": (
        lambda x: (jnp.cos(x), jnp.outer(x, x)), lambda s, d: (s[0] * d + 0 * s[1][0],),
        "168 bytes besides the arguments, autodiff 24",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAVED)
def test_what_forward_saves_is_counted(name: str):
    """sin of 6 float32: autodiff keeps its cosine, 24 bytes."""
    saved, backward, text = SAVED[name]
    checks = checks_of(ruled(jnp.sin, lambda x: (jnp.sin(x), saved(x)), backward), X)
    assert checks["saved"].text == text
    assert checks["saved"].ok is (None if ";" in text else True)
    assert not failing(checks)


# -- of gradients that come from no rule ------------------------------------------------------------------------------


def test_any_two_gradient_functions_have_checks_too():
    f = lambda x: jnp.sum(x**3)
    right = jbp.compare(lambda x: 3 * x**2, jax.grad(f), X, timing=False)
    assert {check.name: check.ok for check in right.checks} == dict.fromkeys(
        ("weak types", "determinism", "without jit", "vmap", "scan"), True
    )
    wrong = jbp.compare(lambda x: times(3 * x, x), jax.grad(f), X, timing=False)
    assert wrong.values_ok
    assert failing({check.name: check for check in wrong.checks}) == {"vmap"}
