"""The gated linear unit: a product of two dense maps, one of them through an activation f.

    forward    y = f(z)·u,  z = x·w_gate + b_gate,  u = x·w_up + b_up          at each example and position
    backward   δ_z = δ·u·f′(z),  δ_u = δ·f(z)                                 δ = ∂C/∂y
               δx = δ_z·w_gateᵀ + δ_u·w_upᵀ
    gradient   ∂C/∂w_gate = Σ x ⊗ δ_z,  ∂C/∂w_up = Σ x ⊗ δ_u,  ∂C/∂b_gate = Σ δ_z,  ∂C/∂b_up = Σ δ_u

Saved: x, z and u, because f(z) follows from z element by element. In low precision z and u are rounded once, as two
dense layers round them, and y once more: what is saved is what forward has computed with.
Shapes: x `[N, *T, I]`, y `[N, *T, O]`, each w `[I, O]`, each b `[O]`. With f = SiLU it is SwiGLU, the leaves `gate.w`
and `up.w` are LLaMA's `gate_proj` and `up_proj`, transposed; with GELU it is GEGLU, with Sigmoid the first GLU.
Source: Shazeer 2020, arXiv:2002.05202; Dauphin et al. 2017, arXiv:1612.08083.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ..activations import Activation, SiLU
from ..errors import check_whole
from ..layer import Context, InputError, described, einsum, wide
from ..pair import Outer, Sum
from .dense import Affine, Dense
from .settings import check_flags, check_float_input


class Gated(NamedTuple):
    """Params of a gated linear unit: its two dense maps."""

    gate: Affine
    up: Affine


@dataclass(frozen=True)
class GLU:
    """`width` outputs f(x·w_gate)·(x·w_up); a gated MLP is `Sequential([GLU(hidden), Dense(width, bias=False)])`."""

    width: int
    activation: Activation = SiLU()
    bias: bool = False

    def __post_init__(self):
        check_whole("GLU", width=self.width)
        check_flags("GLU", bias=self.bias)
        if not isinstance(self.activation, Activation):
            raise InputError(
                f"GLU: activation must be an element-wise layer, got {self.activation!r}. As in activation=jbp.SiLU()."
            )

    @property
    def _dense(self) -> Dense:
        return Dense(self.width, self.bias)

    def init(self, key: PRNGKeyArray, x: Any) -> Gated:
        remedy = "Give the input an axis of features, or cast it to float."
        check_float_input(f"GLU({self.width})", x, "[N, ..., I]", 1, remedy)
        gate, up = jax.random.split(key)
        return Gated(self._dense.init(gate, x), self._dense.init(up, x))

    def forward(self, params: Gated, x: Float[Array, "N *T I"], context: Context) -> tuple[Any, Any]:
        if x.ndim < 2 or x.shape[-1] != params.gate.w.shape[0]:
            raise InputError(
                f"GLU({self.width}): expected x [N, ..., I = {params.gate.w.shape[0]}], got {described(x)}. "
                "Check the width of the layer before."
            )
        z, u = (self._dense.forward(part, x, context)[0] for part in params)
        return (self.activation.f(wide(z)) * wide(u)).astype(x.dtype), (x, z, u)

    def backward(
        self, params: Gated, feedback: Gated, saved: Any, delta: Float[Array, "N *T O"], read: Gated
    ) -> tuple[Any, Gated]:
        x, z, u = saved
        d, a = wide(delta), self.activation.f(wide(z))
        slope = self.activation.slope(a if self.activation.keeps == "a" else wide(z))
        d_z, d_u = ((d * by).astype(delta.dtype) for by in (wide(u) * slope, a))
        # reverses z = x·w_gate and u = x·w_up
        back = lambda d, part: einsum("...o,io->...i", d, part.w)
        delta_x = (back(d_z, feedback.gate) + back(d_u, feedback.up)).astype(delta.dtype)
        readings = (
            Affine(r.w(Outer(x, d)), r.b(Sum(d)) if self.bias else None) for r, d in zip(read, (d_z, d_u), strict=True)
        )
        return delta_x, Gated(*readings)
