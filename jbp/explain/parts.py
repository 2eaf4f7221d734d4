"""The argument as data, with every number that is printed, from paragraphs down to terms; and as blocks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..blocks import Code, Column, Equation, Maths, PageBlock, Section, Table, Text
from ..markup import Page

TERMS = 5  # terms of a sum, and numbers of a vector, that are printed; the others are counted and summed


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
class Paragraph:
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

    def blocks(self, equations: tuple[str, ...]) -> Iterator[PageBlock]:
        """The paragraph, with those of its equations that are to be quoted."""
        if self.law:
            left, right = self.law.split(" = ", 1)
            yield Equation(left, (("=", right, ""),))
        if equations:
            yield Code("\n".join(equations))
        if self.given:
            yield Text(Maths(", ".join(f"${name}$ = {_short(value)}" for name, value in self.given)))
        yield from (Equation(line.left, tuple(rows_of(line))) for line in self.lines)
        if self.after is not None:
            yield Text(Maths(_told(self.after, self.before)))


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Page):
    """What `explain` found. Prints as text; `to_markdown()` with LaTeX; `to_html()` is a page that needs nothing else.

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
    parts: tuple[Paragraph, ...]
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

    def blocks(self) -> Iterator[PageBlock]:
        """The argument part by part, and the same number by other ways."""
        N = len(self.contributions)
        what = "mean over all positions of" if self.reduction == "positions" else f"{self.reduction} over"
        over = f", the {what} {N} examples" if N > 1 or self.reduction == "positions" else ""
        held = f"x, y and all of θ but coordinate {self.index}, ${self.symbol}$ = {_short(self.theta)}, stay fixed"
        under = [Text(Maths(f"C = {_short(self.cost)}{over}; {held}."))]
        if N > 1:
            most = ", which contributes most" if self.example == np.abs(self.contributions).argmax() else ""
            which = f"$C_n$ is the cost of example n alone. Written out for n = {self.example}{most}."
            under.append(Text(Maths(which)))
        yield Section(Maths(f"$∂C/∂{self.symbol}$, by induction"), tuple(under), level=1)
        quoted: set[str] = set()  # each equation once
        for part in self.parts:
            fresh = tuple(line for line in part.equations if line not in quoted)
            quoted.update(fresh)
            yield Section(Maths(part.title), tuple(part.blocks(fresh)))
        rows: list[tuple[str, ...]] = [("written out here", f"{self.value:.12g}", "", "")]
        for way, value in self.oracles.items():
            away = f"{abs(value - self.value):.1e} away, {self.allowed[way]:.1e} allowed"
            rows.append((way, f"{value:.12g}", "agrees" if self.agrees[way] else "DOES NOT AGREE", away))
        rows[-1] = (*rows[-1][:3], f"{rows[-1][3]}, h = {self.step:.0e}, in {self.dtype}")
        same = Table((Column(""),) * 4, tuple((row, "") for row in rows))
        title = f"{'The' if self.ok else 'NOT the'} same number"
        yield Section(title, (same, *map(Text, filter(None, [self.note]))))


def rows_of(line: Line) -> Iterator[tuple[str, str, str]]:
    """The right-hand sides of a line: in symbols, its terms, its value."""
    if line.right:
        yield "=", line.right, ""
    if len(line.terms) == 1 and len(line.terms[0].factors) > 1:
        yield "=", " · ".join(_factor(f, i) for i, f in enumerate(line.terms[0].factors)), ""
    elif len(line.terms) > 1:
        shown, rest = list(line.terms), []
        if len(shown) > TERMS + 1:
            order = sorted(line.terms, key=lambda term: -abs(term.value))
            shown, rest = order[:TERMS], order[TERMS:]
        for i, term in enumerate(shown):
            product = " · ".join(_factor(f, i) for i, f in enumerate(term.factors))
            note = " ".join(term.names) + (f" = {product}" if len(term.factors) > 1 else "")
            yield _signed(i, term.value, note)
        if rest:
            yield _signed(1, sum(term.value for term in rest), f"the {len(rest)} others, each smaller")
    yield "=", _short(line.value), ""


def _signed(i: int, value: float, note: str) -> tuple[str, str, str]:
    if i == 0:
        return "=", _short(value), note
    return "-" if value < 0 else "+", _short(abs(value)), note


def _factor(value: float, i: int) -> str:
    return f"({_short(value)})" if i and value < 0 else _short(value)


def _short(value: float) -> str:
    return f"{value + 0.0:.6g}"  # −0.0 + 0.0 is 0.0


def _told(after: Vector, before: Vector | None) -> str:
    """δ of the example as a sentence: its largest numbers, and how its norm changed."""
    text = f"$‖{after.name}‖$ = {_short(after.norm)}"
    if len(after.shape) == 1 and 0 < after.values.size <= TERMS + 1:
        text = f"${after.name}$ = ({', '.join(map(_short, after.values))}), {text}"
    else:
        text += f" ({' × '.join(map(str, after.shape))} numbers)"
    if before is not None:
        times = f"{after.norm / before.norm:.3g} of " if before.norm else "from "
        text += f", {times}$‖{before.name}‖$ = {_short(before.norm)}"
    return text + "."
