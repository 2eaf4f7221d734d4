"""Which quantity is exact at which layer, approximate, or refused: the README's table, from the tables of the tests.

    python tests/quantities.py        writes the table into the README

Shapes decide: what a call raises where it refuses, and the shape of Kronecker factors where these are the whole block.
The values are held to their definitions by the tests of each quantity.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from cases import NETWORKS, batch, halves
from test_curvature import CASES as CURVED
from test_model import CASES as MODELS
from test_model import MIXING

import jbp

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- what is exact -->\n", "<!-- end of what is exact -->\n"
N = 2  # examples

# -- layers, by rows of the tests' own tables -------------------------------------------------------------------------

FAMILIES: dict[str, tuple[str, ...]] = {
    "dense": ("dense", "dense, 5 positions", "chain"),
    "norms": ("layer norm", "RMS norm", "group norm", "instance norm"),
    "tables": ("embedding", "positions"),
    "attention": ("attention", "attention, rotary, grouped, norms of q and k"),
    "loops": ("repeat", "reversible, halves"),
    "recomputed": ("checkpoint", "repeat of checkpoints"),
    "`Tied`": ("tied", "tied, a table"),
    "`Frozen`": ("frozen",),
    "`LowRank`": ("low rank",),
    "`from_function`": ("from_function",),
    "loss with params": ("loss with params", "loss with a tied leaf"),
}
TRACED: dict[str, tuple[str, ...]] = {
    "Outer": ("plain MLP", "RNN"),
    "Gather": ("lookup",),
    "Sum": ("gains",),
    "Patches": ("Flax linen CNN",),
    "Stack": ("stacked blocks",),
    "Whole": ("experts",),
    "mixed": ("a mean",),
}


class Asked(NamedTuple):
    """A cost and its arguments: specs outside of a trace, arrays inside."""

    cost: jbp.Cost
    theta: Any
    x: Any
    y: Any

    @classmethod
    def of(cls, cost: jbp.Cost) -> "Asked":
        network = cost.network
        x, output = batch(network.input, N), batch(network.output, N)
        labels = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[:-1], jnp.int32), output)
        y = labels if "CrossEntropy" in type(cost.loss).__name__ else output
        return cls(cost, jax.ShapeDtypeStruct((cost.layout.size,), network.dtype), x, y)

    @property
    def terms(self) -> jbp.Cost:
        """The cost with its loss as one of two terms, which a loss with params can't be."""
        loss = self.cost.loss
        of_both = jbp.losses.Terms((loss, jbp.losses.Huber())) if hasattr(loss, "delta") else loss
        return jbp.Cost(self.cost.network, of_both, tied=dict(self.cost.tied))

    def shapes(self, ask: Callable[["Asked"], Any]) -> Any:
        """What the call gives, as shapes."""
        return jax.eval_shape(lambda *args: ask(Asked(self.cost, *args)), *self[1:])

    def measure(self, *readouts: Any) -> Any:
        return self.cost.measure(self.theta, self.x, self.y, *readouts)[1]


def costs() -> dict[str, jbp.Cost]:
    """The rows of the tests' tables, by name. Of two of one name, the one that is a layer under a loss."""
    curved = {name: jbp.Cost(jbp.Network(c.layers, c.input), c.loss, c.reduction, c.tied) for name, c in CURVED.items()}
    on = lambda net: jbp.Cost(net, jbp.losses.HalfSquaredError())
    mixing = {name: on(jbp.from_model(apply, jnp.ones((2, 2)), (2,))) for name, (apply, _) in MIXING.items()}
    wanted = {name for names in TRACED.values() for name in names}
    models = {case.name: on(case.network()[0]) for case in MODELS if case.name in wanted}
    return curved | {case.name: case.cost() for case in NETWORKS} | mixing | models


# -- quantities -------------------------------------------------------------------------------------------------------

KEY = jax.random.key(0)
BLOCKS = (
    "each leaf's block of the GGN by A ⊗ G (Martens & Grosse 2015; positions: Eschenhagen et al. 2023): the block "
    "itself for one example without shared positions, and at biases and gains"
)
BASES = "each leaf's block of the GGN by its diagonal in the factors' eigenbases (George et al. 2018)"
DRAWN = "in expectation over labels that are drawn: relative error 1/√samples (Martens & Grosse 2015)"


class Quantity(NamedTuple):
    """A row: `ask(asked)` gives it, and `approximates(its result)` says what it only approximates, or None."""

    name: str
    ask: Callable[[Asked], Any]
    approximates: Callable[[Any], str | None] = lambda result: None


def read(*readouts: Any) -> Callable[[Asked], Any]:
    return lambda asked: asked.measure(*readouts)


def drawn(*readouts: Callable[[Any], Any]) -> Callable[[Asked], Any]:
    return lambda asked: asked.measure(*(readout(jbp.Sampled(KEY)) for readout in readouts))


def structured(why: str) -> Callable[[Any], str | None]:
    """Why factors are no whole blocks: None where each A is a number."""
    numbers = lambda its: its is None or jax.tree.leaves(its.A)[0].shape[-1] == 1
    return lambda result: None if all(map(numbers, result.values())) else why


def projected(asked: Asked) -> Any:
    pairs = jax.eval_shape(asked.cost.pairs, asked.theta, asked.x, asked.y)
    return asked.measure(jbp.Projected.random(KEY, pairs, 2))


def corrected(asked: Asked) -> Any:
    factors = asked.measure(jbp.KroneckerFactors())
    asked.measure(jbp.CorrectedEigenvalues.of(factors))
    return factors


def by_term(asked: Asked) -> Any:
    return jbp.by_term(asked.terms, asked.theta, asked.x, (asked.y, asked.y), jbp.Gradient(), jbp.SquaredNorms())


def kfac(asked: Asked) -> Any:
    return jbp.kfac(asked.cost, 0.1).init(asked.theta)[0].averages


def kernel(asked: Asked) -> Any:
    return jbp.ntk(asked.cost.network, asked.cost.split(asked.theta)[0], asked.x, trace=True, memory=1 << 50)


QUANTITIES = (
    Quantity("`Gradient`", read(jbp.Gradient())),
    Quantity("`cost.hvp`", lambda a: a.cost.hvp(*a[1:], a.theta)),
    Quantity("`PerExampleGradients`, `MapGradients`", read(jbp.PerExampleGradients(), jbp.MapGradients(halves))),
    Quantity("`SquaredNorms`", read(jbp.SquaredNorms())),
    Quantity(
        "`SumOfSquares`, `MeanGradient`, `Variance`, `SignalToNoise`, `NoiseScale`",
        read(jbp.SumOfSquares(), jbp.MeanGradient(), jbp.Variance(), jbp.SignalToNoise(), jbp.NoiseScale()),
    ),
    Quantity("`Gram`", read(jbp.Gram())),
    Quantity("`Along`", lambda asked: asked.measure(jbp.Along(asked.theta))),
    Quantity("`Projected`", projected),
    Quantity("`ClippedSum`", read(jbp.ClippedSum(0.5), jbp.ClippedSum(0.5, per="leaf"))),
    Quantity("`RowGradients`", read(jbp.RowGradients())),
    Quantity("`by_term`", by_term),
    Quantity("`cost.ggnvp`, `cost.fvp`", lambda a: (a.cost.ggnvp(*a[1:], a.theta), a.cost.fvp(*a[1:], a.theta))),
    Quantity("`DiagonalGGN`, of the batch, of each", read(jbp.DiagonalGGN(), jbp.DiagonalGGN(of_each=True))),
    Quantity("the same, `Sampled`", drawn(jbp.DiagonalGGN, lambda s: jbp.DiagonalGGN(s, True)), lambda _: DRAWN),
    Quantity("`GGNFactors`, `GGNGram`", read(jbp.GGNFactors(), jbp.GGNGram())),
    Quantity("`KroneckerFactors`", read(jbp.KroneckerFactors()), structured(BLOCKS)),
    Quantity("`CorrectedEigenvalues` (EKFAC)", corrected, structured(BASES)),
    Quantity("`kfac`", kfac, structured(BLOCKS)),
    Quantity("`ntk`", kernel),
)


# -- the table --------------------------------------------------------------------------------------------------------


def reason(error: jbp.InputError) -> str:
    """The sentence of an error, without the place and the remedy."""
    said = re.sub(r"^((layer|leaf) [^:]+: |\w+(\.\w+)?: )+", "", str(error))
    said = re.sub(r"^(\w+) speaks of single examples", "it speaks of single examples", said)
    return re.split(r"(?<=[^.])\. ", said)[0].rstrip(".")


def found(asked: Asked, quantity: Quantity) -> tuple[str, str]:
    """(mark, note) of a quantity of one cost."""
    try:
        result = asked.shapes(quantity.ask)
    except jbp.InputError as error:
        return "✗", reason(error)
    why = quantity.approximates(result)
    return ("≈", why) if why else ("✓", "")


def table() -> str:
    """The table and its notes, in Markdown."""
    every, notes = costs(), {}
    families = FAMILIES | TRACED
    asked = {family: [Asked.of(every[name]) for name in names] for family, names in families.items()}

    def cell(family: str, quantity: Quantity) -> str:
        marks = []
        for mark, note in dict.fromkeys(found(each, quantity) for each in asked[family]):
            same = re.sub(r"[\d,]+", "…", note)
            if note and same not in notes:
                notes[same] = (chr(ord("a") + len(notes)), note)
            marks.append(f"{mark} {notes[same][0]}" if note else mark)
        best = sorted(marks, key=lambda mark: "✓≈✗".index(mark[0]))
        return ", ".join(dict.fromkeys(best))

    head = [f"| | {' | '.join(families)} |", "|---" * (len(families) + 1) + "|"]
    rows = [f"| {q.name} | {' | '.join(cell(family, q) for family in families)} |" for q in QUANTITIES]
    said = [f"{letter}: {note}." for letter, note in notes.values()]
    return "\n".join(head + rows) + "\n\n" + "  \n".join(said) + "\n"


def main() -> None:
    before, _, rest = README.read_text().partition(START)
    README.write_text(before + START + table() + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
