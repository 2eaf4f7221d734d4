"""The usual graph of a plain chain of dense layers: columns of neurons, wide ones elided, weights on the edges."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..chain import Chain
from ..network import Network
from .graph import Box, Edge, Node, math_label, symbol
from .output import Graph

# -- wide columns -----------------------------------------------------------------------------------------------------


def shown_rows(width: int, most: int, keep: Sequence[int] = ()) -> list[range]:
    """The rows of a column of neurons: at most `most` one by one (those in `keep`, the first ones, the last), and
    ranges of the others between them, each drawn as ⋮."""
    if width <= most + 1:  # a ⋮ for one neuron would save nothing
        return [range(j, j + 1) for j in range(width)]
    keep = [j for j in keep if j < width]
    shown = sorted({*keep, *[width - 1, *range(width)][: max(most - len(set(keep) - {width - 1}), 0)]})
    found, at = [], 0
    for j in [*shown, width]:
        hidden = range(at, j)
        found += [hidden] if len(hidden) > 1 else [range(i, i + 1) for i in hidden]
        found += [range(j, j + 1)] if j < width else []
        at = j + 1
    return found


def groups(first: int, last: int, most: int, keep: Sequence[int] = ()) -> list[range]:
    """The layers from `first` to `last`: at most `most` one by one, and ranges of the others, each drawn as one (⋯)."""
    found = shown_rows(last - first + 1, most, [l - first for l in keep])
    return [range(row[0] + first, row[-1] + first + 1) for row in found]


def piece(array: np.ndarray | None, *where: range) -> Any:
    """The part of an array at given rows: a float if it is one number."""
    if array is None:
        return None
    part = np.asarray(array)[np.ix_(*where)]
    return float(part.item()) if part.size == 1 else part


def neuron(letter: str, l: int | None, row: range, values: Any, **settings: Any) -> Node:
    name = symbol(letter, l, row)
    label = math_label(name) if len(row) == 1 else f"$\\vdots$\n{len(row):,} more"
    return Node(name, label, value=piece(values, row), count=len(row), **settings)


def letter_of(chain: Chain, l: int) -> tuple[str, int | None]:
    return ("x", None) if l == 1 and chain.input_is_first else ("a", l)


def _plural(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def chain_name(net: Network, chain: Chain) -> str:
    widths = [str(width) for width in (chain.widths[0], *chain.sums)]
    return "-".join(widths if len(widths) <= 12 else [*widths[:4], "…", widths[-1]])


# -- the usual graph --------------------------------------------------------------------------------------------------


def usual_by_neuron(net: Network, chain: Chain, theta: Any, most: int, most_layers: int) -> Graph:
    """Neurons in columns, weights on the edges between them."""
    nodes: list[Node] = []
    edges: list[Edge] = []
    boxes: list[Box] = []
    L = len(chain.widths)
    leaves = {} if theta is None else dict(zip(net.layout.names, net.layout.leaves(np.asarray(theta)), strict=True))
    before: list[tuple[range, Node]] = []
    widths = [chain.widths[0], *chain.sums]
    for at_column, group in enumerate(groups(1, L, most_layers)):
        l, width = group[0], widths[group[0] - 1]
        if len(group) > 1:
            count = sum(widths[l - 1] for l in group)
            boxes.append(Box(f"layer {l}", f"layers {l} … {group[-1]}\n{_plural(count, 'neuron')}", frame=False))
            label = f"$\\cdots$\n{len(group):,} more layers"
            nodes.append(
                Node(f"layers {l}…{group[-1]}", label, "neuron", count=count, box=f"layer {l}", place=(at_column, 0))
            )
            before = []
            continue
        role = "input" if l == 1 else "output" if l == L else "hidden"
        boxes.append(Box(f"layer {l}", f"layer {l}, {role}\n{_plural(width, 'neuron')}", frame=False))
        w, b = (leaves.get(f"{chain.places[l - 2]}.{name}") if l > 1 else None for name in "wb")
        column = []
        for at, row in enumerate(shown_rows(width, most)):
            letter, upper = letter_of(chain, l)
            node = neuron(
                letter, upper, row, b, kind="input" if l == 1 else "neuron", box=f"layer {l}", place=(at_column, at)
            )
            column.append((row, node))
            for source, node_before in before:
                if len(row) == len(source) == 1:
                    weight = None if w is None else float(w[source[0], row[0]])
                    edges.append(Edge(node_before.id, node.id, weight=weight))
        nodes += [node for _, node in column]
        before = column
    return Graph(tuple(nodes), tuple(edges), tuple(boxes), f"The network {chain_name(net, chain)}")
