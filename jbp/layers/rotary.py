"""Rotary positions: each pair of features is turned by an angle that grows with the position.

    forward    y_i = x_i cos a − x_{i+D/2} sin a,   y_{i+D/2} = x_{i+D/2} cos a + x_i sin a,   a = t · base^(−2i/D)
    backward   the rotation back: the same with −a

Nothing is saved. Pairs are the two halves of the last axis, as in the published weights of Llama; t counts positions
from 0. Shapes: `[N, T, H, D]`, D even. Source: Su et al. 2021, arXiv:2104.09864.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..layer import wide


def rotated(x: Float[Array, "N T H D"], base: float, back: bool = False) -> Float[Array, "N T H D"]:
    """x turned by its positions' angles, or turned back. Computed in at least float32."""
    _, t, _, d = x.shape
    one, two = jnp.split(wide(x), 2, -1)
    angles = np.arange(t)[:, None] * float(base) ** (-2 * np.arange(d // 2) / d)  # in float64, once, as a constant
    table = lambda values: jnp.broadcast_to(jnp.asarray(values, one.dtype)[None, :, None], one.shape)
    cos, sin = table(np.cos(angles)), table(-np.sin(angles) if back else np.sin(angles))
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], -1).astype(x.dtype)
