"""A layer as a JAX function, differentiated by the layer's own backward, inside anybody's model.

y = f(params, x)               custom_vjp: forward is the layer's, and so is the way back; or, with `forward_mode`, a
                               primitive of hijax, which forward mode differentiates as well
vjp.with_logs(delta)           besides, readouts of the δ that arrives, where JAX has `defvjp_with_logs`
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from .both_modes import InBothModes, Rules, check_hijax
from .layer import Context, InputError, Layer, described, says
from .layers.settings import check_flags
from .layout import Layout
from .meshes import as_rows, on_any_mesh
from .network import Network
from .reader import check_gradients, read_gradient, readers
from .readouts import Readout, check_shapes, collect, readers_of
from .run import step, step_back


def as_function(layer: Any, *, forward_mode: bool = False, logs: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """The function `(params, x, context=Context()) -> y` of a layer, differentiated by the layer's own backward.

    It drops into Flax, Equinox or plain JAX. x has a batch axis first. Make a layer's params with
    `layer.init(key, x_spec)`; the params of a `Network` are its vector θ. Reverse mode only, as any `jax.custom_vjp`,
    unless `forward_mode`: then `jax.jvp`, `jax.linearize` and `jax.hessian` work, too, by JAX's own derivative of the
    forward, and of both passes; for JAX 0.12 and later.

    `logs`: readouts by name, for JAX 0.12 and later. A call with `log="block3"` logs each as `block3.NAME` in the
    reverse pass; a call without `log` logs nothing. `y, vjp = jax.vjp(model, …)` and then `vjp.with_logs(delta)` gives
    (the gradients, {key: result}), stacked by a `lax.scan` around the call; who reads no logs pays nothing. The numbers
    are of the δ that arrives, of the user's own reduced loss (for a mean over N examples each g_n is 1/N of that of
    C_n), and of this call alone: a layer that is called twice has two keys, and JAX raises for a key that is logged
    twice.

    Raises `InputError` for what is no layer, for logs or a forward mode where JAX has none, and for readouts of single
    examples of a layer that mixes them.
    """
    if not isinstance(layer, Layer | Network) or isinstance(layer, type):
        remedy = (
            "Pass cost.network, or differentiate the cost: cost.grad." if hasattr(layer, "loss") else "Give a Layer."
        )
        raise InputError(f"as_function: expected a layer or a Network, got {layer!r}. {remedy}")
    logs = dict(logs or {})
    _check_logs(layer, logs)
    check_flags("as_function", forward_mode=forward_mode)
    if forward_mode:
        check_hijax("as_function")
    inner: Layer = layer.layer if isinstance(layer, Network) else layer
    to_leaves: Callable[[Any], Any] = layer.layout.unflatten if isinstance(layer, Network) else lambda params: params
    from_leaves: Callable[[Any], Any] = layer.layout.flatten if isinstance(layer, Network) else lambda leaves: leaves

    def back(residuals: Any, delta: Any, read: Any) -> tuple[Any, Any]:
        params, kept = residuals
        leaves = to_leaves(params)
        delta = jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, delta)
        return step_back(inner, leaves, leaves, kept, delta, read(leaves))

    @jax.jit  # so that nothing is computed that isn't read, also outside a jit
    def backward(residuals: Any, delta: Any) -> tuple[Any, Any, None]:
        delta_x, gradient = back(residuals, delta, lambda leaves: readers(leaves, read_gradient))
        leaves = to_leaves(residuals[0])
        check_gradients(leaves, gradient)
        return from_leaves(jax.tree.map(lambda leaf, g: g.astype(leaf.dtype), leaves, gradient)), delta_x, None

    @jax.jit
    def logged(residuals: Any, delta: Any) -> dict[str, Any]:
        layout = Layout.of(to_leaves(residuals[0]))
        ones = jnp.ones(jax.tree.leaves(delta)[0].shape[0], jnp.float32)
        _, readings = back(residuals, delta, lambda leaves: readers_of(tuple(logs.values()), layout, ones))
        check_shapes(tuple(logs.values()), layout, readings, ones.size)
        return dict(zip(logs, collect(tuple(logs.values()), layout, readings), strict=True))

    def forward(params: Any, x: Any, context: Context) -> tuple[Any, Any]:
        output, kept = step(None, inner, to_leaves(params), x, context)
        return output, (params, kept)

    def named(log: str, residuals: Any, delta: Any) -> dict[str, Any]:
        return {f"{log}.{name}": result for name, result in logged(residuals, delta).items()}

    def in_both_modes(log: str | None) -> Any:
        def back(params: Any, kept: Any, delta: Any) -> tuple[Any, Any]:
            *found, _ = backward((params, kept), delta)
            return tuple(found), None if log is None else named(log, (params, kept), delta)

        rules = Rules(lambda params, x, context: step(None, inner, to_leaves(params), x, context), back)
        return lambda *args: InBothModes(rules, args)(*args)

    @cache
    def applied(log: str | None) -> Any:
        if forward_mode:
            return in_both_modes(log)

        def primal(params, x, context):
            return forward(params, x, context)[0]

        apply: Any = jax.custom_vjp(primal)
        if log is None:
            apply.defvjp(forward, backward)
        else:
            apply.defvjp_with_logs(forward, lambda *args: (backward(*args), named(log, *args)))
        return apply

    def function(params: Any, x: Any, context: Context = Context(), *, log: str | None = None) -> Any:
        if log is not None and not logs:
            raise InputError(
                f"log={log!r}: this function has no logs. Write as_function(layer, logs={{name: readout}})."
            )
        return on_any_mesh(applied(log), as_rows(1))(*_on_the_same_shards((params, x, context)))

    return function


def _on_the_same_shards(tree: Any) -> Any:
    """Inside a `shard_map`, all values as ones that differ from shard to shard where any of them does.

    Backward gives each shard's own gradient, and by this JAX sums those of params that the shards share.
    """

    def differs(a: Any) -> frozenset[Any]:
        return getattr(getattr(jax.typeof(a), "mat", None), "varying", frozenset())

    axes = frozenset[Any]().union(*map(differs, jax.tree.leaves(tree)))
    cast = lambda a, over: jax.lax.pcast(a, tuple(over), to="varying") if over else a
    return jax.tree.map(lambda a: cast(a, axes - differs(a)), tree) if axes else tree


def _check_logs(layer: Any, logs: dict[str, Any]) -> None:
    if not logs:
        return
    if not hasattr(jax.custom_vjp, "defvjp_with_logs"):
        raise InputError("as_function: logs need jax.custom_vjp.defvjp_with_logs. Install jax 0.12 or later.")
    for name, readout in logs.items():
        if not isinstance(readout, Readout) or isinstance(readout, type):
            raise InputError(
                f"as_function: logs[{name!r}] is no readout, got {described(readout)}. As in SquaredNorms()."
            )
    mixed = says(layer.layer.layers if isinstance(layer, Network) else layer, "mixes_examples")
    single = [name for name, readout in logs.items() if getattr(readout, "of_examples", True)]
    if mixed and single:
        raise InputError(
            f"as_function: logs[{single[0]!r}] speaks of single examples, and layer {mixed} mixes them. Log Gradient()."
        )
