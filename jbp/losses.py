"""Losses: the cost C_n of one example from its output, and what the recursion needs of it.

    value(output, y)                -> [N]             C_n
    delta(output, y)                -> [N, ...]        δ^L = ∂C_n/∂output: the base case
    hessian_product(output, y, v)   -> [N, ...]        H_n v,  H_n = ∂²C_n/∂output²
    hessian_root(output, y)         -> [K, N, ...]     columns S_k with Σ_k S_k S_kᵀ = H_n
    sample(key, output)             -> y               from the likelihood of which C_n is −log, where there is one

Sums over an example's positions and classes; never divided by anything: reduction over examples belongs to `Cost`.
Everything is computed and returned in at least float32, also for outputs of lower precision.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from .layer import InputError, described, wide

Output = Float[Array, "N ..."]
Target = Shaped[Array, "N ..."]


@runtime_checkable
class Loss(Protocol):
    """A frozen, hashable dataclass with the five methods above, and `check`, which raises on a y that does not fit."""

    def check(self, output: Any, y: Any) -> None: ...
    def value(self, output: Any, y: Any) -> Any: ...
    def delta(self, output: Any, y: Any) -> Any: ...
    def hessian_product(self, output: Any, y: Any, v: Any) -> Any: ...
    def hessian_root(self, output: Any, y: Any) -> Any: ...
    def sample(self, key: Any, output: Any) -> Any: ...


def _sum(c: Float[Array, "N ..."]) -> Float[Array, "N"]:
    return c.reshape(c.shape[0], -1).sum(1)


def _diagonal_root(h: Float[Array, "N ..."]) -> Float[Array, "K N ..."]:
    """Columns of √diag(h): one for each coordinate of an example's output."""
    shape = h.shape[1:]
    k = math.prod(shape)
    return jnp.eye(k, dtype=h.dtype).reshape(k, 1, *shape) * jnp.sqrt(h)[None]


def _check_array(loss: str, y: Any) -> None:
    if not hasattr(y, "shape") or not hasattr(y, "dtype"):
        raise InputError(
            f"{loss}: expected y as one array, got {type(y).__name__} of {described(y)}. Use jnp.asarray(y)."
        )


def _check_like(loss: str, output: Any, y: Any) -> None:
    _check_array(loss, y)
    if jnp.shape(y) == jnp.shape(output) and jnp.issubdtype(jnp.result_type(y), jnp.floating):
        return
    remedy = "Cast y to float."
    if jnp.shape(y) != jnp.shape(output):
        one_short = jnp.shape(y) == jnp.shape(output)[:-1]
        remedy = "Give y the shape of the output, as in " + (
            "y[..., None]." if one_short else "y.reshape(output.shape)."
        )
        if one_short and jnp.shape(output)[-1] > 1:
            remedy = "Give y the shape of the output; labels become jax.nn.one_hot(y, K)."
    raise InputError(
        f"{loss}: expected float y of the output's shape {described(output)}, got {described(y)}. {remedy}"
    )


def _check_range(expected: str, y: Any, most: float) -> None:
    y = np.asarray(y)  # values are looked at on the host, wherever they lie
    bad = np.argwhere((y < 0) | (y > most))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise InputError(f"{expected}, got y{list(where)} = {y[where]} ({len(bad)} out of range). Rescale y.")


@dataclass(frozen=True)
class HalfSquaredError:
    """The text's C = ½ Σ_j (y_j − a_j)². −log N(y; a, 1) up to a constant."""

    def check(self, output: Any, y: Any) -> None:
        _check_like("HalfSquaredError", output, y)

    def value(self, output: Output, y: Target) -> Float[Array, "N"]:
        return 0.5 * _sum(jnp.square(y.astype(wide(output).dtype) - wide(output)))

    def delta(self, output: Output, y: Target) -> Output:
        return wide(output) - y.astype(wide(output).dtype)

    def hessian_product(self, output: Output, y: Target, v: Output) -> Output:
        return wide(v)

    def hessian_root(self, output: Output, y: Target) -> Float[Array, "K N ..."]:
        return _diagonal_root(jnp.ones_like(wide(output)))

    def sample(self, key: PRNGKeyArray, output: Output) -> Output:
        """y ~ N(output, 1)."""
        return wide(output) + jax.random.normal(key, output.shape, wide(output).dtype)


@dataclass(frozen=True)
class SquaredError:
    """C = Σ_j (y_j − a_j)², without the half. −log N(y; a, ½) up to a constant."""

    def check(self, output: Any, y: Any) -> None:
        _check_like("SquaredError", output, y)

    def value(self, output: Output, y: Target) -> Float[Array, "N"]:
        return 2 * HalfSquaredError().value(output, y)

    def delta(self, output: Output, y: Target) -> Output:
        return 2 * HalfSquaredError().delta(output, y)

    def hessian_product(self, output: Output, y: Target, v: Output) -> Output:
        return 2 * wide(v)

    def hessian_root(self, output: Output, y: Target) -> Float[Array, "K N ..."]:
        return _diagonal_root(jnp.full_like(wide(output), 2))

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
        _check_like("Huber", output, y)

    def value(self, output: Output, y: Target) -> Float[Array, "N"]:
        r = jnp.abs(wide(output) - y.astype(wide(output).dtype))
        inside = jnp.minimum(r, self.d)
        return _sum(inside * (r - 0.5 * inside))

    def delta(self, output: Output, y: Target) -> Output:
        return jnp.clip(wide(output) - y.astype(wide(output).dtype), -self.d, self.d)

    def _inside(self, output: Output, y: Target) -> Output:
        r = wide(output) - y.astype(wide(output).dtype)
        return (jnp.abs(r) <= self.d).astype(r.dtype)

    def hessian_product(self, output: Output, y: Target, v: Output) -> Output:
        return self._inside(output, y) * wide(v)

    def hessian_root(self, output: Output, y: Target) -> Float[Array, "K N ..."]:
        return _diagonal_root(self._inside(output, y))

    def sample(self, key: PRNGKeyArray, output: Output) -> Output:
        raise InputError("Huber: has no likelihood here to sample from. Use HalfSquaredError for a Gaussian one.")


@dataclass(frozen=True)
class SigmoidCrossEntropy:
    """C = Σ_j log(1 + e^{z_j}) − y_j z_j for logits z and y in [0, 1]: −log of independent Bernoulli likelihoods."""

    def check(self, output: Any, y: Any) -> None:
        _check_like("SigmoidCrossEntropy", output, y)

    def check_values(self, output: Any, y: Any) -> None:
        """Raise on y outside [0, 1]. Needs values, so it runs outside jit: `Cost.check` calls it."""
        _check_range("SigmoidCrossEntropy: expected y in [0, 1]", y, 1.0)

    def value(self, output: Output, y: Target) -> Float[Array, "N"]:
        z = wide(output)
        return _sum(jnp.maximum(z, 0) - y.astype(z.dtype) * z + jnp.log1p(jnp.exp(-jnp.abs(z))))

    def delta(self, output: Output, y: Target) -> Output:
        return jax.nn.sigmoid(wide(output)) - y.astype(wide(output).dtype)

    def _variance(self, output: Output) -> Output:
        return jax.nn.sigmoid(wide(output)) * jax.nn.sigmoid(-wide(output))

    def hessian_product(self, output: Output, y: Target, v: Output) -> Output:
        return self._variance(output) * wide(v)

    def hessian_root(self, output: Output, y: Target) -> Float[Array, "K N ..."]:
        return _diagonal_root(self._variance(output))

    def sample(self, key: PRNGKeyArray, output: Output) -> Output:
        """y ~ Bernoulli(σ(z)), as 0.0 or 1.0."""
        return jax.random.bernoulli(key, jax.nn.sigmoid(wide(output))).astype(wide(output).dtype)


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """C = −Σ_c y_c log p_c, p = softmax(z) over the last axis, summed over positions.

    y: integer labels `[N, *T]`, or weights of the classes `[N, *T, K]` (one-hot, or any). `smoothing` s replaces y by
    (1 − s)y + s/K. Positions whose integer label is `ignore` count nothing. Any other label outside 0 … K − 1 is an
    error that `Cost.check` names; under jit, where values can't raise, it makes the cost and delta NaN.
    """

    smoothing: float = 0.0
    ignore: int | None = None

    def __post_init__(self):
        if not 0 <= self.smoothing < 1:
            raise InputError(f"SoftmaxCrossEntropy: smoothing must be in [0, 1), got {self.smoothing}.")

    def check(self, output: Any, y: Any) -> None:
        _check_array("SoftmaxCrossEntropy", y)
        shape, dtype = jnp.shape(y), jnp.result_type(y)
        labels = shape == jnp.shape(output)[:-1] and jnp.issubdtype(dtype, jnp.integer)
        if not labels and not (shape == jnp.shape(output) and jnp.issubdtype(dtype, jnp.floating)):
            raise InputError(
                f"SoftmaxCrossEntropy: expected y as integer labels {list(jnp.shape(output)[:-1])} or as floats "
                f"{list(jnp.shape(output))} for output {described(output)}, got {described(y)}. "
                "Cast labels to int32, or use jax.nn.one_hot(y, K)."
            )

    def check_values(self, output: Any, y: Any) -> None:
        """Raise on labels out of range. Needs values, so it runs outside jit: `Cost.check` calls it."""
        if not jnp.issubdtype(jnp.result_type(y), jnp.integer):
            _check_range("SoftmaxCrossEntropy: expected weights of classes of at least 0", y, jnp.inf)
            return
        y = np.asarray(y, np.int64)  # K need not fit into the labels' own dtype
        k = output.shape[-1]
        bad = (
            np.argwhere((y < 0) | (y >= k))
            if self.ignore is None
            else np.argwhere(((y < 0) | (y >= k)) & (y != self.ignore))
        )
        if len(bad):
            where = tuple(int(i) for i in bad[0])
            raise InputError(
                f"SoftmaxCrossEntropy: expected labels in 0 … {k - 1}, got y{list(where)} = {int(y[where])} "
                f"({len(bad)} out of range). Mark labels to leave out with ignore=."
            )

    def _targets(self, output: Output, y: Target) -> tuple[Output, Any, Output]:
        """(weights of the classes, their sum, 1 where a position counts, 0 where ignored, NaN where it is no class)."""
        z, k = wide(output), output.shape[-1]
        counts = jnp.ones_like(z[..., :1])
        if jnp.issubdtype(y.dtype, jnp.integer):
            y = y.astype(jnp.int32)  # K need not fit into the labels' own dtype
            counts = jnp.where(((y >= 0) & (y < k))[..., None], counts, jnp.nan)
            if self.ignore is not None:
                counts = jnp.where((y == self.ignore)[..., None], 0, counts)
            y, total = jax.nn.one_hot(y, k, dtype=z.dtype), jnp.ones_like(z[..., :1])
        else:
            y, total = y.astype(z.dtype), y.astype(z.dtype).sum(-1, keepdims=True)
        if self.smoothing:
            y, total = (1 - self.smoothing) * y + self.smoothing / k, (1 - self.smoothing) * total + self.smoothing
        return y, total, counts

    def value(self, output: Output, y: Target) -> Float[Array, "N"]:
        y, _, counts = self._targets(output, y)
        return _sum(-counts * jnp.where(y == 0, 0, y * self._log_p(output)))

    def _log_p(self, output: Output) -> Output:
        return jax.nn.log_softmax(wide(output), axis=-1)  # (z − max) − log Σ: p and C keep their digits near p = 1

    def delta(self, output: Output, y: Target) -> Output:
        y, total, counts = self._targets(output, y)
        return counts * (jnp.exp(self._log_p(output)) * total - y)

    def hessian_product(self, output: Output, y: Target, v: Output) -> Output:
        """(diag p − p pᵀ) v · Σ_c y_c."""
        _, total, counts = self._targets(output, y)
        p, v = jnp.exp(self._log_p(output)), wide(v)
        return counts * total * (p * v - p * (p * v).sum(-1, keepdims=True))

    def hessian_root(self, output: Output, y: Target) -> Float[Array, "K N ..."]:
        """Columns √p_c (e_c − p) · √Σ_c y_c: one for each position and class (Dangel et al. 2020, arXiv:1912.10985)."""
        n, *shape, k = output.shape
        _, total, counts = self._targets(output, y)
        p, t = jnp.exp(self._log_p(output)).reshape(n, -1, 1, k), math.prod(shape)  # [N, T, column, class]
        root = jnp.sqrt(jnp.swapaxes(p, 2, 3)) * (jnp.eye(k, dtype=p.dtype)[None, None] - p)
        root = root * (counts * jnp.sqrt(total)).reshape(n, t, 1, 1)
        spread = jnp.einsum("ntck,ts->tcnsk", root, jnp.eye(t, dtype=p.dtype))  # zero at the other positions
        return spread.reshape(t * k, n, *shape, k)

    def sample(self, key: PRNGKeyArray, output: Output) -> Shaped[Array, "N *T"]:
        """Labels ~ Categorical(p)."""
        return jax.random.categorical(key, wide(output), axis=-1)
