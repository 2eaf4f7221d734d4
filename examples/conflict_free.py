"""Two tasks of one network, and a direction by which neither loses: UPGrad (Quinton & Rey 2024, arXiv:2406.16232).

The network names a digit and draws it again from 6 numbers. Where the two gradients g_k pull against each other, a step
along their sum makes one task worse. UPGrad projects each g_k onto the directions d with ⟨g_j, d⟩ ≥ 0 for all j, and
takes the mean of the projections. All that it needs of the gradients is their Gram matrix G Gᵀ, here 2 × 2.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jbp


def weights_of(gram):
    """w `[K]` such that w G is UPGrad's direction: the mean over k of argmin ‖v G‖² with v ≥ e_k.

    By coordinate descent on each of these small quadratic programs, 100 sweeps.
    """

    def projection(least):
        def sweep(_, v):
            for j in range(len(gram)):
                v = v.at[j].set(jnp.maximum(least[j], v[j] - gram[j] @ v / gram[j, j]))
            return v

        return jax.lax.fori_loop(0, 100, sweep, least)

    return jax.vmap(projection)(jnp.eye(len(gram), dtype=gram.dtype)).mean(0)


@partial(jax.jit, static_argnums=(0, 4))
def step(cost, theta, x, y, rate):
    """(the next θ, the terms' values `[K]`, cosine of the two gradients, least ⟨g_k, d⟩ as a share of ‖g_k‖²)."""
    values, gradients = jbp.by_term(cost, theta, x, y, jbp.Gradient())
    gram = gradients @ gradients.T
    cosine = gram[0, 1] / jnp.sqrt(gram[0, 0] * gram[1, 1])
    w = weights_of(gram)
    return theta - rate * w @ gradients, values, cosine, ((gram @ w) / jnp.diag(gram)).min()


def main():
    digits = jbp.data.digits()
    x, labels = np.asarray(digits.x), np.asarray(digits.y)
    heads = jbp.Fork([jbp.Dense(10), jbp.Dense(64)])
    network = jbp.Network([jbp.Dense(32), jbp.Tanh(), jbp.Dense(6), jbp.Tanh(), heads], input=(64,))
    both = jbp.losses.Terms((jbp.losses.SoftmaxCrossEntropy(), jbp.losses.HalfSquaredError()))
    cost = jbp.Cost(network, both)
    theta = cost.init(jax.random.key(0))

    random, told = np.random.default_rng(0), []
    for _ in range(2000):
        of = random.choice(len(labels), 64, replace=False)
        theta, *more = step(cost, theta, x[of], (labels[of], x[of]), 0.2)
        told.append(more)
    values, cosine, least = (np.array(part) for part in zip(*told, strict=True))
    right = float((network(theta, x)[0].argmax(1) == labels).mean())
    print(
        f"{right:.0%} right, drawn again within {values[-50:, 1].mean():.2f}; the gradients conflicted in "
        f"{(cosine < 0).mean():.0%} of the steps, and no step went against either"
    )
    assert right > 0.9
    assert (cosine < 0).any()
    assert least.min() > -1e-4  # to the rounding of float32
    return right


if __name__ == "__main__":
    main()
