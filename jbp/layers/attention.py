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
from functools import reduce
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..layer import Context, InputError, described, wide_dtype
from .cudnn import attention_by_cudnn
from .settings import check_above_zero, check_flags

TILE = 256  # queries, or keys, of a tile
TILES = 32  # at most: of a longer sequence the tiles are larger


class Heads(NamedTuple):
    """What is mapped over, for each example and each head of keys: `G` = H/K query heads share it."""

    q: Any  # [G, T, D], times c
    k: Any  # [S, D]
    v: Any  # [S, E]
    mask: Any  # [S] or None
    place: Any  # (example, head of keys), or None without a bias


@dataclass(frozen=True)
class DotProductAttention:
    """Attention without parameters on (q, k, v) or (q, k, v, bias), as `jax.nn.dot_product_attention`.

    `causal`: query t sees the keys s ≤ t, counted from the first key. `window`: (left, right), or one number for both:
    query t sees t − left ≤ s ≤ t + right. `soft_cap`: u = cap tanh(z/cap). `scale`: c, 1/√D unless given.
    `context.mask: [N, S]` says which keys there are. A query that sees no key gives 0 (`jax.nn` gives the mean of v).
    A bias `[N, H|1, T|1, S|1]` in x has a delta; one in `context.side["attention_bias"]`, `[N|1, H|1, T|1, S|1]`, has
    none. float64, float32, bfloat16; sums and exponentials in float32.

    `implementation="cudnn"`: the kernel of `jax.nn` on CUDA for bfloat16 and float16, with that function's own reverse;
    a query that sees no key gives 0 there, too. It has no soft cap and no window to the right, and wants E = D in
    eights; with a mask or a bias, which it adds as an array `[N|1, H|1, T, S]`, even T and S.
    """

    causal: bool = False
    window: tuple[int, int] | int | None = None
    soft_cap: float | None = None
    scale: float | None = None
    implementation: Literal["xla", "cudnn"] = "xla"

    def __post_init__(self):
        window = (self.window, self.window) if isinstance(self.window, int | np.integer) else self.window
        if window is not None and (
            not isinstance(window, tuple) or len(window) != 2 or not all(map(_is_count, window))
        ):
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
        if context.mask is not None and (context.mask.shape != k.shape[:2] or context.mask.dtype != bool):
            raise InputError(
                f"DotProductAttention: expected context.mask bool [N, S] = {list(k.shape[:2])}, True at keys that "
                f"count, got {described(context.mask)}."
            )
        if self.implementation == "cudnn":
            o, pull = attention_by_cudnn(q, k, v, bias, side, context.mask, self.scale, self._reach)
            return o, (pull, o)
        biases = tuple(b for b in (bias, side) if b is not None)
        one = lambda head: _forward(self, head, [_of_head(b, head.place, q, k) for b in biases])
        o, log_sum = jax.lax.map(one, _heads(self, q, k, v, context.mask, bool(biases)))
        o = _from_heads(o, q.shape[0]).astype(q.dtype)
        return o, ((q, k, v), bias, o, log_sum, (side, context.mask))

    def backward(
        self, params: tuple, feedback: tuple, saved: Any, delta: Float[Array, "N T H E"], read: Any
    ) -> tuple[tuple, tuple]:
        if self.implementation == "cudnn":
            return saved[0](delta), ()
        (q, k, v), bias, o, log_sum, (side, mask) = saved
        biases = tuple(b for b in (bias, side) if b is not None)
        wide = wide_dtype(q.dtype)
        mean = (o.astype(wide) * delta.astype(wide)).sum(-1)  # δ_t·o_t
        rows = (log_sum, _by_heads(mean[..., None], k.shape[2])[..., 0], _by_heads(delta, k.shape[2]))

        def one(delta_bias: Any, head: Any) -> Any:
            head, rows = head
            of_head = [_of_head(b, head.place, q, k) for b in biases]
            log_sum, mean, delta = rows
            deltas, own = _backward(self, head, of_head, log_sum, mean, delta, bias is not None)
            if own is not None:
                n, h = (at if size > 1 else 0 for at, size in zip(head.place, delta_bias.shape[:2], strict=True))
                delta_bias = delta_bias.at[n, h].add(own)
            return delta_bias, deltas

        start = None if bias is None else jnp.zeros(_grouped(bias, q, k).shape, wide)
        heads = _heads(self, q, k, v, mask, bool(biases))
        delta_bias: Any
        delta_bias, (delta_q, delta_k, delta_v) = jax.lax.scan(one, start, (heads, rows))
        n = q.shape[0]
        deltas = [_from_heads(delta_q, n), *(_from_heads(d[:, None], n) for d in (delta_k, delta_v))]
        found = tuple(d.astype(a.dtype) for d, a in zip(deltas, (q, k, v), strict=True))
        return found if bias is None else (*found, delta_bias.reshape(bias.shape).astype(bias.dtype)), ()

    def output_of(self, saved: Any) -> Float[Array, "N T H E"]:
        """o, which forward saved: who projects it needs it in reverse."""
        return saved[1] if self.implementation == "cudnn" else saved[2]

    # -- which pairs see each other ---------------------------------------------------------------------------------

    @property
    def _reach(self) -> tuple[int | None, int | None]:
        """(left, right): how many keys a query sees on each side of its own place; None is all."""
        window: Any = self.window or (None, None)
        return window[0], 0 if self.causal else window[1]

    def _visible(self, t: int, queries: int, s: int, keys: int) -> Array | None:
        """[queries, keys] from query t and key s on; None where each sees each."""
        left, right = self._reach
        if (right is None or s + keys - 1 <= t + right) and (left is None or t + queries - 1 - left <= s):
            return None
        at = lambda start, axis: start + jax.lax.broadcasted_iota(np.int32, (queries, keys), axis)
        far = at(s, 1) - at(t, 0)
        sides = [far <= right] * (right is not None) + ([] if left is None else [far >= -left])
        return reduce(jnp.logical_and, sides)

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
        if len({a.dtype for a in (q, k, v)}) > 1:
            raise InputError(
                f"DotProductAttention: expected q, k, v of one dtype, got {described((q, k, v))}. Cast them."
            )
        if bias:
            _check_bias(bias[0], q, k, "bias", (q.shape[0],))
        return q, k, v, bias[0] if bias else None


# -- one head of keys -------------------------------------------------------------------------------------------------


def _product(a: Any, b: Any, axis_a: int, axis_b: int) -> Any:
    """The sum over one axis of each of two matrices, in at least float32. Matrices alone: XLA has them 2× as fast."""
    return jax.lax.dot_general(
        a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=wide_dtype(jnp.result_type(a))
    )


def _tiles(length: int) -> list[tuple[int, int]]:
    """(begin, end) of the tiles of a sequence."""
    size = max(TILE, -(-length // TILES))
    return [(a, min(a + size, length)) for a in range(0, length, size)]


def _span(begin: int, end: int, length: int, before: int | None, after: int | None) -> tuple[int, int]:
    """The places that those from begin to end see, if each sees so many before and after itself; at least one."""
    low = 0 if before is None else min(max(0, begin - before), length - 1)
    high = length if after is None else min(length, end + after)
    return low, max(high, low + 1)


def _scores(layer: DotProductAttention, z: Any, biases: Any) -> Any:
    """u of z = c q·k."""
    for bias in biases:
        z = z + bias.astype(z.dtype)
    return z if layer.soft_cap is None else layer.soft_cap * jnp.tanh(z / layer.soft_cap)


def _forward(layer: DotProductAttention, head: Heads, biases: Any) -> tuple[Any, Any]:
    """(o `[G, T, E]`, ℓ `[G, T]`), tile by tile of the queries."""
    (g, t, d), s = head.q.shape, head.k.shape[0]
    outs: list[Any] = []
    logs: list[Any] = []
    for a, e in _tiles(t):
        head, outs = _one_after_another(head, outs)
        low, high = _span(a, e, s, *layer._reach)
        shape = (g, e - a, high - low)
        z = _product(head.q[:, a:e].reshape(-1, d), head.k[low:high], 1, 1).reshape(shape)
        u = _scores(layer, z, [_part(b, (a, e), (low, high)) for b in biases])
        seen = _seen(layer, head, (a, e), (low, high))
        u = u if seen is None else jnp.where(jnp.broadcast_to(seen[None], shape), u, -jnp.inf)
        top = jax.lax.stop_gradient(u.max(-1, keepdims=True))  # any shift gives the same
        top = top if seen is None else jnp.where(top > -jnp.inf, top, 0)
        p = jnp.exp(u - top)
        total = p.sum(-1, keepdims=True)
        some = total if seen is None else jnp.where(total > 0, total, 1)  # a query may see no key
        o = _product(p.reshape(-1, high - low).astype(head.v.dtype), head.v[low:high], 1, 0)
        outs.append(o.reshape(*shape[:2], -1) / some)
        log = top + jnp.log(some)
        logs.append((log if seen is None else jnp.where(total > 0, log, jnp.inf))[..., 0])
    return jnp.concatenate(outs, 1), jnp.concatenate(logs, 1)


def _backward(
    layer: DotProductAttention, head: Heads, biases: Any, log_sum: Any, mean: Any, delta: Any, with_bias: bool
) -> tuple[tuple[Any, Any, Any], Any]:
    """((δq `[G, T, D]`, δk `[S, D]`, δv `[S, E]`), δbias), tile by tile of the keys, each as `[keys, queries]`."""
    (g, t, d), s, left_right = head.q.shape, head.k.shape[0], layer._reach
    delta_q = jnp.zeros((d, g, t), log_sum.dtype)
    own = jnp.zeros(biases[0].shape, log_sum.dtype) if with_bias else None
    deltas_k: list[Any] = []
    deltas_v: list[Any] = []
    for a, e in _tiles(s):
        head, deltas_k, deltas_v, delta_q = _one_after_another(head, deltas_k, deltas_v, delta_q)
        low, high = _span(a, e, t, *left_right[::-1])
        shape, flat = (e - a, g, high - low), (e - a, g * (high - low))
        q, of_o = (rows[:, low:high].reshape(flat[1], -1) for rows in (head.q, delta))
        turned = [_part(b, (low, high), (a, e)).transpose(2, 0, 1) for b in biases]
        u = _scores(layer, _product(head.k[a:e], q, 1, 1).reshape(shape), turned)
        p = jnp.exp(u - log_sum[None, :, low:high])
        if (seen := _seen(layer, head, (low, high), (a, e))) is not None:
            p = jnp.where(jnp.broadcast_to(seen.T[:, None], shape), p, 0)
        deltas_v.append(_product(p.reshape(flat).astype(delta.dtype), of_o, 1, 0))
        of_p = _product(head.v[a:e], of_o, 1, 1).reshape(shape)
        of_z = p * (of_p - mean[None, :, low:high])
        if layer.soft_cap is not None:
            of_z = of_z * (1 - jnp.square(u / layer.soft_cap))
        if own is not None:
            own = _added_up(own, of_z.transpose(1, 2, 0), (low, high), (a, e))
        of_z = of_z.reshape(flat).astype(head.q.dtype)
        deltas_k.append(_product(of_z, q, 1, 0))
        delta_q = delta_q.at[:, :, low:high].add(_product(head.k[a:e], of_z, 0, 0).reshape(d, *shape[1:]))
    scale = _scale(layer, d)
    return (scale * delta_q.transpose(1, 2, 0), jnp.concatenate(deltas_k), jnp.concatenate(deltas_v)), own


def _one_after_another(head: Heads, *done: Any) -> Any:
    """What the next tile needs, and what was done before it: else XLA begins with all tiles, and holds them all."""
    q, k, v, *done = jax.lax.optimization_barrier((head.q, head.k, head.v, *done))
    return head._replace(q=q, k=k, v=v), *done


def _seen(layer: DotProductAttention, head: Heads, queries: tuple[int, int], keys: tuple[int, int]) -> Any:
    """[queries, keys]: which see each other, by the place and by the mask; None where all do."""
    (t, t_end), (s, s_end) = queries, keys
    seen = layer._visible(t, t_end - t, s, s_end - s)
    if head.mask is None:
        return seen
    mask = jnp.broadcast_to(head.mask[None, s:s_end], (t_end - t, s_end - s))
    return mask if seen is None else seen & mask


# -- heads, and what each of them has of a bias -----------------------------------------------------------------------


def _scale(layer: DotProductAttention, d: int) -> float:
    return 1 / math.sqrt(d) if layer.scale is None else layer.scale


def _by_heads(x: Float[Array, "N T H D"], k: int) -> Float[Array, "M G T D"]:
    """One entry for each example and each head of keys."""
    n, t, h, d = x.shape
    return x.reshape(n, t, k, h // k, d).transpose(0, 2, 3, 1, 4).reshape(n * k, h // k, t, d)


def _from_heads(x: Float[Array, "M G T D"], n: int) -> Float[Array, "N T H D"]:
    """The way back."""
    m, g, t, d = x.shape
    return x.reshape(n, m // n, g, t, d).transpose(0, 3, 1, 2, 4).reshape(n, t, m // n * g, d)


def _heads(layer: DotProductAttention, q: Any, k: Any, v: Any, mask: Any, biased: bool) -> Heads:
    n, _, heads, d = k.shape
    scaled = (q.astype(wide_dtype(q.dtype)) * _scale(layer, d)).astype(q.dtype)
    mask = None if mask is None else jnp.repeat(mask, heads, axis=0)
    place = tuple(at.ravel() for at in np.indices((n, heads), np.int32)) if biased else None
    return Heads(_by_heads(scaled, heads), _by_heads(k, heads)[:, 0], _by_heads(v, heads)[:, 0], mask, place)


def _grouped(bias: Any, q: Any, k: Any) -> Any:
    """A bias `[N|1, H|1, T|1, S|1]` as `[N|1, K|1, G|1, T|1, S|1]`."""
    n, h, *rest = bias.shape
    return bias.reshape(n, *((1, 1) if h == 1 else (k.shape[2], q.shape[2] // k.shape[2])), *rest)


def _of_head(bias: Any, place: Any, q: Any, k: Any) -> Any:
    """What an example's head of keys has of it, `[G|1, T|1, S|1]`."""
    bias = _grouped(bias, q, k)
    return bias[tuple(at if size > 1 else 0 for at, size in zip(place, bias.shape[:2], strict=True))]


def _part(bias: Any, queries: tuple[int, int], keys: tuple[int, int]) -> Any:
    """A tile of it, where an axis is not 1."""
    for axis, (begin, end) in ((1, queries), (2, keys)):
        bias = bias if bias.shape[axis] == 1 else jax.lax.slice_in_dim(bias, begin, end, axis=axis)
    return bias


def _added_up(total: Any, tile: Any, queries: tuple[int, int], keys: tuple[int, int]) -> Any:
    """A bias's delta, with a tile's part added."""
    ones = [i for i, size in enumerate(total.shape) if size == 1]
    places = [slice(None), *(slice(None) if total.shape[i] == 1 else slice(*at) for i, at in ((1, queries), (2, keys)))]
    return total.at[tuple(places)].add(tile.sum(ones, keepdims=True))


def _side_bias(context: Context) -> Any:
    return context.side.get("attention_bias") if isinstance(context.side, Mapping) else None


def _check_bias(bias: Any, q: Any, k: Any, name: str, examples: tuple[int, ...]) -> None:
    wanted = (examples, (1, q.shape[2]), (1, q.shape[1]), (1, k.shape[1]))
    if getattr(bias, "ndim", 0) != 4 or any(size not in may for size, may in zip(bias.shape, wanted, strict=True)):
        sizes = ", ".join(str(max(may)) + ("|1" if 1 in may else "") for may in wanted)
        raise InputError(f"DotProductAttention: expected {name} [N, H, T, S] = [{sizes}], got {described(bias)}.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 0)
