"""One inductive step, forward and back, and a run of them: what every container and every cost goes through.

    step        (output, kept) of a child, at its place
    step_back   (delta of x, readings) of that child, from delta of its output
    run         (output, back): one forward, and then as many seeds as wanted

`kept` is what a container keeps of one child: its place, the shape of its x and what the child itself saved. It is a
pytree, so a loop stacks it; what is in it is nobody's business but this file's.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from .layer import Context, InputError, Layer, Shape, at, check_readings, described, says, two
from .reader import Reader, bound, check_called, check_gradients, read_gradient, readers

_static: Any = {"static": True}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kept:
    """What a container keeps of a child between `step` and `step_back`."""

    place: Any = field(metadata=_static)
    shape: Shape = field(metadata=_static)  # of x, against which its delta is checked
    output: Shape = field(metadata=_static)  # against which the delta that comes is checked
    saved: Any


def step(place: int | str | None, layer: Layer, params: Any, x: Any, context: Any) -> tuple[Any, Kept]:
    """(output, kept) of a child's forward. `place` stands in errors and gives the child `context.child(place)`.

    A loop passes `context.child(i)` of its turn as context; a child that is run twice has two places; None is no place.
    """
    if not isinstance(context, Context):
        raise InputError(f"step: expected the context that forward was given, got {described(context)}. Pass it on.")
    with at(place):
        context = context.child(place)
        context.reaches(layer, x)
        output, saved = two(layer.forward(params, x, context), "forward", "(output, saved)")
    return output, Kept(place, Shape.of(x), Shape.of(output), saved)


def step_back(layer: Layer, params: Any, feedback: Any, kept: Any, delta: Any, read: Any) -> tuple[Any, Any]:
    """(delta of x, readings) of a child's backward, its promises about shapes checked (at trace time, at no cost), and
    that it calls each leaf's reader once."""
    if not isinstance(kept, Kept):
        raise InputError(f"step_back: expected what step kept of this child, got {described(kept)}. Save it as it is.")
    with at(kept.place):
        _check_enters(params, feedback, kept, delta)
        back = lambda read: layer.backward(params, feedback, kept.saved, delta, read)
        read = bound(params, read)
        delta_x, readings = two(back(read), "backward", "(delta of x, readings)")
        kept.shape.check_delta(delta_x)
        check_readings(params, readings)
        check_called(params, read, back)
    return delta_x, readings


def _check_enters(params: Any, feedback: Any, kept: Kept, delta: Any) -> None:
    """Raise `InputError` unless delta is one of the child's output, and `feedback` has the structure of the params."""
    expected, structure = kept.output.delta, lambda tree: Shape.of(tree).treedef
    if structure(delta) != structure(expected) or any(
        jnp.shape(d) != e.shape for d, e in zip(jax.tree.leaves(delta), jax.tree.leaves(expected), strict=True)
    ):
        raise InputError(
            f"step_back: expected delta like the child's output, {described(expected)}, got {described(delta)}. "
            "Give each child the delta of its own output."
        )
    if structure(feedback) != structure(params):
        raise InputError(
            f"step_back: expected feedback like the params, {described(params)}, got {described(feedback)}. "
            "Pass the child its part of the feedback that backward was given."
        )


def turned(
    place: str | None,
    loss: Layer,
    params: Any,
    feedback: Any,
    x: tuple[Any, Any],
    delta: Any,
    read: Any,
    context: Context,
) -> tuple[Any, Any, Any]:
    """(C_n, delta of the output, readings) of a loss on x = (output, y), from the factor `delta` `[N]` of each C_n.

    Nothing comes after a loss, so its delta is known before its forward: its own `turn` does both in one sweep; without
    one, forward and then backward run. y is a side input, whose delta is None.
    """
    with at(place):
        context = context.child(place)
        context.reaches(loss, x)
        read = bound(params, read)
        if hasattr(loss, "turn"):
            back = lambda read: loss.turn(params, feedback, x, delta, read, context)
            returned = back(read)
            if not isinstance(returned, tuple) or len(returned) != 3:
                raise InputError(f"turn must return (C_n, delta of (output, y), readings), got {described(returned)}.")
            values, *returned = returned
            check_values_of(values, delta)
        else:
            values, saved = two(loss.forward(params, x, context), "forward", "(C_n, saved)")
            check_values_of(values, delta)
            back = lambda read: loss.backward(params, feedback, saved, delta, read)
            returned = back(read)
        delta_x, readings = two(returned, "backward", "(delta of (output, y), readings)")
        delta_output, _ = two(delta_x, "backward", "(delta of output, None) as the delta of (output, y)")
        Shape.of(x[0]).check_delta(delta_output)
        check_readings(params, readings)
        check_called(params, read, back)
    return values, delta_output, readings


def check_values_of(values: Any, delta: Any) -> None:
    """Raise `InputError` unless a loss gave C_n `[N]`."""
    if jnp.shape(values) != jnp.shape(delta):
        raise InputError(
            f"a loss gives C_n, one float for each example, {list(jnp.shape(delta))}, got {described(values)}. "
            "Sum over positions and classes, not over examples."
        )


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Settings:
    """What is static of a run: the layer, and the shape of its output."""

    layer: Layer
    output: Shape


def run(layer: Layer, params: Any, x: Any, context: Context = Context()) -> tuple[Any, jax.tree_util.Partial]:
    """(output, back): forward once; then `back(delta, read=None, feedback=None) -> (delta of x, readings)`, for as many
    seeds as wanted.

    `delta`: a cotangent of the output. `read`: a `Reader` for each leaf, in the structure of the params, or one for
    all; without it the gradient is read, in the params' dtypes. `feedback`: params that carry delta in place of these.
    `back` is a pytree, so it crosses `jit` and `vmap`. Raises `InputError` where one of them does not fit.
    """
    if not isinstance(layer, Layer) or isinstance(layer, type):
        raise InputError(f"run: expected a layer, got {layer!r}. Of a Network, pass net.layer and its leaves.")
    check_floats(params)
    output, saved = two(layer.forward(params, x, context), "forward", "(output, saved)")
    settings = _Settings(layer, Shape.of(output))
    return output, jax.tree_util.Partial(_back, settings, params, Kept(None, Shape.of(x), settings.output, saved))


def check_floats(params: Any) -> None:
    """Raise `InputError` unless every leaf of params is a float array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise InputError(
                f"params: every leaf is a float array, got {described(leaf)} at {name}. Whole numbers are settings of "
                "the layer, or side inputs in the Context."
            )


def _back(
    settings: _Settings, params: Any, kept: Kept, delta: Any, read: Any = None, feedback: Any = None
) -> tuple[Any, Any]:
    expected = settings.output.delta
    if Shape.of(delta) != Shape.of(expected):
        raise InputError(
            f"back: expected delta like the output, {described(expected)}, got {described(delta)}. "
            "Give a cotangent of the output, in its dtype."
        )
    if feedback is not None:
        check_feedback(settings.layer, params, feedback)
    carries = params if feedback is None else feedback
    if read is not None:
        read = readers(params, read) if isinstance(read, Reader) else read
        return step_back(settings.layer, params, carries, kept, delta, read)
    delta_x, gradient = step_back(settings.layer, params, carries, kept, delta, readers(params, read_gradient))
    check_gradients(params, gradient)
    return delta_x, jax.tree.map(lambda leaf, g: None if g is None else g.astype(leaf.dtype), params, gradient)


def check_feedback(layer: Layer, params: Any, feedback: Any) -> None:
    """Raise `InputError` unless `feedback` is like the params, and every layer lets another vector carry delta."""
    if (who := says(layer, "own_feedback_only")) is not None:
        raise InputError(
            f"feedback: layer {who} carries delta with its own params only. "
            "Write that layer by hand, or leave feedback out."
        )
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (params, feedback)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"feedback: expected leaves like the params, {described(params)}, got {described(feedback)}. "
            "Make it as the params are made, from another key."
        )
