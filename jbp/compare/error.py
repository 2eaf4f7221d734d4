"""How far one leaf of a result is from the float64 shadow, and whether that is too far.

The shadow is the oracle run in float64 (see `replay`). Autodiff in float32 has an error too; a hand-written rule is
right if its own is no worse than `K` times that. So no tolerance is picked by hand:

    rms(rule − shadow) ≤ max(K · rms(oracle − shadow), FLOOR · ε · rms(shadow)),    ε of the leaf's dtype,
    max|rule − shadow| ≤ max(K_LARGEST · max|oracle − shadow|, FLOOR · ε · max|shadow|).

The first is the test; the second is for a single wrong element in a leaf of a million, which a root mean square hides.
For float64 there is nothing wider to measure by: there a rule must equal the oracle to `EXACT` of the leaf's scale.
Where that fails, one more question is asked: how far does the shadow itself move when the last bits of the arguments
do? What is no more than `FAR` times as much is rounding (see `points.movement`).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from .parts import VALUE, Part
from .verdict import Verdict

K = 2.0  # as in FlashAttention's own tests
K_LARGEST = 8.0  # a maximum is more a matter of luck than a mean
FAR = 64.0  # times its own rounding error: from here on something is wrong by itself
FLOOR = 4.0  # units in the last place, for a leaf where autodiff happens to err by next to nothing
EXACT = 1e-12
CHUNK = 1 << 16  # elements that are looked at together: they stay in cache, and no copy of a leaf is made
SAMPLE = 1 << 16  # elements, evenly spread over a leaf, of which the quantiles are taken


@dataclass(frozen=True)
class Measurement:
    """How far a leaf is from the float64 shadow: root mean squares over it, and the one element that is furthest."""

    name: str
    size: int
    scale: float  # rms of the shadow
    error: float  # rms of rule − shadow
    oracle_error: float  # rms of oracle − shadow
    epsilon: float  # of the leaf's dtype
    largest: float  # |rule − shadow| of the element that is furthest off
    where: str  # its symbol
    got: float | complex
    expected: float | complex
    oracle_largest: float = 0.0  # max |oracle − shadow|
    peak: float = 0.0  # max |shadow|
    ulps: tuple[float, float, float] = (0.0, 0.0, 0.0)  # |rule − shadow| in units in the last place: median, 99 %, max
    cosine: float = 1.0  # of the angle between rule and shadow
    shape: tuple[int, ...] = ()
    dtype: str = ""
    at: tuple[int, ...] = ()  # the index of the element that is furthest off
    noise: tuple[float, float] = (0.0, 0.0)  # what a last bit of float64 makes of the shadow: rms, largest
    spoiled: int = 0  # elements where the oracle overflows in its own dtype, and the shadow does not

    @property
    def allowed(self) -> float:
        """What `error` may be at most. NaN if the shadow is not finite: that vouches for nothing."""
        return self._allowed(K, self.oracle_error, self.scale, self.noise[0])

    @property
    def allowed_largest(self) -> float:
        """What `largest` may be at most."""
        return self._allowed(K_LARGEST, self.oracle_largest, self.peak, self.noise[1])

    def _allowed(self, factor: float, oracle_error: float, scale: float, noise: float) -> float:
        if not math.isfinite(scale):
            return math.nan
        if self.epsilon < EXACT:
            return max(EXACT * scale * factor / K, FAR * noise)
        return max(factor * oracle_error, FLOOR * self.epsilon * scale, FAR * noise)

    @property
    def ratio(self) -> float:
        """The rule's error in units of the oracle's own."""
        if self.error == self.oracle_error:
            return 1.0
        return self.error / self.oracle_error if self.oracle_error else math.inf

    @property
    def excess(self) -> float:
        """The error in units of what is allowed; infinite where it is NaN."""
        return max(_excess(self.error, self.allowed), _excess(self.largest, self.allowed_largest))


@dataclass(frozen=True)
class LeafError(Measurement):
    """A measured leaf and what is known of it besides: single elements, and why the error is as it is."""

    wrong: int = 0  # elements that are wrong by themselves: small beside the rest, or refuted by differences
    undecided: int = 0  # elements where no finite derivative is known: left out of the rest
    settled: int = 0  # elements without a shadow that are right, and not 0: left out of the sums
    shares_nan: bool = False  # in some of the undecided both are NaN, the rule and autodiff
    by: str = "in float64"  # whose `expected` is
    pattern: str = ""  # what the error looks like, where that has a name
    excused: str = ""  # why the error counts for nothing, where another oracle says so

    @property
    def kind(self) -> Verdict:
        """WRONG if the error is more than is allowed; NaN and infinity never are, unless another oracle excuses them.

        UNDECIDED if no element could be judged, EMPTY if there is none or all are 0.
        """
        if self.wrong or not (self.excess <= 1 or self.excused):
            return Verdict.WRONG
        if self.size and self.undecided == self.size:
            return Verdict.UNDECIDED
        return Verdict.AGREE if self.peak or self.settled or self.excused else Verdict.EMPTY

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.kind is not Verdict.WRONG


def _excess(error: float, allowed: float) -> float:
    if error == 0 and allowed >= 0:
        return 0.0
    excess = error / allowed if allowed else math.inf
    return math.inf if math.isnan(excess) else excess


# -- measuring --------------------------------------------------------------------------------------------------------


def _dot(a: np.ndarray, b: np.ndarray) -> Any:
    """Σ a b, by one thread: BLAS would wake others for a chunk, and they are slow to meet on a busy machine."""
    return np.einsum("i,i", a, b)


def rms(a: Any) -> float:
    """The root mean square of an array; 0 if it is empty."""
    return float(np.sqrt(np.mean(np.square(np.abs(a))))) if np.size(a) else 0.0


class _Sum:
    """A root mean square, gathered chunk by chunk, with neither overflow nor underflow."""

    def __init__(self) -> None:
        self.peak, self.sum, self.count = 0.0, 0.0, 0

    def add(self, magnitudes: np.ndarray) -> None:
        peak = float(magnitudes.max(initial=0))  # NaN goes through a maximum
        if 1e-140 < peak < 1e140:  # squares neither overflow nor vanish
            squares = _dot(magnitudes, magnitudes) / peak**2
        else:
            scaled = magnitudes / peak if peak and math.isfinite(peak) else np.zeros(1)
            squares = _dot(scaled, scaled)
        self.merge(peak, squares, magnitudes.size)

    def merge(self, peak: float, sum: float, count: int) -> None:
        """Take in other numbers: the largest, the sum of their squares in units of its square, how many."""
        self.count += count
        if not math.isfinite(peak + self.peak):
            self.peak = math.nan if math.isnan(peak + self.peak) else math.inf
        elif top := max(peak, self.peak):
            self.sum = self.sum * (self.peak / top) ** 2 + sum * (peak / top) ** 2
            self.peak = top

    @property
    def rms(self) -> float:
        if not math.isfinite(self.peak) or not self.count:
            return self.peak
        return self.peak * math.sqrt(self.sum / self.count)


@dataclass
class Tally:
    """What is gathered over the elements of one leaf, or of several as one."""

    exact: _Sum
    got: _Sum
    error: _Sum
    oracle_error: _Sum
    dot: float = 0.0
    largest_ulps: float = 0.0
    spoiled: int = 0
    sample: tuple[np.ndarray, ...] = ()
    furthest: tuple[Part, tuple[int, ...], float, Any, Any] | None = None  # part, index, distance, got, expected

    @classmethod
    def new(cls) -> "Tally":
        return cls(_Sum(), _Sum(), _Sum(), _Sum())

    def add(self, part: Part, oracle: Any, exact: Any) -> None:
        """All elements of a leaf."""
        epsilon, tiny = _precision(part.array.dtype)
        arrays = [np.asarray(a).reshape(-1) for a in (part.array, oracle, exact)]
        size, wide = arrays[2].size, arrays[2].dtype
        stride = max(1, size // SAMPLE)
        for start in range(0, size, CHUNK):
            got, plain, true = (a[start : start + CHUNK].astype(wide, copy=False) for a in arrays)
            with np.errstate(all="ignore"):  # ∞ − ∞ is NaN, and NaN never passes
                far = np.abs(plain - true)
                if not np.isfinite(far.max()):
                    got, far = self._unspoiled(got, plain, true, far)
                size_of, off = np.abs(true), np.abs(got - true)
                ulps = np.where(size_of == 0, 0, off / np.maximum(_ulp(size_of, epsilon), tiny))  # 0 has none
                self.exact.add(size_of)
                self.got.add(np.abs(got))
                self.error.add(off)
                self.oracle_error.add(far)
                self.dot += float(np.real(_dot(true.conj(), got)))
            off[np.isnan(off)] = np.inf
            at = int(np.argmax(off))
            self.largest_ulps = max(self.largest_ulps, float(np.where(np.isnan(ulps), np.inf, ulps).max()))
            self.sample += (ulps[(-start) % stride :: stride],)
            if self.furthest is None or off[at] > self.furthest[2]:
                index = tuple(map(int, np.unravel_index(start + at, np.shape(exact))))
                self.furthest = part, index, float(off[at]), got[at], true[at]

    def _unspoiled(self, got: np.ndarray, plain: np.ndarray, true: np.ndarray, far: np.ndarray) -> Any:
        """Without what can be no measure: where autodiff overflows and the shadow does not. There the rule may too."""
        spoiled = ~np.isfinite(plain) & np.isfinite(true)
        self.spoiled += int(spoiled.sum())
        return np.where(spoiled & ~np.isfinite(got), true, got), np.where(spoiled, 0, far)

    def merge(self, leaf: "Tally") -> None:
        """All elements that another tally has seen."""
        for mine, other in zip(self._sums, leaf._sums, strict=True):
            mine.merge(other.peak, other.sum, other.count)
        self.dot += leaf.dot
        self.spoiled += leaf.spoiled
        self.largest_ulps = max(self.largest_ulps, leaf.largest_ulps)
        self.sample += leaf.sample
        if leaf.furthest and (self.furthest is None or leaf.furthest[2] > self.furthest[2]):
            self.furthest = leaf.furthest

    @property
    def _sums(self) -> tuple[_Sum, ...]:
        return self.exact, self.got, self.error, self.oracle_error

    def leaf(self, name: str, epsilon: float, shape: tuple[int, ...] = (), dtype: str = "") -> LeafError:
        errors = self.exact.rms, self.error.rms, self.oracle_error.rms, epsilon
        if self.furthest is None:
            return LeafError(name, 0, *errors, 0.0, "", 0.0, 0.0, shape=shape, dtype=dtype)
        part, at, _, got, true = self.furthest
        ulps = np.concatenate(self.sample)
        median, most = (
            float(q) for q in np.quantile(np.where(np.isnan(ulps), np.inf, ulps), (0.5, 0.99), method="higher")
        )
        norms = self.exact.rms * self.got.rms * self.exact.count
        return LeafError(
            name, self.exact.count, *errors, self.error.peak, part.symbol(at), got.item(), true.item(),
            self.oracle_error.peak, self.exact.peak, (median, most, self.largest_ulps),
            self.dot / norms if norms else (1.0 if self.exact.rms == self.got.rms else 0.0), shape, dtype, at,
            spoiled=self.spoiled,
        )  # fmt: skip


def _precision(dtype: Any) -> tuple[float, float]:
    """(ε, the smallest step) of a dtype."""
    info = jnp.finfo(dtype)
    return float(info.eps), float(info.smallest_normal) * float(info.eps)


def _ulp(size: np.ndarray, epsilon: float) -> np.ndarray:
    """A unit in the last place of numbers of these sizes: ε times the power of two below, their exponent's bits."""
    return (size.view(np.int64) & 0x7FF0_0000_0000_0000).view(np.float64) * epsilon


def errors(got: list[Part], plain: list[Part], exact: list[Part]) -> list[LeafError]:
    """The errors of all leaves at one point, and last of their total: all gradients as one vector."""
    leaves, total, widest = [], Tally.new(), 0.0
    gradients = [part.name for part in got if part.name != VALUE] or [VALUE]
    for part, b, c in zip(got, plain, exact, strict=True):
        epsilon, _ = _precision(part.array.dtype)
        tally = Tally.new()
        tally.add(part, b.array, c.array)
        leaves.append(tally.leaf(part.name, epsilon, tuple(np.shape(part.array)), str(part.array.dtype)))
        if part.name in gradients:
            widest = max(widest, epsilon)
            total.merge(tally)
    return [*leaves, total.leaf("total", widest)]


def pooled(points: Iterable[LeafError]) -> LeafError:
    """One leaf's errors at several points as one; what is said of single elements is of the point that is worst."""
    points = tuple(points)
    first = max(points, key=lambda e: (bool(e.wrong), e.excess))

    def rms(name: str) -> float:
        total = _Sum()
        total.add(np.array([getattr(e, name) for e in points]))
        return total.rms

    oracle_largest = max(e.oracle_largest for e in points)
    peak = max(e.peak for e in points)
    return replace(first, scale=rms("scale"), error=rms("error"), oracle_error=rms("oracle_error"),
                   oracle_largest=oracle_largest, peak=peak)  # fmt: skip
