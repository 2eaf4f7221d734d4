"""What flows from layer to layer, found by looking at the program that forward is, with its layers marked.

In the jaxpr of the network's forward each layer is one call, a container's call holds its children's, and what flows
between them can be read off: a skip connection is an addition of two flows. What a container does to a single flow
(reshape, scale) is not drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from ..layer import Context, batch_of
from ..network import Network
from .graph import Box, Edge, Graph, Node
from .marks import MARK, Note, mark, shape_text, title_of

_JOINS = {"add": "+", "add_any": "+", "sub": "−", "mul": "×", "div": "÷", "concatenate": "concat", "dot_general": "·"}

Flow = tuple[str, ...]  # ids of the nodes that a value comes from; none for what does not come from x


class _Reader:
    """Walks a jaxpr and collects nodes, edges and boxes."""

    def __init__(self, notes: dict[int, Note]):
        self.notes = notes
        self.nodes: dict[str, Node] = {}
        self.edges: dict[tuple[str, str], Edge] = {}
        self.boxes: dict[str, Box] = {}
        self.made: dict[int, Flow] = {}  # where the flow left a layer that may be repeated
        self.of_note: dict[str, int] = {}  # node or box id -> note
        self.starts: dict[str, str] = {}  # a split -> the path of the container whose x it is
        self.ends: dict[str, str] = {}  # a join -> the path of the container whose output it is

    def add(self, id: str, label: str, kind: Any, box: str | None, inputs: Flow, **settings: Any) -> str:
        while id in self.nodes or id in self.boxes:  # a layer that is called again
            id += "'"
        self.nodes[id] = Node(id, label, kind, box=box, **settings)
        for source in inputs:
            self.edges[source, id] = Edge(source, id)
        return id

    def read(self, jaxpr: Any, flows: Sequence[Flow], box: str | None) -> list[Flow]:
        """The flows of a jaxpr's outputs from those of its inputs."""
        jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
        env: dict[Any, Flow] = dict(zip(jaxpr.invars, flows, strict=True))
        look = lambda v: () if isinstance(v, Literal) else env.get(v, ())
        for eqn in jaxpr.eqns:
            inputs = [look(v) for v in eqn.invars]
            env.update(zip(eqn.outvars, self.step(eqn, inputs, box), strict=True))
        return [look(v) for v in jaxpr.outvars]

    def step(self, eqn: Any, inputs: list[Flow], box: str | None) -> list[Flow]:
        """The flows of one equation's outputs."""
        name = str(eqn.params.get("name", ""))
        if name.startswith(MARK):
            return self.layer(int(name.removeprefix(MARK)), eqn, inputs, box)
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if isinstance(inner, (Jaxpr, ClosedJaxpr)) and len(_invars(inner)) == len(inputs):
            if eqn.primitive.name == "scan" and _marks(inner):
                id = f"{box or ''}/×{eqn.params['length']}"
                self.boxes[id] = Box(id, f"× {eqn.params['length']}", box, times=eqn.params["length"])
                box = id
            return self.read(inner, inputs, box)
        sources = _union(inputs)
        flowing = {flow for flow in inputs if flow}
        if len(flowing) > 1:  # two flows meet
            label = _JOINS.get(eqn.primitive.name, eqn.primitive.name)
            sources = (self.add(f"{box + '.' if box else ''}{label}", label, "join", box, sources),)
        return [sources] * len(eqn.outvars)

    def layer(self, number: int, eqn: Any, inputs: list[Flow], box: str | None) -> list[Flow]:
        note = self.notes[number]
        sources = _union(inputs)
        if note.repeats is not None and self.made.get(note.repeats) == sources:
            first = next(id for id, n in self.of_note.items() if n == note.repeats)
            self.boxes[first] = replace(self.boxes[first], times=self.boxes[first].times + 1)
            return [sources] * len(eqn.outvars)
        if not note.container:
            lines = [title_of(note.layer), note.shapes]
            lines += [f"{note.parameters:,} parameters"] * bool(note.parameters)
            lines += [f"{note.inside:,} layer{'s' * (note.inside > 1)} inside"] * bool(note.inside)
            id = self.add(note.path, "\n".join(line.replace("$", r"\$") for line in lines), "layer", box, sources)
            self.of_note[id] = number
            return [(id,)] * len(eqn.outvars)
        id = note.path
        while id in self.boxes or id in self.nodes:
            id += "'"
        self.boxes[id] = Box(id, title_of(note.layer), box)
        self.of_note[id] = number
        if len(sources) == 1:  # one flow comes in: if it splits inside, the box shows where
            split = self.add(f"{id}.x", "", "split", id, sources)
            self.starts[split] = note.path
            inputs = [(split,) if flow else () for flow in inputs]
        found = self.read(eqn.params["jaxpr"], inputs, id)
        self.made[number] = output = _union(found[: note.outputs])
        if len(output) == 1 and self.nodes[output[0]].kind == "join":
            self.ends.setdefault(output[0], note.path)
        return found


def _union(flows: Sequence[Flow]) -> Flow:
    return tuple(dict.fromkeys(id for flow in flows for id in flow))


def _invars(jaxpr: Any) -> Any:
    return jaxpr.jaxpr.invars if isinstance(jaxpr, ClosedJaxpr) else jaxpr.invars


def _marks(jaxpr: Any) -> bool:
    """Whether there is a marked layer somewhere in a jaxpr."""
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    for eqn in jaxpr.eqns:
        if str(eqn.params.get("name", "")).startswith(MARK):
            return True
        if any(_marks(p) for p in eqn.params.values() if isinstance(p, (Jaxpr, ClosedJaxpr))):
            return True
    return False


@dataclass(frozen=True)
class Program:
    """A network's forward as a graph, and what stands for which layer in it. `output`: ids of the nodes it ends in.

    `layers`, `starts`, `ends`: the path of a layer by the id of its node or box; of the container whose x a split is,
    whose output a join is. `folded`: paths of layers that are not drawn, and of the equal ones that stand for them.
    """

    graph: Graph
    output: Flow
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
            inside = [node.id for node in nodes if node.kind == "layer" and found in around(node.box, boxes)]
            found = next(iter(joins + inside), "")
        return found


def of_layers(net: Network, title: str, depth: int, keep: str = "") -> Program:
    """The program that a network's forward is, the layer with the leaf `keep` drawn by itself."""
    notes: dict[int, Note] = {}
    marked = mark(net.layer.layers, (), notes, depth + 1, keep)
    theta = jax.ShapeDtypeStruct((net.layout.size,), net.dtype)
    params, x = jax.eval_shape(net.layout.unflatten, theta), batch_of(net.input)
    closed = jax.make_jaxpr(lambda params, x: marked.layer.forward(params, x, Context())[0])(params, x)
    reader = _Reader(notes)
    reader.nodes["x"] = Node("x", f"$x$\n{shape_text(x)}", "input", fixed=True)
    flows = [()] * len(jax.tree.leaves(params)) + [("x",)] * len(jax.tree.leaves(x))
    output = _union(reader.read(closed, flows, None))
    graph = _tidied(reader, output, title)
    there = {node.id for node in graph.nodes} | {box.id for box in graph.boxes}
    layers = {id: notes[n].path for id, n in reader.of_note.items() if id in there}
    folded = {n.path: notes[n.repeats].path for n in notes.values() if n.repeats is not None and n.path not in there}
    return Program(graph, output, layers, reader.starts, reader.ends, folded)


def around(box: str | None, boxes: dict[str, Box]) -> list[str]:
    """A box and those around it, the innermost first."""
    return [] if box is None else [box, *around(boxes[box].parent, boxes)]


def _tidied(reader: _Reader, output: Flow, title: str) -> Graph:
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
    used = {box for node in nodes.values() for box in around(node.box, reader.boxes)}
    boxes = [box for box in reader.boxes.values() if box.id in used]
    boxes = [
        replace(box, label=f"{box.label}  × {box.times}") if box.times > 1 and box.id in reader.of_note else box
        for box in boxes
    ]  # a loop's box says so already
    return Graph(tuple(nodes.values()), tuple(edges.values()), tuple(boxes), title, "down")
