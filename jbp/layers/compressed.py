"""A layer that keeps what it saves in fewer bits: less memory, for a backward that errs.

    forward    y = f(x), not changed by a bit
    backward   that of f, on what it saved, rounded

Saved: what f saves, its float arrays as numbers of `dtype`. Of a number a, or of the largest number A of its row (the
last axis), the error is at most

    bfloat16         2⁻⁸ |a|                      2 bytes a number
    float8_e4m3fn    2⁻⁴ |a|, or 2⁻¹⁰ A/448       1 byte, and a scale for each row: the largest number becomes 448
    int8             A/254                        1 byte, and a scale for each row: the largest number becomes 127

What is smaller as it is (few numbers in a row, one axis, whole numbers) and the context stay as they are. A layer
before that keeps the same array keeps it in full. The gradient errs by as much as the saved numbers: half the last bit
of each, which partly cancels in sums over examples; `cost.compare` says WRONG, and at which leaves.

Memory of 32 dense layers of one width in a `Repeat` on a CPU, in arrays of x: 35 in float32, 19 in bfloat16, 12 in int8
and 25 in float8_e4m3fn, as XLA makes the whole stack float16 before the loop; unrolled 32, 17.5, 9.8 and 9.8. On jax
0.10 XLA takes the barrier away too early there, and of these int8 and float8 in a loop alone are smaller.

A derivative of the reverse pass (a Hessian product) goes through bfloat16; rounded to a scale it has none, and is NaN.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from ..layer import Context, InputError, Layer, at, wide, wide_dtype
from ..run import step, step_back
from .compose import Inner, check_layer

_LARGEST = {jnp.dtype(jnp.bfloat16): None, jnp.dtype(jnp.float8_e4m3fn): 448.0, jnp.dtype(jnp.int8): 127.0}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Packed:
    """An array in fewer bits: `numbers` times `scale`, in `dtype`."""

    numbers: Any
    scale: Any
    dtype: Any = field(metadata={"static": True})


def _packed(a: Any, dtype: Any) -> Any:
    """The array in fewer bits; itself where that is no less."""
    if not hasattr(a, "dtype") or not jnp.issubdtype(a.dtype, jnp.floating):
        return a
    size = np.dtype(a.dtype).itemsize
    if (largest := _LARGEST[dtype]) is None:
        return _Packed(a.astype(dtype), None, a.dtype) if size > 2 else a
    if a.ndim < 2 or a.shape[-1] * (size - 1) <= np.dtype(wide_dtype(a.dtype)).itemsize:
        return a
    live = jnp.abs(wide(a)).max(-1, keepdims=True) / largest
    live = jnp.maximum(live, jnp.finfo(live.dtype).tiny)  # NaN stays NaN
    fixed = jax.lax.stop_gradient(live)
    numbers = jax.lax.stop_gradient(wide(a)) / fixed
    numbers = (jnp.round(numbers) if dtype == np.int8 else numbers).astype(dtype)
    # √0 adds nothing and has no finite derivative: who differentiates what is rounded gets NaN, and no silent 0
    return _Packed(numbers, fixed + jnp.sqrt(0 * live), a.dtype)


def _unpacked(packed: Any) -> Any:
    if not isinstance(packed, _Packed):
        return packed
    if packed.scale is None:
        return packed.numbers.astype(packed.dtype)
    return (packed.numbers.astype(packed.scale.dtype) * packed.scale).astype(packed.dtype)


@dataclass(frozen=True)
class Compressed:
    """The layer, with what it saves in `dtype`: bfloat16, float8_e4m3fn or int8. Its backward is not exact."""

    layer: Layer
    dtype: Any

    def __post_init__(self):
        check_layer("Compressed: layer", self.layer)
        try:
            dtype = jnp.dtype(self.dtype)
        except TypeError:
            dtype = None
        if dtype not in _LARGEST:
            names = ", ".join(map(str, _LARGEST))
            raise InputError(f"Compressed: dtype must be one of {names}, got {self.dtype!r}. As in jnp.bfloat16.")
        object.__setattr__(self, "dtype", dtype)

    def init(self, key: PRNGKeyArray, x: Any) -> Inner:
        with at("layer"):
            return Inner(self.layer.init(key, x))

    def forward(self, params: Inner, x: Any, context: Context) -> tuple[Any, Any]:
        y, kept = step("layer", self.layer, params.layer, x, context)
        is_context = lambda node: isinstance(node, Context)
        return y, jax.tree.map(lambda a: _packed(a, self.dtype), kept, is_leaf=is_context)

    def backward(self, params: Inner, feedback: Inner, saved: Any, delta: Any, read: Inner) -> tuple[Any, Inner]:
        # without the barrier XLA takes a rounding and its way back for nothing, and keeps the array in full
        saved, delta = jax.lax.optimization_barrier((saved, delta))
        kept = jax.tree.map(_unpacked, saved, is_leaf=lambda node: isinstance(node, _Packed))
        delta, readings = step_back(self.layer, params.layer, feedback.layer, kept, delta, read.layer)
        return delta, Inner(readings)
