"""Readouts: what is read at each parameter. A few lines each, over the primitives of the pair.

Here are what a readout is and the plain ones; `moments`, `gram`, `projected` and `clipping` have the others.

A readout says what to read off one leaf's pair, and how the leaves' readings become one result. `reverse.Cost.measure`
takes any number of them through one reverse pass; XLA drops what no output needs.

Pairs carry the unscaled cost C_n of each example. `weights: [N]` are the factors of C_n in the reduced cost
C = Σ_n weights_n C_n (1/N for a mean), so that Σ_n weights_n g_n is its gradient.
"""

import operator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .layer import InputError, described
from .layout import Layout, joined
from .pair import Pair
from .reader import Reader, as_stacked
from .uses import Nothing, Stack


@runtime_checkable
class Readout(Protocol):
    """A frozen dataclass. Settings are static; where it is a pytree (`jax.tree_util.register_dataclass`), its arrays
    are vectors `[P]` like θ: the layout cuts them, and `read` is called on a readout that holds the leaf's part. One
    that holds other arrays (matrices by leaf name, pairs of another batch, a number) states
    `for_leaf(layout, i) -> readout`, the one that reads leaf number i; it is the same for all blocks of a loop.

    `of_examples = False` says that it speaks of the whole batch alone, so that a network which mixes examples has it;
    `adds = True`, that the reading of a sum of pairs is the sum of the readings; `by_form = True`, that a reading's
    shape depends on the form of the pair, so that nothing tells whether it fits the leaf.
    """

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Any:
        """One leaf's reading."""

    def stack(self, readings: Any) -> Any:
        """The reading of a leaf of L stacked blocks, from each block's own, stacked by a loop along a first axis L."""

    def collect(self, layout: Layout, readings: list[Any]) -> Any:
        """The result from all leaves' readings, in the layout's order."""


@dataclass(frozen=True)
class Gradient:
    """∇C = Σ_n weights_n g_n as a vector `[P]`: the gradient of the reduced cost."""

    of_examples: ClassVar[bool] = False
    adds: ClassVar[bool] = True

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Float[Array, "*leaf"]:
        return pair.weighted_gradient(weights)

    def stack(self, readings: Float[Array, "L *block"]) -> Float[Array, "*leaf"]:
        return as_stacked(readings)

    def collect(self, layout: Layout, readings: list[Any]) -> Float[Array, "P"]:
        return on_vector(readings)


def on_vector(readings: list[Any]) -> Float[Array, "P"]:
    """Readings of the leaves' own shapes as one vector."""
    return joined([g.ravel() for g in readings])


@dataclass(frozen=True)
class PerExampleGradients:
    """g_n = ∇C_n as `[N, P]`, of the unscaled cost of each example. Holds N·P numbers."""

    adds: ClassVar[bool] = True

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Float[Array, "N *leaf"]:
        return pair.per_example()

    def stack(self, readings: Float[Array, "L N *block"]) -> Float[Array, "N *leaf"]:
        return jnp.moveaxis(readings, 0, 1)

    def collect(self, layout: Layout, readings: list[Any]) -> Float[Array, "N P"]:
        return jnp.concatenate([g.reshape(g.shape[0], -1) for g in readings], axis=1)


@dataclass(frozen=True)
class SquaredNorms:
    """‖g_n‖² as `[N]`, of the unscaled cost of each example; no g_n is formed where the pair has a shorter way.

    Goodfellow 2015, arXiv:1510.01799. In at least float32.
    """

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Float[Array, "N"]:
        return pair.squared_norms()

    def stack(self, readings: Float[Array, "L N"]) -> Float[Array, "N"]:
        return readings.sum(0)

    def collect(self, layout: Layout, readings: list[Any]) -> Float[Array, "N"]:
        return jnp.stack(readings).sum(0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Along:
    """⟨g_n, v⟩ as `[N]` for a vector v `[P]`: the derivative of each example's cost C_n in direction v."""

    v: Any
    adds: ClassVar[bool] = True

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Float[Array, "N"]:
        return pair.along(self.v)

    def stack(self, readings: Float[Array, "L N"]) -> Float[Array, "N"]:
        return readings.sum(0)

    def collect(self, layout: Layout, readings: list[Any]) -> Float[Array, "N"]:
        return jnp.stack(readings).sum(0)


@dataclass(frozen=True)
class Pairs:
    """The pairs themselves, by the name of the leaf."""

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Pair:
        return pair

    def stack(self, readings: Pair) -> Pair:
        return Stack(readings)

    def collect(self, layout: Layout, readings: list[Any]) -> dict[str, Pair]:
        return pairs_by_name(layout, readings)


def pairs_by_name(layout: Layout, pairs: list[Any]) -> dict[str, Pair]:
    """The leaves' pairs by name."""
    return {name: _told(pair, shape) for name, pair, shape in zip(layout.names, pairs, layout.shapes, strict=True)}


def _told(pair: Pair, shape: tuple[int, ...]) -> Pair:
    """The pair; a stack of `Nothing` does not know how many blocks it has, and the leaf's shape tells it."""
    return pair if jax.tree.leaves(pair) else pair.of(shape)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Split:
    """Readouts without their arrays, which travel apart: static, so that equal ones are compiled once."""

    treedef: Any
    settings: tuple[Any, ...]  # a `_Place` where an array was

    @classmethod
    def of(cls, readouts: tuple[Any, ...]) -> tuple["Split", list[Any]]:
        """(the readouts without arrays, the arrays, each once)."""
        leaves, treedef = jax.tree.flatten(readouts, is_leaf=lambda node: isinstance(node, ByLeaf))
        is_array = [isinstance(leaf, (jax.Array, np.ndarray, ByLeaf)) for leaf in leaves]
        arrays = {id(leaf): leaf for leaf, array in zip(leaves, is_array, strict=True) if array}
        places = {key: _Place(i) for i, key in enumerate(arrays)}
        settings = (places[id(leaf)] if array else leaf for leaf, array in zip(leaves, is_array, strict=True))
        return cls(treedef, tuple(settings)), list(arrays.values())

    def filled(self, arrays: list[Any]) -> tuple[Any, ...]:
        """The readouts with these arrays."""
        return self.treedef.unflatten(
            [arrays[leaf.number] if isinstance(leaf, _Place) else leaf for leaf in self.settings]
        )


@dataclass(frozen=True)
class _Place:
    """Where an array was, by its number."""

    number: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ByLeaf:
    """An array of a readout that is no vector `[P]`: {leaf's name: arrays of its own, or None}."""

    parts: Any


def _cut(who: str, layout: Layout, array: Any) -> list[Any]:
    """The leaves' parts of a readout's array. Raises `InputError` where it is no vector `[P]`."""
    if isinstance(array, ByLeaf):
        if set(array.parts) != set(layout.names):
            raise InputError(
                f"{who}: expected arrays of the leaves {', '.join(layout.names)}, got {', '.join(array.parts)}. "
                "Make them from what a readout of this cost gave."
            )
        return [array.parts[name] for name in layout.names]
    if jnp.shape(array) != (layout.size,) or jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise InputError(
            f"{who}: expected a vector [P] = [{layout.size}] like theta, got {described(array)}. "
            "Make it with layout.flatten(tree)."
        )
    return layout.leaves(array)


@dataclass(frozen=True)
class AtLeaf:
    """A readout at one leaf, without the arrays that the leaf's reader owns."""

    split: Split | None  # None if it owns none
    whole: Any = None  # then the readout itself

    def filled(self, own: list[Any]) -> Any:
        """The readout with the leaf's parts of its vectors."""
        return self.whole if self.split is None else self.split.filled(own)[0]


def at_leaves(readout: Readout, layout: Layout) -> list[tuple[AtLeaf, list[Any]]]:
    """For each leaf, the readout there, and the arrays that the leaf's reader owns for it.

    Raises `InputError` where an array of a readout should be a vector `[P]` and is none.
    """
    places = range(len(layout.names))
    if hasattr(readout, "for_leaf"):
        return [(AtLeaf(None, readout.for_leaf(layout, i)), []) for i in places]
    split, arrays = Split.of((readout,))
    parts = [_cut(type(readout).__name__, layout, array) for array in arrays]
    return [(AtLeaf(split), [part[i] for part in parts]) for i in places]


def readers_of(readouts: tuple[Readout, ...], layout: Layout, weights: Float[Array, "N"]) -> Any:
    """A reader for each leaf, of several readouts at once, in the structure of the params."""

    def reader(*each: tuple[AtLeaf, list[Any]]) -> Reader:
        def read(pair: Pair, own: list[list[Any]]) -> tuple[Any, ...]:
            return tuple(at.filled(its).read(pair, weights) for (at, _), its in zip(each, own, strict=True))

        def stack(readings: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(readout.stack(each) for readout, each in zip(readouts, readings, strict=True))

        adds = all(getattr(readout, "adds", False) for readout in readouts)
        return Reader(read, stack, [own for _, own in each], adds)

    return layout.treedef.unflatten([reader(*place) for place in _places(readouts, layout)])


def _places(readouts: tuple[Readout, ...], layout: Layout) -> list[tuple[tuple[AtLeaf, list[Any]], ...]]:
    """For each leaf, all readouts there; none of them where there are none."""
    each = [at_leaves(readout, layout) for readout in readouts]
    return [tuple(of[i] for of in each) for i in range(len(layout.names))]


def check_shapes(readouts: tuple[Readout, ...], layout: Layout, readings: Any, n: int) -> None:
    """Raise `InputError` where a leaf's reading has another shape than the readout's of such a leaf.

    A loop that forgets `jbp.stacked`, or a gradient in a reading's place, would else give wrong numbers in silence.
    """
    leaves = zip(layout.names, layout.shapes, layout.treedef.flatten_up_to(readings), strict=True)
    for (name, shape, reading), place in zip(leaves, _places(readouts, layout), strict=True):
        mine = [at.filled(own) for at, own in place]
        for readout, got in zip(mine, reading if isinstance(reading, tuple) else (reading,) * len(mine), strict=False):
            if getattr(readout, "by_form", False):
                continue
            due = jax.eval_shape(lambda r=readout, s=shape: r.read(Nothing(n, s, np.float32), jnp.ones(n, np.float32)))
            if any(isinstance(part, Pair) for part in (due, got)):
                fits = isinstance(got, Pair) and _is_of(got, shape)
            else:
                fits = jax.tree.map(jnp.shape, due) == jax.tree.map(jnp.shape, got)
            if not fits:
                raise InputError(
                    f"leaf {name}: expected {type(readout).__name__}'s reading, {described(due)}, got {described(got)}."
                    " Return what the leaf's reader gave; a loop over blocks hands it to jbp.stacked first."
                )


def _is_of(pair: Pair, shape: tuple[int, ...]) -> bool:
    try:
        return jax.eval_shape(_told(pair, shape).gradient).shape == shape
    except (TypeError, ValueError):  # a pair that is not in its form
        return False


def given_twice(readouts: tuple[Readout, ...]) -> Readout | None:
    """The first readout that an earlier one equals, in its settings and with the very same arrays."""
    seen: list[tuple[Any, list[Any]]] = []
    for readout in readouts:
        split, arrays = Split.of((readout,))
        kind = type(readout), split  # two classes of one structure have equal treedefs
        if any(kind == other and all(map(operator.is_, arrays, its)) for other, its in seen):
            return readout
        seen.append((kind, arrays))
    return None


def collect(readouts: tuple[Readout, ...], layout: Layout, readings: Any) -> tuple[Any, ...]:
    """Each readout's result from readings in the structure of the params."""
    leaves = layout.treedef.flatten_up_to(readings)
    return tuple(readout.collect(layout, [leaf[i] for leaf in leaves]) for i, readout in enumerate(readouts))
