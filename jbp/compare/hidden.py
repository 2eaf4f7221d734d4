"""Elements that are wrong, and small beside the rest of their leaf: no mean of the leaf shows them."""

from dataclasses import replace

import numpy as np

from .comparison import Comparison
from .error import EXACT, FAR, LeafError
from .evidence import Evidence
from .parts import VALUE
from .points import last_bits, movement

ASKED_AT_ALL = 1 << 20  # elements, up to which more is asked of rule and autodiff that agree


def hidden(comparison: Comparison, point: Evidence, leaves: list[LeafError]) -> list[LeafError]:
    """The leaves, with those failed in which single elements are wrong that are small beside the rest.

    An element is suspected if it is far off for its own size; it is wrong if rule and oracle differ there in float64 by
    more than what a last bit of the arguments makes of it.
    """
    if sum(leaf.size for leaf in leaves) > ASKED_AT_ALL:
        return leaves
    arrays, got, plain = point.arrays, point.got, point.plain
    suspects: dict[int, np.ndarray] = {}
    for i, leaf in enumerate(leaves):
        if not leaf.ok or leaf.size < 2 or leaf.name == VALUE or leaf.epsilon < EXACT:
            continue  # for float64 a leaf is judged by 1e-12 of its scale: little hides behind that
        exact = np.asarray(point.exact[i].array)
        with np.errstate(invalid="ignore"):  # what is not finite is undecided
            a, b = (np.abs(np.asarray(p.array).astype(exact.dtype) - exact) for p in (got[i], plain[i]))
        suspect = a > FAR * (leaf.epsilon * np.abs(exact) + b)
        suspects |= {i: suspect} if suspect.any() else {}
    if not suspects:
        return leaves
    try:
        rule = comparison.leaves(comparison.rule.exact(*arrays))
    except ValueError:
        return leaves
    near = [arrays, *(last_bits(arrays, max(leaf.epsilon for leaf in leaves), name) for name in ("a", "b"))]
    moved = [
        movement(lambda *a, program=program: comparison.leaves(program.exact(*a)), near)
        for program in (comparison.oracle, comparison.rule)
    ]
    for i, suspect in suspects.items():
        mathematics, exact = np.asarray(rule[i]), np.asarray(point.exact[i].array)
        rounding = leaves[i].epsilon * np.abs(exact) + np.maximum(*(far[i] for far in moved))
        off = np.where(suspect, np.abs(mathematics - exact), 0)
        wrong = off > FAR * np.maximum(rounding, np.finfo(np.float64).eps * leaves[i].peak)
        if not wrong.any():
            continue
        at = tuple(map(int, np.unravel_index(int(np.argmax(np.where(wrong, off, -1))), off.shape)))
        values, what = (
            (np.asarray(got[i].array)[at], exact[at]),
            f"{int(wrong.sum()):,} of {wrong.size:,} elements wrong",
        )
        leaves[i] = replace(
            leaves[i], at=at, where=point.exact[i].symbol(at), got=values[0].item(), expected=values[1].item(),
            wrong=int(wrong.sum()), pattern=f"{what}, small beside the rest",
        )  # fmt: skip
    return leaves
