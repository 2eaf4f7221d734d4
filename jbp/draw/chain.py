"""A network as a chain of neurons, and the numbers of one example in it.

    layer 1       a^1 = x
    layer ℓ       z^ℓ = W^ℓ a^{ℓ-1} + b^ℓ,   a^ℓ = g(z^ℓ)
    cost          C(a^L, y)

g is whatever stands behind the dense layer and has no parameters. Whether it acts on each element alone is found by
trying it at a few points, not by its name; so is that a layer with leaves w and b is W a + b, and that what comes back
through a layer is its derivative: a chain's numbers are those of forward, by autodiff, in the dtype of θ.
"""

import itertools
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..layer import Context, batch_of
from ..network import Network
from ..reader import bound, read_gradient, readers
from .marks import title_of


@dataclass(frozen=True, eq=False)
class Chain:
    """Widths of a^1 … a^L and of z^2 … z^L, the name of each g, and which z each a depends on."""

    widths: tuple[int, ...]
    sums: tuple[int, ...]
    g: tuple[str, ...]  # of layers 2 … L, empty where there is none
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
    flow, flat = [batch_of(net.input)], np.zeros(net.layout.size, net.dtype)
    for layers, params in _stretches(net, flat):
        flow.append(jax.eval_shape(partial(_through, layers), params, flow[-1]))
    if any(getattr(v, "ndim", 0) != 2 for v in flow[1:]):
        return None
    widths = [v.shape[1] for v in flow[1:]]
    behind = [layers for layers, _ in _stretches(net, flat)[2::2]]
    depends = _probe(net)
    if depends is None:
        return None
    names = tuple(", ".join(map(title_of, layers)) for layers in behind)
    return Chain(tuple(widths[::2]), tuple(widths[1::2]), names, depends, places_of(net)[0] == 0)


def places_of(net: Network) -> list[int]:
    """Which of the network's layers hold W^2, …, W^L."""
    return sorted({int(name.partition(".")[0]) for name in net.layout.names})


Stretch = tuple[Any, Any]  # layers one after another, and the params of each


def _stretches(net: Network, theta: np.ndarray) -> list[Stretch]:
    """What is before the first dense layer; then by turns a dense layer, and what is behind it."""
    params = jax.tree.unflatten(net.layout.treedef, pieces_of(net, theta))
    cuts = [0, *(cut for i in places_of(net) for cut in (i, i + 1)), len(net.layers)]
    return [(net.layers[i:end], params[i:end]) for i, end in itertools.pairwise(cuts)]


@partial(jax.jit, static_argnums=0)
def _through(layers: tuple, params: tuple, x: Any) -> Any:
    for layer, its in zip(layers, params, strict=True):
        x, _ = layer.forward(its, x, Context())
    return x


@partial(jax.jit, static_argnums=0)
def _back(layers: tuple, params: tuple, x: Any, delta: Any) -> Any:
    """(∂C/∂params, δ at x): by the derivative of forward, and by the layers' own backward."""
    due = jax.vjp(partial(_through, layers), params, x)[1](delta)
    kept = []
    for layer, its in zip(layers, params, strict=True):
        x, saved = layer.forward(its, x, Context())
        kept.append(saved)
    readings = []
    for layer, its, saved in reversed(list(zip(layers, params, kept, strict=True))):
        delta, read = layer.backward(its, its, saved, delta, bound(its, readers(its, read_gradient)))
        readings.append(read)
    return due, (tuple(readings[::-1]), delta)


@partial(jax.jit, static_argnums=0)
def _jacobian(layers: tuple, params: tuple, z: Any) -> Any:
    """∂a/∂z `[a, z]` of the layers behind a dense one, at z `[z]`."""
    return jax.jacrev(lambda z: _through(layers, params, z[None])[0])(z)


def _probe(net: Network) -> tuple[np.ndarray | None, ...] | None:
    """Which z each a depends on, None where g is element-wise; None if it is no chain. Tried at random points.

    Element-wise: where some of the z change, only those a change.
    """
    rng = np.random.default_rng(0)
    normal = lambda *shape: np.asarray(rng.standard_normal(shape)).astype(net.dtype)
    theta = normal(net.layout.size)
    stretches, kernels = _stretches(net, theta), _affine(net, theta)
    depends: list[np.ndarray | None] = []
    for (dense, affine), (behind, params), (w, b) in zip(stretches[1::2], stretches[2::2], kernels, strict=True):
        x, z = normal(2, w.shape[0]), normal(4, w.shape[1])
        y, a = (np.asarray(_through(*stretch)) for stretch in ((dense, affine, x), (behind, params, z)))
        if not _same(y, x @ w + (0 if b is None else b), net.dtype):
            return None
        for layers, its, points, output in ((dense, affine, x, y), (behind, params, z, a)):
            size = 10.0 ** rng.permutation([-3, 3, 0, 0])[: len(points), None]  # not linear in δ: seen at one of them
            try:
                back = _back(layers, its, points, (size * normal(*output.shape)).astype(output.dtype))
            except Exception:  # not written yet, or wrong: whoever asks for its numbers will see
                return None
            due, own = ((*jax.tree.leaves(read), at_x / size) for read, at_x in jax.tree.map(np.asarray, back))
            if not all(_same(*pair, net.dtype) for pair in zip(own, due, strict=True)):
                return None
        change = rng.random(z.shape) < 0.5
        moved = np.asarray(_through(behind, params, np.where(change, z + 1, z).astype(net.dtype)))
        if a.shape == z.shape and np.array_equal(a[~change], moved[~change], equal_nan=True):
            depends.append(None)
        else:
            depends.append(np.any([np.asarray(_jacobian(behind, params, at)) != 0 for at in z], axis=0))
    return tuple(depends)


def _same(found: np.ndarray, due: np.ndarray, dtype: Any) -> bool:
    """Whether two arrays agree up to rounding, row by row; terms of about 1 may have cancelled."""
    if found.shape != due.shape:
        return False
    eps = float(jnp.finfo(dtype).eps)
    found, due = found.astype(np.float64), due.astype(np.float64)
    away, scale = np.nan_to_num(np.abs(found - due)), np.nan_to_num(np.abs(due))
    allowed = (1e-3 + 16 * eps) * scale.max(-1) + 16 * eps
    return bool((away.max(-1) <= allowed).all()) and np.array_equal(np.isnan(found), np.isnan(due))


def pieces_of(net: Network, theta: np.ndarray) -> list[np.ndarray]:
    """The leaves of θ, in NumPy."""
    layout = net.layout
    return [theta[i : i + n].reshape(s) for i, n, s in zip(layout.offsets, layout.sizes, layout.shapes, strict=False)]


def _affine(net: Network, theta: np.ndarray) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """The kernel `[k, j]` and the bias of each dense layer, from θ."""
    leaves = dict(zip(net.layout.names, pieces_of(net, theta), strict=True))
    return [(leaves[f"{i}.w"], leaves.get(f"{i}.b")) for i in places_of(net)]


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
    net, theta = cost.network, np.asarray(theta)
    x = x.astype(theta.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
    before, *stretches = _stretches(net, theta)
    a, z, slope = [_through(*before, x)], [], []
    for dense, behind, alone in zip(stretches[::2], stretches[1::2], chain.elementwise, strict=True):
        z.append(_through(*dense, a[-1]))
        a.append(_through(*behind, z[-1]))
        if alone:  # (1, …, 1) times a diagonal matrix
            slope.append(_back(*behind, z[-1], jnp.ones_like(a[-1]))[0][1][0])
        else:
            slope.append(_jacobian(*behind, z[-1][0]))
    value, of_a, of_y = _ended(cost.loss_layer, cost.loss_params(theta), a[-1], y)
    return Numbers(
        w=[w.T for w, _ in _affine(net, theta)],
        b=[b for _, b in _affine(net, theta)],
        a=[np.asarray(v[0]) for v in a],
        z=[np.asarray(v[0]) for v in z],
        slope=[np.asarray(v) for v in slope],
        y=np.asarray(y)[0],
        cost=float(value),
        cost_of_a=np.asarray(of_a[0]),
        cost_of_y=None if of_y is None else np.asarray(of_y[0]),
    )


@partial(jax.jit, static_argnums=0)
def _ended(loss: Any, params: Any, a: Any, y: Any) -> Any:
    """(C, ∂C/∂a, ∂C/∂y), the last None for labels."""
    value = lambda a, y: loss.forward(params, (a, y), Context())[0].sum()
    if jnp.issubdtype(y.dtype, jnp.floating):
        C, (of_a, of_y) = jax.value_and_grad(value, (0, 1))(a, y)
        return C, of_a, of_y
    return *jax.value_and_grad(value)(a, y), None
