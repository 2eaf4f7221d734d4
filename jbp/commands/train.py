"""The text's network on real digits: its hand-written gradient against autodiff's, and descent with the hand-written.

`jbp train` (or `jbp` alone) compares the two gradients at the initial θ, descends, and compares again at the end;
`jbp compare` stops after the first comparison. Exit code: 0 if the gradients agree in every comparison and the cost
stayed finite, 1 if not, 2 if an option does not fit, 130 after Ctrl-C.
"""

import json
import sys
import warnings
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np

from ..compare import Report
from ..course import Run
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
        return json.dumps(content, indent=1, allow_nan=False)


def job(settings: Settings, console: Any) -> Outcome:
    """Compare; unless the command is `compare`, descend and compare again. Says on the console what was done."""
    cost, theta, x, y, key, data = settings.job()
    network, held_out = cost.network, len(data.held_out_y)
    output = jax.jit(network)
    layout, done = network.layout, Outcome(settings, network.layout)
    say = partial(console.print, soft_wrap=not console.is_terminal)

    def evaluate(theta: Any) -> dict[str, float]:
        guess = np.asarray(output(theta, data.held_out_x)).argmax(-1)
        return {"accuracy": float((guess == data.held_out_y).mean())}

    def compare(when: str, theta: Any) -> None:
        done.accuracy[when] = evaluate(theta)["accuracy"]
        done.reports[when] = report = cost.compare(theta, x, y)
        say(f"\nThe two gradients at the {when}", style="bold")
        console.print(_table(report, done.labels))
        say(report.verdict, style="green" if report.ok else "bold red")
        say(f"The largest difference from float64 is {report.total.largest:.1e}, at {report.total.where}.")
        if (rule := report.rule) and (oracle := report.oracle):
            times = f"{rule.seconds * 1e3:.3f} ms by hand, {oracle.seconds * 1e3:.3f} ms by autodiff"
            say(f"Time: {times}: {rule.seconds / oracle.seconds:.2f} times autodiff's.")
            say(f"Memory: {rule.temp_bytes / 1e6:.3f} MB by hand, {oracle.temp_bytes / 1e6:.3f} MB by autodiff.")

    say(f"The network {settings.name}", style="bold")
    say(f"L = {layout.num_layers} layers, {settings.activation}, {settings.loss} loss, {settings.precision}.")
    say(f"P = #W + #b = {layout.num_weights:,} + {layout.num_biases:,} = {layout.size:,} weights and biases.")
    say(f"C is the mean over {len(x):,} handwritten digits; {held_out} others are held out.")
    compare("start", theta)
    if settings.command == "train":
        say("\nDescent with the hand-written gradient", style="bold")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fit: ")  # said below
            run = done.run = fit(
                cost, theta, (x, y), optimizer=settings.transformation(), batch_size=settings.batch,
                epochs=settings.epochs, key=key, evaluate=evaluate, progress=console.is_terminal,
            )  # fmt: skip
        say(
            f"{settings.optimizer}, learning rate {settings.learning_rate:g}, batches of {settings.batch}: "
            f"{run.history.cost.size:,} steps in {len(run.history.epochs)} epochs."
        )
        if run.stopped:
            say(run.stopped, style="bold red")
        compare("end", run.theta)
    costs = " → ".join(f"{report.leaves[0].got:.4f}" for report in done.reports.values())
    accuracies = " → ".join(f"{accuracy:.1%}" for accuracy in done.accuracy.values())
    say(f"\nCost {costs}; accuracy on the held-out digits {accuracies}", style="bold")
    return done


def _table(report: Report, labels: dict[str, str]) -> Any:
    from rich import box, table

    shown = table.Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, caption_justify="left")
    shown.caption = "errors: rms difference from float64, relative to the leaf's rms"
    for head in ("leaf", "", "size", "hand-written", "autodiff", "ratio", "largest", "at"):
        shown.add_column(head, justify="left" if head in ("leaf", "", "at") else "right", no_wrap=True)
    for leaf in (*report.leaves, report.total):
        unit, ratio = leaf.scale or 1.0, f"{leaf.ratio:.2f}" if leaf.ratio < 1000 else f"{leaf.ratio:.0e}"
        errors = f"{leaf.error / unit:.1e}", f"{leaf.oracle_error / unit:.1e}", ratio, f"{leaf.largest:.1e}"
        cells = leaf.name, labels[leaf.name], f"{leaf.size:,}", *errors, leaf.where
        shown.add_row(*cells, style="" if leaf.ok else "bold red")
    return shown


def run(settings: Settings) -> int:
    """Do what the settings say; the exit code."""
    with options.extra():
        from rich.console import Console

        if settings.plot:
            from ..figure import draw
    with settings.in_precision():
        done = job(settings, Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 100))
    if settings.json:
        options.write(settings.json, done.to_json())
    if settings.plot:
        draw(settings.plot, f"{settings.name} {settings.activation} network", done.reports, done.labels, done.run)
    if done.run and done.run.interrupted:
        return 130
    return 0 if done.ok else 1
