"""Readouts of the generalised Gauss-Newton matrix, GGN = Σ_n w_n J_nᵀ H_n J_n = Σ_n w_n Σ_k g_nk g_nkᵀ.

g_nk = J_nᵀ S_k is the gradient of a column of the seed: of the root of the loss's Hessian H_n, or of sampled labels.
w_n are the factors of C_n in C. Dangel et al. 2020, arXiv:1912.10985.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .layer import einsum, sum_over_examples, wide
from .layout import Layout, joined
from .pair import Outer, Pair
from .reader import as_stacked
from .seeds import SEED_COLUMNS, over_columns
from .uses import Stack


def sum_of_squares(pair: Pair, w: Float[Array, "N"]) -> Float[Array, "*leaf"]:
    """Σ_n w_n Σ_k g_nk², inside the columns' `vmap`. Of a kernel without positions one product for all columns:
    (a²)ᵀ(w Σ_k δ_k²), N·(K·O + I·O); else one example after another, K·N·T·I·O, which holds K·I·O numbers."""
    if isinstance(pair, Stack):
        return jax.vmap(lambda block: sum_of_squares(block, w))(pair.blocks)
    if not isinstance(pair, Outer):
        g = pair.per_example()
        return jnp.tensordot(w.astype(g.dtype), over_columns(jnp.square(g)), 1)
    if pair.back == "a":
        return sum_of_squares(pair.transposed(), w).T
    (_, t, i), o = pair.a.shape, pair.delta.shape[2]
    w = w.astype(wide(pair.delta).dtype)
    if t == 1:
        squares = over_columns(jnp.square(wide(pair.delta[:, 0]))) * w[:, None]
        return sum_over_examples("ni,no->io", jnp.square(wide(pair.a[:, 0])), squares)

    def add(total: Any, each: Any) -> tuple[Any, None]:
        a, delta, w = each
        return total + w * jnp.square(einsum("ti,to->io", a, delta)), None

    return over_columns(jax.lax.scan(add, jnp.zeros((i, o), w.dtype), (pair.a, pair.delta, w))[0])


def squares_of_examples(pair: Pair) -> Float[Array, "N *leaf"]:
    """Σ_k g_nk², inside the columns' `vmap`; a² ⊗ Σ_k δ_k² of a kernel without positions. Holds N·P numbers."""
    if isinstance(pair, Stack):
        return jnp.moveaxis(jax.vmap(squares_of_examples)(pair.blocks), 0, 1)
    if isinstance(pair, Outer) and pair.back == "a":
        return jnp.swapaxes(squares_of_examples(pair.transposed()), 1, 2)
    if isinstance(pair, Outer) and pair.a.shape[1] == 1:
        return einsum("ni,no->nio", jnp.square(wide(pair.a[:, 0])), over_columns(jnp.square(wide(pair.delta[:, 0]))))
    return over_columns(jnp.square(pair.per_example()))


def gram_of_columns(pair: Pair) -> Float[Array, "N L M"]:
    """⟨g_n, g_ml⟩ of this column with all columns l, inside their `vmap`."""
    if isinstance(pair, Stack):
        return jax.vmap(gram_of_columns)(pair.blocks).sum(0)
    if isinstance(pair, Outer) and pair.back == "a":
        return gram_of_columns(pair.transposed())
    if isinstance(pair, Outer) and pair.a.shape[1] == 1:
        a, delta = wide(pair.a[:, 0]), wide(pair.delta[:, 0])
        return einsum("ni,mi->nm", a, a)[:, None] * einsum(
            "no,lmo->nlm", delta, jax.lax.all_gather(delta, SEED_COLUMNS)
        )
    others = jax.tree.map(lambda a: jax.lax.all_gather(a, SEED_COLUMNS), pair)
    k = jax.lax.psum(1, SEED_COLUMNS)  # how many: others may be without arrays
    return jnp.moveaxis(jax.vmap(pair.dots, axis_size=k)(others), 0, 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DiagonalGGN:
    """The diagonal of the GGN, Σ_n w_n Σ_k g_nk² as `[P]`; with `of_each`, that of each C_n, Σ_k g_nk², as `[N, P]`.

    `seed`: "exact", or `jbp.Sampled(key)`, whose expectation it is.
    """

    seed: Any = "exact"
    of_each: bool = False

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Float[Array, "..."]:
        return squares_of_examples(pair) if self.of_each else sum_of_squares(pair, weights)

    def stack(self, readings: Float[Array, "L ..."]) -> Float[Array, "..."]:
        return jnp.moveaxis(readings, 0, 1) if self.of_each else as_stacked(readings)

    def collect(self, layout: Layout, readings: list[Any]) -> Float[Array, "..."]:
        if self.of_each:
            return jnp.concatenate([d.reshape(d.shape[0], -1) for d in readings], axis=1)
        return joined([d.ravel() for d in readings])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GGNFactors:
    """V `[K·N, P]` with Vᵀ V = GGN: row k·N + n is √w_n g_nk. NaN where a weight is below 0. Holds K·N·P numbers."""

    seed: Any = "exact"
    stacks: ClassVar[bool] = True

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Float[Array, "N *leaf"]:
        g = pair.per_example()
        return g * jnp.sqrt(weights).astype(g.dtype).reshape(-1, *(1,) * (g.ndim - 1))

    def stack(self, readings: Float[Array, "L N *block"]) -> Float[Array, "N *leaf"]:
        return jnp.moveaxis(readings, 0, 1)

    def collect(self, layout: Layout, readings: list[Any]) -> Float[Array, "N P"]:
        return jnp.concatenate([g.reshape(g.shape[0], -1) for g in readings], axis=1)

    def finished(self, result: Float[Array, "K N P"]) -> Float[Array, "KN P"]:
        return result.reshape(-1, result.shape[-1])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GGNGram:
    """V Vᵀ `[K·N, K·N]` for the V of `GGNFactors`, without V where the pairs have a shorter way: of kernels without
    positions ⟨a_n, a_m⟩⟨δ_nk, δ_ml⟩. Its eigenvalues are those of the GGN, zeros aside."""

    seed: Any = "exact"
    stacks: ClassVar[bool] = True

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Float[Array, "N L M"]:
        dots, root = gram_of_columns(pair), jnp.sqrt(weights)
        return dots * (root[:, None] * root[None]).astype(dots.dtype)[:, None]

    def stack(self, readings: Float[Array, "B N L M"]) -> Float[Array, "N L M"]:
        return readings.sum(0)

    def collect(self, layout: Layout, readings: list[Any]) -> Float[Array, "N L M"]:
        return jnp.stack(readings).sum(0)

    def finished(self, result: Float[Array, "K N L M"]) -> Float[Array, "KN KN"]:
        k, n, *_ = result.shape
        return result.reshape(k * n, k * n)
