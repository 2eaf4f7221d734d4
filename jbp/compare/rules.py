"""`compare_vjp` and `compare_jvp`: a function with custom rules in it against autodiff of its own primals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from ..errors import InputError, described
from ..programs.arguments import is_float, not_finite
from ..programs.calls import RULES, VMAP, count_of_constants, has_rule
from ..programs.program import Program
from ..programs.replay import aval_of, equations, opened, without_rules
from ..programs.sites import Site, Tapped, on_meshes, sites_of, unseen
from .checks import also_in_float32, of_rule
from .comparison import Behind, Comparison
from .derivatives import (
    Flat,
    floats_of,
    in_pieces,
    paired,
    pulled,
    pulled_forward,
    pushed,
    reached,
    seeds_like,
)
from .differences import Numerical, Slopes, gradient_by_differences
from .identities import Identities
from .judge import judged
from .parts import Part, place
from .report import Report

DIFFERENCES = 512  # elements, up to which the oracle may be central differences
FORWARD_MODE = "autodiff in forward mode of "
FORWARD = 4096  # elements of the arguments, up to which a gradient is taken in forward mode where reverse mode can't be


def compare_vjp(
    f: Callable[..., Any],
    *args: Any,
    cotangent: Any = None,
    argnums: int | Sequence[int] | None = None,
    timing: bool = True,
    checks: bool = True,
) -> Report:
    """Compare each `jax.custom_vjp` in `f(*args)` with autodiff of its own primal.

    `f` may be such a function or one that calls some, however deep (in jitted functions, loops, branches; a Flax or
    Equinox model): every call is compared on the values and cotangents that really reach it, and `f` as a whole. `args`
    are any pytrees; gradients are taken for all floats in them. `cotangent`, like f's output, enters at the output;
    unless given it is random, and 1 where f returns a scalar cost. Where a kink is met, points beside the arguments are
    compared too: those arguments are moved for which the rule returns a derivative that is not 0, or those numbered in
    `argnums`. `timing=False` leaves time and memory out, `checks=False` what is looked at besides values.

    Raises `InputError` where there is no such call, nothing to differentiate, or f can't be run.
    """
    return compare_rules(f, args, cotangent, "vjp", timing, checks, argnums=argnums)


def compare_jvp(
    f: Callable[..., Any],
    *args: Any,
    tangent: Any = None,
    argnums: int | Sequence[int] | None = None,
    timing: bool = True,
    checks: bool = True,
) -> Report:
    """Compare each `jax.custom_jvp` in `f(*args)` with autodiff of its own primal, in forward mode.

    As `compare_vjp`; `tangent`, a tuple like `args`, enters at the arguments, random numbers unless given.
    """
    return compare_rules(f, args, tangent, "jvp", timing, checks, argnums=argnums)


def compare_rules(
    f: Callable,
    args: tuple,
    seed: Any,
    kind: str,
    timing: bool,
    checks: bool,
    programs: dict[str, Program] | None = None,
    argnums: int | Sequence[int] | None = None,
    hurry: bool = False,
) -> Report:
    """`compare_vjp` or `compare_jvp`, by `kind`. `programs` keeps what was compiled, for another call.

    `hurry`: programs are compiled in less time, and run slower.
    """
    who = f"compare_{kind}"
    if not callable(f):
        raise InputError(f"{who}: expected a function, got {f!r}. As in {who}(f, x).")
    program = Program(f"{who}: f", f, args, hurry)
    sites, sharded = sites_of(program.jaxpr, kind), on_meshes(program.jaxpr, kind)
    if not sites and not sharded:
        raise InputError(_nothing_found(who, kind, f, program.jaxpr))
    alone = len(sites) == 1 and _is_all(program.jaxpr)
    for site in sites if kind == "vjp" and not alone else ():  # in a loop, JAX's message of it names no rule
        _check_site(who, site)
    arrays = program.arguments.arrays
    floats = floats_of(arrays)
    outs = jax.tree.leaves(program.out)
    if not floats or not floats_of(outs):
        what = "arguments" if not floats else "outputs"
        got = described(args if not floats else program.out)
        raise InputError(f"{who}: f has no {what} of a float dtype, got {got}: nothing to differentiate.")

    def with_rules(*arrays: Any) -> Sequence[Any]:
        return jax.tree.leaves(f(*program.arguments.filled(arrays)))

    bare = without_rules(program.jaxpr, kind)
    if not alone and any(e.primitive.name == VMAP for e in equations(program.jaxpr)):
        with_rules = opened(program.jaxpr)
    seeds = seeds_like(
        who, seed, outs if kind == "vjp" else arrays, args if kind == "jvp" else program.out, kind, not alone
    )
    name = sites[0].name if alone else str(getattr(f, "__name__", type(f).__name__))
    task = _Task(who, kind, timing, checks, hurry, {} if programs is None else programs)
    again = lambda wider: compare_rules(f, wider, seed, kind, False, True, argnums=argnums)
    of_arguments, of_outputs = _argument_names(f, program), _output_names(program.out)
    names, seeded = (of_arguments, of_outputs) if kind == "vjp" else (of_outputs, of_arguments)
    notes = [
        *not_finite("The arguments hold", program.arguments.names(f), arrays),
        *not_finite("The cotangents hold" if kind == "vjp" else "The tangents hold", seeded, seeds),
    ]
    given = None if argnums is None else program.arguments.places_of(argnums)
    where = sites[0].where if alone else ""
    whole = task.comparison(name, where, with_rules, bare, arrays, seeds, names, stacked=False, given=given)
    if alone:
        if kind == "vjp":
            _check_gradients(who, name, names, whole.rule.out, [arrays[i] for i in floats])
        found = task.report(whole, notes, Identities(kind, with_rules, bare, arrays, seeds))
        return also_in_float32(found, args, again) if checks else found
    if missed := unseen(program.jaxpr, kind):
        notes.append(f"Not looked into, under a while loop or another rule: {', '.join(missed)}.")
    if sharded:
        notes.append(f"Inside a shard_map, and so compared as part of the whole: {', '.join(sharded)}.")
    what_reached = reached(kind, Tapped(program.jaxpr, sites), arrays, floats, seeds) if sites else []
    calls: list[Report] = []
    for site, (inputs, its_seeds, turns) in zip(sites, what_reached, strict=True):
        try:
            calls += [task.call(site, inputs, its_seeds, turns)] if turns else []
        except InputError as error:
            notes.append(f"Not looked into: {str(error).removeprefix(f'{who}: ')}")
    skipped = [site.name for site, (_, _, turns) in zip(sites, what_reached, strict=True) if not turns]
    if len(skipped) == len(sites) and not sharded:
        raise InputError(
            f"{who}: with these arguments no custom_{kind} is reached ({', '.join(skipped)}), so there is nothing to "
            "compare. Give arguments that lead to one."
        )
    if skipped:
        notes.append(f"Not reached with these arguments: {', '.join(skipped)}.")
    whole = replace(whole, timing=timing, notes=(*whole.notes, *notes))
    found = judged(whole, calls=lambda arrays: tuple(calls), always=True)
    return also_in_float32(found, args, again) if checks else found


@dataclass
class _Task:
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
            names = _output_names([v.aval for v in site.eqn.outvars])
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


# -- names ------------------------------------------------------------------------------------------------------------


def _argument_names(f: Callable, program: Program) -> list[str]:
    """Names of the float arrays among the arguments."""
    named = zip(program.arguments.names(f), program.arguments.arrays, strict=True)
    return [name for name, array in named if is_float(array)]


def _output_names(out: Any) -> list[str]:
    paths, _ = jax.tree_util.tree_flatten_with_path(out)
    floats = [(path, leaf) for path, leaf in paths if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return [f"output{jax.tree_util.keystr(path) if len(floats) > 1 else ''}" for path, _ in floats]


def _check_site(who: str, site: Site) -> None:
    """`_check_gradients` of a call inside f. What else is wrong with it is told where it is compared."""
    floats = floats_of([v.aval for v in site.eqn.invars])
    arrays, outs = ([aval_of(v) for v in variables] for variables in (site.eqn.invars, site.eqn.outvars))
    try:
        got = jax.eval_shape(lambda a, c: pulled(site.call, floats, a, c), arrays, [o for o in outs if is_float(o)])
    except Exception:  # whatever a stranger's rule raises
        return
    _check_gradients(who, site.name, [site.arguments[i] for i in floats], got, [arrays[i] for i in floats])


def _check_gradients(
    who: str, name: str, names: Sequence[str], gradients: Sequence[Any], arguments: Sequence[Any]
) -> None:  # fmt: skip
    """Raise `InputError` where a backward gives a gradient of another shape or dtype than its argument's."""
    for argument_name, gradient, argument in zip(names, gradients, arguments, strict=True):
        if (gradient.shape, gradient.dtype) != (argument.shape, argument.dtype):
            raise InputError(
                f"{who}: the rule of {name} returns {described(gradient)} for {argument_name}, which is "
                f"{described(argument)}. A gradient has its argument's shape and dtype: cast it in backward, as in "
                "dx.astype(x.dtype)."
            )


def _is_all(jaxpr: ClosedJaxpr) -> bool:
    """Whether a function is nothing but one call of a custom rule, perhaps jitted."""
    if len(jaxpr.eqns) != 1:
        return False
    eqn = jaxpr.eqns[0]
    if eqn.primitive.name in ("jit", "pjit"):
        return _is_all(eqn.params["jaxpr"])
    return any(has_rule(eqn, kind) for kind in RULES)


def _nothing_found(who: str, kind: str, f: Any, jaxpr: ClosedJaxpr) -> str:
    other = "jvp" if kind == "vjp" else "vjp"
    name = getattr(f, "__name__", repr(f))
    text = f"{who}: no custom_{kind} is called in {name} on a path that a derivative takes"
    if missed := unseen(jaxpr, kind):
        where = "under a while loop or in another rule"
        return f"{text}; {', '.join(missed)} stands {where}. Compare it by itself."
    if found := sites_of(jaxpr, other):
        return f"{text}, but a custom_{other} is: {found[0].name}. Use compare_{other}."
    return f"{text}. To compare two gradient functions use compare(rule, oracle, ...)."
