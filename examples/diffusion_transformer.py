"""A diffusion transformer (DiT) with adaptive norms on the 8 × 8 digits: noise becomes the digit that is asked for.

    python examples/diffusion_transformer.py              # 600 steps, half a minute
    python examples/diffusion_transformer.py --steps 5000

What a block does depends on a condition c, of the time and the digit: of each example, c gives a shift, a scale and a
gate for each channel (adaLN-Zero; Peebles & Xie 2022, arXiv:2212.09748). All three begin as 0, so that every block is
the identity at first. `Modulated` is a container of our own, its reverse written out:

    forward    z = x̂·(1 + scale) + shift,  y = gate·f(z)        shift, scale, gate `[N, W]`, the same at all positions
    backward   δ_gate = Σ_t δ·f(z),  δ_f = δ·gate,  then δ_z through f;
               δ_x̂ = δ_z·(1 + scale),  δ_scale = Σ_t δ_z·x̂,  δ_shift = Σ_t δ_z

Noise is taken away along a line from noise to data: the network learns ε − x at x_t = (1 − t)·x + t·ε, and a sample
follows it from t = 1 to 0 (Liu et al. 2022, arXiv:2209.03003).
"""

import argparse
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbp

WIDTH, HEADS, BLOCKS, BATCH, FREQUENCIES = 64, 4, 3, 64, 8
ZEROS = jax.nn.initializers.zeros


@dataclass(frozen=True)
class Modulated:
    """gate·f(x̂·(1 + scale) + shift) of x = (x̂ `[N, T, W]`, modulation `[N, 3·W]`); f keeps the shape of x̂."""

    layer: jbp.Layer

    def init(self, key, x):
        return {"layer": self.layer.init(key, x[0])}

    def forward(self, params, x, context):
        normal, modulation = x
        shift, scale, gate = jnp.split(modulation[:, None], 3, -1)
        y, kept = jbp.step("layer", self.layer, params["layer"], normal * (1 + scale) + shift, context)
        return gate * y, (normal, scale, gate, y, kept)

    def backward(self, params, feedback, saved, delta, read):
        normal, scale, gate, y, kept = saved
        d, readings = jbp.step_back(self.layer, params["layer"], feedback["layer"], kept, delta * gate, read["layer"])
        modulation = jnp.concatenate([d.sum(1), (d * normal).sum(1), (delta * y).sum(1)], -1)
        return (d * (1 + scale), modulation), {"layer": readings}


def adaptive(layer: jbp.Layer) -> jbp.Layer:
    """(h, c) -> (h + modulated layer(norm(h)), c)."""
    norm = jbp.LayerNorm(gain=False, bias=False)
    modulation = jbp.Sequential([jbp.SiLU(), jbp.Dense(3 * WIDTH, weights=ZEROS)])
    change = {"parts": jbp.Parallel({"norm": norm, "modulation": modulation}), "modulated": Modulated(layer)}
    condition = jbp.from_function(None, lambda _, x: x[1], name="condition")
    return jbp.Fork({"h": jbp.Residual(jbp.Sequential(change), of=lambda x: x[0]), "c": condition})


def block() -> jbp.Layer:
    mlp = jbp.Sequential({"up": jbp.Dense(4 * WIDTH), "gelu": jbp.GELU(), "down": jbp.Dense(WIDTH)})
    return jbp.Sequential({"mix": adaptive(jbp.Attention(HEADS)), "mlp": adaptive(mlp)})


def denoiser() -> jbp.Cost:
    """½‖network(patches, condition) − (ε − x)‖², the mean over examples."""
    patches = jbp.Sequential({"dense": jbp.Dense(WIDTH), "positions": jbp.Positions(16)})
    condition = jbp.Sequential({"first": jbp.Dense(WIDTH), "silu": jbp.SiLU(), "last": jbp.Dense(WIDTH)})
    network = jbp.Network(
        {
            "embedding": jbp.Parallel({"h": patches, "c": condition}),
            "blocks": jbp.Repeat(block(), BLOCKS),
            "h": jbp.from_function(None, lambda _, x: x[0], name="h"),
            "norm": jbp.LayerNorm(),
            "patches": jbp.Dense(4, weights=ZEROS),
        },
        tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((16, 4), (2 * FREQUENCIES + 10,))),
    )
    return jbp.Cost(network, jbp.losses.HalfSquaredError())


def patches_of(images: jax.Array) -> jax.Array:
    """`[N, 64]` pixels as `[N, 16, 4]`."""
    return images.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 4)


def images_of(patches: jax.Array) -> jax.Array:
    """`[N, 16, 4]` as `[N, 64]` pixels."""
    return patches.reshape(-1, 4, 4, 2, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 64)


def condition_of(t: jax.Array, digit: jax.Array) -> jax.Array:
    """Waves of t `[N]`, and the digit `[N]` as one-hot."""
    angles = t[:, None] * (np.pi / 2 * 1.6 ** np.arange(FREQUENCIES, dtype=np.float32))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles), jax.nn.one_hot(digit, 10)], -1)


def noisy(key: jax.Array, x: jax.Array, digit: jax.Array) -> tuple:
    """((x_t, condition), ε − x) at a time t of each example's own."""
    of_t, of_noise = jax.random.split(key)
    t, noise = jax.random.uniform(of_t, x.shape[:1]), jax.random.normal(of_noise, x.shape)
    at = t[:, None, None]
    return ((1 - at) * x + at * noise, condition_of(t, digit)), noise - x


def sampled(cost: jbp.Cost, theta: jax.Array, key: jax.Array, digit: jax.Array, steps: int = 25) -> jax.Array:
    """Images `[N, 64]` in [0, 1] of these digits."""

    def step(x, t):
        return x - cost.network(theta, (x, condition_of(jnp.full(len(digit), t), digit))) / steps, None

    times = jnp.linspace(1, 0, steps, endpoint=False)
    x, _ = jax.lax.scan(step, jax.random.normal(key, (len(digit), 16, 4)), times)
    return jnp.clip((images_of(x) + 1) / 2, 0, 1)


def shown(images: np.ndarray) -> str:
    """Images `[N, 64]` side by side, two letters a pixel."""
    letters = np.array(list(" .:-=+*#%@"))[(np.asarray(images).reshape(-1, 8, 8) * 9.99).astype(int)]
    return "\n".join("  ".join("".join(np.repeat(image[row], 2)) for image in letters) for row in range(8))


def main(steps: int = 40) -> None:
    digits, cost = jbp.data.digits(), denoiser()
    x, y = jnp.asarray(patches_of(2 * digits.x - 1)), jnp.asarray(digits.y)
    theta = cost.init(jax.random.key(0))

    # where all gates are 0 no gradient reaches the blocks: the check stands a little way off
    away = theta + 0.05 * jax.random.normal(jax.random.key(1), theta.shape)
    batch, target = noisy(jax.random.key(2), x[:16], y[:16])
    by_hand, by_autodiff = cost.grad(away, batch, target), jax.grad(cost)(away, batch, target)
    off = float(jnp.linalg.norm(by_hand - by_autodiff) / jnp.linalg.norm(by_autodiff))
    print(f"{theta.size:,} parameters; the gradient by hand is jax.grad's to {off:.0e}.")
    assert off < 1e-5

    optimizer = optax.adam(2e-3)

    @jax.jit
    def train(params, state, key):
        def step(carry, key):
            params, state = carry
            of_batch, of_noise = jax.random.split(key)
            rows = jax.random.choice(of_batch, len(x), (BATCH,))
            value, gradient = cost.value_and_grad_leaves(params, *noisy(of_noise, x[rows], y[rows]))
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, state), jax.random.split(key, 20))

    params = cost.layout.unflatten(theta)
    state, means = optimizer.init(params), []
    for i in range(steps // 20):
        (params, state), values = train(params, state, jax.random.fold_in(jax.random.key(3), i))
        means.append(float(values.mean()) * 2 / 64)
        if (i + 1) % max(1, steps // 100) == 0:
            print(f"step {20 * (i + 1)}: off by {means[-1]:.2f} in the mean square of a pixel")
    assert means[-1] < 0.9 * means[0]

    theta, asked = cost.layout.flatten(params), np.repeat(np.arange(10), 10)
    images = np.asarray(jax.jit(lambda theta: sampled(cost, theta, jax.random.key(4), asked))(theta))
    nearest = digits.y[((images[:, None] - digits.x[None]) ** 2).sum(-1).argmin(1)]
    print(shown(images[20:70:10]))
    print(f"{(nearest == asked).mean():.0%} of 100 samples are nearest to a digit of the kind that was asked for.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    main(parser.parse_args().steps)
