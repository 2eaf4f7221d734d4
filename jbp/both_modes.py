"""A function with a reverse of its own as a primitive of hijax: forward mode differentiates it as well.

A `jax.custom_vjp` forbids forward mode. This function is differentiated

in reverse    by its own backward: `jax.grad`, in loops, under `vmap`, inside `jax.checkpoint`
forward       by JAX, from its forward: `jax.jvp`, `jax.linearize`
twice         by JAX, from its forward and its own backward, in whichever order the modes come

`jax.checkpoint`, as some others, has a reverse that is the transpose of the forward mode. So the tangent of y is a
primitive, too: it is linear in the tangents of the arguments, and its transpose is the own backward.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import hijax as _hijax

from .layer import InputError

_hi: Any = _hijax  # what it has differs from JAX to JAX
_HiPrim: Any = getattr(_hi, "HiPrim", object)
_LINEAR_BY_JVP: Any = getattr(_hi, "linearize_from_jvp", (None, None))
_REVERSE_BY_JVP: Any = getattr(_hi, "vjp_from_jvp", (None, None))


def check_hijax(who: str) -> None:
    """Raise `InputError`, in the name of `who`, where JAX has no `HiPrim`."""
    if _HiPrim is object:
        raise InputError(
            f"{who}: forward_mode needs jax.experimental.hijax.HiPrim. Install jax 0.12 or later, or leave it out and "
            "differentiate in reverse only."
        )


@dataclass(frozen=True)
class Rules:
    """`forward(params, x, context) -> (y, kept)`, and `backward(params, kept, delta) -> ((gradient, delta of x), logs)`
    with None for leaves of whole numbers; logs are a dict for `vjp.with_logs`, or None."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]


class InBothModes(_HiPrim):
    """y of (params, x, context). No derivative flows through the context."""

    skip_linearization_on_zero_tangents = True
    rules: Rules

    def __init__(self, rules: Rules, args: tuple[Any, Any, Any]):
        self.in_avals, self.out_aval = _types(lambda *args: rules.forward(*args)[0], args)
        self.params = {"rules": rules}
        self.tree: Any = jax.tree.structure(args[:2])
        super().__init__()

    def expand(self, params: Any, x: Any, context: Any) -> Any:
        return self.rules.forward(params, x, context)[0]

    def vjp_fwd(self, moves: Any, params: Any, x: Any, context: Any) -> tuple[Any, Any]:
        y, kept = self.rules.forward(params, x, context)
        return y, (params, kept)

    def vjp_bwd(self, residuals: Any, delta: Any, *sums: Any) -> Any:
        found, logs = self.rules.backward(*residuals, _with_zeros(delta))
        _add(self.tree.flatten_up_to(sums[:2]), self.tree.flatten_up_to(found))
        return logs

    def jvp(self, primals: Any, tangents: Any) -> tuple[Any, Any]:
        given = self.tree.flatten_up_to(tangents[:2])
        at = list(map(_moves, given))

        def push(args: Any, tangents: Any) -> list[Any]:
            along, picked = self._along(at, args[:3])
            return jax.jvp(along, picked, tangents)[1]

        def pull(args: Any, deltas: Any) -> tuple[list[Any], Any]:
            found, logs = self.rules.backward(args[0], args[3], _with_zeros(self._of_output(deltas)))
            return _picked(at, self.tree.flatten_up_to(found)), logs

        y, kept = self.rules.forward(*primals)
        if not any(at):
            return y, self._of_output([])
        args = (*primals, kept), _picked(at, given)
        return y, self._of_output(Linear(push, pull, args)(*args))

    def lin(self, moves: Any, *primals: Any) -> tuple[Any, Any]:
        """Forward once, and the linear map by JAX; its own transpose, which is rarely asked for, is JAX's as well."""
        at = self.tree.flatten_up_to(moves[:2])
        along, picked = self._along(at, primals)
        floats, push = jax.linearize(along, *picked)
        y: Any = self.expand(*primals) if len(floats) < len(self.out_avals_flat) else self.out_tree.unflatten(floats)
        return y, push

    def linearized(self, push: Any, *tangents: Any) -> Any:
        given = self.tree.flatten_up_to(tangents[:2])
        return self._of_output(push(*_picked(list(map(_moves, given)), given)))

    def batch(self, axis_data: Any, args: Any, dims: Any) -> tuple[Any, Any]:
        forward = _hi.vmap_rule(axis_data, self.rules.forward, dims, (0, 0))
        backward = _mapped_back(axis_data, self.rules.backward, (dims[0], 0, 0), dims[:2])
        return _at_front(InBothModes(Rules(forward, backward), args)(*args))

    def _along(self, at: list[bool], primals: Any) -> tuple[Callable[..., list[Any]], list[Any]]:
        """The floats of y as a function of the leaves at these places, and those leaves."""
        leaves, context = self.tree.flatten_up_to(primals[:2]), primals[2]

        def along(*picked: Any) -> list[Any]:
            params, x = self.tree.unflatten(_put(picked, at, leaves))
            y = self.expand(params, x, context)
            return list(filter(_is_float, jax.tree.leaves(y)))

        return along, _picked(at, leaves)

    def _of_output(self, floats: list[Any]) -> Any:
        """In the structure of y: these at its floats, and zeros where there are none."""
        some, zeros = iter(floats), [_hi.Zero(aval.to_tangent_aval()) for aval in self.out_avals_flat]
        return self.out_tree.unflatten([next(some, zero) if _is_float(zero.aval) else zero for zero in zeros])


class Linear(_HiPrim):
    """`push(args, tangents)`, which is linear in the tangents; `pull(args, delta) -> (the transpose, logs)`."""

    push: Callable[..., Any]
    pull: Callable[..., Any]

    def __init__(self, push: Callable[..., Any], pull: Callable[..., Any], args: tuple[Any, Any]):
        self.in_avals, self.out_aval = _types(push, args)
        self.params = {"push": push, "pull": pull}
        super().__init__()

    def expand(self, args: Any, tangents: Any) -> Any:
        return self.push(args, tangents)

    def transpose(self, delta: Any, args: Any, sums: Any) -> Any:
        found, logs = self.pull(args, _with_zeros(delta))
        _add(sums, found)
        return logs

    def jvp(self, primals: Any, tangents: Any) -> tuple[Any, Any]:
        leaves, given = (self.in_tree.flatten_up_to(tree) for tree in (primals, tangents))
        at = list(map(_moves, given))

        along = lambda *picked: self.expand(*self.in_tree.unflatten(_put(picked, at, leaves)))
        return jax.jvp(along, _picked(at, leaves), _picked(at, given))

    lin, linearized = _LINEAR_BY_JVP
    vjp_fwd, vjp_bwd_retval = _REVERSE_BY_JVP

    def batch(self, axis_data: Any, args: Any, dims: Any) -> tuple[Any, Any]:
        push = _hi.vmap_rule(axis_data, self.push, dims, 0)
        pull = _mapped_back(axis_data, self.pull, (dims[0], 0), dims[1])
        return _at_front(Linear(push, pull, args)(*args))


def _types(f: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """The types of the arguments and of what f makes of them, as JAX traces them."""
    jaxpr, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
    return jax.tree.map(jax.typeof, args), jax.tree.unflatten(jax.tree.structure(shapes), jaxpr.out_avals)


def _mapped_back(axis_data: Any, f: Callable[..., Any], dims: Any, of: Any) -> Callable[..., Any]:
    """f under vmap, where f gives (derivatives, logs), the derivatives by what is mapped as `of` says: they are summed
    over the axis by what is not."""
    is_none = lambda dim: dim is None
    places = jax.tree.map(lambda dim: 0 if dim is None else dim, of, is_leaf=is_none)
    mapped = _hi.vmap_rule(axis_data, f, dims, (places, 0))

    def back(*args: Any) -> tuple[Any, Any]:
        found, logs = mapped(*args)
        summed = lambda dim, a: a.sum(0) if dim is None and a is not None else a
        return jax.tree.map(summed, of, found, is_leaf=is_none), logs

    return back


def _at_front(y: Any) -> tuple[Any, Any]:
    return y, jax.tree.map(lambda leaf: 0, y)


def _is_float(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating)


def _moves(tangent: Any) -> bool:
    return not isinstance(tangent, _hi.Zero) and _is_float(tangent)


def _picked(at: list[bool], leaves: list[Any]) -> list[Any]:
    return [leaf for here, leaf in zip(at, leaves, strict=True) if here]


def _put(picked: Sequence[Any], at: list[bool], leaves: list[Any]) -> list[Any]:
    """The leaves, with others at these places."""
    some = iter(picked)
    return [next(some) if here else leaf for here, leaf in zip(at, leaves, strict=True)]


def _with_zeros(tree: Any) -> Any:
    """Zeros written out."""
    return jax.tree.map(_hi.instantiate_zeros, tree, is_leaf=lambda leaf: isinstance(leaf, _hi.Zero))


def _add(sums: list[Any], found: list[Any]) -> None:
    """Add what was found to the sums that JAX keeps, where it keeps one."""
    for total, a in zip(sums, found, strict=True):
        if isinstance(total, _hi.GradAccum) and a is not None:
            total.accum(a)
