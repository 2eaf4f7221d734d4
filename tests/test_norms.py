"""Normalisations and the gated linear unit, beyond the laws: what they save, numbers at the edges, wrong calls."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ACTIVATIONS, ActivationCase, assert_close, assert_told, draw, over, over_calls
from scipy import special

import jbp

NORMS = (jbp.LayerNorm(), jbp.RMSNorm(), jbp.GroupNorm(2), jbp.InstanceNorm())
norms = pytest.mark.parametrize("norm", NORMS, ids=repr)


def params_of(layer: jbp.Layer, *shape: int):
    return layer.init(jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.result_type(float)))


@pytest.mark.parametrize(("norm", "numbers"), [
    (jbp.LayerNorm(), 2 * 3 * 5),
    (jbp.RMSNorm(), 3 * 5),
    (jbp.GroupNorm(2), 2 * 3 * 2),
    (jbp.InstanceNorm(), 2 * 3 * 8),
], ids=repr)  # fmt: skip
def test_a_norm_saves_x_and_a_number_or_two_for_each_mean(norm: jbp.Layer, numbers: int):
    x = jax.ShapeDtypeStruct((3, 5, 8), jnp.bfloat16)
    _, saved = jax.eval_shape(norm.forward, params_of(norm, 5, 8), x, jbp.Context())
    (of_x, *rest) = jax.tree.leaves(saved)
    assert (of_x.shape, of_x.dtype) == (x.shape, x.dtype)
    assert sum(leaf.size for leaf in rest) == numbers


@norms
def test_of_equal_numbers_everything_is_finite(norm: jbp.Layer):
    """Their variance is 0, and r = 1/√ε."""
    x, delta = jnp.full((2, 3, 4), 5.0), draw(0, jax.ShapeDtypeStruct((2, 3, 4), jnp.float32))
    y, back = jbp.run(norm, params_of(norm, 3, 4), x)
    expected = 1 if isinstance(norm, jbp.RMSNorm) else 0
    np.testing.assert_allclose(y, np.full(x.shape, expected), atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(back(delta)))


@pytest.mark.parametrize("norm", [n for n in NORMS if not isinstance(n, jbp.RMSNorm)], ids=repr)
def test_far_from_0_no_more_digits_are_lost_than_x_has_lost(norm: jbp.Layer):
    """Numbers of size 1 around 2¹⁰, exact in float32: variances by mean x² − μ² would lose 20 bits more."""
    noise = np.round(np.random.default_rng(0).standard_normal((3, 16, 8)) * 2**10) / 2**10
    params = params_of(norm, 16, 8)
    near, far = (norm.forward(params, jnp.asarray(noise + by, jnp.float32), jbp.Context())[0] for by in (0, 2.0**10))
    np.testing.assert_allclose(near, far, atol=1e-3)


def test_a_norm_of_groups_is_its_neighbours_at_the_ends(x64: None):
    """One group over no positions: a layer norm. A group for each channel: an instance norm."""
    x, params = draw(0, jax.ShapeDtypeStruct((3, 5, 4), jnp.float64)), params_of(jbp.LayerNorm(), 4)
    of = lambda norm, x: norm.forward(params, x, jbp.Context())[0]
    assert_close(of(jbp.GroupNorm(1), x[:, 0]), of(jbp.LayerNorm(), x[:, 0]))
    assert_close(of(jbp.GroupNorm(4), x), of(jbp.InstanceNorm(), x))


# -- the gated linear unit --------------------------------------------------------------------------------------------


@over(ACTIVATIONS)
def test_a_gate_of_any_activation(case: ActivationCase, x64: None):
    """Of those that save a as of those that save z."""
    layer = jbp.GLU(3, case.layer, bias=True)
    spec = jax.eval_shape(lambda: params_of(layer, 4))
    params, x, delta = draw(0, (spec, *(jax.ShapeDtypeStruct((5, width), jnp.float64) for width in (4, 3))))
    y, back = jax.jit(jbp.run, static_argnums=0)(layer, params, x)
    z, u = (np.asarray(x @ part.w + part.b[None]) for part in params)
    assert_close(y, case.f(z) * u)
    _, vjp = jax.vjp(lambda params, x: layer.forward(params, x, jbp.Context())[0], params, x)
    assert_close(back(delta), vjp(delta)[::-1])


def test_a_gate_saves_x_and_its_two_products():
    layer, x = jbp.GLU(6), jax.ShapeDtypeStruct((3, 5, 4), jnp.bfloat16)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params_of(layer, 5, 4))
    _, saved = jax.eval_shape(layer.forward, params, x, jbp.Context())
    assert [(leaf.shape[-1], leaf.dtype) for leaf in jax.tree.leaves(saved)] == [
        (width, x.dtype) for width in (4, 6, 6)
    ]


def test_the_weights_of_a_llama_load_by_name(x64: None):
    """`mlp.{gate,up,down}_proj.weight`, each `[out, in]` as PyTorch has them."""
    net = jbp.Network([jbp.GLU(7), jbp.Dense(3, bias=False)], input=(3,))
    assert net.layout.names == ("0.gate.w", "0.up.w", "1.w")
    assert net.layout.num_biases == 0
    gate, up, down, x = (
        np.random.default_rng(i).standard_normal(s) for i, s in enumerate([(7, 3), (7, 3), (3, 7), (2, 3)])
    )
    leaves = dict(zip(net.layout.names, (gate.T, up.T, down.T), strict=True))
    theta = net.layout.flatten(net.layout.treedef.unflatten([leaves[name] for name in net.layout.names]))
    z = x @ gate.T
    assert_close(net(theta, x), (z * special.expit(z) * (x @ up.T)) @ down.T)


# -- wrong calls ------------------------------------------------------------------------------------------------------

X = jax.ShapeDtypeStruct((3,), jnp.float32)
WHOLE = jax.ShapeDtypeStruct((3,), jnp.int32)
CHANNELS = "Give the input an axis of channels, its last, and cast it to float."


def network(*layers, input=(3,)):
    return jbp.Network(layers, input)


def forward(layer, shape, x):
    return layer.forward(params_of(layer, *shape), x, jbp.Context())


WRONG_CALLS: list[tuple[Callable, str]] = [
    (lambda: jbp.LayerNorm(epsilon=0), "LayerNorm: epsilon must be a number above 0, got 0."),
    (lambda: jbp.RMSNorm(epsilon=float("nan")), "RMSNorm: epsilon must be a number above 0, got nan."),
    (lambda: jbp.InstanceNorm("1e-5"), "InstanceNorm: epsilon must be a number above 0, got '1e-5'."),
    (lambda: jbp.LayerNorm(gain="ones"), "LayerNorm: gain must be True or False, got 'ones'."),
    (lambda: jbp.GroupNorm(2, bias=None), "GroupNorm: bias must be True or False, got None."),
    (lambda: jbp.GroupNorm(0), "GroupNorm: groups must be a whole number of at least 1, got 0."),
    (lambda: jbp.GroupNorm(2.0), "GroupNorm: groups must be a whole number of at least 1, got 2.0."),
    (lambda: network(jbp.Identity(), jbp.GroupNorm(2)),
     "layer 1: GroupNorm(2): expected channels in 2 equal groups, got C = 3. Choose groups that divide C."),
    (lambda: network(jbp.LayerNorm(), input=()),
     f"layer 0: LayerNorm: expected one float input x [N, ..., C], got float32[N]. {CHANNELS}"),
    (lambda: network(jbp.RMSNorm(), input=WHOLE),
     f"layer 0: RMSNorm: expected one float input x [N, ..., C], got int32[N, 3]. {CHANNELS}"),
    (lambda: network(jbp.InstanceNorm()),
     f"layer 0: InstanceNorm: expected one float input x [N, *positions, C], got float32[N, 3]. {CHANNELS}"),
    (lambda: network(jbp.LayerNorm(), input=(X, X)),
     f"layer 0: LayerNorm: expected one float input x [N, ..., C], got float32[N, 3], float32[N, 3]. {CHANNELS}"),
    (lambda: forward(jbp.LayerNorm(), (3,), jnp.ones((2, 4))),
     "LayerNorm: expected x [N, ..., C = 3], got float32[2, 4]. Check the width of the layer before."),
    (lambda: forward(jbp.GroupNorm(2), (4,), jnp.ones((2, 6))),
     "GroupNorm(2): expected x [N, ..., C = 4], got float32[2, 6]. Check the width of the layer before."),
    (lambda: jbp.GLU(0), "GLU: width must be a whole number of at least 1, got 0."),
    (lambda: jbp.GLU(3, jbp.Softmax()),
     "GLU: activation must be an element-wise layer, got Softmax(). As in activation=jbp.SiLU()."),
    (lambda: jbp.GLU(3, jax.nn.silu),
     f"GLU: activation must be an element-wise layer, got {jax.nn.silu!r}. As in activation=jbp.SiLU()."),
    (lambda: jbp.GLU(3, bias=3), "GLU: bias must be True or False, got 3."),
    (lambda: network(jbp.GLU(2), input=()),
     "layer 0: GLU(2): expected one float input x [N, ..., I], got float32[N]. Give the input an axis of features, or "
     "cast it to float."),
    (lambda: forward(jbp.GLU(2), (3,), jnp.ones((2, 4))),
     "GLU(2): expected x [N, ..., I = 3], got float32[2, 4]. Check the width of the layer before."),
]  # fmt: skip


@pytest.mark.usefixtures("as_for_a_user")
@over_calls(WRONG_CALLS)
def test_a_wrong_call_is_told_what_to_do(call: Callable, message: str):
    assert_told(call, message)
