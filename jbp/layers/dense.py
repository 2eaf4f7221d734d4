"""The dense layer.

    forward    y_j = Σ_k w_{j←k} x_k + b_j                 at each example and position
    backward   δx_k = Σ_j w_{j←k} δ_j                      δ = ∂C/∂y
    gradient   ∂C/∂w_{j←k} = Σ x_k δ_j,  ∂C/∂b_j = Σ δ_j   over examples and positions

Saved: x, because the kernel's pair is (x, δ). Shapes: x `[N, *T, I]`, y `[N, *T, O]`, w stored as `[I, O]`, b `[O]`.
Source: the text's induction; Rumelhart, Hinton & Williams 1986.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..layer import Context, InputError, check_whole, described, einsum
from ..pair import Outer, Sum

Initializer = Callable[..., Array]


class Affine(NamedTuple):
    """Params of a dense layer; `b` is None for a layer without biases."""

    w: Any
    b: Any


FAMILIES = ("lecun", "he", "glorot", "kaiming", "xavier")
NAMED = (
    *(f"{family}_{kind}" for family in FAMILIES for kind in ("normal", "uniform")),
    *("normal", "uniform", "truncated_normal", "orthogonal"),
)


def initializer(given: str | Initializer) -> Initializer:
    """An initialiser `(key, shape, dtype) -> array` by function, or by its name in `jax.nn.initializers`."""
    if callable(given):
        return given
    if given in ("zeros", "ones"):
        return getattr(jax.nn.initializers, given)
    if given not in NAMED:
        raise InputError(
            f"unknown initialiser {given!r}. Name one of zeros, ones, {', '.join(NAMED)}, or give a function "
            "(key, shape, dtype) -> array, as in jax.nn.initializers.constant(0.1)."
        )
    return getattr(jax.nn.initializers, given)()


def initialised(name: str, given: str | Initializer, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
    """A leaf from its initialiser. Raises `InputError` where that gives something else."""
    try:
        leaf = initializer(given)(key, shape, dtype)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: the initialiser {given!r} fails for shape {list(shape)}: {error}") from error
    if jnp.shape(leaf) != shape:
        raise InputError(
            f"{name}: expected {dtype}{list(shape)} from the initialiser {given!r}, got {described(leaf)}. "
            "Give a function (key, shape, dtype) -> array; jax.nn.initializers' own need a call, as in lecun_normal()."
        )
    return leaf.astype(dtype)


def of_batch(spec: Any) -> str:
    """A spec of one example as that of a batch, in words: `float32[N, 3]`."""
    return f"{spec.dtype}[{', '.join(map(str, ('N', *spec.shape)))}]" if hasattr(spec, "dtype") else repr(spec)


@dataclass(frozen=True)
class Dense:
    """`width` neurons, each fed by all of the last axis of x. `weights` and `biases` name initialisers or are such."""

    width: int
    bias: bool = True
    weights: str | Initializer = "lecun_normal"
    biases: str | Initializer = "zeros"
    affine: ClassVar[bool] = True

    def __post_init__(self):
        check_whole("Dense", width=self.width)
        if not isinstance(self.bias, (bool, np.bool_)):
            number = isinstance(self.bias, (int, np.integer))
            raise InputError(
                f"Dense: bias must be True or False, got {self.bias!r}. "
                + (
                    f"The number of inputs is read off the x that arrives: for {self.bias} outputs write "
                    f"Dense({self.bias})."
                    if number
                    else "Initial biases are biases=, as in Dense(10, biases='zeros')."
                )
            )
        for name in ("weights", "biases"):
            if not isinstance(given := getattr(self, name), str) and not callable(given):
                raise InputError(
                    f"Dense: {name} must name an initialiser or be a function (key, shape, dtype) -> array, got "
                    f"{described(given)}. As in jax.nn.initializers.constant(0.1)."
                )

    def init(self, key: PRNGKeyArray, x: Any) -> Affine:
        leaves = jax.tree.leaves(x)
        if (
            len(leaves) != 1
            or leaves[0] is not x
            or not hasattr(x, "dtype")
            or not leaves[0].shape
            or not jnp.issubdtype(leaves[0].dtype, jnp.floating)
        ):
            got = ", ".join(of_batch(s) for s in leaves) or "nothing"
            raise InputError(
                f"Dense({self.width}): expected one float input x [N, ..., I], got {got}. "
                "Give the input an axis of features, or cast it to float."
            )
        kw, kb = jax.random.split(key)
        w = initialised("weights", self.weights, kw, (x.shape[-1], self.width), x.dtype)
        return Affine(w, initialised("biases", self.biases, kb, (self.width,), x.dtype) if self.bias else None)

    def forward(self, params: Affine, x: Float[Array, "N *T I"], context: Context) -> tuple[Any, Any]:
        if x.ndim < 2 or x.shape[-1] != params.w.shape[0]:
            raise InputError(
                f"Dense({self.width}): expected x [N, ..., I = {params.w.shape[0]}], got {x.dtype}{list(x.shape)}. "
                "Check the width of the layer before."
            )
        y = einsum("...i,io->...o", x, params.w)
        y = y if params.b is None else y + jnp.broadcast_to(params.b, y.shape).astype(y.dtype)
        return y.astype(x.dtype), x

    def backward(
        self, params: Affine, feedback: Affine, saved: Any, delta: Float[Array, "N *T O"], read: Affine
    ) -> tuple[Any, Affine]:
        # reverses y = x·w + b
        delta_x = einsum("...o,io->...i", delta, feedback.w).astype(delta.dtype)
        return delta_x, Affine(read.w(Outer(saved, delta)), read.b(Sum(delta)) if self.bias else None)
