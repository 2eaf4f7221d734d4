"""Every call of a custom rule inside a function: where it is, what really reaches it, and the function without them.

A traced function is walked, into jitted functions, loops and branches. `Tapped` runs it once more with two additions at
each call: its inputs are handed out, and a zero is added to its output, whose gradient is the cotangent that reaches
the call in the reverse pass. In a loop (`lax.scan`) both are stacked turn by turn; a branch not taken gives no turn.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_changes
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from .calls import INLINE, OURS, SHARDED, argument_names, has_rule, inner_jaxprs, name_of, primal_of, source_of
from .replay import bind, equations
from .taps import Path, handed_out

PASSED = ("cond", "scan")
LIBRARIES = (
    "/jax/_src/",
    *(f"-packages/{name}/" for name in ("jax", "equinox", "flax")),
    *OURS,
    "<string>",
)


@dataclass(frozen=True)
class Site:
    """A call of a custom rule. `loops`: the lengths of the loops around it, from the outermost in."""

    name: str
    path: Path
    eqn: JaxprEqn
    loops: tuple[int, ...]
    where: str

    @property
    def primal(self) -> ClosedJaxpr:
        """The function without its rule."""
        return primal_of(self.eqn)

    @property
    def arguments(self) -> list[str]:
        """The names of the flat arguments, where the rule's own parameters tell them."""
        return argument_names(self.eqn)

    def call(self, *values: Any) -> Sequence[Any]:
        """The function with its rule, on flat arguments."""
        return bind(self.eqn, values)


def rule_name(eqn: JaxprEqn) -> str:
    """The name of the function that carries a rule; of the user's, where that is a library's wrapper around it."""
    wrapped = _wrapped(eqn)
    return _last(wrapped) if wrapped else name_of(eqn)


def _wrapped(eqn: JaxprEqn) -> Any:
    """The frame of the user's function in a library's, as a call of a rule; None if there is none."""
    for inner in equations(primal_of(eqn)) if _foreign(source_of(eqn)) else ():
        frames = _frames(inner)
        wrapper = next((i for i, frame in enumerate(frames) if _last(frame) == name_of(eqn)), 0)
        if own := [frame for frame in frames[:wrapper] if not _foreign(frame.file_name)]:
            return own[-1]
    return None


def _frames(eqn: JaxprEqn) -> Sequence[Any]:
    """The call stack in which an equation was traced, from the innermost out."""
    return getattr(eqn.source_info.traceback, "frames", None) or ()


def _foreign(place: str) -> bool:
    return any(part in place for part in LIBRARIES)


def _last(frame: Any) -> str:
    return frame.function_name.rpartition(".")[2]


def sites_of(jaxpr: ClosedJaxpr, kind: str) -> list[Site]:
    """All calls that a derivative passes through, in the order in which the reverse pass meets them.

    Calls of one name are numbered in the order of the forward pass.
    """
    found = list(_sites(jaxpr, kind, (), ()))
    total = Counter(site.name for site in found)
    count = {name: itertools.count(1) for name in total}
    numbered = [with_changes(s, name=f"{s.name}#{next(count[s.name])}") if total[s.name] > 1 else s for s in found]
    return numbered[::-1]


def _sites(jaxpr: ClosedJaxpr | Jaxpr, kind: str, path: Path, loops: tuple[int, ...]) -> Iterator[Site]:
    for i, eqn in enumerate(jaxpr.eqns):
        name, ruled = eqn.primitive.name, has_rule(eqn, kind)
        if ruled and not (eqn.invars and eqn.outvars):
            continue  # what Flax's nn.scan leaves behind: a call of nothing
        if ruled:
            yield Site(rule_name(eqn), (*path, i), eqn, loops, _where(eqn))
        elif name in (*INLINE, *PASSED):
            more = (eqn.params["length"],) if name == "scan" else ()
            for k, inner in enumerate(inner_jaxprs(eqn)):
                yield from _sites(inner, kind, (*path, i, k), (*loops, *more))


def _where(eqn: JaxprEqn) -> str:
    """The line of a call in the user's code; if nothing but libraries stand around it, that of the function."""
    frame = next((frame for frame in _frames(eqn) if not _foreign(frame.file_name)), _wrapped(eqn))
    if frame is None:
        return source_of(eqn).rpartition("/")[2]
    return f"{frame.file_name.rpartition('/')[2]}:{frame.line_num}, {_last(frame)}"


def unseen(jaxpr: ClosedJaxpr, kind: str) -> list[str]:
    """Names of calls that are not looked into: under a while loop, or in another rule's primal."""
    seen = {id(site.eqn) for site in _sites(jaxpr, kind, (), ())} | {id(e) for e in _on_meshes(jaxpr, kind)}
    return sorted({rule_name(e) for e in equations(jaxpr) if has_rule(e, kind) and id(e) not in seen})


def on_meshes(jaxpr: ClosedJaxpr, kind: str) -> list[str]:
    """Names of calls inside a `shard_map`: they are compared as part of the whole."""
    return sorted({rule_name(e) for e in _on_meshes(jaxpr, kind)})


def _on_meshes(jaxpr: ClosedJaxpr | Jaxpr, kind: str) -> Iterator[JaxprEqn]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == SHARDED:
            yield from (e for inner in inner_jaxprs(eqn) for e in equations(inner) if has_rule(e, kind))
        elif eqn.primitive.name in (*INLINE, *PASSED):
            yield from (e for inner in inner_jaxprs(eqn) for e in _on_meshes(inner, kind))


class Tapped:
    """A traced function with its calls tapped: `(outputs, inputs of each call, whether it was reached)`.

    `probes`, a list of outputs' zeros for each site, are added to the outputs of the calls.
    """

    def __init__(self, jaxpr: ClosedJaxpr, sites: Sequence[Site]):
        self.jaxpr, self.sites = jaxpr, list(sites)

    def probes(self) -> list[list[Any]]:
        """Zeros for the float outputs of each call, None for others."""
        return [[_zeros(site.loops, v.aval) for v in site.eqn.outvars] for site in self.sites]

    def __call__(self, args: Sequence[Any], probes: Sequence[Sequence[Any]]) -> tuple[list[Any], list[Any], list[Any]]:
        def at(eqn: JaxprEqn, values: list[Any], zeros: Sequence[Any]) -> tuple[Sequence[Any], Any]:
            outs = [out if z is None else out + z for out, z in zip(bind(eqn, values), zeros, strict=True)]
            return outs, (list(values), jnp.asarray(True))

        chosen = {site.path: given for site, given in zip(self.sites, probes, strict=True)}
        outs, taps = handed_out(self.jaxpr, args, chosen, at)
        return outs, [taps[site.path][0] for site in self.sites], [taps[site.path][1] for site in self.sites]


def _zeros(loops: tuple[int, ...], aval: Any) -> Any:
    if not jnp.issubdtype(aval.dtype, jnp.inexact):
        return None
    return jnp.zeros((*loops, *aval.shape), aval.dtype)
