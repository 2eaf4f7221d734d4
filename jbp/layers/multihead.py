"""Multi-head self-attention: projections, positions, the core, and a projection back.

    forward    [q, k, v] = x·[w_q, w_k, w_v] + [b_q, b_k, b_v], split into heads; q, k normalised and turned;
               o = attention(q, k, v);  y = o·w_o + b_o
    backward   δo = δ·w_oᵀ, then δq, δk, δv by the core, turned back, and through the norms;
               δx = [δq, δk, δv]·[w_q, w_k, w_v]ᵀ: one product each way
    gradient   of each projection Σ x ⊗ δ and Σ δ; of the norms' gains as in `norm`

Saved: x, what the core saves (q, k, v, o and one number for each row), and with `qk_norm` what the norms save.
Shapes: x, y `[N, T, W]`; q `[N, T, H, D]`, k, v `[N, T, K, D]`. Sources: see `attention`, `rotary`, `norm`; norms of
queries and keys: Henry et al. 2020, arXiv:2010.04245, here with RMS norms, as in later decoders.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..errors import check_whole, is_number
from ..layer import Context, InputError, described, einsum
from ..pair import Outer, Sum
from .attention import DotProductAttention
from .dense import Affine, Dense, Initializer, initialised
from .norm import RMSNorm, Scale
from .rotary import rotated
from .settings import check_flags, check_float_input


class Projections(NamedTuple):
    """Params of `Attention`: four dense layers, and the gains of two norms, None where there are none."""

    q: Affine
    k: Affine
    v: Affine
    out: Affine
    q_norm: Any
    k_norm: Any


@dataclass(frozen=True)
class Attention:
    """Self-attention of `heads` heads on `[N, T, W]`; T ≥ 1, and the output is `[N, T, W]` too.

    `kv_heads`: heads of keys and values, as many as of queries unless given; each serves heads/kv_heads of them.
    `head_width`: D, W/heads unless given. `causal`, `window`, `soft_cap`, `scale`, `implementation`: see
    `DotProductAttention`; `context.mask: [N, T]` says which positions there are. `rope`: the base of rotary positions,
    as in 10_000.0. `qk_norm`: whether each head's q and k go through an `RMSNorm` with a gain. `bias`: whether q, k
    and v have biases; `out_bias`: the same of the way back, `bias` unless given. `weights`: an initialiser.
    """

    heads: int
    kv_heads: int | None = None
    head_width: int | None = None
    causal: bool = False
    window: tuple[int, int] | int | None = None
    rope: float | None = None
    qk_norm: bool = False
    bias: bool = True
    out_bias: bool | None = None
    soft_cap: float | None = None
    scale: float | None = None
    implementation: Any = "xla"
    weights: str | Initializer = "lecun_normal"

    def __post_init__(self):
        check_whole("Attention", heads=self.heads)
        check_flags("Attention", causal=self.causal, qk_norm=self.qk_norm, bias=self.bias)
        for name in ("kv_heads", "head_width"):
            if (given := getattr(self, name)) is not None:
                check_whole("Attention", **{name: given})
        if self.heads % (self.kv_heads or self.heads):
            raise InputError(
                f"Attention: expected heads as a multiple of kv_heads, got {self.heads} and {self.kv_heads}. "
                "Change one of them."
            )
        if self.rope is not None and not (is_number(self.rope) and 0 < self.rope < float("inf")):
            raise InputError(f"Attention: rope must be a base above 0, as in 10_000.0, or None, got {self.rope!r}.")
        _ = self._core

    @property
    def _core(self) -> DotProductAttention:
        return DotProductAttention(self.causal, self.window, self.soft_cap, self.scale, self.implementation)

    def of_heads(self, params: Projections) -> list[list[Any]]:
        """What each query head has to itself: its columns of `q.w` `[W, D]` and of `q.b`, its rows of `out.w` `[D, W]`.

        Keys and values may serve several heads.
        """
        parts = [(params.q.w, 1), (params.out.w, 0), *([] if params.q.b is None else [(params.q.b, 0)])]
        return [list(its) for its in zip(*(np.split(a, self.heads, axis) for a, axis in parts), strict=True)]

    @property
    def _sizes(self) -> tuple[int, int]:
        return self.heads, self.kv_heads or self.heads

    def init(self, key: PRNGKeyArray, x: Any) -> Projections:
        check_float_input("Attention", x, "[N, T, W]", 2, "Give the input an axis of positions and one of features.")
        if len(x.shape) != 2:
            raise InputError(f"Attention: expected x [N, T, W], got {described(x)} without the batch axis. Reshape it.")
        (h, k), width = self._sizes, x.shape[-1]
        if self.head_width is None and width % h:
            raise InputError(
                f"Attention: expected a width that {h} heads divide, got W = {width}. Change one, or give head_width."
            )
        d = self.head_width or width // h
        if self.rope is not None and d % 2:
            raise InputError(
                f"Attention: rotary positions turn pairs of features, got a head's width D = {d}. "
                "Make it even: change heads, or give head_width."
            )
        made = lambda i, out, inside, bias: Affine(
            initialised("weights", self.weights, jax.random.fold_in(key, i), (inside, out), x.dtype),
            jnp.zeros(out, x.dtype) if bias else None,
        )
        norm = Scale(jnp.ones(d, x.dtype), None) if self.qk_norm else None
        back = self.bias if self.out_bias is None else self.out_bias
        parts = [made(i, heads * d, width, self.bias) for i, heads in enumerate((h, k, k))]
        return Projections(parts[0], parts[1], parts[2], made(3, width, h * d, back), norm, norm)

    def forward(self, params: Projections, x: Float[Array, "N T W"], context: Context) -> tuple[Any, Any]:
        if x.ndim != 3 or x.shape[-1] != params.q.w.shape[0]:
            raise InputError(
                f"Attention: expected x [N, T, W = {params.q.w.shape[0]}], got {described(x)}. "
                "Check the width of the layer before."
            )
        joined = _joined(params)
        q, k, v = self._split(_dense(joined).forward(joined, x, context)[0])
        norms: list[Any] = [None, None]
        if self.qk_norm:
            (q, norms[0]), (k, norms[1]) = (
                RMSNorm().forward(p, a, context) for p, a in ((params.q_norm, q), (params.k_norm, k))
            )
        if self.rope is not None:
            q, k = (rotated(a, self.rope) for a in (q, k))
        o, kept = self._core.forward((), (q, k, v), context)
        return _dense(params.out).forward(params.out, o.reshape(*x.shape[:2], -1), context)[0], (x, kept, norms)

    def backward(
        self, params: Projections, feedback: Projections, saved: Any, delta: Float[Array, "N T W"], read: Projections
    ) -> tuple[Any, Projections]:
        x, kept, norms = saved
        n, t, _ = x.shape
        heads = (n, t, self.heads, -1)
        o = self._core.output_of(kept).reshape(n, t, -1)
        delta_o, out = _dense(params.out).backward(params.out, feedback.out, o, delta, read.out)
        (delta_q, delta_k, delta_v), _ = self._core.backward((), (), kept, delta_o.reshape(heads), ())
        if self.rope is not None:
            delta_q, delta_k = (rotated(d, self.rope, back=True) for d in (delta_q, delta_k))
        of_norms: list[Any] = [None, None]
        if self.qk_norm:
            (delta_q, of_norms[0]), (delta_k, of_norms[1]) = (
                RMSNorm().backward(p, f, s, d, r)
                for p, f, s, d, r in (
                    (params.q_norm, feedback.q_norm, norms[0], delta_q, read.q_norm),
                    (params.k_norm, feedback.k_norm, norms[1], delta_k, read.k_norm),
                )
            )
        deltas = [d.reshape(n, t, -1) for d in (delta_q, delta_k, delta_v)]
        delta_x = einsum("nto,io->nti", jnp.concatenate(deltas, -1), _joined(feedback).w).astype(delta.dtype)
        parts = [_read(r, x, d) for r, d in zip((read.q, read.k, read.v), deltas, strict=True)]
        return delta_x, Projections(parts[0], parts[1], parts[2], out, of_norms[0], of_norms[1])

    def _split(self, y: Float[Array, "N T O"]) -> list[Any]:
        """q, k, v by heads."""
        (h, k), (n, t, width) = self._sizes, y.shape
        d = width // (h + 2 * k)
        return [part.reshape(n, t, -1, d) for part in jnp.split(y, (h * d, (h + k) * d), -1)]


def _joined(params: Projections) -> Affine:
    """The three projections of x as one."""
    three = params.q, params.k, params.v
    b = None if params.q.b is None else jnp.concatenate([part.b for part in three])
    return Affine(jnp.concatenate([part.w for part in three], 1), b)


def _dense(params: Affine) -> Dense:
    """The dense layer that has these params."""
    return Dense(params.w.shape[1], params.b is not None)


def _read(read: Affine, x: Any, delta: Any) -> Affine:
    return Affine(read.w(Outer(x, delta)), None if read.b is None else read.b(Sum(delta)))
