"""Ten models as their libraries' own examples build them, written anew and small: what `from_model` takes untouched."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx


@dataclass(frozen=True)
class Published:
    """A model as its library makes it: `make() -> (apply, params)`. x: the spec of one example. `forms`: those in
    which its leaves are found."""

    name: str
    make: Callable[[], tuple[Callable, Any]]
    x: Any
    forms: set[str]
    per_example: bool = False


def spec(*shape: int, dtype: Any = np.float64) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def of_linen(module: nn.Module, *x: Any) -> tuple[Callable, Any]:
    """A module of Flax on what `x` are specs of, for one example."""
    given = [jnp.zeros((1, *part.shape), part.dtype) for part in x]
    params = module.init(jax.random.key(0), *given)["params"]
    apply = lambda params, x: module.apply({"params": params}, *(x if isinstance(x, tuple) else (x,)))
    return apply, in_float64(params)


def of_nnx(module: nnx.Module) -> tuple[Callable, Any]:
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return lambda params, x: nnx.merge(graph, params, rest)(x), in_float64(params)


def of_equinox(module: eqx.Module) -> tuple[Callable, Any]:
    params, rest = eqx.partition(module, eqx.is_inexact_array)
    return lambda params, x: eqx.combine(params, rest)(x), in_float64(params)


def of_haiku(build: Callable, x: Any) -> tuple[Callable, Any]:
    hk = pytest.importorskip("haiku", reason="Haiku is not installed: pip install dm-haiku")
    model = hk.without_apply_rng(hk.transform(lambda x: build(hk, x)))
    return model.apply, in_float64(model.init(jax.random.key(0), jnp.zeros((1, *x.shape), x.dtype)))


def in_float64(params: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(jnp.float64), params)


def haiku_mlp():
    return of_haiku(lambda hk, x: hk.nets.MLP([12, 7, 3])(x), spec(6))


class Cnn(nn.Module):
    """As in Flax's MNIST example."""

    @nn.compact
    def __call__(self, x):
        for width in (4, 6):
            x = nn.avg_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(9)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


class Vae(nnx.Module):
    """As in Flax's VAE example; the noise is an input."""

    def __init__(self, rngs):
        self.hidden, self.back = nnx.Linear(10, 8, rngs=rngs), nnx.Linear(3, 8, rngs=rngs)
        self.mean, self.logvar = nnx.Linear(8, 3, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.out = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, given):
        x, noise = given
        h = nnx.relu(self.hidden(x))
        mean, logvar = self.mean(h), self.logvar(h)
        z = mean + noise * jnp.exp(0.5 * logvar)
        return jnp.concatenate([self.out(nnx.relu(self.back(z))), mean, logvar], -1)


class Lstm(nn.Module):
    """A classifier of sequences: an OptimizedLSTMCell under a scan."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.RNN(nn.OptimizedLSTMCell(5, param_dtype=jnp.float64))(x)[:, -1])


def transformer_block(hk, x):
    """As in Haiku's transformer example."""
    norm = lambda: hk.LayerNorm(-1, create_scale=True, create_offset=True)
    h, init = norm()(x), hk.initializers.VarianceScaling(1.0)
    mask = np.tril(np.ones((1, 1, x.shape[1], x.shape[1])))
    x = x + hk.MultiHeadAttention(2, 3, w_init=init)(h, h, h, mask=mask)
    return x + hk.Sequential([hk.Linear(12), jax.nn.gelu, hk.Linear(x.shape[-1])])(norm()(x))


class Vit(eqx.Module):
    """As in Equinox's ViT example: patches, a class token, positions, an attention block."""

    patches: eqx.nn.Conv2d
    token: jax.Array
    positions: jax.Array
    attention: eqx.nn.MultiheadAttention
    norms: list
    mlp: list

    def __init__(self, key):
        keys = jax.random.split(key, 7)
        self.patches = eqx.nn.Conv2d(3, 8, 2, 2, key=keys[0])
        self.token, self.positions = jax.random.normal(keys[1], (1, 8)), jax.random.normal(keys[2], (5, 8))
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=keys[3])
        self.norms = [eqx.nn.LayerNorm(8) for _ in range(3)]
        self.mlp = [eqx.nn.Linear(8, 10, key=keys[4]), eqx.nn.Linear(10, 8, key=keys[5])]

    def __call__(self, x):
        x = self.patches(x).reshape(8, -1).T
        x = jnp.concatenate([self.token, x]) + self.positions
        h = jax.vmap(self.norms[0])(x)
        x = x + self.attention(h, h, h)
        h = jax.vmap(self.norms[1])(x)
        x = x + jax.vmap(self.mlp[1])(jax.nn.gelu(jax.vmap(self.mlp[0])(h)))
        return self.norms[2](x[0])


class ResNet(nn.Module):
    """Basic blocks with GroupNorm in place of BatchNorm."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        for width, stride in ((4, 1), (6, 2)):
            h = nn.relu(nn.GroupNorm(2)(nn.Conv(width, (3, 3), (stride, stride), use_bias=False)(x)))
            h = nn.GroupNorm(2)(nn.Conv(width, (3, 3), use_bias=False)(h))
            if h.shape != x.shape:
                x = nn.GroupNorm(2)(nn.Conv(width, (1, 1), (stride, stride), use_bias=False)(x))
            x = nn.relu(x + h)
        return nn.Dense(3)(x.mean((1, 2)))


class UNet(nnx.Module):
    """One level down and up, the skip by concatenation."""

    def __init__(self, rngs):
        conv = lambda i, o: nnx.Conv(i, o, (3, 3), rngs=rngs)
        self.into, self.down, self.inner = conv(2, 4), nnx.Conv(4, 6, (2, 2), (2, 2), rngs=rngs), conv(6, 6)
        self.up, self.out = nnx.ConvTranspose(6, 4, (2, 2), (2, 2), rngs=rngs), conv(8, 2)

    def __call__(self, x):
        skip = nnx.silu(self.into(x))
        h = nnx.silu(self.inner(nnx.silu(self.down(skip))))
        return self.out(jnp.concatenate([skip, self.up(h)], -1))


class Mixer(eqx.Module):
    """As in Equinox's MLP-Mixer example, one block."""

    into: eqx.nn.Conv2d
    mixers: list
    norms: list
    out: eqx.nn.ConvTranspose2d

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.into = eqx.nn.Conv2d(2, 5, 2, 2, key=keys[0])
        self.mixers = [eqx.nn.MLP(4, 4, 7, 1, key=keys[1]), eqx.nn.MLP(5, 5, 7, 1, key=keys[2])]
        self.norms = [eqx.nn.LayerNorm((5, 4)), eqx.nn.LayerNorm((4, 5)), eqx.nn.LayerNorm((5, 2, 2))]
        self.out = eqx.nn.ConvTranspose2d(5, 2, 2, 2, key=keys[3])

    def __call__(self, x):
        y = self.into(x)
        shape = y.shape
        y = y.reshape(5, 4)
        y = y + jax.vmap(self.mixers[0])(self.norms[0](y))
        y = y.T
        y = (y + jax.vmap(self.mixers[1])(self.norms[1](y))).T
        return self.out(self.norms[2](y.reshape(shape)))


class Seq2Seq(nn.Module):
    """An LSTM over the source, one over the target with dot-product attention on the source's states."""

    @nn.compact
    def __call__(self, source, target):
        table = nn.Embed(11, 6, param_dtype=jnp.float64)
        carry, states = nn.RNN(nn.OptimizedLSTMCell(6, param_dtype=jnp.float64), return_carry=True)(table(source))
        h = nn.RNN(nn.OptimizedLSTMCell(6, param_dtype=jnp.float64))(table(target), initial_carry=carry)
        scores = jax.nn.softmax(jnp.einsum("nti,nsi->nts", nn.Dense(6)(h), states), -1)
        h = nn.tanh(nn.Dense(6)(jnp.concatenate([h, jnp.einsum("nts,nsi->nti", scores, states)], -1)))
        return table.attend(h)


TOKENS = spec(4, dtype=np.int32), spec(3, dtype=np.int32)
DENSE, CONVOLUTIONS = {"Outer", "Sum"}, {"Outer", "Patches", "Sum"}
MODELS = [
    Published("MLP, Haiku", haiku_mlp, spec(6), DENSE),
    Published("CNN, Flax linen", lambda: of_linen(Cnn(), spec(8, 8, 1)), spec(8, 8, 1), CONVOLUTIONS),
    Published("VAE, Flax NNX", lambda: of_nnx(Vae(nnx.Rngs(0))), (spec(10), spec(3)), DENSE),
    Published("LSTM, Flax linen", lambda: of_linen(Lstm(), spec(4, 3)), spec(4, 3), DENSE),
    Published("transformer block, Haiku", lambda: of_haiku(transformer_block, spec(4, 6)), spec(4, 6), DENSE),
    Published("ViT, Equinox", lambda: of_equinox(Vit(jax.random.key(0))), spec(3, 4, 4), CONVOLUTIONS, True),
    Published("ResNet, Flax linen", lambda: of_linen(ResNet(), spec(6, 6, 2)), spec(6, 6, 2), CONVOLUTIONS),
    Published("U-Net, Flax NNX", lambda: of_nnx(UNet(nnx.Rngs(0))), spec(4, 4, 2), {"Patches", "Sum"}),
    Published("MLP-Mixer, Equinox", lambda: of_equinox(Mixer(jax.random.key(0))), spec(2, 4, 4), CONVOLUTIONS, True),
    Published("sequence to sequence, Flax linen", lambda: of_linen(Seq2Seq(), *TOKENS), TOKENS,
              {"Gather + Outer", *DENSE}),
]  # fmt: skip
