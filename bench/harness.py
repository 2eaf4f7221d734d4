"""Races between our code and its peers: several fresh processes, in each of them all rivals in turn, in random order.

    def measure(report):
        race = report.race("a title", ours={"jbp": f}, peers={"jax.grad": g, "another way": h})
        report.row("a gradient", "`jax.value_and_grad`", race, "jbp", time_at_most=1.03, memory_at_most=1.03)

    if __name__ == "__main__":
        harness.run(__doc__, measure, rounds=9)

One process is not a measurement: where buffers are large, the same compiled program is bimodal, one speed in one state
of the allocator and another in the next, stable for seconds. So `measure` runs in several processes, one after another,
and every round of each samples each rival once, in an order drawn anew, so that a machine that drifts slows all alike.

The first third of the rounds samples the peers alone, and the fastest there, all processes together, is the one that
the rest is divided by: the least of many medians of the same samples would be a lucky one. A row is the ratio of the
medians over all processes, with the least and the largest ratio of one process; what it claims has to hold in each. A
row is a tie unless all processes are on one side of 1. Memory is XLA's count of the compiled program's temporary bytes,
of ours over the smallest peer's.
"""

import argparse
import importlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout is measured, installed or not

SHORTEST = 0.02  # seconds: a quicker rival is called several times in a row for one sample
PROCESSES = 5
FASTEST = "the fastest peer"


# -- in one process ---------------------------------------------------------------------------------------------------


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


@dataclass
class Report:
    """What one process measures. `quick`: a smoke test wants small sizes, and its figures mean nothing."""

    rounds: int
    quick: bool = False
    races: list[dict] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)
    values: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def race(
        self,
        title: str,
        ours: dict[str, Rival],
        peers: dict[str, Rival],
        beside: dict[str, Rival] | None = None,
        rounds: int | None = None,
    ) -> str:
        """Sample ours, the peers, and what stands beside, which is no peer; the title, by which a row names the race.

        Beside the peers, as an expert writes them, stands `jax.grad` of our own forward pass: what is left over it is
        the reverse pass's own merit.
        """
        rivals, rounds = {**ours, **peers, **(beside or {})}, rounds or self.rounds
        for name in random.sample(list(rivals), len(rivals)):
            rivals[name].seconds()  # the first call may compile
        calls = {name: max(1, round(SHORTEST / rival.seconds())) for name, rival in rivals.items()}
        choosing: dict[str, list[float]] = {name: [] for name in peers}
        judging: dict[str, list[float]] = {name: [] for name in rivals}
        for i in range(rounds):
            samples = choosing if i < rounds // 3 else judging
            for name in random.sample(list(samples), len(samples)):
                samples[name].append(rivals[name].seconds(calls[name]) / rivals[name].steps)
        temps = {name: rival.temp for name, rival in rivals.items()}
        self.races.append({"title": title, "choosing": choosing, "seconds": judging, "temp_bytes": temps})
        return title

    def row(
        self,
        what: str,
        against: str,
        race: str,
        over: str,
        under: str = FASTEST,
        *,
        time_at_most: float | None = None,
        memory_at_most: float | None = None,
    ) -> None:
        """A row of the table: time and memory of `over` by those of `under`, and what is claimed of them."""
        bounds = {"time_at_most": time_at_most, "memory_at_most": memory_at_most}
        self.rows.append({"what": what, "against": against, "race": race, "over": over, "under": under, **bounds})

    def value(self, text: str, number: float, *, at_most: float) -> None:
        """A number that is no race's, and what is claimed of it."""
        self.values.append({"text": text, "value": float(number), "at_most": at_most})

    def note(self, text: str) -> None:
        """What a reader of the table has to know besides."""
        self.notes.append(text)


def agree(expected: Any, results: dict[str, Any], tolerance: float = 1e-5) -> None:
    """Stop unless each leaf of each result is `expected`'s up to round-off: ‖difference‖ ≤ tolerance · ‖expected‖."""
    for name, result in results.items():
        for want, got in zip(jax.tree.leaves(expected), jax.tree.leaves(result), strict=True):
            error = np.linalg.norm(np.asarray(got) - want) / np.linalg.norm(want)
            if not error <= tolerance:
                sys.exit(f"{name} does not agree: a result of shape {want.shape} is off by {error:.1e} of its norm.")


def optional(module: str) -> Any:
    """A module that only some peers need, or None."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def extra(module: str) -> Any:
    """A module that only benchmarks need."""
    found = optional(module)
    if found is None:
        sys.exit(f"This benchmark needs {module.split('.')[0]}: pip install -e '.[bench]'")
    return found


def machine() -> dict[str, Any]:
    """What it ran on, as this process sees it."""
    imported = [sys.modules[name] for name in ("jax", "jaxlib", "optax", "torch") if name in sys.modules]
    return {
        "python": platform.python_version(),
        **{module.__name__: str(module.__version__) for module in imported},
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "dtype": str(jax.numpy.zeros(()).dtype),
        "load before": round(os.getloadavg()[0], 2),
    }


# -- all processes together -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """A ratio over all processes, and that of each process by itself."""

    pooled: float
    each: list[float]

    @property
    def verdict(self) -> str:
        """What every process shows."""
        all_of_them = (self.pooled, *self.each)
        return "faster" if max(all_of_them) < 1 else "slower" if min(all_of_them) > 1 else "a tie"

    def holds(self, at_most: float) -> bool:
        return max(self.each) <= at_most

    def __str__(self) -> str:
        spread = f" ({min(self.each):.2f} to {max(self.each):.2f})" if len(self.each) > 1 else ""
        return f"{self.pooled:.2f}{spread}"


@dataclass(frozen=True)
class Race:
    """One race in all processes: seconds of each rival, a list for each process."""

    title: str
    choosing: dict[str, list[list[float]]]
    seconds: dict[str, list[list[float]]]
    temp_bytes: dict[str, int | None]

    @property
    def fastest(self) -> str:
        """The peer with the least median where it was chosen."""
        peers = {peer: np.concatenate(each) for peer, each in self.choosing.items()}
        if not all(samples.size for samples in peers.values()):  # too few rounds to choose in
            peers = {peer: np.concatenate(self.seconds[peer]) for peer in peers}
        return min(peers, key=lambda peer: np.median(peers[peer]))

    def median(self, name: str) -> float:
        return float(np.median(np.concatenate(self.seconds[name])))

    def ratio(self, over: str, under: str) -> Ratio:
        """Time of one over that of the other."""
        under = self.fastest if under == FASTEST else under
        each = [np.median(a) / np.median(b) for a, b in zip(self.seconds[over], self.seconds[under], strict=True)]
        return Ratio(self.median(over) / self.median(under), [float(ratio) for ratio in each])

    def memory(self, over: str, under: str) -> float | None:
        """Temporary memory of one over that of the other, or of the smallest peer; None where it isn't known."""
        unders = [self.temp_bytes[peer] for peer in (self.choosing if under == FASTEST else (under,))]
        ours = self.temp_bytes[over]
        return None if ours is None or None in unders or not min(unders) else ours / min(unders)

    def __str__(self) -> str:
        width, fastest = max(map(len, self.seconds)), self.fastest
        lines = [self.title, f"  {'':{width}}  {'median':>12}  {'÷ fastest peer':>22}  {'temporary':>12}"]
        for name in self.seconds:
            ms = f"{1e3 * self.median(name):.4g} ms"
            ratio = "fastest peer" if name == fastest else str(self.ratio(name, fastest))
            temp = "" if self.temp_bytes[name] is None else f"{self.temp_bytes[name] / 1e6:.3f} MB"
            lines.append(f"  {name:{width}}  {ms:>12}  {ratio:>22}  {temp:>12}")
        return "\n".join(lines)


def pooled(found: list[dict]) -> list[Race]:
    """The races of all processes, put together by their titles."""
    return [
        Race(
            race["title"],
            *({name: [process["races"][i][what][name] for process in found] for name in race[what]}
              for what in ("choosing", "seconds")),
            race["temp_bytes"],
        )
        for i, race in enumerate(found[0]["races"])
    ]  # fmt: skip


def rows(found: list[dict], races: list[Race]) -> list[dict]:
    """Each row of the table with its ratios, in words what every process shows, and whether its claims hold."""
    named, judged = {race.title: race for race in races}, []
    for row in found[0]["rows"]:
        race = named[row["race"]]
        time_, memory = race.ratio(row["over"], row["under"]), race.memory(row["over"], row["under"])
        claims = []
        if row["time_at_most"] is not None:
            claims.append(("time", row["time_at_most"], time_.holds(row["time_at_most"])))
        if row["memory_at_most"] is not None:
            claims.append(("memory", row["memory_at_most"], memory is not None and memory <= row["memory_at_most"]))
        under = race.fastest if row["under"] == FASTEST else row["under"]
        judged.append(row | {"under": under, "time": asdict(time_), "time_in_words": f"{time_}, {time_.verdict}",
                             "memory": memory, "claims": [dict(zip(("of", "at_most", "holds"), c, strict=True))
                                                          for c in claims]})  # fmt: skip
    return judged


def values(found: list[dict]) -> list[dict]:
    """Each number that is no race's: the median of the processes', their least and largest, and its claim."""
    judged = []
    for i, value in enumerate(found[0]["values"]):
        each = [process["values"][i]["value"] for process in found]
        ratio = Ratio(float(np.median(each)), each)
        judged.append(value | {"value": ratio.pooled, "each": each, "in_words": str(ratio),
                               "holds": ratio.holds(value["at_most"])})  # fmt: skip
    return judged


def print_results(result: dict, races: list[Race]) -> None:
    """The races, and under them what the rows say and whether their claims hold."""
    for race in races:
        print(f"\n{race}", flush=True)
    said = {True: "holds", False: "DOES NOT HOLD"}
    print()
    for row in result["rows"]:
        memory = "" if row["memory"] is None else f"; memory {row['memory']:.2f}"
        print(f"{row['what']}, {row['over']} ÷ {row['under']}: time {row['time_in_words']}{memory}")
        for claim in row["claims"]:
            print(f"  {said[claim['holds']]}: {claim['of']} at most {claim['at_most']:g}")
    for value in result["values"]:
        print(f"{value['text']}: {value['in_words']}\n  {said[value['holds']]}: at most {value['at_most']:g}")
    for note in result["notes"]:
        print(f"Note: {note}")


# -- the command line -------------------------------------------------------------------------------------------------


def run(claim: str, measure: Callable[[Report], None], rounds: int) -> None:
    """The command line of a benchmark, which calls itself for each process."""
    parser = argparse.ArgumentParser(description=claim, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=PROCESSES, help=f"fresh processes ({PROCESSES})")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds of each race in a process ({rounds})")
    parser.add_argument("--quick", action="store_true", help="a smoke test: 2 processes, 3 rounds, small sizes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample, row and claim here")
    parser.add_argument("--one", type=Path, metavar="FILE", help=argparse.SUPPRESS)  # a process's samples go here
    options = parser.parse_args()
    if options.quick and options.one is None:
        options.processes, options.rounds = min(2, options.processes), min(3, options.rounds)
    if options.one:
        before = machine()
        random.seed()  # each process draws an order of its own
        report = Report(options.rounds, options.quick)
        measure(report)
        options.one.write_text(json.dumps({"machine": before, **asdict(report)}))
        return

    print(claim.strip(), flush=True)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(options.processes):
            file, start = Path(folder, f"{i}.json"), time.perf_counter()
            command = [sys.executable, sys.argv[0], "--one", str(file), "--rounds", str(options.rounds)]
            done = subprocess.run([*command, "--quick"] if options.quick else command)
            if done.returncode:
                sys.exit(f"process {i + 1} of {options.processes} ended with {done.returncode}")
            found.append(json.loads(file.read_text()))
            if i == 0:
                print("\n" + ", ".join(f"{name} {value}" for name, value in found[0]["machine"].items()))
            seconds = time.perf_counter() - start
            print(f"process {i + 1} of {options.processes}: {seconds:.0f} s", file=sys.stderr, flush=True)

    races = pooled(found)
    result = {
        "program": Path(sys.argv[0]).stem,
        "claim": claim.strip().splitlines()[0],
        "quick": options.quick,
        "machine": found[0]["machine"],
        "processes": options.processes,
        "rounds": options.rounds,
        "rows": rows(found, races),
        "values": values(found),
        "notes": found[0]["notes"],
        "races": [asdict(race) for race in races],
    }
    print_results(result, races)
    if options.quick:
        print("\nA smoke test: the sizes are small, and the figures mean nothing.")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
