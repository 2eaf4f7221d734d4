"""Laplace's approximation: a Gaussian over θ from one pass, and what it says where the network has seen nothing.

The posterior is N(θ, (N·GGN + p·I)⁻¹): `GGN` of the mean cost, p the prior's precision. Of the whole GGN it is exact,
for this small network; its diagonal and its Kronecker factors are what is left for large ones. The variance of an
output f_c is j_cᵀ Σ j_c, with the rows j_c of its Jacobian (MacKay 1992; Ritter et al. 2018; Immer et al. 2021,
arXiv:2008.08400), and it grows from held-out digits to digits that are moved to the side, and to noise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbp

PRECISION = 1.0


def whole(ggn: jax.Array, rows: jax.Array) -> jax.Array:
    """jᵀ Σ j of rows j `[M, P]`, from the GGN itself."""
    root = jnp.linalg.cholesky(ggn + PRECISION * jnp.eye(len(ggn)))
    return jnp.square(jax.scipy.linalg.solve_triangular(root, rows.T, lower=True)).sum(0)


def diagonal(d: jax.Array, rows: jax.Array) -> jax.Array:
    """The same from its diagonal."""
    return (jnp.square(rows) / (d + PRECISION)[None]).sum(1)


def kronecker(factors: dict, n: int, network: jbp.Network, rows: jax.Array) -> jax.Array:
    """The same from A ⊗ G of each leaf: in the factors' eigenbases the block is diag(n·λ_A λ_G) + p."""
    bases, total = jbp.eigenbases(factors), jnp.zeros(len(rows))
    leaves = jax.vmap(network.layout.leaves)(rows)
    for name, part in zip(network.layout.names, leaves, strict=True):
        (A, G), (u_a, u_g) = factors[name], bases[name]
        turned = u_a.T[None] @ part.reshape(len(rows), len(A), len(G)) @ u_g[None]
        values = jnp.outer(*(jnp.diag(u.T @ f @ u) for u, f in ((u_a, A), (u_g, G))))
        total += (jnp.square(turned) / (n * jnp.maximum(values, 0) + PRECISION)[None]).sum((1, 2))
    return total


def main() -> dict[str, dict[str, float]]:
    digits = jbp.data.digits()
    n = len(digits.y)
    network = jbp.mlp(64, 8, 10, activation=jbp.Tanh(), last=jbp.Identity())
    cost = jbp.Cost(network, jbp.losses.SoftmaxCrossEntropy())
    theta = network.init(jax.random.key(0))
    theta = jbp.fit(cost, theta, (digits.x, digits.y), optimizer=optax.adam(3e-3), batch_size=64, epochs=20).theta

    _, (d, factors) = cost.measure(theta, digits.x, digits.y, jbp.DiagonalGGN(), jbp.KroneckerFactors())
    ggn = cost.ggnvp(theta, digits.x, digits.y, jnp.eye(theta.size))
    posteriors = {
        "whole": lambda rows: whole(n * ggn, rows),
        "Kronecker": lambda rows: kronecker(factors, n, network, rows),
        "diagonal": lambda rows: diagonal(n * d, rows),
    }

    held_out = digits.held_out_x[:100]
    images = held_out.reshape(-1, 8, 8)
    inputs = {
        "training digits": digits.x[:100],
        "held-out digits": held_out,
        "moved 2 to the side": np.pad(images, ((0, 0), (0, 0), (2, 0)))[:, :, :8].reshape(-1, 64),
        "moved 4 to the side": np.pad(images, ((0, 0), (0, 0), (4, 0)))[:, :, :8].reshape(-1, 64),
        "noise": np.random.default_rng(0).random((100, 64)).astype(np.float32),
    }
    jacobian = jax.jit(jax.jacobian(network))
    print(f"{'standard deviation of a logit':30}" + "".join(f"{name:>12}" for name in posteriors))
    found: dict[str, dict[str, float]] = {}
    for name, x in inputs.items():
        rows = jacobian(theta, x).reshape(-1, theta.size)
        found[name] = {which: float(jnp.sqrt(of(rows)).mean()) for which, of in posteriors.items()}
        print(f"{name:30}" + "".join(f"{value:12.2f}" for value in found[name].values()))
    for which in posteriors:
        seen = found["held-out digits"][which]
        assert all(found[name][which] > seen for name in ("moved 2 to the side", "moved 4 to the side", "noise"))
    return found


if __name__ == "__main__":
    main()
