"""The examples of a descent as one stream of batches, cut into blocks for a compiled program.

Arrays: a fresh shuffle (made on the device) after another, one long row of examples, cut into batches: every example
comes once in each epoch, and a batch may hold the end of one epoch and the beginning of the next, so that none is short
but the very last. An iterable's batches: as they come, those of one shape in a row stacked.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PRNGKeyArray

from .layer import Context, InputError, Shape, described

BLOCK_STEPS = 256  # steps whose rows are drawn together, at least an epoch; batches of an iterable stacked, at most
BLOCK_BYTES = 64 << 20  # of an iterable's batches stacked, at most, once there is one


class Block(NamedTuple):
    """Batches for one compiled program: batch i is the rows `rows[i]` of each array of `by_row`, for i < steps."""

    by_row: Any  # (x, y, weights `[N]` or None, mask or None)
    side: Any  # of the context, whole for every batch
    rows: Int[Array, "S B"]
    steps: int
    epoch_ends: list[int]  # the numbers of steps of this block after which an epoch is over

    @property
    def cut(self) -> tuple[NamedSharding | None, ...]:
        """How each array's examples are cut over a mesh, None where they are not: each batch will be cut like them."""
        return tuple(map(_cut, jax.tree.leaves(self.by_row)))

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in jax.tree.leaves(self.by_row))


def batch_of_rows(by_row: Any, rows: Int[Array, "B"], cut: tuple[NamedSharding | None, ...]) -> Any:
    """The rows of each array, cut over the mesh as the array is, unless they are too few for that."""

    def take(a: Any, sharding: NamedSharding | None) -> Any:
        if sharding is None:
            return a.at[rows].get(mode="clip")
        mesh, (first, *others) = sharding.mesh, sharding.spec
        axes = first if isinstance(first, tuple) else (first,)
        whole = rows.shape[0] % math.prod(mesh.shape[axis] for axis in axes)
        due = NamedSharding(mesh, PartitionSpec(None if whole else first, *others))
        if AxisType.Explicit in mesh.axis_types:
            return a.at[rows].get(mode="clip", out_sharding=due)
        return jax.lax.with_sharding_constraint(a.at[rows].get(mode="clip"), due)

    treedef: Any
    leaves, treedef = jax.tree.flatten(by_row)
    return treedef.unflatten([take(a, sharding) for a, sharding in zip(leaves, cut, strict=True)])


def batch_specs(by_row: Any, side: Any, size: int, key: PRNGKeyArray) -> Any:
    """(x, y, weights, context) of so many rows, as specs."""
    like = lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype)
    x, y, weights, mask = jax.tree.map(like, by_row)
    return x, y, weights, Context(jax.ShapeDtypeStruct((), key.dtype), mask, side)


def _cut(a: Any) -> NamedSharding | None:
    sharding = getattr(a, "sharding", None)
    is_cut = isinstance(sharding, NamedSharding) and len(sharding.spec) and sharding.spec[0] is not None
    return sharding if is_cut else None


# -- arrays -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shuffled:
    """Arrays with their examples on axis 0, shuffled by `key` and cut into batches."""

    by_row: Any
    side: Any
    batch_size: int
    key: PRNGKeyArray

    @property
    def examples(self) -> int:
        return jax.tree.leaves(self.by_row)[0].shape[0]

    def one_batch(self, key: PRNGKeyArray) -> Any:
        """The specs of a full batch, (x, y, weights, context)."""
        return batch_specs(self.by_row, self.side, self.batch_size, key)

    def steps(self, epochs: int) -> int:
        """How many batches there are until so many epochs are over."""
        return -(-epochs * self.examples // self.batch_size)

    def blocks(self, epochs: int, step: int, done: int) -> Iterator[Block]:
        """The full batches from `step` on, in blocks."""
        size, full = max(self.steps(1), BLOCK_STEPS), epochs * self.examples // self.batch_size
        while step < full:
            steps = min(size, full - step)
            ends = [self.steps(epoch) - step for epoch in range(done + 1, epochs + 1)]
            rows = self._rows(step, (size, self.batch_size))
            yield Block(self.by_row, self.side, rows, steps, [end for end in ends if 0 < end <= steps])
            step += steps

    def rest(self, epochs: int) -> Block | None:
        """The short batch at the very end, if there is one."""
        full, rest = divmod(epochs * self.examples, self.batch_size)
        return Block(self.by_row, self.side, self._rows(full, (1, rest)), 1, [1]) if rest else None

    def _rows(self, step: int, shape: tuple[int, int]) -> Int[Array, "S B"]:
        n = self.examples
        epoch, offset = divmod(step * self.batch_size, n)
        return _rows(self.key, epoch, offset, n, -(-(offset + shape[0] * shape[1]) // n), shape)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _rows(key, epoch, offset, n, epochs, shape):
    """`shape` rows of the stream from `offset` in `epoch` on."""
    shuffles = jax.vmap(lambda e: jax.random.permutation(jax.random.fold_in(key, e), n))(epoch + jnp.arange(epochs))
    return jax.lax.dynamic_slice(shuffles.ravel(), (offset,), (shape[0] * shape[1],)).reshape(shape)


# -- an iterable of batches -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batches:
    """An iterable of batches (x, y), or a function that gives one for each epoch, which it gets counted from 1.

    A batch may bring more behind x and y: weights `[N]`, a `Context` without a key, or both.
    """

    data: Any
    check: Callable[..., None]  # of (x, y, weights, mask): raises where values don't fit
    side: Any = None

    @classmethod
    def of(cls, data: Any, check: Callable[..., None], side: Any, epochs: int) -> "Batches":
        """`epochs`: how many are still to come. Raises `InputError` for what gives no batches."""
        batches = cls(data, check, side)
        if not batches.is_function:
            _check_iterable("data must be arrays (x, y) or an iterable of batches (x, y)", "data", data)
        if epochs > 1 and isinstance(data, Iterator):
            raise InputError(
                f"fit: data is an iterator, which ends with the first of {epochs} epochs. "
                "Pass a list or another iterable that starts anew, or epochs=1."
            )
        return batches

    examples = batch_size = None  # not known

    def one_batch(self, key: PRNGKeyArray) -> None:
        """Not known before it comes."""

    def rest(self, epochs: int) -> None:
        """No batch is cut short at the end."""

    @property
    def is_function(self) -> bool:
        return callable(self.data) and not isinstance(self.data, (Iterable, type))

    def steps(self, epochs: int) -> int | None:
        """How many batches there are, if that is known."""
        return len(self.data) * epochs if isinstance(self.data, Sized) else None

    def blocks(self, epochs: int, skip: int, done: int) -> Iterator[Block]:
        """The batches after the epochs that are done, in blocks; of the first epoch, `skip` batches are left out."""
        for epoch in range(done + 1, epochs + 1):
            groups = _groups(islice(self._epoch(epoch), skip, None), self.side)
            group = next(groups, None)
            if group is None:
                after = f" after the {skip} that are done" if skip else ""
                raise InputError(
                    f"fit: data gave no batch in epoch {epoch}{after}. Pass an iterable that starts anew each time."
                )
            skip = 0
            while group is not None:
                by_row = jax.tree.map(lambda *parts: jnp.concatenate(parts), *(batch for batch, _ in group))
                self.check(*by_row)
                rows = jnp.arange(jax.tree.leaves(by_row)[0].shape[0]).reshape(len(group), -1)
                side, group = group[0][1], next(groups, None)
                yield Block(by_row, side, rows, len(rows), [] if group else [len(rows)])

    def _epoch(self, epoch: int) -> Iterable:
        if not self.is_function:
            return self.data
        batches = self.data(epoch)
        _check_iterable(f"data({epoch}) must give an iterable of batches (x, y)", f"data({epoch})", batches)
        return batches


def _check_iterable(due: str, name: str, data: Any) -> None:
    if isinstance(data, (tuple, list)) and data and all(isinstance(part, (jax.Array, np.ndarray)) for part in data):
        raise InputError(
            f"fit: {name} is a {type(data).__name__} of {len(data)} arrays, {described(data)}. "
            + ("Pass arrays as the tuple (x, y), or a list of" if name == "data" else "Give a list of")
            + " batches [(x, y), ...]."
        )
    if not isinstance(data, Iterable) or isinstance(data, (jax.Array, np.ndarray, Mapping, str)):
        raise InputError(f"fit: {due}, got {type(data).__name__}.")


def _groups(batches: Iterable, side: Any) -> Iterator[list[tuple[Any, Any]]]:
    """((x, y, weights, mask), side) of batches in a row that may be stacked: of one shape, with the same side inputs.

    They are few enough to fit in `BLOCK_STEPS` and `BLOCK_BYTES`. What is cut over a mesh stays alone.
    """
    group: list[tuple[Any, Any]] = []
    for batch in batches:
        by_row, own = _parts(batch)
        own = side if own is None else own
        leaves = jax.tree.leaves(by_row)
        full = sum(a.nbytes for a in leaves) * (len(group) + 1) > BLOCK_BYTES or len(group) == BLOCK_STEPS
        if group and (full or any(map(_cut, leaves)) or not _alike((by_row, own), group[0])):
            yield group
            group = []
        group.append((by_row, own))
    if group:
        yield group


def _alike(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    """Whether two batches have one shape, and the same side inputs."""
    same = all(a is b for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(other[1]), strict=False))
    return same and Shape.of(one) == Shape.of(other)


def _parts(batch: Any) -> tuple[Any, Any]:
    """((x, y, weights, mask), side) of a batch as it comes."""
    more = [part for part in batch[2:] if part is not None] if isinstance(batch, (tuple, list)) else []
    contexts = [part for part in more if isinstance(part, Context)]
    weights = [part for part in more if not isinstance(part, Context) and np.ndim(part) == 1]
    known = len(contexts) <= 1 and len(weights) <= 1 and len(contexts) + len(weights) == len(more)
    if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not known:
        raise InputError(
            f"fit: expected each batch as (x, y), got {type(batch).__name__}. Give two arrays as the tuple (x, y)."
        )
    context = contexts[0] if contexts else Context()
    check_no_key(context)
    by_row = batch[0], batch[1], weights[0] if weights else None, context.mask
    return jax.tree.map(lambda a: a if isinstance(a, jax.Array) else np.asarray(a), by_row), context.side


def check_no_key(context: Context) -> None:
    """Raise `InputError` if the context has a key: the noise of a descent comes from its own."""
    if context.key is not None:
        raise InputError("fit: the context has a key; fit draws each step's noise from key=. Leave it out of Context.")
