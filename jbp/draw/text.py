"""A graph as text: Graphviz's DOT, and Mermaid for Markdown. Names stay the text's symbols."""

from collections.abc import Iterator
from html import escape

from ..paint import FILLS, INK, RED
from .graph import Box, Edge, Node, Plan, number_text, split_symbol, value_text

_SHAPES = {"neuron": "circle", "sum": "circle", "cost": "doublecircle", "join": "circle", "split": "point"}


def _lines(node: Node) -> list[str]:
    """The lines of a node's label as plain text, values last."""
    if node.kind == "split":
        return [""]
    name = node.label.replace("$\\vdots$", "⋮").replace("$\\cdots$", "⋯").replace("\\$", "$").split("\n")
    if node.count == 1 and "$" in name[0]:
        name = [node.id, *name[1:]]
    of = f"∂C/∂{node.id} =" if node.count == 1 and split_symbol(node.id) else "derivative"
    return (
        name
        + [value_text(node)] * (node.value is not None)
        + ([f"{of} {number_text(node.derivative)}"] * (node.derivative is not None and node.kind != "cost"))
    )


def _edge_text(graph: Plan, edge: Edge) -> str:
    value = edge.weight if edge.weight is not None else edge.partial
    if edge.delta is not None and len(graph.out[edge.source]) > 1:
        return f"δ {number_text(edge.delta)}"
    return number_text(value) if isinstance(value, float) else ""


def _inside(graph: Plan) -> Iterator[tuple[str, Node | Box | None]]:
    """(indent, what) of each node, of each box before what is inside it, and None where a box ends."""
    nodes: dict[str | None, list[Node]] = {}
    boxes: dict[str | None, list[Box]] = {}
    for node in graph.nodes:
        nodes.setdefault(node.box, []).append(node)
    for box in graph.boxes:
        boxes.setdefault(box.parent, []).append(box)

    def walk(box: str | None, indent: str) -> Iterator[tuple[str, Node | Box | None]]:
        yield from ((indent, node) for node in nodes.get(box, []))
        for child in boxes.get(box, []):
            yield indent, child
            yield from walk(child.id, indent + "  ")
            yield indent, None

    return walk(None, "  ")


# -- DOT --------------------------------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _html(line: str) -> str:
    parts = split_symbol(line)
    if parts is None:
        return escape(line)
    letter, upper, lower = parts
    return f"<I>{letter}</I>" + f"<SUP>{upper}</SUP>" * bool(upper) + f"<SUB>{lower}</SUB>" * bool(lower)


def dot(graph: Plan) -> str:
    title = _quoted(graph.title)
    out = ["digraph {", f"  rankdir={'LR' if graph.direction == 'right' else 'TB'}; label={title}; labelloc=t;",
           '  node [shape=box style=filled fillcolor=white fontsize=11]; edge [fontsize=9];']  # fmt: skip
    for indent, what in _inside(graph):
        if isinstance(what, Node):
            settings = ['label=""', "shape=point"]
            if what.kind != "split":
                style, label = "filled,dashed" if what.fixed else "filled", "<BR/>".join(map(_html, _lines(what)))
                settings = [f'label=<{label}> shape={_SHAPES.get(what.kind, "box")} style="{style}"',
                            f'fillcolor="{FILLS.get(what.kind, "white")}"']  # fmt: skip
            settings += [f'color="{RED}" penwidth=2'] * what.highlighted
            out.append(f"{indent}{_quoted(what.id)} [{' '.join(settings)}];")
        elif isinstance(what, Box):
            frame = "" if what.frame else " color=none;"
            label = _quoted(what.label).replace("\n", "\\n")
            out.append(f"{indent}subgraph {_quoted('cluster ' + what.id)} {{ label={label};{frame}")
        else:
            out.append(f"{indent}}}")
    fixed = {node.id for node in graph.nodes if node.fixed}
    for edge in graph.edges:
        text = _edge_text(graph, edge)
        settings = [f"label={_quoted(text)}"] * bool(text)
        settings += [f'color="{RED}" penwidth=2'] * edge.highlighted
        settings += ["style=dashed"] * (edge.source in fixed)
        out.append(
            f"  {_quoted(edge.source)} -> {_quoted(edge.target)}" + f" [{' '.join(settings)}]" * bool(settings) + ";"
        )
    return "\n".join([*out, "}"]) + "\n"


# -- Mermaid ----------------------------------------------------------------------------------------------------------


def _mermaid_text(text: str) -> str:
    return text.replace("&", "#amp;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")


def mermaid(graph: Plan) -> str:
    short = {node.id: f"n{i}" for i, node in enumerate(graph.nodes)}
    out = [f"flowchart {'LR' if graph.direction == 'right' else 'TB'}"]
    numbers = iter(range(len(graph.boxes)))
    for indent, what in _inside(graph):
        if isinstance(what, Node):
            text = "<br/>".join(map(_mermaid_text, _lines(what))) or " "
            begin, end = ("((", "))") if what.kind in _SHAPES else ("[", "]")
            out.append(f'{indent}{short[what.id]}{begin}"{text}"{end}:::{"fixed" if what.fixed else what.kind}')
        elif isinstance(what, Box):
            label = _mermaid_text(what.label).replace("\n", "<br/>")
            out.append(f'{indent}subgraph box{next(numbers)}["{label}"]')
        else:
            out.append(f"{indent}end")
    fixed = {node.id for node in graph.nodes if node.fixed}
    for edge in graph.edges:
        arrow = "==>" if edge.highlighted else "-.->" if edge.source in fixed else "-->"
        text = _edge_text(graph, edge)
        out.append(f"  {short[edge.source]} {arrow}" + f'|"{text}"|' * bool(text) + f" {short[edge.target]}")
    kinds = {"fixed" if node.fixed else node.kind for node in graph.nodes}
    for kind in sorted(kinds):
        fill = FILLS.get(kind, "#EFEFEF" if kind == "fixed" else "#FFFFFF")
        out.append(
            f"  classDef {kind} fill:{fill},stroke:{INK},color:{INK}" + ",stroke-dasharray:3 2" * (kind == "fixed")
        )
    return "\n".join(out) + "\n"
