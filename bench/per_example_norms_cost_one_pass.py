"""Squared norms of all per-example gradients cost less than one jax.grad, and at most a fifth of vmap(grad).

cost.measure(theta, x, y, jbp.SquaredNorms()) multiplies norms of activations and of deltas; no gradient is formed. Its
peers are one gradient of the batch by jax.grad, and the definition: vmap(grad) and the norms in one compiled program,
for the whole batch or for one chunk after another. Its fastest variant, one example after another, takes about 11 times
as long as the norms (6 to 14, process by process); the whole batch at once, as it is mostly written, about 28 times.
"""

from collections.abc import Callable

import harness
import jax
import jax.numpy as jnp
import mlps

import jbp

WHOLE = "whole batch"


def by_definition(plain: Callable, chunk: int | None) -> Callable:
    """(params, x, y) -> ‖∇C_n‖² by vmap(grad), a chunk of examples at a time, or all at once."""

    def one(params, x, y):
        gradient = jax.grad(plain)(params, x[None], y[None])
        return sum(jnp.square(g).sum() for g in jax.tree.leaves(gradient))

    def norms(params, x, y):
        if chunk is None:
            return jax.vmap(one, (None, 0, 0))(params, x, y)
        return jax.lax.map(lambda example: one(params, *example), (x, y), batch_size=chunk)

    return norms


def measure(report: harness.Report) -> None:
    problem = mlps.wide(report.quick)
    batch, ways = (problem.x, problem.y), mlps.plain_costs(problem)
    squared_norms = lambda *arguments: problem.cost.measure(*arguments, jbp.SquaredNorms())[1]
    ours = {"jbp's squared norms": harness.compiled(squared_norms, problem.theta, *batch)}
    gradients = {f"jax.grad: {way}": harness.compiled(jax.grad(f), params, *batch) for way, (f, params) in ways.items()}

    way, (plain, params) = next(iter(ways.items()))
    chunks = {WHOLE: None, "chunks of 128": 128, "chunks of 32": 32, "chunks of 8": 8, "one by one": 1}
    definitions = {
        f"vmap(grad), {name}": harness.compiled(by_definition(plain, chunk), params, *batch)
        for name, chunk in chunks.items()
    }
    harness.agree(ours["jbp's squared norms"].call(), {name: rival.call() for name, rival in definitions.items()})

    what, name = f"‖∇C_n‖² of each example, {problem.title}", "jbp's squared norms"
    race = report.race(f"Against one gradient, {problem.title}", ours, gradients)
    report.row(what, "one `jax.grad`", race, name, time_at_most=1.0)
    rounds = max(3, report.rounds // 3)
    race = report.race(f"Against the definition ({way}), {problem.title}", ours, definitions, rounds=rounds)
    report.row("the same", "`vmap(grad)`, its fastest variant", race, name, time_at_most=0.2)
    report.row("the same", "`vmap(grad)`, the whole batch at once", race, name, f"vmap(grad), {WHOLE}")


if __name__ == "__main__":
    harness.run(__doc__, measure, rounds=12)
