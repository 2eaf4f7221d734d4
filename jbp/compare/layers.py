"""Where in a network of layers an error enters: each layer by itself, on the values and the δ that reached it."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ..layer import Context, Shape, wide_dtype
from ..programs.arguments import Arguments, is_float
from ..programs.program import Program
from ..reader import bound, read_gradient, readers
from ..run import turned
from .comparison import Comparison
from .judge import judged
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
        found.append(judged(Comparison("compare", name, *programs[key], _parts, Arguments.of(args).arrays)))
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
                filled = [next(rest) if is_float(a) else a for a in leaves]
                return layer.forward(params, jax.tree.unflatten(jax.tree.structure(x), filled), context)[0]

            floats = [a for a in jax.tree.leaves(x) if is_float(a)]
            _, pull = jax.vjp(of_floats, params, floats)
            gradients, delta_floats = pull(delta)
            rest = iter(delta_floats)
            delta_x = jax.tree.map(lambda a: next(rest) if is_float(a) else None, x)
            return {"delta of x": delta_x, "params": gradients}

        alone = None if jax.tree.leaves(context) else layer
        yield f"layer {step.name} ({step.kind})", alone, rule, oracle, (step.params, step.x, step.delta)
