"""The text's three graphs of any network, with real numbers in them.

    network(net)             the usual graph: neurons, and weights on the edges
    computation(cost)        after surgery: weights and biases are nodes, multiplication happens at nodes, C at the end
    single(cost, "w^2_{3←7}")    the graph for one weight, all others folded away

Each returns a `Graph`: nodes, edges and boxes with their numbers, which can `save` itself as a picture or as text.
A plain chain of dense layers is drawn neuron by neuron, any other network layer by layer.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..chain import chain_of
from ..layer import InputError, described
from ..meshes import on_host
from ..network import Network
from ..reverse import Cost
from . import layers, neurons, surgery
from .graph import Box as Box
from .graph import Edge as Edge
from .graph import Node as Node
from .numbers import numbers_of
from .output import Graph as Graph


def network(
    net: Network | Cost, theta: Any = None, *, max_neurons: int = 10, max_layers: int = 10, depth: int = 6
) -> Graph:
    """The usual graph. Given θ, edges have the weights as colour and thickness, nodes the biases as colour.

    At most `max_neurons` of a column and `max_layers` columns are drawn one by one, the rest as ⋮ and ⋯. Off a plain
    chain: layers, in at most `depth` nested boxes; given θ, the value of a layer is the array of its parameters.
    Raises `InputError` where θ does not fit.
    """
    net = _network("network", net)
    _at_least_one(max_neurons=max_neurons, max_layers=max_layers, depth=depth)
    if theta is not None:
        net.layout.check(theta)
    chain = chain_of(net)
    return (
        layers.usual_by_layer(net, theta, depth)
        if chain is None
        else neurons.usual_by_neuron(net, chain, theta, max_neurons, max_layers)
    )


def computation(
    cost: Cost | Network,
    theta: Any = None,
    x: Any = None,
    y: Any = None,
    *,
    highlight: str | None = None,
    max_neurons: int = 3,
    max_layers: int = 5,
    depth: int = 6,
) -> Graph:
    """The computational graph after surgery, with the paths from the weight or bias `highlight` to C marked.

    Given θ and one example x `[*input]` or `[1, *input]` with its y: nodes have values and ∂C/∂value, edges have
    ∂target/∂source, so `graph.derivative("w^2_{3←7}")` is that coordinate of the gradient. At most `max_neurons` of a
    column, and `max_layers` layers with weights, are drawn one by one, besides those that `highlight` names, the rest
    as ⋮ and ⋯: so a wide or deep network is drawn in a second or two, its derivatives still those of all of it.

    Off a plain chain nodes are layers, in at most `depth` nested boxes: their values are outputs, and parameters, each
    with ∂C/∂ of it, and edges have the δ that comes back along them (where a container runs a layer in a while loop,
    only parameters have numbers).

    Raises `InputError` where something does not fit, and where `highlight` is a coordinate of the loss: the graph is
    the network's, and a loss with parameters is one node of it.
    """
    return _computation("computation", cost, theta, x, y, highlight, max_neurons, max_layers, depth, alone=False)


def single(
    cost: Cost | Network,
    symbol: str,
    theta: Any = None,
    x: Any = None,
    y: Any = None,
    *,
    max_neurons: int = 3,
    max_layers: int = 5,
    depth: int = 6,
) -> Graph:
    """The graph for one weight or bias: the paths from it to C, and what it meets; all else is folded away.

    `symbol`: as in `net.layout.symbol`, `<-` may stand for `←`. Numbers as in `computation`, and errors: a coordinate
    of a loss with parameters is refused, because the graph is the network's.
    """
    return _computation("single", cost, theta, x, y, symbol, max_neurons, max_layers, depth, alone=True)


def _computation(who, cost, theta, x, y, symbol, max_neurons, max_layers, depth, alone) -> Graph:
    net = _network(who, cost)
    _at_least_one(max_neurons=max_neurons, max_layers=max_layers, depth=depth)
    if symbol is not None:
        symbol = net.layout.symbol(
            cost.coordinate(f"draw.{who}", symbol) if isinstance(cost, Cost) else net.layout.index(symbol)
        )
    theta, x, y = on_host((theta, x, y))
    given = [value is not None for value in (theta, x, y)]
    if any(given):
        if not all(given):
            missing = [name for name, there in zip(("theta", "x", "y"), given, strict=True) if not there]
            raise InputError(
                f"draw.{who}: numbers need theta, x and y, got no {' and no '.join(missing)}. Give all three, or none."
            )
        if not isinstance(cost, Cost):
            raise InputError(
                f"draw.{who}: numbers end in C, so they need a Cost, got a Network. Write Cost(net, loss)."
            )
        x, y = _one_example(who, net, x, y)
        cost.check(theta, x, y)
    chain = chain_of(net)
    if chain is not None:
        numbers = numbers_of(cost, chain, theta, x, y) if all(given) else None
        draw = surgery.single_by_neuron if alone else surgery.whole
        graph = draw(net, chain, numbers, max_neurons, max_layers, symbol)
    else:
        known = layers.known(cost, theta, x, y) if all(given) else None
        graph = (layers.single_by_layer if alone else layers.surgery)(net, known, depth, symbol)
    return _naming(graph, cost.loss) if isinstance(cost, Cost) else graph


def _naming(graph: Graph, loss: Any) -> Graph:
    """The graph with the loss's name under its C: in the caption of the column, or in the node."""
    name, C = type(loss).__name__, graph.node("C")
    if C.box:
        return replace(
            graph, boxes=tuple(replace(b, label=f"{b.label}\n{name}") if b.id == C.box else b for b in graph.boxes)
        )
    return replace(graph, nodes=tuple(replace(n, label=f"{n.label}\n{name}") if n is C else n for n in graph.nodes))


def _network(who: str, given: Any) -> Network:
    net = given.network if isinstance(given, Cost) else given
    if not isinstance(net, Network):
        raise InputError(f"draw.{who}: expected a Network or a Cost, got {given!r}. Write draw.{who}(net).")
    return net


def _at_least_one(**settings: int) -> None:
    for name, value in settings.items():
        if not isinstance(value, int) or value < 1:
            raise InputError(f"draw: {name} must be a whole number of at least 1, got {value!r}.")


def _one_example(who: str, net: Network, x: Any, y: Any) -> tuple[Any, Any]:
    """x and y as a batch of one. Raises `InputError` if they are not of one example."""
    x, y = jax.tree.map(jnp.asarray, (x, y))
    due, xs, ys = (list(map(np.shape, jax.tree.leaves(tree))) for tree in (net.input, x, y))
    shown = lambda shapes: ", ".join(str(list(shape)) for shape in shapes)
    if xs == due:  # without a batch axis
        if any(len(shape) > len(output.shape) for shape, output in zip(ys, jax.tree.leaves(net.output), strict=False)):
            raise InputError(f"draw.{who}: x is one example, y has {shown(ys)}. Write y[0], or x[None].")
        return jax.tree.map(lambda a: a[None], (x, y))
    if [shape[1:] for shape in xs] != due or not all(xs):
        raise InputError(f"draw.{who}: x has {shown(xs)}, the network takes {shown(due)}. Give one example of that.")
    if xs[0][0] == 1 and any(shape[:1] != (1,) for shape in ys):
        raise InputError(f"draw.{who}: x is a batch of one, y has {shown(ys)}. Write y[None], or x[0].")
    if any(shape[:1] != (1,) for shape in (*xs, *ys)):
        raise InputError(
            f"draw.{who}: the numbers are those of one example, got x {described(x)} and y {described(y)}. "
            "Draw the first with x[0], y[0]."
        )
    return x, y
