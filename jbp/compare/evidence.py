"""What stands at one point: the rule, autodiff, the float64 shadow, and which derivative is right if there are several.

A derivative that is not finite is decided element by element:

    autodiff is ±∞      and one-sided differences grow without bound to it: this infinity is right, and nothing else
    autodiff is NaN     and differences converge: they are right; if not, the element is undecided, and left out
    at a kink           the derivative is right that is nearest to the rule's own, among those of all choices there
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from .comparison import Comparison
from .error import FAR, FLOOR, LeafError, errors, rms
from .kinks import Met
from .parts import VALUE, Part, count_of_values
from .points import beside, movement

ASKED = 64  # elements of a leaf without a finite derivative, that central differences are asked about
CONVERGED = 1e-3  # of a slope: the error, up to which it decides


@dataclass(frozen=True)
class Refuted:
    """Elements of a leaf where differences refute the rule: which, the worst of them, and what is right there."""

    where: np.ndarray
    at: tuple[int, ...]
    got: float | complex
    expected: float
    why: str


@dataclass(frozen=True)
class Answers:
    """What differences say of the elements of a leaf where the shadow is not finite (`absent`)."""

    absent: np.ndarray
    undecided: np.ndarray  # they have no derivative
    right: np.ndarray
    nonzero: int  # among the right ones
    refuted: Refuted | None

    @property
    def out(self) -> np.ndarray:
        """Elements that are not measured: they are undecided, or refuted by themselves."""
        return self.undecided if self.refuted is None else self.undecided | self.refuted.where


@dataclass(frozen=True, eq=False)
class Evidence:
    """Rule, oracle and shadow at one set of arguments, and the errors of all leaves, the last that of their total."""

    arrays: Sequence[Any]
    got: list[Part]
    plain: list[Part]
    exact: list[Part]
    answers: Mapping[int, Answers] = field(default_factory=dict)  # by leaf
    met: Met | None = None
    chosen: bool = False  # at its kinks the rule has other slopes than autodiff
    leaves: tuple[LeafError, ...] = ()

    @property
    def ok(self) -> bool:
        return all(leaf.ok for leaf in self.leaves)

    def finite(self, parts: list[Part]) -> list[Part]:
        """The leaves, with 0 where the shadow is not finite."""
        return [_zeroed(p, self.answers[i].absent) if i in self.answers else p for i, p in enumerate(parts)]

    def judged(self, i: int) -> tuple[Any, Any]:
        """A leaf by the rule and in float64, with 0 in both where an element is undecided."""
        both = self.got[i], self.exact[i]
        got, exact = (_zeroed(p, self.answers[i].undecided) for p in both) if i in self.answers else both
        return got.array, exact.array

    @property
    def notes(self) -> Iterator[str]:
        for i, answers in self.answers.items():
            if n := int(answers.undecided.sum()):
                yield (
                    f"{self.exact[i].name}: in {n:,} of {answers.absent.size:,} elements autodiff has no finite "
                    "derivative, and differences don't converge."
                )


def worst(points: Sequence[Evidence], leaves: Sequence[LeafError], i: int | None = None) -> Evidence:
    """The point at which a leaf is furthest off; unless given, the leaf that is."""
    if i is None:
        i = max(range(len(leaves)), key=lambda i: (not leaves[i].ok, leaves[i].excess))
    return max(points, key=lambda point: (bool(point.leaves[i].wrong), point.leaves[i].excess))


def evidence_at(comparison: Comparison, arrays: Sequence[Any], given: bool = True) -> Evidence:
    """All that is known at one point; `given`: it is the one asked about, and differences decide what isn't finite."""
    got, plain, exact = comparison.run(arrays)
    answers = {
        i: _answered(comparison, i, got, exact, arrays, given)
        for i, part in enumerate(exact)
        if part.name != VALUE and not np.isfinite(np.asarray(part.array)).all()
    }
    for parts in (got, plain, exact):  # what is right is left out of the sums
        parts[:] = [_zeroed(p, answers[i].right) if i in answers else p for i, p in enumerate(parts)]
    evidence = Evidence(arrays, got, plain, exact, answers)
    return replace(evidence, leaves=tuple(_errors(evidence)))


def _zeroed(part: Part, out: np.ndarray) -> Part:
    """A leaf with 0 at some elements."""
    if not out.any():
        return part
    return part._replace(array=np.where(out, 0, np.asarray(part.array)).astype(part.array.dtype))


def _errors(evidence: Evidence) -> list[LeafError]:
    """Leaf by leaf, and the total; without what is undecided, and what is refuted by itself."""
    out = {i: answers.out for i, answers in evidence.answers.items()}
    measured = (evidence.got, evidence.plain, evidence.exact)
    found = errors(*([_zeroed(p, out[i]) if i in out else p for i, p in enumerate(parts)] for parts in measured))
    for i, answers in evidence.answers.items():
        shared = answers.undecided & np.isnan(np.asarray(evidence.got[i].array).astype(complex))
        found[i] = replace(found[i], undecided=int(answers.undecided.sum()), shares_nan=bool(shared.any()),
                           settled=answers.nonzero)  # fmt: skip
        if (refuted := answers.refuted) is not None:
            found[i] = replace(
                found[i], wrong=int(refuted.where.sum()), at=refuted.at, where=evidence.exact[i].symbol(refuted.at),
                got=refuted.got, expected=refuted.expected, pattern=refuted.why, by="by central differences",
            )  # fmt: skip
    gradients = [leaf for leaf in found[:-1] if leaf.name != VALUE]
    found[-1] = replace(found[-1], undecided=sum(leaf.undecided for leaf in gradients),
                        wrong=sum(leaf.wrong for leaf in gradients))  # fmt: skip
    return found


def _with_noise(comparison: Comparison, evidence: Evidence) -> Evidence:
    """With the shadow's own noise: how far last bits of float64 move it. Where all cancels, it is no reference.

    Not at a kink: there a last bit changes the slope, and that is no noise.
    """
    moved = movement(lambda *near: comparison.leaves(comparison.oracle.exact(*near)), beside(evidence.arrays))
    norms = [(rms(off), float(off.max(initial=0))) for off in moved]
    *leaves, total = evidence.leaves
    first = count_of_values(evidence.exact)
    squares = sum(off.size * norm[0] ** 2 for off, norm in zip(moved[first:], norms[first:], strict=True))
    count, peak = sum(off.size for off in moved[first:]), max((norm[1] for norm in norms[first:]), default=0.0)
    found = [replace(leaf, noise=norm) for leaf, norm in zip(leaves, norms, strict=True)]
    return replace(evidence, leaves=(*found, replace(total, noise=(math.sqrt(squares / max(count, 1)), peak))))


# -- what is not finite -----------------------------------------------------------------------------------------------


def _answered(
    comparison: Comparison, i: int, got: Sequence[Part], exact: Sequence[Part], arrays: Sequence[Any], given: bool
) -> Answers:
    """Elements of leaf i where the shadow is not finite: right, refuted, or undecided."""
    true = np.array(exact[i].array)
    mine = np.asarray(got[i].array).astype(true.dtype)
    absent = ~np.isfinite(true)
    undecided, refuted = absent.copy(), np.zeros_like(absent)
    first: Any = None
    places = [tuple(map(int, at)) for at in np.argwhere(absent)]
    if len(places) > ASKED:
        places = [places[k] for k in np.linspace(0, len(places) - 1, ASKED).astype(int)]
    behind = comparison.behind if given and not np.iscomplexobj(true) else None
    probes = () if behind is None else behind.probes(i - count_of_values(exact), places, arrays)
    ones = [np.ones_like(np.asarray(p.array)) for p in exact if p.name != VALUE]
    epsilon = float(jnp.finfo(got[i].array.dtype).eps)
    usual = rms(true[~absent])  # a slope of 0 has no size of its own
    for at, probe in zip(places, probes, strict=False):
        unit, slope = probe.ask(ones)[0], probe.slope
        right, value = float(slope.value) / unit, float(mine[at])
        size = max(abs(slope.value), abs(slope.low), abs(slope.high), usual * abs(unit))
        if slope.grows and (np.isnan(true[at]) or np.sign(true[at]) == slope.grows):
            if np.isnan(true[at]) and not np.isinf(value):
                continue
            right, agrees = float(slope.grows) * np.inf, value == float(slope.grows) * np.inf
            how = "one-sided differences grow without bound"
        elif slope.kink or 8 * slope.error <= CONVERGED * size:
            agrees = bool(slope.agrees(value * unit, 8 * max(epsilon, 1e-7) * size))
            how = "central differences converge"
        else:
            continue
        undecided[at] = False
        if agrees:
            true[at] = right
        else:
            refuted[at] = True
            first = first or (at, value, right, how)
    settled = absent & ~undecided & ~refuted
    wrong = None
    if first is not None:
        at, value, right, how = first
        own = f"is {value:g}" + (", as by autodiff" if np.isnan(value) and np.isnan(true[at]) else "")
        wrong = Refuted(refuted, at, value, right, f"{exact[i].symbol(at)} {own}, where {how}")
    return Answers(absent, undecided, settled, int(np.count_nonzero(true[settled])), wrong)


# -- kinks ------------------------------------------------------------------------------------------------------------


def measured(comparison: Comparison, evidence: Evidence, met: Met | None) -> Evidence:
    """The evidence with what its errors are to be measured by: the kinks that are met, else the shadow's own noise.

    At a kink the derivative that is right and nearest to the rule stands in the place of the shadow's. Autodiff's own
    error is measured from the one that is nearest to autodiff's: a slope of its own choice is no error.
    """
    if met is None:
        return evidence if evidence.ok else _with_noise(comparison, evidence)
    if met.by_chance and evidence.ok and all(leaf.oracle_error <= FAR * leaf.epsilon * leaf.scale
                                             for leaf in evidence.leaves):  # fmt: skip
        return replace(evidence, met=met)  # no side that rounding turned makes either error, and none need be found
    assert comparison.behind is not None
    kinks, first = comparison.behind.kinks, count_of_values(evidence.exact)
    exact = [np.asarray(part.array) for part in evidence.exact[first:]]
    units = [leaf.epsilon * (leaf.scale or 1.0) for leaf in evidence.leaves[first:-1]]

    def nearest(parts: list[Part]) -> list[np.ndarray]:
        result = [np.asarray(p.array).astype(e.dtype) for p, e in zip(parts[first:], exact, strict=True)]
        off = [rms(r - e) for r, e in zip(result, exact, strict=True)]
        near = all(o <= FLOOR * unit for o, unit in zip(off, units, strict=True))
        if near or all(m is None for m in met.where):
            return exact
        clean = [np.where(np.isfinite(r), r, 0) for r in result]
        return kinks.nearest(met, evidence.arrays, clean, units) or exact

    right, plain = list(evidence.exact), list(evidence.plain)
    of_rule, of_plain = nearest(evidence.got), nearest(evidence.plain)
    for i, mine, its, old in zip(range(first, len(right)), of_rule, of_plain, exact, strict=True):
        keep = np.isfinite(mine) & np.isfinite(its) & np.isfinite(old)
        moved = np.asarray(plain[i].array).astype(old.dtype) + np.where(keep, mine - its, 0)
        right[i], plain[i] = right[i]._replace(array=np.where(keep, mine, old)), plain[i]._replace(array=moved)
    chosen = any(not np.array_equal(a, b) for a, b in zip(of_rule, exact, strict=True))
    found = replace(evidence, exact=right, plain=plain, met=met, chosen=chosen)
    return replace(found, leaves=tuple(_errors(found)))
