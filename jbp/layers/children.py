"""The children of a container: what is given as layers, what each is called, and what its output must be like."""

from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from keyword import iskeyword
from typing import Any, NamedTuple

from ..layer import InputError, Layer, described, output_spec


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
