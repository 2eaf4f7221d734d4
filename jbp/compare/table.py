"""The row of a leaf in every table of errors: what its columns are called, and what stands in them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..blocks import Column, Table
from .error import LeafError
from .verdict import Verdict


@dataclass(frozen=True)
class LeafColumn(Column):
    """A column, and what stands in it for a leaf."""

    kind: str = "number"
    wide: bool = False
    of: Callable[[LeafError], str] = lambda leaf: ""


def short(value: float) -> str:
    """A ratio in few characters."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2f}" if value < 10 else f"{value:.0f}" if value < 1000 else f"{value:.0e}"


def _state(leaf: LeafError) -> str:
    """What the table says of a leaf: as the verdict does, and nothing where it agrees."""
    if leaf.kind is Verdict.WRONG or leaf.kind is Verdict.UNDECIDED:
        return leaf.kind.name
    told = ["excused"] if leaf.excused else []
    return ", ".join([*told, *([f"{leaf.undecided:,} UNDECIDED"] if leaf.undecided else [])])


def _relative(error: float, leaf: LeafError) -> str:
    return f"{error / (leaf.scale or 1.0):.1e}"


_COLUMNS = (
    LeafColumn("leaf", "name", of=lambda leaf: leaf.name),
    LeafColumn("size", of=lambda leaf: f"{leaf.size:,}"),
    LeafColumn("error", of=lambda leaf: _relative(leaf.error, leaf)),
    LeafColumn("autodiff's", of=lambda leaf: _relative(leaf.oracle_error, leaf)),
    LeafColumn("allowed", of=lambda leaf: _relative(leaf.allowed, leaf)),
    LeafColumn("ratio", of=lambda leaf: short(leaf.ratio)),
    LeafColumn("ulps 50/99/100 %", of=lambda leaf: "/".join(map(short, leaf.ulps))),
    LeafColumn("1−cos", of=lambda leaf: f"{max(1 - leaf.cosine, 0):.0e}"),
    LeafColumn("largest", of=lambda leaf: f"{leaf.largest:.1e}"),
    LeafColumn("at", "name", of=lambda leaf: leaf.where),
    LeafColumn("", "word", of=_state),
    LeafColumn("by the rule, in float64", wide=True, of=lambda leaf: f"{leaf.got:.6g}, {leaf.expected:.6g}"),
    LeafColumn("dtype, shape", "text", True, lambda leaf: f"{leaf.dtype}{list(leaf.shape) if leaf.dtype else ''}"),
)
COLUMNS = {column.head: column for column in _COLUMNS}


def leaf_table(leaves: Iterable[LeafError], columns: Iterable[LeafColumn] = _COLUMNS) -> Table:
    """A table of leaves, and of their total."""
    columns = tuple(columns)
    tone = lambda leaf: " ".join(["sum"] * (leaf.name == "total") + ["wrong"] * (not leaf.ok))
    return Table(columns, tuple((tuple(column.of(leaf) for column in columns), tone(leaf)) for leaf in leaves))
