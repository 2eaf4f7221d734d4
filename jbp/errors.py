"""Errors that say who, what was expected, what arrived, and a remedy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp


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


def described(x: Any) -> str:
    """Shapes and dtypes for an error message: `float32[32, 10]`, leaf by leaf for a pytree."""
    leaves = [
        f"{jnp.result_type(a)}{list(jnp.shape(a))}" if hasattr(a, "dtype") else repr(a) for a in jax.tree.leaves(x)
    ]
    if len(leaves) > 8:
        leaves = [*leaves[:3], f"… {len(leaves)} leaves"]
    return leaves[0] if len(leaves) == 1 else f"({', '.join(leaves)})" if leaves else "nothing"


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
