"""What an error looks like, where that has a name: a sign, a factor, a transposition, a missing row, a missing term.

Each pattern is a hypothesis of how the rule's leaf came from the right one, `got ≈ T(exact)`. It is named if what it
leaves unexplained is small: at most `MISSED_BY` of the leaf's scale, or a few times what rounding is allowed.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .error import LeafError, rms

MISSED_BY = 2.0**-10  # of the leaf's scale, by which a pattern may miss
LIMIT = 1 << 20  # elements of a leaf, above which only the cheap patterns are tried

Close = Callable[[Any, Any], bool]


def pattern_of(leaf: LeafError, got: Any, exact: Any, others: dict[str, Any] = {}) -> str:  # noqa: B006
    """The name of what is wrong with a leaf, or an empty text. `others`: the right values of other leaves, by name."""
    got, exact = np.asarray(got).astype(np.asarray(exact).dtype), np.asarray(exact)
    bad = ~np.isfinite(got)
    if bad.any() and np.isfinite(exact).all():
        first = np.unravel_index(int(np.argmax(bad)), bad.shape)
        what = "NaN" if np.isnan(got).any() else "infinite"
        count = "all elements" if bad.all() else f"{int(bad.sum()):,} of {bad.size:,} elements"
        return f"{what} in {count}, first at [{','.join(map(str, map(int, first)))}]"
    if not np.isfinite(exact).all() or not got.size:
        return ""
    scale = leaf.scale
    tolerance = max(MISSED_BY * scale, 4 * leaf.allowed if math.isfinite(leaf.allowed) else 0)

    def close(a: Any, b: Any) -> bool:
        return np.shape(a) == np.shape(b) and rms(np.subtract(a, b)) <= tolerance

    with np.errstate(all="ignore"):
        return next(_patterns(got, exact, scale, close, others, 2 * leaf.oracle_largest), "")


def _patterns(
    got: np.ndarray, exact: np.ndarray, scale: float, close: Close, others: dict[str, Any], noise: float
) -> Iterator[str]:
    if close(got, exact):  # too far by rounding alone
        yield from _few(got, exact, noise)
        return
    if not got.any():
        yield "all zero"
    if not scale:
        return
    yield from _factor(got, exact, close)
    if got.size > LIMIT:
        yield from _few(got, exact, noise)
        return
    if np.iscomplexobj(exact):
        conjugates = {"conjugate": exact.conj(), "conjugate with its sign flipped": -exact.conj()}
        yield from (name for name, other in conjugates.items() if close(got, other))
    yield from (f"the gradient of {name}" for name, other in others.items() if close(got, other))
    for i, j in itertools.combinations(range(exact.ndim), 2):
        if exact.shape[i] == exact.shape[j] and close(got, np.swapaxes(exact, i, j)):
            yield "transposed" if exact.ndim == 2 else f"axes {i} and {j} swapped"
    if exact.ndim > 1 and exact.shape[-1] == exact.shape[-2]:
        got_symmetric, symmetric = (a + np.conj(np.swapaxes(a, -1, -2)) for a in (got, exact))
        if close(got_symmetric, symmetric) and rms(symmetric) > 0.1 * scale:
            yield "right only in its symmetric part, as if the matrix were always symmetric"
    for axis, n in enumerate(exact.shape):
        yield from _order(got, exact, axis, n, close)
    for axis in range(exact.ndim):
        yield from _slices(got, exact, axis)
    for axis, n in enumerate(exact.shape):
        yield from _terms(got, exact, scale, axis, n, close)
    limit = np.abs(got).max()
    if np.sum(np.abs(got) == limit) > 1 and np.isrealobj(got) and close(got, np.clip(exact, -limit, limit)):
        yield f"clipped at {limit:.4g}"
    yield from _few(got, exact, noise)


def _factor(got: np.ndarray, exact: np.ndarray, close: Close) -> Iterator[str]:
    c = np.vdot(exact, got) / np.vdot(exact, exact)
    c = c if abs(c.imag) > 1e-3 * abs(c) else c.real
    if abs(c) and close(got / c, exact):
        if abs(c + 1) < 1e-3:
            yield "sign flipped"
        else:
            inverse = (
                f" = 1/{round(1 / c)}" if np.isreal(c) and 0 < c < 0.6 and abs(1 / c - round(1 / c)) < 1e-2 else ""
            )
            yield f"off by the factor {c:.3f}{inverse}"


def _order(got: np.ndarray, exact: np.ndarray, axis: int, n: int, close: Close) -> Iterator[str]:
    """Along one axis: backwards, or shifted."""
    if n < 2:
        return
    if close(got, np.flip(exact, axis)):
        yield f"reversed along axis {axis}"
    for shift in (1, -1):
        if n > 2 and close(got, np.roll(exact, shift, axis)):
            yield f"rolled by {shift:+d} along axis {axis}"
        kept, moved = (slice(1, None), slice(None, -1)) if shift == 1 else (slice(None, -1), slice(1, None))
        at: Any = (slice(None),) * axis
        part = exact[(*at, moved)]
        if n > 2 and part.any() and close(got[(*at, kept)], part):
            yield f"off by one along axis {axis}"


def _slices(got: np.ndarray, exact: np.ndarray, axis: int) -> Iterator[str]:
    """Few slices across one axis are wrong, and the others right."""
    n = exact.shape[axis]
    if n < 2 or exact.ndim < 2:
        return
    rest = tuple(i for i in range(exact.ndim) if i != axis)
    along = lambda a: np.sqrt(np.mean(np.abs(a) ** 2, axis=rest))
    of, off = along(exact), along(got - exact)
    wrong = off > MISSED_BY * np.maximum(of, 0.1 * rms(exact))
    if not 0 < wrong.sum() <= max(1, n // 3):
        return
    what = "row" if exact.ndim == 2 and axis == 0 else "column" if exact.ndim == 2 else f"slice across axis {axis}"
    places = np.flatnonzero(wrong)
    index = [slice(None)] * exact.ndim
    index[axis] = places  # type: ignore[call-overload]
    part, true = got[tuple(index)], exact[tuple(index)]
    if 2 * np.sum(np.abs(part - true) > MISSED_BY * np.abs(true)) <= true.size:  # few elements of it, not the slice
        return
    how = "zero" if not part.any() else "of the wrong sign" if rms(part + true) < MISSED_BY * rms(true) else "wrong"
    if len(places) == 1:
        yield f"{what} {places[0]} is {how}"
    else:
        yield f"{len(places)} of {n} {what}s are {how}: {', '.join(map(str, places[:4]))}{', …' * (len(places) > 4)}"


def _terms(got: np.ndarray, exact: np.ndarray, scale: float, axis: int, n: int, close: Close) -> Iterator[str]:
    """A term is missing: one that makes the right sums along an axis zero, or one that is constant along it."""
    if n < 2:
        return
    small = MISSED_BY * scale * math.sqrt(n)
    if rms(exact.sum(axis)) < small < rms(got.sum(axis)) / 8:
        yield f"missing the term along axis {axis}: the right one sums to zero along it"
    mean = (got - exact).mean(axis, keepdims=True)
    if close(got - exact, np.broadcast_to(mean, exact.shape)):
        yield f"missing the term along axis {axis}: what is off is constant along it"
    mean = exact.mean(axis, keepdims=True)
    for name, other in (("mean", mean), ("sum", mean * n)):
        if close(got, np.broadcast_to(other, exact.shape)):
            yield f"the {name} along axis {axis}, at each element"


def _few(got: np.ndarray, exact: np.ndarray, noise: float) -> Iterator[str]:
    """Few elements are wrong, and the others right but for noise."""
    wrong = np.abs(got - exact) > np.maximum(
        MISSED_BY * np.abs(exact), max(noise, MISSED_BY**2 * np.abs(exact).max(initial=0))
    )
    count = int(wrong.sum())
    if 0 < count <= max(1, got.size // 10):
        zero = " (they are zero)" if not got[wrong].any() else ""
        yield f"{count:,} of {got.size:,} elements wrong{zero}"
