"""Kronecker factors: a leaf's block of the GGN, or of the Fisher matrix, as A ⊗ G.

    block       Σ_n w_n Σ_k g_nk g_nkᵀ,  g_nk = Σ_t a_nt ⊗ δ_ntk        w_n the factors of C_n in C, k a seed's columns
    expand      A = Σ_nt ŵ_n a_nt a_ntᵀ / T,  G = Σ_ntk w_n δ_ntk δ_ntkᵀ         ŵ_n = w_n / Σ_n w_n
    reduce      the same of the mean of a and the sum of δ over the positions, as one
    EKFAC       the block as (U_A ⊗ U_G) diag(λ) (U_A ⊗ U_G)ᵀ,  λ_io = Σ_nk w_n (U_Aᵀ g_nk U_G)²_io

A ⊗ G is the block itself for one example without shared positions. A convolution's kernel has the patches of x for a,
and each place in its output is a position. Of a table that is looked up, a is a one-hot, and A
is diagonal, counts; of a bias or a gain A = [[1]], and G is the whole block. Positions that a mask leaves out count in
T: their δ is 0. Sources: Martens & Grosse 2015, arXiv:1503.05671; Eschenhagen et al. 2023, arXiv:2311.00636 (expand
and reduce); Grosse & Martens 2016, arXiv:1602.01407; George et al. 2018, arXiv:1806.03884 (EKFAC).
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .errors import is_whole
from .gather import Gather
from .ggn import sum_of_squares
from .layer import InputError, sum_over_examples, wide
from .layout import Layout
from .pair import LARGEST_FACTOR, Outer, Pair
from .patches import Patches
from .reader import as_stacked
from .readouts import ByLeaf
from .seeds import over_columns
from .uses import Several, Stack


class Diagonal(NamedTuple):
    """A factor of which only the diagonal is held, `[d]`, or `[L, d]` of L stacked blocks."""

    d: Any


class Factors(NamedTuple):
    """(A, G) of one leaf `[I, O]`: `[I, I]` and `[O, O]`, perhaps a `Diagonal`; of L stacked blocks, a first axis L.

    In the order of the leaf's own coordinates the block is `jnp.kron(A, G)`. Of a leaf without Kronecker structure A is
    [[1]], and G the whole block, of the ravelled leaf.
    """

    A: Any
    G: Any


def factors_of(pair: Pair, w: Float[Array, "N"], shared: str, largest: int | None) -> Factors | None:
    """(A, G) of a pair, inside the columns' `vmap`; None of a frozen leaf."""
    if not jax.tree.leaves(pair):
        return None
    if isinstance(pair, Stack):
        return jax.vmap(lambda block: factors_of(block, w, shared, largest))(pair.blocks)
    mean = w / w.sum()
    if isinstance(pair, Outer) and pair.back == "a":
        turned: Any = factors_of(pair.transposed(), w, shared, largest)
        return Factors(turned.G, turned.A)
    if isinstance(pair, Patches) and pair.window.groups == 1:
        delta = wide(pair.delta).reshape(len(pair.delta), -1, pair.delta.shape[-1])
        if shared == "reduce":
            delta = delta.sum(1, keepdims=True)
        return Factors(_of_patches(pair, mean, shared, largest), over_columns(second_moment(delta, w, largest)))
    if isinstance(pair, Outer) and pair.back == "delta":
        a, delta = wide(pair.a), wide(pair.delta)
        if shared == "reduce":
            a, delta = a.mean(1, keepdims=True), delta.sum(1, keepdims=True)
        return Factors(second_moment(a, mean / a.shape[1], largest), over_columns(second_moment(delta, w, largest)))
    if isinstance(pair, Gather):
        counts = jnp.broadcast_to((mean / pair.index.shape[1])[:, None], pair.index.shape).astype(w.dtype)
        rows = jnp.zeros(pair.rows, w.dtype).at[pair.index].add(counts, mode="drop")
        return Factors(Diagonal(rows), over_columns(second_moment(wide(pair.delta), w, largest)))
    one = jnp.ones((1, 1), w.dtype)
    size, several = jax.eval_shape(pair.gradient).size, isinstance(pair, Several | Outer)
    if largest is not None and (size > largest or several):
        return Factors(one, Diagonal(sum_of_squares(pair, w).ravel()))
    if isinstance(pair, Outer):
        raise InputError(
            "factors: the leaf is used as it is and transposed, so its second moment is no Kronecker product. "
            "Untie the leaf, or read other quantities there."
        )
    if size > LARGEST_FACTOR or several:
        pair.factors()  # says so
    g = pair.per_example()
    return Factors(one, over_columns(second_moment(g.reshape(g.shape[0], 1, -1), w, None)))


def second_moment(rows: Float[Array, "N T D"], w: Float[Array, "N"], largest: int | None = None) -> Any:
    """Σ_nt w_n r rᵀ, or its diagonal where it has more than `largest` coordinates. N·T·D²."""
    w = w.astype(rows.dtype)
    if largest is not None and rows.shape[2] > largest:
        return Diagonal(jnp.tensordot(w, jnp.square(rows).sum(1), 1))
    return sum_over_examples("ntd,nte->de", rows * w[:, None, None], rows)


def _of_patches(pair: Patches, w: Float[Array, "N"], shared: str, largest: int | None) -> Any:
    """A of a convolution's kernel, over its window and channels; patches of one example at a time. N·S·I²."""

    def one(x: Array, w: Array) -> Any:
        rows = pair.patches(x)
        rows = rows.mean(1, keepdims=True) if shared == "reduce" else rows
        return second_moment(rows, w[None] / rows.shape[1], largest)

    add = lambda total, each: (jax.tree.map(jnp.add, total, one(*each)), None)
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, pair.x[0], w[0]))
    return jax.lax.scan(add, zero, (pair.x, w))[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KroneckerFactors:
    """{leaf's name: (A, G)}, whose Kronecker product stands for the leaf's block of the GGN; None of a frozen leaf.

    `seed`: "exact", `jbp.Sampled(key)` (K-FAC's own), or "empirical" (the gradients' δ: the empirical Fisher matrix).
    `shared`: "expand" or "reduce", of leaves that positions share; a table that is looked up is always expanded.
    `largest`: a factor of more coordinates comes as its `Diagonal`. Without it none does, and a leaf without structure
    of more than 4096 coordinates, or one that is used in two ways, raises `InputError`.
    """

    seed: Any = "exact"
    shared: Literal["expand", "reduce"] = field(default="expand", metadata={"static": True})
    largest: int | None = field(default=None, metadata={"static": True})
    by_form: ClassVar[bool] = True

    def __post_init__(self):
        if self.shared not in ("expand", "reduce"):
            raise InputError(f"KroneckerFactors: shared must be 'expand' or 'reduce', got {self.shared!r}.")
        if self.largest is not None and not (is_whole(self.largest) and self.largest >= 1):
            raise InputError(
                f"KroneckerFactors: largest must be a whole number of at least 1, or None, got {self.largest!r}."
            )

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Any:
        return factors_of(pair, weights, self.shared, self.largest)

    def stack(self, readings: Any) -> Any:
        return as_stacked(readings)

    def collect(self, layout: Layout, readings: list[Any]) -> dict[str, Any]:
        return dict(zip(layout.names, readings, strict=True))


# -- eigenvalue-corrected ---------------------------------------------------------------------------------------------


def eigenbases(factors: dict[str, Factors | None]) -> dict[str, Any]:
    """{leaf's name: (U_A, U_G)}, orthogonal, of the eigenvectors in columns; None in place of one that is diagonal."""
    if not isinstance(factors, dict) or not all(isinstance(its, Factors | None) for its in factors.values()):
        raise InputError(
            f"eigenbases: expected {{leaf's name: Factors}}, got {type(factors).__name__}. Give what "
            "KroneckerFactors() gave: cost.measure(theta, x, y, KroneckerFactors())[1]."
        )
    of = lambda matrix: None if isinstance(matrix, Diagonal) else jnp.linalg.eigh(matrix)[1]
    return {name: None if its is None else (of(its.A), of(its.G)) for name, its in factors.items()}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CorrectedEigenvalues:
    """{leaf's name: λ `[*leaf]`}, EKFAC's: the second moments of the gradients in the eigenbases of Kronecker factors,
    `CorrectedEigenvalues.of(factors)`. None of a frozen leaf. No other λ in these bases is nearer to the block.

    `bases`: what `jbp.eigenbases(factors)` gives."""

    bases: Any
    seed: Any = "exact"
    by_form: ClassVar[bool] = True

    def __post_init__(self):
        if isinstance(self.bases, dict):
            if any(isinstance(its, Factors) for its in self.bases.values()):
                raise InputError(
                    "CorrectedEigenvalues: expected bases, got Factors. Write CorrectedEigenvalues.of(factors)."
                )
            object.__setattr__(self, "bases", ByLeaf(self.bases))

    @classmethod
    def of(cls, factors: dict[str, Factors | None], seed: Any = "exact") -> "CorrectedEigenvalues":
        """From what `KroneckerFactors` gave, on this batch or on others."""
        return cls(eigenbases(factors), seed)

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Any:
        return None if self.bases is None else _corrected(pair, self.bases, weights)

    def stack(self, readings: Any) -> Any:
        return as_stacked(readings)

    def collect(self, layout: Layout, readings: list[Any]) -> dict[str, Any]:
        return dict(zip(layout.names, readings, strict=True))


def _corrected(pair: Pair, bases: Any, w: Float[Array, "N"]) -> Float[Array, "*leaf"]:
    if isinstance(pair, Stack):
        return jax.vmap(lambda block, its: _corrected(block, its, w))(pair.blocks, bases)

    def turned(a: Any, u: Any) -> Any:
        if u is None:
            return wide(a)
        if a.shape[-1] != len(u):
            raise InputError(
                f"CorrectedEigenvalues: expected a basis of {a.shape[-1]} directions, got one of {len(u)}. Take the "
                "factors from this cost."
            )
        return jnp.matmul(wide(a), u.astype(wide(a).dtype))

    u_a, u_g = bases
    if isinstance(pair, Outer):
        return sum_of_squares(replace(pair, a=turned(pair.a, u_a), delta=turned(pair.delta, u_g)), w)
    if isinstance(pair, Gather):
        return sum_of_squares(Gather(pair.index, turned(pair.delta, u_g), pair.rows), w)
    g = pair.per_example()
    n, size = g.shape[0], g[0].size
    i = size // len(u_g) if u_a is None and u_g is not None else 1 if u_a is None else len(u_a)
    # bases of another size reach `turned` as they are, which says so
    rows = turned(g.reshape(n, i, -1) if size % i == 0 else g.reshape(n, 1, size), u_g)
    squares = over_columns(jnp.square(turned(jnp.swapaxes(rows, 1, 2), u_a)))
    return jnp.swapaxes(jnp.tensordot(w.astype(squares.dtype), squares, 1), 0, 1).reshape(g.shape[1:])
