"""Pairs made of pairs: a leaf that nothing is read at, one that is used several times, one of stacked blocks.

Nothing    a leaf that is held fixed: every g_n is 0
Several    a leaf that is used more than once: g_n is the sum over its uses, with their cross terms
Stack      a leaf of L stacked blocks: a pair for each
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .layer import InputError
from .pair import Outer, Pair


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nothing(Pair):
    """A leaf that is held fixed: every g_n is 0, and nothing is computed. `n` examples, a leaf of shape `leaf`."""

    n: int = field(metadata={"static": True})
    leaf: tuple[int, ...] = field(metadata={"static": True})
    dtype: Any = field(default=np.dtype(np.float32), metadata={"static": True})

    def _zeros(self, *shape: int) -> Array:
        return jnp.zeros(shape, self.dtype)

    def per_example(self) -> Float[Array, "N *leaf"]:
        """Zeros."""
        return self._zeros(self.n, *self.leaf)

    def gradient(self) -> Float[Array, "*leaf"]:
        """Zeros."""
        return self._zeros(*self.leaf)

    def weighted_gradient(self, w: Float[Array, "N"]) -> Float[Array, "*leaf"]:
        """Zeros."""
        return self._zeros(*self.leaf)

    def squared_norms(self) -> Float[Array, "N"]:
        """Zeros."""
        return self._zeros(self.n)

    def squares(self, w: Float[Array, "N"] | None = None) -> Float[Array, "*leaf"]:
        """Zeros."""
        return self._zeros(*self.leaf)

    def weighted(self, w: Float[Array, "N"]) -> "Nothing":
        """The same."""
        return self

    def examples(self, index: Int[Array, "M"]) -> "Nothing":
        """The same of as many examples as there are numbers."""
        return replace(self, n=index.shape[0])

    def dots(self, other: Pair) -> Float[Array, "N M"]:
        """Zeros."""
        return self._zeros(self.n, jax.eval_shape(other.squared_norms).shape[0])

    def inner(self, other: Pair) -> Float[Array, "N"]:
        """Zeros."""
        return self._zeros(self.n)

    def along(self, v: Float[Array, "*leaf"]) -> Float[Array, "N"]:
        """Zeros."""
        return self._zeros(self.n)

    def factors(self) -> tuple[Float[Array, "I I"], Float[Array, "O O"]]:
        """Zeros: `[I, I]` and `[O, O]` for a leaf `[I, O]`, else `[1, 1]` twice."""
        i, o = self.leaf if len(self.leaf) == 2 else (1, 1)
        return self._zeros(i, i), self._zeros(o, o)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Several(Pair):
    """A leaf that is used more than once: g_n is the sum over the pairs of its uses, with their cross terms.

    In its form, uses of one kind are joined along positions into one pair, so that only different kinds have cross
    terms: a table that is looked up, and the same table as a transposed kernel, `Outer(delta, a)`.
    """

    uses: tuple[Pair, ...]

    def of(self, shape: tuple[int, ...]) -> Pair:
        """The uses in their forms, and joined where they can be; a single one comes alone.

        Raises `InputError` where there are none, or one is no pair.
        """
        if not self.uses or not all(isinstance(use, Pair) for use in self.uses):
            raise InputError(f"expected Several((pair, ...)) of one pair for each use, got {self.uses!r}.")
        return Several(tuple(use.of(shape) for use in self.uses)).joined()

    def joined(self) -> Pair:
        """Uses in their forms, those of one kind joined; a single one comes alone."""
        flat = [u for use in self.uses for u in (use.uses if isinstance(use, Several) else (use,))]
        joined: dict[Any, Pair] = {}
        for place, use in enumerate(flat):
            alike = use.kind or place
            joined[alike] = _along_positions(joined[alike], use) if alike in joined else use
        uses = tuple(use for use in joined.values() if not isinstance(use, Nothing)) or (flat[0],)
        return uses[0] if len(uses) == 1 else Several(uses)

    def per_example(self) -> Float[Array, "N *leaf"]:
        """g_n: the sum of the uses'."""
        return _added([use.per_example() for use in self.uses])

    def gradient(self) -> Float[Array, "*leaf"]:
        """Σ_n g_n: the sum of the uses'."""
        return _added([use.gradient() for use in self.uses])

    def weighted_gradient(self, w: Float[Array, "N"]) -> Float[Array, "*leaf"]:
        """Σ_n w_n g_n: the sum of the uses'."""
        return _added([use.weighted_gradient(w) for use in self.uses])

    def squared_norms(self) -> Float[Array, "N"]:
        """‖Σ_u g_u‖² = Σ_u ‖g_u‖² + 2 Σ_{u<v} ⟨g_u, g_v⟩."""
        cross = [2 * one.inner(two) for one, two in itertools.combinations(self.uses, 2)]
        return _added([use.squared_norms() for use in self.uses] + cross)

    def weighted(self, w: Float[Array, "N"]) -> "Several":
        """The pairs of w_n C_n."""
        return Several(tuple(use.weighted(w) for use in self.uses))

    def examples(self, index: Int[Array, "M"]) -> "Several":
        """The uses' pairs of these examples."""
        return Several(tuple(use.examples(index) for use in self.uses))

    def projected(self, A: Float[Array, "I r"] | None, B: Float[Array, "O s"]) -> Float[Array, "N ..."]:
        """Aᵀ g_n B: the sum of the uses'."""
        return _added([use.projected(A, B) for use in self.uses])

    def inner(self, other: Pair) -> Float[Array, "N"]:
        """⟨g_n, g'_n⟩: the sum of the uses'."""
        return _added([use.inner(other) for use in self.uses])

    def along(self, v: Float[Array, "*leaf"]) -> Float[Array, "N"]:
        """⟨g_n, v⟩: the sum of the uses'."""
        return _added([use.along(v) for use in self.uses])

    def factors(self) -> tuple[Float[Array, "I I"], Float[Array, "O O"]]:
        """Raises `InputError`: uses of different kinds have no common Kronecker factors."""
        kinds = ", ".join(type(use).__name__ for use in self.uses)
        raise InputError(
            f"factors: the leaf is used in several ways ({kinds}), so its second moment is no Kronecker product. "
            "Untie the leaf, or read other quantities there."
        )


def _added(parts: list[Array]) -> Array:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _along_positions(one: Any, two: Any) -> Pair:
    """Two pairs of one form as one: their positions side by side."""
    if isinstance(one, Outer) and one.back != two.back:
        one, two = replace(one, back="both"), replace(two, back="both")
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)], 1), one, two)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stack(Pair):
    """A leaf of L stacked blocks `[L, *block]`: one pair for each block, its arrays stacked along a first axis."""

    blocks: Pair

    def of(self, shape: tuple[int, ...]) -> Pair:
        """The blocks in their form; of blocks without arrays, whose number nothing tells, the leaf's `Nothing`."""
        if not jax.tree.leaves(self):
            inner: Any = self.blocks
            while isinstance(inner, Stack):
                inner = inner.blocks
            return Nothing(inner.n, shape, inner.dtype)
        return Stack(jax.vmap(lambda pair: pair.of(shape[1:]))(self.blocks))

    def _each(self, quantity: Callable[[Pair], Array]) -> Float[Array, "L ..."]:
        return jax.vmap(quantity)(self.blocks)

    def per_example(self) -> Float[Array, "N L *block"]:
        """g_n: the blocks' side by side."""
        return jnp.moveaxis(self._each(lambda pair: pair.per_example()), 0, 1)

    def gradient(self) -> Float[Array, "L *block"]:
        """Σ_n g_n, block by block."""
        return self._each(lambda pair: pair.gradient())

    def weighted_gradient(self, w: Float[Array, "N"]) -> Float[Array, "L *block"]:
        """Σ_n w_n g_n, block by block."""
        return self._each(lambda pair: pair.weighted_gradient(w))

    def squared_norms(self) -> Float[Array, "N"]:
        """‖g_n‖²: the sum of the blocks'."""
        return self._each(lambda pair: pair.squared_norms()).sum(0)

    def squares(self, w: Float[Array, "N"] | None = None) -> Float[Array, "L *block"]:
        """Σ_n w_n g_n², block by block."""
        return self._each(lambda pair: pair.squares(w))

    def weighted(self, w: Float[Array, "N"]) -> "Stack":
        """The blocks' pairs of w_n C_n."""
        return Stack(jax.vmap(lambda pair: pair.weighted(w))(self.blocks))

    def examples(self, index: Int[Array, "M"]) -> "Stack":
        """The blocks' pairs of these examples."""
        return Stack(jax.vmap(lambda pair: pair.examples(index))(self.blocks))

    def condensed(self) -> "Stack":
        """The blocks' pairs condensed."""
        return Stack(jax.vmap(lambda pair: pair.condensed())(self.blocks))

    def projected(self, A: Float[Array, "I r"] | None, B: Float[Array, "O s"]) -> Float[Array, "N L ..."]:
        """Aᵀ g_n B of each block."""
        return jnp.moveaxis(self._each(lambda pair: pair.projected(A, B)), 0, 1)

    def dots(self, other: Pair) -> Float[Array, "N M"]:
        """⟨g_n, g'_m⟩: the sum over the blocks."""
        if not isinstance(other, Stack):
            return super().dots(other)
        return jax.vmap(lambda one, two: one.dots(two))(self.blocks, other.blocks).sum(0)

    def inner(self, other: Pair) -> Float[Array, "N"]:
        """⟨g_n, g'_n⟩: the sum over the blocks."""
        if not isinstance(other, Stack):
            return super().inner(other)
        return jax.vmap(lambda one, two: one.inner(two))(self.blocks, other.blocks).sum(0)

    def along(self, v: Float[Array, "L *block"]) -> Float[Array, "N"]:
        """⟨g_n, v⟩: the sum over the blocks, each along its part of v."""
        return jax.vmap(lambda pair, part: pair.along(part))(self.blocks, v).sum(0)

    def factors(self) -> tuple[Float[Array, "L I I"], Float[Array, "L O O"]]:
        """(A, G) of each block, with a first axis L."""
        return jax.vmap(lambda pair: pair.factors())(self.blocks)
