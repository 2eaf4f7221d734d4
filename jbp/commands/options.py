"""What the commands share: options, each once, with the line that a wrong one gets; and the digits' network.

A command is a module with a docstring, which is its help; `Settings`, a frozen dataclass whose fields are the words and
options of its command line; and `run(settings) -> exit code`.
"""

import argparse
import difflib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import activations, losses
from ..data import Digits, digits
from ..layer import InputError
from ..mlp import mlp
from ..reverse import Cost

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


# -- options: each with its default, what it accepts, and an example for the remedy ------------------------------------


def option(default: Any, parse: Callable[[str], Any], expected: str, example: str, text: str, **more: Any) -> Any:
    """An option `--name VALUE`; with `word=True` a word without a name; with `required=True` one that must be given.

    `also`: another name for it. `of`: the commands that have a use for it; others take it too and don't show it.
    """
    known = {"parse": parse, "expected": expected, "example": example, "text": text}
    return field(default=default, metadata=known | more)


def choice(names: Sequence[str], text: str, **more: Any) -> Any:
    """One of `names`, of which the first is the default."""
    return option(names[0], lambda name: names[names.index(name)], one_of(names), names[0], text, **more)


def one_of(names: Sequence[str]) -> str:
    return f"one of {', '.join(names)}"


def number(
    default: Any, kind: type, low: Any, high: Any, expected: str, text: str, example: str = "", **more: Any
) -> Any:
    """A number from `low` to `high`."""

    def parse(given: str) -> Any:
        if not low <= kind(given) <= high:
            raise ValueError
        return kind(given)

    return option(default, parse, expected, example or str(default), text, **more)


def file(example: str, text: str, suffixes: Sequence[str] = ()) -> Any:
    """A file that can be written, with one of `suffixes`."""
    expected = f"a file that ends in {', '.join(suffixes)}" if suffixes else "a file"
    return option(None, partial(_file, suffixes=suffixes or ("",)), expected, example, text)


def _file(given: str, suffixes: Sequence[str]) -> str:
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


def _widths(given: str) -> tuple[int, ...]:
    widths = tuple(map(int, given.split(",")))
    if not all(1 <= width <= 2**16 for width in widths):
        raise ValueError
    return widths


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        raise InputError(message if message.endswith((".", "?")) else f"{message}. See: {self.prog} --help")


def checked(known: Any) -> Callable[[str], Any]:
    """The parser of an option's text, whose error says what was expected, what arrived, and a remedy."""
    expected = known["expected"]

    def parse(given: str) -> Any:
        try:
            return known["parse"](given)
        except ValueError:
            names = expected.removeprefix("one of ").split(", ") if expected.startswith("one of ") else ()
            near = difflib.get_close_matches(given.lower(), names, n=1)
            remedy = f"Did you mean {near[0]}?" if near else f"Write for example {known['example']}."
            raise argparse.ArgumentTypeError(f"expected {expected}, got {given!r}. {remedy}") from None

    return parse


def words_of(kind: Any) -> list[str]:
    """The words without a name, as a usage line has them: `SYMBOL`, or `[one | other]` where there is a default."""
    found = [(f.name, f.metadata) for f in fields(kind) if f.metadata.get("word")]
    choices = [known["expected"].removeprefix("one of ").replace(", ", " | ") for _, known in found]
    return [
        name.upper() if known.get("required") else f"[{names}]"
        for (name, known), names in zip(found, choices, strict=True)
    ]


S = TypeVar("S")


def parse(kind: type[S], command: str, argv: Sequence[str], prog: str, usage: str, description: str) -> S:
    """The settings that the words behind a command ask for. Raises `InputError` where one of them does not fit."""
    parser = _Parser(
        prog, usage=usage, description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    known = {f.name: f.metadata for f in fields(kind) if f.metadata}  # type: ignore[arg-type]
    words = [name for name, its in known.items() if its.get("word")]
    flags = {f"--{name.replace('_', '-')}": name for name in known if name not in words}
    defaults = {f.name: f.default for f in fields(kind)}  # type: ignore[arg-type]
    for flag, name in flags.items():
        text = "{text}: {expected}".format_map(known[name])
        if defaults[name] is not None:
            text += f" (default {str(defaults[name]).strip('(,)')})"
        names = [flag, *([known[name]["also"]] if "also" in known[name] else [])]
        text = text if command in known[name].get("of", (command,)) else argparse.SUPPRESS
        parser.add_argument(
            *names, dest=name, type=checked(known[name]), default=defaults[name], metavar="VALUE", help=text
        )
    found, others = parser.parse_known_args(list(argv))
    unknown = [other.partition("=")[0] for other in others if other.startswith("-")]
    if unknown:
        near = difflib.get_close_matches(unknown[0], list(flags), n=1)
        hint = f"Did you mean {near[0]}?" if near else f"See: {prog} --help"
        raise InputError(f"{', '.join(unknown)}: {prog} has no such option. {hint}")
    if len(others) > len(words):
        raise InputError(
            f"{others[len(words)]}: expected a command first, then options --name VALUE. See: {prog} --help"
        )
    settings = vars(found) | {name: defaults[name] for name in words}
    for name, given in zip(words, others, strict=False):
        try:
            settings[name] = checked(known[name])(given)
        except argparse.ArgumentTypeError as error:
            raise InputError(f"{command}: {error}") from None
    for name in words[len(others) :]:
        if known[name].get("required"):
            expected, example = known[name]["expected"], known[name]["example"]
            raise InputError(f"{command}: expected {expected}, got none. Write for example {prog} {example}")
    if "command" in defaults:
        settings["command"] = command
    return kind(**settings)


# -- settings that commands have in common ----------------------------------------------------------------------------


class Job(NamedTuple):
    """A cost on the shipped digits, with θ at its start. `y` is one-hot; `key` is for whatever is drawn after θ."""

    cost: Cost
    theta: Any
    x: np.ndarray
    y: np.ndarray
    key: Any
    data: Digits


@dataclass(frozen=True)
class DigitsNetwork:
    """The options of a network on the shipped digits."""

    widths: tuple[int, ...] = option(
        (30,), _widths, "whole numbers from 1 to 65536 with commas between", "30,20", "hidden layers"
    )
    activation: str = choice(tuple(ACTIVATIONS), "behind each dense layer")
    loss: str = choice(tuple(LOSSES), "of one digit; softmax and sigmoid are cross-entropies, without --activation "
        "behind the last layer")  # fmt: skip
    precision: str = choice(tuple(PRECISIONS), "θ itself is float32 for bfloat16")
    seed: int = number(0, int, 0, 2**31 - 1, "a whole number from 0 to 2147483647", "for θ and the shuffles")

    @property
    def name(self) -> str:
        """The network's widths, as in 64-30-10."""
        return "-".join(map(str, (64, *self.widths, 10)))

    def job(self) -> Job:
        """The network, its cost, θ and the digits. In float64 only under `jax.enable_x64`, as `in_precision` has it."""
        activation = ACTIVATIONS[self.activation]()
        last = activations.Identity() if self.loss in ON_LOGITS else activation
        network = mlp(64, *self.widths, 10, activation=activation, last=last, **PRECISIONS[self.precision])
        theta_key, key = jax.random.split(jax.random.key(self.seed))
        data = digits()
        y = np.eye(10, dtype=network.dtype)[data.y]
        return Job(Cost(network, LOSSES[self.loss]()), jax.jit(network.init)(theta_key), data.x, y, key, data)

    def in_precision(self) -> Any:
        """The context in which everything of this network runs."""
        return jax.enable_x64(self.precision == "float64")


@dataclass(frozen=True)
class Descending(DigitsNetwork):
    """The options of a network on the shipped digits, and of how it descends."""

    optimizer: str = choice(tuple(RATES), "from optax; momentum is sgd with momentum 0.9", of=("train", "flow"))
    learning_rate: float | None = number(
        None, float, math.ulp(0), sys.float_info.max, "a number above 0", "the optimizer's own unless given, which is "
        "smaller for other activations than sigmoid; for sgd 3, else 0.1", "0.1", also="--lr",
        of=("train", "flow"),
    )  # fmt: skip

    def __post_init__(self):
        own = RATES[self.optimizer][self.activation != "sigmoid"]
        object.__setattr__(self, "learning_rate", self.learning_rate or own)

    def transformation(self) -> optax.GradientTransformation:
        """The optimizer itself."""
        make = partial(optax.sgd, momentum=0.9) if self.optimizer == "momentum" else getattr(optax, self.optimizer)
        return make(self.learning_rate)


def which_digit(default: int | None, text: str) -> Any:
    """The option that names one of the digits that C is the mean over."""
    return number(default, int, 0, 1436, "a whole number from 0 to 1436", text, "0")


def write(path: str, text: str) -> None:
    """Write a text file, in UTF-8."""
    Path(path).write_text(text, encoding="utf-8")
