"""An epoch of the text's network takes at most a fifth of the usual PyTorch loop's time.

784-30-10 with sigmoids, C = ½ Σ (y − a)², plain gradient descent with batches of 10 over 50,000 random examples in the
shape of MNIST: a whole epoch by jbp.fit, with whatever comes before and after its steps; the usual PyTorch loop over a
DataLoader; that loop at its best, on slices of tensors and with a fused optimizer; and jax.grad in a compiled loop like
jbp.fit's, once gathering each batch by its rows, once on examples shuffled beforehand, which holds them twice and is
faster than jbp.fit. The time is that of one step; an epoch has 5000. PyTorch is timed over the first 500; where it is
not installed, its races are left out.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import training

import jbp

torch = harness.optional("torch")

RATE, BATCH, EXAMPLES = 0.5, 10, 50_000
GATHERS = "jax.grad, scan"
COST = jbp.Cost(jbp.mlp(784, 30, 10), jbp.losses.HalfSquaredError())


def plain(params: list, x: jax.Array, y: jax.Array) -> jax.Array:
    """The same cost in plain JAX."""
    for w, b in params:
        x = jax.nn.sigmoid(x @ w + b)
    return 0.5 * jnp.square(y - x).sum(-1).mean()


def loader(x: Any, y: Any) -> Any:
    """The usual batches."""
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=BATCH, shuffle=True)


def slices(x: Any, y: Any) -> Any:
    """The best: one shuffle of all rows, and a gather for each batch."""
    return ((x[rows], y[rows]) for rows in torch.randperm(len(x)).split(BATCH))


def in_torch(
    params: list, x: jax.Array, y: jax.Array, batches: Callable, threads: int, **options: Any
) -> harness.Rival:
    """PyTorch's loop; its result is (w, b) of each layer, as jbp has them."""
    x, y = (torch.tensor(np.asarray(a)) for a in (x, y))
    steps = min(500, len(x) // BATCH)

    def train():
        torch.set_num_threads(threads)
        Linear, Sigmoid = torch.nn.Linear, torch.nn.Sigmoid
        model = torch.nn.Sequential(Linear(784, 30), Sigmoid(), Linear(30, 10), Sigmoid())
        with torch.no_grad():
            for theirs, ours in zip(model.parameters(), jax.tree.leaves(params), strict=True):
                theirs.copy_(torch.tensor(np.asarray(ours).T))
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, **options)
        for inputs, targets in islice(batches(x, y), steps):
            optimizer.zero_grad()
            loss = 0.5 * (targets - model(inputs)).square().sum(-1).mean()
            loss.backward()
            optimizer.step()
        return [parameter.detach().numpy().T for parameter in model.parameters()]

    return harness.Rival(train, steps=steps)


def rivals(theta: jax.Array, x: jax.Array, y: jax.Array) -> tuple[dict, dict, dict, dict]:
    """jbp.fit, the usual PyTorch loop, that loop at its best, and jax.grad, from θ on."""
    key, steps, sgd = jax.random.key(1), len(x) // BATCH, optax.sgd(RATE)
    params = [(layer.w, layer.b) for layer in COST.layout.unflatten(theta) if layer]

    def fit():
        return jbp.fit(COST, theta, (x, y), optimizer=sgd, batch_size=BATCH, key=key).theta

    def scan(how):
        train = how(jax.value_and_grad(plain), sgd, BATCH)
        return harness.compiled(train, params, x, y, key, steps=steps)

    usual, best = {}, {}
    for n in (1, 2) if torch else ():
        usual[f"PyTorch, DataLoader, threads: {n}"] = in_torch(params, x, y, loader, n)
        best[f"PyTorch, slices, threads: {n}"] = in_torch(params, x, y, slices, n)
        best[f"PyTorch, slices, fused, threads: {n}"] = in_torch(params, x, y, slices, n, fused=True)
    grad = {GATHERS: scan(training.in_a_scan), "jax.grad, scan of batches": scan(training.in_a_scan_of_batches)}
    return {"jbp.fit": harness.Rival(fit, steps=steps)}, usual, best, grad


def measure(report: harness.Report) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    theta = COST.init(keys[0])
    examples = 50 * BATCH if report.quick else EXAMPLES
    x = jax.random.uniform(keys[1], (examples, 784))
    y = jax.nn.one_hot(jax.random.randint(keys[2], examples, 0, 10), 10)

    ours, usual, best, grad = rivals(theta, *training.equal_examples(x, y, 3 * BATCH))
    leaves = jax.tree.leaves(COST.layout.unflatten(ours["jbp.fit"].call()))
    results = {name: jax.tree.leaves(rival.call()) for name, rival in (usual | best | grad).items()}
    harness.agree(leaves, results)

    ours, usual, best, grad = rivals(theta, x, y)
    what = f"an epoch, 784-30-10, batch {BATCH}, {examples:,} examples"
    against = {
        "the usual PyTorch loop": (usual, 0.2),
        "PyTorch at its best": (best, None),
        "`jax.grad` in a `lax.scan`, its fastest variant": (grad, None),
    }
    for name, (peers, bound) in against.items():
        if peers:
            race = report.race(f"A step of an epoch, against {name.replace('`', '')}", ours, peers)
            report.row(what, name, race, "jbp.fit", time_at_most=bound)
    report.row(what, "`jax.grad` in a `lax.scan` that gathers each batch", race, "jbp.fit", GATHERS)
    if not torch:
        report.note("PyTorch is not installed: its rows are left out.")


if __name__ == "__main__":
    harness.run(__doc__, measure, rounds=6)
