"""A parameter seen through what only moves its numbers, or some of them: reshapes, transposes, slices.

`Moves` is a sequence of `("reshape", shape)`, `("transpose", axes)` and `("slice", ((start, end), …))`, kept as short
as it can be: moves that change nothing are left out, and a transpose of axes of size 1 is a reshape. So a leaf that is
seen as it is has the moves ().
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

Moves = tuple[tuple[str, tuple[Any, ...]], ...]


def seen(shape: tuple[int, ...], moves: Moves) -> tuple[int, ...]:
    """The shape in which a leaf is seen."""
    for kind, to in moves:
        if kind == "slice":
            shape = tuple(end - start for start, end in to)
        else:
            shape = to if kind == "reshape" else tuple(shape[i] for i in to)
    return shape


def reshaped(shape: tuple[int, ...], moves: Moves, to: Sequence[int]) -> Moves:
    """The moves of a leaf of this shape, and then a reshape."""
    if moves and moves[-1][0] == "reshape":
        moves = moves[:-1]
    to = tuple(map(int, to))
    return moves if to == seen(shape, moves) else (*moves, ("reshape", to))


def transposed(shape: tuple[int, ...], moves: Moves, axes: Sequence[int]) -> Moves:
    """The moves of a leaf of this shape, and then a transpose."""
    axes, now = tuple(map(int, axes)), seen(shape, moves)
    real = [i for i in axes if now[i] != 1]
    if real == sorted(real):
        return reshaped(shape, moves, [now[i] for i in axes])
    if moves and moves[-1][0] == "transpose":
        return transposed(shape, moves[:-1], [moves[-1][1][i] for i in axes])
    return (*moves, ("transpose", axes))


def sliced(shape: tuple[int, ...], moves: Moves, starts: Sequence[int], ends: Sequence[int]) -> Moves:
    """The moves of a leaf of this shape, and then a slice without strides."""
    parts = tuple((int(start), int(end)) for start, end in zip(starts, ends, strict=True))
    return moves if parts == tuple((0, n) for n in seen(shape, moves)) else (*moves, ("slice", parts))


def disjoint(one: Moves, two: Moves) -> bool:
    """Whether two moves of a leaf begin with slices that have no number in common."""
    if not one or not two or one[0][0] != "slice" or two[0][0] != "slice":
        return False
    return any(a >= d or c >= b for (a, b), (c, d) in zip(one[0][1], two[0][1], strict=True))


def moved(a: Any, moves: Moves, lead: int = 0) -> Any:
    """An array like the leaf, in the shape in which the leaf is seen; `lead` axes in front stay where they are."""
    front = a.shape[:lead]
    for kind, to in moves:
        if kind == "slice":
            a = a[(slice(None),) * lead + tuple(slice(*part) for part in to)]
        else:
            a = a.reshape(*front, *to) if kind == "reshape" else a.transpose(*range(lead), *(lead + i for i in to))
    return a


def moved_back(a: Any, shape: tuple[int, ...], moves: Moves, lead: int = 0) -> Any:
    """An array in the shape in which a leaf of this shape is seen, as one like the leaf; 0 outside a slice."""
    front, before = a.shape[:lead], [shape]
    for move in moves[:-1]:
        before.append(seen(before[-1], (move,)))
    for (kind, to), was in zip(reversed(moves), reversed(before[: len(moves)]), strict=True):
        if kind == "reshape":
            a = a.reshape(*front, *was)
        elif kind == "slice":
            around = [(start, n - end) for (start, end), n in zip(to, was, strict=True)]
            a = jnp.pad(a, [(0, 0)] * lead + around)
        else:
            a = a.transpose(*range(lead), *(lead + int(i) for i in np.argsort(to)))
    return a
