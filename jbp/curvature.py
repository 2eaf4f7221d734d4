"""Products with curvature: H v, and J (loss's Hessian) Jᵀ v, without any matrix of P × P.

    hvp     H v = ∂/∂ε ∇C(θ + εv) at ε = 0: forward-mode autodiff of the hand-written gradient (Pearlmutter 1994)
    fvp     Σ_n w_n J_nᵀ M_n J_n v, J_n = ∂output_n/∂θ: J_n v by forward-mode autodiff of the forward, then M_n, then
            back by the hand-written reverse of the same forward (Schraudolph 2002). w_n: the factors of C_n in C

    diagonal  of H: by P products with unit vectors, or from few with random signs: E[v ⊙ H v] (Bekas et al. 2007), or
              XDiag (Epperly, Tropp & Webber 2024, arXiv:2301.07825), below

    M_n = H_n, the loss's Hessian      the generalised Gauss-Newton matrix (GGN)
    M_n = Σ_k S_k S_kᵀ of a seed       the Fisher matrix, by sampled labels or by those that are given

Shapes: v `[P]` like θ, or several `[K, P]`, which share the forward. A leaf that is held fixed has no derivative: v is
taken as 0 there, and the product is 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .errors import arrived, check_whole
from .layer import InputError, batch_of
from .meshes import as_leaves, jitted
from .outside import check_arrays, check_key
from .reader import read_gradient
from .readouts import Split
from .seeds import Opened, apart, check_has, check_seed, columns_of


def _check_vector(cost: Any, v: Any) -> None:
    """Raise `InputError` unless v is a vector like θ, or several."""
    size, shape = cost.layout.size, jnp.shape(v) if hasattr(v, "shape") else ()
    real = shape and not jnp.issubdtype(v.dtype, jnp.complexfloating)
    if len(shape) not in (1, 2) or shape[-1] != size or not real:
        raise InputError(
            f"v: expected a vector [P] = [{size}] like theta, or several [K, {size}], got {arrived(v)}. Make it with "
            "layout.flatten(tree)."
        )


def hvp(cost: Any, theta: Any, x: Any, y: Any, v: Any, weights: Any, context: Any) -> Float[Array, "*K P"]:
    """H v."""
    check_arrays(theta=theta, x=x, y=y, v=v, weights=weights)
    _check_vector(cost, v)
    return _products(cost, None, (), theta, x, y, v, weights, context)


def ggnvp(cost: Any, theta: Any, x: Any, y: Any, v: Any, weights: Any, context: Any) -> Float[Array, "*K P"]:
    """The GGN's product."""
    check_arrays(theta=theta, x=x, y=y, v=v, weights=weights)
    _check_vector(cost, v)
    check_has("Cost.ggnvp", apart(cost.loss_layer)[1], "hessian_product", "no curvature")
    return _products(cost, *Split.of(("exact",)), theta, x, y, v, weights, context)


def fvp(cost: Any, theta: Any, x: Any, y: Any, v: Any, seed: Any, weights: Any, context: Any) -> Float[Array, "*K P"]:
    """The Fisher matrix's product."""
    check_arrays(theta=theta, x=x, y=y, v=v, weights=weights)
    _check_vector(cost, v)
    check_seed("Cost.fvp", seed, cost.loss_layer)
    if seed == "exact":
        layer, loss = apart(cost.loss_layer)
        check_has("Cost.fvp", loss, "sample", "no likelihood")
        check_has("Cost.fvp", loss, "hessian_product", "no curvature")
        if layer is None:  # one that only says so raises here
            jax.eval_shape(loss.sample, jax.random.key(0), batch_of(cost.network.output))
    return _products(cost, *Split.of((seed,)), theta, x, y, v, weights, context)


def hessian_diagonal(
    cost: Any,
    theta: Any,
    x: Any,
    y: Any,
    key: Any,
    samples: Any,
    estimator: Any,
    chunk: Any,
    weights: Any,
    context: Any,
) -> tuple[Float[Array, "P"], Float[Array, "P"]]:
    """(diagonal, its standard error)."""
    check_arrays(theta=theta, x=x, y=y, weights=weights)
    if key is not None:
        check_key("Cost.hessian_diagonal", key, "key={}")
    if estimator not in ("signs", "xdiag"):
        raise InputError(f"Cost.hessian_diagonal: estimator must be 'signs' or 'xdiag', got {estimator!r}.")
    check_whole("Cost.hessian_diagonal", least=4 if estimator == "xdiag" else 2, samples=samples)
    check_whole("Cost.hessian_diagonal", chunk=chunk)
    if key is not None and estimator == "xdiag" and samples // 2 > cost.layout.size:
        raise InputError(
            f"Cost.hessian_diagonal: {samples} products are more than two for each of {cost.layout.size} parameters. "
            "Leave out the key: without one the diagonal is exact."
        )
    return _diagonal(cost, estimator, int(samples), int(chunk), jnp.asarray(theta), x, y, key, weights, context)


@jitted(0, 1, 2, 3, cuts=as_leaves(4))
def _diagonal(cost, estimator, samples, chunk, theta, x, y, key, weights, context):
    cost.layout.check(theta)
    product = lambda v: _products(cost, None, (), theta, x, y, v, weights, context)
    if key is None:
        entry = lambda i: product(jnp.zeros_like(theta).at[i].set(1))[i]
        exact = jax.lax.map(entry, jnp.arange(theta.size), batch_size=min(chunk, theta.size))
        return exact, jnp.zeros_like(exact)
    if estimator == "xdiag":
        return _xdiag(product, jax.random.rademacher(key, (samples // 2, theta.size), theta.dtype), chunk)

    def add(so_far: Any, drawn: Any) -> tuple[Any, None]:  # the mean, and the sum of squares about it (Welford 1962)
        mean, squares = so_far
        i, key = drawn
        v = jax.random.rademacher(key, theta.shape, theta.dtype)
        off = v * product(v) - mean
        mean = mean + off / (i + 1)
        return (mean, squares + off * off * (i / (i + 1))), None

    each = jnp.arange(samples, dtype=theta.dtype), jax.random.split(key, samples)
    mean, squares = jax.lax.scan(add, (jnp.zeros_like(theta), jnp.zeros_like(theta)), each)[0]
    return mean, jnp.sqrt(squares / ((samples - 1) * samples))


def _xdiag(product: Any, signs: Float[Array, "M P"], chunk: int) -> tuple[Float[Array, "P"], Float[Array, "P"]]:
    """(diagonal of H, its standard error): exact on a space of M directions, and random signs for what is left.

    Q spans all H ω_i, and Q_i those of the others: d_i = diag(Q_i Q_iᵀ H) + ω_i ⊙ (1 − Q_i Q_iᵀ) H ω_i has the diagonal
    for its mean, and M of them cost what one does, 2M products. With H Ω = Q R, Q_i Q_iᵀ = Q (1 − s_i s_iᵀ) Qᵀ for
    s_i = R⁻ᵀ e_i / ‖R⁻ᵀ e_i‖, and what Q_i leaves of H ω_i is Q s_i / ‖R⁻ᵀ e_i‖.
    """
    m = len(signs)
    products = lambda rows: jax.lax.map(product, rows, batch_size=min(chunk, m))
    Q, R = jnp.linalg.qr(products(signs).T)
    d, tiny = jnp.diagonal(R), jnp.finfo(R.dtype)
    least = jnp.maximum(tiny.eps * jnp.abs(d).max(), tiny.tiny)  # fewer directions than M have a row of zeros
    R = R + jnp.diag(jnp.where(jnp.abs(d) < least, least - d, 0))
    S = jax.scipy.linalg.solve_triangular(R, jnp.eye(m, dtype=R.dtype), trans="T")
    lengths = jnp.linalg.norm(S, axis=0)
    S = S / lengths[None]
    HQ, QS = products(Q.T).T, Q @ S
    each = (Q * HQ).sum(1)[:, None] + QS * (signs.T / lengths[None] - HQ @ S)
    return each.mean(1), each.std(1, ddof=1) / m**0.5


@jitted(0, 1, cuts=as_leaves(3))
def _products(cost, split, arrays, theta, x, y, v, weights, context):
    layout, v = cost.layout, jnp.asarray(v)
    params = layout.unflatten(theta)
    x, y = cost._check(x, y, weights, context)

    def product(v: Any) -> Any:
        leaves = zip(layout.leaves(v.astype(theta.dtype)), layout.trainable, strict=True)
        tangent = layout.treedef.unflatten([part if free else jnp.zeros_like(part) for part, free in leaves])
        if split is None:
            gradient = lambda params: cost.value_and_grad_leaves(params, x, y, weights=weights, context=context)[1]
            found = jax.jvp(gradient, (params,), (tangent,))[1]
        else:
            found = _gauss_newton(cost, split.filled(arrays)[0], params, tangent, x, y, weights, context)
        found = layout.filled(found, theta.dtype)
        return layout.flatten(jax.tree.map(lambda leaf, g: g.astype(leaf.dtype), params, found))

    return product(v) if v.ndim == 1 else jax.vmap(product)(v)


def _gauss_newton(cost, seed, params, tangent, x, y, weights, context):
    """Σ_n w_n J_nᵀ M_n J_n v on leaves; None at those that are held fixed."""

    def forward(params: Any) -> tuple[Any, Opened]:
        opened = Opened.of(cost, params, x, context)
        return opened.output, opened

    output, along, opened = jax.jvp(forward, (params,), (tangent,), has_aux=True)  # J v
    loss, n = opened.loss, jax.tree.leaves(output)[0].shape[0]
    if seed == "exact":
        met = loss.hessian_product(output, y, along)
    else:
        roots = columns_of(seed, loss, output, y)
        each = jax.tree.map(lambda s, a: (s * a.astype(s.dtype)[None]).reshape(*s.shape[:2], -1).sum(2), roots, along)
        dots: Any = sum(jax.tree.leaves(each))  # ⟨S_k, J v⟩ [K, N]
        met = jax.tree.map(lambda s: (s * dots.reshape(-1, n, *(1,) * (s.ndim - 2)).astype(s.dtype)).sum(0), roots)
    w = cost._factors(params, x, y, weights)
    scaled = jax.tree.map(lambda u: u * w.astype(u.dtype).reshape(-1, *(1,) * (u.ndim - 1)), met)
    return opened.back(scaled, cost._readers(read_gradient))
