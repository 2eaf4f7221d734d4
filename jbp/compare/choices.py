"""A program in which comparisons that are met take both sides at once, in shares.

Kinks in `sort` and others: see `kinks`, which chooses the shares.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from ..programs.arguments import is_float
from ..programs.calls import INLINE, has_rule, inner_jaxprs, primal_of, scan_inputs
from ..programs.replay import bind, equations, replay
from .sides import CHOICES, Choices, Either, Shares, opaque


def softened(jaxpr: ClosedJaxpr | Jaxpr, choices: Choices) -> Callable[..., list[Any]]:
    """The program as a function in which comparisons that are met take both sides, in the shares of `choices`."""

    def change(eqn: JaxprEqn, values: list[Any], again: Callable) -> Sequence[Any]:
        name = eqn.primitive.name
        inner = inner_jaxprs(eqn)
        if id(eqn) in choices.dead:
            return bind(eqn, list(map(_plain, values)))
        if name in INLINE:
            return again(inner[0])(*values)
        if name == "scan" and has_choices(inner[0], choices.dead):
            return _loop(eqn, list(map(_plain, values)), choices)
        if any(has_rule(eqn, kind) for kind in ("vjp", "jvp")) and has_choices(primal_of(eqn), choices.dead):
            return _ruled(eqn, list(map(_plain, values)), choices)
        if name in CHOICES and not opaque(eqn):
            return CHOICES[name](choices, eqn, *values)
        if any(isinstance(v, Either) for v in values):
            return _either(eqn, values)
        return bind(eqn, values)

    return replay(jaxpr, change)


def has_choices(jaxpr: ClosedJaxpr | Jaxpr, dead: frozenset[int]) -> bool:
    live = (eqn for eqn in equations(jaxpr) if id(eqn) not in dead)
    return any(eqn.primitive.name in CHOICES and not opaque(eqn) for eqn in live)


def dead_of(jaxpr: ClosedJaxpr | Jaxpr) -> Iterator[int]:
    """The equations, by identity, that no derivative passes through: the outputs need none, or all is stopped."""
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    live = {v for v in inner.outvars if not isinstance(v, Literal)}
    for eqn in reversed(inner.eqns):
        parts = inner_jaxprs(eqn)
        if eqn.primitive.name == "stop_gradient" or live.isdisjoint(eqn.outvars):
            yield from (id(eqn), *(id(e) for part in parts for e in equations(part)))
        else:
            live |= {v for v in eqn.invars if not isinstance(v, Literal)}
            yield from (i for part in parts for i in dead_of(part))


def _plain(value: Any) -> Any:
    return value.plain if isinstance(value, Either) else value


def _loop(eqn: JaxprEqn, values: list[Any], choices: Choices) -> Sequence[Any]:
    """A scan, the shares of its turns along the first axis."""
    p = eqn.params
    length, reverse, body = p["length"], p["reverse"], p["jaxpr"]
    nc, n = scan_inputs(eqn)
    consts, carry, xs = values[:nc], values[nc : nc + n], values[nc + n :]
    shares = [] if choices.noting else choices.next()
    if shares is None:
        return bind(eqn, values)
    kinds: list[Shares] = []

    def turn(carry: Any, x: Any) -> Any:
        x, mine = x
        inner = Choices(choices.dead, None if choices.noting else mine)
        outs = list(map(_plain, softened(body, inner)(*consts, *carry, *x)))
        kinds[:] = inner.kinds
        return outs[:n], (outs[n:], inner.margins)

    carry, (ys, margins) = jax.lax.scan(turn, carry, (xs, shares), length, reverse)
    if choices.noting:
        choices.note(margins, kinds)
    return [*carry, *ys]


def _ruled(eqn: JaxprEqn, values: list[Any], choices: Choices) -> Sequence[Any]:
    """A call of a custom rule: as it is, or where a kink is met in its primal, the primal."""
    if not choices.noting and (shares := choices.next()) is None:
        return bind(eqn, values)
    inner = Choices(choices.dead, None if choices.noting else shares)
    outs = list(map(_plain, softened(primal_of(eqn), inner)(*values)))
    if choices.noting:
        choices.note(inner.margins, inner.kinds)
        return bind(eqn, values)
    return outs


# -- what is made of a truth value that may be either -----------------------------------------------------------------

SHAPES = (
    "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "slice", "rev", "copy", "concatenate",
)  # fmt: skip


def _shares(value: Any, dtype: Any) -> Any:
    return value.share.astype(dtype) if isinstance(value, Either) else jnp.asarray(value).astype(dtype)


def _either(eqn: JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """An equation with such a value among its arguments; where it has no rule, the value is as it is."""
    name = eqn.primitive.name
    plain = bind(eqn, list(map(_plain, values)))
    dtype = next(v.share.dtype for v in values if isinstance(v, Either))
    share: Any = None
    if name == "not":
        share = 1 - values[0].share
    elif name in ("and", "or"):
        a, b = (_shares(v, dtype) for v in values)
        share = a * b if name == "and" else a + b - a * b
    elif name in SHAPES:
        share = bind(eqn, [_shares(v, dtype) for v in values])[0]
    elif name == "convert_element_type":
        if jnp.issubdtype(plain[0].dtype, jnp.floating):
            return [values[0].share.astype(plain[0].dtype)]
        share = values[0].share
    elif name == "select_n":
        return [_selected(plain[0], values[0], values[1:], dtype)]
    elif name == "cond" and isinstance(values[0], Either) and len(eqn.params["branches"]) == 2:
        outs = [jaxpr_as_fun(b)(*map(_plain, values[1:])) for b in eqn.params["branches"]]
        mixed = zip(plain, *outs, strict=True)
        return [_mixed(values[0].share, a, b) if is_float(p) else p for p, a, b in mixed]
    return plain if share is None else [Either(plain[0], share)]


def _selected(plain: Any, which: Any, cases: Sequence[Any], dtype: Any) -> Any:
    """Of a selection by such a value, or between such values."""
    if any(isinstance(c, Either) for c in cases) or plain.dtype == bool:
        cases = [_shares(c, dtype) for c in cases]
        if isinstance(which, Either):
            return Either(plain, _mixed(which.share, *cases))
        return Either(plain, jax.lax.select_n(which, *cases))
    if isinstance(which, Either) and len(cases) == 2 and is_float(plain):
        return _mixed(which.share.astype(jnp.real(plain).dtype), *cases)
    return plain


def _mixed(share: Any, no: Any, yes: Any) -> Any:
    """(1 − share) · no + share · yes; where the share is 0 or 1 the other may be NaN."""
    share = share.astype(jnp.real(no).dtype)
    both = (1 - share) * jnp.where(share == 1, 0, no) + share * jnp.where(share == 0, 0, yes)
    return jnp.where(share == 0, no, jnp.where(share == 1, yes, both))
