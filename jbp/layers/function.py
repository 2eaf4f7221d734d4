"""Any JAX function as a layer.

    forward    y = apply(θ, x)
    backward   δx, ∂C/∂θ = jax.vjp(apply, θ, x)(δ), with the pairs that the function's trace shows, see `found`

Saved: x; the function runs again in reverse, which XLA merges with the first run outside of loops. The other way, a
layer as a JAX function, is `jbp.as_function`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from jaxtyping import PRNGKeyArray

from ..found import alone, back, forms, forward, has_delta, on_a_batch, over_examples, plan_of
from ..layer import Context, InputError, spec_of
from ..layout import Layout
from ..pair import Whole


@dataclass(frozen=True)
class Function:
    """`apply(params, x) -> y` as a layer; `init(key, x_spec) -> params`. Saved: x.

    `apply` treats the examples of a batch independently, unless `mixes_examples` says otherwise: with parameters it
    sees batches of one, mapped over the batch by `jax.vmap`. Where a parameter meets the data in a product, a lookup or
    a convolution stands that pair; `forms` tells which. Its backward is `jax.vjp` at its own params, so another vector
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

    def _one(self, params: Any, x: Any) -> Any:
        """The output of one example."""
        return alone(self.apply, params, x)

    def _found(self, params: Any, x: Any) -> bool:
        """Whether there are pairs to be found: of a function with params whose trace on x does not mix the examples."""
        return bool(jax.tree.leaves(params)) and not self.mixes_examples and self._meets(params, spec_of(x)) is None

    def _meets(self, params: Any, spec: Any) -> str | None:
        return on_a_batch(self.apply, params, spec)[1]

    def forms(self, params: Any, x: Any) -> dict[str, str]:
        """{leaf name: the form of its pair} of params or their specs and the spec x of one example, as in `from_model`:
        "Outer", "Sum", …, or "Whole: why not"."""
        names = Layout.of(params).names
        if (where := self._meets(params, x)) is not None:
            return dict.fromkeys(names, f"Whole: examples mix in {where}")
        return forms(plan_of(self._one, params, x), names)

    def forward(self, params: Any, x: Any, context: Context) -> tuple[Any, Any]:
        return (over_examples(self._one, params, x) if self._found(params, x) else self.apply(params, x)), x

    def backward(self, params: Any, feedback: Any, saved: Any, delta: Any, read: Any) -> tuple[Any, Any]:
        if self._found(params, saved):
            treedef: Any = jax.tree.structure(params)
            delta_x, pairs = back(self._one, params, forward(self._one, params, saved)[1], delta)
            readers = treedef.flatten_up_to(read)
            return delta_x, treedef.unflatten([reader(pair) for reader, pair in zip(readers, pairs, strict=True)])

        def pull(x: Any, delta: Any) -> tuple[Any, Any]:
            return jax.vjp(self.apply, params, x)[1](delta)

        def pull_one(x: Any, delta: Any) -> Any:
            return pull(*jax.tree.map(lambda a: a[None], (x, delta)))[0]

        total, delta_x = pull(saved, delta)
        delta_x = jax.tree.map(lambda x, d: d if has_delta(x) else None, saved, delta_x)
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
