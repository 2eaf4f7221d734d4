"""GPT-2, written out: its layers by name, its gradient by hand, a small one trained as a character model.

    python examples/gpt2.py            # a few hundred steps on the source of Python's own library
    python examples/gpt2.py --steps 5000

The model of 124 million parameters is the same function with other numbers, and takes the published weights:

    theta = gpt2(GPT2_124M).layout.load("model.safetensors", published(GPT2_124M), ignore=MASKS)
"""

import argparse
import inspect
import string
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbp


@dataclass(frozen=True)
class Config:
    vocabulary: int
    length: int
    width: int
    heads: int
    blocks: int
    implementation: str = "xla"  # of the attention, "cudnn" on CUDA


GPT2_124M = Config(vocabulary=50257, length=1024, width=768, heads=12, blocks=12)
SMALL = Config(vocabulary=128, length=64, width=64, heads=4, blocks=2)


def block(config: Config) -> jbp.Layer:
    """x + attention(norm(x)), and then x + MLP(norm(x))."""
    dense = lambda width: jbp.Dense(width, weights=jax.nn.initializers.normal(0.02))
    settings = {"weights": jax.nn.initializers.normal(0.02), "implementation": config.implementation}
    attention = jbp.Attention(config.heads, causal=True, **settings)
    return jbp.Sequential(
        {
            "mix": jbp.Residual(jbp.Sequential({"norm": jbp.LayerNorm(), "attention": attention})),
            "mlp": jbp.Residual(
                jbp.Sequential(
                    {
                        "norm": jbp.LayerNorm(),
                        "up": dense(4 * config.width),
                        "gelu": jbp.GELU(),
                        "down": dense(config.width),
                    }
                )
            ),
        }
    )


def gpt2(config: Config, **settings) -> jbp.Cost:
    """The mean cross-entropy of the next token over all positions. The output's kernel is the table of the input."""
    network = jbp.Network(
        {
            "tokens": jbp.Embedding(config.vocabulary, config.width, weights=jax.nn.initializers.normal(0.02)),
            "positions": jbp.Positions(config.length, weights=jax.nn.initializers.normal(0.02)),
            "blocks": jbp.Repeat(block(config), config.blocks),
            "norm": jbp.LayerNorm(),
        },
        jax.ShapeDtypeStruct((config.length,), jnp.int32),
        **settings,
    )
    loss = jbp.losses.LinearCrossEntropy(config.vocabulary)
    return jbp.Cost(network, loss, "positions", tied={"loss.w": "tokens.table.T"})


MASKS = ["h.*.attn.bias", "h.*.attn.masked_bias"]  # causal masks: stored with the weights, and none of them


def published(config: Config) -> dict[str, str]:
    """Where each leaf stands in the weights that Hugging Face publishes as `gpt2`: their kernels are [in, out] too."""
    names = {"tokens.table": "wte.weight", "positions.table": "wpe.weight"}
    for ours, theirs in {"mix.layer.norm": "h.{i}.ln_1", "mlp.layer.norm": "h.{i}.ln_2"}.items():
        names |= {f"blocks.layer.{ours}.gain": f"{theirs}.weight", f"blocks.layer.{ours}.bias": f"{theirs}.bias"}
    names |= {"norm.gain": "ln_f.weight", "norm.bias": "ln_f.bias"}
    dense = {"mix.layer.attention.out": "attn.c_proj", "mlp.layer.up": "mlp.c_fc", "mlp.layer.down": "mlp.c_proj"}
    for ours, theirs in dense.items():
        names |= {f"blocks.layer.{ours}.{k}": f"h.{{i}}.{theirs}.{v}" for k, v in (("w", "weight"), ("b", "bias"))}
    for k, part in enumerate("qkv"):  # one array holds all three
        columns = f"{k * config.width}:{(k + 1) * config.width}"
        ours, theirs = f"blocks.layer.mix.layer.attention.{part}", "h.{i}.attn.c_attn"
        names |= {f"{ours}.w": f"{theirs}.weight[:, {columns}]", f"{ours}.b": f"{theirs}.bias[{columns}]"}
    return names


def text() -> np.ndarray:
    """The source of a few modules of Python's own library, as ASCII codes."""
    modules = (argparse, inspect, string)
    source = "".join(inspect.getsource(module) for module in modules)
    return np.frombuffer(source.encode("ascii", "ignore"), np.uint8).astype(np.int32)


def sample(cost: jbp.Cost, theta: jax.Array, prompt: str, count: int, key: jax.Array) -> str:
    """The prompt, and so many characters more."""
    config = SMALL
    table = cost.layout.unflatten(theta).tokens.table

    @jax.jit
    def one(tokens: jax.Array, at: jax.Array, key: jax.Array) -> jax.Array:
        h = cost.network(theta, tokens[None])[0, at]
        return jax.random.categorical(key, table @ h)

    tokens = [ord(c) for c in prompt]
    for draw in jax.random.split(key, count):
        window = tokens[-config.length :]
        padded = jnp.zeros(config.length, jnp.int32).at[: len(window)].set(jnp.asarray(window))
        tokens.append(int(one(padded, len(window) - 1, draw)))
    return "".join(map(chr, tokens))


def main(steps: int = 60) -> None:
    assert gpt2(GPT2_124M).layout.size == 124_439_808
    config, codes = SMALL, text()
    cost = gpt2(config)
    theta = cost.init(jax.random.key(0))
    print(f"{theta.size:,} parameters; {len(codes):,} characters")

    starts = np.arange(0, len(codes) - config.length - 1, config.length // 2)
    x = np.stack([codes[i : i + config.length] for i in starts])
    y = np.stack([codes[i + 1 : i + 1 + config.length] for i in starts])

    by_hand, by_autodiff = cost.grad(theta, x[:4], y[:4]), jax.grad(cost)(theta, x[:4], y[:4])
    off = float(jnp.linalg.norm(by_hand - by_autodiff) / jnp.linalg.norm(by_autodiff))
    print(f"The gradient by hand is jax.grad's to {off:.0e}.")
    assert off < 1e-5

    @jax.jit
    def train(theta, state, key):
        def step(carry, key):
            params, state = carry
            batch = jax.random.choice(key, len(x), (16,))
            value, gradient = cost.value_and_grad_leaves(params, jnp.asarray(x)[batch], jnp.asarray(y)[batch])
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (theta, state), jax.random.split(key, 20))

    optimizer = optax.adamw(3e-3)
    params = cost.layout.unflatten(theta)
    state, first = optimizer.init(params), None
    for i in range(steps // 20):
        (params, state), values = train(params, state, jax.random.fold_in(jax.random.key(1), i))
        first = float(values[0]) if first is None else first
        print(f"step {20 * (i + 1)}: {float(values[-1]):.2f} nats a character")
    assert float(values[-1]) < first - 1
    print(sample(cost, cost.layout.flatten(params), "    def ", 80, jax.random.key(2)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
