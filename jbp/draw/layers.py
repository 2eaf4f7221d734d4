"""The three graphs of any network, at the level of layers."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..layer import InputError
from ..network import Network
from ..reader import read_gradient
from ..record import Record, run
from ..reverse import Cost
from .graph import Edge, Node, highlighted, math_label, number_text
from .output import Graph
from .program import Sources, of_layers
from .record import flat, recorded
from .titles import shape_text


def usual_by_layer(net: Network, theta: Any, depth: int) -> Graph:
    """Layers, and what flows between them; given θ, each layer's weights as one value (their array)."""
    program = of_layers(net, "The network, layer by layer", depth)
    graph = program.graph
    if theta is None:
        return graph
    held: dict[str, list[np.ndarray]] = {}
    for name, leaf in zip(net.layout.names, net.layout.leaves(np.asarray(theta)), strict=True):
        held.setdefault(program.holder(name), []).append(leaf.ravel())
    nodes = tuple(
        replace(node, value=np.concatenate(held[node.id])) if node.kind == "layer" and node.id in held else node
        for node in graph.nodes
    )
    return replace(graph, nodes=nodes)


@dataclass(frozen=True, eq=False)
class Known:
    """The numbers of one example: θ, ∇C, C, x, y, and the record of the run unless a layer can't be recorded."""

    theta: np.ndarray
    gradient: np.ndarray
    C: float
    x: Any
    y: Any
    record: Record | None


def known(cost: Cost, theta: Any, x: Any, y: Any) -> Known:
    """The numbers at one example, x `[1, *input]` and its y: the record's own, so that no large program is compiled."""
    try:
        record = run(cost, theta, x, y, read=read_gradient)
    except InputError:  # a container runs a layer where its numbers can't be seen
        C, gradient = cost.value_and_grad(theta, x, y)
        return Known(np.asarray(theta), np.asarray(gradient), float(C), x, y, None)
    leaves = [np.ravel(np.asarray(gradient)) for gradient in record.leaves.values()]
    gradient = np.concatenate([np.zeros(0, np.asarray(theta).dtype), *leaves])
    return Known(np.asarray(theta), gradient, float(record.values[0]), x, y, record)


def surgery(net: Network, numbers: Known | None, depth: int, highlight: str | None) -> Graph:
    """The parameters of each layer as a node of their own, y and C; given numbers, their values and ∂C/∂ of each."""
    followed = net.layout.locate(net.layout.index(highlight))[0] if highlight else ""
    program = of_layers(net, "The computational graph, layer by layer", depth, keep=followed)
    graph, holder = program.graph, program.holder
    theta, gradient = (None, None) if numbers is None else (numbers.theta, numbers.gradient)
    if numbers is not None and numbers.record is not None:
        graph = recorded(program, numbers.record)
    nodes, edges = list(graph.nodes), list(graph.edges)
    nodes[0] = replace(nodes[0], value=None if numbers is None else flat([numbers.x]))
    boxes = {node.id: node.box for node in nodes}
    groups: dict[str, list[int]] = {}
    for leaf, name in enumerate(net.layout.names):
        if (at := holder(name)) and net.layout.sizes[leaf]:
            groups.setdefault(at, []).append(leaf)
    for at, leaves in groups.items():
        names = list(dict.fromkeys(net.layout.names[leaf].rpartition(".")[2] for leaf in leaves))
        short = ", ".join(names[:4]) + ", …" * (len(names) > 4)
        count = sum(net.layout.sizes[leaf] for leaf in leaves)

        def pick(vector: Any, leaves: list[int] = leaves) -> Any:
            if vector is None:
                return None
            cut = net.layout.leaves(vector)
            return np.concatenate([cut[leaf].ravel() for leaf in leaves])

        node = Node(f"{at}: {short}", f"{short}\n{count:,}", "parameters", pick(theta), pick(gradient),
                    count=count, box=boxes[at])  # fmt: skip
        nodes.append(node)
        edges.append(Edge(node.id, at, delta=node.derivative))
    if highlight:
        at, i = holder(followed), net.layout.index(highlight)
        value, slope = (None if v is None else float(v[i]) for v in (theta, gradient))
        edges += [Edge(highlight, at, delta=slope)] * bool(at)
        nodes.append(Node(highlight, math_label(highlight), "weight", value, slope, box=boxes.get(at)))
    return _ended(replace(graph, nodes=tuple(nodes), edges=tuple(edges)), program.output, numbers, highlight)


def single_by_layer(net: Network, numbers: Known | None, depth: int, name: str) -> Graph:
    """One coordinate as a node; all others folded into their layers."""
    graph = surgery(net, numbers, depth, name)
    nodes = tuple(node for node in graph.nodes if node.kind != "parameters")
    kept = {node.id for node in nodes}
    edges = tuple(edge for edge in graph.edges if edge.source in kept)
    return replace(graph, nodes=nodes, edges=edges, title=f"The graph of {name}, layer by layer")


def _ended(graph: Graph, output: Sources, numbers: Known | None, highlight: str | None) -> Graph:
    """With y and C, and what depends on `highlight` marked."""
    y, C = (None, None) if numbers is None else (numbers.y, numbers.C)
    one = y is not None and np.size(y) == 1
    shown = "" if y is None else f"\n{number_text(np.asarray(y).item())}" if one else f"\n{shape_text(y)}"
    nodes = [*graph.nodes, Node("y", f"$y${shown}", "target", None if one else flat([y]), fixed=True)]
    nodes.append(Node("C", "$C$", "cost", C, None if C is None else 1.0))
    seed = numbers and numbers.record and flat([numbers.record.delta])
    edges = [*graph.edges, *(Edge(id, "C", delta=seed if len(output) == 1 else None) for id in output), Edge("y", "C")]
    return replace(graph, **highlighted(nodes, edges, highlight))
