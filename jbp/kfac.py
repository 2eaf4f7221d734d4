"""K-FAC: a step along the gradient that the Kronecker factors of the GGN's blocks have turned, as an optax optimiser.

    Ā, Ḡ       averages of the leaf's factors: decay · old + (1 − decay) · new; the first ones are means
    π          √((tr Ā / I) / (tr Ḡ / O)): how √damping is split between the two
    direction  (Ā + π √damping)⁻¹ ∇C (Ḡ + √damping/π)⁻¹ for a leaf [I, O]; where Ā is a number (biases, gains), exactly
               (Ā Ḡ + damping)⁻¹ ∇C

Factors and inverses are made anew every so many steps, from the labels that the model itself would draw on the batch of
that step: one reverse pass more, and matrices of I³ and O³. Martens & Grosse 2015, arXiv:1503.05671.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from .errors import check_whole
from .kronecker import Diagonal, Factors, KroneckerFactors
from .layer import Context, InputError, batch_of, described, wide_dtype
from .meshes import on_any_mesh
from .outside import check_key
from .reverse import Cost
from .seeds import Opened, Sampled, check_seed, read_columns, read_seeds


class KfacState(NamedTuple):
    """Steps done, the words of the next key, averages of the factors, and the inverses that are in use."""

    count: Any
    key: Any
    averages: Any
    inverses: Any


def kfac(
    cost: Cost,
    learning_rate: Any,
    *,
    damping: float = 1e-3,
    momentum: float = 0.9,
    clip: float | None = 1e-2,
    every: int = 10,
    decay: float = 0.95,
    seed: Literal["sampled", "exact", "empirical"] = "sampled",
    shared: Literal["expand", "reduce"] = "expand",
    largest: int = 2048,
    key: PRNGKeyArray | None = None,
) -> optax.GradientTransformationExtraArgs:
    """K-FAC with momentum for the network and the loss of `cost`; `jbp.fit` takes it as any other optimiser.

    `update(gradient, state, params, batch=(x, y, context))`: gradient and params are the tree of leaves, or vectors
    `[P]`; a leaf that is held fixed stays. `weights=` are the examples', as the gradient's. `learning_rate`: a number
    or an optax schedule. `damping`: what is added to each block of the GGN, in its own units. `every`: so many steps
    have the same factors and inverses. `decay`: of the averages, from one renewal to the next. `clip`: the most that
    learning_rate² ⟨∇C, direction⟩, about twice the divergence between the model before a step and after it, may be; a
    longer direction is shortened. `seed`: where the factors come from; "sampled" draws labels with `key`,
    `jax.random.key(0)` unless given. `shared`, `largest`: see `KroneckerFactors`; a larger factor is its diagonal.
    Raises `InputError` for settings out of range, a loss without what the seed needs, and an update without a batch.
    """
    _check(cost, learning_rate, damping, momentum, clip, every, decay, seed, largest)
    key = jax.random.key(0) if key is None else key
    check_key("kfac", key, "kfac(..., key={})")
    readout = KroneckerFactors(None, shared, int(largest))
    layout = cost.layout

    def on_leaves(tree: Any) -> tuple[list[Any], bool]:
        flat = hasattr(tree, "shape")
        if flat and tree.shape != (layout.size,):
            raise InputError(
                f"kfac: expected vectors [P] = [{layout.size}] like theta, or trees of leaves, got {described(tree)}. "
                "Take them from the cost that kfac was given."
            )
        return (layout.leaves(tree) if flat else layout.treedef.flatten_up_to(tree)), flat

    def init(params: Any) -> KfacState:
        dtype = next(leaf for leaf in on_leaves(params)[0] if leaf is not None).dtype
        whole = jax.eval_shape(layout.unflatten, jax.ShapeDtypeStruct((layout.size,), dtype))

        def shapes(params: Any, x: Any) -> Any:
            opened = Opened.of(cost, params, x, Context())
            column = jax.tree.map(lambda a: jnp.zeros((1, *a.shape), a.dtype), opened.output)
            return read_columns(opened, (readout,), column, jnp.ones(1, wide_dtype(dtype)), 1)[0]

        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(shapes, whole, batch_of(cost.network.input))
        )
        return KfacState(jnp.zeros((), jnp.int32), _words(key), zeros, zeros)

    def update(
        gradient: Any,
        state: KfacState,
        params: Any = None,
        *,
        batch: Any = None,
        whole: Any = None,
        weights: Any = None,
        **others: Any,
    ):
        if batch is None or params is None:
            raise InputError(
                "kfac: update needs the params and the batch of its gradient, for the factors. Pass them, as in "
                "update(gradient, state, params, batch=(x, y, jbp.Context())); jbp.fit does so."
            )
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            raise InputError(f"kfac: batch must be (x, y) or (x, y, context), got {described(batch)}.")
        x, y, *context = batch
        leaves = on_leaves(params if whole is None else whole)[0]
        if any(leaf is None for leaf in leaves):
            raise InputError("kfac: expected all leaves, the frozen ones too. Pass whole=layout.unflatten(theta).")
        key, of_seed = jax.random.split(jax.random.wrap_key_data(state.key))

        def renewed(averages: Any) -> tuple[Any, Any]:
            params = layout.treedef.unflatten([jax.lax.stop_gradient(leaf) for leaf in leaves])
            found = _factors(
                cost, readout, Sampled(of_seed) if seed == "sampled" else seed, params, x, y, weights, *context
            )

            def mixed(before: Any, now: Any) -> Any:
                turns = (state.count // every).astype(before.dtype)
                new = 1 - jnp.minimum(jnp.asarray(decay, before.dtype), turns / (turns + 1))
                return before + new * (now.astype(before.dtype) - before)

            averages = jax.tree.map(mixed, averages, found)
            return averages, jax.tree.map(lambda f: _inverses(f, damping), averages, is_leaf=_is_factors)

        averages, inverses = jax.lax.cond(
            state.count % every == 0, renewed, lambda averages: (averages, state.inverses), state.averages
        )
        steps, flat = on_leaves(gradient)
        names = zip(layout.names, steps, layout.trainable, strict=True)
        turned = [_turned(inverses[name], g) if free and g is not None else None for name, g, free in names]
        direction = layout.treedef.unflatten(turned)
        if clip is not None:
            dots = [jnp.vdot(g, d) for g, d in zip(steps, turned, strict=True) if d is not None]
            rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
            met = jnp.square(jnp.asarray(rate, dots[0].dtype)) * sum(dots)
            short = jnp.sqrt(clip / jnp.maximum(met, clip))
            direction = jax.tree.map(lambda d: d * short.astype(d.dtype), direction)
        if flat:
            direction = layout.flatten(layout.filled(direction, gradient.dtype))
        return direction, KfacState(state.count + 1, _words(key), averages, inverses)

    rule = optax.GradientTransformationExtraArgs(init, update)
    return optax.chain(rule, optax.trace(momentum), optax.scale_by_learning_rate(learning_rate))


def _check(cost, learning_rate, damping, momentum, clip, every, decay, seed, largest) -> None:
    """Raise `InputError` where a setting is not what it should be."""
    if not isinstance(cost, Cost):
        raise InputError(f"kfac: expected a Cost first, got {type(cost).__name__}. As in kfac(cost, 0.1).")
    if cost.mixed_by is not None:
        raise InputError(
            f"kfac: layer {cost.mixed_by} mixes the examples of a batch, so that none has a pair of its own."
        )
    if not isinstance(seed, str) or seed not in ("sampled", "exact", "empirical"):
        got = repr(seed) if isinstance(seed, str) else type(seed).__name__
        raise InputError(f"kfac: seed must be 'sampled' (by key=), 'exact' or 'empirical', got {got}.")
    check_seed("kfac", Sampled(jax.random.key(0)) if seed == "sampled" else seed, cost.loss_layer)
    if not callable(learning_rate) and not _is_number(learning_rate):
        raise InputError(f"kfac: learning_rate must be a number or an optax schedule, got {learning_rate!r}.")
    for name, given, fits, what in (
        ("damping", damping, lambda value: value > 0, "above 0"),
        ("momentum", momentum, lambda value: 0 <= value < 1, "in [0, 1)"),
        ("clip", np.inf if clip is None else clip, lambda value: value > 0, "above 0, or None"),
        ("decay", decay, lambda value: 0 <= value < 1, "in [0, 1)"),
    ):
        if not _is_number(given) or not fits(given):
            raise InputError(f"kfac: {name} must be {what}, got {given!r}.")
    check_whole("kfac", every=every, largest=largest)


def _is_number(given: Any) -> bool:
    """Whether this is one number, in an array or not."""
    return isinstance(given, (int, float, np.number, np.ndarray, jax.Array)) and not np.ndim(given)


def _words(key: PRNGKeyArray) -> Any:
    """A key as the words that a state keeps, which any file holds."""
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


@on_any_mesh
def _factors(
    cost: Cost, readout: Any, seed: Any, params: Any, x: Any, y: Any, weights: Any, context: Context = Context()
) -> Any:
    x, y = cost._check(x, y, weights, context)
    weights = cost._factors(params, x, y, weights)
    opened = Opened.of(cost, params, x, context)
    seeded = KroneckerFactors(seed, readout.shared, readout.largest)
    return read_seeds(opened, (seeded,), y, weights, weights.shape[0])[0]


# -- a factor, whole or its diagonal ----------------------------------------------------------------------------------


def _is_factors(node: Any) -> bool:
    return isinstance(node, Factors)


def _mean(factor: Any) -> Any:
    """tr/d, with the axes of blocks."""
    return (
        factor.d.mean(-1) if isinstance(factor, Diagonal) else jnp.trace(factor, axis1=-2, axis2=-1) / factor.shape[-1]
    )


def _inverse(factor: Any, damping: Any) -> Any:
    """(F + damping)⁻¹."""
    if isinstance(factor, Diagonal):
        return Diagonal(1 / (factor.d + damping[..., None]))
    eye = jnp.eye(factor.shape[-1], dtype=factor.dtype)
    return jnp.linalg.inv(factor + damping[..., None, None] * jnp.broadcast_to(eye, factor.shape))


def _inverses(factors: Factors, damping: float) -> Factors:
    """The two inverses of the damped factors."""
    A, G = factors
    if not isinstance(A, Diagonal) and A.shape[-1] == 1:
        scaled = jax.tree.map(lambda g: g * A.reshape(A.shape[:-2] + (1,) * (g.ndim - A.ndim + 2)), G)
        return Factors(jnp.ones_like(A), _inverse(scaled, jnp.full(A.shape[:-2], damping, A.dtype)))
    a, g = _mean(A), _mean(G)
    pi = jnp.where((a > 0) & (g > 0), jnp.sqrt(a / jnp.where(g > 0, g, 1)), 1).astype(a.dtype)
    pi = jnp.where(pi > 0, pi, 1)
    root = float(np.sqrt(damping))
    return Factors(_inverse(A, pi * root), _inverse(G, root / pi))


def _turned(inverses: Factors, g: Any) -> Any:
    """A⁻¹ ∇C G⁻¹, block by block."""
    A, G = inverses
    blocks = A.d.ndim - 1 if isinstance(A, Diagonal) else A.ndim - 2
    sizes = [(f.d if isinstance(f, Diagonal) else f).shape[-1] for f in (A, G)]
    turned = g.reshape(*g.shape[:blocks], *sizes).astype((G.d if isinstance(G, Diagonal) else G).dtype)
    turned = A.d[..., :, None] * turned if isinstance(A, Diagonal) else jnp.matmul(A, turned)
    turned = turned * G.d[..., None, :] if isinstance(G, Diagonal) else jnp.matmul(turned, G)
    return turned.reshape(g.shape).astype(g.dtype)
