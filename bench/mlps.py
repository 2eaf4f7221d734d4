"""Multilayer perceptrons, in jbp and in plain JAX as its users write it, with softmax cross-entropy on labels.

Plain params are a list of (w, b), or of {"W": w, "b": b}, so that their leaves come in the order of jbp's.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbp


class Problem(NamedTuple):
    """A cost in jbp, a place θ to take its gradient, and random examples."""

    title: str
    cost: jbp.Cost
    theta: jax.Array
    x: jax.Array
    y: jax.Array

    @property
    def params(self) -> tuple:
        """θ as jbp's leaves."""
        return self.cost.layout.unflatten(self.theta)

    @property
    def plain_params(self) -> list:
        """θ as a plain list of (w, b)."""
        return [(layer.w, layer.b) for layer in self.params if layer]


def problem(title: str, *widths: int, activation: Any, examples: int, **settings: Any) -> Problem:
    """A network of these widths, from the input to the logits; `settings` are the network's."""
    network = jbp.mlp(*widths, activation=activation, last=jbp.Identity(), **settings)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[1], (examples, widths[0]))
    y = jax.random.randint(keys[2], (examples,), 0, widths[-1])
    return Problem(title, jbp.Cost(network, jbp.losses.SoftmaxCrossEntropy()), network.init(keys[0]), x, y)


def wide(quick: bool = False) -> Problem:
    """Few large leaves: bound by products of matrices."""
    if quick:
        return problem("16-32×3-10, ReLU, batch 8", 16, *[32] * 3, 10, activation=jbp.ReLU(), examples=8)
    return problem("784-1024×3-10, ReLU, batch 512", 784, *[1024] * 3, 10, activation=jbp.ReLU(), examples=512)


def deep(quick: bool = False) -> Problem:
    """Many small leaves: bound by everything else."""
    if quick:
        return problem("4 layers of 8, tanh, batch 8", *[8] * 5, activation=jbp.Tanh(), examples=8)
    return problem("32 layers of 64, tanh, batch 256", *[64] * 33, activation=jbp.Tanh(), examples=256)


def by_hand(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropies from the log-sum-exp."""
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]


def one_hot(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropies from one-hot labels."""
    return -(jax.nn.log_softmax(logits) * jax.nn.one_hot(labels, logits.shape[-1])).sum(-1)


LOSSES = {"optax": optax.softmax_cross_entropy_with_integer_labels, "logsumexp": by_hand, "one-hot": one_hot}
ACTIVATIONS = {
    jbp.ReLU(): {"nn.relu": jax.nn.relu, "maximum": lambda z: jnp.maximum(z, 0)},
    jbp.Tanh(): {"tanh": jnp.tanh},
}


def plain(activation: Callable, loss: Callable) -> Callable:
    """The cost (params, x, y) -> mean of loss, on a list of (w, b)."""

    def cost(params, x, y):
        for w, b in params[:-1]:
            x = activation(x @ w + b)
        w, b = params[-1]
        return loss(x @ w + b, y).mean()

    return cost


def plain_costs(of: Problem) -> dict[str, tuple[Callable, Any]]:
    """The ways to write the problem's cost in plain JAX, each with its params."""
    activations, params = ACTIVATIONS[of.cost.network.layers[1]], of.plain_params
    ways = {f"{a}, {l}": (plain(activations[a], LOSSES[l]), params) for a in activations for l in LOSSES}
    name, (on_list, _) = next(iter(ways.items()))
    on_dicts = lambda params, x, y: on_list([(layer["W"], layer["b"]) for layer in params], x, y)
    return ways | {f"{name}, dicts": (on_dicts, [{"W": w, "b": b} for w, b in params])}


def relu_in_torch(params: list) -> Any:
    """The ReLU network of these (w, b) as a `torch.nn.Sequential`; its even parts are linear."""
    torch = importlib.import_module("torch")
    linear = [torch.nn.Linear(*w.shape) for w, _ in params]
    for layer, (w, b) in zip(linear, params, strict=True):
        layer.weight.data, layer.bias.data = (torch.tensor(np.array(a)).contiguous() for a in (w.T, b))
    return torch.nn.Sequential(*[part for layer in linear for part in (layer, torch.nn.ReLU())][:-1])
