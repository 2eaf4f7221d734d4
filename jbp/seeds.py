"""Seeds: what enters at the output, where it is not the δ of the cost itself.

    "exact"        columns S_k of a root of the loss's Hessian: Σ_k S_k S_kᵀ = H_n = ∂²C_n/∂output²
    Sampled(key)   δ of labels that are drawn from the model's own likelihood: E[S Sᵀ] = H_n; few columns in place of K
    "empirical"    the δ of the labels that are given, as one column

Each column goes back through one and the same forward, all of them at once by `vmap`: a reader that adds its readings
over the columns does so by `over_columns`, as early as it can. Of a loss that has parameters,
curvature speaks of what it fuses: `unfused() -> (layer, loss)`.

Shapes: columns `[K, N, ...]` like the output. Source: Dangel et al. 2020, arXiv:1912.10985; Martens & Grosse 2015,
arXiv:1503.05671 (sampled labels); Kunstner et al. 2019, arXiv:1905.12558 (why the empirical one is another matrix).
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .errors import check_whole
from .layer import Context, InputError, Layer, described
from .losses.loss import FromValue
from .network import cast
from .outside import check_key
from .readouts import Readout, check_shapes, collect, readers_of
from .run import run

LARGEST_COLUMNS = 1 << 32  # bytes at the output, all of which go back together
SEED_COLUMNS = "columns of a seed"  # the name of their axis

_static: Any = {"static": True}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampled:
    """δ of `samples` labels for each example, drawn by `key` from the likelihood of which C_n is −log, over √samples.

    So Σ_k S_k S_kᵀ is the loss's Hessian H_n in expectation, with a relative error that falls as 1/√samples. Raises
    `InputError` for what is no random key, and for samples < 1.
    """

    key: Any
    samples: int = field(default=1, metadata=_static)

    def __post_init__(self):
        check_whole("Sampled", samples=self.samples)
        if self.key is None or isinstance(self.key, (int, float, str)):  # not what stands for a key in a pytree
            check_key("Sampled", self.key, "jbp.Sampled({})")


Seed = Literal["exact", "empirical"] | Sampled


def seed_of(readout: Any) -> Any:
    """The readout's seed; None for the loss's own."""
    return getattr(readout, "seed", None)


def check_seed(who: str, seed: Any, loss: Layer) -> None:
    """Raise `InputError` unless it is a seed, and the loss has what it asks for."""
    if isinstance(seed, str) and seed == "recursive":
        raise InputError(
            f"{who}: there is no seed 'recursive', since KFRA averages over the examples at each layer, so that no "
            "example's own δ goes back. For plain chains write jbp.kfra(cost, theta, x, y)."
        )
    if not isinstance(seed, Sampled) and not (isinstance(seed, str) and seed in ("exact", "empirical")):
        raise InputError(
            f"{who}: seed must be 'exact', 'empirical' or a jbp.Sampled, got {seed!r}. "
            "Labels are sampled with a key, as in jbp.Sampled(jax.random.key(0))."
        )
    if isinstance(seed, Sampled):
        check_key(f"{who}: Sampled", seed.key, "jbp.Sampled({})")
    _, inner = apart(loss)
    needs, what = ("hessian_root", "no curvature") if seed == "exact" else ("sample", "no likelihood")
    if seed != "empirical":
        check_has(who, inner, needs, what)


def check_has(who: str, loss: Any, needs: str, what: str) -> None:
    """Raise `InputError` unless the loss has a method."""
    if not hasattr(loss, needs):
        raise InputError(
            f"{who}: the loss {type(loss).__name__} has {what}, no method {needs}. Give it one, as jbp.losses tells, "
            "or use one of jbp's own losses; of the gradients alone, seed='empirical' knows."
        )


def apart(loss: Layer) -> tuple[Layer | None, Any]:
    """(the layer that a loss fuses or None, the loss without params).

    Raises `InputError` where a loss with params does not say what it fuses.
    """
    if isinstance(loss, FromValue):
        return None, loss.loss
    if not hasattr(loss, "unfused"):
        raise InputError(
            f"curvature: the loss {type(loss).__name__} is a layer with params, and says nothing of the curvature at "
            "its end. Give it a method unfused() -> (layer, loss): what it fuses, with the same params."
        )
    return loss.unfused()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Opened:
    """One forward up to the output that a loss without params meets, and the way back, for as many seeds as wanted."""

    cost: Any = field(metadata=_static)
    network: tuple[Any, Any]  # (output, back) of the network
    fused: Any  # those of the layer that the loss fuses, or None

    @classmethod
    def of(cls, cost: Any, params: Any, x: Any, context: Context) -> "Opened":
        """Forward once. Raises `InputError` where the loss does not say what it fuses."""
        net, own = cost._apart(params)
        layer, _ = apart(cost.loss_layer)
        network = run(cost.network.layer, net, x, context)
        if layer is None:
            return cls(cost, network, None)
        leaves = cast(cost._loss_leaves.filled(net, own), cost.network.layer.inner_dtype(params))
        return cls(cost, network, run(layer, leaves, network[0], context.child("loss")))

    @property
    def output(self) -> Any:
        """What the loss meets."""
        return (self.fused or self.network)[0]

    @property
    def loss(self) -> Any:
        """The loss without params."""
        return apart(self.cost.loss_layer)[1]

    def back(self, delta: Any, read: Any) -> Any:
        """The readings, in the structure of the cost's params, of δ at the output, of any float dtype."""
        delta, leaves = jax.tree.map(lambda d, a: d.astype(a.dtype), delta, self.output), self.cost._loss_leaves
        net, own = self.cost._apart(read)
        of_loss: Any = None
        if self.fused is not None:
            delta, of_loss = self.fused[1](delta, leaves.readers(net, own))
            net = leaves.last(net, of_loss)
        return self.cost._together(self.network[1](delta, net)[1], of_loss)


def columns_of(seed: Any, loss: Any, output: Any, y: Any) -> Float[Array, "K N ..."]:
    """The columns S_k of a seed at the output. Raises `InputError` where a loss gives something else."""
    if isinstance(seed, Sampled):
        draw = lambda key: sampled(loss, key, output, y)
        found = jax.vmap(draw)(jax.random.split(seed.key, seed.samples))
        found = jax.tree.map(lambda s: s / np.sqrt(seed.samples).astype(s.dtype), found)
    elif seed == "exact":
        sizes = [a.size * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(loss.hessian_root, output, y))]
        if sum(sizes) > LARGEST_COLUMNS:
            raise InputError(
                f"seed 'exact': the columns of the loss's root would take {sum(sizes) / 2**30:,.1f} GiB at the output, "
                f"more than {LARGEST_COLUMNS / 2**30:g}, and as many of each layer's δ. Draw labels instead, "
                "jbp.Sampled(key, samples), or give fewer examples at once."
            )
        found = loss.hessian_root(output, y)
    else:
        found = jax.tree.map(lambda d: d[None], loss.delta(output, y))
    shapes = lambda tree, skip: jax.tree.map(lambda a: jnp.shape(a)[skip:], tree)
    if shapes(found, 1) != shapes(output, 0):
        raise InputError(
            f"{type(loss).__name__}: the columns of seed {seed if isinstance(seed, str) else 'Sampled'!r} must be "
            f"[K, N, ...] with the output's shape {described(output)}, got {described(found)}. Keep all its axes."
        )
    return found


def sampled(loss: Any, key: PRNGKeyArray, output: Any, y: Any) -> Any:
    """S `[N, ...]` with E[S Sᵀ] = H_n: the loss's own `sampled_root(key, output, y)`, else the δ of a sampled label.

    The second is right where C_n is −log of a likelihood of an exponential family, in its natural parameters.
    """
    if hasattr(loss, "sampled_root"):
        return loss.sampled_root(key, output, y)
    return loss.delta(output, loss.sample(key, output))


def over_columns(quantity: Any) -> Any:
    """Σ over the columns of the seed, inside their `vmap`."""
    return jax.lax.psum(quantity, SEED_COLUMNS)


def same_seed(one: Any, two: Any) -> bool:
    """Whether two seeds are one: the same word, or as many samples of the very same key."""
    if isinstance(one, Sampled) and isinstance(two, Sampled):
        return one.key is two.key and one.samples == two.samples
    return isinstance(one, str) and isinstance(two, str) and one == two


def read_seeds(
    opened: Opened, readouts: tuple[Readout, ...], y: Any, weights: Float[Array, "N"], n: int
) -> tuple[Any, ...]:
    """The results of readouts that have seeds, in their order: one reverse for each seed, whoever asks for it.

    What a readout says of itself besides: `stacks = True`, that it keeps the columns apart, so that its `collect` is
    called for each of them and `finished(result)` is given all, `[K, ...]`; else it adds them by `over_columns`.
    """
    results: dict[int, Any] = {}
    todo = dict(enumerate(readouts))
    while todo:
        seed = seed_of(next(iter(todo.values())))
        group = {i: readout for i, readout in todo.items() if same_seed(seed_of(readout), seed)}
        todo = {i: readout for i, readout in todo.items() if i not in group}
        found = read_columns(opened, tuple(group.values()), columns_of(seed, opened.loss, opened.output, y), weights, n)
        results |= zip(group, found, strict=True)
    return tuple(results[i] for i in range(len(readouts)))


def read_columns(
    opened: Opened, readouts: tuple[Any, ...], deltas: Any, weights: Float[Array, "N"], n: int
) -> tuple[Any, ...]:
    """The results of readouts of one seed, from its columns `[K, N, ...]`."""
    layout = opened.cost.layout
    mine: Any = tuple(replace(readout, seed=None) for readout in readouts)  # whose keys are no vectors
    read = readers_of(mine, layout, weights)

    def column(delta: Any) -> tuple[Any, ...]:
        readings = opened.back(delta, read)
        check_shapes(mine, layout, readings, n)
        return collect(mine, layout, readings)

    apart_ = [getattr(readout, "stacks", False) for readout in mine]
    found = jax.vmap(column, axis_name=SEED_COLUMNS, out_axes=tuple(0 if stacks else None for stacks in apart_))(deltas)
    return tuple(
        readout.finished(result) if stacks else result
        for readout, stacks, result in zip(mine, apart_, found, strict=True)
    )
