"""A loss of your own: C_n and its δ, or C_n alone; and a loss that has parameters, tied to the network's or its own.

    value      C_n = Σ_j log cosh(a_j − y_j)          [N]: one number for each example, no mean
    delta      δ_j = tanh(a_j − y_j)                  ∂C_n/∂a, the base case of the induction

A loss with parameters is a layer from (output, y) to C_n. Here it scores each digit by one prototype in the last hidden
layer; its leaf stands behind the network's in θ, as `loss.w`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

import jbp


@dataclass(frozen=True)
class LogCosh:
    def value(self, output, y):
        r = jnp.abs(output - y)
        return (r + jnp.log1p(jnp.exp(-2 * r)) - jnp.log(2.0)).sum(-1)

    def delta(self, output, y):
        return jnp.tanh(output - y)


@dataclass(frozen=True)
class Prototypes:
    """C_n = log Σ_c e^{z_c} − z_y, z = h·w. Saved: h, y and the probabilities."""

    classes: int

    def init(self, key, x):
        h, _ = x  # y is not known yet
        return {"w": jax.random.normal(key, (h.shape[-1], self.classes), h.dtype) / jnp.sqrt(h.shape[-1])}

    def forward(self, params, x, context):
        h, y = x
        log_p = jax.nn.log_softmax(h @ params["w"])
        return -jnp.take_along_axis(log_p, y[:, None], 1)[:, 0], (h, y, jnp.exp(log_p))

    def backward(self, params, feedback, saved, delta, read):
        h, y, p = saved
        d = (p - jax.nn.one_hot(y, self.classes, dtype=p.dtype)) * delta[:, None]
        return (d @ feedback["w"].T, None), {"w": read["w"](jbp.Outer(h, d))}


def main():
    digits = jbp.data.digits()
    x, y = jnp.asarray(digits.x), jnp.asarray(digits.y)
    one_hot = jax.nn.one_hot(y, 10)

    by_hand = jbp.Cost(jbp.mlp(64, 20, 10, last=jbp.Identity()), LogCosh())
    theta = by_hand.init(jax.random.key(0))
    assert by_hand.compare(theta, x, one_hot, timing=False).ok
    alone = jbp.Cost(by_hand.network, jbp.losses.from_function(LogCosh().value))  # its delta by jax.grad
    assert jnp.allclose(alone.grad(theta, x, one_hot), by_hand.grad(theta, x, one_hot), atol=1e-6)

    cost = jbp.Cost(jbp.Network([jbp.Dense(20), jbp.Tanh()], input=(64,)), Prototypes(10))
    theta = cost.init(jax.random.key(0))
    assert cost.compare(theta, x, y, timing=False).ok
    run = jbp.fit(cost, theta, (x, y), epochs=20)
    hidden, prototypes = cost.split(run.theta)
    scores = cost.network(hidden, digits.held_out_x) @ prototypes.reshape(20, 10)
    accuracy = float((scores.argmax(1) == digits.held_out_y).mean())
    print(f"leaves: {', '.join(cost.layout.names)}; held-out accuracy {accuracy:.1%}")
    assert accuracy > 0.8
    return accuracy


if __name__ == "__main__":
    main()
