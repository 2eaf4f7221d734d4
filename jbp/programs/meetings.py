"""How a parameter meets the data at one equation: a product, a lookup, a convolution, brought into its pair's form."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from .made import Origin
from .replay import aval_of
from .views import Moves, reshaped, transposed


@dataclass(frozen=True)
class Meeting:
    """Where a leaf meets the data. `shape` and `dtype` of what it adds to, with the loops' turns in front.

    `kind`: "outer" (a product), "gather" (a lookup), "patches" (a convolution). `settled(met, delta)` brings what one
    example meets at one turn, and the δ there, into the kind's form. `block` and `moves`: how the leaf, or its block,
    becomes the form's own. `stacked`: the form's first axis counts blocks of the product itself.
    """

    leaf: Origin
    kind: str
    loops: tuple[bool, ...]
    block: tuple[int, ...]
    moves: Moves
    settled: Callable[[Any, Any], tuple[Any, Any]]
    shape: tuple[int, ...]
    dtype: Any
    stacked: bool = False
    window: tuple[Any, ...] = ()


_PENDING: Any = {"shape": (), "dtype": None}  # of a site whose output is not yet known


def product(eqn: JaxprEqn, ins: list[Any], w: int) -> tuple[Meeting, Any]:
    """A leaf `[B, I, O]` times a `[B, T, I]`: B blocks, of which a plain product has none."""
    contracted, batched = eqn.params["dimension_numbers"]
    view, a = ins[w], ins[1 - w]
    (wc, ac), (wb, ab) = (contracted[w], contracted[1 - w]), (batched[w], batched[1 - w])
    wf = [i for i in range(view.value.ndim) if i not in (*wc, *wb)]
    af = [i for i in range(a.ndim) if i not in (*ac, *ab)]
    extent = lambda shape, axes: math.prod(shape[i] for i in axes)
    B = (extent(view.value.shape, wb),) if wb else ()
    I, O, T = extent(view.value.shape, wc), extent(view.value.shape, wf), extent(a.shape, af)
    moves = transposed(view.shape, view.moves, (*wb, *wc, *wf))
    moves = reshaped(view.shape, moves, (*B, I, O))
    # the output's axes: those of the blocks, then the free ones of the left and of the right operand
    mine, its = (len(wf), len(af)) if w == 0 else (len(af), len(wf))
    parts = range(len(wb)), range(len(wb), len(wb) + mine), range(len(wb) + mine, len(wb) + mine + its)
    order = [*parts[0], *(parts[2] if w == 0 else parts[1]), *(parts[1] if w == 0 else parts[2])]

    def settled(a: Any, delta: Any) -> tuple[Any, Any]:
        return a.transpose(*ab, *af, *ac).reshape(*B, T, I), delta.transpose(order).reshape(*B, T, O)

    return Meeting(view.leaf, "outer", view.loops, view.shape, moves, settled, stacked=bool(B), **_PENDING), a


def lookup(eqn: JaxprEqn, ins: list[Any]) -> tuple[Meeting, Any] | None:
    """Rows of a table `[V, …]`, whole ones; None for any other lookup."""
    view, p = ins[0], eqn.params
    shape = view.value.shape
    if len(shape) < 2 or p["slice_sizes"] != (1, *shape[1:]):
        return None
    V, O, clip = shape[0], math.prod(shape[1:]), True
    if eqn.primitive.name == "dynamic_slice":
        index, order = ins[1], tuple(range(len(shape)))
    else:
        d, out = p["dimension_numbers"], aval_of(eqn.outvars[0]).ndim
        axes = (d.collapsed_slice_dims, d.start_index_map, d.operand_batching_dims)
        if axes != ((0,), (0,), ()):
            return None
        index, order = ins[1][..., 0], (*(i for i in range(out) if i not in d.offset_dims), *d.offset_dims)
        clip = p["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP

    def settled(index: Any, delta: Any) -> tuple[Any, Any]:
        # a lookup that does not fill has the nearest row for an index outside; one that fills has none, also below 0
        index = jnp.clip(index, 0, V - 1) if clip else jnp.where(index < 0, V, index)
        return index.reshape(-1), delta.transpose(order).reshape(-1, O)

    moves = reshaped(view.shape, view.moves, (V, O))
    return Meeting(view.leaf, "gather", view.loops, view.shape, moves, settled, **_PENDING), index


def convolution(eqn: JaxprEqn, ins: list[Any]) -> tuple[Meeting, Any] | None:
    """A kernel `[*window, I, O]` on x `[B, *space, C]`; None where groups of examples have kernels of their own."""
    view, p = ins[1], eqn.params
    if p["batch_group_count"] != 1:
        return None
    d = p["dimension_numbers"]
    order = lambda spec: (spec[0], *spec[2:], spec[1])
    o, i, *window = d.rhs_spec
    moves = transposed(view.shape, view.moves, (*window, i, o))

    def settled(x: Any, delta: Any) -> tuple[Any, Any]:
        return x.transpose(order(d.lhs_spec)), delta.transpose(order(d.out_spec))

    strides, padding, *dilations = p["window_strides"], p["padding"], p["lhs_dilation"], p["rhs_dilation"]
    settings = (tuple(strides), tuple(map(tuple, padding)), *map(tuple, dilations), p["feature_group_count"])
    site = Meeting(view.leaf, "patches", view.loops, view.shape, moves, settled, window=settings, **_PENDING)
    return site, ins[0]
