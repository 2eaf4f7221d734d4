"""What happens at each layer in one run: the record that `explain`, `flow` and `draw` read.

The network is rebuilt with a `Recorder` around every layer in it, found in the fields of its containers as `walk` finds
it: so no container's type is known, and a layer that nobody has written yet is recorded too. Params pass through, so
that θ and its layout stay the same. Then the recursion is traced once, and all that it made is computed at once:

* δ is the same *object* where one layer hands it to another, so what a δ came from is seen in the objects (`route`).
* A container that loops (`lax.scan`) loops in Python, and a layer in it has a step for each turn.
* A container that maps a layer (`jax.vmap`) shows it no numbers: that raises `InputError`.

The record holds every output and every δ of the batch. All δ are of the unscaled cost C_n of each example.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from .layer import Context, InputError, Layer, Theta, called, wide_dtype
from .pair import Pair, Stack
from .programs.program import quick
from .reader import Reader, readers


@dataclass(eq=False)
class Step:
    """One inductive step as it happened. `parent` is the container's step around it; `turn` counts those of one path.

    `began` and `ended` order the steps of the reverse pass. `turn` is 0, 1, … going forward, None for a single one.
    """

    path: str
    layer: Layer
    parent: "Step | None"
    began: int
    params: Any
    x: Any
    output: Any
    saved: Any
    delta: Any
    context: Context = Context()
    delta_x: Any = None
    ended: int = 0
    turn: int | None = None

    @property
    def name(self) -> str:
        """The layer's path; inside a loop with the turn, as in `0.layer.1@2`."""
        return self.path if self.turn is None else f"{self.path}@{self.turn}"

    @property
    def kind(self) -> str:
        """The layer's own name, or its class's."""
        return called(self.layer)


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


MARK = Reader(_leaf, _stacked_leaf)  # reads the pair; the recorder of the layer that gave it writes its path on it


def owned(reader: Reader, owner: str) -> Reader:
    """The reader, whose marks get the path of the layer that calls it: of the innermost, which marks last."""

    def read(pair: Pair, own: Any) -> Any:
        reading = reader.read(pair, own)
        return Leaf(reading.pair, owner) if isinstance(reading, Leaf) else reading

    return dataclasses.replace(reader, read=read)


@dataclass(frozen=True)
class Recorder:
    """A layer that does what `layer` does and writes its steps down. Saved: x and the output besides."""

    layer: Layer
    path: str
    record: "Record" = field(compare=False, repr=False)

    def init(self, key: Any, x: Any) -> Any:
        return self.layer.init(key, x)

    def forward(self, params: Any, x: Any, context: Context) -> tuple[Any, Any]:
        output, saved = self.layer.forward(params, x, context)
        return output, (x, output, saved, context)

    def backward(self, params: Any, feedback: Any, saved: Any, delta: Any, read: Any) -> tuple[Any, Any]:
        x, output, saved, context = saved
        made = [leaf for leaf in jax.tree.leaves((params, x, output, delta)) if isinstance(leaf, jax.core.Tracer)]
        if any(type(leaf) is not self.record.tracer for leaf in made):
            raise InputError(
                f"layer {self.path}: its numbers can't be recorded, because a container runs it inside a transformation"
                " such as jax.vmap. Record the network with that layer by itself."
            )
        with self.record.step(self.path, self.layer, params, x, output, saved, delta, context) as step:
            marks = jax.tree.map(lambda leaf, reader: owned(reader, self.path), params, read)
            step.delta_x, readings = self.layer.backward(params, feedback, saved, delta, marks)
        return step.delta_x, readings

    def __getattr__(self, name: str) -> Any:  # what else a container knows of its child
        return getattr(object.__getattribute__(self, "layer"), name)


@dataclass(frozen=True)
class Ends:
    """The whole network, whose output and δ are written down."""

    layer: Layer
    record: "Record" = field(compare=False, repr=False)

    def init(self, key: Any, x: Any) -> Any:
        return self.layer.init(key, x)

    def forward(self, params: Any, x: Any, context: Context) -> tuple[Any, Any]:
        self.record.output, saved = self.layer.forward(params, x, context)
        return self.record.output, saved

    def backward(self, params: Any, feedback: Any, saved: Any, delta: Any, read: Any) -> tuple[Any, Any]:
        self.record.delta = delta
        return self.layer.backward(params, feedback, saved, delta, read)


@dataclass(eq=False)
class Record:
    """One run: each step in the order in which the reverse pass ended them, and each leaf's pair by its name.

    `delta`: of C_n at the output, the base case; `values`: C_n `[N]`. `factors: [N]`: of each C_n in C.
    """

    steps: list[Step] = field(default_factory=list)
    leaves: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    delta: Any = None
    values: Any = None
    factors: Any = None
    tracer: type = jax.core.Tracer  # of what is traced by the run itself, and not by a transformation inside it
    _open: list[Step] = field(default_factory=list)
    _clock: Iterator[int] = field(default_factory=itertools.count)

    @contextmanager
    def step(self, path: str, layer: Layer, *values: Any) -> Iterator[Step]:
        """A step that begins now, inside the one that is open, and ends with the block."""
        step = Step(path, layer, self._open[-1] if self._open else None, next(self._clock), *values)
        self._open.append(step)
        yield step
        self._open.pop()
        step.ended = next(self._clock)
        self.steps.append(step)

    def arrays(self) -> Any:
        """All that the run made."""
        names = "params", "x", "output", "saved", "delta", "context", "delta_x"
        steps = [{name: getattr(step, name) for name in names} for step in self.steps]
        return self.output, self.delta, self.values, [*self.leaves.values()], steps

    def replace(self, arrays: Any) -> None:
        """Put others in the places of what `arrays` returns."""
        self.output, self.delta, self.values, leaves, steps = arrays
        self.leaves = dict(zip(self.leaves, leaves, strict=True))
        for step, changed in zip(self.steps, steps, strict=True):
            vars(step).update(changed)

    @cached_property
    def owned(self) -> dict[str, list[str]]:
        """{layer's path: names of the leaves that are its own, not those of a layer inside it}."""
        owners = {leaf.owner for leaf in self.leaves.values()}
        return {path: [name for name, leaf in self.leaves.items() if leaf.owner == path] for path in owners}

    @cached_property
    def rows(self) -> list[Step]:
        """The steps going forward: of layers that hold no other layer, and of those with leaves of their own."""
        parents = {id(step.parent) for step in self.steps}
        rows = [step for step in self.steps if id(step) not in parents or step.path in self.owned]
        return sorted(rows, key=lambda step: step.began, reverse=True)

    def route(self, step: Step) -> list[tuple[Step, Any]]:
        """How δ came from the output of the network down to `step`: (a step, the δ that it handed on), in this order.

        A step hands on its delta_x. A container hands to a layer in it a δ that it made of its own, or, if it is the
        same object, that δ itself: then the container is not listed.
        """
        links: list[tuple[Step, Any]] = []
        while True:
            before = [s for s in self.steps if s.parent is step.parent and s.ended < step.began]
            if feeders := [s for s in before if _same(s.delta_x, step.delta)]:
                links.append((feeders[-1], feeders[-1].delta_x))
                step = feeders[-1]
                continue
            if step.parent is None:
                return links[::-1]
            if not _same(step.parent.delta, step.delta):
                links.append((step.parent, step.delta))
            step = step.parent


def _same(a: Any, b: Any) -> bool:
    """Whether one of the arrays of two deltas is the same object."""
    return bool({id(leaf) for leaf in jax.tree.leaves(a)} & {id(leaf) for leaf in jax.tree.leaves(b)})


def recorded(layer: Layer, record: Record, path: tuple[str, ...] = ()) -> Recorder:
    """A layer and all layers inside it, each with a recorder around it."""
    is_layer = lambda value: isinstance(value, Layer) and not isinstance(value, type)
    changes: dict[str, Any] = {}
    named: list[str] = [f.name for f in fields(layer)] if is_dataclass(layer) else []
    for name in named:
        value = getattr(layer, name)
        if isinstance(value, tuple) and any(map(is_layer, value)):
            parts = enumerate(value)
            changes[name] = tuple(recorded(v, record, (*path, str(i))) if is_layer(v) else v for i, v in parts)
        elif is_layer(value):
            changes[name] = recorded(value, record, (*path, name))
    if changes:
        layer = dataclasses.replace(layer, **changes)  # type: ignore[type-var]
    return Recorder(layer, ".".join(path), record)


def run(
    cost: Any,
    theta: Theta,
    x: Any,
    y: Any,
    *,
    weights: Any = None,
    context: Context = Context(),
    mark: Reader = MARK,
) -> Record:
    """The record of one forward and reverse run of a `Cost`. Raises `InputError` as `cost.check`, and under jit.

    With another reader as `mark`, the record's leaves are what that reads.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((theta, x, y, weights))):
        raise InputError("a run is recorded with its numbers, so not under jit, grad or vmap. Call it outside.")
    cost.check(theta, x, y)
    network, y, record = cost.network, jax.tree.map(jnp.asarray, y), Record()
    n = jax.tree.leaves(x)[0].shape[0]
    if weights is not None and np.shape(weights) != (n,):
        raise InputError(f"weights: expected one weight for each example, [{n}], got shape {list(np.shape(weights))}.")
    w = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    record.factors = w / w.sum() if cost.reduction == "mean" else w

    layers: Any = recorded(network.layer.layers, record).layer
    whole = dataclasses.replace(network.layer, layers=layers)

    def traced(theta: Any, x: Any, y: Any) -> list[Any]:
        record.tracer = type(theta)
        with jax.disable_jit():  # loops turn in Python
            params = cost.layout.unflatten(theta)
            ones = jnp.ones(n, wide_dtype(whole.inner_dtype(params)))
            marks = readers(params, mark)
            record.values, _, readings = cost.induction(
                params, None, x, y, ones, marks, context, layer=Ends(whole, record)
            )
        read = cost.layout.treedef.flatten_up_to(readings)
        at_loss = lambda leaf: Leaf(leaf.pair, "loss") if isinstance(leaf, Leaf) and not leaf.owner else leaf
        record.leaves = dict(zip(cost.layout.names, map(at_loss, read), strict=True))
        return list(_traced(record).values())

    args = jnp.asarray(theta), x, y
    try:
        program = jax.make_jaxpr(traced)(*args)
    except jax.errors.UnexpectedTracerError as error:
        raise InputError(
            "the network's numbers can't be recorded, because a container runs a layer inside a transformation such as "
            "jax.checkpoint. Record the network with that layer by itself."
        ) from error
    made = dict(zip(_traced(record), _evaluated(program, jax.tree.leaves(args)), strict=True))
    record.replace(jax.tree.map(lambda leaf: made.get(id(leaf), leaf), record.arrays()))
    for path in {step.path for step in record.steps}:
        turns = [step for step in record.steps if step.path == path]
        for turn, step in enumerate(reversed(turns)):
            step.turn = turn if len(turns) > 1 else None
    return record


def _traced(record: Record) -> dict[int, Any]:
    """The tracers in a record, by id: each once, however often it stands there."""
    return {id(leaf): leaf for leaf in jax.tree.leaves(record.arrays()) if isinstance(leaf, jax.core.Tracer)}


def _evaluated(program: ClosedJaxpr, args: list[Any]) -> list[Any]:
    """The outputs of a program that runs once: whichever compiles less, the whole of it or each kind of operation.

    Equal layers, and turns of a loop, have few kinds between them.
    """
    kinds = {(str(eqn.primitive), str(eqn.params), *(str(v.aval) for v in eqn.invars)) for eqn in program.eqns}
    if len(kinds) * 10 < len(program.eqns):
        return jaxpr_as_fun(program)(*args)
    return _at_once(jax.default_backend())(_Text(program.jaxpr, str(program.jaxpr)), program.consts, args)


@dataclass(frozen=True)
class _Text:
    """A program that equals another of the same text: a network that is recorded again is not compiled again."""

    jaxpr: Jaxpr = field(compare=False)  # it keeps alive what the text names by its address
    text: str


@cache
def _at_once(backend: str) -> Callable[..., list[Any]]:
    """A program that runs once, so compiled fast."""

    def run(program: _Text, consts: list[Any], args: list[Any]) -> list[Any]:
        return jaxpr_as_fun(ClosedJaxpr(program.jaxpr, consts))(*args)

    return jax.jit(run, static_argnums=0, compiler_options=quick(backend))
