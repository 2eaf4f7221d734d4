"""What flows from layer to layer, read off the program that forward is, with names at each layer's x and output.

A skip connection is an addition of two flows. What a container does to a single flow (reshape, scale) is not drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax
import numpy as np
from jax.extend.core import JaxprEqn

from ..layer import Context, batch_of, walk
from ..named import Named, Note, Notes, named_layers
from ..network import Network
from ..programs.calls import inner_jaxprs
from ..programs.names import entry_of
from ..programs.replay import equations, replay
from .graph import Box, Edge, Node
from .output import Graph
from .titles import same, shape_text, title_of

_JOINS = {"add": "+", "add_any": "+", "sub": "−", "mul": "×", "div": "÷", "concatenate": "concat", "dot_general": "·"}

Sources = tuple[str, ...]  # ids of the nodes that a value comes from; none for what does not come from x


@dataclass(frozen=True)
class Shown:
    """How the layer at each path is drawn; one that is not here is inside another that is drawn as one.

    `boxes`: as a box around the layers in it. `nodes`: as one node, with so many layers inside. `folded`: not at all,
    because an equal one stands for it, at that path. `names`: what it is called where layers are given by name.
    """

    boxes: set[str] = field(default_factory=set)
    nodes: dict[str, int] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def title(self, layer: Named) -> str:
        return f"{self.names[layer.path]}: {title_of(layer.own)}" if layer.path in self.names else title_of(layer.own)

    def add(self, layers: Sequence[Named], depth: int, keep: str, parent: Any) -> None:
        """Layers beside each other, in at most `depth` boxes.

        Of equal containers one after another the first stands for all, but for the one that holds the leaf `keep`.
        """
        before = dict[str, Named]()  # by the path of the one that follows
        for layer in layers:
            place, _, number = layer.path.rpartition(".")
            if not number.isdigit() and number not in (f.name for f in fields(parent)):
                self.names[layer.path] = number
            within, last = len(list(walk(layer.own))) - 1, before.get(layer.path)
            kept = any(other and keep.startswith(f"{other.path}.") for other in (layer, last))
            if last and within and not kept and same(layer.own, last.own):
                self.folded[layer.path] = self.folded.get(last.path, last.path)
            elif layer.inside and depth > 0:
                self.boxes.add(layer.path)
                self.add(layer.inside, depth - 1, keep, layer.own)
            else:
                self.nodes[layer.path] = within
            if number.isdigit():
                before[f"{place}{'.' * bool(place)}{int(number) + 1}"] = layer


class _Reader:
    """Walks a program and collects nodes, edges and boxes."""

    def __init__(self, notes: Sequence[Note], shown: Shown):
        self.notes, self.shown = notes, shown
        self.nodes: dict[str, Node] = {}
        self.edges: dict[tuple[str, str], Edge] = {}
        self.boxes: dict[str, Box] = {}
        self.box: str | None = None  # in which we are
        self.as_one: dict[int, Sources] = {}  # what a layer without a box of its own gives
        self.made: dict[str, Sources] = {}  # by path: where the flow left a container that may be repeated
        self.layers: dict[str, str] = {}  # node or box id -> the layer's path
        self.starts: dict[str, str] = {}  # a split -> the path of the container whose x it is
        self.ends: dict[str, str] = {}  # a join -> the path of the container whose output it is

    def free(self, id: str) -> str:
        while id in self.nodes or id in self.boxes:  # a layer that is called again
            id += "'"
        return id

    def add(self, id: str, label: str, kind: Any, inputs: Sources) -> str:
        id = self.free(id)
        self.nodes[id] = Node(id, label, kind, box=self.box)
        self.edges |= {(source, id): Edge(source, id) for source in inputs}
        return id

    def step(self, eqn: JaxprEqn, inputs: list[Sources], again: Callable) -> Sequence[Sources]:
        """The flows of one equation's outputs."""
        if entry := entry_of(eqn):
            number, what = entry
            return (self.enter if what == "x" else self.leave)(number, self.notes[number].layer.path, inputs)
        inner, box = inner_jaxprs(eqn), self.box
        if eqn.primitive.name == "cond":
            return [_union(flows) for flows in zip(*(again(part)(*inputs[1:]) for part in inner), strict=True)]
        if len(inner) == 1 and len(getattr(inner[0], "jaxpr", inner[0]).invars) == len(inputs):
            if eqn.primitive.name == "scan" and any(map(entry_of, equations(inner[0]))):
                self.box, times = f"{box or ''}/×{eqn.params['length']}", eqn.params["length"]
                self.boxes[self.box] = Box(self.box, f"× {times}", box, times=times)
            found = again(inner[0])(*inputs)
            self.box = box
            return found
        sources = _union(inputs)
        if len({flow for flow in inputs if flow}) > 1:  # two flows meet
            label = _JOINS.get(eqn.primitive.name, eqn.primitive.name)
            sources = (self.add(f"{box + '.' if box else ''}{label}", label, "join", sources),)
        return [sources] * len(eqn.outvars)

    def enter(self, number: int, path: str, inputs: list[Sources]) -> list[Sources]:
        """The flows in a layer, from those of its x."""
        sources, first = _union(inputs), self.shown.folded.get(path)
        if first is not None and self.made.get(first) == sources:
            id = next(id for id, drawn in self.layers.items() if drawn == first)
            self.boxes[id] = replace(self.boxes[id], times=self.boxes[id].times + 1)
            self.as_one[number] = sources
        elif first is not None or path in self.shown.nodes:
            id = self.add(path, self.label(number), "layer", sources)
            self.layers[id] = path
            self.as_one[number] = (id,)
        elif path in self.shown.boxes:
            id = self.free(path)
            self.boxes[id] = Box(id, self.shown.title(self.notes[number].layer), self.box)
            self.box, self.layers[id] = id, path
            if len(sources) == 1:  # one flow comes in: if it splits inside, the box shows where
                split = self.add(f"{id}.x", "", "split", sources)
                self.starts[split] = path
                return [(split,) if flow else () for flow in inputs]
        return [self.as_one.get(number, flow) for flow in inputs]

    def leave(self, number: int, path: str, inputs: list[Sources]) -> list[Sources]:
        """The flows behind a layer, from those of its output."""
        if number not in self.as_one and path in self.shown.boxes and self.box is not None:
            self.box = self.boxes[self.box].parent
            self.made[path] = output = _union(inputs)
            if len(output) == 1 and self.nodes[output[0]].kind == "join":
                self.ends.setdefault(output[0], path)
        return [self.as_one.get(number, flow) for flow in inputs]

    def label(self, number: int) -> str:
        note = self.notes[number]
        parameters = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(note.parts["params"]))
        inside = self.shown.nodes.get(note.layer.path, 0)
        lines = [self.shown.title(note.layer), f"{shape_text(note.parts['x'])} → {shape_text(note.parts['output'])}"]
        lines += [f"{parameters:,} parameters"] * bool(parameters)
        lines += [f"{inside:,} layer{'s' * (inside > 1)} inside"] * bool(inside)
        return "\n".join(line.replace("$", r"\$") for line in lines)


def _union(flows: Sequence[Sources]) -> Sources:
    return tuple(dict.fromkeys(id for flow in flows for id in flow))


@dataclass(frozen=True)
class Drawing:
    """A network's forward as a graph, and what stands for which layer in it. `output`: ids of the nodes it ends in.

    `layers`, `starts`, `ends`: the path of a layer by the id of its node or box; of the container whose x a split is,
    whose output a join is. `folded`: paths of layers that are not drawn, and of the equal ones that stand for them.
    """

    graph: Graph
    output: Sources
    layers: dict[str, str]
    starts: dict[str, str]
    ends: dict[str, str]
    folded: dict[str, str]

    def drawn(self, path: str) -> str:
        """The path of what is drawn for the layer (or leaf) at `path`: its own, unless an equal one stands for it."""
        for place, first in self.folded.items():
            if path == place or path.startswith(f"{place}."):
                return first + path.removeprefix(place)
        return path

    def holder(self, leaf: str) -> str:
        """The id of the node that holds a leaf of this name; empty if none does."""
        leaf = self.drawn(leaf)
        fitting = [id for id, path in self.layers.items() if leaf.startswith(f"{path}.")]
        found = max(fitting, key=lambda id: len(self.layers[id]), default="")
        boxes = {box.id: box for box in self.graph.boxes}
        if found in boxes:  # not inside one child by name: into what the container does itself, or its first layer
            nodes = self.graph.nodes
            joins = [node.id for node in nodes if node.kind == "join" and node.box == found]
            inside = [node.id for node in nodes if node.kind == "layer" and found in boxes_around(node.box, boxes)]
            found = next(iter(joins + inside), "")
        return found


def of_layers(net: Network, title: str, depth: int, keep: str = "") -> Drawing:
    """The program that a network's forward is, the layer with the leaf `keep` drawn by itself."""
    notes = Notes(forward=True)
    network, shown = named_layers(net.layer.layers, notes), Shown()
    shown.add(network.inside, depth, keep, network.own)
    params, x = net.params_spec, batch_of(net.input)
    program = jax.make_jaxpr(lambda params, x: network.layer.forward(params, x, Context())[0])(params, x)
    reader = _Reader(notes.calls, shown)
    reader.nodes["x"] = Node("x", f"$x$\n{shape_text(x)}", "input", fixed=True)
    flows = [()] * len(jax.tree.leaves(params)) + [("x",)] * len(jax.tree.leaves(x))
    output = _union(replay(program, reader.step, lambda value: value if isinstance(value, tuple) else ())(*flows))
    graph = _tidied(reader, output, title)
    there = {node.id for node in graph.nodes} | {box.id for box in graph.boxes}
    layers = {id: path for id, path in reader.layers.items() if id in there}
    folded = {path: first for path, first in shown.folded.items() if path not in there}
    return Drawing(graph, output, layers, reader.starts, reader.ends, folded)


def boxes_around(box: str | None, boxes: dict[str, Box]) -> list[str]:
    """A box and those boxes_around it, the innermost first."""
    return [] if box is None else [box, *boxes_around(boxes[box].parent, boxes)]


def _tidied(reader: _Reader, output: Sources, title: str) -> Graph:
    """Only what the output depends on, and no splits that do not split."""
    nodes, edges = dict(reader.nodes), dict(reader.edges)
    into: dict[str, list[str]] = {}
    for source, target in edges:
        into.setdefault(target, []).append(source)
    needed, stack = {"x"}, list(output)
    while stack:
        id = stack.pop()
        if id not in needed:
            needed.add(id)
            stack += into.get(id, [])
    nodes = {id: node for id, node in nodes.items() if id in needed}
    edges = {ends: edge for ends, edge in edges.items() if set(ends) <= needed}
    for id in [id for id, node in nodes.items() if node.kind == "split"]:
        sources, targets = [s for s, t in edges if t == id], [t for s, t in edges if s == id]
        if len(targets) < 2 and id not in output:
            edges = {ends: edge for ends, edge in edges.items() if id not in ends}
            edges |= {(s, t): Edge(s, t) for s in sources for t in targets}
            del nodes[id]
    used = {box for node in nodes.values() for box in boxes_around(node.box, reader.boxes)}
    boxes = [box for box in reader.boxes.values() if box.id in used]
    boxes = [
        replace(box, label=f"{box.label}  × {box.times}") if box.times > 1 and box.id in reader.layers else box
        for box in boxes
    ]  # a loop's box says so already
    return Graph(tuple(nodes.values()), tuple(edges.values()), tuple(boxes), title, "down")
