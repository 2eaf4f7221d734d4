"""Anybody's model as a network: forward is the model's own, δ is carried by autodiff, pairs are found in its trace.

    forward    y = apply(θ, x)
    backward   δx = jax.vjp(apply)(δ), and a pair for each leaf of θ, see `found`

Saved: x, what `jax.vjp` keeps, and what each leaf met: XLA does not merge a second run of every model with the first.
(What `jax.vjp` keeps may be a parameter, which costs nothing where the model is the whole network.) The model runs on
examples one by one, mapped over the batch by `jax.vmap`, so that every pair has an axis of examples; one that mixes
them runs on the batch as a whole, and has a gradient but no pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from .errors import described
from .found import alone, back, forms, forward, has_delta, on_a_batch, plan_of
from .layer import PROBE, Context, InputError, Layer, inferred
from .layout import Layout
from .network import Border, Network
from .outside import check_arrays
from .pair import Whole
from .run import step, step_back


@dataclass(frozen=True, eq=False)
class Given:
    """The params that a model was given with, beside its settings: equal to nothing but itself."""

    params: Any


@dataclass(frozen=True)
class Model:
    """`apply(params, x)` as a layer, on a batch or, with `per_example`, on one example."""

    apply: Callable[[Any, Any], Any]
    given: Given = field(repr=False)
    per_example: bool = False
    mixed_in: str | None = None  # the primitive in which examples meet
    own_feedback_only: ClassVar[bool] = True
    elementwise: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return getattr(self.apply, "__name__", "Model").replace("<lambda>", "Model")

    @property
    def mixes_examples(self) -> bool:
        return self.mixed_in is not None

    def init(self, key: Any, x: Any) -> Any:
        """The params that the model was given with: their initialiser is its own."""
        return self.given.params

    def one(self, params: Any, x: Any) -> Any:
        """The output of one example."""
        return self.apply(params, x) if self.per_example else alone(self.apply, params, x)

    def forward(self, params: Any, x: Any, context: Context) -> tuple[Any, Any]:
        return (self.apply(params, x), x) if self.mixes_examples else forward(self.one, params, x)

    def backward(self, params: Any, feedback: Any, saved: Any, delta: Any, read: Any) -> tuple[Any, Any]:
        treedef: Any = jax.tree.structure(params)
        readers = treedef.flatten_up_to(read)
        if self.mixes_examples:
            _, vjp = jax.vjp(self.apply, params, saved)
            total, delta_x = vjp(delta)
            delta_x = jax.tree.map(lambda x, d: d if has_delta(x) else None, saved, delta_x)
            pairs: list[Any] = [Whole(t, None) for t in jax.tree.leaves(total)]
        else:
            delta_x, pairs = back(self.one, params, saved, delta)
        return delta_x, treedef.unflatten([reader(pair) for reader, pair in zip(readers, pairs, strict=True)])


@dataclass(frozen=True)
class Alone:
    """A container of one layer, whose params are that layer's own. Saved: what `step` kept."""

    model: Layer

    def init(self, key: Any, x: Any) -> Any:
        return self.model.init(key, x)

    def forward(self, params: Any, x: Any, context: Context) -> tuple[Any, Any]:
        return step("model", self.model, params, x, context)

    def backward(self, params: Any, feedback: Any, saved: Any, delta: Any, read: Any) -> tuple[Any, Any]:
        return step_back(self.model, params, feedback, saved, delta, read)


@dataclass(frozen=True)
class ModelNetwork(Network):
    """The network of `from_model`: θ is the model's own params, unrolled, and the model is its only layer."""

    __hash__ = Network.__hash__

    @cached_property
    def layer(self) -> Border:
        """The model as one layer, whose params are the model's own."""
        return Border(Alone(self.layers[0]), self.input, self.dtype, self.compute_dtype)

    @cached_property
    def layout(self) -> Layout:
        """The map between the model's params and one vector θ."""
        layout = Layout.of(self.params_spec)
        ends = [name.endswith(".value") for name in layout.names]  # of a Flax NNX state, whose leaves are variables
        names = tuple(name.removesuffix(".value") for name in layout.names)
        return Layout(layout.treedef, names, *_rest(layout)) if ends and all(ends) else layout

    @cached_property
    def forms(self) -> dict[str, str]:
        """{leaf name: the form of its pair}: "Outer", "Sum", "Gather", "Patches", "Stack of …", or "Whole: why not"."""
        model = self.layers[0]
        if model.mixes_examples:
            return dict.fromkeys(self.layout.names, f"Whole: examples mix in {model.mixed_in}")
        return forms(plan_of(model.one, self.params_spec, self.input), self.layout.names)


def _rest(layout: Layout) -> tuple[Any, ...]:
    return layout.shapes, layout.dtype, layout.trainable


def from_model(apply: Callable[[Any, Any], Any], params: Any, input: Any, per_example: bool = False) -> ModelNetwork:
    """Anybody's model (Flax, Equinox, Haiku, plain JAX) as a `Network` whose pairs are found in its trace.

    `apply(params, x)` is the output for a batch x `[N, *input]` or, with `per_example`, for one example. `params`: a
    pytree of float arrays, the model's own. `input`: as in `Network`. Then `theta = net.layout.flatten(params)`, which
    `net.init(key)` gives too, whatever the key; `net.layout.unflatten(theta)` are the model's params again.

    Every readout has its proper cost where `net.forms` names a form. A leaf "Whole: why not" is read by autodiff: its
    gradient costs nothing more, its gradients of single examples a second pass. A model that mixes the examples of a
    batch (a BatchNorm in training), which its trace tells, has a gradient and no readouts of single examples.

    Raises `InputError` for what is no function, params that are no float arrays, and a model that does not keep the
    batch axis.
    """
    if not callable(apply):
        raise InputError(
            f"from_model: apply must be a function, got {apply!r}. As in from_model(model.apply, params, input=(784,))."
        )
    check_params("from_model", params)
    params = jax.tree.map(jnp.asarray, params)
    layout = Layout.of(params)
    # as a network first, so that the input is read in its way
    spec = Network([], input, layout.dtype).input
    mixed = None if per_example else _mixed_in(apply, params, spec)
    model = Model(apply, Given(params), per_example, mixed)
    return ModelNetwork([model], spec, layout.dtype)


def _mixed_in(apply: Callable, params: Any, spec: Any) -> str | None:
    """The primitive in which the examples of a batch meet; None where each is by itself."""
    with inferred("forward"):
        traced, where = on_a_batch(apply, params, spec)
    if bad := [aval for aval in traced.out_avals if aval.shape[:1] != (PROBE,)]:
        raise InputError(
            f"from_model: apply must keep the batch axis: for {PROBE} examples it returned {described(bad[0])}. "
            "Of a model on one example, say from_model(..., per_example=True)."
        )
    return where


def check_params(who: str, params: Any) -> None:
    """Raise `InputError` unless params are float arrays, at least one."""
    check_arrays(params=params)
    found = jax.tree_util.tree_leaves_with_path(params)
    if not found:
        raise InputError(
            f"{who}: expected params, a pytree of float arrays, got {described(params)}, which has none. "
            "Give the model's own."
        )
    for path, leaf in found:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise InputError(
                f"{who}: every leaf of params is a float array, got {described(leaf)} at {name}. Split off what is "
                "not trained and close over it, as by eqx.partition(model, eqx.is_inexact_array), or "
                "nnx.split(model, nnx.Param, ...)."
            )
