"""One gradient costs no more than jax.grad: at most 1.03 of its time and of its temporary memory.

The hand-written pass on leaves, against jax.value_and_grad of the same cost written in plain JAX in several ways, of
which the fastest and the smallest count. Beside them, jax.value_and_grad of jbp's own forward pass.
"""

import harness
import jax
import mlps


def measure(report: harness.Report) -> None:
    for problem in (mlps.wide(), mlps.deep()):
        cost, params, batch = problem.cost, problem.params, (problem.x, problem.y)
        ours = {"jbp": harness.compiled(cost.value_and_grad_leaves, params, *batch)}
        peers = {
            f"jax.grad: {way}": harness.compiled(jax.value_and_grad(plain), plain_params, *batch)
            for way, (plain, plain_params) in mlps.plain_costs(problem).items()
        }
        own = harness.compiled(jax.value_and_grad(cost.value_leaves), params, *batch)
        harness.agree(own.call(), {name: rival.call() for name, rival in (ours | peers).items()})

        times = report.race(problem.title, ours, peers, beside={"jax.grad of jbp's forward": own})
        smallest = min(peer.temp for peer in peers.values())
        report.claim("time of jbp ÷ the fastest peer's", times.ratio("jbp", times.fastest), at_most=1.03)
        report.claim("temporary memory of jbp ÷ the smallest peer's", ours["jbp"].temp / smallest, at_most=1.03)


if __name__ == "__main__":
    harness.run(__doc__, measure, repeats=40)
