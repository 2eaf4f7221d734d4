"""The picture of a run: on the left how far both gradients are from float64, on the right the descent."""

from typing import Any

from . import paint
from .compare import Report
from .compare.picture import error_rows
from .course import Run
from .history import draw_cost, draw_epochs


def draw(path: str, name: str, reports: dict[str, Report], labels: dict[str, str], run: Run | None) -> None:
    """Draw reports by when ("start", "end") and the descent, if there was one, to a png, svg or pdf file.

    `name`: of the network, for the title.
    `labels`: the text's name for each leaf, as in `{"0.w": "W^2"}`.
    """
    rows = len(labels) * len(reports)
    with paint.new_figure("figure", 11 if run else 6.5, max(4.6, 1.9 + 0.3 * rows)) as drawn:
        ok = all(report.ok for report in reports.values())
        title = f"{name}: the two gradients {'agree' if ok else 'DISAGREE'}"
        look: Any = {"fontsize": 13, "fontweight": "bold", "color": paint.INK if ok else paint.WRONG}
        drawn.suptitle(title, x=0.01, ha="left", **look)
        grid = drawn.add_gridspec(2, 2 if run else 1, height_ratios=(3, 2))
        _errors(drawn.add_subplot(grid[:, 0]), reports, labels)
        if run:
            cost = drawn.add_subplot(grid[0, 1])
            draw_cost(cost, run.history.cost)
            cost.tick_params(labelbottom=False)
            _accuracy(drawn.add_subplot(grid[1, 1], sharex=cost), run)
    paint.save(drawn, path)


def _errors(axes: Any, reports: dict[str, Report], labels: dict[str, str]) -> None:
    """A row for each leaf and time."""
    leaves, ticks = {}, {}
    for row, (when, report) in enumerate(reports.items()):
        for i, leaf in enumerate((*report.leaves, report.total)):
            symbol = f"${labels[leaf.name].replace('∇', chr(92) + 'nabla ')}$"
            leaves[i + 0.4 * row] = leaf
            ticks[i + 0.4 * row] = f"{'' if row else symbol}   {when}" if len(reports) > 1 else symbol
    paint.legend(axes.figure, error_rows(axes, leaves, "hand-written"), loc="outside lower left")
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.invert_yaxis()
    axes.set_title("Error of the gradient, leaf by leaf")
    axes.set_xlabel("rms difference from float64, relative to the leaf's rms")


def _accuracy(axes: Any, run: Run) -> None:
    from matplotlib.ticker import PercentFormatter

    epochs = run.history.epochs
    draw_epochs(axes, "Accuracy on the held-out digits", epochs, "accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel(f"steps  ({len(epochs)} epochs)")
    if not epochs:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "it stopped in the first epoch", ha="center", transform=axes.transAxes)
        return
    step, accuracy = epochs[-1]["step"], epochs[-1]["accuracy"]
    at: Any = {"xytext": (0, -6), "textcoords": "offset points", "ha": "right", "va": "top", "fontweight": "bold"}
    axes.annotate(f"{accuracy:.1%}", (step, accuracy), **at)
