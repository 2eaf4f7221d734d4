"""Errors that say who, what was expected, what arrived, and a remedy."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class InputError(ValueError):
    """Something from outside does not fit: who, what was expected, what arrived, and one remedy.

    A container that passes the error on puts the child's place in front, so the message begins with the layer's path.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message
        self.path: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (f"layer {'.'.join(self.path)}: " if self.path else "") + self.message


def is_number(given: Any) -> bool:
    """Whether this is a real number, whole or not, and no bool."""
    return isinstance(given, (int, float, np.integer, np.floating)) and not isinstance(given, bool)


def is_whole(given: Any) -> bool:
    """Whether this is a whole number, and no bool."""
    return is_number(given) and isinstance(given, (int, np.integer))


def check_whole(who: str, *, least: int = 1, remedy: str = "", **settings: Any) -> None:
    """Raise `InputError` unless each setting is a whole number of at least `least`."""
    for name, given in settings.items():
        if not is_whole(given) or given < least:
            raise InputError(
                f"{who}: {name} must be a whole number of at least {least}, got {given!r}. {remedy}".strip()
            )


def described(x: Any) -> str:
    """Shapes and dtypes for an error message: `float32[32, 10]`, leaf by leaf for a pytree."""
    leaves = [
        f"{jnp.result_type(a)}{list(jnp.shape(a))}" if hasattr(a, "dtype") else repr(a) for a in jax.tree.leaves(x)
    ]
    if len(leaves) > 8:
        leaves = [*leaves[:3], f"… {len(leaves)} leaves"]
    return leaves[0] if len(leaves) == 1 else f"({', '.join(leaves)})" if leaves else "nothing"


def is_listed(x: Any) -> bool:
    """Whether x is a list, or a tuple, in which numbers stand by themselves."""
    return isinstance(x, (list, tuple)) and bool(jax.tree.leaves(x)) and not any(map(np.ndim, jax.tree.leaves(x)))


def arrived(x: Any) -> str:
    """What arrived in the place of an array: `a list` where numbers stand by themselves in it, else its parts."""
    if is_listed(x):
        return f"a {type(x).__name__}"
    if isinstance(x, (list, tuple, dict)):
        return f"{type(x).__name__} of {described(x)}" if jax.tree.leaves(x) else f"an empty {type(x).__name__}"
    return type(x).__name__ if x is None else described(x)


def check_settings(who: str, of: Callable[..., Any], given: Mapping[str, Any], known: tuple[str, ...] = ()) -> None:
    """Raise `InputError` for a keyword that is none of those `known`, all that the function `of` has unless given."""
    parameters = inspect.signature(of).parameters.values()
    known = known or tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    if unknown := [name for name in given if name not in known]:
        raise InputError(f"{who}: there is no keyword {unknown[0]}. It takes {', '.join(known)}.")


def said(error: BaseException) -> str:
    """What an exception says, in one line, with its type, and what to do about values that are not known yet."""
    line, remedy = f"{type(error).__name__}: {first_line(error)}", ""
    if isinstance(error, jax.errors.TracerArrayConversionError):
        remedy = "Write it with jax.numpy, or as jax.pure_callback(f, x, x): f in NumPy, its result like x."
    elif isinstance(error, jax.errors.TracerBoolConversionError):
        remedy = "Write jnp.where or jax.lax.cond in place of if."
    elif isinstance(error, (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError)):
        remedy = "Keep to jax.numpy, without float(), int(), .item() or math of an argument."
    elif isinstance(error, AssertionError) and "non-canonical" in str(error):
        remedy = "Make NumPy constants that the function closes over arrays of JAX, as in jnp.asarray(constant)."
    return f"{line.removesuffix('.')}. {remedy}" if remedy else line


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "Traceback" in lines[0]:  # of a callback: what it raised stands below
        lines = [line for line in lines if re.match(r"\w+(Error|Exception)\b", line)] or lines
    if lines and lines[0].endswith(":"):
        lines[:2] = [" ".join(lines[:2])]
    return re.sub(r"function <lambda> at \S*program\.py:\d+ traced for jit", "it", lines[0]) if lines else "no message"


@contextmanager
def extra(who: str = "") -> Iterator[None]:
    """Around imports of packages that only come with `jbp[cli]`: says how to install one that is not there."""
    try:
        yield
    except ModuleNotFoundError as missing:
        name = (missing.name or "").partition(".")[0]
        raise InputError(
            f"{who and f'{who}: '}{name} is not installed, and this needs it. Write: pip install 'jbp[cli]'"
        ) from None
