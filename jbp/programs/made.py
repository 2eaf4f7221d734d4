"""What a traced function makes of its parameters before they meet the data.

Seen    a leaf, or what is made of leaves, through moves: reshapes, transposes, slices, casts
Constant   a constant, or what is made of constants
Made    the output of an equation that only such values enter: a concatenation, a sum, a product of two leaves

`worth(of, leaves)` computes each from the leaves. A value inside loops (`lax.scan`) has for each loop around, from the
outermost in, whether the loop goes over blocks of it; then it is computed for all blocks at once, one axis for each
such loop in front.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from .replay import aval_of, bind
from .views import Moves, moved, reshaped, sliced, transposed

Origin = Union[int, "Made"]
_SAME = ("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "convert_element_type", "copy")


@dataclass(frozen=True)
class Seen:
    """A leaf, or the block of it that a turn of a loop has, as it is seen at some place. `loops`: see above.

    `shape`: of the leaf, or the block.
    """

    leaf: Origin
    shape: tuple[int, ...]
    moves: Moves
    loops: tuple[bool, ...]
    value: Any


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant: its value in this run, and the equation that makes it, unless it is given."""

    value: Any
    made: "Made | None" = None


@dataclass(frozen=True, eq=False)
class Made:
    """An output of an equation that only parameters and constants enter; without one, its input itself."""

    eqn: JaxprEqn | None
    inputs: tuple[Seen | Constant, ...]
    index: int
    loops: tuple[bool, ...]

    @property
    def name(self) -> str:
        return self.eqn.primitive.name if self.eqn is not None else "moves"

    @property
    def sources(self) -> list[int]:
        """The leaves it is made of, each once."""
        return list(dict.fromkeys(i for v in self.inputs if isinstance(v, Seen) for i in sources(v.leaf)))


def sources(leaf: Origin) -> list[int]:
    """The leaves of which a leaf is made: itself, unless it is made of others."""
    return [leaf] if isinstance(leaf, int) else leaf.sources


def _kept(value: Seen | Constant) -> Seen | Constant:
    """Without the value of this run, unless it is given; of a view, which may be cast, with its dtype."""
    if isinstance(value, Seen):
        return replace(value, value=value.value.dtype)
    return value if value.made is None else replace(value, value=None)


def fixed(eqn: JaxprEqn, ins: Sequence[Constant]) -> list[Constant]:
    """The outputs of an equation that only constants enter."""
    kept = tuple(map(_kept, ins))
    return [Constant(out, Made(eqn, kept, i, ())) for i, out in enumerate(bind(eqn, [v.value for v in ins]))]


def made(eqn: JaxprEqn, ins: Sequence[Seen | Constant]) -> list[Any]:
    """The outputs of an equation that only parameters and constants enter."""
    kept = tuple(map(_kept, ins))
    over = [v.loops for v in ins if isinstance(v, Seen)]
    loops = tuple(any(at) for at in zip(*over, strict=True))
    return [
        Seen(Made(eqn, kept, i, loops), out.shape, (), loops, out)
        for i, out in enumerate(bind(eqn, [v.value for v in ins]))
    ]


def itself(view: Seen) -> Seen:
    """What a view shows, as a leaf of its own: without moves."""
    if not view.moves:
        return view
    return replace(view, leaf=Made(None, (_kept(view),), 0, view.loops), shape=view.value.shape, moves=())


def through(eqn: JaxprEqn, view: Seen) -> list[Seen] | None:
    """The views behind an equation that only moves numbers; None where it does more."""
    name, p = eqn.primitive.name, eqn.params
    if name == "slice" and not any(s != 1 for s in p["strides"] or ()):
        moves = [sliced(view.shape, view.moves, p["start_indices"], p["limit_indices"])]
    elif name == "split":
        moves, start = [], 0
        for n in p["sizes"]:
            starts, ends = [0] * view.value.ndim, [*view.value.shape]
            starts[p["axis"]], ends[p["axis"]] = start, start + n
            moves.append(sliced(view.shape, view.moves, starts, ends))
            start += n
    elif name in _SAME and (one := _same(eqn, view)) is not None:
        moves = [one]
    else:
        return None
    return [replace(view, moves=m, value=out) for m, out in zip(moves, bind(eqn, [view.value]), strict=True)]


def _same(eqn: JaxprEqn, view: Seen) -> Moves | None:
    """The moves of an equation that keeps all numbers; None where it does not."""
    name, p, aval = eqn.primitive.name, eqn.params, aval_of(eqn.outvars[0])
    if not jnp.issubdtype(aval.dtype, jnp.floating) or math.prod(aval.shape) != math.prod(view.value.shape):
        return None
    axes = list(p.get("broadcast_dimensions", ()))
    if (name == "reshape" and p.get("dimensions") is not None) or axes != sorted(axes):
        return None
    if name == "transpose":
        return transposed(view.shape, view.moves, p["permutation"])
    return reshaped(view.shape, view.moves, aval.shape)


def worth(of: Origin | Seen | Constant, leaves: Mapping[int, Any], known: dict[int, Any] | None = None) -> Any:
    """The value, computed from the leaves, its blocks in front. `known`: values computed so far, by their identity."""
    known = {} if known is None else known
    again = lambda of: worth(of, leaves, known)
    if isinstance(of, int):
        return leaves[of]
    if isinstance(of, Seen):
        return moved(again(of.leaf), of.moves, sum(of.loops)).astype(of.value)
    if isinstance(of, Constant):
        return of.value if of.made is None else again(of.made)
    if id(of) not in known:
        run: Any = lambda *ins: ins[0] if of.eqn is None else bind(of.eqn, ins)[of.index]
        for level in reversed(range(len(of.loops))):
            axes = [0 if isinstance(v, Seen) and v.loops[level] else None for v in of.inputs]
            run = jax.vmap(run, axes) if of.loops[level] else run
        known[id(of)] = run(*map(again, of.inputs))
    return known[id(of)]


def part_of_a_row(leaf: Made, source: int) -> tuple[Seen, int, int, int] | None:
    """(view, axis, start, end): of a concatenation to a matrix that has this source once, as it is seen, the place."""
    if leaf.eqn is None or leaf.name != "concatenate" or any(leaf.loops):
        return None
    if len(aval_of(leaf.eqn.outvars[0]).shape) != 2:
        return None
    places = [i for i, v in enumerate(leaf.inputs) if isinstance(v, Seen) and source in sources(v.leaf)]
    if len(places) != 1 or not isinstance(view := leaf.inputs[places[0]], Seen) or view.leaf != source:
        return None
    axis = leaf.eqn.params["dimension"]
    sizes = [aval_of(v).shape[axis] for v in leaf.eqn.invars]
    start = sum(sizes[: places[0]])
    return view, axis, start, start + sizes[places[0]]
