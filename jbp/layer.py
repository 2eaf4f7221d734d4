"""One inductive step: the Layer protocol, what reaches every layer, and errors that say where.

Index legend, used in every einsum and docstring of the package:

    N  examples                    I  inputs of a layer (neurons k of layer ℓ-1)
    T  positions of one example    O  outputs of a layer (neurons j of layer ℓ)
    K  classes, or columns         P  parameters, #W + #b
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact


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


@contextmanager
def at(*place: object) -> Iterator[None]:
    """Put `place` in front of the path of an `InputError` that passes through."""
    try:
        yield
    except InputError as error:
        error.path = (*map(str, place), *error.path)
        raise


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """Side inputs through which no gradient flows; the same for all layers, and a layer that needs none ignores it.

    `key`: source of noise; without one there is none (dropout is the identity). `mask: [N, T]`: True at real
    positions, False at padding. `side`: whatever a layer of your own needs besides.
    """

    key: Any = None
    mask: Any = None
    side: Any = None

    def child(self, i: Any) -> "Context":
        """The context of child i (an integer, traced or not): the same, with a key of its own."""
        if self.key is None:
            return self
        return Context(jax.random.fold_in(self.key, i), self.mask, self.side)


@runtime_checkable
class Layer(Protocol):
    """One step of the induction: a frozen, hashable dataclass that holds settings and no arrays.

    `x`, outputs and deltas are arrays `[N, ...]` or pytrees of them; the batch axis is first.
    """

    def init(self, key: Any, x: Any) -> Any:
        """Params (a pytree, `()` if none) for an input spec `x`: `ShapeDtypeStruct`s without the batch axis."""

    def forward(self, params: Any, x: Any, context: Context) -> tuple[Any, Any]:
        """(output, saved). `saved` is what backward needs: never a parameter, and as little as possible."""

    def backward(self, params: Any, saved: Any, delta: Any, read: Callable[[Any], Any]) -> tuple[Any, Any]:
        """(delta of x, readings) from delta of the output.

        `params` only carry delta down, so that feedback alignment is the same code with another vector. `read(pair)`
        is called once for each parameter leaf; the readings have the structure of the params. An integer leaf of x
        has the delta None. A layer that loops over blocks hands the stacked readings to `read.stack`, see readouts.
        """


def walk(layer: Layer, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Layer]]:
    """(path, layer) for a layer and all layers inside it, found in its fields: whatever the containers are."""
    yield path, layer
    named: list[str] = [field.name for field in fields(layer)] if is_dataclass(layer) else []
    for name in named:
        value = getattr(layer, name)
        children = zip(map(str, range(len(value))), value, strict=True) if isinstance(value, tuple) else [(name, value)]
        for place, child in children:
            if isinstance(child, Layer) and not isinstance(child, type):
                yield from walk(child, (*path, place))


# -- what arrives from outside ----------------------------------------------------------------------------------------

# A vector θ, Float[Array, "P"], as it arrives: NumPy's or JAX's, and if it does not fit, an InputError says so.
Theta = Any


def check_finite(name: str, value: Any) -> None:
    """Raise `InputError` if an array of the pytree holds NaN or infinity."""
    for part in map(np.asarray, jax.tree.leaves(value)):
        if not jnp.issubdtype(part.dtype, jnp.floating) or np.isfinite(part).all():
            continue
        bad = np.argwhere(~np.isfinite(part))
        where = [int(i) for i in bad[0]]
        raise InputError(
            f"{name}: expected finite numbers, got {name}{where} = {part[tuple(where)]} "
            f"({len(bad)} of {part.size} not finite). Clean the data first."
        )


# -- shapes -----------------------------------------------------------------------------------------------------------


def spec_of(x: Any) -> Any:
    """The input spec of a batch, concrete or abstract: shapes and dtypes without the batch axis."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a)[1:], jnp.result_type(a)), x)


def batch_of(spec: Any, n: int = 1) -> Any:
    """The abstract batch of n examples that a spec stands for."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct((n, *s.shape), s.dtype), spec)


def output_spec(layer: Layer, params: Any, x: Any) -> Any:
    """The output spec of a layer on an input spec, without computing anything."""
    output, _ = two(jax.eval_shape(layer.forward, params, batch_of(x, PROBE), Context()), "forward", "(output, saved)")
    if any(a.shape[:1] != (PROBE,) for a in jax.tree.leaves(output)):
        raise InputError(
            f"forward must keep the batch axis: for {PROBE} examples it returned {described(output)}. "
            "Treat each example by itself, with axis 0 the batch."
        )
    return spec_of(output)


PROBE = 7919  # examples of the abstract batch that shapes are inferred with: a number that is no other axis's


def check_gradients(params: Any, gradients: Any) -> None:
    """Raise `InputError` unless each leaf's gradient has the leaf's shape."""
    for (path, leaf), g in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(gradients), strict=True):
        if jnp.shape(g) != jnp.shape(leaf):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise InputError(
                f"backward reads a gradient {described(g)} at leaf {name}, which is {described(leaf)}. "
                "Check the pair that it gives to read: Outer(a [N, T, I], delta [N, T, O]), Sum(g [N, T, ...])."
            )


def two(returned: Any, method: str, what: str) -> tuple[Any, Any]:
    """What a layer's method returned, as the two things it must be."""
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise InputError(f"{method} must return {what}, got {described(returned)}. Return both, in this order.")
    return returned[0], returned[1]


def described(x: Any) -> str:
    """Shapes and dtypes for an error message: `float32[32, 10]`, leaf by leaf for a pytree."""
    leaves = [
        f"{jnp.result_type(a)}{list(jnp.shape(a))}" if hasattr(a, "dtype") else repr(a) for a in jax.tree.leaves(x)
    ]
    if len(leaves) > 8:
        leaves = [*leaves[:3], f"… {len(leaves)} leaves"]
    return leaves[0] if len(leaves) == 1 else f"({', '.join(leaves)})" if leaves else "nothing"


@jax.tree_util.register_static
@dataclass(frozen=True)
class Shape:
    """The structure, shapes and dtypes of a value: static, so it may stand in `saved` at no cost."""

    treedef: Any
    leaves: tuple[tuple[tuple[int, ...], Any], ...]

    @classmethod
    def of(cls, x: Any) -> "Shape":
        leaves, treedef = jax.tree.flatten(x)
        return cls(treedef, tuple((jnp.shape(a), jnp.result_type(a)) for a in leaves))

    @property
    def delta(self) -> Any:
        """What a delta of the value is like: the same shapes and dtypes, None for an integer leaf."""
        return self.treedef.unflatten(
            [jax.ShapeDtypeStruct(*leaf) if jnp.issubdtype(leaf[1], jnp.inexact) else None for leaf in self.leaves]
        )

    def check_delta(self, delta: Any) -> None:
        """Raise `InputError` unless `delta` is one of the value."""
        expected = self.delta
        if Shape.of(delta) != Shape.of(expected):
            raise InputError(
                f"backward must return the delta of x, {described(expected)} like x itself, got {described(delta)}. "
                "Return (delta of x, readings), in this order."
            )


def check_readings(params: Any, readings: Any) -> None:
    """Raise `InputError` unless `readings` has one reading where `params` has a leaf."""
    treedef: Any = jax.tree.structure(params)
    try:
        treedef.flatten_up_to(readings)
    except ValueError as error:
        raise InputError(
            f"backward must return readings in the structure of the params, {treedef}, "
            f"got {jax.tree.structure(readings)}. Call read(pair) once for each leaf."
        ) from error


# -- precision --------------------------------------------------------------------------------------------------------


def wide_dtype(dtype: Any) -> Any:
    """The dtype itself if it is float32 or wider, else float32."""
    return dtype if jnp.finfo(dtype).bits >= 32 else np.dtype(np.float32)


def wide(x: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """x in at least float32, so that sums and element-wise formulas of bfloat16 values round once, at the end."""
    return x.astype(wide_dtype(x.dtype))


def einsum(legend: str, *operands: Inexact[Array, "..."], **settings: Any) -> Inexact[Array, "..."]:
    """`jnp.einsum`, accumulating and returning in at least float32."""
    return jnp.einsum(legend, *operands, preferred_element_type=wide_dtype(operands[0].dtype), **settings)


def sum_over_examples(legend: str, *operands: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """`einsum` where the legend contracts the examples: on a mesh with explicit axes the sum is the same everywhere."""
    explicit = jax.sharding.get_abstract_mesh().explicit_axes
    return einsum(legend, *operands, **({"out_sharding": jax.sharding.PartitionSpec()} if explicit else {}))
