"""Losses of real numbers: squares, and squares that end.

    HalfSquaredError   C = ½ Σ_j (y_j − a_j)²,  δ = a − y
    SquaredError       C = Σ_j (y_j − a_j)²,    δ = 2(a − y)
    Huber              C = Σ_j h(a_j − y_j),    δ = clip(a − y, −d, d)

Shapes: output and y `[N, ...]`, C_n `[N]`.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..layer import InputError, wide
from .loss import Output, Target, by_example, check_like, diagonal_root


@dataclass(frozen=True)
class HalfSquaredError:
    """The text's C = ½ Σ_j (y_j − a_j)². −log N(y; a, 1) up to a constant."""

    def check(self, output: Any, y: Any) -> None:
        check_like("HalfSquaredError", output, y)

    def value(self, output: Output, y: Target) -> Float[Array, "N"]:
        return 0.5 * by_example(jnp.square(y.astype(wide(output).dtype) - wide(output)))

    def delta(self, output: Output, y: Target) -> Output:
        return wide(output) - y.astype(wide(output).dtype)

    def hessian_product(self, output: Output, y: Target, v: Output) -> Output:
        return wide(v)

    def hessian_root(self, output: Output, y: Target) -> Float[Array, "K N ..."]:
        return diagonal_root(jnp.ones_like(wide(output)))

    def sample(self, key: PRNGKeyArray, output: Output) -> Output:
        """y ~ N(output, 1)."""
        return wide(output) + jax.random.normal(key, output.shape, wide(output).dtype)


@dataclass(frozen=True)
class SquaredError:
    """C = Σ_j (y_j − a_j)², without the half. −log N(y; a, ½) up to a constant."""

    def check(self, output: Any, y: Any) -> None:
        check_like("SquaredError", output, y)

    def value(self, output: Output, y: Target) -> Float[Array, "N"]:
        return 2 * HalfSquaredError().value(output, y)

    def delta(self, output: Output, y: Target) -> Output:
        return 2 * HalfSquaredError().delta(output, y)

    def hessian_product(self, output: Output, y: Target, v: Output) -> Output:
        return 2 * wide(v)

    def hessian_root(self, output: Output, y: Target) -> Float[Array, "K N ..."]:
        return diagonal_root(jnp.full_like(wide(output), 2))

    def sample(self, key: PRNGKeyArray, output: Output) -> Output:
        """y ~ N(output, ½): variance ½."""
        return wide(output) + math.sqrt(0.5) * jax.random.normal(key, output.shape, wide(output).dtype)


@dataclass(frozen=True)
class Huber:
    """C = Σ_j ½r² where |r| ≤ d, d(|r| − ½d) beyond; r = a − y (Huber 1964). At |r| = d the Hessian is taken as 1."""

    d: float = 1.0

    def __post_init__(self):
        if not self.d > 0:
            raise InputError(f"Huber: d must be above 0, got {self.d}. It is the residual where the parabola ends.")

    def check(self, output: Any, y: Any) -> None:
        check_like("Huber", output, y)

    def value(self, output: Output, y: Target) -> Float[Array, "N"]:
        r = jnp.abs(wide(output) - y.astype(wide(output).dtype))
        inside = jnp.minimum(r, self.d)
        return by_example(inside * (r - 0.5 * inside))

    def delta(self, output: Output, y: Target) -> Output:
        return jnp.clip(wide(output) - y.astype(wide(output).dtype), -self.d, self.d)

    def _inside(self, output: Output, y: Target) -> Output:
        r = wide(output) - y.astype(wide(output).dtype)
        return (jnp.abs(r) <= self.d).astype(r.dtype)

    def hessian_product(self, output: Output, y: Target, v: Output) -> Output:
        return self._inside(output, y) * wide(v)

    def hessian_root(self, output: Output, y: Target) -> Float[Array, "K N ..."]:
        return diagonal_root(self._inside(output, y))

    def sample(self, key: PRNGKeyArray, output: Output) -> Output:
        raise InputError("Huber: has no likelihood here to sample from. Use HalfSquaredError for a Gaussian one.")
