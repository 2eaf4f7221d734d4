"""What is read at each parameter: a reader for each leaf, called once with the leaf's pair.

A layer's backward gets readers in the structure of its params, and calls each: `Affine(read.w(Outer(x, d)),
read.b(Sum(d)))`. So one pass can read a gradient here and norms there, or take an optimiser's step at the leaf itself,
and the whole gradient never exists. A loop scans the readers beside the params, and hands what it stacked to `stacked`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from .layer import InputError, described
from .pair import Pair, Several, Stack

_static: Any = {"static": True}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reader:
    """What happens with one leaf's pair: `read(pair, own)` is the reading.

    `stack(readings)`: the reading of a leaf of L stacked blocks, from theirs, stacked along a first axis: `lambda r: r`
    for a gradient or a new leaf, `lambda r: r.sum(0)` for squared norms. `own`: arrays
    in the leaf's place (the leaf itself, an optimiser's state), which a loop over blocks slices with the leaf; what is
    the same for all blocks is closed over. `adds`: whether the reading of a sum of pairs is the sum of the readings, so
    that a layer may give the pair in pieces. The reading None means that the leaf is frozen.

    Readers of the same functions are equal, so a function of a module compiles once and a new lambda each time.
    """

    read: Callable[[Pair, Any], Any] = field(metadata=_static)
    stack: Callable[[Any], Any] = field(metadata=_static)
    own: Any = None
    adds: bool = field(default=False, metadata=_static)
    leaf: tuple[str, tuple[int, ...]] | None = field(default=None, metadata=_static)  # name and shape, from `bound`

    def __call__(self, pair: Pair) -> Any:
        """The reading of the leaf's pair. Raises `InputError` where that is no pair of this leaf."""
        name, shape = self.leaf or ("", None)
        try:
            if not isinstance(pair, Pair):
                raise InputError(f"expected a Pair, got {pair!r}. As in read(jbp.Sum(delta)).")
            return self.read(pair if shape is None else pair.of(shape), self.own)
        except InputError as error:
            if name and not error.message.startswith("leaf "):
                error.message = f"leaf {name}: {error.message}"
            raise


def _gradient(pair: Pair, own: Any) -> Any:
    return pair.gradient()


def _pair(pair: Pair, own: Any) -> Pair:
    return pair


def _none(pair: Pair, own: Any) -> None:
    return None


def as_stacked(readings: Any) -> Any:
    """The `stack` of readings that belong to the leaf's own coordinates: those of the blocks, as they were stacked."""
    return readings


read_gradient = Reader(_gradient, as_stacked, adds=True)  # Σ_n g_n
read_pair = Reader(_pair, Stack)  # the pair itself, for whoever needs it whole: a leaf that is used twice
read_nothing = Reader(_none, as_stacked, adds=True)  # of a frozen leaf: None, so that no number of it is computed


_AS_IN = "As in jbp.readers(params, jbp.read_gradient), or jbp.Reader(read, stack)."


def readers(params: Any, make: Reader | Callable[..., Reader]) -> Any:
    """A reader for each leaf, in the structure of the params: always `make`, or what `make(leaf)` or `make()` gives."""
    if isinstance(make, Reader):
        return jax.tree.map(lambda leaf: make, params)
    if isinstance(make, type) or not callable(make):
        raise InputError(f"readers: expected a Reader, or a function that makes one, got {make!r}. {_AS_IN}")
    alone = not inspect.signature(make).parameters

    def of(leaf: Any) -> Reader:
        made = make() if alone else make(leaf)
        if not isinstance(made, Reader):
            raise InputError(f"readers: expected what makes a Reader of a leaf, got {described(made)}. {_AS_IN}")
        return made

    return jax.tree.map(of, params)


def bound(params: Any, read: Any) -> Any:
    """The readers, each with the name and the shape of its leaf. Raises `InputError` where one is missing."""
    treedef: Any
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    try:
        given = treedef.flatten_up_to(read)
    except ValueError as error:
        raise InputError(
            f"read: expected a Reader for each leaf of the params, {treedef}, got {jax.tree.structure(read)}. "
            "Make them with jbp.readers(params, jbp.read_gradient)."
        ) from error
    found = []
    for (path, leaf), reader in zip(paths, given, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if not isinstance(reader, Reader):
            raise InputError(f"read: expected a Reader at leaf {name}, got {reader!r}. As in jbp.read_gradient.")
        found.append(replace(reader, leaf=(name, jnp.shape(leaf))))
    return treedef.unflatten(found)


def stacked(read: Any, readings: Any) -> Any:
    """Readings that a loop over blocks has stacked along a first axis, as those of the leaves `[L, *block]`.

    Every loop calls it: without it gradients stay right, and no other reading does.
    """
    is_reader = lambda value: isinstance(value, Reader)
    treedef: Any = jax.tree.structure(read, is_leaf=is_reader)
    try:
        treedef.flatten_up_to(readings)
    except ValueError as error:
        raise InputError(
            f"stacked: expected a reading for each reader, {treedef}, got {described(readings)}. "
            "Pass the readings as the loop over step_back has stacked them."
        ) from error
    if not all(map(is_reader, jax.tree.leaves(read, is_leaf=is_reader))):
        raise InputError(f"stacked: expected the readers that the loop was given, got {read!r}. Pass read itself.")
    return jax.tree.map(lambda reader, reading: reader.stack(reading), read, readings, is_leaf=is_reader)


def first_use(reader: Reader, transposed: bool) -> Reader:
    """The reader of a tied leaf's first use: its reading, if such readings add up, else the pair, to be read later.

    Raises `InputError` where a loop has cut a leaf that is tied as a transpose.
    """

    def turned_over(pair: Pair) -> Pair:
        if len(block := jax.eval_shape(pair.gradient).shape) != 2:
            raise InputError(
                f"tied: a loop uses the leaf block by block, here {list(block)}, and no block is a transpose of a "
                "block. Tie a leaf outside the loop."
            )
        return pair.transposed()

    way = turned_over if transposed else (lambda pair: pair)
    if reader.adds:
        return replace(reader, read=lambda pair, own: reader.read(way(pair), own), leaf=None)
    return Reader(lambda pair, own: way(pair), Stack)


def last_use(reader: Reader, reading: Any, shape: tuple[int, ...]) -> Reader:
    """The reader of a tied leaf's last use, which reads all of them, from the reading of the first.

    Once for the whole leaf, of this shape: raises `InputError` where a loop has cut it into blocks.
    """

    def both(pair: Pair, own: Any) -> Any:
        if jax.eval_shape(pair.gradient).shape != shape:
            raise InputError(
                f"tied: a loop uses the leaf {list(shape)} block by block, so a tie to the whole of it has no place. "
                "Tie a leaf outside the loop."
            )
        if reader.adds:
            return jax.tree.map(lambda one, two: one + two, reader.read(pair, own), reading)
        return reader.read(Several((pair, reading)).joined(), own)

    return replace(reader, read=both, adds=False)  # in pieces, the first use would be read with each of them


def all_uses(reader: Reader, readings: list[Any]) -> Any:
    """The reading of a tied leaf, from those of its uses, each read by `first_use` of the leaf's reader."""
    if reader.adds:
        return jax.tree.map(lambda one, *others: sum(others, one), *readings)
    return reader(Several(tuple(readings)))


def check_gradients(params: Any, gradients: Any) -> None:
    """Raise `InputError` unless each leaf's gradient has the leaf's shape; None is that of a frozen leaf."""
    treedef: Any
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    for (path, leaf), g in zip(leaves, treedef.flatten_up_to(gradients), strict=True):
        if g is not None and jnp.shape(g) != jnp.shape(leaf):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise InputError(
                f"backward reads a gradient {described(g)} at leaf {name}, which is {described(leaf)}. "
                "Check the pair that it gives to the leaf's reader, and what it does with the reading."
            )
