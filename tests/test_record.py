"""One recorded run: its values against plain JAX, and where each δ came from, through whatever a container does."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import own_layers
import pytest
from test_explain import Mapped, Noise

import jbp
from jbp import record
from jbp.layers.compose import Inner

HALF = jbp.losses.HalfSquaredError()


def made(layers, width=4, n=3, **settings):
    """(cost, θ, x, y) of the layers on `[N, width]`."""
    cost = jbp.Cost(jbp.Network(layers, (width,), **settings), HALF)
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), cost.network.dtype)
    return cost, normal(cost.layout.size) / 2, normal(n, width), normal(n, *cost.network.output.shape)


@dataclass(frozen=True)
class Inside:
    """A container that runs its layer, forward and back, inside a transformation."""

    layer: Any
    way: Any

    def init(self, key, x):
        return Inner(self.layer.init(key, x))

    def forward(self, params, x, context):
        return self.way(lambda params, x: jbp.step("layer", self.layer, params, x, context))(params.layer, x)

    def backward(self, params, feedback, saved, delta, read):
        back = self.way(lambda *args: jbp.step_back(self.layer, *args))
        delta, readings = back(params.layer, feedback.layer, saved, delta, read.layer)
        return delta, Inner(readings)


def in_a_branch(f):
    return lambda *args: jax.lax.cond(jnp.sum(jax.tree.leaves(args)[0]) > -1e9, f, f, *args)


def in_a_loop_of_one(f):
    return lambda *args: jax.tree.map(lambda a: a[0], jax.lax.scan(lambda c, _: (c, f(*args)), 0, None, length=1)[1])


def in_a_rule(f):
    ruled = jax.custom_vjp(f)
    ruled.defvjp(lambda *args: (f(*args), args), lambda args, d: jax.vjp(f, *args)[1](d))
    return ruled


WAYS = {"jit": jax.jit, "checkpoint": jax.checkpoint, "cond": in_a_branch, "scan": in_a_loop_of_one, "rule": in_a_rule}


def compare(found, expected):
    """Every step of a run against those of another, which has the same layers in the same order."""
    assert [step.kind for step in found] == [step.kind for step in expected]
    for one, two in zip(found, expected, strict=True):
        for part in ("params", "x", "output", "delta", "delta_x"):
            assert_same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)
            jax.tree.map(assert_same, getattr(one, part), getattr(two, part))


@pytest.mark.parametrize("way", WAYS)
def test_through_transformations(way, x64):
    block = own_layers.block(4)
    args = made([jbp.Dense(4), Inside(block, WAYS[way]), jbp.Dense(2)])
    plain = made([jbp.Dense(4), block, jbp.Dense(2)])
    run, expected = record.run(*args), record.run(*plain)
    compare([step for step in run.steps if step.kind != "Inside"], expected.steps)
    assert all(step.turn is None for step in run.steps)  # of a branch that is not taken there is no step
    routes = [[step.path for step, *_ in run.route(s)] for s in run.steps if s.path in ("1.layer", "1.layer.layer.3")]
    assert routes == [["2"], ["2"]]  # δ is handed on unchanged, by all containers


@dataclass(frozen=True)
class Ensemble:
    """The mean of n layers on one x, run in `jax.vmap`; params stacked along a first axis."""

    layer: Any
    n: int

    def init(self, key, x):
        return Inner(jax.vmap(lambda key: self.layer.init(key, x))(jax.random.split(key, self.n)))

    def forward(self, params, x, context):
        y, kept = jax.vmap(lambda its: jbp.step("layer", self.layer, its, x, context))(params.layer)
        return y.mean(0), kept

    def backward(self, params, feedback, saved, delta, read):
        back = lambda *each: jbp.step_back(self.layer, *each, delta / self.n, read.layer)
        deltas, readings = jax.vmap(back)(params.layer, feedback.layer, saved)
        return deltas.sum(0), Inner(jbp.stacked(read.layer, readings))


def test_through_vmap(x64):
    """A vmap over the examples is one step of them all; over blocks it has a step for each, as a loop has."""
    alone, mapped = (made([jbp.Dense(4), layer, jbp.Dense(2)]) for layer in (jbp.Tanh(), Mapped(jbp.Tanh())))
    run = record.run(*mapped)
    compare([step for step in run.steps if step.kind != "Mapped"], record.run(*alone).steps)
    args = made([jbp.Dense(4), Ensemble(jbp.Dense(3), 5), jbp.Dense(2)])
    run = record.run(*args)
    blocks = [step for step in run.forward if step.path == "1.layer"]
    assert [step.turn for step in blocks] == list(range(5))
    stacked = args[0].layout.unflatten(args[1])[1].layer
    for i, step in enumerate(blocks):
        np.testing.assert_array_equal(step.params.w, stacked.w[i])
        np.testing.assert_allclose(step.output, step.x @ stacked.w[i] + stacked.b[i][None], rtol=1e-12)
        np.testing.assert_allclose(step.delta_x, step.delta @ stacked.w[i].T, rtol=1e-12)
    assert jbp.explain(*args, "1.layer.w[3,2,1]").ok


def test_a_step_for_each_turn_of_loops_in_loops(x64):
    """Against the same blocks one after another."""
    block = jbp.Residual(jbp.Sequential([jbp.Tanh(), jbp.Dense(4)]))
    args = made([jbp.Dense(4), own_layers.Loop(own_layers.Loop(block, 2), 3), jbp.Dense(2)])
    plain = made([jbp.Dense(4), *[block] * 6, jbp.Dense(2)])
    leaves = args[0].layout.unflatten(args[1])
    blocks = [jax.tree.map(lambda a, i=i: a.reshape(6, *a.shape[2:])[i], leaves[1]["layer"]["layer"]) for i in range(6)]
    theta = plain[0].layout.flatten((leaves[0], *blocks, leaves[2]))
    run, expected = record.run(*args), record.run(plain[0], theta, *plain[2:])
    compare([step for step in run.steps if step.kind != "Loop"], expected.steps)
    first = next(step for step in run.forward if step.kind == "Tanh")
    assert (first.name, first.parent.name) == ("1.layer.layer.layer.0@0", "1.layer.layer.layer@0")
    assert [step.name for step, *_ in run.route(first)] == [
        *("2", "1.layer@2", "1.layer@1"), *("1.layer.layer@1", "1.layer.layer.layer.1@0")
    ]  # fmt: skip
    for layer in (own_layers.Loop(block, 0), own_layers.Loop(own_layers.Loop(block, 0), 2)):
        empty = record.run(*made([jbp.Dense(4), layer, jbp.Dense(2)]))
        assert [step.path for step, *_ in empty.route(empty.steps[-1])] == ["2", "1"]


def test_recomputed_and_reversed_layers_are_those_of_the_plain_network(x64):
    block = own_layers.block(4)
    args, plain = (made([jbp.Dense(4), layer, jbp.Dense(2)]) for layer in (own_layers.Checkpoint(block), block))
    run = record.run(*args)
    compare([step for step in run.steps if step.kind != "Checkpoint"], record.run(*plain).steps)
    inner = next(step for step in run.steps if step.path == "1.layer")
    assert [step.path for step, *_ in run.route(inner)] == ["2"]  # δ is the container's own, through its barrier
    halves = jbp.Fork([jbp.Dense(4), jbp.Dense(4)])
    joined = jbp.from_function(None, lambda _, x: x[0] + x[1])
    args = made([halves, own_layers.Reversible(jbp.Dense(4), jbp.Tanh(), 3), joined])
    f = [step for step in record.run(*args).forward if step.path == "1.f"]
    x = args[0].network.layers[0].forward(args[0].layout.unflatten(args[1])[0], args[2], jbp.Context())[0]
    assert [step.turn for step in f] == [0, 1, 2]
    np.testing.assert_allclose(f[0].x, x[1], rtol=1e-9)


def test_each_turn_has_its_own_key():
    args = made([own_layers.Loop(Noise(), 3)])
    context = jbp.Context(key=jax.random.key(0))
    steps = record.run(*args, context=context).steps
    for step in steps[:3]:
        out, _ = step.layer.forward((), jnp.asarray(step.x), step.context)
        np.testing.assert_array_equal(out, step.output)
    assert len({tuple(jax.random.key_data(step.context.key).tolist()) for step in steps[:3]}) == 3


@dataclass(frozen=True)
class Wrong(jbp.GELU):
    """GELU with a slope that is one percent too large."""

    def slope(self, saved):
        return super().slope(saved) * 1.01


def test_24_blocks_in_a_loop_are_recorded_explained_drawn_and_compared():
    args = made([jbp.Dense(16), own_layers.Loop(own_layers.block(16), 24), jbp.Dense(4)], 8, 16)
    run = record.run(*args)
    assert len(run.steps) == 3 + 24 * 6
    cost, theta, x, y = args
    e = jbp.explain(*args, "1.layer.layer.1.w[3,2,5]")
    assert e.ok
    assert {"1.layer.layer.3", "1.layer.layer.1"} <= {path for part in e.parts for path in part.layers}
    assert sum("@3" in part.title for part in e.parts) == 3  # back through two layers, and the last product
    rows = jbp.flow(*args).rows
    assert [row.layer for row in rows[1:5]] == [f"1.layer.layer.{i}@0" for i in range(4)]
    graph = jbp.draw.computation(cost, theta, x[0], y[0])
    assert [box.label for box in graph.boxes if box.times > 1] == ["× 24"]
    assert graph.node("1.layer.layer.1").value.shape == (24 * 32,)
    wrong = jbp.Residual(jbp.Sequential([own_layers.LayerNorm(), jbp.Dense(32), Wrong(), jbp.Dense(16)]))
    network = replace(cost.network, layers=[jbp.Dense(16), own_layers.Loop(wrong, 24), jbp.Dense(4)])
    report = jbp.Cost(network, HALF).compare(theta, x, y, timing=False)
    assert report.enters == "layer 1.layer.layer.2@23 (Wrong)"
