"""A page as data: what a report says, top to bottom as a terminal shows it; and blocks as text and JSON.

`markup` writes them as Markdown and HTML. Nothing here knows what a report is about.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal


class Maths(str):
    """Words in which the text's notation stands between dollars, as in `"$δ^3_j$ of the example"`."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    words: str


@dataclass(frozen=True)
class Conclusion:
    """What it all comes to. A terminal shows it in its place, a page at its top."""

    ok: bool
    words: str


@dataclass(frozen=True)
class Column:
    """Of a table. `kind` is "number", which stands to the right, or "name", "word" or "text", which stand to the left.

    `wide`: only a page has room for it, and a terminal leaves it out.
    """

    head: str
    kind: str = "text"
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """Columns, and rows as (cells, tone): "wrong", "sum", both or "". Without heads it has no line for them."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[tuple[str, ...], str], ...]


@dataclass(frozen=True)
class Equation:
    """`left`, and below each other its right-hand sides as (sign, expression, note)."""

    left: str
    rows: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Code:
    """Python to be copied, under a title; without one, lines of somebody else that are quoted."""

    text: str
    title: str = ""


@dataclass(frozen=True)
class Picture:
    """An element `<svg>` that is made when a page needs it."""

    svg: Callable[[], str]


@dataclass(frozen=True)
class Section:
    """Blocks under a heading, which a terminal sets in. The heading is of level 1 or 2.

    In a terminal a "quiet" section has an empty line for a heading, an "open" one has none, a "folded" one is left out.
    On a page both of these can be folded away and open.
    """

    title: str
    blocks: tuple["PageBlock", ...] = ()
    how: Literal["", "quiet", "open", "folded"] = ""
    level: int = 2


PageBlock = Text | Conclusion | Table | Equation | Code | Picture | Section


def as_json(data: Any, indent: int | None = 1) -> str:
    """Data as JSON text. NaN, infinity and complex numbers, which JSON has no word for, stand as strings."""
    return json.dumps(_finite(data), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    spoilt = isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value))
    return str(value) if spoilt else value


# -- in a terminal ----------------------------------------------------------------------------------------------------


def as_text(blocks: Iterable[PageBlock]) -> str:
    """The blocks as they stand in a terminal."""
    return "\n".join(line for line, _ in lines(blocks)).lstrip("\n")


def lines(blocks: Iterable[PageBlock]) -> Iterator[tuple[str, str]]:
    """The lines of the blocks in a terminal, each with its tone: "title", "right", "wrong" or ""."""
    for block in blocks:
        match block:
            case Text(words):
                yield plain(words), ""
            case Conclusion(ok, words):
                yield words, "right" if ok else "wrong"
            case Table():
                yield from _aligned(block)
            case Equation(left, rows):
                yield from ((line, "") for line in _under_each_other(left, rows))
            case Code(text, title):
                shown = ("", title, "", text.rstrip()) if title else (f"| {line}" for line in text.split("\n"))
                yield from ((line, "") for line in shown)
            case Section(_, inside, "open"):
                yield from lines(inside)
            case Section(title, inside, "quiet" | "" as how):
                yield "", ""
                if title and not how:
                    yield plain(title), "title"
                yield from lines(inside) if how else ((f"  {line}".rstrip(), tone) for line, tone in lines(inside))


def plain(words: str) -> str:
    """Words without dollars around the notation."""
    return words.replace("$", "") if isinstance(words, Maths) else words


def _aligned(table: Table) -> Iterator[tuple[str, str]]:
    heads = tuple(column.head for column in table.columns)
    rows = [*([(heads, "")] if any(heads) else []), *table.rows]
    narrow = [(i, column.kind == "number") for i, column in enumerate(table.columns) if not column.wide]
    widths = [max(len(cells[i]) for cells, _ in rows) for i, _ in narrow]
    for cells, tone in rows:
        line = (f"{cells[i]:{'>' if right else '<'}{width}}" for (i, right), width in zip(narrow, widths, strict=True))
        yield "  ".join(line).rstrip(), "wrong" if "wrong" in tone else ""


def _under_each_other(left: str, rows: tuple[tuple[str, str, str], ...]) -> Iterator[str]:
    one = " ".join((left, *(f"{sign} {right}" for sign, right, _ in rows)))
    if len(one) <= 116 and not any(note for *_, note in rows):
        yield one
        return
    width = max((len(right) for _, right, note in rows if note), default=0)
    for i, (sign, right, note) in enumerate(rows):
        yield f"{left if i == 0 else '':{len(left)}} {sign} {right:{width}}  {note}".rstrip()
