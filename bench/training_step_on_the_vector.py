"""A training step on the vector costs at most 1.03 of the best step on a pytree; of 64 narrow layers about 1.15.

jbp.fit takes θ and gives θ as one vector; inside, it runs many Adam steps in one compiled program, on leaves. Its peers
are the same Adam steps on a pytree with jax.grad: one compiled step with donated buffers called in a Python loop, and
an epoch in one lax.scan. Beside them, the naive way to train a vector: a compiled step of optax on the concatenated
gradient. The time is that of one step of an epoch, with its share of whatever comes before and after the steps.
"""

from typing import Any

import harness
import jax
import mlps
import optax
import training
from jax.flatten_util import ravel_pytree

import jbp

BATCH = 64


def rivals(problem: mlps.Problem, x: jax.Array, y: jax.Array, optimizer: Any) -> tuple[dict, dict, dict]:
    """Ours, the peers, and the naive step, for an epoch over x and y; the naive one for its first 10 steps."""
    cost, theta, key, steps = problem.cost, problem.theta, jax.random.key(3), len(x) // BATCH
    settings = {"optimizer": optimizer, "batch_size": BATCH, "key": key}
    ours = {"jbp.fit": harness.Rival(lambda: jbp.fit(cost, theta, (x, y), **settings).theta, steps=steps)}

    way, (plain, params) = next(iter(mlps.plain_costs(problem).items()))
    loop, scan, scan_batches = (
        how(jax.value_and_grad(plain), optimizer, BATCH)
        for how in (training.in_a_loop, training.in_a_scan, training.in_a_scan_of_batches)
    )
    peers = {
        f"jax.grad, loop: {way}": harness.Rival(lambda: loop(params, x, y, key), steps=steps),
        f"jax.grad, scan: {way}": harness.compiled(scan, params, x, y, key, steps=steps),
        f"jax.grad, scan of batches: {way}": harness.compiled(scan_batches, params, x, y, key, steps=steps),
    }
    flat, few = training.in_a_loop(cost.value_and_grad, optimizer, BATCH), slice(10 * BATCH)
    naive = harness.Rival(lambda: flat(theta, x[few], y[few], key), steps=min(steps, 10))
    return ours, peers, {"naive step on the vector": naive}


def measure(report: harness.Report) -> None:
    steps = 3 if report.quick else 50, 3 if report.quick else 300
    wide, deep = ("16-32×2-10, ReLU", (16, 32, 32, 10)), ("4 layers of 8, tanh", [8] * 5)
    if not report.quick:
        wide, deep = ("784-2048×2-10, ReLU", (784, 2048, 2048, 10)), ("64 layers of 64, tanh", [64] * 65)
    activations, at_most = (jbp.ReLU(), jbp.Tanh()), (1.03, 1.25)
    for (title, widths), activation, n, most in zip((wide, deep), activations, steps, at_most, strict=True):
        title = f"{title}, batch {BATCH}"
        problem = mlps.problem(title, *widths, activation=activation, examples=n * BATCH)
        # Adam would magnify round-off in small gradients
        equal = training.equal_examples(problem.x, problem.y, 3 * BATCH)
        ours, peers, naive = rivals(problem, *equal, optax.sgd(0.1, momentum=0.9))
        unflatten = problem.cost.layout.unflatten
        results = {name: unflatten(ravel_pytree(rival.call())[0]) for name, rival in (ours | peers | naive).items()}
        harness.agree(results["jbp.fit"], results)

        ours, peers, naive = rivals(problem, problem.x, problem.y, optax.adam(1e-3))
        race = report.race(f"{title}: one Adam step", ours, peers, naive)
        what = f"an Adam step of `fit`, {title}"
        report.row(what, "Adam on a pytree in `lax.scan`, its fastest variant", race, "jbp.fit", time_at_most=most)
        report.row("the same", "a jitted step called in a loop", race, "jbp.fit", next(iter(peers)))


if __name__ == "__main__":
    harness.run(__doc__, measure, rounds=4)
