"""What a drawing writes of a layer: its class with its settings, and shapes."""

from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import jax
import numpy as np

from ..layer import Layer, called


def shape_text(x: Any) -> str:
    shapes = [f"[{', '.join(map(str, np.shape(a)[1:]))}]" for a in jax.tree.leaves(x)]
    return shapes[0] if len(shapes) == 1 else f"({', '.join(shapes)})"


def title_of(layer: Any) -> str:
    """The class of a layer with the settings that are not its defaults, children left out: `Dense(30)`; or its name."""
    if called(layer) != type(layer).__name__:
        return called(layer)
    shown = []
    for f in fields(layer) if is_dataclass(layer) else ():
        value = getattr(layer, f.name)
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if any(isinstance(v, Layer) for v in (value if isinstance(value, tuple) else (value,))):
            continue
        if (
            value is None
            or (callable(value) and isinstance(default, str))  # an initialiser
            or (default is not MISSING and value is default)
            or (default is not MISSING and same(value, default))
        ):
            continue
        text = getattr(value, "__name__", None) or str(value)
        text = "λ" if text == "<lambda>" else text if len(text) <= 24 else text[:23] + "…"
        shown.append(text if default is MISSING and not callable(value) else f"{f.name}={text}")
    return f"{type(layer).__name__}({', '.join(shown)})" if shown else type(layer).__name__


def same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except (TypeError, ValueError):
        return False
