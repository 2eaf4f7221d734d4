"""The third oracle: central differences in float64, for where autodiff itself may be wrong.

    ψ(t) = f(x + t·v),    ψ'(0) ≈ (ψ(h) − ψ(−h)) / 2h

with Richardson's extrapolation over steps h = 2^-4, 2^-6, …: T_{i,0} is the difference at the i-th step, and
T_{i,j} = (16^j T_{i,j−1} − T_{i−1,j−1}) / (16^j − 1) cancels the error of order h^{2j}. The entry that changes least
from its neighbours is taken, and that change is its error (Ridders 1982, doi:10.1016/S0141-1195(82)80057-0), which is
never less than what the rounding of ψ makes of it. An element moves in proportion to its own size. Where the slopes
from both sides differ, by the same however small the step, there is a kink, and every value between them is a
derivative.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..programs.arguments import filled
from ..programs.program import Program, quickly
from ..programs.replay import equations, noise_of, to_double, unstopped
from .points import stream, unit_of

STEPS = 2.0 ** -np.arange(4, 21, 2)
DIRECTIONS = 3  # random ones, that are asked about a leaf as a whole


class Slope(NamedTuple):
    """ψ'(0) with its error, and at a kink the slopes from both sides; arrays of the shape of ψ."""

    value: Any
    error: Any
    low: Any
    high: Any
    kink: Any
    grows: Any = 0  # the sign of the infinity that the slopes from both sides, or the only side there is, grow to

    def agrees(self, value: Any, tolerance: Any) -> Any:
        """Where `value` is the derivative: near it, or at a kink between both slopes."""
        far = tolerance + 8 * self.error
        with np.errstate(invalid="ignore"):  # of an infinite slope nothing is known
            return np.where(
                self.kink, (self.low - far <= value) & (value <= self.high + far), np.abs(value - self.value) <= far
            )


@np.errstate(all="ignore")
def slope(middle: Any, up: np.ndarray, down: np.ndarray, epsilon: float = 0.0) -> Slope:
    """From ψ(0) `[...]`, ψ(h) and ψ(−h) `[steps, ...]`, h over `STEPS`. Steps out of the domain (NaN) don't count.

    `epsilon`: the ε that ψ is rounded to, where that is not float64's. ψ may be noisier than its size says, where it is
    a small difference: so its noise is also what changes at the smallest steps, and an entry that these contradict has
    converged to nothing.
    """
    h = STEPS.reshape(-1, *(1,) * np.ndim(middle))
    table = [(up - down) / (2 * h)]
    for j in range(1, len(STEPS)):
        before = table[-1]
        table.append(before[1:] + (before[1:] - before[:-1]) / (16.0**j - 1))
    rounding = max(4 * epsilon, np.finfo(np.float64).eps) * np.fmax(np.abs(up), np.abs(down)) / h
    changes = np.abs(np.diff(table[2][-4:], axis=0))
    floor = np.fmax(rounding, np.nanmax(changes * h[-3:], axis=0, initial=0) / h)
    value, error = table[0][0], np.full(np.shape(middle), np.inf)
    for j in range(1, len(STEPS)):
        before, now = table[j - 1 : j + 1]
        change = np.maximum(np.abs(now - before[1:]), np.abs(now - before[:-1]))
        change = np.maximum(change, floor[j:])  # two entries may also agree by luck
        change = np.where(np.isnan(change), np.inf, change)
        best = np.argmin(change, axis=0)[None]
        least = np.take_along_axis(change, best, 0)[0]
        value = np.where(least < error, np.take_along_axis(now, best, 0)[0], value)
        error = np.minimum(error, least)
    error = np.fmax(error, np.abs(value - table[2][-1]) - 8 * np.fmax(rounding[-1], changes[-1]))
    right, left = (up - middle) / h, (middle - down) / h
    gap = np.abs(right - left)
    level = np.abs(right[-2:]) + np.abs(left[-2:])
    stays = (gap[-1] > 0.5 * gap[-2]) & (gap[-1] < 1.5 * gap[-2])  # at a jump it grows as the step shrinks
    kink = stays & (gap[-1] > 1e-5 * level.max(0)) & np.isfinite(gap[-1])
    kink &= gap[-1] > 4 * floor[-1]
    both = np.stack([right[-1], left[-1]])
    sides = np.stack([_growing(right, rounding), _growing(left, rounding)])
    grows = np.where(np.fmax(*sides) == np.fmin(*sides), np.fmax(*sides), 0)  # NaN: there is no such side
    return Slope(value, error, both.min(0), both.max(0), kink, grows)


def _growing(slopes: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """The sign of the infinity that slopes `[steps, ...]` grow to; 0 where they converge, NaN where there are none.

    Towards a limit the changes from step to step shrink: to a quarter, or to a half at x^1.5. They grow for a root, and
    stay as they are for a logarithm.
    """
    last = slopes[-1]
    change = np.diff(slopes[-5:], axis=0)
    noise = 64 * rounding[-4:]
    steady = (np.sign(change) == np.sign(last)) & (np.abs(change) > noise)
    steady[1:] &= np.abs(change[1:]) > 0.9 * np.abs(change[:-1])
    found = np.where(steady.all(0), np.sign(last), 0.0)
    return np.where(np.isnan(last), np.nan, np.where(np.isinf(last), np.sign(last), found))


Pieces = Callable[[list[np.ndarray]], list[np.ndarray]]
Number = Callable[[Slope], Any]  # what is taken of a slope: its value, or that and its error


class Slopes:
    """Slopes of a program's outputs at its arguments, along any direction of those that move (floats, by place).

    A direction has a piece for each of them; or other pieces, if `split` cuts arrays like theirs into pieces and `join`
    undoes it.
    """

    def __init__(
        self, program: Program, arrays: Sequence[Any], moving: Sequence[int], split: Pieces = list, join: Pieces = list
    ):
        self.program, self.arrays, self.moving, self.split, self.join = program, list(arrays), list(moving), split, join

        def values(consts: Any, arrays: Sequence[Any], direction: Sequence[Any]) -> Any:
            def at(t: Any) -> list[Any]:
                moved = [to_double(jnp.asarray(a)) for a in arrays]
                for i, v in zip(self.moving, direction, strict=True):
                    moved[i] = moved[i] + t.astype(v.dtype) * v
                return program.in_float64(consts, moved)

            return jax.lax.map(at, jnp.asarray([0.0, *STEPS, *-STEPS], np.float64))

        self._values = program.derived.setdefault(tuple(self.moving), quickly(values))
        self.epsilon = noise_of(program.jaxpr)

    def units(self, arrays: Sequence[Any] | None = None) -> list[np.ndarray]:
        """By how much each element moves for a step of 1: its own size, or a tenth of its array's if it is zero.

        A complex one moves along both axes.
        """

        arrays = self.arrays if arrays is None else arrays
        return self.split([unit_of(arrays[i]) for i in self.moving])

    def unstopped(self, at: Sequence[Any]) -> list[np.ndarray] | None:
        """The gradient in float64 as if nothing were stopped; None if there is no `stop_gradient`."""
        if all(eqn.primitive.name != "stop_gradient" for eqn in equations(self.program.jaxpr)):
            return None
        run = unstopped(self.program.jaxpr)

        def gradient(*arrays: Any) -> Any:
            def function(*moving: Any) -> Any:
                return run(*filled(arrays, self.moving, moving))[0]

            return jax.grad(function, tuple(range(len(self.moving))))(*(arrays[i] for i in self.moving))

        program = Program("the gradient without stop_gradient", gradient, tuple(self.arrays))
        return self.split([np.asarray(g) for g in program.exact(*at)])

    def along(self, direction: Sequence[np.ndarray], arrays: Sequence[Any] | None = None) -> list[Slope]:
        """Of each output, along a direction given in pieces, at the arguments or others of their shapes."""
        arrays = self.arrays if arrays is None else list(arrays)
        with jax.enable_x64(True):
            values = jax.device_get(self._values(self.program.jaxpr.consts, arrays, self.join(list(direction))))
        n = len(STEPS)
        slopes = []
        for v in values:
            if np.iscomplexobj(v):
                real, imaginary = (slope(p[0], p[1 : n + 1], p[n + 1 :], self.epsilon) for p in (v.real, v.imag))
                value, error, low, high = (a + 1j * b for a, b in zip(real[:4], imaginary[:4], strict=True))
                slopes.append(Slope(value, error, low, high, real.kink | imaginary.kink))
            else:
                slopes.append(slope(v[0], v[1 : n + 1], v[n + 1 :], self.epsilon))
        return slopes


class Numerical:
    """Central differences in the place of autodiff, where JAX has no derivative: used as a `Program` is.

    `differentiate(slopes, arrays)` gives the result. As for an error of its own: that of a result that is right but for
    the last bits of the arguments; where the function keeps a narrow precision, with the error of its slopes besides.
    """

    def __init__(
        self, slopes: Slopes, like: Program, differentiate: Callable[[Slopes, Sequence[Any], Number], list[Any]]
    ):
        self.slopes, self.differentiate = slopes, differentiate
        self.out, self.arguments, self.jaxpr = like.out, like.arguments, slopes.program.jaxpr
        self.notes = [*slopes.program.notes, "JAX can't differentiate the primal: the oracle is central differences."]

    def exact(self, *arrays: Any) -> Any:
        return jax.tree.unflatten(
            jax.tree.structure(self.out), self.differentiate(self.slopes, arrays, lambda s: s.value)
        )

    def __call__(self, *arrays: Any) -> Any:
        random = stream("last bits")
        moved = list(arrays)
        for i in self.slopes.moving:
            epsilon = float(jnp.finfo(arrays[i].dtype).eps)
            moved[i] = to_double(np.asarray(arrays[i])) * (1 + epsilon * random.uniform(-1, 1, np.shape(arrays[i])))
        far = lambda s: s.value + s.error if self.slopes.epsilon else s.value
        result = jax.tree.unflatten(jax.tree.structure(self.out), self.differentiate(self.slopes, moved, far))
        return jax.tree.map(lambda g, like: g.astype(like.dtype), result, self.out)


def value_of(slope: Slope) -> Any:
    return slope.value


def gradient_by_differences(slopes: Slopes, arrays: Sequence[Any], number: Number = value_of) -> list[np.ndarray]:
    """The gradient of a scalar, element by element: `number` of each slope."""
    units = slopes.units()
    gradient = [np.zeros_like(u) for u in units]
    for i, unit in enumerate(units):
        for at in np.ndindex(unit.shape):
            for turn in (1, 1j) if np.iscomplexobj(unit) else (1,):  # ∂/∂x − i ∂/∂y, as JAX has it
                step = np.abs(unit[at])
                direction = [np.zeros_like(u) for u in units]
                direction[i][at] = step * turn
                gradient[i][at] += number(slopes.along(direction, arrays)[0]) / step * np.conj(turn)
    return gradient


@dataclass(frozen=True)
class Probe:
    """One question to all three oracles: what a result says (`ask`), and the slope."""

    ask: Callable[[Sequence[Any]], tuple[float, float]]  # (the number, the sum of the sizes of what it is made of)
    slope: Slope


def vjp_probes(
    slopes: Slopes, leaf: int | None, places: Sequence[tuple[int, ...]] = (), arrays: Sequence[Any] | None = None
) -> Iterator[Probe]:
    """Of a gradient's leaf (None: of all): at some elements, and along random directions. `slopes`: of ⟨ct, f⟩."""
    random, units = stream("directions"), slopes.units(arrays)
    leaves = range(len(units)) if leaf is None else [leaf]

    def pointing(fill: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(fill(u)) if i in leaves else np.zeros_like(u) for i, u in enumerate(units)]

    def asks(direction: list[np.ndarray]) -> Callable[[Sequence[Any]], tuple[float, float]]:
        def ask(result: Sequence[Any]) -> tuple[float, float]:
            with np.errstate(invalid="ignore"):  # a result may be infinite
                terms = [np.real(np.asarray(result[i]) * direction[i]) for i in leaves]
                return float(sum(t.sum() for t in terms)), float(sum(np.abs(t).sum() for t in terms))

        return ask

    for place in places:
        direction = pointing(partial(_one_hot, at=place))
        yield Probe(asks(direction), slopes.along(direction, arrays)[0])
    for _ in range(DIRECTIONS):
        direction = pointing(lambda u: u * random.standard_normal(u.shape))
        yield Probe(asks(direction), slopes.along(direction, arrays)[0])


def jvp_probes(outputs: Sequence[Slope], leaf: int, places: Sequence[tuple[int, ...]]) -> Iterator[Probe]:
    """Of a tangent's leaf: at some of its elements, and of random sums of its elements."""
    slope, random = outputs[leaf], stream("sums")

    def pick(weights: Any) -> Probe:
        def ask(result: Sequence[Any]) -> tuple[float, float]:
            with np.errstate(invalid="ignore"):
                terms = np.real(np.asarray(result[leaf]) * weights)
                return float(terms.sum()), float(np.abs(terms).sum())

        return Probe(ask, summed([slope], [weights])[0])

    shape = np.shape(slope.value)
    turn = 0.8 - 0.6j if np.iscomplexobj(slope.value) else 1.0
    for at in places:
        yield pick(np.asarray(_one_hot(np.ones(shape), at) * turn))
    for _ in range(DIRECTIONS if np.size(slope.value) else 0):
        yield pick(np.asarray(random.standard_normal(shape) * turn))


@np.errstate(all="ignore")  # a slope that is not finite vouches for nothing
def summed(slopes: Sequence[Slope], weights: Sequence[Any]) -> tuple[Slope, float]:
    """The slope of Σ Re(weight · output) over the elements of all outputs that have a weight; Σ |terms|."""
    value, error, reach, size, grows, kink = 0.0, 0.0, 0.0, 0.0, 0.0, False
    for slope, weight in zip(slopes, weights, strict=True):
        some = weight != 0
        w, s = weight[some], Slope(*(np.broadcast_to(part, np.shape(weight))[some] for part in slope))
        terms = np.real(np.where(s.kink, (s.low + s.high) / 2, s.value) * w)
        value, size = value + float(terms.sum()), size + float(np.abs(terms).sum())
        error += float(np.sum(np.where(s.kink, 0, np.abs(s.error)) * np.abs(w)))
        reach += float(np.sum(np.where(s.kink, np.abs(s.high - s.low) / 2, 0) * np.abs(w)))
        grows, kink = grows + float(np.sum(s.grows * np.sign(np.real(w)))), kink or bool(s.kink.any())
    at = np.asarray
    return Slope(at(value), at(error), at(value - reach), at(value + reach), at(kink), at(np.sign(grows))), size


def _one_hot(like: np.ndarray, at: tuple[int, ...]) -> np.ndarray:
    hot = np.zeros_like(like)
    hot[at] = like[at]
    return hot
