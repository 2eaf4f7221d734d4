"""`flow`: its numbers against plain NumPy, what it says in words, its figure."""

import dataclasses
import io
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_explain import nested

import jbp
from jbp.flow import flow

HALF = jbp.losses.HalfSquaredError()


def chain(depth, activation, scale, **settings):
    """The flow of `depth` dense layers of 8 neurons, with normal weights of variance scale²/8."""
    layers = [layer for _ in range(depth) for layer in (jbp.Dense(8), activation)]
    cost = jbp.Cost(jbp.Network(layers[:-1], (8,), **settings), HALF)
    rng = np.random.default_rng(0)
    theta = scale / math.sqrt(8) * rng.standard_normal(cost.layout.size)
    x, y = rng.standard_normal((2, 16, 8))
    return flow(cost, *(jnp.asarray(a, cost.network.dtype) for a in (theta, x, y)))


def words(found):
    return [word for word, _ in found.verdicts]


def test_gradients_by_block_and_head(x64):
    """What each head has to itself: its columns of q's kernel and bias, its rows of out's kernel."""
    attention = jbp.Attention(2, kv_heads=1, head_width=3, causal=True)
    layers = {"blocks": jbp.Repeat(jbp.Sequential({"mix": attention}), 3), "last": jbp.Attention(1, bias=False)}
    cost = jbp.Cost(jbp.Network(layers, (4, 5)), HALF)
    theta, x, y = (
        jnp.asarray(np.random.default_rng(0).standard_normal(n)) for n in (cost.layout.size, (2, 4, 5), (2, 4, 5))
    )
    found = flow(cost, theta, x, y)
    of = dict(zip(cost.layout.names, cost.layout.leaves(np.asarray(jax.grad(cost)(theta, x, y))), strict=True))
    q, b, out = (of[f"blocks.layer.mix.{name}"] for name in ("q.w", "q.b", "out.w"))
    for turn, row in enumerate(found.rows[:3]):
        assert row.layer == f"blocks.layer.mix@{turn}"
        for head, norm in enumerate(row.heads):
            its = slice(3 * head, 3 * head + 3)
            parts = q[turn][:, its], b[turn][its], out[turn][its]
            np.testing.assert_allclose(norm, math.sqrt(sum(np.square(part).sum() for part in parts)), rtol=1e-10)
    assert [len(row.heads) for row in found.rows] == [2, 2, 2, 1]
    assert str(found).count("blocks.layer.mix@1 ") == 2  # in the table of layers, and in that of heads
    assert [axes.get_title("left") for axes in found.figure().axes][-1] == "gradient of heads"
    assert not any(row.heads for row in chain(2, jbp.Tanh(), 1).rows)
    assert len(chain(2, jbp.Tanh(), 1).figure().axes) == 4


def test_a_function_is_called_by_its_name_everywhere():
    """In the table of `flow`, in `explain`, in a drawing; without a name, by its class."""
    scale = jbp.from_function(
        lambda key, x: {"g": jnp.ones(x.shape)}, lambda params, x: x * params["g"][None], name="scale"
    )
    cost = jbp.Cost(jbp.Network([scale, jbp.Dense(2), jbp.from_function(None, lambda _, x: x)], (3,)), HALF)
    theta, x, y = cost.init(jax.random.key(0)), jnp.ones((4, 3)), jnp.ones((4, 2))
    assert [row.kind for row in flow(cost, theta, x, y).rows] == ["scale", "Dense", "Function"]
    assert "layer 0, scale" in str(jbp.explain(cost, theta, x, y, "0.g[1]"))
    assert any(node.label.startswith("scale\n") for node in jbp.draw.network(cost, theta).nodes)


def test_numbers_are_numpys(x64):
    cost = jbp.Cost(jbp.mlp(3, 4, 2), HALF)
    rng = np.random.default_rng(0)
    theta, x, y = rng.standard_normal(26), rng.standard_normal((5, 3)), rng.random((5, 2))
    W2, b2, W3, b3 = theta[:12].reshape(3, 4), theta[12:16], theta[16:24].reshape(4, 2), theta[24:]
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    z2 = x @ W2 + b2
    a2 = sigmoid(z2)
    z3 = a2 @ W3 + b3
    a3 = sigmoid(z3)
    d_a3 = a3 - y
    d_z3 = d_a3 * a3 * (1 - a3)
    d_a2 = d_z3 @ W3.T
    d_z2 = d_a2 * a2 * (1 - a2)
    g = [x.T @ d_z2 / 5, d_z2.mean(0), a2.T @ d_z3 / 5, d_z3.mean(0)]
    rms = lambda a: np.sqrt(np.mean(a**2))
    norm = lambda *parts: np.sqrt(sum(np.sum(p**2) for p in parts))
    update = rng.standard_normal(26)
    for given in (None, jnp.asarray(update)):
        found = flow(cost, jnp.asarray(theta), jnp.asarray(x), jnp.asarray(y), given)
        moved = (norm(*g[:2]), norm(*g[2:])) if given is None else (norm(update[:16]), norm(update[16:]))
        expected = [
            ("0", "Dense", rms(z2), rms(d_z2), 16, norm(*g[:2]), norm(W2, b2), moved[0], None, ()),
            ("1", "Sigmoid", rms(a2), rms(d_a2), 0, None, None, None, 0.0, ()),
            ("2", "Dense", rms(z3), rms(d_z3), 10, norm(*g[2:]), norm(W3, b3), moved[1], None, ()),
            ("3", "Sigmoid", rms(a3), rms(d_a3), 0, None, None, None, 0.0, ()),
        ]
        for row, values in zip(found.rows, expected, strict=True):
            assert dataclasses.astuple(row)[:2] == values[:2]
            for got, value in zip(dataclasses.astuple(row)[2:], values[2:], strict=True):
                assert got == (None if value is None else pytest.approx(value, rel=1e-12))
        assert found.rows[2].ratio == pytest.approx(moved[1] / norm(W3, b3), rel=1e-12)
        assert found.cost == pytest.approx(0.5 * np.sum(d_a3**2) / 5, rel=1e-12)


def test_any_network(x64):
    cost, theta, x, y = nested()
    found = flow(cost, theta, x, y)
    rows = {row.layer: row for row in found.rows}
    gradient = cost.layout.unflatten(jax.grad(cost)(theta, x, y))
    second = jax.tree.map(lambda g: g[1], gradient[1].layer.layer[1])  # the block of the loop's second turn
    assert rows["1.layer.layer.1@1"].gradient == pytest.approx(
        math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(second))), rel=1e-11
    )
    assert sum(row.parameters for row in found.rows) == cost.layout.size
    total = sum(row.gradient**2 for row in found.rows if row.parameters)
    assert total == pytest.approx(float((jax.grad(cost)(theta, x, y) ** 2).sum()), rel=1e-11)
    assert "2.right" in str(found)


def test_dead_units():
    def biases(key, shape, dtype):
        return jnp.where(jnp.arange(8) < 6, -100, 1).astype(dtype)

    layers = [jbp.Dense(8, biases=biases), jbp.ReLU(), jbp.Dense(2)]
    cost = jbp.Cost(jbp.Network(layers, (4,)), HALF)
    theta = cost.init(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).random((10, 4)), jnp.float32)
    found = flow(cost, theta, x, jnp.ones((10, 2)))
    assert found.rows[1].dead == 0.75
    assert words(found) == ["dead", "even"]
    assert "in layer 1 (ReLU) 75%" in found.verdict
    assert "75%" in str(found)


def test_the_layer_that_is_dead_is_named_and_not_the_one_below():
    cost = jbp.Cost(jbp.mlp(4, 8, 8, 2, activation=jbp.ReLU()), HALF)
    theta = cost.init(jax.random.key(0)).at[-2:].set(0.1)
    x = jnp.asarray(np.random.default_rng(0).random((10, 4)), jnp.float32)
    healthy = flow(cost, theta, x, jnp.ones((10, 2)))
    b3 = cost.layout.offsets[cost.layout.names.index("2.b")]
    found = flow(cost, theta.at[b3 : b3 + 8].set(-100), x, jnp.ones((10, 2)))
    assert [row.dead for row in found.rows[:4]] == [None, healthy.rows[1].dead, None, 1.0]
    assert healthy.rows[1].dead < 1 == found.rows[3].dead > found.rows[5].dead
    assert found.rows[1].delta == 0
    assert "; in layer 3 (ReLU) 100%." in found.verdict
    softmax = jbp.Cost(jbp.mlp(4, 3, activation=jbp.Softmax()), HALF)
    assert flow(softmax, theta[:15], x, jnp.ones((10, 3))).rows[1].dead == 0


def test_what_is_not_finite():
    cost = jbp.Cost(jbp.mlp(3, 4, 2), HALF)
    theta, x, y = jnp.zeros(26).at[3].set(1), jnp.ones((4, 3)), jnp.ones((4, 2))
    for place, layer in ((0, "0"), (14, "0"), (25, "2")):
        found = flow(cost, theta.at[place].set(jnp.nan), x, y)
        assert found.verdict == f"NOT FINITE: first the weights of layer {layer} (Dense)."
        assert math.isnan(found.rows[-1].dead)
        assert str(found).splitlines()[4].split()[-1] == "–"
        assert json.loads(found.to_json())["rows"][-1]["dead"] == "nan"
    assert len(found.figure().axes[3].patches) == 0
    found = flow(cost, theta, x, y, theta.at[20].set(jnp.inf))
    assert found.verdict == "NOT FINITE: first the update of layer 2 (Dense)."
    with pytest.raises(jbp.InputError, match=r"x: expected finite numbers"):
        flow(cost, theta, x * jnp.nan, y)
    with pytest.raises(jbp.InputError, match=r"theta: expected \[P\]"):
        flow(cost, theta[1:], x, y)


def test_what_it_says():
    vanishing = chain(6, jbp.Sigmoid(), 1.0)
    exploding, healthy, zero, overflown = (chain(6, jbp.LeakyReLU(), scale) for scale in (6.0, 1.4, 0.0, 1e30))
    assert [words(f) for f in (vanishing, exploding, healthy, zero, overflown)] == [
        ["vanishing"], ["exploding"], ["even"], ["zero"], ["not finite"]
    ]  # fmt: skip
    ratio = vanishing.rows[0].delta / vanishing.rows[-1].delta
    assert ratio < 1e-2
    assert f"{1 / ratio:.1e} times" in vanishing.verdict
    assert str(vanishing).endswith(vanishing.verdict)
    told = json.loads(vanishing.to_json())
    assert told["words"] == ["vanishing"]
    assert told["update"] == "gradient descent at rate 1"
    assert [row["delta"] for row in told["rows"]] == [row.delta for row in vanishing.rows]
    assert "Infinity" not in overflown.to_json()
    assert "NaN" not in overflown.to_json()
    for found in (vanishing, overflown):
        figure = found.figure()
        output, delta, update, dead = figure.axes
        assert [label.get_text().split()[0] for label in output.get_yticklabels()] == [r.layer for r in found.rows]
        drawn = delta.collections[0].get_offsets()
        np.testing.assert_allclose(drawn[:, 0], [r.delta for r in found.rows if 0 < r.delta < math.inf])
        assert len(update.collections[0].get_offsets()) == sum(0 < (r.ratio or 0) < math.inf for r in found.rows)
        assert len(dead.patches) == 2 * sum(r.dead is not None and r.dead >= 0 for r in found.rows)
    figure.savefig(io.BytesIO(), format="png", dpi=20)


def test_a_deep_figure_names_all_layers_and_shows_whole_dots():
    figure = chain(40, jbp.Tanh(), 1.0).figure()
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()][-2:] == ["77  Tanh", "78  Dense"]
    assert not axes.collections[0].get_clip_on()


def test_errors(monkeypatch):
    cost = jbp.Cost(jbp.mlp(3, 2), HALF)
    theta, x, y = jnp.zeros(8), jnp.ones((4, 3)), jnp.ones((4, 2))
    with pytest.raises(jbp.InputError, match=r"update: expected a vector like theta, \[8\], got shape \[7\]"):
        flow(cost, theta, x, y, jnp.zeros(7))
    with pytest.raises(jbp.InputError, match="not under jit"):
        jax.jit(lambda theta: flow(cost, theta, x, y).cost)(theta)
    found = flow(cost, theta, x, y)
    assert words(found) == ["even"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(jbp.InputError, match=r"pip install 'jbp\[cli\]'"):
        found.figure()
