"""What is compared: a rule and an oracle, two programs of the same arrays, and the function that they differentiate."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..programs.arguments import is_float
from ..programs.program import Program, Together
from .differences import Numerical, Probe, Slopes, jvp_probes, vjp_probes
from .kinks import Kinks
from .parts import Part, check_same
from .points import widened


@dataclass(frozen=True, eq=False)
class Behind:
    """The function that two derivatives are of: its kinks, and its slopes, which answer as a third oracle.

    `kind` "vjp": a scalar, and the derivatives are its gradients. "jvp": any outputs, and the derivatives are theirs,
    along tangents that stand last among the arrays.
    """

    slopes: Slopes
    kind: str = "vjp"

    @cached_property
    def kinks(self) -> Kinks:
        return Kinks(self.slopes, self.kind)

    def probes(self, leaf: int | None, places: Sequence[tuple[int, ...]], arrays: Sequence[Any]) -> Iterator[Probe]:
        """Of one leaf, at some of its elements and as a whole; of all leaves if it is None."""
        if self.kind == "vjp":
            yield from vjp_probes(self.slopes, leaf, places, arrays)
            return
        tangents = list(map(widened, arrays[-len(self.slopes.moving) :]))
        along = self.slopes.along(tangents, arrays)
        for i in range(len(along)) if leaf is None else [leaf]:
            yield from jvp_probes(along, i, places)

    def unstopped(self, arrays: Sequence[Any]) -> Any:
        """The gradient as if nothing were stopped; None where nothing is."""
        return self.slopes.unstopped(arrays) if self.kind == "vjp" else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two programs of `arrays`, and how their results fall into parts.

    `moving`: the arrays, by place, that the derivatives are of, all floats if that is not known; `given`: those that
    may be moved, where the user says so. `elsewhere`: another point of the first array decides too. `timing`: time and
    memory are measured, so that each program is compiled by itself.
    """

    who: str
    name: str
    rule: Program
    oracle: Program | Numerical
    parts: Callable[[Any], list[Part]]
    arrays: Sequence[Any]
    behind: Behind | None = None
    kind: str = "vjp"
    moving: Sequence[int] | None = None
    given: Sequence[int] | None = None
    elsewhere: bool = False
    timing: bool = False
    where: str = ""
    notes: tuple[str, ...] = ()

    @property
    def moves(self) -> list[int]:
        return list(self.moving) if self.moving is not None else [i for i, a in enumerate(self.arrays) if is_float(a)]

    def run(self, arrays: Sequence[Any]) -> tuple[list[Part], list[Part], list[Part]]:
        """(by the rule, by the oracle, by the oracle in float64) at arguments of these shapes."""
        got, plain, exact = map(self.parts, self._together(*arrays))
        check_same(self.who, got, plain)
        return got, plain, exact

    @cached_property
    def _together(self) -> Callable[..., tuple[Any, Any, Any]]:
        if self.timing or not isinstance(self.oracle, Program):
            return lambda *arrays: (self.rule(*arrays), self.oracle(*arrays), self.oracle.exact(*arrays))
        return Together.of(self.rule, self.oracle)

    def leaves(self, result: Any) -> list[Any]:
        """The arrays of a result, leaf by leaf."""
        return [part.array for part in self.parts(result)]
