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
import numpy as np
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
    "dense": ("dense", "dense, 5 positions"),
    "norms": ("layer norm", "group norm"),
    "tables": ("embedding", "positions"),
    "attention": ("attention, rotary, grouped, norms of q and k",),
    "loops": ("repeat", "reversible, halves"),
    "recomputed": ("checkpoint", "repeat of checkpoints"),
    "`Tied`": ("tied", "tied, a table"),
    "`Frozen`": ("frozen",),
    "`LowRank`": ("low rank",),
    "`from_function`": ("from_function",),
    "loss with params": ("loss with params", "loss with a tied leaf"),
}
TRACED: dict[str, tuple[str, ...]] = {
    "Outer": ("plain MLP",),
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
        """The cost with its loss as each of two terms, which a loss with params can't be."""
        loss = self.cost.loss
        of_both = jbp.losses.Terms((loss, loss)) if hasattr(loss, "delta") else loss
        return jbp.Cost(self.cost.network, of_both, tied=dict(self.cost.tied))

    def shapes(self, ask: Callable[["Asked"], Any]) -> Any:
        """What the call gives, as shapes."""
        return jax.eval_shape(lambda *args: ask(Asked(self.cost, *args)), *self[1:])

    def measure(self, *readouts: Any) -> Any:
        return self.cost.measure(self.theta, self.x, self.y, *readouts)[1]


def costs() -> dict[str, jbp.Cost]:
    """The rows of the tests' tables that the families name. Of two of one name, the one that is a layer by itself."""
    wanted = {name for names in (FAMILIES | TRACED).values() for name in names}
    on = lambda net: jbp.Cost(net, jbp.losses.HalfSquaredError())
    rows = {name: lambda c=c: jbp.Cost(jbp.Network(c.layers, c.input), c.loss, "sum", c.tied)
            for name, c in CURVED.items()}  # fmt: skip
    rows |= {case.name: case.cost for case in NETWORKS}
    rows |= {name: lambda f=f: on(jbp.from_model(f, jnp.ones((2, 2)), (2,))) for name, (f, _) in MIXING.items()}
    rows |= {case.name: lambda case=case: on(case.network()[0]) for case in MODELS}
    return {name: rows[name]() for name in wanted}


# -- quantities -------------------------------------------------------------------------------------------------------

KEY = jax.random.key(0)
DREW = jbp.Sampled(KEY)
BLOCKS = (
    "each leaf's block of the GGN by A ⊗ G (Martens & Grosse 2015; positions: Eschenhagen et al. 2023): the block "
    "itself for one example without shared positions, and at biases and gains"
)
AVERAGES = "the same, averaged at each layer of a plain chain (Botev et al. 2017)"
BASES = "each leaf's block of the GGN by its diagonal in the factors' eigenbases (George et al. 2018)"
SIGNS = "in expectation over random signs, with the standard error (Bekas et al. 2007)"
DRAWN = "in expectation over labels that are drawn: relative error 1/√samples (Martens & Grosse 2015)"


class Quantity(NamedTuple):
    """A row: readouts, or what a call gives; `approximates` says what that only approximates, or None."""

    name: str
    what: tuple[Any, ...] | Callable[[Asked], Any]
    approximates: Callable[[Any], str | None] = lambda result: None

    def ask(self, asked: Asked) -> Any:
        return asked.measure(*self.what) if isinstance(self.what, tuple) else self.what(asked)


def structured(why: str) -> Callable[[Any], str | None]:
    """Why factors are no whole blocks: None where each A is a number, and G not a diagonal."""
    of = lambda its: not isinstance(its.G, jbp.Diagonal) and jax.tree.leaves(its.A)[0].shape[-1] == 1
    return lambda result: None if all(its is None or of(its) for its in result.values()) else why


def projected(asked: Asked) -> Any:
    pairs = jax.eval_shape(asked.cost.pairs, asked.theta, asked.x, asked.y)
    return asked.measure(jbp.Projected.random(KEY, pairs, 2))


def along(asked: Asked) -> Any:
    return asked.measure(jbp.Along(asked.theta))


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
    Quantity("`Gradient`", (jbp.Gradient(),)),
    Quantity("`cost.hessian_diagonal`", lambda a: a.cost.hessian_diagonal(*a[1:])),
    Quantity("the same, with a key", lambda a: a.cost.hessian_diagonal(*a[1:], key=KEY), lambda _: SIGNS),
    Quantity("`cost.hvp`", lambda a: a.cost.hvp(*a[1:], a.theta)),
    Quantity(
        "`PerExampleGradients`, `MapGradients`",
        (
            jbp.PerExampleGradients(),
            jbp.MapGradients(halves),
        ),
    ),
    Quantity("`SquaredNorms`", (jbp.SquaredNorms(),)),
    Quantity(
        "`SumOfSquares`, `MeanGradient`, `Variance`, `SignalToNoise`, `NoiseScale`",
        (
            jbp.SumOfSquares(),
            jbp.MeanGradient(),
            jbp.Variance(),
            jbp.SignalToNoise(),
            jbp.NoiseScale(),
        ),
    ),
    Quantity("`Gram`", (jbp.Gram(),)),
    Quantity("`Along`", along),
    Quantity("`Projected`", projected),
    Quantity(
        "`ClippedSum`",
        (
            jbp.ClippedSum(0.5),
            jbp.ClippedSum(0.5, per="leaf"),
        ),
    ),
    Quantity("`RowGradients`", (jbp.RowGradients(),)),
    Quantity("`by_term`", by_term),
    Quantity("`cost.ggnvp`, `cost.fvp`", lambda a: (a.cost.ggnvp(*a[1:], a.theta), a.cost.fvp(*a[1:], a.theta))),
    Quantity(
        "`DiagonalGGN`, of the batch, of each",
        (
            jbp.DiagonalGGN(),
            jbp.DiagonalGGN(of_each=True),
        ),
    ),
    Quantity("the same, `Sampled`", (jbp.DiagonalGGN(DREW), jbp.DiagonalGGN(DREW, True)), lambda _: DRAWN),
    Quantity(
        "`GGNFactors`, `GGNGram`",
        (
            jbp.GGNFactors(),
            jbp.GGNGram(),
        ),
    ),
    Quantity("`KroneckerFactors`", (jbp.KroneckerFactors(),), structured(BLOCKS)),
    Quantity("`CorrectedEigenvalues` (EKFAC)", corrected, structured(BASES)),
    Quantity("`kfra`", lambda a: jbp.kfra(a.cost, *a[1:]), structured(AVERAGES)),
    Quantity("`kfac`", kfac, structured(BLOCKS)),
    Quantity("`ntk`", kernel),
)


# -- the table --------------------------------------------------------------------------------------------------------


def reason(error: jbp.InputError) -> str:
    """The sentence of an error, without the place and the remedy."""
    said = re.sub(r"^((layer|leaf) [^:]+: |\w+(\.\w+)?: )+", "", str(error))
    said = re.sub(r"^(\w+) speaks of single examples", "it speaks of single examples", said)
    return re.split(r"(?<=[^.])\. |, got ", said)[0].rstrip(".")


def found(asked: Asked) -> dict[str, tuple[str, str]]:
    """(mark, note) of each quantity of one cost. All readouts at once, unless one of them is refused."""

    def one(quantity: Quantity) -> tuple[str, str]:
        try:
            result = at_once[quantity.name] if quantity.name in at_once else asked.shapes(quantity.ask)
        except jbp.InputError as error:
            return "✗", reason(error)
        why = quantity.approximates(result)
        return ("≈", why) if why else ("✓", "")

    read: Any = [quantity for quantity in QUANTITIES if isinstance(quantity.what, tuple)]
    try:
        results = asked.shapes(
            lambda asked: asked.measure(*(readout for quantity in read for readout in quantity.what))
        )
    except jbp.InputError:
        at_once = {}
    else:
        cut = np.cumsum([0, *(len(quantity.what) for quantity in read)])
        at_once = {
            q.name: results[i] if j == i + 1 else results[i:j] for q, i, j in zip(read, cut, cut[1:], strict=False)
        }
    return {quantity.name: one(quantity) for quantity in QUANTITIES}


def table() -> str:
    """The table and its notes, in Markdown."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return _table()  # models of others promote


def _table() -> str:
    every, notes = costs(), {}
    families = FAMILIES | TRACED
    marked = {family: [found(Asked.of(every[name])) for name in names] for family, names in families.items()}

    def cell(family: str, quantity: Quantity) -> str:
        marks = []
        for mark, note in dict.fromkeys(each[quantity.name] for each in marked[family]):
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
