"""A decoder like Llama: RMS norms, rotary positions, grouped queries, SwiGLU, no biases.

    python examples/llama.py

It learns to go on with sequences that repeat themselves, which takes attention to what came a period before.
`PUBLISHED` says where each leaf stands in the weights of Llama as Hugging Face has them, whose rotary positions turn
the two halves of a head, as here. Their config says the rest: `rms_norm_eps` is `RMSNorm(epsilon)`, `rope_theta` is
`Attention(rope=)`. Of a tied head (`tie_word_embeddings`), which a file may leave out, write
`"head.w": "model.embed_tokens.weight.T"`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbp

CLASSES, LENGTH, WIDTH, HEADS, KV_HEADS, BLOCKS = 16, 24, 32, 4, 2, 2

_LAYER = "model.layers.{i}"  # PyTorch's kernels are [out, in]
PUBLISHED = {
    "tokens.table": "model.embed_tokens.weight",
    "blocks.layer.mix.layer.norm.gain": f"{_LAYER}.input_layernorm.weight",
    "blocks.layer.mix.layer.attention.q.w": f"{_LAYER}.self_attn.q_proj.weight.T",
    "blocks.layer.mix.layer.attention.k.w": f"{_LAYER}.self_attn.k_proj.weight.T",
    "blocks.layer.mix.layer.attention.v.w": f"{_LAYER}.self_attn.v_proj.weight.T",
    "blocks.layer.mix.layer.attention.out.w": f"{_LAYER}.self_attn.o_proj.weight.T",
    "blocks.layer.mlp.layer.norm.gain": f"{_LAYER}.post_attention_layernorm.weight",
    "blocks.layer.mlp.layer.gate.gate.w": f"{_LAYER}.mlp.gate_proj.weight.T",
    "blocks.layer.mlp.layer.gate.up.w": f"{_LAYER}.mlp.up_proj.weight.T",
    "blocks.layer.mlp.layer.down.w": f"{_LAYER}.mlp.down_proj.weight.T",
    "norm.gain": "model.norm.weight",
    "head.w": "lm_head.weight.T",
}


def block() -> jbp.Layer:
    attention = jbp.Attention(HEADS, KV_HEADS, causal=True, rope=10_000.0, bias=False)
    mix = {"norm": jbp.RMSNorm(), "attention": attention}
    mlp = {"norm": jbp.RMSNorm(), "gate": jbp.GLU(2 * WIDTH), "down": jbp.Dense(WIDTH, bias=False)}
    return jbp.Sequential({"mix": jbp.Residual(jbp.Sequential(mix)), "mlp": jbp.Residual(jbp.Sequential(mlp))})


def llama(head: jbp.Layer, **settings) -> jbp.Cost:
    network = jbp.Network(
        {
            "tokens": jbp.Embedding(CLASSES, WIDTH, weights=jax.nn.initializers.normal(1.0)),
            "blocks": jbp.Repeat(block(), BLOCKS),
            "norm": jbp.RMSNorm(),
            "head": head,
        },
        jax.ShapeDtypeStruct((LENGTH,), jnp.int32),
        **settings,
    )
    return jbp.Cost(network, jbp.losses.SoftmaxCrossEntropy(), "positions")


def repeating(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of period 8, and what comes next at each position."""
    period = np.random.default_rng(seed).integers(0, CLASSES, (n, 8))
    whole = np.tile(period, (1, 4))[:, : LENGTH + 1].astype(np.int32)
    return whole[:, :-1], whole[:, 1:]


def main(epochs: int = 12) -> None:
    cost = llama(jbp.Dense(CLASSES, bias=False))
    theta, (x, y) = cost.init(jax.random.key(0)), repeating(0, 2048)
    by_hand, by_autodiff = cost.grad(theta, x[:32], y[:32]), jax.grad(cost)(theta, x[:32], y[:32])
    off = float(jnp.linalg.norm(by_hand - by_autodiff) / jnp.linalg.norm(by_autodiff))
    print(f"{theta.size:,} parameters; the gradient by hand is jax.grad's to {off:.0e}.")
    assert off < 1e-5

    run = jbp.fit(cost, theta, (x, y), optimizer=optax.adam(3e-3), batch_size=64, epochs=epochs, key=jax.random.key(1))
    x, y = repeating(1, 256)
    right = (cost.network(run.theta, x).argmax(-1) == y)[:, 8:].mean()  # from the second period on
    print(f"{float(right):.0%} of the second period and later are foretold right.")
    assert right > 0.9


if __name__ == "__main__":
    main()
