"""The feedback dial: random weights carry δ down, and the network learns all the same.

Lillicrap et al. 2016, doi:10.1038/ncomms13276. The reverse pass is the same code with another vector; here it is used
with optax on θ directly, and the angle between its gradient and the true one is measured along the way.
"""

import jax
import jax.numpy as jnp
import optax

import jbp


def main():
    digits = jbp.data.digits()
    x, y = jnp.asarray(digits.x), jax.nn.one_hot(digits.y, 10)
    network = jbp.mlp(64, 60, 30, 10, activation=jbp.Tanh(), last=jbp.Sigmoid())
    cost = jbp.Cost(network, jbp.losses.HalfSquaredError())
    theta, feedback = network.init(jax.random.key(0)), network.init(jax.random.key(1))
    optimizer = optax.adam(3e-3)

    def step(carry, _):
        theta, state = carry
        gradient = cost.grad(theta, x, y, feedback=feedback)
        true = cost.grad(theta, x, y)
        cosine = gradient @ true / (jnp.linalg.norm(gradient) * jnp.linalg.norm(true))
        updates, state = optimizer.update(gradient, state)
        return (theta + updates, state), cosine

    (theta, _), cosines = jax.jit(lambda *start: jax.lax.scan(step, start, length=300))(theta, optimizer.init(theta))
    accuracy = float((network(theta, digits.held_out_x).argmax(1) == digits.held_out_y).mean())
    print(f"cosine of the angle to the true gradient: {cosines[0]:.2f} at the start, {cosines[-1]:.2f} at the end")
    print(f"held-out accuracy with random feedback: {accuracy:.1%}")
    assert accuracy > 0.8
    return accuracy


if __name__ == "__main__":
    main()
