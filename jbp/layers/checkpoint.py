"""Recomputation: a layer that keeps x in place of what it would save.

    forward    y = f(x)
    backward   f runs forward again on x, and then δ goes through it: δ of x and the gradients are f's own

Saved: x and the context (the same context gives the same noise), because all else follows from them. The forward pass
is paid a second time. The recomputation is tied to δ by `optimization_barrier`, or XLA would merge it with the first
forward and keep everything. It runs on the true params, whatever carries δ. (On a CPU the XLA of jax 0.10 takes that
barrier away too early: outside a loop nothing is saved there, by `jax.checkpoint` neither. In a `Repeat` it is.)

Memory of L equal blocks: `Repeat(Checkpoint(block), L)` keeps L x's and one block's inside; groups of √L,
`Repeat(Checkpoint(Repeat(Checkpoint(block), √L)), √L)`, keep 2√L x's for one forward more. Source: Chen et al. 2016,
arXiv:1604.06174.
"""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from ..layer import Context, Layer, at
from ..run import step, step_back
from .compose import Inner, check_layer


@dataclass(frozen=True)
class Checkpoint:
    """The layer, with x alone saved: in reverse it runs forward again."""

    layer: Layer

    def __post_init__(self):
        check_layer("Checkpoint: layer", self.layer)

    def init(self, key: PRNGKeyArray, x: Any) -> Inner:
        with at("layer"):
            return Inner(self.layer.init(key, x))

    def forward(self, params: Inner, x: Any, context: Context) -> tuple[Any, tuple[Any, Context]]:
        y, _ = step("layer", self.layer, params.layer, x, context)
        return y, (x, context)

    def backward(
        self, params: Inner, feedback: Inner, saved: tuple[Any, Context], delta: Any, read: Inner
    ) -> tuple[Any, Inner]:
        (x, context), delta = jax.lax.optimization_barrier((saved, delta))
        _, kept = step("layer", self.layer, params.layer, x, context)
        delta, readings = step_back(self.layer, params.layer, feedback.layer, kept, delta, read.layer)
        return delta, Inner(readings)
