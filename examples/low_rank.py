"""LoRA: a network that has learned to read digits learns to read them lying on their side, by corrections of rank 8.

    python examples/low_rank.py

The kernels that are there stay as they are: no gradient of them is computed, no optimiser keeps anything for them, and
a step costs less. Each of these is printed as a number. Hu et al. 2021, arXiv:2106.09685.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbp

WIDTH, RANK = 256, 8
DENSE = ("first", "second", "classes")


def network(wrapped: Callable[[jbp.Layer], jbp.Layer]) -> jbp.Network:
    first, second, classes = (wrapped(jbp.Dense(width)) for width in (WIDTH, WIDTH, 10))
    layers = {"first": first, "gelu": jbp.GELU(), "second": second, "gelu_2": jbp.GELU(), "classes": classes}
    return jbp.Network(layers, (64,))


def lying(images: np.ndarray) -> np.ndarray:
    """The images turned by a quarter."""
    return np.rot90(images.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64)


def of_optimizer(run: jbp.Run) -> int:
    """How many numbers the optimiser keeps."""
    return sum(leaf.size for name, leaf in run.state.leaves.items() if name.startswith("optimizer.") and leaf.ndim)


def products(cost: jbp.Cost, theta: jax.Array, x: Any, y: Any) -> float:
    """Floating-point operations of one gradient, as XLA counts them."""
    counted: Any = jax.jit(cost.grad).lower(theta, x, y).compile().cost_analysis()
    return float((counted[0] if isinstance(counted, list) else counted)["flops"])


def main() -> None:
    digits, loss = jbp.data.digits(), jbp.losses.SoftmaxCrossEntropy()
    base, tuned = network(lambda dense: dense), network(lambda dense: jbp.LowRank(dense, RANK))
    of_base, of_tuned = jbp.Cost(base, loss), jbp.Cost(tuned, loss)
    settings = {"batch_size": 64, "key": jax.random.key(1)}
    x, held_out = lying(digits.x), lying(digits.held_out_x)
    right = lambda net, theta, x: float((net(theta, x).argmax(1) == digits.held_out_y).mean())

    run = jbp.fit(
        of_base, base.init(jax.random.key(0)), (digits.x, digits.y), optimizer=optax.adam(1e-3), epochs=10, **settings
    )
    print(f"Trained upright: {right(base, run.theta, digits.held_out_x):.0%} upright are read right, ", end="")
    print(f"and {right(base, run.theta, held_out):.0%} lying.")

    # the trained kernels, by the names that they had, and the corrections as they begin
    names = {f"{layer}.layer.fixed.{leaf}": f"{layer}.{leaf}" for layer in DENSE for leaf in "wb"}
    fresh = tuned.layout.named(tuned.init(jax.random.key(2)))
    corrections = {name: array for name, array in fresh.items() if name not in names}
    theta = tuned.layout.load(base.layout.named(run.theta) | corrections, names)
    assert np.array_equal(tuned(theta, x), base(run.theta, x))

    away = theta + 0.05 * jax.random.normal(jax.random.key(3), theta.shape)  # where no correction is 0
    by_hand, by_autodiff = of_tuned.grad(away, x, digits.y), jax.grad(of_tuned)(away, x, digits.y)
    off = float(jnp.linalg.norm(by_hand - by_autodiff) / jnp.linalg.norm(by_autodiff))
    print(f"The gradient by hand is jax.grad's to {off:.0e}.")
    assert off < 1e-5
    fixed = np.concatenate([np.full(n, not t) for n, t in zip(tuned.layout.sizes, tuned.layout.trainable, strict=True)])
    largest = float(jnp.abs(by_hand[fixed]).max())
    print(f"Of {tuned.layout.size:,} parameters {fixed.sum():,} are fixed; their largest derivative is {largest}.")
    assert largest == 0
    assert fixed.sum() == base.layout.size

    both = {}
    for name, cost, start in (("all", of_base, run.theta), ("corrections", of_tuned, theta)):
        fitted = jbp.fit(cost, start, (x, digits.y), optimizer=optax.adam(3e-3), epochs=15, **settings)
        both[name] = fitted, products(cost, start, x[:64], digits.y[:64])
        print(f"Trained lying, {name}: {right(cost.network, fitted.theta, held_out):.0%} are read right; the ", end="")
        print(f"optimiser keeps {of_optimizer(fitted):,} numbers; a gradient takes {both[name][1] / 1e6:.0f} MFLOP.")
    (_, dear), (low, cheap) = both["all"], both["corrections"]
    assert np.array_equal(low.theta[fixed], theta[fixed])
    assert of_optimizer(low) == 2 * (~fixed).sum()  # Adam's two moments
    assert cheap < 0.9 * dear
    assert right(tuned, low.theta, held_out) > 0.85


if __name__ == "__main__":
    main()
