"""A network: layers, the input they meet, and the layout that makes their params one vector θ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .errors import arrived
from .layer import Context, InputError, Layer, Shape, Theta, described, inferred, output_spec
from .layers.compose import Sequential
from .layout import Layout
from .meshes import as_rows, on_any_mesh
from .outside import check_arrays, check_context, check_hashable, check_key, check_mask


@dataclass(frozen=True)
class Network:
    """Layers on an input of known shape, a list of them or a dict by name. All shapes are checked here, before anything
    is traced.

    `input`: the shape of one example, without the batch axis, as in `(784,)`; or a `jax.ShapeDtypeStruct`, or a
    tuple of them. `dtype`: of θ; float32 unless given, float64 where JAX's x64 is on. `compute_dtype`: what
    forward and backward run in (params and inputs are cast inside; gradients come back in θ's dtype), θ's unless given.

    A float64 θ is computed in float64 throughout, whatever `compute_dtype`: it is the network's float64 shadow.
    Raises `InputError`, with the path of the layer, where shapes don't fit.
    """

    layers: Any  # a sequence of layers, or a dict of them by name; kept as a tuple
    input: Any
    dtype: Any = None
    compute_dtype: Any = None

    def __post_init__(self):
        layers = (self.layers,) if isinstance(self.layers, Layer) else self.layers
        if not isinstance(layers, Sequence | Mapping):
            raise InputError(f"Network: expected a list of layers, got {layers!r}. As in Network([Dense(10)], (784,)).")
        if len(layers) == 1 and isinstance(one := next(iter(layers)), Sequential):
            layers = one.layers
        set_ = lambda name, value: object.__setattr__(self, name, value)  # frozen, but not yet finished
        set_("layers", Sequential(layers).layers)
        set_("dtype", _float_dtype("dtype", self.dtype or jnp.result_type(float)))
        set_("compute_dtype", self.compute_dtype and _float_dtype("compute_dtype", self.compute_dtype))
        set_(
            "input", jax.tree.map(self._input_spec, self.input, is_leaf=lambda given: given is None or _is_shape(given))
        )
        check_hashable("Network", *self.layers)
        # init and shapes of everything, abstractly; errors surface here
        with inferred("init"):
            _ = self.layout, self.output

    def _input_spec(self, given: Any) -> jax.ShapeDtypeStruct:
        if _is_shape(given) and min(given, default=1) < 1:
            raise InputError(f"Network: every axis of the input needs at least 1 entry, got {tuple(given)}.")
        if _is_shape(given):
            return jax.ShapeDtypeStruct(tuple(given), self.dtype)
        if not hasattr(given, "shape") or not hasattr(given, "dtype") or isinstance(given, np.generic):
            raise InputError(f"Network: input must be the shape of one example, as in (784,), got {given!r}.")
        if isinstance(given, (jax.Array, np.ndarray)):
            raise InputError(
                f"Network: input must be the shape of one example, got the data itself, {described(given)}. "
                "Write input=x.shape[1:]."
            )
        floating = jnp.issubdtype(given.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(given.shape, self.dtype if floating else given.dtype)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        leaves, treedef = jax.tree.flatten(self.input)
        return hash((self.layers, tuple(leaves), treedef, self.dtype, self.compute_dtype))

    @cached_property
    def layer(self) -> "Border":
        """The whole network as one layer, on leaves."""
        return Border(Sequential(self.layers), self.input, self.dtype, self.compute_dtype)

    @cached_property
    def params_spec(self) -> Any:
        """The specs of the params."""
        return jax.eval_shape(lambda key: self.layer.init(key, self.input), jax.random.key(0))

    @cached_property
    def layout(self) -> Layout:
        """The map between the params and one vector θ."""
        return Layout.of(self.params_spec)

    @cached_property
    def output(self) -> Any:
        """The output's spec, without the batch axis."""
        return output_spec(self.layer, self.params_spec, self.input)

    def init(self, key: PRNGKeyArray) -> Float[Array, "P"]:
        """θ, each leaf from its layer's initialiser."""
        check_key("Network.init", key)
        return _init(self, key)

    def __call__(self, theta: Theta, x: Any, context: Context = Context()) -> Any:
        """The output `[N, ...]` for a batch x `[N, *input]`."""
        check_context(context)
        forward = lambda theta, x: self.layer.forward(self.layout.unflatten(theta), x, context)[0]
        return on_any_mesh(forward, as_rows(1))(theta, x)


@partial(jax.jit, static_argnums=0)
def _init(network: Network, key: PRNGKeyArray) -> Float[Array, "P"]:
    return network.layout.flatten(network.layer.init(key, network.input))


@dataclass(frozen=True)
class Border:
    """Where a network meets the outside: x is checked, params and x are cast to the compute dtype. Params: the layers'.

    Saved: what the layers save, and the static shape of x, to whose dtype its delta is cast back.
    """

    layers: Layer
    input: Any
    dtype: Any
    compute_dtype: Any

    def init(self, key: PRNGKeyArray, x: Any) -> Any:
        return cast(self.layers.init(key, x), self.dtype)  # a table's own dtype can't follow from whole numbers x

    def forward(self, params: Any, x: Any, context: Context) -> tuple[Any, Any]:
        x = self.check(x)
        check_mask(x, context.mask)
        dtype = self.inner_dtype(params)
        output, saved = self.layers.forward(cast(params, dtype), cast(x, dtype), context)
        return output, (Shape.of(x), saved)

    def backward(self, params: Any, feedback: Any, saved: Any, delta: Any, read: Any) -> tuple[Any, Any]:
        shape, saved = saved
        dtype = self.inner_dtype(params)
        delta_x, readings = self.layers.backward(cast(params, dtype), cast(feedback, dtype), saved, delta, read)
        return jax.tree.map(lambda s, d: d.astype(s.dtype), shape.delta, delta_x), readings

    def inner_dtype(self, params: Any) -> Any:
        """What is computed in: the compute dtype, but float64 for a float64 θ."""
        given = jax.tree.leaves((params, self.input))[0].dtype  # θ's dtype
        return given if given == np.float64 else self.compute_dtype or given

    def check(self, x: Any) -> Any:
        """x as arrays. Raises `InputError` unless it is a batch of at least one example of the network's input."""
        check_arrays(x=x)
        expected: Any = jax.tree.structure(self.input)
        if jax.tree.structure(x) != expected:
            raise InputError(
                f"x: expected {'one array' if isinstance(self.input, jax.ShapeDtypeStruct) else expected} "
                f"with the batch axis first, got {arrived(x)}. "
                "Use jnp.asarray(x), or build the Network for this input."
            )
        x = jax.tree.map(jnp.asarray, x)
        jax.tree.map(_check_one_input, x, self.input)
        if len({a.shape[0] for a in jax.tree.leaves(x)}) > 1:
            raise InputError(f"x: every part needs the same number N of examples, got {described(x)}.")
        return x


def cast(tree: Any, dtype: Any) -> Any:
    """The tree with its floats in another dtype; whole numbers as they are."""
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def _check_one_input(x: Array, spec: jax.ShapeDtypeStruct) -> None:
    due = f"[N, {', '.join(map(str, spec.shape))}]" if spec.shape else "[N]"
    kind = jnp.floating if jnp.issubdtype(spec.dtype, jnp.floating) else jnp.integer
    if x.shape == spec.shape:
        counts = f", or, if its first axis counts examples, Network(..., input={spec.shape[1:]})" if x.ndim > 1 else ""
        raise InputError(f"x: expected a batch {due}, got one example {described(x)}. Write x[None]{counts}.")
    if x.shape[1:] != spec.shape:
        same = x.ndim and x[:1].size == np.prod(spec.shape, dtype=int)
        remedy = (
            f"Reshape it to (-1, {', '.join(map(str, spec.shape))})." if same else "Build the Network for this input."
        )
        raise InputError(f"x: expected a batch {due}, got {described(x)}. {remedy}")
    if x.shape[0] == 0:
        raise InputError(f"x: expected at least one example, got an empty batch {described(x)}.")
    if not jnp.issubdtype(x.dtype, kind):
        name = "float" if kind is jnp.floating else "integer"
        remedy = f"x.astype({spec.dtype})" + (", and scale pixels to [0, 1]" if name == "float" else "")
        raise InputError(f"x: expected {name}s, got {described(x)}. Use {remedy}.")


def _is_shape(given: Any) -> bool:
    return isinstance(given, (tuple, list)) and all(isinstance(n, (int, np.integer)) for n in given)


def _float_dtype(name: str, given: Any) -> np.dtype:
    try:
        dtype = np.dtype(given)
    except TypeError:
        raise InputError(f"Network: {name} must be a float dtype, as in jnp.bfloat16, got {given!r}.") from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f"Network: {name} must be a float dtype, got {dtype}.")
    if dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise InputError(f"Network: {name}=float64 needs JAX's x64. Set jax.config.update('jax_enable_x64', True).")
    return dtype
