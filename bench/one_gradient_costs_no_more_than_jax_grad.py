"""One gradient costs no more than jax.grad: at most 1.03 of its time and of its temporary memory.

The hand-written pass on leaves, against jax.value_and_grad of the same cost written in plain JAX in several ways, of
which the fastest and the smallest count. On plain dense networks both are at the speed of the matrix products, and a
tie is what there is to show. Beside them, jax.value_and_grad of jbp's own forward pass.
"""

import harness
import jax
import mlps

OWN = "jax.grad of jbp's forward"


def measure(report: harness.Report) -> None:
    for problem in (mlps.wide(report.quick), mlps.deep(report.quick)):
        cost, params, batch = problem.cost, problem.params, (problem.x, problem.y)
        ours = {"jbp": harness.compiled(cost.value_and_grad_leaves, params, *batch)}
        peers = {
            f"jax.grad: {way}": harness.compiled(jax.value_and_grad(plain), plain_params, *batch)
            for way, (plain, plain_params) in mlps.plain_costs(problem).items()
        }
        own = harness.compiled(jax.value_and_grad(cost.value_leaves), params, *batch)
        harness.agree(own.call(), {name: rival.call() for name, rival in (ours | peers).items()})

        race = report.race(problem.title, ours, peers, beside={OWN: own})
        bounds = {"time_at_most": 1.03, "memory_at_most": 1.03}
        report.row(f"a gradient, {problem.title}", "`jax.value_and_grad`, leaves in and out", race, "jbp", **bounds)
        report.row(f"a gradient, {problem.title}", "the same of jbp's own forward", race, "jbp", OWN, **bounds)


if __name__ == "__main__":
    harness.run(__doc__, measure, rounds=12)
