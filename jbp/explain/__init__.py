"""The inductive argument for one coordinate of θ, written out with its numbers.

    base case         δ at the output, from the loss
    inductive step    δ at a layer's input from δ at its output, for each layer on the way down
    last product      ∂C_n/∂w from the pair (a, δ) at the leaf; then the sum over examples, each with its factor in C

In a plain chain of dense layers and activations the argument has the text's symbols, δ^ℓ_j = ∂C_n/∂z^ℓ_j. In any other
network δ(p) stands at the output of layer p, δx(p) at its input, and a layer that is neither dense nor an activation
shows the equation in its docstring, with the norms of its δ. `Explanation` holds every number that it prints.
"""

import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..compare import in_float64
from ..layer import Context, InputError, Theta
from ..meshes import on_host
from ..record import Record, Step, run
from ..reverse import Cost
from .agreement import note, rounding
from .argument import Argument, braced, contributions_of
from .parts import Explanation as Explanation
from .parts import Line, Paragraph, Term


def explain(
    cost: Cost,
    theta: Theta,
    x: Any,
    y: Any,
    symbol: str,
    *,
    example: int | None = None,
    weights: Any = None,
    context: Context = Context(),
) -> Explanation:
    """The induction for one coordinate of θ, such as `"w^2_{3←7}"` or `"1.layer.0.w[3,7]"`; `<-` may stand for `←`.

    `example`: the one that is written out, the one that contributes most unless given. The same number is then found by
    `cost.value_and_grad`, by `jax.grad(cost)`, and by a central difference in float64, whether or not x64 is on (with a
    key in the context, in θ's own dtype); `.agrees` and the text say which of them agree.
    It speaks of the network's own coordinates: the leaves of a loss with parameters have no layer to go through.
    Raises `InputError` for a symbol that is not in the network (with the nearest, or because it is the loss's), under
    jit, and as `cost.check`.
    """
    i = cost.coordinate("explain", symbol)
    theta, x, y, weights, context = on_host((theta, x, y, weights, context))
    record = run(cost, theta, x, y, weights=weights, context=context)
    owner, pair, where = _located(cost, record, i)
    contributions = record.factors * contributions_of(pair, where)
    n = int(np.abs(contributions).argmax()) if example is None else example
    if not 0 <= n < len(contributions):
        raise InputError(f"explain: example must be one of 0 … {len(contributions) - 1}, got {example}.")
    settings: dict[str, Any] = {"weights": weights, "context": context}
    ways = {
        "cost.value_and_grad": lambda theta: cost.value_and_grad(theta, x, y, **settings)[1][i],
        "jax.grad(cost)": lambda theta: jax.grad(cost)(theta, x, y, **settings)[i],
    }
    oracles = {way: float(gradient(jnp.asarray(theta))) for way, gradient in ways.items()}
    allowed = dict.fromkeys(oracles, rounding(record, owner, pair, where, theta, list(ways.values())))
    oracles["central difference"], error, step, dtype = _central_difference(cost, theta, x, y, i, settings)
    allowed["central difference"] = allowed["jax.grad(cost)"] + error
    symbol = cost.layout.symbol(i)
    parts = Argument(cost, record, y, n, symbol).parts(owner, pair, where)
    parts += _batch(cost, record, contributions_of(pair, where), symbol, weights)
    value = float(contributions.sum())
    at = float(theta[i]), float(cost(theta, x, y, **settings)), cost.reduction, n
    found = Explanation(symbol, i, *at, tuple(parts), contributions, value, oracles, allowed, step, dtype)
    return replace(found, note=note(found.agrees, record))


def _located(cost: Cost, record: Record, i: int) -> tuple[Step, Any, tuple[int, ...]]:
    """Coordinate i: the step of the layer (in a loop, of the turn) that it is used in, its leaf's pair, where in it."""
    layout = cost.layout
    name, where = layout.locate(i)
    leaf = record.leaves[name]
    loops = layout.shapes[layout.names.index(name)][: leaf.depth]
    turns = sorted((step for step in record.steps if step.path == leaf.owner), key=lambda step: step.turn or 0)
    if len(turns) not in (1, math.prod(loops)):
        raise InputError(
            f"explain: layer {leaf.owner} ran {len(turns)} times, with {math.prod(loops)} blocks in its leaf {name}, "
            "so no single step of it has this coordinate. Ask for one of a layer that runs once."
        )
    pair: Any = leaf.pair
    for block in where[: leaf.depth]:
        pair = jax.tree.map(lambda a, block=block: a[block], pair.blocks)
    turn = int(np.ravel_multi_index(where[: leaf.depth], loops)) if len(turns) > 1 else 0  # a loop may be its own
    return turns[turn], pair, where[leaf.depth :]


def _central_difference(
    cost: Cost, theta: Any, x: Any, y: Any, i: int, settings: dict[str, Any]
) -> tuple[float, float, float, str]:
    """((C(θ + h e_i) − C(θ − h e_i)) / 2h, its error, h, dtype), at the h of 10^−½ … 10^−7 with the least error.

    The error is estimated: the change from the h before, truncation, plus a few ulps of |C|, over h, rounding. In
    float64, unless there is a random key: the same key draws other noise in float64, so then in θ's own dtype.
    """
    noisy = settings["context"].key is not None
    with nullcontext() if noisy else jax.enable_x64(True):
        args = (np.asarray(theta), x, y, settings)
        theta, x, y, settings = args if noisy else in_float64(args)
        dtype = theta.dtype
        found: list[float] = []
        best, least = (math.nan, math.nan), math.inf
        tiny, eps = float(jnp.finfo(dtype).tiny), float(jnp.finfo(dtype).eps)
        for h in max(1.0, abs(float(theta[i]))) * 10.0 ** -np.arange(0.5, 7.5, 0.5):
            above, below = theta.copy(), theta.copy()
            above[i] += h
            below[i] -= h
            up, down = (float(cost(shifted, x, y, **settings)) for shifted in (above, below))
            found.append((up - down) / max(float(above[i]) - float(below[i]), tiny))
            if len(found) > 1:
                error = abs(found[-1] - found[-2]) + 4 * eps * max(abs(up), abs(down)) / h
                if error < least:
                    best, least = (found[-1], float(h)), error
    return best[0], float(least), best[1], str(dtype)


def _batch(cost: Cost, record: Record, each: np.ndarray, symbol: str, weights: Any) -> list[Paragraph]:
    """The part that sums ∂C_n/∂w of each example with its factor in C; none for a single one that counts fully."""
    N = len(each)
    if N == 1 and record.factors[0] == 1:
        return []
    alike = weights is None and cost.reduction != "sum"
    under = {"sum": "", "mean": "/Σw", "positions": "/Σ_n w_n T_n"}[cost.reduction]
    share = f"1/{1 / record.factors[0]:.15g}" if alike else ""

    def factor(n: object) -> tuple[str, ...]:
        if weights is None:
            return (share,) if alike else ()
        return (f"w_{n}{under}",)

    right = f"{share} Σ_n" if alike else " ".join(("Σ_n", *factor("n")))
    terms = tuple(
        Term((*factor(at), f"∂C_{at}/∂{symbol}"), (float(f), float(g)) if factor(at) else (float(g),))
        for at, f, g in zip(map(braced, range(N)), record.factors, each, strict=True)
    )
    line = Line(f"∂C/∂{symbol}", f"{right} ∂C_n/∂{symbol}", terms, float((record.factors * each).sum()))
    return [Paragraph(f"Over the {N} examples", lines=(line,))]
