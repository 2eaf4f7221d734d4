"""Why a rule and autodiff differ: the rule in float64 and central differences are asked, leaf by leaf.

So a wrong formula is told from a right one in poor arithmetic, and a wrong autodiff (at a kink, behind a `where`, of a
wrong custom rule further in) from a wrong rule.
"""

import enum
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..programs.replay import equations, first_nonfinite
from .comparison import Comparison
from .differences import Probe
from .error import EXACT, FAR, FLOOR, K_LARGEST, LeafError, rms
from .evidence import Evidence, worst
from .hidden import ASKED_AT_ALL
from .parts import count_of_values
from .patterns import pattern_of
from .points import last_bits, movement

LEAVES_ASKED = 4  # failing leaves that are put to the third oracle, the worst first
PLACES = 16  # elements of a leaf that are asked about by themselves


class Cause(enum.Enum):
    """Why a leaf differs, as the report says it."""

    AUTODIFF = "autodiff is wrong here: the rule agrees with central differences"
    STOPPED = "the rule is the derivative as if there were no stop_gradient"
    KINK = "a kink: the rule's value lies between the slopes from both sides"
    CHOICE = "a kink: no choice of slopes there gives the rule's values"
    MANY = "so many kinks are met at once that not each choice of slopes there was tried"
    FORMULA = "in float64 the rule agrees with the oracle: the formula is right, its arithmetic loses digits"
    ROUNDED = (
        "in float64 the rule agrees with the oracle, and its error is no more than last bits of the arguments make"
    )
    CONSTANTS = "in float64 the rule differs by as little as rounded constants make: its arithmetic loses digits"
    RULE = "autodiff and central differences agree with each other, and the rule with neither"
    NONE = "the rule, autodiff and central differences: no two of them agree"
    ELEMENTS = "in float64 rule and autodiff differ there by far more than rounding; central differences can't tell"
    DIFFERENCES = "rule and autodiff differ by less than central differences can tell"
    UNKNOWN = ""


EXCUSES = (Cause.AUTODIFF, Cause.KINK)


def explained(
    comparison: Comparison, points: Sequence[Evidence], leaves: list[LeafError], total: LeafError
) -> tuple[list[LeafError], LeafError, list[str]]:
    """The leaves with patterns and what the third oracle says of them; the total; remarks."""
    notes: list[str] = []
    failing = [i for i, leaf in enumerate(leaves) if not leaf.ok]
    for i in failing:
        point = worst(points, leaves, i)
        others = {part.name: part.array for part in point.exact if part.name != leaves[i].name}
        got, exact = point.judged(i)
        leaves[i] = replace(leaves[i], pattern=leaves[i].pattern or pattern_of(leaves[i], got, exact, others))
        if not np.isfinite(np.asarray(got)).all():
            for who, program in (("rule", comparison.rule), ("oracle", comparison.oracle)):
                if (origin := first_nonfinite(program.jaxpr, point.arrays)) is not None:
                    notes += [note] if (note := f"In the {who}, {origin}.") not in notes else []
    for i in sorted(failing, key=lambda i: -leaves[i].excess)[:LEAVES_ASKED]:
        asked = dict.fromkeys((points[0], worst(points, leaves, i)))
        try:
            told = [_told(comparison, point, leaves, i) for point in asked if not point.leaves[i].ok]
        except ValueError as error:
            return leaves, total, [*notes, f"The rule was not run in float64: {error}"]
        leaves[i] = told[-1][0] if told else leaves[i]
        causes = dict.fromkeys(cause for _, cause in told)
        if told and not all(leaf.excused for leaf, _ in told):
            leaves[i] = replace(leaves[i], excused="")
        notes += [f"{leaves[i].name}: {cause.value}." for cause in causes if cause.value]
        if Cause.RULE in causes and any(eqn.primitive.name == "while" for eqn in equations(comparison.oracle.jaxpr)):
            notes.append(
                "There is a while loop: if it stops early, autodiff differentiates where it stops, not its limit."
            )
    if failing and all(leaf.ok for leaf in leaves):
        total = replace(total, excused="its leaves are excused")
    return leaves, total, notes


def _told(comparison: Comparison, point: Evidence, leaves: Sequence[LeafError], i: int) -> tuple[LeafError, Cause]:
    """Leaf i with what is said of it at a point where it fails, and why it does."""
    skip, leaf = count_of_values(leaves), leaves[i]
    mathematics = list(map(np.asarray, comparison.leaves(comparison.rule.exact(*point.arrays))))
    exact = [np.asarray(part.array) for part in point.exact]
    cause = _same(mathematics[i], exact[i], leaf) or Cause.UNKNOWN
    if comparison.behind is not None and i >= skip:
        cause, slope = _asked(comparison, point, leaf, i - skip, mathematics[skip:], exact[skip:])
        stopped = any(eqn.primitive.name == "stop_gradient" for eqn in equations(comparison.oracle.jaxpr))
        if cause is Cause.NONE and slope is not None and not leaf.wrong and not stopped:
            leaf = replace(leaf, expected=slope, by="by central differences")
    if point.met is None and not leaf.wrong and _is_rounding(comparison, point, i, leaf, cause):
        leaf, cause = replace(leaf, excused=Cause.ROUNDED.value), Cause.ROUNDED
    if cause is Cause.FORMULA and not leaf.pattern:
        leaf = replace(leaf, pattern="its formula is right, its arithmetic loses digits")
    if cause in (Cause.FORMULA, Cause.CONSTANTS) and leaf.spoiled and _unspoiled(point, i, leaf):
        excused = f"autodiff overflows in {leaf.dtype}, and in float64 the rule agrees with it"
        leaf = replace(leaf, excused=excused)
    if cause is Cause.MANY and not leaf.wrong:
        leaf = replace(leaf, excused=cause.value, undecided=leaf.size)
    if cause in EXCUSES and not leaf.wrong:
        if _poor(comparison, point, i, leaf):
            leaf = replace(leaf, pattern=leaf.pattern or f"{cause.value}; but it loses digits")
        else:
            leaf = replace(leaf, excused=cause.value)
    return leaf, cause


def suspected(comparison: Comparison, given: Evidence, leaves: list[LeafError]) -> list[str]:
    """A remark where rule and autodiff agree, but not with central differences."""
    if comparison.behind is None:
        return []
    if sum(leaf.size for leaf in leaves) > ASKED_AT_ALL:
        return ["Rule and autodiff agree, and are large: small elements and central differences were not looked at."]
    oracle = [np.asarray(part.array) for part in given.exact[count_of_values(leaves) :]]
    epsilon = max(leaf.epsilon for leaf in leaves)
    probe = next(comparison.behind.probes(None, (), comparison.arrays))
    blind = np.any(probe.slope.kink) or probe.slope.error == 0  # not even rounding: all that changes is absorbed
    if blind or _agrees(probe, oracle, epsilon) is not False:
        return []
    if any(leaf.undecided for leaf in leaves):
        return []  # they don't agree there, and the report says so
    return [
        "Rule and autodiff agree, but central differences with neither: look for a stop_gradient, a custom rule "
        "further in, a loop that stops early, or a step function."
    ]


def _unspoiled(point: Evidence, i: int, leaf: LeafError) -> bool:
    """Whether a leaf is right wherever autodiff does not overflow."""
    got, plain, exact = (np.asarray(parts[i].array) for parts in (point.got, point.plain, point.exact))
    with np.errstate(all="ignore"):
        off = np.abs(got.astype(exact.dtype) - exact)[np.isfinite(plain)]
        return bool(off.max(initial=0) <= leaf.allowed_largest)


def _poor(comparison: Comparison, point: Evidence, i: int, leaf: LeafError) -> bool:
    """Whether the rule's own arithmetic is poor, where autodiff can't be the measure of it.

    Then the measure is what a last bit of the arguments makes of the result.
    """
    moved = _moved(comparison, point, i, leaf, apart=False)
    exact, error = _own_error(comparison, point, i)
    return not error <= max(4 * moved, 4 * FLOOR * leaf.epsilon * exact)


def _is_rounding(comparison: Comparison, point: Evidence, i: int, leaf: LeafError, cause: Cause) -> bool:
    """Whether a rule errs by no more than last bits of the arguments make, and its formula is right: as in float64, up
    to `K_LARGEST` times autodiff's error; or where rule and oracle are both 0 beside that, since all terms cancel.
    """
    if i < count_of_values(point.exact):
        return False
    if cause is not Cause.FORMULA and leaf.scale > leaf.error:  # a leaf that is not 0 beside its error
        return False
    moved = _moved(comparison, point, i, leaf, apart=True)
    exact, error = _own_error(comparison, point, i)
    if not error <= 4 * moved:
        return False
    if cause is Cause.FORMULA and leaf.error <= K_LARGEST * leaf.oracle_error:
        return True
    return max(exact, leaf.scale) <= (4 if leaf.epsilon < EXACT else 1e-6) * moved


def _moved(comparison: Comparison, point: Evidence, i: int, leaf: LeafError, apart: bool) -> float:
    """How far last bits of the arguments move leaf i of the rule in float64."""
    near = [point.arrays, *(last_bits(point.arrays, leaf.epsilon, name, apart) for name in "abcd")]
    return rms(movement(lambda *a: comparison.leaves(comparison.rule.exact(*a)), near)[i])


def _own_error(comparison: Comparison, point: Evidence, i: int) -> tuple[float, float]:
    """(how large leaf i of the rule is in float64, how far its own arithmetic is from that)."""
    rule, arrays = comparison.rule, point.arrays
    exact, got = (np.asarray(comparison.leaves(result)[i]) for result in (rule.exact(*arrays), rule(*arrays)))
    with np.errstate(all="ignore"):
        return rms(exact), rms(got.astype(exact.dtype) - exact)


def _asked(
    comparison: Comparison, point: Evidence, leaf: LeafError, i: int, rule: Sequence[Any], oracle: Sequence[Any]
) -> tuple[Cause, float | None]:
    """Who is right about leaf i of the gradients: what probes say of the rule and of the oracle, both in float64.

    And the slope at the worst element, where there is one. At a kink that has shares the choice has been made: then
    that the rule lies between the slopes from both sides excuses nothing.
    """
    assert comparison.behind is not None
    places = _places(leaf.at, rule[i], oracle[i])
    probes = list(comparison.behind.probes(i, places, point.arrays))
    answers = [tuple(_agrees(probe, r, leaf.epsilon) for r in (rule, oracle)) for probe in probes]
    alone = [rule for rule, _ in answers[: len(places)] if rule is not None]
    answers = [answer for answer in answers if answer[0] is not None]
    kinks = any(np.any(probe.slope.kink) for probe in probes)
    slope = None
    if leaf.at in places and not np.any((at := probes[places.index(leaf.at)]).slope.kink):
        unit = at.ask([np.ones_like(r) for r in rule])[0]
        slope = float(np.real(at.slope.value)) / unit if unit and at.slope.error < 1e-3 * abs(at.slope.value) else None
    if not answers:
        return Cause.UNKNOWN, slope
    rules, oracles = zip(*answers, strict=True)
    met = point.met
    if kinks and met is not None and met.many and (met.ordered or all(alone)):
        return Cause.MANY, slope
    if all(rules) and all(oracles):
        if kinks:
            return Cause.CHOICE if met is not None and met.shared else Cause.KINK, slope
        return Cause.ELEMENTS if leaf.wrong else _same(rule[i], oracle[i], leaf) or Cause.DIFFERENCES, slope
    if all(rules):
        free = comparison.behind.unstopped(point.arrays)
        return Cause.STOPPED if free is not None and _same(rule[i], free[i], leaf) else Cause.AUTODIFF, slope
    return Cause.RULE if all(oracles) else Cause.NONE, slope


def _places(worst: tuple[int, ...], rule: np.ndarray, oracle: np.ndarray) -> list[tuple[int, ...]]:
    """The elements of a leaf that are asked about: all, if they are few; else the worst, and some that differ."""
    if rule.size <= PLACES:
        return list(np.ndindex(rule.shape))
    with np.errstate(all="ignore"):
        off = np.nan_to_num(np.abs(rule - oracle), nan=np.inf).ravel()
    differ = np.flatnonzero(off > 1e-9 * np.abs(oracle).max(initial=0))
    most = differ[np.argsort(-off[differ], kind="stable")[: PLACES // 2]]
    spread = differ[np.linspace(0, len(differ) - 1, PLACES // 4).astype(int)] if len(differ) else differ
    after = differ[np.minimum(np.searchsorted(differ, spread) + 1, len(differ) - 1)] if len(differ) else differ
    flat = {int(np.ravel_multi_index(worst, rule.shape)), *map(int, (*most, *spread, *after))}
    return [tuple(map(int, np.unravel_index(i, rule.shape))) for i in flat]


def _agrees(probe: Probe, result: Sequence[Any], epsilon: float) -> bool | None:
    """Whether a result in float64 has the slope that a probe found; None if it found none.

    Constants in a program are rounded to its dtype, so the mathematics of two programs may differ by as much.
    """
    if not np.isfinite(probe.slope.value) or not np.isfinite(probe.slope.error):
        return None
    value, mass = probe.ask(result)
    if not math.isfinite(value):
        return False
    return bool(probe.slope.agrees(value, (_constants(epsilon) + 1e-7) * mass))


def _constants(epsilon: float) -> float:
    """By how much constants that are rounded to a dtype may change a result: several units in the last place."""
    return min(8 * epsilon, 2 * epsilon + 1e-6)


def _same(a: Any, b: Any, leaf: LeafError) -> Cause | None:
    """Whether two leaves in float64 are the same mathematics: FORMULA if they agree to float64's own rounding.

    CONSTANTS if they differ as constants do that are rounded to the leaf's dtype, or by a thousandth of the error.
    """
    arithmetic = 1e-3 * leaf.error if math.isfinite(leaf.error) else 0.0
    with np.errstate(all="ignore"):
        off, size = rms(a - b), rms(b)
    if leaf.wrong or not off <= max((_constants(leaf.epsilon) + 1e-9) * size, arithmetic):
        return None
    return Cause.FORMULA if off <= FAR * max(np.finfo(np.float64).eps * size, leaf.noise[0]) else Cause.CONSTANTS
