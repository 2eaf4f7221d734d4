"""A gradient on the vector costs what ravel_pytree's does: at most 1.03 of its time and of its temporary memory.

cost.value_and_grad(theta, x, y) takes and gives one vector [P]. Its peers do so with jax.flatten_util.ravel_pytree:
they differentiate through its unravel, or unravel, differentiate on leaves and ravel the gradient. The fastest and the
smallest count. (The file has its name from a race in a single process, which showed 0.78 where a tie is the truth.)
"""

import harness
import jax
import mlps
from jax.flatten_util import ravel_pytree


def on_the_vector(plain, unravel):
    """Two ways to have plain JAX's value and gradient from a vector to a vector."""

    def then_ravel(theta, x, y):
        C, gradient = jax.value_and_grad(plain)(unravel(theta), x, y)
        return C, ravel_pytree(gradient)[0]

    return {
        "through unravel": jax.value_and_grad(lambda theta, x, y: plain(unravel(theta), x, y)),
        "ravel after": then_ravel,
    }


def measure(report: harness.Report) -> None:
    for problem in (mlps.wide(report.quick), mlps.deep(report.quick)):
        cost, arguments = problem.cost, (problem.theta, problem.x, problem.y)
        ours = {"jbp": harness.compiled(cost.value_and_grad, *arguments)}
        peers = {}
        for way, (plain, params) in mlps.plain_costs(problem).items():
            theta, unravel = ravel_pytree(params)
            for how, f in on_the_vector(plain, unravel).items():
                peers[f"{how}: {way}"] = harness.compiled(f, theta, problem.x, problem.y)
        own = harness.compiled(jax.value_and_grad(cost), *arguments)
        called = harness.Rival(lambda cost=cost, arguments=arguments: cost.value_and_grad(*arguments))
        harness.agree(own.call(), {name: rival.call() for name, rival in (ours | peers).items()})

        beside = {"jbp, called without a jit around it": called, "jax.grad of jbp's cost": own}
        race = report.race(problem.title, ours, peers, beside)
        report.row(
            f"∇C as a vector, {problem.title}", "through `ravel_pytree`", race, "jbp",
            time_at_most=1.03, memory_at_most=1.03,
        )  # fmt: skip


if __name__ == "__main__":
    harness.run(__doc__, measure, rounds=9)
