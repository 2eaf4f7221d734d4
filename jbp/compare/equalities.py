"""Two ways of one computation, run in float64: they agree to the last digits or not at all."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError, said
from ..programs.arguments import is_float
from ..programs.calls import LINEAR
from ..programs.program import Program
from ..programs.replay import BITS, equations
from .error import FAR
from .points import beside, movement
from .report import Check

EQUAL = 1e-9  # relative to the largest element: how far two ways of one computation may be in float64
Both = tuple[Any, Any]  # two results that must be equal


def scanned(function: Callable) -> Callable:
    return lambda args: jax.lax.map(function, args)


def mapped(transform: Callable, function: Callable, args: Sequence[Any]) -> Both:
    """A function mapped over two points, and on each by itself."""
    stacked = [jnp.stack([a, (a * 0.75).astype(a.dtype) if is_float(a) else a]) for a in args]
    each = [function([a[i] for a in stacked]) for i in range(2)]
    return transform(function)(stacked), [jnp.stack(pair) for pair in zip(*each, strict=True)]


def equal(tried: dict[str, Callable], arrays: Sequence[Any]) -> Iterator[Check]:
    """Each pair of computations in float64, all in one program."""
    able: dict[str, Callable] = {}
    reasons: dict[str, str] = {}
    rounds: set[str] = set()  # what keeps its own precision in float64
    for name, pair in tried.items():
        try:
            jaxpr = jax.make_jaxpr(pair)(list(arrays))
            if any(eqn.primitive.name in LINEAR for eqn in equations(jaxpr)):
                reasons[name] = "can't be tried: forward mode meets a custom_vjp, inside the rule itself"
                continue
            able[name] = pair
            rounds |= {name} if any(eqn.primitive.name in BITS for eqn in equations(jaxpr)) else set()
        except Exception as error:  # whatever a stranger's rule raises is the answer
            reasons[name] = f"can't be tried: {said(error)}"
    try:
        program = Program("checks", lambda *a: {name: pair(list(a)) for name, pair in able.items()}, tuple(arrays))
        results = program.exact(*arrays)
    except InputError as error:
        results, reasons = {}, {name: f"can't be tried: {error}" for name in tried}
    noise: list[Any] = []
    for name in tried:
        if name in reasons:
            yield Check(name, None, reasons[name])
            continue
        # a rule and its primal may hold different constants, rounded to their dtype; a rule and itself may not
        constants = name in rounds or name.startswith(("second", "forward"))
        got, expected = results[name]
        far = max((distance(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)
        ok = far <= max(EQUAL, tolerance_of(arrays) * constants)
        if not ok and math.isfinite(far):
            noise = noise or movement(lambda *near: jax.tree.leaves(program.exact(*near)), beside(arrays))
            moved = jax.tree.unflatten(jax.tree.structure(results), noise)[name]
            ok = all(map(_within, got, expected, *moved))
        yield Check(name, ok, f"relative difference {far:.1e} in float64")


def tolerance_of(arrays: Sequence[Any]) -> float:
    """By how much two computations may differ whose constants are rounded to the arrays' dtype."""
    epsilon = max((float(jnp.finfo(a.dtype).eps) for a in arrays if is_float(a)), default=0.0)
    return min(64 * epsilon, 8 * epsilon + 1e-5)


def distance(a: Any, b: Any) -> float:
    """The largest difference relative to the largest element; NaN only equals NaN in the same place."""
    a, b = (x if x.dtype.kind in "fc" else x.astype(np.float64) for x in map(np.asarray, (a, b)))
    if not a.size:
        return 0.0
    odd = ~np.isfinite(a) | ~np.isfinite(b)
    if (odd & (np.nan_to_num(a, nan=0.5) != np.nan_to_num(b, nan=0.5))).any():
        return float("inf")
    off, peak = np.abs(np.where(odd, 0, a) - np.where(odd, 0, b)).max(), np.abs(np.where(odd, 0, b)).max()
    return float(off / peak) if peak else float(off)


def _within(got: Any, expected: Any, *moved: np.ndarray) -> bool:
    """Whether two results differ by no more than either moves: what rounding leaves where all else cancels."""
    with np.errstate(all="ignore"):
        far = np.abs(np.asarray(got) - np.asarray(expected))
        return bool(np.all(far <= FAR * max(off.max(initial=0) for off in moved)))
