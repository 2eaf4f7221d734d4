"""Any JAX function as a layer.

    forward    y = apply(θ, x)
    backward   δx, ∂C/∂θ = jax.vjp(apply, θ, x)(δ)

Saved: x; the function runs again in reverse. The other way, a layer as a JAX function, is `jbp.as_function`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..layer import Context, InputError
from ..pair import Whole


@dataclass(frozen=True)
class Function:
    """`apply(params, x) -> y` as a layer; `init(key, x_spec) -> params`. Saved: x.

    `apply` sees the whole batch and treats its examples independently, unless `mixes_examples` says otherwise: a
    readout of single examples runs it on batches of one. Its backward is `jax.vjp` at its own params, so another vector
    cannot carry δ through it: `feedback=` is refused for a network that holds a Function with parameters.
    """

    init_params: Callable[[Any, Any], Any] | None
    apply: Callable[[Any, Any], Any]
    mixes_examples: bool = False
    name: str | None = None
    elementwise: ClassVar[bool] = False

    def __post_init__(self):
        for name, given in (("init", self.init_params), ("apply", self.apply)):
            if not callable(given) and not (name == "init" and given is None):
                raise InputError(
                    f"from_function: {name} must be a function, got {given!r}. As in "
                    "from_function(None, lambda params, x: jnp.sin(x)), None for no parameters."
                )

    @property
    def own_feedback_only(self) -> bool:
        return self.init_params is not None

    def init(self, key: PRNGKeyArray, x: Any) -> Any:
        return () if self.init_params is None else self.init_params(key, x)

    def forward(self, params: Any, x: Any, context: Context) -> tuple[Any, Any]:
        return self.apply(params, x), x

    def backward(self, params: Any, feedback: Any, saved: Any, delta: Any, read: Any) -> tuple[Any, Any]:
        def pull(x, delta):
            _, vjp = jax.vjp(self.apply, params, x)
            return vjp(delta)

        def pull_one(x, delta):
            return pull(*jax.tree.map(lambda a: a[None], (x, delta)))[0]

        total, delta_x = pull(saved, delta)
        delta_x = jax.tree.map(lambda x, d: d if jnp.issubdtype(x.dtype, jnp.inexact) else None, saved, delta_x)
        if self.mixes_examples:
            return delta_x, jax.tree.map(lambda t, r: r(Whole(t, None)), total, read)
        each = jax.vmap(pull_one)(saved, delta)
        return delta_x, jax.tree.map(lambda t, e, r: r(Whole(t, e)), total, each, read)


def from_function(
    init: Callable[[Any, Any], Any] | None,
    apply: Callable[[Any, Any], Any],
    *,
    mixes_examples: bool = False,
    name: str | None = None,
) -> Function:
    """Any JAX function as a layer whose backward is `jax.vjp`, so that a network can mix both. See `Function`.

    `init(key, x_spec) -> params` (None for no parameters), `apply(params, x) -> y` with the batch axis first.
    `mixes_examples`: whether an example's output depends on others, as in a BatchNorm in training.
    `name`: what reports, tables and drawings call it.
    """
    return Function(init, apply, mixes_examples, name)
