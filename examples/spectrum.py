"""The Hessian's spectrum from its products alone: top eigenvalues, the density of all of them, and the trace.

`cost.hvp` is exact; what matfree makes of it are Lanczos' tridiagonal matrices. Their eigenvalues find the ends of the
spectrum; over random starts, the squares of their eigenvectors' first entries are the weights of a quadrature for its
density (Ghorbani et al. 2019, arXiv:1901.10159). The trace is XTrace's (Epperly et al. 2024, arXiv:2301.07825), with
the error that it states. On digits, after training, few eigenvalues are large, about one a class, and most are near 0.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbp
from jbp import paint

STEPS, STARTS, SAMPLES = 40, 4, 40


def matfree() -> Any:
    """Its two modules that are used here; None, and what to type, where it is not installed."""
    try:
        from matfree import decomp, stochtrace
    except ImportError:
        print("The eigenvalues and the trace are matfree's to find: pip install 'jbp[examples]'")
        return None
    return decomp, stochtrace


def lanczos(product: Any, start: Any) -> tuple[Any, Any]:
    """(Ritz values, their weights) of one start: a quadrature of the spectrum's density, with `STEPS` nodes."""
    found = matfree()[0].tridiag_sym(STEPS)(product, start)
    values, vectors = jnp.linalg.eigh(found.J_small)
    return values, jnp.square(vectors[0])


def density(values: Any, weights: Any, at: Any, width: float) -> Any:
    """The mean density over the starts, each node widened to a Gaussian."""
    bumps = np.exp(-(((at[:, None] - np.ravel(values)[None]) / width) ** 2) / 2) / width / np.sqrt(2 * np.pi)
    return bumps @ np.ravel(weights) / len(values)


def main(folder: str | None = None) -> float | None:
    if (library := matfree()) is None:
        return None
    stochtrace = library[1]
    digits = jbp.data.digits()
    network = jbp.mlp(64, 16, 10, activation=jbp.Tanh(), last=jbp.Identity())
    cost = jbp.Cost(network, jbp.losses.SoftmaxCrossEntropy())
    theta = network.init(jax.random.key(0))
    theta = jbp.fit(cost, theta, (digits.x, digits.y), optimizer=optax.adam(3e-3), batch_size=64, epochs=8).theta
    product = lambda v: cost.hvp(theta, digits.x, digits.y, v)

    starts = jax.random.normal(jax.random.key(1), (STARTS, theta.size))
    values, weights = (np.stack(part) for part in zip(*(lanczos(product, start) for start in starts), strict=True))
    top = np.sort(values[0])[::-1][:10]
    print("largest eigenvalues: ", *(f"{value:.2f}" for value in top))
    sampler = stochtrace.sampler_signs(theta, num=SAMPLES)
    estimate = stochtrace.estimator_leave_one_out_mean_and_sem(stochtrace.leave_one_out_xtrace(), sampler)
    trace, error = map(float, estimate(product, jax.random.key(2)))
    exact = float(cost.hessian_diagonal(theta, digits.x, digits.y)[0].sum())
    print(f"trace: {trace:.2f} ± {error:.2f} by {2 * SAMPLES} products; {exact:.2f} by all {theta.size:,}")
    assert abs(trace - exact) < 5 * error + 1e-3 * exact

    width = float(top[0]) / 100
    at = np.linspace(values.min() - 5 * width, values.max() + 5 * width, 600)
    if folder is not None:
        with paint.new_figure("spectrum", 7, 3) as figure:
            axes = figure.add_subplot()
            axes.semilogy(at, np.maximum(density(values, weights, at, width), 1e-6), color=paint.RULE)
            axes.set(xlabel="eigenvalue of the Hessian", ylabel="density", ylim=(1e-5, None))
        paint.save(figure, Path(folder) / "spectrum.svg")
    return error


if __name__ == "__main__":
    main(*sys.argv[1:])
