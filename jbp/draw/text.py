"""A graph as text: Graphviz's DOT, and Mermaid for Markdown. Names stay the text's symbols."""

from html import escape

from .graph import Box, Edge, Graph, Node, number, split_symbol

_SHAPES = {"neuron": "circle", "sum": "circle", "cost": "doublecircle", "join": "circle", "split": "point"}
_FILLS = {"weight": "#CFE6F5", "bias": "#CFE6F5", "parameters": "#CFE6F5", "rest": "#E7F2FA", "input": "#EFEFEF",
          "target": "#EFEFEF", "cost": "#FBE3A6"}  # fmt: skip
_HIGHLIGHT = "#D55E00"


def _lines(node: Node) -> list[str]:
    """The lines of a node's label as plain text, values last."""
    if node.kind == "split":
        return [""]
    name = node.label.replace("$\\vdots$", "⋮").replace("\\$", "$").split("\n")
    if node.count == 1 and "$" in name[0]:
        name = [node.id, *name[1:]]
    return (
        name
        + [number(node.value)] * (node.value is not None)
        + ([f"∂C/∂ = {number(node.derivative)}"] * (node.derivative is not None and node.kind != "cost"))
    )


def _edge_text(edge: Edge) -> str:
    value = edge.weight if edge.weight is not None else edge.partial
    return number(value) if isinstance(value, float) else ""


def _inside(graph: Graph) -> tuple[dict[str | None, list[Node]], dict[str | None, list[Box]]]:
    nodes: dict[str | None, list[Node]] = {}
    boxes: dict[str | None, list[Box]] = {}
    for node in graph.nodes:
        nodes.setdefault(node.box, []).append(node)
    for box in graph.boxes:
        boxes.setdefault(box.parent, []).append(box)
    return nodes, boxes


# -- DOT --------------------------------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _html(line: str) -> str:
    parts = split_symbol(line)
    if parts is None:
        return escape(line)
    letter, upper, lower = parts
    return f"<I>{letter}</I>" + f"<SUP>{upper}</SUP>" * bool(upper) + f"<SUB>{lower}</SUB>" * bool(lower)


def dot(graph: Graph) -> str:
    nodes, boxes = _inside(graph)
    title = _quoted(graph.title)
    out = ["digraph {", f"  rankdir={'LR' if graph.direction == 'right' else 'TB'}; label={title}; labelloc=t;",
           '  node [shape=box style=filled fillcolor=white fontsize=11]; edge [fontsize=9];']  # fmt: skip

    def inside(box: str | None, indent: str) -> None:
        for node in nodes.get(box, []):
            style = "filled,dashed" if node.fixed else "filled"
            settings = [f"label=<{'<BR/>'.join(map(_html, _lines(node)))}>" if node.kind != "split" else 'label=""']
            if node.kind != "split":
                settings.append(f'shape={_SHAPES.get(node.kind, "box")} style="{style}"')
                settings.append(f'fillcolor="{_FILLS.get(node.kind, "white")}"')
            else:
                settings.append("shape=point")
            settings += [f'color="{_HIGHLIGHT}" penwidth=2'] * node.highlighted
            out.append(f"{indent}{_quoted(node.id)} [{' '.join(settings)}];")
        for child in boxes.get(box, []):
            frame = "" if child.frame else " color=none;"
            label = _quoted(child.label).replace("\n", "\\n")
            out.append(f"{indent}subgraph {_quoted('cluster ' + child.id)} {{ label={label};{frame}")
            inside(child.id, indent + "  ")
            out.append(f"{indent}}}")

    inside(None, "  ")
    fixed = {node.id for node in graph.nodes if node.fixed}
    for edge in graph.edges:
        settings = [f"label={_quoted(_edge_text(edge))}"] * bool(_edge_text(edge))
        settings += [f'color="{_HIGHLIGHT}" penwidth=2'] * edge.highlighted
        settings += ["style=dashed"] * (edge.source in fixed)
        out.append(
            f"  {_quoted(edge.source)} -> {_quoted(edge.target)}" + f" [{' '.join(settings)}]" * bool(settings) + ";"
        )
    return "\n".join([*out, "}"]) + "\n"


# -- Mermaid ----------------------------------------------------------------------------------------------------------


def _mermaid_text(text: str) -> str:
    return text.replace("&", "#amp;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")


def mermaid(graph: Graph) -> str:
    nodes, boxes = _inside(graph)
    short = {node.id: f"n{i}" for i, node in enumerate(graph.nodes)}
    out = [f"flowchart {'LR' if graph.direction == 'right' else 'TB'}"]
    numbers = iter(range(len(graph.boxes)))

    def inside(box: str | None, indent: str) -> None:
        for node in nodes.get(box, []):
            text = "<br/>".join(map(_mermaid_text, _lines(node))) or " "
            round_ = node.kind in _SHAPES
            kind = "fixed" if node.fixed else node.kind
            out.append(f'{indent}{short[node.id]}{"((" if round_ else "["}"{text}"{"))" if round_ else "]"}:::{kind}')
        for child in boxes.get(box, []):
            label = _mermaid_text(child.label).replace("\n", "<br/>")
            out.append(f'{indent}subgraph box{next(numbers)}["{label}"]')
            inside(child.id, indent + "  ")
            out.append(f"{indent}end")

    inside(None, "  ")
    fixed = {node.id for node in graph.nodes if node.fixed}
    for edge in graph.edges:
        arrow = "==>" if edge.highlighted else "-.->" if edge.source in fixed else "-->"
        text = _edge_text(edge)
        out.append(f"  {short[edge.source]} {arrow}" + f'|"{text}"|' * bool(text) + f" {short[edge.target]}")
    kinds = {"fixed" if node.fixed else node.kind for node in graph.nodes}
    for kind in sorted(kinds):
        fill = _FILLS.get(kind, "#EFEFEF" if kind == "fixed" else "#FFFFFF")
        out.append(
            f"  classDef {kind} fill:{fill},stroke:#333333,color:#333333" + ",stroke-dasharray:3 2" * (kind == "fixed")
        )
    return "\n".join(out) + "\n"
