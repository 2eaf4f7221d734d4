"""What single examples say of a Flax model, through `from_model`, costs at most 1.15 of what it costs of jbp's layers.

Squared norms and clipped sums of a Flax MLP (784-1024×3-10, batch 512) and of 4 Flax GPT blocks (width 256; 2 × 1024
and 8 × 256 positions) beside those of jbp's own layers of the same sizes, one jax.grad of the Flax model, and the
definition, vmap(grad), whole, in chunks and one by one; and of a Flax convolutional network on the digits, whose norms
cost at most 1.6 of one jax.grad.
"""

from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import mlps
from clipped_sums_cost_one_pass import by_definition, ours
from flax import linen as nn
from transformers import gpt_block

import jbp

CLIP = 1.0
READOUTS = {"squared norms": jbp.SquaredNorms(), "clipped sum": jbp.ClippedSum(CLIP)}


class Mlp(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.widths[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class Gpt(nn.Module):
    blocks: int
    heads: int

    @nn.compact
    def __call__(self, x):
        mask, width = nn.make_causal_mask(jnp.zeros(x.shape[:2])), x.shape[-1]
        for _ in range(self.blocks):
            h = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads)(h, h, mask=mask)
            x = x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))
        return x


class Cnn(nn.Module):
    widths: tuple[int, int]

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = nn.avg_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


def measure_one(
    report: harness.Report,
    title: str,
    model: nn.Module,
    loss: Any,
    x: Any,
    y: Any,
    own: tuple[jbp.Cost, Any] | None,
    chunks: dict[str, int | None],
) -> None:
    """Races of one model: against jbp's `own` layers (a cost and its θ), one gradient, the definition in chunks."""
    params = model.init(jax.random.key(0), x[:1])["params"]
    apply = lambda params, x: model.apply({"params": params}, x)
    cost = jbp.Cost(jbp.from_model(apply, params, input=x.shape[1:]), loss)
    theta = cost.layout.flatten(params)
    value: Callable = lambda params, x, y: loss.value(apply(params, x), y).sum()
    read = lambda cost, readout: lambda *args: cost.measure(*args, readout)[1]
    found = {f"from_model: {what}": harness.compiled(read(cost, r), theta, x, y) for what, r in READOUTS.items()}
    gradient = harness.compiled(jax.grad(value), params, x, y)
    definitions = {
        f"vmap(grad), {name}": harness.compiled(by_definition(value, chunk), params, x, y)
        for name, chunk in chunks.items()
    }
    # as vectors, since the gradient of a key's bias is 0 up to rounding
    due = {name: cost.layout.flatten(rival.call()) for name, rival in definitions.items()}
    harness.agree(found["from_model: clipped sum"].call(), due, 1e-4)

    race = report.race(f"Against one gradient, {title}", found, {"jax.grad": gradient})
    for what in READOUTS:
        most = {"time_at_most": 1.6} if own is None and what == "squared norms" else {}
        report.row(f"{what}, {title}", "one `jax.grad`", race, f"from_model: {what}", **most)
    if own is not None:
        theirs = ours(own[0], own[1], x, y)
        for (what, _), (name, rival) in zip(reversed(READOUTS.items()), theirs.items(), strict=True):
            one = {f"from_model: {what}": found[f"from_model: {what}"]}
            race = report.race(f"{what} against jbp's own layers, {title}", one, {name: rival})
            report.row(f"{what}, {title}", "jbp's own layers", race, f"from_model: {what}", time_at_most=1.15)
    clipped = {"from_model: clipped sum": found["from_model: clipped sum"]}
    race = report.race(f"Against the definition, {title}", clipped, definitions, rounds=max(3, report.rounds // 3))
    report.row(f"clipped sum, {title}", "`vmap(grad)`, its fastest variant", race, "from_model: clipped sum")


def measure(report: harness.Report) -> None:
    chunks = lambda size: {"whole batch": None, f"chunks of {size}": size, "one by one": 1}
    problem = mlps.wide(report.quick)
    widths = (32, 32, 32, 10) if report.quick else (1024, 1024, 1024, 10)
    entropy, squares = jbp.losses.SoftmaxCrossEntropy(), jbp.losses.HalfSquaredError()
    own = problem.cost, problem.theta
    sized = chunks(4 if report.quick else 64)
    measure_one(report, f"Flax MLP {problem.title}", Mlp(widths), entropy, problem.x, problem.y, own, sized)

    width, heads, blocks = (16, 2, 2) if report.quick else (256, 4, 4)
    for n, t in ((2, 8), (4, 4)) if report.quick else ((2, 1024), (8, 256)):
        cost = jbp.Cost(jbp.Network([jbp.Repeat(gpt_block(width, heads), blocks)], input=(t, width)), squares)
        x, y = (jax.random.normal(jax.random.key(i), (n, t, width)) for i in (1, 2))
        title, own = f"{blocks} Flax GPT blocks, width {width}, {n} × {t}", (cost, cost.init(jax.random.key(0)))
        measure_one(report, title, Gpt(blocks, heads), squares, x, y, own, {"whole batch": None, "one by one": 1})

    digits = jbp.data.digits()
    n, widths = (16, (4, 6)) if report.quick else (512, (32, 64))
    x = jnp.asarray(digits.x[:n]).reshape(n, 8, 8, 1)
    title = f"Flax CNN {'-'.join(map(str, widths))} on digits, batch {n}"
    measure_one(
        report, title, Cnn(widths), entropy, x, jnp.asarray(digits.y[:n]), None, chunks(4 if report.quick else 64)
    )


if __name__ == "__main__":
    harness.run(__doc__, measure, rounds=9)
