"""The numbers of one recorded run, put on the nodes and edges of a graph of layers.

    node        value: the layer's output a, derivative: δ = ∂C/∂a. A join where a container ends has the container's
                own; a split its x, and ∂C/∂x.
    edge        δ as it comes back along it. Where a value goes to several places, these add up to ∂C/∂ of it; if a
                container does more between than to add, and they do not, they are left out.

A node that stands for several steps (equal layers drawn once, turns of a loop) has the numbers of all, flat.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..record import Record, Step
from .graph import Edge, Node
from .output import Graph
from .program import Drawing, boxes_around


def recorded(program: Drawing, record: Record) -> Graph:
    """The program's graph with the numbers of a record of one example."""
    steps: dict[str, list[Step]] = {}
    for step in record.forward:
        steps.setdefault(program.drawn(step.path), []).append(step)
    calls: dict[str, list[str]] = {}  # the nodes of a layer that is called more than once
    for id, path in program.layers.items():
        calls.setdefault(path, []).append(id)

    def of(id: str, path: str) -> list[Step]:
        ids, found = calls.get(path, [id]), steps.get(path, [])
        if len(ids) < 2:
            return found
        return [found[ids.index(id)]] if id in ids and len(ids) == len(found) else []

    layers = {id: of(id, path) for id, path in program.layers.items()}
    starts = {id: of(id, path) for id, path in program.starts.items()}
    ends = {id: of(id, path) for id, path in program.ends.items()}

    def numbered(node: Node) -> Node:
        if node.id in starts:
            value, derivative = [s.x for s in starts[node.id]], [s.delta_x for s in starts[node.id]]
        else:
            found = layers.get(node.id, ends.get(node.id, []))
            value, derivative = [s.output for s in found], [s.delta for s in found]
        return replace(node, value=flat(value), derivative=flat(derivative))

    graph = program.graph
    graph = replace(graph, nodes=tuple(map(numbered, graph.nodes)))
    into = Counter(edge.target for edge in graph.edges)

    boxes = {box.id: box for box in graph.boxes}

    def repeated(node: Node) -> list[str]:
        return [id for id in boxes_around(node.box, boxes) if boxes[id].times > 1]

    def along(edge: Edge) -> Any:
        """As the source has it, if it goes nowhere else; or as the target hands it on; to be checked below."""
        source, target = graph.node(edge.source), graph.node(edge.target)
        leaves = [id for id in repeated(source) if id not in repeated(target)]  # of several, only the last goes on
        enters = [id for id in repeated(target) if id not in repeated(source)]  # to several, it goes to the first
        if len(graph.out[edge.source]) == 1 and source.derivative is not None and not leaves:
            return source.derivative
        if enters or (into[target.id] > 1 and target.kind == "layer"):
            return None
        if target.kind == "layer":
            return flat([s.delta_x for s in layers[target.id]])
        return target.derivative if target.kind == "split" or (source.derivative is not None and not leaves) else None

    found = {(edge.source, edge.target): along(edge) for edge in graph.edges}
    for id, edges in graph.out.items():  # what a container does between, such as to scale, would show here
        parts, total = [found[edge.source, edge.target] for edge in edges], graph.node(id).derivative
        if len(parts) > 1 and total is not None and not _add_up(parts, total):
            found |= {(edge.source, edge.target): None for edge in edges}
    return replace(graph, edges=tuple(replace(edge, delta=found[edge.source, edge.target]) for edge in graph.edges))


def _add_up(parts: Sequence[Any], total: np.ndarray) -> bool:
    """Whether the parts have the total as their sum, up to rounding."""
    if any(part is None or part.shape != total.shape for part in parts):
        return False
    return bool(np.abs(np.sum(parts, axis=0) - total).max(initial=0) <= 1e-2 * np.abs(total).max(initial=0))


def flat(trees: Sequence[Any]) -> np.ndarray | None:
    """The numbers of the one example: as they are if they are one array, else all of them, flat. None if none are."""
    arrays = [np.asarray(leaf)[0] for leaf in jax.tree.leaves(trees)]
    arrays = [array.astype(np.float64) for array in arrays if jnp.issubdtype(array.dtype, jnp.floating)]
    if len(arrays) < 2:
        return arrays[0] if arrays else None
    return np.concatenate([array.ravel() for array in arrays])
