"""Losses: the cost C_n of one example from its output, and what the recursion needs of it.

    value(output, y)                -> [N]             C_n
    delta(output, y)                -> [N, ...]        δ^L = ∂C_n/∂output: the base case

These two are all that a loss of your own needs; it is any hashable object. For curvature it has, besides,

    hessian_product(output, y, v)   -> [N, ...]        H_n v,  H_n = ∂²C_n/∂output²
    hessian_root(output, y)         -> [K, N, ...]     columns S_k with Σ_k S_k S_kᵀ = H_n
    sample(key, output)             -> y               from the likelihood of which C_n is −log, where there is one

and to say what is wrong with a y, `check(output, y)` for its shape and `check_values(output, y)` for its values.

A loss over positions sums them, `positions="sum"`, or averages them, `"mean"`; never divided by anything else: the
reduction over examples belongs to `Cost`. Everything is computed and returned in at least float32, also for outputs of
lower precision. A loss that has parameters is a `Layer` from (output, y) to C_n `[N]`; `FromValue` makes any loss one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from .layer import Context, InputError, Layer, described, wide, wide_dtype

Output = Float[Array, "N ..."]
Target = Shaped[Array, "N ..."]


@runtime_checkable
class Loss(Protocol):
    """A hashable object with these two methods; the text above says what it may have besides."""

    def value(self, output: Any, y: Any) -> Any:
        """C_n `[N]`."""

    def delta(self, output: Any, y: Any) -> Any:
        """∂C_n/∂output, of the output's shape."""


@dataclass(frozen=True)
class FromFunction:
    """The loss `value(output, y) -> [N]` with delta by `jax.grad` of it: see `from_function`."""

    of: Callable[[Any, Any], Any]

    def value(self, output: Any, y: Any) -> Any:
        return self.of(output, y)

    def delta(self, output: Any, y: Any) -> Any:
        def total(output: Any) -> Any:
            values = self.of(output, y)
            check_by_example("from_function", output, values)
            return values.sum()

        return jax.grad(total)(output)


def from_function(value: Callable[[Any, Any], Any]) -> FromFunction:
    """A loss from `value(output, y) -> C_n [N]` alone; its delta is `jax.grad` of Σ_n C_n.

    `value` treats examples independently and returns one number for each, no mean. Raises `InputError` if it does not.
    """
    if not callable(value) or isinstance(value, Loss):
        raise InputError(f"losses.from_function: expected a function (output, y) -> [N], got {value!r}.")
    return FromFunction(value)


@dataclass(frozen=True)
class FromValue:
    """A loss as a layer from (output, y) to C_n `[N]`; no params.

    forward    C_n = value(output, y)
    backward   δ of output = delta(output, y) · δ_n

    Saved: output and y. Raises `InputError`, with the loss's name, where value or delta has another shape.
    """

    loss: Loss

    @property
    def mixes_examples(self) -> bool:
        return getattr(self.loss, "mixes_examples", False)

    def init(self, key: Any, x: Any) -> tuple:
        return ()

    def check_values(self, x: Any) -> None:
        if hasattr(self.loss, "check_values"):
            self.loss.check_values(*x)

    def forward(self, params: tuple, x: tuple[Any, Any], context: Context) -> tuple[Any, Any]:
        if hasattr(self.loss, "check"):
            self.loss.check(*x)
        values = self.loss.value(*x)
        check_by_example(type(self.loss).__name__, x[0], values)
        return values, x

    def backward(self, params: tuple, feedback: tuple, saved: Any, delta: Any, read: tuple) -> tuple[Any, tuple]:
        output, y = saved
        found = self.loss.delta(output, y)
        _check_delta(type(self.loss).__name__, output, found)
        scaled = lambda d, a: (d * delta.astype(d.dtype).reshape(-1, *(1,) * (d.ndim - 1))).astype(a.dtype)
        return (jax.tree.map(scaled, found, output), jax.tree.map(lambda _: None, y)), ()


def check_by_example(name: str, output: Any, values: Any) -> None:
    """Raise `InputError` unless a loss gave one float for each example."""
    n = jax.tree.leaves(output)[0].shape[0]
    if jnp.shape(values) == (n,) and jnp.issubdtype(jnp.result_type(values), jnp.floating):
        return
    remedy = "Return a float for each example."
    if jnp.shape(values) == ():
        remedy = "Take no sum or mean over examples: Cost(reduction=...) does that."
    elif jnp.ndim(values) > 1:
        remedy = "Sum over the other axes, as in values.sum(-1)."
    raise InputError(
        f"{name}: value must return C_n, one float for each example, [{n}], got {described(values)}. {remedy}"
    )


def _check_delta(name: str, output: Any, delta: Any) -> None:
    shapes = lambda tree: [(path, jnp.shape(a)) for path, a in jax.tree_util.tree_leaves_with_path(tree)]
    if shapes(delta) != shapes(output):
        raise InputError(
            f"{name}: delta must return ∂C_n/∂output, {described(output)} like the output, got {described(delta)}. "
            "Keep all axes of the output."
        )


def as_layer(loss: Any) -> Layer:
    """The loss as a layer from (output, y) to C_n. Raises `InputError` where it is neither a loss nor a layer."""
    if isinstance(loss, type):
        raise InputError(f"Cost: expected a loss, got the class {loss.__name__}. Write {loss.__name__}().")
    if not isinstance(loss, Loss | Layer):
        remedy = "Write jbp.losses.HalfSquaredError()."
        if callable(loss):
            remedy = "Write jbp.losses.from_function(value) for a function value(output, y) -> [N]."
        raise InputError(f"Cost: expected a loss, got {loss!r}. {remedy}")
    try:
        hash(loss)
    except TypeError as error:
        raise InputError(
            f"Cost: a loss must be hashable, a frozen dataclass of settings: {error}. Arrays belong into y."
        ) from None
    return FromValue(loss) if isinstance(loss, Loss) else loss


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
    (1 − s)y + s/K. Positions whose integer label is `ignore` don't count. With `positions="mean"`, C_n is the sum
    divided by max(1, the number of positions of the example that count). Any other label outside 0 … K − 1 is an
    error that `Cost.check` names; under jit, where values can't raise, it makes the cost and delta NaN.
    """

    smoothing: float = 0.0
    ignore: int | None = None
    positions: Literal["sum", "mean"] = "sum"

    def __post_init__(self):
        if self.positions not in ("sum", "mean"):
            raise InputError(f"SoftmaxCrossEntropy: positions must be 'sum' or 'mean', got {self.positions!r}.")
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

    def counted(self, output: Any, y: Target) -> Float[Array, "N"]:
        """How many positions of each example count; of the output the spec is enough."""
        counts = jnp.ones(output.shape[:-1], wide_dtype(output.dtype))
        if self.ignore is not None and jnp.issubdtype(y.dtype, jnp.integer):
            counts = jnp.where(y == self.ignore, 0, counts)
        return _sum(counts)

    def _targets(self, output: Output, y: Target) -> tuple[Output, Any, Output]:
        """(weights of the classes, their sum, each position's factor: 0 where ignored, NaN where y is no class)."""
        z, k, labels = wide(output), output.shape[-1], y
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
        if self.positions == "mean":
            counts = counts / jnp.maximum(self.counted(output, labels), 1).reshape(-1, *(1,) * (z.ndim - 1))
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
        root = root * (jnp.sqrt(counts) * jnp.sqrt(total)).reshape(n, t, 1, 1)
        spread = jnp.einsum("ntck,ts->tcnsk", root, jnp.eye(t, dtype=p.dtype))  # zero at the other positions
        return spread.reshape(t * k, n, *shape, k)

    def sample(self, key: PRNGKeyArray, output: Output) -> Shaped[Array, "N *T"]:
        """Labels ~ Categorical(p)."""
        return jax.random.categorical(key, wide(output), axis=-1)
