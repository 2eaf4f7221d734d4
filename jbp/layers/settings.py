"""What layers check of their settings and of the x that arrives: one text for each mistake, whichever layer it is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import is_number
from ..layer import InputError
from .dense import of_batch


def check_flags(who: str, **settings: Any) -> None:
    """Raise `InputError` unless each setting is True or False."""
    for name, given in settings.items():
        if not isinstance(given, (bool, np.bool_)):
            raise InputError(f"{who}: {name} must be True or False, got {given!r}.")


def check_above_zero(who: str, **settings: Any) -> None:
    """Raise `InputError` unless each setting is a finite number above 0."""
    for name, given in settings.items():
        if not is_number(given) or not 0 < given < float("inf"):
            raise InputError(f"{who}: {name} must be a number above 0, got {given!r}.")


def check_float_input(who: str, x: Any, form: str, axes: int, remedy: str) -> None:
    """Raise `InputError` unless the spec x is one float array of at least `axes` axes; `form` is its shape in words."""
    fits = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) and len(x.shape) >= axes
    if not fits:
        got = ", ".join(of_batch(leaf) for leaf in jax.tree.leaves(x)) or "nothing"
        raise InputError(f"{who}: expected one float input x {form}, got {got}. {remedy}")
