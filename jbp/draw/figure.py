"""A graph painted with matplotlib."""

import itertools
import math
from typing import Any

from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch
from matplotlib.path import Path

from .. import paint
from ..paint import BLUE, FAINT, FILLS, GREY, INK, PALE, PINK, RED
from .columns import columns
from .graph import Edge, Node, Plan, math_label, number_text
from .layout import Placed, is_usual, numbered
from .rows import layer_text, rows

NOT_FINITE: Any = {"color": PINK, "lw": 1.8, "ls": (0, (1, 1))}
FILL = FILLS | {"join": "white", "split": INK, "layer": "white"}
SIGNED = LinearSegmentedColormap.from_list("signed", [BLUE, PALE, RED])  # negative, zero, positive


def figure(graph: Plan) -> Any:
    """The picture of a graph, as large as it needs to be."""
    placed = columns(graph) if graph.direction == "right" else rows(graph)
    left, top, right, bottom = placed.extent()
    scale, handles = _scale(graph), _legend(graph)
    widened = max(0.5, 5.5 - (right - left)) / 2
    left, right = left - widened, right + widened
    ncols = max(1, min(len(handles), int((right - left) / 1.7)))
    top, bottom = top - 0.65, bottom + 0.45 + 0.17 * -(-len(handles) // ncols) + 0.3 * (scale is not None)
    with paint.new_figure("Graph.figure", right - left, bottom - top, layout=None, **{"font.size": 8}) as drawn:
        axes = drawn.add_axes((0, 0, 1, 1))
        axes.set(xlim=(left, right), ylim=(bottom, top))
        axes.set_axis_off()
        title = " ".join(math_label(word) if "^" in word else word for word in graph.title.split(" "))
        axes.text(left + 0.15, top + 0.12, title, fontsize=11, fontweight="bold", va="top")
        depth: dict[str | None, int] = {None: 0}
        for box in graph.boxes:
            depth[box.id] = depth[box.parent] + 1
            if box.id in placed.boxes:
                _frame(axes, placed.boxes[box.id], box.label, depth[box.id] % 2)
        for x, y, text in placed.captions:
            axes.text(x, y, text, ha="center", va="top", color=GREY, linespacing=1.25)
        for edge, path, spot in zip(graph.edges, placed.paths, placed.labels, strict=True):
            _edge(axes, graph, edge, path, spot, placed, scale)
        for node in graph.nodes:
            _node(axes, graph, node, placed, scale)
        for artist in (*axes.patches, *axes.texts):
            artist.set_clip_on(False)  # nothing reaches over the page, and a file without clips is smaller
        if handles:
            where: Any = {"loc": "lower center", "ncols": ncols, "columnspacing": 1.4, "handletextpad": 0.5}
            paint.legend(drawn, handles, fontsize=7.5, **where)
        if scale is not None:
            _colour_bar(drawn, scale, 0.42 if handles else 0.32)
    return drawn


def _scale(graph: Plan) -> Any:
    """The colour scale of the usual graph with weights: of the finite ones, symmetric around 0."""
    if not is_usual(graph):
        return None
    sizes = [abs(v) for v in _weights(graph) if math.isfinite(v)]
    return Normalize(-max(sizes, default=1) or -1.0, max(sizes, default=1) or 1.0) if sizes else None


def _weights(graph: Plan) -> list[float]:
    """Those of the usual graph, and its biases."""
    return [v for v in (*(e.weight for e in graph.edges), *(n.value for n in graph.nodes)) if isinstance(v, float)]


def _frame(axes: Any, rectangle: tuple[float, float, float, float], label: str, odd: int) -> None:
    x0, y0, x1, y1 = rectangle
    style = "round,pad=0,rounding_size=0.08"
    outline: dict[str, Any] = {"facecolor": "#F4F8FB" if odd else "white", "edgecolor": FAINT, "lw": 0.8, "zorder": 0}
    axes.add_artist(FancyBboxPatch((x0, y0), x1 - x0, y1 - y0, style, **outline))
    axes.text(x0 + 0.07, y0 + 0.06, label, va="top", color=GREY)


def _edge(axes: Any, graph: Plan, edge: Edge, path: list, spot: Any, placed: Placed, scale: Any) -> None:
    usual, numbers = is_usual(graph), numbered(graph)
    source = graph.node(edge.source)
    colour, width = (RED, 1.8) if edge.highlighted else (FAINT, 0.8)
    dashes: Any = (0, (2, 1.5)) if source.fixed and not edge.highlighted else "-"
    if edge.weight is not None and not math.isfinite(edge.weight):
        colour, width, dashes = NOT_FINITE.values()
    elif usual and edge.weight is not None and scale is not None:
        strength = abs(edge.weight) / scale.vmax
        colour, width = to_hex(SIGNED(scale(edge.weight))), 0.4 + 2.6 * strength
    curve = Path([path[0], path[-1]]) if usual else _smooth(path) if placed.smooth else _rounded(path)
    axes.add_artist(
        PathPatch(curve, facecolor="none", edgecolor=colour, lw=width, ls=dashes, zorder=2 if edge.highlighted else 1)
    )
    if not usual:
        _head(axes, path, colour if edge.highlighted else GREY, graph.direction == "down")
    if spot is None:
        return
    if graph.direction == "down":
        turned: dict[str, Any] = {"ha": "center", "rotation": 90} if len(path) == 4 else {"ha": "left"}
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8}
        axes.text(*spot, number_text(edge.delta), va="center", fontsize=7, zorder=3, color=RED, bbox=white, **turned)
        return
    text = number_text(edge.partial) if isinstance(edge.partial, float) else ""
    if usual:
        text = _weight_name(graph, edge) + (f"\n{number_text(edge.weight)}" if edge.weight is not None else "")
    if text and (usual or numbers):
        axes.text(
            *spot, text, ha="center", va="center", fontsize=8 if usual else 7, zorder=3, linespacing=1.1,
            color=RED if edge.highlighted else INK if not source.fixed else GREY,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip


def _weight_name(graph: Plan, edge: Edge) -> str:
    """`w^2_{3←7}` of an edge between two neurons of the usual graph."""
    source, target = graph.node(edge.source), graph.node(edge.target)
    j, k = (node.id.partition("_")[2].strip("{}") for node in (target, source))
    return f"$w^{{{int(target.place[0]) + 1}}}_{{{j}\\leftarrow {k}}}$"


def _smooth(path: list) -> Path:
    """Through all points, horizontal at each."""
    vertices, codes = [path[0]], [Path.MOVETO]
    for (x0, y0), (x1, y1) in itertools.pairwise(path):
        middle = (x0 + x1) / 2
        vertices += [(middle, y0), (middle, y1), (x1, y1)]
        codes += [Path.CURVE4] * 3
    return Path(vertices, codes)


def _rounded(path: list, radius: float = 0.1) -> Path:
    """Straight, with rounded corners; between two points that are not above each other, an S."""
    if len(path) == 2 and abs(path[0][0] - path[1][0]) > 0.01 and abs(path[0][1] - path[1][1]) > 0.01:
        (x0, y0), (x1, y1) = path
        middle = (y0 + y1) / 2
        return Path([(x0, y0), (x0, middle), (x1, middle), (x1, y1)], [Path.MOVETO] + [Path.CURVE4] * 3)
    vertices, codes = [path[0]], [Path.MOVETO]
    for before, corner, after in zip(path, path[1:], path[2:], strict=False):
        ends = []
        for other in (before, after):
            length = max(abs(other[0] - corner[0]) + abs(other[1] - corner[1]), 1e-9)
            r = min(radius, length / 2) / length
            ends.append((corner[0] + r * (other[0] - corner[0]), corner[1] + r * (other[1] - corner[1])))
        vertices += [ends[0], corner, ends[1]]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    return Path([*vertices, path[-1]], [*codes, Path.LINETO])


def _head(axes: Any, path: list, colour: Any, down: bool) -> None:
    """The tip of an arrow at the end of a path, which arrives from the side or, `down`, from above."""
    (x0, y0), (x, y) = path[-2:]
    if down and y > y0 + 1e-6:
        tip = [(x, y), (x - 0.035, y - 0.08), (x + 0.035, y - 0.08)]
    else:
        back = x - 0.08 if x > x0 else x + 0.08
        tip = [(x, y), (back, y - 0.035), (back, y + 0.035)]
    axes.add_artist(PathPatch(Path([*tip, tip[0]]), facecolor=colour, edgecolor="none", zorder=3))


def _node(axes: Any, graph: Plan, node: Node, placed: Placed, scale: Any) -> None:
    (x, y), (w, h) = placed.at[node.id], placed.size[node.id]
    edgecolor, lw = (RED, 1.8) if node.highlighted else (INK, 0.9)
    outline: dict[str, Any] = {
        "facecolor": FILL.get(node.kind, "white"), "edgecolor": edgecolor, "lw": lw, "zorder": 4,
        "ls": (0, (3, 2)) if node.fixed else "-",
    }  # fmt: skip
    if is_usual(graph) and isinstance(node.value, float):
        if not math.isfinite(node.value):
            outline |= {"edgecolor": NOT_FINITE["color"], "lw": NOT_FINITE["lw"], "ls": NOT_FINITE["ls"]}
        elif scale is not None:
            outline["facecolor"] = SIGNED(scale(node.value))
    if node.count > 1 and graph.direction == "right" and node.kind != "rest":
        axes.text(x, y, node.label, ha="center", va="center", zorder=5, linespacing=1.2, color=INK)
        return
    if node.kind == "split":
        axes.add_artist(Circle((x, y), w / 2, color=edgecolor, zorder=4))
        return
    if node.kind == "join" and node.derivative is not None:
        beside: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 7, "zorder": 5}
        axes.text(x - w / 2 - 0.05, y - 0.07, number_text(node.value), **beside)
        axes.text(x - w / 2 - 0.05, y + 0.07, number_text(node.derivative), color=RED, **beside)
    if node.kind in ("neuron", "sum", "cost", "join") or (node.kind == "input" and graph.direction == "right"):
        axes.add_artist(Circle((x, y), h / 2, **outline) if w == h else _rectangle(x, y, w, h, outline))
    else:
        axes.add_artist(_rectangle(x, y, w, h, outline))
    text: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 5}
    if graph.direction == "down":
        lines, slope = layer_text(node)
        axes.text(x, y - (0.07 if slope else 0), lines, linespacing=1.25, **text)
        axes.text(x, y + h / 2 - 0.12, slope, color=RED, **text)
        return
    shown = "" if is_usual(graph) else number_text(node.value)
    slope = "" if node.derivative is None or node.kind == "cost" else number_text(node.derivative)
    if node.kind in ("weight", "bias") and shown:
        axes.text(x - w / 4, y, node.label, fontsize=10, **text)
        axes.text(x + w / 4 - 0.03, y - 0.085 if slope else y, shown, fontsize=7.5, **text)
        axes.text(x + w / 4 - 0.03, y + 0.085, slope, fontsize=7.5, color=RED, **text)
    elif node.kind == "target" and shown:
        axes.text(x, y, f"{node.label} = {shown}", **text)
    elif node.kind == "rest":
        axes.text(x, y, node.label + (f"\n{shown}" if shown and node.count == 1 else ""), linespacing=1.2, **text)
    else:
        axes.text(x, y - (0.1 if shown else 0), node.label, fontsize=10, **text)
        axes.text(x, y + 0.12, shown, fontsize=7.5, **text)
        if slope:
            axes.text(x, y + h / 2 + 0.1, slope, fontsize=7.5, color=RED, **text)


def _rectangle(x: float, y: float, w: float, h: float, outline: dict[str, Any]) -> FancyBboxPatch:
    return FancyBboxPatch((x - w / 2, y - h / 2), w, h, "round,pad=0,rounding_size=0.06", **outline)


def _legend(graph: Plan) -> list[dict[str, Any]]:
    """What shapes and colours mean: only of what is there."""
    kinds = {node.kind for node in graph.nodes}
    neurons = graph.direction == "right" and "cost" in kinds
    square: dict[str, Any] = {"marker": "s", "ms": 9, "mec": INK, "mew": 0.9, "ls": ""}
    figures: dict[str, Any] = {"marker": r"$\mathregular{0.1}$", "ms": 13, "mew": 0.2, "ls": ""}
    marks: list[tuple[bool, str, dict[str, Any]]] = [
        (bool(kinds & {"weight", "bias", "parameters"}), "what C is a function of", {"mfc": FILL["weight"], **square}),
        (any(node.fixed for node in graph.nodes), "fixed", {"color": INK, "ls": (0, (3, 2)), "lw": 1}),
        (neurons, "multiplies, adds, applies g", {"marker": "o", "ms": 9, "mfc": "white", "mec": INK, "ls": ""}),
        (neurons and numbered(graph), "value; on an edge ∂target/∂source", {"color": INK, **figures}),
        (
            any(n.derivative is not None and n.kind != "cost" for n in graph.nodes),
            "∂C/∂ of it" + "; on an edge δ coming back" * any(edge.delta is not None for edge in graph.edges),
            {"color": RED} | figures,
        ),
        (any(e.highlighted for e in graph.edges), "paths to C", {"color": RED, "lw": 1.8}),
        (is_usual(graph) and not all(map(math.isfinite, _weights(graph))), "not finite", NOT_FINITE),
    ]
    return [{"label": text, "ls": "-", **mark} for there, text, mark in marks if there]


def _colour_bar(drawn: Any, scale: Any, y: float) -> None:
    width, height = drawn.get_size_inches()
    bar = drawn.add_axes(((width / 2 - 1.2) / width, y / height, 2.4 / width, 0.09 / height))
    drawn.colorbar(ScalarMappable(scale, SIGNED), cax=bar, orientation="horizontal")
    bar.set_xticks([scale.vmin, 0, scale.vmax], [number_text(scale.vmin), "0", number_text(scale.vmax)], fontsize=7)
    bar.tick_params(length=2, pad=1)
    bar.set_title("weights (edges, thicker where larger) and biases (nodes)", fontsize=7.5, pad=3)
