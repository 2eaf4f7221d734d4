"""The neural tangent kernel: inner products of the outputs' derivatives by θ, without the Jacobian.

    Θ_{nm,cd} = ⟨∂f_c(x1_n)/∂θ, ∂f_d(x2_m)/∂θ⟩ = Σ over the leaves of pair(n, c).dots(pair(m, d))

The seeds are one-hot: row c of the identity, for all examples at once, gives the pairs of ∂f_c. Of a kernel without
positions its share is ⟨a_n, a'_m⟩⟨δ_nc, δ'_md⟩, N·M·(I + C²·O) in place of N·M·C²·I·O by contracting Jacobians. Jacot
et al. 2018, arXiv:1806.07572; Novak et al. 2022, arXiv:2206.08720 (the structure of a leaf used in the same way).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .errors import is_number
from .layer import Context, InputError, Theta, batch_of, says
from .meshes import jitted
from .network import Network
from .outside import check_arrays
from .pair import Outer, Pair
from .reader import read_pair
from .recomputed import cut, size_of_pieces
from .run import run
from .uses import Several, Stack


def ntk(
    net: Network,
    theta: Theta,
    x1: Any,
    x2: Any = None,
    *,
    trace: bool = False,
    diagonal: bool = False,
    memory: int = 1 << 29,
) -> Float[Array, "N M ..."]:
    """Θ `[N, M, C, C]` of N examples x1 with M examples x2, with x1 itself unless given; C outputs, ravelled.

    `trace`: `[N, M]`, the mean (1/C) Σ_c Θ_{nm,cc}, as neural-tangents' `trace_axes` has it. `diagonal`: `[N, M, C]`,
    Θ_{nm,cc}. Leaves that are held fixed do not count. `memory`: bytes that a block of x1 with a block of x2 may take,
    by a count of their pairs and of the largest leaf's products; the result itself comes on top. Raises `InputError`
    where that is too little for one example with one other, for a network that mixes examples, and for both forms.
    """
    check_arrays(theta=theta, x1=x1, x2=x2)
    if not isinstance(net, Network):
        raise InputError(f"ntk: expected a Network first, got {type(net).__name__}. As in ntk(net, theta, x1, x2).")
    if not is_number(memory):
        raise InputError(f"ntk: memory must be a number of bytes, got {memory!r}. As in memory=1 << 29.")
    if trace and diagonal:
        raise InputError("ntk: trace and diagonal are two forms of the result. Ask for one of them.")
    if (who := says(net.layer.layers, "mixes_examples")) is not None:
        raise InputError(f"ntk: layer {who} mixes the examples of a batch, so that no output belongs to one.")
    leaves = jax.tree.leaves(net.output)
    if len(leaves) != 1 or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise InputError("ntk: expected a network with one array of floats as output. Take a network up to such a one.")
    net.layout.check(theta)
    x1 = net.layer.check(x1)
    x2 = x1 if x2 is None else net.layer.check(x2)
    form = "mean" if trace else "diagonal" if diagonal else "full"
    sizes = _sizes(net, form, jax.tree.leaves(x1)[0].shape[0], jax.tree.leaves(x2)[0].shape[0], memory)
    return _ntk(net, form, sizes, jnp.asarray(theta), x1, x2)


@jitted(0, 1, 2)
def _ntk(net, form, sizes, theta, x1, x2):
    params = net.layout.unflatten(theta)
    (n, m), counts = sizes, [jax.tree.leaves(x)[0].shape[0] for x in (x1, x2)]
    blocks1, blocks2 = (jax.tree.map(lambda a, size=size: cut(a, 0, size), x) for x, size in ((x1, n), (x2, m)))
    block = lambda one: jax.lax.map(lambda two: _block(net, form, params, one, two), blocks2)
    found = jnp.moveaxis(jax.lax.map(block, blocks1), 2, 1)  # [blocks, n, blocks, m, ...]
    joined = found.reshape(found.shape[0] * n, found.shape[2] * m, *found.shape[4:])
    return joined[: counts[0], : counts[1]]


def _block(net: Network, form: str, params: Any, x1: Any, x2: Any) -> Float[Array, "n m ..."]:
    """Θ of two blocks of examples, from one forward and C columns back of each."""
    one, two = _Way.of(net, params, x1), _Way.of(net, params, x2)
    eye = jnp.eye(one.size, dtype=one.dtype)
    if form == "full":  # the columns of each side are those of one vmap: what does not depend on them is computed once
        of_two = lambda pairs: jax.vmap(lambda d: _dots(pairs, two.pairs(d)))(eye)
        found = jax.vmap(lambda c: of_two(one.pairs(c)))(eye)
        return jnp.moveaxis(found, (0, 1), (2, 3))
    found = jax.vmap(lambda c: _dots(one.pairs(c), two.pairs(c)))(eye)
    return found.mean(0) if form == "mean" else jnp.moveaxis(found, 0, -1)


def _dots(ones: list[Pair], twos: list[Pair]) -> Float[Array, "n m"]:
    dots = [one.dots(two) for one, two in zip(ones, twos, strict=True) if jax.tree.leaves(one)]
    return sum(dots[1:], dots[0])


class _Way:
    """The way back from the output of one block of examples."""

    def __init__(self, back: Any, shape: tuple[int, ...], dtype: Any):
        self.back, self.shape, self.dtype, self.size = back, shape, dtype, math.prod(shape[1:])

    @classmethod
    def of(cls, net: Network, params: Any, x: Any) -> "_Way":
        output, back = run(net.layer, params, x, Context())
        output = jax.tree.leaves(output)[0]
        return cls(back, output.shape, output.dtype)

    def pairs(self, column: Float[Array, "C"]) -> list[Any]:
        """The pairs of ∂f_c, a leaf each, from the one-hot row c."""
        delta = jnp.broadcast_to(column.reshape(1, *self.shape[1:]), self.shape)
        _, pairs = self.back(delta, read_pair)
        return jax.tree.leaves(pairs, is_leaf=lambda node: isinstance(node, Pair))


# -- the memory budget ------------------------------------------------------------------------------------------------


def _sizes(net: Network, form: str, n: int, m: int, memory: int) -> tuple[int, int]:
    """How many examples of each side a block has: as many as the budget holds, alike."""
    params = jax.eval_shape(net.layout.unflatten, jax.ShapeDtypeStruct((net.layout.size,), net.layout.dtype))

    def pairs(params: Any, x: Any) -> Any:
        way = _Way.of(net, params, x)
        return way.pairs(jnp.zeros(way.size, way.dtype))

    ones = jax.eval_shape(pairs, params, batch_of(net.input))
    if not any(jax.tree.leaves(one) for one in ones):
        raise InputError("ntk: the network has no leaf that is not held fixed, so its derivative by θ is empty.")
    c = math.prod(jax.tree.leaves(net.output)[0].shape)
    needs = lambda size: _bytes(ones, form, c, size)
    if needs(1) > memory:
        raise InputError(
            f"ntk: one example with one other takes about {needs(1):,} bytes, and memory={memory:,}. Give it more, or "
            "ask for trace=True or diagonal=True."
        )
    low, high = 1, max(n, m)
    while low < high:  # the largest size that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needs(middle) <= memory else (low, middle - 1)
    return size_of_pieces(n, low), size_of_pieces(m, low)


def _bytes(ones: list[Any], form: str, c: int, n: int) -> int:
    """About how many bytes a block of n × n examples takes: the pairs of both, and the largest leaf's products."""
    pairs = 2 * n * c * sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(ones))
    columns = c * c if form == "full" else c
    return pairs + max(_products(one, c, columns, n) for one in ones)


def _products(pair: Any, c: int, columns: int, n: int) -> int:
    """Bytes of what `dots` holds of one leaf: inner products at all positions of both, or the gradients g_n."""
    if isinstance(pair, Stack):
        blocks = jax.tree.leaves(pair)[0].shape[0] if jax.tree.leaves(pair) else 0
        inner = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), pair.blocks)
        return blocks * _products(inner, c, columns, n)
    if isinstance(pair, Several):
        return _rows(pair, c, columns, n)
    if not isinstance(pair, Outer):
        return _rows(pair, c, columns, n) if jax.tree.leaves(pair) else 0
    (_, t, i), o = pair.a.shape, pair.delta.shape[2]
    if n * n * t * t * (i + o) > (2 * n * t + n * n) * i * o:  # as `Outer.dots` chooses
        return _rows(pair, c, columns, n)
    return 3 * columns * n * n * t * t * _itemsize(pair)


def _rows(pair: Any, c: int, columns: int, n: int) -> int:
    leaf = jax.eval_shape(lambda pair: pair.gradient(), pair)
    return (2 * c * n * leaf.size + 2 * columns * n * n) * _itemsize(pair)


def _itemsize(pair: Any) -> int:
    return max(4, *(np.dtype(a.dtype).itemsize for a in jax.tree.leaves(pair)))
