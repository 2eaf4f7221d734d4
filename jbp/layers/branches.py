"""Containers in which x takes several ways.

    Residual     y = x + f(x);                δx = δ + (δ through f)
    Fork         y = (f_1(x), …, f_n(x));     δx = Σ_i (δ_i through f_i)
    Parallel     y = (f_1(x_1), …, f_n(x_n)); δx = (δ_1 through f_1, …)

Saved: what `step` keeps of each child. Nothing else is computed here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from ..layer import Context, InputError, Layer, at, described, output_spec
from ..run import Kept, step, step_back
from .compose import Inner, check_layer, checked_layers, places, under_names


@dataclass(frozen=True)
class Residual:
    """y = x + layer(x), or y = of(x) + layer(x) where `of` picks one part of a pytree x, as in `lambda x: x[0]`."""

    layer: Layer
    of: Callable[[Any], Any] | None = None

    def __post_init__(self):
        check_layer("Residual: layer", self.layer)
        if self.of is not None and not callable(self.of):
            raise InputError(f"Residual: of must be a function that picks a part of x, got {self.of!r}.")

    def init(self, key: PRNGKeyArray, x: Any) -> Inner:
        with at("layer"):
            params = self.layer.init(key, x)
            y = output_spec(self.layer, params, x)
        part = self._part(x)
        if y != part:
            picked = "x" if self.of is None else "of(x)"
            raise InputError(
                f"Residual: {picked} + layer(x) needs the layer to keep the shape of {picked}, ({picked}, layer(x)) is "
                f"{described((part, y))} without the batch axis. Change the layer's width."
            )
        return Inner(params)

    def forward(self, params: Inner, x: Any, context: Context) -> tuple[Any, Kept]:
        y, kept = step("layer", self.layer, params.layer, x, context)
        return jax.tree.map(lambda a, b: a + b, self._part(x), y), kept

    def backward(self, params: Inner, feedback: Inner, saved: Kept, delta: Any, read: Inner) -> tuple[Any, Inner]:
        inner, readings = step_back(self.layer, params.layer, feedback.layer, saved, delta, read.layer)
        # reverses of(x) + y: δ is added where of(x) was picked
        treedef: Any
        leaves, treedef = jax.tree.flatten(inner, is_leaf=lambda part: part is None)
        for place, d in zip(jax.tree.leaves(self._picked(inner)), jax.tree.leaves(delta), strict=True):
            leaves[place] = leaves[place] + d
        return treedef.unflatten(leaves), Inner(readings)

    def _picked(self, x: Any) -> Any:
        """The part of x that `of` picks, each leaf as the number of its place among x's leaves."""
        treedef: Any
        leaves, treedef = jax.tree.flatten(x, is_leaf=lambda part: part is None)
        numbered = treedef.unflatten([_Place(i) for i in range(len(leaves))])
        try:
            picked = numbered if self.of is None else self.of(numbered)
            return jax.tree.map(lambda place: place.number, picked, is_leaf=lambda part: isinstance(part, _Place))
        except (TypeError, AttributeError, KeyError, IndexError) as error:
            raise InputError(
                f"Residual: of must pick a part of x and compute nothing, got {error} for x of {described(x)}. "
                "As in of=lambda x: x[0]."
            ) from error

    def _part(self, x: Any) -> Any:
        leaves = jax.tree.leaves(x, is_leaf=lambda part: part is None)
        return jax.tree.map(lambda place: leaves[place], self._picked(x))


@dataclass(frozen=True)
class _Place:
    """Stands for a leaf of x, so that what is picked is seen."""

    number: int


def _each(who: str, layers: Sequence[Layer], x: Any) -> tuple:
    """x, one part for each layer. Raises `InputError` where the parts don't fit."""
    if not isinstance(x, (tuple, list)) or len(x) != len(layers):
        got = f"{len(x)} parts" if isinstance(x, (tuple, list)) else described(x)
        raise InputError(f"{who}: expected x as a tuple of {len(layers)} parts, one for each layer, got {got}.")
    return tuple(x)


@dataclass(frozen=True)
class Fork:
    """The same x to each layer; their outputs are a tuple. Params: as in `Sequential`."""

    layers: Any  # a sequence of layers, or a dict of them by name; kept as a tuple

    def __post_init__(self):
        object.__setattr__(self, "layers", checked_layers("Fork", self.layers))
        if not self.layers:
            raise InputError("Fork: expected at least one layer, got none. Write Fork([f, g]).")

    def init(self, key: PRNGKeyArray, x: Any) -> tuple:
        params = []
        for i, (place, layer) in enumerate(zip(places(self.layers), self.layers, strict=True)):
            with at(place):
                params.append(layer.init(jax.random.fold_in(key, i), x))
        return under_names(self.layers, params)

    def forward(self, params: tuple, x: Any, context: Context) -> tuple[tuple, tuple[Kept, ...]]:
        each = zip(places(self.layers), self.layers, params, strict=True)
        pairs = [step(place, layer, its, x, context) for place, layer, its in each]
        return tuple(y for y, _ in pairs), tuple(kept for _, kept in pairs)

    def backward(self, params: tuple, feedback: tuple, saved: tuple, delta: tuple, read: tuple) -> tuple[Any, tuple]:
        steps = zip(self.layers, params, feedback, saved, delta, read, strict=True)
        deltas, readings = zip(*(step_back(*each) for each in steps), strict=True)
        return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *deltas), under_names(self.layers, readings)


@dataclass(frozen=True)
class Parallel:
    """Part i of a tuple x to layer i; their outputs are a tuple. Params: as in `Sequential`."""

    layers: Any  # a sequence of layers, or a dict of them by name; kept as a tuple

    def __post_init__(self):
        object.__setattr__(self, "layers", checked_layers("Parallel", self.layers))

    def init(self, key: PRNGKeyArray, x: Any) -> tuple:
        params = []
        parts = zip(places(self.layers), self.layers, _each("Parallel", self.layers, x), strict=True)
        for i, (place, layer, part) in enumerate(parts):
            with at(place):
                params.append(layer.init(jax.random.fold_in(key, i), part))
        return under_names(self.layers, params)

    def forward(self, params: tuple, x: tuple, context: Context) -> tuple[tuple, tuple[Kept, ...]]:
        parts = zip(places(self.layers), self.layers, params, _each("Parallel", self.layers, x), strict=True)
        pairs = [step(place, layer, its, part, context) for place, layer, its, part in parts]
        return tuple(y for y, _ in pairs), tuple(kept for _, kept in pairs)

    def backward(self, params: tuple, feedback: tuple, saved: tuple, delta: tuple, read: tuple) -> tuple[Any, tuple]:
        steps = zip(self.layers, params, feedback, saved, delta, read, strict=True)
        pairs = [step_back(*each) for each in steps]
        return tuple(d for d, _ in pairs), under_names(self.layers, (readings for _, readings in pairs))
