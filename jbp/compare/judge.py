"""One rule against one oracle: run both, measure both by the float64 shadow, and where they differ, find out why.

What decides is the point that was given, and beside it two things:

* where a kink of the program is met, points beside it: a rule may choose its slopes at a kink, and not beside it;
* in `Cost.compare`, one θ off the given one: what a gain of 1 hides shows there.

Only arguments for which the rule returns a derivative are moved (`argnums` says otherwise). Rounding is a matter of
luck in a leaf of few elements: autodiff may happen to hit one of them to the last bit. So a rule that fails is tried
again at `NEARBY` points, and passes if the errors of all, pooled, are small enough. Bad luck does not last. No such
point makes it wrong.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..programs.arguments import filled, is_float
from ..programs.clock import race
from ..programs.program import Program, Together
from .differences import Numerical, Slopes, Third, stream, widened
from .error import LeafError, pooled
from .evidence import Point, around, like, movable, point_at
from .kinks import Kinks
from .parts import Part
from .report import Check, Report
from .why import explained, hidden, noisy, suspected

NEARBY = 16  # points close by, where luck is told from error
BESIDE = 8  # points beside a kink
NEAR = 2.0**-6  # how far they are, in units of each element's size
OFF = 2.0**-3  # how far the other θ is
IMPRECISE = 0.01  # of a leaf's scale


@dataclass
class Comparison:
    """What is compared: two programs of the same arrays, and how their results fall into parts.

    `third` may be asked about gradients' leaves, counted without the value. `moving`: the arguments, by place, that the
    derivatives are of, all floats if that is not known; `given`: those that may be moved, where the user says so.
    `elsewhere`: another point of the first argument decides too.
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
    kinks: Kinks | None = None
    moving: Sequence[int] | None = None
    given: Sequence[int] | None = None
    tangents: bool = False  # the derivatives are of the outputs, along tangents that stand last
    elsewhere: bool = False
    arrays: list[Any] = field(default_factory=list)  # the rule's own arguments, unless given others of their shapes
    points: list[Point] = field(default_factory=list)  # that decide, the first the given one
    tried: int = 0  # others, for luck
    together: Together | None = None  # all that a point needs, in one program

    def __post_init__(self) -> None:
        self.arrays = self.rule.arguments.arrays
        if self.moving is None:
            self.moving = [i for i, a in enumerate(self.arrays) if is_float(a)]

    def errors(self, arrays: Sequence[Any]) -> list[LeafError]:
        """At one point: leaf by leaf, and the total."""
        return point_at(self, arrays).leaves

    def look(self) -> list[LeafError]:
        """The leaves and their total, of all points that decide; with them, the noise of what is to be measured by."""
        arrays = self.arrays
        given = point_at(self, arrays)
        self.points = [given]
        if isinstance(self.oracle, Program) and self.kinks is not None and self.kinks.any:
            moved = movable(self, given)
            narrow = max((float(jnp.finfo(arrays[i].dtype).eps) for i in moved), default=0.0)
            beside = around(arrays, moved, BESIDE, min(max(NEAR, 16 * narrow), 0.25)) if moved else []
            given.met = self.kinks.met(arrays, beside[:2])
            if given.met is not None:
                self.points = [given := point_at(self, arrays, given.met)]
                self.points += [point_at(self, near, self.kinks.met(near, [arrays]), given=False) for near in beside]
        if self.elsewhere:
            off = around(arrays, [0], 2, OFF)[0]
            self.points.append(point_at(self, off, given=False))
        failed = given.met is None and not all(point.ok for point in self.points)
        lucky = [point_at(self, near, given=False) for near in self._nearby(given)] if failed else []
        for point in (*self.points, *lucky):
            if not point.ok:
                noisy(self, point)
        leaves = list(map(pooled, zip(*(point.leaves for point in self.points), strict=True)))
        if lucky:
            self.tried = len(lucky)
            more = map(pooled, zip(*(point.leaves for point in (*self.points, *lucky)), strict=True))
            leaves = [b if b.ok and not a.ok and not a.wrong else a for a, b in zip(leaves, more, strict=True)]
        return leaves

    def _nearby(self, given: Point) -> Iterator[list[Any]]:
        """Arguments close to these: what may be moved, by up to 1/64 of itself, so that zeros and signs stay."""
        random, moved = stream("nearby"), movable(self, given)
        for _ in range(NEARBY):
            near = [widened(self.arrays[i]) * (1 - random.uniform(0, NEAR, np.shape(self.arrays[i]))) for i in moved]
            near = [like(n, self.arrays[i]) for n, i in zip(near, moved, strict=True)]
            yield filled(self.arrays, moved, near)

    def report(
        self,
        timing: bool = True,
        checks: Callable[[], tuple[Check, ...]] | None = None,
        calls: Callable[[Sequence[Any]], tuple[Report, ...]] | None = None,
        always: bool = False,
    ) -> Report:
        """The whole of it. `calls(arrays)`: reports of what is inside, asked for where values differ, or `always`."""
        arrays = self.arrays
        if not timing and isinstance(self.oracle, Program):
            self.together = Together.of(self.rule, self.oracle)
        *leaves, total = self.look()
        notes: list[str] = []
        if (smooth := next((point for point in self.points if point.met is None), None)) is not None:
            leaves = hidden(self, smooth, leaves)
        if not all(leaf.ok for leaf in (*leaves, total)):
            leaves, total, notes = explained(self, leaves, total)
        else:
            notes = [*suspected(self, leaves), *_imprecise(leaves)] if not self.rule.hurry else []
        more: dict[str, Any] = {}
        leaves = [self._placed(leaf, i) for i, leaf in enumerate(leaves)]
        if timing:
            a, b, ratio = race(partial(self.rule, *arrays), partial(self.oracle, *arrays))
            more = {"rule": self.rule.measured(a)}
            if isinstance(self.oracle, Program):  # central differences are not in the race
                more |= {"oracle": self.oracle.measured(b), "race": ratio}
        if calls is not None and (always or not all(leaf.ok for leaf in (*leaves, total))):
            try:
                more["calls"] = calls(self.worst(leaves).arrays)
            except Exception as error:  # the rule is wrong, so what it does inside may be anything
                notes.append(f"What is inside was not looked into: {type(error).__name__}: {error}")
        if checks is not None:
            more["checks"] = checks()
        notes = [*self.notes, *self.rule.notes, *self.oracle.notes, *_spoiled(leaves), *self._of_points(leaves), *notes]
        return Report(
            tuple(leaves), total, points=len(self.points) + self.tried, name=self.name, where=self.where,
            notes=tuple(dict.fromkeys(notes)), maps=tuple(map(_map, self.points[0].got, self.points[0].exact)), **more,
        )  # fmt: skip

    def worst(self, leaves: Sequence[LeafError], i: int | None = None) -> Point:
        """The point at which a leaf is furthest off; unless given, the leaf that is."""
        if i is None:
            i = max(range(len(leaves)), key=lambda i: (not leaves[i].ok, leaves[i].excess))
        return max(self.points, key=lambda point: (bool(point.leaves[i].wrong), point.leaves[i].excess))

    def _of_points(self, leaves: Sequence[LeafError]) -> Iterator[str]:
        given = self.points[0]
        yield from given.notes
        if given.met is not None:
            several = f"{given.met.number:,} kinks are met" if given.met.number > 1 else "A kink is met"
            right = given.chosen and given.ok
            chosen = "; the rule's slopes there are others than autodiff's, and right as well" if right else ""
            yield f"{several} at the arguments{chosen}. {len(self.points) - 1} points beside them are compared too."

    def _placed(self, leaf: LeafError, i: int) -> LeafError:
        """The leaf, saying so where it is wrong beside the given point."""
        beside = not leaf.ok and self.worst([leaf], i) is not self.points[0]
        return replace(leaf, by=f"{leaf.by}, beside the given point") if beside else leaf


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
