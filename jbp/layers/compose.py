"""Containers: layers that run the recursion over their children.

    Sequential   y = f_n(… f_1(x));   δ goes through f_n, …, f_1 in turn: the induction itself
    Residual     y = x + f(x);        δx = δ + (δ through f)
    Tap          y = x;               δx = fn(δ): to look at a delta, or to edit it

Saved: what the children save, and the static shape of each child's input, against which its delta is checked.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jaxtyping import PRNGKeyArray

from ..layer import Context, InputError, Layer, Shape, at, check_readings, described, output_spec, two


class Kept(NamedTuple):
    """What a container keeps for one child: the shape of its x, and what the child itself saved."""

    shape: Shape
    saved: Any


def step_back(layer: Layer, params: Any, kept: Kept, delta: Any, read: Any) -> tuple[Any, Any]:
    """One inductive step: a child's backward, with its promise about shapes checked (at trace time, at no cost)."""
    returned = layer.backward(params, kept.saved, delta, read)
    delta, readings = two(returned, "backward", "(delta of x, readings)")
    kept.shape.check_delta(delta)
    check_readings(params, readings)
    return delta, readings


def check_layer(name: str, given: Any) -> None:
    """Raise `InputError` unless this is a layer."""
    if isinstance(given, Layer) and not isinstance(given, type):
        return
    remedy = "Give an instance with init, forward, backward."
    if isinstance(given, type):
        remedy = f"Give {given.__name__}()."
    elif isinstance(given, (list, tuple)):
        remedy = "Give Sequential([...])."
    elif callable(given):
        remedy = "Give jbp.from_function(None, lambda params, x: f(x)), or the layer of that name, as in jbp.ReLU()."
    raise InputError(f"{name} is no layer: {given!r}. {remedy}")


@dataclass(frozen=True)
class Sequential:
    """Layers one after another. Params: a tuple, one entry for each layer."""

    layers: Sequence[Layer]

    def __post_init__(self):
        if isinstance(self.layers, Layer) or not isinstance(self.layers, Iterable):
            raise InputError(f"Sequential: expected a list of layers, got {self.layers!r}. Write Sequential([...]).")
        object.__setattr__(self, "layers", tuple(self.layers))
        for i, layer in enumerate(self.layers):
            check_layer(f"Sequential: layers[{i}]", layer)

    def init(self, key: PRNGKeyArray, x: Any) -> tuple:
        params = []
        for i, layer in enumerate(self.layers):
            with at(i):
                params.append(layer.init(jax.random.fold_in(key, i), x))
                x = output_spec(layer, params[-1], x)
        return tuple(params)

    def forward(self, params: tuple, x: Any, context: Context) -> tuple[Any, list[Kept]]:
        kept = []
        for i, layer in enumerate(self.layers):
            shape = Shape.of(x)
            with at(i):
                x, saved = layer.forward(params[i], x, context.child(i))
            kept.append(Kept(shape, saved))
        return x, kept

    def backward(self, params: tuple, saved: list[Kept], delta: Any, read: Any) -> tuple[Any, tuple]:
        readings: list[Any] = [()] * len(self.layers)
        for i in reversed(range(len(self.layers))):  # inductive step: δ of layer i from δ of layer i + 1
            with at(i):
                delta, readings[i] = step_back(self.layers[i], params[i], saved[i], delta, read)
        return delta, tuple(readings)


class Inner(NamedTuple):
    """Params of a container of one child, so that a leaf's path says which container it is in."""

    layer: Any


@dataclass(frozen=True)
class Residual:
    """y = x + layer(x)."""

    layer: Layer

    def __post_init__(self):
        check_layer("Residual: layer", self.layer)

    def init(self, key: PRNGKeyArray, x: Any) -> Inner:
        with at("layer"):
            params = self.layer.init(key, x)
            y = output_spec(self.layer, params, x)
        if y != x:
            shown = described(jax.tree.map(lambda s: s, (x, y)))
            raise InputError(
                f"Residual: x + layer(x) needs the layer to keep the shape of x, (x, layer(x)) is {shown} "
                "without the batch axis. Change the layer's width."
            )
        return Inner(params)

    def forward(self, params: Inner, x: Any, context: Context) -> tuple[Any, Kept]:
        with at("layer"):
            y, saved = self.layer.forward(params.layer, x, context)
        return jax.tree.map(lambda a, b: a + b, x, y), Kept(Shape.of(x), saved)

    def backward(self, params: Inner, saved: Kept, delta: Any, read: Any) -> tuple[Any, Inner]:
        with at("layer"):
            inner, readings = step_back(self.layer, params.layer, saved, delta, read)
        return jax.tree.map(lambda a, b: a + b, delta, inner), Inner(readings)


@dataclass(frozen=True)
class Tap:
    """The identity forward; `fn(delta)` in reverse. `fn` returns a delta of the same shape.

    δ is of the reduced cost (each example's scaled by its weight, 1/N in a mean) in `cost.grad` and `value_and_grad`,
    and of each example's own cost C_n in `cost.measure` and `pairs`: an `fn` that is not linear tells them apart.
    """

    fn: Callable[[Any], Any]

    def __post_init__(self):
        if not callable(self.fn):
            raise InputError(
                f"Tap: expected fn as a function of delta, got {self.fn!r}. As in Tap(lambda delta: delta)."
            )

    def init(self, key: PRNGKeyArray, x: Any) -> tuple:
        return ()

    def forward(self, params: tuple, x: Any, context: Context) -> tuple[Any, tuple]:
        return x, ()

    def backward(self, params: tuple, saved: tuple, delta: Any, read: Any) -> tuple[Any, tuple]:
        return self.fn(delta), ()
