"""The picture of a run: on the left how far both gradients are from float64, on the right the descent.

Drawn on a `Figure` of its own, so neither pyplot nor a display is touched. Colours: Okabe & Ito, safe for the
colour-blind; what they tell apart, shapes tell apart too.
"""

import math
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from .compare import LeafError, Report
from .course import Run
from .history import draw_cost

RULE, ORACLE, WRONG, INK, FAINT = "#0072B2", "#E69F00", "#D55E00", "#333333", "#BBBBBB"
STYLE: Any = {
    "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": INK, "text.color": INK, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "legend.frameon": False, "legend.fontsize": 9,
    "svg.fonttype": "none",
}  # fmt: skip


def draw(path: str, name: str, reports: dict[str, Report], labels: dict[str, str], run: Run | None) -> None:
    """Draw reports by when ("start", "end") and the descent, if there was one, to a png, svg or pdf file.

    `name`: of the network, for the title.
    `labels`: the text's name for each leaf, as in `{"0.w": "W^2"}`.
    """
    rows = len(labels) * len(reports)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11 if run else 6.5, max(4.6, 1.9 + 0.3 * rows)), layout="constrained")
        ok = all(report.ok for report in reports.values())
        title = f"{name}: the two gradients {'agree' if ok else 'DISAGREE'}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK if ok else WRONG)
        grid = figure.add_gridspec(2, 2 if run else 1, height_ratios=(3, 2))
        _errors(figure.add_subplot(grid[:, 0]), reports, labels)
        if run:
            cost = figure.add_subplot(grid[0, 1])
            draw_cost(cost, run.history.cost)
            cost.tick_params(labelbottom=False)
            _accuracy(figure.add_subplot(grid[1, 1], sharex=cost), run)
        figure.savefig(path, dpi=150)


def _errors(axes: Any, reports: dict[str, Report], labels: dict[str, str]) -> None:
    """A row for each leaf and time: both rules' errors and what is allowed, relative to the leaf's rms."""

    def relative(leaf: LeafError) -> list[float]:
        return [value / (leaf.scale or 1.0) for value in (leaf.error, leaf.oracle_error, leaf.allowed)]

    leaves = [(when, leaf) for when, report in reports.items() for leaf in (*report.leaves, report.total)]
    finite = [e for _, leaf in leaves for e in relative(leaf) if 0 < e < math.inf] or [1e-16]
    zero, infinity = min(finite) / 4, max(finite) * 4  # where what a log axis has no place for stands
    ticks = {}
    for when, leaf in leaves:
        row = list(reports).index(when)
        y = list(labels).index(leaf.name) + 0.4 * row
        errors = [max(e, zero) if e < math.inf else infinity for e in relative(leaf)]  # NaN < inf is False
        error, oracle_error, allowed = errors
        label = f"${labels[leaf.name].replace('∇', chr(92) + 'nabla ')}$"
        ticks[y] = f"{'' if row else label}   {when}" if len(reports) > 1 else label
        axes.plot([zero, allowed], [y, y], color=FAINT, lw=0.8, zorder=1)
        axes.plot(allowed, y, "|", color=INK, ms=9, mew=1.4)
        axes.plot(oracle_error, y, "o", mfc="white", mec=ORACLE, ms=10, mew=2.2)
        axes.plot(error, y, "o" if leaf.ok else "X", color=RULE if leaf.ok else WRONG, ms=5 if leaf.ok else 8)
    axes.set_xscale("log")
    if any(0 in relative(leaf) for _, leaf in leaves):
        axes.annotate("0", (zero, 0), (zero, -0.012), textcoords=axes.get_xaxis_transform(), ha="center", va="top")
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Error of the gradient, leaf by leaf")
    axes.set_xlabel("rms difference from float64, relative to the leaf's rms")
    marks: list[dict[str, Any]] = [
        {"marker": "o", "color": RULE, "ms": 5, "label": "hand-written"},
        {"marker": "o", "mfc": "white", "mec": ORACLE, "ms": 10, "mew": 2.2, "label": "autodiff"},
        {"marker": "|", "color": INK, "ms": 9, "mew": 1.4, "label": "allowed"},
        {"marker": "X", "color": WRONG, "ms": 8, "label": "hand-written, wrong"},
    ]
    marks = marks if any(not leaf.ok for _, leaf in leaves) else marks[:3]
    axes.figure.legend(handles=[Line2D([], [], ls="", **mark) for mark in marks], ncols=4, loc="outside lower left")


def _accuracy(axes: Any, run: Run) -> None:
    epochs = run.history.epochs
    steps, accuracy = [e["step"] for e in epochs], [e["accuracy"] for e in epochs]
    axes.plot(steps, accuracy, color=RULE, lw=2, marker="o" if len(epochs) < 30 else None, ms=4)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title("Accuracy on the held-out digits")
    axes.set_xlabel(f"steps  ({len(epochs)} epochs)")
    if not epochs:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "it stopped in the first epoch", ha="center", transform=axes.transAxes)
        return
    at = {"xytext": (0, -6), "textcoords": "offset points", "ha": "right", "va": "top", "fontweight": "bold"}
    axes.annotate(f"{accuracy[-1]:.1%}", (steps[-1], accuracy[-1]), **at)
