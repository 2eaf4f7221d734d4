"""What a rule keeps from its forward for its backward: how much, what it does not use, what it keeps twice."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal

from ..errors import said
from ..programs.replay import aval_of
from .report import Check


def saved(ruled: Callable, bare: Callable, moving: Sequence[Any]) -> Check:
    """What forward keeps for backward besides its arguments, and what of it backward does not use.

    `ruled`, `bare`: a function of its float arguments with its rule, and without.
    """
    try:
        rule, oracle = _residuals(ruled, moving), _residuals(bare, moving)
    except Exception as error:  # whatever a stranger's rule raises is the answer
        return Check("saved", None, f"can't be tried: {said(error)}")
    text = f"{rule[0]:,} bytes besides the arguments, autodiff {oracle[0]:,}"
    if rule[1]:
        text += f"; not used by backward: {', '.join(rule[1][:4])}"
    if rule[2]:
        text += f"; kept twice: {', '.join(rule[2][:4])}"
    return Check("saved", None if rule[1] or rule[2] else True, text)


def _residuals(function: Callable, moving: Sequence[Any]) -> tuple[int, list[str], list[str]]:
    """(bytes kept besides the arguments, what backward does not use of it, what is kept twice)."""
    shapes: list[Any] = []

    def forward(*moving: Any) -> list[Any]:
        outs, pull = jax.vjp(function, *moving)
        leaves, treedef = jax.tree.flatten(pull)
        shapes.append((list(map(jax.typeof, outs)), treedef))
        return leaves

    jaxpr = jax.make_jaxpr(forward)(*moving)
    outs, treedef = shapes[0]
    kept = list(map(aval_of, jaxpr.jaxpr.outvars))
    backward = jax.make_jaxpr(lambda leaves, c: treedef.unflatten(leaves)(c))(kept, outs)
    used = _used(backward)
    given = set(jaxpr.jaxpr.invars)
    seen: set[Any] = set()
    size, idle, twice = 0, [], []
    for i, v in enumerate(jaxpr.jaxpr.outvars):
        if isinstance(v, Literal) or v in given or jnp.issubdtype(aval_of(v).dtype, jax.dtypes.float0):
            continue
        if v in seen:
            twice.append(aval_of(v).str_short())
            continue
        seen.add(v)
        size += aval_of(v).size * aval_of(v).dtype.itemsize
        if i not in used:
            idle.append(aval_of(v).str_short())
    return size, idle, twice


def _used(jaxpr: ClosedJaxpr) -> set[int]:
    """Which arguments the outputs depend on."""
    needed = {v for v in jaxpr.jaxpr.outvars if not isinstance(v, Literal)}
    for eqn in reversed(jaxpr.eqns):
        if needed & set(eqn.outvars) or eqn.effects:
            needed |= {v for v in eqn.invars if not isinstance(v, Literal)}
    return {i for i, v in enumerate(jaxpr.jaxpr.invars) if v in needed}
