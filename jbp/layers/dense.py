"""The dense layer.

    forward    y_j = Σ_k w_{j←k} x_k + b_j                 at each example and position
    backward   δx_k = Σ_j w_{j←k} δ_j                      δ = ∂C/∂y
    gradient   ∂C/∂w_{j←k} = Σ x_k δ_j,  ∂C/∂b_j = Σ δ_j   over examples and positions

Saved: x, because the kernel's pair is (x, δ). Shapes: x `[N, *T, I]`, y `[N, *T, O]`, w stored as `[I, O]`, b `[O]`.
Source: the text's induction; Rumelhart, Hinton & Williams 1986.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from ..layer import Context, InputError, einsum
from ..pair import Outer, Sum

Initializer = Callable[..., Array]


class Affine(NamedTuple):
    """Params of a dense layer; `b` is None for a layer without biases."""

    w: Any
    b: Any


def initializer(given: str | Initializer) -> Initializer:
    """An initialiser `(key, shape, dtype) -> array` by function, or by its name in `jax.nn.initializers`."""
    if callable(given):
        return given
    made = getattr(jax.nn.initializers, given, None)
    if made is None:
        names = ", ".join(n for n in dir(jax.nn.initializers) if not n.startswith("_") and n[0].islower())
        raise InputError(f"unknown initialiser {given!r}. jax.nn.initializers has {names}.")
    return made if given in ("zeros", "ones") else made()


def positions(x: Shaped[Array, "N *T C"]) -> Shaped[Array, "N M C"]:
    """x with all axes between the first and the last as one axis of positions; one position if there are none."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])


@dataclass(frozen=True)
class Dense:
    """`width` neurons, each fed by all of the last axis of x. `weights` and `biases` name initialisers or are such."""

    width: int
    bias: bool = True
    weights: str | Initializer = "lecun_normal"
    biases: str | Initializer = "zeros"

    def __post_init__(self):
        if not isinstance(self.width, int) or self.width < 1:
            raise InputError(f"Dense: width must be a whole number of at least 1, got {self.width!r}.")

    def init(self, key: PRNGKeyArray, x: Any) -> Affine:
        leaves = jax.tree.leaves(x)
        if len(leaves) != 1 or not leaves[0].shape or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
            got = ", ".join(f"{s.dtype}[{', '.join(map(str, ('N', *s.shape)))}]" for s in leaves)
            raise InputError(
                f"Dense({self.width}): expected one float input x [N, ..., I], got {got}. "
                "Give the input an axis of features, or cast it to float."
            )
        kw, kb = jax.random.split(key)
        w = initializer(self.weights)(kw, (x.shape[-1], self.width), x.dtype)
        return Affine(w, initializer(self.biases)(kb, (self.width,), x.dtype) if self.bias else None)

    def forward(self, params: Affine, x: Float[Array, "N *T I"], context: Context) -> tuple[Any, Any]:
        if x.ndim < 2 or x.shape[-1] != params.w.shape[0]:
            raise InputError(
                f"Dense({self.width}): expected x [N, ..., I = {params.w.shape[0]}], got {x.dtype}{list(x.shape)}. "
                "Check the width of the layer before."
            )
        y = einsum("...i,io->...o", x, params.w)
        y = y if params.b is None else y + jnp.broadcast_to(params.b, y.shape).astype(y.dtype)
        return y.astype(x.dtype), x

    def backward(self, params: Affine, saved: Any, delta: Float[Array, "N *T O"], read: Any) -> tuple[Any, Affine]:
        # reverses y = x·w + b
        x, d = positions(saved), positions(delta)
        delta_x = einsum("...o,io->...i", delta, params.w).astype(delta.dtype)
        return delta_x, Affine(read(Outer(x, d)), read(Sum(d)) if self.bias else None)
