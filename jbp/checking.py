"""What can only be said of values: each layer that has `check_values` is asked about the x that reaches it.

`Checking` is a context that listens: `step` tells it of each layer and its x, wherever containers run them, loops
included, and a callback asks the layer at run time. XLA drops all of the forward pass that no such layer needs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from .layer import Context, InputError, Layer, at, walk

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

    jax.jit(run)(*args)
    jax.effects_barrier()
    if listening.found.errors:
        raise listening.found.errors[0]
