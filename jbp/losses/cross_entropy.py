"""Cross-entropies of logits z: of independent yes-or-no questions, and of classes.

    SigmoidCrossEntropy   C = Σ_j log(1 + e^{z_j}) − y_j z_j;                      δ = σ(z) − y
    SoftmaxCrossEntropy   C = −Σ_c y_c log p_c + λ (log Σ_c e^{z_c})², p = softmax(z);
                          δ = p (Σ_c y_c + 2λ log Σ_c e^{z_c}) − y                 λ = z_loss

Shapes: z `[N, ...]`, classes on the last axis; y as each has it; C_n `[N]`.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from ..layer import InputError, described, wide, wide_dtype
from .loss import Output, Target, by_example, check_like, check_one_array, check_range, diagonal_root


@dataclass(frozen=True)
class SigmoidCrossEntropy:
    """C = Σ_j log(1 + e^{z_j}) − y_j z_j for logits z and y in [0, 1]: −log of independent Bernoulli likelihoods."""

    applies: ClassVar[str] = "sigmoid"

    def check(self, output: Any, y: Any) -> None:
        check_like("SigmoidCrossEntropy", output, y)

    def check_values(self, output: Any, y: Any) -> None:
        """Raise on y outside [0, 1]. Needs values, so it runs outside jit: `Cost.check` calls it."""
        check_range("SigmoidCrossEntropy: expected y in [0, 1]", y, 1.0)

    def value(self, output: Output, y: Target) -> Float[Array, "N"]:
        z = wide(output)
        return by_example(jnp.maximum(z, 0) - y.astype(z.dtype) * z + jnp.log1p(jnp.exp(-jnp.abs(z))))

    def delta(self, output: Output, y: Target) -> Output:
        return jax.nn.sigmoid(wide(output)) - y.astype(wide(output).dtype)

    def _variance(self, output: Output) -> Output:
        return jax.nn.sigmoid(wide(output)) * jax.nn.sigmoid(-wide(output))

    def hessian_product(self, output: Output, y: Target, v: Output) -> Output:
        return self._variance(output) * wide(v)

    def hessian_root(self, output: Output, y: Target) -> Float[Array, "K N ..."]:
        return diagonal_root(self._variance(output))

    def sample(self, key: PRNGKeyArray, output: Output) -> Output:
        """y ~ Bernoulli(σ(z)), as 0.0 or 1.0."""
        return jax.random.bernoulli(key, jax.nn.sigmoid(wide(output))).astype(wide(output).dtype)


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """C = −Σ_c y_c log p_c, p = softmax(z) over the last axis, summed over positions.

    y: integer labels `[N, *T]`, or weights of the classes `[N, *T, K]` (one-hot, or any). `smoothing` s replaces y by
    (1 − s)y + s/K. `z_loss` λ adds λ (log Σ_c e^{z_c})² at each position (Chowdhery et al. 2022, arXiv:2204.02311,
    section 5). Positions whose integer label is `ignore` don't count. With `positions="mean"`, C_n is the sum divided
    by max(1, the number of positions of the example that count). Any other label outside 0 … K − 1 is an error that
    `Cost.check` names; under jit, where values can't raise, it makes the cost and delta NaN.
    """

    smoothing: float = 0.0
    ignore: int | None = None
    positions: Literal["sum", "mean"] = "sum"
    z_loss: float = 0.0
    applies: ClassVar[str] = "softmax"

    def __post_init__(self):
        if self.positions not in ("sum", "mean"):
            raise InputError(f"SoftmaxCrossEntropy: positions must be 'sum' or 'mean', got {self.positions!r}.")
        if not 0 <= self.smoothing < 1:
            raise InputError(f"SoftmaxCrossEntropy: smoothing must be in [0, 1), got {self.smoothing}.")
        if not 0 <= self.z_loss < math.inf:
            raise InputError(f"SoftmaxCrossEntropy: z_loss must be at least 0, got {self.z_loss}. As in 1e-4.")

    def check(self, output: Any, y: Any) -> None:
        check_one_array("SoftmaxCrossEntropy", y)
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
            check_range("SoftmaxCrossEntropy: expected weights of classes of at least 0", y, jnp.inf)
            return
        check_labels("SoftmaxCrossEntropy", y, output.shape[-1], self.ignore)

    def counted(self, output: Any, y: Target) -> Float[Array, "N"]:
        """How many positions of each example count; of the output the spec is enough."""
        if jnp.issubdtype(y.dtype, jnp.integer):
            return counted_labels(y, self.ignore, wide_dtype(output.dtype))
        return by_example(jnp.ones(output.shape[:-1], wide_dtype(output.dtype)))

    def _targets(self, output: Output, y: Target) -> tuple[Output, Any, Output]:
        """(weights of the classes, their sum, each position's factor: 0 where ignored, NaN where y is no class)."""
        z, k = wide(output), output.shape[-1]
        if jnp.issubdtype(y.dtype, jnp.integer):
            counts = label_factors(y, k, self.ignore, self.positions, z.dtype)[..., None]
            y, total = jax.nn.one_hot(y.astype(jnp.int32), k, dtype=z.dtype), jnp.ones_like(z[..., :1])
        else:
            y, total, counts = y.astype(z.dtype), y.astype(z.dtype).sum(-1, keepdims=True), jnp.ones_like(z[..., :1])
            if self.positions == "mean":
                counts = counts / max(1, math.prod(output.shape[1:-1]))
        if self.smoothing:
            y, total = (1 - self.smoothing) * y + self.smoothing / k, (1 - self.smoothing) * total + self.smoothing
        return y, total, counts

    def value(self, output: Output, y: Target) -> Float[Array, "N"]:
        y, _, counts = self._targets(output, y)
        c = by_example(-counts * jnp.where(y == 0, 0, y * self._log_p(output)))
        return c + by_example(counts * self.z_loss * jnp.square(self._log_sum(output))) if self.z_loss else c

    def _log_p(self, output: Output) -> Output:
        return jax.nn.log_softmax(wide(output), axis=-1)  # (z − max) − log Σ: p and C keep their digits near p = 1

    def _log_sum(self, output: Output) -> Output:
        return jax.nn.logsumexp(wide(output), axis=-1, keepdims=True)

    def _slope(self, output: Output, total: Output) -> Output:
        """The derivative by log Σ_c e^{z_c}, whose own derivative is p."""
        return total + 2 * self.z_loss * self._log_sum(output) if self.z_loss else total

    def delta(self, output: Output, y: Target) -> Output:
        y, total, counts = self._targets(output, y)
        return counts * (jnp.exp(self._log_p(output)) * self._slope(output, total) - y)

    def hessian_product(self, output: Output, y: Target, v: Output) -> Output:
        """(diag p − p pᵀ) v · (Σ_c y_c + 2λ log Σ_c e^{z_c}) + 2λ p pᵀ v."""
        _, total, counts = self._targets(output, y)
        p, v = jnp.exp(self._log_p(output)), wide(v)
        along = p * (p * v).sum(-1, keepdims=True)
        product = self._slope(output, total) * (p * v - along)
        return counts * (product + 2 * self.z_loss * along if self.z_loss else product)

    def hessian_root(self, output: Output, y: Target) -> Float[Array, "K N ..."]:
        """Columns √p_c (e_c − p) · √Σ_c y_c: one for each position and class (Dangel et al. 2020, arXiv:1912.10985).

        With a z-loss, √(Σ_c y_c + 2λ log Σ_c e^{z_c}) in the last factor's place, NaN where H_n has no root because
        that is below 0, and besides a column √(2λ) p for each position.
        """
        n, *shape, k = output.shape
        _, total, counts = self._targets(output, y)
        p, t = jnp.exp(self._log_p(output)).reshape(n, -1, 1, k), math.prod(shape)  # [N, T, column, class]
        root = jnp.sqrt(jnp.swapaxes(p, 2, 3)) * (jnp.eye(k, dtype=p.dtype)[None, None] - p)
        root = root * jnp.sqrt(self._slope(output, total)).reshape(n, t, 1, 1)
        if self.z_loss:
            root = jnp.concatenate([root, math.sqrt(2 * self.z_loss) * p], 2)
        root = root * jnp.sqrt(counts).reshape(n, t, 1, 1)
        spread = jnp.einsum("ntck,ts->tcnsk", root, jnp.eye(t, dtype=p.dtype))  # zero at the other positions
        return spread.reshape(-1, n, *shape, k)

    def sampled_root(self, key: PRNGKeyArray, output: Output, y: Target) -> Output:
        """S with E[S Sᵀ] = H_n: at each position (p − e_ŷ) √(Σ_c y_c + 2λ log Σ_c e^{z_c}) for a label ŷ ~ p, plus
        ±√(2λ) p, the sign drawn apart; all times the root of the position's factor, 0 where y is ignored."""
        _, total, counts = self._targets(output, y)
        p, of_label, of_sign = jnp.exp(self._log_p(output)), *jax.random.split(key)
        hot = jax.nn.one_hot(self.sample(of_label, output), output.shape[-1], dtype=p.dtype)
        root = (p - hot) * jnp.sqrt(self._slope(output, total))
        if self.z_loss:
            sign = jax.random.rademacher(of_sign, (*output.shape[:-1], 1), p.dtype)
            root = root + math.sqrt(2 * self.z_loss) * sign * p
        return jnp.sqrt(counts) * root

    def sample(self, key: PRNGKeyArray, output: Output) -> Shaped[Array, "N *T"]:
        """Labels ~ Categorical(p)."""
        return jax.random.categorical(key, wide(output), axis=-1)


# -- labels -----------------------------------------------------------------------------------------------------------


def counted_labels(y: Target, ignore: int | None, dtype: Any) -> Float[Array, "N"]:
    """How many positions of each example count: those whose label is not `ignore`."""
    return by_example(jnp.ones(y.shape, dtype) if ignore is None else (y != ignore).astype(dtype))


def label_factors(y: Target, k: int, ignore: int | None, positions: str, dtype: Any) -> Float[Array, "N *T"]:
    """Each position's factor in C_n: 0 where ignored, NaN where y is no class, 1/max(1, counted) for a mean."""
    labels = y.astype(jnp.int32)  # K need not fit into the labels' own dtype
    factors = jnp.where((labels >= 0) & (labels < k), jnp.ones((), dtype), jnp.nan)
    if ignore is not None:
        factors = jnp.where(labels == ignore, 0, factors)
    if positions == "mean":
        factors = factors / jnp.maximum(counted_labels(y, ignore, dtype), 1).reshape(-1, *(1,) * (y.ndim - 1))
    return factors


def check_labels(who: str, y: Any, k: int, ignore: int | None) -> None:
    """Raise `InputError` on labels outside 0 … K − 1 that are not `ignore`."""
    y = np.asarray(y, np.int64)  # K need not fit into the labels' own dtype
    bad = np.argwhere(((y < 0) | (y >= k)) & ((y != ignore) if ignore is not None else True))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise InputError(
            f"{who}: expected labels in 0 … {k - 1}, got y{list(where)} = {int(y[where])} "
            f"({len(bad)} out of range). Mark labels to leave out with ignore=."
        )
