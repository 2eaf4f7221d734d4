"""The examples' gradients g_n = ∇C_n, of the unscaled costs, made small at once: by projections, or by a function.

Projected      Aᵀ g_n B at each leaf, as data attribution keeps them
MapGradients   f(g_n) for any f, a few gradients at a time
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .errors import is_number
from .layer import InputError, described
from .layout import Layout
from .pair import Pair
from .readouts import on_vector, pairs_by_name
from .uses import Nothing, Stack


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Projected:
    """Aᵀ g_n B by leaf name, `[N, r, s]`: for a kernel Σ_t (a_t A) ⊗ (δ_t B), and no g_n is formed.

    `A`: {leaf name: `[I, r]`}, `B`: {leaf name: `[O, s]`}, for kernels `[I, O]` and tables `[V, O]`; a leaf with B
    alone (a bias or a gain `[O]`) gives g_n B `[N, s]`. Leaves that are not named are not read. A leaf of L stacked
    blocks has one A and one B for all of them, and gives `[N, L, r, s]`.

    The compressed gradients of LoGra (Choe et al. 2024, arXiv:2405.13954) and, with random matrices, of TRAK (Park et
    al. 2023, arXiv:2303.14186): `Projected.random`. Raises `InputError`, with the leaf, where a matrix does not fit.
    """

    A: Any
    B: Any
    adds: ClassVar[bool] = True

    @classmethod
    def random(cls, key: PRNGKeyArray, pairs: Mapping[str, Pair], rank: int) -> "Projected":
        """Normal A and B of `rank` columns for each leaf, of variance 1/rank: E ‖Aᵀ g B‖² = ‖g‖².

        `pairs = jax.eval_shape(cost.pairs, theta, x, y)` tell the shapes; of a leaf that has not two axes in its block
        only the last axis is projected, by B; a leaf that is held fixed has none.
        """
        if not isinstance(rank, (int, np.integer)) or rank < 1:
            raise InputError(f"Projected.random: rank must be a whole number of columns, at least 1, got {rank!r}.")
        A, B = {}, {}
        for i, (name, pair) in enumerate(pairs.items()):
            if isinstance(pair, Nothing):
                continue
            *rows, columns = _block_of(pair) or (1,)
            draw = lambda size, j, i=i: jax.random.normal(jax.random.fold_in(key, 2 * i + j), (size, rank)) / rank**0.5
            if len(rows) == 1:
                A[name] = draw(rows[0], 0)
            if _block_of(pair):
                B[name] = draw(columns, 1)
        return cls(A, B)

    def for_leaf(self, layout: Layout, i: int) -> "Projected":
        for which, matrices in (("A", self.A), ("B", self.B)):
            if not isinstance(matrices, Mapping) or not set(matrices) <= set(layout.names):
                got = ", ".join(map(str, matrices)) if isinstance(matrices, Mapping) else described(matrices)
                raise InputError(
                    f"Projected: {which} must be {{leaf name: matrix}} of leaves {', '.join(layout.names)}, got {got}."
                )
        name = layout.names[i]
        if name in self.A and name not in self.B:
            raise InputError(f"Projected: leaf {name} has an A and no B. Give both, or B alone.")
        return replace(self, A=self.A.get(name), B=self.B.get(name))

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Any:
        if self.B is None:
            return None
        leaf = jax.eval_shape(pair.gradient).shape
        due = leaf[-1:] if self.A is None else leaf[-2:]
        given = tuple(jnp.shape(matrix) for matrix in (self.A, self.B) if matrix is not None)
        if not leaf or len(due) != len(given) or any(len(g) != 2 or g[0] != d for g, d in zip(given, due, strict=True)):
            raise InputError(
                f"Projected: expected A [I, r] and B [O, s] of a leaf [I, O], or B alone, for a leaf {list(leaf)}, got "
                f"{' and '.join(map(str, map(list, given)))}. Projected.random makes them from the pairs."
            )
        return pair.projected(self.A, self.B)

    def stack(self, readings: Any) -> Any:
        return None if readings is None else jnp.moveaxis(readings, 0, 1)

    def collect(self, layout: Layout, readings: list[Any]) -> dict[str, Float[Array, "N ..."]]:
        return {name: reading for name, reading in zip(layout.names, readings, strict=True) if reading is not None}


def _block_of(pair: Pair) -> tuple[int, ...]:
    """The shape of the leaf, or of one block of it where blocks are stacked."""
    shape = jax.eval_shape(lambda pair: pair.gradient(), pair).shape
    while isinstance(pair, Stack):
        pair, shape = pair.blocks, shape[1:]
    return shape


@dataclass(frozen=True)
class MapGradients:
    """f(g_n) of each example's gradient g_n `[P]`, stacked along a first axis N; no more than `at_most` exist at once.

    One reverse pass keeps the pairs of all N examples; then gradients are formed from them, `at_most` at a time, or, in
    its place, as many as `memory` bytes hold; what f takes and returns comes on top. `f` gives any arrays; a function
    of a module compiles once. N·P numbers would be `PerExampleGradients`.
    """

    f: Any
    at_most: Any = 1
    memory: Any = None

    def __post_init__(self):
        if not callable(self.f):
            raise InputError(f"MapGradients: f must be a function of a gradient [P], got {self.f!r}.")
        if not isinstance(self.at_most, (int, np.integer)) or self.at_most < 1:
            raise InputError(f"MapGradients: at_most must be a number of examples, at least 1, got {self.at_most!r}.")
        if self.memory is not None and (not is_number(self.memory) or self.at_most != 1):
            got = f"{self.memory!r} and at_most={self.at_most}" if self.at_most != 1 else repr(self.memory)
            raise InputError(f"MapGradients: memory must be a number of bytes, in place of at_most, got {got}.")

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Pair:
        return pair.condensed()

    def stack(self, readings: Pair) -> Pair:
        return Stack(readings)

    def collect(self, layout: Layout, readings: list[Any]) -> Any:
        pairs = pairs_by_name(layout, readings).values()
        n = jax.eval_shape(next(iter(pairs)).squared_norms).shape[0]
        gradient = lambda i: on_vector([pair.examples(i[None]).per_example() for pair in pairs])
        return jax.lax.map(lambda i: self.f(gradient(i)), jnp.arange(n), batch_size=min(n, self._most(gradient)))

    def _most(self, gradient: Any) -> int:
        """How many gradients exist at once. Raises `InputError` where the memory is too little for one."""
        if self.memory is None:
            return self.at_most
        one = jax.eval_shape(gradient, jnp.int32(0))
        size = one.size * one.dtype.itemsize
        if size > self.memory:
            raise InputError(
                f"MapGradients: one gradient takes {size:,} bytes, and memory={self.memory:,}. Give it more, or read a "
                "quantity that forms no gradient, as SquaredNorms or ClippedSum."
            )
        return int(self.memory // size)
