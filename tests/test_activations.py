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


@pytest.mark.parametrize("layer", [jbp.ReLU(), jbp.ELU(0.7)], ids=repr)
def test_the_derivative_at_the_kink_is_that_of_jax_nn(layer: jbp.Layer):
    of_jax = {jbp.ReLU(): jax.nn.relu, jbp.ELU(0.7): lambda z: jax.nn.elu(z, 0.7)}[layer]
    assert value_and_slope(layer, [0.0], jnp.float32)[1] == np.float64(jax.grad(of_jax)(0.0))


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
