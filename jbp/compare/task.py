"""What one call of `compare_vjp` compares: each rule with the best oracle that there is for its primal.

The oracle is autodiff of the primal; where reverse mode can't do it, forward mode; where neither can, central
differences. Programs that are traced alike are compiled once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from ..errors import InputError
from ..programs.arguments import is_float
from ..programs.calls import count_of_constants
from ..programs.program import Program
from ..programs.replay import without_rules
from ..programs.sites import Site
from .checks import of_rule
from .comparison import Behind, Comparison
from .derivatives import (
    Flat,
    floats_of,
    in_pieces,
    paired,
    pulled,
    pulled_forward,
    pushed,
)
from .differences import Numerical, Slopes, gradient_by_differences
from .identities import Identities
from .judge import judged
from .parts import Part, place
from .report import Report

DIFFERENCES = 512  # elements, up to which the oracle may be central differences
FORWARD_MODE = "autodiff in forward mode of "
FORWARD = 4096  # elements of the arguments, up to which a gradient is taken in forward mode where reverse mode can't be


@dataclass
class Task:
    """Comparisons of one call of `compare_vjp`: programs that are traced alike are compiled once."""

    who: str
    kind: str
    timing: bool
    checks: bool
    hurry: bool
    programs: dict[str, Program] = field(default_factory=dict)
    seen: set[Program] = field(default_factory=set)  # looked at besides values, and timed

    def program(self, role: str, name: str, function: Flat, args: Any) -> Program:
        """The program, or the one that has been traced alike in the same role: of another call, by another name."""
        program = Program(f"{self.who}: {role}{name}", function, args, self.hurry)
        if program.jaxpr.consts:
            return program
        return self.programs.setdefault(f"{role}{program.jaxpr}", program)

    def comparison(
        self, name: str, where: str, ruled: Flat, bare: Flat, arrays: Sequence[Any], seeds: Sequence[Any],
        names: Sequence[str], stacked: bool, consts: int = 0, given: Sequence[int] | None = None,
    ) -> Comparison:  # fmt: skip
        """Of a flat function with its rule and without; `stacked`: all arrays have a first axis of turns.

        No derivative is taken for the first `consts` arrays; those numbered in `given` may be moved.
        """
        one = [a[0] for a in arrays] if stacked else arrays
        floats = [i for i in floats_of(one) if i >= consts]
        derivative = pulled if self.kind == "vjp" else pushed

        def program(role: str, function: Flat, derivative: Callable) -> Program:
            single = lambda arrays, seeds: derivative(function, floats, arrays, seeds)
            if stacked:
                return self.program(role, name, lambda a, s: jax.lax.map(lambda t: single(*t), (a, s)), (arrays, seeds))
            return self.program(role, name, single, (arrays, seeds))

        rule = program("the rule of ", ruled, derivative)
        slopes = self._slopes(name, bare, floats, arrays, seeds, stacked)
        oracle = self._oracle(program, bare, derivative, rule, slopes, sum(int(np.size(arrays[i])) for i in floats))
        forward = isinstance(oracle, Program) and FORWARD_MODE in oracle.who
        told = "Reverse mode can't differentiate the primal; the oracle is forward mode, element by element."
        parts = lambda result: [Part(n, a, partial(place, n)) for n, a in zip(names, result, strict=True)]
        behind = Behind(slopes, self.kind) if isinstance(oracle, Program) else None
        arrays = [*arrays, *seeds]  # a program that is shared has another call's
        return Comparison(
            self.who, name, rule, oracle, parts, arrays, behind, self.kind, floats, given, where=where,
            notes=(told,) if forward else (),
        )  # fmt: skip

    def _oracle(
        self, program: Callable, bare: Flat, derivative: Callable, rule: Program, slopes: Slopes, size: int
    ) -> Program | Numerical:  # fmt: skip
        """Autodiff of the primal; if reverse mode can't do it, forward mode; if neither can, central differences."""
        try:
            return program("autodiff of ", bare, derivative)
        except InputError as error:
            reason = error
        if self.kind == "vjp" and size <= FORWARD:
            try:
                return program(FORWARD_MODE, bare, pulled_forward)
            except InputError as error:
                reason = error
        if self.kind == "jvp":
            return Numerical(
                slopes,
                rule,
                lambda slopes, arrays, number: [
                    number(s) for s in slopes.along(in_pieces(arrays[-len(slopes.moving) :]), arrays)
                ],
            )
        if size <= DIFFERENCES:
            return Numerical(slopes, rule, gradient_by_differences)
        raise InputError(
            f"{str(reason).rstrip('.')}. Its primal has no derivative to compare with, and {size:,} elements are too "
            "many for central differences. Use fewer, or compare(rule, oracle)."
        ) from reason

    def _slopes(self, name: str, bare: Flat, floats: list[int], arrays: Any, seeds: Any, stacked: bool) -> Slopes:
        """Of ⟨cotangents, f⟩ for a vjp, of f's outputs for a jvp."""

        def run(arrays: Any) -> list[Any]:
            return jax.lax.map(lambda a: list(bare(*a)), arrays) if stacked else list(bare(*arrays))

        def function(arrays: Any, seeds: Any) -> Any:
            return paired(run(arrays), seeds) if self.kind == "vjp" else [out for out in run(arrays) if is_float(out)]

        return Slopes(self.program("", name, function, (arrays, seeds)), [*arrays, *seeds], floats)

    def call(self, site: Site, arrays: Any, seeds: Any, turns: int) -> Report:
        """The report of one call inside f, on what reached it in so many turns."""
        stacked = bool(site.loops) or turns > 1
        ruled, bare, consts = site.call, without_rules(site.primal, self.kind), count_of_constants(site.eqn)
        if self.kind == "vjp":
            names = [site.arguments[i] for i in floats_of([v.aval for v in site.eqn.invars]) if i >= consts]
        else:
            names = output_names([v.aval for v in site.eqn.outvars])
            seeds = seeds[sum(is_float(v.aval) for v in site.eqn.invars[:consts]) :]  # constants' tangents are 0
        notes = [f"{turns} turns, along the first axis."] if turns > 1 else []
        outs = [i for i in range(len(site.eqn.outvars)) if is_float(site.eqn.outvars[i].aval)]
        for i, s in zip(outs, seeds, strict=True) if self.kind == "vjp" else ():
            if np.size(s) and not np.any(np.asarray(s)):
                notes.append(f"The cotangent of output {i} is 0: what the rule makes of it is not seen.")
        comparison = self.comparison(site.name, site.where, ruled, bare, arrays, seeds, names, stacked, consts)
        if stacked:
            arrays, seeds = [a[0] for a in arrays], [s[0] for s in seeds]
        return self.report(comparison, notes, Identities(self.kind, ruled, bare, arrays, seeds, consts))

    def report(self, comparison: Comparison, notes: Sequence[str], identities: Identities) -> Report:
        """With what is looked at besides values, once for programs that are traced alike."""
        first = comparison.rule not in self.seen
        self.seen.add(comparison.rule)
        comparison = replace(comparison, timing=self.timing and first, notes=(*comparison.notes, *notes))
        return judged(comparison, partial(of_rule, identities, comparison) if self.checks and first else None)


def output_names(out: Any) -> list[str]:
    paths, _ = jax.tree_util.tree_flatten_with_path(out)
    floats = [(path, leaf) for path, leaf in paths if is_float(leaf)]
    return [f"output{jax.tree_util.keystr(path) if len(floats) > 1 else ''}" for path, _ in floats]
