"""Races between our code and its peers, in one process and one run, alternating.

    def measure(report):
        times = report.race("a title", ours={"jbp": f}, peers={"jax.grad": g, "another way": h})
        report.claim("time", times.ratio("jbp", times.fastest), at_most=1.03)

    if __name__ == "__main__":
        harness.run(__doc__, measure, repeats=40)

Every round samples each rival once, in a new random order, so that a machine that drifts slows all of them alike. Only
ratios within one run mean anything: the ratio of the medians, and the quartiles of the ratios round by round.
"""

import argparse
import importlib
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

SHORTEST = 0.02  # seconds: a quicker rival is called several times in a row for one sample


@dataclass(frozen=True)
class Rival:
    """`call()` does the work and returns what to wait for; it consists of `steps`, and the time of one is stated."""

    call: Callable[[], Any]
    temp: int | None = None  # bytes of temporary memory, where a compiled program does the work
    steps: int = 1

    def seconds(self, calls: int = 1) -> float:
        """Mean time of a call."""
        start = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(self.call())
        return (time.perf_counter() - start) / calls


def compiled(f: Callable, *args: Any, steps: int = 1) -> Rival:
    """f on these arguments as one compiled program."""
    program = jax.jit(f).lower(*args).compile()
    return Rival(lambda: program(*args), program.memory_analysis().temp_size_in_bytes, steps)


class Ratio(NamedTuple):
    """A ratio of medians, and the quartiles of the ratios round by round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f}" + (f" [{self.low:.3f}, {self.high:.3f}]" if self.low < self.high else "")


@dataclass(frozen=True)
class Times:
    """Seconds in each round, by rival; and the peer with the least median."""

    seconds: dict[str, np.ndarray]
    fastest: str

    def ratio(self, a: str, b: str) -> Ratio:
        """Time of a over time of b."""
        each = self.seconds[a] / self.seconds[b]
        return Ratio(np.median(self.seconds[a]) / np.median(self.seconds[b]), *np.quantile(each, (0.25, 0.75)))


@dataclass
class Report:
    """Prints what is measured, and keeps it for `--json`."""

    repeats: int
    races: list[dict] = field(default_factory=list)
    claims: list[dict] = field(default_factory=list)

    def race(
        self,
        title: str,
        ours: dict[str, Rival],
        peers: dict[str, Rival],
        beside: dict[str, Rival] | None = None,
        repeats: int | None = None,
    ) -> Times:
        """A heat of the peers, and a final of ours, the fastest peer, and what stands beside, which is no peer.

        The final is a race of its own because the least of many medians is a lucky one.
        """
        repeats = repeats or self.repeats
        fastest = next(iter(peers))
        if len(peers) > 1:
            fastest = self._rounds(f"{title}: peers", peers, peers, max(2, repeats // 4)).fastest
        final = {fastest: peers[fastest]}
        return self._rounds(title, {**ours, **final, **(beside or {})}, final, repeats)

    def _rounds(self, title: str, rivals: dict[str, Rival], peers: dict[str, Rival], repeats: int) -> Times:
        for rival in rivals.values():
            rival.seconds()  # the first call may compile
        calls = {name: max(1, round(SHORTEST / rival.seconds())) for name, rival in rivals.items()}
        samples: dict[str, list[float]] = {name: [] for name in rivals}
        for _ in range(repeats):
            for name in random.sample(list(rivals), len(rivals)):
                samples[name].append(rivals[name].seconds(calls[name]) / rivals[name].steps)
        seconds = {name: np.array(s) for name, s in samples.items()}
        times = Times(seconds, min(peers, key=lambda name: np.median(seconds[name])))

        width = max(map(len, rivals))
        print(f"\n{title}\n  {'':{width}}  {'median':>12}  {'÷ fastest peer':>22}  {'temporary':>12}")
        for name, rival in rivals.items():
            ms = f"{1e3 * np.median(seconds[name]):.4g} ms"
            ratio = "fastest peer" if name == times.fastest else str(times.ratio(name, times.fastest))
            temp = "" if rival.temp is None else f"{rival.temp / 1e6:.3f} MB"
            print(f"  {name:{width}}  {ms:>12}  {ratio:>22}  {temp:>12}", flush=True)
        temps = {name: rival.temp for name, rival in rivals.items()}
        self.races.append({"title": title, "fastest_peer": times.fastest, "seconds": samples, "temp_bytes": temps})
        return times

    def claim(self, text: str, ratio: Ratio | float, *, at_most: float = np.inf, at_least: float = 0.0) -> None:
        """Print a ratio, the bound that is claimed for it, and whether it holds here."""
        ratio = ratio if isinstance(ratio, Ratio) else Ratio(ratio, ratio, ratio)
        holds = bool(at_least <= ratio.median <= at_most)
        bound = f"at most {at_most:g}" if at_most < np.inf else f"at least {at_least:g}"
        print(f"  {'holds' if holds else 'DOES NOT HOLD'}: {text} is {ratio}, claimed {bound}", flush=True)
        self.claims.append({"text": text, **ratio._asdict(), "bound": bound, "holds": holds})


def agree(expected: Any, results: dict[str, Any], tolerance: float = 1e-5) -> None:
    """Stop unless each leaf of each result is `expected`'s up to round-off: ‖difference‖ ≤ tolerance · ‖expected‖."""
    for name, result in results.items():
        for want, got in zip(jax.tree.leaves(expected), jax.tree.leaves(result), strict=True):
            error = np.linalg.norm(np.asarray(got) - want) / np.linalg.norm(want)
            if not error <= tolerance:
                sys.exit(f"{name} does not agree: a result of shape {want.shape} is off by {error:.1e} of its norm.")


def extra(module: str) -> Any:
    """A module that only benchmarks need."""
    try:
        return importlib.import_module(module)
    except ImportError:
        sys.exit(f"This benchmark needs {module.split('.')[0]}: pip install -e '.[bench]'")


def run(claim: str, measure: Callable[[Report], None], repeats: int) -> None:
    """The command line of a benchmark."""
    parser = argparse.ArgumentParser(description=claim, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help=f"rounds of each race ({repeats})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample and claim here")
    options = parser.parse_args()
    imported = [sys.modules[name] for name in ("jax", "jaxlib", "optax", "torch") if name in sys.modules]
    machine = {
        "python": platform.python_version(),
        **{module.__name__: str(module.__version__) for module in imported},
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2),
    }
    print(claim.strip(), ", ".join(f"{name} {value}" for name, value in machine.items()), sep="\n\n")
    random.seed(0)
    report = Report(options.repeats)
    measure(report)
    if options.json:
        result = {"claim": claim.strip().splitlines()[0], "machine": machine, **asdict(report)}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
