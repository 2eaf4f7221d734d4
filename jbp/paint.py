"""The one look of all figures: colours, fonts, lines, log axes, legends, and how a figure becomes a file.

A figure is one of its own, so neither pyplot nor a display is touched. Colours: Okabe & Ito, safe for the
colour-blind; what they tell apart, shapes, dashes and words tell apart too. matplotlib is loaded by the first figure.
"""

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import extra

BLUE, AMBER, RED, PINK = "#0072B2", "#E69F00", "#D55E00", "#CC79A7"
INK, GREY, FAINT, PALE = "#333333", "#777777", "#B4B4B4", "#DDDDDD"
RULE, ORACLE, WRONG = BLUE, AMBER, RED  # what is written by hand, autodiff, and what is wrong
FILLS = {  # of the nodes of a graph, by their kind
    "weight": "#CFE6F5", "bias": "#CFE6F5", "parameters": "#CFE6F5", "rest": "#E7F2FA", "input": "#EFEFEF",
    "target": "#EFEFEF", "cost": "#FBE3A6",
}  # fmt: skip
LOOK: Any = {
    "font.size": 9, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "mathtext.fontset": "stix", "axes.titlesize": 10, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.axisbelow": True,
    "axes.facecolor": "none", "text.color": INK, "xtick.color": INK, "ytick.color": INK, "grid.color": PALE,
    "grid.linewidth": 0.6, "legend.frameon": False, "legend.fontsize": 8, "legend.handletextpad": 0.3,
    "legend.columnspacing": 1.2, "svg.hashsalt": "jbp", "svg.fonttype": "none",
}  # fmt: skip
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def needed(who: str = "") -> Any:
    """matplotlib. Raises `InputError` in the name of `who` where it is not installed."""
    with extra(who):
        import matplotlib
        import matplotlib.figure
    return matplotlib


@contextmanager
def new_figure(who: str, width: float, height: float, layout: Any = "constrained", **style: Any) -> Iterator[Any]:
    """A matplotlib `Figure` of so many inches to be drawn on inside, where the one look holds, but for `style`.

    Raises `InputError` as `needed`.
    """
    matplotlib = needed(who)
    with matplotlib.rc_context(LOOK | style):
        yield matplotlib.figure.Figure(figsize=(width, height), layout=layout, facecolor="white")


def save(drawn: Any, file: Any, suffix: str | None = None, **settings: Any) -> None:
    """Write a figure to a path or a file, as svg, png or pdf; the same figure gives the same svg."""
    suffix = suffix or str(file).rpartition(".")[2].lower()
    with needed().rc_context(LOOK | settings):
        drawn.savefig(file, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)


def inline(drawn: Any, name: str) -> str:
    """A figure as an element of a page: ink has the page's colour, nothing refers to anywhere else.

    `name` stands in front of all ids, which are the same in all figures.
    """
    file = io.StringIO()
    drawn.set_facecolor("none")
    save(drawn, file, "svg", **{"svg.fonttype": "path"})  # a page may lack the font
    unwanted = r'<metadata>.*?</metadata>|<style.*?</style>| id="image[^"]*"| xmlns(:xlink)?="[^"]*"'
    svg = re.sub(unwanted, "", file.getvalue(), flags=re.DOTALL)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg[svg.index("<svg") :])
    for colour, variable in ((INK, "currentColor"), (RULE, "var(--rule)"), (FAINT, "var(--faint)")):
        svg = svg.replace(colour.lower(), variable)
    head = rf'<svg viewBox="\1" role="img" aria-label="{name}">'
    return re.sub(r'<svg .*?viewBox="([^"]*)"[^>]*>', head, svg, count=1, flags=re.DOTALL)


def legend(of: Any, marks: Iterable[dict[str, Any]], **where: Any) -> None:
    """A legend of axes or of a figure: `marks` are lines and markers, each with its label, or areas with a `fc`."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Patch(**mark) if "fc" in mark else Line2D([], [], **{"ls": "", **mark}) for mark in marks]
    of.legend(handles=handles, **{"ncols": len(handles), **where})


def log_axis(axes: Any, values: Iterable[float], decades: float = 2.0) -> Callable[[float], float]:
    """Make x a log axis of at least so many decades for numbers ≥ 0, with rows along y.

    Returns where each stands: 0, infinity and NaN have places at its ends.
    """
    values = list(values)
    finite = [v for v in values if 0 < v < math.inf] or [1.0]
    low, high = math.log10(min(finite)), math.log10(max(finite))
    widen = max(0.15, (decades - (high - low)) / 2)
    low, high = low - widen, high + widen
    gap = 0.09 * (high - low)
    zero, infinity = any(v == 0 for v in values), any(not v < math.inf for v in values)
    step = max(1, math.ceil((high - low) / 5))
    decades_shown = range(math.ceil(low), math.floor(high) + 1, step)
    ticks = {10.0**d: "10" + str(d).translate(_RAISED) for d in decades_shown}
    ticks |= ({10 ** (low - gap): "0"} if zero else {}) | ({10 ** (high + gap): "NaN, ∞"} if infinity else {})
    axes.set_xscale("log")
    axes.set_xlim(10 ** (low - gap * (1.6 if zero else 0)), 10 ** (high + gap * (1.6 if infinity else 0)))
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.grid(axis="x")
    bare(axes)
    return lambda v: 10 ** (low - gap) if v == 0 else v if v < math.inf else 10 ** (high + gap)


def bare(axes: Any) -> None:
    """Leave out the axis of y, whose labels name rows."""
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
