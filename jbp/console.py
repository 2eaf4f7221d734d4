"""A descent meets its console: Ctrl-C, and a progress bar."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from .layer import InputError


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Yields `asked()`: whether Ctrl-C was pressed in here. A second one raises `KeyboardInterrupt` at once.

    Only where Python's own handler would have raised it: in the main thread, and if nobody has set another.
    """
    pressed: list[int] = []
    usual = signal.default_int_handler
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is usual

    def handler(number, frame):
        if pressed:
            usual(number, frame)
        pressed.append(number)

    if ours:
        signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(pressed)
    finally:
        if ours:
            signal.signal(signal.SIGINT, usual)


def silent(step: int, cost: float) -> None:
    pass


@contextlib.contextmanager
def bar(total: int | None, done: int) -> Iterator[Callable[[int, float], None]]:
    """A progress bar from step `done` on; yields `show(step, cost)`."""
    try:
        from rich import progress
    except ModuleNotFoundError:
        raise InputError(
            "fit: progress=True draws its bar with rich. Install it with: pip install 'jbp[cli]'"
        ) from None
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[cost]}"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns) as shown:
        task = shown.add_task("fit", total=total, completed=done, cost="")
        yield lambda step, cost: shown.update(task, completed=step, cost=f"cost {cost:.4g}")
