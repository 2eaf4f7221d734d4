"""`Cost.compare`: the hand-written gradient of a cost against `jax.grad` of it, and where it fails, layer by layer."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError, described
from ..layer import Context
from ..programs.program import Program
from ..reader import read_gradient
from ..record import run as recorded_run
from .gradients import compare_with
from .layers import step_reports
from .parts import VALUE, Part
from .report import Report


def compare_cost(
    cost: Any, theta: Any, x: Any, y: Any, weights: Any, context: Context, timing: bool, checks: bool
) -> Report:
    """A cost's value and gradient on the vector, by the hand-written pass and by autodiff. Its arguments fit.

    Where autodiff in float64 runs out of memory, it is run on blocks of examples. Another θ is looked at too.
    """
    settings = {"weights": weights, "context": context}

    def rule(theta: Any, x: Any, y: Any) -> Any:
        return cost.value_and_grad(theta, x, y, **settings)

    def oracle(theta: Any, x: Any, y: Any) -> Any:
        return jax.value_and_grad(cost)(theta, x, y, **settings)

    def parts(result: tuple[Any, Any]) -> list[Part]:
        C, gradient = result
        leaves = cost.layout.leaves(np.asarray(gradient))  # slicing it on the device would compile many programs
        symbols = (partial(cost.layout.symbol_at, name) for name in cost.layout.names)
        return [Part(VALUE, C, lambda at: "C"), *map(Part, cost.layout.names, leaves, symbols)]

    def calls(arrays: Sequence[Any]) -> tuple[Report, ...]:
        theta = arrays[0]  # where it is wrong
        return step_reports(recorded_run(cost, theta, x, y, **settings, read=read_gradient), cost, theta, y)

    return compare_with(
        rule, oracle, (theta, x, y), parts, timing, checks=checks, calls=calls, name=cost.name,
        shadow=_by_blocks(cost, x, y, weights, context), elsewhere=True,
        pieces=(lambda arrays: list(cost.layout.leaves(*arrays)),
                lambda leaves: [np.concatenate([leaf.ravel() for leaf in leaves])]),
    )  # fmt: skip


def _by_blocks(cost: Any, x: Any, y: Any, weights: Any, context: Context) -> Callable[..., Any] | None:
    """The oracle in float64 as a sum over blocks of examples; None for a batch that can't be cut.

    A key draws other noise for fewer examples, a mask is not cut, and mixed examples belong together.
    """
    if any(part is not None for part in (context.key, context.mask, context.side, cost.mixed_by)):
        return None
    w = np.ones(jax.tree.leaves(x)[0].shape[0], np.float32) if weights is None else np.asarray(weights)
    share: Any = 1.0
    if cost.reduction == "positions":
        share = np.asarray(cost.counted(jax.tree.map(jnp.asarray, y), w.size))
    total = 1.0 if cost.reduction == "sum" else float((w.astype(np.float64) * share).sum())

    def summed(theta: Any, x: Any, y: Any, weights: Any) -> Any:
        return jax.value_and_grad(replace(cost, reduction="sum"))(theta, x, y, weights=weights)

    return lambda program, arrays: in_blocks(summed, arrays[0], (x, y, w), total, program)


def in_blocks(
    summed: Callable[..., Any], theta: Any, examples: tuple[Any, Any, Any], total: float, program: Program
) -> Any:
    """(C, ∇C) in float64 as a sum over blocks of examples, as large as memory allows; a remark is left on `program`.

    `summed(theta, x, y, weights)` gives the sum over examples of weight · (C_n, ∇C_n); `total` divides it.
    """
    n = len(examples[2])
    for blocks in (2**i for i in range(1, 64)):
        if blocks > 2 * n:
            break
        value, gradient = 0.0, np.zeros(np.shape(theta))
        try:
            for rows in np.array_split(np.arange(n), min(blocks, n)):
                part = tuple(jax.tree.map(lambda a, rows=rows: np.asarray(a)[rows], e) for e in examples)
                block = Program("compare: the oracle on a block", summed, (theta, *part))
                block.instead = _no_memory
                C, dC = block.exact(*block.arguments.arrays)
                value, gradient = value + C / total, gradient + dC / total
        except MemoryError:
            continue
        program.notes.append(
            f"The oracle ran out of memory in float64; it was run on {min(blocks, n)} blocks of examples, and summed."
        )
        return np.asarray(value), gradient
    raise InputError(
        f"compare: the oracle runs out of memory in float64, also on one example of {described(examples[0])}. "
        "Compare a smaller network."
    )


def _no_memory(program: Program, arrays: Any) -> Any:
    raise MemoryError
