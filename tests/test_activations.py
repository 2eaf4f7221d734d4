"""Each activation at its kinks and far out: what its docstring states, against closed forms in float64."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ACTIVATIONS, ActivationCase, over

import jbp
from jbp.layer import wide_dtype

POINTS = np.array([0, 1e-8, -1e-8, 0.5, -0.5, 3, -3, 30, -30, 1e4, -1e4, np.inf, -np.inf])
FINITE = np.isfinite(POINTS)
DTYPES = pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16], ids=lambda dtype: dtype.__name__)


@cache
def both(layer: jbp.Layer) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """(a, f′) of a layer at the points z."""

    def ask(z):
        a, saved = layer.forward((), z[None], jbp.Context())
        return a[0], layer.backward((), (), saved, jnp.ones_like(a), None)[0][0]

    return jax.jit(ask)


def value_and_slope(layer: jbp.Layer, z: Any, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """(a, f′) of a layer at the points z, computed in `dtype` and given in float64."""
    a, slope = both(layer)(jnp.asarray(z, dtype))
    assert a.dtype == slope.dtype == dtype
    return np.asarray(a, np.float64), np.asarray(slope, np.float64)


def points(dtype: Any) -> np.ndarray:
    """POINTS as `dtype` has them."""
    return np.asarray(jnp.asarray(POINTS, dtype), np.float64)


@DTYPES
@over(ACTIVATIONS)
def test_the_derivative_everywhere(case: ActivationCase, dtype: Any, x64: None):
    """Within 4 ulps of the largest slope; at ±∞ the limit, which every activation has reached at ±1e5."""
    expected = case.slope(np.clip(points(dtype), -1e5, 1e5))
    error = np.abs(value_and_slope(case.layer, POINTS, dtype)[1] - expected)
    allowed = 4 * float(jnp.finfo(dtype).eps) * np.abs(expected).max()
    assert np.all(error <= allowed), dict(zip(POINTS, error, strict=True))


@DTYPES
@over(ACTIVATIONS)
def test_the_value_at_finite_points(case: ActivationCase, dtype: Any, x64: None):
    z, a = points(dtype)[FINITE], value_and_slope(case.layer, POINTS, dtype)[0][FINITE]
    allowed = 4 * float(jnp.finfo(dtype).eps) * np.maximum(1, np.abs(z))
    np.testing.assert_array_less(np.abs(a - np.asarray(case.f(z))), allowed)


LIMITS = {  # at −∞ and +∞
    jbp.Identity(): (-np.inf, np.inf),
    jbp.Sigmoid(): (0, 1),
    jbp.Tanh(): (-1, 1),
    jbp.ReLU(): (0, np.inf),
    jbp.LeakyReLU(): (-np.inf, np.inf),
    jbp.ELU(0.7): (-0.7, np.inf),
    jbp.SELU(): (-1.7580993408473766, np.inf),
    jbp.GELU(): (0, np.inf),
    jbp.GELU(approximate=False): (0, np.inf),
    jbp.SiLU(): (0, np.inf),
    jbp.Softplus(): (0, np.inf),
    jbp.LogSigmoid(): (-np.inf, 0),
}


@pytest.mark.parametrize("layer", LIMITS, ids=repr)
def test_the_value_at_infinity(layer: jbp.Layer):
    a, _ = value_and_slope(layer, [-np.inf, np.inf], jnp.float32)
    np.testing.assert_allclose(a, LIMITS[layer], rtol=1e-6)


KINKS = {  # f′(0), as each docstring has it
    jbp.ReLU(): 0,
    jbp.LeakyReLU(): 1,
    jbp.LeakyReLU(0.3): 1,
    jbp.ELU(0.7): 0.7,
    jbp.SELU(): 1.0507009873554805 * 1.6732632423543772,
}


@pytest.mark.parametrize("layer", KINKS, ids=repr)
def test_the_derivative_at_the_kink(layer: jbp.Layer):
    _, slope = value_and_slope(layer, [0.0, -0.0], jnp.float32)
    np.testing.assert_array_equal(slope, np.float32([KINKS[layer]] * 2))


OF_JAX = {
    jbp.ReLU(): jax.nn.relu,
    jbp.LeakyReLU(): jax.nn.leaky_relu,
    jbp.LeakyReLU(0.3): lambda z: jax.nn.leaky_relu(z, 0.3),
    jbp.ELU(0.7): lambda z: jax.nn.elu(z, 0.7),
    jbp.SELU(): jax.nn.selu,
}
assert OF_JAX.keys() == KINKS.keys()


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("layer", OF_JAX, ids=repr)
def test_the_derivatives_at_the_kink_are_autodiffs_and_those_of_jax_nn(layer: jbp.Layer, order: int):
    """Of f itself, as `jax.grad(cost)` takes it: autodiff is the oracle, so it must not say ½ where the slope is 0."""
    derivative = jax.grad(layer.f) if order == 1 else jax.grad(jax.grad(layer.f))
    of_jax = jax.grad(OF_JAX[layer]) if order == 1 else jax.grad(jax.grad(OF_JAX[layer]))
    slope = layer.slope if order == 1 else jax.grad(layer.slope)
    for z in (0.0, -0.0):
        assert derivative(z) == of_jax(z) == slope(jnp.float32(z))


EDGES = [*POINTS, 40, -40, 41, -41, 800, -800, 801, -801, 1e20, -1e20, 1e38, -1e38, 1e-36, -1e-36, -1e-7, np.nan]


@pytest.mark.parametrize(
    "dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__
)
@over(ACTIVATIONS)
def test_autodiff_of_forward_is_the_stated_derivative_at_every_edge(case: ActivationCase, dtype: Any, x64: None):
    """Element by element, within 4 ulps of 1 or of the slope itself: at kinks, clips, ±∞ and NaN.

    And |z| ulps of the dtype that f is computed in, as long as f is curved: `jax.nn.softplus` takes its derivative from
    z minus the rounded a.
    """
    with np.errstate(over="ignore"):
        z = jnp.asarray(np.asarray(EDGES, dtype))
    a, pull = jax.vjp(jax.jit(lambda z: case.layer.forward((), z[None], jbp.Context())[0][0]), z)
    autodiff = np.asarray(pull(jnp.ones_like(a))[0], np.float64)
    _, slope = value_and_slope(case.layer, z, dtype)
    eps, inner = (float(jnp.finfo(d).eps) for d in (dtype, wide_dtype(dtype)))
    curved = np.nan_to_num(np.minimum(np.abs(np.asarray(z, np.float64)), 64))
    allowed = 4 * eps * np.maximum(1, np.abs(slope)) + inner * curved
    np.testing.assert_array_equal(np.isnan(slope), np.isnan(autodiff))
    np.testing.assert_array_equal(np.isnan(np.asarray(a, np.float64)), np.isnan(np.asarray(z, np.float64)))
    wrong = ~np.isnan(slope) & ~(np.abs(slope - autodiff) <= allowed)
    assert not wrong.any(), (np.asarray(z)[wrong], slope[wrong], autodiff[wrong])


@pytest.mark.parametrize("negative_slope", [0.01, 1e-30])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16], ids=lambda dtype: dtype.__name__)
def test_leaky_relu_of_a_small_negative_number_is_on_its_left_side(negative_slope: float, dtype: Any):
    """Its a is rounded to −0, which says nothing of the side any more."""
    z = np.float64([-1e-36 if dtype == jnp.float32 else -1e-7])
    a, slope = value_and_slope(jbp.LeakyReLU(negative_slope), z, dtype)
    assert a == 0
    np.testing.assert_allclose(slope, np.asarray(jnp.asarray(negative_slope, dtype), np.float64))


@pytest.mark.parametrize("layer", [jbp.ELU(), jbp.SELU()], ids=repr)
def test_the_derivative_far_left_keeps_its_digits(layer: jbp.Layer):
    """They save z because f′ = a + α would cancel there."""
    z = np.array([-10.0, -20.0, -40.0, -80.0])
    case = next(case for case in ACTIVATIONS if case.layer == layer)
    np.testing.assert_allclose(value_and_slope(layer, z, jnp.float32)[1], case.slope(z), rtol=4e-6)


def test_softmax_of_large_and_ruled_out_inputs():
    """δ_z = a · (δ − Σ δ a): rows of the Jacobian, with no NaN where exponentials overflow or are 0."""
    z = jnp.array([[1e4, 0.0, -1e4], [1e4, 1e4, -jnp.inf]])
    a, saved = jbp.Softmax().forward((), z, jbp.Context())
    np.testing.assert_array_equal(a, [[1, 0, 0], [0.5, 0.5, 0]])
    delta = jnp.array([[1.0, 2.0, 3.0]] * 2)
    np.testing.assert_array_equal(jbp.Softmax().backward((), (), saved, delta, None)[0], [[0, 0, 0], [-0.25, 0.25, 0]])


@pytest.mark.parametrize("layer", [jbp.Sigmoid(), jbp.Softmax()], ids=repr)
def test_an_integer_input_raises(layer: jbp.Layer):
    with pytest.raises(jbp.InputError, match="expected a float input z"):
        layer.init(jax.random.key(0), jax.ShapeDtypeStruct((3,), jnp.int32))


def test_leaky_relu_needs_a_slope_above_0():
    with pytest.raises(jbp.InputError, match="negative_slope must be above 0"):
        jbp.LeakyReLU(0.0)
