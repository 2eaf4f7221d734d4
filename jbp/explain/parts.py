"""The argument as data: its paragraphs, the lines in them, and every number that is printed."""

import math
from dataclasses import dataclass
from html import escape

import numpy as np


@dataclass(frozen=True)
class Term:
    """A product of named factors."""

    names: tuple[str, ...]
    factors: tuple[float, ...]

    @property
    def value(self) -> float:
        """The product."""
        return math.prod(self.factors)


@dataclass(frozen=True)
class Line:
    """`left` = `right`, in symbols; in numbers the sum of `terms`, which the run itself found to be `value`."""

    left: str
    right: str
    terms: tuple[Term, ...]
    value: float


@dataclass(frozen=True)
class Vector:
    """A δ of the example written out, whole: `values` is flat, `shape` its own."""

    name: str
    values: np.ndarray
    shape: tuple[int, ...]

    @property
    def norm(self) -> float:
        return float(np.linalg.norm(self.values))


@dataclass(frozen=True)
class Part:
    """A paragraph of the argument: one step of the induction, or its beginning or end.

    `layers`: paths of the layers that it goes through. `law`: what it does in symbols; `equations`: what the layers'
    docstrings say. `lines` follow one coordinate through it; `given` are values that the forward pass kept. `before`
    and `after`: δ of the example as it comes in from above, and as it goes on.
    """

    title: str
    layers: tuple[str, ...] = ()
    law: str = ""
    equations: tuple[str, ...] = ()
    given: tuple[tuple[str, float], ...] = ()
    lines: tuple[Line, ...] = ()
    before: Vector | None = None
    after: Vector | None = None


@dataclass(frozen=True, eq=False)
class Explanation:
    """What `explain` found. Prints as text; `to_markdown()` with LaTeX; `to_html()` a page that needs nothing else.

    `value`: ∂C/∂(coordinate `index` of θ, which is `theta`), the sum of `contributions`, one for each example, of which
    `example` is written out in `parts`. `oracles`: the same number by other ways, and how far off each is `allowed` to
    be; the central difference with `step`, in `dtype`. `note`: a sentence where one does not agree.
    """

    symbol: str
    index: int
    theta: float
    cost: float
    reduction: str
    example: int
    parts: tuple[Part, ...]
    contributions: np.ndarray
    value: float
    oracles: dict[str, float]
    allowed: dict[str, float]
    step: float
    dtype: str
    note: str = ""

    @property
    def agrees(self) -> dict[str, bool]:
        """Whether each oracle's number is `value`, within what it is allowed to be off."""
        return {way: abs(value - self.value) <= self.allowed[way] for way, value in self.oracles.items()}

    @property
    def ok(self) -> bool:
        """Whether all agree."""
        return all(self.agrees.values())

    def __str__(self) -> str:
        from .rendering import as_text, blocks

        return as_text(list(blocks(self)))

    __repr__ = __str__

    def to_markdown(self) -> str:
        """The argument as Markdown, its equations in LaTeX."""
        from .rendering import as_markdown, blocks

        return as_markdown(list(blocks(self)))

    def to_html(self) -> str:
        """The argument as one HTML page, without scripts or anything from elsewhere."""
        head = f'<meta charset="utf-8"><title>{escape(f"∂C/∂{self.symbol}")}</title>'
        return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{self._repr_html_()}\n</body></html>\n'

    markdown, html = to_markdown, to_html

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def _repr_html_(self) -> str:
        from .rendering import as_html, blocks

        return as_html(list(blocks(self)))
