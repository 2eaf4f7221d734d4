"""`compare`: any two functions that return gradients."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..errors import InputError, described
from ..programs.arguments import is_float, narrowed, not_finite
from ..programs.program import Program
from .checks import also_in_float32, of_gradients
from .comparison import Behind, Comparison
from .differences import Slopes
from .judge import judged
from .parts import VALUE, Part, has_value, named_parts
from .report import Report

RETURNS_VALUES = "returns_values"  # an attribute of functions that are known to return no gradients


def compare(
    rule: Callable[..., Any],
    oracle: Callable[..., Any],
    *args: Any,
    function: Callable[..., Any] | None = None,
    argnums: int | Sequence[int] | None = None,
    timing: bool = True,
    checks: bool = True,
) -> Report:
    """Compare two functions of `args` that return gradients, or (value, gradients): any pytrees of one structure.

    `rule` is the hand-written one, `oracle` the reference, such as `jax.grad(f)`. Both are jitted here, and both are
    run in float64 by their own traces, whatever their dtypes and with x64 on or off. `function` is what they are the
    gradients of, a scalar function of `args`: where they differ, its central differences say which is wrong. It is
    found by itself if they return values, or the oracle is `jax.grad(f)`. `argnums`: the arguments that they are
    gradients of, as in `jax.grad`; unless given, the first ones with as many arrays of these shapes. Only they are
    moved, where a kink is met and points beside it are compared. `timing=False` leaves time and memory out,
    `checks=False` what is looked at besides values.

    Raises `InputError` where the two differ in structure, shape or dtype, where one of them can't be run, and where
    what both return has the shape of no argument, nor of several as one vector, nor of one for each example: then it is
    no gradient, unless `function` says of what.
    """
    if not callable(rule) or not callable(oracle):
        raise InputError(
            f"compare: expected two functions, rule and oracle, got {rule!r} and {oracle!r}. "
            "As in compare(rule, jax.grad(f), x)."
        )
    found = compare_with(rule, oracle, args, named_parts, timing, checks=checks, function=function, argnums=argnums)
    found = replace(found, notes=(*narrowed(rule, args), *found.notes))

    def again(args: tuple) -> Report:
        return compare_with(rule, oracle, args, named_parts, False, checks=False, function=function, argnums=argnums)

    return also_in_float32(found, args, again) if checks else found


def compare_with(
    rule: Callable[..., Any],
    oracle: Callable[..., Any],
    args: tuple,
    parts: Callable[[Any], list[Part]],
    timing: bool = True,
    *,
    checks: bool = True,
    function: Callable[..., Any] | None = None,
    shadow: Callable[..., Any] | None = None,
    calls: Callable[[Sequence[Any]], tuple[Report, ...]] | None = None,
    name: str = "",
    pieces: tuple[Callable, Callable] | None = None,
    argnums: int | Sequence[int] | None = None,
    elsewhere: bool = False,
    hurry: bool = False,
) -> Report:
    """`compare`, with how a result falls into parts. `pieces`: how arrays like the first argument are cut and joined.

    `elsewhere`: they are compared at another point of the first argument too. `hurry`: programs are compiled in less
    time, and run slower.

    `shadow(error)` gives the oracle in float64 by other means where it runs out of memory; `calls(arrays)`
    the reports of what is inside, asked for where rule and oracle disagree.
    """
    name = name or str(getattr(rule, "__name__", "")).removeprefix("<lambda>")
    programs = Program("compare: the rule", rule, args, hurry), Program("compare: the oracle", oracle, args, hurry)
    programs[1].instead = shadow
    given = programs[0].arguments
    moving = [0] if pieces is not None else _moving(programs, args, parts, argnums)
    if moving is None and function is None and not getattr(rule, RETURNS_VALUES, False):
        _check_gradients([parts(program.out) for program in programs], args, given.arrays)
    f = function or _function_behind(oracle, args, has_value(programs[1].out))
    behind = None
    if moving is not None and f is not None:
        behind = Behind(_slopes(f, args, given.arrays, moving, pieces))
    comparison = Comparison(
        "compare", name, *programs, parts, given.arrays, behind, moving=moving, elsewhere=elsewhere, timing=timing,
        notes=tuple(not_finite("The arguments hold", given.names(rule), given.arrays)),
    )  # fmt: skip
    return judged(comparison, partial(of_gradients, comparison, rule) if checks else None, calls)


def _moving(programs: Sequence[Program], args: tuple, parts: Callable, argnums: Any) -> list[int] | None:
    """The arrays, by place, that gradients are of: as said, or the first with as many of these shapes; None if none."""
    given = programs[0].arguments
    arrays = given.arrays
    gradients = [jnp.shape(part.array) for part in parts(programs[1].out) if part.name != VALUE]
    for numbers in [argnums] if argnums is not None else [range(k + 1) for k in range(len(args))]:
        moving = [i for i in given.places_of(numbers) if is_float(arrays[i])]
        if [jnp.shape(arrays[i]) for i in moving] == gradients:
            return moving
    if argnums is not None:
        raise InputError(
            f"compare: the gradients have the shapes {gradients}, the arguments {argnums} others. Give the argnums "
            "that they are of."
        )
    return None


def _check_gradients(results: Sequence[list[Part]], args: tuple, arrays: Sequence[Any]) -> None:
    """Raise `InputError` where no leaf of either result can be the gradient of an argument."""
    shapes = [jnp.shape(a) for a in arrays if is_float(a)]
    sums = [0, *itertools.accumulate(map(math.prod, shapes))]  # a run of arguments, as one vector, is between two
    place = {total: i for i, total in reversed([*enumerate(sums)])}
    in_a_run = lambda size, least: any(place.get(before + size, 0) >= i + least for i, before in enumerate(sums))
    for leaves in results:
        got = [jnp.shape(part.array) for part in leaves if part.name != VALUE]
        each = [shape[1:] for shape in got if len(got) > 1 or len(shape) > 2]  # of each example
        flat = in_a_run(sum(map(math.prod, got)), 1) or (len(got) == 1 == len(got[0][1:]) and in_a_run(got[0][1], 2))
        is_else = not leaves or not all(is_float(part.array) for part in leaves)  # which `check_same` tells of
        if is_else or flat or {*got, *each} & {*shapes}:
            return
    arrived = described([part.array for part in results[1] if part.name != VALUE])
    raise InputError(
        f"compare: expected two functions that return gradients, got {arrived}, which has the shape of no argument, "
        f"{described(args)}. Wrap them in jax.grad, or say by function= what they are gradients of."
    )


def _slopes(f: Callable, args: tuple, arrays: Sequence[Any], moving: list[int], pieces: Any) -> Slopes:
    """Of the function behind two gradients."""
    of = Program("compare: the function", f, args)
    if not has_value((*jax.tree.leaves(of.out), None)):
        got = described(of.out)
        raise InputError(f"compare: the function must return one scalar, got {got}. Give what they are gradients of.")
    return Slopes(of, arrays, moving, *(pieces or ()))


def _function_behind(oracle: Callable, args: tuple, value: bool) -> Callable | None:
    """The scalar function that an oracle is the gradient of."""
    if value:
        return lambda *args: oracle(*args)[0]
    f: Any = oracle
    while (f := getattr(f, "__wrapped__", None)) is not None:
        try:
            leaves = jax.tree.leaves(jax.eval_shape(f, *args))
        except Exception:  # it takes other arguments, or none of it is JAX's: then nothing is known
            return None
        if len(leaves) == 1 and leaves[0].shape == () and is_float(leaves[0]):
            return f
    return None
