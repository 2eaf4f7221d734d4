"""What a cost asks of its arguments: of shapes under jit, and outside of it of values, too.

Each layer that has `check_values` is asked about the x that reaches it: `Checking` is a context that listens, `step`
tells it of each layer and its x, wherever containers run them, loops included, and a callback asks the layer at run
time. XLA drops all of the forward pass that no such layer needs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .errors import arrived, is_listed
from .layer import Context, InputError, Layer, at, batch_of, check_finite, described, walk
from .losses.loss import FromValue
from .meshes import on_host
from .outside import check_arrays, check_context
from .readouts import Readout, given_twice
from .run import check_feedback

_static: Any = {"static": True}


@dataclass(eq=False)
class Found:
    """The errors of one check; equal to itself alone, so that it may stand beside what is static."""

    errors: list[InputError] = field(default_factory=list)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Checking(Context):
    """A context that asks each layer it reaches for `check_values(x)`; `found` takes the errors."""

    path: tuple[str, ...] = field(default=(), metadata=_static)
    found: Found = field(default_factory=Found, metadata=_static)

    def child(self, place: Any) -> Context:
        child: Any = super().child(place)
        return replace(child, path=(*self.path, str(place))) if isinstance(place, (int, str)) else child

    def reaches(self, layer: Layer, x: Any) -> None:
        if hasattr(layer, "check_values"):
            jax.debug.callback(lambda x: self._ask(layer, x), x)

    def _ask(self, layer: Any, x: Any) -> None:
        try:
            with at(*self.path):
                layer.check_values(jax.tree.map(np.asarray, x))
        except InputError as error:
            self.found.errors.append(error)


def check_values(layers: tuple[Layer, ...], forward: Callable[..., Any], *args: Any, context: Context) -> None:
    """Raise the first `InputError` of a layer's `check_values` in `forward(*args, context)`. Not under jit."""
    if not any(hasattr(layer, "check_values") for outer in layers for _, layer in walk(outer)):
        return
    listening = Checking(context.key, context.mask, context.side)

    def run(*args: Any) -> None:
        forward(*args, listening)

    jax.jit(run)(*on_host(args))
    jax.effects_barrier()
    if listening.found.errors:
        raise listening.found.errors[0]


# -- of a cost --------------------------------------------------------------------------------------------------------


def check_batch(
    cost: Any, x: Any, y: Any, weights: Any, context: Context, params: Any = None, feedback: Any = None
) -> tuple[Any, Any]:
    """(x, y) as arrays. Raises `InputError` where shapes don't fit."""
    check_context(context)
    given, x, y = y, cost.network.layer.check(x), jax.tree.map(jnp.asarray, y)
    n = jax.tree.leaves(x)[0].shape[0]
    if weights is not None and (not hasattr(weights, "shape") or jnp.shape(weights) != (n,)):
        raise InputError(
            f"weights: expected one weight for each example, [{n}], got {arrived(weights)}. "
            "Use jnp.asarray(weights), one number for each row of x."
        )
    for part in jax.tree.leaves(y):
        if jnp.shape(part)[:1] != (n,):
            got = arrived(given) if is_listed(given) else described(part)
            raise InputError(f"y: expected {n} examples as in x, got {got}. x and y go row by row.")
    if feedback is not None:
        for layer, its, its_feedback in cost._parts_of(params, feedback):
            check_feedback(layer, its, its_feedback)
    return x, y


def check_readouts(who: str, cost: Any, readouts: tuple[Any, ...]) -> None:
    """Raise `InputError` unless these are readouts that the cost can answer."""
    if not readouts or not all(isinstance(r, Readout) and not isinstance(r, type) for r in readouts):
        got = ", ".join(map(repr, readouts)) or "none"
        raise InputError(f"{who}: expected readouts, got {got}. As in cost.measure(theta, x, y, Gradient()).")
    if not cost.layout.size:
        raise InputError(f"{who}: this network has no parameters to read anything at. Add a layer that has.")
    if (twice := given_twice(readouts)) is not None:
        raise InputError(f"{who}: {type(twice).__name__} was given twice. Give each readout once.")
    single = [r for r in readouts if getattr(r, "of_examples", True)]
    if single and cost.mixed_by is not None:
        raise InputError(
            f"{who}: {type(single[0]).__name__} speaks of single examples, and layer {cost.mixed_by} mixes them, "
            "so that no gradient belongs to one. Fix its statistics, or read Gradient()."
        )


def check_everything(cost: Any, theta: Any, x: Any, y: Any, weights: Any, context: Context) -> None:
    """Raise `InputError` where shapes or values don't fit. Not under jit."""
    check_arrays(theta=theta, x=x, y=y, weights=weights)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((theta, x, y, weights))):
        raise InputError("Cost.check: it reads values, and under jit there are none. Call it outside jit.")
    cost.layout.check(theta)
    x, y = check_batch(cost, x, y, weights, context)
    output = batch_of(cost.network.output, jax.tree.leaves(x)[0].shape[0])
    by_value = cost.loss_layer if isinstance(cost.loss_layer, FromValue) else None
    if by_value and hasattr(cost.loss, "check"):
        cost.loss.check(output, y)
    for name, value in (("theta", theta), ("x", x), ("y", y), ("weights", weights)):
        check_finite(name, value)
    if weights is not None and cost.reduction != "sum" and np.sum(weights) == 0:
        raise InputError("weights: a mean needs weights whose sum is not 0, got a sum of 0. Give some weight.")
    if by_value:
        by_value.check_values((output, y))  # of y alone: the output is known by its shape
    layers = (cost.network.layer.layers, *(() if by_value else (cost.loss_layer,)))
    forward = lambda theta, x, y, context: cost._forward(cost.layout.unflatten(theta), x, y, context)
    check_values(layers, forward, jnp.asarray(theta), x, y, context=context)
