"""One table of cases: a new activation, layer, loss or readout is one row, and every law runs over it.

A row holds what jbp claims (the object) and an implementation of the same thing from elsewhere: NumPy, SciPy, `jax.nn`
or optax. Those formulas get NumPy arrays, so JAX's strict promotion does not reach into them.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import own_layers as own
import pytest
from scipy import special

import jbp
from jbp import losses
from jbp.layer import walk

N = 8  # examples of a batch, one for each simulated device


# -- drawing and comparing --------------------------------------------------------------------------------------------


def draw(seed: int, spec: Any, dtype: Any = None, scale: float = 1.0) -> Any:
    """Normal numbers in the shapes of a tree of specs, in `dtype` or their own; for integers, labels 0 … 3.

    By NumPy, which compiles nothing.
    """
    rng = np.random.default_rng(seed)

    def one(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(rng.integers(0, 4, leaf.shape, leaf.dtype))
        return jnp.asarray(np.asarray(scale * rng.standard_normal(leaf.shape), dtype or leaf.dtype))

    return jax.tree.map(one, spec)


def batch(spec: Any, *sizes: int) -> Any:
    """The specs with axes of the given sizes in front."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct((*sizes, *s.shape), s.dtype), spec)


def spec_of(input: Any) -> Any:
    """A shape as a spec in float32; a spec as it is."""
    is_shape = isinstance(input, tuple) and all(isinstance(size, int) for size in input)
    return jax.ShapeDtypeStruct(input, jnp.float32) if is_shape else input


def cast(tree: Any, dtype: Any) -> Any:
    """The same numbers in another float dtype; integers as they are. Outside a trace, nothing is compiled."""

    def one(a):
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return a
        return a.astype(dtype) if isinstance(a, jax.core.Tracer) else jnp.asarray(np.asarray(a).astype(dtype))

    return jax.tree.map(one, tree)


def as_numpy(tree: Any) -> Any:
    """The tree with NumPy leaves."""
    return jax.tree.map(np.asarray, tree)


def assert_close(got: Any, expected: Any, relative: float = 1e-12) -> None:
    """Same structure and shapes, and each leaf within `relative` of the expected leaf's largest entry. NaN fails."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(expected)
    assert jax.tree.structure(got) == treedef
    for (path, e), g in zip(paths, jax.tree.leaves(got), strict=True):
        e, g = np.asarray(e, np.float64), np.asarray(g, np.float64)
        assert g.shape == e.shape, f"leaf {jax.tree_util.keystr(path)}: shape {g.shape}, expected {e.shape}"
        error, scale = np.abs(g - e).max(initial=0), np.abs(e).max(initial=0)
        assert error <= relative * scale, f"leaf {jax.tree_util.keystr(path)}: off by {error:.2e}, scale {scale:.2e}"


def entry(gradient: Any, i: int, digits: int = 5) -> Any:
    """Entry i of a float32 gradient, as far as single precision promises it: beside the largest entry, not itself."""
    return pytest.approx(float(gradient[i]), rel=10**-digits, abs=1e-5 * float(np.abs(gradient).max()))


# -- activations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ActivationCase:
    """An activation, its f and its f′ in float64 NumPy, f′ at kinks as the docstring has it."""

    layer: jbp.Layer
    f: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]

    @property
    def name(self) -> str:
        return repr(self.layer)


SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
SQRT_2_PI = math.sqrt(2 / math.pi)


def _u(z):
    return SQRT_2_PI * (z + 0.044715 * z**3)


def _elu(alpha, scale=1.0):
    def f(z):
        return scale * np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0)))

    def slope(z):
        return scale * np.where(z > 0, 1, alpha * np.exp(np.minimum(z, 0)))

    return f, slope


def _gelu_tanh_slope(z):
    s, du = special.expit(2 * _u(z)), SQRT_2_PI * (1 + 3 * 0.044715 * z**2)
    return s + 2 * z * s * special.expit(-2 * _u(z)) * du


ACTIVATIONS = (
    ActivationCase(jbp.Identity(), lambda z: z, np.ones_like),
    ActivationCase(jbp.Sigmoid(), special.expit, lambda z: special.expit(z) * special.expit(-z)),
    ActivationCase(jbp.Tanh(), np.tanh, lambda z: 4 * special.expit(2 * z) * special.expit(-2 * z)),
    ActivationCase(jbp.ReLU(), jax.nn.relu, lambda z: np.where(z > 0, 1.0, 0.0)),
    ActivationCase(jbp.LeakyReLU(), jax.nn.leaky_relu, lambda z: np.where(z >= 0, 1, 0.01)),
    ActivationCase(
        jbp.LeakyReLU(0.3), lambda z: jax.nn.leaky_relu(z, negative_slope=0.3), lambda z: np.where(z >= 0, 1, 0.3)
    ),
    ActivationCase(jbp.ELU(), *_elu(1.0)),
    ActivationCase(jbp.ELU(0.7), *_elu(0.7)),
    ActivationCase(jbp.SELU(), *_elu(SELU_ALPHA, SELU_SCALE)),
    ActivationCase(jbp.GELU(), lambda z: z * special.expit(2 * _u(z)), _gelu_tanh_slope),
    ActivationCase(
        jbp.GELU(approximate=False),
        lambda z: z * special.ndtr(z),
        lambda z: special.ndtr(z) + z * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi),
    ),
    ActivationCase(
        jbp.SiLU(), lambda z: z * special.expit(z), lambda z: special.expit(z) * (1 + z * special.expit(-z))
    ),
    ActivationCase(jbp.Softplus(), lambda z: np.logaddexp(0, z), special.expit),
    ActivationCase(jbp.LogSigmoid(), lambda z: -np.logaddexp(0, -z), lambda z: special.expit(-z)),
)


# -- layers of one's own, as a user writes them -----------------------------------------------------------------------


@dataclass(frozen=True)
class NoisyGain:
    """y = g · x on `[N, T, C]`; 0 at padding, and with a key 0 at half of all entries. Saved: x, and what is kept."""

    def init(self, key, x):
        return {"g": jnp.ones(x.shape[-1:], x.dtype)}

    def forward(self, params, x, context):
        keep = jnp.ones_like(x)
        if context.mask is not None:
            keep = keep * context.mask[..., None].astype(x.dtype)
        if context.key is not None:
            keep = keep * jax.random.bernoulli(context.key, 0.5, x.shape).astype(x.dtype)
        return params["g"][None, None] * x * keep, (x, keep)

    def backward(self, params, feedback, saved, delta, read):
        x, keep = saved
        delta = delta * keep
        return delta * feedback["g"][None, None], {"g": read["g"](jbp.Sum(delta * x))}


@dataclass(frozen=True)
class Lookup:
    """Row x of a table of 4 rows, for integers x `[N, T]`. Saved: x."""

    width: int

    def init(self, key, x):
        return {"table": jax.random.normal(key, (4, self.width))}

    def forward(self, params, x, context):
        return params["table"][x], x

    def backward(self, params, feedback, saved, delta, read):
        return None, {"table": read["table"](jbp.Outer(jax.nn.one_hot(saved, 4, dtype=delta.dtype), delta))}


def _gain_and_shift(key, x):
    return {"gain": jnp.ones(x.shape, x.dtype), "shift": jnp.zeros((), x.dtype)}


# -- layers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)  # hashed by identity: a context may hold arrays
class LayerCase:
    """A layer, the shape (or spec) of one example, and the same forward in NumPy from (params, x)."""

    name: str
    layer: jbp.Layer
    input: Any
    forward: Callable[[Any, Any], Any]
    context: jbp.Context = jbp.Context()  # noqa: RUF009  immutable
    scale: float = 1.0

    @property
    def spec(self) -> Any:
        """The input spec of one example, floats in float32."""
        return spec_of(self.input)

    @property
    def params(self) -> Any:
        """The specs of the params."""
        return jax.eval_shape(lambda key: self.layer.init(key, self.spec), jax.random.key(0))

    def output(self, dtype: Any) -> Any:
        """The specs of the output of a batch of N examples in `dtype`; a loss's output is wider."""
        as_given = lambda params, x: self.layer.forward(*cast((params, x), dtype), self.context)[0]
        return jax.eval_shape(as_given, self.params, batch(self.spec, N))

    def draw(self, dtype: Any, repeats: int, seed: int = 0) -> tuple[Any, Any, Any]:
        """(params, x, delta) of a batch of N examples, `repeats` times along a first axis."""
        return (
            draw(seed, batch(self.params, repeats), dtype),
            draw(seed + 1, batch(self.spec, repeats, N), dtype, self.scale),
            draw(seed + 2, batch(self.output(dtype), repeats)),
        )


BIAS = np.random.default_rng(3).standard_normal((1, 2, 6, 3)).astype(np.float32)
MASK = np.arange(3) < np.array([3, 1, 2, 3, 0, 3, 2, 1])[:, None]  # of N examples at 3 positions


def dot_product_attention(
    q: Any, k: Any, v: Any, bias: Any = 0.0, *, seen: Any = True, cap: float | None = None, scale: float | None = None
) -> Any:
    """Attention with all of its scores `[N, H, T, S]`; `seen` says which of them count."""
    k, v = (np.repeat(a, q.shape[2] // k.shape[2], axis=2) for a in (k, v))
    z = np.einsum("nthd,nshd->nhts", q, k) * (scale or 1 / np.sqrt(q.shape[-1])) + bias
    z = cap * np.tanh(z / cap) if cap else z
    e = np.where(seen, np.exp(z - z.max()), 0)
    total = e.sum(-1, keepdims=True)
    return np.einsum("nhts,nshd->nthd", e / np.where(total > 0, total, 1), v)


def qkv(t: int, s: int, h: int, k: int, d: int = 3, e: int = 4, bias: tuple[int, ...] = ()) -> Any:
    """The specs of q, k, v of one example, and of a bias."""
    shapes = ((t, h, d), (s, k, d), (s, k, e), *([bias] if bias else []))
    return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)


def near(t: int, s: int, left: int, right: int) -> Any:
    far = np.arange(s)[None] - np.arange(t)[:, None]
    return (far >= -left) & (far <= right)


def _turned(x: Any, base: float) -> Any:
    """Rotary positions, by complex numbers."""
    t, d = x.shape[1], x.shape[-1]
    turn = np.exp(1j * np.arange(t)[:, None] * base ** (-np.arange(0, d, 2) / d))[:, None]
    z = (x[..., : d // 2] + 1j * x[..., d // 2 :]) * turn
    return np.concatenate([z.real, z.imag], -1)


def attention(p: Any, x: Any, h: int, k: int, base: float | None = None, **settings: Any) -> Any:
    """Multi-head self-attention from (params, x)."""
    q, keys, v = (
        (x @ part.w + (0 if part.b is None else part.b)).reshape(*x.shape[:2], heads, -1)
        for part, heads in zip(p[:3], (h, k, k), strict=True)
    )
    if p.q_norm is not None:
        q, keys = (
            a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6) * norm.gain
            for a, norm in ((q, p.q_norm), (keys, p.k_norm))
        )
    q, keys = (_turned(a, base) for a in (q, keys)) if base else (q, keys)
    o = dot_product_attention(q, keys, v, **settings)
    return o.reshape(*x.shape[:2], -1) @ p.out.w + (0 if p.out.b is None else p.out.b)


KEY = jax.random.key(7)
BLOCK = jbp.Residual(jbp.Sequential([jbp.Dense(5), jbp.Tanh(), jbp.Dense(3, bias=False)]))


def _labelled(*shape):
    """Specs of h and of labels for all its axes but the last."""
    return jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:-1], jnp.int32)


def _linear_cross_entropy(smoothing=0.0, z_loss=0.0, ignore=None, mean=False):
    """By NumPy, from all logits."""

    def c(p, x):
        h, y = x
        z = h @ p.w
        log_sum = special.logsumexp(z, -1)
        q = (1 - smoothing) * np.eye(z.shape[-1])[y] + smoothing / z.shape[-1]
        counts = np.ones(y.shape) if ignore is None else np.where(y == ignore, 0.0, 1.0)
        if mean:
            counts = counts / np.maximum(counts.reshape(len(y), -1).sum(1), 1).reshape(-1, *(1,) * (y.ndim - 1))
        return (counts * (log_sum - (q * z).sum(-1) + z_loss * log_sum**2)).reshape(len(y), -1).sum(1)

    return c


# name, (classes, chunk), the other settings, the shape of h
LINEAR = (
    ("", (5,), {}, (3,), _linear_cross_entropy()),
    (", examples in chunks that don't divide N", (5, 3), {}, (3,), _linear_cross_entropy()),
    (", positions", (4,), {}, (5, 3), _linear_cross_entropy()),
    (", positions in chunks that don't divide T", (7, 2 * N), {}, (5, 3), _linear_cross_entropy()),
    (", both in chunks", (6, 3), {"ignore": 1}, (2, 3, 2), _linear_cross_entropy(ignore=1)),
    (
        ", mean, ignore, smoothing, z-loss",
        (5, 20),
        {"positions": "mean", "ignore": 2, "label_smoothing": 0.2, "z_loss": 0.1},
        (5, 3),
        _linear_cross_entropy(0.2, 0.1, 2, True),
    ),
)


LAYERS = (
    LayerCase("dense", jbp.Dense(4), (3,), lambda p, x: x @ p.w + p.b),
    LayerCase("dense without bias", jbp.Dense(4, bias=False), (3,), lambda p, x: x @ p.w),
    LayerCase("dense to one neuron", jbp.Dense(1), (3,), lambda p, x: x @ p.w + p.b),
    LayerCase("dense, one position", jbp.Dense(4), (1, 3), lambda p, x: x @ p.w + p.b),
    LayerCase("dense, 5 positions", jbp.Dense(4), (5, 3), lambda p, x: np.einsum("nti,io->nto", x, p.w) + p.b),
    LayerCase(
        "dense, two position axes", jbp.Dense(2), (2, 3, 4), lambda p, x: np.einsum("nsti,io->nsto", x, p.w) + p.b
    ),
    *(LayerCase(case.name, case.layer, (6,), lambda p, x, f=case.f: f(x), scale=3) for case in ACTIVATIONS),
    LayerCase("softmax", jbp.Softmax(), (4,), lambda p, x: special.softmax(x, -1), scale=3),
    LayerCase("softmax, positions", jbp.Softmax(), (3, 4), lambda p, x: special.softmax(x, -1)),
    LayerCase("empty sequential", jbp.Sequential([]), (3,), lambda p, x: x),
    LayerCase(
        "sequential",
        jbp.Sequential([jbp.Dense(4), jbp.Sigmoid(), jbp.Dense(2)]),
        (3,),
        lambda p, x: special.expit(x @ p[0].w + p[0].b) @ p[2].w + p[2].b,
    ),
    LayerCase("residual", jbp.Residual(jbp.Dense(3)), (3,), lambda p, x: x + x @ p.layer.w + p.layer.b),
    LayerCase(
        "residual of sequential",
        jbp.Residual(jbp.Sequential([jbp.Dense(5), jbp.Tanh(), jbp.Dense(3, bias=False)])),
        (2, 3),
        lambda p, x: x + np.tanh(x @ p.layer[0].w + p.layer[0].b) @ p.layer[2].w,
    ),
    LayerCase("tap", jbp.Tap(lambda delta: delta), (3,), lambda p, x: x),
    LayerCase(
        "from_function",
        jbp.from_function(_gain_and_shift, lambda p, x: jnp.sin(x * p["gain"][None]) + p["shift"]),
        (3,),
        lambda p, x: np.sin(x * p["gain"]) + p["shift"],
    ),
    LayerCase(
        "from_function without params", jbp.from_function(None, lambda p, x: jnp.cos(x)), (3,), lambda p, x: np.cos(x)
    ),
    LayerCase("attention core", jbp.DotProductAttention(), qkv(5, 3, 2, 2), lambda p, x: dot_product_attention(*x)),
    LayerCase(
        "attention core, causal, grouped queries",
        jbp.DotProductAttention(causal=True, scale=0.3),
        qkv(5, 5, 4, 2),
        lambda p, x: dot_product_attention(*x, seen=np.tril(np.ones((5, 5), bool)), scale=0.3),
    ),
    LayerCase(
        "attention core, one position of one head",
        jbp.DotProductAttention(causal=True),
        qkv(1, 1, 1, 1),
        lambda p, x: dot_product_attention(*x),
    ),
    LayerCase(
        "attention core, keys masked, soft cap, bias",
        jbp.DotProductAttention(soft_cap=2.0),
        qkv(4, 3, 4, 2, bias=(4, 1, 3)),
        lambda p, x: dot_product_attention(*x, seen=MASK[:, None, None], cap=2.0),
        jbp.Context(mask=jnp.asarray(MASK)),
    ),
    LayerCase(
        "attention core, window beyond the keys, bias in side",
        jbp.DotProductAttention(window=(1, 0)),
        qkv(6, 3, 2, 1),
        lambda p, x: dot_product_attention(*x, BIAS, seen=near(6, 3, 1, 0)),
        jbp.Context(side={"attention_bias": BIAS}),
    ),
    # a bias of the keys moves all scores of a query alike: without rotary positions its gradient is 0
    LayerCase("attention", jbp.Attention(2, bias=False, out_bias=True), (5, 4), lambda p, x: attention(p, x, 2, 2)),
    LayerCase(
        "attention, rotary, grouped, norms of q and k",
        jbp.Attention(4, 2, head_width=6, causal=True, rope=100.0, qk_norm=True, bias=False),
        (5, 8),
        lambda p, x: attention(p, x, 4, 2, 100.0, seen=np.tril(np.ones((5, 5), bool))),
    ),
    LayerCase(
        "attention, causal, masked",
        jbp.Attention(2, causal=True, window=1, rope=10.0),
        (3, 4),
        lambda p, x: attention(p, x, 2, 2, 10.0, seen=near(3, 3, 1, 0) & MASK[:, None, None]),
        jbp.Context(mask=jnp.asarray(MASK)),
    ),
    LayerCase(
        "nested mixture",
        jbp.Sequential(
            [
                jbp.Dense(3),
                jbp.Residual(jbp.Sequential([jbp.Tanh(), jbp.Dense(3), jbp.Tap(lambda delta: delta)])),
                jbp.from_function(_gain_and_shift, lambda p, x: x * p["gain"][None] + p["shift"]),
                jbp.Sequential([jbp.Dense(2), jbp.Softmax()]),
            ]
        ),
        (4,),
        lambda p, x: _nested_mixture(p, x),
    ),
    LayerCase(
        "a layer of one's own, masked",
        NoisyGain(),
        (3, 2),
        lambda p, x: np.where(MASK[..., None], p["g"] * x, 0),
        context=jbp.Context(mask=jnp.asarray(MASK)),
    ),
    LayerCase(
        "a layer of one's own, of integers",
        jbp.Sequential([Lookup(3), jbp.Tanh(), jbp.Dense(2)]),
        jax.ShapeDtypeStruct((3,), jnp.int32),
        lambda p, x: np.tanh(p[0]["table"][x]) @ p[2].w + p[2].b,
    ),
    LayerCase("layer norm", jbp.LayerNorm(), (7,), lambda p, x: _normalised(x, (-1,), 1e-5) * p.gain + p.bias),
    LayerCase(
        "layer norm, positions, far from 0",
        jbp.Sequential([jbp.from_function(None, lambda p, x: x + 30), jbp.LayerNorm(epsilon=1e-3)]),
        (3, 5),
        lambda p, x: _normalised(x + 30, (-1,), 1e-3) * p[1].gain + p[1].bias,
    ),
    LayerCase(
        "layer norm without gain", jbp.LayerNorm(gain=False), (2, 3, 4), lambda p, x: _normalised(x, (-1,)) + p.bias
    ),
    LayerCase(
        "layer norm without params", jbp.LayerNorm(gain=False, bias=False), (5,), lambda p, x: _normalised(x, (-1,))
    ),
    LayerCase(
        "RMS norm", jbp.RMSNorm(), (3, 5), lambda p, x: x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * p.gain
    ),
    LayerCase(
        "RMS norm without gain, of small numbers",
        jbp.RMSNorm(gain=False),
        (5,),
        lambda p, x: x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6),
        scale=1e-3,
    ),
    LayerCase("group norm", jbp.GroupNorm(3), (2, 3, 6), lambda p, x: _by_groups(x, 3) * p.gain + p.bias),
    LayerCase("group norm of one group", jbp.GroupNorm(1, bias=False), (5, 3), lambda p, x: _by_groups(x, 1) * p.gain),
    LayerCase("group norm without positions", jbp.GroupNorm(2), (6,), lambda p, x: _by_groups(x, 2) * p.gain + p.bias),
    LayerCase("instance norm", jbp.InstanceNorm(), (3, 5, 2), lambda p, x: _normalised(x, (1, 2)) * p.gain + p.bias),
    LayerCase(
        "instance norm without gain", jbp.InstanceNorm(gain=False), (7, 3), lambda p, x: _by_groups(x, 3) + p.bias
    ),
    LayerCase("SwiGLU", jbp.GLU(5), (3,), lambda p, x: _silu(x @ p.gate.w) * (x @ p.up.w)),
    LayerCase(
        "GLU, positions, bias",
        jbp.GLU(5, jbp.Sigmoid(), bias=True),
        (3, 2),
        lambda p, x: special.expit(x @ p.gate.w + p.gate.b) * (x @ p.up.w + p.up.b),
    ),
    LayerCase(
        "gated MLP",
        jbp.Residual(
            jbp.Sequential([jbp.RMSNorm(), jbp.GLU(7, jbp.GELU(approximate=False)), jbp.Dense(3, bias=False)])
        ),
        (2, 3),
        lambda p, x: (
            x + _geglu(_normalised(x, (-1,), 1e-6, centred=False) * p.layer[0].gain, p.layer[1]) @ p.layer[2].w
        ),
    ),
    LayerCase(
        "embedding", jbp.Embedding(6, 3), jax.ShapeDtypeStruct((4,), jnp.int32), lambda p, x: np.take(p.table, x, 0)
    ),
    LayerCase(
        "embedding of one number, a byte",
        jbp.Embedding(300, 2),
        jax.ShapeDtypeStruct((), jnp.uint8),
        lambda p, x: np.take(p.table, x, 0),
    ),
    LayerCase(
        "embedding, positions, norm",
        jbp.Sequential([jbp.Embedding(5, 3), jbp.Positions(4), jbp.LayerNorm(), jbp.Dense(2)]),
        jax.ShapeDtypeStruct((3,), jnp.int32),
        lambda p, x: (_normalised(p[0].table[x] + p[1].table[:3], (-1,)) * p[2].gain + p[2].bias) @ p[3].w + p[3].b,
    ),
    LayerCase("positions", jbp.Positions(3), (3, 2), lambda p, x: x + p.table),
    LayerCase("positions, a shorter sequence", jbp.Positions(7), (3, 2), lambda p, x: x + p.table[:3]),
    LayerCase("sinusoidal positions", jbp.SinusoidalPositions(), (6, 4), lambda p, x: x + _waves(6, 4)),
    LayerCase("sinusoidal positions, odd", jbp.SinusoidalPositions(), (9, 5), lambda p, x: x + _waves(9, 5)),
    LayerCase(
        "low rank",
        jbp.LowRank(jbp.Dense(4), 2, scale=0.3),
        (3,),
        lambda p, x: x @ (p.layer.fixed.w + 0.3 * p.down @ p.up) + p.layer.fixed.b,
    ),
    LayerCase(
        "low rank, positions, in a network",
        jbp.Sequential([jbp.LowRank(jbp.Dense(4, bias=False), 1), jbp.Tanh(), jbp.LowRank(jbp.Dense(2), 3, scale=2)]),
        (5, 3),
        lambda p, x: np.tanh(x @ _merged(p[0])) @ _merged(p[2], 2) + p[2].layer.fixed.b,
    ),
    LayerCase("repeat", jbp.Repeat(BLOCK, 3), (3,), lambda p, x: _blocks(p.layer, x)),
    LayerCase("repeat, unrolled", jbp.Repeat(BLOCK, 3, unroll=True), (2, 3), lambda p, x: _blocks(p.layer, x)),
    LayerCase("repeat, once", jbp.Repeat(jbp.Dense(3), 1), (3,), lambda p, x: x @ p.layer.w[0] + p.layer.b[0]),
    LayerCase("repeat of nothing", jbp.Repeat(jbp.Tanh(), 0), (3,), lambda p, x: x),
    LayerCase(
        "repeat in a repeat",
        jbp.Repeat(jbp.Repeat(BLOCK, 2, unroll=True), 3),
        (3,),
        lambda p, x: _blocks(jax.tree.map(lambda a: a.reshape(6, *a.shape[2:]), p.layer.layer), x),
    ),
    LayerCase("checkpoint", jbp.Checkpoint(BLOCK), (3,), lambda p, x: _block(p.layer, x)),
    LayerCase(
        "repeat of checkpoints", jbp.Repeat(jbp.Checkpoint(BLOCK), 3), (3,), lambda p, x: _blocks(p.layer.layer, x)
    ),
    LayerCase(
        "checkpoints of groups",
        jbp.Repeat(jbp.Checkpoint(jbp.Repeat(jbp.Checkpoint(BLOCK), 2)), 2),
        (3,),
        lambda p, x: _blocks(jax.tree.map(lambda a: a.reshape(4, *a.shape[2:]), p.layer.layer.layer.layer), x),
    ),
    LayerCase(
        "reversible, halves",
        jbp.Reversible(jbp.Sequential([jbp.Dense(2), jbp.Tanh()]), jbp.Dense(2, bias=False), 3),
        (3, 4),
        lambda p, x: np.concatenate(_couplings(p, x[..., :2], x[..., 2:]), -1),
    ),
    LayerCase(
        "reversible, two widths",
        jbp.Sequential(
            [
                jbp.Fork([jbp.Dense(3), jbp.Tanh()]),
                jbp.Reversible(jbp.Sequential([jbp.Dense(3), jbp.Tanh()]), jbp.Dense(2, bias=False), 2),
                jbp.from_function(None, lambda p, x: jnp.concatenate(x, -1)),
            ]
        ),
        (2,),
        lambda p, x: np.concatenate(_couplings(p[1], x @ p[0][0].w + p[0][0].b, np.tanh(x)), -1),
    ),
    LayerCase(
        "dropout",
        jbp.Dropout(0.3),
        (3, 5),
        lambda p, x: x * (_uniform(KEY, x.shape) >= np.float32(0.3)) / 0.7,
        context=jbp.Context(KEY),
    ),
    LayerCase("dropout without a key", jbp.Dropout(0.3), (5,), lambda p, x: x),
    LayerCase("dropout at rate 0", jbp.Dropout(0), (5,), lambda p, x: x, context=jbp.Context(KEY)),
    LayerCase(
        "stochastic depth",
        jbp.StochasticDepth(jbp.Sequential([jbp.Dense(3), jbp.Tanh()]), 0.4),
        (2, 3),
        lambda p, x: x + np.tanh(x @ p.layer[0].w + p.layer[0].b) * (_keep(N) / 0.6)[:, None, None],
        context=jbp.Context(KEY),
    ),
    LayerCase(
        "stochastic depth without a key",
        jbp.StochasticDepth(jbp.Dense(3), 0.4),
        (3,),
        lambda p, x: x + x @ p.layer.w + p.layer.b,
    ),
    LayerCase(
        "tied",
        jbp.Tied(jbp.Sequential([jbp.Dense(3), jbp.Tanh(), jbp.Dense(3)]), {"2.w": "0.w"}),
        (3,),
        lambda p, x: np.tanh(x @ p.layer[0].w + p.layer[0].b) @ p.layer[0].w + p.layer[2].b,
    ),
    LayerCase(
        "tied, transposed, three uses",
        jbp.Tied(
            jbp.Sequential([jbp.Dense(4), jbp.Tanh(), jbp.Dense(3), jbp.Dense(4)]), {"2.w": "0.w.T", "3.w": "0.w"}
        ),
        (2, 3),
        lambda p, x: (
            (np.tanh(x @ p.layer[0].w + p.layer[0].b) @ p.layer[0].w.T + p.layer[2].b) @ p.layer[0].w + p.layer[3].b
        ),
    ),
    LayerCase(
        "tied, a table",
        jbp.Tied(jbp.Sequential([own.Embedding(5, 3), jbp.Repeat(BLOCK, 2), jbp.Dense(5)]), {"2.w": "0.table.T"}),
        jax.ShapeDtypeStruct((3,), jnp.int32),
        lambda p, x: _blocks(p.layer[1].layer, p.layer[0]["table"][x]) @ p.layer[0]["table"].T + p.layer[2].b,
    ),
    LayerCase(
        "tied, a leaf of two loops",
        jbp.Tied(
            jbp.Sequential([jbp.Repeat(jbp.Dense(3), 2), jbp.Tanh(), jbp.Repeat(jbp.Dense(3), 2, unroll=True)]),
            {"2.layer.w": "0.layer.w"},
        ),
        (3,),
        lambda p, x: _tied_loops(p.layer, x),
    ),
    LayerCase(
        "tied in a loop",
        jbp.Repeat(jbp.Tied(jbp.Sequential([jbp.Dense(4), jbp.Tanh(), jbp.Dense(3)]), {"2.w": "0.w.T"}), 2),
        (3,),
        lambda p, x: _tied_in_a_loop(p.layer.layer, x),
    ),
    *(
        LayerCase(f"linear cross-entropy{name}", losses.LinearCrossEntropy(*sizes, **settings), _labelled(*shape), c)
        for name, sizes, settings, shape, c in LINEAR
    ),
)


def _normalised(x, axes, epsilon=1e-5, centred=True):
    x = x - x.mean(axes, keepdims=True) if centred else x
    return x / np.sqrt((x**2).mean(axes, keepdims=True) + epsilon)


def _by_groups(x, groups, epsilon=1e-5):
    """Group by group, by NumPy's `var`."""
    parts = np.split(x, groups, -1)
    mean, var = (
        (lambda a: a.mean(tuple(range(1, a.ndim)), keepdims=True)),
        lambda a: a.var(tuple(range(1, a.ndim)), keepdims=True),
    )
    return np.concatenate([(part - mean(part)) / np.sqrt(var(part) + epsilon) for part in parts], -1)


def _silu(z):
    return z * special.expit(z)


def _geglu(x, p):
    z = x @ p.gate.w
    return z * special.ndtr(z) * (x @ p.up.w)


def _waves(length, width):
    """The table of Vaswani et al. 2017, § 3.5, entry by entry."""
    wave = lambda t, w: (math.cos if w % 2 else math.sin)(t / 10000 ** ((w - w % 2) / width))
    return np.array([[wave(t, w) for w in range(width)] for t in range(length)])


def _merged(p, scale=1):
    return p.layer.fixed.w + scale * p.down @ p.up


def _block(p, x):
    return x + np.tanh(x @ p.layer[0].w + p.layer[0].b) @ p.layer[2].w


def _turns(p):
    """The params of each turn of a loop."""
    return [jax.tree.map(lambda a, i=i: a[i], p) for i in range(len(jax.tree.leaves(p)[0]))]


def _blocks(p, x):
    for its in _turns(p):
        x = _block(its, x)
    return x


def _couplings(p, x1, x2):
    for its in _turns(p):
        x1 = x1 + np.tanh(x2 @ its.f[0].w + its.f[0].b)
        x2 = x2 + x1 @ its.g.w
    return x1, x2


def _uniform(key, shape):
    return np.asarray(jax.random.uniform(key, shape, jnp.float32))


def _keep(n):
    return _uniform(jbp.Context(KEY).child("keep").key, (n,)) >= np.float32(0.4)


def _tied_loops(p, x):
    for w, b in zip(p[0].layer.w, p[0].layer.b, strict=True):
        x = x @ w + b
    x = np.tanh(x)
    for w, b in zip(p[0].layer.w, p[2].layer.b, strict=True):
        x = x @ w + b
    return x


def _tied_in_a_loop(p, x):
    for w, b, c in zip(p[0].w, p[0].b, p[2].b, strict=True):
        x = np.tanh(x @ w + b) @ w.T + c
    return x


def _nested_mixture(p, x):
    x = x @ p[0].w + p[0].b
    x = x + np.tanh(x) @ p[1].layer[1].w + p[1].layer[1].b
    x = x * p[2]["gain"] + p[2]["shift"]
    return special.softmax(x @ p[3][0].w + p[3][0].b, -1)


# -- losses -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossCase:
    """A loss, the shape of one output, how to draw a y for output specs, and the same value `[N]` from (output, y)."""

    name: str
    loss: losses.Loss
    shape: tuple[int, ...]
    draw_y: Callable[[int, Any], jax.Array]
    value: Callable[[np.ndarray, np.ndarray], np.ndarray]
    likelihood: bool = False  # whether C_n = −log of what `sample` draws from; marked once for each way of drawing

    def draw(self, dtype: Any, n: int = N) -> tuple[jax.Array, jax.Array]:
        """(output, y) of a batch of n examples."""
        spec = jax.ShapeDtypeStruct((n, *self.shape), dtype)
        return draw(0, spec, scale=2), self.draw_y(1, spec)


def _probabilities(seed, output):
    return jnp.asarray(np.random.default_rng(seed).random(output.shape), output.dtype)


def _labels(seed, output):
    return jnp.asarray(np.random.default_rng(seed).integers(0, output.shape[-1], output.shape[:-1]), jnp.int32)


def _labels_or_ignored(seed, output):
    return _labels(seed, output) - 1  # −1 is to be ignored


def _one_hot(seed, output):
    return jnp.asarray(np.eye(output.shape[-1])[_labels(seed, output)], output.dtype)


def _sum(c):
    return c.reshape(len(c), -1).sum(1)


def _cosh(a, y):
    """C_n = Σ log cosh(a − y), as somebody writes it who has no delta."""
    return jnp.log(jnp.cosh(a - y)).sum((1, 2))


def _cross_entropy(smoothing=0.0, ignore=None):
    def value(z, y):
        counts = 1.0 if ignore is None else np.where(y == ignore, 0.0, 1.0)
        if y.ndim < z.ndim:
            y = np.eye(z.shape[-1])[y]
        return _sum(counts * optax.softmax_cross_entropy(z, optax.smooth_labels(y, smoothing)))

    return value


LOSSES = (
    LossCase(
        "half squared error",
        losses.HalfSquaredError(),
        (3,),
        draw,
        lambda a, y: _sum(optax.l2_loss(a, y)),
        likelihood=True,
    ),
    LossCase(
        "half squared error, positions",
        losses.HalfSquaredError(),
        (2, 3),
        draw,
        lambda a, y: _sum((y - a) ** 2 / 2),
    ),
    LossCase("squared error", losses.SquaredError(), (3,), draw, lambda a, y: _sum((y - a) ** 2), likelihood=True),
    LossCase("Huber", losses.Huber(), (3,), draw, lambda a, y: _sum(optax.huber_loss(a, y))),
    LossCase("Huber, d = 0.4", losses.Huber(0.4), (2, 3), draw, lambda a, y: _sum(optax.huber_loss(a, y, delta=0.4))),
    LossCase(
        "sigmoid cross-entropy",
        losses.SigmoidCrossEntropy(),
        (3,),
        _probabilities,
        lambda z, y: _sum(optax.sigmoid_binary_cross_entropy(z, y)),
        likelihood=True,
    ),
    LossCase(
        "softmax cross-entropy, labels", losses.SoftmaxCrossEntropy(), (4,), _labels, _cross_entropy(), likelihood=True
    ),
    LossCase("softmax cross-entropy, one-hot", losses.SoftmaxCrossEntropy(), (4,), _one_hot, _cross_entropy()),
    LossCase(
        "softmax cross-entropy, class weights", losses.SoftmaxCrossEntropy(), (4,), _probabilities, _cross_entropy()
    ),
    LossCase("softmax cross-entropy, smoothing", losses.SoftmaxCrossEntropy(0.1), (4,), _labels, _cross_entropy(0.1)),
    LossCase(  # weights that don't sum to 1, with smoothing: optax's smooth_labels takes that sum for 1
        "softmax cross-entropy, class weights, smoothing",
        losses.SoftmaxCrossEntropy(0.1),
        (4,),
        _probabilities,
        lambda z, y: _sum(optax.softmax_cross_entropy(z, 0.9 * y + 0.1 / 4)),
    ),
    LossCase(
        "softmax cross-entropy, positions, mean, ignore",
        losses.SoftmaxCrossEntropy(ignore=-1, positions="mean"),
        (3, 4),
        _labels_or_ignored,
        lambda z, y: _cross_entropy(0, -1)(z, y) / np.maximum((y != -1).sum(1).astype(z.dtype), 1),
    ),
    LossCase(
        "softmax cross-entropy, z-loss",
        losses.SoftmaxCrossEntropy(0.1, z_loss=0.3),
        (2, 4),
        _labels,
        lambda z, y: _cross_entropy(0.1)(z, y) + 0.3 * _sum(np.square(special.logsumexp(z, -1))),
    ),
    LossCase("from_function", losses.from_function(_cosh), (2, 3), draw, lambda a, y: _sum(np.log(np.cosh(a - y)))),
    LossCase(
        "softmax cross-entropy, ignore",
        losses.SoftmaxCrossEntropy(ignore=-1),
        (4,),
        _labels_or_ignored,
        _cross_entropy(0, -1),
    ),
    LossCase(
        "softmax cross-entropy, positions",
        losses.SoftmaxCrossEntropy(),
        (2, 3),
        _labels,
        _cross_entropy(),
        likelihood=True,
    ),
    LossCase(
        "softmax cross-entropy, positions, smoothing, ignore",
        losses.SoftmaxCrossEntropy(0.2, -1),
        (3, 4),
        _labels_or_ignored,
        _cross_entropy(0.2, -1),
    ),
)


# -- costs: every layer with params under one loss, and every loss over one network -----------------------------------


@dataclass(frozen=True)
class CostCase:
    """A network and a loss, and how to draw a y for outputs."""

    name: str
    layers: tuple[jbp.Layer, ...]
    input: Any
    loss: losses.Loss
    draw_y: Callable[[int, Any], jax.Array]

    @property
    def spec(self) -> Any:
        """The input spec of one example, floats in float32."""
        return spec_of(self.input)

    def cost(self, reduction: str = "mean", **settings: Any) -> jbp.Cost:
        """The cost, in float64 where x64 is on. `settings` are the network's."""
        return jbp.Cost(jbp.Network(self.layers, self.input, **settings), self.loss, reduction)

    def draw(self, cost: jbp.Cost, *repeats: int, seed: int = 0) -> tuple[jax.Array, Any, Any]:
        """(theta, x, y) of N examples, in the cost's dtype, `repeats` times along first axes."""
        network = cost.network
        return (
            draw(seed, jax.ShapeDtypeStruct((*repeats, cost.layout.size), network.dtype)),
            draw(seed + 1, batch(network.input, *repeats, N)),
            self.draw_y(seed + 2, batch(network.output, *repeats, N)),
        )


NETWORKS = tuple(
    CostCase(c.name, (c.layer,), c.input, losses.HalfSquaredError(), draw) for c in LAYERS if jax.tree.leaves(c.params)
)
COSTS = NETWORKS + tuple(
    CostCase(c.name, (jbp.Dense(c.shape[-1]),), (*c.shape[:-1], 2), c.loss, c.draw_y) for c in LOSSES
)


def traits(case: LayerCase | CostCase) -> set[Any]:
    """What a row shows: the class of each layer and loss in it, each setting that is not the default, at as many axes
    of one example as the row's input has; each container in a container; what stands in the context."""
    if isinstance(case, CostCase):
        layers, loss, context = case.layers, [case.loss], ()
    else:
        layers, loss, context = (case.layer,), [], jax.tree.leaves(case.context)
    inside = [layer for outer in layers for _, layer in walk(outer)]
    within = {(type(outer), type(layer)) for outer in inside for _, layer in walk(outer) if len([*walk(layer)]) > 1}
    axes = max(len(leaf.shape) for leaf in jax.tree.leaves(case.spec))
    settings = {
        (type(thing), field.name, axes)
        for thing in (*loss, *inside)
        for field in (fields(thing) if is_dataclass(thing) else ())
        if field.default is not MISSING and getattr(thing, field.name) != field.default
    }
    return {*((type(thing), axes) for thing in (*loss, *inside)), *within, *settings, *(leaf.dtype for leaf in context)}


def covering(cases: Sequence[Any], *names: str) -> tuple[Any, ...]:
    """A few rows of a table that have all `traits` of its rows together: those of these names, then the richest."""
    brings = {case: traits(case) for case in cases}
    chosen = [case for case in cases if case.name in names]
    left = set().union(*brings.values()).difference(*(brings[case] for case in chosen))
    while left:
        chosen.append(max(cases, key=lambda case: len(brings[case] & left)))
        left -= brings[chosen[-1]]
    return tuple(case for case in cases if case in chosen)


def damped(norms: Any) -> Any:
    """Weights of examples from their norms."""
    return 1 / (1 + norms)


def halves(g: Any) -> Any:
    """Something of one gradient."""
    return g[: g.size // 2].sum() ** 2 + (g[g.size // 2 :] ** 3).sum()


def noise(g: Any, w: Any) -> jbp.Noise:
    """McCandlish et al. 2018: E‖mean of B‖² = |G|² + tr Σ/B, for batches of one and of 1/Σ p², solved for both."""
    p = w / w.sum()
    small, big = (g**2).sum(1) @ p, ((p @ g) ** 2).sum()
    one = jnp.ones_like(small)
    each = jnp.array([[one, one], [one, (p**2).sum()]])  # of |G|² and tr Σ
    squared, trace = jnp.linalg.solve(each, jnp.stack([small, big]))
    return jbp.Noise(trace, squared)


# a readout, and the same from the per-example gradients g [N, P] and the weights w [N] of C = Σ_n w_n C_n
READOUTS = (
    (jbp.Gradient(), lambda g, w: w @ g),
    (jbp.PerExampleGradients(), lambda g, w: g),
    (jbp.SquaredNorms(), lambda g, w: (g**2).sum(1)),
    (jbp.SumOfSquares(), lambda g, w: (g**2).sum(0)),
    (jbp.MeanGradient(), lambda g, w: jnp.average(g, 0, w)),
    (jbp.Variance(), lambda g, w: jnp.average((g - jnp.average(g, 0, w)[None]) ** 2, 0, w)),
    (jbp.NoiseScale(), noise),
    (jbp.Gram(), lambda g, w: g @ g.T),
    (jbp.ClippedSum(0.5), lambda g, w: (g * (0.5 / jnp.maximum(0.5, jnp.linalg.norm(g, axis=1)))[:, None]).sum(0)),
    (jbp.ClippedSum(weights=damped), lambda g, w: damped(jnp.linalg.norm(g, axis=1)) @ g),
    (jbp.MapGradients(halves, at_most=2), lambda g, w: jnp.stack([halves(one) for one in g])),
)


def over_calls(table: list[tuple[Callable, str]]) -> Any:
    """The parametrisation of a test over wrong calls and their messages, by these; an address in one is no name."""
    names = [message.partition(" at 0x")[0][:60] for _, message in table]
    return pytest.mark.parametrize(("call", "message"), table, ids=names)


def assert_told(call: Callable, message: str) -> None:
    """The call raises `InputError` with this message, in which […] stands for any words."""
    with pytest.raises(jbp.InputError) as error:
        call()
    told = str(error.value)
    if re.fullmatch(re.escape(message).replace(re.escape("[…]"), ".*"), told) is None:
        assert told == message


def over(cases: tuple[Any, ...]) -> Any:
    """The parametrisation of a test over a table, with the rows' names."""
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)
