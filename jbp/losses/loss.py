"""Losses: the cost C_n of one example from its output, and what the recursion needs of it.

    value(output, y)                -> [N]             C_n
    delta(output, y)                -> [N, ...]        δ^L = ∂C_n/∂output: the base case

These two are all that a loss of your own needs; it is any hashable object. For curvature it has, besides,

    hessian_product(output, y, v)   -> [N, ...]        H_n v,  H_n = ∂²C_n/∂output²
    hessian_root(output, y)         -> [K, N, ...]     columns S_k with Σ_k S_k S_kᵀ = H_n
    sample(key, output)             -> y               from the likelihood of which C_n is −log, where there is one
    sampled_root(key, output, y)    -> [N, ...]        S with E[S Sᵀ] = H_n, where the δ of a sampled label is not that

and to say what is wrong with a y, `check(output, y)` for its shape and `check_values(output, y)` for its values. One of
logits says what it does to them itself, `applies = "softmax"`, so that no network does it before.

A loss over positions sums them, `positions="sum"`, or averages them, `"mean"`; never divided by anything else: the
reduction over examples belongs to `Cost`. Everything is computed and returned in at least float32, also for outputs of
lower precision. A loss that has parameters is a `Layer` from (output, y) to C_n `[N]`; `FromValue` makes any loss one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ..layer import Context, InputError, Layer, described

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


def all_positions(output: Any) -> Float[Array, "N"]:
    """How many positions each example of an output, or of its spec, has: the axes between the first and the last."""
    n, *axes = jax.tree.leaves(output)[0].shape
    return jnp.full(n, float(np.prod(axes[:-1])))


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


# -- what the shipped losses share ------------------------------------------------------------------------------------


def by_example(c: Float[Array, "N ..."]) -> Float[Array, "N"]:
    return c.reshape(c.shape[0], -1).sum(1)


def diagonal_root(h: Float[Array, "N ..."]) -> Float[Array, "K N ..."]:
    """Columns of √diag(h): one for each coordinate of an example's output."""
    shape = h.shape[1:]
    k = math.prod(shape)
    return jnp.eye(k, dtype=h.dtype).reshape(k, 1, *shape) * jnp.sqrt(h)[None]


def check_one_array(loss: str, y: Any) -> None:
    if not hasattr(y, "shape") or not hasattr(y, "dtype"):
        raise InputError(
            f"{loss}: expected y as one array, got {type(y).__name__} of {described(y)}. Use jnp.asarray(y)."
        )


def check_like(loss: str, output: Any, y: Any) -> None:
    check_one_array(loss, y)
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


def check_range(expected: str, y: Any, most: float) -> None:
    y = np.asarray(y)  # values are looked at on the host, wherever they lie
    bad = np.argwhere((y < 0) | (y > most))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise InputError(f"{expected}, got y{list(where)} = {y[where]} ({len(bad)} out of range). Rescale y.")
