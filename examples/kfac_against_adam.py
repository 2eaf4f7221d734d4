"""The seed dial in an optimiser: K-FAC against Adam on an autoencoder of the digits, by steps and by seconds.

The classical problem of second-order methods: a narrow layer in the middle. K-FAC's factors come from labels that the
network itself would draw, one reverse pass more in ten steps. Adam has the best of three learning rates; K-FAC's
damping and clip were chosen on this problem, too, among six pairs. By steps it is ahead; by seconds that hangs on the
machine: the inverses are LAPACK's, whose threads wait for one another where others use the cores. The picture in
`examples/pictures` is made by

    OPENBLAS_NUM_THREADS=1 python examples/kfac_against_adam.py examples/pictures
"""

import sys
from pathlib import Path

import jax
import numpy as np
import optax

import jbp
from jbp import paint

EPOCHS = 60


def main(folder=None, rates=(3e-3, 1e-2, 2e-2)):
    x = jbp.data.digits().x
    network = jbp.mlp(64, 128, 64, 16, 64, 128, 64, activation=jbp.Tanh(), last=jbp.Identity())
    cost = jbp.Cost(network, jbp.losses.SigmoidCrossEntropy())
    theta = network.init(jax.random.key(0))
    least = -np.sum(x * np.log(np.maximum(x, 1e-9)) + (1 - x) * np.log(np.maximum(1 - x, 1e-9)), 1).mean()

    def descend(optimizer):
        """(steps, seconds, how far the cost of all digits is above the least there can be), epoch by epoch."""
        settings = {"optimizer": optimizer, "batch_size": 479, "key": jax.random.key(1)}
        jbp.fit(cost, theta, (x, x), epochs=1, **settings)  # compiles
        above = lambda theta: {"above": float(cost(theta, x, x) - least)}
        epochs = jbp.fit(cost, theta, (x, x), epochs=EPOCHS, evaluate=above, **settings).history.epochs
        return tuple(np.array([epoch[what] for epoch in epochs]) for what in ("step", "seconds", "above"))

    adams = {f"Adam, {rate:g}": descend(optax.adam(rate)) for rate in rates}
    best = min(adams, key=lambda name: adams[name][2][-1])
    kfac = descend(jbp.kfac(cost, 0.1, damping=0.1, every=20))
    first = int(np.argmax(kfac[2] <= adams[best][2][-1]))
    share = kfac[1][first] / adams[best][1][-1]
    print(
        f"{best}: {adams[best][2][-1]:.2f} above the least cost after {adams[best][0][-1]} steps. "
        f"K-FAC has that after {kfac[0][first]}, in {share:.0%} of the time, and ends at {kfac[2][-1]:.2f}."
    )
    assert kfac[2][first] <= adams[best][2][-1]
    assert kfac[0][first] <= adams[best][0][-1] / 2
    if folder is not None:
        draw(Path(folder) / "kfac_against_adam.svg", {best: adams[best], "K-FAC": kfac})
    return kfac[2][-1], adams[best][2][-1]


def draw(file, runs):
    with paint.new_figure("kfac_against_adam", 8, 3) as figure:
        for i, axis in enumerate(("steps", "seconds")):
            axes = figure.add_subplot(1, 2, i + 1)
            for (name, run), color, style in zip(runs.items(), (paint.ORACLE, paint.RULE), ("--", "-"), strict=True):
                axes.plot(run[i], run[2], style, color=color, label=name)
            axes.set_yscale("log")
            axes.set_xlabel(axis)
            axes.set_title("Cost above the least there can be" if i == 0 else "The same, by time")
        axes.legend()
    paint.save(figure, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
