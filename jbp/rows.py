"""The gradient of a table by rows: `RowGradients`, which never builds an array of the table's size."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .gather import Gather
from .layout import Layout
from .pair import Pair, Whole
from .readouts import pairs_by_name
from .uses import Nothing, Stack


class Rows(NamedTuple):
    """The gradient of a table `[V, O]` by rows: row v is Σ_m rows[m] over all m with indices[m] = v.

    `indices: [M]`, `rows: [M, O]`; the index V has no row: `table.at[g.indices].add(-rate * g.rows, mode="drop")`. Of a
    table of L stacked blocks `[L, V, O]`, both have a first axis L.
    """

    indices: Any
    rows: Any


@dataclass(frozen=True)
class RowGradients:
    """∇C by leaf name: `Rows` for a table that is looked up, so that no array of its size is made; M = N·T of them.

    With `distinct`, each index stands once, and rows of one index are added; the rest of the M have the index V and
    rows of 0. An optimiser that is not linear in the gradient (Adam, Adagrad) needs that for the rows of its state.
    Other leaves, and a table that is used otherwise too, have their whole gradient; a frozen leaf has None.
    """

    distinct: bool = False
    of_examples: ClassVar[bool] = False

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Pair:
        if isinstance(pair, Stack):
            return Stack(jax.vmap(lambda block: self.read(block, weights))(pair.blocks))
        if isinstance(pair, Gather | Nothing):
            return pair.weighted(weights) if isinstance(pair, Gather) else pair
        return Whole(pair.weighted_gradient(weights), None)

    def stack(self, readings: Pair) -> Pair:
        return Stack(readings)

    def collect(self, layout: Layout, readings: list[Any]) -> dict[str, Any]:
        return {name: self._result(pair) for name, pair in pairs_by_name(layout, readings).items()}

    def _result(self, reading: Any) -> Any:
        if isinstance(reading, Stack):
            return jax.vmap(self._result)(reading.blocks)
        if isinstance(reading, Gather):
            rows = Rows(reading.index.ravel(), reading.delta.reshape(-1, reading.delta.shape[-1]))
            return _distinct(rows, reading.rows) if self.distinct else rows
        return None if isinstance(reading, Nothing) else reading.gradient()


def _distinct(rows: Rows, no_row: Any) -> Rows:
    """Each index once, in rising order, its rows added; then `no_row` with rows of 0. M log M, and M·O additions."""
    m = rows.indices.shape[0]
    indices, place = jnp.unique(rows.indices, size=m, fill_value=no_row, return_inverse=True)
    added = jnp.zeros_like(rows.rows).at[place.reshape(m)].add(rows.rows)
    return Rows(indices, jnp.where((indices < no_row)[:, None], added, 0))
