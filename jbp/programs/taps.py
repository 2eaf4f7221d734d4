"""Values handed out of a program: those of chosen equations, stacked turn by turn where a loop holds them.

A traced program is walked into calls, loops and branches. In a loop (`lax.scan`) what is handed out has the loop's
turns along a first axis; a branch that is not taken hands out zeros.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from .calls import inner_jaxprs, scan_inputs
from .replay import bind, replay

Path = tuple[int, ...]  # of an equation: its place in the jaxpr, which inner jaxpr of it, the place in there, …
# At a chosen equation, from it, its inputs and what was given for it: (its outputs, what to hand out).
At = Callable[[JaxprEqn, list[Any], Any], tuple[Sequence[Any], Any]]


def handed_out(
    jaxpr: ClosedJaxpr | Jaxpr, args: Sequence[Any], chosen: Mapping[Path, Any], at: At
) -> tuple[list[Any], dict[Path, Any]]:
    """(outputs, {path: what `at` hands out}) of a program.

    `chosen`: for each path a pytree of arrays that `at` gets, which a loop around it cuts into turns; or None.
    """
    inside: dict[int, dict[Path, Any]] = {}
    for path, given in chosen.items():
        inside.setdefault(path[0], {})[path[1:]] = given
    index = {eqn: i for i, eqn in enumerate(jaxpr.eqns)}
    found: dict[Path, Any] = {}

    def change(eqn: JaxprEqn, values: list[Any], again: Callable) -> Sequence[Any]:
        i = index[eqn]
        if i not in inside:
            return bind(eqn, values)
        if () in inside[i]:
            outs, found[(i,)] = at(eqn, values, inside[i][()])
            return outs
        into = {"scan": _loop, "cond": _branches}.get(eqn.primitive.name, _call)
        outs, more = into(eqn, values, inside[i], at)
        found.update({(i, *path): value for path, value in more.items()})
        return outs

    return replay(jaxpr, change)(*args), found


def _call(eqn: JaxprEqn, values: list[Any], chosen: dict[Path, Any], at: At) -> tuple[list[Any], dict[Path, Any]]:
    return _part(inner_jaxprs(eqn), 0, values, chosen, at)


def _part(
    inner: Sequence[Any], k: int, values: Sequence[Any], chosen: dict[Path, Any], at: At
) -> tuple[list[Any], dict[Path, Any]]:
    """Of the inner jaxpr number k."""
    own = {path[1:]: given for path, given in chosen.items() if path[0] == k}
    outs, found = handed_out(inner[k], values, own, at)
    return outs, {(k, *path): value for path, value in found.items()}


def _branches(eqn: JaxprEqn, values: list[Any], chosen: dict[Path, Any], at: At) -> tuple[list[Any], dict[Path, Any]]:
    index, *operands = values
    inner = inner_jaxprs(eqn)
    of = [lambda *args, k=k: _part(inner, k, args, chosen, at) for k in range(len(inner))]
    nothing: dict[Path, Any] = {}
    for branch in of:
        shapes = jax.eval_shape(branch, *operands)[1]
        nothing |= jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

    def whole(branch: Callable) -> Callable:
        def run(*operands: Any) -> tuple[list[Any], dict[Path, Any]]:
            outs, found = branch(*operands)
            return outs, nothing | found

        return run

    return jax.lax.switch(index, [whole(branch) for branch in of], *operands)


def _loop(eqn: JaxprEqn, values: list[Any], chosen: dict[Path, Any], at: At) -> tuple[list[Any], dict[Path, Any]]:
    p, (first, count) = eqn.params, scan_inputs(eqn)
    consts, carry, xs = values[:first], values[first:][:count], values[first + count :]

    def body(carry: Any, turn: Any) -> tuple[Any, Any]:
        xs, given = turn
        outs, found = _part([p["jaxpr"]], 0, [*consts, *carry, *xs], given, at)
        return outs[:count], (outs[count:], found)

    carry, (ys, found) = jax.lax.scan(body, carry, (xs, chosen), p["length"], p["reverse"])
    return [*carry, *ys], found
