"""The paragraphs of the argument, from the record of one run."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..activations import Activation
from ..chain import chain_of
from ..layer import wide
from ..layers.dense import Dense
from ..pair import Outer, Pair, Sum
from ..record import Record, Step
from ..reverse import Cost
from .equations import equations_of
from .parts import Line, Paragraph, Term, Vector


def contributions_of(pair: Pair, where: tuple[int, ...]) -> np.ndarray:
    """∂C_n/∂(the coordinate) of each example `[N]`, in float64."""
    if isinstance(pair, Outer):
        k, j = where
        return (numbers(pair.a)[:, :, k] * numbers(pair.delta)[:, :, j]).sum(1)
    if isinstance(pair, Sum):
        return numbers(pair.g)[:, :, *where].sum(1)
    return numbers(pair.per_example())[:, *where]


def numbers(a: Any) -> Any:
    return np.asarray(a).astype(np.float64)


Place = tuple[int, ...] | None  # of an element in one example's array


@dataclass(frozen=True)
class Argument:
    """Writes the parts, from the leaf up: at each step, the δ above that the followed one needs most is followed."""

    cost: Cost
    record: Record
    y: Any
    n: int
    symbol: str

    def parts(self, owner: Step, pair: Pair, where: tuple[int, ...]) -> list[Paragraph]:
        """From the base case to the last product."""
        last, place = self._last_product(owner, pair, where)
        below = [last]
        for step, delta, through in reversed(self.record.route(owner)):
            part, place = self._inductive_step(step, delta, through, place)
            below.append(part)
        parts = [self._base_case(place), *below[::-1]]
        return self._by_layer(parts) if self.chain else parts

    # -- names: the text's in a plain chain, else by path -----------------------------------------------------------

    @cached_property
    def C(self) -> str:
        """The cost whose δ this is: one example's own, unless that is all of C."""
        return "C" if len(self.record.factors) == 1 and self.record.factors[0] == 1 else "C_n"

    @cached_property
    def chain(self) -> list[str]:
        """The text's ℓ of each layer's output, if at most one activation is behind each dense layer; else empty."""
        chain, layers = chain_of(self.cost.network), self.cost.network.layers
        if chain is None or len(self.cost.network.input.shape) != 1 or any(len(g) > 1 for g in chain.behind):
            return []
        dense = [i in chain.places for i in range(len(layers))]
        if not all(
            isinstance(layer, Activation) for layer, is_dense in zip(layers, dense, strict=True) if not is_dense
        ):
            return []
        return [braced(l) for l in itertools.accumulate(dense, initial=1)][1:]

    def _delta(self, step: Step, *at: object) -> str:
        """δ at a step's output."""
        return self._at_output(int(step.path), *at) if self.chain else f"δ({step.name}){_bracketed(at)}"

    def _delta_x(self, step: Step, *at: object) -> str:
        """δ at a step's input."""
        return self._at_output(int(step.path) - 1, *at) if self.chain else f"δx({step.name}){_bracketed(at)}"

    def _at_output(self, i: int, *at: object) -> str:
        name = "δ" if isinstance(self.cost.network.layers[i], Dense) else f"∂{self.C}/∂a"
        return f"{name}^{self.chain[i]}{_lowered(at)}"

    def _value(self, letter: str, step: Step, *at: object) -> str:
        """An input or output of a step."""
        return f"{letter}^{self.chain[int(step.path)]}{_lowered(at)}" if self.chain else f"{letter}{_bracketed(at)}"

    # -- the steps --------------------------------------------------------------------------------------------------

    def _base_case(self, at: Place) -> Paragraph:
        name, a, place = "δ", "output", _bracketed(at or ())
        if self.chain:
            name, a, place = self._at_output(-1), f"a^{self.chain[-1]}", _lowered(at or ())
        part = Paragraph(
            f"Base case: ${name}$ at the output, from {type(self.cost.loss).__name__}",
            equations=equations_of(self.cost.loss),
            after=self._vector(name, self.record.delta),
        )
        if at is None:
            return part
        given = [(a + place, self._number(self.record.output, at))]
        if np.shape(self.y) == np.shape(self.record.output):
            given.append((f"y{place}", self._number(self.y, at)))
        elif np.ndim(self.y) == 1:
            given.append(("y", self._number(self.y, ())))
        line = Line(name + place, "", (), self._number(self.record.delta, at))
        return replace(part, given=tuple(given), lines=(line,))

    def _inductive_step(self, step: Step, delta: Any, through: bool, at: Place) -> tuple[Paragraph, Place]:
        """The part for one link of the route, and the place of the δ above it that the followed one needs most.

        `through`: whether δ went through the layer, and is not one that a container made for a layer in it.
        """
        part = Paragraph(
            f"Inductive step: back through layer {step.name}, {step.kind}",
            (step.path,),
            equations=equations_of(step.layer),
            before=self._vector(self._delta(step), step.delta),
            after=self._vector(self._delta_x(step), delta),
        )
        if not through:
            title = f"Inside layer {step.name}, {step.kind}: δ for a layer in it"
            return replace(part, title=title, after=self._vector(f"δ inside {step.name}", delta)), None
        if not isinstance(step.layer, (Dense, Activation)):
            return part, None
        at = _largest(numbers(delta)[self.n]) if at is None else at
        left, value = self._delta_x(step, *at), self._number(delta, at)
        if isinstance(step.layer, Dense):
            *t, k = at
            w, d = numbers(step.params.w)[k], numbers(step.delta)[(self.n, *t)]
            name = lambda i: (self._weight(step, i, k), self._delta(step, *t, i))
            terms = tuple(Term(name(i), (float(w[i]), float(d[i]))) for i in range(len(d)))
            line = Line(left, f"Σ_i {' '.join(name('i'))}", terms, value)
            return replace(part, lines=(line,)), (*t, int(np.abs(w * d).argmax()))
        z, a = self._value("z" if self.chain else "x", step, *at), self._value("a", step, *at)
        slope = self._number(step.layer.slope(wide(jnp.asarray(step.saved))), at)
        term = Term((f"f′({z})", self._delta(step, *at)), (slope, self._number(step.delta, at)))
        given = (z, self._number(step.x, at)), (a, self._number(step.output, at))
        return replace(part, given=given, lines=(Line(left, " · ".join(term.names), (term,), value),)), at

    def _last_product(self, owner: Step, pair: Pair, where: tuple[int, ...]) -> tuple[Paragraph, Place]:
        """The part at the leaf, and the place of the δ at the layer's output that is needed most, if it is known."""
        name: Callable[[object], tuple[str, ...]] = lambda t: ()
        factors = np.zeros((0, 0))
        if isinstance(pair, Outer):
            k, j = where
            factors = np.stack([numbers(pair.a)[self.n, :, k], numbers(pair.delta)[self.n, :, j]], 1)
            name = lambda t: (f"a[{_of(t, k)}]", f"δ[{_of(t, j)}]")
            if self.chain:
                l = self.chain[int(owner.path) - 1] if owner.path != "0" else "1"
                name = lambda t: (f"a^{l}{_lowered((k,))}", self._delta(owner, j))
        elif isinstance(pair, Sum):
            factors = numbers(pair.g)[self.n, :, *where][:, None]
            name = lambda t: (self._delta(owner, *where) if self.chain else f"g[{_of(t, *where)}]",)
        terms = tuple(Term(name(t if len(factors) > 1 else None), tuple(map(float, f))) for t, f in enumerate(factors))
        law = f"Σ_t {' '.join(name('t'))}" if len(terms) > 1 else " · ".join(name(None))
        line = Line(f"∂{self.C}/∂{self.symbol}", law, terms, self._number(contributions_of(pair, where), ()))
        title = f"Last product: at the leaf of layer {owner.name}, {owner.kind}"
        part = Paragraph(title, (owner.path,), equations=equations_of(owner.layer), lines=(line,))
        if not isinstance(owner.layer, Dense):
            return part, None
        t = int(np.abs(factors.prod(1)).argmax())
        return part, (*(int(i) for i in np.unravel_index(t, owner.delta.shape[1:-1])), where[-1])

    def _by_layer(self, parts: list[Paragraph]) -> list[Paragraph]:
        """A plain chain's parts, each activation's with the part above: δ^ℓ from δ^{ℓ+1} in one step."""
        steps: list[Paragraph] = []
        for part in parts:
            if part.before is None:
                steps.append(part)
            elif isinstance(self.cost.network.layers[int(part.layers[0])], Dense):
                steps.append(replace(part, equations=()))
            else:
                above = steps.pop()
                both = {f: getattr(above, f) + getattr(part, f) for f in ("layers", "lines")}
                given = tuple(dict(above.given + part.given).items())
                f = above.equations + part.equations[:1]
                steps.append(replace(part, **both, given=given, equations=f, before=above.before))
        return [self._in_symbols(part) for part in steps]

    def _in_symbols(self, part: Paragraph) -> Paragraph:
        """A plain chain's part with the text's title and law."""
        if part.after is None:
            return replace(part, title="Last product", equations=())
        l = part.after.name.split("^")[1]
        f = f"f′(z^{l}_j) · "
        if part.before is None:
            law = f"δ^{l}_j = {f}∂{self.C}/∂a^{l}_j" if part.layers else ""
            return replace(part, title=f"Base case: $δ^{l}$, from {type(self.cost.loss).__name__}", law=law)
        i = part.before.name.split("^")[1]
        law = f"δ^{l}_j = {f if len(part.layers) > 1 else ''}Σ_i w^{i}_{{i←j}} δ^{i}_i"
        return replace(part, title=f"Inductive step: $δ^{l}$ from $δ^{i}$", law=law)

    def _weight(self, step: Step, i: object, k: int) -> str:
        return f"w^{self.chain[int(step.path)]}_{{{i}←{k}}}" if self.chain else f"w_{{{i}←{k}}}"

    def _number(self, array: Any, at: tuple[int, ...]) -> float:
        return float(numbers(array)[(self.n, *at)])

    def _vector(self, name: str, delta: Any) -> Vector:
        arrays = [numbers(d)[self.n] for d in jax.tree.leaves(delta)]
        shape = arrays[0].shape if len(arrays) == 1 else (sum(a.size for a in arrays),)
        return Vector(name, np.concatenate([np.zeros(0), *map(np.ravel, arrays)]), shape)


def _largest(a: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(np.abs(a).argmax(), a.shape))


def braced(number: object) -> str:
    return str(number) if len(str(number)) == 1 else f"{{{number}}}"


def _lowered(at: tuple) -> str:
    return f"_{braced(at[0])}" if at else ""


def _bracketed(at: tuple) -> str:
    return f"[{','.join(map(str, at))}]" if at else ""


def _of(*parts: object) -> str:
    return ",".join(str(part) for part in parts if part is not None)
