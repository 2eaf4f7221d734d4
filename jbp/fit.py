"""Gradient descent with optax: the other meaning of "backpropagation", the whole algorithm.

Read this, then `stream.py` (which examples each step gets), `descent.py` (the steps), `course.py` (what happens epoch
by epoch) and `state.py` (how it goes on after a pause). Many steps run in one compiled program, on leaves; at the end θ
is a vector again.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from .console import bar, interrupts, silent
from .course import Course, Run, asked_to_stop, finished
from .descent import Descent, begin, copied
from .errors import is_whole
from .history import Search
from .layer import Context, InputError, Theta, check_finite
from .optimizer import check_optimizer, rule_of
from .outside import check_key, check_mask
from .reverse import Cost
from .state import State, outline_of
from .stream import Batches, Shuffled, check_no_key

ADAM = optax.adam(1e-3)


def fit(
    cost: Cost,
    theta: Theta,
    data: Any,
    *,
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int = 64,
    epochs: int = 1,
    key: PRNGKeyArray | None = None,
    weights: Any = None,
    context: Context = Context(),
    feedback: Any = None,
    evaluate: Callable[[Float[Array, "P"]], dict[str, float]] | None = None,
    best: str | None = None,
    patience: int | None = None,
    resume: Any = None,
    save: str | os.PathLike | None = None,
    progress: bool = False,
) -> Run:
    """Descend from θ on `data` with the hand-written pass and any optax transformation, `adam(1e-3)` unless given.

    `data`: arrays `(x, y)`, shuffled by `key` and cut into batches of `batch_size`; `weights: [N]` and `context.mask`
    go row by row with x, `context.side` whole. Or an iterable of batches `(x, y)`, taken as they come and iterated once
    for each epoch, or a function of the epoch (from 1) that gives one; behind x and y a batch may bring its weights, a
    `Context`, or both. The optimiser sees θ as the tree of leaves, `layout.unflatten(theta)`, without those that are
    frozen, so that masks and labels may go by a leaf's path or shape; one that takes extra arguments gets `value`,
    `grad`, `value_fn` and `batch=(x, y, context)`, and `weights`. `key` also feeds the layers' noise. `feedback`: a
    vector like θ that carries delta down in its place, or a function of θ and the step (from 0) that gives one.

    `evaluate(theta)`, called at the end of each epoch, adds its numbers to that epoch's record; `"stop": True` among
    them ends the descent. `best="accuracy"` keeps θ of the epoch with the largest, `best="-loss"` with the smallest, as
    `run.best`; `patience=n` ends it after n epochs without a better one. Ctrl-C ends it at the next return to Python,
    within about a second (a second Ctrl-C raises at once), and so does an `evaluate` that raises, with a warning. All
    that was done is in the run, and `run.stopped` says why it ended.

    `epochs` is the total. `resume=run.state`, or its `arrays()`, goes on as if there had been no pause: with the same
    bits, history, best and patience. An iterable goes on behind the batches that were done. `save=directory` writes the
    state there after each epoch and goes on from what it finds there, whatever θ is given; a descent that is over
    returns at once. No array that is given is written into.

    Where the cost is no longer finite, it stops with a warning and returns the last θ that had a finite cost.
    Raises `InputError` for data that don't fit, hold NaN, or have labels out of range, and for a state of another
    layout, optimiser, batch size, key or number of examples.
    """
    if not isinstance(cost, Cost):
        raise InputError(f"fit: expected a Cost first, got {type(cost).__name__}. As in fit(cost, theta, (x, y)).")
    optimizer = ADAM if optimizer is None else optimizer
    _check_settings(optimizer, batch_size, epochs, evaluate, best, patience, context)
    key, feedback = None if key is None else _key(key), _feedback(cost, feedback)
    stands = State.read(_directory(save)) if save is not None else None
    state = stands or _state(resume)
    if state is None and theta is None:
        raise InputError("fit: there is no theta to begin at. Give cost.init(key), or resume= a state.")

    own_key = key if key is not None else state.key if state else jax.random.key(0)
    shuffle_key, noise_key = jax.random.split(own_key)
    given = theta if state is None else np.broadcast_to(np.zeros((), cost.layout.dtype), (cost.layout.size,))
    stream: Shuffled | Batches
    if isinstance(data, tuple) and len(data) == 2:
        stream = _of_arrays(cost, given, data, weights, context, int(batch_size), shuffle_key)
    else:
        done = len(state.history.epochs) + state.owed if state else 0
        stream = _of_batches(cost, given, data, weights, context, int(epochs) - done)

    dtype = np.dtype(jnp.result_type(theta)) if state is None else state.dtype(cost.layout)
    rule = rule_of(cost, optimizer, dtype, stream.one_batch(noise_key))
    origin = State(
        {}, outline_of(rule.state, rule.params), rule.digest, own_key, batch_size=stream.batch_size,
        examples=stream.examples, search=Search(best),
    )  # fmt: skip
    if state is None:
        start = partial(begin, cost, rule, theta if isinstance(theta, jax.Array) else jnp.array(theta))
    else:
        start = partial(copied, state.placed(rule.params, rule.state))
        state.check(origin, epochs)
        search = state.search.asked(best, len(state.history.epochs))
        if state.end and state.end.record["epoch"] == epochs:
            return finished(state, search, state.end)
        origin = replace(state, leaves={}, program=origin.program, search=search, end=None)
    steer = feedback if callable(feedback) else None
    descent = Descent(cost, optimizer, start, noise_key, None if steer else feedback, steer, origin.step)
    del start, state, given  # whose arrays are let go as soon as the descent no longer needs them
    course = Course(descent, stream, origin, origin.search, int(epochs), evaluate, patience, save)
    if stands:
        course.stopped = asked_to_stop(origin.history.epochs, course.epochs)
    shown = bar(stream.steps(int(epochs)), descent.step) if progress else contextlib.nullcontext(silent)
    with shown as show, interrupts() as asked:
        run = course.run(asked, show)
    if course.warning:
        warnings.warn(course.warning, stacklevel=2)
    return run


# -- what is given ----------------------------------------------------------------------------------------------------


def _check_settings(optimizer, batch_size, epochs, evaluate, best, patience, context) -> None:
    """Raise `InputError` where one of them is not what it should be."""
    whole = lambda n: is_whole(n) and n >= 1
    if not whole(epochs) or not whole(batch_size):
        raise InputError(
            f"fit: epochs and batch_size must be whole numbers above 0, got {epochs!r} and {batch_size!r}."
        )
    check_optimizer(optimizer)
    if evaluate is not None and not callable(evaluate):
        raise InputError(f"fit: evaluate must be a function of theta, got {evaluate!r}. As in lambda theta: {{...}}.")
    if best is not None and (not isinstance(best, str) or not best.removeprefix("-")):
        raise InputError(f"fit: best must name a number of evaluate, as in 'accuracy' or '-loss', got {best!r}.")
    if best is not None and evaluate is None:
        raise InputError(f"fit: best={best!r} is a number of evaluate, and there is none. Give evaluate=.")
    if patience is not None and not whole(patience):
        raise InputError(f"fit: patience must be a whole number of epochs above 0, got {patience!r}.")
    if patience is not None and best is None:
        raise InputError(
            f"fit: patience={patience} waits for a better epoch. Say by what: best='accuracy', or best='-loss'."
        )
    if not isinstance(context, Context):
        raise InputError(f"context: expected a Context, got {context!r}. Write jbp.Context(mask=mask).")
    check_no_key(context)


def _key(key: Any) -> PRNGKeyArray:
    """One random key, new style."""
    check_key("fit: key", key)
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(jnp.asarray(key))


def _feedback(cost: Cost, feedback: Any) -> Any:
    """None, a vector like θ, or a function."""
    if feedback is None or callable(feedback):
        return feedback
    cost.layout.check(feedback, "feedback")
    check_finite("feedback", feedback)
    return jnp.asarray(feedback)


def _directory(save: Any) -> Path:
    """The directory to save in, which is there from now on."""
    if not isinstance(save, (str, os.PathLike)):
        raise InputError(f"fit: save must be a directory, got {save!r}. As in save='runs/first'.")
    try:
        Path(save).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"fit: save={str(save)!r} can't be a directory: {error}. Give another.") from error
    return Path(save)


def _state(resume: Any) -> State | None:
    """The state to go on from, given as such or as its arrays."""
    if resume is None or isinstance(resume, State):
        return resume
    if isinstance(resume, Run):
        raise InputError("fit: resume must be a state, got a Run. Give run.state.")
    if not isinstance(resume, Mapping):
        raise InputError(
            f"fit: resume must be a state, got {type(resume).__name__}. Give run.state, or the dict of its arrays."
        )
    return State.of(resume)


def _of_arrays(cost, theta, data, weights, context, batch_size, key) -> Shuffled:
    """The stream of arrays, checked."""
    x, y = data
    cost.check(theta, x, y, weights=weights)
    by_row = jax.tree.map(jnp.asarray, (x, y, weights, context.mask))
    check_mask(x, context.mask)
    return Shuffled(by_row, context.side, min(batch_size, len(jax.tree.leaves(x)[0])), key)


def _of_batches(cost, theta, data, weights, context, epochs) -> Batches:
    """The stream of an iterable, whose batches are checked as they come."""
    for name, given in (("weights", weights), ("context.mask", context.mask)):
        if given is not None:
            behind = "weights" if name == "weights" else "jbp.Context(mask=mask)"
            raise InputError(
                f"fit: {name} goes with arrays, and data gives batches. Let each bring its own: (x, y, {behind})."
            )
    cost.layout.check(theta)
    check_finite("theta", theta)
    nothing = np.broadcast_to(np.zeros((), cost.layout.dtype), (cost.layout.size,))

    def check(x, y, weights, mask):
        cost.check(nothing, x, y, weights=weights)
        check_mask(x, mask)

    return Batches.of(data, check, context.side, epochs)
