"""Where the time of attention and of transformers' blocks goes: a profile of jbp's program and of its fastest peer.

    python bench/where_the_time_goes.py             # one process; --quick: small sizes, whose figures mean nothing

Of each program: its time; what its products of matrices would take at the speed of one of 2048 × 2048 on this machine;
and the share of the time during which a product runs, alone or beside something else, or, without one, exponentials,
reductions, other element-wise work, or nothing that is reported, as where a product's last threads end. The products at
full speed are what no program of as many operations can be faster than. A profiler slows many small operations.
"""

import argparse
import glob
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import attention
import harness
import jax
import jax.numpy as jnp
import numpy as np
import transformers

import jbp

CALLS = 5
KINDS = ("products", "exponentials", "reductions", "element-wise")
EXPONENTIALS = re.compile(r"\b(exponential|tanh|erf|log|rsqrt)\(")


@dataclass(frozen=True)
class Work:
    """What an instruction of a compiled program does once: its kind, and a product's floating point operations."""

    kind: str
    flops: float = 0


def works(text: str) -> dict[str, Work]:
    """That of each instruction of a compiled program, by its name; a loop does none itself."""
    shapes = dict(re.findall(r"%?([\w.\-]+) = \w+\[([\d,]*)\]", text))
    shapes |= dict(re.findall(r"[(,] ?%?([\w.\-]+): \w+\[([\d,]*)\]", text))
    sizes = lambda name: [int(size) for size in shapes[name].split(",") if size]

    def flops(lines: str) -> float:
        found = re.findall(r"%?([\w.\-]+) = \S+ dot\(%?([\w.\-]+), [^\n]*lhs_contracting_dims=\{([\d,]*)\}", lines)
        inner = lambda left, axes: math.prod(sizes(left)[int(axis)] for axis in axes.split(","))
        return sum(2.0 * math.prod(sizes(out)) * inner(left, axes) for out, left, axes in found)

    bodies = {name: body for name, body in re.findall(r"^%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, re.M | re.S)}
    done = {}
    for line, name, operation in re.findall(r"^ *(?:ROOT )?(%?([\w.\-]+) = \S+ ([\w\-]+)\([^\n]*)", text, re.M):
        called = re.search(r"calls=%?([\w.\-]+)", line)
        lines = bodies[called[1]] if called else line
        if operation in ("while", "conditional", "call"):
            continue
        if count := flops(lines):
            done[name] = Work("products", count)
        elif EXPONENTIALS.search(lines):
            done[name] = Work("exponentials")
        else:
            done[name] = Work("reductions" if " reduce(" in lines else "element-wise")
    return done


@dataclass(frozen=True)
class Profile:
    """Of one call: seconds by what ran, a product first, and floating point operations of all products."""

    seconds: Counter[str]
    flops: float

    @classmethod
    def of(cls, program: Any, args: tuple[Any, ...]) -> "Profile":
        """That of a compiled program on these arguments, the mean of some calls."""
        of_name = works(program.as_text())
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                for _ in range(CALLS):
                    jax.block_until_ready(program(*args))
            (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
            lines = [line for plane in jax.profiler.ProfileData.from_file(file).planes for line in plane.lines]
            events = [
                (e.start_ns, e.duration_ns, of_name[e.name]) for line in lines for e in line.events if e.name in of_name
            ]
        edges = [(start + (ns if step < 0 else 0), step, work.kind) for start, ns, work in events for step in (1, -1)]
        running: Counter[str] = Counter()
        seconds: Counter[str] = Counter()
        last = 0.0
        for at, step, kind in sorted(edges, key=lambda edge: (edge[0], -edge[1])):
            if last:
                seconds[next((kind for kind in KINDS if running[kind]), "nothing")] += (at - last) / 1e9 / CALLS
            running[kind] += step
            last = at
        return cls(seconds, sum(work.flops for _, _, work in events) / CALLS)


def peak() -> float:
    """Floating point operations a second in a product of 2048 × 2048 matrices."""
    a = jnp.ones((2048, 2048))
    product = harness.compiled(lambda a, b: a @ b, a, a)
    return 2 * 2048**3 / float(np.median([product.seconds() for _ in range(9)]))


def show(
    title: str, ours: dict[str, Callable], peers: dict[str, Callable], args: tuple[Any, ...], speed: float
) -> None:
    """A line for each of ours, and for the fastest of the peers."""
    print(f"\n{title}", flush=True)
    programs = {name: jax.jit(f).lower(*args).compile() for name, f in (ours | peers).items()}
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(CALLS + 1):
        for name, program in programs.items():
            taken[name].append(harness.Rival(lambda program=program: program(*args)).seconds())
    median = {name: float(np.median(each[1:])) for name, each in taken.items()}
    for name in (*ours, min(peers, key=lambda name: median[name])):
        profile = Profile.of(programs[name], args)
        whole = sum(profile.seconds.values())
        shares = ", ".join(f"{kind} {profile.seconds[kind] / whole:.0%}" for kind in (*KINDS, "nothing"))
        print(
            f"  {name}: {1e3 * median[name]:.4g} ms, of which products at full speed "
            f"{1e3 * profile.flops / speed:.4g}; under the profiler {1e3 * whole:.4g}: {shares}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    quick = parser.parse_args().quick
    speed = peak()
    machine = ", ".join(f"{name} {value}" for name, value in harness.machine().items())
    print(f"{machine}; a product of 2048 × 2048 matrices: {speed / 1e9:.0f} GFLOP/s")
    for n, t, h, d in [(1, 64, 2, 8)] if quick else [(2, 1024, 8, 64), (1, 2048, 4, 64)]:
        arrays = tuple(jax.random.normal(key, (n, t, h, d)) for key in jax.random.split(jax.random.key(0), 4))
        peers = {"jax.grad: einsum": attention.einsum, "jax.grad: jax.nn": attention.of_jax}
        both = {name: attention.both_ways(f) for name, f in peers.items()}
        title = f"causal attention, {n} × {t} positions, {h} heads of {d}"
        show(title, {"jbp": attention.ours}, both, arrays, speed)

    width, heads = (16, 2) if quick else (256, 4)
    for n, t in [(1, 32)] if quick else [(2, 1024), (4, 256)]:
        x, y = (jax.random.normal(key, (n, t, width)) for key in jax.random.split(jax.random.key(0)))
        ways = transformers.repeated(transformers.gpt_block(width, heads), 4)
        costs = {
            name: jbp.Cost(jbp.Network([blocks], (t, width)), jbp.losses.HalfSquaredError())
            for name, blocks in ways.items()
        }
        cost = costs[transformers.LOOP]
        params = cost.layout.unflatten(cost.init(jax.random.key(0)))
        ours = {
            name: lambda p, x, y, c=c, like=c.layout.treedef: c.value_and_grad_leaves(
                jax.tree.unflatten(like, jax.tree.leaves(p)), x, y
            )
            for name, c in costs.items()
        }
        peers = {
            name: jax.value_and_grad(f)
            for name, f in transformers.usual(transformers.half_squares, heads, heads, False).items()
        }
        show(f"4 GPT blocks of width {width}, {n} × {t} positions", ours, peers, (params, x, y), speed)


if __name__ == "__main__":
    main()
