"""Neurons: columns from left to right.

An edge that passes a column has a slot of its own there, so it meets no node, and its number has a place.
"""

import itertools
import math

from .graph import Node, Plan, number_text
from .layout import Placed, Point, extent_of, is_usual, numbered

NAMES_UP_TO = 24  # edges of the usual graph that have their names beside them; more would be a tangle


Slot = tuple[tuple[int | float, ...], Node | int]  # where in the column, and what: a node, or the number of an edge


def columns(graph: Plan) -> Placed:
    """The places of a graph of neurons."""
    done, numbers, usual = Placed(), numbered(graph), is_usual(graph)
    named = usual and len(graph.edges) <= NAMES_UP_TO
    done.size = {node.id: _size(node, numbers and not usual) for node in graph.nodes}
    table = _table(graph)
    heights = _heights(table, done, numbers, usual, named)
    lowest = max(max(ys.values()) for ys in heights)
    captions = {box.id: box.label for box in graph.boxes}
    xs: list[float] = []
    halves: list[float] = []
    for column in table:
        nodes = _nodes(column)
        caption = next((captions[node.box] for node in nodes if node.box), "")
        widths = [done.size[node.id][0] for node in nodes]
        halves.append(max([*widths, extent_of(caption)[0] - 0.3 if nodes else 0.3]) / 2)
        gap = max(1.5, 0.5 * lowest) if usual else 0.9 if numbers else 0.65
        gap = 2.6 if named else gap
        xs.append(xs[-1] + halves[-2] + gap + halves[-1] if xs else 0.0)
        if caption:
            done.captions.append((xs[-1], lowest + 0.62, caption))
    for x, column, ys in zip(xs, table, heights, strict=True):
        done.at |= {node.id: (x, ys[node.id]) for node in _nodes(column)}
    for i, edge in enumerate(graph.edges):
        (sx, sy), (tx, ty) = done.at[edge.source], done.at[edge.target]
        start, end = (sx + done.size[edge.source][0] / 2, sy), (tx - done.size[edge.target][0] / 2, ty)
        passed = [(x, ys[i], half) for x, ys, half in zip(xs, heights, halves, strict=True) if i in ys]
        done.paths.append([start, *((x + d, y) for x, y, half in passed for d in (-half, half)), end])
        done.labels.append(passed[-1][:2] if passed else (start[0] + 0.3, sy))
    if usual:
        done.labels = _free_places(done) if named else [None] * len(graph.edges)
    return done


def _size(node: Node, numbers: bool) -> Point:
    """Around its texts, and at least as large as such nodes are."""
    shown = [number_text(v) for v in (node.value, node.derivative) if numbers and isinstance(v, float)]
    label, value = extent_of(node.label)[0], max((extent_of(text)[0] for text in shown), default=0.0)
    if node.kind == "rest":
        return max(1.25, label + 0.16), 0.62 if numbers or node.count > 1 else 0.44
    if node.count > 1:
        return max(0.72, label), 0.5
    if node.kind in ("weight", "bias"):  # the label at the left, the numbers at the right
        return (max(1.32, 2 * max(label, value + 0.06) + 0.1), 0.4) if numbers else (max(0.66, label + 0.16), 0.32)
    if node.kind == "target":
        return (max(0.8, extent_of(f"{node.label} = ")[0] + value + 0.1), 0.36) if numbers else (0.5, 0.32)
    wide = max(0.64 if numbers else 0.52, label + 0.1, value + 0.06)
    return wide, wide


def _table(graph: Plan) -> list[list[Slot]]:
    """What stands in each column from top to bottom: nodes, and edges that pass it."""
    nodes = {node.id: node for node in graph.nodes}
    table: list[list[Slot]] = [[] for _ in range(1 + int(max(node.place[0] for node in graph.nodes)))]
    for node in graph.nodes:
        table[int(node.place[0])].append((node.place[1:], node))
    for i, edge in enumerate(graph.edges):
        source, target = nodes[edge.source].place, nodes[edge.target].place
        key = (source[1], 0.0) if edge.target == "C" else (target[1], source[1] + 0.5)
        for column in table[int(source[0]) + 1 : int(target[0])]:
            column.append((key, i))
    for column in table:
        column.sort(key=lambda slot: slot[0])
    return table


def _nodes(column: list[Slot]) -> list[Node]:
    return [what for _, what in column if isinstance(what, Node)]


def _heights(
    table: list[list[Slot]], done: Placed, numbers: bool, usual: bool, named: bool
) -> list[dict[str | int, float]]:
    """The height y of each node and passing edge, column by column; the middle of a column is 0."""
    found: list[dict[str | int, float]] = []
    before: dict[int | float, list[float]] = {}  # the heights of what goes into each row of the column
    for column in table:
        neurons = all(isinstance(e, Node) and e.kind in ("neuron", "sum", "input", "cost") for _, e in column)
        beside = 0.75 if named else 0.16 if usual else 0.4 if neurons else 0.1
        ys: dict[str | int, float] = {}
        rows: dict[int | float, list[float]] = {}
        y = 0.0
        for (row, *_), what in column:
            y += 0.22 if rows and row not in rows and not neurons else 0.0
            tall = done.size[what.id][1] + beside if isinstance(what, Node) else 0.26 if numbers else 0.13
            ys[what.id if isinstance(what, Node) else what] = y + tall / 2
            rows.setdefault(row, []).append(y + tall / 2)
            y += tall
        ys = {what: at - y / 2 for what, at in ys.items()}
        rows = {row: [at - y / 2 for at in all_] for row, all_ in rows.items()}
        middles = [(all_[0] + all_[-1]) / 2 for all_ in before.values()]
        if (
            neurons
            and not usual
            and len(middles) == len(column)
            and all(b - a > 0.95 for a, b in itertools.pairwise(middles))
        ):  # a neuron stands in the middle of what goes into it
            ys = dict(zip(ys, middles, strict=True))
        found.append(ys)
        before = rows
    first, tallest = max(found[0].values()), max(max(ys.values()) for ys in found)
    if not usual and first:  # the inputs spread
        found[0] = {what: y * max(0.6 * tallest / first, 1.0) for what, y in found[0].items()}
    return found


def _free_places(done: Placed) -> list[Point | None]:
    """On straight edges that cross: a place for each label where it covers the least of the others."""
    chosen: list[Point | None] = []
    lines = [(path[0], path[-1]) for path in done.paths]
    for i, ((x0, y0), (x1, y1)) in enumerate(lines):
        best, least = None, math.inf
        for t in (0.5, 0.44, 0.56, 0.38, 0.62, 0.32, 0.68, 0.26, 0.74, 0.21, 0.79, 0.17, 0.83):
            x, y = x0 + t * (x1 - x0), y0 + t * (y1 - y0)
            cost = abs(t - 0.5) * 0.1
            for p in chosen:
                if p is not None:
                    cost += 10 * max(0.0, 1 - abs(p[0] - x) / 0.8) * max(0.0, 1 - abs(p[1] - y) / 0.36)
            for k, ((u0, v0), (u1, v1)) in enumerate(lines):
                if k != i and u0 < x < u1:
                    away = abs(v0 + (x - u0) / (u1 - u0) * (v1 - v0) - y)
                    cost += max(0.0, 1 - away / 0.26)
            if cost < least:
                best, least = (x, y), cost
        chosen.append(best)
    return chosen
