"""Embeddings, positions, and gradients by rows, beyond the laws: what has no row, sizes, wrong calls."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import N, assert_close, assert_told, draw, over_calls
from own_layers import LinearCrossEntropy, Loop

import jbp
from jbp.programs.calls import inner_jaxprs

WORDS = jax.ShapeDtypeStruct((6,), jnp.int32)
V, W = 50, 3


def drawn(cost: jbp.Cost, ids: int = V) -> tuple[Any, Any, Any]:
    """(θ, x, y) in the cost's dtype, x from 0 … ids − 1."""
    dtype, shape = cost.network.dtype, (N, *cost.network.input.shape)
    x = jnp.asarray(np.random.default_rng(1).integers(0, ids, shape), cost.network.input.dtype)
    theta, y = draw(
        0, (jax.ShapeDtypeStruct((cost.layout.size,), dtype), cost.network(cost.init(jax.random.key(0)), x))
    )
    return theta, x, y


def cost_of(*layers: jbp.Layer, **settings: Any) -> jbp.Cost:
    return jbp.Cost(jbp.Network(layers, WORDS, **settings), jbp.losses.HalfSquaredError())


# -- embeddings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int32, jnp.uint32, jnp.int64], ids=lambda d: d.__name__)
def test_a_number_without_a_row_is_nan_and_adds_to_no_gradient(dtype: Any, x64: None):
    """Negative ones do not count from the end: −1 is how padding is written."""
    low, high = int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max)
    layer, x = jbp.Embedding(5, 2), jnp.asarray([[0, 4, 5, high, low]], dtype)
    table = draw(0, jax.ShapeDtypeStruct((5, 2), jnp.float64))
    inside = np.array([0 <= int(i) < 5 for i in x[0]])
    y, back = jbp.run(layer, layer.init(jax.random.key(0), WORDS)._replace(table=table), x)
    assert_close(y[0][inside], table[x[0][inside].astype(jnp.int32)])
    assert np.isnan(y[0][~inside]).all()
    expected = np.zeros((5, 2))
    expected[[0, 4]] = 1
    expected[0] += not low  # the least of an unsigned dtype is row 0 once more
    delta_x, gradient = back(jnp.ones_like(y))
    assert delta_x is None
    np.testing.assert_array_equal(gradient.table, expected)


def test_check_finds_numbers_without_a_row():
    cost = cost_of(jbp.Embedding(V, W), jbp.Tanh())
    theta, x, y = drawn(cost)
    cost.check(theta, x, y)
    with pytest.raises(jbp.InputError) as error:
        cost.check(theta, x.at[2, 3].set(-1).at[4, 0].set(V), y)
    assert str(error.value) == (
        "layer 0: Embedding(50, 3): expected x in 0 … 49, got x[2, 3] = -1 (2 of 48 out of range). "
        "Enlarge the vocabulary, or map such numbers to a row."
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=lambda dtype: dtype.__name__)
def test_the_leaves_have_the_networks_dtype(dtype: Any):
    """The table too, although no float x tells it."""
    cost = cost_of(jbp.Embedding(V, W), jbp.Positions(6), jbp.LayerNorm(), dtype=dtype)
    assert cost.layout.dtype == cost.init(jax.random.key(0)).dtype == cost.network.output.dtype == dtype


def test_positions_beyond_a_short_sequence_have_gradient_0(x64: None):
    cost = jbp.Cost(jbp.Network([jbp.Positions(9)], (4, 2)), jbp.losses.HalfSquaredError())
    theta, x, y = (draw(i, jax.ShapeDtypeStruct(s, jnp.float64)) for i, s in enumerate([(18,), (N, 4, 2), (N, 4, 2)]))
    gradient = cost.layout.unflatten(cost.grad(theta, x, y))[0].table
    assert np.all(gradient[:4] != 0)
    assert not np.any(gradient[4:])
    _, (each, norms) = cost.measure(theta, x, y, jbp.PerExampleGradients(), jbp.SquaredNorms())
    assert_close(norms, jnp.square(each).sum(1))


def test_sinusoids_are_exact_far_along_in_bfloat16():
    """Positions are counted in float32: bfloat16 has no whole numbers between 256 and 258."""
    y, _ = jbp.SinusoidalPositions().forward((), jnp.zeros((1, 300, 2), jnp.bfloat16), jbp.Context())
    np.testing.assert_allclose(y[0, :, 0].astype(jnp.float32), np.sin(np.arange(300)), atol=2**-8)


# -- gradients by rows ------------------------------------------------------------------------------------------------


def dense(rows: jbp.Rows, shape: tuple[int, ...]) -> jax.Array:
    return jnp.zeros(shape, rows.rows.dtype).at[rows.indices].add(rows.rows, mode="drop")


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_rows_are_the_gradient(distinct: bool, reduction: Any, x64: None):
    net = jbp.Network([jbp.Embedding(V, W), jbp.Tanh(), jbp.Dense(2)], WORDS)
    cost = jbp.Cost(net, jbp.losses.HalfSquaredError(), reduction)
    theta, x, y = drawn(cost, ids=7)  # so that many are met again
    weights = jnp.arange(1.0, N + 1)
    value, gradient = cost.value_and_grad(theta, x, y, weights=weights)
    readout = jbp.RowGradients(distinct)
    got_value, got = cost.measure(theta, x, y, readout, weights=weights)
    assert_close(got_value, value)
    expected = dict(zip(cost.layout.names, cost.layout.leaves(gradient), strict=True))
    rows = got["0.table"]
    assert rows.rows.shape == (N * 6, W)
    assert_close(dense(rows, (V, W)), expected["0.table"])
    assert_close({name: got[name] for name in ("2.w", "2.b")}, {name: expected[name] for name in ("2.w", "2.b")})
    met = np.unique(x)
    if distinct:
        np.testing.assert_array_equal(rows.indices, [*met, *[V] * (N * 6 - len(met))])
        assert not np.any(rows.rows[len(met) :])
        assert_close(rows.rows[: len(met)], expected["0.table"][met])
    else:
        np.testing.assert_array_equal(rows.indices, np.ravel(x))
    if reduction == "mean":
        assert_close(cost.read(cost.pairs(theta, x, y), readout, weights=weights)["0.table"], rows)


def test_what_has_no_row_adds_to_none(x64: None):
    """Its output is NaN, so its pair is asked alone."""
    index, delta = jnp.asarray([[0, 7, 5], [5, 5, -9]]), draw(0, jax.ShapeDtypeStruct((2, 3, W), jnp.float64))
    pair, weights = jbp.Gather(index, delta).of((7, W)), jnp.asarray([1.0, 2.0])
    layout = jbp.Layout.of({"table": jax.ShapeDtypeStruct((7, W), jnp.float64)})
    for distinct in (False, True):
        readout = jbp.RowGradients(distinct)
        rows = readout.collect(layout, [readout.read(pair, weights)])["table"]
        assert_close(dense(rows, (7, W)), pair.weighted_gradient(weights))
    np.testing.assert_array_equal(rows.indices, [0, 5, 7, 7, 7, 7])
    assert not np.any(rows.rows[2:])


def shapes_made(jaxpr: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(primitive, shape) of all that a program makes, inside calls and loops too."""
    for eqn in jaxpr.eqns:
        inner = inner_jaxprs(eqn)
        for each in inner:
            yield from shapes_made(each)
        if not inner:
            yield from ((eqn.primitive.name, var.aval.shape) for var in eqn.outvars)


@pytest.mark.parametrize("distinct", [False, True])
def test_no_array_of_the_tables_size_is_made(distinct: bool):
    """But the table itself, cut from θ. The gradient makes one; so the search finds what it looks for."""
    cost = cost_of(jbp.Embedding(V, W), jbp.Positions(6), jbp.LayerNorm(), jbp.Dense(2))
    theta, x, y = drawn(cost)

    def made(readout: Any) -> set[str]:
        jaxpr = jax.make_jaxpr(lambda *args: cost.measure(*args, readout))(theta, x, y)
        return {name for name, shape in shapes_made(jaxpr) if shape == (V, W)}

    assert made(jbp.RowGradients(distinct)) == {"reshape"}
    assert "broadcast_in_dim" in made(jbp.Gradient())


def test_a_step_by_rows_is_a_step(x64: None):
    cost = cost_of(jbp.Embedding(V, W), jbp.Tanh())
    theta, x, y = drawn(cost, ids=9)

    @jax.jit
    def step(theta):
        rows = cost.measure(theta, x, y, jbp.RowGradients())[1]["0.table"]
        table = cost.layout.unflatten(theta)[0].table
        return table.at[rows.indices].add(-0.1 * rows.rows, mode="drop").ravel()

    assert_close(step(theta), theta - 0.1 * jax.grad(cost)(theta, x, y))


class Looked(jbp.Embedding):
    """x `[N, T, W]` plus the rows of a table at 0, 1, 2, …: a table in a loop."""

    def forward(self, params, x, context):
        index = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32) // 2, x.shape[:2])
        return jnp.tanh(x) + params.table[index], (x, index)

    def init(self, key, x):
        return super().init(key, jax.ShapeDtypeStruct((), jnp.int32))

    def backward(self, params, feedback, saved, delta, read):
        x, index = saved
        return delta * (1 - jnp.tanh(x) ** 2), type(params)(read.table(jbp.Gather(index, delta)))


@pytest.mark.parametrize("distinct", [False, True])
def test_tables_of_a_loop_have_a_first_axis_of_blocks(distinct: bool, x64: None):
    cost = jbp.Cost(jbp.Network([Loop(Looked(4, W), 3)], (6, W)), jbp.losses.HalfSquaredError())
    theta, x, y = (
        draw(i, jax.ShapeDtypeStruct(s, jnp.float64)) for i, s in enumerate([(cost.layout.size,), (N, 6, W), (N, 6, W)])
    )
    readout = jbp.RowGradients(distinct)
    (rows,) = cost.measure(theta, x, y, readout)[1].values()
    assert rows.rows.shape == (3, N * 6, W)
    got = jax.vmap(lambda rows: dense(rows, (4, W)))(rows)
    assert_close(got.ravel(), jax.grad(cost)(theta, x, y))
    (again,) = cost.read(cost.pairs(theta, x, y), readout).values()
    assert_close(again, rows)


def test_a_table_that_is_a_kernel_too_has_its_whole_gradient(x64: None):
    """Every row of it is met: as an output."""
    net = jbp.Network([jbp.Embedding(V, W), jbp.Tanh()], WORDS)
    cost = jbp.Cost(net, LinearCrossEntropy(V), tied={"loss.w": "0.table.T"})
    theta, x, y = draw(0, jax.ShapeDtypeStruct((cost.layout.size,), jnp.float64)), *(jnp.arange(12).reshape(2, 6),) * 2
    (gradient,) = cost.measure(theta, x, y, jbp.RowGradients())[1].values()
    assert_close(gradient.ravel(), jax.grad(cost)(theta, x, y))


def test_a_frozen_table_has_none(x64: None):
    cost = cost_of(jbp.Frozen(jbp.Embedding(V, W)), jbp.Dense(2), Loop(jbp.Frozen(jbp.Dense(2)), 2))
    theta, x, y = drawn(cost)
    got = cost.measure(theta, x, y, jbp.RowGradients())[1]
    assert {name for name, g in got.items() if g is None} == {"0.fixed.table", "2.layer.fixed.w", "2.layer.fixed.b"}
    assert got["1.w"].shape == (W, 2)
    pairs = cost.pairs(theta, x, y)
    assert pairs["2.layer.fixed.w"].squared_norms().shape == (N,)
    assert_close(cost.read(pairs, jbp.RowGradients())["1.w"], got["1.w"])


# -- wrong calls ------------------------------------------------------------------------------------------------------


def network(*layers, input=WORDS):
    return jbp.Network(layers, input)


WRONG_CALLS: list[tuple[Callable, str]] = [
    (lambda: jbp.Embedding(0, 3), "Embedding: vocabulary must be a whole number of at least 1, got 0."),
    (lambda: jbp.Embedding(3, 2.5), "Embedding: width must be a whole number of at least 1, got 2.5."),
    (lambda: network(jbp.Embedding(5, 2), input=(3,)),
     "layer 0: Embedding(5, 2): expected whole numbers x [N, ...], got float32[N, 3]. Cast them to int32; as a "
     "network's input write jax.ShapeDtypeStruct((T,), jnp.int32)."),
    (lambda: network(jbp.Embedding(5, 2), input=(WORDS, WORDS)),
     "layer 0: Embedding(5, 2): expected one array x [N, ...] of whole numbers, got (int32[6], int32[6]). "
     "Give each array a layer of its own: Parallel."),
    (lambda: network(jbp.Embedding(5, 2, weights=jnp.zeros)),
     f"layer 0: weights: the initialiser {jnp.zeros!r} fails for shape [5, 2]: […]"),
    (lambda: jbp.Positions(True), "Positions: length must be a whole number of at least 1, got True."),
    (lambda: network(jbp.Embedding(5, 2), jbp.Positions(4)),
     "layer 1: Positions(4): expected x [N, T ≤ 4, W], got float32[N, 6, 2]. Cut the sequences, or give "
     "Positions the longest length."),
    (lambda: network(jbp.Positions(4)),
     "layer 0: Positions(4): expected one float input x [N, T, W], got int32[N, 6]. Give the input an axis of "
     "positions and one of features."),
    (lambda: network(jbp.Positions(4), input=(2, 3, 4)),
     "layer 0: Positions(4): expected x [N, T, W], got float32[N, 2, 3, 4]. Join its axes of positions."),
    (lambda: network(jbp.SinusoidalPositions(), input=(3,)),
     "layer 0: SinusoidalPositions: expected one float input x [N, T, W], got float32[N, 3]. Give the input an axis of "
     "positions and one of features."),
]  # fmt: skip


@pytest.mark.usefixtures("as_for_a_user")
@over_calls(WRONG_CALLS)
def test_a_wrong_call_is_told_what_to_do(call: Callable, message: str):
    assert_told(call, message)
