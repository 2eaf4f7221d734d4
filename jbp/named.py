"""A network whose layers can be told apart in a program: each gives what it meets a name.

No layer type is known here. Layers inside layers are found in the fields of their containers, as `walk` finds them, and
each is replaced by a `Named` one, which does the same. Params pass through, so that θ and its layout stay the same.
"""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .layer import Context, Layer
from .pair import Pair
from .programs.names import Name, entered, named
from .reader import Reader
from .uses import Stack

GIVEN = ("ran", "params", "x", "output", "saved", "context", "delta")  # named as a layer begins to run in reverse


@dataclass(frozen=True, eq=False)
class Note:
    """What was seen of one run of a layer, forward or back, as it was traced: of each part the types, in its structure.

    Of a random key, whose numbers are named in its place, the implementation.
    """

    layer: "Named"
    parts: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)

    def take(self, what: str, value: Any) -> list[Any]:
        """The arrays of a part, which is written down."""
        self.parts[what] = jax.tree.map(lambda a: jax.random.key_impl(a) if _is_key(a) else jax.typeof(a), value)
        arrays = [jax.random.key_data(a) if _is_key(a) else a for a in jax.tree.leaves(value)]
        self.shapes[what] = [*map(jnp.shape, arrays)]
        return arrays

    def shape(self, name: Name) -> tuple[int, ...]:
        """The shape of an array, as the layer met it."""
        return self.shapes[name.what][name.leaf]

    def made(self, what: str, arrays: list[Any]) -> Any:
        """The part, of other arrays such as `take` gave."""
        structure: Any
        types, structure = jax.tree.flatten(self.parts[what])
        whole = lambda a, of: a if hasattr(of, "dtype") else jax.random.wrap_key_data(jnp.asarray(a), impl=of)
        return structure.unflatten([whole(a, of) for a, of in zip(arrays, types, strict=True)])


def _is_key(a: Any) -> bool:
    return jnp.issubdtype(jax.typeof(a).dtype, jax.dtypes.prng_key)


@dataclass(frozen=True, eq=False)
class Notes:
    """The notes of all calls of a network's layers, numbered as the names are.

    `forward`: whether x and output are named as layers run forward, for a drawing; else all is named as they run in
    reverse. `maps`: whether those names are moved through `jax.vmap`.
    """

    forward: bool = False
    maps: bool = False
    calls: list[Note] = field(default_factory=list)

    def begin(self, layer: "Named") -> tuple[int, Note]:
        """A new note, with its number."""
        self.calls.append(Note(layer))
        return len(self.calls) - 1, self.calls[-1]


@dataclass(frozen=True, eq=False)
class Named:
    """A layer that does what `layer` does, with names. Saved: x, the output and the context besides.

    `own`: the layer as it was given. `notes`: those of the whole network.
    """

    layer: Any
    path: str
    own: Layer
    notes: Notes

    @property
    def inside(self) -> "list[Named]":
        """The named layers right in it."""
        return [part for held in _fields(self.layer).values() for part in jax.tree.leaves(held) if _is_named(part)]

    def init(self, key: Any, x: Any) -> Any:
        return self.layer.init(key, x)

    def forward(self, params: Any, x: Any, context: Context) -> tuple[Any, Any]:
        if not self.notes.forward:
            output, saved = self.layer.forward(params, x, context)
            return output, (x, output, saved, context)
        number, note = self.notes.begin(self)
        note.take("params", params)
        x = note.made("x", entered(number, "x", note.take("x", x)))
        output, saved = self.layer.forward(params, x, context)
        output = note.made("output", entered(number, "output", note.take("output", output)))
        return output, (x, output, saved, context)

    def backward(self, params: Any, feedback: Any, saved: Any, delta: Any, read: Any) -> tuple[Any, Any]:
        (x, output, saved, context), maps = saved, self.notes.maps
        number, note = self.notes.begin(self)
        given = dict(zip(GIVEN, (True, params, x, output, saved, context, delta), strict=True))
        arrays = named(number, {what: note.take(what, value) for what, value in given.items()}, maps)
        params, saved, delta = (note.made(what, arrays[what]) for what in ("params", "saved", "delta"))
        read = jax.tree.map(lambda leaf, reader: owned(reader, self.path), params, read)
        delta_x, readings = self.layer.backward(params, feedback, saved, delta, read)
        arrays = named(number, {"delta_x": note.take("delta_x", delta_x), "ended": note.take("ended", True)}, maps)
        return note.made("delta_x", arrays["delta_x"]), readings

    def __getattr__(self, name: str) -> Any:  # what else a container knows of its child
        return getattr(object.__getattribute__(self, "layer"), name)


def named_layers(layer: Layer, notes: Notes, path: tuple[str, ...] = ()) -> Named:
    """The layer and all layers inside it, each with names. A container that takes no other children stays one layer."""
    try:
        inner = _refilled(layer, notes, path)
    except (TypeError, ValueError):
        inner = layer
    return Named(inner, ".".join(path), layer, notes)


def _refilled(value: Any, notes: Notes, path: tuple[str, ...]) -> Any:
    """A container with its layers named; itself where it holds none."""

    def each(part: Any, *place: str) -> Any:
        if isinstance(part, Layer) and not isinstance(part, type):
            return named_layers(part, notes, (*path, *place))
        return _refilled(part, notes, (*path, *place)) if isinstance(part, (tuple, list, Mapping)) else part

    if isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", range(len(value)))
        parts = [each(part, str(name)) for name, part in zip(names, value, strict=True)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, Mapping):
        return {name: each(part, str(name)) for name, part in value.items()}
    # a tuple that is a field adds no name of its own: `Sequential.layers[0]` is layer 0, as in its params
    within = lambda name, part: () if isinstance(part, (tuple, list, Mapping)) else (name,)
    filled = {name: each(part, *within(name, part)) for name, part in _fields(value).items()}
    changed = {name: part for name, part in filled.items() if any(map(_is_named, jax.tree.leaves(part)))}
    if not changed or is_dataclass(value):
        return dataclasses.replace(value, **changed) if changed else value
    made = copy.copy(value)
    vars(made).update(changed)
    return made


def _fields(layer: Any) -> Mapping[str, Any]:
    if is_dataclass(layer):
        return {f.name: getattr(layer, f.name) for f in dataclasses.fields(layer)}
    return getattr(layer, "__dict__", {})


def _is_named(part: Any) -> bool:
    return isinstance(part, Named)


# -- what is read at a leaf -------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Leaf:
    """The pair of a parameter leaf, and the path of the layer that read it."""

    pair: Pair
    owner: str = field(metadata={"static": True})

    @property
    def depth(self) -> int:
        """In how many loops, one in another, the leaf's layer is: so many axes of blocks the leaf has."""
        pairs, depth = self.pair, 0
        while isinstance(pairs, Stack):
            pairs, depth = pairs.blocks, depth + 1
        return depth

    def block(self, array: np.ndarray, turn: int | None) -> np.ndarray:
        """The part of an array of the leaf's shape that belongs to one turn of the loops."""
        return array if turn is None else array.reshape(-1, *array.shape[self.depth :])[turn]


def _leaf(pair: Pair, own: Any) -> Leaf:
    return Leaf(pair, "")


def _stacked_leaf(leaf: Leaf) -> Leaf:
    return Leaf(Stack(leaf.pair), leaf.owner)


read_leaf = Reader(_leaf, _stacked_leaf)  # reads the pair; the layer that gives it writes its path on it


def owned(reader: Reader, owner: str) -> Reader:
    """The reader, whose leaves get the path of the layer that calls it: of the innermost, which writes last."""

    def read(pair: Pair, own: Any) -> Any:
        reading = reader.read(pair, own)
        return Leaf(reading.pair, owner) if isinstance(reading, Leaf) else reading

    return dataclasses.replace(reader, read=read)
