"""Networks of the benchmarks: in jbp, and in plain JAX as its users write them, with softmax cross-entropy on labels.

The plain params are a list of (w, b) or of {"W": w, "b": b}, so their leaves come in the order of jbp's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jbp


def by_hand(logits: Any, labels: Any) -> Any:
    """Cross-entropy from the log-sum-exp."""
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]


def one_hot(logits: Any, labels: Any) -> Any:
    """Cross-entropy from one-hot labels."""
    return -(jax.nn.log_softmax(logits) * jax.nn.one_hot(labels, logits.shape[-1])).sum(-1)


ACTIVATIONS = {
    jbp.ReLU(): {"jax.nn.relu": jax.nn.relu, "jnp.maximum": lambda z: jnp.maximum(z, 0)},
    jbp.Tanh(): {"jnp.tanh": jnp.tanh},
}
LOSSES = {"optax loss": optax.softmax_cross_entropy_with_integer_labels, "logsumexp": by_hand, "one-hot": one_hot}


@dataclass(frozen=True, eq=False)
class MLP:
    """`widths` from the input to the logits, and one batch of random examples."""

    widths: tuple[int, ...]
    activation: Any
    examples: int

    def __post_init__(self):
        network = jbp.mlp(*self.widths, activation=self.activation, last=jbp.Identity())
        keys = jax.random.split(jax.random.key(0), 3)
        set_ = lambda **values: self.__dict__.update(values)  # noqa: E731
        set_(cost=jbp.Cost(network, jbp.losses.SoftmaxCrossEntropy()), theta=network.init(keys[0]))
        set_(x=jax.random.normal(keys[1], (self.examples, self.widths[0])))
        set_(y=jax.random.randint(keys[2], (self.examples,), 0, self.widths[-1]))
