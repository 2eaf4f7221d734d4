"""One rule against one oracle: run both, measure both by the float64 shadow, and where they differ, find out why.

Rounding is a matter of luck in a leaf of few elements: autodiff may happen to hit one of them to the last bit. So a
rule that fails at the arguments given is tried at `NEARBY` points close by as well, and the errors of all are pooled.
Bad luck does not last; a wrong rule stays wrong, also one that is wrong at the one point given.

A leaf that still fails is put to the third oracle, central differences of the function itself, and the rule is run in
float64 too. So a wrong formula is told from a right one in poor arithmetic, and a wrong autodiff from a wrong rule.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .differences import Probe
from .error import FLOOR, VALUE, LeafError, Part, check_same, errors, pooled
from .patterns import pattern_of
from .program import Program, race
from .replay import first_nonfinite
from .report import Check, Report

NEARBY = 16
ASKED = 4  # failing leaves that are put to the third oracle, the worst first


# The third oracle: probes of one leaf at one of its elements, or (None) of all leaves; the name is the element's.
Third = Callable[[int | None, tuple[int, ...], str], Iterator[Probe]]


@dataclass
class Comparison:
    """What is compared: two programs of the same arrays, and how their results fall into parts.

    `third` may be asked about gradients' leaves, counted without the value.
    """

    who: str
    name: str
    rule: Program
    oracle: Program
    parts: Callable[[Any], list[Part]]
    third: Third | None = None
    where: str = ""
    notes: list[str] = field(default_factory=list)
    maps: tuple[Any, ...] = ()
    exact: list[Part] = field(default_factory=list)  # the shadow at the arguments themselves
    arrays: list[Any] = field(default_factory=list)  # the rule's own arguments, unless given others of their shapes

    def __post_init__(self) -> None:
        self.arrays = self.rule.arguments.arrays

    def errors(self, arrays: Sequence[Any]) -> list[LeafError]:
        """At one point: leaf by leaf, and the total."""
        got, plain = self.parts(self.rule(*arrays)), self.parts(self.oracle(*arrays))
        check_same(self.who, got, plain)
        exact = self.parts(self.oracle.exact(*arrays))
        if not self.maps:
            self.maps, self.exact = tuple(map(_map, got, exact)), exact
        return errors(got, plain, exact)

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
            points += [self.errors(near) for near in _nearby(arrays)]
        *leaves, total = map(pooled, zip(*points, strict=True))
        notes: list[str] = []
        if not all(leaf.ok for leaf in (*leaves, total)):
            leaves, total, notes = self._explained(arrays, leaves, total)
        elif self.third is not None:
            notes = self._suspected(leaves)
        more: dict[str, Any] = {}
        if timing:
            a, b, ratio = race(partial(self.rule, *arrays), partial(self.oracle, *arrays))
            more = {"rule": self.rule.measured(a), "oracle": self.oracle.measured(b), "race": ratio}
        if calls is not None and (always or not all(leaf.ok for leaf in (*leaves, total))):
            try:
                more["calls"] = calls()
            except Exception as error:  # the rule is wrong, so what it does inside may be anything
                notes.append(f"What is inside was not looked into: {type(error).__name__}: {error}")
        if checks is not None:
            more["checks"] = checks()
        notes = [*self.notes, *self.rule.notes, *self.oracle.notes, *notes]
        return Report(
            tuple(leaves), total, points=len(points), name=self.name, where=self.where, notes=tuple(notes),
            maps=self.maps, **more,
        )  # fmt: skip

    # -- why they differ ------------------------------------------------------------------------------------------------

    def _explained(
        self, arrays: Sequence[Any], leaves: list[LeafError], total: LeafError
    ) -> tuple[list[LeafError], LeafError, list[str]]:
        """The leaves with patterns and what the third oracle says of them; the total; remarks."""
        notes: list[str] = []
        got, exact = self.parts(self.rule(*arrays)), self.exact
        right = {part.name: part.array for part in exact}
        failing = [i for i, leaf in enumerate(leaves) if not leaf.ok]
        for i in failing:
            others = {name: a for name, a in right.items() if name != leaves[i].name}
            pattern = pattern_of(leaves[i], got[i].array, exact[i].array, others)
            leaves[i] = dataclasses.replace(leaves[i], pattern=pattern)
        if any(not np.isfinite(np.asarray(got[i].array)).all() for i in failing):
            for who, program in (("rule", self.rule), ("oracle", self.oracle)):
                if (origin := first_nonfinite(program.jaxpr, arrays)) is not None:
                    notes.append(f"In the {who}, {origin}.")
        try:
            mathematics = self.parts(self.rule.exact(*arrays))
        except ValueError as error:
            return leaves, total, [*notes, f"The rule was not run in float64: {error}"]
        skip = int(leaves[0].name == VALUE and len(leaves) > 1)
        ask = [np.asarray(part.array) for part in mathematics[skip:]]
        plain = [np.asarray(part.array) for part in exact[skip:]]
        for i in sorted(failing, key=lambda i: -leaves[i].excess)[:ASKED]:
            if self.third is None or i < skip:
                verdict = "formula" if _same(ask[i - skip], plain[i - skip], leaves[i]) else ""
            else:
                verdict = _asked(self.third, i - skip, leaves[i], ask, plain)
            if verdict in ("autodiff", "kink") and not (poor := self._poor(arrays, i, leaves[i])):
                excused = {
                    "autodiff": "autodiff is wrong here: the rule agrees with central differences",
                    "kink": "a kink: the rule's value lies between the slopes from both sides",
                }[verdict]
                leaves[i] = dataclasses.replace(leaves[i], excused=excused)
                notes.append(f"{leaves[i].name}: {excused}.")
            elif told := {
                "autodiff": "the rule agrees with central differences, and autodiff does not; but the rule loses digits",
                "kink": "a kink, where the rule's value lies between the slopes from both sides; but it loses digits",
                "formula": "in float64 the rule agrees with the oracle: the formula is right, its arithmetic loses digits",
                "rule": "autodiff and central differences agree with each other, and the rule with neither",
                "none": "the rule, autodiff and central differences: no two of them agree",
                "differences": "rule and autodiff differ by less than central differences can tell",
            }.get(verdict):
                notes.append(f"{leaves[i].name}: {told}.")
        if failing and all(leaf.ok for leaf in leaves):
            total = dataclasses.replace(total, excused="its leaves are excused")
        return leaves, total, notes

    def _poor(self, arrays: Sequence[Any], i: int, leaf: LeafError) -> bool:
        """Whether the rule's own arithmetic is poor, where autodiff can't be the measure of it.

        Then the measure is what a last bit of the arguments makes of the result.
        """
        random = np.random.default_rng(1)
        near = [_scaled(a, 1 + leaf.epsilon * random.uniform(-1, 1, np.shape(a)), np.float64) for a in arrays]
        exact, moved, got = (
            np.asarray(self.parts(result)[i].array)
            for result in (self.rule.exact(*arrays), self.rule.exact(*near), self.rule(*arrays))
        )
        with np.errstate(all="ignore"):
            rms = lambda a: float(np.sqrt(np.mean(np.abs(a) ** 2)))  # noqa: E731
            allowed = max(4 * rms(moved - exact), 4 * FLOOR * leaf.epsilon * rms(exact))
            return not rms(got.astype(exact.dtype) - exact) <= allowed

    def _suspected(self, leaves: list[LeafError]) -> list[str]:
        """A remark where rule and autodiff agree, but not with central differences."""
        assert self.third is not None
        skip = int(leaves[0].name == VALUE and len(leaves) > 1)
        plain = [np.asarray(part.array) for part in self.exact[skip:]]
        epsilon = max(leaf.epsilon for leaf in leaves)
        for probe in self.third(None, (), ""):
            if _agrees(probe, plain, epsilon) is False:
                return [
                    "Rule and autodiff agree, but central differences with neither: look for a stop_gradient, a custom "
                    "rule further in, or a step function."
                ]
        return []


def _asked(third: Third, leaf: int, error: LeafError, rule: Sequence[Any], oracle: Sequence[Any]) -> str:
    """Who is right about a leaf: what the probes say of the rule and of the oracle, both in float64."""
    answers = [
        (_agrees(probe, rule, error.epsilon), _agrees(probe, oracle, error.epsilon), bool(np.any(probe.slope.kink)))
        for probe in third(leaf, error.at, error.where)
    ]
    answers = [answer for answer in answers if answer[0] is not None]
    if not answers:
        return ""
    rules, oracles, kinks = zip(*answers, strict=True)
    if all(rules) and all(oracles):
        if any(kinks):
            return "kink"
        return "formula" if _same(rule[leaf], oracle[leaf], error) else "differences"
    if all(rules):
        return "autodiff"
    return "rule" if all(oracles) else "none"


def _agrees(probe: Probe, result: Sequence[Any], epsilon: float) -> bool | None:
    """Whether a result in float64 has the slope that a probe found; None if the probe found none.

    Constants in a program are rounded to its dtype, so the mathematics of two programs may differ by as much.
    """
    if not np.isfinite(probe.slope.value):
        return None
    value, mass = probe.ask(result)
    return bool(probe.slope.agrees(value, (8 * epsilon + 1e-7) * mass)) if math.isfinite(value) else False


def _same(a: Any, b: Any, leaf: LeafError) -> bool:
    """Whether two leaves in float64 are the same mathematics."""
    with np.errstate(all="ignore"):
        return bool(np.max(np.abs(a - b), initial=0) <= (8 * leaf.epsilon + 1e-9) * leaf.peak)


def _scaled(a: Any, factor: Any, dtype: Any = None) -> Any:
    """An array times a factor, where it is one of floats."""
    if not jnp.issubdtype(jnp.result_type(a), jnp.inexact):
        return a
    wide = np.asarray(a).astype(np.complex128 if jnp.iscomplexobj(a) else np.float64) * factor
    return wide if dtype is not None else wide.astype(a.dtype)


def _nearby(arrays: Sequence[Any]) -> Iterator[list[Any]]:
    """Arguments close to these: every float smaller by up to 1/64 of itself, so that zeros and signs stay."""
    random = np.random.default_rng(0)

    def moved(a: Any) -> Any:
        near = _scaled(a, 1 - random.uniform(0, 2**-6, np.shape(a)))
        return jax.device_put(near, a.sharding) if isinstance(a, jax.Array) and near is not a else near

    return ([moved(a) for a in arrays] for _ in range(NEARBY))


def _map(got: Part, exact: Part) -> np.ndarray:
    """|rule − shadow| of a leaf as a matrix of at most 64 × 64: its last axis across, rows and columns evenly spread."""
    shape = np.shape(exact.array)
    if not math.prod(shape):
        return np.zeros((0, 0))
    width = shape[-1] if shape else 1
    a, b = (np.asarray(part.array).reshape(-1, width) for part in (got, exact))
    rows, columns = (np.unique(np.linspace(0, n - 1, min(n, 64)).astype(int)) for n in a.shape)
    with np.errstate(all="ignore"):
        return np.abs(a[np.ix_(rows, columns)].astype(b.dtype) - b[np.ix_(rows, columns)])
