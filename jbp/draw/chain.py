"""A network as a chain of neurons, and the numbers of one example in it.

    layer 1       a^1 = x
    layer ℓ       z^ℓ = W^ℓ a^{ℓ-1} + b^ℓ,   a^ℓ = g(z^ℓ)
    cost          C(a^L, y)

g is whatever stands behind the dense layer and has no parameters. Whether it acts on each element alone is found by
trying it at a few points, not by its name, and so is that a layer with leaves w and b is W a + b. Partial derivatives
are those of forward, by autodiff, in the dtype of θ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..layer import Context, batch_of
from ..network import Network


@dataclass(frozen=True, eq=False)
class Chain:
    """Widths of a^1 … a^L and of z^2 … z^L, whether each g is element-wise, and which z each a depends on."""

    widths: tuple[int, ...]
    sums: tuple[int, ...]
    depends: tuple[np.ndarray | None, ...]  # [a, z], None where g is element-wise
    input_is_first: bool  # a^1 is x itself

    @property
    def elementwise(self) -> tuple[bool, ...]:
        return tuple(d is None for d in self.depends)


@lru_cache(maxsize=32)
def chain_of(net: Network) -> Chain | None:
    """The network as a chain of neurons, or None if it is more than that."""
    if not net.layout.is_chain:
        return None
    if len(jax.tree.leaves(net.input)) != 1 or not hasattr(net.input, "shape"):
        return None
    flat = np.zeros(net.layout.size, net.dtype)
    a1, steps = jax.eval_shape(partial(_forward, net), flat, batch_of(net.input))
    if any(getattr(v, "ndim", 0) != 2 for v in (a1, *(v for step in steps for v in step))):
        return None
    depends = _probe(net)
    if depends is None:
        return None
    return Chain(
        (a1.shape[1], *(a.shape[1] for _, a in steps)),
        tuple(z.shape[1] for z, _ in steps),
        depends,
        places_of(net)[0] == 0,
    )


def places_of(net: Network) -> list[int]:
    """Which of the network's layers hold W^2, …, W^L."""
    return sorted({int(name.partition(".")[0]) for name in net.layout.names})


def _blocks(net: Network) -> list[tuple[int, range]]:
    """For ℓ = 2 … L: the place of the dense layer, and the places of the layers behind it."""
    places = places_of(net)
    return [(i, range(i + 1, end)) for i, end in zip(places, [*places[1:], len(net.layers)], strict=True)]


def _through(net: Network, params: Any, places: Sequence[int], x: Any) -> Any:
    for i in places:
        x, _ = net.layers[i].forward(params[i], x, Context())
    return x


def _forward(net: Network, theta: Any, x: Any) -> Any:
    """(a^1, [(z^ℓ, a^ℓ)])."""
    params = net.layout.unflatten(theta)
    a = first = _through(net, params, range(places_of(net)[0]), x)
    steps = []
    for i, behind in _blocks(net):
        z = _through(net, params, [i], a)
        a = _through(net, params, behind, z)
        steps.append((z, a))
    return first, steps


def _jacobian(net: Network, params: Any, behind: range, z: Any) -> Any:
    """∂a/∂z `[a, z]` of the layers behind a dense one, at z `[z]`."""
    return jax.jacrev(lambda z: _through(net, params, behind, z[None])[0])(z)


def _probe(net: Network) -> tuple[np.ndarray | None, ...] | None:
    """Which z each a depends on, None where g is element-wise; None if a layer is not W a + b. Tried at random points.

    Element-wise: where some of the z change, only those a change.
    """
    rng = np.random.default_rng(0)
    theta = rng.standard_normal(net.layout.size).astype(net.dtype)
    leaves = dict(zip(net.layout.names, pieces_of(net, theta), strict=True))
    w = [leaves[f"{i}.w"] for i in places_of(net)]
    x = [rng.standard_normal((2, len(kernel))).astype(net.dtype) for kernel in w]
    z = [rng.standard_normal((4, kernel.shape[1])).astype(net.dtype) for kernel in w]
    change = [rng.random(points.shape) < 0.5 for points in z]
    moved = [np.where(c, points + 1, points).astype(net.dtype) for c, points in zip(change, z, strict=True)]
    got, before, after = jax.tree.map(np.asarray, _try(net, theta, x, z, moved))
    for i, a, kernel, found in zip(places_of(net), x, w, got, strict=True):
        due = a @ kernel + leaves.get(f"{i}.b", 0)
        if found.shape != due.shape or not np.abs(found - due).max() <= 1e-3 * np.abs(due).max():
            return None
    alone = [
        a.shape == c.shape and np.array_equal(a[~c], b[~c], equal_nan=True)
        for c, a, b in zip(change, before, after, strict=True)
    ]
    mixing = tuple(l for l, elementwise in enumerate(alone) if not elementwise)
    jacobians = dict(zip(mixing, _try_mixing(net, mixing, theta, z) if mixing else (), strict=True))
    return tuple((np.asarray(jacobians[l]) != 0).any(0) if l in jacobians else None for l in range(len(z)))


@partial(jax.jit, static_argnums=0)
def _try(net: Network, theta: Any, x: list[Any], z: list[Any], moved: list[Any]) -> Any:
    """What each dense layer makes of x, and what the layers behind it make of z and of z moved."""
    params = net.layout.unflatten(theta)
    got = [_through(net, params, [i], a) for i, a in zip(places_of(net), x, strict=True)]
    behind = [places for _, places in _blocks(net)]
    before, after = (
        [_through(net, params, b, points) for b, points in zip(behind, given, strict=True)] for given in (z, moved)
    )
    return got, before, after


@partial(jax.jit, static_argnums=(0, 1))
def _try_mixing(net: Network, which: tuple[int, ...], theta: Any, z: list[Any]) -> Any:
    """∂a/∂z at each z, of those blocks."""
    params, blocks = net.layout.unflatten(theta), _blocks(net)
    return [jax.vmap(partial(_jacobian, net, params, blocks[l][1]))(z[l]) for l in which]


def pieces_of(net: Network, theta: np.ndarray) -> list[np.ndarray]:
    """The leaves of θ, in NumPy."""
    layout = net.layout
    return [theta[i : i + n].reshape(s) for i, n, s in zip(layout.offsets, layout.sizes, layout.shapes, strict=False)]


# -- the numbers of one example ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Numbers:
    """All values of one example and all local derivatives, as NumPy arrays. `cost_of_y` is None for labels."""

    w: list[np.ndarray]  # [j, k]
    b: list[np.ndarray | None]
    a: list[np.ndarray]  # a^1 … a^L
    z: list[np.ndarray]
    slope: list[np.ndarray]  # ∂a/∂z: [a, z], its diagonal where g is element-wise
    y: Any  # an array, or a label
    cost: float
    cost_of_a: np.ndarray
    cost_of_y: np.ndarray | None


def numbers_of(cost: Any, chain: Chain, theta: Any, x: Any, y: Any) -> Numbers:
    """The numbers at one example: x `[1, *input]` and its y."""
    net = cost.network
    x = x.astype(theta.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
    leaves = dict(zip(net.layout.names, pieces_of(net, np.asarray(theta)), strict=True))
    to_numpy = partial(jax.tree.map, np.asarray)
    a1, steps, slopes, value, of_a, of_y = to_numpy(_numbers(cost, chain.elementwise, theta, x, y))
    return Numbers(
        w=[np.asarray(leaves[f"{i}.w"]).T for i in places_of(net)],
        b=[None if (b := leaves.get(f"{i}.b")) is None else np.asarray(b) for i in places_of(net)],
        a=[a1[0], *(a[0] for _, a in steps)],
        z=[z[0] for z, _ in steps],
        slope=slopes,
        y=np.asarray(y)[0],
        cost=float(value),
        cost_of_a=of_a[0],
        cost_of_y=None if of_y is None else of_y[0],
    )


@partial(jax.jit, static_argnums=(0, 1))
def _numbers(cost: Any, elementwise: tuple[bool, ...], theta: Any, x: Any, y: Any) -> Any:
    net = cost.network
    params = net.layout.unflatten(theta)
    a1, steps = _forward(net, theta, x)
    slopes = []
    for (_, behind), alone, (z, _) in zip(_blocks(net), elementwise, steps, strict=True):
        if alone:  # (1, …, 1) times a diagonal matrix
            a, pull = jax.vjp(partial(_through, net, params, behind), z)
            slopes.append(pull(jnp.ones_like(a))[0][0])
        else:
            slopes.append(_jacobian(net, params, behind, z[0]))
    value = lambda a, y: cost.loss.value(a, y).sum()
    if jnp.issubdtype(y.dtype, jnp.floating):
        C, (of_a, of_y) = jax.value_and_grad(value, (0, 1))(steps[-1][1], y)
    else:
        (C, of_a), of_y = jax.value_and_grad(value)(steps[-1][1], y), None
    return a1, steps, slopes, C, of_a, of_y
