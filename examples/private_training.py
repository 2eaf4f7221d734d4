"""Differentially private training: a clipped sum of the examples' gradients and noise make the step of DP-SGD.

Each example is drawn with probability q in each step, by itself (Poisson sampling). A batch has a fixed number of
places, so that one program runs for all steps; a place that nobody was drawn for has weight 0, and `jbp.ClippedSum`
leaves it out. What one example may have told is counted by `dp_accounting`: pip install dp-accounting
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbp

Q, NOISE, STEPS = 0.1, 1.5, 400  # the chance to be drawn; noise in units of the sensitivity; steps
PLACES, DELTA = 256, 1e-4
CLIPPED = jbp.ClippedSum(1.0)
OPTIMIZER = optax.adam(5e-3)


@partial(jax.jit, static_argnums=0)
def step(cost, theta, state, x, y, real, key):
    """One step on a batch, of which `real` `[PLACES]` says which places hold an example."""
    _, total = cost.measure(theta, x, y, CLIPPED, weights=real)
    noise = NOISE * CLIPPED.sensitivity(cost.layout) * jax.random.normal(key, theta.shape)
    updates, state = OPTIMIZER.update((total + noise) / (Q * N), state, theta)
    return optax.apply_updates(theta, updates), state


digits = jbp.data.digits()
N = len(digits.y) * 4 // 5  # the rest is for testing


def epsilon() -> float | None:
    """ε at δ = DELTA of the whole training; None where the accountant is not installed."""
    try:
        import dp_accounting
        from dp_accounting.rdp import RdpAccountant
    except ImportError:
        print("To count the privacy spent: pip install dp-accounting")
        return None
    one = dp_accounting.PoissonSampledDpEvent(Q, dp_accounting.GaussianDpEvent(NOISE))
    return RdpAccountant().compose(dp_accounting.SelfComposedDpEvent(one, STEPS)).get_epsilon(DELTA)


def main():
    x, y = np.asarray(digits.x), np.asarray(digits.y)
    random = np.random.default_rng(0)
    order = random.permutation(len(y))
    train, test = order[:N], order[N:]

    cost = jbp.Cost(jbp.mlp(64, 30, 10, activation=jbp.Tanh(), last=jbp.Identity()), jbp.losses.SoftmaxCrossEntropy())
    theta = cost.init(jax.random.key(0))
    state = OPTIMIZER.init(theta)
    for key in jax.random.split(jax.random.key(1), STEPS):
        drawn = train[random.random(N) < Q]
        assert len(drawn) <= PLACES
        places, real = np.resize(drawn, PLACES), np.arange(PLACES) < len(drawn)
        theta, state = step(cost, theta, state, x[places], y[places], jnp.asarray(real, theta.dtype), key)

    right = float((cost.network(theta, x[test]).argmax(1) == y[test]).mean())
    spent = epsilon()
    print(f"{right:.0%} of the test digits are right" + (f" at ε = {spent:.1f}, δ = {DELTA:g}" if spent else ""))
    assert right > 0.85
    return right


if __name__ == "__main__":
    main()
