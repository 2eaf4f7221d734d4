"""A program that is run once, or a few times: in the time that compiling takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from .program import quick


def evaluated(program: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """The outputs of a program that runs once: whichever compiles less, the whole of it or each kind of operation.

    A value that is several of the outputs is handed out once.
    """
    several = program.jaxpr.outvars
    once = list(dict.fromkeys(v for v in several if not isinstance(v, Literal)))
    info = program.jaxpr.debug_info._replace(result_paths=None)
    found = dict(
        zip(once, _evaluated(program.jaxpr.replace(outvars=once, debug_info=info), program.consts, args), strict=True)
    )
    return [v.val if isinstance(v, Literal) else found[v] for v in several]


def _evaluated(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    kinds = {(str(eqn.primitive), str(eqn.params), *(str(v.aval) for v in eqn.invars)) for eqn in jaxpr.eqns}
    if len(kinds) * 10 < len(jaxpr.eqns):  # equal layers have few between them
        return jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))(*args)
    return _at_once(jax.default_backend())(_Text(jaxpr, str(jaxpr)), consts, args)


@dataclass(frozen=True)
class _Text:
    """A program that equals another of the same text: a network that is recorded again is not compiled again."""

    jaxpr: Jaxpr = field(compare=False)  # it keeps alive what the text names by its address
    text: str


@cache
def _at_once(backend: str) -> Callable[..., list[Any]]:
    """A program that runs once, so compiled fast."""

    def run(program: _Text, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        return jaxpr_as_fun(ClosedJaxpr(program.jaxpr, consts))(*args)

    return jax.jit(run, static_argnums=0, compiler_options=quick(backend))
