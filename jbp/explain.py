"""The inductive argument for one coordinate of θ, written out with its numbers.

    base case         δ at the output, from the loss
    inductive step    δ at a layer's input from δ at its output, for each layer on the way down
    last product      ∂C_n/∂w from the pair (a, δ) at the leaf; then the sum over examples, each with its factor in C

In a plain chain of dense layers and activations the argument has the text's symbols, δ^ℓ_j = ∂C_n/∂z^ℓ_j. In any other
network δ(p) stands at the output of layer p, δx(p) at its input, and a layer that is neither dense nor an activation
shows the equation in its docstring, with the norms of its δ. `Explanation` holds every number that it prints.
"""

import inspect
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .activations import Activation
from .compare import in_float64
from .layer import Context, InputError, Theta, wide
from .layers.dense import Dense
from .pair import Outer, Pair, Sum
from .reverse import Cost
from .trace import Record, Step, run

SHOWN = 5  # terms of a sum, and numbers of a vector, that are printed; the others are counted and summed


# -- the argument as data ---------------------------------------------------------------------------------------------


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
    """What `explain` found. Prints as text; `markdown()` with LaTeX; `html()` a page that needs nothing else.

    `value`: ∂C/∂(coordinate `index` of θ, which is `theta`), the sum of `contributions`, one for each example, of which
    `example` is written out in `parts`. `oracles`: the same number by other ways; the central difference with
    `step`, in `dtype`.
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
    step: float
    dtype: str

    def __str__(self) -> str:
        return _text(list(_blocks(self)))

    __repr__ = __str__

    def markdown(self) -> str:
        """The argument as Markdown, its equations in LaTeX."""
        return _markdown(list(_blocks(self)))

    def html(self) -> str:
        """The argument as one HTML page, without scripts or anything from elsewhere."""
        head = f'<meta charset="utf-8"><title>{escape(f"∂C/∂{self.symbol}")}</title>'
        return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{self._repr_html_()}\n</body></html>\n'

    def _repr_markdown_(self) -> str:
        return self.markdown()

    def _repr_html_(self) -> str:
        return _html(list(_blocks(self)))


# -- building it ------------------------------------------------------------------------------------------------------


def explain(
    cost: Cost,
    theta: Theta,
    x: Any,
    y: Any,
    symbol: str,
    *,
    example: int | None = None,
    weights: Any = None,
    context: Context = Context(),
) -> Explanation:
    """The induction for one coordinate of θ, such as `"w^2_{3←7}"` or `"1.layer.0.w[3,7]"`; `<-` may stand for `←`.

    `example`: the one that is written out, the one that contributes most unless given. The same number is then found by
    `cost.value_and_grad`, by `jax.grad(cost)`, and by a central difference in float64, whether or not x64 is on (with a
    key in the context, in θ's own dtype).
    Raises `InputError` for a symbol that is not in the network (with the nearest), under jit, and as `cost.check`.
    """
    i = cost.layout.index(symbol)
    record = run(cost, theta, x, y, weights=weights, context=context)
    owner, pair, where = _located(cost, record, i)
    contributions = record.factors * _at(pair, where)
    n = int(np.abs(contributions).argmax()) if example is None else example
    if not 0 <= n < len(contributions):
        raise InputError(f"explain: example must be one of 0 … {len(contributions) - 1}, got {example}.")
    settings: dict[str, Any] = {"weights": weights, "context": context}
    C, gradient = cost.value_and_grad(theta, x, y, **settings)
    difference, step, dtype = _central_difference(cost, theta, x, y, i, settings)
    oracles = {
        "cost.value_and_grad": float(gradient[i]),
        "jax.grad(cost)": float(jax.grad(cost)(jnp.asarray(theta), x, y, **settings)[i]),
        "central difference": difference,
    }
    symbol = cost.layout.symbol(i)
    argument = _Argument(cost, record, y, n, symbol)
    parts = [*argument.parts(owner, pair, where), *_batch(cost, record, contributions, symbol, weights)]
    value = float(contributions.sum())
    at = float(theta[i]), float(C), cost.reduction, n
    return Explanation(symbol, i, *at, tuple(parts), contributions, value, oracles, step, dtype)


def _located(cost: Cost, record: Record, i: int) -> tuple[Step, Any, tuple[int, ...]]:
    """Coordinate i: the step of the layer (in a loop, of the turn) that it is used in, its leaf's pair, where in it."""
    layout = cost.layout
    k = max(k for k, offset in enumerate(layout.offsets[:-1]) if offset <= i and layout.sizes[k])
    name, shape = layout.names[k], layout.shapes[k]
    where = tuple(int(j) for j in np.unravel_index(i - layout.offsets[k], shape))
    leaf, loops = record.leaves[name], shape[: record.leaves[name].depth]
    turns = sorted((step for step in record.steps if step.path == leaf.owner), key=lambda step: step.turn or 0)
    if len(turns) != math.prod(loops):
        raise InputError(
            f"explain: layer {leaf.owner} ran {len(turns)} times, with {math.prod(loops)} blocks in its leaf {name}, "
            "so no single step of it has this coordinate. Ask for one of a layer that runs once."
        )
    pair: Any = leaf.pair
    for block in where[: leaf.depth]:
        pair = jax.tree.map(lambda a, block=block: a[block], pair.blocks)
    return turns[int(np.ravel_multi_index(where[: leaf.depth], loops)) if loops else 0], pair, where[leaf.depth :]


def _at(pair: Pair, where: tuple[int, ...]) -> np.ndarray:
    """∂C_n/∂(the coordinate) of each example `[N]`, in float64."""
    if isinstance(pair, Outer):
        k, j = where
        return (_numbers(pair.a)[:, :, k] * _numbers(pair.delta)[:, :, j]).sum(1)
    if isinstance(pair, Sum):
        return _numbers(pair.g)[:, :, *where].sum(1)
    return _numbers(pair.per_example())[:, *where]


def _central_difference(
    cost: Cost, theta: Any, x: Any, y: Any, i: int, settings: dict[str, Any]
) -> tuple[float, float, str]:
    """((C(θ + h e_i) − C(θ − h e_i)) / 2h, h, dtype), at the h of 10^−½ … 10^−7 whose error is estimated least.

    The estimate is the change from the h before, truncation, plus ε |C| / h, rounding. In float64, unless there is a
    random key: the same key draws other noise in float64, so then in θ's own dtype.
    """
    noisy = settings["context"].key is not None
    with nullcontext() if noisy else jax.enable_x64(True):
        args = (np.asarray(theta), x, y, settings)
        theta, x, y, settings = args if noisy else in_float64(args)
        dtype = theta.dtype
        found: list[float] = []
        best, least = (math.nan, math.nan), math.inf
        for h in max(1.0, abs(float(theta[i]))) * 10.0 ** -np.arange(0.5, 7.5, 0.5):
            above, below = theta.copy(), theta.copy()
            above[i] += h
            below[i] -= h
            up, down = (float(cost(shifted, x, y, **settings)) for shifted in (above, below))
            found.append((up - down) / max(float(above[i]) - float(below[i]), np.finfo(dtype).tiny))
            if len(found) > 1:
                error = abs(found[-1] - found[-2]) + np.finfo(dtype).eps * max(abs(up), abs(down)) / h
                if error < least:
                    best, least = (found[-1], float(h)), error
    return *best, str(dtype)


def _numbers(a: Any) -> Any:
    return np.asarray(a).astype(np.float64)


def _batch(cost: Cost, record: Record, contributions: np.ndarray, symbol: str, weights: Any) -> list[Part]:
    """The part that sums over examples; none for a single one that counts fully."""
    N = len(contributions)
    if N == 1 and record.factors[0] == 1:
        return []
    mean = cost.reduction == "mean" and weights is None
    right = f"1/{N} Σ_n ∂C_n/∂{symbol}" if mean else f"Σ_n {'' if weights is None else 'w_n '}∂C_n/∂{symbol}"
    terms = tuple(Term((f"n = {n}",), (float(g),)) for n, g in enumerate(contributions))
    line = Line(f"∂C/∂{symbol}", right, terms, float(contributions.sum()))
    return [Part(f"Over the {N} examples", lines=(line,))]


Place = tuple[int, ...] | None  # of an element in one example's array


@dataclass(frozen=True)
class _Argument:
    """Writes the parts, from the leaf up: at each step, the δ above that the followed one needs most is followed."""

    cost: Cost
    record: Record
    y: Any
    n: int
    symbol: str

    def parts(self, owner: Step, pair: Pair, where: tuple[int, ...]) -> list[Part]:
        """From the base case to the last product."""
        last, place = self._last_product(owner, pair, where)
        below = [last]
        for step, delta in reversed(self.record.route(owner)):
            part, place = self._inductive_step(step, delta, place)
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
        layers = self.cost.network.layers
        dense = [isinstance(layer, Dense) for layer in layers]
        known = all(isinstance(layer, (Dense, Activation)) for layer in layers)
        single = all(dense[i] or dense[i - 1] or not any(dense[:i]) for i in range(len(layers)))
        if not (known and single and self.cost.layout.is_chain and len(self.cost.network.input.shape) == 1):
            return []
        return [_braced(l) for l in itertools.accumulate(dense, initial=1)][1:]

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

    def _base_case(self, at: Place) -> Part:
        name, a, place = "δ", "output", _bracketed(at or ())
        if self.chain:
            name, a, place = self._at_output(-1), f"a^{self.chain[-1]}", _lowered(at or ())
        part = Part(
            f"Base case: ${name}$ at the output, from {type(self.cost.loss).__name__}",
            equations=_equations(self.cost.loss),
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

    def _inductive_step(self, step: Step, delta: Any, at: Place) -> tuple[Part, Place]:
        """The part for one link of the route, and the place of the δ above it that the followed one needs most."""
        part = Part(
            f"Inductive step: back through layer {step.name}, {step.kind}",
            (step.path,),
            equations=_equations(step.layer),
            before=self._vector(self._delta(step), step.delta),
            after=self._vector(self._delta_x(step), delta),
        )
        if delta is not step.delta_x:
            title = f"Inside layer {step.name}, {step.kind}: δ for a layer in it"
            return replace(part, title=title, after=self._vector(f"δ inside {step.name}", delta)), None
        if not isinstance(step.layer, (Dense, Activation)):
            return part, None
        at = _largest(_numbers(delta)[self.n]) if at is None else at
        left, value = self._delta_x(step, *at), self._number(delta, at)
        if isinstance(step.layer, Dense):
            *t, k = at
            w, d = _numbers(step.params.w)[k], _numbers(step.delta)[(self.n, *t)]
            name = lambda i: (self._weight(step, i, k), self._delta(step, *t, i))  # noqa: E731
            terms = tuple(Term(name(i), (float(w[i]), float(d[i]))) for i in range(len(d)))
            line = Line(left, f"Σ_i {' '.join(name('i'))}", terms, value)
            return replace(part, lines=(line,)), (*t, int(np.abs(w * d).argmax()))
        z, a = self._value("z" if self.chain else "x", step, *at), self._value("a", step, *at)
        slope = self._number(step.layer.slope(wide(step.saved)), at)
        term = Term((f"f′({z})", self._delta(step, *at)), (slope, self._number(step.delta, at)))
        given = (z, self._number(step.x, at)), (a, self._number(step.output, at))
        return replace(part, given=given, lines=(Line(left, " · ".join(term.names), (term,), value),)), at

    def _last_product(self, owner: Step, pair: Pair, where: tuple[int, ...]) -> tuple[Part, Place]:
        """The part at the leaf, and the place of the δ at the layer's output that is needed most, if it is known."""
        name: Callable[[object], tuple[str, ...]] = lambda t: ()  # noqa: E731
        factors = np.zeros((0, 0))
        if isinstance(pair, Outer):
            k, j = where
            factors = np.stack([_numbers(pair.a)[self.n, :, k], _numbers(pair.delta)[self.n, :, j]], 1)
            name = lambda t: (f"a[{_of(t, k)}]", f"δ[{_of(t, j)}]")  # noqa: E731
            if self.chain:
                l = self.chain[int(owner.path) - 1] if owner.path != "0" else "1"
                name = lambda t: (f"a^{l}{_lowered((k,))}", self._delta(owner, j))  # noqa: E731
        elif isinstance(pair, Sum):
            factors = _numbers(pair.g)[self.n, :, *where][:, None]
            name = lambda t: (self._delta(owner, *where) if self.chain else f"g[{_of(t, *where)}]",)  # noqa: E731
        terms = tuple(Term(name(t if len(factors) > 1 else None), tuple(map(float, f))) for t, f in enumerate(factors))
        law = f"Σ_t {' '.join(name('t'))}" if len(terms) > 1 else " · ".join(name(None))
        line = Line(f"∂{self.C}/∂{self.symbol}", law, terms, self._number(_at(pair, where), ()))
        title = f"Last product: at the leaf of layer {owner.name}, {owner.kind}"
        part = Part(title, (owner.path,), equations=_equations(owner.layer), lines=(line,))
        if not isinstance(owner.layer, Dense):
            return part, None
        t = int(np.abs(factors.prod(1)).argmax())
        return part, (*(int(i) for i in np.unravel_index(t, owner.delta.shape[1:-1])), where[-1])

    def _by_layer(self, parts: list[Part]) -> list[Part]:
        """A plain chain's parts, each activation's with the part above: δ^ℓ from δ^{ℓ+1} in one step."""
        steps: list[Part] = []
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

    def _in_symbols(self, part: Part) -> Part:
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
        return float(_numbers(array)[(self.n, *at)])

    def _vector(self, name: str, delta: Any) -> Vector:
        arrays = [_numbers(d)[self.n] for d in jax.tree.leaves(delta)]
        shape = arrays[0].shape if len(arrays) == 1 else (sum(a.size for a in arrays),)
        return Vector(name, np.concatenate([np.zeros(0), *map(np.ravel, arrays)]), shape)


def _largest(a: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(np.abs(a).argmax(), a.shape))


def _braced(number: object) -> str:
    return str(number) if len(str(number)) == 1 else f"{{{number}}}"


def _lowered(at: tuple) -> str:
    return f"_{_braced(at[0])}" if at else ""


def _bracketed(at: tuple) -> str:
    return f"[{','.join(map(str, at))}]" if at else ""


def _of(*parts: object) -> str:
    return ",".join(str(part) for part in parts if part is not None)


# -- what a docstring says --------------------------------------------------------------------------------------------

_MARKED = re.compile(r"\s*(forward|backward|gradient)\b", re.I)


def _equations(layer: Any) -> tuple[str, ...]:
    """The equations of a layer (or loss), from its docstring and its module's; its class's name if there are none.

    The lines that begin with forward, backward or gradient, and those under them that stand further in. If its class
    has none: the module's lines that begin with the class's name, or else the class's first line if it is an equation;
    and, unless that line has δ in it, the module's own.
    """
    kind = type(layer)
    own = _cleaned(kind.__doc__)
    if marked := _passages(own, _MARKED):
        return marked
    module = _cleaned(getattr(sys.modules.get(kind.__module__), "__doc__", None))
    named = [line for line in _passages(module, re.compile(rf"\s*{kind.__name__}\b")) if "=" in line]
    first = [f"{kind.__name__}: {line}" for line in own[:1] if "=" in line and not line.startswith(f"{kind.__name__}(")]
    rest = () if first and "δ" in first[0] else _passages(module, _MARKED)
    return (*(named or first), *rest) or (kind.__name__,)


def _cleaned(doc: str | None) -> list[str]:
    return [line.rstrip() for line in inspect.cleandoc(doc or "").splitlines()]


def _passages(lines: list[str], begins: re.Pattern[str]) -> tuple[str, ...]:
    """The lines that match, each with the lines right under it that stand further in."""
    found: list[str] = []
    margin = None
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if begins.match(line):
            found.append(line.strip())
            margin = indent
        elif margin is not None and line and indent > margin:
            found.append(" " * (indent - margin) + line.strip())
        else:
            margin = None
    return tuple(found)


# -- from data to blocks, and blocks to text, Markdown and HTML -------------------------------------------------------

# A block is (kind, content): "title", "heading" and "prose" are text with $mathematics$; "quote" is lines as they are;
# "math" is (left, [(sign, expression, note)]); "table" is rows of cells.
Block = tuple[str, Any]


def _blocks(e: Explanation) -> Iterator[Block]:
    N = len(e.contributions)
    yield "title", f"$∂C/∂{e.symbol}$, by induction"
    over = f", the {e.reduction} over {N} examples" if N > 1 else ""
    yield (
        "prose",
        f"C = {_short(e.cost)}{over}; x, y and all of θ but coordinate {e.index}, ${e.symbol}$ = {_short(e.theta)}, "
        "stay fixed.",
    )
    if N > 1:
        most = ", which contributes most" if e.example == np.abs(e.contributions).argmax() else ""
        yield "prose", f"$C_n$ is the cost of example n alone. Written out for n = {e.example}{most}."
    quoted: set[str] = set()  # each equation once
    for part in e.parts:
        yield "heading", part.title
        if part.law:
            left, right = part.law.split(" = ", 1)
            yield "math", (left, [("=", right, "")])
        if fresh := tuple(line for line in part.equations if line not in quoted):
            quoted.update(fresh)
            yield "quote", fresh
        if part.given:
            yield "prose", ", ".join(f"${name}$ = {_short(value)}" for name, value in part.given)
        for line in part.lines:
            yield "math", (line.left, list(_rows(line)))
        if part.after is not None:
            yield "prose", _told(part)
    yield "heading", "The same number"
    found = {"written out here": e.value} | e.oracles
    rows = [
        (way, f"{value:.12g}", "" if value is e.value else f"{abs(value - e.value):.1e} away")
        for way, value in found.items()
    ]
    rows[-1] = (*rows[-1][:2], f"{rows[-1][2]}, h = {e.step:.0e}, in {e.dtype}")
    yield "table", rows


def _rows(line: Line) -> Iterator[tuple[str, str, str]]:
    """The right-hand sides of a line: in symbols, its terms, its value."""
    if line.right:
        yield "=", line.right, ""
    if len(line.terms) == 1 and len(line.terms[0].factors) > 1:
        yield "=", " · ".join(_factor(f, i) for i, f in enumerate(line.terms[0].factors)), ""
    elif len(line.terms) > 1:
        shown, rest = list(line.terms), []
        if len(shown) > SHOWN + 1:
            order = sorted(line.terms, key=lambda term: -abs(term.value))
            shown, rest = order[:SHOWN], order[SHOWN:]
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
    return f"{value:.6g}"


def _told(part: Part) -> str:
    """δ of the example as a sentence: its largest numbers, and how its norm changed."""
    after: Any = part.after
    text = f"$‖{after.name}‖$ = {_short(after.norm)}"
    if len(after.shape) == 1 and 0 < after.values.size <= SHOWN + 1:
        text = f"${after.name}$ = ({', '.join(map(_short, after.values))}), {text}"
    else:
        text += f" ({' × '.join(map(str, after.shape))} numbers)"
    if part.before is not None:
        times = f"{after.norm / part.before.norm:.3g} of " if part.before.norm else "from "
        text += f", {times}$‖{part.before.name}‖$ = {_short(part.before.norm)}"
    return text + "."


def _text(blocks: list[Block]) -> str:
    lines: list[str] = []
    for kind, content in blocks:
        if kind in ("title", "heading"):
            lines += ["", content.replace("$", "")] if lines else [content.replace("$", "")]
        elif kind == "prose":
            lines.append("  " + content.replace("$", ""))
        elif kind == "quote":
            lines += ["  | " + line for line in content]
        elif kind == "math":
            left, rows = content
            one = f"  {left} " + " ".join(f"{sign} {right}" for sign, right, _ in rows)
            if not any(note for *_, note in rows) and len(one) <= 118:
                lines.append(one)
                continue
            width = max((len(right) for _, right, note in rows if note), default=0)
            for i, (sign, right, note) in enumerate(rows):
                lines.append(f"  {left if i == 0 else '':{len(left)}} {sign} {right:{width}}  {note}".rstrip())
        else:
            widths = [max(map(len, column)) for column in zip(*content, strict=True)]
            lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in content]
    return "\n".join(lines)


def _markdown(blocks: list[Block]) -> str:
    lines: list[str] = []
    for kind, content in blocks:
        if kind in ("title", "heading", "prose"):
            mark = {"title": "## ", "heading": "### ", "prose": ""}[kind]
            lines.append(mark + re.sub(r"\$(.*?)\$", lambda found: f"${_latex(found[1])}$", content))
        elif kind == "quote":
            lines.append("\n".join(("```text", *content, "```")))
        elif kind == "math":
            left, rows = content
            body = " \\\\\n".join(
                f"{_latex(left) if i == 0 else ''} &{sign} {_latex(right)}" + (f" && {_latex(note)}" if note else "")
                for i, (sign, right, note) in enumerate(rows)
            )
            lines.append(f"$$\n\\begin{{aligned}}\n{body}\n\\end{{aligned}}\n$$")
        else:
            rows = [f"| {' | '.join(row)} |" for row in content]
            lines.append("\n".join(["| found by | value | |", "|---|---|---|", *rows]))
    return "\n\n".join(lines) + "\n"


_LETTERS = {
    "δ": "\\delta ", "∂": "\\partial ", "←": "\\leftarrow ", "·": "\\cdot ", "′": "'", "‖": "\\|", "Σ": "\\sum",
}  # fmt: skip
_LATEX: Any = (
    (r"the (\d+) others, each smaller", r"\\text{the \1 others, each smaller}"),
    (r"(δx?)\((.*?)\)", lambda found: f"{found[1]}({_path(found[2])})"),
    (r"δ inside (\S+?)(?=‖|$)", lambda found: rf"δ_{{\text{{inside }}{_path(found[1])}}}"),
    (r"∂(C|C_n)/∂([^\s_^]*\.[^\s]*)", lambda found: rf"\frac{{∂{found[1]}}}{{∂\,{_path(found[2])}}}"),
    (r"∂(C|C_n)/∂(\w(?:\^(?:\{\d+\}|\d))?(?:_(?:\{[^}]*\}|\w))?)", r"\\frac{∂\1}{∂\2}"),
    (r"(\d)e([+-]\d+)", lambda found: rf"{found[1]}·10^{{{int(found[2])}}}"),
    ("[δ∂←·′‖]|Σ", lambda found: _LETTERS[found[0]]),
)


def _path(path: str) -> str:
    return rf"\mathtt{{{path.replace('_', chr(92) + '_')}}}"


def _latex(text: str) -> str:
    """The text's notation as LaTeX."""
    for pattern, replacement in _LATEX:
        text = re.sub(pattern, replacement, text)
    return text


_CSS = (
    ".jbp{font:15px/1.5 system-ui,sans-serif;max-width:60em}.jbp .m{font-family:Cambria Math,STIX Two Text,serif}"
    ".jbp table{border-collapse:collapse;margin:.4em 0 .4em 1.5em}.jbp td{padding:.1em .5em;text-align:left;border:0}"
    ".jbp td.r{text-align:right}.jbp td.n{opacity:.7;padding-left:2em}.jbp pre{margin:.4em 0 .4em 1.5em;opacity:.8}"
    ".jbp sub+sup,.jbp sup+sub{margin-left:.05em}"
)


def _html(blocks: list[Block]) -> str:
    lines = [f'<div class="jbp"><style>{_CSS}</style>']
    inline = lambda text: re.sub(r"\$(.*?)\$", lambda found: _typeset(found[1]), text)  # noqa: E731
    for kind, content in blocks:
        if kind in ("title", "heading", "prose"):
            tag = {"title": "h2", "heading": "h3", "prose": "p"}[kind]
            lines.append(f"<{tag}>{inline(escape(content, quote=False))}</{tag}>")
        elif kind == "quote":
            lines.append(f"<pre>{escape(chr(10).join(content), quote=False)}</pre>")
        elif kind == "math":
            left, rows = content
            lines.append("<table>")
            for i, (sign, right, note) in enumerate(rows):
                cells = (_typeset(escape(cell, quote=False)) for cell in (left if i == 0 else "", sign, right, note))
                marks = ' class="r"', "", "", ' class="n"'
                lines.append("<tr>" + "".join(f"<td{m}>{c}</td>" for m, c in zip(marks, cells, strict=True)) + "</tr>")
            lines.append("</table>")
        else:
            rows = ("".join(f"<td>{escape(cell, quote=False)}</td>" for cell in row) for row in content)
            lines.append("<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>")
    return "\n".join((*lines, "</div>"))


def _typeset(text: str) -> str:
    """The text's notation with raised and lowered indices. Symbols of paths have none, and stay as they are."""
    text = re.sub(r"\^(?:\{([^}]*)\}|(\w))", lambda found: f"<sup>{found[1] or found[2]}</sup>", text)
    text = re.sub(r"(?<![a-z.]{2})_(?:\{([^}]*)\}|(\w))", lambda found: f"<sub>{found[1] or found[2]}</sub>", text)
    return f'<span class="m">{text}</span>' if text else ""
