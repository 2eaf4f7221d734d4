"""Whether a traced function mixes the examples of its batch, read off the shapes of its trace.

The batch that is traced has a number of examples that is no other axis's, so that each value that depends on the data
shows its examples' axis by its size. Where that axis is summed, sorted, shifted or met with itself, examples mix.
"""

import math
from collections.abc import Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from .calls import inner_jaxprs, is_call, primal_of, scan_inputs
from .replay import aval_of

_ALONG = {  # what moves numbers along one axis, and the parameter that says which
    "cumsum": "axis", "cumprod": "axis", "cummax": "axis", "cummin": "axis", "cumlogsumexp": "axis",
    "sort": "dimension", "concatenate": "dimension", "rev": "dimensions",
}  # fmt: skip


def mixing(jaxpr: ClosedJaxpr | Jaxpr, n: int, depends: Sequence[bool]) -> str | None:
    """The name of the first equation in which examples meet, of those that an output needs; None if there is none.

    `n`: the number of examples in the trace. `depends`: for each input whether it is data.
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    data = {v for v, its in zip(inner.invars, depends, strict=True) if its}
    for eqn in _needed(inner):
        if not any(v in data for v in eqn.invars if not isinstance(v, Literal)):
            continue
        data |= set(eqn.outvars)
        if (found := _meets(eqn, n, data)) is not None:
            return found
    return None


def _needed(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """The equations that an output needs, in their order."""
    needed, found = {v for v in jaxpr.outvars if not isinstance(v, Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if any(v in needed for v in eqn.outvars):
            needed |= {v for v in eqn.invars if not isinstance(v, Literal)}
            found.append(eqn)
    return found[::-1]


def _carried(body: Jaxpr, depends: Sequence[bool], first: int, count: int) -> list[bool]:
    """For each input of a loop's body whether it is data, in any turn; carried: those from first on, count of them."""
    own = [*depends]
    while True:
        data = {v for v, its in zip(body.invars, own, strict=True) if its}
        for eqn in body.eqns:
            if any(v in data for v in eqn.invars if not isinstance(v, Literal)):
                data |= set(eqn.outvars)
        after = [not isinstance(v, Literal) and v in data for v in body.outvars[:count]]
        now = [*own[:first], *(a or b for a, b in zip(own[first:], after, strict=False)), *own[first + count :]]
        if now == own:
            return own
        own = now


def _axes(v: Any, n: int) -> list[int]:
    """The axes that hold examples: of n, or of n times something."""
    return [i for i, size in enumerate(getattr(aval_of(v), "shape", ())) if size and size % n == 0]


def _meets(eqn: JaxprEqn, n: int, data: set[Any]) -> str | None:
    name, p = eqn.primitive.name, eqn.params
    depends = [not isinstance(v, Literal) and v in data for v in eqn.invars]
    if name == "scan":
        first, count = scan_inputs(eqn)
        if p["length"] % n == 0 and any(depends[first + count :]):  # over the examples, one after another
            return "scan" if count and any(v in data for v in eqn.invars[first:]) else None
        own = _carried(p["jaxpr"].jaxpr, depends, first, count)
        return mixing(p["jaxpr"], n, own)
    if name == "while":
        a, b = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        own = _carried(p["body_jaxpr"].jaxpr, depends[a:], b - a, len(depends) - b)
        return mixing(p["cond_jaxpr"], n, [*depends[:a], *own[b - a :]]) or mixing(p["body_jaxpr"], n, own)
    for part in [primal_of(eqn)] if is_call(eqn) else inner_jaxprs(eqn):
        invars = (part.jaxpr if isinstance(part, ClosedJaxpr) else part).invars
        own = depends[len(depends) - len(invars) :] if len(invars) <= len(depends) else [True] * len(invars)
        if (found := mixing(part, n, own)) is not None:
            return found
    if any(math.prod(aval_of(v).shape) and len(_axes(v, n)) != 1 for v in eqn.outvars):
        return name
    for v, its in zip(eqn.invars, depends, strict=True):
        axes = _axes(v, n) if its else []
        if not axes:
            continue
        along = p.get(_ALONG.get(name, ""), ())
        if axes[0] in (along if isinstance(along, (tuple, list)) else (along,)):
            return name
        if name == "gather" and v is eqn.invars[0] and axes[0] in p["dimension_numbers"].start_index_map:
            return name
        if name == "conv_general_dilated" and v is eqn.invars[0] and axes[0] != p["dimension_numbers"].lhs_spec[0]:
            return name
    return None
