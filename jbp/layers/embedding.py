"""Tables: rows by number, and positions.

    Embedding              y = table[x]                  δ goes nowhere: x are whole numbers
    Positions              y_t = x_t + table[t]          δx = δ
    SinusoidalPositions    y_t = x_t + s_t               δx = δ
    gradient               ∂C/∂table[v] = Σ of δ over the examples and positions where row v was read

Saved: x where it is looked up, as its pair is (x, δ); else nothing.
Shapes: Embedding x `[N, *T]`, y `[N, *T, O]`, table `[V, O]`; the others x and y `[N, T, W]`, Positions' table
`[length, W]`. Source: Vaswani et al. 2017, arXiv:1706.03762, § 3.4 and § 3.5.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from ..errors import check_whole
from ..gather import Gather
from ..layer import Context, InputError, described, wide, wide_dtype
from ..pair import Sum
from .dense import Initializer, initialised, of_batch
from .settings import check_float_input


class Entries(NamedTuple):
    """Params of a layer that reads rows of a table."""

    table: Any


@dataclass(frozen=True)
class Embedding:
    """Row x of a table `[vocabulary, width]`, for whole numbers x `[N, *T]`.

    `weights` names an initialiser of `jax.nn.initializers`, or is one; "normal" has standard deviation 0.01. An x
    outside 0 … vocabulary − 1, negative ones too, has no row: its output is NaN, and it adds to no gradient.
    `cost.check`, which `fit` and `compare` call, raises where one arrives.
    """

    vocabulary: int
    width: int
    weights: str | Initializer = "normal"

    def __post_init__(self):
        check_whole("Embedding", vocabulary=self.vocabulary, width=self.width)

    @property
    def _who(self) -> str:
        return f"Embedding({self.vocabulary}, {self.width})"

    def _check(self, x: Any, got: str) -> None:
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise InputError(
                f"{self._who}: expected whole numbers x [N, ...], got {got}. "
                "Cast them to int32; as a network's input write jax.ShapeDtypeStruct((T,), jnp.int32)."
            )

    def init(self, key: PRNGKeyArray, x: Any) -> Entries:
        if not hasattr(x, "dtype"):
            raise InputError(
                f"{self._who}: expected one array x [N, ...] of whole numbers, got {described(x)}. "
                "Give each array a layer of its own: Parallel."
            )
        self._check(x, of_batch(x))
        shape = self.vocabulary, self.width
        return Entries(initialised("weights", self.weights, key, shape, jnp.result_type(float)))

    def forward(self, params: Entries, x: Integer[Array, "N *T"], context: Context) -> tuple[Any, Any]:
        self._check(x, described(x))
        index = self._rows(x)
        return params.table.at[index].get(mode="fill", fill_value=jnp.nan), index

    def backward(
        self, params: Entries, feedback: Entries, saved: Any, delta: Float[Array, "N *T O"], read: Entries
    ) -> tuple[None, Entries]:
        return None, Entries(read.table(Gather(saved, delta)))

    def _rows(self, x: Integer[Array, "N *T"]) -> Integer[Array, "N *T"]:
        """x as int32, V where it has no row."""
        x = x.astype(jnp.int32) if x.dtype.itemsize < 4 else x
        return jnp.where((x < 0) | (x >= self.vocabulary), self.vocabulary, x).astype(jnp.int32)

    def check_values(self, x: np.ndarray) -> None:
        """Raise `InputError` where an x has no row."""
        bad = np.argwhere((x < 0) | (x >= self.vocabulary))
        if len(bad):
            where = [int(i) for i in bad[0]]
            raise InputError(
                f"{self._who}: expected x in 0 … {self.vocabulary - 1}, got x{where} = {x[tuple(where)]} "
                f"({len(bad)} of {x.size} out of range). Enlarge the vocabulary, or map such numbers to a row."
            )


@dataclass(frozen=True)
class Positions:
    """x `[N, T, W]` plus a learned row for each position: the first T rows of a table `[length, W]`.

    `weights` as in `Embedding`. The pair is `Sum` of δ with zeros in the rows from T on, so that every quantity is
    sums of N·length·W numbers.
    """

    length: int
    weights: str | Initializer = "normal"

    def __post_init__(self):
        check_whole("Positions", length=self.length)

    def init(self, key: PRNGKeyArray, x: Any) -> Entries:
        _check_sequence(f"Positions({self.length})", x)
        if x.shape[0] > self.length:
            raise InputError(
                f"Positions({self.length}): expected x [N, T ≤ {self.length}, W], got {of_batch(x)}. "
                "Cut the sequences, or give Positions the longest length."
            )
        return Entries(initialised("weights", self.weights, key, (self.length, x.shape[-1]), x.dtype))

    def forward(self, params: Entries, x: Float[Array, "N T W"], context: Context) -> tuple[Any, tuple]:
        length, width = params.table.shape
        if x.ndim != 3 or x.shape[1] > length or x.shape[2] != width:
            raise InputError(
                f"Positions({self.length}): expected x [N, T ≤ {length}, W = {width}], got {described(x)}. "
                "Cut the sequences, or give Positions the longest length."
            )
        rows = jnp.broadcast_to(wide(params.table[: x.shape[1]]), x.shape)
        return (wide(x) + rows).astype(x.dtype), ()

    def backward(
        self, params: Entries, feedback: Entries, saved: Any, delta: Float[Array, "N T W"], read: Entries
    ) -> tuple[Any, Entries]:
        rest = params.table.shape[0] - delta.shape[1]
        return delta, Entries(read.table(Sum(jnp.pad(delta, ((0, 0), (0, rest), (0, 0))))))


@dataclass(frozen=True)
class SinusoidalPositions:
    """x `[N, T, W]` plus s_tw = sin(t/10000^(w/W)) for even w, cos(t/10000^((w − 1)/W)) for odd w. No parameters."""

    def init(self, key: PRNGKeyArray, x: Any) -> tuple:
        _check_sequence("SinusoidalPositions", x)
        return ()

    def forward(self, params: tuple, x: Float[Array, "N T W"], context: Context) -> tuple[Any, tuple]:
        _, t, w = x.shape
        rates = jnp.asarray(10000.0 ** (-(np.arange(w) // 2 * 2) / w), wide_dtype(x.dtype))
        angle = jnp.arange(t, dtype=rates.dtype)[:, None] * rates[None]
        waves = jnp.where((jnp.arange(w) % 2 == 0)[None], jnp.sin(angle), jnp.cos(angle))
        return (wide(x) + jnp.broadcast_to(waves, x.shape)).astype(x.dtype), ()

    def backward(
        self, params: tuple, feedback: tuple, saved: tuple, delta: Float[Array, "N T W"], read: tuple
    ) -> tuple[Any, tuple]:
        return delta, ()


def _check_sequence(who: str, x: Any) -> None:
    check_float_input(who, x, "[N, T, W]", 2, "Give the input an axis of positions and one of features.")
    if len(x.shape) != 2:
        raise InputError(f"{who}: expected x [N, T, W], got {of_batch(x)}. Join its axes of positions.")
