"""Causal attention, its output and the gradients of q, k and v: no array of all scores exists, forward or in reverse.

Two sizes, float32: batch 2, 1024 positions, 8 heads of width 64; and batch 1, 2048 positions, 4 heads. Every program
returns the output and all three gradients, from a given δ. jbp.DotProductAttention's peers are jax.grad of
jax.nn.dot_product_attention and of the plain einsum, each as it is and under jax.checkpoint. Beside them stands
jax.grad of jbp's own forward, as it is and under jax.checkpoint: what is left over it is the reverse pass's own merit;
and PyTorch's scaled_dot_product_attention with its fused kernel for the CPU, where PyTorch is installed.
"""

from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

import jbp

torch = harness.optional("torch")

LAYER = jbp.DotProductAttention(causal=True)
OURS, TORCH = "jbp", "PyTorch, fused"


def einsum(q: Any, k: Any, v: Any) -> Any:
    """As it is written by hand."""
    scores = jnp.einsum("nthd,nshd->nhts", q, k) / np.sqrt(q.shape[-1])
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jnp.einsum("nhts,nshd->nthd", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1), v)


def of_jax(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def same(q: Any, k: Any, v: Any) -> Any:
    return LAYER.forward((), (q, k, v), jbp.Context())[0]


def both_ways(f: Callable) -> Callable:
    """(q, k, v, δ) -> (the output, the gradients)."""

    def run(q: Any, k: Any, v: Any, delta: Any) -> Any:
        out, pull = jax.vjp(f, q, k, v)
        return out, pull(delta)

    return run


def ours(q: Any, k: Any, v: Any, delta: Any) -> Any:
    out, back = jbp.run(LAYER, (), (q, k, v))
    return out, back(delta)[0]


def in_torch(*arrays: Any) -> harness.Rival:
    q, k, v, delta = (torch.tensor(np.asarray(a)).transpose(1, 2).contiguous() for a in arrays)
    for a in (q, k, v):
        a.requires_grad_(True)

    def run() -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        gradients = torch.autograd.grad(out, (q, k, v), delta)
        back = lambda a: a.detach().transpose(1, 2).numpy()
        return back(out), tuple(map(back, gradients))

    return harness.Rival(run)


def measure(report: harness.Report) -> None:
    sizes = [(1, 64, 2, 8)] if report.quick else [(2, 1024, 8, 64), (1, 2048, 4, 64)]
    bounds = [(0.4, 0.75, 0.14), (0.3, 0.65, 0.14)]
    for (n, t, h, d), (usual, reverse, memory) in zip(sizes, bounds, strict=False):
        args = [jax.random.normal(key, (n, t, h, d)) for key in jax.random.split(jax.random.key(0), 4)]
        named = {"einsum": einsum, "jax.nn": of_jax}
        peers = {f"jax.grad: {name}": f for name, f in named.items()}
        peers |= {f"jax.grad: {name}, checkpointed": jax.checkpoint(f) for name, f in named.items()}
        beside = {"jax.grad: the same forward": same, "and checkpointed": jax.checkpoint(same)}
        mine = {OURS: harness.compiled(ours, *args)}
        peers, beside = (
            {k: harness.compiled(both_ways(f), *args) for k, f in each.items()} for each in (peers, beside)
        )
        others = {TORCH: in_torch(*args)} if torch else {}
        every = {**mine, **peers, **beside, **others}
        harness.agree(next(iter(peers.values())).call(), {name: rival.call() for name, rival in every.items()}, 1e-4)
        title = f"causal attention, {n} × {t} positions, {h} heads of {d}"
        race = report.race(title, mine, peers, beside | others)
        report.row(title, "`jax.grad`, the fastest of four", race, OURS, time_at_most=usual, memory_at_most=memory)
        for name in beside:
            report.row("the same", f"`{name}`", race, OURS, name, time_at_most=reverse)
        for name in others:
            report.row("the same", name, race, OURS, name, time_at_most=1.0)


if __name__ == "__main__":
    harness.run(__doc__, measure, rounds=12)
