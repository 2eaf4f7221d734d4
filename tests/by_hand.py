"""Rules written by hand for tests: an elementwise function with any slope, compared without timing or checks."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jbp
from jbp import compare_jvp, compare_vjp


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ruled(f: Callable, slope: Callable) -> Callable:
    """f with a gradient written by hand: slope(x) · δ."""
    rule = jax.custom_vjp(f)
    rule.defvjp(lambda x: (f(x), x), lambda x, delta: (slope(x) * delta,))
    return rule


def vjp(f: Callable, *args: Any, **more: Any) -> jbp.Report:
    return compare_vjp(f, *args, **({"timing": False, "checks": False} | more))


def jvp(f: Callable, *args: Any, **more: Any) -> jbp.Report:
    return compare_jvp(f, *args, **({"timing": False, "checks": False} | more))
