"""The steps of a descent: many in one compiled program, in place, and the way back to the last θ of a finite cost."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .layer import Context, wide_dtype
from .optimizer import Rule, rule_of, trained, updates
from .reverse import Cost
from .stream import BLOCK_BYTES, Block, batch_of_rows, batch_specs

# The way back begins anew, at the price of one forward pass and one copy, after so many seconds and steps, or as soon
# as the batches of an iterable that it needs are so large:
BACK_SECONDS, BACK_STEPS, BACK_BYTES = 10.0, 32, 4 * BLOCK_BYTES

# From so many parameters on, each step is a call: in a loop, XLA copies most weights before it writes them anew. A call
# costs about 0.1 ms, such a step many times that.
LARGE_THETA = 1 << 25


@dataclass
class Descent:
    """Where a descent is: leaves, the optimiser's state, and how many steps are done. It owns both, and reuses them.

    `begin()` makes (leaves, the optimiser's state) of the first step anew. To go back, the calls since then are run
    again: since the very beginning, later since a copy. There is never more than one copy, made where the cost on the
    next batch is known to be finite, so that no step after it needs an older one.
    """

    cost: Cost
    optimizer: Any
    begin: Callable[[], tuple[Any, Any]]
    key: PRNGKeyArray  # of the noise
    feedback: Float[Array, "P"] | None = None  # a vector
    steer: Callable[..., Any] | None = None  # or a function of θ `[P]` and the step that gives one
    step: int = 0
    failed: bool = False
    copied: bool = False  # whether `begin` is a copy by now
    calls: list[tuple[Block, int, int]] = field(default_factory=list)  # since the step of `begin`

    def __post_init__(self) -> None:
        self.params, self.state = self.begin()
        self.first, self.started = self.step, time.perf_counter()

    @property
    def theta(self) -> Float[Array, "P"]:
        """θ, as a vector that nothing will be written into."""
        return theta_of(self.cost, self.params)

    def advance(self, block: Block, i: int, stop: int) -> np.ndarray:
        """Do steps i … stop - 1 of the block; their costs, up to the first that is not finite."""
        self._renew_the_way_back(block, i)
        self.calls.append((block, i, stop))
        costs = self._run(block, i, stop)
        bad = np.flatnonzero(~np.isfinite(costs))
        if not bad.size:
            self.step += stop - i
            return costs
        self._go_back(self.step + int(bad[0]) - 1)  # θ of step bad[0] has no finite cost, so the one before is wanted
        return costs[: bad[0] + 1]

    def last(self, block: Block) -> tuple[Float[Array, "P"], np.ndarray]:
        """(θ after the one step of the block, its cost), while the descent stays where it is, before that step."""
        program, inputs = (self.cost, self._rule(block), self.steer, block.cut), self._inputs(block, self.step)
        if self.copied and np.isfinite(_peek(self.cost, block.cut, *inputs, self.params, 0)):
            self.let_go()
        theta, C = _last(*program, *inputs, self.params, self.state)
        cost = np.asarray(C)[None]
        if not np.isfinite(cost[0]):
            self._go_back(self.step - 1)
            theta = self.theta
        return theta, cost

    def _run(self, block: Block, i: int, stop: int) -> np.ndarray:
        program, inputs = (self.cost, self._rule(block), self.steer, block.cut), self._inputs(block, self.step - i)
        if self.cost.layout.size < LARGE_THETA:
            self.params, self.state, costs = _advance(*program, *inputs, self.params, self.state, i, stop)
            return np.asarray(costs)[i:stop]
        Cs = []
        for j in range(i, stop):
            self.params, self.state, C = _step(*program, *inputs, self.params, self.state, j)
            Cs.append(C)
        return np.stack(Cs)

    def _inputs(self, block: Block, first: int) -> tuple:
        return block.by_row, block.side, block.rows, self.feedback, self.key, first

    def _rule(self, block: Block) -> Rule:
        batch = batch_specs(block.by_row, block.side, block.rows.shape[1], self.key)
        return rule_of(self.cost, self.optimizer, dtype_of(self.params), batch)

    def _renew_the_way_back(self, block: Block, i: int) -> None:
        """Let it begin here if that is due, and if the step that comes has a finite cost."""
        steps, seconds = self.step - self.first, time.perf_counter() - self.started
        blocks = {id(one.rows): one for one, _, _ in self.calls if one.rows is not block.rows}.values()
        held = sum(one.rows.nbytes + (one.by_row is not block.by_row and one.nbytes) for one in blocks)
        due = (seconds >= BACK_SECONDS and steps >= BACK_STEPS) or (held > BACK_BYTES and steps >= 4)
        if due and np.isfinite(_peek(self.cost, block.cut, *self._inputs(block, self.step - i), self.params, i)):
            self.let_go()
            copy = copied((self.params, self.state))
            self.begin, self.copied = lambda: copy, True
            self.first, self.started = self.step, time.perf_counter()

    def let_go(self) -> None:
        """Give up the way back, and what was kept for it."""
        self.begin, self.copied, self.calls = lambda: (self.params, self.state), False, []
        self.first = self.step

    def _go_back(self, step: int) -> None:
        """Run again from the beginning until so many steps are done, or none. Nothing comes after that."""
        begin = self.begin
        if self.calls:
            self.params = self.state = None  # of no use any more
        self.params, self.state = begin()
        self.failed, self.step = True, self.first
        for block, i, stop in self.calls:
            if (stop := min(stop, i + step - self.step)) > i:
                self._run(block, i, stop)
                self.step += stop - i


@partial(jax.jit, static_argnums=(0, 1))
def begin(cost: Cost, rule: Rule, theta: Any) -> tuple[Any, Any]:
    """(leaves, the optimiser's state) at θ, in memory of their own."""
    params = cost.layout.unflatten(theta)
    return _copied((params, rule.init(trained(cost.layout, params))))


@partial(jax.jit, static_argnums=0)
def theta_of(cost: Cost, params: Any) -> Float[Array, "P"]:
    """θ as a vector, in memory of its own."""
    return jnp.copy(cost.layout.flatten(params))


def _copied(tree: Any) -> Any:
    """A copy of each array, also where two are one or one is the caller's: what is written in place must be alone."""
    return jax.tree.map(jnp.copy, tree)


copied = jax.jit(_copied)


def dtype_of(params: Any) -> Any:
    """θ's dtype."""
    return next((leaf.dtype for leaf in jax.tree.leaves(params)), np.dtype(np.float32))


# -- the programs -----------------------------------------------------------------------------------------------------


def _one_step(cost, rule, steer, cut, by_row, side, rows, feedback, key, step, params, state):
    """(params, state, C) after one step on the batch of these rows."""
    batch = x, y, weights, context = _batch(cut, by_row, side, rows, key, step)
    unflatten, layout = cost.layout.unflatten, cost.layout
    if steer is not None:
        feedback = steer(layout.flatten(params), step)
        layout.check(feedback, "feedback")
        feedback = unflatten(feedback)
    C, gradient = cost.value_and_grad_leaves(params, x, y, weights=weights, context=context, feedback=feedback)
    params, state = updates(cost, rule.update, params, trained(layout, gradient), state, C, batch)
    return params, state, C


def _batch(cut, by_row, side, rows, key, step):
    x, y, weights, mask = batch_of_rows(by_row, rows, cut)
    return x, y, weights, Context(jax.random.fold_in(key, step), mask, side)


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnames=("params", "state"))
def _step(cost, rule, steer, cut, by_row, side, rows, feedback, key, first, params, state, i):
    """(params, state, C) after step i."""
    feedback = None if feedback is None else cost.layout.unflatten(feedback)
    return _one_step(cost, rule, steer, cut, by_row, side, rows[i], feedback, key, first + i, params, state)


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnames=("params", "state"))
def _advance(cost, rule, steer, cut, by_row, side, rows, feedback, key, first, params, state, start, stop):
    """Steps start … stop - 1: (params, state, costs `[S]`, of which those of the steps done are filled)."""
    feedback = None if feedback is None else cost.layout.unflatten(feedback)

    def step(i, carry):
        params, state, costs = carry
        inputs = by_row, side, rows[i], feedback, key, first + i
        params, state, C = _one_step(cost, rule, steer, cut, *inputs, params, state)
        return params, state, costs.at[i].set(C.astype(costs.dtype))

    costs = jnp.zeros(rows.shape[0], wide_dtype(dtype_of(params)))
    return jax.lax.fori_loop(start, stop, step, (params, state, costs))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _last(cost, rule, steer, cut, by_row, side, rows, feedback, key, step, params, state):
    """(θ after the step, C)."""
    feedback = None if feedback is None else cost.layout.unflatten(feedback)
    params, _, C = _one_step(cost, rule, steer, cut, by_row, side, rows[0], feedback, key, step, params, state)
    return jnp.copy(cost.layout.flatten(params)), C


@partial(jax.jit, static_argnums=(0, 1))
def _peek(cost, cut, by_row, side, rows, feedback, key, first, params, i):
    """C on batch i, going forward only."""
    x, y, weights, context = _batch(cut, by_row, side, rows[i], key, first + i)
    return cost.value_leaves(params, x, y, weights=weights, context=context)
