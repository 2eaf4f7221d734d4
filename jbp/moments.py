"""Moments of the examples' gradients g_n = ∇C_n, of the unscaled costs, and how noisy they make the mean.

    p_n = weights_n / Σ_m weights_m           how much of the batch example n is: 1/N each, unless weights are given
    ḡ  = Σ_n p_n g_n                          the mean gradient
    σ² = Σ_n p_n (g_n − ḡ)²                   the variance over the examples, element by element

These are the same for every reduction, since `weights` there are the factors of C_n in C, which p_n divide by their
sum. An example of weight 0 counts for nothing, as padding should.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .layer import InputError
from .layout import Layout
from .pair import Pair
from .reader import as_stacked
from .readouts import on_vector


def shares(weights: Float[Array, "N"]) -> Float[Array, "N"]:
    """p_n, which add up to 1."""
    return weights / weights.sum()


def counted(weights: Float[Array, "N"]) -> Float[Array, "N"]:
    """1 for each example that counts, 0 for one of weight 0."""
    return (weights != 0).astype(weights.dtype)


@dataclass(frozen=True)
class SumOfSquares:
    """Σ_n g_n² as a vector `[P]`, element by element, over the examples whose weight is not 0, each counted once."""

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Float[Array, "*leaf"]:
        return pair.squares(counted(weights))

    def stack(self, readings: Float[Array, "L *block"]) -> Float[Array, "*leaf"]:
        return as_stacked(readings)

    def collect(self, layout: Layout, readings: list[Any]) -> Float[Array, "P"]:
        return on_vector(readings)


@dataclass(frozen=True)
class MeanGradient:
    """ḡ = Σ_n p_n g_n as a vector `[P]`: the gradient of the mean over examples, whatever the cost's reduction."""

    adds: ClassVar[bool] = True

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Float[Array, "*leaf"]:
        return pair.weighted_gradient(shares(weights))

    def stack(self, readings: Float[Array, "L *block"]) -> Float[Array, "*leaf"]:
        return as_stacked(readings)

    def collect(self, layout: Layout, readings: list[Any]) -> Float[Array, "P"]:
        return on_vector(readings)


@dataclass(frozen=True)
class Variance:
    """σ² = Σ_n p_n g_n² − ḡ² as a vector `[P]`: of the examples given, so the divisor is N and not N − 1.

    Never below 0; the difference errs by the rounding of ḡ², which matters where σ² is less than a millionth of it.
    """

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> tuple[Float[Array, "*leaf"], Float[Array, "*leaf"]]:
        return _mean_and_variance(pair, weights)

    def stack(self, readings: Any) -> Any:
        return as_stacked(readings)

    def collect(self, layout: Layout, readings: list[Any]) -> Float[Array, "P"]:
        return on_vector([variance for _, variance in readings])


@dataclass(frozen=True)
class SignalToNoise:
    """|ḡ| / σ as a vector `[P]`, of one example; of the mean of N it is √N times that.

    0 where the mean is 0; where the examples agree there is no noise, and the ratio is inf, or as large as the rounding
    of `Variance` leaves it.
    """

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> tuple[Float[Array, "*leaf"], Float[Array, "*leaf"]]:
        return _mean_and_variance(pair, weights)

    def stack(self, readings: Any) -> Any:
        return as_stacked(readings)

    def collect(self, layout: Layout, readings: list[Any]) -> Float[Array, "P"]:
        ratio = lambda mean, variance: jnp.where(mean == 0, 0, jnp.abs(mean) / jnp.sqrt(variance))
        return on_vector([ratio(*reading) for reading in readings])


def _mean_and_variance(pair: Pair, weights: Float[Array, "N"]) -> tuple[Any, Any]:
    p = shares(weights)
    mean = pair.weighted_gradient(p)
    return mean, jnp.maximum(pair.squares(p) - jnp.square(mean), 0)


class Noise(NamedTuple):
    """What `NoiseScale` gives: tr Σ and |G|², numbers both; `scale` is their ratio, in examples.

    The two are unbiased and their ratio is not: average them over steps, and divide then, as in
    `jax.tree.map(lambda *n: sum(n) / len(n), *noises).scale`. `squared_gradient` of a batch that is mostly noise may be
    negative.
    """

    trace: Any
    squared_gradient: Any

    @property
    def scale(self) -> Any:
        """B_simple = tr Σ / |G|²."""
        return self.trace / self.squared_gradient


@dataclass(frozen=True)
class NoiseScale:
    """B_simple = tr Σ / |G|² as a `Noise`: the batch size, in examples, beyond which more examples help little.

    G is the true gradient and Σ the covariance of one example's; McCandlish et al. 2018, arXiv:1812.06162, equation 2.9
    and appendix A.1, whose two batch sizes are here 1 and the whole batch. With q = Σ_n p_n², 1/N without weights,

        tr Σ ≈ (Σ_n p_n ‖g_n‖² − ‖ḡ‖²) / (1 − q)        |G|² ≈ (‖ḡ‖² − q Σ_n p_n ‖g_n‖²) / (1 − q)

    Raises `InputError` for a batch of one example.
    """

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        if weights.shape[0] < 2:
            raise InputError("NoiseScale: one example shows no noise. Give a batch of two or more.")
        norms = pair.squared_norms()
        p = shares(weights).astype(norms.dtype)
        each = (p * norms).sum()
        mean, q = jnp.square(pair.weighted_gradient(p)).sum(), jnp.square(p).sum()
        return (each - mean) / (1 - q), (mean - q * each) / (1 - q)

    def stack(self, readings: tuple[Float[Array, "L"], Float[Array, "L"]]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        trace, squared = readings
        return trace.sum(), squared.sum()

    def collect(self, layout: Layout, readings: list[Any]) -> Noise:
        trace, squared = (jnp.stack(part).sum() for part in zip(*readings, strict=True))
        return Noise(trace, squared)
