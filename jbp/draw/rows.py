"""Layers: rows from top to bottom, a box for each container.

An edge that passes rows has a lane of its own at the right. A long sequence goes on in a next column of the page.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from .graph import Edge, Node, Plan, number_text, value_text
from .layout import Placed, Point, extent_of

BESIDE = ("parameters", "target", "weight")  # at the level of layers: stand at the left of what they go into


def layer_text(node: Node) -> tuple[str, str]:
    """What stands in a node at the level of layers, and ∂C/∂ of it. That of a split or a join stands beside it."""
    if node.kind in ("split", "join"):
        return node.label, ""
    slope = number_text(node.derivative) if node.kind != "cost" else ""
    return "\n".join(filter(None, (node.label, value_text(node)))), slope


def _layer_size(node: Node) -> Point:
    if node.kind == "split":
        return 0.1, 0.1
    if node.kind == "join" and len(node.label) == 1:
        return 0.28, 0.28
    w, h = extent_of("\n".join(filter(None, layer_text(node))))
    return max(w + 0.2, 1.5 if node.kind == "layer" else 0.6), h + 0.14


@dataclass
class _Part:
    """A node or a box with its content, arranged around its spine at x = 0, from y = 0 down."""

    left: float
    right: float
    height: float
    at: dict[str, Point]
    boxes: dict[str, tuple[float, float, float, float]]
    lanes: dict[int, list[Point]]  # edge -> the lane's top and bottom
    rows: list[tuple[float, float]] = field(default_factory=list)  # y from, y to
    row_of: dict[str, int] = field(default_factory=dict)

    def moved(self, x: float, y: float) -> "_Part":
        return _Part(
            self.left, self.right, self.height,
            {k: (a + x, b + y) for k, (a, b) in self.at.items()},
            {k: (a + x, b + y, c + x, d + y) for k, (a, b, c, d) in self.boxes.items()},
            {k: [(a + x, b + y) for a, b in v] for k, v in self.lanes.items()},
        )  # fmt: skip


def rows(graph: Plan) -> Placed:
    done = Placed(smooth=False)
    done.size = {node.id: _layer_size(node) for node in graph.nodes}
    parent = {box.id: box.parent for box in graph.boxes} | {node.id: node.box for node in graph.nodes}

    def line(id: str | None) -> list[str | None]:  # id, its box, that one's box, …, None
        found = [id]
        while id is not None:
            id = parent[id]
            found.append(id)
        return found

    inside: dict[str | None, list[tuple[int, str, str]]] = {}
    for i, edge in enumerate(graph.edges):
        up, down = line(edge.source)[::-1], line(edge.target)[::-1]
        level = next(n for n in range(len(up)) if up[n] != down[n])
        inside.setdefault(up[level - 1], []).append((i, up[level] or "", down[level] or ""))
    children: dict[str | None, list[str]] = {}
    for node in graph.nodes:
        children.setdefault(node.box, []).append(node.id)
    for box in graph.boxes:
        children.setdefault(box.parent, []).append(box.id)
    kinds = {node.id: node.kind for node in graph.nodes}
    labels = {box.id: box.label for box in graph.boxes}

    def arrange(box: str | None) -> _Part:
        items = children.get(box, [])
        edges = inside.get(box, [])
        beside = {s: t for _, s, t in edges if kinds.get(s) in BESIDE}
        parts = {id: node_part(id) if id in kinds else arrange(id) for id in items}
        for target in dict.fromkeys(beside.values()):
            parts[target] = _side_by_side(parts[target], {s: done.size[s] for s, t in beside.items() if t == target})
        stack = [id for id in items if id not in beside]
        return _stacked(box, stack, parts, [e for e in edges if e[1] not in beside], labels)

    def node_part(id: str) -> _Part:
        w, h = done.size[id]
        return _Part(w / 2, w / 2, h, {id: (0.0, h / 2)}, {}, {})

    whole = arrange(None)
    moves = _wrapped(whole)
    columns = {id: moves[row] for id, row in whole.row_of.items()}

    def shift(id: str) -> tuple[float, float, int]:
        top = [name for name in line(id) if name is not None][-1]
        top = next((t for _, s, t in inside.get(None, []) if s == top and top not in columns), top)
        return columns[top]

    done.at = {id: (x + shift(id)[0], y + shift(id)[1]) for id, (x, y) in whole.at.items()}
    for id, (x0, y0, x1, y1) in whole.boxes.items():
        dx, dy, _ = shift(id)
        done.boxes[id] = (x0 + dx, y0 + dy, x1 + dx, y1 + dy)
    top = min(y - done.size[id][1] / 2 for id, (_, y) in done.at.items())
    for i, edge in enumerate(graph.edges):
        lane = whole.lanes.get(i)
        dx, dy, _ = shift(edge.source)
        if lane and shift(edge.source)[2] == shift(edge.target)[2]:
            lane = [(x + dx, y + dy) for x, y in lane]
        done.paths.append(_route(graph, edge, done, lane, shift, top))
        done.labels.append(_spot(graph, edge, done.paths[-1]))
    return done


def _spot(graph: Plan, edge: Edge, path: list[Point]) -> Point | None:
    """Where δ along an edge is written: only where a value goes to several places, else its node says the same."""
    if edge.delta is None or len(graph.out[edge.source]) < 2:
        return None
    if len(path) == 4:  # along its lane
        return path[1][0], (path[1][1] + path[2][1]) / 2
    (x, y), straight = path[0], abs(path[0][0] - path[-1][0]) < 0.01
    return (x + 0.06, y + 0.13) if straight else (path[-1][0] + 0.06, path[-1][1] - 0.13)


def _side_by_side(part: _Part, sizes: dict[str, Point]) -> _Part:
    """The part with nodes at its left, one above the other in the middle of its height."""
    wide, tall = max(w for w, _ in sizes.values()), sum(h for _, h in sizes.values()) + 0.1 * (len(sizes) - 1)
    y = (part.height - tall) / 2
    for id, (_, h) in sizes.items():
        part.at[id] = (-part.left - 0.3 - wide / 2, y + h / 2)
        y += h + 0.1
    part.left += 0.3 + wide
    if tall > part.height:
        moved = part.moved(0.0, (tall - part.height) / 2)
        return _Part(part.left, part.right, tall, moved.at, moved.boxes, moved.lanes)
    return part


def _stacked(
    box: str | None,
    items: list[str],
    parts: dict[str, _Part],
    edges: list[tuple[int, str, str]],
    labels: dict[str, str],
) -> _Part:
    """Items in rows by the longest way to them, and a frame around."""
    rank = dict.fromkeys(items, 0)
    for _ in items:
        changed = False
        for _, s, t in edges:
            if rank[t] <= rank[s]:
                rank[t], changed = rank[s] + 1, True
        if not changed:
            break
    rows: list[list[str]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for id in items:
        rows[rank[id]].append(id)
    title = labels.get(box or "", "")
    y = 0.34 if box else 0.0
    pad = 0.14 if box else 0.0
    whole = _Part(0.0, 0.0, 0.0, {}, {}, {})
    extents = []
    for row in rows:
        width = sum(parts[id].left + parts[id].right for id in row) + 0.3 * (len(row) - 1)
        x = -width / 2 if len(row) > 1 else -parts[row[0]].left
        tall = max(parts[id].height for id in row)
        extents.append((-x, width + x))
        for id in row:
            part = parts[id].moved(x + parts[id].left, y + (tall - parts[id].height) / 2)
            whole.at |= part.at
            whole.boxes |= part.boxes
            whole.lanes |= part.lanes
            x += part.left + part.right + 0.3
        whole.rows.append((y, y + tall))
        y += tall + 0.26
    whole.height = y - 0.26 + pad
    whole.row_of = rank
    left = max((e[0] for e in extents), default=0.0)
    right = max((e[1] for e in extents), default=0.0)
    taken: list[tuple[int, int, float]] = []
    for i, s, t in edges:
        if rank[t] - rank[s] > 1:
            first, last = rank[s] + 1, rank[t] - 1
            x = max(e[1] for e in extents[first : last + 1]) + 0.16
            while any(a <= last and first <= b and abs(x - u) < 0.12 for a, b, u in taken):
                x += 0.14
            taken.append((first, last, x))
            whole.lanes[i] = [(x, whole.rows[first][0]), (x, whole.rows[last][1])]
            right = max(right, x)
    whole.left, whole.right = left + pad, right + pad
    if box:
        whole.left = max(whole.left, extent_of(title)[0] + 0.16)
        whole.boxes[box] = (-whole.left, 0.0, whole.right, whole.height)
    return whole


def _wrapped(whole: _Part) -> list[tuple[float, float, int]]:
    """For each row (shift in x, in y, column): a long sequence goes on in a next column."""
    width = whole.left + whole.right + 0.5
    tallest = max((y1 - y0 for y0, y1 in whole.rows), default=1.0)
    columns = round(math.sqrt(1.3 * whole.height / width)) if whole.height > 9 else 1
    columns = max(1, min(columns, int(whole.height / tallest)))
    starts: dict[int, float] = {}
    moves = []
    for y0, y1 in whole.rows:
        column = int((y0 + y1) / 2 / whole.height * columns)
        moves.append((column * width, -starts.setdefault(column, y0), column))
    return moves


def _route(
    graph: Plan,
    edge: Edge,
    done: Placed,
    lane: list[Point] | None,
    shift: Callable[[str], tuple[float, float, int]],
    top: float,
) -> list[Point]:
    (sx, sy), (tx, ty) = done.at[edge.source], done.at[edge.target]
    (sw, sh), (tw, th) = done.size[edge.source], done.size[edge.target]
    kind = graph.node(edge.source).kind
    if kind in BESIDE:
        start, end = (sx + sw / 2, sy), (tx - tw / 2, min(max(sy, ty - th / 2 + 0.1), ty + th / 2 - 0.1))
        return [start, end] if abs(sy - end[1]) < 0.01 else [start, (end[0] - 0.2, sy), (end[0] - 0.2, end[1]), end]
    from_column, to_column = shift(edge.source)[2], shift(edge.target)[2]
    if from_column != to_column:  # on to the top of the next column
        boxes = [box for id, box in done.boxes.items() if shift(id)[2] == to_column]
        sides = [box[0] for box in boxes] + [
            x - done.size[i][0] / 2 for i, (x, _) in done.at.items() if shift(i)[2] == to_column
        ]
        gap = min(sides) - 0.25
        low = max([y + done.size[i][1] / 2 for i, (_, y) in done.at.items() if shift(i)[2] == from_column]
                  + [box[3] for id, box in done.boxes.items() if shift(id)[2] == from_column]) + 0.14  # fmt: skip
        return [(sx, sy + sh / 2), (sx, low), (gap, low), (gap, top - 0.14), (tx, top - 0.14), (tx, ty - th / 2)]
    if lane:
        x = lane[0][0]
        return [(sx + sw / 2, sy), (x, sy), (x, ty), (tx + tw / 2, ty)]
    return [(sx, sy + sh / 2), (tx, ty - th / 2)]
