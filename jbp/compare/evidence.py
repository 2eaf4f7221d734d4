"""What stands at one point: the rule, autodiff, the float64 shadow, and which derivative is right if there are several.

A derivative that is not finite is decided element by element:

    autodiff is ±∞      and one-sided differences grow without bound to it: this infinity is right, and nothing else
    autodiff is NaN     and differences converge: they are right; if not, the element is undecided, and left out
    at a kink           the derivative is right that is nearest to the rule's own, among those of all choices there
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ..programs.arguments import filled, is_float
from ..programs.program import Program
from .differences import stream, unit_of, widened
from .error import EXACT, FLOOR, LeafError, amplified, errors, rms
from .kinks import Met
from .parts import VALUE, Part, check_same

if TYPE_CHECKING:
    from .judge import Comparison

ASKED = 64  # elements of a leaf without a finite derivative, that central differences are asked about
CONVERGED = 1e-3  # of a slope: the error, up to which it decides


@dataclass(eq=False)
class Point:
    """Rule, oracle and shadow at one set of arguments, and the errors of all leaves, the last that of their total."""

    arrays: list[Any]
    got: list[Part]
    plain: list[Part]
    exact: list[Part]
    met: Met | None = None
    leaves: list[LeafError] = field(default_factory=list)
    absent: dict[int, np.ndarray] = field(default_factory=dict)  # by leaf: elements where the shadow is not finite
    undecided: dict[int, np.ndarray] = field(default_factory=dict)  # by leaf: elements without a derivative
    settled: dict[int, int] = field(default_factory=dict)  # by leaf: how many without a shadow are right, and not 0
    wrong: dict[int, "Refuted"] = field(default_factory=dict)  # by leaf: elements refuted by themselves
    notes: list[str] = field(default_factory=list)
    chosen: bool = False  # at its kinks the rule has other slopes than autodiff, and right ones

    @property
    def ok(self) -> bool:
        return all(leaf.ok for leaf in self.leaves)

    def finite(self, parts: list[Part]) -> list[Part]:
        """The leaves, with 0 where the shadow is not finite."""
        return [_zeroed(part, self.absent.get(i)) for i, part in enumerate(parts)]

    def judged(self, i: int) -> tuple[Part, Part]:
        """A leaf by the rule and in float64, with 0 in both where an element is undecided."""
        out = self.undecided.get(i)
        return _zeroed(self.got[i], out), _zeroed(self.exact[i], out)


def _zeroed(part: Part, out: np.ndarray | None) -> Part:
    """A leaf with 0 at some elements."""
    return (
        part if out is None else part._replace(array=np.where(out, 0, np.asarray(part.array)).astype(part.array.dtype))
    )


@dataclass(frozen=True)
class Refuted:
    """Elements of a leaf where differences refute the rule: which, the worst of them, and what is right there."""

    where: np.ndarray
    at: tuple[int, ...]
    got: float | complex
    expected: float
    why: str


def point_at(comparison: "Comparison", arrays: Sequence[Any], met: Met | None = None, given: bool = True) -> Point:
    """The evidence at one point; `given`: it is the one asked about, and differences decide what is not finite."""
    parts = comparison.parts
    if comparison.together is None:
        got, plain = parts(comparison.rule(*arrays)), parts(comparison.oracle(*arrays))
        check_same(comparison.who, got, plain)
        exact = parts(comparison.oracle.exact(*arrays))
    else:
        got, plain, exact = map(parts, comparison.together(*arrays))
        check_same(comparison.who, got, plain)
    point = Point(list(arrays), got, plain, exact, met)
    for i, part in enumerate(point.exact):
        if part.name != VALUE and not np.isfinite(np.asarray(part.array)).all():
            _settle(comparison, point, i, given)
    point.leaves = _errors(comparison, point)
    if met is not None:
        _choose(comparison, point)
    return point


def _errors(comparison: "Comparison", point: Point) -> list[LeafError]:
    """Leaf by leaf, and the total; without what is undecided, and what is refuted by itself."""
    out = dict(point.undecided)
    for i, refuted in point.wrong.items():
        out[i] = out[i] | refuted.where if i in out else refuted.where

    def without(parts: list[Part]) -> list[Part]:
        return [_zeroed(part, out.get(i)) for i, part in enumerate(parts)]

    got, plain, exact = map(without, (point.got, point.plain, point.exact))
    found = errors(got, plain, exact)
    if isinstance(comparison.oracle, Program) and any(leaf.epsilon < EXACT and not leaf.ok for leaf in found):
        single = errors(without(comparison.parts(comparison.oracle.single(*point.arrays))), plain, exact)
        found = [amplified(leaf, s.error) for leaf, s in zip(found, single, strict=True)]
    for i, undecided in point.undecided.items():
        shared = undecided & np.isnan(np.asarray(point.got[i].array).astype(complex))
        found[i] = replace(found[i], undecided=int(undecided.sum()), shares_nan=bool(shared.any()))
    for i, right in point.settled.items():
        found[i] = replace(found[i], settled=right)
    for i, refuted in point.wrong.items():
        found[i] = replace(
            found[i], wrong=int(refuted.where.sum()), at=refuted.at, where=point.exact[i].symbol(refuted.at),
            got=refuted.got, expected=refuted.expected, pattern=refuted.why, by="by central differences",
        )  # fmt: skip
    gradients = [leaf for leaf in found[:-1] if leaf.name != VALUE]
    found[-1] = replace(found[-1], undecided=sum(leaf.undecided for leaf in gradients),
                        wrong=sum(leaf.wrong for leaf in gradients))  # fmt: skip
    return found


# -- what is not finite -----------------------------------------------------------------------------------------------


def _settle(comparison: "Comparison", point: Point, i: int, given: bool) -> None:
    """Elements of a leaf where the shadow is not finite: right, refuted, or undecided."""
    exact = np.array(point.exact[i].array)
    got = np.asarray(point.got[i].array).astype(exact.dtype)
    bad = ~np.isfinite(exact)
    point.absent[i] = bad
    undecided, refuted = bad.copy(), np.zeros_like(bad)
    first: Any = None
    leaf = i - sum(part.name == VALUE for part in point.exact)
    places = [tuple(map(int, at)) for at in np.argwhere(bad)]
    if len(places) > ASKED:
        places = [places[k] for k in np.linspace(0, len(places) - 1, ASKED).astype(int)]
    third = comparison.third if given and not np.iscomplexobj(exact) else None
    probes = third(leaf, places, point.arrays) if third is not None else ()
    ones = [np.ones_like(np.asarray(p.array)) for p in point.exact if p.name != VALUE]
    epsilon = float(jnp.finfo(point.got[i].array.dtype).eps)
    for at, probe in zip(places, probes, strict=False):
        unit, slope = probe.ask(ones)[0], probe.slope
        right, value = float(slope.value) / unit, float(got[at])
        if slope.grows and (np.isnan(exact[at]) or np.sign(exact[at]) == slope.grows):
            if np.isnan(exact[at]) and not np.isinf(value):
                continue
            right, agrees = float(slope.grows) * np.inf, value == float(slope.grows) * np.inf
            how = "one-sided differences grow without bound"
        elif slope.kink or 8 * slope.error <= CONVERGED * max(abs(slope.value), abs(slope.low), abs(slope.high)):
            size = max(abs(slope.value), abs(slope.low), abs(slope.high))
            agrees = bool(slope.agrees(value * unit, 8 * max(epsilon, 1e-7) * size))
            how = "central differences converge"
        else:
            continue
        undecided[at] = False
        if agrees:
            exact[at] = right
        else:
            refuted[at] = True
            first = first or (at, value, right, how)
    settled = bad & ~undecided & ~refuted
    if undecided.any():
        point.undecided[i] = undecided
        name, n = point.exact[i].name, int(undecided.sum())
        what = f"in {n:,} of {exact.size:,} elements autodiff has no finite derivative, and differences don't converge"
        point.notes.append(f"{name}: {what}.")
    if refuted.any():
        at, value, right, how = first
        own = f"is {value:g}" + (", as by autodiff" if np.isnan(value) and np.isnan(exact[at]) else "")
        why = f"{point.exact[i].symbol(at)} {own}, where {how}"
        point.wrong[i] = Refuted(refuted, at, value, right, why)
    if settled.any():  # right, so they are left out of the sums
        point.settled[i] = int(np.count_nonzero(exact[settled]))
        for parts in (point.got, point.plain, point.exact):
            parts[i] = _zeroed(parts[i], settled)


# -- kinks ------------------------------------------------------------------------------------------------------------


def _choose(comparison: "Comparison", point: Point) -> None:
    """Put the derivative that is right and nearest to the rule in the place of the shadow's.

    Autodiff's own error is measured from the one that is nearest to autodiff's: a slope of its own choice is no error.
    """
    kinks, met = comparison.kinks, point.met
    assert kinks is not None
    assert met is not None
    first = sum(part.name == VALUE for part in point.exact)
    exact = [np.asarray(part.array) for part in point.exact[first:]]
    gradients = point.leaves[first:-1]
    units = [leaf.epsilon * (leaf.scale or 1.0) for leaf in gradients]

    def nearest(parts: list[Part]) -> list[np.ndarray]:
        result = [np.asarray(p.array).astype(e.dtype) for p, e in zip(parts[first:], exact, strict=True)]
        off = [rms(r - e) for r, e in zip(result, exact, strict=True)]
        near = all(o <= FLOOR * unit for o, unit in zip(off, units, strict=True))
        if near or all(m is None for m in met.where):
            return exact
        clean = [np.where(np.isfinite(r), r, 0) for r in result]
        return kinks.nearest(met, point.arrays, clean, units) or exact

    of_rule, of_plain = nearest(point.got), nearest(point.plain)
    point.chosen = any(not np.array_equal(a, b) for a, b in zip(of_rule, exact, strict=True))
    for k, (mine, its, old) in enumerate(zip(of_rule, of_plain, exact, strict=True)):
        i = first + k
        keep = np.isfinite(mine) & np.isfinite(its) & np.isfinite(old)
        right, moved = np.where(keep, mine, old), np.where(keep, mine - its, 0)
        plain = np.asarray(point.plain[i].array).astype(old.dtype) + moved
        point.exact[i] = point.exact[i]._replace(array=right)
        point.plain[i] = point.plain[i]._replace(array=plain)
    if of_rule is not exact or of_plain is not exact:
        point.leaves = _errors(comparison, point)


# -- points beside ----------------------------------------------------------------------------------------------------


@np.errstate(all="ignore")  # an argument may be infinite
def around(arrays: Sequence[Any], moved: Sequence[int], count: int, step: float) -> list[list[Any]]:
    """Arguments beside these, in pairs that lie on opposite sides: each element moves by up to `step` of its size."""
    random, points = stream("beside"), []
    for _ in range(count // 2):
        by = {i: step * unit_of(arrays[i]) * random.choice([-1, 1], np.shape(arrays[i])) for i in moved}
        by = {i: b * random.uniform(0.25, 1, np.shape(b)) for i, b in by.items()}
        for sign in (1, -1):
            near = [like(widened(arrays[i]) + sign * by[i], arrays[i]) for i in moved]
            points.append(filled(arrays, list(moved), near))
    return points


def like(near: Any, a: Any) -> Any:
    """Numbers as an array of another's dtype, where that one is."""
    near = np.asarray(near).astype(a.dtype)
    return jax.device_put(near, a.sharding) if getattr(a, "committed", False) else near


def movable(comparison: "Comparison", point: Point) -> list[int]:
    """The arguments, by place, that may be moved: those for which the rule returns a derivative that is not 0.

    What is 0 at the point may be so by a kink: it is asked beside it, where nothing is judged.
    """
    moving = comparison.moving or ()
    if comparison.given is not None:
        return [i for i in moving if i in comparison.given]
    if comparison.tangents:
        return [i for i, t in zip(moving, point.arrays[-len(moving) :], strict=True) if np.any(np.asarray(t))]
    gradients = lambda parts: [np.asarray(p.array) for p in parts if p.name != VALUE]
    here = gradients(point.got)
    if len(here) != len(moving):  # pieces of one argument
        return list(moving)
    nonzero = [g.any() for g in here]
    if not all(nonzero):
        floats = [i for i in moving if is_float(point.arrays[i])]
        for near in around(point.arrays, floats, 2, 2.0**-4):
            there = gradients(comparison.parts(comparison.rule(*near)))
            nonzero = [a or b.any() for a, b in zip(nonzero, there, strict=True)]
    return [i for i, some in zip(moving, nonzero, strict=True) if some]
