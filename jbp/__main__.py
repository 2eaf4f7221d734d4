"""The text's network on real digits: its hand-written gradient against autodiff's, and descent with the hand-written.

`jbp train` (or `jbp` alone) compares the two gradients at the initial θ, descends, and compares again at the end;
`jbp compare` stops after the first comparison. Exit code: 0 if the gradients agree in every comparison and the cost
stayed finite, 1 if not, 2 if an option does not fit, 130 after Ctrl-C.
"""

import argparse
import difflib
import io
import json
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import activations, losses
from .compare import Report
from .data import digits
from .fit import Run, fit
from .layer import InputError
from .layout import Layout
from .network import mlp
from .reverse import Cost

ACTIVATIONS: dict[str, Any] = {"sigmoid": activations.Sigmoid}  # the first is the default, here as below
ACTIVATIONS |= {name.lower(): a for name, a in vars(activations).items() if is_dataclass(a) and hasattr(a, "forward")}
LOSSES: dict[str, Any] = {
    "half-squared": losses.HalfSquaredError,
    "squared": losses.SquaredError,
    "huber": losses.Huber,
    "softmax": losses.SoftmaxCrossEntropy,
    "sigmoid": losses.SigmoidCrossEntropy,
}
ON_LOGITS = ("softmax", "sigmoid")
RATES = {  # of each optimizer: behind sigmoids, and behind other activations, whose slopes are larger
    "sgd": (3.0, 0.1), "momentum": (0.1, 0.01), "rmsprop": (0.003, 0.001), "lion": (3e-4, 3e-4), "adagrad": (0.1, 0.1),
    **dict.fromkeys(("adam", "adamw", "nadam", "radam", "adamax", "adabelief"), (0.01, 0.003)),
}  # fmt: skip
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": np.float32},
    "bfloat16": {"dtype": np.float32, "compute_dtype": jnp.bfloat16},
    "float64": {"dtype": np.float64},
}
PLOTS = (".png", ".svg", ".pdf")


# -- options: each once, with its default, what it accepts, and an example for the remedy ------------------------------


def _option(default: Any, parse: Callable[[str], Any], expected: str, example: str, text: str) -> Any:
    return field(default=default, metadata={"parse": parse, "expected": expected, "example": example, "text": text})


def _choice(names: Sequence[str], text: str) -> Any:
    """One of `names`, of which the first is the default."""
    return _option(names[0], lambda name: names[names.index(name)], f"one of {', '.join(names)}", names[0], text)


def _number(default: Any, kind: type, low: Any, high: Any, expected: str, text: str, example: str = "") -> Any:
    def parse(given: str) -> Any:
        if not low <= kind(given) <= high:
            raise ValueError
        return kind(given)

    return _option(default, parse, expected, example or str(default), text)


def _widths(given: str) -> tuple[int, ...]:
    widths = tuple(map(int, given.split(",")))
    if not all(1 <= width <= 2**16 for width in widths):
        raise ValueError
    return widths


def _file(given: str, suffixes: Sequence[str] = ("",)) -> str:
    """A path that can be written: tried here, so that no work is lost in the end."""
    path = Path(given)
    if not given.lower().endswith(tuple(suffixes)):
        raise ValueError
    try:
        existed = path.exists()
        path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"expected a file that can be written, got {given!r} ({error.strerror}). Name one in a folder of yours."
        ) from None
    return given


@dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    command: str = _choice(("train", "compare"), "")
    widths: tuple[int, ...] = _option(
        (30,), _widths, "whole numbers from 1 to 65536 with commas between", "30,20", "hidden layers"
    )
    activation: str = _choice(tuple(ACTIVATIONS), "behind each dense layer")
    loss: str = _choice(tuple(LOSSES), "of one digit; softmax and sigmoid are cross-entropies, without --activation "
        "behind the last layer")  # fmt: skip
    optimizer: str = _choice(tuple(RATES), "from optax; momentum is sgd with momentum 0.9")
    learning_rate: float | None = _number(
        None, float, math.ulp(0), sys.float_info.max, "a number above 0", "the optimizer's own unless given, which is "
        "smaller for other activations than sigmoid; for sgd 3, else 0.1", "0.1"
    )  # fmt: skip
    batch: int = _number(10, int, 1, 2**31 - 1, "a whole number above 0", "digits in a batch")
    epochs: int = _number(100, int, 1, 2**31 - 1, "a whole number above 0", "how often each digit is met")
    precision: str = _choice(tuple(PRECISIONS), "θ itself is float32 for bfloat16")
    seed: int = _number(0, int, 0, 2**31 - 1, "a whole number from 0 to 2147483647", "for θ and the shuffles")
    json: str | None = _option(None, _file, "a file", "run.json", "write everything found")
    plot: str | None = _option(None, partial(_file, suffixes=PLOTS), f"a file that ends in {', '.join(PLOTS)}",
        "run.png", "draw errors, cost and accuracy")  # fmt: skip

    @property
    def name(self) -> str:
        """The network's widths, as in 64-30-10."""
        return "-".join(map(str, (64, *self.widths, 10)))


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ").replace("--command:", "command:")
        raise InputError(message if message.endswith((".", "?")) else f"{message}. See: jbp --help")


def _checked(option: Any) -> Callable[[str], Any]:
    """The parser of an option's text, whose error says what was expected, what arrived, and a remedy."""
    expected = option.metadata["expected"]

    def parse(given: str) -> Any:
        try:
            return option.metadata["parse"](given)
        except ValueError:
            near = difflib.get_close_matches(given.lower(), expected.removeprefix("one of ").split(", "), n=1)
            remedy = f"Did you mean {near[0]}?" if near else f"Write for example {option.metadata['example']}."
            raise argparse.ArgumentTypeError(f"expected {expected}, got {given!r}. {remedy}") from None

    return parse


def parse(argv: Sequence[str]) -> Settings:
    """The settings that a command line asks for. Raises `InputError` where a word of it does not fit."""
    parser = _Parser(
        "jbp", usage="jbp [train | compare] [--option VALUE ...]", description=(__doc__ or "").replace("`", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    flags = {f"--{option.name.replace('_', '-')}": option for option in fields(Settings)}
    for flag, option in flags.items():
        text = "{text}: {expected}".format_map(option.metadata)
        if option.default is not None:
            text += f" (default {str(option.default).strip('(,)')})"
        text = argparse.SUPPRESS if flag == "--command" else text
        parser.add_argument(flag, type=_checked(option), default=option.default, metavar="VALUE", help=text)
    words = list(argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--command")
    given, unknown = parser.parse_known_args(words)
    if unknown:
        near = difflib.get_close_matches(unknown[0].partition("=")[0], list(flags)[1:], n=1)
        hint = f"Did you mean {near[0]}?" if near else "See: jbp --help"
        raise InputError(f"{unknown[0]}: expected a command first, then options --name VALUE. {hint}")
    given.learning_rate = given.learning_rate or RATES[given.optimizer][given.activation != "sigmoid"]
    return Settings(**vars(given))


# -- the job ----------------------------------------------------------------------------------------------------------


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
            costs = [c if math.isfinite(c) else str(c) for c in self.run.history.cost.tolist()]
            content["history"] = {"cost": costs, "epochs": self.run.history.epochs, "stopped": self.run.stopped}
        return json.dumps(content, indent=1, allow_nan=False)


def job(settings: Settings, console: Any) -> Outcome:
    """Compare; unless the command is `compare`, descend and compare again. Says on the console what was done."""
    activation = ACTIVATIONS[settings.activation]()
    last = activations.Identity() if settings.loss in ON_LOGITS else activation
    network = mlp(64, *settings.widths, 10, activation=activation, last=last, **PRECISIONS[settings.precision])
    cost = Cost(network, LOSSES[settings.loss]())
    theta_key, descent_key = jax.random.split(jax.random.key(settings.seed))
    theta, output, data = jax.jit(network.init)(theta_key), jax.jit(network), digits()
    x, y, held_out = data.x, np.eye(10, dtype=network.dtype)[data.y], len(data.held_out_y)
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
        name = settings.optimizer
        optimizer = partial(optax.sgd, momentum=0.9) if name == "momentum" else getattr(optax, name)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fit: ")  # said below
            run = done.run = fit(
                cost, theta, (x, y), optimizer=optimizer(settings.learning_rate), batch_size=settings.batch,
                epochs=settings.epochs, key=descent_key, evaluate=evaluate, progress=console.is_terminal,
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
    try:
        from rich.console import Console

        if settings.plot:
            from .figure import draw
    except ModuleNotFoundError as missing:
        name = (missing.name or "").partition(".")[0]
        raise InputError(f"{name} is not installed, and this needs it. Write: pip install 'jbp[cli]'") from None
    with jax.enable_x64(settings.precision == "float64"):
        done = job(settings, Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 100))
    if settings.json:
        Path(settings.json).write_text(done.to_json(), encoding="utf-8")
    if settings.plot:
        draw(settings.plot, f"{settings.name} {settings.activation} network", done.reports, done.labels, done.run)
    return 0 if done.ok else 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command line `jbp`; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # where there is no ←, \u2190 instead of an error
    try:
        return run(parse(sys.argv[1:] if argv is None else argv))
    except (InputError, OSError) as error:
        print("jbp:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jbp: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
