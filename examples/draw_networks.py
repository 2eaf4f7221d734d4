"""The text's pictures, which were never uploaded, made real.

The usual graph, the graph after surgery, and the graph for one weight: of a small network with all its numbers, of the
digits' network, of a residual network, and of a small GPT. Those in `examples/pictures` are made by

    python examples/draw_networks.py examples/pictures
"""

import sys
from pathlib import Path

import jax
import numpy as np

import jbp
from jbp import draw


def block():
    return jbp.Residual(jbp.Sequential([jbp.Dense(32), jbp.Tanh(), jbp.Dense(32)]))


def gpt(vocabulary, length, width, heads, blocks):
    """A decoder whose layers have names; the output's kernel is the table of the input."""
    attention = jbp.Sequential({"norm": jbp.LayerNorm(), "attention": jbp.Attention(heads, causal=True)})
    up, down = jbp.Dense(4 * width), jbp.Dense(width)
    mlp = jbp.Sequential({"norm": jbp.LayerNorm(), "up": up, "gelu": jbp.GELU(), "down": down})
    layers = {
        "tokens": jbp.Embedding(vocabulary, width),
        "positions": jbp.Positions(length),
        "blocks": jbp.Repeat(jbp.Sequential({"mix": jbp.Residual(attention), "mlp": jbp.Residual(mlp)}), blocks),
        "norm": jbp.LayerNorm(),
    }
    net = jbp.Network(layers, jax.ShapeDtypeStruct((length,), np.int32))
    return jbp.Cost(net, jbp.losses.LinearCrossEntropy(vocabulary), "positions", tied={"loss.w": "tokens.table.T"})


def main(folder=None):
    folder = Path("pictures" if folder is None else folder)
    folder.mkdir(parents=True, exist_ok=True)
    graphs = {}

    # The text's network, small enough for all numbers to be seen.
    net = jbp.mlp(2, 3, 2)
    cost = jbp.Cost(net, jbp.losses.HalfSquaredError())
    theta = net.init(jax.random.key(1))
    x, y, weight = np.array([0.5, -1.0], net.dtype), np.array([0.0, 1.0], net.dtype), "w^2_{1←0}"
    graphs["small_network"] = draw.network(net, theta)
    graphs["small_computation"] = draw.computation(cost, theta, x, y, highlight=weight)
    graphs["small_single"] = draw.single(cost, weight, theta, x, y)

    # The sum over the highlighted paths is the coordinate of the gradient.
    paths = list(graphs["small_single"].paths(weight))
    gradient = jax.grad(cost)(theta, x[None], y[None])[net.layout.index(weight)]
    print(f"∂C/∂{weight} = {' '.join(f'{product:+.5f}' for _, product in paths)} = {float(gradient):.5f} by jax.grad")
    assert np.isclose(sum(product for _, product in paths), gradient)

    # The digits' network: wide columns are elided, and the numbers are still complete.
    digits = jbp.data.digits()
    net = jbp.mlp(64, 30, 10)
    cost = jbp.Cost(net, jbp.losses.HalfSquaredError())
    theta = net.init(jax.random.key(0))
    x, y, weight = digits.x[0].astype(net.dtype), np.eye(10, dtype=net.dtype)[digits.y[0]], "w^2_{3←10}"
    graphs["digits_network"] = draw.network(net, theta)
    graphs["digits_computation"] = draw.computation(cost, theta, x, y, highlight=weight)
    graphs["digits_single"] = draw.single(cost, weight, theta, x, y)
    gradient = jax.grad(cost)(theta, x[None], y[None])[net.layout.index(weight)]
    assert np.isclose(graphs["digits_single"].derivative(weight), gradient, rtol=1e-4)

    # A network that is more than a chain is drawn layer by layer, with each one's output and δ; thirty equal
    # blocks are drawn once.
    net = jbp.Network([jbp.Dense(32), *[block() for _ in range(30)], jbp.Dense(10)], input=(64,))
    cost = jbp.Cost(net, jbp.losses.SoftmaxCrossEntropy())
    theta = net.init(jax.random.key(0))
    graphs["residual_network"] = draw.network(net)
    graphs["residual_computation"] = graph = draw.computation(cost, theta, x, digits.y[0])

    # Where x splits, the δ that come back along the two ways add up.
    around, through = (edge.delta for edge in graph.edges if edge.source == "1.x")
    assert np.allclose(around + through, graph.node("1.x").derivative, rtol=1e-4, atol=1e-6)

    # A GPT by block: the way of one weight of the eighth block's queries to C.
    cost = gpt(vocabulary=24, length=6, width=8, heads=2, blocks=8)
    theta, weight = cost.init(jax.random.key(0)), "blocks.layer.mix.layer.attention.q.w[7,1,2]"
    x, y = np.arange(6, dtype=np.int32), np.arange(1, 7, dtype=np.int32)
    graphs["gpt_single"] = graph = draw.single(cost, weight, theta, x, y)
    gradient = jax.grad(jbp.Cost(cost.network, cost.loss, "sum", cost.tied))(theta, x[None], y[None])
    assert np.isclose(graph.node(weight).derivative, gradient[cost.layout.index(weight)], rtol=1e-4)

    files = [graph.save(folder / f"{name}.svg") for name, graph in graphs.items()]
    files += [graphs["small_single"].save(folder / f"small_single{suffix}") for suffix in (".dot", ".md")]
    for file in files:
        print(file)
    return files


if __name__ == "__main__":
    main(*sys.argv[1:])
