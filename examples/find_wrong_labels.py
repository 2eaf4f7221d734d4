"""The readout dial: the norms of all per-example gradients, for less than the cost of one gradient.

One label in twenty is made wrong on purpose. After training, the examples with the largest gradient norms are the
suspects: half of the wrong labels and more are among the first few.
"""

import jax
import numpy as np
import optax

import jbp


def main():
    digits = jbp.data.digits()
    random = np.random.default_rng(0)
    wrong = random.choice(len(digits.y), len(digits.y) // 20, replace=False)
    y = digits.y.copy()
    y[wrong] = (y[wrong] + random.integers(1, 10, len(wrong))) % 10

    network = jbp.mlp(64, 30, 10, activation=jbp.ReLU(), last=jbp.Identity())
    cost = jbp.Cost(network, jbp.losses.SoftmaxCrossEntropy())
    theta = network.init(jax.random.key(0))
    run = jbp.fit(cost, theta, (digits.x, y), optimizer=optax.adam(3e-3), batch_size=64, epochs=15)

    _, squared_norms = cost.measure(run.theta, digits.x, y, jbp.SquaredNorms())
    suspects = np.argsort(-squared_norms)[: len(wrong)]
    found = len(set(suspects.tolist()) & set(wrong.tolist())) / len(wrong)
    print(f"{len(wrong)} of {len(y)} labels are wrong; {found:.0%} of them are among the {len(wrong)} largest norms")
    assert found > 0.5
    return found


if __name__ == "__main__":
    main()
