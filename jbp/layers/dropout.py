"""Noise that leaves something out: single numbers, or the branch of a residual block.

    Dropout           y = x·m/(1 − p), m ∈ {0, 1} with P(m = 0) = p           δ of x = δ·m/(1 − p)
    StochasticDepth   y = x + f(x)·m_n/(1 − p), one m_n for each example       δ of x = δ + (δ·m_n/(1 − p) through f)

The expectation of y is what stands there without m. Without a key in the context there is no noise: Dropout is the
identity and StochasticDepth is x + f(x).

Saved: m, one byte a number, a quarter of x in float32. To draw it again from the key in reverse would keep nothing, and
is slower: with a product of matrices between, 2×1024×256 took 16.2 ms drawn again and 14.3 ms saved, of which 1.8 ms
drew m once (jax 0.12, 2 cores; on 0.10, whose XLA may merge the draws, both took as long). Inside a `Checkpoint` m is
drawn again. m comes from float32 noise whatever the dtype of x, so that bfloat16 and float32 leave out the same.
Sources: Srivastava et al. 2014; Huang et al. 2016, arXiv:1603.09382.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..errors import is_number
from ..layer import Context, InputError, Layer, at, wide
from ..run import step, step_back
from .compose import Inner, check_keeps_shape, check_layer
from .settings import check_float_input

REMEDY = "Cast it, or join its parts."


def _check_rate(who: str, rate: Any) -> None:
    if not is_number(rate) or not 0 <= rate < 1:
        raise InputError(f"{who}: rate must be a number in [0, 1), the part that is left out, got {rate!r}.")


def _drawn(key: Any, rate: float, shape: tuple[int, ...]) -> Array:
    """m: True with probability 1 − rate."""
    return jax.random.uniform(key, shape, jnp.float32) >= np.float32(rate)


def _kept(x: Float[Array, "*any"], keep: Array | None, rate: float) -> Float[Array, "*any"]:
    """x·m/(1 − rate), rounded once; x itself where there is no m."""
    if keep is None:
        return x
    keep = jnp.broadcast_to(keep.reshape(keep.shape + (1,) * (x.ndim - keep.ndim)), x.shape)
    return jnp.where(keep, wide(x) / (1 - rate), 0).astype(x.dtype)


@dataclass(frozen=True)
class Dropout:
    """With a key in the context, each number is 0 with probability `rate`, and else divided by 1 − rate."""

    rate: float
    elementwise: ClassVar[bool] = True

    def __post_init__(self):
        _check_rate("Dropout", self.rate)

    def init(self, key: PRNGKeyArray, x: Any) -> tuple:
        check_float_input("Dropout", x, "[N, ...]", 0, REMEDY)
        return ()

    def forward(self, params: tuple, x: Float[Array, "N ..."], context: Context) -> tuple[Any, Any]:
        keep = None if context.key is None or not self.rate else _drawn(context.key, self.rate, x.shape)
        return _kept(x, keep, self.rate), keep

    def backward(
        self, params: tuple, feedback: tuple, saved: Any, delta: Float[Array, "N ..."], read: Any
    ) -> tuple[Any, tuple]:
        return _kept(delta, saved, self.rate), ()


@dataclass(frozen=True)
class StochasticDepth:
    """y = x + layer(x); with a key in the context, an example goes without `layer` with probability `rate`.

    The layer is computed for all examples: what is saved is noise in training, not time.
    """

    layer: Layer
    rate: float

    def __post_init__(self):
        check_layer("StochasticDepth: layer", self.layer)
        _check_rate("StochasticDepth", self.rate)

    def init(self, key: PRNGKeyArray, x: Any) -> Inner:
        check_float_input("StochasticDepth", x, "[N, ...]", 0, REMEDY)
        with at("layer"):
            params = self.layer.init(key, x)
            check_keeps_shape("StochasticDepth", self.layer, params, x, "to which it is added")
        return Inner(params)

    def forward(self, params: Inner, x: Float[Array, "N ..."], context: Context) -> tuple[Any, Any]:
        y, kept = step("layer", self.layer, params.layer, x, context)
        key = context.child("keep").key
        keep = None if key is None or not self.rate else _drawn(key, self.rate, x.shape[:1])
        return x + _kept(y, keep, self.rate), (kept, keep)

    def backward(
        self, params: Inner, feedback: Inner, saved: Any, delta: Float[Array, "N ..."], read: Inner
    ) -> tuple[Any, Inner]:
        kept, keep = saved
        branch = _kept(delta, keep, self.rate)
        through, readings = step_back(self.layer, params.layer, feedback.layer, kept, branch, read.layer)
        return delta + through, Inner(readings)
