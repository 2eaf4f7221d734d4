"""A correction of low rank, beyond the laws: what is computed, what is trained, where it may stand, wrong calls."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import N, assert_close, assert_told, draw, over_calls
from own_layers import Checkpoint, Loop
from test_laws import flops_of_products

import jbp

HALF = jbp.losses.HalfSquaredError()


def drawn(cost: jbp.Cost) -> tuple[Any, Any, Any]:
    """(θ, x, y) of N examples in the cost's dtype."""
    net = cost.network
    shapes = (cost.layout.size,), (N, *net.input.shape), (N, *net.output.shape)
    return tuple(draw(i, jax.ShapeDtypeStruct(shape, net.dtype)) for i, shape in enumerate(shapes))


def test_no_product_of_the_layers_own_gradient_is_computed():
    """Of the 3 products of a dense layer, gradient and all, 2 are left: forward, and δ through it."""
    i, o, r = 32, 24, 2
    cost = jbp.Cost(jbp.Network([jbp.LowRank(jbp.Dense(o), r)], (i,)), HALF)
    own, correction = 2 * N * i * o, 2 * N * r * (i + o)
    args = drawn(cost)
    assert flops_of_products(jax.make_jaxpr(cost.grad)(*args)) == 2 * own + 3 * correction
    assert flops_of_products(jax.make_jaxpr(lambda *args: cost.measure(*args, jbp.SquaredNorms()))(*args)) < 3 * own
    plain = jbp.Cost(jbp.Network([jbp.Dense(o)], (i,)), HALF)
    assert flops_of_products(jax.make_jaxpr(plain.grad)(*drawn(plain))) == 3 * own


def test_at_first_it_is_the_layer_itself():
    low, plain = jbp.LowRank(jbp.Dense(4), 2), jbp.Dense(4)
    params = low.init(jax.random.key(0), jax.ShapeDtypeStruct((3,), jnp.float32))
    x = draw(0, jax.ShapeDtypeStruct((N, 3), jnp.float32))
    of = lambda layer, params: layer.forward(params, x, jbp.Context())[0]
    np.testing.assert_array_equal(of(low, params), of(plain, params.layer.fixed))
    assert np.any(params.down)


def test_fit_trains_the_correction_alone_and_keeps_no_state_for_the_rest():
    cost = jbp.Cost(jbp.Network([jbp.LowRank(jbp.Dense(4), 2), jbp.Tanh(), jbp.LowRank(jbp.Dense(2), 1)], (3,)), HALF)
    assert cost.layout.names[:4] == ("0.layer.fixed.w", "0.layer.fixed.b", "0.down", "0.up")
    _, x, y = drawn(cost)
    theta = cost.init(jax.random.key(0))
    with jax.numpy_dtype_promotion("standard"):  # optax promotes
        run = jbp.fit(cost, theta, (x, y), optimizer=optax.adam(1e-2), batch_size=N, epochs=3, key=jax.random.key(1))
    leaves = zip(cost.layout.trainable, *map(cost.layout.leaves, (theta, run.theta)), strict=True)
    for trained, before, after in leaves:
        assert np.any(before != after) == trained
    kept = [leaf.size for name, leaf in run.state.leaves.items() if name.startswith("optimizer.") and leaf.ndim]
    trained = sum(n for n, trained in zip(cost.layout.sizes, cost.layout.trainable, strict=True) if trained)
    assert sum(kept) == 2 * trained  # Adam's two moments


@pytest.mark.parametrize("layer", [
    Loop(jbp.Residual(jbp.LowRank(jbp.Dense(3), 2)), 2),
    Checkpoint(jbp.LowRank(jbp.Dense(3), 2)),
    jbp.LowRank(jbp.Sequential([jbp.Dense(5), jbp.Tanh(), jbp.Dense(3)]), 2),
    jbp.LowRank(jbp.GLU(3, jbp.GELU()), 2, scale=4),
    jbp.LowRank(jbp.LowRank(jbp.Dense(3), 1), 2),
], ids=["in a loop", "in a checkpoint", "of several layers", "of a gate", "of itself"])  # fmt: skip
def test_it_stands_wherever_a_layer_does(layer: jbp.Layer, x64: None):
    cost = jbp.Cost(jbp.Network([jbp.Dense(3), layer, jbp.Dense(2)], (2, 3)), HALF)
    theta, x, y = drawn(cost)
    assert_close(cost.grad(theta, x, y), jax.jit(jax.grad(cost))(theta, x, y))
    v = jnp.cos(theta)
    along = lambda gradient: jax.jit(lambda theta: jax.jvp(lambda t: gradient(t, x, y), (theta,), (v,))[1])(theta)
    assert_close(along(cost.grad), along(jax.grad(cost)))
    each = jax.jit(jax.vmap(lambda x, y: jax.grad(cost)(theta, x[None], y[None])))(x, y)
    assert_close(cost.measure(theta, x, y, jbp.SquaredNorms())[1], jnp.square(each).sum(1))


def test_another_vector_carries_delta_through_all_its_parts(x64: None):
    cost = jbp.Cost(jbp.Network([jbp.Dense(3), jbp.LowRank(jbp.Dense(2), 1, scale=0.5)], (4,)), HALF)
    (theta, x, y), feedback = drawn(cost), draw(9, jax.ShapeDtypeStruct((cost.layout.size,), jnp.float64))
    p, b = (jax.tree.map(np.asarray, cost.layout.unflatten(vector)) for vector in (theta, feedback))
    delta = np.asarray(cost.network(theta, x) - y) / N @ (b[1].layer.fixed.w + 0.5 * b[1].down @ b[1].up).T
    got = cost.layout.unflatten(cost.grad(theta, x, y, feedback=feedback))
    assert_close(got[0].w, np.asarray(x).T @ delta)
    assert p[1].down.shape == (3, 1)


# -- wrong calls ------------------------------------------------------------------------------------------------------


def network(*layers, input=(3,)):
    return jbp.Network(layers, input)


WRONG_CALLS: list[tuple[Callable, str]] = [
    (lambda: jbp.LowRank(jbp.Dense, 2), "LowRank: layer is no layer: <class 'jbp.layers.dense.Dense'>. Give Dense()."),
    (lambda: jbp.LowRank(jbp.Dense(2), 0), "LowRank: rank must be a whole number of at least 1, got 0."),
    (lambda: jbp.LowRank(jbp.Dense(2), 1, scale=0), "LowRank: scale must be a number above 0, got 0."),
    (lambda: network(jbp.LowRank(jbp.Embedding(4, 2), 1), input=jax.ShapeDtypeStruct((3,), jnp.int32)),
     "layer 0: LowRank: expected one float input x [N, ..., I], got int32[N, 3]. Put it around a Dense, or another "
     "layer of one float array."),
    (lambda: network(jbp.LowRank(jbp.Fork([jbp.Dense(2)] * 2), 1)),
     "layer 0: LowRank: expected a layer that maps the last axis alone, (x, layer(x)) is (float32[3], float32[2], "
     "float32[2]) without the batch axis. Put it around a Dense."),
    (lambda: network(jbp.Identity(), jbp.LowRank(jbp.Positions(4), 1)),
     "layer 1.layer.fixed: Positions(4): expected one float input x [N, T, W], got float32[N, 3]. Give the input an "
     "axis of positions and one of features."),
]  # fmt: skip


@pytest.mark.usefixtures("as_for_a_user")
@over_calls(WRONG_CALLS)
def test_a_wrong_call_is_told_what_to_do(call: Callable, message: str):
    assert_told(call, message)
