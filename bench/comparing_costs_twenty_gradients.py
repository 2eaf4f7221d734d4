"""Comparing a network of 10 million parameters takes at most 25 times one gradient, plus compilation.

At two θ the rule, autodiff, and autodiff in float64, which takes twice as long: 8. Which kinks are met, at three
points, in float64 too: 3. The race of both: 4. The rest are statistics, and random points.

`cost.compare` of 784-2900-2900-10 at batch 512, everything included (the rule, autodiff, the float64 shadow, all
statistics, the timing of both), less what JAX reports as spent on tracing, lowering and compiling; against one compiled
`jax.value_and_grad`. Each round does both. Memory: by how much the peak of a fresh process that compares lies above
that of one that computes one gradient, in units of θ. And the time of a small comparison from a cold start.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import harness
import jax
import numpy as np

import jbp

SMALL = """
import time; start = time.perf_counter()
import jax, jax.numpy as jnp, numpy as np, jbp

@jax.custom_vjp
def f(x, w): return jnp.tanh(x @ w)
f.defvjp(lambda x, w: (f(x, w), (x, w)), lambda kept, d: ((1 - f(*kept) ** 2) * d @ kept[1].T,
                                                          kept[0].T @ ((1 - f(*kept) ** 2) * d)))
x, w = np.ones((8, 4), np.float32) / 3, np.ones((4, 5), np.float32) / 7
report = jbp.compare_vjp(f, x, w)
assert report.ok, report
print(time.perf_counter() - start)
"""


def problem(quick: bool = False):
    width = 32 if quick else 2900
    network = jbp.mlp(784, width, width, 10, activation=jbp.ReLU(), last=jbp.Identity())
    cost = jbp.Cost(network, jbp.losses.SoftmaxCrossEntropy())
    random = np.random.default_rng(0)
    theta = jax.jit(network.init)(jax.random.key(0))
    return cost, theta, random.standard_normal((512, 784), np.float32), random.integers(0, 10, 512).astype(np.int32)


def peak(what: str, quick: bool) -> int:
    """The peak of memory of a process of this program that does `what` alone, in bytes."""
    command = [sys.executable, __file__, "--alone", what, "quick" if quick else ""]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def alone(what: str, quick: bool) -> None:
    cost, theta, x, y = problem(quick)
    if what == "gradient":
        jax.block_until_ready(jax.jit(jax.value_and_grad(cost))(theta, x, y))
    else:
        assert cost.compare(theta, x, y).ok
    status = Path("/proc/self/status").read_text()  # getrusage's peak is inherited from the process that forked
    print(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024)


def measure(report: harness.Report) -> None:
    compiling: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiling.append(seconds) if name.startswith("/jax/core/compile/") else None
    )
    cost, theta, x, y = problem(report.quick)
    gradient = harness.compiled(jax.value_and_grad(cost), theta, x, y)
    gradient.seconds()
    ratios, parts = [], []
    for _ in range(report.rounds):
        compiling.clear()
        start = time.perf_counter()
        assert cost.compare(theta, x, y).ok
        whole, spent = time.perf_counter() - start, sum(compiling)
        one = statistics.median(gradient.seconds() for _ in range(3))
        ratios.append((whole - spent) / one)
        parts.append((whole, spent, one))
    whole, spent, one = np.median(parts, axis=0)
    report.note(f"{cost.layout.size:,} parameters: a comparison {whole:.2f} s, of which {spent:.2f} s compiling; "
                f"a gradient {one:.3f} s (one process)")  # fmt: skip
    report.value("time of a comparison, without compiling, ÷ one gradient's", np.median(ratios), at_most=25)
    more = (peak("compare", report.quick) - peak("gradient", report.quick)) / theta.nbytes
    report.value("memory of a comparison beyond one gradient's ÷ θ", more, at_most=22)
    no_cache = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    cold = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True, check=True, env=no_cache)
    report.value("seconds for a small comparison from a cold start", float(cold.stdout), at_most=5)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        alone(sys.argv[2], sys.argv[3] == "quick")
    else:
        harness.run(__doc__, measure, rounds=3)
