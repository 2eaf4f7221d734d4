"""Gradient descent with optax: the other meaning of "backpropagation", the whole algorithm.

Many steps run in one compiled program, on leaves; θ is a vector again at the end. Examples form one stream, a fresh
shuffle (made on the device) after another, cut into batches: every example comes once in each epoch, and a batch may
hold the end of one epoch and the beginning of the next, so that none is short but the very last.
"""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .layer import Context, InputError, Shape, Theta, described, wide_dtype
from .reverse import Cost

SECONDS_PER_CALL = 1.0  # after about this long the program comes back to Python: for the bar, Ctrl-C, the cost
BLOCK_STEPS = 256  # steps whose rows are drawn together, at least an epoch; batches of an iterable stacked, at most
ADAM = optax.adam(1e-3)  # one object, so that it is compiled once
BLOCK_BYTES = 64 << 20  # of an iterable's batches stacked, at most, once there is one


@dataclass
class History:
    """`cost: [steps]`, C on each step's batch before its update; `epochs`: a record for each finished epoch, with
    `epoch` (from 1), `step` (how many are done), `seconds` since the start, and what `evaluate` gave."""

    cost: np.ndarray = field(default_factory=lambda: np.zeros(0))
    epochs: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """What `fit` returns: `theta: [P]`, `history`, and the message if it stopped early, else None."""

    theta: Float[Array, "P"]
    history: History
    stopped: str | None = None


class _Block(NamedTuple):
    """Batches for one compiled program: batch i is `x[rows[i]], y[rows[i]]`, for i < steps."""

    x: Any
    y: Any
    rows: Int[Array, "S B"]
    steps: int
    epoch_ends: list[int]  # the numbers of steps of this block after which an epoch is over


def fit(
    cost: Cost,
    theta: Theta,
    data: Any,
    *,
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int = 64,
    epochs: int = 1,
    key: PRNGKeyArray | None = None,
    evaluate: Callable[[Float[Array, "P"]], dict[str, float]] | None = None,
    progress: bool = False,
) -> Run:
    """Descend from θ on `data` with the hand-written pass and any optax transformation, `adam(1e-3)` unless given.

    `data`: arrays `(x, y)`, shuffled by `key` and cut into batches of `batch_size`; or an iterable of batches
    `(x, y)`, taken as they come and iterated once for each epoch. The optimiser sees θ as the tree of leaves,
    `layout.unflatten(theta)`, so that masks and labels may go by a leaf's path or shape. `key` also feeds the layers'
    noise. `evaluate(theta)`, called at the end of each epoch, adds its numbers to that epoch's record.
    `progress=True` draws a bar; it needs the extra `[cli]`.

    Where the cost is no longer finite, it stops with a warning and returns the last θ that had a finite cost.
    Raises `InputError` for data that don't fit, hold NaN, or have labels out of range.
    """
    if not isinstance(cost, Cost):
        raise InputError(f"fit: expected a Cost first, got {type(cost).__name__}. As in fit(cost, theta, (x, y)).")
    if any(not isinstance(n, (int, np.integer)) or isinstance(n, bool) or n < 1 for n in (epochs, batch_size)):
        raise InputError(
            f"fit: epochs and batch_size must be whole numbers above 0, got {epochs!r} and {batch_size!r}."
        )
    optimizer, batch_size, epochs = ADAM if optimizer is None else optimizer, int(batch_size), int(epochs)
    if isinstance(optimizer, type) or not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
        raise InputError(
            f"fit: expected an optax transformation as optimizer, got {optimizer!r}. As in optax.adam(1e-3)."
        )
    if evaluate is not None and not callable(evaluate):
        raise InputError(f"fit: evaluate must be a function of theta, got {evaluate!r}. As in lambda theta: {{...}}.")
    shuffle_key, noise_key = jax.random.split(jax.random.key(0) if key is None else key)
    if isinstance(data, tuple) and len(data) == 2:
        cost.check(theta, *data)
        x, y = jax.tree.map(jnp.asarray, data)
        blocks, steps = _blocks_of_arrays(x, y, batch_size, epochs, shuffle_key)
    else:
        blocks, steps = _blocks_of_batches(cost, theta, data, epochs)

    descent = _Descent(cost, optimizer, noise_key, *_begin(cost, optimizer, theta))
    costs, stopped, started = [np.zeros(0)], None, time.perf_counter()
    done: list[dict[str, Any]] = []
    with _bar(steps) if progress else contextlib.nullcontext(_silent) as show:
        for block, i, stop in _calls(blocks, pause_at_epochs=evaluate is not None):
            first = descent.step - i  # of this block, among all steps
            costs.append(descent.advance(block, i, stop))
            finished = descent.step - first  # of this block; less than stop if it failed
            for end in (end for end in block.epoch_ends if i < end <= finished):
                numbers = evaluate(cost.layout.flatten(descent.params)) if evaluate else {}
                if not isinstance(numbers, Mapping):
                    raise InputError(
                        f"fit: evaluate must return a dict of numbers by name, got {type(numbers).__name__}. "
                        'As in {"accuracy": 0.9}.'
                    )
                seconds = time.perf_counter() - started
                done.append({"epoch": len(done) + 1, "step": first + end, "seconds": seconds, **numbers})
            if descent.failed:
                stopped = _failure(np.concatenate(costs))
                warnings.warn(stopped, stacklevel=2)
                break
            show(descent.step, float(costs[-1][-1]))
    return Run(cost.layout.flatten(descent.params), History(np.concatenate(costs), done), stopped)


@dataclass
class _Descent:
    """Where the descent is: leaves, the optimiser's state, and how many steps are done."""

    cost: Cost
    optimizer: Any
    key: PRNGKeyArray
    params: Any
    state: Any
    step: int = 0
    failed: bool = False
    again: Callable[[], Any] | None = None  # runs the last call again, but for its last step

    def advance(self, block: _Block, i: int, stop: int) -> np.ndarray:
        """Do steps i … stop - 1 of the block; their costs, up to the first that is not finite."""
        settings = (self.cost, self.optimizer, block.x, block.y, block.rows, self.key, self.step - i)
        run = partial(_advance, *settings, self.params, self.state, i)
        params, state, costs = run(stop)
        costs = np.asarray(costs)[i:stop]
        bad = np.flatnonzero(~np.isfinite(costs))
        if not bad.size:
            self.params, self.state, self.again, self.step = params, state, partial(run, stop - 1), self.step + stop - i
            return costs
        # θ before step bad[0] has no finite cost, so the one before that is wanted: the same steps again, but one less
        k = int(bad[0])
        again = partial(run, i + k - 1) if k else self.again
        self.failed, self.params = True, again()[0] if again else self.params
        self.step += k
        return costs[: k + 1]


@partial(jax.jit, static_argnums=(0, 1))
def _begin(cost, optimizer, theta):
    """(leaves, the optimiser's state) at θ."""
    params = cost.layout.unflatten(theta)
    return params, optimizer.init(params)


@partial(jax.jit, static_argnums=(0, 1))
def _advance(cost, optimizer, x, y, rows, key, first, params, state, start, stop):
    """Steps start … stop - 1: (params, state, costs `[S]`, of which those of the steps done are filled)."""

    update = optax.with_extra_args_support(optimizer).update

    def step(i, carry):
        params, state, costs = carry
        batch = jax.tree.map(lambda a: a.at[rows[i]].get(mode="clip"), (x, y))
        context = Context(jax.random.fold_in(key, first + i))
        C, gradient = cost.value_and_grad_leaves(params, *batch, context=context)
        value_fn = lambda p: cost.value_leaves(p, *batch, context=context)  # for line searches
        updates, state = update(gradient, state, params, value=C, grad=gradient, value_fn=value_fn)
        return optax.apply_updates(params, updates), state, costs.at[i].set(C)

    costs = jnp.zeros(rows.shape[0], wide_dtype(cost.network.dtype))
    return jax.lax.fori_loop(start, stop, step, (params, state, costs))


def _calls(blocks: Iterable[_Block], pause_at_epochs: bool) -> Iterator[tuple[_Block, int, int]]:
    """(block, first step, stop) of each call of the program, about `SECONDS_PER_CALL` long as the caller takes them."""
    n = 1
    for block in blocks:
        i = 0
        while i < block.steps:
            ends = [end for end in block.epoch_ends if end > i] if pause_at_epochs else []
            stop = min(i + n, block.steps, *ends)
            tick = time.perf_counter()
            yield block, i, stop
            pace = (stop - i) * SECONDS_PER_CALL / (time.perf_counter() - tick)
            i, n = stop, max(1, min(8 * n, int(pace)))


def _blocks_of_arrays(
    x: Any, y: Any, batch: int, epochs: int, key: PRNGKeyArray
) -> tuple[Iterator[_Block], int | None]:
    """(blocks, number of steps) of shuffled arrays."""
    n = jax.tree.leaves(x)[0].shape[0]
    batch = min(batch, n)
    full, rest = divmod(epochs * n, batch)
    size = min(full, max(-(-n // batch), BLOCK_STEPS))

    def rows(step, shape):
        epoch, offset = divmod(step * batch, n)
        return _shuffled(key, epoch, offset, n, -(-(offset + shape[0] * shape[1]) // n), shape)

    def blocks():
        for step in range(0, full, size):
            steps = min(size, full - step)
            ends = [-(-epoch * n // batch) - step for epoch in range(1, epochs + 1)]
            yield _Block(x, y, rows(step, (size, batch)), steps, [end for end in ends if 0 < end <= steps])
        if rest:
            yield _Block(x, y, rows(full, (1, rest)), 1, [1])

    return blocks(), full + bool(rest)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _shuffled(key, epoch, offset, n, epochs, shape):
    """`shape` rows of the stream from `offset` in `epoch` on."""
    shuffles = jax.vmap(lambda e: jax.random.permutation(jax.random.fold_in(key, e), n))(epoch + jnp.arange(epochs))
    return jax.lax.dynamic_slice(shuffles.ravel(), (offset,), (shape[0] * shape[1],)).reshape(shape)


def _blocks_of_batches(cost: Cost, theta: Any, data: Iterable, epochs: int) -> tuple[Iterator[_Block], int | None]:
    """(blocks, number of steps if known) of an iterable of batches (x, y)."""
    if not isinstance(data, Iterable):
        raise InputError(
            f"fit: data must be arrays (x, y) or an iterable of batches (x, y), got {type(data).__name__}."
        )
    if isinstance(data, (tuple, list)) and data and all(isinstance(part, (jax.Array, np.ndarray)) for part in data):
        raise InputError(
            f"fit: data is a {type(data).__name__} of {len(data)} arrays, {described(data)}. "
            "Pass arrays as the tuple (x, y), or a list of batches [(x, y), ...]."
        )
    if isinstance(data, (jax.Array, np.ndarray, Mapping, str)):
        raise InputError(
            f"fit: data must be arrays (x, y) or an iterable of batches (x, y), got {type(data).__name__}."
        )
    if epochs > 1 and isinstance(data, Iterator):
        raise InputError(
            f"fit: data is an iterator, which ends with the first of {epochs} epochs. "
            "Pass a list or another iterable that starts anew, or epochs=1."
        )

    def blocks():
        for epoch in range(1, epochs + 1):
            groups = _groups(data)
            group = next(groups, None)
            if group is None:
                raise InputError(
                    f"fit: data gave no batch in epoch {epoch}. Pass an iterable that starts anew each time."
                )
            while group is not None:
                x, y = jax.tree.map(lambda *parts: jnp.concatenate(parts), *group)
                cost.check(theta, x, y)
                rows = jnp.arange(jax.tree.leaves(x)[0].shape[0]).reshape(len(group), -1)
                group = next(groups, None)
                yield _Block(x, y, rows, len(rows), [] if group else [len(rows)])

    return blocks(), len(data) * epochs if isinstance(data, Sized) else None


def _groups(data: Iterable) -> Iterator[list[tuple[Any, Any]]]:
    """Batches of one shape in a row, to be stacked; few enough to fit in `BLOCK_STEPS` and `BLOCK_BYTES`."""
    group: list[tuple[Any, Any]] = []
    for batch in data:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise InputError(
                f"fit: expected each batch as (x, y), got {type(batch).__name__}. Give two arrays as the tuple (x, y)."
            )
        pair = jax.tree.map(lambda a: a if isinstance(a, jax.Array) else np.asarray(a), tuple(batch))
        size = sum(a.nbytes for a in jax.tree.leaves(pair)) * (len(group) + 1)
        if group and (Shape.of(pair) != Shape.of(group[0]) or len(group) == BLOCK_STEPS or size > BLOCK_BYTES):
            yield group
            group = []
        group.append(pair)
    if group:
        yield group


def _failure(costs: np.ndarray) -> str:
    """The message of a descent whose last cost is not finite."""
    at = costs.size - 1
    if not at:
        return f"fit: the cost is {costs[0]} at the θ given, before the first step; θ is returned unchanged."
    return (
        f"fit: the cost became {costs[-1]} at step {at}. Stopped; run.theta is θ of step {at - 1}, the last with "
        f"a finite cost, {costs[-2]:.6g}. Lower the learning rate, clip the gradient, or look at the data."
    )


def _silent(step: int, cost: float) -> None:
    pass


@contextlib.contextmanager
def _bar(total: int | None) -> Iterator[Callable[[int, float], None]]:
    """A progress bar; yields `show(step, cost)`."""
    try:
        from rich import progress
    except ModuleNotFoundError:
        raise InputError(
            "fit: progress=True draws its bar with rich. Install it with: pip install 'jbp[cli]'"
        ) from None
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[cost]}"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns) as bar:
        task = bar.add_task("fit", total=total, cost="")
        yield lambda step, cost: bar.update(task, completed=step, cost=f"cost {cost:.4g}")
