"""Readouts of each term of a cost whose loss is `losses.Terms`: one forward, and one reverse pass for each term.

With G = ∂C_k/∂θ `[K, P]`, the gradients of the terms, G Gᵀ `[K, K]` says which of them pull against each other, and
w G is a direction that weighs them by w. `examples/conflict_free.py` finds a w by which no term loses.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .checking import check_readouts
from .layer import Context, InputError, Theta
from .losses.loss import FromValue
from .losses.terms import Terms
from .meshes import jitted
from .outside import check_arrays
from .readouts import Readout, Split, check_shapes, collect, readers_of
from .reverse import Cost
from .run import run, turned


def by_term(
    cost: Cost, theta: Theta, x: Any, y: Any, *readouts: Readout, weights: Any = None, context: Context = Context()
) -> tuple[Any, Any]:
    """(C_k `[K]`, tuple of the readouts' results, each with a first axis K). A single readout's result comes alone.

    C_k = Σ_n weights_n C_nk is term k reduced as the cost is, without the term's own weight in it; `Gradient()` gives
    ∂C_k/∂θ `[K, P]`, `SquaredNorms()` `[K, N]`. Raises `InputError` unless the loss is `losses.Terms`.
    """
    if not isinstance(cost, Cost) or not isinstance(cost.loss, Terms):
        got = repr(cost.loss) if isinstance(cost, Cost) else repr(cost)
        raise InputError(f"by_term: expected a Cost of jbp.losses.Terms((loss, loss, …)), got {got}.")
    check_readouts("by_term", cost, readouts)
    if seeded := [r for r in readouts if hasattr(r, "seed")]:
        raise InputError(
            f"by_term: it reads at the δ of each term, and {type(seeded[0]).__name__} is of another seed. Measure it "
            "on Cost(net, loss) of that term's loss."
        )
    check_arrays(theta=theta, x=x, y=y, weights=weights)
    split, arrays = Split.of(readouts)
    values, results = _by_term(cost, split, arrays, theta, x, y, weights, context)
    return values, results[0] if len(readouts) == 1 else results


@jitted(0, 1)
def _by_term(cost, split, arrays, theta, x, y, weights, context):
    params, readouts = cost.layout.unflatten(theta), split.filled(arrays)
    x, y = cost._check(x, y, weights, context, params)
    factors = cost._factors(params, x, y, weights)
    seed, weights = cost._base(factors)
    read = readers_of(readouts, cost.layout, weights)
    output, back = run(cost.network.layer, params, x, context)
    values, results = [], []
    for k in range(len(cost.loss.losses)):
        loss = FromValue(cost.loss.term(k))
        found, delta, _ = turned(None, loss, (), (), (output, y), seed, (), context)
        readings = back(delta, read)[1]
        check_shapes(readouts, cost.layout, readings, factors.shape[0])
        values.append((factors * found).sum())
        results.append(collect(readouts, cost.layout, readings))
    return jnp.stack(values), jax.tree.map(lambda *each: jnp.stack(each), *results)
