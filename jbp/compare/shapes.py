"""Shapes in words, and arrays of them with values at the edges.

"N I, I O"              two arrays; a letter is one size, drawn anew for each example; a number is itself
"V D, N T: int32 < V"   after a colon the dtype; whole numbers from 0 to below the size V
""                      a scalar
"""

import inspect
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..errors import InputError

SIZES = (1, 2, 3, 4, 8, 17)  # of an axis that a letter stands for: a few small ones, as each shape is compiled anew
FLOATS = ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128")

# How values are made: (name, function of a random generator, shape and dtype); simple ones first, as things shrink.
Style = Callable[[np.random.Generator, tuple[int, ...], Any], np.ndarray]
STYLES: dict[str, Style] = {
    "ones": lambda r, shape, dtype: np.ones(shape),
    "small whole numbers (ties)": lambda r, shape, dtype: r.integers(-2, 3, shape).astype(float),
    "normal": lambda r, shape, dtype: r.standard_normal(shape),
    "zeros": lambda r, shape, dtype: np.zeros(shape),
    "all equal": lambda r, shape, dtype: np.full(shape, r.standard_normal()),
    "large": lambda r, shape, dtype: 30 * r.standard_normal(shape),
    "a large mean": lambda r, shape, dtype: 100 + r.standard_normal(shape),
    "of all sizes": lambda r, shape, dtype: r.standard_normal(shape) * 10.0 ** r.integers(-4, 4, shape),
    "one huge": lambda r, shape, dtype: _one(r, shape, float(jnp.finfo(dtype).max) ** 0.25),
    "some zeros": lambda r, shape, dtype: r.standard_normal(shape) * r.integers(0, 2, shape),
    "tiny": lambda r, shape, dtype: r.standard_normal(shape) * float(jnp.finfo(dtype).tiny) ** 0.5,
}


def _one(r: np.random.Generator, shape: tuple[int, ...], value: float) -> np.ndarray:
    a = r.standard_normal(shape)
    if a.size:
        a.reshape(-1)[int(r.integers(a.size))] = value
    return a


@dataclass(frozen=True)
class Spec:
    """One argument: axes by letter or number, dtype, and for whole numbers the axis whose size they stay below."""

    axes: tuple[str, ...]
    dtype: str
    below: str | None = None

    def shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        return tuple(int(a) if a.isdigit() else sizes[a] for a in self.axes)


def parse_shapes(shapes: str, dtype: str = "float32") -> list[Spec]:
    """The arguments that a text like `"N I, I O: bfloat16"` describes. Raises `InputError` where it does not."""
    if not isinstance(shapes, str):
        raise InputError(f'shapes: expected a text such as "N I, I O", got {shapes!r}. Write axes of each argument.')
    specs = []
    for text in shapes.split(","):
        match = re.fullmatch(r"\s*([A-Za-z_0-9 ]*?)\s*(?::\s*(\w+)\s*(?:<\s*(\w+))?)?\s*", text)
        kind = (match and match[2]) or dtype
        try:
            jnp.dtype(kind)
        except TypeError:
            raise InputError(f"shapes: no dtype is called {kind!r}. Write for example float32 or bfloat16.") from None
        if match is None:
            raise InputError(
                "shapes: expected arguments with commas between, each its axes and perhaps a dtype, got "
                f"{text.strip()!r}. "
                'Write for example "N I, I O" or "V D, N T: int32 < V".'
            )
        specs.append(Spec(tuple(match[1].split()), kind, match[3]))
    letters = {axis for spec in specs for axis in spec.axes}
    for spec in specs:
        if spec.below and not spec.below.isdigit() and spec.below not in letters:
            raise InputError(
                f"shapes: no axis is called {spec.below!r}, which whole numbers should stay below. "
                f"Name one of {', '.join(sorted(letters))}."
            )
    return specs


def arrays(shapes: str, dtype: str = "float32", empty: bool = False) -> Any:
    """A Hypothesis strategy of tuples of NumPy arrays, by a text like `"N I, I O"`; see the head of this file.

    Raises `InputError` where Hypothesis is not installed or the text does not fit.
    """
    st = hypothesis_or_error().strategies
    specs = parse_shapes(shapes, dtype)
    letters = sorted({a for spec in specs for a in (*spec.axes, spec.below or "1") if not a.isdigit()})

    @st.composite
    def draw(draw: Any) -> tuple[np.ndarray, ...]:
        sizes = {a: draw(st.sampled_from((0, *SIZES) if empty else SIZES)) for a in letters}
        return tuple(
            _values(spec, sizes, draw(st.sampled_from(list(STYLES))), draw(st.integers(0, 999))) for spec in specs
        )

    return draw()


def _values(spec: Spec, sizes: dict[str, int], style: str, seed: int) -> np.ndarray:
    shape, generator, dtype = spec.shape(sizes), np.random.default_rng(seed), jnp.dtype(spec.dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        made = STYLES[style](generator, shape, dtype)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            made = made + 1j * STYLES[style](generator, shape, dtype)
        return np.asarray(made).astype(dtype)
    if dtype == np.dtype(bool):
        return generator.integers(0, 2, shape).astype(bool)
    below = int(spec.below) if spec.below and spec.below.isdigit() else sizes[spec.below] if spec.below else 4
    return generator.integers(0, max(below, 1), shape).astype(dtype) if below else np.zeros(shape, dtype)


def annotated(f: Callable[..., Any]) -> str | None:
    """The shapes that jaxtyping's annotations of a function state, in the words of `arrays`; None if one is missing."""
    try:
        parameters = list(inspect.signature(f).parameters.values())
        hints = typing.get_type_hints(inspect.unwrap(f))
    except (TypeError, ValueError, NameError):
        return None
    found = []
    for parameter in parameters:
        hint: Any = hints.get(parameter.name)
        if parameter.default is not parameter.empty and not hasattr(hint, "dim_str"):
            continue
        if not hasattr(hint, "dim_str"):
            return None
        axes = " ".join(axis.strip("*#?_") or "A" for axis in hint.dim_str.replace("...", "A").split())
        kinds = [str(kind) for kind in hint.dtypes] if not isinstance(hint.dtypes, str) else [hint.dtypes]
        if any("float" in kind for kind in kinds):
            found.append(axes)
        else:
            kind = next((k for k in ("int32", "bool", "complex64") if k in kinds), "int32")
            found.append(f"{axes}: {kind}")
    return ", ".join(found) if found else None


def usual_args(specs: Sequence[Spec]) -> tuple[np.ndarray, ...]:
    """Arguments of usual sizes and values."""
    letters = sorted({a for spec in specs for a in (*spec.axes, spec.below or "1") if not a.isdigit()})
    sizes = {a: 3 + i for i, a in enumerate(letters)}
    return tuple(_values(spec, sizes, "normal", i) for i, spec in enumerate(specs))


def hypothesis_or_error() -> Any:
    try:
        import hypothesis
        import hypothesis.strategies
    except ModuleNotFoundError:
        raise InputError(
            "hypothesis is not installed, and generated inputs need it. Write: pip install 'jbp[check]'"
        ) from None
    return hypothesis
