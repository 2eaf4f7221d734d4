"""Leaf by leaf: the parts of a result, their names, and whether two results have the same."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError

VALUE = "value"  # the name of the cost's value in a result (value, gradients)


class Part(NamedTuple):
    """One leaf of a result: its name, its array, and the symbol of an element's index."""

    name: str
    array: Any
    symbol: Callable[[tuple[int, ...]], str]


def named_parts(result: Any) -> list[Part]:
    """The parts of any pytree, by path and index. A pair whose first member is a scalar is (value, gradients)."""
    if has_value(result):
        value, gradients = result
        return [Part(VALUE, value, lambda at: VALUE), *_by_path(gradients)]
    return _by_path(result)


def _by_path(result: Any) -> list[Part]:
    paths, _ = jax.tree_util.tree_flatten_with_path(result)
    names = [(jax.tree_util.keystr(path, simple=True, separator=".") or "gradient", leaf) for path, leaf in paths]
    return [Part(name, leaf, partial(place, name)) for name, leaf in names]


def has_value(result: Any) -> bool:
    """Whether a result is (value, gradients)."""
    return isinstance(result, tuple) and len(result) == 2 and hasattr(result[0], "dtype") and jnp.ndim(result[0]) == 0


def count_of_values(parts: Sequence[Any]) -> int:
    """How many of the parts, or of their errors, are no gradients; they stand first."""
    return sum(part.name == VALUE for part in parts)


def place(name: str, at: Sequence[int]) -> str:
    """An element's name where nothing better is known: `w[3,7]`."""
    return f"{name}[{','.join(map(str, at))}]" if len(at) else name


def check_same(who: str, got: list[Part], plain: list[Part]) -> None:
    """Raise `InputError` unless rule and oracle return the same leaves, all of them floats."""
    names, expected = [p.name for p in got], [p.name for p in plain]
    if names != expected:
        missing, extra = [n for n in expected if n not in names], [n for n in names if n not in expected]
        where = f"missing from the rule: {', '.join(missing) or 'none'}; only in the rule: {', '.join(extra) or 'none'}"
        if not missing and not extra:
            where = f"the rule has them as {', '.join(names)}"
        raise InputError(
            f"{who}: rule and oracle return different structures: the oracle has leaves "
            f"{', '.join(expected) or 'none'}; {where}. Return gradients in one structure."
        )
    if not got:
        raise InputError(f"{who}: the functions return nothing to compare. Return arrays.")
    for a, b in zip(got, plain, strict=True):
        if not jnp.issubdtype(a.array.dtype, jnp.inexact):
            raise InputError(f"{who}: {a.name} is {a.array.dtype}; a gradient has a float dtype. Return floats.")
        if jnp.shape(a.array) != jnp.shape(b.array) or a.array.dtype != b.array.dtype:
            raise InputError(
                f"{who}: leaf {a.name} is {b.array.dtype}{list(b.array.shape)} by the oracle, "
                f"{a.array.dtype}{list(a.array.shape)} by the rule. A gradient has its argument's shape and dtype."
                f"{_unsummed(a.array, b.array)}"
            )


def _unsummed(got: Any, expected: Any) -> str:
    """What is known of a shape that does not fit."""
    extra = got.ndim - expected.ndim
    if extra > 0 and got.shape[extra:] == expected.shape:
        total, right = np.asarray(got, np.float64).sum(tuple(range(extra))), np.asarray(expected, np.float64)
        if np.allclose(total, right, rtol=1e-2, atol=1e-2 * float(np.abs(right).max(initial=0))):
            return " It is not summed over the batch: summed over its first axis it is the oracle's."
        return " It has an axis too many."
    return " It is transposed." if got.shape != expected.shape == got.shape[::-1] else ""
