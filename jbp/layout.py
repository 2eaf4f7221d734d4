"""The map between named leaves and one vector θ.

The text unrolls all weights and biases into one list, so that C : R^(#W+#b) → R. A `Layout` is that unrolling: which
leaf begins where, and what coordinate i is called. Its order is the order of `jax.flatten_util.ravel_pytree`.

    the text          here
    W, b (vectors)    theta, and `names` of its leaves
    #W, #b            `num_weights`, `num_biases`
    L                 `num_layers`
    W^ℓ               `matrix(theta, l)`
    w^ℓ_{j←k}, b^ℓ_j  `symbol(i)`, and back `index(symbol)`
"""

import bisect
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .errors import arrived
from .layer import InputError, Theta, described
from .published import from_elsewhere, to_elsewhere
from .symbols import Symbols

LARGE = 1 << 16  # elements from which on a leaf is copied by itself
_BIAS_NAMES = ("b", "bias")


class Fixed(NamedTuple):
    """Params that are held fixed: the layout finds this node, and no gradient of what is in it is computed.

    A layer whose `init` returns one stops the gradient at it in `forward`, and in `backward` hands its readers the pair
    `Nothing`, as `jbp.Frozen` does.
    """

    fixed: Any


@dataclass(frozen=True)
class Layout:
    """Named leaves ↔ one vector θ of length P = #W + #b. Hashable, so it is static under jit.

    Made by `Layout.of(tree)`. `trainable`: for each leaf whether it is not held fixed (`jbp.Frozen`). A leaf whose last
    name is `b` or `bias` holds biases; every other leaf holds weights.
    In a plain chain of dense layers (leaves `i.w: [k, j]` and `i.b: [j]`, each width meeting the next) coordinates
    have the text's symbols; elsewhere a path with an index, as in `1.layer.g[3]`.
    """

    treedef: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: np.dtype
    trainable: tuple[bool, ...]

    @classmethod
    def of(cls, tree: Any) -> "Layout":
        """The layout of a pytree of arrays or `ShapeDtypeStruct`s. Raises `InputError` on mixed or non-float dtypes."""
        paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
        names = tuple(jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths)
        dtypes = {name: jnp.result_type(leaf) for name, (_, leaf) in zip(names, paths, strict=True)}
        if len(set(dtypes.values())) > 1 or any(not jnp.issubdtype(d, jnp.floating) for d in dtypes.values()):
            listed = ", ".join(f"{name}: {dtype}" for name, dtype in dtypes.items())
            raise InputError(f"Layout: one vector has one float dtype, got {listed}. Cast the leaves to one dtype.")
        dtype = next(iter(dtypes.values()), jnp.result_type(float))
        is_fixed = lambda node: isinstance(node, Fixed)
        parts = jax.tree.leaves(tree, is_leaf=is_fixed)
        trainable = (not is_fixed(part) for part in parts for _ in jax.tree.leaves(part))
        shapes = tuple(tuple(jnp.shape(leaf)) for _, leaf in paths)
        return cls(treedef, names, shapes, np.dtype(dtype), tuple(trainable))

    # -- sizes ------------------------------------------------------------------------------------------------------

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of coordinates of each leaf."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each leaf begins in θ; one more entry than leaves, the last is P."""
        return (0, *itertools.accumulate(self.sizes))

    @property
    def size(self) -> int:
        """P = #W + #b."""
        return self.offsets[-1]

    @property
    def num_biases(self) -> int:
        """#b: coordinates in leaves named `b` or `bias`."""
        return sum(n for name, n in zip(self.names, self.sizes, strict=True) if name.rsplit(".", 1)[-1] in _BIAS_NAMES)

    @property
    def num_weights(self) -> int:
        """#W: all other coordinates."""
        return self.size - self.num_biases

    # -- the vector -------------------------------------------------------------------------------------------------

    def flatten(self, tree: Any) -> Float[Array, "P"]:
        """The vector of a tree of leaves. Raises `InputError` where structure, shape or dtype differ, with its name."""
        leaves = self.checked_leaves("Layout.flatten", tree)
        dtypes = {jnp.result_type(leaf) for leaf in leaves}
        if len(dtypes) > 1 or not all(self._accepts(dtype) for dtype in dtypes):
            listed = ", ".join(
                f"{name}: {jnp.result_type(leaf)}" for name, leaf in zip(self.names, leaves, strict=True)
            )
            raise InputError(f"Layout.flatten: expected every leaf in {self.dtype}, got {listed}. Cast them first.")
        return joined([jnp.ravel(leaf) for leaf in leaves]) if leaves else jnp.zeros(0, self.dtype)

    def checked_leaves(self, who: str, tree: Any) -> list[Any]:
        """The leaves of a tree. Raises `InputError` where its structure or a shape differs, with the leaf's name."""
        paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
        leaves = [leaf for _, leaf in paths]
        if treedef != self.treedef:
            got = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
            raise InputError(
                f"{who}: expected leaves {', '.join(self.names)} in the structure of this layout, "
                f"got {', '.join(filter(None, got)) or described(tree)}. "
                "Start from layout.unflatten(theta), or make Layout.of(tree)."
            )
        for name, shape, leaf in zip(self.names, self.shapes, leaves, strict=True):
            if jnp.shape(leaf) != shape:
                raise InputError(
                    f"{who}: leaf {name} has shape {list(shape)} in this layout, got {list(jnp.shape(leaf))}."
                    + (" Transpose it." if jnp.shape(leaf) == shape[::-1] else " Make a new Layout.of(tree).")
                )
        return leaves

    def filled(self, tree: Any, dtype: Any) -> Any:
        """The tree with zeros where a frozen leaf has None."""
        leaves = zip(self.treedef.flatten_up_to(tree), self.shapes, strict=True)
        return self.treedef.unflatten([jnp.zeros(shape, dtype) if g is None else g for g, shape in leaves])

    def unflatten(self, theta: Theta) -> Any:
        """The tree of leaves of θ. A float64 θ is always welcome: it is how a float64 shadow of a network is run.

        Raises `InputError` for a wrong length or dtype.
        """
        self.check(theta)
        return jax.tree.unflatten(self.treedef, self.leaves(jnp.asarray(theta)))

    def leaves(self, vector: Theta) -> list[Any]:
        """The leaves of a vector like θ, of any dtype, in its order; of NumPy's for a NumPy vector, without a copy."""
        cut = (lambda i, j: vector[i:j]) if isinstance(vector, np.ndarray) else partial(_slice, vector)
        places = zip(self.offsets, self.offsets[1:], self.shapes, strict=False)
        return [cut(i, j).reshape(shape) for i, j, shape in places]

    def check(self, theta: Theta, name: str = "theta") -> None:
        """Raise `InputError` unless θ has this layout's length and dtype, or float64."""
        if not hasattr(theta, "shape") or not hasattr(theta, "dtype"):
            raise InputError(
                f"{name}: expected one vector [P] = [{self.size}], got {arrived(theta)}. "
                "Make one with layout.flatten(tree) or jnp.asarray(list)."
            )
        shape, dtype = jnp.shape(theta), jnp.result_type(theta)
        if shape != (self.size,):
            maker = "cost" if any(leaf.startswith("loss.") for leaf in self.names) else "net"
            raise InputError(
                f"{name}: expected [P] = [{self.size}] (#W = {self.num_weights}, #b = {self.num_biases}), "
                f"got {list(shape)}. Make one with {maker}.init(key) or layout.flatten(tree)."
            )
        if not self._accepts(dtype):
            raise InputError(
                f"{name}: expected {self.dtype}[{self.size}], got {dtype}[{self.size}]. "
                f"Cast it with {name}.astype({self.dtype})"
                + (f", or build the Network with dtype={dtype}." if jnp.issubdtype(dtype, jnp.floating) else ".")
            )

    def _accepts(self, dtype: Any) -> bool:
        return dtype in (self.dtype, np.dtype("float64"))

    def map(self, function: Callable[..., Any], *trees: Any) -> list[Any]:
        """`function(name, *leaves)` for each leaf, in the vector's order."""
        return [function(*group) for group in zip(self.names, *map(self.treedef.flatten_up_to, trees), strict=True)]

    # -- weights from elsewhere, and to elsewhere -------------------------------------------------------------------

    def load(self, source: Any, names: Any = None, ignore: Iterable[str] = ()) -> Float[Array, "P"]:
        """θ `[P]` in this layout's dtype, from arrays that others have named.

        `source`: a tree or dict of arrays by name (NumPy's, JAX's, a PyTorch `state_dict()`), or the path of a
        safetensors file or of a folder of them. `names`: {leaf: published name}, where `{i}` counts the blocks of a
        stacked leaf, and a slice or `.T` may follow, as in `"h.{i}.attn.c_attn.weight[:, 0:64]"`; or a function of
        `get`; see `published`. A leaf that is not in it stands under its own name. `ignore`: patterns of names in the
        source that no leaf needs, as in `["h.*.attn.bias"]`.

        Raises `InputError` where an array is missing, left over, of another shape or not of floats. To load a part of
        θ, put the rest into the source: `layout.load(layout.named(theta) | part)`.
        """
        return jnp.asarray(from_elsewhere(self, source, names, ignore))

    def named(self, theta: Theta, names: Any = None) -> dict[str, np.ndarray]:
        """{published name: array} of a vector like θ `[P]`, on the host: the way back of `load`, by the same `names`.

        `safetensors.numpy.save_file(layout.named(theta, names), path)` writes it. Raises `InputError` where `names`
        has a function, or its slices overlap or leave a gap.
        """
        self.check(theta)
        return to_elsewhere(self, np.asarray(theta), names)

    # -- the plain chain of the text --------------------------------------------------------------------------------

    @cached_property
    def _symbols(self) -> Symbols:
        return Symbols(self.names, self.shapes)

    @property
    def is_chain(self) -> bool:
        """Whether this is a plain chain of dense layers, so that the text's symbols and L apply."""
        return self._symbols.chain is not None

    def _require_chain(self, what: str) -> dict[int, dict[str, int]]:
        if self._symbols.chain is None:
            raise InputError(
                f"{what}: defined for a plain chain of dense layers only; this layout has leaves "
                f"{', '.join(self.names) or 'none'}. Use layout.unflatten(theta) and the leaf's path."
            )
        return self._symbols.chain

    @property
    def num_layers(self) -> int:
        """L, the input layer included: one hidden layer gives L = 3. Raises `InputError` off a plain chain."""
        return len(self._require_chain("layout.num_layers")) + 1

    def matrix(self, theta: Theta, l: int) -> Float[Array, "j k"]:
        """W^ℓ as the text has it, `[j, k]`: row j holds the weights into neuron j of layer ℓ = 2 … L."""
        chain = self._require_chain("layout.matrix")
        if l not in chain:
            raise InputError(f"layout.matrix: layer l = {l} has no weights; l runs from 2 to L = {self.num_layers}.")
        return jax.tree.leaves(self.unflatten(theta))[chain[l]["w"]].T

    # -- symbols ----------------------------------------------------------------------------------------------------

    def symbol(self, i: int) -> str:
        """The name of coordinate i of θ: `w^2_{3←7}`, `b^3_0`, or off a plain chain a path with an index."""
        return self.symbol_at(*self._located("layout.symbol", i))

    def locate(self, i: int) -> tuple[str, tuple[int, ...]]:
        """(name of the leaf, index in it) of coordinate i of θ `[P]`. Raises `InputError` unless 0 ≤ i < P."""
        return self._located("layout.locate", i)

    def _located(self, who: str, i: int) -> tuple[str, tuple[int, ...]]:
        if not isinstance(i, (int, np.integer)) or not 0 <= i < self.size:
            there = f"it has coordinates 0 … {self.size - 1}" if self.size else "it has no coordinates"
            raise InputError(f"{who}: coordinate {i!r} is not in θ; {there}.")
        leaf = bisect.bisect_right(self.offsets, i) - 1  # an empty leaf begins where the next one does
        return self.names[leaf], tuple(int(k) for k in np.unravel_index(i - self.offsets[leaf], self.shapes[leaf]))

    def symbol_at(self, name: str, where: tuple[int, ...]) -> str:
        """The symbol of the element `where` of leaf `name`."""
        return self._symbols.of(self.names.index(name), where)

    def index(self, symbol: Any) -> int:
        """The coordinate of a symbol: inverse of `symbol`. Raises `InputError` if unknown.

        `<-` may stand for `←`; blanks and braces don't matter.
        """
        if not isinstance(symbol, str):
            example = self.symbol(0) if self.size else "w"
            raise InputError(
                f"layout.index: expected a symbol, a str like {example!r}, got {described(symbol)}. "
                "Of a coordinate's number, layout.symbol(i) gives it."
            )
        leaf, where = self._symbols.found("layout.index", symbol)
        shape = self.shapes[leaf]
        return self.offsets[leaf] + (int(np.ravel_multi_index(where, shape)) if shape else 0)


def _slice(vector: Array, i: int, j: int) -> Array:
    return jax.lax.slice(vector, (i,), (j,))


@jax.jit
def joined(parts: list[jax.Array]) -> jax.Array:
    """The parts one after another. XLA makes a concatenation a slow loop over elements; large parts are copied."""
    if all(part.size < LARGE for part in parts):
        return jnp.concatenate(parts)
    joined, offset = jnp.zeros(sum(part.size for part in parts), parts[0].dtype), 0
    for large, group in itertools.groupby(parts, key=lambda part: part.size >= LARGE):
        run = list(group)
        for part in run if large else [jnp.concatenate(run)]:
            joined = jax.lax.dynamic_update_slice(joined, part, (offset,))
            offset += part.size
    return joined
