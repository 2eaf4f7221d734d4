"""One rule against one oracle: run both, measure both by the float64 shadow, and where they differ, find out why.

Rounding is a matter of luck in a leaf of few elements: autodiff may happen to hit one of them to the last bit. So a
rule that fails at the arguments given is tried at `NEARBY` points close by as well, and the errors of all are pooled.
Bad luck does not last; a wrong rule stays wrong, also one that is wrong at the one point given. `why` explains it then.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np

from .arguments import is_float
from .differences import Numerical, Slopes, Third, stream, widened
from .error import EXACT, LeafError, amplified, errors, pooled
from .parts import Part, check_same
from .program import Program, in_a_hurry, race
from .report import Check, Report
from .why import explained, hidden, noisy, suspected

NEARBY = 16
IMPRECISE = 0.01  # of a leaf's scale


@dataclass
class Comparison:
    """What is compared: two programs of the same arrays, and how their results fall into parts.

    `third` may be asked about gradients' leaves, counted without the value.
    """

    who: str
    name: str
    rule: Program
    oracle: Program | Numerical
    parts: Callable[[Any], list[Part]]
    third: Third | None = None
    slopes: Slopes | None = None  # of the scalar that the gradients are of, if it is known
    where: str = ""
    notes: list[str] = field(default_factory=list)
    maps: tuple[Any, ...] = ()
    got: list[Part] = field(default_factory=list)  # at the arguments themselves: the rule, the oracle, the shadow
    plain: list[Part] = field(default_factory=list)
    exact: list[Part] = field(default_factory=list)
    leaves: list[LeafError] = field(default_factory=list)
    arrays: list[Any] = field(default_factory=list)  # the rule's own arguments, unless given others of their shapes

    def __post_init__(self) -> None:
        self.arrays = self.rule.arguments.arrays

    def errors(self, arrays: Sequence[Any]) -> list[LeafError]:
        """At one point: leaf by leaf, and the total."""
        got, plain = self.parts(self.rule(*arrays)), self.parts(self.oracle(*arrays))
        check_same(self.who, got, plain)
        exact = self.parts(self.oracle.exact(*arrays))
        if not self.exact:
            self.maps, self.got, self.plain, self.exact = tuple(map(_map, got, exact)), got, plain, exact
        found = errors(got, plain, exact)
        if isinstance(self.oracle, Program) and any(leaf.epsilon < EXACT and not leaf.ok for leaf in found):
            single = errors(self.parts(self.oracle.single(*arrays)), plain, exact)
            found = [amplified(leaf, s.error) for leaf, s in zip(found, single, strict=True)]
        return found

    def report(
        self,
        timing: bool = True,
        checks: Callable[[], tuple[Check, ...]] | None = None,
        calls: Callable[[], tuple[Report, ...]] | None = None,
        always: bool = False,
    ) -> Report:
        """The whole of it. `calls()`, the reports of what is inside, is asked for where values differ, or `always`."""
        arrays = self.arrays
        first = self.errors(arrays)
        points = [first]
        if not all(leaf.ok for leaf in first):
            near = [self.errors(arrays) for arrays in _nearby(arrays)]
            points += [p for p in near if all(map(_defined, p, first))]  # others have left the domain
        *leaves, total = map(pooled, zip(*points, strict=True))
        notes: list[str] = []
        if not all(leaf.ok for leaf in (*leaves, total)):
            leaves, total = noisy(self, arrays, leaves, total)
        self.leaves = leaves = hidden(self, arrays, leaves)
        if not all(leaf.ok for leaf in (*leaves, total)):
            leaves, total, notes = explained(self, arrays, leaves, total)
        else:
            notes = [*suspected(self, leaves), *_imprecise(leaves)] if not in_a_hurry() else []
        more: dict[str, Any] = {}
        if timing:
            a, b, ratio = race(partial(self.rule, *arrays), partial(self.oracle, *arrays))
            more = {"rule": self.rule.measured(a)}
            if isinstance(self.oracle, Program):  # central differences are not in the race
                more |= {"oracle": self.oracle.measured(b), "race": ratio}
        if calls is not None and (always or not all(leaf.ok for leaf in (*leaves, total))):
            try:
                more["calls"] = calls()
            except Exception as error:  # the rule is wrong, so what it does inside may be anything
                notes.append(f"What is inside was not looked into: {type(error).__name__}: {error}")
        if checks is not None:
            more["checks"] = checks()
        notes = [*self.notes, *self.rule.notes, *self.oracle.notes, *_spoiled(leaves), *notes]
        return Report(
            tuple(leaves), total, points=len(points), name=self.name, where=self.where, notes=tuple(notes),
            maps=self.maps, **more,
        )  # fmt: skip


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


def _defined(near: LeafError, here: LeafError) -> bool:
    """Whether the shadow is finite there, if it is here."""
    return math.isfinite(near.scale) or not math.isfinite(here.scale)


def _nearby(arrays: Sequence[Any]) -> Iterator[list[Any]]:
    """Arguments close to these: every float smaller by up to 1/64 of itself, so that zeros and signs stay."""
    random = stream("nearby")

    def moved(a: Any) -> Any:
        near = (widened(a) * (1 - random.uniform(0, 2**-6, np.shape(a)))).astype(a.dtype) if is_float(a) else a
        return jax.device_put(near, a.sharding) if getattr(a, "committed", False) and near is not a else near

    return ([moved(a) for a in arrays] for _ in range(NEARBY))


def _map(got: Part, exact: Part) -> np.ndarray:
    """|rule − shadow| of a leaf as a matrix of at most 64 × 64, the last axis across, both evenly spread."""
    shape = np.shape(exact.array)
    if not math.prod(shape):
        return np.zeros((0, 0))
    width = shape[-1] if shape else 1
    a, b = (np.asarray(part.array).reshape(-1, width) for part in (got, exact))
    rows, columns = (np.unique(np.linspace(0, n - 1, min(n, 64)).astype(int)) for n in a.shape)
    with np.errstate(all="ignore"):
        return np.abs(a[np.ix_(rows, columns)].astype(b.dtype) - b[np.ix_(rows, columns)])
