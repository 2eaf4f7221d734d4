"""The laws, the checker, donation, export and races against jax.grad on whatever device JAX finds, within 8 minutes.

    python bench/on_accelerator.py --json on_accelerator.json

It needs what `import jbp` needs, and pytest, which the tests' table of cases imports; no network, no installation. On a
CPU the sizes are small (`--small` makes them so anywhere), and the figures mean nothing. Sections, each with its budget
of seconds, and what one leaves is the next one's:

    machine    the device, and the speed of a square matrix product, by which all else is judged
    laws       every layer and cost of tests/cases.py: the error of the pass by hand, against float64 on the CPU, is at
               most twice that of autodiff or 4 ε; in float32 with matrix products at their highest precision and as
               they are, and in bfloat16; every readout by its definition
    compare    `cost.compare` and `jbp.compare_vjp` on the device: right rules pass, a wrong one is caught
    programs   donation, what `fit` must leave alive, export and import
    races      against jax.grad as an expert writes it: time, temporary memory, share of the matrix product's speed

A row that fails is a row that says so. All that is measured is in the JSON file as soon as it is known; at the end of
its time the program stops, whatever still runs. It ends with 0 if all rows are right, 1 if one is not, 3 if it was
stopped. New layers, losses and readouts come in through tests/cases.py; a new race is a line of `RACES`.
"""

import argparse
import json
import os
import random
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))  # it runs from a checkout that nobody has installed
import attention
import cases
import curvature
import gpt2
import mlps
import training
import transformers
from clipped_sums_cost_one_pass import CLIP
from clipped_sums_cost_one_pass import by_definition as clipped
from per_example_norms_cost_one_pass import by_definition as norms

import jbp

BEGUN = time.perf_counter()
MINUTES = 8
BUDGETS = {"machine": 25, "laws": 145, "compare": 55, "programs": 40, "races": 190}  # seconds
REPEATS = 16  # draws of params, x and δ that a law is judged by
ROUNDS, LEAST_ROUNDS = 9, 3
SAMPLE = 0.05  # seconds: what a sample lasts at least, by calling several times in a row


# -- what is found ----------------------------------------------------------------------------------------------------


@dataclass
class Findings:
    """Rows `{section, name, ok, ...}`, written to a file with each that comes; `ok` is None if nothing is claimed."""

    file: Path | None
    only: tuple[str, ...] = ()
    machine: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.RLock)

    def add(self, section: str, name: str, ok: bool | None, **numbers: Any) -> None:
        with self.lock:
            self.rows.append({"section": section, "name": name, "ok": ok, **numbers})
            mark = {True: "ok  ", False: "FAIL", None: "    "}[ok]
            said = "  ".join(f"{key} {shown(value)}" for key, value in numbers.items() if value is not None)
            print(f"{time.perf_counter() - BEGUN:6.1f} s  {section:8}  {mark}  {name}  {said}", flush=True)
            self.write()

    def asks(self, section: str, name: str) -> bool:
        return not self.only or any(part in f"{section}: {name}" for part in self.only)

    def attempt(self, section: str, name: str, deadline: float, ask: Callable[[], dict[str, Any]]) -> None:
        """A row from `ask() -> {"ok": ..., ...}`; what it raises is told there, and past its time it isn't asked."""
        if not self.asks(section, name):
            return
        if time.perf_counter() > deadline:
            self.add(section, name, None, not_run="its section's time was over")
            return
        start = time.perf_counter()
        try:
            found = ask()
        except ImportError as error:
            self.add(section, name, None, not_run=str(error))
        except Exception as error:
            lines = traceback.format_exception(error)
            self.add(section, name, False, error=f"{type(error).__name__}: {error}"[:400], where=lines[-2][-400:])
        else:
            self.add(section, name, **found, row_s=round(time.perf_counter() - start, 2))

    def write(self) -> None:
        if self.file is not None:
            whole = {"machine": self.machine, "seconds": time.perf_counter() - BEGUN, "rows": self.rows}
            beside = self.file.with_name(self.file.name + ".new")
            beside.write_text(json.dumps(whole, indent=1, default=str) + "\n")
            os.replace(beside, self.file)

    def finish(self, stopped: bool = False) -> int:
        """Print the tables; the exit code."""
        with self.lock:
            if stopped:
                self.machine["stopped"] = f"after {time.perf_counter() - BEGUN:.0f} s, before its end"
            self.write()
            print(table(self), flush=True)
            failed = any(row["ok"] is False for row in self.rows)
        return 3 if stopped else 1 if failed or not self.rows else 0


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(findings: Findings) -> str:
    """What was found, as Markdown: counts by section and setting, what failed, and the races."""
    lines = ["", *(f"{name}: {value}" for name, value in findings.machine.items()), ""]
    counts: dict[str, list[int]] = {}
    for row in findings.rows:
        if row["section"] != "races":
            count = counts.setdefault(f"{row['section']}{', ' + row['setting'] if 'setting' in row else ''}", [0, 0, 0])
            count[0 if row["ok"] else 2 if "not_run" in row else 1 if row["ok"] is False else 0] += 1
    lines += ["| rows | right | wrong | not run |", "|---|---|---|---|"]
    lines += [f"| {name} | {right} | {wrong} | {not_run} |" for name, (right, wrong, not_run) in counts.items()]
    lines += ["", "| race | rival | ms | ÷ jbp's | temporary MB | TFLOP/s | of the matrix product |", "|" + "---|" * 7]
    for row in findings.rows:
        if row["section"] == "races" and "ms" in row:
            ratio = "1" if row["ratio"] is None else f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            race_ = f"{row['race']}: {row['size']}"
            cells = [race_, row["rival"], f"{row['ms']:.4g}", ratio, row["temp_mb"], row["tflops"], row["of_peak"]]
            lines.append("| " + " | ".join("" if cell is None else shown(cell) for cell in cells) + " |")
    wrong = [row for row in findings.rows if row["ok"] is False]
    lines += ["", f"{len(wrong)} rows are wrong" + (":" if wrong else ".")]
    lines += [f"* {row['section']}: {row['name']}: {row}" for row in wrong]
    not_run = [row for row in findings.rows if "not_run" in row]
    lines += [f"{len(not_run)} rows were not run: {', '.join(row['name'] for row in not_run)}"] if not_run else []
    return "\n".join(lines)


# -- the machine ------------------------------------------------------------------------------------------------------

PRODUCTS = {  # a setting, its dtype, and the precision of float32's products
    "float32": (jnp.float32, None),
    "float32, highest": (jnp.float32, "highest"),
    "bfloat16": (jnp.bfloat16, None),
}


@dataclass(frozen=True)
class Section:
    """Where rows go, until when, and at which sizes."""

    name: str
    findings: Findings
    deadline: float
    small: bool

    def row(self, name: str, ask: Callable[[], dict[str, Any]]) -> None:
        self.findings.attempt(self.name, name, self.deadline, ask)


def machine(section: Section) -> None:
    """The speed of a square matrix product in each setting, TFLOP/s."""
    n = 1024 if section.small else 8192

    def product(dtype, precision):
        a = jax.random.normal(jax.random.key(0), (n, n), dtype)
        multiply = jax.jit(lambda a: jax.lax.dot(a, a, precision=precision)).lower(a).compile()
        call = lambda: multiply(a)
        jax.block_until_ready(call())
        best = min(seconds(call, calls_of(call)) for _ in range(5))
        section.findings.machine[f"{n}³, {name}, TFLOP/s"] = found = 2 * n**3 / best / 1e12
        return {"ok": None, "tflops": found}

    for name, (dtype, precision) in PRODUCTS.items():
        section.row(f"{n}³, {name}", partial(product, dtype, precision))


def peak(findings: Findings, setting: str) -> float | None:
    return next((v for k, v in findings.machine.items() if k.endswith(f", {setting}, TFLOP/s")), None)


# -- the laws ---------------------------------------------------------------------------------------------------------


def floats(tree: Any) -> list[np.ndarray]:
    """The leaves with a derivative, as float64 on the host."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype != jax.dtypes.float0]
    return [np.asarray(leaf).astype(np.float64) for leaf in leaves]


def judged(by_hand: Any, by_autodiff: Any, true: list[np.ndarray], dtype: Any) -> dict[str, Any]:
    """Each leaf's RMS error is at most twice autodiff's, or 4 ε of its RMS: the worst leaf's share of that."""
    rms = lambda a: float(np.sqrt(np.mean(np.square(a)))) if a.size else 0.0
    worst, eps, autodiffs = 0.0, float(jnp.finfo(dtype).eps), 0.0
    for ours, theirs, exact in zip(floats(by_hand), floats(by_autodiff), true, strict=True):
        error, allowed = rms(ours - exact), max(2 * rms(theirs - exact), 4 * eps * rms(exact))
        worst = max(worst, np.inf if np.isnan(error) else error / allowed if error else 0.0)
        autodiffs = max(autodiffs, rms(theirs - exact) / (rms(exact) or 1.0))
    return {"ok": bool(worst <= 1), "of_allowed": float(worst), "autodiff_off_by": autodiffs}


def in_float64(f: Callable, *args: Any) -> list[np.ndarray]:
    """f of the same numbers in float64, on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        widened = jax.tree.map(lambda a: np.asarray(a).astype(np.float64) if is_float(a) else np.asarray(a), args)
        return floats(jax.jit(f)(*widened))


def is_float(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating)


def passes(layer: Any, context: Any) -> tuple[Callable, Callable]:
    """(params, x, delta) → (gradient, δ of x) by hand and by autodiff, over a first axis of draws."""

    def back(forward):
        return jax.vmap(lambda params, x, delta: jax.vjp(forward, params, x)[1](delta))

    rule = jbp.as_function(layer)
    return (
        back(lambda params, x: rule(params, x, context)),
        back(lambda params, x: layer.forward(params, x, context)[0]),
    )


def law_of_a_layer(case: Any, setting: str) -> dict[str, Any]:
    dtype, precision = PRODUCTS[setting]
    by_hand, by_autodiff = passes(case.layer, case.context)
    args = case.draw(dtype, REPEATS)
    with jax.default_matmul_precision(precision):
        got = law(lambda *args: (by_hand(*args), by_autodiff(*args)))(*args)
    return {"setting": setting, **judged(*got, truth_of_a_layer(case, dtype), dtype)}


@cache
def truth_of_a_layer(case: Any, dtype: Any) -> list[np.ndarray]:
    return in_float64(passes(case.layer, case.context)[1], *case.draw(dtype, REPEATS))


def cost_in(case: Any, setting: str) -> Any:
    return case.cost(dtype=jnp.float32, **({"compute_dtype": jnp.bfloat16} if setting == "bfloat16" else {}))


def law_of_a_cost(case: Any, setting: str) -> dict[str, Any]:
    dtype, precision = PRODUCTS[setting]
    cost = cost_in(case, setting)
    args = case.draw(cost, REPEATS)
    with jax.default_matmul_precision(precision):
        by_hand, by_autodiff = jax.vmap(cost.grad), jax.vmap(jax.grad(cost))
        got = law(lambda *args: (by_hand(*args), by_autodiff(*args)))(*args)
    return {"setting": setting, **judged(*got, in_float64(jax.vmap(jax.grad(cost)), *args), dtype)}


AS_CLAIMED = {  # the difference that its docstring says it is, which loses as many digits
    jbp.Variance: lambda g, w: jnp.maximum(jnp.average(g**2, 0, w) - jnp.average(g, 0, w) ** 2, 0)
}
READOUTS = [
    (readout, AS_CLAIMED.get(type(readout), definition))
    for readout, definition in cases.READOUTS
    if not isinstance(readout, jbp.MapGradients)  # the sums of its function are the tests' own, and may cancel
]


def law_of_the_readouts(case: Any) -> dict[str, Any]:
    """All readouts from one pass, against their definitions from gradients of single examples."""
    setting = "float32, highest"
    cost = cost_in(case, setting)
    unclaimed = f"{cost.mixed_by} mixes examples" if cost.mixed_by else None
    if any(isinstance(layer, jbp.Reversible) for outer in case.layers for _, layer in jbp.layer.walk(outer)):
        unclaimed = "Reversible claims float64 alone"
    if unclaimed:
        return {"setting": f"readouts, {setting}", "ok": None, "not_run": unclaimed}
    one = jax.grad(jbp.Cost(cost.network, cost.loss, "sum"))

    def defined(theta, x, y):
        alone = lambda x, y: one(theta, *jax.tree.map(lambda a: a[None], (x, y)))
        each = jax.vmap(alone)(x, y)
        w = jnp.full(each.shape[:1], 1 / each.shape[0], each.dtype)
        return [definition(each, w) for _, definition in READOUTS]

    def read(theta, x, y):
        return cost.measure(theta, x, y, *(readout for readout, _ in READOUTS))[1]

    return {**held(read, defined, case.draw(cost, REPEATS)), "setting": f"readouts, {setting}"}


def held(by_hand: Callable, by_autodiff: Callable, draws: Any) -> dict[str, Any]:
    """Two functions at several draws of their arguments, in float32 with products at their highest precision."""
    by_hand, by_autodiff = jax.vmap(by_hand), jax.vmap(by_autodiff)
    with jax.default_matmul_precision("highest"):
        got = law(lambda *args: (by_hand(*args), by_autodiff(*args)))(*draws)
    return judged(*got, in_float64(by_autodiff, *draws), jnp.float32)


def law_of_curvature(case: Any) -> dict[str, Any]:
    """Products with the Hessian and the GGN, against forward mode over `jax.grad`, and over the output's `jax.vjp`."""
    cost = cost_in(case, "float32")
    output = lambda theta, x: cost.network(theta, x)
    C = lambda z, y: cost.loss.value(z, y).mean()
    v = lambda theta: jnp.cos(jnp.arange(theta.size, dtype=theta.dtype))

    def by_hand(theta, x, y):
        return cost.hvp(theta, x, y, v(theta)), cost.ggnvp(theta, x, y, v(theta))

    def by_autodiff(theta, x, y):
        gradient = jax.grad(lambda theta: C(output(theta, x), y))
        z, along_v = jax.jvp(partial(output, x=x), (theta,), (v(theta),))
        bent = jax.jvp(jax.grad(partial(C, y=y)), (z,), (along_v,))[1]
        return jax.jvp(gradient, (theta,), (v(theta),))[1], jax.vjp(partial(output, x=x), theta)[1](bent)[0]

    return {**held(by_hand, by_autodiff, case.draw(cost, REPEATS)), "setting": "curvature, float32, highest"}


BY_CUDNN = {  # settings, the mask of keys, the shape of a bias with a delta, that of one in `context.side`
    "no mask": ({}, False, None, None),
    "causal": ({"causal": True}, False, None, None),
    "causal, window": ({"window": (31, 0), "causal": True}, False, None, None),
    "causal, keys masked, one example's all": ({"causal": True}, True, None, None),
    "a bias": ({}, False, (4, 2, 128, 128), None),
    "a bias of keys, keys masked": ({}, True, (4, 2, 1, 128), None),
    "a bias in side, of which a row is -inf": ({}, False, None, (1, 2, 128, 128)),
}


def law_of_cudnn(settings: dict, masked: bool, bias: Any, side: Any) -> dict[str, Any]:
    """Output and deltas by cuDNN's kernel in bfloat16, beside autodiff of the forward in XLA in bfloat16."""
    n, t, h, d, dtype = 4, 128, 2, 64, jnp.bfloat16
    x = tuple(cases.draw(i, jax.ShapeDtypeStruct((n, t, h, d), dtype)) for i in range(3))
    x += () if bias is None else (cases.draw(3, jax.ShapeDtypeStruct(bias, dtype)),)
    delta = cases.draw(4, jax.ShapeDtypeStruct((n, t, h, d), dtype))
    mask = jnp.arange(t)[None] < jnp.array([0, 1, 77, t])[:, None] if masked else None
    added = None if side is None else cases.draw(5, jax.ShapeDtypeStruct(side, dtype)).at[:, :, 5].set(-jnp.inf)

    def both(implementation, x, delta, mask, side):
        context = jbp.Context(mask=mask, side=None if side is None else {"attention_bias": side})
        layer = jbp.DotProductAttention(**settings, implementation=implementation)
        if implementation == "xla":
            o, pull = jax.vjp(lambda x: layer.forward((), x, context)[0], x)
            return o, pull(delta)[0]
        o, back = jbp.run(layer, (), x, context)
        return o, back(delta)[0]

    kernel, same = (partial(both, implementation) for implementation in ("cudnn", "xla"))
    args = (x, delta, mask, added)
    got = law(lambda *args: (kernel(*args), same(*args)))(*args)
    return {**judged(*got, in_float64(same, *args), dtype), "setting": "cudnn, bfloat16"}


@cache
def untuned() -> dict[str, Any]:
    """An option by which a GPU compiles small products without trying its kernels, where its compiler knows it."""
    option = {"xla_gpu_autotune_level": 0} if jax.default_backend() == "gpu" else {}
    try:
        jax.jit(lambda: 0, compiler_options=option)()
    except Exception:  # of whatever kind it raises
        return {}
    return option


def law(f: Callable) -> Callable:
    return jax.jit(f, compiler_options=untuned())


def laws(section: Section) -> None:
    """In threads, since most of the time is spent compiling; the most telling first."""

    def in_setting(setting):
        of_layers = [(f"layer, {case.name}", partial(law_of_a_layer, case, setting)) for case in cases.LAYERS]
        return of_layers + [(f"cost, {case.name}", partial(law_of_a_cost, case, setting)) for case in cases.COSTS]

    untuned()
    bent = cases.covering(cases.NETWORKS)
    asked = [
        *((f"cudnn, {name}", partial(law_of_cudnn, *how)) for name, how in BY_CUDNN.items() if has_cudnn()),
        *in_setting("float32, highest"),
        *in_setting("bfloat16"),
        *((f"readouts, {case.name}", partial(law_of_the_readouts, case)) for case in cases.COSTS),
        *((f"curvature, {case.name}", partial(law_of_curvature, case)) for case in bent),
        *in_setting("float32"),
    ]
    with ThreadPoolExecutor(max(2, min(16, os.cpu_count() or 2))) as pool:
        list(pool.map(lambda one: section.row(*one), asked))


# -- the checker ------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def squares(x, w):
    return jnp.square(jnp.tanh(x @ w)).sum()


def squares_forward(x, w):
    h = jnp.tanh(x @ w)
    return jnp.square(h).sum(), (x, w, h)


def squares_backward(saved, delta):
    x, w, h = saved
    d = delta * 2 * h * (1 - h * h)
    return d @ w.T, x.T @ d


squares.defvjp(squares_forward, squares_backward)


@jax.custom_vjp
def wrong_squares(x, w):
    return squares(x, w)


wrong_squares.defvjp(
    squares_forward, lambda saved, delta: (squares_backward(saved, delta)[0], -squares_backward(saved, delta)[1])
)


def compare(section: Section) -> None:
    def of_cost(loss, labels, timing=False, **settings):
        net = jbp.mlp(64, 30, 10, last=jbp.Identity(), **settings)
        y = np.arange(32) % 10 if labels else np.random.default_rng(1).standard_normal((32, 10), np.float32)
        x = np.random.default_rng(0).standard_normal((32, 64), np.float32)
        report = jbp.Cost(net, loss).compare(net.init(jax.random.key(0)), x, y, timing=timing)
        return {"ok": bool(report.ok), "verdict": str(report.verdict)}

    def of_rule(f, right, **settings):
        x, w = np.random.default_rng(0).standard_normal((2, 24, 24), np.float32) / 4
        report = jbp.compare_vjp(f, x, w, **settings)
        named = right or report.worst.name == "w"
        return {"ok": bool(report.ok) == right and named, "verdict": str(report.verdict)}

    def of_network():
        layer = jbp.Sequential([jbp.Dense(16), jbp.Tanh(), jbp.Dense(4)])
        x = np.random.default_rng(0).standard_normal((8, 12), np.float32)
        params = layer.init(jax.random.key(0), jax.ShapeDtypeStruct((12,), jnp.float32))
        report = jbp.compare_vjp(jbp.as_function(layer), params, x, timing=False)
        return {"ok": bool(report.ok), "verdict": str(report.verdict)}

    softmax, half = jbp.losses.SoftmaxCrossEntropy(), jbp.losses.HalfSquaredError()
    section.row("a wrong rule is caught, no checks", partial(of_rule, wrong_squares, False, timing=False, checks=False))
    section.row("a cost in float32", partial(of_cost, half, False))
    section.row("a cost in bfloat16", partial(of_cost, softmax, True, compute_dtype=jnp.bfloat16))
    section.row("a right rule, all checks, timed", partial(of_rule, squares, True))
    section.row("a wrong rule, all checks", partial(of_rule, wrong_squares, False, timing=False))
    section.row("a network as a function", of_network)
    section.row("a cost with labels, timed", partial(of_cost, softmax, True, timing=True))


# -- programs: donation, export ---------------------------------------------------------------------------------------


def programs(section: Section) -> None:
    width = 64 if section.small else 2048
    net = jbp.mlp(width, width, 10, activation=jbp.ReLU(), last=jbp.Identity())
    cost = jbp.Cost(net, jbp.losses.SoftmaxCrossEntropy())
    x = jax.random.normal(jax.random.key(1), (64, width))
    y = jnp.arange(64) % 10
    adam = optax.adam(1e-3)

    def step(theta, state, x, y):
        C, gradient = cost.value_and_grad(theta, x, y)
        updates, state = adam.update(gradient, state, theta)
        return optax.apply_updates(theta, updates), state, C

    def donated():
        theta = net.init(jax.random.key(0))
        state = adam.init(theta)
        kept = jax.jit(step)(theta, state, x, y)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a donated buffer that can't be used is warned of
            program = jax.jit(step, donate_argnums=(0, 1)).lower(theta, state, x, y).compile()
            got = program(theta, state, x, y)
        aliased, due = program.memory_analysis().alias_size_in_bytes, 3 * theta.nbytes
        off = max(float(np.abs(a - b).max()) for a, b in zip(floats(got), floats(kept), strict=True))
        ok = theta.is_deleted() and aliased >= due and off <= 1e-5
        return {"ok": ok, "aliased_mb": aliased / 1e6, "due_mb": due / 1e6, "off_by": off}

    def fit_donates_nothing_of_the_callers():
        theta = net.init(jax.random.key(0))
        before = np.asarray(theta).copy()
        run = jbp.fit(cost, theta, (x, y), batch_size=16, epochs=2)
        alive = not any(a.is_deleted() for a in (theta, x, y))
        moved = not np.array_equal(before, np.asarray(run.theta))
        return {"ok": alive and moved and np.array_equal(before, np.asarray(theta))}

    def exported(f, vjp_order=0):
        theta = net.init(jax.random.key(0))
        made = jax.export.export(jax.jit(f))(theta, x, y)
        blob = made.serialize(vjp_order=vjp_order)
        call = jax.export.deserialize(blob).call
        if vjp_order:
            f, call = jax.grad(f), jax.grad(call)
        want, got = floats(jax.jit(f)(theta, x, y)), floats(jax.jit(call)(theta, x, y))
        scale = max(float(np.abs(a).max()) for a in want)
        off = max(float(np.abs(a - b).max()) for a, b in zip(got, want, strict=True)) / scale
        return {"ok": off <= 1e-5, "off_by": off, "bytes": len(blob), "platforms": str(made.platforms)}

    function = jbp.as_function(net)
    loss = lambda theta, x, y: -(jax.nn.log_softmax(function(theta, x)) * jax.nn.one_hot(y, 10)).sum(-1).mean()
    section.row("a donated Adam step on the vector", donated)
    section.row("fit leaves alive what its caller holds", fit_donates_nothing_of_the_callers)
    section.row("export and import of value_and_grad", partial(exported, cost.value_and_grad))
    section.row("export and import of as_function, its gradient after it", partial(exported, loss, vjp_order=1))


# -- races ------------------------------------------------------------------------------------------------------------


def seconds(call: Callable[[], Any], calls: int = 1) -> float:
    """Mean time of a call, of several in a row, which an accelerator is given one behind the other."""
    start = time.perf_counter()
    for _ in range(calls):
        result = call()
        if jax.default_backend() == "cpu":
            jax.block_until_ready(result)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def calls_of(call: Callable[[], Any]) -> int:
    return max(1, min(50, round(SAMPLE / seconds(call))))


@dataclass(frozen=True)
class Rival:
    """How to make it: () → (call, the compiled program if it is one). A call does `steps`; one step's time is told."""

    make: Callable[[], tuple[Callable[[], Any], Any]]
    steps: int = 1


@dataclass(frozen=True)
class Contest:
    """Rivals, jbp the first of them, at a size in words; `agree`: how far their results may be apart, by the norm, leaf
    by leaf, or `as_one` vector, where a leaf's own gradient may be 0 but for rounding.

    `flops`: of a step, for those who do a gradient's matrix products; the others are in `shorter`.
    """

    size: str
    rivals: dict[str, Rival]
    flops: float | None = None
    agree: float | None = 0.03
    setting: str = "float32"
    shorter: tuple[str, ...] = ()
    as_one: bool = False


def compiled(f: Callable, *args: Any, steps: int = 1) -> Rival:
    """f on these arguments as one compiled program."""

    def make():
        program = jax.jit(f).lower(*args).compile()
        return lambda: program(*args), program

    return Rival(make, steps)


def called(f: Callable, steps: int = 1) -> Rival:
    return Rival(lambda: (f, None), steps)


def wide(small: bool, examples: int = 4096, **settings: Any) -> mlps.Problem:
    """Few large leaves."""
    n, inner, examples = (16, 32, 16) if small else (784, 8192, examples)
    title = f"{n}-{inner}×3-10, batch {examples}"
    return mlps.problem(title, n, *[inner] * 3, 10, activation=jbp.ReLU(), examples=examples, **settings)


def deep(small: bool, examples: int = 4096, **settings: Any) -> mlps.Problem:
    """Many leaves."""
    layers, width, examples = (4, 8, 16) if small else (64, 512, examples)
    title = f"{layers} layers of {width}, batch {examples}"
    return mlps.problem(title, *[width] * (layers + 1), activation=jbp.Tanh(), examples=examples, **settings)


def flops_of(problem: mlps.Problem, examples: int | None = None) -> float:
    """Of a gradient's matrix products: 2 N #W forward, 4 N #W back, less the δ of x."""
    kernels = [w.size for w, _ in problem.plain_params]
    return 2.0 * (examples or len(problem.x)) * (3 * sum(kernels) - kernels[0])


def experts(problem: mlps.Problem) -> dict[str, tuple[Callable, Any]]:
    """The ways to write the cost in plain JAX, in the network's compute dtype."""
    dtype = problem.cost.network.compute_dtype or jnp.dtype(jnp.float32)
    activation = next(iter(mlps.ACTIVATIONS[problem.cost.network.layers[1]].values()))

    def expert(loss):
        def cost(params, x, y):
            params, x = jax.tree.map(lambda a: a.astype(dtype), (params, x))
            return mlps.plain(activation, lambda logits, y: loss(logits.astype(jnp.float32), y))(params, x, y)

        return cost

    return {name: (expert(mlps.LOSSES[name]), problem.plain_params) for name in ("optax", "logsumexp")}


def gradient(make: Callable, small: bool, **settings: Any) -> Contest:
    """Value and gradient, leaves in and out."""
    problem = make(small, **settings)
    batch, cost = (problem.x, problem.y), problem.cost
    rivals = {"jbp": compiled(cost.value_and_grad_leaves, problem.params, *batch)}
    for way, (plain, params) in experts(problem).items():
        rivals[f"jax.grad: {way}"] = compiled(jax.value_and_grad(plain), params, *batch)
    rivals["jax.grad of jbp's forward"] = compiled(jax.value_and_grad(cost.value_leaves), problem.params, *batch)
    narrow = {"agree": 0.1, "setting": "bfloat16"} if cost.network.compute_dtype else {}
    return Contest(problem.title, rivals, flops_of(problem), **narrow)


def vector(make: Callable, small: bool) -> Contest:
    """Value and gradient, a vector in and out."""
    problem = make(small)
    batch, (plain, params) = (problem.x, problem.y), next(iter(experts(problem).values()))
    theta, unravel = ravel_pytree(params)

    def then_ravel(theta, x, y):
        C, g = jax.value_and_grad(plain)(unravel(theta), x, y)
        return C, ravel_pytree(g)[0]

    through = jax.value_and_grad(lambda theta, x, y: plain(unravel(theta), x, y))
    rivals = {
        "jbp": compiled(problem.cost.value_and_grad, problem.theta, *batch),
        "jax.grad through unravel": compiled(through, theta, *batch),
        "jax.grad, then ravel": compiled(then_ravel, theta, *batch),
    }
    return Contest(problem.title, rivals, flops_of(problem))


def descent(problem: mlps.Problem, optimizer: Any, batch_size: int, epochs: int, ways: tuple[str, ...]) -> Contest:
    """fit, against jax.grad in a compiled scan, and in a loop of jitted steps; the time is that of a step."""
    x, y, cost = problem.x, problem.y, problem.cost
    steps = epochs * (len(x) // batch_size)
    plain, params = next(iter(experts(problem).values()))
    keys = list(jax.random.split(jax.random.key(3), epochs))

    def fit():
        settings = {"optimizer": optimizer, "batch_size": batch_size, "epochs": epochs, "key": keys[0]}
        return jbp.fit(cost, problem.theta, (x, y), **settings).theta

    def repeated(epoch):
        def train():
            found = params
            for key in keys:
                found = epoch(found, x, y, key)
            return found

        return train

    def scanned(how):
        def make():
            program = jax.jit(how(jax.value_and_grad(plain), optimizer, batch_size)).lower(params, x, y, keys[0])
            program = program.compile()
            return repeated(program), program

        return Rival(make, steps)

    possible = {
        "scan of batches": scanned(training.in_a_scan_of_batches),
        "scan": scanned(training.in_a_scan),
        "loop": called(repeated(training.in_a_loop(jax.value_and_grad(plain), optimizer, batch_size)), steps),
    }
    rivals = {"jbp": called(fit, steps)} | {f"jax.grad, {way}": possible[way] for way in ways}
    size = f"{problem.title}: {len(x) // batch_size} steps of {batch_size} an epoch, {epochs} epochs"
    return Contest(size, rivals, flops_of(problem, batch_size), agree=None)  # they shuffle differently


def adam_step(make: Callable, small: bool, epochs: int = 16) -> Contest:
    problem = make(small, examples=4 * 4096)
    ways = ("scan of batches", "scan", "loop")
    return descent(problem, optax.adam(1e-3), 4 if small else 4096, 2 if small else epochs, ways)


def epoch(small: bool) -> Contest:
    """The text's network, batches of 10."""
    examples = 200 if small else 50_000
    problem = mlps.problem("784-30-10", 784, 30, 10, activation=jbp.Tanh(), examples=examples)
    return descent(problem, optax.sgd(0.5), 10, 1, ("scan of batches", "scan"))


def readout(make: Callable, read: Any, definition: Callable, small: bool, examples: int = 512) -> Contest:
    """A readout, against one gradient, and against its definition by vmap(grad), a few examples at a time."""
    problem = make(small, examples=examples)
    batch, (plain, params) = (problem.x, problem.y), next(iter(experts(problem).values()))
    rivals = {
        "jbp": compiled(lambda *args: problem.cost.measure(*args, read)[1], problem.theta, *batch),
        "vmap(grad), one by one": compiled(definition(plain, 1), params, *batch),
        "vmap(grad), chunks of 8": compiled(definition(plain, 8), params, *batch),
        "one jax.grad": compiled(jax.grad(plain), params, *batch),
    }
    shorter = tuple(who for who in rivals if who != "one jax.grad")
    agree = None if isinstance(read, jbp.ClippedSum) else 0.03  # a vector here, leaves there
    return Contest(problem.title, rivals, flops_of(problem), agree, shorter=shorter)


def hessian_product(make: Callable, small: bool) -> Contest:
    """Against forward mode over jax.grad of an expert's cost, a vector in and out."""
    problem = make(small)
    plain, params = next(iter(experts(problem).values()))
    theta, unravel = ravel_pytree(params)
    v = jax.random.normal(jax.random.key(7), theta.shape)

    def by_autodiff(theta, x, y):
        return jax.jvp(jax.grad(lambda theta: plain(unravel(theta), x, y)), (theta,), (v,))[1]

    rivals = {
        "jbp": compiled(lambda *args: problem.cost.hvp(*args, v), problem.theta, problem.x, problem.y),
        "jvp of jax.grad": compiled(by_autodiff, theta, problem.x, problem.y),
        "one jax.grad": compiled(jax.grad(plain), params, problem.x, problem.y),
    }
    shorter = tuple(who for who in rivals if who != "one jax.grad")
    return Contest(problem.title, rivals, flops_of(problem), shorter=shorter)


def kfac_step(small: bool) -> Contest:
    """Ten steps with factors and inverses made once, against ten of Adam by the same gradient, on a small GPT."""
    cost, title = curvature.network(small, 1024)
    ten = curvature.ten_steps(cost, *curvature.drawn(cost))
    names = {"jbp": "K-FAC", "Adam by the same gradient": "Adam"}
    return Contest(title, {who: compiled(*ten[name], steps=10) for who, name in names.items()}, agree=None)


def layer(make: Callable[[bool], tuple[Any, tuple[int, ...]]], expert: Callable, small: bool) -> Contest:
    """Output, gradient and δ of x of one layer with δ = its output, against jax.vjp of an expert's (params, x) → y.

    `make(small)` gives the layer and the shape of x.
    """
    of, shape = make(small)
    params = of.init(jax.random.key(0), jax.ShapeDtypeStruct(shape[1:], jnp.float32))
    x = jax.random.normal(jax.random.key(1), shape)

    def back(forward):
        def both(params, x):
            y, pull = jax.vjp(forward, params, x)
            return y, pull(y)

        return compiled(both, params, x)

    own = lambda params, x: of.forward(params, x, jbp.Context())[0]
    rivals = {
        "jbp": back(jbp.as_function(of)),
        "jax.vjp of the expert's": back(expert),
        "jax.vjp of jbp's forward": back(own),
    }
    return Contest(f"{of}, x {list(shape)}", rivals)


def dense(small: bool) -> tuple[Any, tuple[int, ...]]:
    width, examples = (16, 8) if small else (4096, 8192)
    return jbp.Dense(width), (examples, width)


def attention_core(dtype: Any, small: bool) -> Contest:
    """Output and the three gradients of causal attention, against `jax.nn`'s in XLA and, where it can be, in cuDNN."""
    n, t, h, d = (1, 32, 2, 8) if small else (8, 1024, 12, 64)
    args = [jax.random.normal(key, (n, t, h, d), dtype) for key in jax.random.split(jax.random.key(0), 4)]
    core = jbp.DotProductAttention(causal=True)

    def own(core):
        def both(q, k, v, delta):
            out, back = jbp.run(core, (), (q, k, v))
            return out, back(delta)[0]

        return compiled(both, *args)

    rivals = {
        "jbp": own(core),
        "jax.vjp of jax.nn": compiled(attention.both_ways(attention.of_jax), *args),
        "jax.vjp of jbp's forward": compiled(attention.both_ways(attention.same), *args),
    }
    if (low := dtype == jnp.bfloat16) and has_cudnn():
        rivals["jax.vjp of jax.nn, cudnn"] = compiled(attention.both_ways(by_cudnn), *args)
        rivals["jbp, cudnn"] = own(replace(core, implementation="cudnn"))
    precise = {"agree": 0.1, "setting": "bfloat16"} if low else {}
    return Contest(f"{n} × {t} positions, {h} heads of {d}", rivals, causal_flops(n, t, h * d), **precise)


def causal_flops(n: int, t: int, width: int) -> float:
    """Of causal attention's two matrix products, three times as many in both passes, for pairs that see each other."""
    return 0.5 * 3 * 2 * 2.0 * n * t * t * width


def has_cudnn() -> bool:
    return jax.default_backend() == "gpu"


def by_cudnn(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def gpt_step(small: bool) -> Contest:
    """The cost and all gradients of GPT-2 124M, float32 params and products in bfloat16, leaves in and out."""
    config, n = (replace(gpt2.SMALL, length=16, width=16), 2) if small else (gpt2.GPT2_124M, 8)
    cost, t = gpt2.gpt2(config, compute_dtype=jnp.bfloat16), config.length
    params = cost.layout.unflatten(cost.init(jax.random.key(0)))
    x, y = jax.random.randint(jax.random.key(1), (2, n, t), 0, config.vocabulary)

    def usual(core, scanned, again=False):
        blocks = transformers.plain_blocks(core, scanned, again, config.heads, config.heads, False)

        def plain(params, x, y):
            p = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
            h = transformers.norm(p.norm, blocks(p.blocks.layer, p.tokens.table[x] + p.positions.table))
            logits = (h @ p.tokens.table.T).astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        return compiled(jax.value_and_grad(plain), params, x, y)

    rivals = {"jbp": compiled(cost.value_and_grad_leaves, params, x, y)}
    if has_cudnn():
        by_kernel = gpt2.gpt2(replace(config, implementation="cudnn"), compute_dtype=jnp.bfloat16)
        rivals["jbp, cudnn"] = compiled(by_kernel.value_and_grad_leaves, params, x, y)
        rivals["jax.grad: cudnn, scanned"] = usual(by_cudnn, True)
    rivals["jax.grad: jax.nn, scanned"] = usual(attention.of_jax, True)
    if not small:  # each of them compiles for long
        rivals["jax.grad: jax.nn, scanned, checkpointed"] = usual(attention.of_jax, True, True)
        rivals["jax.grad: jax.nn, unrolled"] = usual(attention.of_jax, False)
    kernels = cost.layout.size - t * config.width  # the table is the last one; positions are only added
    flops = 6.0 * n * t * kernels + config.blocks * causal_flops(n, t, config.width)
    size = f"{cost.layout.size:,} parameters, {n} × {t} positions"
    return Contest(size, rivals, flops, agree=0.1, setting="bfloat16", as_one=True)


BFLOAT16 = {"compute_dtype": jnp.bfloat16}
RACES: dict[str, Callable[[bool], Contest]] = {  # small → contest; what compiles longest first
    "a step of GPT-2": gpt_step,
    "gradient, wide": partial(gradient, wide),
    "gradient, wide, bfloat16": partial(gradient, wide, **BFLOAT16),
    "gradient, deep": partial(gradient, deep),
    "∇C as a vector, wide": partial(vector, wide),
    "∇C as a vector, deep": partial(vector, deep),
    "squared norms, wide": partial(readout, wide, jbp.SquaredNorms(), norms),
    "a clipped sum, wide": partial(readout, wide, jbp.ClippedSum(CLIP), clipped),
    "a Hessian product, deep": partial(hessian_product, deep),
    "a K-FAC step, a small GPT": kfac_step,
    "an Adam step, wide": partial(adam_step, wide),
    "an Adam step, deep": partial(adam_step, deep),
    "a step of an epoch": epoch,
    "gradient, deep, bfloat16": partial(gradient, deep, **BFLOAT16),
    "a dense layer": partial(layer, dense, lambda p, x: x @ p.w + p.b),
    "attention": partial(attention_core, jnp.float32),
    "attention, bfloat16": partial(attention_core, jnp.bfloat16),
}


def off(got: Any, want: Any, as_one: bool = False) -> float:
    """The difference of two results over the norm: the largest of the leaves, in order, or that of all together."""
    norm = lambda a: jnp.linalg.norm(jnp.ravel(a).astype(jnp.float32))
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    norms = jnp.array([(norm(a - b), norm(b)) for a, b in pairs])
    norms = jnp.sqrt(jnp.square(norms).sum(0, keepdims=True)) if as_one else norms
    return float((norms[:, 0] / norms[:, 1]).max())


@dataclass(frozen=True)
class Entered:
    """A contest, and each rival on its way to be made."""

    contest: Contest
    made: dict[str, Future]


def entered(pool: Executor, build: Callable[[bool], Contest], small: bool) -> Entered:
    contest = build(small)
    return Entered(contest, {who: pool.submit(rival.make) for who, rival in contest.rivals.items()})


def race(section: Section, name: str, of: Entered, ready_by: float, until: float) -> None:
    """Each rival that is made in time, one that fails leaves the rest; then rounds in random order, and a row each."""
    contest = of.contest
    calls, temps, counts, first = {}, {}, {}, None
    for who, made in of.made.items():
        try:
            if time.perf_counter() > until and len(calls) > 1:
                raise TimeoutError
            calls[who], program = made.result(max(0.0, ready_by - time.perf_counter()))
            result = jax.block_until_ready(calls[who]())
            temps[who] = program.memory_analysis().temp_size_in_bytes / 1e6 if program is not None else None
            counts[who] = calls_of(calls[who])
            if contest.agree is not None and "one jax.grad" not in who:
                first = result if first is None else first
                if not (apart := off(result, first, contest.as_one)) <= contest.agree:
                    section.findings.add("races", f"{name}: {who}", False, error=f"off by {apart:.2g}")
        except TimeoutError:
            calls.pop(who, None)
            made.cancel()
            section.findings.add("races", f"{name}: {who}", None, not_run="its time was over")
        except Exception as error:
            calls.pop(who, None)
            said = f"{type(error).__name__}: {error}"[:300]
            section.findings.add("races", f"{name}: {who}", False if who.startswith("jbp") else None, error=said)
    if section.small:
        counts = dict.fromkeys(counts, 1)
    samples: dict[str, list[float]] = {who: [] for who in calls}
    for i in range(ROUNDS):
        if i >= LEAST_ROUNDS and time.perf_counter() > until:
            break
        for who in random.sample(list(calls), len(calls)):
            samples[who].append(seconds(calls[who], counts[who]) / contest.rivals[who].steps)
    top, memory = peak(section.findings, contest.setting), jax.devices()[0].memory_stats() or {}
    for who, taken in samples.items():
        median, numbers = float(np.median(taken)), {"ratio": None, "low": None, "high": None}
        if who != "jbp" and "jbp" in samples:
            each = np.array(taken) / np.array(samples["jbp"])
            ratio = median / float(np.median(samples["jbp"]))
            numbers = {"ratio": ratio, "low": float(each.min()), "high": float(each.max())}
        work = contest.flops / median / 1e12 if contest.flops and who not in contest.shorter else None
        section.findings.add(
            "races", f"{name}: {who}", None, race=name, size=contest.size, rival=who, ms=1e3 * median, **numbers,
            rounds=len(taken), calls=counts[who], temp_mb=temps[who], tflops=work,
            of_peak=work / top if work and top else None, peak_mb=memory.get("peak_bytes_in_use", 0) / 1e6 or None,
        )  # fmt: skip


def races(section: Section) -> None:
    """All rivals are compiled first, in threads; then a race at a time. What isn't made after three quarters of the
    section's time does not run."""
    now = time.perf_counter()
    ready_by = now + 0.75 * max(0.0, section.deadline - now)
    pool = ThreadPoolExecutor(max(2, min(16, os.cpu_count() or 2)))
    asked = {name: build for name, build in RACES.items() if section.findings.asks("races", name)}
    entries = {name: pool.submit(entered, pool, build, section.small) for name, build in asked.items()}
    for entry in entries.values():
        wait([entry], max(0.0, ready_by - time.perf_counter()))
        if entry.done() and not entry.exception():
            wait(entry.result().made.values(), max(0.0, ready_by - time.perf_counter()))
    for i, (name, entry) in enumerate(entries.items()):
        now = time.perf_counter()
        until = now + max(0.0, section.deadline - now) / (len(entries) - i)

        def ask(name=name, entry=entry, until=until):
            race(section, name, entry.result(max(0.0, ready_by - time.perf_counter())), ready_by, until)
            return {"ok": None}

        section.row(name, ask)
    pool.shutdown(wait=False, cancel_futures=True)


# -- all of it --------------------------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[Section], None]] = {
    "machine": machine,
    "laws": laws,
    "compare": compare,
    "programs": programs,
    "races": races,
}


def measure(findings: Findings, sections: dict[str, Callable[[Section], None]], total: float, small: bool) -> None:
    """Each section until its deadline; one that fails as a whole is a row too."""
    scale = total / (60 * MINUTES)
    until = BEGUN
    for name, ask in sections.items():
        until += scale * BUDGETS.get(name, 0)
        try:
            ask(Section(name, findings, until, small))
        except Exception as error:
            findings.add(name, "the section", False, error=f"{type(error).__name__}: {error}"[:400])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("on_accelerator.json"), metavar="FILE", help="what is found")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"when it stops ({MINUTES})")
    parser.add_argument("--small", action="store_true", help="the sizes of a CPU")
    more = {"action": "append", "default": [], "metavar": "TEXT"}
    parser.add_argument("--only", **more, help="only rows with this in 'section: name'; may be given again")
    options = parser.parse_args()
    device = jax.devices()[0]
    findings = Findings(options.json, tuple(options.only))
    findings.machine |= {
        "device": f"{jax.device_count()} × {device.device_kind}, {device.platform}",
        "memory": (device.memory_stats() or {}).get("bytes_limit"),
        "jax": jax.__version__,
        "jaxlib": sys.modules["jaxlib"].__version__,
        "python": sys.version.split()[0],
        "optax": optax.__version__,
        "small": options.small or device.platform == "cpu",
    }
    print(__doc__, findings.machine, sep="\n", flush=True)
    total = 60 * options.minutes

    def stop():
        code = findings.finish(stopped=True)
        sys.stdout.flush()
        os._exit(code)

    watch = threading.Timer(max(1.0, 0.985 * total - (time.perf_counter() - BEGUN)), stop)
    watch.daemon = True
    watch.start()
    measure(findings, SECTIONS, total, findings.machine["small"])
    watch.cancel()
    return findings.finish()


if __name__ == "__main__":
    sys.exit(main())
