"""Central differences as the third oracle: the slope, an honest error of it, kinks, domains, complex numbers.

ψ(t) = f(x + t·v);    the slope is ψ'(0), and its error must not be smaller than how far it really is off.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.experimental.compute_on import compute_on

import jbp
from jbp.compare.differences import (
    STEPS,
    Numerical,
    Slopes,
    gradient_by_differences,
    jvp_probes,
    slope,
    vjp_probes,
)
from jbp.programs.program import Program


@np.errstate(all="ignore")
def of(f: Callable, x: Any, unit: Any = 1.0) -> Any:
    """The slope of a NumPy function at x, in steps of `unit`."""
    x = np.asarray(x, np.float64)
    up, down = (np.stack([f(x + sign * h * unit) for h in STEPS]) for sign in (1, -1))
    return slope(np.asarray(f(x)), up, down)


SMOOTH: dict[str, tuple[Callable, Callable]] = {
    "sin": (np.sin, np.cos),
    "exp": (np.exp, np.exp),
    "tanh of 5x": (lambda x: np.tanh(5 * x), lambda x: 5 / np.cosh(5 * x) ** 2),
    "a polynomial": (lambda x: x**5 - 3 * x**2 + 1, lambda x: 5 * x**4 - 6 * x),
    "a pole nearby": (lambda x: 1 / (3.1 - x), lambda x: 1 / (3.1 - x) ** 2),
    "erf": (scipy.special.erf, lambda x: 2 / np.sqrt(np.pi) * np.exp(-x * x)),
    "a fast wave": (lambda x: np.sin(40 * x), lambda x: 40 * np.cos(40 * x)),
    "on a large offset": (lambda x: 1e6 + np.sin(x), np.cos),
    "a constant": (lambda x: 0 * x + 3, lambda x: 0 * x),
}
POINTS = np.array([-2.3, -0.4, 0.0, 1e-3, 0.7, 3.0])


@pytest.mark.parametrize("name", SMOOTH)
def test_a_slope_is_the_derivative_and_its_error_is_honest(name: str):
    """The true error is at most 8 times the one stated, as `agrees` allows, and that is small."""
    f, derivative = SMOOTH[name]
    found, true = of(f, POINTS), derivative(POINTS)
    size = 1 + np.abs(f(POINTS)) + np.abs(true)
    assert (np.abs(found.value - true) <= 8 * found.error + 1e-14).all()
    assert (found.error <= 1e-12 * size).all()  # differences without extrapolation reach 1e-10
    assert not found.kink.any()
    assert found.agrees(true, 1e-14).all()
    assert not found.agrees(true + 1e-10 * size, 0).any()


KINKS: dict[str, tuple[Callable, float, float, float]] = {
    "|x|": (np.abs, 0.0, -1.0, 1.0),
    "−|x|": (lambda x: -np.abs(x), 0.0, -1.0, 1.0),
    "max(x, 0)": (lambda x: np.maximum(x, 0), 0.0, 0.0, 1.0),
    "sin and a kink": (lambda x: np.sin(x) + 0.01 * np.abs(x - 0.5), 0.5, np.cos(0.5) - 0.01, np.cos(0.5) + 0.01),
    "leaky": (lambda x: np.where(x > 0, x, 0.2 * x), 0.0, 0.2, 1.0),
}


@pytest.mark.parametrize("name", KINKS)
def test_at_a_kink_every_value_between_the_slopes_agrees(name: str):
    f, at, low, high = KINKS[name]
    found = of(f, at)
    assert found.kink
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=3e-6)
    for share in (0, 0.3, 0.5, 1):
        assert found.agrees(low + share * (high - low), 1e-5)
    for value in (low - 0.01, high + 0.01, 2 * high + 1, np.nan):
        assert not found.agrees(value, 1e-5)


def test_near_a_kink_the_slope_is_the_one_of_its_side():
    """|x| at steps that reach over the kink and steps that don't."""
    for at in (1e-3, -1e-3, 0.03):
        found = of(np.abs, at)
        assert not found.kink
        assert found.agrees(np.sign(at), 1e-9)
        assert not found.agrees(-np.sign(at), 1e-9)
        assert not found.agrees(0, 1e-9)


def test_steps_that_leave_the_domain_do_not_count():
    """log and √ near 0: large steps give NaN there, small ones the derivative."""
    for at in (0.02, 1e-3, 1e-5):
        for f, true in ((np.log, 1 / at), (np.sqrt, 0.5 / np.sqrt(at))):
            found = of(f, at)
            if at == 1e-5:  # hardly a step is left
                assert found.agrees(true, 0.01 * true)
            else:
                np.testing.assert_allclose(found.value, true, rtol=2e-5)
            assert abs(found.value - true) <= 8 * found.error + 1e-12 * true
    nowhere = of(np.log, -1.0)
    assert np.isnan(nowhere.value)
    assert not nowhere.agrees(-1.0, 1.0)


def test_a_jump_is_no_derivative():
    """A step has a slope of 1/2h, and √|x| one of 1/√h: they are no kinks, between whose slopes anything agrees."""
    step, root = of(lambda x: np.where(x >= 0, 1.0, 0.0), 0.0), of(lambda x: np.sqrt(np.abs(x)), 0.0)
    assert not step.kink
    assert step.error > 1  # it vouches for nothing
    assert not root.kink
    assert root.agrees(0.0, 1e-9)
    assert not root.agrees(5.0, 1e-9)


# -- of programs ------------------------------------------------------------------------------------------------------


def slopes_of(f: Callable, *arrays: np.ndarray) -> Slopes:
    return Slopes(Program("f", f, arrays), arrays, range(len(arrays)))


def test_the_gradient_by_differences_is_autodiffs():
    """Also with elements of sizes from 1e-3 to 1e3 and one that is zero: each moves by its own size."""
    x = np.float32([1e-3, -0.3, 0, 1e3])
    w = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32) / (np.abs(x) + 1)

    def f(x, w):
        return jnp.sum(jnp.sin(w @ x)) + jnp.sum(jnp.log1p(x * x))

    slopes = slopes_of(f, x, w)
    found = gradient_by_differences(slopes, slopes.arrays)
    with jax.enable_x64(True):
        expected = jax.grad(f, (0, 1))(*(jnp.asarray(a, jnp.float64) for a in (x, w)))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


def test_the_gradient_of_a_complex_argument_is_in_jaxs_convention():
    """∂/∂x − i ∂/∂y of a real function of z = x + iy."""
    z = np.complex64([1 + 2j, -0.5 + 0.1j, 3j])
    f = lambda z: jnp.sum(jnp.real(jnp.exp(z) * np.complex64(1 - 2j)) + jnp.abs(z) ** 2)
    found = gradient_by_differences(slopes := slopes_of(f, z), slopes.arrays)[0]
    np.testing.assert_allclose(found, jax.grad(f)(z), rtol=1e-5)
    np.testing.assert_allclose(found, np.exp(np.complex128(z)) * (1 - 2j) + 2 * np.conj(np.complex128(z)), rtol=1e-8)


def test_elements_move_by_their_own_size_and_zeros_by_a_tenth_of_their_arrays():
    x, zeros, z = np.float32([3, -0.5, 0]), np.zeros(2, np.float32), np.complex64([3 + 4j])
    units = slopes_of(lambda x, zeros, z: jnp.sum(x) + jnp.sum(zeros) + jnp.sum(z.real), x, zeros, z).units()
    np.testing.assert_allclose(units[0], [3, 0.5, 0.1 * np.sqrt((9 + 0.25) / 3)])
    np.testing.assert_array_equal(units[1], 1)
    np.testing.assert_allclose(units[2], 5 * (0.8 + 0.6j))


def test_a_complex_output_has_complex_slopes():
    x = np.float32([0.3, 1.1])
    found = slopes_of(lambda x: jnp.exp(jax.lax.complex(0 * x, x)), x).along([np.array([1.0, 2.0])])[0]
    np.testing.assert_allclose(found.value, 1j * np.exp(1j * np.float64(x)) * [1, 2], rtol=1e-9)


def test_central_differences_stand_in_for_autodiff():
    """`Numerical` has the float64 gradient, and as its own error that of arguments off by a last bit."""
    x = np.random.default_rng(1).standard_normal(50).astype(np.float32)
    f = lambda x: jnp.sum(jnp.sin(30 * x))
    oracle = Numerical(slopes_of(f, x), Program("rule", lambda x: [jnp.cos(x)], (x,)), gradient_by_differences)
    true = 30 * np.cos(30 * np.float64(x))
    np.testing.assert_allclose(oracle.exact(x)[0], true, rtol=1e-6, atol=1e-6)
    own = np.abs(oracle(x)[0] - true).max() / np.abs(true).max()
    assert oracle(x)[0].dtype == np.float32
    assert 1e-8 < own < 30 * 1.2e-7 * np.abs(x).max()
    assert "the oracle is central differences" in oracle.notes[-1]


# -- probes -----------------------------------------------------------------------------------------------------------


def test_probes_of_a_gradient_tell_the_right_from_the_wrong():
    """At the element asked about, at the others of a small leaf, and along random directions; of one leaf or of all."""
    x, w = np.float32([0.5, -2, 1]), np.float32([1, 2, 3])
    slopes = slopes_of(lambda x, w: jnp.sum(jnp.sin(x) * w), x, w)
    right = [np.cos(np.float64(x)) * w, np.sin(np.float64(x))]
    swapped, off = right[::-1], [right[0] * [1, 1.001, 1], right[1]]

    def said(leaf: int | None, result: list) -> list[bool]:
        probes = vjp_probes(slopes, leaf, [(1,), (0,), (2,)] if leaf is not None else [])
        return [bool(p.slope.agrees(p.ask(result)[0], 1e-9 * p.ask(result)[1])) for p in probes]

    assert said(0, right) == said(1, right) == said(1, off) == [True] * 6
    assert said(0, swapped) == said(1, swapped) == [False] * 6
    assert said(0, off) == [False, True, True] + [False] * 3
    assert [said(None, result) for result in (right, swapped, off)] == [[True] * 3, [False] * 3, [False] * 3]


@pytest.mark.parametrize("lost", [20.0, 30.0])
def test_a_slope_is_no_surer_than_the_noise_of_its_function(lost: float):
    """log(1 + e^−m) as a difference of numbers of size m is rounded to a multiple of m's last bit."""
    x = np.float32([lost, 0.0])
    (found,) = slopes_of(lambda x: jax.nn.logsumexp(x) - x[0], x).along([np.float64([lost, 0.0])])
    true = lost * -1 / (1 + np.exp(lost))
    assert abs(found.value - true) < 8 * found.error
    assert found.error > 1e-9 * abs(true)


def test_a_slope_that_the_smallest_steps_contradict_has_a_large_error():
    """Of a nearly singular inverse larger steps lie beyond the pole, and converge to something else."""
    a = np.array([[1 / (i + j + 1) for j in range(5)] for i in range(5)], np.float32)
    (found,) = slopes_of(lambda a: jnp.linalg.inv(a).sum(), a).along([np.abs(np.float64(a)) * np.eye(5)])
    inverse = np.linalg.inv(np.float64(a))
    true = -(inverse @ (a * np.eye(5)) @ inverse).sum()
    assert abs(found.value - true) < 8 * found.error


def test_probes_of_a_tangent_tell_the_right_from_the_wrong():
    x = np.float32([0.5, -2, 0])
    along = slopes_of(lambda x: [jnp.sin(x), jnp.abs(x)], x).along([np.ones(3)])
    tangents = [np.cos(np.float64(x)), np.sign(np.float64(x))]
    for leaf in (0, 1):
        wrong = [t * [1, 1.01, 1] for t in tangents]
        probes = list(jvp_probes(along, leaf, [(1,)]))
        assert all(probe.slope.agrees(probe.ask(tangents)[0], 1e-5) for probe in probes)
        assert not probes[0].slope.agrees(probes[0].ask(wrong)[0], 1e-5)
    # |x| at 0 moves between −1 and 1, so a sum in which it stands agrees with anything between
    between, beyond = ([tangents[0], tangents[1] + [0, 0, extra]] for extra in (0.9, 1.1))
    at_kink = next(jvp_probes(along, 1, [(2,)]))
    assert at_kink.slope.kink
    assert at_kink.slope.agrees(at_kink.ask(between)[0], 1e-5)
    assert not at_kink.slope.agrees(at_kink.ask(beyond)[0], 1e-5)


def test_a_sign_that_rounding_alone_could_turn_is_no_kink_to_look_beside():
    """A wide layer has such numbers by chance, and points beside it would cost it dozens of gradients."""

    @jax.custom_vjp
    def f(x):
        return jnp.maximum((x + 1) - 1, 0)

    f.defvjp(lambda x: (f(x), x), lambda x, delta: (jnp.where((x + 1) - 1 > 0, delta, 0),))
    x = np.random.default_rng(0).standard_normal(2048).astype(np.float32)
    reports = []
    for first in (6.1e-8, 0.0):  # below 1.2e-7, the last bit of 1 + x; and on the kink itself
        x[0] = first
        reports.append(jbp.compare_vjp(f, x, timing=False, checks=False))
    assert [(report.ok, report.points) for report in reports] == [(True, 1), (True, 9)]


def on_the_host(x):
    """relu within `compute_on`, a call with settings of its own where JAX has it so."""
    try:
        with compute_on("device_host"):
            return jnp.maximum(x, 0)
    except TypeError:
        relu = lambda x: jnp.maximum(x, 0)
        return compute_on(compute_type="device_host", out_memory_spaces=jax.memory.Space.Device)(relu)(x)


def test_a_kink_is_met_inside_any_call():
    @jax.custom_vjp
    def f(x):
        return on_the_host(x)

    f.defvjp(
        lambda x: (f(x), x), lambda x, delta: (delta * jnp.where(x > 0, 1, jnp.where(x < 0, 0, 0.3)).astype(x.dtype),)
    )
    report = jbp.compare_vjp(f, np.asarray([1.0, -2, 0, 3], np.float32), timing=False, checks=False)
    assert (report.ok, report.points) == (True, 9)
