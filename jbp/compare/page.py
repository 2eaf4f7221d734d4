"""A comparison as a page of HTML that needs nothing else: the verdict, tables, pictures, the calls inside."""

import math
import re
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

from ..errors import InputError
from ..programs.clock import Measured
from .error import LeafError
from .report import RULE, Report, short, state
from .verdict import Verdict

TALL = 20  # leaves, above which their table scrolls by itself, wrong ones first

# Colours stand on any ground, light or dark: a notebook has its own.
STYLE = """
.jbp { --right: #1a8a4a; --wrong: #d0431b; --rule: #2f86c1; --faint: #bbb; --line: rgba(128,128,128,.35);
  --tint: rgba(128,128,128,.1); font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; overflow-wrap: anywhere }
.jbp h2 { font-size: 1.1em; margin: 1.6em 0 .4em } .jbp p, .jbp ul { margin: .4em 0 } .jbp ul { padding-left: 1.3em }
.jbp .verdict { border-left: .5em solid var(--right); padding: .5em .9em; background: var(--tint); margin: .6em 0 }
.jbp .verdict b { display: block; font-size: 1.9em; line-height: 1.2 }
.jbp .verdict p { font-size: 1.1em } .jbp b.right, .jbp span.right { color: var(--right) }
.jbp b.wrong, .jbp span.wrong { color: var(--wrong) }
.jbp .verdict.wrong { border-color: var(--wrong) }
.jbp .wide { overflow: auto; max-width: 100% } .jbp .tall { max-height: 80vh; border: 1px solid var(--line) }
.jbp table { border-collapse: collapse; font-size: .9em; font-variant-numeric: tabular-nums; margin: 0 }
.jbp th, .jbp td { padding: .28em .7em; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: top; background: none }
.jbp thead th { font-weight: 600; vertical-align: bottom } .jbp th.text, .jbp td.text { text-align: left }
.jbp td.name, .jbp td.prose { white-space: normal; text-align: left } 
.jbp td.name { max-width: 20em; overflow-wrap: break-word } .jbp td.prose { min-width: 9em }
.jbp .long td:first-child { min-width: 17em }
.jbp tr.bad td:first-child { box-shadow: inset .25em 0 var(--wrong) }
.jbp tr.sum td { font-weight: 600 } .jbp code, .jbp pre { font: .93em/1.4 ui-monospace, monospace; background: none }
.jbp pre { overflow-x: auto; padding: .8em; background: var(--tint); white-space: pre }
.jbp svg { display: block; width: 100%; min-width: 42rem; height: auto }
.jbp details { border: 1px solid var(--line); border-radius: .3em; padding: .3em .9em; margin: .5em 0 }
.jbp summary { cursor: pointer; font-weight: 600 } .jbp small { opacity: .75 }
"""
GROUND = """
:root { color-scheme: light dark }
body { margin: 0 auto; padding: 1rem; background: var(--ground); color: var(--ink) }
.jbp { --ground: #fff; --ink: #222 } .jbp .tall th { position: sticky; top: 0; background: var(--ground) }
@media (prefers-color-scheme: dark) {
  .jbp { --ground: #15181b; --ink: #e4e4e4; --right: #3fb970; --wrong: #f0764e; --rule: #56b4e9; --faint: #555 } }
@media (max-width: 40rem) { body { padding: .6rem } 
  .jbp .wide td:first-child { min-width: 0; max-width: 11em; position: sticky; left: 0; background: var(--ground) }
  .jbp .long td:first-child { min-width: 11em } }
"""


def figure(report: Report) -> Any:
    """A matplotlib `Figure`: errors against autodiff's, error maps of the leaves furthest off, time and memory.

    Raises `InputError` without matplotlib.
    """
    return _picture("Report.figure").figure(report)


def page(report: Report) -> str:
    """One HTML page with pictures, without scripts or anything from elsewhere.

    Raises `InputError` without matplotlib.
    """
    pictures = _picture("Report.to_html").pictures
    title = f"{'✓' if report.ok else '✗'} {report.name or 'gradient'}"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{GROUND}</style>"
    )
    text = "\n".join(_parts(report, pictures(report)))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body class="jbp">\n{text}\n</body></html>\n'


def body(report: Report) -> str:
    """The page's content without its pictures, to stand inside another page: for a notebook. Needs no matplotlib."""
    return f'<div class="jbp"><style>{STYLE}</style>\n{chr(10).join(_parts(report))}\n</div>'


def _picture(who: str) -> Any:
    try:
        import matplotlib  # noqa: F401

        from . import picture
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] != "matplotlib":
            raise
        raise InputError(
            f"{who}: matplotlib is not installed, and pictures need it. Write: pip install 'jbp[cli]', or use "
            ".to_markdown() or print(report), which need nothing."
        ) from None
    return picture


def _parts(report: Report, pictures: Iterable[str] = (), inside: bool = False) -> Iterator[str]:
    """The page from top to bottom; `inside`: of a call, whose name and verdict stand above it already."""
    where = f" <small>{escape(report.where)}</small>" if report.where else ""
    if not inside:
        yield f"<h1>{escape(report.name or 'gradient')}{where}</h1>" if report.name or where else ""
        kind, word = ("right", "✓ PASSES") if report.ok else ("wrong", "✗ FAILS")
        yield f'<div class="verdict {kind}"><b class="{kind}">{word}</b><p>{escape(report.verdict)}</p></div>'
    elif report.kind is not Verdict.AGREE:
        yield f"<p>{escape(report.verdict)}</p>"
    if report.notes:
        yield f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in report.notes)}</ul>"
    yield from (f'<div class="wide">{picture}</div>' for picture in pictures)
    yield from _leaves(report)
    yield from _checks(report)
    yield from _costs(report)
    if report.calls:
        yield "<h2>Calls of custom rules, in the order of the reverse pass</h2>"
        yield from map(_call, report.calls)
    if report.reproduce:
        yield f"<h2>To make it again</h2><pre><code>{escape(report.reproduce)}</code></pre>"


# -- tables -----------------------------------------------------------------------------------------------------------


def _table(head: Iterable[tuple[str, str]], rows: Iterable[tuple[str, Iterable[str]]], kind: str = "") -> str:
    """`head`: columns and the class of their cells; `rows`: a row's class and its cells, which are HTML."""
    head = list(head)
    titles = "".join(f'<th class="{"text" if of else ""}">{title}</th>' for title, of in head)
    lines = "\n".join(
        f'<tr class="{row}">'
        + "".join(f'<td class="{of}">{cell}</td>' for cell, (_, of) in zip(cells, head, strict=True))
        + "</tr>"
        for row, cells in rows
    )
    heading = f"<thead><tr>{titles}</tr></thead>" if any(title for title, _ in head) else ""
    return f'<div class="wide {kind}"><table>{heading}<tbody>\n{lines}\n</tbody></table></div>'


LEAVES = (
    ("leaf", "name"), ("", "prose"), ("error", ""), ("autodiff’s", ""), ("allowed", ""), ("ratio", ""),
    ("ulps<br>50 / 99 / 100 %", ""), ("1 − cos", ""), ("furthest off:<br>by the rule, in float64", "name"),
    ("dtype, shape", "text"), ("size", ""),
)  # fmt: skip


def _leaves(report: Report) -> Iterator[str]:
    leaves, tall = report.leaves, len(report.leaves) > TALL
    wrong = sum(not leaf.ok for leaf in leaves)
    if tall:
        leaves = tuple(sorted(leaves, key=lambda leaf: leaf.ok))
    rows = [("" if leaf.ok else "bad", _leaf(leaf)) for leaf in leaves]
    if len(leaves) > 1:
        rows.append(("sum" if report.total.ok else "sum bad", _leaf(report.total)))
    count = f"{len(leaves):,} {'leaf' if len(leaves) == 1 else 'leaves'}"
    order = ", these first" if wrong and tall else ""
    yield f"<h2>{count}, {f'{wrong:,} wrong' if wrong else 'none wrong'}{order}</h2>"
    long = any(len(leaf.name) > 20 for leaf in leaves)
    yield _table(LEAVES, rows, f"{'tall' if tall else ''} {'long' if long else ''}")
    pooled = f", pooled over {report.points} points" if report.points > 1 else ""
    errors = f"Errors: rms difference from float64, relative to the leaf’s rms{pooled}."
    yield f"<p><small>{errors} Allowed: {RULE}.</small></p>"


def _leaf(leaf: LeafError) -> tuple[str, ...]:
    unit = leaf.scale or 1.0
    word = '<b class="right">ok</b>' if leaf.ok else '<b class="wrong">WRONG</b>'
    word = f"<b>{state(leaf)}</b>" if leaf.ok and state(leaf) else word
    if told := leaf.excused or leaf.pattern:
        word += f"<br>{escape(told)}"
    shape = f"[{', '.join(map(str, leaf.shape))}]" if leaf.dtype else ""
    where = leaf.where.removeprefix(leaf.name) or leaf.where
    return (
        _name(leaf.name), word,
        *(f"{value / unit:.1e}" for value in (leaf.error, leaf.oracle_error, leaf.allowed)), short(leaf.ratio),
        " / ".join(map(short, leaf.ulps)), f"{max(1 - leaf.cosine, 0.0):.0e}",
        f"{_name(where)}<br>{leaf.got:.6g}, {leaf.expected:.6g}" if where else "",
        f"{escape(leaf.dtype)}{shape}", f"{leaf.size:,}",
    )  # fmt: skip


def _name(name: str) -> str:
    """A name that may be broken after its dots and underscores."""
    return f"<code>{re.sub('([._])', chr(92) + '1<wbr>', escape(name))}</code>"


def _checks(report: Report) -> Iterator[str]:
    words = {True: ("right", "ok"), False: ("wrong", "FAILS"), None: ("", "—")}
    rows = []
    for check in report.checks:
        kind, word = words[check.ok]
        cells = escape(check.name), f'<b class="{kind}">{word}</b>', escape(check.text)
        rows.append(("bad" if check.ok is False else "", cells))
    if rows:
        yield f"<h2>Besides values</h2>{_table((('', 'name'), ('', 'text'), ('', 'prose')), rows)}"


def _costs(report: Report) -> Iterator[str]:
    if report.rule and report.oracle:
        pairs = zip(_numbers(report.rule), _numbers(report.oracle), strict=True)
        ratios = ["" if a is None or not b else f"{a / b:.2f} ×" for a, b in pairs]
        head = (("", "text"), ("time of a call", ""), ("temporary memory", ""), ("FLOPs", ""), ("time to compile", ""))
        rows = [("rule", *_amounts(report.rule)), ("autodiff", *_amounts(report.oracle)), ("rule ÷ autodiff", *ratios)]
        yield f"<h2>Time and memory</h2>{_table(head, (('', row) for row in rows))}"
    if race := report.race:
        told = f"quartiles {race.low:.2f} to {race.high:.2f} of {race.pairs:,} pairs of runs"
        sure = "" if race.low > 1 or race.high < 1 else "; a tie as far as this shows"
        yield f"<p>Time: {race.ratio:.2f} times autodiff’s, {told}{sure}.</p>"


def _numbers(m: Measured) -> tuple[float | int | None, ...]:
    return m.seconds, m.temp_bytes, None if m.flops is None or m.flops < 0 else m.flops, m.compile_seconds


def _amounts(m: Measured) -> list[str]:
    units = ("s", "B", "FLOP", "s")
    return ["" if value is None else amount(value, unit) for value, unit in zip(_numbers(m), units, strict=True)]


def amount(value: float | int, unit: str) -> str:
    """A number with a prefix, as `0.1 ms` or `19 kB`; also what is tiny, huge, or nothing."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g} {unit}"
    low, high = (-3, 0) if unit == "s" else (0, 5)
    thousands = min(max(math.floor(math.log10(abs(value)) / 3), low), high)
    return f"{value / 1000.0**thousands:.3g} {('', *'kMGTPnµm')[thousands]}{unit}"


def _call(call: Report) -> str:
    """A call inside, folded away unless it is wrong."""
    bad = call.kind is Verdict.WRONG
    kind, word = ("wrong", "✗ WRONG:") if bad else ("right", "✓")
    what = call.worst.pattern or f"{short(call.worst.ratio)} times autodiff’s error in {call.worst.name}"
    where = f" <small>{escape(call.where)}</small>" if call.where else ""
    summary = f'<summary><span class="{kind}">{word} {escape(call.name)}</span>{where} — {escape(what)}</summary>'
    inner = "\n".join(_parts(call, inside=True))
    return f"<details{' open' if bad else ''}>{summary}\n{inner}\n</details>"
