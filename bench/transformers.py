"""Blocks of transformers and a whole GPT's step: the cost and the gradients of all weights, in one program.

    4 GPT blocks     width 256, 4 heads, batch 2 × 1024 and 4 × 256 positions
    a Llama block    width 512, 8 heads of queries on 2 of keys, rotary positions, SwiGLU, 1 × 1024
    a GPT's step     4 such GPT blocks, 16,384 classes, tied, 4 × 512: jbp's loss is LinearCrossEntropy

float32; every program returns the cost and all gradients, as leaves. jbp's layers stand in a loop (`Repeat`), as they
are and each in `Checkpoint`, or one after another; their peers are jax.grad of the same network as it is mostly written
in plain JAX: with jax.nn's attention or the plain einsum, blocks unrolled or scanned, each as it is and with every
block under jax.checkpoint. Beside them stand jax.grad of jbp's own forward, as it is and under
jax.checkpoint, and PyTorch, eager and compiled, where it is installed.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

import jbp

torch = harness.optional("torch")

EAGER, COMPILED = "PyTorch, eager", "PyTorch, compiled"
LOOP, UNROLLED, AGAIN = "jbp", "jbp, unrolled", "jbp, each block in Checkpoint"
SAME, CHECKPOINTED = "jax.grad: the same forward", "and checkpointed"


# -- jbp's ------------------------------------------------------------------------------------------------------------


def gpt_block(width: int, heads: int) -> jbp.Layer:
    mlp = [jbp.LayerNorm(), jbp.Dense(4 * width), jbp.GELU(), jbp.Dense(width)]
    attention = [jbp.LayerNorm(), jbp.Attention(heads, causal=True)]
    return jbp.Sequential([jbp.Residual(jbp.Sequential(attention)), jbp.Residual(jbp.Sequential(mlp))])


def llama_block(width: int, heads: int, kv_heads: int) -> jbp.Layer:
    attention = jbp.Attention(heads, kv_heads, causal=True, rope=10_000.0, bias=False)
    mlp = [jbp.RMSNorm(), jbp.GLU(8 * width // 3), jbp.Dense(width, bias=False)]
    return jbp.Sequential([jbp.Residual(jbp.Sequential([jbp.RMSNorm(), attention])), jbp.Residual(jbp.Sequential(mlp))])


def repeated(block: jbp.Layer, n: int) -> dict[str, jbp.Layer]:
    """n such blocks, in each way that jbp has; their params have one structure."""
    ways = {LOOP: jbp.Repeat(block, n), AGAIN: jbp.Repeat(jbp.Checkpoint(block), n)}
    return ways | {UNROLLED: jbp.Repeat(block, n, unroll=True)}


# -- the same in plain JAX --------------------------------------------------------------------------------------------


def dense(p: Any, x: Any) -> Any:
    y = x @ p.w
    return y if p.b is None else y + p.b


def norm(p: Any, x: Any) -> Any:
    if p.bias is None:
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * p.gain
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * p.gain + p.bias


def rotary(x: Any) -> Any:
    one, two = jnp.split(x, 2, -1)
    d, t = x.shape[-1], x.shape[1]
    angles = np.arange(t)[:, None, None] * 10_000.0 ** (-2 * np.arange(d // 2) / d)
    cos, sin = (jnp.asarray(f(angles), x.dtype) for f in (np.cos, np.sin))
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], -1)


def einsum(q: Any, k: Any, v: Any) -> Any:
    k, v = (jnp.repeat(a, q.shape[2] // k.shape[2], axis=2) for a in (k, v))
    scores = jnp.einsum("nthd,nshd->nhts", q, k) / np.sqrt(q.shape[-1])
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jnp.einsum("nhts,nshd->nthd", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1), v)


def of_jax(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def plain_block(core: Callable, heads: int, kv_heads: int, rope: bool) -> Callable:
    def run(p: Any, x: Any) -> Any:
        (first, its), mlp = p[0].layer, p[1].layer
        h = norm(first, x)
        q, k, v = (
            dense(part, h).reshape(*x.shape[:2], n, -1)
            for part, n in ((its.q, heads), (its.k, kv_heads), (its.v, kv_heads))
        )
        q, k = map(rotary, (q, k)) if rope else (q, k)
        x = x + dense(its.out, core(q, k, v).reshape(*x.shape[:2], -1))
        h = norm(mlp[0], x)
        if hasattr(mlp[1], "gate"):
            return x + dense(mlp[2], jax.nn.silu(dense(mlp[1].gate, h)) * dense(mlp[1].up, h))
        return x + dense(mlp[3], jax.nn.gelu(dense(mlp[1], h)))

    return run


def plain_blocks(core: Callable, scanned: bool, checkpointed: bool, *settings: Any) -> Callable:
    """(the blocks' params, stacked; x) -> output."""
    block = plain_block(core, *settings)
    block = jax.checkpoint(block) if checkpointed else block

    def run(p: Any, x: Any) -> Any:
        if scanned:
            return jax.lax.scan(lambda x, its: (block(its, x), None), x, p)[0]
        for i in range(len(jax.tree.leaves(p)[0])):
            x = block(jax.tree.map(lambda a, i=i: a[i], p), x)
        return x

    return run


def usual(whole: Callable, *settings: Any) -> dict[str, Callable]:
    """Each way of writing it; `whole(blocks)` is the cost of (params, x, y)."""
    ways = product({"jax.nn": of_jax, "einsum": einsum}.items(), (False, True), (False, True))
    name = lambda core, scanned, again: (
        f"jax.grad: {core}, {'scanned' if scanned else 'unrolled'}{', checkpointed' if again else ''}"
    )
    return {name(core, s, c): whole(plain_blocks(f, s, c, *settings)) for (core, f), s, c in ways}


def half_squares(blocks: Callable) -> Callable:
    """The cost of blocks, which give (their params, x) -> output."""
    return lambda p, x, y: 0.5 * jnp.square(blocks(p[0].layer, x) - y).sum() / len(x)


# -- the same in PyTorch ----------------------------------------------------------------------------------------------


def torch_block(p: Any, x: Any, heads: int, kv_heads: int, rope: bool) -> Any:
    of, (n, t, _) = torch.nn.functional, x.shape
    linear = lambda p, x: of.linear(x, p.w.T, p.b)
    width = x.shape[-1:]
    norm = lambda p, x: (
        of.rms_norm(x, width, p.gain, 1e-6) if p.bias is None else of.layer_norm(x, width, p.gain, p.bias, 1e-5)
    )
    (first, its), mlp = p[0].layer, p[1].layer
    h = norm(first, x)
    q, k, v = (
        linear(part, h).view(n, t, count, -1).transpose(1, 2)
        for part, count in ((its.q, heads), (its.k, kv_heads), (its.v, kv_heads))
    )
    if rope:
        d = q.shape[-1]
        angles = np.outer(np.arange(t), 10_000.0 ** (-2 * np.arange(d // 2) / d))
        cos, sin = (torch.tensor(f(angles), dtype=x.dtype) for f in (np.cos, np.sin))
        turned = lambda one, two: torch.cat([one * cos - two * sin, two * cos + one * sin], -1)
        q, k = (turned(*part.chunk(2, -1)) for part in (q, k))
    k, v = (part.repeat_interleave(heads // kv_heads, 1) for part in (k, v))
    o = of.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + linear(its.out, o.transpose(1, 2).reshape(n, t, -1))
    h = norm(mlp[0], x)
    if hasattr(mlp[1], "gate"):
        return x + linear(mlp[2], of.silu(linear(mlp[1].gate, h)) * linear(mlp[1].up, h))
    return x + linear(mlp[3], of.gelu(linear(mlp[1], h), approximate="tanh"))


def in_torch(params: Any, x: Any, y: Any, settings: tuple[int, int, bool], tokens: bool) -> dict[str, harness.Rival]:
    """The cost and all gradients in PyTorch, eager and compiled, if it is installed; of blocks, or of a whole GPT."""
    if torch is None:
        return {}
    leaves, treedef = jax.tree.flatten(params)
    leaves = [torch.tensor(np.asarray(a)).requires_grad_() for a in leaves]
    x, y = (torch.tensor(np.asarray(a)) for a in (x, y))

    def cost(p: Any, blocks: list[Any]) -> Any:
        h = p[0].table[x] + p[1].table if tokens else x
        for block in blocks:
            h = torch_block(block, h, *settings)
        if not tokens:
            return 0.5 * torch.square(h - y).sum() / len(x)
        h = torch.nn.functional.layer_norm(h, h.shape[-1:], p[3].gain, p[3].bias, 1e-5)
        return torch.nn.functional.cross_entropy((h @ p[0].table.T).flatten(0, 1), y.flatten().long())

    def blocks_of(p: Any) -> list[Any]:
        blocks = p[2 if tokens else 0].layer
        return [jax.tree.map(lambda a, i=i: a[i], blocks) for i in range(len(jax.tree.leaves(blocks)[0]))]

    def rival(cost: Callable) -> harness.Rival:
        def call() -> Any:
            p: Any = treedef.unflatten(leaves)
            value = cost(p, blocks_of(p))
            return value.detach().numpy(), [g.numpy() for g in torch.autograd.grad(value, leaves)]

        return harness.Rival(call)

    return {EAGER: rival(cost), COMPILED: rival(torch.compile(cost))}


# -- races ------------------------------------------------------------------------------------------------------------


def race(
    report: harness.Report,
    title: str,
    costs: dict[str, jbp.Cost],
    peers: dict,
    x: Any,
    y: Any,
    settings: tuple[int, int, bool],
    *bounds: float,
) -> None:
    """All rivals on one set of weights; the leaves of jbp's ways are the same."""
    cost = costs[LOOP]
    theta = cost.init(jax.random.key(0))
    params = cost.layout.unflatten(theta)
    ours = {
        name: harness.compiled(lambda p, x, y, c=c: c.value_and_grad_leaves(p, x, y), c.layout.unflatten(theta), x, y)
        for name, c in costs.items()
    }
    of = lambda f: harness.compiled(jax.value_and_grad(f), params, x, y)
    peers = {name: of(f) for name, f in peers.items()}
    beside = {SAME: of(cost.value_leaves), CHECKPOINTED: of(jax.checkpoint(cost.value_leaves))}
    # as one vector: the gradient of a bias of keys is 0 but for rounding, where nothing is turned
    whole = lambda rival: np.concatenate([np.ravel(a) for a in jax.tree.leaves(rival.call())])
    others = in_torch(params, x, y, settings, x.dtype == jnp.int32)
    every = {**ours, **peers, **beside, **others}
    harness.agree(whole(next(iter(peers.values()))), {name: whole(rival) for name, rival in every.items()}, 1e-4)
    named = report.race(title, ours, peers, beside | others)
    usual_time, same_time, memory, torch_time = bounds
    report.row(title, "`jax.grad`, the fastest of eight", named, LOOP, time_at_most=usual_time, memory_at_most=memory)
    for name in beside:
        report.row("the same", f"`{name}`", named, LOOP, name, time_at_most=same_time)
    for name in others:
        report.row("the same", name, named, LOOP, name, time_at_most=torch_time)
    report.row("the same, each block in `Checkpoint`", "`jax.grad`, the fastest of eight", named, AGAIN)


def measure(report: harness.Report) -> None:
    quick, random = report.quick, np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)
    squared = jbp.losses.HalfSquaredError()

    def of_blocks(block: jbp.Layer, n: int, shape: tuple[int, ...]) -> dict[str, jbp.Cost]:
        return {name: jbp.Cost(jbp.Network([blocks], shape), squared) for name, blocks in repeated(block, n).items()}

    width, heads = (16, 2) if quick else (256, 4)
    sizes = (2, 1024, 0.48, 0.8, 0.33, 1), (4, 256, 0.7, 0.85, 0.6, 1)
    for n, t, *bounds in [(1, 32, 1, 1, 1, 1)] if quick else sizes:
        costs = of_blocks(gpt_block(width, heads), 4, (t, width))
        x, y = normal(n, t, width), normal(n, t, width)
        settings = heads, heads, False
        title = f"4 GPT blocks of width {width}, {n} × {t} positions"
        race(report, title, costs, usual(half_squares, *settings), x, y, settings, *bounds)

    width, heads, kv_heads, t = (16, 4, 2, 32) if quick else (512, 8, 2, 1024)
    costs = of_blocks(llama_block(width, heads, kv_heads), 1, (t, width))
    settings = heads, kv_heads, True
    x, y = normal(1, t, width), normal(1, t, width)
    title = f"a Llama block of width {width}, {heads} heads on {kv_heads}, 1 × {t} positions"
    race(report, title, costs, usual(half_squares, *settings), x, y, settings, 0.55, 0.8, 0.4, 1)

    width, heads, classes, n, t = (16, 2, 100, 2, 32) if quick else (256, 4, 16_384, 4, 512)

    def gpt(blocks: jbp.Layer) -> jbp.Cost:
        layers = [jbp.Embedding(classes, width), jbp.Positions(t), blocks, jbp.LayerNorm()]
        net = jbp.Network(layers, jax.ShapeDtypeStruct((t,), jnp.int32))
        return jbp.Cost(net, jbp.losses.LinearCrossEntropy(classes), "positions", tied={"loss.w": "0.table.T"})

    def cross_entropy(blocks: Callable) -> Callable:
        def cost(p: Any, x: Any, y: Any) -> Any:
            h = norm(p[3], blocks(p[2].layer, p[0].table[x] + p[1].table))
            z = h @ p[0].table.T
            return (jax.nn.logsumexp(z, -1) - jnp.take_along_axis(z, y[..., None], -1)[..., 0]).mean()

        return cost

    x, y = (jnp.asarray(random.integers(0, classes, (n, t)), jnp.int32) for _ in range(2))
    title = f"a GPT's step, {classes:,} classes, {n} × {t} positions"
    settings = heads, heads, False
    costs = {name: gpt(blocks) for name, blocks in repeated(gpt_block(width, heads), 4).items()}
    race(report, title, costs, usual(cross_entropy, *settings), x, y, settings, 0.6, 0.85, 0.2, 0.95)


if __name__ == "__main__":
    harness.run(__doc__, measure, rounds=9)
