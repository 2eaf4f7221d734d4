"""Where in a network of layers an error enters: each layer by itself, on the values and the δ that reached it."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..layer import Context, InputError, Shape, described, wide_dtype
from ..programs.arguments import Arguments
from ..programs.program import Program
from ..reader import bound, read_gradient, readers
from ..run import turned
from .judge import Comparison
from .parts import Part, named_parts
from .report import Report


def step_reports(record: Any, cost: Any, theta: Any, y: Any) -> tuple[Report, ...]:
    """Reports of the base case and of each layer, in the order of the reverse pass, up to the first that is wrong.

    `record`: a `Record` of one run of the cost.
    """
    found: list[Report] = []
    programs: dict[Any, tuple[Program, Program]] = {}
    for name, layer, rule, oracle, args in _steps(record, cost, theta, y):
        key = layer, Shape.of(args)  # the turns of a loop, and equal layers, are one program
        if layer is None or key not in programs:
            programs[key] = (
                Program(f"compare: the rule of {name}", rule, args),
                Program(f"compare: the autodiff of {name}", oracle, args),
            )
        comparison = Comparison("compare", name, *programs[key], _parts)
        comparison.arrays = Arguments.of(args).arrays
        found.append(comparison.report(timing=False))
        if not found[-1].ok:
            break
    return tuple(found)


def _parts(result: Any) -> list[Part]:
    return [part for part in named_parts(result) if jnp.issubdtype(part.array.dtype, jnp.inexact)]


def _steps(record: Any, cost: Any, theta: Any, y: Any) -> Iterator[tuple[str, Any, Callable, Callable, tuple]]:
    """(name, what its programs depend on besides the arguments' shapes, or None, rule, oracle, arguments) of each step
    of the induction."""
    y, loss = jax.tree.map(jnp.asarray, y), cost.loss_layer

    def base(params: Any, output: Any) -> dict[str, Any]:
        n = jax.tree.leaves(output)[0].shape[0]
        ones = jnp.ones(n, wide_dtype(jax.tree.leaves(output)[0].dtype))
        read = readers(params, read_gradient)
        _, delta, readings = turned("loss", loss, params, params, (output, y), ones, read, Context())
        return {"delta of the output": delta, "params": readings}

    def base_oracle(params: Any, output: Any) -> dict[str, Any]:
        total = lambda params, output: loss.forward(params, (output, y), Context())[0].sum()
        gradient, delta = jax.grad(total, (0, 1))(params, output)
        return {"delta of the output": delta, "params": gradient}

    yield (
        f"the base case, {type(cost.loss).__name__}",
        None,
        base,
        base_oracle,
        (cost.loss_params(theta), record.output),
    )
    for step in record.steps:  # a container ends after the layers in it: one that is wrong by itself is found too
        layer, context = step.layer, step.context

        def rule(params: Any, x: Any, delta: Any, layer: Any = layer, context: Any = context) -> dict[str, Any]:
            _, saved = layer.forward(params, x, context)
            delta_x, readings = layer.backward(
                params, params, saved, delta, bound(params, readers(params, read_gradient))
            )
            return {
                "delta of x": delta_x,
                "params": jax.tree.map(lambda leaf, g: g.astype(leaf.dtype), params, readings),
            }

        def oracle(params: Any, x: Any, delta: Any, layer: Any = layer, context: Any = context) -> dict[str, Any]:
            def of_floats(params: Any, floats: list[Any]) -> Any:
                leaves, rest = list(jax.tree.leaves(x)), iter(floats)
                filled = [next(rest) if jnp.issubdtype(a.dtype, jnp.inexact) else a for a in leaves]
                return layer.forward(params, jax.tree.unflatten(jax.tree.structure(x), filled), context)[0]

            floats = [a for a in jax.tree.leaves(x) if jnp.issubdtype(a.dtype, jnp.inexact)]
            _, pull = jax.vjp(of_floats, params, floats)
            gradients, delta_floats = pull(delta)
            rest = iter(delta_floats)
            delta_x = jax.tree.map(lambda a: next(rest) if jnp.issubdtype(a.dtype, jnp.inexact) else None, x)
            return {"delta of x": delta_x, "params": gradients}

        alone = None if jax.tree.leaves(context) else layer
        yield f"layer {step.name} ({step.kind})", alone, rule, oracle, (step.params, step.x, step.delta)


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
