"""A layer of your own: three methods in your own file, nothing to register, and a check that it is right.

RMSNorm:   y = g · x̂,  x̂ = x / r,  r = √(mean x² + ε)
backward   δx = (ĝ − x̂ · mean(ĝ · x̂)) / r,  ĝ = δ · g
gradient   ∂C/∂g = Σ δ · x̂                      a pair of the form Sum
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

import jbp


class Gain(NamedTuple):
    g: jax.Array


@dataclass(frozen=True)
class RMSNorm:
    epsilon: float = 1e-6

    def init(self, key, x):
        return Gain(jnp.ones(x.shape[-1], x.dtype))

    def forward(self, params, x, context):
        r = jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return params.g * x / r, (x / r, r)

    def backward(self, params, feedback, saved, delta, read):
        x_hat, r = saved
        g_hat = delta * feedback.g
        delta_x = (g_hat - x_hat * jnp.mean(g_hat * x_hat, axis=-1, keepdims=True)) / r
        return delta_x, Gain(read.g(jbp.Sum(delta * x_hat)))


def main():
    digits = jbp.data.digits()
    network = jbp.Network([jbp.Dense(30), RMSNorm(), jbp.GELU(), jbp.Dense(10)], input=(64,))
    cost = jbp.Cost(network, jbp.losses.SoftmaxCrossEntropy())
    theta = network.init(jax.random.key(0))

    report = cost.compare(theta, digits.x, digits.y)
    print(report)
    assert report.ok

    # per-example norms, feedback alignment and all the rest now work for RMSNorm too
    _, norms = cost.measure(theta, digits.x, digits.y, jbp.SquaredNorms())
    print("largest gradient of one digit:", float(jnp.sqrt(norms.max())))
    return report


if __name__ == "__main__":
    main()
