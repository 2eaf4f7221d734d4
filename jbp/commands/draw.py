"""The text's graphs of a network on the shipped digits, with the numbers of one digit in them.

`jbp draw network` is the usual graph, its weights on the edges; `jbp draw computation` the graph after surgery, weights
and biases as nodes, --symbol and its paths to C marked; `jbp draw single` the graph for --symbol alone. Pictures need
matplotlib; DOT (.dot, .gv) and Mermaid (.mmd, .md) are text and need nothing.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import draw, paint
from ..draw.output import PICTURES, TEXTS
from ..layer import InputError
from ..reverse import Cost
from . import options

MANY = 2000  # edges from which on drawing takes several seconds


@dataclass(frozen=True)
class Settings(options.DigitsNetwork):
    """What the command line asks for."""

    graph: str = options.choice(("network", "computation", "single"), "which graph", word=True)
    symbol: str | None = options.option(
        None, str, "a weight or bias", "'w^2_{3<-7}'", "the one to follow; single takes that of the largest |∂C/∂|"
    )
    digit: int | None = options.which_digit(
        None,
        "whose numbers are drawn in computation and single; that of the largest |∂C/∂symbol|, or 0 without a symbol",
    )
    max_neurons: int | None = options.number(
        None, int, 1, 2**31 - 1, "a whole number above 0", "of a column, drawn one by one; 10 in network, else 3", "10"
    )
    max_layers: int | None = options.number(
        None, int, 1, 2**31 - 1, "a whole number above 0", "drawn one by one; 10 in network, else 5", "10"
    )
    out: str | None = options.file(
        "network.svg", "where to; the graph's name and .svg unless given", (*PICTURES, *TEXTS)
    )


def _largest(cost: Cost, theta: Any, x: Any, y: Any, i: int) -> int:
    """The example n of the largest |∂C_n/∂θ_i|: with a blank pixel there is nothing to see."""
    each = jax.jit(lambda theta: cost.loss.value(cost.network(theta, x), jnp.asarray(y)))
    _, slopes = jax.jvp(each, (theta,), (jnp.zeros_like(theta).at[i].set(1),))
    return int(np.abs(slopes).argmax())


def run(settings: Settings) -> int:
    """Draw and say where; the exit code."""
    if settings.graph == "network" and settings.symbol is not None:
        raise InputError(
            "--symbol: in the usual graph weights are edges, so there is none to follow. "
            f"Write jbp draw single --symbol '{settings.symbol}', or jbp draw computation."
        )
    path = Path(settings.out or f"{settings.graph}.svg")
    if path.suffix.lower() in PICTURES:
        paint.needed()
    with settings.in_precision():
        cost, theta, x, y, *_ = settings.job()
        i = None if settings.symbol is None else cost.layout.index(settings.symbol)
        symbol = None if i is None else cost.layout.symbol(i)
        digit = settings.digit or (0 if i is None or settings.digit == 0 else _largest(cost, theta, x, y, i))
        x, y = x[digit], y[digit]
        if symbol is None and settings.graph == "single":
            symbol = cost.layout.symbol(int(np.abs(cost.grad(theta, x[None], y[None])).argmax()))
        asked = {"max_neurons": settings.max_neurons, "max_layers": settings.max_layers}
        most = {name: value for name, value in asked.items() if value is not None}
        if settings.graph == "network":
            graph = draw.network(cost, theta, **most)
        elif settings.graph == "computation":
            graph = draw.computation(cost, theta, x, y, highlight=symbol, **most)
        else:
            graph = draw.single(cost, str(symbol), theta, x, y, **most)
    if len(graph.edges) > MANY:
        print(f"{len(graph.nodes):,} nodes and {len(graph.edges):,} edges: it takes a while", file=sys.stderr)
    graph.save(path)
    print(f"{graph.title}: {path}")
    if settings.graph != "network":
        of_digit = f"C of digit {digit} = {graph.node('C').value:.6g}"
        print(of_digit if symbol is None else f"{of_digit}, ∂C/∂{symbol} = {graph.derivative(symbol):.6g}")
    return 0
