"""The pictures: their numbers are those of the gradient, and nothing of the network is missing in them.

Graphs are tested through their data: nodes, edges and boxes. The chain rule on a graph (the sum over paths of the
products of partial derivatives) must give the coordinate of `jax.grad` and of `cost.pairs`, elided or not.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from test_explain import Loop

import jbp
from jbp import draw, losses, record
from jbp.chain import chain_of
from jbp.draw.neurons import shown_rows
from jbp.layers.compose import Inner

# -- networks ---------------------------------------------------------------------------------------------------------


def drawn_at_random(cost: jbp.Cost, seed: int = 0) -> tuple[Any, Any, Any]:
    """θ with no zeros in it, x and y of one example."""
    rng = np.random.default_rng(seed)
    output = cost.network.output.shape
    x = rng.standard_normal(cost.network.input.shape)
    if isinstance(cost.loss, losses.SoftmaxCrossEntropy):
        return rng.standard_normal(cost.layout.size), x, np.int32(1)
    return rng.standard_normal(cost.layout.size), x, rng.standard_normal(output)


def sigmoid_half_squared(*widths: int) -> jbp.Cost:
    return jbp.Cost(jbp.mlp(*widths), losses.HalfSquaredError())


def tanh_cross_entropy() -> jbp.Cost:
    return jbp.Cost(jbp.mlp(3, 4, 3, activation=jbp.Tanh(), last=jbp.Identity()), losses.SoftmaxCrossEntropy())


def softmax_everywhere() -> jbp.Cost:
    """Softmax in the middle too: the steps between sums and activations are not element-wise."""
    layers = [jbp.Dense(3), jbp.Softmax(), jbp.Dense(4, bias=False), jbp.Softmax(), jbp.Tanh()]
    return jbp.Cost(jbp.Network(layers, input=(2,)), losses.HalfSquaredError())


def flat_squares(params: Any, x: Any) -> Any:
    return x.reshape(x.shape[0], -1) ** 2


def images() -> jbp.Cost:
    """A function before the first dense layer: a^1 is not x itself."""
    layers = [jbp.from_function(None, flat_squares), jbp.Dense(2), jbp.ReLU()]
    return jbp.Cost(jbp.Network(layers, input=(2, 2)), losses.Huber())


COSTS = {
    "sigmoid": lambda: sigmoid_half_squared(2, 3, 2),
    "deep": lambda: sigmoid_half_squared(2, 2, 3, 2, 2),
    "tanh": tanh_cross_entropy,
    "softmax": softmax_everywhere,
    "images": images,
}


def coordinates(cost: jbp.Cost, theta: Any, x: Any, y: Any) -> dict[str, tuple[float, float]]:
    """{symbol: (by jax.grad, by cost.pairs)}."""
    x, y = jnp.asarray(x)[None], jnp.asarray(y)[None]
    oracle = jax.grad(cost)(jnp.asarray(theta), x, y)
    leaves = [np.ravel(pair.gradient()) for pair in cost.pairs(jnp.asarray(theta), x, y).values()]
    both = zip(oracle.tolist(), np.concatenate(leaves).tolist(), strict=True)
    return {cost.layout.symbol(i): pair for i, pair in enumerate(both)}


# -- neurons: the numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COSTS)
def test_path_sums_are_the_gradient(name, x64):
    cost = COSTS[name]()
    theta, x, y = drawn_at_random(cost)
    graph = draw.computation(cost, theta, x, y, max_neurons=9)
    found = coordinates(cost, theta, x, y)
    assert {node.id for node in graph.nodes if node.kind in ("weight", "bias")} == set(found)
    for i, (symbol, expected) in enumerate(found.items()):
        total = sum(product for _, product in graph.paths(symbol))
        np.testing.assert_allclose([total, total], expected, rtol=1e-10, atol=1e-14)
        assert graph.derivative(symbol) == pytest.approx(total, rel=1e-12, abs=1e-15)
        assert graph.node(symbol).derivative == pytest.approx(total, rel=1e-12, abs=1e-15)
        assert graph.node(symbol).value == theta[i]


@pytest.mark.parametrize("name", COSTS)
def test_single_and_elided_graphs_keep_the_gradient(name, x64):
    cost, most = COSTS[name](), 1
    theta, x, y = drawn_at_random(cost)
    for symbol, (expected, _) in coordinates(cost, theta, x, y).items():
        for graph in (
            draw.single(cost, symbol, theta, x, y, max_neurons=most),
            draw.computation(cost, theta, x, y, highlight=symbol, max_neurons=most),
        ):
            assert sum(product for _, product in graph.paths(symbol)) == pytest.approx(expected, rel=1e-10, abs=1e-14)
            assert graph.derivative(symbol) == pytest.approx(expected, rel=1e-10, abs=1e-14)


def test_the_other_terms_are_summed_and_a_zero_has_no_sign():
    cost = sigmoid_half_squared(1, 1, 1, 1)
    theta = np.float32([0.3, 0, 0.7, 0, -0.4, 0])
    graph = draw.single(cost, "w^2_{0←0}", theta, np.float32([0.1]), np.float32([0.2]))
    assert graph.node("rest").value == 0
    assert draw.graph.number_text(-0.0) == "0"
    cost = sigmoid_half_squared(2, 3, 2)
    theta, x, y = drawn_at_random(cost)
    for symbol, rest in {"w^2_{1←0}": theta[4] * x[1] + theta[7], "b^2_1": theta[1] * x[0] + theta[4] * x[1]}.items():
        alone = draw.single(cost, symbol, *(np.float32(v) for v in (theta, x, y)))
        assert alone.node("rest").value == pytest.approx(rest, rel=1e-5)


def test_values_are_those_of_the_text(x64):
    cost = sigmoid_half_squared(2, 3, 2)
    theta, x, y = drawn_at_random(cost)
    w2, b2, w3, b3 = theta[:6].reshape(2, 3), theta[6:9], theta[9:15].reshape(3, 2), theta[15:]
    a2 = 1 / (1 + np.exp(-(x @ w2 + b2)))
    a3 = 1 / (1 + np.exp(-(a2 @ w3 + b3)))
    delta3 = (a3 - y) * a3 * (1 - a3)  # ∂C/∂z
    graph = draw.computation(cost, theta, x[None], y[None])
    expected = {"C": 0.5 * np.sum((y - a3) ** 2)}
    for letter, values in (("x", x), ("a^2", a2), ("a^3", a3), ("y", y)):
        expected |= {f"{letter}_{j}": value for j, value in enumerate(values)}
    for id, value in expected.items():
        assert graph.node(id).value == pytest.approx(value, rel=1e-12)
    assert graph.edge("w^3_{1<-2}", "a^3_1").partial == pytest.approx(a3[1] * (1 - a3[1]) * a2[2], rel=1e-12)
    assert graph.edge("a^2_2", "a^3_1").partial == pytest.approx(a3[1] * (1 - a3[1]) * w3[2, 1], rel=1e-12)
    assert graph.edge("a^3_0", "C").partial == pytest.approx(a3[0] - y[0], rel=1e-12)
    assert graph.node("a^2_2").derivative == pytest.approx(w3[2] @ delta3, rel=1e-12)
    assert {node.id for node in graph.nodes if node.fixed} == {"x_0", "x_1", "y_0", "y_1"}
    with pytest.raises(jbp.InputError, match="no edge"):
        graph.edge("x_0", "C")


def test_softmax_has_sums_as_nodes_and_sigmoid_has_not(x64):
    cost = softmax_everywhere()
    graph = draw.computation(cost, *drawn_at_random(cost), max_neurons=9)
    assert [n.id for n in graph.nodes if n.kind == "sum"] == [
        f"z^{l}_{j}" for l, n in ((2, 3), (3, 4)) for j in range(n)
    ]
    assert graph.edge("z^2_0", "a^2_2").partial != 0
    assert not [n for n in draw.computation(tanh_cross_entropy()).nodes if n.kind == "sum"]


def test_highlighted_is_what_depends_on_the_weight():
    net = jbp.mlp(2, 3, 2)
    graph = draw.computation(net, highlight="w^2_{1<-0}")
    assert {n.id for n in graph.nodes if n.highlighted} == {"w^2_{1←0}", "a^2_1", "a^3_0", "a^3_1", "C"}
    expected = {("w^2_{1←0}", "a^2_1"), ("a^2_1", "a^3_0"), ("a^2_1", "a^3_1"), ("a^3_0", "C"), ("a^3_1", "C")}
    assert {(e.source, e.target) for e in graph.edges if e.highlighted} == expected
    alone = draw.single(net, "w^2_{1←0}")
    assert {n.id for n in alone.nodes} == {n.id for n in graph.nodes if n.highlighted} | {"x_0", "rest", "y_0", "y_1"}


def test_where_outputs_mix_the_other_ones_go_into_c_too(x64):
    cost = tanh_cross_entropy()
    theta, x, y = drawn_at_random(cost)
    graph, whole = draw.single(cost, "w^3_{1←2}", theta, x, y), draw.computation(cost, theta, x, y)
    others = [whole.edge(f"a^3_{j}", "C").partial for j in (0, 2)]
    np.testing.assert_array_equal(graph.edge("other outputs", "C").partial, [others])
    assert graph.node("other outputs").count == 2
    assert not [n.id for n in draw.single(cost, "w^2_{1←2}", theta, x, y).nodes if n.id == "other outputs"]


def test_g_and_the_loss_have_their_names():
    chain = draw.computation(jbp.Cost(jbp.mlp(2, 3, 2, last=jbp.Softmax()), losses.HalfSquaredError()))
    captions = [box.label for box in chain.boxes]
    assert {"layer 2\nSigmoid", "layer 3, sums", "layer 3\nSoftmax", "cost\nHalfSquaredError"} <= set(captions)
    cost = jbp.Cost(jbp.Network([block(), jbp.Dense(3)], input=(4,)), losses.HalfSquaredError())
    layers = draw.computation(cost, *(np.float32(v) for v in drawn_at_random(cost)))
    assert layers.node("C").label == "$C$\nHalfSquaredError"
    assert layers.node("y").label == "$y$\n[3]"
    assert layers.node("y").value.shape == (3,)


def test_the_usual_graph_has_the_weights_on_its_edges():
    net = jbp.mlp(2, 3, 2)
    theta = np.arange(17, dtype=np.float32)
    graph = draw.network(net, theta)
    assert len(graph.nodes) == 7
    assert len(graph.edges) == 12
    matrix = net.layout.matrix(theta, 3)
    assert graph.edge("a^2_2", "a^3_1").weight == matrix[1, 2]
    assert graph.node("a^3_1").value == theta[16]
    assert all(edge.weight is None for edge in draw.network(net).edges)


# -- neurons: wide columns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "most", "keep"), [(64, 10, ()), (64, 3, (17,)), (5, 4, ()), (6, 1, (2,)), (3, 1, ())]
)
def test_rows_cover_a_column_once(width, most, keep):
    found = shown_rows(width, most, keep)
    assert [j for row in found for j in row] == list(range(width))
    alone = [row[0] for row in found if len(row) == 1]
    assert set(keep) <= set(alone)
    assert width - 1 in alone or most == len(keep)


def test_elision_states_its_counts():
    graph = draw.network(jbp.mlp(64, 30, 10))
    groups = {node.id: node for node in graph.nodes if node.count > 1}
    assert {id: node.count for id, node in groups.items()} == {"x_{9…62}": 54, "a^2_{9…28}": 20}
    assert "54 more" in groups["x_{9…62}"].label
    assert sum(node.count for node in graph.nodes) == 64 + 30 + 10
    assert [box.label.split("\n")[1] for box in graph.boxes] == ["64 neurons", "30 neurons", "10 neurons"]
    surgery = draw.computation(jbp.mlp(64, 30, 10))
    parameters = sum(node.count for node in surgery.nodes if node.kind in ("weight", "bias", "rest"))
    assert parameters == 64 * 30 + 30 + 30 * 10 + 10
    assert len(draw.computation(jbp.mlp(2000, 1000, 1000, 10)).nodes) < 80


def softmax_inside() -> jbp.Cost:
    layers = [layer for act in (jbp.Tanh(), jbp.Softmax(), jbp.Tanh(), jbp.Softmax()) for layer in (jbp.Dense(3), act)]
    return jbp.Cost(jbp.Network([*layers, jbp.Dense(2)], input=(2,)), losses.HalfSquaredError())


@pytest.mark.parametrize("make", [lambda: sigmoid_half_squared(*[2] * 7), softmax_inside])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_folded_layers_keep_the_gradient(make, most, x64):
    cost = make()
    theta, x, y = drawn_at_random(cost)
    for i, (symbol, (expected, _)) in enumerate(coordinates(cost, theta, x, y).items()):
        if i % 4:
            continue
        for graph in (
            draw.single(cost, symbol, theta, x, y, max_neurons=1, max_layers=most),
            draw.computation(cost, theta, x, y, highlight=symbol, max_layers=most),
        ):
            assert graph.derivative(symbol) == pytest.approx(expected, rel=1e-10, abs=1e-14)
            assert graph.node(symbol).derivative == pytest.approx(expected, rel=1e-10, abs=1e-14)
    counted = [n.count for n in graph.nodes if n.kind in ("weight", "bias", "rest")]
    assert sum(counted) == cost.layout.size


def test_deep_networks_are_folded_unless_asked():
    net = jbp.mlp(*[20] * 30)
    assert len(draw.computation(net).nodes) < 120
    usual = draw.network(net)
    assert sum(node.count for node in usual.nodes) == 600
    assert [box.label for box in usual.boxes][-2:] == ["layers 10 … 29\n400 neurons", "layer 30, output\n20 neurons"]
    assert usual.title == "The network 20-20-20-20-…-20"
    assert len(draw.computation(net, max_layers=29).nodes) > 400


# -- layers -----------------------------------------------------------------------------------------------------------


def block(activation: Any = None) -> jbp.Residual:
    return jbp.Residual(jbp.Sequential([jbp.Dense(4), activation or jbp.Tanh()]))


def dense_by_hand() -> Any:
    def init(key, x):
        return {"gain": jnp.ones(x.shape, x.dtype)}

    def scale(params, x):
        return x * params["gain"][None]

    return jbp.from_function(init, scale)


@dataclass(frozen=True)
class Looped:
    """A local container: a scan over two copies of a layer's params. Only its forward matters here."""

    layer: Any

    def init(self, key, x):
        return jax.tree.map(lambda a: jnp.stack([a, a]), self.layer.init(key, x))

    def forward(self, params, x, context):
        step = lambda x, p: (self.layer.forward(p, x, context)[0], None)
        return jax.lax.scan(step, x, params)[0], ()

    def backward(self, params, feedback, saved, delta, read): ...


@dataclass(frozen=True)
class Gated:
    """A local container with a parameter of its own: gate · f(x) + g(x), under `jax.checkpoint`."""

    f: Any
    g: Any

    def init(self, key, x):
        return {"f": self.f.init(key, x), "g": self.g.init(key, x), "gate": jnp.ones((), x.dtype)}

    def forward(self, params, x, context):
        def both(params, x):
            f, g = self.f.forward(params["f"], x, context)[0], self.g.forward(params["g"], x, context)[0]
            return params["gate"] * f + g

        return jax.checkpoint(both)(params, x), ()

    def backward(self, params, feedback, saved, delta, read): ...


def test_residual_networks_are_drawn_as_boxes():
    net = jbp.Network([jbp.Dense(4), block(), dense_by_hand(), jbp.Dense(3)], input=(5,))
    graph = draw.network(net)
    labels = {node.id: node.label for node in graph.nodes}
    assert labels["0"] == "Dense(4)\n[5] → [4]\n24 parameters"
    assert labels["2"] == "Function(init_params=init, apply=scale)\n[4] → [4]\n4 parameters"
    assert {box.id: (box.label, box.parent) for box in graph.boxes} == {
        "1": ("Residual", None),
        "1.layer": ("Sequential", "1"),
    }
    assert {(e.source, e.target) for e in graph.edges} == {
        ("x", "0"), ("0", "1.x"), ("1.x", "1.layer.0"), ("1.layer.0", "1.layer.1"), ("1.layer.1", "1.+"),
        ("1.x", "1.+"), ("1.+", "2"), ("2", "3"),
    }  # fmt: skip
    assert graph.node("1.+").box == "1"
    assert graph.node("1.layer.0").box == "1.layer"


def test_flow_is_found_in_containers_of_others():
    net = jbp.Network([Gated(jbp.Dense(4), Looped(jbp.Dense(4))), jbp.Dense(2)], input=(4,))
    graph = draw.computation(net)
    assert ("0.f", "0.+") in {(e.source, e.target) for e in graph.edges}
    assert [(box.label, box.times) for box in graph.boxes if box.times > 1] == [("× 2", 2)]
    loop = next(box for box in graph.boxes if box.times == 2)
    assert graph.node("0.g.layer").box == loop.id
    assert sum(n.count for n in graph.nodes if n.kind == "parameters") == net.layout.size
    assert graph.node("0.+: gate").count == 1


def test_a_container_that_takes_only_its_own_is_one_layer():
    @dataclass(frozen=True)
    class Choosy(jbp.Residual):
        def __post_init__(self):
            if not isinstance(self.layer, jbp.Dense):
                raise jbp.InputError("Choosy: a Dense layer only.")

    graph = draw.network(jbp.Network([Choosy(jbp.Dense(4))], input=(4,)))
    assert [node.label for node in graph.nodes][1:] == ["Choosy\n[4] → [4]\n20 parameters\n1 layer inside"]


def test_equal_blocks_are_drawn_once_and_counted():
    net = jbp.Network([jbp.Dense(4), *[block() for _ in range(10)], block(jbp.ReLU())], input=(5,))
    graph = draw.computation(net)
    assert [(box.id, box.label) for box in graph.boxes if box.parent is None] == [
        ("1", "Residual  × 10"),
        ("11", "Residual"),
    ]
    assert sum(n.count for n in graph.nodes if n.kind == "parameters") == net.layout.size
    single = draw.single(net, "7.layer.0.w[1,2]")  # its block must be seen
    assert single.node("7.layer.0").highlighted
    assert [box.label for box in single.boxes if box.parent is None] == [
        "Residual  × 6", "Residual", "Residual  × 3", "Residual"
    ]  # fmt: skip
    assert not single.node("1.layer.0").highlighted
    assert single.node("8.layer.0").highlighted
    for outside in (draw.single(net, "0.w[0,0]"), draw.computation(net, highlight="0.w[0,0]")):
        assert [box.label for box in outside.boxes if box.parent is None] == ["Residual  × 10", "Residual"]


def test_layers_by_name_have_their_names():
    """Those that somebody gave; not `layer`, as containers call what they hold, and no initialisers."""
    block = jbp.Residual(
        jbp.Sequential({"norm": jbp.LayerNorm(), "down": jbp.Dense(3, weights=jax.nn.initializers.ones)})
    )
    graph = draw.network(jbp.Network({"blocks": jbp.Repeat(block, 2), "head": jbp.Sequential([jbp.Dense(2)])}, (3,)))
    assert [node.label.partition("\n")[0] for node in graph.nodes if node.kind == "layer"] == [
        "norm: LayerNorm", "down: Dense(3)", "Dense(2)"
    ]  # fmt: skip
    assert [box.label for box in graph.boxes] == [
        "blocks: Repeat(2)",
        "× 2",
        "Residual",
        "Sequential",
        "head: Sequential",
    ]


def test_deep_nesting_is_cut_and_counted():
    layer: Any = jbp.Dense(4)
    for _ in range(12):
        layer = jbp.Residual(jbp.Sequential([jbp.Dense(4), layer]))
    graph = draw.network(jbp.Network([layer], input=(4,)), depth=4)
    inside = [node.label for node in graph.nodes if "layers inside" in node.label]
    assert inside == ["Residual\n[4] → [4]\n220 parameters\n30 layers inside"]
    assert len(graph.boxes) == 4


def test_numbers_of_layers_are_those_of_the_gradient(x64):
    net = jbp.Network([jbp.Dense(4), block(), dense_by_hand(), jbp.Dense(3)], input=(5,))
    cost = jbp.Cost(net, losses.SoftmaxCrossEntropy())
    theta, x, y = drawn_at_random(cost)
    gradient = np.asarray(jax.grad(cost)(jnp.asarray(theta), x[None], y[None]))
    graph = draw.computation(cost, theta, x, y)
    nodes = [node for node in graph.nodes if node.kind == "parameters"]
    np.testing.assert_allclose(np.concatenate([n.derivative for n in nodes]), gradient, rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(np.concatenate([n.value for n in nodes]), theta)
    assert graph.node("C").value == pytest.approx(float(cost(theta, x[None], y[None])))
    symbol = "1.layer.0.w[1,2]"
    alone = draw.single(cost, symbol, theta, x, y)
    i = net.layout.index(symbol)
    assert (alone.node(symbol).value, alone.node(symbol).derivative) == pytest.approx((theta[i], gradient[i]))
    assert {n.id for n in alone.nodes if n.highlighted} == {
        symbol, "1.layer.0", "1.layer.1", "1.+", "2", "3", "C"
    }  # fmt: skip
    np.testing.assert_array_equal(draw.network(net, theta).node("0").value, theta[:24])


def by_hand(params, x, y, added):
    """C of the network of the next test, in plain JAX, with something added to each output and along each edge."""
    first, inner, gain, last = params[0], params[1].layer[0], params[2]["gain"], params[3]
    z = x @ first.w + first.b + added["0"]
    h = (z + added["through"]) @ inner.w + inner.b + added["1.layer.0"]
    a = jnp.tanh(h) + added["1.layer.1"]
    s = z + added["skip"] + a + added["1.+"]
    output = (s * gain + added["2"]) @ last.w + last.b + added["3"]
    values = {"0": z, "1.x": z, "1.layer.0": h, "1.layer.1": a, "1.+": s, "2": s * gain, "3": output}
    return jax.nn.logsumexp(output) - output[y], values


def test_every_layer_has_its_output_and_its_delta(x64):
    net = jbp.Network([jbp.Dense(4), block(), dense_by_hand(), jbp.Dense(3)], input=(5,))
    cost = jbp.Cost(net, losses.SoftmaxCrossEntropy())
    theta, x, y = drawn_at_random(cost)
    graph = draw.computation(cost, theta, x, y)
    sizes = {"0": 4, "through": 4, "1.layer.0": 4, "1.layer.1": 4, "skip": 4, "1.+": 4, "2": 4, "3": 3}
    nothing = {name: jnp.zeros(n) for name, n in sizes.items()}
    params = net.layout.unflatten(jnp.asarray(theta))
    deltas, values = jax.grad(lambda added: by_hand(params, x, y, added), has_aux=True)(nothing)
    deltas["1.x"] = deltas["0"]  # all that z does, it does through the block
    for id, value in values.items():
        np.testing.assert_allclose(graph.node(id).value, value, rtol=1e-12)
        np.testing.assert_allclose(graph.node(id).derivative, deltas[id], rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(graph.node("x").value, x)
    along = {
        ("1.x", "1.+"): "skip", ("1.x", "1.layer.0"): "through", ("0", "1.x"): "0",
        ("1.layer.0", "1.layer.1"): "1.layer.0", ("1.layer.1", "1.+"): "1.layer.1",
        ("1.+", "2"): "1.+", ("2", "3"): "2", ("3", "C"): "3",
    }  # fmt: skip
    for (source, target), name in along.items():
        np.testing.assert_allclose(graph.edge(source, target).delta, deltas[name], rtol=1e-10, atol=1e-14)
    assert graph.edge("y", "C").delta is None
    leaf = next(node for node in graph.nodes if node.kind == "parameters")
    np.testing.assert_array_equal(graph.edge(leaf.id, "0").delta, leaf.derivative)
    one = "3.w[1,2]"
    assert draw.computation(cost, theta, x, y, highlight=one).edge(one, "3").delta == pytest.approx(
        float(deltas["3"][2] * values["2"][1]), rel=1e-10
    )


def test_equal_blocks_and_loops_have_the_numbers_of_all(x64):
    net = jbp.Network([*[block() for _ in range(3)], Loop(block(), 2), jbp.Dense(3)], input=(4,))
    cost = jbp.Cost(net, losses.HalfSquaredError())
    theta, x, y = drawn_at_random(cost)
    graph, run = draw.computation(cost, theta, x, y), record.run(cost, theta, x[None], y[None])
    steps = {step.name: step for step in run.steps}
    for id, names in {
        "0.layer.0": [f"{i}.layer.0" for i in range(3)],
        "0.+": [str(i) for i in range(3)],
        "3.layer.layer.1": [f"3.layer.layer.1@{turn}" for turn in range(2)],
    }.items():
        value, slope = ([np.ravel(getattr(steps[n], what)[0]) for n in names] for what in ("output", "delta"))
        np.testing.assert_array_equal(graph.node(id).value, np.concatenate(value))
        np.testing.assert_array_equal(graph.node(id).derivative, np.concatenate(slope))
    for ends, delta in {
        ("0.+", "3.layer.x"): None,  # from the last of three to the first of two
        ("3.layer.+", "4"): steps["4"].delta_x[0],
        ("4", "C"): run.delta[0],
        ("0.layer.1", "0.+"): graph.node("0.+").derivative,
    }.items():
        found = graph.edge(*ends).delta
        assert found is None if delta is None else np.array_equal(found, delta)
    expected = np.asarray(jax.grad(cost)(jnp.asarray(theta), x[None], y[None]))
    found = [node.derivative for node in graph.nodes if node.kind == "parameters"]
    assert np.sort(np.concatenate(found)) == pytest.approx(np.sort(expected), rel=1e-9, abs=1e-13)


@dataclass(frozen=True)
class Halved:
    """y = x + f(x / 2): δ at f's input is not what this use of x adds to ∂C/∂x."""

    layer: Any

    def init(self, key, x):
        return Inner(self.layer.init(key, x))

    def forward(self, params, x, context):
        y, saved = self.layer.forward(params.layer, x / 2, context)
        return x + y, saved

    def backward(self, params, feedback, saved, delta, read):
        delta_x, readings = self.layer.backward(params.layer, feedback.layer, saved, delta, read.layer)
        return delta + delta_x / 2, Inner(readings)


def test_a_delta_that_does_not_add_up_is_left_out(x64):
    cost = jbp.Cost(jbp.Network([Halved(jbp.Dense(4)), jbp.Dense(2)], input=(4,)), losses.HalfSquaredError())
    graph = draw.computation(cost, *drawn_at_random(cost))
    assert [e.delta for e in graph.edges if e.source == "0.x"] == [None, None]
    assert graph.edge("0.layer", "0.+").delta is not None


@dataclass(frozen=True)
class Waiting:
    """A container whose reverse pass runs in a `jax.lax.while_loop`, of which nobody knows how many turns it has."""

    layer: Any

    def init(self, key, x):
        return Inner(self.layer.init(key, x))

    def forward(self, params, x, context):
        return self.layer.forward(params.layer, x, context)

    def backward(self, params, feedback, saved, delta, read):
        def turn(state):
            return state[0] + 1, self.layer.backward(params.layer, feedback.layer, saved, state[1], ())[0]

        return jax.lax.while_loop(lambda state: state[0] < 1, turn, (0, delta))[1], Inner(())


def test_where_nothing_can_be_recorded_the_parameters_have_numbers():
    net = jbp.Network([block(), Waiting(jbp.Tanh()), jbp.Dense(2)], input=(4,))
    cost = jbp.Cost(net, losses.HalfSquaredError())
    theta, x, y = (np.float32(v) for v in drawn_at_random(cost))
    with pytest.raises(jbp.InputError, match=r"layer 1.layer: its numbers can't be recorded, .* inside while"):
        record.run(cost, theta, x[None], y[None])
    graph = draw.computation(cost, theta, x, y)
    gradient = np.asarray(jax.grad(cost)(jnp.asarray(theta), x[None], y[None]))
    found = [node.derivative for node in graph.nodes if node.kind == "parameters"]
    np.testing.assert_allclose(np.concatenate(found), gradient, rtol=1e-5, atol=1e-6)
    assert graph.node("0.layer.0").derivative is None


def test_a_layer_with_w_and_b_that_is_no_dense_layer_is_not_drawn_as_neurons():
    @dataclass(frozen=True)
    class Normalised(jbp.Dense):
        def forward(self, params, x, context):
            return jbp.Dense.forward(self, params._replace(w=params.w / jnp.linalg.norm(params.w)), x, context)

    net = jbp.Network([Normalised(3)], input=(2,))
    assert net.layout.is_chain
    assert chain_of(net) is None
    assert draw.network(net).direction == "down"
    assert chain_of(jbp.Network([jbp.Dense(3)], input=(4, 2))) is None  # at each position, not neuron by neuron


@dataclass(frozen=True)
class Stepped(jbp.ELU):
    """The sign forward, ELU's slope back."""

    def f(self, z):
        return jnp.sign(z)


@pytest.mark.parametrize(
    "layer", [jbp.Tap(lambda d: 2 * d), jbp.Tap(lambda d: jnp.clip(d, -10, 10)), Stepped()], ids=["2δ", "clip", "step"]
)
def test_a_backward_that_is_no_derivative_is_drawn_as_it_is(layer, x64):
    cost = jbp.Cost(jbp.Network([jbp.Dense(4), layer, jbp.Tanh(), jbp.Dense(3)], input=(2,)), losses.HalfSquaredError())
    theta, x, y = drawn_at_random(cost)
    graph = draw.single(cost, "w^2_{1←0}", theta, x, y)
    assert graph.node("1").label.startswith(type(layer).__name__)
    own = cost.grad(jnp.asarray(theta), x[None], y[None])
    assert graph.node("w^2_{1←0}").derivative == pytest.approx(float(own[1]), rel=1e-12)


def test_a_backward_that_is_not_written_yet_needs_none_to_be_drawn():
    @dataclass(frozen=True)
    class Begun(jbp.ReLU):
        def backward(self, params, feedback, saved, delta, read):
            raise NotImplementedError

    net = jbp.Network([jbp.Dense(4), Begun()], input=(2,))
    assert [node.id for node in draw.network(net).nodes] == ["x", "0", "1"]
    cost = jbp.Cost(net, losses.HalfSquaredError())
    theta, x, y = (np.float32(v) for v in drawn_at_random(cost))
    with pytest.raises(NotImplementedError):
        draw.computation(cost, theta, x, y)


def test_a_tap_that_changes_nothing_is_not_drawn():
    dtypes = np.float32, jnp.bfloat16
    nets = [jbp.Network([jbp.Dense(4), jbp.Tap(lambda d: d), jbp.Softmax()], input=(2,), dtype=d) for d in dtypes]
    assert all(chain_of(net) is not None for net in nets)


@dataclass(frozen=True)
class Cubed(jbp.activations.Activation):
    """A stranger's activation: f and slope together, so the statement of the class holds."""

    keeps = "z"

    def f(self, z):
        return z**3

    def slope(self, saved):
        return 3 * saved**2


@dataclass(frozen=True)
class Reversed:
    """A stranger's layer that states that its backward is its derivative, and that elements mix."""

    elementwise = False

    def init(self, key, x):
        return ()

    def forward(self, params, x, context):
        return x[:, ::-1], ()

    def backward(self, params, feedback, saved, delta, read):
        return delta[:, ::-1], ()


@pytest.mark.parametrize(("layer", "sums"), [(Cubed(), 0), (Reversed(), 4)])
def test_a_chain_is_what_its_layers_state(layer, sums, x64):
    cost = jbp.Cost(jbp.Network([jbp.Dense(4), layer, jbp.Dense(3)], input=(2,)), losses.HalfSquaredError())
    theta, x, y = drawn_at_random(cost)
    graph = draw.computation(cost, theta, x, y, max_neurons=9)
    assert sum(node.kind == "sum" for node in graph.nodes) == sums
    for symbol, (expected, _) in coordinates(cost, theta, x, y).items():
        assert graph.derivative(symbol) == pytest.approx(expected, rel=1e-10, abs=1e-14)

    class Again(type(layer)):
        def backward(self, params, feedback, saved, delta, read):
            return delta, ()

    assert chain_of(jbp.Network([jbp.Dense(4), Again()], input=(2,))) is None


# -- text -------------------------------------------------------------------------------------------------------------


def some_graphs() -> dict[str, draw.Graph]:
    cost = sigmoid_half_squared(2, 3, 2)
    theta, x, y = (np.float32(v) for v in drawn_at_random(cost))
    residual = jbp.Network([jbp.Dense(4), block(), dense_by_hand(), jbp.Dense(3)], input=(5,))
    return {
        "usual": draw.network(cost, theta),
        "bare": draw.network(jbp.mlp(64, 30, 10)),
        "computation": draw.computation(cost, theta, x, y, highlight="w^2_{1←0}"),
        "elided": draw.computation(jbp.mlp(64, 30, 10), highlight="w^2_{17←20}"),
        "single": draw.single(cost, "b^2_1", theta, x, y),
        "wide": draw.computation(jbp.mlp(2000, 2000, 10), highlight="w^2_{1234←777}"),
        "deep": draw.computation(jbp.mlp(*[4] * 9), highlight="w^6_{1←2}", max_layers=2),
        "deep, usual": draw.network(jbp.mlp(*[4] * 9), max_layers=3),
        "small numbers": draw.computation(cost, theta * np.float32(1e-12), x, y * np.float32(1e-9)),
        "softmax": draw.computation(softmax_everywhere()),
        "layers": draw.network(residual, np.ones(residual.layout.size, np.float32)),
        "layers of C": draw.computation(residual),
        "layers with numbers": numbered_layers(residual),
        "one of many": draw.computation(residual, highlight="1.layer.0.w[1,2]"),
        "long": draw.network(jbp.Network([block(a) for a in (jbp.Tanh(), jbp.ReLU()) * 3], input=(4,))),
    }


def numbered_layers(net: jbp.Network) -> draw.Graph:
    cost = jbp.Cost(net, losses.SoftmaxCrossEntropy())
    theta, x, y = drawn_at_random(cost)
    return draw.computation(cost, np.float32(theta), np.float32(x), y, highlight="1.layer.0.b[3]")


@pytest.fixture(scope="module")
def graphs() -> dict[str, draw.Graph]:
    return some_graphs()


def test_texts_are_whole(graphs):
    for graph in graphs.values():
        dot, mermaid = graph.dot(), graph.mermaid()
        assert dot.count("{") - dot.count("_{") - dot.count("^{") == dot.count("\n}") + dot.count("  }\n")
        assert dot.count('"') % 2 == mermaid.count('"') % 2 == 0
        assert (
            dot.count(" -> ")
            == len(graph.edges)
            == sum(map(mermaid.count, (" --> ", " ==> ", " -.-> ", "-->|", "==>|", "-.->|")))
        )
        assert mermaid.count("subgraph ") == mermaid.count("  end\n") == len(graph.boxes)
        for i, node in enumerate(graph.nodes):
            assert f'"{node.id}" [' in dot
            assert f" n{i}[" in mermaid or f" n{i}((" in mermaid


SMALL_DOT = """\
digraph {
  rankdir=LR; label="The network 1-1"; labelloc=t;
  node [shape=box style=filled fillcolor=white fontsize=11]; edge [fontsize=9];
  subgraph "cluster layer 1" { label="layer 1, input\\n1 neuron"; color=none;
    "x_0" [label=<<I>x</I><SUB>0</SUB>> shape=box style="filled" fillcolor="#EFEFEF"];
  }
  subgraph "cluster layer 2" { label="layer 2, output\\n1 neuron"; color=none;
    "a^2_0" [label=<<I>a</I><SUP>2</SUP><SUB>0</SUB><BR/>−0.25> shape=circle style="filled" fillcolor="white"];
  }
  "x_0" -> "a^2_0" [label="0.5"];
}
"""
SMALL_MERMAID = """\
flowchart LR
  subgraph box0["layer 1, input<br/>1 neuron"]
    n0["x_0"]:::input
  end
  subgraph box1["layer 2, output<br/>1 neuron"]
    n1(("a^2_0<br/>−0.25")):::neuron
  end
  n0 -->|"0.5"| n1
  classDef input fill:#EFEFEF,stroke:#333333,color:#333333
  classDef neuron fill:#FFFFFF,stroke:#333333,color:#333333
"""


def test_small_texts():
    graph = draw.network(jbp.mlp(1, 1), np.float32([0.5, -0.25]))
    assert graph.dot() == SMALL_DOT
    assert graph.mermaid() == SMALL_MERMAID


def test_a_derivative_has_the_name_of_what_it_is_by(graphs):
    dot, mermaid = graphs["single"].dot(), graphs["layers with numbers"].mermaid()
    assert "∂C/∂b^2_1 = " in dot
    assert "derivative rms " in mermaid
    assert "∂C/∂ " not in dot + mermaid
    assert "⋯<br/>4 more layers<br/>80 parameters" in graphs["deep"].mermaid()
    assert not any("dots" in graph.dot() + graph.mermaid() for graph in graphs.values())


def test_names_are_mathematics():
    graph = draw.computation(jbp.mlp(30, 20, 2), highlight="w^2_{17<-7}")
    assert graph.node("w^2_{17←7}").label == r"$w^{2}_{17\leftarrow 7}$"
    assert graph.node("a^2_{17}").label == "$a^{2}_{17}$"
    assert "<I>w</I><SUP>2</SUP><SUB>17←7</SUB>" in graph.dot()


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_are_drawn_and_nothing_lies_on_another(graphs):
    """Warnings are errors here, so a label that a font can't set fails."""
    from jbp.draw.columns import columns
    from jbp.draw.rows import rows as by_rows

    for name, graph in graphs.items():
        placed = columns(graph) if graph.direction == "right" else by_rows(graph)
        figure = graph.figure()
        canvas = FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        shown = [text for axes in figure.axes for text in axes.texts] + [
            t for legend in figure.legends for t in legend.texts
        ]
        renderer, (width, height) = canvas.get_renderer(), figure.bbox.size
        for text in shown:  # inside the page
            box = text.get_window_extent(renderer)
            assert -1 <= box.x0 <= box.x1 <= width + 1, (name, text.get_text())
            assert -1 <= box.y0 <= box.y1 <= height + 1, (name, text.get_text())
        inside = {id: 0 for id in placed.at}  # each node's texts
        for text in figure.axes[0].texts if graph.direction == "right" else ():
            x, y = text.get_position()
            for id, (left, top) in placed.at.items():
                w, h = placed.size[id]
                if abs(x - left) < w / 2 and abs(y - top) < h / 2 and text.get_zorder() == 5:
                    box = text.get_window_extent(renderer).transformed(figure.axes[0].transData.inverted())
                    assert max(abs(box.x0 - left), abs(box.x1 - left)) <= w / 2 + 0.01, (name, text.get_text())
                    inside[id] += 1
        assert graph.direction == "down" or all(inside.values()), name
        spots = [(id, *placed.at[id], *placed.size[id]) for id in placed.at]
        for i, (a, ax, ay, aw, ah) in enumerate(spots):
            for b, bx, by, bw, bh in spots[i + 1 :]:
                assert abs(ax - bx) >= (aw + bw) / 2 - 1e-9 or abs(ay - by) >= (ah + bh) / 2 - 1e-9, (name, a, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_marked_and_do_not_spoil_the_others(bad):
    theta = np.linspace(-1, 2, 17, dtype=np.float32)
    theta[[3, 16]] = bad
    figure = draw.network(jbp.mlp(2, 3, 2), theta).figure()
    marked = [p for p in figure.axes[0].patches if to_hex(p.get_edgecolor()) == "#cc79a7"]
    assert len(marked) == 2
    assert [t.get_text() for t in figure.legends[0].texts][-1] == "not finite"
    largest = f"{np.abs(theta[np.isfinite(theta)]).max():.3g}"
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == [f"−{largest}", "0", largest]
    assert draw.network(jbp.mlp(2, 3, 2), theta * np.float32(np.nan)).figure().legends


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf", "dot", "gv", "mmd", "md"])
def test_save(tmp_path, suffix):
    graph = draw.network(jbp.mlp(2, 3, 2))
    path = graph.save(tmp_path / f"net.{suffix}")
    start = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF", "mmd": b"flowchart", "md": b"```mermaid\n"}
    assert path.read_bytes().startswith(start.get(suffix, b"digraph"))


def test_notebooks_show_it(monkeypatch):
    graph = draw.single(jbp.mlp(2, 3, 2), "b^3_1")
    svg = graph._repr_svg_()
    assert svg is not None
    assert "</svg>" in svg
    assert repr(graph) == "<Graph: The graph of b^3_1 in the network 2-3-2; 6 nodes, 5 edges>"
    monkeypatch.delitem(sys.modules, "jbp.draw.figure")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert graph._repr_svg_() is None
    with pytest.raises(jbp.InputError, match=r"pip install 'jbp\[cli\]'"):
        graph.figure()
    assert graph.dot()
    assert graph.mermaid()


# -- errors -----------------------------------------------------------------------------------------------------------


COST, NET = sigmoid_half_squared(2, 3, 2), jbp.mlp(2, 3, 2)
THETA, X, Y = np.zeros(17, np.float32), np.zeros(2, np.float32), np.zeros(2, np.float32)
BATCH = np.zeros((5, 2), np.float32)
ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "symbol": (
        lambda: draw.single(NET, "w^2_{3←7}"),
        "layout.index: unknown symbol 'w^2_{3←7}'. The nearest is w^2_{2←1}, of w^2_{0←0} … w^2_{2←1}.",
    ),
    "highlight": (
        lambda: draw.computation(NET, highlight="b^9_0"),
        "layout.index: unknown symbol 'b^9_0'. The nearest is b^3_0, of b^3_0 … b^3_1.",
    ),
    "no x, y": (
        lambda: draw.computation(COST, THETA),
        "draw.computation: numbers need theta, x and y, got no x and no y. Give all three, or none.",
    ),
    "no theta": (
        lambda: draw.single(COST, "b^3_0", x=X, y=Y),
        "draw.single: numbers need theta, x and y, got no theta. Give all three, or none.",
    ),
    "no loss": (
        lambda: draw.computation(NET, THETA, X, Y),
        "draw.computation: numbers end in C, so they need a Cost, got a Network. Write Cost(net, loss).",
    ),
    "batch": (
        lambda: draw.computation(COST, THETA, BATCH, BATCH),
        "draw.computation: the numbers are those of one example, got x float32[5, 2] and y float32[5, 2]. "
        "Draw the first with x[0], y[0].",
    ),
    "shape of x": (
        lambda: draw.computation(COST, THETA, np.zeros((1, 3), np.float32), Y[None]),
        "draw.computation: x has [1, 3], the network takes [2]. Give one example of that.",
    ),
    "x too short": (
        lambda: draw.computation(COST, THETA, X[:1], Y),
        "draw.computation: x has [1], the network takes [2]. Give one example of that.",
    ),
    "y alone": (
        lambda: draw.single(COST, "b^3_0", THETA, X[None], Y),
        "draw.single: x is a batch of one, y has [2]. Write y[None], or x[0].",
    ),
    "x alone": (
        lambda: draw.single(COST, "b^3_0", THETA, X, Y[None]),
        "draw.single: x is one example, y has [1, 2]. Write y[0], or x[None].",
    ),
    "NaN": (
        lambda: draw.computation(COST, THETA, X * np.float32(np.nan), Y),
        "x: expected finite numbers, got x[0, 0] = nan (2 of 2 not finite). Clean the data first.",
    ),
    "theta": (
        lambda: draw.network(NET, THETA[1:]),
        "theta: expected [P] = [17] (#W = 12, #b = 5), got [16]. Make one with net.init(key) or layout.flatten(tree).",
    ),
    "no network": (
        lambda: draw.network("net"),  # type: ignore[arg-type]
        "draw.network: expected a Network or a Cost, got 'net'. Write draw.network(net).",
    ),
    "max_neurons": (
        lambda: draw.network(NET, max_neurons=0),
        "draw: max_neurons must be a whole number of at least 1, got 0.",
    ),
    "format": (
        lambda: draw.network(NET).save("net.jpg"),
        "Graph.save: expected a file that ends in .svg, .png, .pdf, .dot, .gv, .mmd, .md, got 'net.jpg'. "
        "Write for example net.svg.",
    ),
    "no path": (
        lambda: draw.network(NET).save(3),  # type: ignore[arg-type]
        "Graph.save: expected a path, got 3. Write for example graph.save('network.svg').",
    ),
    "file": (
        lambda: draw.network(NET).save("/nowhere/net.dot"),
        "Graph.save: expected a file that can be written, got '/nowhere/net.dot' (No such file or directory). "
        "Name one in a folder of yours.",
    ),
    "picture": (
        lambda: draw.network(NET).save("/nowhere/net.png"),
        "Graph.save: expected a file that can be written, got '/nowhere/net.png' (No such file or directory). "
        "Name one in a folder of yours.",
    ),
    "node": (
        lambda: draw.network(NET).node("a^7_0"),
        "Graph.node: 'a^7_0' is not drawn; there are x_0, x_1, a^2_0, a^2_1, a^2_2, a^3_0, a^3_1, …"
        " Draw with a larger max_neurons or max_layers.",
    ),
    "no numbers": (
        lambda: draw.computation(NET).derivative("b^3_0"),
        "Graph: the edge a^3_0 → C has no partial derivative. "
        "Give theta, x and y when drawing, and begin at a weight or bias drawn by itself.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, as_for_a_user):
    call, message = ERRORS[name]
    with pytest.raises(jbp.InputError) as error:
        call()
    assert str(error.value) == message
