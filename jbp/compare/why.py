"""Why a rule and autodiff differ: the rule in float64 and central differences are asked, leaf by leaf.

So a wrong formula is told from a right one in poor arithmetic, and a wrong autodiff (at a kink, behind a `where`, of a
wrong custom rule further in) from a wrong rule. Also here: elements that are wrong, and small beside the rest of their
leaf; and the noise of the shadow itself.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .arguments import is_float
from .differences import Probe, beside, last_bits, stream, unit_of, widened
from .error import EXACT, FAR, FLOOR, LeafError, rms
from .parts import VALUE
from .patterns import pattern_of
from .replay import equations, first_nonfinite

if TYPE_CHECKING:
    from .judge import Comparison

ASKED = 4  # failing leaves that are put to the third oracle, the worst first
ASKED_AT_ALL = 1 << 20  # elements, up to which more is asked of rule and autodiff that agree
AROUND = 48  # points around a kink
NEAR = 2.0**-20  # how far away they are, in units of each element
CLOSE = 1e-4  # of the largest element: far more than derivatives change over NEAR, and far less than at a kink
PLACES = 16  # elements of a leaf that are asked about by themselves

TOLD = {
    "autodiff": "autodiff is wrong here: the rule agrees with central differences",
    "stopped": "the rule is the derivative as if there were no stop_gradient",
    "kink": "a kink: the rule's value lies between the slopes from both sides",
    "formula": "in float64 the rule agrees with the oracle: the formula is right, its arithmetic loses digits",
    "rule": "autodiff and central differences agree with each other, and the rule with neither",
    "none": "the rule, autodiff and central differences: no two of them agree",
    "hidden": "in float64 rule and autodiff differ there by far more than rounding; central differences can't tell",
    "differences": "rule and autodiff differ by less than central differences can tell",
}


def explained(
    comparison: "Comparison", arrays: Sequence[Any], leaves: list[LeafError], total: LeafError
) -> tuple[list[LeafError], LeafError, list[str]]:
    """The leaves with patterns and what the third oracle says of them; the total; remarks."""
    notes: list[str] = []
    got, exact = comparison.got, comparison.exact
    right = {part.name: part.array for part in exact}
    failing = [i for i, leaf in enumerate(leaves) if not leaf.ok]
    for i in failing:
        others = {name: a for name, a in right.items() if name != leaves[i].name}
        pattern = pattern_of(leaves[i], got[i].array, exact[i].array, others)
        leaves[i] = dataclasses.replace(leaves[i], pattern=leaves[i].pattern or pattern)
    if any(not np.isfinite(np.asarray(got[i].array)).all() for i in failing):
        for who, program in (("rule", comparison.rule), ("oracle", comparison.oracle)):
            if (origin := first_nonfinite(program.jaxpr, arrays)) is not None:
                notes.append(f"In the {who}, {origin}.")
    try:
        mathematics = comparison.parts(comparison.rule.exact(*arrays))
    except ValueError as error:
        return leaves, total, [*notes, f"The rule was not run in float64: {error}"]
    skip = _values(leaves)
    rule, oracle = ([np.asarray(part.array) for part in parts[skip:]] for parts in (mathematics, exact))
    for i in sorted(failing, key=lambda i: -leaves[i].excess)[:ASKED]:
        if comparison.third is None or i < skip:
            verdict = (
                "formula" if _same(np.asarray(mathematics[i].array), np.asarray(exact[i].array), leaves[i]) else ""
            )
        else:
            verdict = _asked(comparison, arrays, leaves[i], i - skip, rule, oracle)
        told = TOLD.get(verdict, "")
        if verdict == "formula" and not leaves[i].pattern:
            leaves[i] = dataclasses.replace(leaves[i], pattern="its formula is right, its arithmetic loses digits")
        if verdict == "formula" and leaves[i].spoiled and _unspoiled(comparison, i, leaves[i]):
            excused = f"autodiff overflows in {leaves[i].dtype}, and in float64 the rule agrees with it"
            leaves[i] = dataclasses.replace(leaves[i], excused=excused)
        if verdict in ("autodiff", "kink"):
            if _poor(comparison, arrays, i, leaves[i]):
                told += "; but it loses digits"
            else:
                leaves[i] = dataclasses.replace(leaves[i], excused=told)
        notes += [f"{leaves[i].name}: {told}."] if told else []
        if verdict == "rule" and any(eqn.primitive.name == "while" for eqn in equations(comparison.oracle.jaxpr)):
            notes.append(
                "There is a while loop: if it stops early, autodiff differentiates where it stops, not its limit."
            )
    if failing and all(leaf.ok for leaf in leaves):
        total = dataclasses.replace(total, excused="its leaves are excused")
    return leaves, total, notes


def suspected(comparison: "Comparison", leaves: list[LeafError]) -> list[str]:
    """A remark where rule and autodiff agree, but not with central differences."""
    if comparison.third is None:
        return []
    if sum(leaf.size for leaf in leaves) > ASKED_AT_ALL:
        return ["Rule and autodiff agree, and are large: small elements and central differences were not looked at."]
    oracle = [np.asarray(part.array) for part in comparison.exact[_values(leaves) :]]
    epsilon = max(leaf.epsilon for leaf in leaves)
    probe = next(comparison.third(None, ()))
    blind = np.any(probe.slope.kink) or probe.slope.error == 0  # not even rounding: all that changes is absorbed
    if blind or _agrees(probe, oracle, epsilon) is not False:
        return []
    return [
        "Rule and autodiff agree, but central differences with neither: look for a stop_gradient, a custom rule "
        "further in, a loop that stops early, or a step function."
    ]


def hidden(comparison: "Comparison", arrays: Sequence[Any], leaves: list[LeafError]) -> list[LeafError]:
    """The leaves, with those failed in which single elements are wrong that are small beside the rest.

    An element is suspected if it is far off for its own size; it is wrong if rule and oracle differ there in float64 by
    more than what a last bit of the arguments makes of it.
    """
    if sum(leaf.size for leaf in leaves) > ASKED_AT_ALL:
        return leaves
    got, plain = comparison.got, comparison.plain
    suspects: dict[int, np.ndarray] = {}
    for i, leaf in enumerate(leaves):
        if not leaf.ok or leaf.size < 2 or leaf.name == VALUE or leaf.epsilon < EXACT:
            continue  # for float64 a leaf is judged by 1e-12 of its scale: little hides behind that
        exact = np.asarray(comparison.exact[i].array)
        a, b = (np.abs(np.asarray(p.array).astype(exact.dtype) - exact) for p in (got[i], plain[i]))
        suspect = a > FAR * (leaf.epsilon * np.abs(exact) + b)
        suspects |= {i: suspect} if suspect.any() else {}
    if not suspects:
        return leaves
    try:
        rule = comparison.parts(comparison.rule.exact(*arrays))
    except ValueError:
        return leaves
    moves = [last_bits(arrays, max(leaf.epsilon for leaf in leaves), name) for name in ("a", "b")]
    both = (comparison.oracle, comparison.exact), (comparison.rule, rule)
    moved = [(comparison.parts(program.exact(*near)), parts) for near in moves for program, parts in both]
    for i, suspect in suspects.items():
        mathematics, exact = (np.asarray(parts[i].array) for parts in (rule, comparison.exact))
        rounding = leaves[i].epsilon * np.abs(exact) + np.max(
            [np.abs(np.asarray(near[i].array) - np.asarray(here[i].array)) for near, here in moved], axis=0
        )
        off = np.where(suspect, np.abs(mathematics - exact), 0)
        wrong = off > FAR * np.maximum(rounding, np.finfo(np.float64).eps * leaves[i].peak)
        if not wrong.any():
            continue
        at = tuple(map(int, np.unravel_index(int(np.argmax(np.where(wrong, off, -1))), off.shape)))
        values, what = (
            (np.asarray(got[i].array)[at], exact[at]),
            f"{int(wrong.sum()):,} of {wrong.size:,} elements wrong",
        )
        leaves[i] = dataclasses.replace(
            leaves[i], at=at, where=comparison.exact[i].symbol(at), got=values[0].item(), expected=values[1].item(),
            hidden=int(wrong.sum()), pattern=f"{what}, small beside the rest",
        )  # fmt: skip
    return leaves


def noisy(
    comparison: "Comparison", arrays: Sequence[Any], leaves: list[LeafError], total: LeafError
) -> tuple[list[LeafError], LeafError]:
    """The leaves and the total with the shadow's own noise: where all cancels, what is left of it is no reference."""
    first, *moved = [comparison.parts(comparison.oracle.exact(*near)) for near in beside(arrays)]
    squares, peak, count, found = 0.0, 0.0, 0, []
    for i, leaf in enumerate(leaves):
        with np.errstate(all="ignore"):
            off = np.max([np.abs(np.asarray(parts[i].array) - np.asarray(first[i].array)) for parts in moved], axis=0)
            largest, square = float(off.max(initial=0)), float(np.sum(np.square(off)))
        if not math.isfinite(square):
            largest = square = 0.0
        found.append(dataclasses.replace(leaf, noise=(math.sqrt(square / max(off.size, 1)), largest)))
        if i >= _values(leaves):
            squares, peak, count = squares + square, max(peak, largest), count + off.size
    return found, dataclasses.replace(total, noise=(math.sqrt(squares / max(count, 1)), peak))


def _values(leaves: Sequence[LeafError]) -> int:
    """How many of the leaves, the first, are no gradients."""
    return int(leaves[0].name == VALUE and len(leaves) > 1)


def _unspoiled(comparison: "Comparison", i: int, leaf: LeafError) -> bool:
    """Whether a leaf is right wherever autodiff does not overflow."""
    got, plain, exact = (np.asarray(parts[i].array) for parts in (comparison.got, comparison.plain, comparison.exact))
    with np.errstate(all="ignore"):
        off = np.abs(got.astype(exact.dtype) - exact)[np.isfinite(plain)]
        return bool(off.max(initial=0) <= leaf.allowed_largest)


def _poor(comparison: "Comparison", arrays: Sequence[Any], i: int, leaf: LeafError) -> bool:
    """Whether the rule's own arithmetic is poor, where autodiff can't be the measure of it.

    Then the measure is what a last bit of the arguments makes of the result.
    """
    rule = comparison.rule
    near = last_bits(arrays, leaf.epsilon, "a")
    exact, moved, got = (
        np.asarray(comparison.parts(r)[i].array) for r in (rule.exact(*arrays), rule.exact(*near), rule(*arrays))
    )
    with np.errstate(all="ignore"):
        allowed = max(4 * rms(moved - exact), 4 * FLOOR * leaf.epsilon * rms(exact))
        return not rms(got.astype(exact.dtype) - exact) <= allowed


def _asked(
    comparison: "Comparison", arrays: Sequence[Any], leaf: LeafError, i: int, rule: Sequence[Any], oracle: Sequence[Any]
) -> str:
    """Who is right about leaf i of the gradients: what probes say of the rule and of the oracle, both in float64."""
    third: Any = comparison.third
    probes = list(third(i, _places(leaf.at, rule[i], oracle[i])))
    smooth = [probe for probe in probes if not np.any(probe.slope.kink)]
    answers = [tuple(_agrees(probe, r, leaf.epsilon) for r in (rule, oracle)) for probe in smooth]
    kinks = len(smooth) < len(probes)
    if kinks:
        answers.append(_between(comparison, arrays, i, rule[i], oracle[i]))
    answers = [answer for answer in answers if answer[0] is not None]
    if not answers:
        return ""
    rules, oracles = zip(*answers, strict=True)
    if all(rules) and all(oracles):
        if leaf.hidden and not kinks:
            return "hidden"
        if kinks:
            return "kink"
        return "formula" if _same(rule[i], oracle[i], leaf) else "differences"
    if all(rules):
        free = None if comparison.slopes is None else comparison.slopes.unstopped()
        return "stopped" if free is not None and _same(rule[i], free[i], leaf) else "autodiff"
    return "rule" if all(oracles) else "none"


def _between(
    comparison: "Comparison", arrays: Sequence[Any], i: int, rule: np.ndarray, oracle: np.ndarray
) -> tuple[bool, bool]:
    """Whether the rule's and the oracle's leaf i may be derivatives at a kink: lie between autodiff's around it.

    That is Clarke's generalized gradient (1983, ch. 2). Asked of each element, and of the sums of two that are
    neighbours: the max of equal elements has a kink in each, and none where they move together.
    """
    differ = np.flatnonzero(np.abs(rule - oracle).ravel() > CLOSE * np.abs(oracle).max(initial=0))

    def asked(leaf: np.ndarray) -> np.ndarray:
        leaf = leaf.ravel()
        leaf = np.concatenate([leaf, leaf[differ[1:]] + leaf[differ[:-1]]])
        return np.stack([leaf.real, leaf.imag])

    random = stream("around")
    low = np.full_like(asked(rule), np.inf)
    high = -low
    for _ in range(AROUND):
        moved = [_moved(a, NEAR * random.uniform(-1, 1, np.shape(a))) for a in arrays]
        near = asked(
            np.asarray(comparison.parts(comparison.oracle.exact(*moved))[_values(comparison.leaves) + i].array)
        )
        low, high = np.fmin(low, near), np.fmax(high, near)
    far = np.full_like(low, CLOSE * np.abs(np.stack([low, high])).max(initial=0))
    far[:, rule.size :] += 0.5 * (high - low)[:, rule.size :]  # of all sums of two, the extreme ones are rarely met
    found = [bool(np.all((low - far <= a) & (a <= high + far))) for a in map(asked, (rule, oracle))]
    return found[0], found[1]


def _moved(a: Any, by: Any) -> Any:
    """An array in float64, each element moved by so much of its size; what holds no floats as it is."""
    return widened(a) + by * unit_of(a) if is_float(a) else a


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


def _same(a: Any, b: Any, leaf: LeafError) -> bool:
    """Whether two leaves in float64 are the same mathematics, but for constants rounded to the leaf's dtype.

    Or nearly: where float64 takes away all but a thousandth of the error, it is the arithmetic's.
    """
    arithmetic = 1e-3 * leaf.error if math.isfinite(leaf.error) else 0.0
    with np.errstate(all="ignore"):
        constants = (_constants(leaf.epsilon) + 1e-9) * rms(b)
        return not leaf.hidden and bool(rms(a - b) <= max(constants, arithmetic))
