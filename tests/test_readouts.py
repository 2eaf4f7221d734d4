"""Readouts where a table of single ones does not reach: in loops, with ties, on a mesh, together, and given wrongly."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import N, assert_close, assert_told, damped, draw, halves, noise, over_calls
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jbp

T, W = 3, 4
CROSS = jbp.losses.SoftmaxCrossEntropy()


def decoder(n: int = 2, **settings: Any) -> jbp.Cost:
    """Tokens, blocks in a loop, a frozen layer, and a table that is looked up and is the loss's kernel."""
    block = jbp.Residual(jbp.Sequential([jbp.LayerNorm(), jbp.Attention(2, causal=True), jbp.Dense(W)]))
    layers = [jbp.Embedding(5, W), jbp.Repeat(jbp.Checkpoint(block), n), jbp.Frozen(jbp.Dense(W)), jbp.Tanh()]
    net = jbp.Network(layers, jax.ShapeDtypeStruct((T,), jnp.int32), **settings)
    return jbp.Cost(net, jbp.losses.LinearCrossEntropy(5, 2), tied={"loss.w": "0.table.T"})


def batch_of(cost: jbp.Cost, n: int = N, seed: int = 0) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(seed)
    theta = draw(7, jax.ShapeDtypeStruct((cost.layout.size,), cost.network.dtype))
    return theta, *(jnp.asarray(random.integers(0, 5, (n, T)), jnp.int32) for _ in range(2))


def each_gradient(cost: jbp.Cost, theta: Any, x: Any, y: Any) -> np.ndarray:
    """g_n by autodiff, one example after another."""
    total = jbp.Cost(cost.network, cost.loss, "sum", cost.tied)
    one = lambda x, y: jax.grad(total)(theta, *jax.tree.map(lambda a: a[None], (x, y)))
    return np.asarray(jax.jit(jax.vmap(one))(x, y))


def signal(g: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(g.mean(0) == 0, 0, np.abs(g.mean(0)) / g.std(0))


def by_leaf(cost: jbp.Cost, g: np.ndarray) -> dict[str, np.ndarray]:
    ends = cost.layout.offsets
    parts = zip(cost.layout.names, cost.layout.shapes, ends, ends[1:], strict=False)
    return {name: g[:, i:j].reshape(len(g), *shape) for name, shape, i, j in parts}


def clipped(parts: dict[str, np.ndarray], groups: list[list[str]], most: float) -> np.ndarray:
    sums = {}
    for names in groups:
        norms = np.sqrt(sum((parts[name].reshape(N, -1) ** 2).sum(1) for name in names))
        sums |= {name: np.tensordot(np.minimum(1, most / np.maximum(norms, 1e-300)), parts[name], 1) for name in names}
    return np.concatenate([sums[name].ravel() for name in parts])


GROUPS = {"tables": "*table", "frozen": ["*fixed*"], "blocks": ["1.*"]}


def test_all_at_once_in_a_decoder(x64: None):
    """One pass, values in order: a loop of checkpoints, shared positions, a tie of two forms, frozen ones, padding."""
    cost = decoder()
    theta, x, y = batch_of(cost)
    other = batch_of(cost, 3, 1)[1:]
    weights = np.array([*np.ones(N - 1), 0.0])
    g, g_other = each_gradient(cost, theta, x, y), each_gradient(cost, theta, *other)
    parts, real = by_leaf(cost, g), by_leaf(cost, g * weights[:, None])
    names = list(parts)
    groups = [["0.table"], [n for n in names if "fixed" in n], [n for n in names if n.startswith("1.")]]
    pairs = cost.pairs(theta, *other)
    project = jbp.Projected.random(jax.random.key(0), jax.eval_shape(cost.pairs, theta, x, y), 2)
    readouts = {
        jbp.SumOfSquares(): (g[:-1] ** 2).sum(0),
        jbp.MeanGradient(): g[:-1].mean(0),
        jbp.Variance(): g[:-1].var(0),
        jbp.NoiseScale(): noise(g, weights),
        jbp.Gram(): g @ g.T,
        jbp.ClippedSum(0.3): clipped(real, [names], 0.3),
        jbp.ClippedSum(0.1, per="leaf"): clipped(real, [[name] for name in names], 0.1),
        jbp.ClippedSum(0.2, per=GROUPS): clipped(real, groups, 0.2),
        jbp.ClippedSum(weights=damped): damped(np.linalg.norm(g[:-1], axis=1)) @ g[:-1],
        jbp.MapGradients(halves, 3): np.stack([halves(one) for one in g]),
    }
    arrays = {
        "gram": (jbp.Gram(pairs), g @ g_other.T),
        "moving norm": (jbp.ClippedSum(jnp.float64(0.3)), clipped(real, [names], 0.3)),
        "projected": (project, {n: projected_by_definition(parts[n], n, project) for n in project.B}),
    }
    asked = (*readouts, *(readout for readout, _ in arrays.values()))
    due = (*readouts.values(), *(expected for _, expected in arrays.values()))
    _, results = cost.measure(theta, x, y, *asked, weights=weights)
    for got, expected in zip(results[:-1], due[:-1], strict=True):
        assert_close(got, expected)
    assert jax.tree.map(jnp.shape, results[-1]) == jax.tree.map(np.shape, due[-1])
    assert_close(*(np.concatenate([each[name].ravel() for name in project.B]) for each in (results[-1], due[-1])))
    sensitivity = [jbp.ClippedSum(0.3, per=per).sensitivity(cost.layout) for per in ("example", "leaf", GROUPS)]
    assert_close(np.stack(sensitivity), np.array([0.3, 0.3 * len(names) ** 0.5, 0.3 * 3**0.5]))


def projected_by_definition(g: np.ndarray, name: str, project: jbp.Projected) -> np.ndarray:
    g = g @ project.B[name]
    return np.einsum("n...io,ir->n...ro", g, project.A[name]) if name in project.A else g


def test_a_projection_leaves_out_what_is_held_fixed_in_a_loop(x64: None):
    cost = jbp.Cost(jbp.Network([jbp.Repeat(jbp.LowRank(jbp.Dense(3), 1), 2)], (3,)), jbp.losses.HalfSquaredError())
    specs = [(cost.layout.size,), (N, 3), (N, 3)]
    theta, x, y = (draw(i, jax.ShapeDtypeStruct(s, jnp.float64)) for i, s in enumerate(specs))
    project = jbp.Projected.random(jax.random.key(0), cost.pairs(theta, x, y), 2)
    _, found = cost.measure(theta, x, y, project)
    assert {name: g.shape for name, g in found.items()} == {"0.layer.down": (N, 2, 2, 2), "0.layer.up": (N, 2, 2, 2)}
    parts = by_leaf(cost, each_gradient(cost, theta, x, y))
    assert_close(found, {name: projected_by_definition(parts[name], name, project) for name in found})


def test_signal_to_noise(x64: None):
    cost = jbp.Cost(jbp.Network([jbp.Frozen(jbp.Dense(3)), jbp.Tanh(), jbp.Dense(2)], (4,)), jbp.losses.SquaredError())
    theta, x, y = (draw(i, jax.ShapeDtypeStruct(s, jnp.float64)) for i, s in enumerate([(23,), (N, 4), (N, 2)]))
    _, ratio = cost.measure(theta, x, y, jbp.SignalToNoise())
    assert_close(ratio, signal(each_gradient(cost, theta, x, y)))
    assert not np.any(ratio[:15])
    _, ratio = cost.measure(theta, x[:1], y[:1], jbp.SignalToNoise())
    assert np.all(ratio[15:] > 1e6)


def test_a_projection_keeps_squared_norms_on_average(x64: None):
    cost = jbp.Cost(jbp.Network([jbp.Dense(5)], (4,)), jbp.losses.SquaredError())
    theta, x, y = (draw(i, jax.ShapeDtypeStruct(s, jnp.float64)) for i, s in enumerate([(25,), (N, 4), (N, 5)]))
    pairs = cost.pairs(theta, x, y)

    @jax.vmap
    def norms(key):
        return cost.read(pairs, jbp.Projected.random(key, pairs, 3))

    found = norms(jax.random.split(jax.random.key(0), 4000))
    for name, g in by_leaf(cost, each_gradient(cost, theta, x, y)).items():
        each = (found[name].reshape(4000, N, -1) ** 2).sum(2)
        off = np.abs(each.mean(0) - (g.reshape(N, -1) ** 2).sum(1))
        assert np.all(off < 5 * each.std(0) / 4000**0.5)  # five standard errors


def test_a_clipped_sum_where_norms_are_0_small_and_large(x64: None):
    cost = jbp.Cost(jbp.Network([jbp.Dense(1, bias=False)], (1,)), jbp.losses.HalfSquaredError())
    x, y = jnp.array([[0.0], [1.0], [3.0]]), jnp.array([[1.0], [-1e-3], [-2.0]])  # g = 0, 1e-3 and 6
    clip = lambda y, most: cost.measure(jnp.zeros(1), x, y, jbp.ClippedSum(most))[1][0]
    assert_close(clip(y, 2.0), 2.001)
    assert_close(jax.grad(clip, 1)(y, 2.0), 1.0)  # of the last alone
    assert np.isnan(clip(y.at[1].set(np.nan), 2.0))
    assert not np.isnan(jax.jvp(lambda y: clip(y, 2.0), (y,), (y,))[1])


def test_a_clip_at_an_examples_own_norm_takes_it_whole(x64: None):
    """Whichever way the last bit of the norm falls, and however often the program computes it."""
    cost = jbp.Cost(jbp.mlp(2, 3, 2, activation=jbp.Tanh(), last=jbp.Identity()), jbp.losses.HalfSquaredError())
    for seed in range(3, 6):
        random = np.random.default_rng(seed)
        theta, x, y = (jnp.asarray(random.standard_normal(s)) for s in [(17,), (5, 2), (5, 2)])
        g = each_gradient(cost, theta, x, y)
        norms = np.linalg.norm(g, axis=1)
        for most in np.outer(norms, 1 + np.arange(-2, 3) * np.finfo(float).eps).ravel():
            _, total = cost.measure(theta, x, y, jbp.ClippedSum(jnp.asarray(most)))
            assert_close(total, np.minimum(1, most / norms) @ g)


@pytest.mark.parametrize("most", [0.0, -1.0, np.nan, np.inf])
def test_a_clip_that_moves_out_of_range_is_nan(most: float):
    """Under jit nothing can raise, and a sum that is not clipped must not pass for one."""
    cost = jbp.Cost(jbp.Network([jbp.Dense(1, bias=False)], (1,)), jbp.losses.HalfSquaredError())
    x, y = jnp.ones((2, 1)), jnp.array([[0.5], [3.0]])
    total = jax.jit(lambda most: cost.measure(jnp.zeros(1), x, y, jbp.ClippedSum(most))[1])(most)
    assert np.all(np.isnan(total))
    loss = lambda w, example: (w - example) ** 2
    assert np.isnan(jax.jit(lambda most: jbp.clipped_grad(loss, jnp.zeros(()), y[:, 0], most))(most))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_examples_cut_over_a_mesh_give_the_same(kind: AxisType, x64: None):
    cost = jbp.Cost(jbp.mlp(4, 3, 2, activation=jbp.Tanh()), jbp.losses.HalfSquaredError())
    theta, x, y = (draw(i, jax.ShapeDtypeStruct(s, jnp.float64)) for i, s in enumerate([(23,), (8, 4), (8, 2)]))
    pairs = cost.pairs(theta, x, y)
    project = jbp.Projected.random(jax.random.key(0), pairs, 2)
    readouts = (
        jbp.SumOfSquares(), jbp.MeanGradient(), jbp.Variance(), jbp.NoiseScale(), jbp.ClippedSum(0.3), project,
        jbp.Gram(), jbp.Gram(pairs), jbp.MapGradients(halves),
    )  # fmt: skip
    due = cost.measure(theta, x, y, *readouts)
    with jax.set_mesh(mesh := jax.make_mesh((8,), ("d",), axis_types=(kind,))):
        put = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))
        here = jax.tree.map(lambda a: put(a, P()) if isinstance(a, jax.Array) else a, readouts)
        got = cost.measure(put(theta, P()), put(x, P("d")), put(y, P("d")), *here)
        assert_close(jax.tree.map(np.asarray, got), due)


@pytest.mark.parametrize("compute", [jnp.float32, jnp.bfloat16], ids=lambda dtype: dtype.__name__)
def test_in_low_precision_results_are_float32(compute: Any):
    cost = decoder(compute_dtype=compute)
    theta, x, y = batch_of(cost)
    readouts = (jbp.Variance(), jbp.NoiseScale(), jbp.Gram(), jbp.ClippedSum(0.3), jbp.MapGradients(halves))
    _, results = cost.measure(theta, x, y, *readouts)
    assert {a.dtype for a in jax.tree.leaves(results)} == {np.dtype("float32")}
    each = np.asarray(cost.measure(theta, x, y, jbp.PerExampleGradients())[1], np.float64)
    close = 8 * float(jnp.finfo(compute).eps)  # the pairs are compute's, and the answers about them float32's
    assert_close(results[3], (each * (0.3 / np.maximum(0.3, np.linalg.norm(each, axis=1)))[:, None]).sum(0), close)
    assert_close(results[2], each @ each.T, close)


def test_gradients_are_formed_within_a_budget(x64: None):
    cost = jbp.Cost(jbp.mlp(4, 3, 2, activation=jbp.Tanh()), jbp.losses.HalfSquaredError())
    theta, x, y = (draw(i, jax.ShapeDtypeStruct(s, jnp.float64)) for i, s in enumerate([(23,), (8, 4), (8, 2)]))
    read = lambda readout: jax.jit(lambda *args: cost.measure(*args, readout)[1])
    three = read(jbp.MapGradients(halves, memory=23 * 8 * 3 + 7))
    assert_close(three(theta, x, y), read(jbp.MapGradients(halves))(theta, x, y))
    text = three.lower(theta, x, y).as_text()
    assert "tensor<3x23xf64>" in text
    assert "tensor<8x23xf64>" not in text


def test_logs_of_a_clipped_sum(x64: None):
    if not hasattr(jax.custom_vjp, "defvjp_with_logs"):
        pytest.skip("this JAX has no defvjp_with_logs")
    net = jbp.Network([jbp.Dense(3), jbp.Tanh()], (4,))
    theta, x, delta = (draw(i, jax.ShapeDtypeStruct(s, jnp.float64)) for i, s in enumerate([(15,), (N, 4), (N, 3)]))
    f = jbp.as_function(net, logs={"clipped": jbp.ClippedSum(0.3), "noise": jbp.NoiseScale()})
    _, logs = jax.vjp(lambda theta: f(theta, x, log="net"), theta)[1].with_logs(delta)
    g = np.stack([jax.grad(lambda t, n=n: (net(t, x[n : n + 1])[0] * delta[n]).sum())(theta) for n in range(N)])
    assert_close(logs["net.clipped"], (g * (0.3 / np.maximum(0.3, np.linalg.norm(g, axis=1)))[:, None]).sum(0))
    assert_close(logs["net.noise"], noise(g, np.ones(N)))


# -- terms ------------------------------------------------------------------------------------------------------------

TWO = jbp.losses.Terms((CROSS, jbp.losses.HalfSquaredError()), weights=(2.0, 0.5))


@pytest.mark.parametrize(("shape", "due"), [((3,), 1), ((3, 2), 1), ((3, 5, 4, 2), 20)])
def test_terms_that_count_all_positions_agree(shape: tuple[int, ...], due: int):
    terms = jbp.losses.Terms((jbp.losses.Huber(), jbp.losses.HalfSquaredError()))
    np.testing.assert_array_equal(terms.counted(jax.ShapeDtypeStruct(shape, jnp.float32), ()), np.full(3, due))


@pytest.mark.parametrize("heads", [False, True])
def test_terms_of_a_cost_each_by_itself(heads: bool, x64: None):
    if heads:
        layers, loss = [jbp.Dense(4), jbp.Tanh(), jbp.Fork([jbp.Dense(3), jbp.Dense(2)])], TWO
        y = jnp.arange(N) % 3, draw(3, jax.ShapeDtypeStruct((N, 2), jnp.float64))
    else:
        halves_of = jbp.losses.Terms((jbp.losses.Huber(), jbp.losses.HalfSquaredError()), (2.0, 0.5))
        layers, loss = [jbp.Dense(2)], halves_of
        y = tuple(draw(i, jax.ShapeDtypeStruct((N, 2), jnp.float64)) for i in (3, 4))
    cost = jbp.Cost(jbp.Network(layers, (4,)), loss)
    theta, x = (draw(i, jax.ShapeDtypeStruct(s, jnp.float64)) for i, s in enumerate([(cost.layout.size,), (N, 4)]))
    weights = np.arange(1.0, N + 1)
    values, (gradients, norms) = jbp.by_term(cost, theta, x, y, jbp.Gradient(), jbp.SquaredNorms(), weights=weights)

    def term(theta, x, k):
        output = cost.network(theta, x)
        values = loss.losses[k].value(output[k] if heads else output, y[k])
        return values @ weights / weights.sum()

    assert_close(values, np.stack([term(theta, x, k) for k in range(2)]))
    assert_close(gradients, np.stack([jax.grad(term)(theta, x, k) for k in range(2)]))
    assert norms.shape == (2, N)
    assert_close(cost(theta, x, y, weights=weights), np.array([2.0, 0.5]) @ values)
    assert_close(cost.grad(theta, x, y, weights=weights), np.array([2.0, 0.5]) @ gradients)
    assert_close(cost.grad(theta, x, y), jax.grad(cost)(theta, x, y))
    cost.check(theta, x, y)


# -- wrong calls ------------------------------------------------------------------------------------------------------

SMALL = jbp.Cost(jbp.Network([jbp.Dense(2), jbp.Dense(1)], (2,)), jbp.losses.HalfSquaredError())
ARGS = jnp.ones(9), jnp.ones((3, 2)), jnp.ones((3, 1))
ask = lambda *readouts: SMALL.measure(*ARGS, *readouts)
POSITIVE = "ClippedSum: max_norm must be a positive number, got "
NAMES = "0.w, 0.b, 1.w, 1.b"


@over_calls([
    (lambda: ask(jbp.Gradient(), jbp.Gradient()), "Cost.measure: Gradient was given twice. Give each readout once."),
    (lambda: ask(jbp.Along(ARGS[0]), jbp.Along(ARGS[0])),
     "Cost.measure: Along was given twice. Give each readout once."),
    (lambda: ask(jbp.Along(jnp.ones(4))),
     "Along: expected a vector [P] = [9] like theta, got float32[4]. Make it with "
     "layout.flatten(tree)."),
    (lambda: jbp.ClippedSum(0.0), POSITIVE + "0.0."),
    (lambda: jbp.ClippedSum(-1), POSITIVE + "-1."),
    (lambda: jbp.ClippedSum(float("nan")), POSITIVE + "nan."),
    (lambda: jbp.ClippedSum(float("inf")), POSITIVE + "inf."),
    (lambda: jbp.ClippedSum("1"), POSITIVE + "'1'."),
    (lambda: ask(jbp.Along(jnp.ones(9, jnp.complex64))),
     "Along: expected a vector [P] = [9] like theta, got complex64[9]. […]"),
    (lambda: jbp.ClippedSum(1.0, per="layer"),
     "ClippedSum: per must be 'example', 'leaf' or {group: [patterns]}, got 'layer'."),
    (lambda: jbp.ClippedSum(weights=2.0), "ClippedSum: weights must be a function of the norms [N], got 2.0."),
    (lambda: ask(jbp.ClippedSum()), "ClippedSum: expected a max_norm or weights=f(norms), one of the two."),
    (lambda: ask(jbp.ClippedSum(jnp.ones(2))), "ClippedSum: max_norm must be one positive number, got float32[2]."),
    (lambda: ask(jbp.ClippedSum(1.0, per={"w": "*.w"})),
     "ClippedSum: leaf 0.b is in no group. Give patterns that hold each leaf once."),
    (lambda: ask(jbp.ClippedSum(1.0, per={"w": "*", "b": "*.b"})),
     "ClippedSum: leaf 0.b is in w and b. Give patterns that hold each leaf once."),
    (lambda: ask(jbp.ClippedSum(1.0, per={"all": "*", "c": "*.c"})), f"ClippedSum: group c holds none of {NAMES}."),
    (lambda: ask(jbp.ClippedSum(weights=jnp.sum)),
     "ClippedSum: weights must return a number for each of [3] norms, got float32[]."),
    (lambda: jbp.ClippedSum(weights=damped).sensitivity(SMALL.layout),
     "ClippedSum.sensitivity: weights=f bound nothing. Give a max_norm."),
    (lambda: SMALL.measure(ARGS[0], ARGS[1][:1], ARGS[2][:1], jbp.NoiseScale()),
     "layer 1: leaf w: NoiseScale: one example shows no noise. Give a batch of two or more."),
    (lambda: ask(jbp.Gram({"0.w": jbp.Sum(jnp.ones(3))})),
     f"Gram: other must hold a pair for each of {NAMES}, got […]"),
    (lambda: ask(jbp.Gram({name: jbp.Sum(jnp.ones((3, 2))) for name in NAMES.split(", ")})),
     "Gram: other's pair for leaf 0.w is of a leaf [], […]"),
    (lambda: ask(jbp.Projected({}, {"2.w": jnp.ones((1, 1))})),
     f"Projected: B must be {{leaf name: matrix}} of leaves {NAMES}, got 2.w."),
    (lambda: ask(jbp.Projected({"0.w": jnp.ones((2, 1))}, {})),
     "Projected: leaf 0.w has an A and no B. Give both, or B alone."),
    (lambda: ask(jbp.Projected({"0.w": jnp.ones((3, 1))}, {"0.w": jnp.ones((2, 1))})),
     "layer 0: leaf w: Projected: expected A [I, r] and B [O, s] of a leaf [I, O], or B alone, for a "
     "leaf [2, 2], got [3, 1] and [2, 1]. Projected.random makes them from the pairs."),
    (lambda: ask(jbp.Projected({"0.b": jnp.ones((3, 1))}, {"0.b": jnp.ones((2, 1))})),
     "layer 0: leaf b: Projected: expected A [I, r] and B [O, s] of a leaf [I, O], or B alone, for a "
     "leaf [2], got [3, 1] and [2, 1]. Projected.random makes them from the pairs."),
    (lambda: jbp.Projected.random(jax.random.key(0), {}, 0),
     "Projected.random: rank must be a whole number of columns, at least 1, got 0."),
    (lambda: jbp.MapGradients(3), "MapGradients: f must be a function of a gradient [P], got 3."),
    (lambda: jbp.MapGradients(halves, 0), "MapGradients: at_most must be a number of examples, at least 1, got 0."),
    (lambda: jbp.MapGradients(halves, memory="1 GB"),
     "MapGradients: memory must be a number of bytes, in place of at_most, got '1 GB'."),
    (lambda: jbp.MapGradients(halves, 2, 100),
     "MapGradients: memory must be a number of bytes, in place of at_most, got 100 and at_most=2."),
    (lambda: ask(jbp.MapGradients(halves, memory=8)),
     "MapGradients: one gradient takes […] bytes, and memory=8. Give it more, or read a quantity that forms no "
     "gradient, as SquaredNorms or ClippedSum."),
    (lambda: jbp.losses.Terms(()), "Terms: expected at least one loss, got none."),
    (lambda: jbp.losses.Terms((3,)), "Terms: expected losses with value and delta, got 3."),
    (lambda: jbp.losses.Terms((CROSS,), (1.0, 2.0)), "Terms: expected 1 weights, one a loss, got 2."),
    (lambda: jbp.Cost(SMALL.network, TWO)(*ARGS),
     "Terms: expected y as a tuple of 2, one for each loss, got float32[3, 1]."),
    (lambda: jbp.Cost(SMALL.network, TWO, "positions")(*ARGS[:2], (jnp.zeros(3, int), ARGS[2])),
     "Terms: reduction='positions' divides by how many positions count, which may be another number […]"),
    (lambda: jbp.by_term(SMALL, *ARGS, jbp.Gradient()),
     "by_term: expected a Cost of jbp.losses.Terms((loss, loss, …)), got HalfSquaredError()."),
    (lambda: jbp.by_term(jbp.Cost(SMALL.network, TWO), *ARGS[:2], (), jbp.DiagonalGGN()),
     "by_term: it reads at the δ of each term, and DiagonalGGN is of another seed. […]"),
])  # fmt: skip
def test_a_wrong_call_is_told_what_to_do(call: Any, message: str):
    assert_told(call, message)
