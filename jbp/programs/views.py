"""A parameter seen through what only moves its numbers: reshapes and transposes, one-to-one.

`Moves` is a sequence of `("reshape", shape)` and `("transpose", axes)`, kept as short as it can be: moves that change
nothing are left out, and a transpose of axes of size 1 is a reshape. So a leaf that is seen as it is has the moves ().
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Moves = tuple[tuple[str, tuple[int, ...]], ...]


def seen(shape: tuple[int, ...], moves: Moves) -> tuple[int, ...]:
    """The shape in which a leaf is seen."""
    for kind, to in moves:
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


def moved(a: Any, moves: Moves, lead: int = 0) -> Any:
    """An array like the leaf, in the shape in which the leaf is seen; `lead` axes in front stay where they are."""
    front = a.shape[:lead]
    for kind, to in moves:
        a = a.reshape(*front, *to) if kind == "reshape" else a.transpose(*range(lead), *(lead + i for i in to))
    return a


def moved_back(a: Any, shape: tuple[int, ...], moves: Moves, lead: int = 0) -> Any:
    """An array in the shape in which a leaf of this shape is seen, as one like the leaf."""
    front, before = a.shape[:lead], [shape]
    for move in moves[:-1]:
        before.append(seen(before[-1], (move,)))
    for (kind, to), was in zip(reversed(moves), reversed(before[: len(moves)]), strict=True):
        if kind == "reshape":
            a = a.reshape(*front, *was)
        else:
            a = a.transpose(*range(lead), *(lead + int(i) for i in np.argsort(to)))
    return a


def size(shape: tuple[int, ...]) -> int:
    """The number of elements."""
    return math.prod(shape)
