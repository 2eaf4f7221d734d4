"""The graphs after surgery of a plain chain of dense layers, neuron by neuron: weights and biases are nodes.

    layer 1       a^1 = x                       fixed
    layer ℓ       z^ℓ = W^ℓ a^{ℓ-1} + b^ℓ,   a^ℓ = g(z^ℓ)
    cost          C(a^L, y)                     y fixed

Where g acts on each element alone there is one node for a neuron, as in the text: it receives the weights and the
activations before, and does the multiplication, the sum and g. Otherwise (softmax) the sums z are nodes too.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from ..chain import Chain
from ..network import Network
from .graph import Box, Edge, Node, highlighted, math_label, symbol
from .neurons import chain_name, groups, letter_of, neuron, piece, shown_rows
from .numbers import Numbers
from .output import Graph
from .titles import title_of


def _given(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array


class _Surgery:
    """Collects the nodes and edges of a computational graph, column by column."""

    def __init__(self, chain: Chain, numbers: Numbers | None, most: int, keep: dict[int, list[int]]):
        self.chain, self.numbers, self.most, self.keep = chain, numbers, most, keep
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []
        self.boxes: list[Box] = []
        self.column = 0

    def of(self, name: str, l: int) -> Any:
        """Values of layer ℓ, or None without numbers."""
        return None if self.numbers is None else getattr(self.numbers, name)[l - (1 if name == "a" else 2)]

    def g(self, l: int) -> str:
        return ", ".join(map(title_of, self.chain.behind[l - 2]))

    def caption(self, label: str) -> str:
        self.boxes.append(Box(f"column {self.column}", label, frame=False))
        return f"column {self.column}"

    def rows(self, width: int, l: int) -> list[range]:
        return shown_rows(width, self.most, self.keep.get(l, ()))

    def add(self, node: Node) -> Node:
        self.nodes.append(node)
        return node

    def first(self, only: int | None = None, l: int = 1) -> list[tuple[range, Node]]:
        """The column of x, or of a^l where everything before is folded away."""
        letter, upper = letter_of(self.chain, l)
        given = [range(only, only + 1)] if only is not None else self.rows(self.chain.widths[l - 1], l)
        box = self.caption("input, fixed" if letter == "x" else f"layer {l}, fixed")
        return self.stacked(letter, upper, given, self.of("a", l), kind="input", fixed=True, box=box)

    def stacked(self, letter: str, upper: int | None, given: list[range], values: Any, **settings: Any) -> list:
        """Rows of neurons as a column: (row, node)."""
        place = lambda at: (self.column, at)
        made = (neuron(letter, upper, row, values, place=place(at), **settings) for at, row in enumerate(given))
        return [(row, self.add(node)) for row, node in zip(given, made, strict=True)]

    def neurons(self, l: int, given: list[range] | None = None, folded: bool = False) -> list[tuple[range, Node]]:
        """A column of neurons: a^ℓ where g is element-wise or layers before are folded away, else the sums z^ℓ."""
        letter = "a" if self.chain.elementwise[l - 2] or folded else "z"
        kind: Any = "neuron" if letter == "a" else "sum"
        box = self.caption(f"layer {l}" + (", sums" if letter == "z" else f"\n{self.g(l)}"))
        width = (self.chain.widths[l - 1 :] if letter == "a" else self.chain.sums[l - 2 :])[0]
        given = self.rows(width, l) if given is None else given
        return self.stacked(letter, l, given, self.of(letter, l), kind=kind, box=box)

    def slope(self, l: int) -> np.ndarray | None:
        """∂(node of layer ℓ)/∂z^ℓ: the diagonal where g is element-wise, else 1 for the sums."""
        if self.numbers is None:
            return None
        z = self.numbers.z[l - 2]
        return self.numbers.slope[l - 2] if self.chain.elementwise[l - 2] else np.ones_like(z)

    def carry(self, group: range, before: list, after: list) -> None:
        """Edges a^{ℓ-1}_k → neuron j: ∂ = slope_j · w_{j←k}; through several layers, their product."""
        jacobian = None
        if self.numbers is not None:
            for l in group:
                s, w = _given(self.slope(l) if len(group) == 1 else self.numbers.slope[l - 2]), self.of("w", l)
                step = s[:, None] * w if s.ndim == 1 else s @ w
                jacobian = step if jacobian is None else step @ jacobian
        for j, node in after:
            for k, source in before:
                self.edges.append(Edge(source.id, node.id, partial=piece(jacobian, j, k)))

    def layers(self, first: int, before: list, most: int) -> list[tuple[range, Node]]:
        """Column after column from layer `first` to the output, all weights folded into the edges."""
        L = len(self.chain.widths)
        for group in groups(first, L, most) if first <= L else ():
            l = group[-1]
            self.column += 2
            after = self.neurons(l, folded=len(group) > 1)
            self.carry(group, before, after)
            before = after if self.chain.elementwise[l - 2] or len(group) > 1 else self.behind(l, after)
        return before

    def folded(self, group: range, count: int, before: list) -> list[tuple[range, Node]]:
        """The column of the last layer of several, all their weights in one node."""
        what = f"$\\cdots$\n{len(group)} more layers\n{count:,} parameters"
        box, column = self.caption(f"layers {group[0]} … {group[-1]}"), self.column
        rest = self.add(Node(f"rest of layer {group[-1]}", what, "rest", count=count, box=box, place=(column, 0, -2)))
        self.column += 1
        after = self.neurons(group[-1], folded=True)
        self.edges += [Edge(rest.id, node.id) for _, node in after]
        self.carry(group, before, after)
        return after

    def behind(self, l: int, sums: list) -> list[tuple[range, Node]]:
        """The column of a^ℓ behind the sums, where g is not element-wise."""
        self.column += 2
        column = self.neurons(l, folded=True)
        slope = None if self.numbers is None else self.numbers.slope[l - 2]
        for j, node in column:
            for k, source in sums:
                self.edges.append(Edge(source.id, node.id, partial=piece(slope, j, k)))
        return column

    def finish(self, outputs: list) -> None:
        """y, fixed, and C."""
        n = self.numbers
        self.column += 1
        each = n is None or np.shape(n.y) == np.shape(n.a[-1])  # else y is a label
        box = self.caption("target, fixed")
        for at, (row, node) in enumerate(outputs):
            self.edges.append(Edge(node.id, "C", partial=None if n is None else _wide(n.cost_of_a, row)))
            if each:
                outside = 1 if 2 * at >= len(outputs) else -1  # of the edge from a, so that the two do not cross
                y = neuron("y", None, row, None if n is None else n.y, kind="target", fixed=True, box=box,
                            place=(self.column, at, outside))  # fmt: skip
                of_y = None if n is None or n.cost_of_y is None else _wide(n.cost_of_y, row)
                self.edges.append(Edge(self.add(y).id, "C", partial=of_y))
        if n is not None and not each:
            y = Node("y", "$y$", "target", value=float(n.y), fixed=True, box=box, place=(self.column, -1, -1))
            self.edges.append(Edge(self.add(y).id, "C"))
        width, shown = self.chain.widths[-1], {j for row, _ in outputs for j in row}
        if others := [j for j in range(width) if j not in shown]:  # C needs them too
            of_a = (
                None if n is None else n.cost_of_a[None, others] if len(others) > 1 else float(n.cost_of_a[others[0]])
            )
            label = "all other outputs" + "\nand their y" * each
            rest = Node(
                "other outputs", label, "rest", fixed=True, count=len(others), box=box, place=(self.column, 1, 2)
            )
            self.edges.append(Edge(self.add(rest).id, "C", partial=of_a))
        self.column += 1
        value = None if n is None else n.cost
        self.add(Node("C", "$C$", "cost", value=value, box=self.caption("cost"), place=(self.column, 0)))

    def graph(self, title: str, highlight: str | None) -> Graph:
        graph = Graph(tuple(self.nodes), tuple(self.edges), tuple(self.boxes), title)
        return highlighted_graph(graph, highlight, self.numbers is not None)


def _wide(array: np.ndarray, row: range) -> Any:
    """The derivatives of C by several outputs: a row [1, count]."""
    part = piece(array, row)
    return part if isinstance(part, float) else part[None]


def highlighted_graph(graph: Graph, highlight: str | None, known: bool) -> Graph:
    """The graph with ∂C/∂ at its nodes, if the numbers are known, and the paths from `highlight` to C marked."""
    total: dict[str, np.ndarray] = {"C": np.eye(1)}  # base case; then the induction over the reversed order
    unknown: set[str] = set()
    if known:
        for node in sorted(graph.nodes, key=lambda node: node.place[0], reverse=True)[1:]:
            out = graph.out[node.id]
            if any(e.partial is None or e.target in unknown for e in out):
                unknown.add(node.id)
                continue
            parts = [total[e.target] @ np.atleast_2d(e.partial) for e in out]
            total[node.id] = np.sum(parts, axis=0)
    known_at = lambda node: node.id in total and known and not node.fixed
    nodes = [replace(node, derivative=_plain(total[node.id]) if known_at(node) else None) for node in graph.nodes]
    return replace(graph, **highlighted(nodes, graph.edges, highlight))


def _plain(row: np.ndarray) -> Any:
    return float(row.item()) if row.size == 1 else row[0]


def whole(
    net: Network, chain: Chain, numbers: Numbers | None, most: int, most_layers: int, highlight: str | None
) -> Graph:
    """Every weight and bias a node; multiplication at nodes."""
    keep = _kept(net, chain, highlight)
    build = _Surgery(chain, numbers, most, keep)
    has_bias = [f"{i}.b" in net.layout.names for i in chain.places]
    before = build.first()
    followed = [parts_of(net, chain, highlight)[0]] if highlight else []
    for group in groups(2, len(chain.widths), most_layers, followed):
        build.column += 1
        l = group[0]
        if len(group) > 1:
            count = sum(chain.sums[l - 2] * (chain.widths[l - 2] + has_bias[l - 2]) for l in group)
            before = build.folded(group, count, before)
            continue
        parameters = build.caption(f"weights{' and biases' * has_bias[l - 2]}\nof layer {l}")
        column = build.column
        build.column += 1
        after = build.neurons(l)
        s, w, b = build.slope(l), build.of("w", l), build.of("b", l)
        a = build.of("a", l - 1)
        shown = 0
        for at, (j, node) in enumerate(after):
            if len(j) > 1:
                continue
            slope = None if s is None else float(s[j[0]])
            if has_bias[l - 2]:
                name = symbol("b", l, j[0])
                build.add(Node(name, math_label(name), "bias", piece(b, j), box=parameters, place=(column, at, -1)))
                build.edges.append(Edge(name, node.id, partial=slope))
                shown += 1
            for beside, (k, _) in enumerate(before):
                if len(k) == 1:
                    name = net.layout.symbol_at(f"{chain.places[l - 2]}.w", (k[0], j[0]))
                    value = piece(w, j, k)
                    build.add(Node(name, math_label(name), "weight", value, box=parameters, place=(column, at, beside)))
                    partial_ = None if slope is None else slope * float(a[k[0]])
                    build.edges.append(Edge(name, node.id, partial=partial_))
                    shown += 1
        hidden = chain.sums[l - 2] * (chain.widths[l - 2] + has_bias[l - 2]) - shown
        if hidden:
            at = next((i for i, (j, _) in enumerate(after) if len(j) > 1), 0)
            what = "weights\nand biases" if has_bias[l - 2] else "weights"
            rest = Node(f"rest of layer {l}", f"{hidden:,} more {what}", "rest", count=hidden, box=parameters,
                        place=(column, at, -2))  # fmt: skip
            build.add(rest)
            build.edges += [Edge(rest.id, node.id) for _, node in after]
        build.carry(group, before, after)
        before = after if chain.elementwise[l - 2] else build.behind(l, after)
    build.finish(before)
    return build.graph(f"The computational graph of the network {chain_name(net, chain)}", highlight)


def _kept(net: Network, chain: Chain, highlight: str | None) -> dict[int, list[int]]:
    """{ℓ: neurons that a symbol names}."""
    if highlight is None:
        return {}
    l, j, k = parts_of(net, chain, highlight)
    return {l: [j]} if k is None else {l: [j], l - 1: [k]}


def parts_of(net: Network, chain: Chain, name: str) -> tuple[int, int, int | None]:
    """(ℓ, j, k) of w^ℓ_{j←k}, k None for b^ℓ_j."""
    leaf, where = net.layout.locate(net.layout.index(name))
    place, _, letter = leaf.partition(".")
    l = chain.places.index(int(place)) + 2
    return (l, where[1], where[0]) if letter == "w" else (l, where[0], None)


def single_by_neuron(
    net: Network, chain: Chain, numbers: Numbers | None, most: int, most_layers: int, name: str
) -> Graph:
    """The graph for one weight or bias: only what depends on it, and what it meets."""
    l, j, k = parts_of(net, chain, name)
    build = _Surgery(chain, numbers, most, {l: [j]})
    meets = build.first(only=k, l=l - 1) if k is not None else []
    kind: Any = "weight" if k is not None else "bias"
    build.column = 1 if meets else 0
    box = build.caption("the weight" if k is not None else "the bias")
    column = build.column
    build.column += 1
    after = build.neurons(l, [range(j, j + 1)])
    value = rest = slope = by_value = by_met = None  # the sum is a·value + rest
    if numbers is not None:
        terms = numbers.w[l - 2][j].astype(np.float64) * numbers.a[l - 2]
        value = 0.0 if numbers.b[l - 2] is None else float(_given(numbers.b[l - 2])[j])
        a, rest = 1.0, float(terms.sum())
        if k is not None:
            rest = float(np.delete(terms, k).sum()) + value
            value, a = float(numbers.w[l - 2][j, k]), float(numbers.a[l - 2][k])
        slope = float(_given(build.slope(l))[j])
        by_value, by_met = slope * a, slope * value
    build.add(Node(name, math_label(name), kind, value, box=box, place=(column, 0, 0)))
    text = "all other terms\nof the sum"
    build.add(Node("rest", text, "rest", rest, fixed=True, box=box, place=(column, 0, 2)))
    into = after[0][1].id
    build.edges += [Edge(name, into, partial=by_value), Edge("rest", into, partial=slope)]
    build.edges += [Edge(node.id, into, partial=by_met) for _, node in meets]
    before = after if chain.elementwise[l - 2] else build.behind(l, after)
    before = build.layers(l + 1, before, most_layers)
    build.finish(before)
    return build.graph(f"The graph of {name} in the network {chain_name(net, chain)}", name)
