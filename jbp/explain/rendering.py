"""The argument in blocks, and blocks as text, as Markdown with LaTeX, and as HTML."""

import re
from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np

from .parts import Explanation, Line, Part

SHOWN = 5  # terms of a sum, and numbers of a vector, that are printed; the others are counted and summed

# A block is (kind, content): "title", "heading" and "prose" are text with $mathematics$; "quote" is lines as they are;
# "math" is (left, [(sign, expression, note)]); "table" is rows of cells.
Block = tuple[str, Any]


def blocks(e: Explanation) -> Iterator[Block]:
    N = len(e.contributions)
    yield "title", f"$∂C/∂{e.symbol}$, by induction"
    over = f", the {e.reduction} over {N} examples" if N > 1 else ""
    yield (
        "prose",
        f"C = {_short(e.cost)}{over}; x, y and all of θ but coordinate {e.index}, ${e.symbol}$ = {_short(e.theta)}, "
        "stay fixed.",
    )
    if N > 1:
        most = ", which contributes most" if e.example == np.abs(e.contributions).argmax() else ""
        yield "prose", f"$C_n$ is the cost of example n alone. Written out for n = {e.example}{most}."
    quoted: set[str] = set()  # each equation once
    for part in e.parts:
        yield "heading", part.title
        if part.law:
            left, right = part.law.split(" = ", 1)
            yield "math", (left, [("=", right, "")])
        if fresh := tuple(line for line in part.equations if line not in quoted):
            quoted.update(fresh)
            yield "quote", fresh
        if part.given:
            yield "prose", ", ".join(f"${name}$ = {_short(value)}" for name, value in part.given)
        for line in part.lines:
            yield "math", (line.left, list(rows_of(line)))
        if part.after is not None:
            yield "prose", _told(part)
    yield "heading", "The same number" if e.ok else "NOT the same number"
    rows = [("written out here", f"{e.value:.12g}", "", "")]
    for way, value in e.oracles.items():
        away = f"{abs(value - e.value):.1e} away, {e.allowed[way]:.1e} allowed"
        rows.append((way, f"{value:.12g}", "agrees" if e.agrees[way] else "DOES NOT AGREE", away))
    rows[-1] = (*rows[-1][:3], f"{rows[-1][3]}, h = {e.step:.0e}, in {e.dtype}")
    yield "table", rows
    if e.note:
        yield "prose", e.note


def rows_of(line: Line) -> Iterator[tuple[str, str, str]]:
    """The right-hand sides of a line: in symbols, its terms, its value."""
    if line.right:
        yield "=", line.right, ""
    if len(line.terms) == 1 and len(line.terms[0].factors) > 1:
        yield "=", " · ".join(_factor(f, i) for i, f in enumerate(line.terms[0].factors)), ""
    elif len(line.terms) > 1:
        shown, rest = list(line.terms), []
        if len(shown) > SHOWN + 1:
            order = sorted(line.terms, key=lambda term: -abs(term.value))
            shown, rest = order[:SHOWN], order[SHOWN:]
        for i, term in enumerate(shown):
            product = " · ".join(_factor(f, i) for i, f in enumerate(term.factors))
            note = " ".join(term.names) + (f" = {product}" if len(term.factors) > 1 else "")
            yield _signed(i, term.value, note)
        if rest:
            yield _signed(1, sum(term.value for term in rest), f"the {len(rest)} others, each smaller")
    yield "=", _short(line.value), ""


def _signed(i: int, value: float, note: str) -> tuple[str, str, str]:
    if i == 0:
        return "=", _short(value), note
    return "-" if value < 0 else "+", _short(abs(value)), note


def _factor(value: float, i: int) -> str:
    return f"({_short(value)})" if i and value < 0 else _short(value)


def _short(value: float) -> str:
    return f"{value + 0.0:.6g}"  # −0.0 + 0.0 is 0.0


def _told(part: Part) -> str:
    """δ of the example as a sentence: its largest numbers, and how its norm changed."""
    after: Any = part.after
    text = f"$‖{after.name}‖$ = {_short(after.norm)}"
    if len(after.shape) == 1 and 0 < after.values.size <= SHOWN + 1:
        text = f"${after.name}$ = ({', '.join(map(_short, after.values))}), {text}"
    else:
        text += f" ({' × '.join(map(str, after.shape))} numbers)"
    if part.before is not None:
        times = f"{after.norm / part.before.norm:.3g} of " if part.before.norm else "from "
        text += f", {times}$‖{part.before.name}‖$ = {_short(part.before.norm)}"
    return text + "."


def as_text(given: list[Block]) -> str:
    lines: list[str] = []
    for kind, content in given:
        if kind in ("title", "heading"):
            lines += ["", content.replace("$", "")] if lines else [content.replace("$", "")]
        elif kind == "prose":
            lines.append("  " + content.replace("$", ""))
        elif kind == "quote":
            lines += ["  | " + line for line in content]
        elif kind == "math":
            left, rows = content
            one = f"  {left} " + " ".join(f"{sign} {right}" for sign, right, _ in rows)
            if not any(note for *_, note in rows) and len(one) <= 118:
                lines.append(one)
                continue
            width = max((len(right) for _, right, note in rows if note), default=0)
            for i, (sign, right, note) in enumerate(rows):
                lines.append(f"  {left if i == 0 else '':{len(left)}} {sign} {right:{width}}  {note}".rstrip())
        else:
            widths = [max(map(len, column)) for column in zip(*content, strict=True)]
            lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in content]
    return "\n".join(lines)


def as_markdown(given: list[Block]) -> str:
    lines: list[str] = []
    for kind, content in given:
        if kind in ("title", "heading", "prose"):
            mark = {"title": "## ", "heading": "### ", "prose": ""}[kind]
            lines.append(mark + re.sub(r"\$(.*?)\$", lambda found: f"${_latex(found[1])}$", content))
        elif kind == "quote":
            lines.append("\n".join(("```text", *content, "```")))
        elif kind == "math":
            left, rows = content
            body = " \\\\\n".join(
                f"{_latex(left) if i == 0 else ''} &{sign} {_latex(right)}" + (f" && {_latex(note)}" if note else "")
                for i, (sign, right, note) in enumerate(rows)
            )
            lines.append(f"$$\n\\begin{{aligned}}\n{body}\n\\end{{aligned}}\n$$")
        else:
            rows = [f"| {' | '.join(row)} |" for row in content]
            lines.append("\n".join(["| found by | value | | |", "|---|---|---|---|", *rows]))
    return "\n\n".join(lines) + "\n"


_LETTERS = {
    "δ": "\\delta ", "∂": "\\partial ", "←": "\\leftarrow ", "·": "\\cdot ", "′": "'", "‖": "\\|", "Σ": "\\sum",
}  # fmt: skip
_LATEX: Any = (
    (r"the (\d+) others, each smaller", r"\\text{the \1 others, each smaller}"),
    (r"(δx?)\((.*?)\)", lambda found: f"{found[1]}({_path(found[2])})"),
    (r"δ inside (\S+?)(?=‖|$)", lambda found: rf"δ_{{\text{{inside }}{_path(found[1])}}}"),
    (r"∂(C|C_\w|C_\{\d+\})/∂([^\s_^]*\.[^\s]*)", lambda found: rf"\frac{{∂{found[1]}}}{{∂\,{_path(found[2])}}}"),
    (r"∂(C|C_\w|C_\{\d+\})/∂(\w(?:\^(?:\{\d+\}|\d))?(?:_(?:\{[^}]*\}|\w))?)", r"\\frac{∂\1}{∂\2}"),
    (r"(\d)e([+-]\d+)", lambda found: rf"{found[1]}·10^{{{int(found[2])}}}"),
    ("[δ∂←·′‖]|Σ", lambda found: _LETTERS[found[0]]),
)


def _path(path: str) -> str:
    return rf"\mathtt{{{path.replace('_', chr(92) + '_')}}}"


def _latex(text: str) -> str:
    """The text's notation as LaTeX."""
    for pattern, replacement in _LATEX:
        text = re.sub(pattern, replacement, text)
    return text


_CSS = (
    ".jbp{font:15px/1.5 system-ui,sans-serif;max-width:60em}.jbp .m{font-family:Cambria Math,STIX Two Text,serif}"
    ".jbp table{border-collapse:collapse;margin:.4em 0 .4em 1.5em}.jbp td{padding:.1em .5em;text-align:left;border:0}"
    ".jbp td.r{text-align:right}.jbp td.n{opacity:.7;padding-left:2em}.jbp pre{margin:.4em 0 .4em 1.5em;opacity:.8}"
    ".jbp sub+sup,.jbp sup+sub{margin-left:.05em}"
)


def as_html(given: list[Block]) -> str:
    lines = [f'<div class="jbp"><style>{_CSS}</style>']
    inline = lambda text: re.sub(r"\$(.*?)\$", lambda found: _typeset(found[1]), text)
    for kind, content in given:
        if kind in ("title", "heading", "prose"):
            tag = {"title": "h2", "heading": "h3", "prose": "p"}[kind]
            lines.append(f"<{tag}>{inline(escape(content, quote=False))}</{tag}>")
        elif kind == "quote":
            lines.append(f"<pre>{escape(chr(10).join(content), quote=False)}</pre>")
        elif kind == "math":
            left, rows = content
            lines.append("<table>")
            for i, (sign, right, note) in enumerate(rows):
                cells = (_typeset(escape(cell, quote=False)) for cell in (left if i == 0 else "", sign, right, note))
                marks = ' class="r"', "", "", ' class="n"'
                lines.append("<tr>" + "".join(f"<td{m}>{c}</td>" for m, c in zip(marks, cells, strict=True)) + "</tr>")
            lines.append("</table>")
        else:
            rows = ("".join(f"<td>{escape(cell, quote=False)}</td>" for cell in row) for row in content)
            lines.append("<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>")
    return "\n".join((*lines, "</div>"))


def _typeset(text: str) -> str:
    """The text's notation with raised and lowered indices. Symbols of paths have none, and stay as they are."""
    text = re.sub(r"\^(?:\{([^}]*)\}|(\w))", lambda found: f"<sup>{found[1] or found[2]}</sup>", text)
    text = re.sub(r"(?<![a-z.]{2})_(?:\{([^}]*)\}|(\w))", lambda found: f"<sub>{found[1] or found[2]}</sub>", text)
    return f'<span class="m">{text}</span>' if text else ""
