"""Names in a program: values that are named as it is traced, and which named value each of them came from.

A name (`jax.ad_checkpoint.checkpoint_name`) does nothing to a value, and stays in the program through jit, loops,
branches, `jax.checkpoint` and vmap. `lineage` walks a program and finds all of them, and of each the origin: the named
value that it is, handed on unchanged, by calls and carried by loops.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from .calls import CALLS, INLINE, inner_jaxprs, scan_inputs
from .replay import aval_of, equations, replay
from .taps import Path

MARK = "jbp"


@dataclass(frozen=True)
class Name:
    """`what` of the thing of this number, its array `leaf`.

    `maps`: the sizes of the `jax.vmap`s around it, from the outermost in. `mapped`: for each, whether the value has an
    axis of it; these axes are the value's first.
    """

    number: int
    what: str
    leaf: int
    maps: tuple[int, ...] = ()
    mapped: tuple[bool, ...] = ()

    def __str__(self) -> str:
        sizes, flags = ",".join(map(str, self.maps)), ",".join(str(int(m)) for m in self.mapped)
        return f"{MARK}|{self.number}|{self.what}|{self.leaf}|{sizes}|{flags}"

    @classmethod
    def of(cls, eqn: JaxprEqn) -> "Name | None":
        """The name that an equation gives, or None."""
        mark, *parts = str(eqn.params.get("name", "")).split("|")
        if eqn.primitive.name != "name" or mark != MARK:
            return None
        numbers = lambda text: tuple(map(int, text.split(","))) if text else ()
        number, what, leaf, sizes, flags = parts
        return cls(int(number), what, int(leaf), numbers(sizes), tuple(map(bool, numbers(flags))))


def named(number: int, values: Mapping[str, Sequence[Any]], maps: bool) -> dict[str, list[Any]]:
    """The arrays, each under its name. With `maps`, axes of a vmap around are moved to the front, which takes longer to
    trace, and reverse mode can't go through it.
    """
    names = [Name(number, what, leaf) for what, arrays in values.items() for leaf in range(len(arrays))]
    found = iter((_mapped if maps else _given)(names, [a for arrays in values.values() for a in arrays]))
    return {what: [next(found) for _ in arrays] for what, arrays in values.items()}


def entered(number: int, what: str, arrays: Sequence[Any]) -> list[Any]:
    """The arrays, each under its name, all in one call that is found by `entry_of`: they can be differentiated."""

    def give(*arrays: Any) -> list[Any]:
        return _given([Name(number, what, leaf) for leaf in range(len(arrays))], arrays)

    give.__name__ = f"{MARK}|{number}|{what}"
    return jax.jit(give)(*arrays)


def entry_of(eqn: JaxprEqn) -> tuple[int, str] | None:
    """(number, what) of the call that `entered` makes, or None."""
    mark, *parts = str(eqn.params.get("name", "")).split("|")
    return (int(parts[0]), parts[1]) if mark == MARK and len(parts) == 2 else None


def _given(names: Sequence[Name], arrays: Sequence[Any]) -> list[Any]:
    return [checkpoint_name(array, str(name)) for name, array in zip(names, arrays, strict=True)]


def _mapped(names: Sequence[Name], arrays: Sequence[Any]) -> list[Any]:
    @jax.custom_batching.custom_vmap
    def give(*arrays: Any) -> list[Any]:
        return _given(names, arrays)

    @give.def_vmap
    def _(size: int, batched: Any, *arrays: Any) -> tuple[list[Any], list[bool]]:
        axes = zip(names, batched, strict=True)
        inner = [Name(n.number, n.what, n.leaf, (size, *n.maps), (bool(axis), *n.mapped)) for n, axis in axes]
        return _mapped(inner, arrays), list(batched)

    return give(*arrays)


# -- where they stand in a program, and what they came from -----------------------------------------------------------


@dataclass(eq=False)
class Loop:
    """A `lax.scan` that holds names. `entering`, `leaving`: origins of what it carries, before and after each turn."""

    path: Path
    length: int
    reverse: bool
    entering: list[Any]
    leaving: list[Any] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class NamedValue:
    """A name where it stands in a program: `loops` around it from the outermost in, `origin` of the value."""

    name: Name
    shape: tuple[int, ...]
    path: Path
    loops: tuple[Loop, ...]
    origin: Any


@dataclass(frozen=True)
class Carried:
    """The origin of a value that a loop carries: as a turn meets it, or as the loop leaves it behind."""

    loop: Loop
    place: int
    behind: bool


@dataclass(frozen=True)
class OneOf:
    """The origin of a value that one of several branches gives."""

    origins: tuple[Any, ...]


def origins(origin: Any, turns: Mapping[Any, int]) -> Iterator[tuple[NamedValue, Mapping[Any, int]]]:
    """(a named value, the turns in which it stands, by the loop): one that a value may be in the turns given."""
    while isinstance(origin, Carried):
        loop, step = origin.loop, -1 if origin.loop.reverse else 1
        first, last = (loop.length - 1, 0) if loop.reverse else (0, loop.length - 1)
        turn = last if origin.behind else turns[loop] - step
        begins = not loop.length or (not origin.behind and turns[loop] == first)
        turns = {other: t for other, t in turns.items() if other is not loop} | ({} if begins else {loop: turn})
        origin = (loop.entering if begins else loop.leaving)[origin.place]
    if isinstance(origin, OneOf):
        for one in origin.origins:
            yield from origins(one, turns)
    elif origin is not None:
        yield origin, turns


class Hidden(Exception):
    """A name that stands in what can't be looked into, as a while loop: (the name, the primitive)."""


def lineage(jaxpr: ClosedJaxpr) -> list[NamedValue]:
    """All names in a program, in its order. Raises `Hidden` where one stands in a while loop or the like."""
    found: list[NamedValue] = []
    _follow(jaxpr, [None] * len(jaxpr.jaxpr.invars), (), (), found)
    return found


def _follow(
    jaxpr: ClosedJaxpr | Jaxpr, values: Sequence[Any], path: Path, loops: tuple[Loop, ...], found: list[NamedValue]
) -> list[Any]:
    """The origins of a program's outputs from those of its inputs."""
    index = {eqn: i for i, eqn in enumerate(jaxpr.eqns)}

    def change(eqn: JaxprEqn, values: list[Any], again: Callable) -> Sequence[Any]:
        here, kind, inner = (*path, index[eqn]), eqn.primitive.name, inner_jaxprs(eqn)
        if name := Name.of(eqn):
            found.append(NamedValue(name, aval_of(eqn.outvars[0]).shape, here, loops, values[0]))
            return found[-1:]
        if kind == "optimization_barrier":
            return values
        if kind == "scan":
            consts, count = scan_inputs(eqn)
            loop = Loop(here, eqn.params["length"], eqn.params["reverse"], values[consts : consts + count])
            carried = [Carried(loop, i, False) for i in range(count)]
            given = [*values[:consts], *carried, *[None] * len(values[consts + count :])]
            outs = _follow(inner[0], given, (*here, 0), (*loops, loop), found)
            loop.leaving += outs[:count]
            return [*(Carried(loop, i, True) for i in range(count)), *[None] * len(outs[count:])]
        if kind == "cond":
            each = [_follow(branch, values[1:], (*here, k), loops, found) for k, branch in enumerate(inner)]
            return [OneOf(outs) for outs in zip(*each, strict=True)]
        if kind in (*INLINE, *CALLS):
            return _follow(inner[0], values, (*here, 0), loops, found)
        if hidden := [name for part in inner for e in equations(part) if (name := Name.of(e))]:
            raise Hidden(hidden[0], kind)
        return [None] * len(eqn.outvars)

    return replay(jaxpr, change, lambda value: value if isinstance(value, (NamedValue, Carried, OneOf)) else None)(
        *values
    )
