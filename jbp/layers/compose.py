"""Layers in layers: `Sequential`, and what every container needs of the layers that it is given.

    Sequential   y = f_n(… f_1(x));           δ goes through f_n, …, f_1 in turn: the induction itself

Saved: what `step` keeps of each child. Nothing else is computed here.
"""

from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from keyword import iskeyword
from typing import Any, NamedTuple

import jax
from jaxtyping import PRNGKeyArray

from ..layer import Context, InputError, Layer, at, described, output_spec
from ..run import Kept, step, step_back


class Inner(NamedTuple):
    """Params of a container of one child, so that a leaf's path says which container it is in."""

    layer: Any


def check_layer(name: str, given: Any) -> None:
    """Raise `InputError` unless this is a layer."""
    if isinstance(given, Layer) and not isinstance(given, type):
        return
    remedy = "Give an instance with init, forward, backward."
    if isinstance(given, type):
        remedy = f"Give {given.__name__}()."
    elif isinstance(given, (list, tuple)):
        remedy = "Give Sequential([...])."
    elif isinstance(given, str):
        remedy = "Give the layer itself, as in jbp.ReLU()."
    elif callable(given):
        remedy = "Give jbp.from_function(None, lambda params, x: f(x)), or the layer of that name, as in jbp.ReLU()."
    raise InputError(f"{name} is no layer: {given!r}. {remedy}")


def checked_layers(who: str, given: Any) -> tuple[Layer, ...]:
    """A list of layers as a tuple, a dict of them as a NamedTuple. Raises `InputError` where it is neither."""
    if isinstance(given, Layer) or not isinstance(given, Iterable):
        raise InputError(f"{who}: expected a list of layers, got {given!r}. Write {who}([...]).")
    if isinstance(given, Mapping):
        bad = [name for name in given if not isinstance(name, str) or not name.isidentifier() or name.startswith("_")]
        if bad or any(map(iskeyword, given)):
            raise InputError(f"{who}: expected names of layers as in {{'norm': LayerNorm()}}, got {list(given)}.")
        given = _named(tuple(given))(**given)
    layers = given if hasattr(given, "_fields") else tuple(given)
    for name, layer in zip(places(layers), layers, strict=True):
        check_layer(f"{who}: layers[{name!r}]", layer)
    return layers


@cache
def _named(names: tuple[str, ...]) -> type:
    """The tuple of so named things: the same class for the same names, so that equal networks are equal."""
    return namedtuple("Layers", names)


def places(layers: tuple[Any, ...]) -> Sequence[Any]:
    """What stands in a path for each: its name, else its number."""
    return getattr(layers, "_fields", range(len(layers)))


def under_names(layers: tuple[Any, ...], values: Iterable[Any]) -> tuple[Any, ...]:
    """One value for each layer, under the layers' names if they have some."""
    return type(layers)(*values) if hasattr(layers, "_fields") else tuple(values)


def check_keeps_shape(who: str, layer: Layer, params: Any, x: Any, why: str) -> None:
    """Raise `InputError` unless the layer's output has the structure, shapes and dtypes of its x."""
    y = output_spec(layer, params, x)
    if y != x:
        raise InputError(
            f"{who}: the layer must keep the shape of x, {why}; (x, layer(x)) is {described((x, y))} without the "
            "batch axis. Change the layer's width."
        )


@dataclass(frozen=True)
class Sequential:
    """Layers one after another. Params: a tuple, one entry for each layer; of a dict of layers, by their names."""

    layers: Any  # a sequence of layers, or a dict of them by name; kept as a tuple

    def __post_init__(self):
        object.__setattr__(self, "layers", checked_layers("Sequential", self.layers))

    def init(self, key: PRNGKeyArray, x: Any) -> tuple:
        params = []
        for i, (place, layer) in enumerate(zip(places(self.layers), self.layers, strict=True)):
            with at(place):
                params.append(layer.init(jax.random.fold_in(key, i), x))
                x = output_spec(layer, params[-1], x)
        return under_names(self.layers, params)

    def forward(self, params: tuple, x: Any, context: Context) -> tuple[Any, list[Kept]]:
        kept = []
        for i, (place, layer) in enumerate(zip(places(self.layers), self.layers, strict=True)):
            x, saved = step(place, layer, params[i], x, context)
            kept.append(saved)
        return x, kept

    def backward(self, params: tuple, feedback: tuple, saved: list[Kept], delta: Any, read: tuple) -> tuple[Any, tuple]:
        readings: list[Any] = [()] * len(self.layers)
        for i in reversed(range(len(self.layers))):  # inductive step: δ of layer i from δ of layer i + 1
            delta, readings[i] = step_back(self.layers[i], params[i], feedback[i], saved[i], delta, read[i])
        return delta, under_names(self.layers, readings)
