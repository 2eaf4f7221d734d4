"""The course of a descent, epoch by epoch: what it met, what is asked after each, where it ends, what is kept of it."""

import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from .descent import Descent
from .history import Best, History, Search, plain_numbers
from .layer import described
from .state import End, State, by_name
from .stream import Batches, Block, Shuffled

SECONDS_PER_CALL = 1.0  # after about this long the program comes back to Python: for the bar, Ctrl-C, the cost


@dataclass(frozen=True, repr=False)
class Run:
    """What `fit` returns: `theta: [P]`, `history`, and the message if it stopped early, else None.

    `state`: where the stream stands after the last full batch, for `resume=`; what a short last batch did is in `theta`
    alone. `best`: the best epoch's θ, if that was asked for. `interrupted`: whether Ctrl-C stopped it.
    """

    theta: Float[Array, "P"]
    history: History
    stopped: str | None = None
    state: State | None = None
    best: Best | None = None
    interrupted: bool = False

    def __repr__(self) -> str:
        lines = [f"Run: theta {described(self.theta)}", *str(self.history).splitlines()]
        if self.best:
            lines.append(f"best: epoch {self.best.epoch}, {self.best.value:.6g}")
        return "\n  ".join([*lines, *([self.stopped] if self.stopped else [])])


@dataclass
class Course:
    """A descent under way. `origin`: the state that it goes on from, whose leaves are not looked at."""

    descent: Descent
    stream: Shuffled | Batches
    origin: State
    search: Search
    epochs: int
    evaluate: Callable[..., Any] | None = None
    patience: int | None = None
    save: str | os.PathLike | None = None
    stopped: str | None = None
    interrupted: bool = False
    warning: str | None = None

    def __post_init__(self) -> None:
        self.costs, self.records = [self.origin.history.cost], list(self.origin.history.epochs)
        self.owed, self.started = self.origin.owed, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start, those before a pause too."""
        return self.origin.seconds + time.perf_counter() - self.started

    def run(self, asked: Callable[[], bool], show: Callable[[int, float], None]) -> Run:
        """Descend until it ends. `asked()`: whether somebody asks to end it; `show(step, cost)` says how far it is."""
        if self.owed:
            self.owed = False
            self._end_epoch(self.descent.step, self.seconds, lambda: self.descent.theta)
            self._write()
        elif not self.stopped and len(self.records) < self.epochs:
            self.stopped = self.search.over(len(self.records), self.patience)
        if not self.stopped:
            self._full_batches(asked, show)
        if not self.stopped and (block := self.stream.rest(self.epochs)):
            return self._rest(block)
        self.descent.let_go()
        return self._result(self.descent.theta, self._state())

    def _full_batches(self, asked: Callable[[], bool], show: Callable[[int, float], None]) -> None:
        done, step = len(self.records), self.descent.step
        if isinstance(self.stream, Batches):
            step -= self.records[-1]["step"] if done else 0  # of the epoch that runs
        pause = self.evaluate is not None or self.save is not None
        for block, i, stop in calls(self.stream.blocks(self.epochs, step, done), pause_at_epochs=pause):
            first, before = self.descent.step - i, self.seconds
            costs = self.descent.advance(block, i, stop)
            self.costs.append(costs)
            over, took = i + costs.size - self.descent.failed, self.seconds - before
            ends = [end for end in block.epoch_ends if i < end <= over]
            for end in ends:
                self._end_epoch(first + end, before + took * (end - i) / (over - i), lambda: self.descent.theta)
            if self.descent.failed:
                self._fail()
                return
            show(self.descent.step, float(costs[-1]))
            if not self.stopped and asked() and len(self.records) < self.epochs:
                at = f"step {self.descent.step}, in epoch {len(self.records) + 1} of {self.epochs}"
                self.interrupted, self.stopped = True, f"fit: interrupted at {at}. run.state goes on from there."
            if ends or self.stopped:
                self._write()
            if self.stopped:
                return

    def _rest(self, block: Block) -> Run:
        """The short batch at the very end."""
        state = self._state()
        theta, cost = self.descent.last(block)
        self.costs.append(cost)
        if self.descent.failed:
            self._fail()
            return self._result(theta, self._state())
        self._end_epoch(self.descent.step + 1, self.seconds, lambda: theta)
        if not self.stopped:
            state = replace(state, end=End(theta, cost, self.records[-1]))
        self._write(state)
        return self._result(theta, state)

    def _end_epoch(self, step: int, seconds: float, theta: Callable[[], Any]) -> None:
        """Ask what there is to ask at the end of an epoch, and record it."""
        number, told, at = len(self.records) + 1, {}, None
        if self.evaluate is not None:
            at = theta()
            try:
                said = self.evaluate(at)
            except Exception as error:
                self.owed = True
                raised = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                self.stopped = (
                    f"fit: evaluate raised {raised} after epoch {number} of {self.epochs}. Stopped; run has all that "
                    "was done, and run.state goes on from there."
                )
                self.warning = f"{self.stopped}\n{traceback.format_exc()}"
                return
            told, seconds = plain_numbers(said), self.seconds
        before = self.records[-1]["seconds"] if self.records else 0.0
        record = {"epoch": number, "step": step, "seconds": seconds, "epoch_seconds": seconds - before}
        self.records.append(record | told)
        self.search = self.search.after(number, told, at)
        if number < self.epochs:
            self.stopped = asked_to_stop(self.records, self.epochs) or self.search.over(number, self.patience)

    def _fail(self) -> None:
        self.stopped = self.warning = _failure(np.concatenate(self.costs), self.descent.step)

    def _state(self) -> State:
        """Where the descent stands, with what was met until there."""
        step, search = self.descent.step, self.search
        self.costs = [np.concatenate(self.costs)]
        records = [record for record in self.records if record["step"] <= step]
        if search.best and search.best.epoch > len(records):  # it went back behind that epoch
            search = Search(search.by, None, len(records))
        return replace(
            self.origin, step=step,
            leaves=by_name("theta", self.descent.params) | by_name("optimizer", self.descent.state),
            seconds=self.seconds, history=History(self.costs[0][:step], records), search=search, owed=self.owed,
        )  # fmt: skip

    def _write(self, state: State | None = None) -> None:
        if self.save is not None:
            (state or self._state()).write(self.save)

    def _result(self, theta: Float[Array, "P"], state: State) -> Run:
        history = History(np.concatenate(self.costs), self.records)
        return Run(theta, history, self.stopped, state, self.search.best, self.interrupted)


def asked_to_stop(records: list[dict[str, Any]], epochs: int) -> str | None:
    """What to say if `evaluate` asked to stop at the end of the last epoch, else None."""
    if not records or not records[-1].get("stop") or len(records) == epochs:
        return None
    return f"fit: evaluate asked to stop. Stopped after epoch {len(records)} of {epochs}."


def finished(state: State, search: Search, end: End) -> Run:
    """The run of a descent that was over, short last batch and all."""
    epochs = [*state.history.epochs, end.record]
    history = History(np.concatenate([state.history.cost, end.cost]), epochs)
    search = search.after(len(epochs), end.record, end.theta)
    return Run(end.theta, history, None, state, search.best)


def calls(blocks: Iterable[Block], pause_at_epochs: bool) -> Iterator[tuple[Block, int, int]]:
    """(block, first step, stop) of each call of the program, about `SECONDS_PER_CALL` long as the caller takes them."""
    n = 1
    for block in blocks:
        i = 0
        while i < block.steps:
            ends = [end for end in block.epoch_ends if end > i] if pause_at_epochs else []
            stop = min(i + n, block.steps, *ends)
            tick = time.perf_counter()
            yield block, i, stop
            pace = (stop - i) * SECONDS_PER_CALL / (time.perf_counter() - tick)
            i, n = stop, max(1, min(8 * n, int(pace)))


def _failure(costs: np.ndarray, step: int) -> str:
    """The message of a descent whose last cost is not finite, and which is back before `step`."""
    at = costs.size - 1
    if not at:
        return f"fit: the cost is {costs[0]} at the θ given, before the first step; θ is returned unchanged."
    if step == at:
        return f"fit: the cost is {costs[-1]} at the θ of the state, before the first step; θ is returned unchanged."
    return (
        f"fit: the cost became {costs[-1]} at step {at}. Stopped; run.theta is θ of step {at - 1}, the last with "
        f"a finite cost, {costs[-2]:.6g}. Lower the learning rate, clip the gradient, or look at the data."
    )
