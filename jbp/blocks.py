"""A page as data, and the only place that writes one: for a terminal, as Markdown, as HTML, as JSON, in a notebook.

A report lists its blocks, top to bottom as a terminal shows them, and inherits from `Page` all ways to be shown. On a
page, which is read from its top, the outcome stands first. Nothing here knows what a report is about.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from . import markup

TALL = 20  # rows, above which a table of a page scrolls by itself


class Maths(str):
    """Words in which the text's notation stands between dollars, as in `"$δ^3_j$ of the example"`."""


@dataclass(frozen=True)
class Title:
    """What all is about. `ok` marks a page; `level` is that of the heading in Markdown, and sections are one below.

    `under`: blocks right under it, which a terminal sets in.
    """

    words: str
    ok: bool | None = None
    level: int = 2
    under: tuple["Block", ...] = ()


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    words: str


@dataclass(frozen=True)
class Outcome:
    """What it all comes to, in words."""

    ok: bool
    words: str


@dataclass(frozen=True)
class Column:
    """`kind` is "number", which stands to the right, or "name", "word" or "text", which stand to the left."""

    head: str
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns. `tones`: "wrong", "sum" or both for each row, none where they are left out."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    tones: tuple[str, ...] = ()

    @property
    def toned(self) -> Iterator[tuple[tuple[str, ...], str]]:
        return zip(self.rows, self.tones or ("",) * len(self.rows), strict=True)


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
    """Blocks under a heading. A terminal sets them in; of a `quiet` section it shows no heading, only an empty line."""

    title: str
    blocks: tuple["Block", ...]
    quiet: bool = False


@dataclass(frozen=True)
class Fold:
    """A page within the page, folded away under its summary unless it is wrong: then a terminal shows it too."""

    ok: bool
    summary: str
    blocks: tuple["Block", ...]


@dataclass(frozen=True)
class Only:
    """What is shown in one `place` alone: on a "page", or in a "terminal"."""

    place: str
    blocks: tuple["Block", ...]


Block = Title | Text | Outcome | Table | Equation | Code | Picture | Section | Fold | Only


class Page:
    """A report that is shown by its blocks: print it, leave it to a notebook, or write it to a file."""

    def blocks(self) -> Iterable[Block]:
        """What it says, from top to bottom."""
        raise NotImplementedError

    def __str__(self) -> str:
        return as_text(self.blocks())

    __repr__ = __str__

    def to_markdown(self) -> str:
        """The report as Markdown, its equations in LaTeX."""
        return as_markdown(self.blocks())

    def to_html(self, path: str | Path | None = None) -> str:
        """One page that needs nothing else, without scripts; it is written to `path` if that is given.

        Raises `InputError` where it has pictures and matplotlib is not installed.
        """
        text = as_page(self.blocks())
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def _repr_html_(self) -> str:
        return as_html(self.blocks())


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


# -- for a terminal ---------------------------------------------------------------------------------------------------


def as_text(blocks: Iterable[Block]) -> str:
    """The blocks as they stand in a terminal."""
    return "\n".join(line for line, _ in lines(blocks)).removeprefix("\n")


def lines(blocks: Iterable[Block]) -> Iterator[tuple[str, str]]:
    """The lines of the blocks in a terminal, each with its tone: "title", "right", "wrong" or ""."""
    for block in blocks:
        match block:
            case Title(words, under=under) if words:
                yield from ((_plain(words), "title"), *_set_in(under))
            case Text(words):
                yield _plain(words), ""
            case Outcome(ok, words):
                yield words, "right" if ok else "wrong"
            case Table():
                yield from _aligned(block)
            case Equation():
                yield from ((line, "") for line in _under_each_other(block))
            case Code(text, title):
                shown = ("", title, "", text.rstrip()) if title else (f"| {line}" for line in text.split("\n"))
                yield from ((line, "") for line in shown)
            case Section(title, inside, quiet):
                yield from (("", ""), *([] if quiet else [(title, "title")]))
                yield from lines(inside) if quiet else _set_in(inside)
            case Fold(False, _, inside):
                yield from (("", ""), *lines(inside))
            case Only("terminal", inside):
                yield from lines(inside)


def _set_in(blocks: Iterable[Block]) -> Iterator[tuple[str, str]]:
    return ((f"  {line}".rstrip(), tone) for line, tone in lines(blocks))


def _plain(words: str) -> str:
    return words.replace("$", "") if isinstance(words, Maths) else words


def _aligned(table: Table) -> Iterator[tuple[str, str]]:
    heads = tuple(column.head for column in table.columns)
    shown = [*([(heads, "")] if any(heads) else []), *table.toned]
    widths = [max(map(len, cells)) for cells in zip(*(row for row, _ in shown), strict=True)]
    adjust = [str.rjust if column.kind == "number" else str.ljust for column in table.columns]
    for row, tone in shown:
        cells = (to(cell, width) for to, cell, width in zip(adjust, row, widths, strict=True))
        yield "  ".join(cells).rstrip(), "wrong" if "wrong" in tone else ""


def _under_each_other(equation: Equation) -> Iterator[str]:
    left, rows = equation.left, equation.rows
    one = " ".join((left, *(f"{sign} {right}" for sign, right, _ in rows)))
    if len(one) <= 116 and not any(note for *_, note in rows):
        yield one
        return
    width = max((len(right) for _, right, note in rows if note), default=0)
    for i, (sign, right, note) in enumerate(rows):
        yield f"{left if i == 0 else '':{len(left)}} {sign} {right:{width}}  {note}".rstrip()


# -- as Markdown ------------------------------------------------------------------------------------------------------

MARKS = {True: "✅", False: "❌", None: ""}


def as_markdown(blocks: Iterable[Block]) -> str:
    """The blocks as Markdown, in which GitHub and notebooks draw LaTeX."""
    return "\n\n".join(_markdown(_outcome_first(blocks), 2)) + "\n"


def _outcome_first(blocks: Iterable[Block]) -> list[Block]:
    return sorted(blocks, key=lambda block: 0 if isinstance(block, Title) else 1 if isinstance(block, Outcome) else 2)


def _markdown(blocks: Iterable[Block], level: int) -> Iterator[str]:
    for block in blocks:
        match block:
            case Title(words, ok, level, under):
                yield " ".join(filter(None, ("#" * level, MARKS[ok], _in_latex(words) or "gradient")))
                yield from _markdown(under, level)
            case Text(words) | Outcome(_, words):
                yield _in_latex(words)
            case Table(columns):
                heads = [column.head for column in columns]
                rows = [[_cell(*pair) for pair in zip(row, columns, strict=True)] for row in block.rows]
                yield "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))
            case Equation(left, rows):
                sides = ((sign, *map(markup.latex, (right, note))) for sign, right, note in rows)
                body = " \\\\\n ".join(f"&{sign} {right}" + f" && {note}" * bool(note) for sign, right, note in sides)
                yield f"$$\n\\begin{{aligned}}\n{markup.latex(left)} {body}\n\\end{{aligned}}\n$$"
            case Code(text, title):
                yield f"```{'python' if title else 'text'}\n{text.rstrip()}\n```"
            case Section(title, inside):
                yield from ([f"{'#' * (level + 1)} {title}"] if title else [])
                yield from _markdown(inside, level + 1)
            case Fold(ok, summary, inside):
                yield f"<details><summary>{MARKS[ok]} {escape(summary)}</summary>"
                yield from _markdown(_untitled(inside), level + 1)
                yield "</details>"
            case Only("page", inside):
                yield from _markdown(inside, level)


def _untitled(blocks: Iterable[Block]) -> list[Block]:
    """What stands inside a fold, whose summary is its title."""
    return [block for block in _outcome_first(blocks) if not isinstance(block, Title)]


def _cell(cell: str, column: Column) -> str:
    cell = cell.replace("|", "\\|").replace("\n", " ")
    return f"`{cell}`" if column.kind == "name" and cell else f"**{cell}**" if column.kind == "word" and cell else cell


def _in_latex(words: str) -> str:
    return re.sub(r"\$(.*?)\$", lambda m: f"${markup.latex(m[1])}$", words) if isinstance(words, Maths) else words


# -- as HTML ----------------------------------------------------------------------------------------------------------


def as_html(blocks: Iterable[Block], pictures: bool = False) -> str:
    """The blocks as an element to stand inside another page, without pictures unless they are asked for."""
    shown = (block for block in _outcome_first(blocks) if pictures or not isinstance(block, Picture))
    return markup.fragment(_html(shown))


def as_page(blocks: Iterable[Block]) -> str:
    """The blocks and their pictures as one page of HTML, without scripts or anything from elsewhere."""
    blocks = list(blocks)
    titles = (f"{MARKS[block.ok]} {_plain(block.words)}".strip() for block in blocks if isinstance(block, Title))
    return markup.page(next(titles, "jbp"), as_html(blocks, pictures=True))


def _html(blocks: Iterable[Block]) -> str:
    return "\n".join(map(_element, blocks))


def _element(block: Block) -> str:
    match block:
        case Title(words, under=under):
            return f"<h1>{_typeset(words)}</h1>\n{_html(under)}" if words else ""
        case Text(words):
            return f"<p>{_typeset(words)}</p>"
        case Outcome(ok, words):
            kind, word = ("right", "✓ PASSES") if ok else ("wrong", "✗ FAILS")
            return f'<div class="verdict {kind}"><b>{word}</b><p>{escape(words)}</p></div>'
        case Table(columns):
            heads = [f'<th scope="col" class="{column.kind}">{escape(column.head)}</th>' for column in columns]
            head = f"<thead><tr>{''.join(heads)}</tr></thead>" if any(column.head for column in columns) else ""
            rows = "\n".join(markup.row(cells, [c.kind for c in columns], tone) for cells, tone in block.toned)
            kind = "wide tall" if len(block.rows) > TALL else "wide"
            return f'<div class="{kind}"><table>{head}<tbody>\n{rows}\n</tbody></table></div>'
        case Equation(left, given):
            sides = [(left if i == 0 else "", *row) for i, row in enumerate(given)]
            rows = "".join(markup.row(side, ("math number", "math", "math", "math text")) for side in sides)
            return f'<table class="equation">{rows}</table>'
        case Code(text, title):
            return f"{f'<h2>{title}</h2>' if title else ''}<pre>{escape(text)}</pre>"
        case Picture(svg):
            return f'<div class="wide">{svg()}</div>'
        case Section(title, inside):
            return f"{f'<h2>{escape(title)}</h2>' if title else ''}\n{_html(inside)}"
        case Fold(ok, summary, inside):
            kind = ' class="right"' if ok else ' class="wrong" open'
            return f"<details{kind}><summary>{escape(summary)}</summary>\n{_html(_untitled(inside))}\n</details>"
        case Only("page", inside):
            return _html(inside)
    return ""


def _typeset(words: str) -> str:
    if not isinstance(words, Maths):
        return escape(words)
    return re.sub(r"\$(.*?)\$|([^$]+)", lambda m: markup.typeset(m[1]) if m[2] is None else escape(m[2]), words)
