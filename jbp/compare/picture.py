"""The pictures of a comparison: how far off each leaf is, where in it, and what both rules cost.

Drawn on a `Figure` of its own, so neither pyplot nor a display is touched. Colours: Okabe & Ito, safe for the
colour-blind; what they tell apart, shapes and words tell apart too.
"""

import io
import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .error import LeafError
from .page import amount
from .report import Report

RULE, ORACLE, WRONG, INK, FAINT, NONE = "#0072B2", "#E69F00", "#D55E00", "#333333", "#BBBBBB", "#F4F4F4"
ROWS = 30  # leaves that have a row, the furthest off first
CALLS = 10  # calls inside that have one
MAPS = 6  # leaves whose errors are drawn element by element
LONG = 32  # letters of a name
STYLE: Any = {
    "font.size": 9, "font.family": "DejaVu Sans", "axes.titlesize": 10, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK, "text.color": INK,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.facecolor": "none", "legend.frameon": False,
    "legend.fontsize": 8, "legend.handletextpad": 0.3, "legend.columnspacing": 1.2, "svg.hashsalt": "jbp",
}  # fmt: skip

Panel = tuple[Callable[[Any], None], float]  # how it is drawn on a part of a figure, and its height in inches


def figure(report: Report) -> Figure:
    """All panels on one figure, under the verdict."""
    panels = _panels(report)
    heights = [height for _, height in panels]
    told = textwrap.fill(report.verdict, 112, break_on_hyphens=False)
    with matplotlib.rc_context(STYLE):
        top = 0.25 + 0.2 * (told.count("\n") + 1)
        drawn = Figure(figsize=(11, top + sum(heights)), layout="constrained", facecolor="white")
        title, *parts = drawn.subfigures(len(panels) + 1, 1, height_ratios=[top, *heights], squeeze=False).flat
        words = {"fontsize": 11, "fontweight": "bold", "color": INK if report.ok else WRONG, "parse_math": False}
        title.text(0.01, 0.5, told, ha="left", va="center", **words)
        for part, (draw, _) in zip(parts, panels, strict=True):
            part.set_facecolor("none")
            draw(part)
    return drawn


def pictures(report: Report) -> list[str]:
    """Each panel as SVG to stand inside a page: ink has the page's colour, nothing refers to anywhere else."""
    drawn = list[str]()
    with matplotlib.rc_context(STYLE):
        for draw, height in _panels(report):
            panel = Figure(figsize=(9.6, height), layout="constrained")
            draw(panel)
            file = io.StringIO()
            panel.savefig(file, format="svg", transparent=True)
            drawn.append(_inline(file.getvalue(), f"picture{len(drawn)}"))
    return drawn


def _inline(svg: str, prefix: str) -> str:
    """An SVG file as an element of a page whose other pictures have the same ids."""
    unwanted = r'<metadata>.*?</metadata>|<style.*?</style>| id="image[^"]*"| xmlns(:xlink)?="[^"]*"'
    svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg[svg.index("<svg") :])
    for colour, variable in ((INK, "currentColor"), (RULE, "var(--rule)"), (FAINT, "var(--faint)")):
        svg = svg.replace(colour.lower(), variable)
    return re.sub(r'<svg .*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1, flags=re.DOTALL)


def _panels(report: Report) -> list[Panel]:
    rows = _rows(report)
    panels: list[Panel] = [(lambda part: _errors(part, report, rows), 1.25 + 0.23 * max(len(rows), 2))]
    if maps := _mapped(report):
        panels.append((lambda part: _maps(part, maps, len(report.leaves)), 0.75 + 1.95 * -(-len(maps) // 3)))
    if report.rule and report.oracle:
        panels.append((lambda part: _costs(part, report), 1.6))
    return panels


# -- names and numbers ------------------------------------------------------------------------------------------------


def elided(names: Sequence[str], long: int = LONG) -> list[str]:
    """Names of at most so many letters. Parts with a digit are kept longest; names then alike are numbered."""
    short = [_elided("".join(c if c.isprintable() else "?" for c in name), long) for name in names]
    count = Counter(short)
    return [f"{name} #{i}" if count[name] > 1 else name for i, name in enumerate(short)]


def _elided(name: str, long: int) -> str:
    parts = name.split(".")
    for keep in range(max(map(len, parts)), 2, -1):
        if len(name) <= long:
            break
        cut = [p if len(p) <= keep or any(map(str.isdigit, p)) else f"{p[: keep - 1]}…" for p in parts]
        name = ".".join(cut).replace("….", "…")
    return name if len(name) <= long else f"{name[: long // 2]}…{name[len(name) - (long - 1) // 2 :]}"


def _furthest(leaves: Iterable[LeafError], most: int) -> list[int]:
    """Places of the leaves that are furthest off, what does not pass before what does, in their own order."""
    leaves = list(leaves)
    order = sorted(range(len(leaves)), key=lambda i: (leaves[i].ok, -leaves[i].excess))
    return sorted(order[:most])


def _rows(report: Report) -> list[tuple[str, LeafError]]:
    """What has a row in the panel of errors: leaves, their total, and of each call inside the worst leaf."""
    names = elided([leaf.name for leaf in report.leaves])
    rows = [(names[i], report.leaves[i]) for i in _furthest(report.leaves, ROWS)]
    if len(report.leaves) > 1:
        rows.append(("total", report.total))
    worst = [call.worst for call in report.calls]
    inside = elided([f"{call.name}: {leaf.name}" for call, leaf in zip(report.calls, worst, strict=True)], LONG - 5)
    return rows + [(f"inside {inside[i]}", worst[i]) for i in _furthest(worst, CALLS)]


def _log(axes: Any, values: Iterable[float]) -> Callable[[float], float]:
    """Make a log axis for numbers ≥ 0. Returns where each stands: 0, infinity and NaN have places at its ends."""
    values = list(values)
    finite = [v for v in values if 0 < v < math.inf] or [1.0]
    low, high = math.log10(min(finite)), math.log10(max(finite))
    widen = max(0.15, 1 - (high - low) / 2)  # two decades at least
    low, high = low - widen, high + widen
    gap = 0.09 * (high - low)
    zero, infinity = any(v == 0 for v in values), any(not v < math.inf for v in values)
    step = max(1, math.ceil((high - low) / 5))
    decades = range(math.ceil(low), math.floor(high) + 1, step)
    ticks = {10.0**d: f"$10^{{{d}}}$" for d in decades}
    ticks |= ({10 ** (low - gap): "0"} if zero else {}) | ({10 ** (high + gap): "NaN, ∞"} if infinity else {})
    axes.set_xscale("log")
    axes.set_xlim(10 ** (low - gap * (1.6 if zero else 0)), 10 ** (high + gap * (1.6 if infinity else 0)))
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.grid(axis="x", color=FAINT, lw=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    return lambda v: 10 ** (low - gap) if v == 0 else v if v < math.inf else 10 ** (high + gap)


def _unit(leaf: LeafError) -> float:
    return leaf.scale or 1.0


# -- how far off ------------------------------------------------------------------------------------------------------


def _errors(part: Any, report: Report, rows: list[tuple[str, LeafError]]) -> None:
    """A row for each leaf: both rules' errors and what is allowed, and beside it the units in the last place."""
    left, right = part.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    of = [[v / _unit(leaf) for v in (leaf.error, leaf.oracle_error, leaf.allowed)] for _, leaf in rows]
    place = _log(left, (v for three in of for v in three))
    ulp = _log(right, (v for _, leaf in rows for v in leaf.ulps))
    for y, ((_, leaf), (error, oracle, allowed)) in enumerate(zip(rows, of, strict=True)):
        colour = RULE if leaf.ok else WRONG
        if allowed < math.inf:  # and not NaN
            left.plot([left.get_xlim()[0], place(allowed)], [y, y], color=FAINT, lw=0.8, zorder=1)
            left.plot(place(allowed), y, "|", color=INK, ms=9, mew=1.4)
        left.plot(place(oracle), y, "o", mfc="none", mec=ORACLE, ms=9, mew=2)
        left.plot(place(error), y, _mark(leaf), color=colour, ms=5 if leaf.ok else 7.5, mew=0)
        median, most, largest = map(ulp, leaf.ulps)
        right.plot([median, largest], [y, y], color=colour, lw=1.2, alpha=0.6)
        right.plot(median, y, "|", color=colour, ms=8, mew=1.6)
        right.plot(most, y, "o", mfc="none", mec=colour, ms=6, mew=1.2)
        right.plot(largest, y, ">" if leaf.ok else "X", color=colour, ms=5 if leaf.ok else 7.5, mew=0)
    left.set_yticks(range(len(rows)), [label for label, _ in rows], parse_math=False)
    for tick, (_, leaf) in zip(left.get_yticklabels(), rows, strict=True):
        tick.set(color=INK if leaf.ok else WRONG, fontweight="normal" if leaf.ok else "bold")
    left.set_ylim(max(len(rows), 2) - 0.4, -0.6)
    for axes in (left, right):
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    shown, leaves = min(len(report.leaves), ROWS), len(report.leaves)
    more = f": {shown} of {leaves} leaves" if shown < leaves else ""
    left.set_title(f"Error against autodiff's{more}", pad=22)
    left.set_xlabel("rms error ÷ the leaf's rms")
    right.set_title("Units in the last place", pad=22)
    right.set_xlabel("errors of the elements, in ulps")
    drawn = {_mark(leaf) for _, leaf in rows}
    _legend(left, [
        *([{"marker": "o", "color": RULE, "ms": 5, "label": "rule"}] if "o" in drawn else []),
        *([{"marker": "X", "color": WRONG, "ms": 7, "label": "rule, WRONG"}] if "X" in drawn else []),
        *([{"marker": "D", "color": RULE, "ms": 5, "label": "rule, excused"}] if "D" in drawn else []),
        {"marker": "o", "mfc": "none", "mec": ORACLE, "ms": 8, "mew": 2, "label": "autodiff"},
        {"marker": "|", "color": INK, "ms": 9, "mew": 1.4, "label": "allowed"},
    ])  # fmt: skip
    _legend(right, [
        {"marker": "|", "color": INK, "ms": 8, "mew": 1.6, "label": "50 %"},
        {"marker": "o", "mfc": "none", "mec": INK, "ms": 6, "label": "99 %"},
        {"marker": ">", "color": INK, "ms": 5, "label": "100 %"},
    ])  # fmt: skip


def _mark(leaf: LeafError) -> str:
    return "X" if not leaf.ok else "D" if leaf.excused else "o"


def _legend(axes: Any, marks: list[dict[str, Any]]) -> None:
    """Above the axes, under their title."""
    handles = [Line2D([], [], ls="", **mark) for mark in marks]
    axes.legend(handles=handles, ncols=len(handles), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1)


# -- where in a leaf --------------------------------------------------------------------------------------------------


def _mapped(report: Report) -> list[tuple[str, LeafError, np.ndarray]]:
    """Names, leaves and maps of those furthest off, the worst first; in units of the leaf's rms."""
    if len(report.maps) != len(report.leaves):
        return []
    names = elided([leaf.name for leaf in report.leaves], 30)
    leaves = [(n, leaf, np.asarray(m)) for n, leaf, m in zip(names, report.leaves, report.maps, strict=True)]
    leaves = sorted((x for x in leaves if x[2].size), key=lambda x: (x[1].ok, -x[1].excess))
    with np.errstate(all="ignore"):
        return [(name, leaf, m / _unit(leaf)) for name, leaf, m in leaves[:MAPS]]


def _maps(part: Any, maps: list[tuple[str, LeafError, np.ndarray]], leaves: int) -> None:
    """|rule − float64| element by element on one log scale of colours; the element that is furthest off is ringed."""
    values = np.concatenate([np.append(m, leaf.largest / _unit(leaf)) for _, leaf, m in maps])
    finite = values[(values > 0) & np.isfinite(values)]
    high = float(finite.max(initial=0)) or 1.0
    low = min(max(float(finite.min(initial=high)), high * 1e-12), high / 10)
    norm = LogNorm(low, high)
    colours = matplotlib.colormaps["viridis"].with_extremes(under=NONE, bad=WRONG)
    grid = part.subplots(-(-len(maps) // 3), 3, squeeze=False)
    for axes in grid.flat[len(maps) :]:
        axes.set_visible(False)

    def shown(m: Any) -> Any:  # 0 is under the scale, and what is not finite has a colour of its own
        return np.ma.masked_invalid(np.where(m < low, low / 2, m))

    for axes, (name, leaf, m) in zip(grid.flat, maps, strict=False):
        width = leaf.shape[-1] if leaf.shape else 1
        height = leaf.size // width
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        image = axes.imshow(shown(m), norm=norm, cmap=colours, extent=extent, aspect="auto", interpolation="none")
        at = int(np.ravel_multi_index(leaf.at, leaf.shape)) if leaf.at else 0
        face = colours(norm(shown(np.array([leaf.largest / _unit(leaf)]))))[0]
        axes.plot(at % width, at // width, "o", mfc=face, mec="white", ms=9, mew=3.4, clip_on=False)
        axes.plot(at % width, at // width, "o", mfc=face, mec="black", ms=9, mew=1.3, clip_on=False)
        sampled = f", {m.shape[0]} × {m.shape[1]} shown" if m.size < leaf.size else ""
        text = f"{'' if leaf.ok else '✗ '}{name}\n{' × '.join(map(str, leaf.shape)) or 'a scalar'}{sampled}"
        axes.set_title(text, fontsize=8.5, color=INK if leaf.ok else WRONG, parse_math=False)
        axes.locator_params(nbins=5, integer=True)
        axes.tick_params(labelsize=7, length=2)
        if width == 1:
            axes.set_xticks([0])
        if height == 1:
            axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(visible=True, color=INK if leaf.ok else WRONG, linewidth=0.6 if leaf.ok else 2.5)
    bar = part.colorbar(
        image, ax=list(grid.flat[: len(maps)]), extend="min" if (values < low).any() else "neither", pad=0.01
    )
    bar.set_label("in units of the leaf's rms", fontsize=8)
    bar.ax.minorticks_off()
    more = f"; the furthest off: {len(maps)} of {leaves} leaves" if len(maps) < leaves else ""
    part.suptitle(f"Where: |rule − float64|, element by element{more}", x=0.01, ha="left", fontsize=10)
    marks: list[Any] = [Line2D([], [], ls="", marker="o", mfc="none", mec=INK, ms=8, label="the element furthest off")]
    marks += [Patch(fc=NONE, ec=INK, lw=0.5, label="0")] if (values < low).any() else []
    marks += [Patch(fc=WRONG, label="NaN, ∞")] if not np.isfinite(values).all() else []
    marks += [Patch(fc="none", ec=WRONG, lw=2.5, label="✗ WRONG")] if any(not leaf.ok for _, leaf, _ in maps) else []
    part.legend(handles=marks, ncols=len(marks), loc="outside lower left")


# -- what it costs ----------------------------------------------------------------------------------------------------


def _costs(part: Any, report: Report) -> None:
    """Bars of both, and the ratio of their times with its quartiles."""
    rule, oracle, race = report.rule, report.oracle, report.race
    if rule is None or oracle is None:
        return
    bars = [("Time of a call", "s", rule.seconds, oracle.seconds),
            ("Temporary memory", "B", rule.temp_bytes, oracle.temp_bytes)]  # fmt: skip
    if rule.flops is not None and oracle.flops is not None:
        bars.append(("FLOPs", "FLOP", rule.flops, oracle.flops))
    bars.append(("Time to compile", "s", rule.compile_seconds, oracle.compile_seconds))
    all_axes = list(part.subplots(1, len(bars) + (race is not None), squeeze=False).flat)
    for i, (axes, (title, unit, *values)) in enumerate(zip(all_axes, bars, strict=False)):
        axes.barh([0, 1], values, height=0.62, color=[RULE, "none"], edgecolor=[RULE, ORACLE],
                  hatch=["", "////"], lw=1.2)  # fmt: skip
        for y, value in enumerate(values):
            axes.text(value, y, f" {amount(value, unit)}", va="center", fontsize=8)
        axes.set(title=title, xlim=(0, 1.9 * max(values) or 1), ylim=(1.6, -0.6), xticks=[])
        axes.set_yticks([0, 1], ["rule", "autodiff"] if i == 0 else ["", ""])
        axes.tick_params(axis="y", length=0)
        axes.spines["bottom"].set_visible(False)
    if race is None:
        return
    axes = all_axes[-1]
    tie = race.low <= 1 <= race.high
    colour = INK if tie else RULE
    axes.axvline(1, 0.45, color=INK, lw=0.8, ls=(0, (3, 2)))
    axes.hlines(0.3, race.low, race.high, color=colour, lw=4, alpha=0.45)
    axes.plot(race.ratio, 0.3, "D", color=colour, ms=6)
    least, most = min(race.low, race.ratio, 1.0), max(race.high, race.ratio, 1.0)
    told = f"{race.ratio:.2f} ×, quartiles {race.low:.2f}–{race.high:.2f}\nof {race.pairs:,} pairs"
    told += "; a tie so far" if tie else ""
    axes.set_xscale("log")
    ticks = sorted(
        {round(v, 2) for v in (least, 1.0, most) if v == 1 or abs(math.log(v)) > 0.2 * math.log(most / least)}
    )
    axes.set_xticks(ticks, [f"{v:g}" for v in ticks])
    axes.minorticks_off()
    axes.set(title="Time, rule ÷ autodiff", xlim=(least / 1.15, most * 1.15), ylim=(1.6, -0.6), yticks=[])
    axes.text(0, 0.07, told, transform=axes.transAxes, fontsize=7.5)
    axes.spines["left"].set_visible(False)
