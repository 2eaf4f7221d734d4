"""Epochs of minibatch descent in plain JAX and optax, as peers of jbp.fit.

Each function gives `train(params, x, y, key) -> params`: one epoch over the examples in an order shuffled by `key`,
with `value_and_grad(params, x, y)` on whatever pytree the params are: leaves, or one vector.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def in_a_loop(value_and_grad: Callable, optimizer: Any, batch_size: int) -> Callable:
    """One compiled step, with donated buffers, called in a Python loop."""

    @partial(jax.jit, donate_argnums=0)
    def step(state, x, y, rows):
        return _step(value_and_grad, optimizer, state, x[rows], y[rows])

    def train(params, x, y, key):
        state = jax.tree.map(jnp.copy, params), optimizer.init(params)
        for rows in np.asarray(_shuffled(key, x, batch_size)):
            state, _ = step(state, x, y, rows)
        return state[0]

    return train


def in_a_scan(value_and_grad: Callable, optimizer: Any, batch_size: int) -> Callable:
    """The epoch as one lax.scan that gathers each batch by its rows. To be compiled as a whole."""

    def train(params, x, y, key):
        step = lambda state, rows: _step(value_and_grad, optimizer, state, x[rows], y[rows])
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), _shuffled(key, x, batch_size))
        return params

    return train


def in_a_scan_of_batches(value_and_grad: Callable, optimizer: Any, batch_size: int) -> Callable:
    """The epoch as one lax.scan over examples that were shuffled and cut before it. To be compiled as a whole."""

    def train(params, x, y, key):
        rows = _shuffled(key, x, batch_size)
        step = lambda state, batch: _step(value_and_grad, optimizer, state, *batch)
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), (x[rows], y[rows]))
        return params

    return train


def equal_examples(x: jax.Array, y: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """n copies of the first example: every batch is the same, so the shuffle makes no difference to the result."""
    return jnp.repeat(x[:1], n, axis=0), jnp.repeat(y[:1], n, axis=0)


def _step(value_and_grad: Callable, optimizer: Any, state: tuple, x: Any, y: Any) -> tuple[tuple, jax.Array]:
    params, memory = state
    C, gradient = value_and_grad(params, x, y)
    updates, memory = optimizer.update(gradient, memory, params)
    return (optax.apply_updates(params, updates), memory), C


def _shuffled(key: jax.Array, x: jax.Array, batch_size: int) -> jax.Array:
    return jax.random.permutation(key, x.shape[0]).reshape(-1, batch_size)
