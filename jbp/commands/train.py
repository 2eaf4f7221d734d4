"""The text's network on real digits: its hand-written gradient against autodiff's, and descent with the hand-written.

`jbp train` (or `jbp` alone) compares the two gradients at the initial θ, descends, and compares again at the end;
`jbp compare` stops after the first comparison. Exit code: 0 if the gradients agree in every comparison and the cost
stayed finite, 1 if not, 2 if an option does not fit, 130 after Ctrl-C.
"""

import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax
import numpy as np

from .. import paint
from ..blocks import Conclusion, PageBlock, Section, Text, as_json, lines
from ..compare import Report
from ..compare.table import COLUMNS, LeafColumn, leaf_table
from ..course import Run
from ..errors import extra
from ..figure import draw
from ..fit import fit
from ..layout import Layout
from . import options


@dataclass(frozen=True)
class Settings(options.Descending):
    """What the command line asks for. `command`: train or compare."""

    command: str = "train"
    batch: int = options.number(10, int, 1, 2**31 - 1, "a whole number above 0", "digits in a batch", of=("train",))
    epochs: int = options.number(
        100, int, 1, 2**31 - 1, "a whole number above 0", "how often each digit is met", of=("train",)
    )
    json: str | None = options.file("run.json", "write everything found")
    plot: str | None = options.file("run.png", "draw errors, cost and accuracy", options.PLOTS)


@dataclass
class Outcome:
    """What was found: reports and held-out accuracies by when ("start", "end"), and the descent if there was one."""

    settings: Settings
    layout: Layout
    reports: dict[str, Report] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    run: Run | None = None

    @property
    def ok(self) -> bool:
        """Whether the gradients agree in every comparison and the cost stayed finite."""
        return all(report.ok for report in self.reports.values()) and not (self.run and self.run.stopped)

    @property
    def labels(self) -> dict[str, str]:
        """The text's name for each leaf of a report: C for the cost, W^2, b^2, …"""
        symbols = (self.layout.symbol(i).partition("_")[0].replace("w", "W") for i in self.layout.offsets[:-1])
        return {"value": "C", **dict(zip(self.layout.names, symbols, strict=True)), "total": "∇C"}

    def to_json(self) -> str:
        """All of it as JSON text. What is not finite stands as a string."""
        content: dict[str, Any] = {
            "ok": self.ok,
            "settings": asdict(self.settings),
            "parameters": {"P": self.layout.size, "#W": self.layout.num_weights, "#b": self.layout.num_biases},
            "reports": {when: json.loads(report.to_json()) for when, report in self.reports.items()},
            "accuracy": self.accuracy,
        }
        if self.run:
            content["history"] = json.loads(self.run.history.to_json()) | {"stopped": self.run.stopped}
        return as_json(content)


def job(settings: Settings, console: Any) -> Outcome:
    """Compare; unless the command is `compare`, descend and compare again. Says on the console what was done."""
    cost, theta, x, y, key, data = settings.job()
    network, held_out = cost.network, len(data.held_out_y)
    output = jax.jit(network)
    layout, done = network.layout, Outcome(settings, network.layout)

    def say(blocks: Iterable[PageBlock]) -> None:
        styles = {"title": "bold", "right": "green", "wrong": "bold red", "": ""}
        for line, tone in lines(blocks):
            console.print(line, style=styles[tone], soft_wrap=not console.is_terminal)

    def evaluate(theta: Any) -> dict[str, float]:
        guess = np.asarray(output(theta, data.held_out_x)).argmax(-1)
        return {"accuracy": float((guess == data.held_out_y).mean())}

    def compare(when: str, theta: Any) -> None:
        done.accuracy[when] = evaluate(theta)["accuracy"]
        done.reports[when] = report = cost.compare(theta, x, y)
        say(_compared(when, report, done.labels))

    about = (
        f"L = {layout.num_layers} layers, {settings.activation}, {settings.loss} loss, {settings.precision}.",
        f"P = #W + #b = {layout.num_weights:,} + {layout.num_biases:,} = {layout.size:,} weights and biases.",
        f"C is the mean over {len(x):,} handwritten digits; {held_out} others are held out.",
    )
    console.print(f"The network {settings.name}", style="bold")
    say(map(Text, about))
    compare("start", theta)
    if settings.command == "train":
        say([Section("Descent with the hand-written gradient")])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fit: ")  # said below
            run = done.run = fit(
                cost, theta, (x, y), optimizer=settings.transformation(), batch_size=settings.batch,
                epochs=settings.epochs, key=key, evaluate=evaluate, progress=console.is_terminal,
            )  # fmt: skip
        by = f"{settings.optimizer}, learning rate {settings.learning_rate:g}, batches of {settings.batch}"
        took = f"{run.history.cost.size:,} steps in {len(run.history.epochs)} epochs."
        say((Text(f"{by}: {took}"), *([Conclusion(False, run.stopped)] if run.stopped else [])))
        compare("end", run.theta)
    costs = " → ".join(f"{report.leaves[0].got:.4f}" for report in done.reports.values())
    accuracies = " → ".join(f"{accuracy:.1%}" for accuracy in done.accuracy.values())
    say([Section(f"Cost {costs}; accuracy on the held-out digits {accuracies}")])
    return done


_HEADS = {"error": "hand-written", "autodiff's": "autodiff"}


def _compared(when: str, report: Report, labels: dict[str, str]) -> Iterator[PageBlock]:
    yield Section(f"The two gradients at the {when}")
    picked = "leaf", "size", "error", "autodiff's", "ratio", "largest", "at"
    columns = [replace(COLUMNS[head], head=_HEADS.get(head, head)) for head in picked]
    columns.insert(1, LeafColumn("", "text", of=lambda leaf: labels[leaf.name]))
    yield leaf_table((*report.leaves, report.total), columns)
    yield Text("errors: rms difference from float64, relative to the leaf's rms")
    yield Conclusion(report.ok, report.verdict)
    yield Text(f"The largest difference from float64 is {report.total.largest:.1e}, at {report.total.where}.")
    if (rule := report.rule) and (oracle := report.oracle):
        times = f"{rule.seconds * 1e3:.3f} ms by hand, {oracle.seconds * 1e3:.3f} ms by autodiff"
        yield Text(f"Time: {times}: {rule.seconds / oracle.seconds:.2f} times autodiff's.")
        memory = f"{rule.temp_bytes / 1e6:.3f} MB by hand, {oracle.temp_bytes / 1e6:.3f} MB by autodiff"
        yield Text(f"Memory: {memory}.")


def run(settings: Settings) -> int:
    """Do what the settings say; the exit code."""
    if settings.plot:
        paint.needed()
    with extra():
        from rich.console import Console
    with settings.in_precision():
        done = job(settings, Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 100))
    if settings.json:
        options.write(settings.json, done.to_json())
    if settings.plot:
        draw(settings.plot, f"{settings.name} {settings.activation} network", done.reports, done.labels, done.run)
    if done.run and done.run.interrupted:
        return 130
    return 0 if done.ok else 1
