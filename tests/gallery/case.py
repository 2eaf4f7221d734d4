"""What a case of the gallery is, and how a wrong rule is made from a right one: by one change.

    RULE = Rule("matmul", primal, forward, backward, args)
    RULE.right("by hand")
    RULE.wrong("w's gradient has the wrong sign", "sign", leaf=1, gradient=jnp.negative)
    RULE.wrong("x of another example", "stale value", saved=lambda s: s._replace(x=jnp.roll(s.x, 1, 0)))

`forward(*args)` gives the output and what it saves; `backward(saved, delta)` a gradient for each argument, as JAX's
`defvjp` has them. delta is the cotangent.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Case:
    """A function with a gradient written by hand, and arguments at which to judge it."""

    name: str  # unique: "softmax cross-entropy: the sum is missing"
    function: str  # "softmax cross-entropy"
    f: Callable  # carries a `jax.custom_vjp`
    args: tuple  # NumPy arrays or pytrees of them
    kind: str | None  # of fault; None for a right rule
    leaf: int | None = None  # the argument whose gradient is wrong, if it is one
    hard: bool = False  # numerically, for a right rule


@dataclass(frozen=True)
class Rule:
    """A function, its gradient by hand, and arguments."""

    function: str
    primal: Callable
    forward: Callable
    backward: Callable
    args: tuple
    hard: bool = False

    def right(self, what: str, **changes: Any) -> Case:
        """This rule, or the same with another forward, backward, or other args."""
        rule = replace(self, **changes)
        return Case(f"{self.function}: {what}", self.function, rule._f(), rule.args, None, hard=rule.hard)

    def wrong(
        self,
        what: str,
        kind: str,
        leaf: int | None = None,
        *,
        gradient: Callable | None = None,
        gradients: Callable | None = None,
        saved: Callable | None = None,
        delta: Callable | None = None,
        **changes: Any,
    ) -> Case:
        """This rule with one change: of the gradient of `leaf`, of all gradients, of what was saved, or of delta."""
        rule = replace(self, **changes)
        if gradient is not None:
            gradients = lambda *g: tuple(gradient(x) if i == leaf else x for i, x in enumerate(g))

        right = rule.backward

        def backward(kept, d):
            found = right(saved(kept) if saved else kept, delta(d) if delta else d)
            return gradients(*found) if gradients else found

        rule = replace(rule, backward=backward)
        return Case(f"{self.function}: {what}", self.function, rule._f(), rule.args, kind, leaf)

    def _f(self) -> Callable:
        f = jax.custom_vjp(self.primal)
        f.defvjp(self.forward, lambda *kept: self.backward(*jax.tree.map(jnp.asarray, kept)))
        return f


# -- numbers ----------------------------------------------------------------------------------------------------------


def numbers(seed: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Normal numbers."""
    return np.random.default_rng([seed, 1]).standard_normal(shape).astype(dtype)


def positive(seed: int, *shape: int) -> np.ndarray:
    """Numbers between 0.5 and 1.5."""
    return np.random.default_rng([seed, 2]).uniform(0.5, 1.5, shape).astype(np.float32)


def integers(seed: int, below: int, *shape: int) -> np.ndarray:
    """Integers from 0 to below - 1."""
    return np.random.default_rng([seed, 3]).integers(0, below, shape).astype(np.int32)


def cast(tree: Any, dtype: Any) -> Any:
    """The tree with its float leaves in another dtype."""
    floating = lambda a: jnp.issubdtype(a.dtype, jnp.floating)
    return jax.tree.map(lambda a: np.asarray(a).astype(dtype) if floating(a) else a, tree)


# -- changes that fit many gradients ----------------------------------------------------------------------------------


def times(factor: float) -> Callable:
    """g, multiplied."""
    return lambda g: g * factor


def through(dtype: Any) -> Callable:
    """g, rounded to a narrower dtype on the way."""
    return lambda g: g.astype(dtype).astype(g.dtype)


def one_wrong(g: jax.Array) -> jax.Array:
    """g with one element, its largest, off by 1 %."""
    return jnp.where(jnp.abs(g) == jnp.abs(g).max(), 1.01 * g, g)


def hide_nan(g: jax.Array) -> jax.Array:
    """g with 0 where it is not a number."""
    return jnp.where(jnp.isnan(g), 0, g)


def clipped(g: jax.Array) -> jax.Array:
    """g, no element beyond 0.3."""
    return jnp.clip(g, -0.3, 0.3)


def ones(delta: jax.Array) -> jax.Array:
    """A cotangent for a loss that is the sum."""
    return jnp.ones_like(delta)


def wide(x: jax.Array) -> jax.Array:
    """x in float32 if it is narrower."""
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def narrow_sum(terms: jax.Array, dtype: Any) -> jax.Array:
    """The sum along the first axis, one term after the other, the running sum kept in a narrow dtype."""

    def step(total, term):
        return total + term.astype(dtype), None

    return jax.lax.scan(step, jnp.zeros(terms.shape[1:], dtype), terms)[0].astype(terms.dtype)
