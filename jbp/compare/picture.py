"""The pictures of a comparison: how far off each leaf is, where in it, and what both rules cost."""

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..paint import FAINT, INK, ORACLE, RULE, WRONG, legend, log_axis, new_figure
from ..programs.clock import Measured, Race
from .error import LeafError

NONE = "#F4F4F4"  # the colour of an error of 0
LEAF_ROWS = 30  # leaves that have a row, the furthest off first
CALL_ROWS = 10  # calls inside that have one
MAPS = 6  # leaves whose errors are drawn element by element
LONG = 32  # letters of a name


class Panel(NamedTuple):
    """A part of a picture: its height in inches, and how it is drawn on a part of a figure."""

    height: float
    draw: Callable[[Any], None]


def together(told: str, ok: bool, panels: Sequence[Panel]) -> Any:
    """All panels on one figure, under the verdict."""
    told = textwrap.fill(told, 112, break_on_hyphens=False)
    heights = [0.25 + 0.2 * (told.count("\n") + 1), *(panel.height for panel in panels)]
    with new_figure("Report.figure", 11, sum(heights)) as drawn:
        title, *parts = drawn.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat
        words = {"fontsize": 11, "fontweight": "bold", "color": INK if ok else WRONG, "parse_math": False}
        title.text(0.01, 0.5, told, ha="left", va="center", **words)
        for part, panel in zip(parts, panels, strict=True):
            part.set_facecolor("none")
            panel.draw(part)
    return drawn


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


def _furthest(leaves: Sequence[LeafError], most: int) -> list[int]:
    """Places of the leaves that are furthest off, what does not pass before what does, in their own order."""
    order = sorted(range(len(leaves)), key=lambda i: (leaves[i].ok, -leaves[i].excess))
    return sorted(order[:most])


def amount(value: float | int, unit: str) -> str:
    """A number with a prefix, as `0.1 ms` or `19 kB`; also what is tiny, huge, or nothing."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g} {unit}"
    low, high = (-3, 0) if unit == "s" else (0, 5)
    thousands = min(max(math.floor(math.log10(abs(value)) / 3), low), high)
    return f"{value / 1000.0**thousands:.3g} {('', *'kMGTPnµm')[thousands]}{unit}"


# -- how far off ------------------------------------------------------------------------------------------------------


def error_panel(leaves: Sequence[LeafError], total: LeafError, inside: Sequence[tuple[str, LeafError]]) -> Panel:
    """A row for each leaf: both rules' errors and what is allowed, and beside it the units in the last place.

    `inside`: the name and the worst leaf of each call of a custom rule.
    """
    names = elided([leaf.name for leaf in leaves])
    rows = [(names[i], leaves[i]) for i in _furthest(leaves, LEAF_ROWS)]
    more = f": {len(rows)} of {len(leaves)} leaves" if len(rows) < len(leaves) else ""
    rows += [("total", total)] * (len(leaves) > 1)
    calls = elided([name for name, _ in inside], LONG - 5)
    rows += [(f"inside {calls[i]}", inside[i][1]) for i in _furthest([leaf for _, leaf in inside], CALL_ROWS)]

    def draw(part: Any) -> None:
        left, right = part.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        legend(left, error_rows(left, dict(enumerate(leaf for _, leaf in rows)), "rule"), **ABOVE)
        left.set_yticks(range(len(rows)), [label for label, _ in rows], parse_math=False)
        for tick, (_, leaf) in zip(left.get_yticklabels(), rows, strict=True):
            tick.set(color=INK if leaf.ok else WRONG, fontweight="normal" if leaf.ok else "bold")
        left.set_ylim(max(len(rows), 2) - 0.4, -0.6)
        left.set_title(f"Error against autodiff's{more}", pad=22)
        left.set_xlabel("rms error ÷ the leaf's rms")
        ulp = log_axis(right, (v for _, leaf in rows for v in leaf.ulps))
        for y, (_, leaf) in enumerate(rows):
            colour = RULE if leaf.ok else WRONG
            median, most, largest = map(ulp, leaf.ulps)
            right.plot([median, largest], [y, y], color=colour, lw=1.2, alpha=0.6)
            right.plot(median, y, "|", color=colour, ms=8, mew=1.6)
            right.plot(most, y, "o", mfc="none", mec=colour, ms=6, mew=1.2)
            right.plot(largest, y, ">" if leaf.ok else "X", color=colour, ms=5 if leaf.ok else 7.5, mew=0)
        right.set_title("Units in the last place", pad=22)
        right.set_xlabel("errors of the elements, in ulps")
        marks = {"50 %": "|", "99 %": "o", "100 %": ">"}
        shown = [{"marker": mark, "mfc": "none", "mec": INK, "ms": 6, "label": label} for label, mark in marks.items()]
        legend(right, shown, **ABOVE)

    return Panel(1.25 + 0.23 * max(len(rows), 2), draw)


ABOVE: Any = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.1}  # the axes, under their title


def error_rows(axes: Any, leaves: dict[float, LeafError], ours: str) -> list[dict[str, Any]]:
    """Draw both rules' errors and what is allowed, relative to the leaf's rms, at the height y of each leaf.

    Returns the marks for a legend, of `ours` only those that were drawn.
    """
    relative = {y: [v / _unit(e) for v in (e.error, e.oracle_error, e.allowed)] for y, e in leaves.items()}
    place = log_axis(axes, (v for three in relative.values() for v in three))
    own = {}
    for y, leaf in leaves.items():
        error, oracle, allowed = relative[y]
        if allowed < math.inf:  # and not NaN
            axes.plot([axes.get_xlim()[0], place(allowed)], [y, y], color=FAINT, lw=0.8, zorder=1)
            axes.plot(place(allowed), y, "|", color=INK, ms=9, mew=1.4)
        axes.plot(place(oracle), y, "o", mfc="none", mec=ORACLE, ms=9, mew=2)
        what, marker = ("wrong", "X") if not leaf.ok else ("excused", "D") if leaf.excused else ("", "o")
        mark = {"marker": marker, "color": RULE if leaf.ok else WRONG, "ms": 5 if leaf.ok else 7.5, "mew": 0}
        axes.plot(place(error), y, **mark)
        own[what] = mark | {"label": f"{ours}, {what}" if what else ours}
    return [
        *sorted(own.values(), key=lambda mark: mark["label"]),
        {"marker": "o", "mfc": "none", "mec": ORACLE, "ms": 8, "mew": 2, "label": "autodiff"},
        {"marker": "|", "color": INK, "ms": 9, "mew": 1.4, "label": "allowed"},
    ]


def _unit(leaf: LeafError) -> float:
    return leaf.scale or 1.0


# -- where in a leaf --------------------------------------------------------------------------------------------------


def map_panel(leaves: Sequence[LeafError], errors: Sequence[Any]) -> list[Panel]:
    """|rule − float64| element by element of the leaves furthest off, the worst first, on one log scale of colours.

    The element that is furthest off is ringed. No panel where there is nothing to show.
    """
    names = elided([leaf.name for leaf in leaves], 30)
    found = sorted(zip(names, leaves, map(np.asarray, errors), strict=False), key=lambda x: (x[1].ok, -x[1].excess))
    with np.errstate(all="ignore"):
        found = [(name, leaf, m / _unit(leaf)) for name, leaf, m in found if m.size][:MAPS]
    values = np.concatenate([np.append(m, leaf.largest / _unit(leaf)) for _, leaf, m in found] or [np.zeros(0)])
    finite = values[(values > 0) & np.isfinite(values)]
    high = float(finite.max(initial=0)) or 1.0
    low = min(max(float(finite.min(initial=high)), high * 1e-12), high / 10)
    tall = -(-len(found) // 3)

    def draw(part: Any) -> None:
        import matplotlib
        from matplotlib.colors import LogNorm

        norm = LogNorm(low, high)
        colours = matplotlib.colormaps["viridis"].with_extremes(under=NONE, bad=WRONG)
        all_axes = [part.add_subplot(tall, 3, i + 1) for i in range(len(found))]

        def shown(m: Any) -> Any:  # 0 is under the scale, and what is not finite has a colour of its own
            return np.ma.masked_invalid(np.where(m < low, low / 2, m))

        for axes, (name, leaf, m) in zip(all_axes, found, strict=True):
            width = leaf.shape[-1] if leaf.shape else 1
            height = leaf.size // width
            at = int(np.ravel_multi_index(leaf.at, leaf.shape)) if leaf.at else 0
            sides = (-0.5, width - 0.5, height - 0.5, -0.5)
            image = axes.imshow(shown(m), norm=norm, cmap=colours, extent=sides, aspect="auto", interpolation="none")
            face = colours(norm(shown(np.array([leaf.largest / _unit(leaf)]))))[0]
            for edge, thick in (("white", 3.4), ("black", 1.3)):
                axes.plot(at % width, at // width, "o", mfc=face, mec=edge, ms=9, mew=thick, clip_on=False)
            sampled = f", {m.shape[0]} × {m.shape[1]} shown" if m.size < leaf.size else ""
            text = f"{'' if leaf.ok else '✗ '}{name}\n{' × '.join(map(str, leaf.shape)) or 'a scalar'}{sampled}"
            colour, thick = (INK, 0.6) if leaf.ok else (WRONG, 2.5)
            axes.set_title(text, fontsize=8.5, color=colour, parse_math=False)
            axes.locator_params(nbins=5, integer=True)
            axes.tick_params(labelsize=7, length=2)
            if width == 1:
                axes.set_xticks([0])
            if height == 1:
                axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set(visible=True, color=colour, linewidth=thick)
        bar = part.colorbar(image, ax=all_axes, extend="min", pad=0.01)
        bar.set_label("in units of the leaf's rms", fontsize=8)
        bar.ax.minorticks_off()
        more = f"; the furthest off: {len(found)} of {len(leaves)} leaves" if len(found) < len(leaves) else ""
        part.suptitle(f"Where: |rule − float64|, element by element{more}", x=0.01, ha="left", fontsize=10)
        marks: list[dict[str, Any]] = [
            {"marker": "o", "mfc": "none", "mec": INK, "ms": 8, "label": "the element furthest off"},
            {"fc": NONE, "ec": INK, "lw": 0.5, "label": "0"},
            {"fc": WRONG, "label": "NaN, ∞"},
            {"fc": "none", "ec": WRONG, "lw": 2.5, "label": "✗ WRONG"},
        ]
        legend(part, marks, loc="outside lower left")

    return [Panel(0.75 + 1.95 * tall, draw)] if found else []


# -- what it costs ----------------------------------------------------------------------------------------------------


def cost_panel(rule: Measured, oracle: Measured, race: Race | None) -> Panel:
    """Bars of both, and the ratio of their times with its quartiles."""
    bars: list[tuple[str, str, float, float]] = [
        ("Time of a call", "s", rule.seconds, oracle.seconds),
        ("Temporary memory", "B", rule.temp_bytes, oracle.temp_bytes),
        *([("FLOPs", "FLOP", rule.flops, oracle.flops)] if rule.flops is not None and oracle.flops is not None else []),
        ("Time to compile", "s", rule.compile_seconds, oracle.compile_seconds),
    ]

    def draw(part: Any) -> None:
        all_axes = list(part.subplots(1, len(bars) + (race is not None), squeeze=False).flat)
        for i, (axes, (title, unit, *values)) in enumerate(zip(all_axes, bars, strict=False)):
            look: Any = {"color": [RULE, "none"], "edgecolor": [RULE, ORACLE], "hatch": ["", "////"], "lw": 1.2}
            axes.barh([0, 1], values, height=0.62, **look)
            for y, value in enumerate(values):
                axes.text(value, y, f" {amount(value, unit)}", va="center", fontsize=8)
            axes.set(title=title, xlim=(0, 1.9 * max(values) or 1), ylim=(1.6, -0.6), xticks=[])
            axes.set_yticks([0, 1], ["rule", "autodiff"] if i == 0 else ["", ""])
            axes.tick_params(axis="y", length=0)
            axes.spines["bottom"].set_visible(False)
        if race is not None:
            _raced(all_axes[-1], race)

    return Panel(1.6, draw)


def _raced(axes: Any, race: Race) -> None:
    colour, told = (INK, "; a tie so far") if race.low <= 1 <= race.high else (RULE, "")
    axes.axvline(1, 0.45, color=INK, lw=0.8, ls=(0, (3, 2)))
    axes.hlines(0.3, race.low, race.high, color=colour, lw=4, alpha=0.45)
    axes.plot(race.ratio, 0.3, "D", color=colour, ms=6)
    least, most = min(race.low, race.ratio, 1.0), max(race.high, race.ratio, 1.0)
    near = 0.2 * math.log(most / least)
    ticks = sorted({round(v, 2) for v in (least, 1.0, most) if v == 1 or abs(math.log(v)) > near})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{v:g}" for v in ticks])
    axes.minorticks_off()
    axes.set(title="Time, rule ÷ autodiff", xlim=(least / 1.15, most * 1.15), ylim=(1.6, -0.6), yticks=[])
    told = f"{race.ratio:.2f} ×, quartiles {race.low:.2f}–{race.high:.2f}\nof {race.pairs:,} pairs{told}"
    axes.text(0, 0.07, told, transform=axes.transAxes, fontsize=7.5)
    axes.spines["left"].set_visible(False)
