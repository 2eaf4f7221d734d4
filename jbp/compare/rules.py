"""`compare_vjp` and `compare_jvp`: a function with custom rules in it against autodiff of its own primals."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from ..errors import InputError, described
from ..programs.arguments import is_float, narrowed, not_finite
from ..programs.calls import RULES, VMAP, has_rule
from ..programs.program import Program
from ..programs.replay import aval_of, equations, opened, without_rules
from ..programs.sites import Site, Tapped, on_meshes, sites_of, unseen
from .checks import also_in_float32
from .derivatives import (
    floats_of,
    pulled,
    reached,
    seeds_like,
)
from .identities import Identities
from .judge import judged
from .report import Report
from .task import Task, output_names


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
    task = Task(who, kind, timing, checks, hurry, {} if programs is None else programs)
    again = lambda wider: compare_rules(f, wider, seed, kind, False, True, argnums=argnums)
    of_arguments, of_outputs = _argument_names(f, program), output_names(program.out)
    names, seeded = (of_arguments, of_outputs) if kind == "vjp" else (of_outputs, of_arguments)
    notes = [
        *narrowed(f, args),
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


# -- names ------------------------------------------------------------------------------------------------------------


def _argument_names(f: Callable, program: Program) -> list[str]:
    """Names of the float arrays among the arguments."""
    named = zip(program.arguments.names(f), program.arguments.arrays, strict=True)
    return [name for name, array in named if is_float(array)]


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
