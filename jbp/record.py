"""One recorded run: what stood at each layer, and where each δ came from. `explain`, `flow`, `draw`, `compare` read it.

The network is copied with names around every layer in it (`named`), and forward and hand-written reverse are traced
once. How calls of layers are nested, and what hands δ to what, is read off the program (`lineage`); one replay of it
hands the named values out, those of a loop turn by turn. Loops stay loops, and a layer in one has a step for each turn.

The record holds every output and every δ of the batch. All δ are of the unscaled cost C_n of each example.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .layer import Context, InputError, Layer, Theta, called, wide_dtype
from .meshes import on_host
from .named import Leaf, Note, Notes, named_layers, read_leaf
from .programs.names import Hidden, Loop, NamedValue, lineage, origins
from .programs.once import evaluated
from .programs.taps import Path, handed_out
from .reader import Reader, readers

PARTS = ("params", "x", "saved", "context", "output", "delta", "delta_x")  # of a step, handed out

Turns = Mapping[Any, int]  # of the loops around a step, and places in the vmaps around it


@dataclass(eq=False)
class Step:
    """One inductive step as it happened, its values as NumPy arrays. `parent` is the container's step around it.

    The whole network's step knows its output and delta alone; the rest is None there.

    `turn` counts the steps of one path, 0, 1, … going forward; it is None for a single one. `came`: the steps that this
    step's δ came from unchanged: a container, whose own it is, or the layer that handed it on as its delta_x.
    """

    path: str
    layer: Layer
    parent: "Step | None"
    params: Any
    x: Any
    output: Any
    saved: Any
    context: Context | None
    delta: Any
    delta_x: Any
    turn: int | None = None
    came: "tuple[Step, ...]" = ()

    @property
    def name(self) -> str:
        """The layer's path; inside a loop with the turn, as in `0.layer.1@2`."""
        return self.path if self.turn is None else f"{self.path}@{self.turn}"

    @property
    def kind(self) -> str:
        """The layer's own name, or its class's."""
        return called(self.layer)


@dataclass(frozen=True, eq=False)
class Record:
    """One run: each step in the order in which the reverse pass ended them, and each leaf's pair by its name.

    `forward`: the same steps as forward met them. `delta`: of C_n at the output, the base case; `values`: C_n `[N]`.
    `factors: [N]`: of each C_n in C.
    """

    steps: list[Step]
    forward: list[Step]
    leaves: dict[str, Any]
    output: Any
    delta: Any
    values: Any
    factors: np.ndarray

    @cached_property
    def owned(self) -> dict[str, list[str]]:
        """{layer's path: names of the leaves that are its own, not those of a layer inside it}."""
        owners = {leaf.owner for leaf in self.leaves.values()}
        return {path: [name for name, leaf in self.leaves.items() if leaf.owner == path] for path in owners}

    @cached_property
    def rows(self) -> list[Step]:
        """The steps going forward: of layers that hold no other layer, and of those with leaves of their own."""
        parents = {step.parent for step in self.steps}
        return [step for step in self.forward if step not in parents or step.path in self.owned]

    def route(self, step: Step) -> list[tuple[Step, Any, bool]]:
        """How δ came from the output of the network down to `step`: (a step, the δ that it handed on, whether that is
        its delta_x), in this order.

        A container hands to a layer in it a δ that it made of its own, or its own δ unchanged: then it is not listed.
        """
        links: list[tuple[Step, Any, bool]] = []
        while True:
            if before := [other for other in step.came if other.parent is step.parent]:
                links.append((before[-1], before[-1].delta_x, True))
                step = before[-1]
                continue
            if step.parent is None:
                return links[::-1]
            if step.parent not in step.came:
                links.append((step.parent, step.delta, False))
            step = step.parent


def run(
    cost: Any,
    theta: Theta,
    x: Any,
    y: Any,
    *,
    weights: Any = None,
    context: Context = Context(),
    read: Reader = read_leaf,
) -> Record:
    """The record of one forward and reverse run of a `Cost`. Raises `InputError` as `cost.check`, and under jit.

    With another reader, the record's leaves are what that reads.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((theta, x, y, weights))):
        raise InputError("a run is recorded with its numbers, so not under jit, grad or vmap. Call it outside.")
    theta, x, y, weights, context = on_host((theta, x, y, weights, context))
    cost.check(theta, x, y)
    y, n = jax.tree.map(jnp.asarray, y), jax.tree.leaves(x)[0].shape[0]
    if weights is not None and np.shape(weights) != (n,):
        raise InputError(f"weights: expected one weight for each example, [{n}], got shape {list(np.shape(weights))}.")
    w = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    args = jnp.asarray(theta), x, y
    program, shapes, calls = _traced(cost, args, context, read)
    chosen = {met.path: None for call in calls for met in call.handed}
    out = lambda *arrays: handed_out(program, arrays, chosen, lambda eqn, values, _: (values, values[0]))
    flat, taken = jax.make_jaxpr(out, return_shape=True)(*jax.tree.leaves(args))
    outs, found = jax.tree.unflatten(jax.tree.structure(taken), evaluated(flat, jax.tree.leaves(args)))
    values, leaves = jax.tree.unflatten(jax.tree.structure(shapes), outs)
    root, steps, forward = _steps(calls, jax.device_get(found), n)
    counted = np.asarray(cost.counted(y, n), np.float64) if cost.reduction == "positions" else 1.0
    factors = w if cost.reduction == "sum" else w / (w * counted).sum()
    named = dict(zip(cost.layout.names, leaves, strict=True))
    return Record(steps, forward, named, root.output, root.delta, values, factors)


def _traced(
    cost: Any, args: tuple, context: Context, read: Reader, maps: bool = False
) -> tuple[Any, Any, "list[_Call]"]:
    """(the program of forward and reverse with names, its outputs' types, the calls of layers in it).

    It is traced once more, with `maps`, if there turns out to be a vmap around a layer.
    """
    n, notes = jax.tree.leaves(args[1])[0].shape[0], Notes(maps=maps)
    layers: Any = named_layers(cost.network.layer.layers, notes)
    whole = replace(layers, layer=replace(cost.network.layer, layers=layers.layer))  # the network itself is a step too

    def run(theta: Any, x: Any, y: Any) -> tuple[Any, Any]:
        params = cost.layout.unflatten(theta)
        ones = jnp.ones(n, wide_dtype(whole.inner_dtype(params)))
        values, _, readings = cost.induction(params, None, x, y, ones, readers(params, read), context, layer=whole)
        at_loss = lambda leaf: Leaf(leaf.pair, "loss") if isinstance(leaf, Leaf) and not leaf.owner else leaf
        return values, list(map(at_loss, cost.layout.treedef.flatten_up_to(readings)))

    program, shapes = jax.make_jaxpr(run, return_shape=True)(*args)
    try:
        names = lineage(program)
    except Hidden as hidden:
        name, kind = hidden.args
        raise InputError(
            f"layer {notes.calls[name.number].layer.path}: its numbers can't be recorded, because a container runs it "
            f"inside {kind}. Write a loop as lax.scan, or record the network with that layer by itself."
        ) from hidden
    if not maps and any(met.shape != notes.calls[met.name.number].shape(met.name) for met in names):
        return _traced(cost, args, context, read, maps=True)
    return program, shapes, _calls(names, notes.calls)


# -- from names to steps ----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Call:
    """A call of a layer's backward in the program, inside the call `parent`: the names that it gave, part by part.

    It is run once in each turn of its `loops` and each place of its `maps`, the sizes of the vmaps around it: `Turns`
    says which, by the loop, and of a vmap by its number from the outermost in.
    """

    note: Note
    parent: "_Call | None"
    loops: tuple[Loop, ...]
    met: dict[str, list[NamedValue]] = field(default_factory=dict)
    maps: tuple[int, ...] = ()
    holds: bool = False  # whether there are calls in it

    @property
    def handed(self) -> list[NamedValue]:
        """The names whose values are handed out: of the network its ends; of a container not what its layers saved."""
        left_out = (*PARTS[:4], "delta_x") if self.parent is None else ("saved",) if self.holds else ()
        return [met for part in ("ran", *PARTS) if part not in left_out for met in self.met.get(part, ())]

    @property
    def runs(self) -> list[Turns]:
        """All turns of it, of a loop and of the vmaps."""
        sizes = *(loop.length for loop in self.loops), *self.maps
        return [dict(zip((*self.loops, *range(len(self.maps))), at, strict=True)) for at in np.ndindex(*sizes)]

    def key(self, turns: Turns) -> tuple[Any, ...]:
        """Which run of it is around, or beside, something in these turns."""
        return self, *(turns.get(axis, 0) for axis in (*self.loops, *range(len(self.maps))))

    def value(self, part: str, found: dict[Path, np.ndarray], turns: Turns) -> Any:
        """A part as a run of it met it, from the values that were handed out; None where it was not."""
        if part not in self.note.parts or any(met.path not in found for met in self.met.get(part, ())):
            return None

        def of(met: NamedValue) -> Any:
            axes = range(len(self.maps))[len(self.maps) - len(met.name.mapped) :]
            mapped = (i for i, there in zip(axes, met.name.mapped, strict=False) if there)
            return found[met.path][tuple(turns[axis] for axis in (*self.loops, *mapped))]

        return self.note.made(part, [of(met) for met in self.met.get(part, ())])

    def moment(self, what: str, turns: Turns) -> list[int]:
        """When it begins ("ran") or ends in a run: its place in the program, with the turns of the loops in it."""
        path, order = self.met[what][0].path, dict[Path, int]()
        for loop in self.loops:
            order[loop.path] = loop.length - 1 - turns[loop] if loop.reverse else turns[loop]
        places = ((place, order.get(path[: i + 1], 0)) for i, place in enumerate(path))
        return [*itertools.chain(*places), *(-turns[i] for i in range(len(self.maps)))]


def _calls(names: Sequence[NamedValue], notes: Sequence[Note]) -> list[_Call]:
    """All calls of backward, from the names in the order of the program: one begins, those inside follow, it ends."""
    calls: list[_Call] = []
    open: list[_Call] = []
    for met in names:
        if met.name.what == "ran":
            calls.append(_Call(notes[met.name.number], open[-1] if open else None, met.loops))
            if open:
                open[-1].holds = True
            open.append(calls[-1])
        open[-1].met.setdefault(met.name.what, []).append(met)
        open[-1].maps = max(open[-1].maps, met.name.maps, key=len)
        if met.name.what == "ended":
            open.pop()
    return calls


def _join_examples(call: _Call, found: dict[Path, np.ndarray], n: int) -> None:
    """A vmap around the call that goes over the examples, n in all, is taken away: its places together are one run."""
    arrays = [(met, found[met.path]) for met in call.handed if any(met.name.mapped)]
    depth, parts = len(call.loops), {met.name.what for met, _ in arrays}
    examples = (math.prod(a.shape[depth : depth + 2]) == n for met, a in arrays if met.name.what == "delta")
    if len(call.maps) != 1 or "delta" not in parts or "params" in parts or not all(examples):
        return
    call.maps = ()
    for met, a in arrays:
        if a.ndim > depth + 1:
            found[met.path] = a.reshape(*a.shape[:depth], -1, *a.shape[depth + 2 :])


def _steps(calls: Sequence[_Call], found: dict[Path, np.ndarray], n: int) -> tuple[Step, list[Step], list[Step]]:
    """(the whole network's step, all others in the order in which they ended, and as forward met them)."""
    made: dict[tuple[Any, ...], Step] = {}
    runs: list[tuple[_Call, Turns, Step]] = []
    for call in calls:
        _join_examples(call, found, n)
        for turns in call.runs:
            if call.value("ran", found, turns):  # it did not in a branch that was not taken
                above = None if call.parent is None else made[call.parent.key(turns)]
                layer, parts = call.note.layer, {part: call.value(part, found, turns) for part in PARTS}
                made[call.key(turns)] = Step(layer.path, layer.own, above, **parts)
                runs.append((call, turns, made[call.key(turns)]))
    (_, _, root), *runs = runs
    of = {met: call for call in calls for met in itertools.chain(*call.met.values())}
    for call, turns, step in runs:
        came = [
            (met.name.what, made.get(of[met].key(then)))
            for delta in call.met.get("delta", ())
            for met, then in origins(delta.origin, turns)
        ]
        step.came = tuple(s for what, s in came if s and s is not root and (what == "delta_x" or s is step.parent))
        step.parent = None if step.parent is root else step.parent
    when = lambda what: [step for _, _, step in sorted(runs, key=lambda run: run[0].moment(what, run[1]))]
    ended, forward = when("ended"), when("ran")[::-1]
    for path in {step.path for step in ended}:
        alike = [step for step in reversed(ended) if step.path == path]
        for turn, step in enumerate(alike):
            step.turn = turn if len(alike) > 1 else None
    return root, ended, forward
