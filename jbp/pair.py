"""The pair (a, δ) at one parameter leaf: where every quantity comes from.

`Pair` defines each quantity from the per-example gradients g_n = ∂C_n/∂leaf. A form (`Outer`, `Sum`, …) states how g_n
comes from what the leaf met going forward (a) and what came back (δ = ∂C_n/∂(what it added to)), and gives shorter
ways to the quantities where it has them. Both ways agree; a test holds each form to the definitions.

A layer states a pair with as many axes T of positions as it has, none or several; the leaf's reader, which knows the
leaf's shape, brings it into its form (`of`), with one such axis. All results are in at least float32.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from .layer import InputError, described, einsum, sum_over_examples, wide

LARGEST_FACTOR = 1 << 12  # coordinates of a leaf without Kronecker structure, up to which G is the whole matrix


def along_examples(w: Float[Array, "N"], a: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
    """w with an axis of size 1 for each other axis of a, in its dtype."""
    return jnp.expand_dims(w.astype(a.dtype), tuple(range(1, a.ndim)))


def onto(a: Inexact[Array, "... I"], A: Float[Array, "I r"]) -> Float[Array, "... r"]:
    """a A over the last axis of a, in at least float32."""
    return einsum("...i,ir->...r", wide(a), A.astype(wide(a).dtype))


class Pair(ABC):
    """(a, δ) at one leaf, and the quantities that they determine. Costs count multiplications."""

    meets_outer: ClassVar[bool] = False  # whether it has a shorter way to its inner products with an `Outer`
    by_parts: ClassVar[bool] = False  # whether it comes a part at a time, so that what it meets is asked part by part

    @property
    def kind(self) -> Any:
        """What uses of a leaf have in common that are joined along positions; None for one that stays by itself."""
        return None

    @abstractmethod
    def per_example(self) -> Float[Array, "N *leaf"]:
        """g_n, the gradient of each example's own cost."""

    def of(self, shape: tuple[int, ...]) -> "Pair":
        """The pair in the form of a leaf of this shape. Raises `InputError` where it is no pair of such a leaf."""
        found = jax.eval_shape(self.gradient)
        if found.shape != shape:
            raise InputError(
                f"expected a pair of a leaf {list(shape)}, got {type(self).__name__} whose gradient is "
                f"{described(found)}. Check what backward gives to the reader."
            )
        return self

    def _rows(self) -> Float[Array, "N D"]:
        g = self.per_example()
        return g.reshape(g.shape[0], -1)

    def gradient(self) -> Float[Array, "*leaf"]:
        """Σ_n g_n."""
        return self.per_example().sum(0)

    def weighted_gradient(self, w: Float[Array, "N"]) -> Float[Array, "*leaf"]:
        """Σ_n w_n g_n."""
        g = self.per_example()
        return sum_over_examples("n,n...->...", w.astype(g.dtype), g)

    def squared_norms(self) -> Float[Array, "N"]:
        """‖g_n‖²."""
        return jnp.square(self._rows()).sum(1)

    def squares(self, w: Float[Array, "N"] | None = None) -> Float[Array, "*leaf"]:
        """Σ_n w_n g_n², element by element; Σ_n g_n² without w."""
        squares = jnp.square(self.per_example())
        return squares.sum(0) if w is None else sum_over_examples("n,n...->...", w.astype(squares.dtype), squares)

    def weighted(self, w: Float[Array, "N"]) -> "Pair":
        """The pair of w_n C_n, whose gradients are w_n g_n. Holds all g_n."""
        g = self.per_example()
        return Sum((g * along_examples(w, g))[:, None])

    def examples(self, index: Int[Array, "M"]) -> "Pair":
        """The pair of the examples of these numbers, in this order. Holds their g_n."""
        return Sum(self.per_example()[index][:, None])

    def condensed(self) -> "Pair":
        """The same pair, to be kept for several questions: as g_n where these are fewer numbers than a and δ."""
        return self

    def projected(self, A: Float[Array, "I r"] | None, B: Float[Array, "O s"]) -> Float[Array, "N ..."]:
        """Aᵀ g_n B over the last two axes of g_n; without A, g_n B over the last one. N·|leaf|·r; holds all g_n."""
        g = self.per_example()
        return onto(g if A is None else jnp.swapaxes(onto(jnp.swapaxes(g, -1, -2), A), -1, -2), B)

    def dots(self, other: "Pair") -> Float[Array, "N M"]:
        """⟨g_n, g'_m⟩ with the other pair of the same leaf: one leaf's share of the Gram matrix."""
        if other.by_parts and not self.by_parts:
            return other.dots(self).T
        return self._rows() @ other._rows().T

    def transposed(self) -> "Pair":
        """The pair of the transposed leaf, whose g_n are transposed: a kernel that is tied the other way round."""
        return Whole(self.gradient().T, jnp.swapaxes(self.per_example(), -1, -2))

    def inner(self, other: "Pair") -> Float[Array, "N"]:
        """⟨g_n, g'_n⟩ with another pair of the same leaf and the same examples: the cross term of two uses."""
        if other.by_parts and not self.by_parts:
            return other.inner(self)
        return (self._rows() * other._rows()).sum(1)

    def along(self, v: Float[Array, "*leaf"]) -> Float[Array, "N"]:
        """⟨g_n, v⟩: the derivative of each example's cost in direction v."""
        g = self._rows()
        return g @ v.astype(g.dtype).ravel()

    def factors(self) -> tuple[Float[Array, "I I"], Float[Array, "O O"]]:
        """(A, G) with (1/N) Σ_n g_n g_nᵀ ≈ A ⊗ G, exact for N = T = 1. Here A = [[1]] and G is the whole matrix.

        Raises `InputError` for a leaf of more than 4096 coordinates, whose whole matrix would be too large.
        """
        g = self._rows()
        if g.shape[1] > LARGEST_FACTOR:
            raise InputError(
                f"factors: a leaf of {g.shape[1]:,} coordinates without Kronecker structure has no factors but its "
                f"whole second moment, {g.shape[1]:,} × {g.shape[1]:,}. Read SquaredNorms or SumOfSquares there."
            )
        return jnp.ones((1, 1), g.dtype), g.T @ g / g.shape[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outer(Pair):
    """g_n = Σ_t a_nt ⊗ δ_nt: a dense kernel `[I, O]`, whose product a·W gave what δ is the derivative of.

    `a: [N, *T, I]`, `delta: [N, *T, O]`; in its form `[N, T, I]` and `[N, T, O]`. `back`: which of the two came back:
    "a" where the leaf was used transposed, "both" where it was so besides.
    """

    a: Any
    delta: Any
    back: Literal["delta", "a", "both"] = field(default="delta", metadata={"static": True})

    @property
    def kind(self) -> Any:
        """Its form."""
        return Outer

    def of(self, shape: tuple[int, ...]) -> "Outer":
        """With one axis of positions. Raises `InputError` unless the leaf is `[I, O]`."""
        a, delta = jnp.shape(self.a), jnp.shape(self.delta)
        if len(shape) != 2 or len(a) < 2 or a[:-1] != delta[:-1] or (a[-1], delta[-1]) != shape:
            raise InputError(
                f"expected Outer(a [N, *T, I], delta [N, *T, O]) of a leaf [I, O] = {list(shape)}, "
                f"got {described((self.a, self.delta))}. "
                + ("Reshape the leaf to two axes in its layer." if len(shape) != 2 else "Check both.")
            )
        t = math.prod(a[1:-1])
        return replace(self, a=self.a.reshape(a[0], t, a[-1]), delta=self.delta.reshape(a[0], t, delta[-1]))

    def transposed(self) -> "Outer":
        """a and δ change places."""
        back: Any = {"delta": "a", "a": "delta"}.get(self.back, "both")
        return Outer(self.delta, self.a, back)

    def inner(self, other: Pair) -> Float[Array, "N"]:
        """⟨g_n, g'_n⟩ = Σ_ts ⟨a_t, a'_s⟩⟨δ_t, δ'_s⟩, N·T·S·(I + O), unless forming g_n costs less."""
        if not isinstance(other, Outer):
            return other.inner(self) if other.meets_outer else super().inner(other)
        (_, t, i), o, s = self.a.shape, self.delta.shape[2], other.a.shape[1]
        if t * s * (i + o) > (t + s + 1) * i * o:
            return super().inner(other)
        return (einsum("nti,nsi->nts", self.a, other.a) * einsum("nto,nso->nts", self.delta, other.delta)).sum((1, 2))

    def per_example(self) -> Float[Array, "N I O"]:
        """g_n. N·T·I·O; holds N·I·O numbers."""
        return einsum("nti,nto->nio", self.a, self.delta)

    def gradient(self) -> Float[Array, "I O"]:
        """Σ_n g_n as one product of matrices over all N·T rows. N·T·I·O."""
        (n, t, i), o = self.a.shape, self.delta.shape[2]
        return sum_over_examples("mi,mo->io", self.a.reshape(n * t, i), self.delta.reshape(n * t, o))

    def weighted_gradient(self, w: Float[Array, "N"]) -> Float[Array, "I O"]:
        """Σ_n w_n g_n = the gradient with δ scaled. N·T·I·O."""
        return self.weighted(w).gradient()

    def squared_norms(self) -> Float[Array, "N"]:
        """‖g_n‖², without g_n: ‖a‖²‖δ‖² for T = 1, N·(I + O); else Σ_ts ⟨a_t, a_s⟩⟨δ_t, δ_s⟩, N·T²·(I + O), or g_n
        one example after another, N·T·I·O, whichever is less (Rochette et al. 2019, arXiv:1912.06015)."""
        (_, t, i), o = self.a.shape, self.delta.shape[2]
        if t == 1:
            return jnp.square(wide(self.a)).sum((1, 2)) * jnp.square(wide(self.delta)).sum((1, 2))
        if t * (i + o) < i * o:
            return (einsum("nti,nsi->nts", self.a, self.a) * einsum("nto,nso->nts", self.delta, self.delta)).sum((1, 2))
        return jax.lax.map(lambda pair: jnp.square(einsum("ti,to->io", *pair)).sum(), (self.a, self.delta))

    def squares(self, w: Float[Array, "N"] | None = None) -> Float[Array, "I O"]:
        """Σ_n w_n g_n²: (a²)ᵀ(w δ²) for T = 1, else one example after another. N·T·I·O; holds I·O numbers."""
        (n, t, i), o = self.a.shape, self.delta.shape[2]
        dtype = wide(self.delta).dtype
        w = jnp.ones(n, dtype) if w is None else w.astype(dtype)
        if t == 1:
            return sum_over_examples(
                "ni,no->io", jnp.square(wide(self.a[:, 0])), jnp.square(wide(self.delta[:, 0])) * w[:, None]
            )
        add = lambda total, pair: (total + pair[0] * jnp.square(einsum("ti,to->io", *pair[1:])), None)
        return jax.lax.scan(add, jnp.zeros((i, o), dtype), (w, self.a, self.delta))[0]

    def weighted(self, w: Float[Array, "N"]) -> "Outer":
        """The pair of w_n C_n: δ is scaled. N·T·O."""
        a, delta = wide(self.a), wide(self.delta)
        return replace(self, a=a, delta=delta * along_examples(w, delta))

    def examples(self, index: Int[Array, "M"]) -> "Outer":
        """The pair of these examples: rows of a and of δ."""
        return replace(self, a=self.a[index], delta=self.delta[index])

    def condensed(self) -> Pair:
        """The same pair: its g_n, N·T·I·O, where N·I·O numbers are fewer than N·T·(I + O)."""
        (_, t, i), o = self.a.shape, self.delta.shape[2]
        return Sum(self.per_example()[:, None]) if i * o < t * (i + o) else self

    def projected(self, A: Float[Array, "I r"] | None, B: Float[Array, "O s"]) -> Float[Array, "N ..."]:
        """Aᵀ g_n B = Σ_t (a_t A) ⊗ (δ_t B), as Choe et al. 2024, arXiv:2405.13954, keep it. N·T·(I·r + O·s + r·s)."""
        return super().projected(A, B) if A is None else Outer(onto(self.a, A), onto(self.delta, B)).per_example()

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
    """g_n = Σ_t g_nt: a bias (g = δ), a gain (g = δ·x̂), of any shape. `g: [N, *T, *leaf]`, in its form with one T."""

    g: Any

    @property
    def kind(self) -> Any:
        """Its form."""
        return Sum

    def of(self, shape: tuple[int, ...]) -> "Sum":
        """With one axis of positions. Raises `InputError` unless g ends in the leaf's axes."""
        g = jnp.shape(self.g)
        split = len(g) - len(shape)
        if split < 1 or g[split:] != shape:
            raise InputError(
                f"expected Sum(g [N, *T, *leaf]) of a leaf {list(shape)}, got {described(self.g)}. Check g."
            )
        return Sum(self.g.reshape(g[0], math.prod(g[1:split]), *shape))

    def per_example(self) -> Float[Array, "N *leaf"]:
        """g_n. Additions only."""
        return wide(self.g).sum(1)

    def weighted(self, w: Float[Array, "N"]) -> "Sum":
        """The pair of w_n C_n: g is scaled. N·T·|leaf|."""
        g = wide(self.g)
        return Sum(g * along_examples(w, g))

    def examples(self, index: Int[Array, "M"]) -> "Sum":
        """The pair of these examples: rows of g."""
        return Sum(self.g[index])

    def condensed(self) -> "Sum":
        """The same pair with its positions added. Additions only."""
        return Sum(self.per_example()[:, None])

    def gradient(self) -> Float[Array, "*leaf"]:
        """Σ_n g_n over examples and positions at once. Additions only."""
        return wide(self.g).sum((0, 1))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Whole(Pair):
    """A leaf without a formula of its own: `total: [*leaf]` = Σ_n g_n and `each: [N, *leaf]` = g_n, from autodiff.

    XLA drops what no output needs. `each` is None where the examples are mixed, and there are no g_n.
    """

    total: Any
    each: Any

    def per_example(self) -> Float[Array, "N *leaf"]:
        """g_n, as given. Raises `InputError` where there are none."""
        if self.each is None:
            raise InputError(
                "a function that mixes examples has no gradients of single ones. Read its sum: Gradient()."
            )
        return wide(self.each)

    def gradient(self) -> Float[Array, "*leaf"]:
        """Σ_n g_n, as given."""
        return wide(self.total)

    def weighted_gradient(self, w: Float[Array, "N"]) -> Float[Array, "*leaf"]:
        """Σ_n w_n g_n; where the examples are mixed, the seed has been weighted before, and it is the sum as given."""
        return self.gradient() if self.each is None else super().weighted_gradient(w)
