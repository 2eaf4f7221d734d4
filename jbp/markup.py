"""Blocks as Markdown with LaTeX, as HTML that needs nothing else, and in a notebook: `Page`, what reports inherit.

On a page, which is read from its top, the outcome stands first.
"""

import re
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from .blocks import Block, Code, Column, Equation, Folds, Maths, Outcome, Picture, Section, Table, Text, Title

from .blocks import as_text, plain  # isort: skip

MARKS = {True: "✅", False: "❌", None: ""}
TALL = 20  # rows, above which a table of a page scrolls by itself, and has those first that are wrong


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


def _outcome_first(blocks: Iterable[Block], titled: bool = True) -> list[Block]:
    place = lambda block: 0 if isinstance(block, Title) else 1 if isinstance(block, Outcome) else 2
    return sorted((block for block in blocks if titled or not isinstance(block, Title)), key=place)


# -- Markdown ---------------------------------------------------------------------------------------------------------


def as_markdown(blocks: Iterable[Block]) -> str:
    """The blocks as Markdown, in which GitHub and notebooks draw LaTeX."""
    return "\n\n".join(_markdown(_outcome_first(blocks), 2)) + "\n"


def _markdown(blocks: Iterable[Block], level: int) -> Iterator[str]:
    for block in blocks:
        match block:
            case Title(words, ok, under):
                level = 2 if ok is None else 3
                yield " ".join(filter(None, ("#" * level, MARKS[ok], _in_latex(words) or "gradient")))
                yield from _markdown(under, level)
            case Text(words) | Outcome(_, words):
                yield _in_latex(words)
            case Table(columns):
                heads = [column.head for column in columns]
                rows = [[_cell(*pair) for pair in zip(row, columns, strict=True)] for row in block.rows]
                yield "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))
            case Equation(left, rows):
                sides = ((sign, *map(latex, (right, note))) for sign, right, note in rows)
                body = " \\\\\n ".join(f"&{sign} {right}" + f" && {note}" * bool(note) for sign, right, note in sides)
                yield f"$$\n\\begin{{aligned}}\n{latex(left)} {body}\n\\end{{aligned}}\n$$"
            case Code(text, title):
                yield f"```{'python' if title else 'text'}\n{text.rstrip()}\n```"
            case Section(title, inside):
                yield from ([f"{'#' * (level + 1)} {_in_latex(title)}"] if title else [])
                yield from _markdown(inside, level + 1)
            case Folds():
                for ok, line, page in block.each:
                    yield f"<details><summary>{MARKS[ok]} {escape(line)}</summary>"
                    yield from _markdown(_outcome_first(page, titled=False), level + 1)
                    yield "</details>"


def _cell(cell: str, column: Column) -> str:
    cell = cell.replace("|", "\\|").replace("\n", " ")
    return f"`{cell}`" if column.kind == "name" and cell else f"**{cell}**" if column.kind == "word" and cell else cell


def _in_latex(words: str) -> str:
    return re.sub(r"\$(.*?)\$", lambda m: f"${latex(m[1])}$", words) if isinstance(words, Maths) else words


# -- the text's notation, as in `∂C_n/∂w^2_{3←7}` ---------------------------------------------------------------------

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


def latex(text: str) -> str:
    """The notation as LaTeX."""
    for pattern, replacement in _LATEX:
        text = re.sub(pattern, replacement, text)
    return text


def typeset(text: str) -> str:
    """The notation with raised and lowered indices. Symbols of paths have none, and stay as they are."""
    text = escape(text, quote=False)
    text = re.sub(r"\^(?:\{([^}]*)\}|(\w))", lambda found: f"<sup>{found[1] or found[2]}</sup>", text)
    text = re.sub(r"(?<![a-z.]{2})_(?:\{([^}]*)\}|(\w))", lambda found: f"<sub>{found[1] or found[2]}</sub>", text)
    return f'<span class="m">{text}</span>' if text else ""


# -- HTML --------------------------------------------------------------------------------------------------------------

# Colours stand on any ground, light or dark: a notebook has its own.
STYLE = """
.jbp { --right: #1a8a4a; --wrong: #d0431b; --rule: #2f86c1; --faint: #bbb; --line: rgba(128,128,128,.35);
  --tint: rgba(128,128,128,.1); font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; overflow-wrap: anywhere }
.jbp h2 { font-size: 1.1em; margin: 1.6em 0 .4em } .jbp p { margin: .4em 0 }
.jbp .verdict { border-left: .5em solid var(--right); padding: .5em .9em; background: var(--tint); margin: .6em 0 }
.jbp .verdict b { display: block; font-size: 1.9em; line-height: 1.2; color: var(--right) }
.jbp .verdict.wrong { border-color: var(--wrong) }
.jbp .wrong > b, .jbp .wrong > .word, .jbp .wrong > summary { color: var(--wrong) }
.jbp .wide { overflow: auto; max-width: 100% } .jbp .tall { max-height: 80vh; border: 1px solid var(--line) }
.jbp table { border-collapse: collapse; font-size: .9em; font-variant-numeric: tabular-nums; margin: .4em 0 }
.jbp th, .jbp td { padding: .28em .7em; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top;
  background: none } .jbp th { font-weight: 600; vertical-align: bottom }
.jbp .number { text-align: right; white-space: nowrap } .jbp td.word { font-weight: 600 }
.jbp td.name { max-width: 20em; overflow-wrap: break-word } .jbp td.text { min-width: 9em }
.jbp tr.wrong td:first-child { box-shadow: inset .25em 0 var(--wrong) } .jbp tr.sum td { font-weight: 600 }
.jbp code, .jbp pre { font: .93em/1.4 ui-monospace, monospace; background: none }
.jbp pre { overflow-x: auto; padding: .8em; background: var(--tint); white-space: pre }
.jbp .equation td { border: 0; padding: .1em .5em } .jbp .equation .text { opacity: .7; padding-left: 2em }
.jbp .m { font-family: Cambria Math, STIX Two Text, serif } .jbp sub + sup, .jbp sup + sub { margin-left: .05em }
.jbp svg { display: block; width: 100%; min-width: 42rem; height: auto }
.jbp details { border: 1px solid var(--line); border-radius: .3em; padding: .3em .9em; margin: .5em 0 }
.jbp summary { cursor: pointer; font-weight: 600 }
"""
GROUND = """
:root { color-scheme: light dark; --ground: #fff; --ink: #222 }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--ground); color: var(--ink) }
body .tall th { position: sticky; top: 0; background: var(--ground) }
@media (prefers-color-scheme: dark) { :root { --ground: #15181b; --ink: #e4e4e4 }
  body .jbp { --right: #3fb970; --wrong: #f0764e; --rule: #56b4e9; --faint: #555 } }
@media (max-width: 40rem) { body { padding: .6rem }
  body .wide td:first-child { max-width: 11em; position: sticky; left: 0; background: var(--ground) } }
"""


def as_html(blocks: Iterable[Block], pictures: bool = False) -> str:
    """The blocks as an element to stand inside another page, without pictures unless they are asked for."""
    shown = (block for block in _outcome_first(blocks) if pictures or not isinstance(block, Picture))
    return f'<div class="jbp"><style>{STYLE}</style>\n{_html(shown)}\n</div>'


def as_page(blocks: Iterable[Block]) -> str:
    """The blocks and their pictures as one page of HTML, without scripts or anything from elsewhere."""
    blocks = list(blocks)
    titles = (f"{MARKS[block.ok]} {plain(block.words)}".strip() for block in blocks if isinstance(block, Title))
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(next(titles, 'jbp'))}</title><style>{GROUND}</style>"
    )
    body = as_html(blocks, pictures=True)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


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
            tall = len(block.rows) > TALL
            toned = sorted(block.toned, key=lambda row: tall and "wrong" not in row[1])
            return _table([(c.head, c.kind) for c in columns], toned, "wide tall" if tall else "wide")
        case Equation(left, given):
            sides = [((left if i == 0 else "", *row), "") for i, row in enumerate(given)]
            kinds = "math number", "math", "math", "math text"
            return _table([("", kind) for kind in kinds], sides, "equation")
        case Code(text, title):
            return f"{f'<h2>{title}</h2>' if title else ''}<pre>{escape(text)}</pre>"
        case Picture(svg):
            return f'<div class="wide">{svg()}</div>'
        case Section(title, inside):
            return f"{f'<h2>{_typeset(title)}</h2>' if title else ''}\n{_html(inside)}"
        case Folds():
            pages = ((ok, escape(line), _html(_outcome_first(page, titled=False))) for ok, line, page in block.each)
            state = {True: "", False: ' class="wrong" open'}
            return "\n".join(f"<details{state[ok]}><summary>{a}</summary>\n{b}\n</details>" for ok, a, b in pages)
    return ""


def _table(columns: list[tuple[str, str]], rows: Iterable[tuple[Iterable[str], str]], kind: str) -> str:
    """A table of columns (head, kind) and rows (cells, tone). Of a kind "name" is code, "math" the text's notation."""
    heads = "".join(f'<th scope="col" class="{kind}">{escape(head)}</th>' for head, kind in columns)
    head = f"<thead><tr>{heads}</tr></thead>" if any(head for head, _ in columns) else ""
    kinds = [kind for _, kind in columns]
    body = "\n".join(f'<tr class="{tone}">{"".join(map(_td, cells, kinds))}</tr>' for cells, tone in rows)
    return f'<div class="{kind}"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def _td(cell: str, kind: str) -> str:
    shown = typeset(cell) if kind.startswith("math") else escape(cell)
    if kind == "name" and cell:  # it may be broken after its dots and underscores
        shown = f"<code>{re.sub('([._])', chr(92) + '1<wbr>', shown)}</code>"
    return f'<td class="{kind}">{shown}</td>'


def _typeset(words: str) -> str:
    if not isinstance(words, Maths):
        return escape(words)
    return re.sub(r"\$(.*?)\$|([^$]+)", lambda m: typeset(m[1]) if m[2] is None else escape(m[2]), words)
