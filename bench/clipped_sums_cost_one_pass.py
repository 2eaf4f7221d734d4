"""A sum of all per-example gradients, each clipped by its norm, costs at most 1.4 of one jax.grad.

cost.measure(theta, x, y, jbp.ClippedSum(1.0)) finds norms and the weighted sum from the same pairs, in one backward
pass. On an MLP, and on 4 GPT blocks of width 256 at 2 × 1024 and 8 × 256 positions. Its peers: jax.grad of the same
cost, which clips nothing; the definition, vmap(grad), whole or in chunks; and on the MLP jax-privacy's clipped_grad,
whole or in microbatches, and Opacus' ghost clipping in PyTorch, where these are installed. The squared norms alone
stand beside it: at most 0.65 of one gradient on the MLP, and 1.3 on the GPT.
"""

from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import mlps
import numpy as np
from transformers import gpt_block

import jbp

CLIP = 1.0
OURS, NORMS = "jbp's clipped sum", "jbp's squared norms"


def ours(cost: jbp.Cost, *arguments: Any) -> dict[str, harness.Rival]:
    read = lambda readout: lambda *arguments: cost.measure(*arguments, readout)[1]
    return {
        OURS: harness.compiled(read(jbp.ClippedSum(CLIP)), *arguments),
        NORMS: harness.compiled(read(jbp.SquaredNorms()), *arguments),
    }


def by_definition(value: Callable, chunk: int | None) -> Callable:
    """(params, x, y) -> Σ_n min(1, CLIP/‖g_n‖) g_n by vmap(grad), a chunk of examples at a time, or all at once."""

    def one(params, x, y):
        g = jax.grad(value)(params, x[None], y[None])
        norm = jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(g)))
        return jax.tree.map(lambda leaf: leaf * jnp.minimum(1, CLIP / norm), g)

    def summed(params, x, y):
        total = jax.tree.map(lambda a: a.sum(0), jax.vmap(one, (None, 0, 0))(params, x, y))
        return total

    def clipped(params, x, y):
        if chunk is None:
            return summed(params, x, y)
        cut = lambda a: a.reshape(-1, chunk, *a.shape[1:])
        add = lambda total, part: (jax.tree.map(jnp.add, total, summed(params, *part)), None)
        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (cut(x), cut(y)))[0]

    return clipped


clipping = harness.optional("jax_privacy.clipping")


def by_jax_privacy(plain: Callable, chunk: int | None) -> Callable:
    return clipping.clipped_grad(plain, l2_clip_norm=CLIP, batch_argnums=(1, 2), microbatch_size=chunk)


def by_opacus(problem: mlps.Problem) -> dict[str, harness.Rival]:
    """Opacus' two backward passes, by which norms are found and then the weighted sum, on the same weights."""
    torch, opacus = harness.optional("torch"), harness.optional("opacus.grad_sample")
    if torch is None or opacus is None:
        return {}
    network = mlps.relu_in_torch(problem.plain_params)
    model = opacus.GradSampleModuleFastGradientClipping(network, max_grad_norm=CLIP, loss_reduction="sum")
    x, y = torch.tensor(np.array(problem.x)), torch.tensor(np.array(problem.y)).long()

    def clipped() -> Any:
        model.zero_grad(set_to_none=True)
        model.enable_hooks()
        losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        losses.sum().backward(retain_graph=True)
        factors = model.get_clipping_coef()
        model.disable_hooks()
        model.zero_grad(set_to_none=True)
        (factors * losses).sum().backward()
        return [(layer.weight.grad.T.numpy(), layer.bias.grad.numpy()) for layer in network[::2]]

    return {"Opacus, ghost clipping": harness.Rival(clipped)}


def measure_mlp(report: harness.Report) -> None:
    problem = mlps.wide(report.quick)
    batch, ways = (problem.x, problem.y), mlps.plain_costs(problem)
    mine = ours(problem.cost, problem.theta, *batch)
    gradients = {f"jax.grad: {way}": harness.compiled(jax.grad(f), params, *batch) for way, (f, params) in ways.items()}
    plain, params = next(iter(ways.values()))
    chunks = {"whole batch": None, **({"chunks of 4": 4} if report.quick else {"chunks of 64": 64, "chunks of 8": 8})}
    definitions = {
        f"vmap(grad), {name}": harness.compiled(by_definition(plain, chunk), params, *batch)
        for name, chunk in chunks.items()
    }
    to_leaves = lambda vector: [(layer.w, layer.b) for layer in problem.cost.layout.unflatten(vector) if layer]
    due = to_leaves(mine[OURS].call())
    harness.agree(due, {name: rival.call() for name, rival in definitions.items()}, 1e-4)

    what = f"clipped sum, {problem.title}"
    race = report.race(f"Against one gradient, {problem.title}", mine, gradients)
    report.row(what, "one `jax.grad`", race, OURS, time_at_most=1.4)
    report.row(f"squared norms, {problem.title}", "one `jax.grad`", race, NORMS, time_at_most=0.65, memory_at_most=1.2)
    rounds = 3  # of seconds each
    race = report.race(f"Against the definition, {problem.title}", mine, definitions, rounds=rounds)
    report.row(what, "`vmap(grad)`, its fastest variant", race, OURS)
    if theirs := by_opacus(problem):
        harness.agree(due, {name: rival.call() for name, rival in theirs.items()}, 1e-4)
        race = report.race(f"Against Opacus, {problem.title}", mine, theirs)
        report.row(what, "Opacus, ghost clipping", race, OURS, time_at_most=0.6)
    if clipping is None:
        report.note("jax-privacy is not installed here: pip install -e '.[bench]'")
        return
    theirs = {
        f"jax-privacy, {name}": harness.compiled(by_jax_privacy(plain, chunk), params, *batch)
        for name, chunk in chunks.items()
    }
    harness.agree(due, {name: rival.call() for name, rival in theirs.items()}, 1e-4)
    race = report.race(f"Against jax-privacy, {problem.title}", mine, theirs, rounds=rounds)
    report.row(what, "jax-privacy, its fastest setting", race, OURS, time_at_most=1 / 6)


def measure_gpt(report: harness.Report, examples: int, positions: int) -> None:
    width, heads, blocks = (16, 2, 2) if report.quick else (256, 4, 4)
    network = jbp.Network([jbp.Repeat(gpt_block(width, heads), blocks)], input=(positions, width))
    cost = jbp.Cost(network, jbp.losses.HalfSquaredError())
    theta, title = cost.init(jax.random.key(0)), f"{blocks} GPT blocks, width {width}, {examples} × {positions}"
    x, y = (jax.random.normal(jax.random.key(i), (examples, positions, width)) for i in (1, 2))
    mine = ours(cost, theta, x, y)
    params = cost.layout.unflatten(theta)
    value = lambda params, x, y: cost.value_leaves(params, x, y)
    gradients = {
        "jax.grad: the same forward": harness.compiled(jax.grad(value), params, x, y),
        "jbp": harness.compiled(lambda *args: cost.value_and_grad_leaves(*args)[1], params, x, y),
    }
    definition = harness.compiled(by_definition(value, None), params, x, y)
    # as vectors, since the gradient of a key's bias is 0 up to rounding
    harness.agree(mine[OURS].call(), {"vmap(grad)": cost.layout.flatten(definition.call())}, 1e-4)
    race = report.race(f"Against one gradient, {title}", mine, gradients)
    for what, name, most in ((f"clipped sum, {title}", OURS, 1.4), (f"squared norms, {title}", NORMS, 1.3)):
        report.row(what, "one gradient, the fastest", race, name, time_at_most=most)
    race = report.race(f"Against the definition, {title}", mine, {"vmap(grad)": definition}, rounds=3)
    report.row(f"clipped sum, {title}", "`vmap(grad)`", race, OURS)


def measure(report: harness.Report) -> None:
    measure_mlp(report)
    for examples, positions in ((2, 8), (4, 4)) if report.quick else ((2, 1024), (8, 256)):
        measure_gpt(report, examples, positions)


if __name__ == "__main__":
    harness.run(__doc__, measure, rounds=9)
