"""A program in which comparisons that are met take both sides at once, in shares.

Kinks in `sort` and others: see `kinks`, which chooses the shares.
"""

import enum
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from ..programs.arguments import is_float
from ..programs.calls import PLAIN, has_rule, inner_jaxprs, primal_of, scan_inputs
from ..programs.replay import aval_of, bind, equations, replay

REACH = 16  # places that an element of a sorted array may be moved by
THROUGH = ("jit", "pjit", "checkpoint", "remat2", *PLAIN)


class Shares(enum.Enum):
    """What a comparison's shares are: none at a jump, each by itself, or exchanges between places."""

    NONE = enum.auto()
    FREE = enum.auto()
    EXCHANGES = enum.auto()


class Either(NamedTuple):
    """A truth value that may be either where sides are equal: as it is, and the share of True."""

    plain: Any
    share: Any


class Choices:
    """The comparisons of a program in their order. Without shares each one's margin, side − side, is noted.

    A share stands as (met, share), or None where nothing is met; those of a loop's body or a rule's primal in a list.
    """

    def __init__(self, dead: frozenset[int], shares: Sequence[Any] | None = None):
        self.dead = dead  # equations that no derivative passes through
        self.margins: list[Any] = []
        self.kinds: list[Shares] = []
        self._shares = None if shares is None else iter(shares)

    @property
    def noting(self) -> bool:
        return self._shares is None

    def note(self, margin: Any, kinds: Sequence[Shares]) -> None:
        self.margins.append(margin)
        self.kinds += kinds

    def next(self) -> Any:
        assert self._shares is not None
        return next(self._shares)

    def of(self, margin: Any, kind: Shares = Shares.FREE) -> Any:
        """(met, share) of this comparison, or None."""
        if self.noting:
            self.note(margin, [kind])
            return None
        if (pair := self.next()) is None:
            return None
        met, share = pair
        return met, share.astype(margin.dtype)


def softened(jaxpr: ClosedJaxpr | Jaxpr, choices: Choices) -> Callable[..., list[Any]]:
    """The program as a function in which comparisons that are met take both sides, in the shares of `choices`."""

    def change(eqn: JaxprEqn, values: list[Any], again: Callable) -> Sequence[Any]:
        name = eqn.primitive.name
        inner = inner_jaxprs(eqn)
        if id(eqn) in choices.dead:
            return bind(eqn, list(map(_plain, values)))
        if name in THROUGH:
            return again(inner[0])(*values)
        if name == "scan" and has_choices(inner[0], choices.dead):
            return _loop(eqn, list(map(_plain, values)), choices)
        if any(has_rule(eqn, kind) for kind in ("vjp", "jvp")) and has_choices(primal_of(eqn), choices.dead):
            return _ruled(eqn, list(map(_plain, values)), choices)
        if name in CHOICES and not _opaque(eqn):
            return CHOICES[name](choices, eqn, *values)
        if any(isinstance(v, Either) for v in values):
            return _either(eqn, values)
        return bind(eqn, values)

    return replay(jaxpr, change)


def has_choices(jaxpr: ClosedJaxpr | Jaxpr, dead: frozenset[int]) -> bool:
    live = (eqn for eqn in equations(jaxpr) if id(eqn) not in dead)
    return any(eqn.primitive.name in CHOICES and not _opaque(eqn) for eqn in live)


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


def _opaque(eqn: JaxprEqn) -> bool:
    """Whether a comparison is of no real numbers, or of a number with itself."""
    name, floats = eqn.primitive.name, [jnp.issubdtype(aval_of(v).dtype, jnp.floating) for v in eqn.invars]
    if name not in CHOICES:
        return False
    same = len(eqn.invars) == 2 and eqn.invars[0] is eqn.invars[1]
    return same or not floats[0]


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


# -- comparisons ------------------------------------------------------------------------------------------------------


def _compare(choices: Choices, eqn: JaxprEqn, a: Any, b: Any) -> list[Any]:
    (plain,) = bind(eqn, [a, b])
    if (pair := choices.of(a - b)) is None:
        return [plain]
    met, share = pair
    return [Either(plain, jnp.where(met, share, plain.astype(share.dtype)))]


def _jumps(choices: Choices, eqn: JaxprEqn, *values: Any) -> list[Any]:
    """Met, and without shares: what changes there is a value."""
    x, name = values[0], eqn.primitive.name
    if name in ("eq", "ne"):
        margin = x - values[1]
    elif name in ("argmax", "argmin"):
        axis = eqn.params["axes"][0]
        ordered = jnp.sort(x, axis)
        two = (-1, -2) if name == "argmax" else (1, 0)
        margin = (
            jnp.subtract(*(jnp.take(ordered, i, axis) for i in two)) if x.shape[axis] > 1 else jnp.ones((), x.dtype)
        )
    else:
        margin = x - jnp.floor(x) - 0.5 if name == "round" else x - jnp.round(x)
    choices.of(margin, Shares.NONE)
    return list(bind(eqn, values))


def _larger(choices: Choices, a: Any, b: Any) -> Any:
    a, b = jnp.broadcast_arrays(a, b)
    larger = jax.lax.max(a, b)
    if (pair := choices.of(a - b)) is None:
        return larger
    met, share = pair
    return jnp.where(met, share * jnp.where(met, a, 0) + (1 - share) * jnp.where(met, b, 0), larger)


def _smaller(choices: Choices, a: Any, b: Any) -> Any:
    return -_larger(choices, -a, -b)


def _abs(choices: Choices, eqn: JaxprEqn, x: Any) -> list[Any]:
    pair, plain = choices.of(x), bind(eqn, [x])[0]
    return [plain if pair is None else jnp.where(pair[0], (2 * pair[1] - 1) * x, plain)]


def _sign(choices: Choices, eqn: JaxprEqn, x: Any) -> list[Any]:
    pair, plain = choices.of(x), bind(eqn, [x])[0]
    return [plain if pair is None else jnp.where(pair[0], 2 * pair[1] - 1, plain)]


def _clamp(choices: Choices, eqn: JaxprEqn, low: Any, x: Any, high: Any) -> list[Any]:
    return [_smaller(choices, _larger(choices, x, low), high)]


def _reduce(larger: Callable, choices: Choices, eqn: JaxprEqn, x: Any) -> list[Any]:
    """As a tournament: pairs, and pairs of those."""
    axes = tuple(eqn.params["axes"])
    rest = tuple(i for i in range(x.ndim) if i not in axes)
    if not x.size:
        return list(bind(eqn, [x]))
    flat = x.transpose(*axes, *rest).reshape(-1, *(x.shape[i] for i in rest))
    while (n := flat.shape[0]) > 1:
        half = n // 2
        flat = jnp.concatenate([larger(choices, flat[:half], flat[half : 2 * half]), flat[2 * half :]])
    return [flat[0]]


def _windows(larger: Callable, choices: Choices, eqn: JaxprEqn, x: Any) -> list[Any]:
    p = eqn.params
    if any(d != 1 for d in p["base_dilation"]):
        return list(bind(eqn, [x]))
    if not x.size:
        return list(bind(eqn, [x]))
    size, strides, dilation = p["window_dimensions"], p["window_strides"], p["window_dilation"]
    far = -jnp.inf if larger is _larger else jnp.inf
    padded = jnp.pad(x, p["padding"], constant_values=far)
    shape = aval_of(eqn.outvars[0]).shape

    def shifted(at: Sequence[int]) -> Any:
        starts = [i * d for i, d in zip(at, dilation, strict=True)]
        limits = [a + (n - 1) * s + 1 for a, n, s in zip(starts, shape, strides, strict=True)]
        return jax.lax.slice(padded, starts, limits, strides)

    return [reduce(partial(larger, choices), map(shifted, np.ndindex(*size)))]


def _sort(choices: Choices, eqn: JaxprEqn, *values: Any) -> list[Any]:
    axis = eqn.params["dimension"]
    outs = list(bind(eqn, values))
    if eqn.params["num_keys"] != 1:
        return outs
    outs[:1] = [out := jnp.moveaxis(outs[0], axis, -1)]
    outs[0] = jnp.moveaxis(_exchanged(choices, out), -1, axis)
    return outs


def _exchanged(choices: Choices, out: Any) -> Any:
    """An array that is sorted along its last axis: places of equal numbers may exchange what stands there."""
    n = out.shape[-1]
    if not (steps := places_to_exchange(n)).size:
        return out
    other = np.arange(n)[:, None] + steps
    inside = (other >= 0) & (other < n)
    far = jnp.where(inside, out[..., np.clip(other, 0, n - 1)] - out[..., None], np.ones((), out.dtype))
    if (pair := choices.of(far, Shares.EXCHANGES)) is None:
        return out
    met, share = pair
    return out + jnp.where(met, share * far, 0).sum(-1)


def places_to_exchange(n: int) -> np.ndarray:
    """From a place among n to those that it may exchange with."""
    reach = min(REACH, n - 1)
    return np.array([k for k in range(-reach, reach + 1) if k], int)


def _top(choices: Choices, eqn: JaxprEqn, x: Any) -> list[Any]:
    values, index = bind(eqn, [x])
    axis = eqn.params.get("axis", -1) % x.ndim
    ordered = _exchanged(choices, -jnp.sort(-jnp.moveaxis(x, axis, -1), -1))
    return [jnp.moveaxis(ordered[..., : values.shape[axis]], -1, axis), index]


CHOICES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("lt", "le", "gt", "ge"), _compare),
    **dict.fromkeys(("eq", "ne", "floor", "ceil", "round", "argmax", "argmin"), _jumps),
    "max": lambda choices, eqn, a, b: [_larger(choices, a, b)],
    "min": lambda choices, eqn, a, b: [_smaller(choices, a, b)],
    "abs": _abs,
    "sign": _sign,
    "clamp": _clamp,
    "reduce_max": partial(_reduce, _larger),
    "reduce_min": partial(_reduce, _smaller),
    "reduce_window_max": partial(_windows, _larger),
    "reduce_window_min": partial(_windows, _smaller),
    "sort": _sort,
    "top_k": _top,
}  # fmt: skip


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
