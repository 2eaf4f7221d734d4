"""What a call costs, and two of them timed in turns."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

SECONDS = 0.5  # spent on timing


class Measured(NamedTuple):
    """Median time of a call, temporary memory of the compiled program, time to trace and compile it, its FLOPs."""

    seconds: float
    temp_bytes: int
    compile_seconds: float
    flops: float | None = None


class Race(NamedTuple):
    """Ratio of the medians of two programs' times, the quartiles of the ratios pair by pair, and how many pairs."""

    ratio: float
    low: float
    high: float
    pairs: int


def race(
    first: Callable[[], Any], second: Callable[[], Any], seconds: float | None = None
) -> tuple[float, float, Race]:
    """(median time of the first, of the second, their ratio), alternating, for about so many seconds."""
    times: tuple[list[float], list[float]] = ([], [])
    until = time.perf_counter() + (SECONDS if seconds is None else seconds)
    while time.perf_counter() < until or len(times[0]) < 2:
        for run, spent in zip((first, second), times, strict=True):
            started = time.perf_counter()
            jax.block_until_ready(run())
            spent.append(time.perf_counter() - started)
    a, b = map(statistics.median, times)
    ratios = np.quantile(np.divide(*map(np.asarray, times)), (0.25, 0.75))
    return a, b, Race(a / b, float(ratios[0]), float(ratios[1]), len(times[0]))
