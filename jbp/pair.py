"""The pair (a, δ) at one parameter leaf: where every quantity comes from.

`Pair` defines each quantity from the per-example gradients g_n = ∂C_n/∂leaf. A form (`Outer`, `Sum`, …) states how g_n
comes from what the leaf met going forward (a) and what came back (δ = ∂C_n/∂(what it added to)), and gives shorter
ways to the quantities where it has them. Both ways agree; a test holds each form to the definitions.

All results are in at least float32.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .layer import einsum, sum_over_examples, wide


class Pair(ABC):
    """(a, δ) at one leaf, and the quantities that they determine. Costs count multiplications."""

    @abstractmethod
    def per_example(self) -> Float[Array, "N *leaf"]:
        """g_n, the gradient of each example's own cost."""

    def _rows(self) -> Float[Array, "N D"]:
        g = self.per_example()
        return g.reshape(g.shape[0], -1)

    def gradient(self) -> Float[Array, "*leaf"]:
        """Σ_n g_n."""
        return self.per_example().sum(0)

    def weighted_gradient(self, w: Float[Array, "N"]) -> Float[Array, "*leaf"]:
        """Σ_n w_n g_n."""
        g = self.per_example()
        return jnp.tensordot(w.astype(g.dtype), g, 1)

    def squared_norms(self) -> Float[Array, "N"]:
        """‖g_n‖²."""
        return jnp.square(self._rows()).sum(1)

    def squares(self) -> Float[Array, "*leaf"]:
        """Σ_n g_n², element by element."""
        return jnp.square(self.per_example()).sum(0)

    def dots(self, other: "Pair") -> Float[Array, "N M"]:
        """⟨g_n, g'_m⟩ with the other pair of the same leaf: one leaf's share of the Gram matrix."""
        return self._rows() @ other._rows().T

    def along(self, v: Float[Array, "*leaf"]) -> Float[Array, "N"]:
        """⟨g_n, v⟩: the derivative of each example's cost in direction v."""
        g = self._rows()
        return g @ v.astype(g.dtype).ravel()

    def factors(self) -> tuple[Float[Array, "I I"], Float[Array, "O O"]]:
        """(A, G) with (1/N) Σ_n g_n g_nᵀ ≈ A ⊗ G, exact for N = T = 1. Here A = [[1]] and G is the whole matrix."""
        g = self._rows()
        return jnp.ones((1, 1), g.dtype), g.T @ g / g.shape[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outer(Pair):
    """g_n = Σ_t a_nt ⊗ δ_nt: a dense kernel `[I, O]`, whose product a·W gave what δ is the derivative of.

    `a: [N, T, I]`, `delta: [N, T, O]`; a loop over blocks may stack pairs, see `Stack`.
    """

    a: Any
    delta: Any

    def per_example(self) -> Float[Array, "N I O"]:
        """g_n. N·T·I·O; holds N·I·O numbers."""
        return einsum("nti,nto->nio", self.a, self.delta)

    def gradient(self) -> Float[Array, "I O"]:
        """Σ_n g_n as one product of matrices over all N·T rows. N·T·I·O."""
        (n, t, i), o = self.a.shape, self.delta.shape[2]
        return sum_over_examples("mi,mo->io", self.a.reshape(n * t, i), self.delta.reshape(n * t, o))

    def weighted_gradient(self, w: Float[Array, "N"]) -> Float[Array, "I O"]:
        """Σ_n w_n g_n = the gradient with δ scaled. N·T·I·O."""
        a, delta = wide(self.a), wide(self.delta)
        return Outer(a, delta * w[:, None, None].astype(delta.dtype)).gradient()

    def squared_norms(self) -> Float[Array, "N"]:
        """‖g_n‖², without g_n: ‖a‖²‖δ‖² for T = 1, N·(I + O); else Σ_ts ⟨a_t, a_s⟩⟨δ_t, δ_s⟩, N·T²·(I + O), or g_n
        one example after another, N·T·I·O, whichever is less (Rochette et al. 2019, arXiv:1912.06015)."""
        (_, t, i), o = self.a.shape, self.delta.shape[2]
        if t == 1:
            return jnp.square(wide(self.a)).sum((1, 2)) * jnp.square(wide(self.delta)).sum((1, 2))
        if t * (i + o) < i * o:
            return (einsum("nti,nsi->nts", self.a, self.a) * einsum("nto,nso->nts", self.delta, self.delta)).sum((1, 2))
        return jax.lax.map(lambda pair: jnp.square(einsum("ti,to->io", *pair)).sum(), (self.a, self.delta))

    def squares(self) -> Float[Array, "I O"]:
        """Σ_n g_n²: (a²)ᵀ(δ²) for T = 1, else one example after another. N·T·I·O; holds I·O numbers."""
        (_, t, i), o = self.a.shape, self.delta.shape[2]
        if t == 1:
            return sum_over_examples("ni,no->io", jnp.square(wide(self.a[:, 0])), jnp.square(wide(self.delta[:, 0])))
        zero = jnp.zeros((i, o), wide(self.delta).dtype)
        add = lambda total, pair: (total + jnp.square(einsum("ti,to->io", *pair)), None)
        return jax.lax.scan(add, zero, (self.a, self.delta))[0]

    def dots(self, other: Pair) -> Float[Array, "N M"]:
        """⟨g_n, g'_m⟩ = Σ_ts ⟨a_t, a'_s⟩⟨δ_t, δ'_s⟩, N·M·T·S·(I + O), unless forming g_n costs less."""
        if not isinstance(other, Outer):
            return super().dots(other)
        (n, t, i), o, (m, s, _) = self.a.shape, self.delta.shape[2], other.a.shape
        if n * m * t * s * (i + o) > (n * t + m * s + n * m) * i * o:
            return super().dots(other)
        return (einsum("nti,msi->nmts", self.a, other.a) * einsum("nto,mso->nmts", self.delta, other.delta)).sum((2, 3))

    def along(self, v: Float[Array, "I O"]) -> Float[Array, "N"]:
        """⟨g_n, v⟩ = Σ_t (a_t v)·δ_t. N·T·I·O; holds N·T·O numbers."""
        return (einsum("nti,io->nto", wide(self.a), v.astype(wide(self.a).dtype)) * wide(self.delta)).sum((1, 2))

    def factors(self) -> tuple[Float[Array, "I I"], Float[Array, "O O"]]:
        """A = Σ_nt a aᵀ/(N·T) and G = Σ_nt δ δᵀ/N (Martens & Grosse 2015, arXiv:1503.05671; for T > 1 the "expand"
        setting of Eschenhagen et al. 2023, arXiv:2311.00636). N·T·(I² + O²)."""
        n, t, _ = self.a.shape
        return (
            sum_over_examples("nti,ntj->ij", self.a, self.a) / (n * t),
            sum_over_examples("nto,ntp->op", self.delta, self.delta) / n,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sum(Pair):
    """g_n = Σ_t g_nt: a bias (g = δ), a gain (g = δ·x̂). The leaf may have any shape. `g: [N, T, *leaf]`."""

    g: Any

    def per_example(self) -> Float[Array, "N *leaf"]:
        """g_n. Additions only."""
        return wide(self.g).sum(1)

    def gradient(self) -> Float[Array, "*leaf"]:
        """Σ_n g_n over examples and positions at once. Additions only."""
        return wide(self.g).sum((0, 1))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Whole(Pair):
    """A leaf without a formula of its own: `total: [*leaf]` = Σ_n g_n and `each: [N, *leaf]` = g_n, from autodiff.

    Under jit, what is not read is not computed.
    """

    total: Any
    each: Any

    def per_example(self) -> Float[Array, "N *leaf"]:
        """g_n, as given."""
        return wide(self.each)

    def gradient(self) -> Float[Array, "*leaf"]:
        """Σ_n g_n, as given."""
        return wide(self.total)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stack(Pair):
    """A leaf of L stacked blocks `[L, *block]`: one pair for each block, its arrays stacked along a first axis."""

    blocks: Pair

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

    def squares(self) -> Float[Array, "L *block"]:
        """Σ_n g_n², block by block."""
        return self._each(lambda pair: pair.squares())
