"""The pair of a table whose rows are looked up: an `Outer` with a one-hot that is never built."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .layer import InputError, described, einsum, wide
from .pair import Outer, Pair, along_examples, onto


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gather(Pair):
    """g_n = Σ_t e_{index_nt} ⊗ δ_nt: rows of a table `[V, O]`, an `Outer` with a one-hot that is never built.

    `index: [N, *T]` whole numbers, `delta: [N, *T, O]`; in its form one T, and `rows` = V, from the reader. An
    index counts from the end where it is negative, and has no row where it lies outside, as when JAX reads `table[i]`.
    """

    meets_outer: ClassVar[bool] = True
    index: Any
    delta: Any
    rows: int | None = field(default=None, metadata={"static": True})

    @property
    def kind(self) -> Any:
        """Its form."""
        return Gather

    def of(self, shape: tuple[int, ...]) -> "Gather":
        """With one axis of positions and V. Raises `InputError` unless the leaf is `[V, O]`."""
        index, delta = jnp.shape(self.index), jnp.shape(self.delta)
        if len(shape) != 2 or not index or delta != (*index, shape[1]):
            raise InputError(
                f"expected Gather(index [N, *T], delta [N, *T, O]) of a leaf [V, O] = {list(shape)}, "
                f"got {described((self.index, self.delta))}. Check both."
            )
        t, rows = math.prod(index[1:]), shape[0]
        i = self.index.astype(np.int32).reshape(index[0], t)
        i = jnp.where(i < 0, i + rows, i)  # as JAX counts from the end; what lies outside has no row
        i = jnp.where((i < 0) | (i >= rows), rows, i)
        return Gather(i, self.delta.reshape(index[0], t, shape[1]), rows)

    def _scattered(self, index: Any, *shape: int) -> Array:
        return (
            jnp.zeros((*shape, self.rows, self.delta.shape[-1]), wide(self.delta).dtype)
            .at[index]
            .add(wide(self.delta), mode="drop")
        )

    def per_example(self) -> Float[Array, "N V O"]:
        """g_n: N·T·O additions; holds N·V·O numbers."""
        n = self.index.shape[0]
        return self._scattered((jnp.arange(n)[:, None], self.index), n)

    def gradient(self) -> Float[Array, "V O"]:
        """Σ_n g_n: N·T·O additions."""
        return self._scattered(self.index)

    def weighted(self, w: Float[Array, "N"]) -> "Gather":
        """The pair of w_n C_n: δ is scaled. N·T·O."""
        delta = wide(self.delta)
        return Gather(self.index, delta * along_examples(w, delta), self.rows)

    def examples(self, index: Int[Array, "M"]) -> "Gather":
        """The pair of these examples: rows of the indices and of δ."""
        return Gather(self.index[index], self.delta[index], self.rows)

    def weighted_gradient(self, w: Float[Array, "N"]) -> Float[Array, "V O"]:
        """Σ_n w_n g_n = the gradient with δ scaled. N·T·O."""
        return self.weighted(w).gradient()

    def _met(self, other: "Gather") -> Array:
        met = (self.index[:, :, None] == other.index[:, None, :]) & (self.index[:, :, None] < self.rows)
        return met.astype(wide(self.delta).dtype)

    def squared_norms(self) -> Float[Array, "N"]:
        """‖g_n‖² = Σ_ts [index_t = index_s]⟨δ_t, δ_s⟩, N·T²·O."""
        return self.inner(self)

    def squares(self, w: Float[Array, "N"] | None = None) -> Float[Array, "V O"]:
        """Σ_n w_n g_n²: at row index_t, Σ_t w δ_t · (the sum of all δ_s of its example at that row). N·T²·O."""
        delta = wide(self.delta)
        same = einsum("nts,nso->nto", self._met(self), delta)
        scaled = delta if w is None else self.weighted(w).delta
        return Gather(self.index, scaled * same, self.rows).gradient()

    def dots(self, other: Pair) -> Float[Array, "N M"]:
        """⟨g_n, g'_m⟩ = Σ_ts [index_t = index'_s]⟨δ_t, δ'_s⟩, N·M·T·S·O, unless forming g_n costs less: N·M·V·O.

        Forming holds (N + M)·V·O numbers, the other way N·M·T·S.
        """
        if not isinstance(other, Gather) or self.rows < self.index.shape[1] * other.index.shape[1]:
            return super().dots(other)
        theirs = jnp.where(other.index < self.rows, other.index, -1)  # what has no row here has none there
        met = jnp.expand_dims(self.index, (2, 3)) == jnp.expand_dims(theirs, (0, 1))
        return jnp.where(met, einsum("nto,mso->ntms", self.delta, other.delta), 0).sum((1, 3))

    def projected(self, A: Float[Array, "V r"] | None, B: Float[Array, "O s"]) -> Float[Array, "N ..."]:
        """Aᵀ g_n B = Σ_t A_{index_t} ⊗ (δ_t B). N·T·(O·s + r·s)."""
        if A is None:
            return super().projected(A, B)
        a = jnp.take(A.astype(wide(self.delta).dtype), self.index, axis=0, mode="fill", fill_value=0)
        return Outer(a, onto(self.delta, B)).per_example()

    def inner(self, other: Pair) -> Float[Array, "N"]:
        """⟨g_n, g'_n⟩: with a Gather as `squared_norms`; with an Outer Σ_ts a'_{s, index_t}⟨δ_t, δ'_s⟩, N·T·S·O."""
        if isinstance(other, Gather):
            met = self._met(other)
        elif isinstance(other, Outer):
            met = jax.vmap(lambda index, a: jnp.take(a, index, axis=1, mode="fill", fill_value=0).T)(
                self.index, wide(other.a)
            )
        else:
            return super().inner(other)
        return (met * einsum("nto,nso->nts", self.delta, other.delta)).sum((1, 2))

    def along(self, v: Float[Array, "V O"]) -> Float[Array, "N"]:
        """⟨g_n, v⟩ = Σ_t v_{index_t}·δ_t. N·T·O."""
        rows = jnp.take(v.astype(wide(self.delta).dtype), self.index, axis=0, mode="fill", fill_value=0)
        return (rows * wide(self.delta)).sum((1, 2))
