"""The row of a leaf in every table of errors: what its columns are called, and what stands in them."""

import math
from collections.abc import Callable, Iterable, Mapping

from ..blocks import Column, Table
from .error import LeafError
from .verdict import Verdict

Columns = Mapping[str, tuple[str, Callable[[LeafError], str]]]  # by its head: the kind of a column, and its cell


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


TERMINAL: Columns = {
    "leaf": ("name", lambda leaf: leaf.name),
    "size": ("number", lambda leaf: f"{leaf.size:,}"),
    "error": ("number", lambda leaf: _relative(leaf.error, leaf)),
    "autodiff's": ("number", lambda leaf: _relative(leaf.oracle_error, leaf)),
    "allowed": ("number", lambda leaf: _relative(leaf.allowed, leaf)),
    "ratio": ("number", lambda leaf: short(leaf.ratio)),
    "ulps 50/99/100 %": ("number", lambda leaf: "/".join(map(short, leaf.ulps))),
    "1−cos": ("number", lambda leaf: f"{max(1 - leaf.cosine, 0):.0e}"),
    "largest": ("number", lambda leaf: f"{leaf.largest:.1e}"),
    "at": ("name", lambda leaf: leaf.where),
    "": ("word", _state),
}
PAGE: Columns = {
    "leaf": TERMINAL["leaf"],
    "": ("word", lambda leaf: _state(leaf) or "ok"),
    "because": ("text", lambda leaf: leaf.excused or leaf.pattern),
    **{head: column for head, column in TERMINAL.items() if head},
    "there by the rule, in float64": ("number", lambda leaf: f"{leaf.got:.6g}, {leaf.expected:.6g}" * bool(leaf.where)),
    "dtype, shape": ("text", lambda leaf: f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]" * bool(leaf.dtype)),
}


def leaf_table(leaves: Iterable[LeafError], columns: Columns = TERMINAL) -> Table:
    """A table of leaves, and of their total."""
    leaves = list(leaves)
    rows = tuple(tuple(of(leaf) for _, of in columns.values()) for leaf in leaves)
    tones = tuple(" ".join(["sum"] * (leaf.name == "total") + ["wrong"] * (not leaf.ok)) for leaf in leaves)
    return Table(tuple(Column(head, kind) for head, (kind, _) in columns.items()), rows, tones)
