"""Whether an error is too large, who is right where rule and autodiff differ, and what stands in for autodiff.

autodiff of the primal    forward mode, where reverse mode has no derivative    central differences, where none has
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import numbers, ruled, vjp
from jax import lax

import jbp
from jbp.compare import LeafError
from jbp.compare.verdict import Verdict
from jbp.layer import InputError

X, M = numbers(0, 4), numbers(1, 3, 4)


# -- how large an error may be ----------------------------------------------------------------------------------------

EPSILON = float(jnp.finfo(jnp.float32).eps)
# of rule and oracle the rms and the largest error of a leaf of scale 1 with a peak of 10; whether that passes
ERRORS: dict[str, tuple[float, float, float, float, bool]] = {
    "a little less than twice autodiff's": (1.99e-3, 1e-3, 1e-2, 1e-2, True),
    "a little more than twice autodiff's": (2.01e-3, 1e-3, 1e-2, 1e-2, False),
    "one element within 8 times autodiff's": (1e-3, 1e-3, 7.9e-2, 1e-2, True),
    "one element beyond 8 times autodiff's": (1e-3, 1e-3, 8.1e-2, 1e-2, False),
    "within 4 last places of a lucky autodiff": (3.9 * EPSILON, 0.0, 39 * EPSILON, 0.0, True),
    "beyond 4 last places of a lucky autodiff": (4.1 * EPSILON, 0.0, 39 * EPSILON, 0.0, False),
    "one element beyond 4 last places": (3.9 * EPSILON, 0.0, 41 * EPSILON, 0.0, False),
    "NaN": (np.nan, 1e-3, np.nan, 1e-2, False),
    "none": (0.0, 0.0, 0.0, 0.0, True),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_measured_by_autodiffs_own(name: str):
    error, oracle, largest, oracle_largest, passes = ERRORS[name]
    leaf = LeafError("w", 9, 1.0, error, oracle, EPSILON, largest, "w[0]", 0.0, 0.0, oracle_largest, 10.0)
    assert leaf.ok == passes
    assert (leaf.excess <= 1) == passes


def test_luck_of_the_oracle_does_not_last():
    """(x + c) − c is exact at 1.5 for c = 128, and loses 17 bits nearby, as it does everywhere for the other c."""
    x, lucky, close, far = np.float32([1.5]), *np.float32([128, 127.25 + 2**-17, 1023.25 + 2**-14])
    rule, oracle = (lambda x, c, _: (x + c) - c), (lambda x, _, c: (x + c) - c)
    report = jbp.compare(rule, oracle, x, close, lucky, timing=False, checks=False)
    assert (report.ok, report.points) == (True, 17), report
    assert not jbp.compare(rule, oracle, x, far, lucky, timing=False, checks=False).ok


# -- which oracle -----------------------------------------------------------------------------------------------------


def root(x):
    """√(1 + x²) by Newton's steps, which reverse mode can't differentiate."""
    a = 1 + x * x
    return lax.while_loop(lambda s: jnp.max(jnp.abs(s * s - a)) > 1e-5, lambda s: 0.5 * (s + a / s), a)


def on_the_host(x):
    """x³ on the host, which JAX can't differentiate at all."""
    return jax.pure_callback(lambda x: np.asarray(x) ** 3, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@pytest.mark.parametrize("factor", [1, 1.01])
def test_a_primal_that_reverse_mode_cannot_differentiate(factor: float):
    report = vjp(ruled(root, lambda x: factor * x / jnp.sqrt(1 + x * x)), X)
    assert report.ok == (factor == 1)
    assert "the oracle is forward mode, element by element" in report.notes[0]


def test_forward_mode_of_a_complex_argument():
    """|z|² summed in a loop has the gradient 2 z̄ for each turn: both the real and the imaginary part move."""

    def f(z):
        turn = lambda s: (s[0] + 1, s[1] + jnp.real(z * jnp.conj(z)))
        return lax.while_loop(lambda s: s[0] < 2, turn, (0, jnp.zeros(z.shape, z.real.dtype)))[1]

    z = lax.complex(X, numbers(2, 4))
    for factor, ok in ((4, True), (2, False)):
        rule = jax.custom_vjp(f)
        rule.defvjp(
            lambda z, rule=rule: (rule(z), z), lambda z, c, k=factor: (k * jnp.conj(z) * lax.complex(c, 0 * c),)
        )
        report = vjp(rule, z)
        assert (report.values_ok, report.worst.excused) == (ok, "")


@pytest.mark.parametrize("factor", [1, 1.05])
def test_a_primal_without_a_derivative(factor: float):
    report = vjp(ruled(on_the_host, lambda x: factor * 3 * x * x), X)
    assert any("the oracle is central differences" in note for note in report.notes)
    assert report.ok == (factor == 1), report
    large = numbers(4, 600)
    with pytest.raises(InputError, match="600 elements are too many for central differences"):
        vjp(ruled(on_the_host, lambda x: 3 * x * x), large)


def test_where_autodiff_is_nan_central_differences_decide():
    """sin x / x at 0 by `where`: autodiff gives NaN, the rule the derivative, and central differences side with it."""
    f = lambda x: jnp.where(x == 0, jnp.ones_like(x), jnp.sin(x) / x)
    x = np.float32([0.0, 0.5, -1.5])

    def slope(x):
        safe = jnp.where(x == 0, jnp.ones_like(x), x)
        return jnp.where(x == 0, 0 * x, (jnp.cos(safe) - jnp.sin(safe) / safe) / safe)

    report = vjp(ruled(f, slope), x)
    assert report.kind is Verdict.AGREE, report
    assert report.worst.undecided == 0
    assert report.verdict.startswith("The gradients agree")
    report = vjp(ruled(f, lambda x: slope(x) + jnp.where(x == 0, 1.0 + 0 * x, 0 * x)), x)
    assert report.kind is Verdict.WRONG
    assert (report.worst.at, report.worst.wrong, report.worst.by) == ((0,), 1, "by central differences")
    assert not vjp(ruled(f, lambda x: 1.01 * slope(x)), x).ok


def test_at_a_kink_any_value_between_the_slopes_is_right():
    """|x| at 0: autodiff says 0 (or 1), the rule ½; not 2."""
    x = np.float32([0.0, 0.5, -1.5])
    f = lambda x: jnp.where(x > 0, x, -x)
    at_zero = lambda value: lambda x: jnp.where(x == 0, value + 0 * x, jnp.sign(x))
    report = vjp(ruled(f, at_zero(0.5)), x)
    assert report.kind is Verdict.AGREE, report
    assert "A kink is met at the arguments; the rule's slopes there are others than autodiff's" in report.notes[0]
    for value in (2.0, -1.1):
        report = vjp(ruled(f, at_zero(value)), x)
        assert report.kind is Verdict.WRONG
        assert report.worst.at == (0,)


def test_a_jump_excuses_nothing():
    """A step function has the derivative 0 beside its jump: a straight-through 3 at the jump itself is no kink's."""
    f = lambda x: jnp.where(x >= 0, jnp.ones_like(x), 0 * x)
    x = np.float32([0.0, 0.5, -1.5])
    through = lambda x: jnp.where(x == 0, 3 + 0 * x, 0 * x)
    assert vjp(ruled(f, jnp.zeros_like), x).kind is Verdict.EMPTY
    assert vjp(ruled(f, through), x).kind is Verdict.WRONG
    sloped = lambda x: f(x) + x
    assert vjp(ruled(sloped, jnp.ones_like), x).kind is Verdict.AGREE
    assert vjp(ruled(sloped, lambda x: 1 + through(x)), x).kind is Verdict.WRONG


def test_what_misleads_autodiff_and_the_rule_alike_is_remarked():
    """A stop_gradient, or a wrong custom_jvp further in: both follow it, central differences do not."""
    held = lambda x: x * lax.stop_gradient(x)
    inner = jax.custom_jvp(jnp.exp)
    inner.defjvp(lambda p, t: (jnp.exp(p[0]), 2 * t[0]))
    for f, slope in ((held, lambda x: x), (lambda x: inner(x) ** 2, lambda x: 4 * jnp.exp(x))):
        report = vjp(ruled(f, slope), X)
        assert report.ok
        assert "central differences with neither: look for a stop_gradient" in report.notes[-1]
    report = vjp(ruled(lambda x: inner(x) ** 2, lambda x: 2 * jnp.exp(2 * x)), X)
    assert report.ok
    assert "autodiff is wrong here" in report.worst.excused


# -- elements that their leaf hides -----------------------------------------------------------------------------------


def test_a_wrong_row_beside_large_ones_is_caught():
    """Row 1 of the gradient has size 1e-3, row 0 size 1e6: an error in it is 1e-9 of the leaf, and still wrong."""
    sizes = np.float32([[1e6], [1e-3], [1.0]]) * np.ones((1, 4), np.float32)
    f = lambda x: jnp.sin(x) * sizes
    for factor, ok in ((1.0, True), (1.001, False)):
        factors = np.float32([[1], [factor], [1]])
        report = vjp(ruled(f, lambda x, s=sizes * factors: jnp.cos(x) * s), M)
        assert report.ok == ok, report
    assert report.worst.wrong == 4
    assert report.worst.at[0] == 1
    assert report.worst.pattern == "4 of 12 elements wrong, small beside the rest"
