"""The neural tangent kernel against J Jᵀ by autodiff in float64, and within its memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_close, assert_told, over_calls

import jbp

WORDS = jax.ShapeDtypeStruct((3,), jnp.int32)
ATTENTION = jbp.Residual(jbp.Sequential([jbp.LayerNorm(), jbp.Attention(2, causal=True), jbp.Dense(4)]))
HEAD = jbp.Sequential([jbp.Embedding(5, 4), jbp.Tanh(), jbp.Dense(5, bias=False)])
NETWORKS = {
    "chain": ([jbp.Dense(4), jbp.Tanh(), jbp.Dense(3)], (2,)),
    "positions": ([jbp.Frozen(jbp.Embedding(5, 4)), jbp.Positions(3), jbp.Repeat(ATTENTION, 2), jbp.Dense(2)], WORDS),
    "tied": ([jbp.Tied(HEAD, {"2.w": "0.table.T"})], WORDS),
}


def drawn(net: jbp.Network, n: int, seed: int) -> Any:
    rng, spec = np.random.default_rng(seed), net.input
    whole = jnp.issubdtype(spec.dtype, jnp.integer)
    x = rng.integers(0, 5, (n, *spec.shape)) if whole else rng.standard_normal((n, *spec.shape))
    return jnp.asarray(x, spec.dtype)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_j_j(name: str, x64: None):
    net = jbp.Network(*NETWORKS[name])
    theta = jnp.asarray(np.random.default_rng(0).standard_normal(net.layout.size))
    x1, x2 = drawn(net, 5, 1), drawn(net, 3, 2)

    @jax.jit
    def jacobian(theta: Any, x: Any) -> Any:
        return jax.jacobian(lambda theta: net(theta, x).reshape(x.shape[0], -1))(theta)

    one, two = (np.asarray(jacobian(theta, x)) for x in (x1, x2))
    expected = np.einsum("ncp,mdp->nmcd", one, two)
    assert_close(jbp.ntk(net, theta, x1, x2), expected, 1e-11)
    assert_close(jbp.ntk(net, theta, x1), np.einsum("ncp,mdp->nmcd", one, one), 1e-11)
    assert_close(jbp.ntk(net, theta, x1, x2, trace=True), np.einsum("nmcc->nm", expected) / expected.shape[2], 1e-11)
    assert_close(jbp.ntk(net, theta, x1, x2, diagonal=True), np.einsum("nmcc->nmc", expected), 1e-11)
    small = _least(net, theta, x1) * 2  # blocks that don't divide the examples
    assert_close(jbp.ntk(net, theta, x1, x2, memory=small), expected, 1e-11)


def _least(net: jbp.Network, theta: Any, x: Any) -> int:
    """The least memory that is enough, as the error says it."""
    with pytest.raises(jbp.InputError) as error:
        jbp.ntk(net, theta, x, memory=1)
    return int(str(error.value).split(" takes about ")[1].split(" bytes")[0].replace(",", ""))


def test_a_block_holds_its_memory():
    """What XLA says that the program takes besides its arguments is within the budget and the result."""
    from jbp.ntk import _ntk, _sizes

    net = jbp.mlp(32, 256, 256, 10, last=jbp.Identity())
    theta, x = jnp.zeros(net.layout.size), jnp.zeros((128, 32))
    for memory in (1 << 21, 1 << 23):
        sizes = _sizes(net, "full", 128, 128, memory)
        assert sizes[0] < 128
        taken = _ntk.lower(net, "full", sizes, theta, x, x).compile().memory_analysis()
        assert taken.temp_size_in_bytes <= memory + 2 * 4 * 128 * 128 * 10 * 10


NET = jbp.mlp(2, 3, 2)
THETA, X = jnp.zeros(NET.layout.size), jnp.zeros((4, 2))
WRONG = [
    (
        lambda: jbp.ntk(NET.layer, THETA, X),
        "ntk: expected a Network first, got Border. As in ntk(net, theta, x1, x2).",
    ),
    (
        lambda: jbp.ntk(NET, THETA, X, trace=True, diagonal=True),
        "ntk: trace and diagonal are two forms of the result. Ask for one of them.",
    ),
    (lambda: jbp.ntk(NET, THETA, X, memory="1 GB"), "ntk: memory must be a number of bytes, got '1 GB'. […]"),
    (lambda: jbp.ntk(NET, THETA, X, memory=10), "ntk: one example with one other takes about […]"),
    (
        lambda: jbp.ntk(jbp.Network([jbp.Frozen(jbp.Dense(2))], (2,)), jnp.zeros(6), X),
        "ntk: the network has no leaf that is not held fixed, so its derivative by θ is empty.",
    ),
]


@over_calls(WRONG)
@pytest.mark.usefixtures("as_for_a_user")
def test_wrong_calls(call: Any, message: str):
    assert_told(call, message)
