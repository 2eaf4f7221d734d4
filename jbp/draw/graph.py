"""A picture before it is drawn: nodes, edges and boxes, with the numbers that stand on them.

The chain rule on a graph: ∂C/∂(a node) is the sum, over all paths from the node to C, of the products of the partial
derivatives on the path's edges. `Plan.paths` lists the paths; `Plan.derivative` is the same sum by induction from C
backwards, which meets each edge once.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ..layer import InputError

Kind = Literal[
    "input", "neuron", "sum", "weight", "bias", "rest", "target", "cost", "layer", "join", "split", "parameters"
]


@dataclass(frozen=True, eq=False)
class Node:
    """One variable, or `count` of them that are drawn as one (⋮), or a layer.

    `id`: the text's symbol, as in `w^2_{3←7}`, or a layer's path. `label`: what is written, lines of text and mathtext.
    `value`: a float, for several variables an array; `derivative`: ∂C/∂value, of the same shape; None if unknown.
    `fixed`: does not change while C is differentiated: x and y. `box`: id of the box it lies in. `place`: its column,
    then where in the column; empty where the order of computation decides.
    """

    id: str
    label: str
    kind: Kind
    value: Any = None
    derivative: Any = None
    fixed: bool = False
    count: int = 1
    box: str | None = None
    place: tuple[int | float, ...] = ()
    highlighted: bool = False


@dataclass(frozen=True, eq=False)
class Edge:
    """`source` goes into the computation of `target`.

    `weight`: on the usual graph, where weights are on edges. `partial`: ∂target/∂source, a float, or where one of them
    stands for several variables a Jacobian `[target.count, source.count]`; None if unknown. `delta`: at the level of
    layers, the δ that comes back along it: what this use of the source adds to ∂C/∂source.
    """

    source: str
    target: str
    weight: float | None = None
    partial: Any = None
    highlighted: bool = False
    delta: Any = None


@dataclass(frozen=True)
class Box:
    """A frame around nodes and other boxes, or (`frame=False`) the caption of a column. `times`: repetitions."""

    id: str
    label: str
    parent: str | None = None
    times: int = 1
    frame: bool = True


@dataclass(frozen=True, eq=False)
class Plan:
    """Nodes, edges and boxes, and the chain rule on them. Neurons stand from left to right, layers go down."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    boxes: tuple[Box, ...] = ()
    title: str = ""
    direction: Literal["right", "down"] = "right"
    _by_id: dict[str, Node] = field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "_by_id", {node.id: node for node in self.nodes})

    def node(self, id: str) -> Node:
        """The node of that id. Raises `InputError` if it is not drawn."""
        id = id.replace("<-", "←")
        if id not in self._by_id:
            some = ", ".join([n.id for n in self.nodes][:8])
            raise InputError(
                f"Graph.node: {id!r} is not drawn; there are {some}, … Draw with a larger max_neurons or max_layers."
            )
        return self._by_id[id]

    def edge(self, source: str, target: str) -> Edge:
        """The edge between two nodes. Raises `InputError` if there is none."""
        ends = self.node(source).id, self.node(target).id
        for edge in self.edges:
            if (edge.source, edge.target) == ends:
                return edge
        raise InputError(f"Graph.edge: no edge from {source} to {target}. Edges go in the order of computation.")

    # -- the chain rule on the graph --------------------------------------------------------------------------------

    @cached_property
    def out(self) -> dict[str, list[Edge]]:
        """The edges out of each node."""
        out: dict[str, list[Edge]] = {node.id: [] for node in self.nodes}
        for edge in self.edges:
            out[edge.source].append(edge)
        return out

    def derivative(self, source: str, target: str = "C") -> Any:
        """∂target/∂source by induction: from each node's successors. A float, or `[count]` for several variables."""
        known: dict[str, np.ndarray] = {}

        def row(id: str) -> np.ndarray:  # [target.count, count of id]
            if id not in known:
                if id == target:  # base case
                    known[id] = np.eye(self.node(id).count)
                else:  # inductive step
                    known[id] = np.zeros((self.node(target).count, self.node(id).count))
                    for edge in self.out[id]:
                        after = row(edge.target)
                        if after.any():
                            known[id] = known[id] + after @ _jacobian(edge)
            return known[id]

        found = row(self.node(source).id)
        return float(found[0, 0]) if found.size == 1 else found.squeeze(0)

    def paths(self, source: str, target: str = "C") -> Iterator[tuple[tuple[str, ...], Any]]:
        """(ids, product of the partials on its edges) of every path. There are many in a deep network: it is lazy."""
        start = self.node(source)
        stack: list[tuple[tuple[str, ...], np.ndarray]] = [((start.id,), np.eye(start.count))]
        while stack:
            ids, product = stack.pop()
            if ids[-1] == target:
                yield ids, float(product[0, 0]) if product.size == 1 else product.squeeze(0)
            for edge in reversed(self.out[ids[-1]]):
                stack.append(((*ids, edge.target), _jacobian(edge) @ product))


def highlighted(nodes: Sequence[Node], edges: Sequence[Edge], id: str | None) -> dict[str, Any]:
    """The nodes and edges, those marked that depend on the node of that id."""
    after, more = set[str](), {id} if id else set()
    while more:
        after |= more
        more = {edge.target for edge in edges if edge.source in after} - after
    return {
        "nodes": tuple(replace(node, highlighted=node.id in after) for node in nodes),
        "edges": tuple(replace(edge, highlighted=edge.source in after) for edge in edges),
    }


def _jacobian(edge: Edge) -> np.ndarray:
    if edge.partial is None:
        raise InputError(
            f"Graph: the edge {edge.source} → {edge.target} has no partial derivative. "
            "Give theta, x and y when drawing, and begin at a weight or bias drawn by itself."
        )
    return np.atleast_2d(edge.partial)


# -- names and numbers ------------------------------------------------------------------------------------------------

_SYMBOL = re.compile(r"([a-zC])(?:\^\{?(\d+)\}?)?(?:_\{?([\d…]+)(?:←(\d+))?\}?)?")


def symbol(letter: str, l: int | None, j: range | int | None = None) -> str:
    """`a^2_3`, `x_3`, or for several `a^2_{3…7}`."""
    upper = "" if l is None else f"^{l}" if l < 10 else f"^{{{l}}}"
    if j is None:
        return letter + upper
    first, last = (j, j) if isinstance(j, int) else (j[0], j[-1])
    lower = f"{first}" if first == last else f"{first}…{last}"
    return f"{letter}{upper}_{lower}" if lower.isdigit() and first < 10 else f"{letter}{upper}_{{{lower}}}"


def split_symbol(name: str) -> tuple[str, str, str] | None:
    """(letter, upper, lower index) of a symbol, or None for other names."""
    found = _SYMBOL.fullmatch(name)
    if not found:
        return None
    letter, upper, j, k = found.groups()
    return letter, upper or "", f"{j}←{k}" if k else j or ""


def math_label(name: str) -> str:
    """A symbol as mathtext: `$w^{2}_{3\\leftarrow 7}$`."""
    parts = split_symbol(name)
    if parts is None:
        return name.replace("$", r"\$")
    letter, upper, lower = parts
    upper, lower = f"^{{{upper}}}" * bool(upper), f"_{{{lower}}}" * bool(lower)
    return f"${letter}{upper}{lower}$".replace("←", r"\leftarrow ").replace("…", r"\ldots ")


def number_text(value: Any) -> str:
    """Three digits, with the signs of mathematics: 0.0123, −1.5, 3.2·10⁻⁷. An array: its root mean square."""
    if value is None:
        return ""
    if np.ndim(value):
        return f"rms {number_text(math.sqrt(float(np.mean(np.square(np.asarray(value, np.float64))))))}"
    text = f"{float(value) + 0.0:.3g}"  # −0.0 + 0.0 is 0.0
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}·10{str(int(exponent)).translate(_UPPER)}"
    return text.replace("-", "−")


def value_text(node: Node) -> str:
    """The value of a node; of a layer, its output's (where ∂C/∂ of it is known too) or that of its weights."""
    if node.value is None:
        return ""
    what = "" if node.kind != "layer" else "weights " if node.derivative is None else "output "
    return what + number_text(node.value)


_UPPER = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
