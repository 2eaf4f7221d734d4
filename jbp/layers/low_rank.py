"""A correction of low rank to a layer whose params are held fixed (LoRA).

    forward    y = f(x) + h·up,  h = s·(x·down)            f: the layer, held fixed; s: `scale`
    backward   δ_h = δ·upᵀ,  δ_d = s·δ_h
               δx = (δ through f) + δ_d·downᵀ              δ = ∂C/∂y
    gradient   ∂C/∂down = Σ x ⊗ δ_d,  ∂C/∂up = Σ h ⊗ δ     of the layer's own params: 0, and no number of it is computed

Saved: x and h `[N, *T, r]`, and what the layer saves, as each pair is of one of them and of δ.
Shapes: x `[N, *T, I]`, y `[N, *T, O]`, down `[I, r]`, up `[r, O]`: A and B of the paper, transposed. `up` begins as
zeros, so that y = f(x) at first. Source: Hu et al. 2021, arXiv:2106.09685, § 4.1; its α is `scale`·r.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..errors import check_whole
from ..layer import Context, InputError, Layer, at, described, einsum, output_spec, wide
from ..layout import Fixed
from ..pair import Outer
from ..run import step, step_back
from .compose import check_layer
from .dense import initialised
from .edits import Frozen
from .settings import check_above_zero, check_float_input


class Correction(NamedTuple):
    """Params: those of the layer, held fixed, and the two factors of the correction."""

    layer: Fixed
    down: Any
    up: Any


@dataclass(frozen=True)
class LowRank:
    """layer(x) + scale·(x·down)·up, of which `down` and `up`, of rank `rank`, are trained, and the layer is not.

    `layer`: maps the last axis of one float array x, as `Dense` does. Its params are `layer.fixed.…` in the layout, so
    `fit` keeps no optimiser state for them.
    """

    layer: Layer
    rank: int
    scale: float = 1.0

    def __post_init__(self):
        check_layer("LowRank: layer", self.layer)
        check_whole("LowRank", rank=self.rank)
        check_above_zero("LowRank", scale=self.scale)

    def init(self, key: PRNGKeyArray, x: Any) -> Correction:
        check_float_input("LowRank", x, "[N, ..., I]", 1, "Put it around a Dense, or another layer of one float array.")
        of_layer, of_down = jax.random.split(key)
        with at("layer"):
            params = Frozen(self.layer).init(of_layer, x)
            y = output_spec(Frozen(self.layer), params, x)
        if not hasattr(y, "shape") or y.shape[:-1] != x.shape[:-1] or not y.shape:
            raise InputError(
                f"LowRank: expected a layer that maps the last axis alone, (x, layer(x)) is {described((x, y))} "
                "without the batch axis. Put it around a Dense."
            )
        down = initialised("down", "lecun_normal", of_down, (x.shape[-1], self.rank), x.dtype)
        return Correction(params, down, jnp.zeros((self.rank, y.shape[-1]), x.dtype))

    def forward(self, params: Correction, x: Float[Array, "N *T I"], context: Context) -> tuple[Any, Any]:
        y, kept = step("layer", Frozen(self.layer), params.layer, x, context)
        h = (self.scale * einsum("...i,ir->...r", x, params.down)).astype(x.dtype)
        return (wide(y) + einsum("...r,ro->...o", h, params.up)).astype(y.dtype), (x, h, kept)

    def backward(
        self, params: Correction, feedback: Correction, saved: Any, delta: Float[Array, "N *T O"], read: Correction
    ) -> tuple[Any, Correction]:
        x, h, kept = saved
        delta_x, of_layer = step_back(Frozen(self.layer), params.layer, feedback.layer, kept, delta, read.layer)
        # reverses h·up, and then h = s·(x·down)
        d = (self.scale * einsum("...o,ro->...r", delta, feedback.up)).astype(delta.dtype)
        delta_x = (wide(delta_x) + einsum("...r,ir->...i", d, feedback.down)).astype(delta_x.dtype)
        return delta_x, Correction(of_layer, read.down(Outer(x, d)), read.up(Outer(h, delta)))
