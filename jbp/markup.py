"""HTML and LaTeX, letter by letter: the text's notation as in `∂C_n/∂w^2_{3←7}`, cells of tables, a whole page."""

import re
from collections.abc import Iterable
from html import escape
from typing import Any

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


# -- pages ------------------------------------------------------------------------------------------------------------

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


def fragment(body: str) -> str:
    """An element with its style, to stand inside another page."""
    return f'<div class="jbp"><style>{STYLE}</style>\n{body}\n</div>'


def page(title: str, body: str) -> str:
    """A whole page around a fragment, without scripts or anything from elsewhere."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{GROUND}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def row(cells: Iterable[str], kinds: Iterable[str], tone: str = "") -> str:
    """A row of a table, each cell of its kind: "name" is code, "math" the text's notation."""
    return f'<tr class="{tone}">{"".join(map(_cell, cells, kinds))}</tr>'


def _cell(cell: str, kind: str) -> str:
    shown = typeset(cell) if kind.startswith("math") else escape(cell)
    if kind == "name" and cell:  # it may be broken after its dots and underscores
        shown = f"<code>{re.sub('([._])', chr(92) + '1<wbr>', shown)}</code>"
    return f'<td class="{kind}">{shown}</td>'
