"""One inductive step: the Layer protocol, what reaches every layer, and errors that say where.

Index legend, used in every einsum and docstring of the package:

    N  examples                    I  inputs of a layer (neurons k of layer ℓ-1)
    T  positions of one example    O  outputs of a layer (neurons j of layer ℓ)
    K  classes, or columns         P  parameters, #W + #b
"""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from .errors import InputError as InputError
from .errors import check_whole as check_whole
from .errors import described as described
from .errors import said


@contextmanager
def at(*place: object) -> Iterator[None]:
    """Put `place` in front of the path of an error that passes through; None is no place."""
    try:
        yield
    except Exception as error:
        path = (*(str(part) for part in place if part is not None), *path_of(error))
        vars(error)["path" if isinstance(error, InputError) else "layer_path"] = path
        raise


def path_of(error: Exception) -> tuple[str, ...]:
    """The path of the layer that raised an error, as far as it has come."""
    return error.path if isinstance(error, InputError) else getattr(error, "layer_path", ())


@contextmanager
def inferred(method: str) -> Iterator[None]:
    """Around `init` or `forward` on abstract arrays: what else a layer raises, as an `InputError` with its path."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        told = InputError(f"{method} raises {said(error).removesuffix('.')}. {_INFERRED[method]}")
        told.path = path_of(error)
        raise told from error


_INFERRED = {
    "init": "Shapes are found by tracing it with an input spec, without the batch axis.",
    "forward": "Shapes are found by tracing it: forward has to work with an empty Context(), where key, mask and side "
    "are None.",
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """Side inputs through which no gradient flows; they reach every layer, and a layer that needs none ignores them.

    `key`: source of noise; without one there is none (dropout is the identity). `mask: [N, T]`: True at real
    positions, False at padding. `side`: whatever a layer of your own needs besides.
    """

    key: Any = None
    mask: Any = None
    side: Any = None

    def child(self, place: Any) -> "Context":
        """The same for a child, with a key of its own: `place` is an integer, traced or not, or a string's CRC-32.

        None is no place: the context itself.
        """
        if self.key is None or place is None:
            return self
        number = zlib.crc32(place.encode()) if isinstance(place, str) else place
        return replace(self, key=jax.random.fold_in(self.key, number))

    def reaches(self, layer: Any, x: Any) -> None:
        """Called by `step` with each layer and its x. Here it does nothing; `Cost.check` listens."""


@runtime_checkable
class Layer(Protocol):
    """One step of the induction: a frozen, hashable dataclass that holds settings and no arrays.

    `x`, outputs and deltas are arrays `[N, ...]` or pytrees of them; the batch axis is first. Every leaf of params is
    a float array; whole numbers are settings, or side inputs in the `Context`. Nothing is registered: a class with
    these three methods is a layer.

    A container runs its children by `jbp.step` and `jbp.step_back`, which put the child's place in front of errors,
    give it a context of its own and check its promises about shapes. This is the hardest one, a loop over n equal
    blocks, whose params are stacked along a first axis:

        @dataclass(frozen=True)
        class Loop:
            layer: jbp.Layer
            n: int

            def init(self, key, x):
                return {"layer": jax.vmap(lambda key: self.layer.init(key, x))(jax.random.split(key, self.n))}

            def forward(self, params, x, context):
                def turn(x, block):
                    i, params = block
                    return jbp.step("layer", self.layer, params, x, context.child(i))

                return jax.lax.scan(turn, x, (jnp.arange(self.n), params["layer"]))

            def backward(self, params, feedback, saved, delta, read):
                def turn(delta, block):
                    params, feedback, kept, read = block
                    return jbp.step_back(self.layer, params, feedback, kept, delta, read)

                blocks = params["layer"], feedback["layer"], saved, read["layer"]
                delta, readings = jax.lax.scan(turn, delta, blocks, reverse=True)
                return delta, {"layer": jbp.stacked(read["layer"], readings)}

    What a layer may say of itself besides, as an attribute or a property:

        mixes_examples = True      an example's output depends on other examples (BatchNorm in training): what speaks
                                   of single examples refuses the network, and what cuts the batch does not cut it;
                                   found in the attributes of layers: who hides a child elsewhere says it himself
        own_feedback_only = True   delta can't be carried by another vector than the params: `feedback=` is refused
        elementwise = True         each element of the output depends on one of x, and backward is the derivative;
                                   False: backward is the derivative, but elements mix. Through layers that state one
                                   of the two, `jbp.draw` goes neuron by neuron
        affine = True              y = x·w + b of its leaves w `[I, O]` and b `[O]` or None, as in a dense layer
        check_values(x)            raises `InputError` where the values of x don't fit; `Cost.check` calls it with what
                                   reaches the layer, outside jit

    A loss with params of its own is a layer from (output, y) to C_n `[N]`; y is a side input, so the delta of
    (output, y) is (delta of output, None), and `init` gets (output spec, None). It may say, besides,

        turn(params, feedback, x, delta, read, context) -> (C_n, (delta of output, None), readings)
                                   forward and backward in one sweep: nothing comes after a loss, so its delta is known
                                   before its forward
        unfused() -> (layer, loss) what it fuses, for curvature
    """

    def init(self, key: Any, x: Any) -> Any:
        """Params (a pytree, `()` if none) for an input spec `x`: `ShapeDtypeStruct`s without the batch axis.

        Shapes are found by running `forward` with an empty `Context()`: it has to work where key, mask and side are
        None.
        """

    def forward(self, params: Any, x: Any, context: Context) -> tuple[Any, Any]:
        """(output, saved). `saved` is what backward needs: never a parameter, and as little as possible."""

    def backward(self, params: Any, feedback: Any, saved: Any, delta: Any, read: Any) -> tuple[Any, Any]:
        """(delta of x, readings) from delta of the output.

        `feedback`, `read` and the readings have the structure of the params. `feedback` carries delta down: the params
        themselves, or another vector (feedback alignment). `params` stand beside it for what has to run forward again.
        `read` holds a `jbp.Reader` for each leaf; backward calls it exactly once, with the leaf's pair, as in
        `{"w": read["w"](Outer(x, delta)), "b": read["b"](Sum(delta))}`: `Outer(x, delta)` for a kernel `[I, O]`,
        `Sum(g)` for a bias or a gain, `Gather(index, delta)` for a table `[V, O]`, `Several((pair, pair))` for a leaf
        that is used more than once; any axes of positions go between the examples' and the leaf's. A container that
        runs a child twice reads it by `jbp.readers(params, jbp.read_pair)` each time, and then gives its own readers
        the `Several` of both pairs, leaf by leaf: readings that add up are only those of readers with `adds`.
        An integer leaf of x has the delta None, and so has one of the output.
        What recomputes in reverse keeps x and the context in `saved` (the same place and context give the same noise),
        and ties the recomputation to delta by `jax.lax.optimization_barrier((saved, delta))`; else XLA merges it with
        the first forward, and everything is kept.
        """


def walk(layer: Layer, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Layer]]:
    """(path, layer) for a layer and all layers inside it, found in its fields: whatever the containers are."""
    yield path, layer
    for place, child in _inside(layer):
        yield from walk(child, (*path, *place))


def _inside(value: Any) -> Iterator[tuple[tuple[str, ...], Layer]]:
    """(place, layer) for the layers in the fields of an object, in tuples, NamedTuples, lists and dicts, nested."""
    parts: Any = ()
    if isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", range(len(value)))
        parts = zip(map(str, names), value, strict=True)
    elif isinstance(value, Mapping):
        parts = ((str(name), part) for name, part in value.items())
    elif is_dataclass(value) and not isinstance(value, type):
        parts = ((field.name, getattr(value, field.name)) for field in fields(value))
    elif isinstance(value, Layer) and hasattr(value, "__dict__"):
        parts = vars(value).items()
    for name, part in parts:
        if isinstance(part, Layer) and not isinstance(part, type):
            yield (name,), part
        elif isinstance(part, (tuple, list, Mapping)):
            # a tuple that is a field adds no name of its own: `Sequential.layers[0]` is layer 0, as in its params
            own = (name,) if isinstance(value, (tuple, list, Mapping)) else ()
            yield from (((*own, *place), child) for place, child in _inside(part))


def called(layer: Layer) -> str:
    """What tables and drawings call a layer: its own `name` if it has one, else its class's."""
    name = getattr(layer, "name", None)
    return name if isinstance(name, str) and name else type(layer).__name__


def says(layer: Layer, what: str) -> str | None:
    """The path and class of the first layer, in `layer` or inside it, that says `what` of itself, else None."""
    for path, inner in walk(layer):
        if getattr(inner, what, False) is True:
            return f"{'.'.join(path)} ({called(inner)})" if path else called(inner)
    return None


def stated(layer: Layer, what: str) -> Any:
    """What a layer's class states of its mathematics, `elementwise` or `affine`; None where it states nothing.

    A statement is of forward and backward as they stood: a subclass that writes one of them anew (of an activation, f
    or slope alone) has to repeat it.
    """
    kinds = type(layer).__mro__
    place = lambda name: next((i for i, kind in enumerate(kinds) if name in vars(kind)), len(kinds))
    whole = place("forward") == place("backward") and place("f") == place("slope")
    return getattr(layer, what) if whole and place(what) <= place("forward") and hasattr(layer, what) else None


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
    with inferred("forward"):
        returned = jax.eval_shape(layer.forward, params, batch_of(x, PROBE), Context())
    output, _ = two(returned, "forward", "(output, saved)")
    if any(a.shape[:1] != (PROBE,) for a in jax.tree.leaves(output)):
        raise InputError(
            f"forward must keep the batch axis: for {PROBE} examples it returned {described(output)}. "
            "Treat each example by itself, with axis 0 the batch."
        )
    return spec_of(output)


PROBE = 7919  # examples of the abstract batch that shapes are inferred with: a number that is no other axis's


def two(returned: Any, method: str, what: str) -> tuple[Any, Any]:
    """What a layer's method returned, as the two things it must be."""
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise InputError(f"{method} must return {what}, got {described(returned)}. Return both, in this order.")
    return returned[0], returned[1]


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
            f"got {jax.tree.structure(readings)}. Call each leaf's reader once, with its pair."
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
