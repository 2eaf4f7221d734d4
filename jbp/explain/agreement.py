"""Whether the number found by other ways is the same: how far off rounding may put it, and what it means if it is."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..layer import stated
from ..layers.edits import Tap
from ..pair import Outer, Pair, Sum
from ..record import Record, Step
from .argument import contributions_of, numbers

ULPS = 2  # of δ at each layer: half of one going forward, for f′, for the product, and for the sum
TIMES = 4  # what ulps in θ change, seen in a few tries, times this


def rounding(
    record: Record, owner: Step, pair: Pair, where: tuple[int, ...], theta: Any, gradients: Sequence[Callable]
) -> float:
    """What rounding may do to the number: ulps of each δ on the way, and what it changes if each weight does by one.

    The second is large where terms cancel in dense layers. `gradients`: the number as a function of θ, by one way and
    by another. Ulps are of the coarsest dtype of any δ.
    """
    counts = _counts(owner, pair, where)
    size = counts * _norms(owner.delta)
    for step, delta, _ in reversed(record.route(owner)):  # from the leaf up: what δ counts in ∂C_n/∂w, by its norms
        before, after = _norms(step.delta), _norms(delta)
        size += counts * np.maximum(before, after)  # a layer's terms may be as large as δ above it, and cancel
        counts = counts * _ratio(after, before)
    size += counts * np.maximum(_norms(record.output), _norms(record.delta))  # as in a − y
    deltas = [d.dtype for step in record.steps for d in jax.tree.leaves(step.delta)]
    eps = max(float(jnp.finfo(d).eps) for d in deltas if jnp.issubdtype(d, jnp.floating))
    rng, theta = np.random.default_rng(0), np.asarray(theta)
    moved = [(theta * (1 + eps * rng.choice([-1, 1], theta.shape))).astype(theta.dtype) for _ in range(4)]
    changed = max(abs(float(gradient(m)) - float(gradient(theta))) for gradient in gradients for m in moved)
    return ULPS * eps * float(np.abs(record.factors) @ size) + TIMES * changed


def _counts(owner: Step, pair: Pair, where: tuple[int, ...]) -> np.ndarray:
    """What δ at the layer's output counts in the last product, for each example `[N]`."""
    norms = _norms(owner.delta)
    if isinstance(pair, Outer):
        a = np.abs(numbers(pair.a)[:, :, where[0]])
        if stated(owner.layer, "affine"):
            return a.sum(1)
        return _ratio((a * np.abs(numbers(pair.delta)[:, :, where[1]])).sum(1), norms)  # its δ is inside the layer
    found = _ratio(np.abs(contributions_of(pair, where)), norms)
    return np.maximum(found, 1.0) if isinstance(pair, Sum) else found


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def _norms(tree: Any) -> np.ndarray:
    """The norm of each example `[N]`."""
    leaves = map(numbers, jax.tree.leaves(tree))
    return np.sqrt(sum(np.square(leaf.reshape(len(leaf), -1)).sum(1) for leaf in leaves))


def note(agrees: dict[str, bool], record: Record) -> str:
    """What it means where an oracle does not agree."""
    own, autodiff, difference = agrees.values()
    taps = ", ".join(dict.fromkeys(step.path for step in record.steps if isinstance(step.layer, Tap)))
    if not own:
        why = f"layer {taps} is a Tap: is it linear in δ?" if taps else "is some layer not a pure function?"
        return f"cost.value_and_grad goes the same way, with δ of C in place of C_n; {why}"
    if not autodiff:
        why = (
            f"layer {taps} is a Tap, which may mean that" if taps else "unless a layer means that, or C has a kink here"
        )
        return f"The layers' own backward is not the derivative of C: {why}; cost.compare(theta, x, y) names the first."
    if not difference:
        return "Only the central difference is off: C has a kink or a jump near θ, or its derivative was replaced."
    return ""
