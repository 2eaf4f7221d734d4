"""What a descent met on its way: the cost of each step, a record for each epoch, the best θ so far."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from . import paint
from .blocks import PageBlock, Text, as_json
from .errors import arrived
from .layer import InputError, described
from .markup import Page

OWN = ("epoch", "step", "seconds", "epoch_seconds")  # what each record holds besides the numbers of `evaluate`


@dataclass(repr=False)
class History(Page):
    """`cost: [steps]`, C on each step's batch before its update; `epochs`: a record for each finished epoch.

    A record holds `epoch` (from 1), `step` (how many are done), `seconds` since the start and `epoch_seconds` of this
    epoch alone (both go on where a descent is resumed), and what `evaluate` gave.
    """

    cost: np.ndarray = field(default_factory=lambda: np.zeros(0))
    epochs: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> str:
        """`{"cost": [...], "epochs": [...]}` as JSON text. What is not finite stands as a string."""
        return as_json({"cost": self.cost.tolist(), "epochs": self.epochs}, indent=None)

    def blocks(self) -> Iterator[PageBlock]:
        """How many steps it took, the cost of the first and the last, the records of the first and the last epoch."""
        steps = f"{self.cost.size:,} steps, {len(self.epochs):,} epochs"
        yield Text(steps + (f", {self.epochs[-1]['seconds']:.3g} s" if self.epochs else ""))
        if self.cost.size:
            yield Text(f"cost of the batch {self.cost[0]:.6g} → {self.cost[-1]:.6g}")
        for record in self.epochs[:1] + self.epochs[1:][-1:]:
            numbers = [f"{name} {_short(value)}" for name, value in record.items() if name not in OWN]
            told = ", ".join([f"step {record['step']:,}", *numbers])
            yield Text(f"epoch {record['epoch']}: {told}"[:200])

    def figure(self) -> Any:
        """A matplotlib `Figure`: the cost of each step, and below it each number of `evaluate`, epoch by epoch.

        Raises `InputError` where matplotlib is not installed.
        """
        is_number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
        told = {name for record in self.epochs for name, value in record.items() if is_number(value)}
        names = sorted(told - set(OWN))
        with paint.new_figure("History.figure", 8, 3.4 + 1.9 * len(names)) as drawn:
            heights = [3, *[2] * len(names)]
            axes = drawn.subplots(1 + len(names), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
            draw_cost(axes[0], self.cost)
            for below, name in zip(axes[1:], names, strict=True):
                draw_epochs(below, name, [record for record in self.epochs if is_number(record.get(name))])
            axes[-1].set_xlabel(f"steps  ({len(self.epochs)} epochs)")
        return drawn


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def plain_numbers(told: Any) -> dict[str, Any]:
    """What `evaluate` returned, as numbers that a record keeps, Python's own; words and None are kept, too.

    Raises `InputError` for anything else, such as an array of several numbers.
    """
    if not isinstance(told, Mapping):
        raise InputError(
            f"fit: evaluate must return a dict of numbers by name, got {type(told).__name__}. "
            'As in {"accuracy": 0.9}.'
        )
    numbers = {}
    for name, value in told.items():
        plain = np.asarray(value).tolist() if isinstance(value, (jax.Array, np.ndarray, np.generic)) else value
        while isinstance(plain, list) and len(plain) == 1:
            plain = plain[0]
        if isinstance(plain, (list, tuple, dict)):
            raise InputError(
                f"fit: evaluate must return a dict of numbers by name, got {arrived(value)} as {name!r}. Give each "
                "number a name of its own."
            )
        try:
            json.dumps({name: plain})
        except (TypeError, ValueError):
            raise InputError(
                f"fit: evaluate must return a dict of numbers by name, got {type(value).__name__} as {name!r}. "
                "Give float(...) of it."
            ) from None
        if name in OWN:
            raise InputError(f"fit: evaluate returned {name!r}, which each record holds already. Give it another name.")
        numbers[name] = plain
    return numbers


# -- the best θ -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Best:
    """The best epoch by one of the numbers of `evaluate`: θ at its end, its number from 1, and that number's value."""

    theta: Float[Array, "P"]
    epoch: int
    value: float

    def __repr__(self) -> str:
        return f"Best(epoch={self.epoch}, value={self.value:.6g}, theta={described(self.theta)})"


@dataclass(frozen=True)
class Search:
    """The search for the best epoch. `by`: the number's name, after "-" if less is better.

    `since`: how many epochs were over when it began.
    """

    by: str | None = None
    best: Best | None = None
    since: int = 0

    def asked(self, by: str | None, done: int) -> "Search":
        """The search for `by` after so many epochs. Raises `InputError` for another number than before."""
        if by == self.by:
            return self
        if by is not None and self.by is not None:
            raise InputError(
                f"fit: the state has searched for best={self.by!r}, and its other θ are gone. Give that, or best=None."
            )
        return Search(by, None, done)

    def after(self, epoch: int, numbers: Mapping[str, Any], theta: Any) -> "Search":
        """The search after one epoch more. NaN is never best, and of equal ones the first is."""
        if self.by is None:
            return self
        name, sign = self.by.removeprefix("-"), -1 if self.by.startswith("-") else 1
        if name not in numbers:
            known = ", ".join(map(str, numbers)) or "nothing"
            raise InputError(
                f"fit: best={self.by!r} names no number of evaluate, which returned {known}. Name one of these, with "
                "a minus in front where less is better."
            )
        value = numbers[name]
        if not isinstance(value, (int, float)):
            raise InputError(f"fit: best={self.by!r} needs a number, got {value!r} from evaluate. Give float(...).")
        if math.isnan(value) or (self.best and not sign * value > sign * self.best.value):
            return self
        return replace(self, best=Best(theta, epoch, float(value)))

    def over(self, epochs: int, patience: int | None) -> str | None:
        """What to say if the last `patience` of all `epochs` done have brought nothing better, else None."""
        last = self.best.epoch if self.best else self.since
        if patience is None or epochs - last < patience:
            return None
        found = f"epoch {last}, {self.best.value:.6g}" if self.best else "none, it is NaN in all"
        return f"fit: {patience} epochs without a better {self.by}. Stopped after epoch {epochs}; the best is {found}."


# -- as a picture -----------------------------------------------------------------------------------------------------


def draw_cost(axes: Any, cost: np.ndarray) -> None:
    """The cost of each step, and its mean over a fiftieth of them."""
    steps = np.arange(cost.size)
    window = max(1, cost.size // 50)
    axes.plot(steps, cost, color=paint.FAINT, lw=0.5, marker="o" if cost.size < 50 else None, ms=4, label="each batch")
    if window > 1:
        mean = np.convolve(cost, np.ones(window) / window, "valid")
        axes.plot(steps[window - 1 :] - (window - 1) / 2, mean, color=paint.BLUE, lw=2, label=f"mean of {window} steps")
    if np.all(cost[np.isfinite(cost)] > 0):
        axes.set_yscale("log")
    axes.set_xlim(left=0)
    bad = cost.size and not np.isfinite(cost[-1])
    axes.set_title("Cost of the batch" + (f": {cost[-1]} at step {cost.size - 1}" if bad else ""))
    axes.legend(loc="upper right")


def draw_epochs(axes: Any, title: str, records: list[dict[str, Any]], name: str = "") -> None:
    """One number of `evaluate`, epoch by epoch."""
    marker = "o" if len(records) < 30 else None
    numbers = [record[name or title] for record in records]
    axes.plot([record["step"] for record in records], numbers, color=paint.BLUE, lw=2, marker=marker, ms=4)
    axes.set_title(title)
