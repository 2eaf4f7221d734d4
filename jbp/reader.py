"""What is read at each parameter: a reader for each leaf, called once with the leaf's pair.

A layer's backward gets readers in the structure of its params, and calls each: `Affine(read.w(Outer(x, d)),
read.b(Sum(d)))`. So one pass can read a gradient here and norms there, or take an optimiser's step at the leaf itself,
and the whole gradient never exists. A loop scans the readers beside the params, and hands what it stacked to `stacked`.
"""

import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from .layer import InputError, described
from .pair import Pair
from .uses import Several, Stack

_static: Any = {"static": True}


@dataclass(eq=False)
class Calls:
    """The calls of a leaf's reader in one `step_back`, each by the traces that its pair is of.

    A transformation may trace one call several times, and a branch of a `cond` is one of several: only two calls in one
    trace are two. `outside`: those of the reader that a container handed on, for the whole leaf, or, `in_blocks`, for
    one of its blocks after another, as a loop does that is unrolled. All are equal, so that a program that has been
    traced with one is not traced anew with another; one that is `alone` is equal to itself only.
    """

    outside: "Calls | None" = None
    in_blocks: bool = False
    alone: bool = False
    seen: list[tuple[Any, ...]] = field(default_factory=list)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Calls) and not self.alone and not other.alone)

    def __hash__(self) -> int:
        return id(self) if self.alone else hash(Calls)

    def add(self, pair: Any, several: bool) -> None:
        """One more. Raises `InputError` for a second one in the same trace, unless there may be `several`."""
        if self.outside is not None:
            self.outside.add(pair, several or self.in_blocks)
        traces = {id(trace): trace for leaf in jax.tree.leaves(pair) if (trace := _trace_of(leaf)) is not None}
        same = lambda then: len(then) == len(traces) and all(id(trace()) in traces for trace in then)
        if not several and any(map(same, self.seen)):
            raise InputError(f"its reader was called twice; {_ONCE}")
        self.seen.append(tuple(map(weakref.ref, traces.values())))


_ONCE = "call it exactly once, with the leaf's pair (jbp.Several for more uses)."


def _trace_of(a: Any) -> Any:
    """What an array is traced by; None if it has numbers. Where a tracer does not say so, a thing like no other."""
    return getattr(a, "_trace", Calls()) if isinstance(a, jax.core.Tracer) else None


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
    calls: Calls | None = field(default=None, metadata=_static, repr=False, compare=False)  # from `bound`, too

    def __call__(self, pair: Pair) -> Any:
        """The reading of the leaf's pair. Raises `InputError` where that is no pair of this leaf, or the second one."""
        name, shape = self.leaf or ("", None)
        try:
            if not isinstance(pair, Pair):
                raise InputError(f"expected a Pair, got {pair!r}. As in read(jbp.Sum(delta)).")
            reading = self.read(pair if shape is None else pair.of(shape), self.own)
            if self.calls is not None:
                self.calls.add(pair, self.adds and reading is not None)  # two readings None don't add up
            return reading
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
read_whole = Reader(_gradient, as_stacked)  # the same, of the whole pair at once
read_pair = Reader(_pair, Stack)  # the pair itself, for whoever needs it whole: a leaf that is used twice
read_nothing = Reader(_none, as_stacked)  # of a frozen leaf: None, so that no number of it is computed


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


def bound(params: Any, read: Any, alone: bool = False) -> Any:
    """The readers, each with the name and the shape of its leaf, and no calls yet, which may be `alone`.

    Raises `InputError` where one is missing.
    """
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
        around, blocks = reader.calls, reader.leaf is not None and reader.leaf[1] != jnp.shape(leaf)
        calls = Calls(alone=True) if alone else Calls(around, blocks, around is not None and around.alone)
        found.append(replace(reader, leaf=(name, jnp.shape(leaf)), calls=calls))
    return treedef.unflatten(found)


def check_called(params: Any, read: Any, back: Callable[[Any], Any]) -> None:
    """Raise `InputError` unless `back` has called each of the readers, which are `bound`.

    Of a loop that was traced before nothing is seen, so if one was not called, `back` is traced anew with others.
    """
    if not _uncalled(params, read):
        return
    again = bound(params, read, alone=True)

    def run() -> None:
        back(again)

    jax.eval_shape(run)
    if names := _uncalled(params, again):
        raise InputError(f"leaf {names[0]}: its reader was called 0 times; {_ONCE}")


def _uncalled(params: Any, read: Any) -> list[str]:
    """The names of leaves whose readers were not called."""
    treedef: Any = jax.tree.structure(params)
    return [reader.leaf[0] for reader in treedef.flatten_up_to(read) if not reader.calls.seen]


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
