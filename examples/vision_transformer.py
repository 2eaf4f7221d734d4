"""A vision transformer on the digits: patches of 2 × 2 pixels as positions, its gradient by hand.

python examples/vision_transformer.py
"""

import jax
import jax.numpy as jnp
import optax

import jbp

WIDTH, HEADS, BLOCKS = 32, 4, 2


def patches(images: jax.Array) -> jax.Array:
    """`[N, 64]` pixels as `[N, 16, 4]`: positions, and the pixels of each."""
    return images.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 4)


def block() -> jbp.Layer:
    mlp = {"norm": jbp.LayerNorm(), "up": jbp.Dense(2 * WIDTH), "gelu": jbp.GELU(), "down": jbp.Dense(WIDTH)}
    mix = {"norm": jbp.LayerNorm(), "attention": jbp.Attention(HEADS)}
    return jbp.Sequential({"mix": jbp.Residual(jbp.Sequential(mix)), "mlp": jbp.Residual(jbp.Sequential(mlp))})


def main(epochs: int = 30) -> None:
    digits = jbp.data.digits()
    net = jbp.Network(
        {
            "patches": jbp.Dense(WIDTH),
            "positions": jbp.Positions(16),
            "blocks": jbp.Repeat(block(), BLOCKS),
            "norm": jbp.LayerNorm(),
            "mean": jbp.from_function(None, lambda _, x: x.mean(1), name="mean over patches"),
            "classes": jbp.Dense(10),
        },
        (16, 4),
    )
    cost = jbp.Cost(net, jbp.losses.SoftmaxCrossEntropy())
    theta, x, y = cost.init(jax.random.key(0)), patches(digits.x), digits.y
    by_hand, by_autodiff = cost.grad(theta, x[:32], y[:32]), jax.grad(cost)(theta, x[:32], y[:32])
    off = float(jnp.linalg.norm(by_hand - by_autodiff) / jnp.linalg.norm(by_autodiff))
    print(f"{theta.size:,} parameters; the gradient by hand is jax.grad's to {off:.0e}.")
    assert off < 1e-5

    run = jbp.fit(cost, theta, (x, y), optimizer=optax.adam(3e-3), batch_size=64, epochs=epochs, key=jax.random.key(1))
    right = (net(run.theta, patches(digits.held_out_x)).argmax(1) == digits.held_out_y).mean()
    print(f"{float(right):.0%} of the held-out digits are read right.")
    assert right > 0.85


if __name__ == "__main__":
    main()
