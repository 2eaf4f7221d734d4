"""Pairs of what other libraries' models hold: a convolution's kernel, and a leaf that is reshaped before it is used.

Patches   a kernel `[*window, C/groups, O]`; an `Outer` of patches of x that are made one example at a time
Viewed    a leaf whose reshape or transpose has a pair
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .layer import InputError, described, einsum, wide
from .pair import Outer, Pair, along_examples
from .programs.views import Moves, disjoint, moved, moved_back, seen

_static: Any = {"static": True}


@dataclass(frozen=True)
class Window:
    """How a kernel goes over x: what `jax.lax.conv_general_dilated` calls by these names."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int = 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Patches(Pair):
    """g_n = Σ_t patch_nt ⊗ δ_nt: a convolution's kernel `[*window, C/groups, O]`.

    `x: [N, *T, *space, C]`, `delta: [N, *T, *space', O]`; in its form one T, and `kernel` is the leaf's shape, from the
    reader. Quantities of single examples take patches of x, one example after another: S = T·|space'| positions of
    I = |window|·C/groups numbers.
    """

    x: Any
    delta: Any
    window: Window = field(metadata=_static)
    kernel: tuple[int, ...] | None = field(default=None, metadata=_static)

    def of(self, shape: tuple[int, ...]) -> "Patches":
        """With one axis of images. Raises `InputError` unless the leaf is such a kernel."""
        rank, x, delta = len(self.window.strides) + 1, jnp.shape(self.x), jnp.shape(self.delta)
        fits = len(shape) == rank + 1 and x[:-rank] == delta[:-rank] != ()
        if not fits or (x[-1], delta[-1]) != (shape[-2] * self.window.groups, shape[-1]):
            raise InputError(
                f"expected Patches(x [N, *T, *space, C], delta [N, *T, *space, O]) of a kernel [*window, C/groups, O] "
                f"= {list(shape)}, got {described((self.x, self.delta))}. Check both, and the window."
            )
        t = math.prod(x[1:-rank])
        one = lambda a: a.reshape(a.shape[0], t, *a.shape[-rank:])
        return replace(self, x=one(self.x), delta=one(self.delta), kernel=shape)

    @property
    def _groups(self) -> int:
        return self.window.groups

    def _convolved(self, x: Array, kernel: Array) -> Array:
        """x `[M, *space, C]` under a kernel, `[M, *space', O]`."""
        d = len(self.window.strides)
        axes = (0, *range(1, d + 1))
        legend = jax.lax.ConvDimensionNumbers((0, d + 1, *axes[1:]), (d + 1, d, *range(d)), (0, d + 1, *axes[1:]))
        w = self.window
        return jax.lax.conv_general_dilated(
            x, kernel, w.strides, w.padding, w.lhs_dilation, w.rhs_dilation, legend, feature_group_count=w.groups
        )

    def _images(self, a: Array) -> Array:
        return wide(a.reshape(-1, *a.shape[2:]))

    def patches(self, x: Float[Array, "T *space C"]) -> Float[Array, "G S I"]:
        """The patches of one example, by groups; copies of |window| slices, no product."""
        w, (*window, c, _) = self.window, self.kernel or ()
        out, d = self.delta.shape[2:-1], len(w.strides)
        padded = [(0, 0, 0), *((*p, s - 1) for p, s in zip(w.padding, w.lhs_dilation, strict=True)), (0, 0, 0)]
        x = jax.lax.pad(wide(x), jnp.zeros((), wide(x).dtype), padded)
        slices = []
        for flat in range(math.prod(window)):
            place = [flat // math.prod(window[i + 1 :]) % window[i] for i in range(d)]
            start = [p * s for p, s in zip(place, w.rhs_dilation, strict=True)]
            end = [p + (o - 1) * s + 1 for p, o, s in zip(start, out, w.strides, strict=True)]
            slices.append(jax.lax.slice(x, (0, *start, 0), (x.shape[0], *end, x.shape[-1]), (1, *w.strides, 1)))
        patches = jnp.stack(slices, -2).reshape(-1, len(slices), self._groups, c)  # [S, |window|, G, C/G]
        return patches.transpose(2, 0, 1, 3).reshape(self._groups, patches.shape[0], -1)

    def _one(self, x: Array, delta: Array) -> Outer:
        """The pair of one example, its groups where examples stand: a `[G, S, I]`, δ `[G, S, O/G]`."""
        rows = wide(delta).reshape(-1, self._groups, delta.shape[-1] // self._groups)
        return Outer(self.patches(x), rows.transpose(1, 0, 2))

    def _gradient_of(self, x: Array, delta: Array) -> Float[Array, "*leaf"]:
        g = self._one(x, delta).per_example()  # [G, I, O/G]
        return g.transpose(1, 0, 2).reshape(self.kernel)

    def per_example(self) -> Float[Array, "N *leaf"]:
        """g_n, one example after another. N·S·I·O; holds N·I·O numbers."""
        return jax.lax.map(lambda pair: self._gradient_of(*pair), (self.x, self.delta))

    def gradient(self) -> Float[Array, "*leaf"]:
        """Σ_n g_n: the transpose of the convolution in its kernel. N·S·I·O."""
        x = self._images(self.x)
        kernel = jax.ShapeDtypeStruct(self.kernel or (), x.dtype)
        return jax.linear_transpose(lambda k: self._convolved(x, k), kernel)(self._images(self.delta))[0]

    def weighted_gradient(self, w: Float[Array, "N"]) -> Float[Array, "*leaf"]:
        """Σ_n w_n g_n = the gradient with δ scaled. N·S·I·O."""
        return self.weighted(w).gradient()

    def weighted(self, w: Float[Array, "N"]) -> "Patches":
        """The pair of w_n C_n: δ is scaled. N·S·O."""
        delta = wide(self.delta)
        return replace(self, delta=delta * along_examples(w, delta))

    def examples(self, index: Int[Array, "M"]) -> "Patches":
        """The pair of these examples: rows of x and of δ."""
        return replace(self, x=self.x[index], delta=self.delta[index])

    def squared_norms(self) -> Float[Array, "N"]:
        """‖g_n‖², one example after another: N·S²·(I + O) or N·S·I·O, whichever is less."""

        def one(pair: Any) -> Array:
            outer = self._one(*pair)
            (g, s, i), o = outer.a.shape, outer.delta.shape[-1]
            return outer.squared_norms().sum() if g > 1 or s * (i + o) < i * o else jnp.square(outer.gradient()).sum()

        return jax.lax.map(one, (self.x, self.delta))

    def squares(self, w: Float[Array, "N"] | None = None) -> Float[Array, "*leaf"]:
        """Σ_n w_n g_n², one example after another. N·S·I·O; holds I·O numbers."""
        zero = jnp.zeros(self.kernel or (), wide(self.delta).dtype)
        w = jnp.ones(self.x.shape[0], zero.dtype) if w is None else w.astype(zero.dtype)
        add = lambda total, pair: (total + pair[0] * jnp.square(self._gradient_of(*pair[1:])), None)
        return jax.lax.scan(add, zero, (w, self.x, self.delta))[0]

    def along(self, v: Float[Array, "*leaf"]) -> Float[Array, "N"]:
        """⟨g_n, v⟩ = ⟨x under the kernel v, δ_n⟩. N·S·I·O."""
        x = self._images(self.x)
        out = self._convolved(x, v.astype(x.dtype)) * self._images(self.delta)
        return out.reshape(self.x.shape[0], -1).sum(1)

    def factors(self) -> tuple[Float[Array, "I I"], Float[Array, "O O"]]:
        """(A, G) of the `Outer` of patches (Grosse & Martens 2016, arXiv:1602.01407; its "expand" setting, as there).
        A's coordinates run over the window, then the channels. N·S·(I² + O²).

        Of several groups, whose kernels have no common factors, as `Pair.factors` does.
        """
        if self._groups > 1:
            return super().factors()

        def add(total: Any, pair: Any) -> tuple[Any, None]:
            one = self._one(*pair)
            moments = einsum("gsi,gsj->ij", one.a, one.a), einsum("gso,gsp->op", one.delta, one.delta)
            return jax.tree.map(jnp.add, total, moments), None

        dtype, (*inner, o) = wide(self.delta).dtype, self.kernel or ()
        n, s = self.x.shape[0], math.prod(self.delta.shape[1:-1])
        zero = jnp.zeros((math.prod(inner),) * 2, dtype), jnp.zeros((o, o), dtype)
        A, G = jax.lax.scan(add, zero, (self.x, self.delta))[0]
        return A / (n * s), G / n


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Viewed(Pair):
    """The pair of a leaf that is reshaped, transposed or sliced before it is used: `pair` is that of what it becomes.

    `leaf`: the leaf's shape; `moves`: see `programs.views`. Norms and inner products are those of `pair`; its factors
    too, where it is all of the leaf.
    """

    pair: Pair
    leaf: tuple[int, ...] = field(metadata=_static)
    moves: Moves = field(metadata=_static)

    @property
    def kind(self) -> Any:
        """The pair's, seen the same way."""
        return (self.pair.kind, self.moves) if self.pair.kind else None

    def of(self, shape: tuple[int, ...]) -> "Viewed":
        """With the pair in its form. Raises `InputError` unless the leaf has the shape."""
        if shape != self.leaf:
            raise InputError(f"expected Viewed of a leaf {list(shape)}, got one of {list(self.leaf)}. Check leaf.")
        return replace(self, pair=self.pair.of(seen(shape, self.moves)))

    def per_example(self) -> Float[Array, "N *leaf"]:
        """g_n: the pair's, in the leaf's shape."""
        return moved_back(self.pair.per_example(), self.leaf, self.moves, 1)

    def gradient(self) -> Float[Array, "*leaf"]:
        """Σ_n g_n: the pair's, in the leaf's shape."""
        return moved_back(self.pair.gradient(), self.leaf, self.moves)

    def weighted_gradient(self, w: Float[Array, "N"]) -> Float[Array, "*leaf"]:
        """Σ_n w_n g_n: the pair's, in the leaf's shape."""
        return moved_back(self.pair.weighted_gradient(w), self.leaf, self.moves)

    def squared_norms(self) -> Float[Array, "N"]:
        """‖g_n‖²: the pair's."""
        return self.pair.squared_norms()

    def squares(self, w: Float[Array, "N"] | None = None) -> Float[Array, "*leaf"]:
        """Σ_n w_n g_n²: the pair's, in the leaf's shape."""
        return moved_back(self.pair.squares(w), self.leaf, self.moves)

    def weighted(self, w: Float[Array, "N"]) -> "Viewed":
        """The pair's, seen the same way."""
        return replace(self, pair=self.pair.weighted(w))

    def examples(self, index: Int[Array, "M"]) -> "Viewed":
        """The pair's, seen the same way."""
        return replace(self, pair=self.pair.examples(index))

    def condensed(self) -> "Viewed":
        """The pair's, seen the same way."""
        return replace(self, pair=self.pair.condensed())

    def _alike(self, other: Pair) -> bool:
        return isinstance(other, Viewed) and (other.leaf, other.moves) == (self.leaf, self.moves)

    def _apart(self, other: Pair) -> bool:
        return isinstance(other, Viewed) and other.leaf == self.leaf and disjoint(self.moves, other.moves)

    def dots(self, other: Any) -> Float[Array, "N M"]:
        """⟨g_n, g'_m⟩: of the pairs, where both leaves are moved alike; 0 of slices that have nothing in common."""
        if self._apart(other):
            n, m = (jax.eval_shape(one.squared_norms) for one in (self.pair, other.pair))
            return jnp.zeros((*n.shape, *m.shape), n.dtype)
        return self.pair.dots(other.pair) if self._alike(other) else super().dots(other)

    def inner(self, other: Any) -> Float[Array, "N"]:
        """⟨g_n, g'_n⟩: of the pairs, where both leaves are moved alike; 0 of slices that have nothing in common."""
        if self._apart(other):
            n = jax.eval_shape(self.pair.squared_norms)
            return jnp.zeros(n.shape, n.dtype)
        return self.pair.inner(other.pair) if self._alike(other) else super().inner(other)

    def along(self, v: Float[Array, "*leaf"]) -> Float[Array, "N"]:
        """⟨g_n, v⟩: the pair's, along v in the moved shape."""
        return self.pair.along(moved(v, self.moves))

    def factors(self) -> tuple[Array, Array]:
        """(A, G) of the pair: they are those of the moved leaf. Of a slice, as `Pair.factors` does."""
        return super().factors() if any(kind == "slice" for kind, _ in self.moves) else self.pair.factors()
