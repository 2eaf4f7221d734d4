"""Blocks as Markdown with LaTeX, as HTML that needs nothing else, and in a notebook: `Page`, what reports inherit."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from .blocks import Code, Conclusion, Equation, Maths, PageBlock, Picture, Section, Table, Text, as_text, plain

MARKS = {True: ("✅", "✓ PASSES", "verdict right"), False: ("❌", "✗ FAILS", "verdict wrong")}
TALL = 20  # rows, above which a table of a page scrolls by itself, and has those first that are wrong


class Page(ABC):
    """A report that is shown by its blocks: print it, leave it to a notebook, or write it to a file."""

    @abstractmethod
    def blocks(self) -> Iterable[PageBlock]:
        """What it says, from top to bottom."""

    def __str__(self) -> str:
        return as_text(self.blocks())

    __repr__ = __str__

    def to_markdown(self) -> str:
        """The report as Markdown, its equations in LaTeX, which GitHub and notebooks draw."""
        return "\n\n".join(_markdown(_conclusion_first(self.blocks()))) + "\n"

    def to_html(self, path: str | Path | None = None) -> str:
        """One page with pictures, without scripts or anything from elsewhere; written to `path` if that is given.

        Raises `InputError` where it has pictures and matplotlib is not installed.
        """
        blocks = list(self.blocks())
        titles = [plain(block.title) for block in blocks if isinstance(block, Section)]
        text = PAGE.format(title=escape(titles[0] if titles else ""), ground=GROUND, body=_fragment(blocks))
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def _repr_html_(self) -> str:
        return _fragment(block for block in self.blocks() if not isinstance(block, Picture))


def _conclusion_first(blocks: Iterable[PageBlock]) -> list[PageBlock]:
    return sorted(blocks, key=lambda block: not isinstance(block, Conclusion))


def _inline(words: str, notation: Callable[[str], str], others: Callable[[str], str]) -> str:
    """Words with the notation between dollars written by one function, and all else by another."""
    if not isinstance(words, Maths):
        return others(words)
    return "".join((notation if i % 2 else others)(part) for i, part in enumerate(words.split("$")))


# -- Markdown ---------------------------------------------------------------------------------------------------------


def _markdown(blocks: Iterable[PageBlock]) -> Iterator[str]:
    for block in blocks:
        match block:
            case Text(words):
                yield _latex_in(words)
            case Conclusion(ok, words):
                mark, word, _ = MARKS[ok]
                yield f"### {mark} {word[2:]}\n\n{_latex_in(words)}"
            case Table(columns, given):
                marks = [{"name": "`", "word": "**"}.get(column.kind, "") for column in columns]
                cells = (map(_marked, row, marks) for row, _ in given)
                rows = (tuple(c.head for c in columns), ["---"] * len(columns), *cells)
                yield "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
            case Equation(left, sides):
                terms = ((sign, latex(right), f" && {latex(note)}" if note else "") for sign, right, note in sides)
                body = " \\\\\n ".join(f"&{sign} {right}{note}" for sign, right, note in terms)
                yield f"$$\n\\begin{{aligned}}\n{latex(left)} {body}\n\\end{{aligned}}\n$$"
            case Code(text, title):
                yield f"```{'python' if title else 'text'}\n{text.rstrip()}\n```"
            case Section(title, inside, "open" | "folded"):
                yield f"<details><summary>{escape(title)}</summary>"
                yield from (*_markdown(_conclusion_first(inside)), "</details>")
            case Section(title, inside, level=level):
                yield from ([f"#{'#' * level} {_latex_in(title)}"] if title else [])
                yield from _markdown(inside)


def _marked(cell: str, mark: str) -> str:
    return f"{mark}{cell}{mark}" if cell and mark else _latex_in(cell)


def _latex_in(words: str) -> str:
    return _inline(words, lambda text: f"${latex(text)}$", lambda text: text.replace("<", "&lt;"))


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


# -- HTML -------------------------------------------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{ground}</style></head><body>
{body}
</body></html>
"""
# Colours stand on any ground, light or dark: a notebook has its own.
CSS = """
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


def _fragment(blocks: Iterable[PageBlock]) -> str:
    """The blocks as an element with its style, to stand inside any page."""
    return f'<div class="jbp"><style>{CSS}</style>\n{_html(blocks)}\n</div>'


def _html(blocks: Iterable[PageBlock]) -> str:
    return "\n".join(map(_element, _conclusion_first(blocks)))


def _element(block: PageBlock) -> str:
    match block:
        case Text(words):
            return f"<p>{_typeset_in(words)}</p>"
        case Conclusion(ok, words):
            _, word, kind = MARKS[ok]
            return f'<div class="{kind}"><b>{word}</b><p>{escape(words)}</p></div>'
        case Table(columns, rows):
            tall = len(rows) > TALL
            toned = sorted(rows, key=lambda row: tall and "wrong" not in row[1])
            return _table([(c.head, c.kind) for c in columns], toned, "wide tall" if tall else "wide")
        case Equation(left, given):
            kinds = "math number", "math", "math", "math text"
            sides = [((left if i == 0 else "", *row), "") for i, row in enumerate(given)]
            return _table([("", kind) for kind in kinds], sides, "equation")
        case Code(text, title):
            return f"{f'<h2>{title}</h2>' if title else ''}<pre>{escape(text)}</pre>"
        case Picture(svg):
            return f'<div class="wide">{svg()}</div>'
        case Section(title, inside, "open" | "folded" as how):
            kind = ' class="wrong" open' if how == "open" else ""
            return f"<details{kind}><summary>{escape(title)}</summary>\n{_html(inside)}\n</details>"
        case Section(title, inside, _, level):
            return f"{f'<h{level}>{_typeset_in(title)}</h{level}>' if title else ''}\n{_html(inside)}"


def _typeset_in(words: str) -> str:
    return _inline(words, typeset, escape)


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
