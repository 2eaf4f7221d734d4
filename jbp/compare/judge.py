"""One rule against one oracle: the evidence at each point that decides, the leaves' errors, and if any is wrong, why.

What decides is the point that was given, and beside it two things:

* where a kink of the program is met, points beside it: a rule may choose its slopes at a kink, and not beside it;
* in `Cost.compare`, one θ off the given one: what a gain of 1 hides shows there.

Only arguments for which the rule returns a derivative are moved (`argnums` says otherwise). Rounding is a matter of
luck in a leaf of few elements: autodiff may happen to hit one of them to the last bit. So a rule that fails is tried
again at points nearby, and passes if the errors of all, pooled, are small enough. Bad luck does not last. No such
point makes it wrong.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import chain, islice
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..programs.arguments import is_float
from ..programs.clock import race
from ..programs.program import Program
from .comparison import Comparison
from .error import LeafError, pooled
from .evidence import Evidence, evidence_at, measured, worst
from .hidden import hidden
from .parts import VALUE, Part
from .points import NEAR, around, like, nearby, stream, unit_of
from .report import Check, Report
from .why import explained, suspected

BESIDE_A_KINK = 8  # points beside a kink
TANGENTS = 8  # at a kink, of a rule for forward mode
OFF = 2.0**-3  # how far the other θ is
IMPRECISE = 0.01  # of a leaf's scale


def judged(
    comparison: Comparison,
    checks: Callable[[Evidence], tuple[Check, ...]] | None = None,
    calls: Callable[[Sequence[Any]], tuple[Report, ...]] | None = None,
    always: bool = False,
) -> Report:
    """The whole of it. `checks(evidence)`: what is looked at besides values, at the given point; `calls(arrays)`:
    reports of what is inside, asked for where values differ, or `always`.
    """
    points, lucky = _gathered(comparison)
    *leaves, total = _pooled(points, lucky)
    if (smooth := next((point for point in points if point.met is None), None)) is not None:
        leaves = hidden(comparison, smooth, leaves)
    right = all(leaf.ok for leaf in (*leaves, total))
    if not right:
        leaves, total, notes = explained(comparison, points, leaves, total)
    else:
        notes = [] if comparison.rule.hurry else [*suspected(comparison, points[0], leaves), *_imprecise(leaves)]
    leaves = [_placed(leaf, worst(points, [leaf], i) is not points[0]) for i, leaf in enumerate(leaves)]
    more = _timed(comparison) if comparison.timing else {}
    if calls is not None and (always or not all(leaf.ok for leaf in (*leaves, total))):
        try:
            more["calls"] = calls(worst(points, leaves).arrays)
        except Exception as error:  # the rule is wrong, so what it does inside may be anything
            notes.append(f"What is inside was not looked into: {type(error).__name__}: {error}")
    if checks is not None:
        more["checks"] = checks(points[0])
    programs = (*comparison.notes, *comparison.rule.notes, *comparison.oracle.notes)
    notes = [*programs, *_spoiled(leaves), *_of_points(points), *notes]
    return Report(
        tuple(leaves), total, points=len(points) + len(lucky), name=comparison.name, where=comparison.where,
        notes=tuple(dict.fromkeys(notes)), maps=tuple(map(_map, points[0].got, points[0].exact)), **more,
    )  # fmt: skip


# -- points -----------------------------------------------------------------------------------------------------------


def _gathered(comparison: Comparison) -> tuple[list[Evidence], list[Evidence]]:
    """(what stands at the points that decide, the first the given one; at others, for luck)."""
    arrays, behind = comparison.arrays, comparison.behind
    given, met = evidence_at(comparison, arrays), None
    moved = cache(lambda: _movable(comparison, given))
    at = lambda near, met=None: measured(comparison, evidence_at(comparison, near, given=False), met)
    beside: Iterator[list[Any]] = iter(())
    off = list(around(arrays, [0], 2, OFF)) if comparison.elsewhere else []
    if isinstance(comparison.oracle, Program) and behind is not None and behind.kinks.any:
        narrow = max((float(jnp.finfo(arrays[i].dtype).eps) for i in moved()), default=0.0)
        beside = around(arrays, moved(), BESIDE_A_KINK, min(max(NEAR, 16 * narrow), 0.25)) if moved() else beside
        others = off if moved() == [0] else []
        if not others:
            others = list(islice(beside, 2))
            beside = chain(others, beside)
        met = behind.kinks.met(arrays, others)
    points = [measured(comparison, given, met)]
    if behind is not None and met is not None:
        points += [at(near, behind.kinks.met(near, [arrays])) for near in (() if met.by_chance else beside)]
        points += [at(along, met) for along in _along_others(comparison)]
    if comparison.elsewhere:
        points.append(at(off[0]))
    if met is not None or all(point.ok for point in points):
        return points, []
    return points, list(map(at, nearby(arrays, moved())))


def _along_others(comparison: Comparison) -> Iterator[list[Any]]:
    """The arguments with other tangents: at a kink one tangent may lie between the slopes by luck.

    Half of them are positive, so that what is counted twice, or not at all, lies between none.
    """
    if comparison.kind != "jvp":
        return
    random, first = stream("tangents"), len(comparison.arrays) - len(comparison.moves)
    for i in range(TANGENTS):
        tangents = [
            like(np.where(np.asarray(t) != 0, random.uniform(-1 if i % 2 else 0.5, 1, np.shape(t)) * unit_of(a), 0), t)
            for t, a in zip(comparison.arrays[first:], (comparison.arrays[i] for i in comparison.moves), strict=True)
        ]
        yield [*comparison.arrays[:first], *tangents]


def _pooled(points: Sequence[Evidence], lucky: Sequence[Evidence]) -> list[LeafError]:
    """The leaves and their total, of all points that decide, with the others where that makes them right."""
    leaves = list(map(pooled, zip(*(point.leaves for point in points), strict=True)))
    if not lucky:
        return leaves
    more = map(pooled, zip(*(point.leaves for point in (*points, *lucky)), strict=True))
    return [b if b.ok and not a.ok and not a.wrong else a for a, b in zip(leaves, more, strict=True)]


def _movable(comparison: Comparison, point: Evidence) -> list[int]:
    """The arguments, by place, that may be moved: those for which the rule returns a derivative that is not 0.

    What is 0 at the point may be so by a kink: it is asked beside it, where nothing is judged.
    """
    moving = comparison.moves
    if comparison.given is not None:
        return [i for i in moving if i in comparison.given]
    if comparison.kind == "jvp":
        return [i for i, t in zip(moving, point.arrays[-len(moving) :], strict=True) if np.any(np.asarray(t))]
    gradients = lambda parts: [np.asarray(p.array) for p in parts if p.name != VALUE]
    here = gradients(point.got)
    if len(here) != len(moving):  # pieces of one argument
        return moving
    nonzero = [g.any() for g in here]
    if not all(nonzero):
        floats = [i for i in moving if is_float(point.arrays[i])]
        for near in around(point.arrays, floats, 2, 2.0**-4):
            there = gradients(comparison.parts(comparison.rule(*near)))
            nonzero = [a or b.any() for a, b in zip(nonzero, there, strict=True)]
    return [i for i, some in zip(moving, nonzero, strict=True) if some]


def _placed(leaf: LeafError, beside: bool) -> LeafError:
    """The leaf, saying so where it is wrong beside the given point."""
    return replace(leaf, by=f"{leaf.by}, beside the given point") if beside and not leaf.ok else leaf


def _of_points(points: Sequence[Evidence]) -> Iterator[str]:
    given = points[0]
    yield from given.notes
    if given.met is not None:
        several = f"{given.met.number:,} kinks are met" if given.met.number > 1 else "A kink is met"
        right = given.chosen and given.ok
        chosen = "; the rule's slopes there are others than autodiff's, and right as well" if right else ""
        yield f"{several} at the arguments{chosen}. {len(points) - 1} points beside them are compared too."


# -- remarks, time, pictures ------------------------------------------------------------------------------------------


def _timed(comparison: Comparison) -> dict[str, Any]:
    """What a call of each costs."""
    rule, oracle = comparison.rule, comparison.oracle
    a, b, ratio = race(partial(rule, *comparison.arrays), partial(oracle, *comparison.arrays))
    if not isinstance(oracle, Program):  # central differences are not in the race
        return {"rule": rule.measured(a)}
    return {"rule": rule.measured(a), "oracle": oracle.measured(b), "race": ratio}


def _spoiled(leaves: Sequence[LeafError]) -> Iterator[str]:
    for leaf in leaves:
        if leaf.spoiled:
            yield (
                f"{leaf.name}: in {leaf.spoiled:,} of {leaf.size:,} elements autodiff overflows in {leaf.dtype}, and "
                "not in float64. There the rule may overflow too, or lose digits."
            )


def _imprecise(leaves: Sequence[LeafError]) -> Iterator[str]:
    """Remarks where rule and autodiff are equally far off: right by comparison, and of no use."""
    for leaf in leaves:
        if leaf.error > max(IMPRECISE, 16 * leaf.epsilon) * leaf.scale > 0:
            yield (
                f"{leaf.name}: in {leaf.dtype} both are off by {leaf.error / leaf.scale:.1e} of its size: the function "
                "itself loses digits here."
            )


def _map(got: Part, exact: Part) -> np.ndarray:
    """|rule − shadow| of a leaf as a matrix of at most 64 × 64, the last axis across, both evenly spread."""
    shape = np.shape(exact.array)
    if not np.prod(shape, dtype=int):
        return np.zeros((0, 0))
    width = shape[-1] if shape else 1
    a, b = (np.asarray(part.array).reshape(-1, width) for part in (got, exact))
    rows, columns = (np.unique(np.linspace(0, n - 1, min(n, 64)).astype(int)) for n in a.shape)
    with np.errstate(all="ignore"):
        return np.abs(a[np.ix_(rows, columns)].astype(b.dtype) - b[np.ix_(rows, columns)])
