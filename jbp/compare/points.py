"""Arguments beside the given ones, and how far results move from one to another.

The last bits of the arguments are never known better than they are rounded. So what a last bit makes of a result in
float64 is the measure of what rounding may do to it: a result is no reference for less.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..programs.arguments import filled, is_float

NOISES = 4  # points at arguments that differ in their last bits
NEARBY = 16  # points close by, where luck is told from error
NEAR = 2.0**-6  # how far they are, in units of each element's size


def stream(name: str) -> np.random.Generator:
    """Random numbers that are the same each time, and nobody else's: a user's data may well be `default_rng(0)`'s."""
    return np.random.default_rng(list(f"jbp {name}".encode()))


def widened(a: Any) -> Any:
    """An array of floats in float64 (complex128); another as it is."""
    return np.asarray(a).astype(np.complex128 if jnp.iscomplexobj(a) else np.float64) if is_float(a) else a


def last_bits(arrays: Sequence[Any], epsilon: float, name: str, apart: bool = False) -> list[Any]:
    """The arguments in float64, moved by up to a unit in the last place, of a dtype with this ε.

    Equal numbers are moved alike, so that what is at a kink because they are equal stays there; or `apart`.
    """
    random = stream(name)
    salt = np.uint64(random.integers(1 << 62))
    far = lambda a: random.uniform(-1, 1, np.shape(a)) if apart else _by_value(a, salt)
    return [wide * (1 + epsilon * far(wide)) if is_float(wide) else wide for wide in map(widened, arrays)]


@np.errstate(over="ignore")  # the products wrap around
def _by_value(a: Any, salt: np.uint64) -> Any:
    """Numbers between −1 and 1, none of them near 0, that only depend on |a|."""
    bits = np.abs(np.asarray(a)).astype(np.float64).view(np.uint64) ^ salt
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # splitmix64
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(factor)
    return np.where(bits & np.uint64(1), 1.0, -1.0) * (0.5 + (bits >> np.uint64(12)) * 2.0**-53)


def beside(arrays: Sequence[Any]) -> list[list[Any]]:
    """Arguments a few last bits of float64 away, all on one side: what differs between them is rounding, or noise."""
    return [last_bits(arrays, 4 * i * float(np.finfo(np.float64).eps), "noise") for i in range(1, NOISES + 1)]


@np.errstate(invalid="ignore")  # an argument may be infinite
def unit_of(a: Any) -> np.ndarray:
    size = np.abs(widened(a))
    units = np.where(size > 0, size, 0.1 * np.sqrt(np.mean(size**2)) if size.any() else 1.0)
    return np.asarray(units * (0.8 + 0.6j) if jnp.iscomplexobj(a) else units)


def around(arrays: Sequence[Any], moved: Sequence[int], count: int, step: float) -> Iterator[list[Any]]:
    """Arguments beside these, in pairs that lie on opposite sides: each element moves by up to `step` of its size."""
    random, units = stream("beside"), {i: step * unit_of(arrays[i]) for i in moved}
    for _ in range(count // 2):
        with np.errstate(all="ignore"):  # an argument may be infinite
            drawn = {i: 2 * random.random(np.shape(arrays[i]), np.float32) - 1 for i in moved}
            by = {i: unit * (np.copysign(0.25, drawn[i]) + np.float32(0.75) * drawn[i]) for i, unit in units.items()}
        for sign in (1, -1):
            with np.errstate(all="ignore"):
                near = [like(widened(arrays[i]) + sign * by[i], arrays[i]) for i in moved]
            yield filled(arrays, list(moved), near)


def like(near: Any, a: Any) -> Any:
    """Numbers as an array of another's dtype, where that one is."""
    near = np.asarray(near).astype(a.dtype)
    return jax.device_put(near, a.sharding) if getattr(a, "committed", False) else near


def nearby(arrays: Sequence[Any], moved: Sequence[int]) -> Iterator[list[Any]]:
    """Arguments close to these: what may be moved, by up to 1/64 of itself, so that zeros and signs stay."""
    random = stream("nearby")
    for _ in range(NEARBY):
        near = [widened(arrays[i]) * (1 - random.uniform(0, NEAR, np.shape(arrays[i]))) for i in moved]
        yield filled(arrays, moved, [like(n, arrays[i]) for n, i in zip(near, moved, strict=True)])


@np.errstate(all="ignore")
def movement(run: Callable[..., Sequence[Any]], points: Sequence[Sequence[Any]]) -> list[np.ndarray]:
    """How far each array of a result moves at most from the first point to the others; 0 where that is not finite."""
    first, *others = ([np.asarray(a) for a in run(*point)] for point in points)
    far = [np.max([np.abs(b - a) for b in same], axis=0) for a, *same in zip(first, *others, strict=True)]
    return [np.where(np.isfinite(f), f, 0) for f in far]
