"""KFRA: Kronecker factors of the GGN's blocks from one recursion of averages, for plain chains of dense layers.

    at the output           G = Σ_n w_n H_n                                 H_n the loss's Hessian
    through a = f(z)        G ← G ∘ Σ_n ŵ_n f′(z_n) f′(z_n)ᵀ                w_n the factors of C_n in C
    through z = a·W + b     G ← W G Wᵀ, and A = Σ_n ŵ_n a_n a_nᵀ            ŵ_n = w_n / Σ_n w_n

`KroneckerFactors` averages once, at the leaf; here each step averages, so that one matrix goes back and no example's
own δ: the way back takes I·O·(I + O) a layer, whatever the number of examples and of columns. It gives the same for one
example, and the same G where no function stands between dense layers. Source: Botev, Ritter & Barber 2017,
arXiv:1706.03662.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .chain import Chain, chain_of
from .kronecker import Factors, second_moment
from .layer import Context, InputError, Theta, wide
from .meshes import jitted
from .network import cast
from .outside import check_arrays
from .reader import read_nothing
from .reverse import Cost
from .seeds import apart, check_has, columns_of


def kfra(
    cost: Cost, theta: Theta, x: Any, y: Any, *, weights: Any = None, context: Context = Context()
) -> dict[str, Factors]:
    """{leaf's name: (A, G)}, as `KroneckerFactors` gives them: of a kernel `[I, O]` `[I, I]` and `[O, O]`, of a bias
    [[1]] and `[O, O]`.

    Raises `InputError` off a plain chain of dense layers and element-wise functions, for a loss with params, and for
    one without `hessian_root`.
    """
    if not isinstance(cost, Cost):
        raise InputError(f"kfra: expected a Cost first, got {type(cost).__name__}. As in jbp.kfra(cost, theta, x, y).")
    check_arrays(theta=theta, x=x, y=y, weights=weights)
    chain, (fused, loss) = chain_of(cost.network), apart(cost.loss_layer)
    if chain is None or fused is not None or not all(chain.elementwise):
        raise InputError(
            "kfra: expected a plain chain of dense layers and element-wise functions, and a loss without params: "
            "averages over the examples have no rule elsewhere. Read jbp.KroneckerFactors(), which averages at leaves."
        )
    check_has("kfra", loss, "hessian_root", "no curvature")
    return _factors(cost, chain, theta, x, y, weights, context)


@jitted(0, 1)
def _factors(cost: Cost, chain: Chain, theta: Any, x: Any, y: Any, weights: Any, context: Context) -> Any:
    params = cost.layout.unflatten(theta)
    x, y = cost._check(x, y, weights, context)
    w, dtype = cost._factors(params, x, y, weights), cost.network.layer.inner_dtype(params)
    mean, met, kept = w / w.sum(), [cast(x, dtype)], []
    steps = list(zip(cost.network.layers, cast(params, dtype), strict=True))
    for layer, its in steps:
        output, saved = layer.forward(its, met[-1], context)
        met.append(output)
        kept.append(saved)
    G = second_moment(jnp.moveaxis(wide(columns_of("exact", apart(cost.loss_layer)[1], met[-1], y)), 0, 1), w)
    of_leaf: list[Factors] = []
    for i in range(len(steps) - 1, chain.places[0] - 1, -1):
        layer, its = steps[i]
        if i in chain.places:
            A = second_moment(wide(met[i])[:, None], mean)
            leaves = jax.tree.leaves(its)
            of_leaf = [Factors(A if leaf.ndim == 2 else jnp.ones((1, 1), G.dtype), G) for leaf in leaves] + of_leaf
            kernel = wide(next(leaf for leaf in leaves if leaf.ndim == 2))
            G = kernel @ G @ kernel.T
        else:
            slope, _ = layer.backward((), (), kept[i], jnp.ones_like(met[i + 1]), read_nothing)
            G = G * second_moment(wide(slope)[:, None], mean)
    return dict(zip(cost.layout.names, of_leaf, strict=True))
