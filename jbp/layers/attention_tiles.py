"""Attention of one head of keys, tile by tile: no array of `[T, S]` numbers is kept or made.

Forward goes through the queries in tiles, reverse through the keys, where four of its five products have the fast form;
tiles of pairs that don't see each other are left out. The equations stand in `attention`.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..layer import wide_dtype

TILE = 256  # queries, or keys, of a tile
TILES = 32  # at most: of a longer sequence the tiles are larger
AT_ONCE = 1 << 26  # numbers of one tile of all heads that an accelerator computes together
IN_CACHE = 1 << 18  # the same on a CPU


class Heads(NamedTuple):
    """What is mapped over, for each example and each head of keys: `G` = H/K query heads share it."""

    q: Any  # [G, T, D], times c
    k: Any  # [S, D]
    v: Any  # [S, E]
    mask: Any  # [S] or None
    place: Any  # (example, head of keys), or None without a bias


@dataclass(frozen=True)
class Weighting:
    """How a query weighs keys: by u = cap tanh(z/cap), or z, of z = c q·k, and of those that it sees.

    `reach`: (left, right), how many keys it sees on each side of its own place; None is all.
    """

    scale: float  # c
    soft_cap: float | None
    reach: tuple[int | None, int | None]

    def visible(self, t: int, queries: int, s: int, keys: int) -> Array | None:
        """[queries, keys] from query t and key s on; None where each sees each."""
        left, right = self.reach
        if (right is None or s + keys - 1 <= t + right) and (left is None or t + queries - 1 - left <= s):
            return None
        at = lambda start, axis: start + jax.lax.broadcasted_iota(np.int32, (queries, keys), axis)
        far = at(s, 1) - at(t, 0)
        sides = [far <= right] * (right is not None) + ([] if left is None else [far >= -left])
        return reduce(jnp.logical_and, sides)


def _product(a: Any, b: Any, axis_a: int, axis_b: int) -> Any:
    """The sum over one axis of each of two matrices, in at least float32."""
    return jax.lax.dot_general(
        a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=wide_dtype(jnp.result_type(a))
    )


def tile_size(length: int) -> int:
    """The queries, or keys, of a tile of a sequence so long."""
    return max(TILE, -(-length // TILES))


def _tiles(length: int) -> list[tuple[int, int]]:
    """(begin, end) of the tiles of a sequence."""
    size = tile_size(length)
    return [(a, min(a + size, length)) for a in range(0, length, size)]


def heads_at_once(g: int, length: int) -> int:
    """How many heads of keys are computed together, for `g` query heads each.

    On a CPU so many as stay in cache: XLA splits a product of a single small matrix over its cores badly. 4 × 256
    positions of 4 heads of 64 took 38 ms one after the other on two cores, and take 24. An accelerator needs many, or
    waits for its next kernel: 8 × 1024 positions of 12 heads of 64 took an H200 13.9 ms one after the other, and take
    1.6 ms together.
    """
    most = IN_CACHE if jax.default_backend() == "cpu" else AT_ONCE
    return max(most // (g * tile_size(length) * length), 1)


def _span(begin: int, end: int, length: int, before: int | None, after: int | None) -> tuple[int, int]:
    """The places that those from begin to end see, if each sees so many before and after itself; at least one."""
    low = 0 if before is None else min(max(0, begin - before), length - 1)
    high = length if after is None else min(length, end + after)
    return low, max(high, low + 1)


def _scores(kind: Weighting, z: Any, biases: Any) -> Any:
    """u of z = c q·k."""
    for bias in biases:
        z = z + bias.astype(z.dtype)
    return z if kind.soft_cap is None else kind.soft_cap * jnp.tanh(z / kind.soft_cap)


def forward_head(kind: Weighting, head: Heads, biases: Any) -> tuple[Any, Any]:
    """(o `[G, T, E]`, ℓ `[G, T]`), tile by tile of the queries."""
    (g, t, d), s = head.q.shape, head.k.shape[0]
    outs: list[Any] = []
    logs: list[Any] = []
    for a, e in _tiles(t):
        head, outs = _one_after_another(head, outs)
        low, high = _span(a, e, s, *kind.reach)
        shape = (g, e - a, high - low)
        z = _product(head.q[:, a:e].reshape(-1, d), head.k[low:high], 1, 1).reshape(shape)
        u = _scores(kind, z, [_part(b, (a, e), (low, high)) for b in biases])
        seen = _seen(kind, head, (a, e), (low, high))
        u = u if seen is None else jnp.where(jnp.broadcast_to(seen[None], shape), u, -jnp.inf)
        blind = seen is not None or bool(biases)  # a query may see no key; a bias may be −inf
        top = jax.lax.stop_gradient(u.max(-1, keepdims=True))  # any shift gives the same
        top = jnp.where(top == -jnp.inf, 0, top) if blind else top
        p = jnp.exp(u - top)
        total = p.sum(-1, keepdims=True)
        some = jnp.where(total == 0, 1, total) if blind else total
        o = _product(p.reshape(-1, high - low).astype(head.v.dtype), head.v[low:high], 1, 0)
        outs.append(o.reshape(*shape[:2], -1) / some)
        log = top + jnp.log(some)
        logs.append((jnp.where(total == 0, jnp.inf, log) if blind else log)[..., 0])
    return jnp.concatenate(outs, 1), jnp.concatenate(logs, 1)


def backward_head(
    kind: Weighting, head: Heads, biases: Any, log_sum: Any, mean: Any, delta: Any, with_bias: bool
) -> tuple[tuple[Any, Any, Any], Any]:
    """((δq `[G, T, D]`, δk `[S, D]`, δv `[S, E]`), δbias), tile by tile of the keys, each as `[keys, queries]`."""
    (g, t, d), s, left_right = head.q.shape, head.k.shape[0], kind.reach
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
        u = _scores(kind, _product(head.k[a:e], q, 1, 1).reshape(shape), turned)
        p = jnp.exp(u - log_sum[None, :, low:high])
        if (seen := _seen(kind, head, (low, high), (a, e))) is not None:
            p = jnp.where(jnp.broadcast_to(seen.T[:, None], shape), p, 0)
        deltas_v.append(_product(p.reshape(flat).astype(delta.dtype), of_o, 1, 0))
        of_p = _product(head.v[a:e], of_o, 1, 1).reshape(shape)
        of_z = p * (of_p - mean[None, :, low:high])
        if kind.soft_cap is not None:
            of_z = of_z * (1 - jnp.square(u / kind.soft_cap))
        if own is not None:
            own = _added_up(own, of_z.transpose(1, 2, 0), (low, high), (a, e))
        of_z = of_z.reshape(flat).astype(head.q.dtype)
        deltas_k.append(_product(of_z, q, 1, 0))
        delta_q = delta_q.at[:, :, low:high].add(_product(head.k[a:e], of_z, 0, 0).reshape(d, *shape[1:]))
    return (kind.scale * delta_q.transpose(1, 2, 0), jnp.concatenate(deltas_k), jnp.concatenate(deltas_v)), own


def _one_after_another(head: Heads, *done: Any) -> Any:
    """What the next tile needs, and what was done before it: else XLA begins with all tiles, and holds them all."""
    q, k, v, *done = jax.lax.optimization_barrier((head.q, head.k, head.v, *done))
    return head._replace(q=q, k=k, v=v), *done


def _seen(kind: Weighting, head: Heads, queries: tuple[int, int], keys: tuple[int, int]) -> Any:
    """[queries, keys]: which see each other, by the place and by the mask; None where all do."""
    (t, t_end), (s, s_end) = queries, keys
    seen = kind.visible(t, t_end - t, s, s_end - s)
    if head.mask is None:
        return seen
    mask = jnp.broadcast_to(head.mask[None, s:s_end], (t_end - t, s_end - s))
    return mask if seen is None else seen & mask


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
