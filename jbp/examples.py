"""What single examples say, in one line of anybody's training loop: no `Cost`, no `Network`, a loss as JAX users write.

    per_example_norms(loss_fn, params, batch)       ‖g_n‖ `[N]`
    clipped_grad(loss_fn, params, batch, max_norm)  Σ_n min(1, max_norm / ‖g_n‖) g_n

g_n = ∇loss_fn(params, example n). No g_n is formed where a leaf's pair has a shorter way; see `found`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .clipping import clip_factors
from .found import back, forward
from .layer import InputError, described, spec_of, wide, wide_dtype
from .meshes import as_leaves, on_any_mesh
from .model import check_params
from .outside import check_arrays
from .pair import Pair

LossOfOne = Callable[[Any, Any], Any]  # (params, example) -> a float


def per_example_norms(loss_fn: LossOfOne, params: Any, batch: Any) -> Float[Array, "N"]:
    """‖g_n‖ of each example, over all leaves of params; about the time of one gradient where no g_n is formed.

    `loss_fn(params, example)` is a float; `batch` a pytree whose leaves have a first axis N; params a pytree of float
    arrays. Raises `InputError` where one of them is not.
    """
    return _compiled(_norms, loss_fn, params, batch)


def clipped_grad(loss_fn: LossOfOne, params: Any, batch: Any, max_norm: Any) -> Any:
    """Σ_n min(1, max_norm / ‖g_n‖) g_n, in the structure and dtypes of params: one forward, one reverse pass.

    With noise of standard deviation σ·max_norm added, divided by N, it is the gradient of DP-SGD (Abadi et al. 2016,
    arXiv:1607.00133). Where ‖g_n‖ is 0 the factor is 1. As `per_example_norms` otherwise; besides, `InputError` where
    max_norm is no positive number; under jit, where values can't raise, the result is NaN then.
    """
    _check_max_norm(max_norm)
    return _compiled(_clipped, loss_fn, params, batch, max_norm)


@on_any_mesh
def _norms(loss_fn: LossOfOne, params: Any, batch: Any) -> Array:
    return jnp.sqrt(_squared_norms(_pairs(loss_fn, params, batch)))


@partial(on_any_mesh, cuts=as_leaves(1))
def _clipped(loss_fn: LossOfOne, params: Any, batch: Any, max_norm: Any) -> Any:
    pairs = _pairs(loss_fn, params, batch)
    factors = clip_factors(_squared_norms(pairs), max_norm)
    treedef: Any
    leaves, treedef = jax.tree.flatten(params)
    clipped = [pair.weighted_gradient(factors).astype(leaf.dtype) for pair, leaf in zip(pairs, leaves, strict=True)]
    return treedef.unflatten(clipped)


def _pairs(loss_fn: LossOfOne, params: Any, batch: Any) -> list[Pair]:
    """The pair of each leaf, in its form."""
    values, kept = forward(loss_fn, params, batch)
    _, pairs = back(loss_fn, params, kept, jnp.ones_like(values))
    return [pair.of(leaf.shape) for pair, leaf in zip(pairs, jax.tree.leaves(params), strict=True)]


def _squared_norms(pairs: list[Pair]) -> Array:
    squares = [wide(pair.squared_norms()) for pair in pairs]
    dtype = wide_dtype(jnp.result_type(*squares))
    return sum((square.astype(dtype) for square in squares[1:]), squares[0].astype(dtype))


class _ByIdentity:
    """A function that can't be hashed, perhaps, as a static argument."""

    def __init__(self, function: LossOfOne):
        self.function = function

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self.function is other.function

    def __hash__(self) -> int:
        return id(self.function)


@partial(jax.jit, static_argnums=(0, 1))
def _run(what: Callable, loss_fn: _ByIdentity, *args: Any) -> Any:
    return what(loss_fn.function, *args)


def _compiled(what: Callable, loss_fn: LossOfOne, params: Any, batch: Any, *more: Any) -> Any:
    """What is asked, checked, in a program of its own unless it is part of one."""
    who = {_norms: "per_example_norms", _clipped: "clipped_grad"}[what]
    if not callable(loss_fn):
        raise InputError(f"{who}: loss_fn must be a function of (params, example), got {loss_fn!r}.")
    check_params(who, params)
    check_arrays(batch=batch)
    params = jax.tree.map(jnp.asarray, params)
    batch = jax.tree.map(jnp.asarray, batch)
    sizes = {a.shape[:1] for a in jax.tree.leaves(batch)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise InputError(
            f"{who}: batch needs the same number N of examples, at least 1, along the first axis of every leaf, got "
            f"{described(batch)}. What is the same for all examples belongs into loss_fn."
        )
    value = jax.eval_shape(loss_fn, params, spec_of(batch))
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise InputError(
            f"{who}: loss_fn(params, example) must be one float, got {described(value)} for one example "
            f"{described(spec_of(batch))}. Sum over positions and classes, and return nothing besides."
        )
    args = (params, batch, *more)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args)):
        return what(loss_fn, *args)
    return _run(what, _ByIdentity(loss_fn), *args)


def _check_max_norm(max_norm: Any) -> None:
    if isinstance(max_norm, jax.core.Tracer):
        return
    is_number = isinstance(max_norm, (int, float, np.generic, np.ndarray, jax.Array)) and jnp.shape(max_norm) == ()
    if not is_number or not (number := float(max_norm)) > 0 or math.isinf(number):
        raise InputError(
            f"clipped_grad: max_norm must be a positive number, got {max_norm!r}. "
            "To clip nothing, take the gradient itself: jax.grad."
        )
