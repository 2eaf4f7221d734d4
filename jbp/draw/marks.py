"""Layers that can be told apart in a program: the forward of each is one call, under a name of its own.

No layer type is known here. Layers inside layers are found in their fields, as `walk` finds them, and each is replaced
by a `Marked` one, whose forward is the same under `jax.jit`. So in the jaxpr of the network's forward each layer is one
call, and a container's call holds its children's.
"""

from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Any

import jax
import numpy as np

from ..layer import Context, Layer, called, walk

MARK = "layer of the drawing "


@dataclass(frozen=True, eq=False)
class Marked:
    """A layer whose forward is one named call in the jaxpr. `notes`: what it met, written down as it is traced."""

    layer: Any
    number: int
    notes: dict[int, "Note"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def init(self, key: Any, x: Any) -> Any:
        return self.layer.init(key, x)

    def forward(self, params: Any, x: Any, context: Context) -> tuple[Any, Any]:
        def step(params, x):
            return self.layer.forward(params, x, context)

        step.__name__ = f"{MARK}{self.number}"
        output, saved = jax.jit(step)(params, x)
        note = self.notes[self.number]
        note.shapes = f"{shape_text(x)} → {shape_text(output)}"
        note.parameters = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))
        note.outputs, note.xs = len(jax.tree.leaves(output)), len(jax.tree.leaves(x))
        return output, saved

    def backward(self, params: Any, feedback: Any, saved: Any, delta: Any, read: Any) -> tuple[Any, Any]:
        return self.layer.backward(params, feedback, saved, delta, read)


@dataclass
class Note:
    """What is known of one marked layer."""

    path: str
    layer: Any
    container: bool
    inside: int = 0  # layers that are not drawn, because it is too deep
    repeats: int | None = None  # the number of the equal layer before it, which stands for both
    shapes: str = ""
    parameters: int = 0
    outputs: int = 0
    xs: int = 0


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
            or (default is not MISSING and value is default)
            or (default is not MISSING and _same(value, default))
        ):
            continue
        text = getattr(value, "__name__", None) or str(value)
        text = "λ" if text == "<lambda>" else text if len(text) <= 24 else text[:23] + "…"
        shown.append(text if default is MISSING and not callable(value) else f"{f.name}={text}")
    return f"{type(layer).__name__}({', '.join(shown)})" if shown else type(layer).__name__


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except (TypeError, ValueError):
        return False


def mark(layer: Any, path: tuple[str, ...], notes: dict[int, Note], depth: int, keep: str) -> Marked:
    """The layer and the layers inside it, marked; what is deeper than `depth` boxes stays inside its container.

    Of equal containers one after another the first stands for all, but for the one that holds the leaf `keep`.
    """
    kept = lambda i: keep.startswith(".".join((*path, str(i), "")))
    number = len(notes)
    inside = [child for p, child in walk(layer) if p]
    note = notes[number] = Note(".".join(path), layer, bool(inside) and depth > 0)
    if not note.container:
        note.inside = len(inside)
        return Marked(layer, number, notes)
    children: dict[str, Any] = {}
    for f in fields(layer):
        value = getattr(layer, f.name)
        if isinstance(value, tuple) and any(_is_layer(v) for v in value):
            marked: list[Any] = []
            for i, child in enumerate(value):
                before = marked[-1] if marked else None
                if (
                    before is not None
                    and not kept(i)
                    and not kept(i - 1)
                    and _is_layer(child)
                    and _has_layers(child)
                    and _same(child, value[i - 1])
                ):
                    again = len(notes)
                    first = notes[before.number].repeats
                    notes[again] = Note(".".join((*path, str(i))), child, False,
                                         repeats=before.number if first is None else first)  # fmt: skip
                    marked.append(Marked(child, again, notes))
                else:
                    marked.append(mark(child, (*path, str(i)), notes, depth - 1, keep) if _is_layer(child) else child)
            children[f.name] = tuple(marked)
        elif _is_layer(value):
            children[f.name] = mark(value, (*path, f.name), notes, depth - 1, keep)
    try:
        return Marked(replace(layer, **children), number, notes)
    except (TypeError, ValueError):  # a container that takes no other children is drawn as one layer
        note.container, note.inside = False, len(inside)
        return Marked(layer, number, notes)


def _is_layer(value: Any) -> bool:
    return isinstance(value, Layer) and not isinstance(value, type)


def _has_layers(layer: Any) -> bool:
    return any(path for path, _ in walk(layer))
