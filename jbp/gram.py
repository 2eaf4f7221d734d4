"""Inner products of the examples' gradients g_n = ∇C_n, of the unscaled costs: within a batch and between two."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .layer import InputError, described
from .layout import Layout
from .pair import Pair
from .readouts import pairs_by_name
from .uses import Stack


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gram:
    """⟨g_n, g_m⟩ as `[N, N]`; with `other = cost.pairs(theta, x2, y2)`, ⟨g_n, g'_m⟩ as `[N, M]` with that batch's.

    No g_n is formed where the pairs have a shorter way. Between two batches all pairs of this one are held, as those of
    the other are. For a loop over blocks, `other` comes from the same network. Raises `InputError` where `other` is no
    pair for each leaf of the layout.
    """

    other: Any = None

    def for_leaf(self, layout: Layout, i: int) -> "Gram":
        if self.other is not None and not (
            isinstance(self.other, Mapping)
            and set(self.other) == set(layout.names)
            and all(isinstance(pair, Pair) for pair in self.other.values())
        ):
            raise InputError(
                f"Gram: other must hold a pair for each of {', '.join(layout.names)}, got {described(self.other)}. "
                "Pass what cost.pairs(theta, x2, y2) returned."
            )
        if self.other is not None and jax.tree.leaves(pair := self.other[name := layout.names[i]]):
            shape = jax.eval_shape(pair.gradient).shape
            if shape != layout.shapes[i]:
                raise InputError(
                    f"Gram: other's pair for leaf {name} is of a leaf {list(shape)}, and this network's is "
                    f"{list(layout.shapes[i])}. Pass what cost.pairs(theta, x2, y2) of one network returned."
                )
        return self

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Any:
        return pair.dots(pair) if self.other is None else pair

    def stack(self, readings: Any) -> Any:
        return Stack(readings) if isinstance(readings, Pair) else readings.sum(0)

    def collect(self, layout: Layout, readings: list[Any]) -> Float[Array, "N M"]:
        if self.other is not None:
            pairs = pairs_by_name(layout, readings)
            readings = [pairs[name].dots(self.other[name]) for name in layout.names]
        return jnp.stack(readings).sum(0)
