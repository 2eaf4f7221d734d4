"""Where the gradient lives: outputs, deltas, gradients and updates, layer by layer. What to look at if nothing learns.

output, δ    root mean square over all examples and units, of the layer's output a and of δ = ∂C_n/∂a, where C_n is
             the cost of one example: so neither depends on how many examples there are
gradient     ‖∂C/∂leaf‖ over the layer's own leaves, of the reduced cost
update       ‖Δw‖ / ‖w‖ over the same leaves; unless an update is given, of plain gradient descent at rate 1
dead         the share of units where δ stops: whatever δ is at the layer's output, at its input it is exactly 0, for
             every example (and position). A unit is an entry of the last axis. For layers without leaves whose input
             has their output's shape; others have no such share. NaN where a or δ is not finite.
heads        ‖∂C/∂(what one query head of an `Attention` has to itself)‖: its columns of q, its rows of out
"""

import math
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import paint
from .blocks import Column, PageBlock, Picture, Section, Table, Text, as_json
from .layer import Context, InputError, Theta
from .markup import Page
from .reader import read_nothing, readers
from .record import Record, Step, run
from .reverse import Cost

FACTOR = 100.0  # by which δ may fall or grow from the last to the first layer with leaves before a word is said
DEAD = 0.5  # the share of dead units in a layer from which on a word is said


@dataclass(frozen=True)
class Row:
    """One layer: root mean squares of its output and of δ there; the rest None where it has no leaves, or no share."""

    layer: str
    kind: str
    output: float
    delta: float
    parameters: int
    gradient: float | None
    weight: float | None
    update: float | None
    dead: float | None
    heads: tuple[float, ...] = ()

    @property
    def ratio(self) -> float | None:
        """‖Δw‖ / ‖w‖; infinite if all weights are 0 and the update is not."""
        if self.update is None or self.weight is None:
            return None
        return self.update / self.weight if self.weight else (math.inf if self.update else 0.0)


@dataclass(frozen=True, repr=False)
class Flow(Page):
    """What `flow` found, from the first layer to the last. Prints as a table; `.to_json()`; `.figure()`."""

    rows: tuple[Row, ...]
    cost: float
    examples: int
    given: bool  # whether the update was given

    @property
    def verdicts(self) -> tuple[tuple[str, str], ...]:
        """What stands out, as (word, sentence): "not finite", "zero", "vanishing", "exploding", "dead"; or "even"."""
        return tuple(_verdicts(self.rows))

    @property
    def verdict(self) -> str:
        """The sentences in one line."""
        return " ".join(sentence for _, sentence in self.verdicts)

    def to_json(self) -> str:
        """All of the table as JSON text. What is not finite stands as a string."""
        told = {
            "cost": self.cost,
            "examples": self.examples,
            "update": "given" if self.given else "gradient descent at rate 1",
            "words": [word for word, _ in self.verdicts],
            "verdict": self.verdict,
            "rows": [asdict(row) | {"ratio": row.ratio} for row in self.rows],
        }
        return as_json(told)

    def blocks(self) -> Iterator[PageBlock]:
        """The table, its picture, and what stands out."""
        columns = Column("layer", "name"), Column(""), *(Column(head, "number") for head in _HEADS)
        yield Table(columns, tuple(((row.layer, row.kind, *_numbers(row)), "") for row in self.rows))
        if by_head := [row for row in self.rows if row.heads]:
            most = max(len(row.heads) for row in by_head)
            columns = Column("gradient of heads", "name"), *(Column(str(h), "number") for h in range(most))
            numbers = lambda row: [f"{g:.1e}" for g in row.heads] + [""] * (most - len(row.heads))
            yield Table(columns, tuple(((row.layer, *numbers(row)), "") for row in by_head))
        update = "the update given" if self.given else "plain gradient descent at rate 1"
        note = f"output, δ: rms over {self.examples} examples and all units; Δw / w: norms, of {update}"
        yield Section("", (Text(note), Text(self.verdict)), "quiet")
        yield Picture(lambda: paint.inline(self.figure(), "flow"))

    def figure(self) -> Any:
        """A matplotlib `Figure` of its own, as in `flow.figure().savefig("flow.png")`: a row for each layer.

        Raises `InputError` without matplotlib.
        """
        n = len(self.rows)
        step = max(1, math.ceil(n / 150))  # of so many rows one is named
        bad = any(word != "even" for word, _ in self.verdicts)
        by_head = any(row.heads for row in self.rows)
        with paint.new_figure("Flow.figure", 13 if by_head else 11, 2.2 + 0.26 * min(n, 150)) as drawn:
            told, colour = textwrap.fill(self.verdict, 110), paint.RED if bad else paint.INK
            drawn.suptitle(told, x=0.01, ha="left", fontsize=11, fontweight="bold", color=colour)
            widths = (3, 3, 2, 1.6, 2)[: 5 if by_head else 4]
            output, delta, update, dead, *rest = drawn.subplots(1, len(widths), sharey=True, width_ratios=widths)
            last = next((row.delta for row in reversed(self.rows) if row.parameters), 0.0)
            _dots(output, "output a, rms  ↓", [row.output for row in self.rows], paint.BLUE)
            _dots(delta, "δ, rms  ↑", [row.delta for row in self.rows], paint.BLUE, last)
            title = "‖Δw‖ / ‖w‖" + ("" if self.given else ", rate 1")
            _dots(update, title, [row.ratio for row in self.rows], paint.INK)
            _bars(dead, [row.dead for row in self.rows])
            for heads in rest:
                _discs(heads, [row.heads for row in self.rows])
            output.set_yticks(range(0, n, step), [f"{row.layer}  {row.kind}" for row in self.rows[::step]])
            output.set_ylim(n - 0.3, -0.7)
        return drawn


def flow(
    cost: Cost,
    theta: Theta,
    x: Any,
    y: Any,
    update: Any = None,
    *,
    weights: Any = None,
    context: Context = Context(),
) -> Flow:
    """Where the gradient lives in a network, at θ, on a batch. θ may be one that is not finite any more.

    `update: [P]`: what an optimizer would add to θ; plain gradient descent at rate 1, −∇C, unless given.
    Raises `InputError` for an update of another shape, under jit, and as `cost.check`.
    """
    anywhere = _Anywhere(cost.network, cost.loss, cost.reduction, cost.tied)
    record = run(anywhere, theta, x, y, weights=weights, context=context)
    C, gradient = cost.value_and_grad(theta, x, y, weights=weights, context=context)
    if update is not None and np.shape(update) != (cost.layout.size,):
        raise InputError(
            f"update: expected a vector like theta, [{cost.layout.size}], got shape {list(np.shape(update))}. "
            "It is what the optimizer adds to theta."
        )
    moved = gradient if update is None else update
    vectors = [_leaves(cost, v) for v in (theta, gradient, moved)]
    rows = tuple(_row(record, step, *vectors) for step in record.rows)
    return Flow(rows, float(C), len(record.factors), update is not None)


class _Anywhere(Cost):
    """The cost at any θ, also one that is not finite."""

    def check(self, theta: Theta, x: Any, y: Any, **settings: Any) -> None:
        self.layout.check(theta)
        super().check(np.where(np.isfinite(theta), theta, 0), x, y, **settings)


def _leaves(cost: Cost, vector: Any) -> dict[str, np.ndarray]:
    return dict(zip(cost.layout.names, cost.layout.leaves(np.asarray(vector, np.float64)), strict=True))


def _row(record: Record, step: Step, theta: dict, gradient: dict, update: dict) -> Row:
    names = record.owned.get(step.path, [])
    own = lambda vector: [record.leaves[name].block(vector[name], step.turn) for name in names]
    norm = lambda vector: _norm(own(vector)) if names else None
    return Row(
        step.name,
        step.kind,
        _rms(step.output),
        _rms(step.delta),
        sum(leaf.size for leaf in own(theta)),
        norm(gradient),
        norm(theta),
        norm(update),
        None if names else _dead(step),
        _heads(step, own(gradient)),
    )


def _heads(step: Step, gradient: list[np.ndarray]) -> tuple[float, ...]:
    structure: Any = jax.tree.structure(step.params)
    if not hasattr(step.layer, "of_heads") or structure.num_leaves != len(gradient):  # a leaf tied to another's
        return ()
    return tuple(map(_norm, step.layer.of_heads(structure.unflatten(gradient))))


def _floats(tree: Any) -> list[np.ndarray]:
    kept = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return [np.asarray(leaf).astype(np.float64) for leaf in kept]


def _norm(arrays: list[np.ndarray]) -> float:
    peak = float(np.max([np.max(np.abs(a), initial=0) for a in arrays], initial=0))
    if peak == 0 or not math.isfinite(peak):
        return peak
    return peak * math.sqrt(sum(float(np.square(a / peak).sum()) for a in arrays))  # neither overflow nor underflow


def _rms(tree: Any) -> float:
    arrays = _floats(tree)
    size = sum(a.size for a in arrays)
    return _norm(arrays) / math.sqrt(size) if size else 0.0


def _dead(step: Step) -> float | None:
    above, below = _floats(step.delta), _floats(step.delta_x)
    if len(above) != 1 or len(below) != 1 or above[0].shape != below[0].shape or above[0].ndim < 2:
        return None
    # backward is linear in δ: another one, nowhere 0 and no two alike, shows where it stops, whatever comes from above
    other = jax.tree.map(lambda d: np.linspace(1, 2, d.size).reshape(d.shape).astype(d.dtype), step.delta)
    params, saved, other = jax.tree.map(jnp.asarray, (step.params, step.saved, other))
    through, _ = step.layer.backward(params, params, saved, other, readers(params, read_nothing))
    (found,) = _floats(through)
    if not all(np.isfinite(a).all() for a in (found, *above, *_floats(step.output))):
        return math.nan
    return float(np.mean(~np.any(found.reshape(-1, found.shape[-1]) != 0, axis=0)))


# -- in words ---------------------------------------------------------------------------------------------------------


def _verdicts(rows: tuple[Row, ...]) -> Any:
    looked: tuple[Any, ...] = (
        ("weights", rows, lambda row: row.weight),
        ("output", rows, lambda row: row.output),  # outputs spoil going forward, deltas coming back
        ("δ", rows[::-1], lambda row: row.delta),
        ("update", rows, lambda row: row.update),
    )
    for what, order, number in looked:
        if spoiled := [row for row in order if not math.isfinite(number(row) or 0.0)]:
            yield "not finite", f"NOT FINITE: first the {what} of layer {spoiled[0].layer} ({spoiled[0].kind})."
            return
    learning = [row for row in rows if row.parameters]
    if dead := [row for row in rows if row.dead is not None and row.dead >= DEAD]:
        worst = max(dead, key=lambda row: row.dead or 0)
        yield (
            "dead",
            (
                f"DEAD: {len(dead)} layer{'s' if len(dead) > 1 else ''} with at least {DEAD:.0%} dead units; "
                f"in layer {worst.layer} ({worst.kind}) {worst.dead:.0%}."
            ),
        )
    if zero := [row.layer for row in learning if row.delta == 0]:
        yield "zero", f"ZERO: no δ comes back to layer {zero[-1]}{' and those before it' if len(zero) > 1 else ''}."
        return
    if len(learning) < 2:
        yield "even", "One layer has leaves: δ has no way to fall or grow on."
        return
    first, last = learning[0], learning[-1]
    ratio = first.delta / last.delta
    each = ratio ** (1 / (len(learning) - 1))
    way = f"from {last.delta:.1e} at layer {last.layer} to {first.delta:.1e} at layer {first.layer}"
    by = f"{max(ratio, 1 / ratio):.1e} times" if max(ratio, 1 / ratio) >= 1000 else f"{max(ratio, 1 / ratio):.2g} times"
    if ratio < 1 / FACTOR:
        yield "vanishing", f"VANISHING: coming back, δ falls {way}, {by} in all, to {each:.2g} of itself at each layer."
    elif ratio > FACTOR:
        yield "exploding", f"EXPLODING: coming back, δ grows {way}, {by} in all, {each:.2g} times at each layer."
    else:
        yield "even", f"Coming back, δ goes {way}: a factor of {max(ratio, 1 / ratio):.2g}, within {FACTOR:g}."


_HEADS = ("output", "δ", "gradient", "Δw / w", "dead")  # the numbers of a layer, as a table has them


def _numbers(row: Row) -> tuple[str, ...]:
    number = lambda value: "" if value is None else f"{value:.1e}"
    dead = "" if row.dead is None else "–" if math.isnan(row.dead) else f"{row.dead:.0%}"
    return *map(number, (row.output, row.delta, row.gradient, row.ratio)), dead


# -- as a picture -----------------------------------------------------------------------------------------------------


def _dots(axes: Any, title: str, values: list[float | None], colour: str, centre: float = 0.0) -> None:
    """A dot for each layer on a log axis of at least three decades; 0, infinity and NaN stand at its ends, in words.

    With a `centre`, the band within `FACTOR` of it is shaded, and dots outside are red.
    """
    axes.set_title(title)
    places = [(i, v) for i, v in enumerate(values) if v is not None]
    shown = [(i, v) for i, v in places if 0 < v < math.inf]
    low, high = 0.0, math.inf
    if 0 < centre < math.inf:
        low, high = centre / FACTOR, centre * FACTOR
        axes.axvspan(low, high, color=paint.PALE, alpha=0.5, lw=0)
        axes.set_xlabel(f"shaded: within {FACTOR:g} times the last that has leaves")
    band = [end for end in (low / 2, high * 2) if 0 < end < math.inf]
    place = paint.log_axis(axes, [*band, *(v for _, v in places)], decades=3)
    axes.plot([v for _, v in shown], [i for i, _ in shown], color=colour, lw=1, alpha=0.5)
    colours = [colour if low <= v <= high else paint.RED for _, v in shown]
    axes.scatter([v for _, v in shown], [i for i, _ in shown], s=30, color=colours, zorder=3, clip_on=False)
    for i, v in places:
        if not 0 < v < math.inf:
            axes.text(place(v), i, f"{v:g}", color=paint.RED, fontweight="bold", ha="center", va="center")


def _bars(axes: Any, dead: list[float | None]) -> None:
    shares = [(i, share) for i, share in enumerate(dead) if share is not None and share >= 0]
    paint.bare(axes)
    axes.set(title="dead units", xlim=(0, 1), xticks=[0, 0.5, 1])
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.barh([i for i, _ in shares], [1] * len(shares), color="white", edgecolor=paint.PALE, height=0.55)
    colours = [paint.RED if share >= DEAD else paint.INK for _, share in shares]
    axes.barh([i for i, _ in shares], [share for _, share in shares], color=colours, height=0.55)
    for i, share in shares:
        x, side, colour = (share - 0.04, "right", "white") if share >= DEAD else (share + 0.04, "left", paint.INK)
        axes.text(x, i, f"{share:.0%}", ha=side, va="center", fontsize=8, color=colour)


def _discs(axes: Any, heads: list[tuple[float, ...]]) -> None:
    """A disc for each head, its area as the norm, next to the largest of all."""
    found = [(h, i, g) for i, row in enumerate(heads) for h, g in enumerate(row)]
    largest = max((g for *_, g in found if math.isfinite(g)), default=0.0)
    paint.bare(axes)
    axes.set_title("gradient of heads")
    axes.set_xlabel(f"head; the largest: {largest:.1e}")
    most = max(map(len, heads))
    axes.set(xlim=(-0.7, most - 0.3), xticks=range(0, most, max(1, most // 8)))
    for h, i, g in found:
        if math.isfinite(g) and largest:
            axes.scatter(h, i, s=110 * g / largest, color=paint.BLUE, zorder=3)
            axes.scatter(h, i, s=110, facecolor="none", edgecolor=paint.PALE, zorder=2)
        elif largest or g:
            axes.text(h, i, f"{g:g}", color=paint.RED, fontweight="bold", ha="center", va="center")
