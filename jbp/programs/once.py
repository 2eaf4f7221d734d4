"""A program that is run once, or a few times: in the time that compiling takes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from .program import quick


def evaluated(program: ClosedJaxpr, args: list[Any]) -> list[Any]:
    """The outputs of a program that runs once: whichever compiles less, the whole of it or each kind of operation.

    Equal layers have few kinds between them.
    """
    kinds = {(str(eqn.primitive), str(eqn.params), *(str(v.aval) for v in eqn.invars)) for eqn in program.eqns}
    if len(kinds) * 10 < len(program.eqns):
        return jaxpr_as_fun(program)(*args)
    return _at_once(jax.default_backend())(_Text(program.jaxpr, str(program.jaxpr)), program.consts, args)


@dataclass(frozen=True)
class _Text:
    """A program that equals another of the same text: a network that is recorded again is not compiled again."""

    jaxpr: Jaxpr = field(compare=False)  # it keeps alive what the text names by its address
    text: str


@cache
def _at_once(backend: str) -> Callable[..., list[Any]]:
    """A program that runs once, so compiled fast."""

    def run(program: _Text, consts: list[Any], args: list[Any]) -> list[Any]:
        return jaxpr_as_fun(ClosedJaxpr(program.jaxpr, consts))(*args)

    return jax.jit(run, static_argnums=0, compiler_options=quick(backend))
