"""Pairs whose δ never exists as a whole: a part of one at a time.

    Recomputed   an `Outer` whose δ is computed again, some examples at a time: for readings that don't add up
    Portion      the pair of some of the examples, where the others' g_n are 0: for readings that add up

And how arrays are cut into pieces of equal size, the last one filled up with zeros.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from .gather import Gather
from .pair import Outer, Pair
from .uses import Several

_static: Any = {"static": True}


def size_of_pieces(length: int, most: int) -> int:
    """The size of equal pieces of at most `most`, of which as few as possible cover the length."""
    pieces = -(-length // max(1, most))
    return -(-length // pieces)


def cut(a: Shaped[Array, "..."], axis: int, size: int) -> Shaped[Array, "..."]:
    """An axis as two, pieces and places in a piece; the last piece is filled up with zeros."""
    missing = -a.shape[axis] % size
    if missing:
        a = jnp.pad(a, [(0, missing if i == axis else 0) for i in range(a.ndim)])
    return a.reshape(*a.shape[:axis], -1, size, *a.shape[axis + 1 :])


def over_pieces(f: Callable[..., tuple[Any, Any]], pieces: Any) -> tuple[Any, Any]:
    """(Σ of the first results, the second ones stacked) of f(piece), one piece after another.

    `pieces` is a pytree of arrays that are stacked along a first axis.
    """
    first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), pieces)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(f, first)[0])

    def step(total: Any, each: Any) -> tuple[Any, Any]:
        adds, kept = f(each)
        return jax.tree.map(lambda one, two: one + two, total, adds), kept

    return jax.lax.scan(step, zero, pieces)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Portion(Pair):
    """The pair of some of `n` examples, those from number `first` on; the others' g_n are 0. Past n is none."""

    pair: Pair
    first: Any
    n: int = field(metadata=_static)

    def of(self, shape: tuple[int, ...]) -> "Portion":
        """With the examples' pair in its form."""
        return replace(self, pair=self.pair.of(shape))

    def transposed(self) -> "Portion":
        """The pair transposed."""
        return replace(self, pair=self.pair.transposed())

    def _places(self, size: int) -> Any:
        return self.first + jnp.arange(size, dtype=self.first.dtype)

    def _spread(self, each: Array) -> Array:
        zero = jnp.zeros((self.n, *each.shape[1:]), each.dtype)
        return zero.at[self._places(each.shape[0])].add(each, mode="drop")

    def per_example(self) -> Float[Array, "N *leaf"]:
        """g_n: those of the pair at their places. Holds all N."""
        return self._spread(self.pair.per_example())

    def gradient(self) -> Float[Array, "*leaf"]:
        """Σ_n g_n: the pair's."""
        return self.pair.gradient()

    def weighted_gradient(self, w: Float[Array, "N"]) -> Float[Array, "*leaf"]:
        """Σ_n w_n g_n: the pair's, with its own weights."""
        size = jax.eval_shape(self.pair.squared_norms).shape[0]
        return self.pair.weighted_gradient(jnp.take(w, self._places(size), mode="fill", fill_value=0))

    def along(self, v: Float[Array, "*leaf"]) -> Float[Array, "N"]:
        """⟨g_n, v⟩: the pair's at their places."""
        return self._spread(self.pair.along(v))

    def projected(self, A: Float[Array, "I r"] | None, B: Float[Array, "O s"]) -> Float[Array, "N ..."]:
        """Aᵀ g_n B: the pair's at their places."""
        return self._spread(self.pair.projected(A, B))


@dataclass(frozen=True)
class _Weighted:
    """Makes what another maker makes, with δ scaled; its `each` is (w `[N]`, the other's)."""

    maker: Any

    def outer(self, each: Any, shared: Any) -> Outer:
        w, rest = each
        return self.maker.outer(rest, shared).weighted(w)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Recomputed(Pair):
    """An `Outer` that is made anew wherever it is asked for something, `size` examples at a time.

    `maker.outer(each, shared) -> Outer [n, T, …]`, of any n of the examples: `each` holds arrays `[N, …]`, which zeros
    fill up (they must give a δ of 0), and `shared` what is the same for all. `flipped`: a and δ change places.
    Each quantity costs what it costs an Outer, and besides what makes it; it holds `size` examples' share.
    """

    by_parts: ClassVar[bool] = True
    maker: Any = field(metadata=_static)
    each: Any
    shared: Any
    size: int = field(metadata=_static)
    flipped: bool = field(default=False, metadata=_static)

    @property
    def n(self) -> int:
        """How many examples."""
        return jax.tree.leaves(self.each)[0].shape[0]

    def transposed(self) -> "Recomputed":
        """a and δ change places."""
        return replace(self, flipped=not self.flipped)

    def _outer(self, each: Any) -> Outer:
        outer = self.maker.outer(each, self.shared)
        return outer.transposed() if self.flipped else outer

    def _pieces(self, beside: Any) -> Any:
        return jax.tree.map(lambda a: cut(a, 0, size_of_pieces(self.n, self.size)), (self.each, beside))

    def _sum(self, quantity: Callable[..., Any], beside: Any = ()) -> Any:
        return over_pieces(lambda part: (quantity(self._outer(part[0]), part[1]), ()), self._pieces(beside))[0]

    def _each(self, quantity: Callable[..., Array], beside: Any = ()) -> Array:
        found = jax.lax.map(lambda part: quantity(self._outer(part[0]), part[1]), self._pieces(beside))
        return found.reshape(-1, *found.shape[2:])[: self.n]

    def per_example(self) -> Float[Array, "N I O"]:
        """g_n; holds N·I·O numbers."""
        return self._each(lambda outer, _: outer.per_example())

    def gradient(self) -> Float[Array, "I O"]:
        """Σ_n g_n."""
        return self._sum(lambda outer, _: outer.gradient())

    def weighted_gradient(self, w: Float[Array, "N"]) -> Float[Array, "I O"]:
        """Σ_n w_n g_n."""
        return self._sum(lambda outer, w: outer.weighted_gradient(w), w)

    def squared_norms(self) -> Float[Array, "N"]:
        """‖g_n‖²."""
        return self._each(lambda outer, _: outer.squared_norms())

    def squares(self, w: Float[Array, "N"] | None = None) -> Float[Array, "I O"]:
        """Σ_n w_n g_n²."""
        return self._sum(lambda outer, w: outer.squares(w), w)

    def weighted(self, w: Float[Array, "N"]) -> "Recomputed":
        """The pair of w_n C_n: δ is scaled wherever it is made."""
        return replace(self, maker=_Weighted(self.maker), each=(w, self.each))

    def examples(self, index: Int[Array, "M"]) -> "Recomputed":
        """The pair of these examples."""
        return replace(self, each=jax.tree.map(lambda a: a[index], self.each))

    def projected(self, A: Float[Array, "I r"] | None, B: Float[Array, "O s"]) -> Float[Array, "N ..."]:
        """Aᵀ g_n B."""
        return self._each(lambda outer, _: outer.projected(A, B))

    def dots(self, other: Pair) -> Float[Array, "N M"]:
        """⟨g_n, g'_m⟩; where the other is recomputed too, it is so once for each of the parts of this one."""
        return self._each(lambda outer, _: other.dots(outer).T if other.by_parts else outer.dots(other))

    def inner(self, other: Pair) -> Float[Array, "N"]:
        """⟨g_n, g'_n⟩."""
        if isinstance(other, Several):
            return other.inner(self)
        if isinstance(other, Recomputed):
            return self._each(lambda outer, each: outer.inner(other._outer(each)), other.each)
        if isinstance(other, Outer | Gather):
            return self._each(lambda outer, its: outer.inner(its), other)
        return super().inner(other)

    def along(self, v: Float[Array, "I O"]) -> Float[Array, "N"]:
        """⟨g_n, v⟩."""
        return self._each(lambda outer, _: outer.along(v))

    def factors(self) -> tuple[Float[Array, "I I"], Float[Array, "O O"]]:
        """(A, G) as of an Outer, summed over the parts."""
        sums = self._sum(lambda outer, _: jax.tree.map(lambda f: f * outer.a.shape[0], outer.factors()))
        return jax.tree.map(lambda f: f / self.n, sums)
