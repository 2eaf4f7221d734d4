"""The pair of a leaf that is worked on before it meets the data: concatenated, scaled, standardised, multiplied.

M = f(leaf), and the pair of M is known    g_n(leaf) = Jᵀ g_n(M), J = ∂M/∂leaf
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .layer import InputError, described, wide
from .pair import Pair


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Derived(Pair):
    """g_n = Jᵀ g_n(M) of M = f(leaf), in front of whose axes stand the examples; `pair` is that of M.

    `f`: a `jax.tree_util.Partial`; `leaf`: where it is differentiated. What speaks of single examples takes them one
    after another, N times the cost of g_n(M) and of Jᵀ.
    """

    pair: Pair
    f: Any
    leaf: Any
    by_parts: ClassVar[bool] = True

    def of(self, shape: tuple[int, ...]) -> "Derived":
        """With the pair in its form. Raises `InputError` unless the leaf has the shape."""
        if shape != jnp.shape(self.leaf):
            raise InputError(f"expected Derived of a leaf {list(shape)}, got {described(self.leaf)}. Check leaf.")
        return replace(self, pair=self.pair.of(jax.eval_shape(self.f, self.leaf).shape))

    def _pulled(self, g: Float[Array, "*M"]) -> Float[Array, "*leaf"]:
        """Jᵀ g."""
        made, pull = jax.vjp(self.f, self.leaf)
        return wide(pull(g.astype(made.dtype))[0])

    def _one(self, n: Int[Array, ""]) -> Float[Array, "*leaf"]:
        return self._pulled(self.pair.examples(n[None]).gradient())

    @property
    def _numbers(self) -> Int[Array, "N"]:
        return jnp.arange(jax.eval_shape(self.pair.squared_norms).shape[0])

    def per_example(self) -> Float[Array, "N *leaf"]:
        """g_n: the pair's, each through Jᵀ. Holds all g_n(M)."""
        return jax.vmap(self._pulled)(self.pair.per_example())

    def gradient(self) -> Float[Array, "*leaf"]:
        """Σ_n g_n: the pair's through Jᵀ, once."""
        return self._pulled(self.pair.gradient())

    def weighted_gradient(self, w: Float[Array, "N"]) -> Float[Array, "*leaf"]:
        """Σ_n w_n g_n: the pair's through Jᵀ, once."""
        return self._pulled(self.pair.weighted_gradient(w))

    def weighted(self, w: Float[Array, "N"]) -> "Derived":
        """The pair's of w_n C_n."""
        return replace(self, pair=self.pair.weighted(w))

    def examples(self, index: Int[Array, "M"]) -> "Derived":
        """The pair's of these examples."""
        return replace(self, pair=self.pair.examples(index))

    def squared_norms(self) -> Float[Array, "N"]:
        """‖g_n‖², one example after another."""
        return jax.lax.map(lambda n: jnp.square(self._one(n)).sum(), self._numbers)

    def squares(self, w: Float[Array, "N"] | None = None) -> Float[Array, "*leaf"]:
        """Σ_n w_n g_n², one example after another."""
        zero = jnp.zeros(self.leaf.shape, wide(self.leaf).dtype)
        w = jnp.ones(self._numbers.shape, zero.dtype) if w is None else w.astype(zero.dtype)
        add = lambda total, at: (total + at[0] * jnp.square(self._one(at[1])).astype(zero.dtype), None)
        return jax.lax.scan(add, zero, (w, self._numbers))[0]

    def inner(self, other: Pair) -> Float[Array, "N"]:
        """⟨g_n, g'_n⟩, one example after another: the other's pair along g_n."""
        return jax.lax.map(lambda n: other.examples(n[None]).along(self._one(n))[0], self._numbers)

    def along(self, v: Float[Array, "*leaf"]) -> Float[Array, "N"]:
        """⟨g_n, v⟩ = ⟨g_n(M), J v⟩: the pair's along J v."""
        return self.pair.along(jax.jvp(self.f, (self.leaf,), (v.astype(self.leaf.dtype),))[1])
