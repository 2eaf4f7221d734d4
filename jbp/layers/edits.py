"""Layers that leave forward as it is, and change the reverse.

    Frozen       y = f(x);                    δx = δ through f, and 0 for the params
    Tap          y = x;                       δx = fn(δ): to look at a delta, or to edit it

Saved: what `step` keeps of the child, or nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..layer import Context, InputError, Layer, at, wide_dtype
from ..layout import Fixed
from ..reader import read_nothing, readers
from ..run import Kept, step, step_back
from ..uses import Nothing
from .compose import check_layer


@dataclass(frozen=True)
class Frozen:
    """The layer with its params held fixed: `layout.trainable` is False at its leaves, and their gradient is 0.

    Forward stops the gradient at the params, so `jax.grad` agrees. In reverse delta goes through, and each leaf's
    reader gets `Nothing`, a pair whose every quantity is 0: no product of its gradient is computed.
    """

    layer: Layer

    def __post_init__(self):
        check_layer("Frozen: layer", self.layer)

    def init(self, key: PRNGKeyArray, x: Any) -> Fixed:
        with at("fixed"):
            return Fixed(self.layer.init(key, x))

    def forward(self, params: Fixed, x: Any, context: Context) -> tuple[Any, Kept]:
        return step("fixed", self.layer, jax.lax.stop_gradient(params.fixed), x, context)

    def backward(self, params: Fixed, feedback: Fixed, saved: Kept, delta: Any, read: Fixed) -> tuple[Any, Fixed]:
        nobody = readers(params.fixed, read_nothing)
        fixed, carries = jax.lax.stop_gradient(
            (params.fixed, feedback.fixed)
        )  # in a Hessian product they are fixed too
        delta_x, _ = step_back(self.layer, fixed, carries, saved, delta, nobody)
        n = jax.tree.leaves(delta)[0].shape[0]
        nothing = lambda leaf, reader: reader(Nothing(n, jnp.shape(leaf), wide_dtype(leaf.dtype)))
        return delta_x, Fixed(jax.tree.map(nothing, params.fixed, read.fixed))


@dataclass(frozen=True)
class Tap:
    """The identity forward; `fn(delta)` in reverse. `fn` returns a delta of the same shape.

    δ is of the reduced cost (each example's scaled by its weight, 1/N in a mean) in `cost.grad` and `value_and_grad`,
    and of each example's own cost C_n in `cost.measure` and `pairs`: an `fn` that is not linear tells them apart.
    """

    fn: Callable[[Any], Any]

    def __post_init__(self):
        if not callable(self.fn):
            raise InputError(
                f"Tap: expected fn as a function of delta, got {self.fn!r}. As in Tap(lambda delta: delta)."
            )

    @property
    def elementwise(self) -> bool | None:
        """True where `fn` hands δ on unchanged, as its own program says; else unknown, as backward is no derivative."""
        try:
            program = jax.make_jaxpr(self.fn)(jax.ShapeDtypeStruct((1, 1), jnp.result_type(float)))
        except Exception:  # it takes a δ of another shape, or looks at its values
            return None
        return program.jaxpr.outvars == program.jaxpr.invars or None

    def init(self, key: PRNGKeyArray, x: Any) -> tuple:
        return ()

    def forward(self, params: tuple, x: Any, context: Context) -> tuple[Any, tuple]:
        return x, ()

    def backward(self, params: tuple, feedback: tuple, saved: tuple, delta: Any, read: tuple) -> tuple[Any, tuple]:
        return self.fn(delta), ()
