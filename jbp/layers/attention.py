"""Attention: the values, weighted by how well their keys fit a query.

    forward    z_ts = c q_t·k_s + bias_ts,   u = cap tanh(z/cap), or z,   p_ts = eᵘ_ts / Σ_r eᵘ_tr,   o_t = Σ_s p_ts v_s
    backward   δu_ts = p_ts (δ_t·v_s − δ_t·o_t),   δz = δu (1 − (u/cap)²),   δv_s = Σ_t p_ts δ_t,
               δq_t = c Σ_s δz_ts k_s,   δk_s = c Σ_t δz_ts q_t,   δbias = δz

The sums go over the pairs of a query t and a key s that see each other. Saved: q, k, v, o, and ℓ_t = log Σ_s eᵘ_ts, by
which p = e^{u−ℓ} is computed again: no array of `[T, S]` numbers is kept or made. Forward goes through the queries in
tiles, reverse through the keys, where four of its five products have the fast form; tiles of pairs that don't see each
other are left out. Shapes: q `[N, T, H, D]`, k `[N, S, K, D]`, v `[N, S, K, E]`, o `[N, T, H, E]`; query head h meets
the keys of head h // (H/K). Source: Vaswani et al. 2017, arXiv:1706.03762; recomputation by tiles: Rabe & Staats 2021,
arXiv:2112.05682, Dao et al. 2022, arXiv:2205.14135; grouped queries: Ainslie et al. 2023, arXiv:2305.13245.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..errors import is_whole
from ..layer import Context, InputError, described, wide_dtype
from .attention_tiles import Heads, Weighting, backward_head, forward_head, heads_at_once
from .cudnn import attention_by_cudnn, has_no_kernel
from .settings import check_above_zero, check_flags


@dataclass(frozen=True)
class DotProductAttention:
    """Attention without parameters on (q, k, v) or (q, k, v, bias), as `jax.nn.dot_product_attention`.

    `causal`: query t sees the keys s ≤ t, counted from the first key. `window`: (left, right), or one number for both:
    query t sees t − left ≤ s ≤ t + right. `soft_cap`: u = cap tanh(z/cap). `scale`: c, 1/√D unless given.
    `context.mask: [N, S]` says which keys there are. A query that sees no key gives 0 (`jax.nn` gives the mean of v).
    A bias `[N, H|1, T|1, S|1]` in x has a delta; one in `context.side["attention_bias"]`, `[N|1, H|1, T|1, S|1]`, has
    none; −inf in one leaves a key out, unless there is a soft cap. float64, float32, bfloat16; sums and exponentials in
    float32.

    `implementation="cudnn"`: the kernel of `jax.nn` on CUDA for bfloat16 and float16, with that function's own reverse;
    a query that sees no key gives 0 there, too. It has no soft cap and no window to the right, and wants E = D in
    eights; with a mask or a bias, which it adds as an array `[N|1, H|1, T, S]`, even T and S. In float64, as a shadow
    is, XLA runs it.
    """

    causal: bool = False
    window: tuple[int, int] | int | None = None
    soft_cap: float | None = None
    scale: float | None = None
    implementation: Literal["xla", "cudnn"] = "xla"

    def __post_init__(self):
        window = (self.window, self.window) if isinstance(self.window, int | np.integer) else self.window
        counts = window is None or (isinstance(window, tuple) and len(window) == 2 and all(map(is_whole, window)))
        if not counts or (window is not None and min(window) < 0):
            raise InputError(
                f"DotProductAttention: window must be (left, right), whole numbers of at least 0, got {self.window!r}."
            )
        object.__setattr__(self, "window", window)
        check_flags("DotProductAttention", causal=self.causal)
        given = {name: getattr(self, name) for name in ("soft_cap", "scale")}
        check_above_zero("DotProductAttention", **{name: value for name, value in given.items() if value is not None})
        if self.implementation not in ("xla", "cudnn"):
            raise InputError(
                f"DotProductAttention: implementation must be 'xla' or 'cudnn', got {self.implementation!r}."
            )
        if self.implementation == "cudnn" and self.soft_cap is not None:
            raise InputError("DotProductAttention: cudnn has no soft cap. Write implementation='xla'.")

    def init(self, key: PRNGKeyArray, x: Any) -> tuple:
        self._check(jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s.shape), s.dtype), x))
        return ()

    def forward(self, params: tuple, x: tuple, context: Context) -> tuple[Float[Array, "N T H E"], Any]:
        q, k, v, bias = self._check(x)
        if (side := _side_bias(context)) is not None:
            _check_bias(side, q, k, "context.side['attention_bias']", (1, q.shape[0]))
        mask = context.mask
        if mask is not None and (np.shape(mask) != k.shape[:2] or not hasattr(mask, "dtype") or mask.dtype != bool):
            raise InputError(
                f"DotProductAttention: expected context.mask bool [N, S] = {list(k.shape[:2])}, True at keys that "
                f"count, got {described(context.mask)}."
            )
        kind, biases = self._weighting(q.shape[-1]), tuple(b for b in (bias, side) if b is not None)
        if self.implementation == "cudnn" and not has_no_kernel(q):
            o, pull = attention_by_cudnn(q, k, v, bias, side, context.mask, self.scale, kind.reach)
            return o, (pull, o)
        one = lambda head: forward_head(kind, head, [_of_head(b, head.place, q, k) for b in biases])
        heads = _heads(kind, q, k, v, context.mask, bool(biases))
        o, log_sum = jax.lax.map(one, heads, batch_size=_at_once(heads))
        o = _from_heads(o, q.shape[0]).astype(q.dtype)
        return o, ((q, k, v), bias, o, log_sum, (side, context.mask))

    def backward(
        self, params: tuple, feedback: tuple, saved: Any, delta: Float[Array, "N T H E"], read: Any
    ) -> tuple[tuple, tuple]:
        if len(saved) == 2:
            return saved[0](delta), ()
        (q, k, v), bias, o, log_sum, (side, mask) = saved
        kind, biases = self._weighting(q.shape[-1]), tuple(b for b in (bias, side) if b is not None)
        wide = wide_dtype(q.dtype)
        mean = (o.astype(wide) * delta.astype(wide)).sum(-1)  # δ_t·o_t
        rows = (log_sum, _by_heads(mean[..., None], k.shape[2])[..., 0], _by_heads(delta, k.shape[2]))

        def one(head: Any, rows: Any) -> Any:
            of_head = [_of_head(b, head.place, q, k) for b in biases]
            log_sum, mean, delta = rows
            return backward_head(kind, head, of_head, log_sum, mean, delta, bias is not None)

        def add(delta_bias: Any, part: Any) -> Any:
            deltas, own = one(*part) if at_once is None else jax.vmap(one)(*part)
            if own is not None:
                n, h = (at * int(size > 1) for at, size in zip(part[0].place, delta_bias.shape[:2], strict=True))
                delta_bias = delta_bias.at[n, h].add(own)
            return delta_bias, deltas

        start = None if bias is None else jnp.zeros(_grouped(bias, q, k).shape, wide)
        heads = _heads(kind, q, k, v, mask, bool(biases))
        at_once = _at_once(heads)
        parts = (heads, rows) if at_once is None else _in_parts((heads, rows), at_once)
        delta_bias: Any
        delta_bias, deltas = jax.lax.scan(add, start, parts)
        delta_q, delta_k, delta_v = deltas if at_once is None else jax.tree.map(_joined, deltas)
        n = q.shape[0]
        deltas = [_from_heads(delta_q, n), *(_from_heads(d[:, None], n) for d in (delta_k, delta_v))]
        found = tuple(d.astype(a.dtype) for d, a in zip(deltas, (q, k, v), strict=True))
        return found if bias is None else (*found, delta_bias.reshape(bias.shape).astype(bias.dtype)), ()

    def output_of(self, saved: Any) -> Float[Array, "N T H E"]:
        """o, which forward saved: who projects it needs it in reverse."""
        return saved[1] if len(saved) == 2 else saved[2]

    def _weighting(self, d: int) -> Weighting:
        window: Any = self.window or (None, None)
        scale = 1 / math.sqrt(d) if self.scale is None else self.scale
        return Weighting(scale, self.soft_cap, (window[0], 0 if self.causal else window[1]))

    # -- errors -----------------------------------------------------------------------------------------------------

    def _check(self, x: Any) -> tuple[Any, Any, Any, Any]:
        if not isinstance(x, tuple | list) or len(x) not in (3, 4) or not all(hasattr(a, "ndim") for a in x):
            raise InputError(f"DotProductAttention: expected x as (q, k, v) or (q, k, v, bias), got {described(x)}.")
        q, k, v, *bias = x
        if any(a.ndim != 4 or not jnp.issubdtype(a.dtype, jnp.floating) for a in (q, k, v)) or (
            k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]
        ):
            raise InputError(
                "DotProductAttention: expected q [N, T, H, D], k [N, S, K, D], v [N, S, K, E], floats, got "
                f"{described((q, k, v))}. Split the width into heads first."
            )
        if not k.shape[2] or q.shape[2] % k.shape[2]:
            raise InputError(
                f"DotProductAttention: expected heads of queries H as a multiple of the keys' K, got H = {q.shape[2]} "
                f"and K = {k.shape[2]}. Change one of them."
            )
        if 0 in (*q.shape, *k.shape, *v.shape):
            raise InputError(
                f"DotProductAttention: expected at least 1 of each axis, got {described((q, k, v))}. Skip the call."
            )
        if len({a.dtype for a in (q, k, v)}) > 1:
            raise InputError(
                f"DotProductAttention: expected q, k, v of one dtype, got {described((q, k, v))}. Cast them."
            )
        if bias:
            _check_bias(bias[0], q, k, "bias", (q.shape[0],))
        return q, k, v, bias[0] if bias else None


# -- heads, and what each of them has of a bias -----------------------------------------------------------------------


def _by_heads(x: Float[Array, "N T H D"], k: int) -> Float[Array, "M G T D"]:
    """One entry for each example and each head of keys."""
    n, t, h, d = x.shape
    return x.reshape(n, t, k, h // k, d).transpose(0, 2, 3, 1, 4).reshape(n * k, h // k, t, d)


def _from_heads(x: Float[Array, "M G T D"], n: int) -> Float[Array, "N T H D"]:
    """The way back."""
    m, g, t, d = x.shape
    return x.reshape(n, m // n, g, t, d).transpose(0, 3, 1, 2, 4).reshape(n, t, m // n * g, d)


def _heads(kind: Weighting, q: Any, k: Any, v: Any, mask: Any, biased: bool) -> Heads:
    n, _, heads, _ = k.shape
    scaled = (q.astype(wide_dtype(q.dtype)) * kind.scale).astype(q.dtype)
    if mask is not None:  # what stands at a key that isn't there, NaN too, must not meet a weight of 0
        k, v = (jnp.where(jnp.broadcast_to(mask[:, :, None, None], a.shape), a, 0) for a in (k, v))
        mask = jnp.repeat(mask, heads, axis=0)
    place = tuple(at.ravel() for at in np.indices((n, heads), np.int32)) if biased else None
    return Heads(_by_heads(scaled, heads), _by_heads(k, heads)[:, 0], _by_heads(v, heads)[:, 0], mask, place)


def _at_once(heads: Heads) -> int | None:
    """How many entries are computed together, a number that divides all of them; None is one after the other."""
    m, g = heads.q.shape[:2]
    most = heads_at_once(g, max(heads.q.shape[2], heads.k.shape[1]))
    return None if most == 1 else next(n for n in range(min(m, most), 0, -1) if m % n == 0)


def _in_parts(tree: Any, size: int) -> Any:
    return jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), tree)


def _joined(a: Any) -> Any:
    return a.reshape(-1, *a.shape[2:])


def _grouped(bias: Any, q: Any, k: Any) -> Any:
    """A bias `[N|1, H|1, T|1, S|1]` as `[N|1, K|1, G|1, T|1, S|1]`."""
    n, h, *rest = bias.shape
    return bias.reshape(n, *((1, 1) if h == 1 else (k.shape[2], q.shape[2] // k.shape[2])), *rest)


def _of_head(bias: Any, place: Any, q: Any, k: Any) -> Any:
    """What an example's head of keys has of it, `[G|1, T|1, S|1]`."""
    bias = _grouped(bias, q, k)
    return bias[tuple(at if size > 1 else 0 for at, size in zip(place, bias.shape[:2], strict=True))]


def _side_bias(context: Context) -> Any:
    return context.side.get("attention_bias") if isinstance(context.side, Mapping) else None


def _check_bias(bias: Any, q: Any, k: Any, name: str, examples: tuple[int, ...]) -> None:
    wanted = (examples, (1, q.shape[2]), (1, q.shape[1]), (1, k.shape[1]))
    if getattr(bias, "ndim", 0) != 4 or any(size not in may for size, may in zip(bias.shape, wanted, strict=True)):
        sizes = ", ".join(str(max(may)) + ("|1" if 1 in may else "") for may in wanted)
        raise InputError(f"DotProductAttention: expected {name} [N, H, T, S] = [{sizes}], got {described(bias)}.")
    if not jnp.issubdtype(bias.dtype, jnp.floating):
        raise InputError(
            f"DotProductAttention: expected {name} as floats, which are added, got {described(bias)}. "
            "To leave keys out by a mask, write jnp.where(mask, 0.0, -jnp.inf)."
        )
