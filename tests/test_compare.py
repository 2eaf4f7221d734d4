"""`compare` catches what is wrong, names the leaf, and accuses nothing that is right.

A fault is a layer like a right one, but for one mistake in its backward; or a plain function with a mistake in it.
"""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbp
from jbp import losses


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# -- faults in a layer ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Faulty:
    """A layer with its own forward, and `wrong(layer, params, feedback, saved, delta, read)` for a backward."""

    layer: Any
    wrong: Callable

    def init(self, key, x):
        return self.layer.init(key, x)

    def forward(self, params, x, context):
        return self.layer.forward(params, x, context)

    def backward(self, params, feedback, saved, delta, read):
        return self.wrong(self.layer, params, feedback, saved, delta, read)


@dataclass(frozen=True)
class Shifted:
    """y = gain · x + shift: two leaves of one shape. Saved: x."""

    def init(self, key, x):
        return {"gain": jnp.ones(x.shape), "shift": jnp.zeros(x.shape)}

    def forward(self, params, x, context):
        return params["gain"][None] * x + params["shift"][None], x

    def backward(self, params, feedback, saved, delta, read):
        gain, shift = read["gain"](jbp.Sum(delta * saved)), read["shift"](jbp.Sum(delta))
        return feedback["gain"][None] * delta, {"gain": gain, "shift": shift}


def on(part: str, change: Callable) -> Callable:
    """A right backward, but for a change of what it returns: of delta, or of the reading of a leaf."""

    def wrong(layer, params, feedback, saved, delta, read):
        delta, readings = layer.backward(params, feedback, saved, delta, read)
        if part == "delta":
            return change(delta), readings
        if isinstance(readings, dict):
            return delta, change(readings)
        return delta, readings._replace(**{part: change(getattr(readings, part))})

    return wrong


def on_saved(change: Callable) -> Callable:
    """A right backward, but from something else than what forward saved."""
    return lambda layer, params, feedback, saved, *rest: layer.backward(params, feedback, change(saved), *rest)


def on_pair(change: Callable) -> Callable:
    """A right backward, but for a change of each kernel's pair."""

    def wrong(layer, params, feedback, saved, delta, read):
        changed = lambda pair: read.w(change(pair))
        return layer.backward(params, feedback, saved, delta, read._replace(w=changed))

    return wrong


def in_bfloat16(pair: jbp.Outer) -> jbp.Outer:
    return jbp.Outer(pair.a.astype(jnp.bfloat16), pair.delta.astype(jnp.bfloat16))


def on_params(change: Callable) -> Callable:
    """A right backward, but with other params."""
    return lambda layer, params, feedback, *rest: layer.backward(change(params), change(feedback), *rest)


def largest(g: jax.Array, factor: float) -> jax.Array:
    """g with its largest element times `factor`."""
    return jnp.where(jnp.abs(g) == jnp.abs(g).max(), factor * g, g)


def compared(*layers: Any, loss: Any = None, **settings: Any) -> jbp.Report:
    """`Cost.compare` of a chain on 5 examples of 4 positions, at a θ from no initialiser."""
    network = jbp.Network(layers, (4, 3), **settings)
    cost = jbp.Cost(network, loss or losses.HalfSquaredError())
    dtype = network.dtype
    theta, x, y = (numbers(i, *shape).astype(dtype) for i, shape in enumerate(
        [(network.layout.size,), (5, 4, 3), (5, *network.output.shape)]
    ))  # fmt: skip
    return cost.compare(theta, x, y, timing=False)


DENSE, RESIDUAL = jbp.Dense(3), jbp.Residual(jbp.Tanh())

# What is wrong with a reading shows in that leaf alone.
WRONG_READINGS: dict[str, tuple[Faulty, set[str]]] = {
    "a bias left out": (Faulty(DENSE, on("b", lambda g: 0 * g)), {"0.b"}),
    "a factor 2": (Faulty(DENSE, on("w", lambda g: 2 * g)), {"0.w"}),
    "1/N twice": (Faulty(DENSE, on_pair(lambda p: jbp.Outer(p.a, p.delta / 5))), {"0.w"}),
    "a transposed gradient": (Faulty(DENSE, on("w", jnp.transpose)), {"0.w"}),
    "NaN in one element": (Faulty(DENSE, on("w", lambda g: g.at[1, 2].set(jnp.nan))), {"0.w"}),
    "infinity in one element": (Faulty(DENSE, on("b", lambda g: g.at[2].set(jnp.inf))), {"0.b"}),
    "one element of many off by 1 %": (Faulty(jbp.Dense(3000), on("w", lambda g: largest(g, 1.01))), {"0.w"}),
    "a stale saved value": (Faulty(DENSE, on_saved(lambda x: jnp.roll(x, 1, axis=0))), {"0.w"}),
    "leaves of one shape swapped": (
        Faulty(Shifted(), on("all", lambda r: {"gain": r["shift"], "shift": r["gain"]})),
        {"0.gain", "0.shift"},
    ),
    "a dropped position": (Faulty(DENSE, on_pair(lambda p: jbp.Outer(p.a[:, 1:], p.delta[:, 1:]))), {"0.w"}),
    "a dropped example": (Faulty(DENSE, on_pair(lambda p: jbp.Outer(p.a[1:], p.delta[1:]))), {"0.w"}),
    "accumulation in bfloat16": (Faulty(DENSE, on_pair(in_bfloat16)), {"0.w"}),
}

# What is wrong with delta shows in the layer before.
WRONG_DELTAS: dict[str, Faulty] = {
    "a flipped sign": Faulty(DENSE, on("delta", lambda d: -d)),
    "a transposed kernel": Faulty(DENSE, on_params(lambda p: p._replace(w=p.w.T))),
    "no slope": Faulty(jbp.Tanh(), lambda layer, p, f, saved, delta, read: (delta, ())),
    "the slope of a where it is kept as z": Faulty(jbp.SiLU(), on_saved(jax.nn.silu)),
    "the identity's branch of a residual missing": Faulty(
        RESIDUAL, lambda layer, p, f, kept, delta, read: (layer.layer.backward((), (), kept.saved, delta, ())[0], p)
    ),
    "the layer's branch of a residual missing": Faulty(RESIDUAL, lambda layer, p, f, kept, delta, read: (delta, p)),
    "a softmax without its sum": Faulty(jbp.Softmax(), lambda layer, p, f, a, delta, read: (a * delta, ())),
    "a step in bfloat16": Faulty(DENSE, on("delta", lambda d: d.astype(jnp.bfloat16).astype(jnp.float32))),
    "positions mixed up": Faulty(DENSE, on("delta", lambda d: d[:, ::-1])),
}


def assert_caught(report: jbp.Report, expected: set[str]) -> None:
    assert not report.ok
    assert report.worst.name in expected
    assert {leaf.name for leaf in report.leaves if not leaf.ok} <= expected
    assert f"The gradients DISAGREE, most in {report.worst.name}: " in report.verdict
    assert next(line for line in str(report).splitlines() if line.endswith("WRONG")).split()[0] in expected


@pytest.mark.parametrize("fault", WRONG_READINGS)
def test_a_wrong_reading_is_caught_and_its_leaf_named(fault: str):
    layer, expected = WRONG_READINGS[fault]
    assert_caught(compared(layer), expected)


@pytest.mark.parametrize("fault", WRONG_DELTAS)
def test_a_wrong_delta_is_caught_and_the_leaf_before_named(fault: str):
    assert_caught(compared(jbp.Dense(3), WRONG_DELTAS[fault]), {"0.w", "0.b"})


def test_the_element_that_is_furthest_off_has_its_symbol():
    worst = compared(WRONG_READINGS["NaN in one element"][0]).worst
    assert worst.where == "w^2_{2←1}"
    assert math.isnan(worst.got)
    assert math.isfinite(worst.expected)


@dataclass(frozen=True)
class WrongLoss(losses.HalfSquaredError):
    """½(y − a)², with a delta of (y − a)²: without the half."""

    def delta(self, output, y):
        return 2 * super().delta(output, y)


def test_a_wrong_loss_is_caught_in_every_leaf():
    report = compared(jbp.Dense(2), loss=WrongLoss())
    assert [leaf.name for leaf in report.leaves if not leaf.ok] == ["0.w", "0.b"]
    assert not report.total.ok
    np.testing.assert_allclose([leaf.got / leaf.expected for leaf in report.leaves[1:]], 2, rtol=1e-5)


# -- faults in plain functions ----------------------------------------------------------------------------------------


def f(params, x):
    return jnp.square(jnp.tanh(x @ params["w"]) + params["b"][None]).mean()


PARAMS, POINTS = {"w": numbers(0, 3, 4), "b": numbers(1, 4)}, numbers(2, 5, 3)
GRADIENT = jax.grad(f)


def edited(name: str, change: Callable) -> Callable:
    return lambda *args: (g := GRADIENT(*args)) | {name: change(g[name])}


WRONG_FUNCTIONS: dict[str, tuple[Callable, str]] = {
    "a sign": (edited("b", lambda g: -g), "b"),
    "a factor": (edited("w", lambda g: 1.001 * g), "w"),
    "an element": (edited("w", lambda g: g.at[2, 3].add(0.01)), "w"),
    "NaN": (edited("b", lambda g: g.at[0].set(jnp.nan)), "b"),
    "zeros": (edited("w", jnp.zeros_like), "w"),
    "rows in another order": (edited("w", lambda g: g[::-1]), "w"),
    "rounded to bfloat16": (edited("w", lambda g: g.astype(jnp.bfloat16).astype(jnp.float32)), "w"),
}


@pytest.mark.parametrize("fault", WRONG_FUNCTIONS)
def test_a_wrong_plain_function_is_caught(fault: str):
    rule, name = WRONG_FUNCTIONS[fault]
    report = jbp.compare(rule, GRADIENT, PARAMS, POINTS, timing=False, checks=False)
    assert [leaf.name for leaf in report.leaves if not leaf.ok] == [name]
    assert report.worst.name == name
    assert not report.ok


def test_the_right_plain_function_passes():
    by_hand = jax.value_and_grad(f)
    assert jbp.compare(GRADIENT, GRADIENT, PARAMS, POINTS, timing=False, checks=False).ok
    report = jbp.compare(by_hand, by_hand, PARAMS, POINTS, timing=False, checks=False)
    assert [leaf.name for leaf in report.leaves] == ["value", "b", "w"]
    assert report.ok
    assert report.total.size == 16  # the value stands by itself


def test_a_wrong_value_is_caught_beside_right_gradients():
    rule = lambda *args: (f(*args) + 0.01, GRADIENT(*args))
    report = jbp.compare(rule, jax.value_and_grad(f), PARAMS, POINTS, timing=False, checks=False)
    assert [leaf.name for leaf in report.leaves if not leaf.ok] == ["value"]
    assert report.total.ok
    assert not report.ok
    assert report.worst.name == "value"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reference_that_is_not_finite_never_passes(bad: float):
    same = lambda x: bad * x
    report = jbp.compare(same, same, POINTS, timing=False, checks=False)
    assert not report.ok
    assert report.kind is report.total.kind is jbp.Verdict.UNDECIDED
    assert "UNDECIDED" in report.verdict


def test_a_leaf_that_is_zero_must_be_zero():
    zero, almost = jnp.zeros_like, lambda x: jnp.zeros_like(x).at[1, 2].set(1e-30)
    nothing = jbp.compare(zero, zero, POINTS, timing=False, checks=False)
    assert nothing.kind is jbp.Verdict.EMPTY
    assert not nothing.ok
    assert nothing.verdict.startswith("Nothing was compared")
    report = jbp.compare(almost, zero, POINTS, timing=False, checks=False)
    assert not report.ok
    assert report.worst.where == "gradient[1,2]"
    assert report.worst.excess == math.inf


def test_an_empty_leaf_passes():
    function = lambda x: {"empty": x[:0], "full": 2 * x}
    report = jbp.compare(function, function, POINTS, timing=False, checks=False)
    assert [leaf.size for leaf in report.leaves] == [0, 15]
    assert report.ok


def test_huge_and_tiny_gradients_are_measured():
    for size in (1e-37, 1e37):
        grow = lambda x, size=size: x * jnp.asarray(size, x.dtype)
        assert jbp.compare(grow, grow, POINTS, timing=False, checks=False).ok
        assert not jbp.compare(lambda x: 1.001 * grow(x), grow, POINTS, timing=False, checks=False).ok  # noqa: B023


# -- what is right passes ---------------------------------------------------------------------------------------------


MIXED = [
    jbp.GELU(),
    jbp.Residual(jbp.Sequential([jbp.Dense(3), jbp.Tanh()])),
    jbp.from_function(lambda key, x: {"g": jnp.ones(x.shape, x.dtype)}, lambda params, x: x * params["g"][None]),
]
COSTS = {
    "mlp": jbp.Cost(jbp.mlp(3, 5, 3), losses.HalfSquaredError()),
    "sum": jbp.Cost(jbp.mlp(3, 3), losses.SquaredError(), "sum"),
    "mixed": jbp.Cost(jbp.Network(MIXED, (3,)), losses.SigmoidCrossEntropy()),
    "bfloat16 inside": jbp.Cost(jbp.mlp(3, 3, compute_dtype=jnp.bfloat16), losses.Huber()),
    "float16": jbp.Cost(jbp.mlp(3, 3, dtype=jnp.float16), losses.HalfSquaredError()),
}


@pytest.mark.parametrize("name", COSTS)
def test_a_right_rule_passes_with_x64_off(name: str):
    cost = COSTS[name]
    theta, x = numbers(2, cost.layout.size).astype(cost.network.dtype), numbers(0, 5, 3)
    y = np.abs(np.tanh(numbers(1, 5, 3)))  # in [0, 1], as a cross-entropy has it
    weights = np.array([1, 0, 2, 0.5, 3], np.float32) if cost.reduction == "sum" else None
    assert not jax.config.read("jax_enable_x64")
    report = cost.compare(theta, x, y, weights=weights, timing=False)
    assert report.ok, str(report)
    assert report.total.oracle_error > 0  # autodiff in low precision does err
    assert not jax.config.read("jax_enable_x64")


@pytest.mark.parametrize("name", ["mlp", "mixed"])
def test_a_right_rule_passes_in_float64(name: str, x64: None):
    cost = replace(COSTS[name], network=replace(COSTS[name].network, dtype=np.float64))
    theta, x, y = (a.astype(np.float64) for a in (numbers(2, cost.layout.size), numbers(0, 5, 3), numbers(1, 5, 3)))
    report = cost.compare(theta, x, np.abs(np.tanh(y)), timing=False)
    assert report.ok, str(report)
    assert report.total.allowed == 1e-12 * report.total.scale
    assert jax.config.read("jax_enable_x64")


def test_a_float32_step_in_float64_is_caught(x64: None):
    rounded = Faulty(DENSE, on("delta", lambda d: d.astype(jnp.float32).astype(jnp.float64)))
    assert_caught(compared(jbp.Dense(3), rounded, dtype=np.float64), {"0.w", "0.b"})


@pytest.mark.parametrize("seed", range(6))
def test_no_right_rule_is_accused(seed: int):
    """Small networks at random: a small leaf's error is a matter of luck, and luck must not decide."""
    rng = np.random.default_rng(seed)
    widths, n = map(int, rng.integers(1, 8, 3)), int(rng.choice([1, 5, 32]))
    activation = [jbp.Sigmoid(), jbp.Tanh(), jbp.ReLU(), jbp.SiLU()][seed % 4]
    settings = {"compute_dtype": jnp.bfloat16} if seed >= 3 else {}
    network = jbp.mlp(*widths, activation=activation, last=jbp.Identity(), **settings)
    cost = jbp.Cost(network, losses.SoftmaxCrossEntropy(), "sum" if seed % 2 else "mean")
    x, y = numbers(seed, n, *network.input.shape), rng.integers(0, network.output.shape[0], n).astype(np.int32)
    report = cost.compare(numbers(seed, cost.layout.size), x, y, timing=False)
    empty = network.output.shape == (1,)  # of one class the softmax is 1
    assert report.kind is (jbp.Verdict.EMPTY if empty else jbp.Verdict.AGREE), str(report)


def test_confident_logits_cost_no_digits():
    """For p near 1, δ = p − y is a difference: p must be as good as autodiff's."""
    cost = jbp.Cost(jbp.Network([jbp.Dense(5, bias=False)], (5,)), losses.SoftmaxCrossEntropy())
    labels = np.arange(40, dtype=np.int32) % 5
    x = np.eye(5, dtype=np.float32)[labels] + 0.1 * numbers(0, 40, 5)
    report = cost.compare(10 * np.eye(5, dtype=np.float32).ravel(), x, labels, timing=False)
    assert report.ok, str(report)


# -- the report -------------------------------------------------------------------------------------------------------


def test_a_report_as_json():
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    rule = edited("b", lambda g: g.at[0].set(jnp.nan).at[1].set(jnp.inf))
    report = jbp.compare(rule, GRADIENT, PARAMS, POINTS, timing=False, checks=False)
    told = json.loads(report.to_json(), parse_constant=refuse)
    assert told["ok"] is False
    assert [leaf["name"] for leaf in told["leaves"]] == ["b", "w"]
    assert told["leaves"][0]["got"] in ("nan", "inf")
    assert told["leaves"][0]["ok"] is False
    assert told["leaves"][1]["ok"] is True
    assert told["leaves"][1]["oracle_error"] == report.leaves[1].oracle_error
    assert told["total"]["size"] == 16
    assert "rule" not in told  # no timing


def test_a_report_with_timing_has_time_and_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules["jbp.programs.clock"], "SECONDS", 0.0)
    report = jbp.compare(GRADIENT, GRADIENT, PARAMS, POINTS, checks=False)
    told = json.loads(report.to_json())
    for side in ("rule", "oracle"):
        assert told[side]["seconds"] > 0
        assert told[side]["compile_seconds"] > 0
        assert told[side]["temp_bytes"] >= 0
        assert told[side]["flops"] > 0
    assert told["race"]["low"] <= told["race"]["high"]
    assert told["race"]["pairs"] >= 2
    lines = str(report).splitlines()[-8:]
    assert [line.split()[:1] for line in lines] == [
        [],
        ["hand-written"],
        ["autodiff"],
        ["time:"],
        [],
        ["errors:"],
        ["allowed:"],
        ["The"],
    ]
    units = [[word for word in line.split() if word[0].isalpha()][1:] for line in lines[1:3]]
    assert units == [["ms", "MB", "temporary", "MFLOP", "s", "to", "compile"]] * 2


def test_a_report_as_text():
    """Powers of two are exact, so the numbers of this report are the same everywhere."""
    oracle = lambda x: {"a": 2 * x, "b": x[:1]}
    *table, verdict = str(
        jbp.compare(oracle, oracle, np.ones((2, 8), np.float32), timing=False, checks=False)
    ).splitlines()
    assert table == [
        "leaf   size    error  autodiff's  allowed  ratio  ulps 50/99/100 %  1−cos  largest  at",
        "a        16  0.0e+00     0.0e+00  4.8e-07   1.00    0.00/0.00/0.00  0e+00  0.0e+00  a[0,0]",
        "b         8  0.0e+00     0.0e+00  4.8e-07   1.00    0.00/0.00/0.00  0e+00  0.0e+00  b[0,0]",
        "total    24  0.0e+00     0.0e+00  4.8e-07   1.00    0.00/0.00/0.00  0e+00  0.0e+00  a[0,0]",
        "",
        "errors: rms difference from float64, relative to the leaf's rms",
        "allowed: 2 times autodiff's error, or 4 ε of the dtype; in float64 1e-12",
    ]
    assert verdict.startswith("The gradients agree: ")


def test_a_report_of_a_fault_as_text():
    oracle = lambda x: {"a": 2 * x, "b": x[:1]}
    rule = lambda x: {"a": 2 * x.at[1, 2].multiply(2), "b": x[:1]}
    lines = str(jbp.compare(rule, oracle, np.ones((2, 8), np.float32), timing=False, checks=False)).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["leaf", "a", "b", "total"]
    assert [line.endswith("  a[1,2]  WRONG") for line in lines[1:4]] == [True, False, True]
    assert lines[1].split()[1:6] == ["16", "2.5e-01", "0.0e+00", "4.8e-07", "inf"]
    assert "a: 1 of 16 elements wrong" in lines
    assert lines[-1].startswith(
        "The gradients DISAGREE, most in a: 1 of 16 elements wrong; rms error 5.0e-01, allowed 9.5e-07; a[1,2] is 4 "
    )
    assert lines[-1].endswith(" by the rule and 2 in float64.")


def test_worst_is_judged_by_what_is_allowed():
    """A large error in a large leaf may be right, and a small one in a small leaf wrong."""
    oracle = lambda x: {"large": 1e6 * x, "small": 1e-6 * x}
    rule = lambda x: {"large": 1e6 * x * (1 + 1e-3), "small": 1e-6 * x * 2}
    report = jbp.compare(rule, oracle, POINTS, timing=False, checks=False)
    assert report.worst.name == "small"
    assert report.leaves[0].error > report.leaves[1].error
