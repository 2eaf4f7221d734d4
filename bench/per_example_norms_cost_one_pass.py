"""Squared norms of all per-example gradients cost less than one jax.grad, and a hundredth of vmap(grad).

cost.measure(theta, x, y, jbp.SquaredNorms()) multiplies norms of activations and of deltas; no gradient is formed. Its
peers are one gradient of the batch by jax.grad, and the definition: vmap(grad) and the norms in one compiled program,
for the whole batch or for one chunk after another.
"""

from collections.abc import Callable

import harness
import jax
import jax.numpy as jnp
import mlps

import jbp


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
    problem = mlps.wide()
    batch, ways = (problem.x, problem.y), mlps.plain_costs(problem)
    squared_norms = lambda *arguments: problem.cost.measure(*arguments, jbp.SquaredNorms())[1]
    ours = {"jbp's squared norms": harness.compiled(squared_norms, problem.theta, *batch)}
    gradients = {f"jax.grad: {way}": harness.compiled(jax.grad(f), params, *batch) for way, (f, params) in ways.items()}

    way, (plain, params) = next(iter(ways.items()))
    chunks = {"whole batch": None, "chunks of 128": 128, "chunks of 32": 32, "chunks of 8": 8, "one by one": 1}
    definitions = {
        f"vmap(grad), {name}: {way}": harness.compiled(by_definition(plain, chunk), params, *batch)
        for name, chunk in chunks.items()
    }
    harness.agree(ours["jbp's squared norms"].call(), {name: rival.call() for name, rival in definitions.items()})

    times = report.race(f"Against one gradient, {problem.title}", ours, gradients)
    report.claim("time of the norms ÷ one jax.grad's", times.ratio("jbp's squared norms", times.fastest), at_most=1.0)
    rounds = max(2, report.repeats // 8)
    times = report.race(f"Against the definition, {problem.title}", ours, definitions, repeats=rounds)
    report.claim("time of vmap(grad) ÷ the norms'", times.ratio(times.fastest, "jbp's squared norms"), at_least=100)


if __name__ == "__main__":
    harness.run(__doc__, measure, repeats=40)
