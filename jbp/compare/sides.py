"""The comparisons inside a program, each as a function that may take both sides at once, in shares.

A comparison notes its margin, side − side; where it is met, it mixes what stands on both sides. So a new primitive that
compares is one more line in `CHOICES`. Truth values that may be either go on in `choices`.
"""

import enum
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from ..programs.replay import aval_of, bind

REACH = 16  # places that an element of a sorted array may be moved by, and further while
EXCHANGED = 2**18  # exchanges in one array are not exceeded


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

    A share of 1 stands for a margin above 0. A share stands as (met, share), or None where nothing is met; those of a
    loop's body or a rule's primal in a list.
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


def _compare(choices: Choices, eqn: JaxprEqn, a: Any, b: Any) -> list[Any]:
    (plain,) = bind(eqn, [a, b])
    if (pair := choices.of(a - b if eqn.primitive.name in ("gt", "ge") else b - a)) is None:
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
    reach = max(REACH, EXCHANGED // max(1, 2 * out.size))
    if not (steps := steps_of(2 * min(reach, n - 1))).size:
        return out
    other = np.arange(n)[:, None] + steps
    inside = (other >= 0) & (other < n)
    far = jnp.where(inside, out[..., np.clip(other, 0, n - 1)] - out[..., None], np.ones((), out.dtype))
    if (pair := choices.of(far, Shares.EXCHANGES)) is None:
        return out
    met, share = pair
    return out + jnp.where(met, share * far, 0).sum(-1)


def steps_of(count: int) -> np.ndarray:
    """From a place to so many others that it may exchange with, half of them on each side."""
    return np.array([k for k in range(-(count // 2), count // 2 + 1) if k], int)


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


def opaque(eqn: JaxprEqn) -> bool:
    """Whether a comparison is of no real numbers, or of a number with itself."""
    name, floats = eqn.primitive.name, [jnp.issubdtype(aval_of(v).dtype, jnp.floating) for v in eqn.invars]
    if name not in CHOICES:
        return False
    same = len(eqn.invars) == 2 and eqn.invars[0] is eqn.invars[1]
    return same or not floats[0]
