"""Products and linear algebra: matmul, a dense layer, a convolution, solve, log-determinant, Cholesky.

Indices: N examples, T positions, I inputs, O outputs, K taps of a convolution.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

from .case import Rule, cast, clipped, narrow_sum, numbers, one_wrong, ones, through, times, wide

# -- y = x w ----------------------------------------------------------------------------------------------------------


def matmul(x, w):
    return x @ w


def matmul_forward(x, w):
    return x @ w, (x, w)


def matmul_backward(saved, delta):
    x, w = saved
    return delta @ w.T, x.T @ delta


def matmul_in_chunks(saved, delta, chunks=3):
    x, w = saved
    parts = [a.T @ d for a, d in zip(jnp.split(x, chunks), jnp.split(delta, chunks), strict=True)]
    return delta @ w.T, sum(parts)


def matmul_drops_a_chunk(saved, delta, size=5):
    x, w = saved
    whole = x.shape[0] // size * size
    return delta @ w.T, x[:whole].T @ delta[:whole]


def matmul_in(dtype):
    def backward(saved, delta):
        x, w = saved
        return delta @ w.T, narrow_sum(x[:, :, None] * delta[:, None, :], dtype)

    return backward


def narrow_matmul(x, w):
    """Products and sums in float32, whatever x and w are."""
    return (wide(x) @ wide(w)).astype(x.dtype)


def narrow_matmul_forward(x, w):
    return narrow_matmul(x, w), (x, w)


def narrow_matmul_backward(saved, delta):
    x, w = saved
    gx, gw = matmul_backward((wide(x), wide(w)), wide(delta))
    return gx.astype(x.dtype), gw.astype(w.dtype)


def narrow_matmul_narrow_sum(saved, delta):
    x, w = saved
    gx, gw = matmul_in(x.dtype)((wide(x), wide(w)), wide(delta))
    return gx.astype(x.dtype), gw.astype(w.dtype)


def mixed_matmul(x, w):
    """bfloat16 activations, float32 weights."""
    return wide(x) @ wide(w)


def mixed_matmul_forward(x, w):
    return mixed_matmul(x, w), (x, w)


MATMUL = Rule("matmul", matmul, matmul_forward, matmul_backward, (numbers(0, 6, 5), numbers(1, 5, 5)))
NARROW = Rule("matmul", narrow_matmul, narrow_matmul_forward, narrow_matmul_backward, MATMUL.args)
MIXED = Rule("matmul", mixed_matmul, mixed_matmul_forward, narrow_matmul_backward, MATMUL.args)
LONG = (numbers(2, 300, 4), numbers(3, 4, 4))
LONGER = (numbers(2, 20000, 4), numbers(3, 4, 4))

CASES = [
    MATMUL.right("by hand"),
    MATMUL.right("in chunks", backward=matmul_in_chunks),
    MATMUL.right("no examples", args=(numbers(0, 0, 5), numbers(1, 5, 5))),
    MATMUL.right("every axis of length 1", args=(numbers(0, 1, 1), numbers(1, 1, 1))),
    MATMUL.right(
        "columns of very different size",
        args=(numbers(0, 6, 5) * np.float32(10) ** np.arange(-8, 12, 4, dtype=np.float32), numbers(1, 5, 5)),
        hard=True,
    ),
    NARROW.right("bfloat16", args=cast(LONG, ml_dtypes.bfloat16), hard=True),
    NARROW.right("float16", args=cast(LONG, np.float16), hard=True),
    NARROW.right("float8", args=cast(LONG, ml_dtypes.float8_e4m3fn), hard=True),
    MIXED.right("bfloat16 and float32", args=(LONG[0].astype(ml_dtypes.bfloat16), LONG[1]), hard=True),
    MATMUL.wrong("the sign of w's gradient", "sign", 1, gradient=jnp.negative),
    MATMUL.wrong("x's gradient twice", "factor", 0, gradient=times(2)),
    MATMUL.wrong("w's gradient averaged over examples", "wrong broadcast sum", 1, gradient=times(1 / 6)),
    MATMUL.wrong("w's gradient transposed", "transpose", 1, gradient=jnp.transpose),
    MATMUL.wrong("w carries delta down untransposed", "transpose", 0, saved=lambda s: (s[0], s[1].T)),
    MATMUL.wrong("x of another example", "stale value", 1, saved=lambda s: (jnp.roll(s[0], 1, 0), s[1])),
    MATMUL.wrong("w after its update", "stale value", 0, saved=lambda s: (s[0], s[1] - 0.01 * s[0].T @ s[0])),
    MATMUL.wrong(
        "the two gradients swapped",
        "swapped leaves",
        gradients=lambda x, w: (w, x),
        args=(numbers(0, 5, 5), numbers(1, 5, 5)),
    ),
    MATMUL.wrong("the last, smaller chunk dropped", "dropped chunk", 1, backward=matmul_drops_a_chunk),
    MATMUL.wrong("no gradient for x", "zero leaf", 0, gradient=jnp.zeros_like),
    MATMUL.wrong("x's last row zero", "one row zero", 0, gradient=lambda g: g.at[-1].set(0)),
    MATMUL.wrong("summed in bfloat16", "bfloat16 accumulation", 1, backward=matmul_in(jnp.bfloat16), args=LONG),
    MATMUL.wrong("rounded to bfloat16", "rounded output", 0, gradient=through(jnp.bfloat16)),
    MATMUL.wrong(
        "float16 overflows",
        "overflow",
        1,
        saved=lambda s: (through(jnp.float16)(s[0]), s[1]),
        args=(numbers(0, 6, 5) * np.float32(1e5), numbers(1, 5, 5)),
    ),
    MATMUL.wrong(
        "one of 10,000 weights",
        "one element of 10,000",
        1,
        gradient=one_wrong,
        args=(numbers(2, 3, 1000), numbers(3, 1000, 10)),
    ),
    MATMUL.wrong("clipped", "not linear in the cotangent", 1, gradient=clipped),
    MATMUL.wrong("the cotangent ignored", "cotangent ignored", delta=ones),
    NARROW.wrong(
        "bfloat16, summed in bfloat16",
        "bfloat16 accumulation",
        1,
        backward=narrow_matmul_narrow_sum,
        args=cast(LONGER, ml_dtypes.bfloat16),
    ),
    NARROW.wrong("float16, off by 10 %", "factor", 1, gradient=times(1.1), args=cast(LONG, np.float16)),
]

# -- a dense layer: y = x w + b, with a pytree of parameters ----------------------------------------------------------


def dense(params, x):
    return x @ params["w"] + params["b"][None]


def dense_forward(params, x):
    return dense(params, x), (params["w"], x)


def dense_backward(saved, delta):
    w, x = saved
    return {"w": x.T @ delta, "b": delta.sum(0)}, delta @ w.T


def on(leaf, change):
    """A change of one leaf of a dictionary of gradients."""
    return lambda g: g | {leaf: change(g[leaf])}


DENSE = Rule(
    "dense layer", dense, dense_forward, dense_backward, ({"w": numbers(4, 4, 4), "b": numbers(5, 4)}, numbers(6, 7, 4))
)

CASES += [
    DENSE.right("a pytree of parameters"),
    DENSE.right(
        "b by a product with ones",
        backward=lambda s, d: ({"w": s[1].T @ d, "b": jnp.ones_like(d[:, 0]) @ d}, d @ s[0].T),
    ),
    DENSE.wrong(
        "b's gradient of one example", "wrong broadcast sum", 0,
        backward=lambda s, d: ({"w": s[1].T @ d, "b": d[0]}, d @ s[0].T),
    ),
    DENSE.wrong("b's gradient a mean", "wrong broadcast sum", 0, gradient=on("b", times(1 / 7))),
    DENSE.wrong("no gradient for b", "zero leaf", 0, gradient=on("b", jnp.zeros_like)),
    DENSE.wrong("w's gradient transposed", "transpose", 0, gradient=on("w", jnp.transpose)),
    DENSE.wrong(
        "b summed over outputs", "wrong axis", 0,
        backward=lambda s, d: ({"w": s[1].T @ d, "b": d.sum(1)}, d @ s[0].T),
        args=({"w": numbers(4, 4, 4), "b": numbers(5, 4)}, numbers(6, 4, 4)),
    ),
]  # fmt: skip

# -- a convolution over time: y[n, t] = b + Σ_k w[k] x[n, STRIDE t + k - PAD] -----------------------------------------

STRIDE, PAD = 2, 1


def convolution(x, w, b):
    numbers = ("NTC", "TIO", "NTC")
    return lax.conv_general_dilated(x, w, (STRIDE,), [(PAD, PAD)], dimension_numbers=numbers) + b[None, None]


def convolution_forward(x, w, b):
    return convolution(x, w, b), (x, w)


def tap(k, steps, stride=STRIDE):
    """What tap k meets at each step, as a slice of the padded input."""
    return slice(k, k + stride * (steps - 1) + 1, stride)


def convolution_backward(saved, delta, shift=0, stride=STRIDE, add=True):
    x, w = saved
    padded = jnp.pad(x, ((0, 0), (PAD, PAD + 1), (0, 0)))
    gx, gw = jnp.zeros_like(padded), []
    for k in range(w.shape[0]):
        met = tap(k, delta.shape[1])
        place = gx.at[:, met]
        gx = place.add(delta @ w[k].T) if add else place.set(delta @ w[k].T)
        gw.append(jnp.einsum("nti,nto->io", padded[:, tap(k + shift, delta.shape[1], stride)], delta))
    return gx[:, PAD : PAD + x.shape[1]], jnp.stack(gw), delta.sum((0, 1))


def convolution_by_convolution(saved, delta):
    """w's gradient as a convolution of x with delta, x's as one of delta with the reversed kernel."""
    x, w = saved
    taps, t = w.shape[0], x.shape[1]
    gw = lax.conv_general_dilated(
        x, delta, (1,), [(PAD, PAD)], rhs_dilation=(STRIDE,), dimension_numbers=("CTN", "ITO", "TNC")
    )  # [K, I, O]: examples are summed over, as channels
    left = taps - 1 - PAD
    right = t - (STRIDE * (delta.shape[1] - 1) + 1) + PAD
    gx = lax.conv_general_dilated(
        delta, w[::-1], (1,), [(left, right)], lhs_dilation=(STRIDE,), dimension_numbers=("NTC", "TOI", "NTC")
    )
    return gx, gw[:taps], delta.sum((0, 1))


def convolution_with(**fault):
    return lambda saved, delta: convolution_backward(saved, delta, **fault)


CONVOLUTION = Rule(
    "convolution", convolution, convolution_forward, convolution_backward,
    (numbers(7, 4, 8, 3), numbers(8, 3, 3, 3), numbers(9, 3)),
)  # fmt: skip

CASES += [
    CONVOLUTION.right("tap by tap"),
    CONVOLUTION.right("by convolutions", backward=convolution_by_convolution),
    CONVOLUTION.right("one example, one channel", args=(numbers(7, 1, 8, 1), numbers(8, 3, 1, 1), numbers(9, 1))),
    CONVOLUTION.wrong("w's gradient a step off its padding", "wrong offset", 1, backward=convolution_with(shift=1)),
    CONVOLUTION.wrong("w's gradient without the stride", "wrong offset", 1, backward=convolution_with(stride=1)),
    CONVOLUTION.wrong("overlapping windows overwrite", "set instead of add", 0, backward=convolution_with(add=False)),
    CONVOLUTION.wrong("the kernel is not reversed", "transpose", 0, saved=lambda s: (s[0], s[1][::-1])),
    CONVOLUTION.wrong("inputs and outputs of the kernel mixed up", "transpose", 1, gradient=lambda g: g.mT),
    CONVOLUTION.wrong(
        "b's gradient of one example", "wrong broadcast sum", 2,
        backward=lambda s, d: (*convolution_backward(s, d)[:2], d[0].sum(0)),
    ),
    CONVOLUTION.wrong("b's gradient a mean over time", "wrong broadcast sum", 2, gradient=times(1 / 4)),
    CONVOLUTION.wrong("the last window dropped", "dropped chunk", delta=lambda d: d.at[:, -1].set(0)),
]  # fmt: skip

# -- x = A⁻¹ b --------------------------------------------------------------------------------------------------------


def solve(a, b):
    return jnp.linalg.solve(a, b)


def solve_forward(a, b):
    x = jnp.linalg.solve(a, b)
    return x, (a, b, x)


def solve_backward(saved, delta):
    a, _, x = saved
    gb = jnp.linalg.solve(a.T, delta)
    return -gb @ x.T, gb


def solve_by_lu(saved, delta):
    a, _, x = saved
    gb = jax.scipy.linalg.lu_solve(jax.scipy.linalg.lu_factor(a), delta, trans=1)
    return -gb @ x.T, gb


def solve_by_normal_equations(saved, delta):
    a, _, x = saved
    gb = a @ jnp.linalg.solve(a.T @ a, delta)
    return -gb @ x.T, gb


def conditioned(seed, n, condition):
    """A matrix with singular values from 1 down to 1/condition."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    return (u * np.geomspace(1, 1 / condition, n) @ v).astype(np.float32)


SOLVE = Rule("solve", solve, solve_forward, solve_backward, (conditioned(10, 4, 5), numbers(11, 4, 4)))
ILL = (conditioned(12, 6, 1e3), numbers(13, 6, 2))

CASES += [
    SOLVE.right("by hand"),
    SOLVE.right("with the LU factors, condition 1000", backward=solve_by_lu, args=ILL, hard=True),
    SOLVE.right("condition 1000", args=ILL, hard=True),
    SOLVE.wrong("A's gradient without its minus", "sign", 0, gradient=jnp.negative),
    SOLVE.wrong("A's gradient transposed", "transpose", 0, gradient=jnp.transpose),
    SOLVE.wrong("solves with A for Aᵀ", "transpose", saved=lambda s: (s[0].T, *s[1:])),
    SOLVE.wrong("b for the solution", "stale value", 0, saved=lambda s: (s[0], s[1], s[1])),
    SOLVE.wrong("normal equations square the condition", "unstable", backward=solve_by_normal_equations, args=ILL),
]

# -- log |det A|, and Cholesky: S = L Lᵀ ------------------------------------------------------------------------------


def logdet(a):
    return jnp.linalg.slogdet(a)[1]


def logdet_forward(a):
    return logdet(a), a


def logdet_backward(a, delta):
    return (delta * jnp.linalg.inv(a).T,)


def cholesky(s):
    return jnp.linalg.cholesky((s + s.T) / 2)


def cholesky_forward(s):
    lower = cholesky(s)
    return lower, lower


def phi(a):
    """The lower triangle, half of the diagonal."""
    return jnp.tril(a) - jnp.diag(jnp.diag(a)) / 2


def cholesky_backward(lower, delta, phi=phi, symmetric=True):
    """Murray 2016, equation 9: L⁻ᵀ Φ(Lᵀ L̄) L⁻¹, made symmetric."""
    inverse = jax.scipy.linalg.solve_triangular(lower, jnp.eye(len(lower), dtype=lower.dtype), lower=True)
    g = inverse.T @ phi(lower.T @ jnp.tril(delta)) @ inverse
    return ((g + g.T) / 2 if symmetric else g,)


def cholesky_with(**fault):
    return lambda lower, delta: cholesky_backward(lower, delta, **fault)


def covariance(seed, n, ridge=0.1):
    x = numbers(seed, n, n)
    return x @ x.T / n + np.float32(ridge) * np.eye(n, dtype=np.float32)


LOGDET = Rule("log-determinant", logdet, logdet_forward, logdet_backward, (conditioned(14, 4, 10),))
CHOLESKY = Rule("Cholesky", cholesky, cholesky_forward, cholesky_backward, (covariance(15, 4),))

CASES += [
    LOGDET.right("by the inverse"),
    LOGDET.right(
        "by a solve, condition 100",
        backward=lambda a, d: (d * jnp.linalg.solve(a.T, jnp.eye(len(a), dtype=a.dtype)),),
        args=(conditioned(14, 5, 100),),
        hard=True,
    ),
    LOGDET.wrong("not transposed", "transpose", 0, gradient=jnp.transpose),
    LOGDET.wrong("half of it, as for a root", "factor", 0, gradient=times(0.5)),
    CHOLESKY.right("Murray's formula"),
    CHOLESKY.right("nearly singular", args=(covariance(16, 4, 0.003),), hard=True),
    CHOLESKY.wrong("the diagonal is not halved", "factor", 0, backward=cholesky_with(phi=jnp.tril)),
    CHOLESKY.wrong("no triangle taken", "missing mask", 0, backward=cholesky_with(phi=lambda a: a / 2)),
    CHOLESKY.wrong("not made symmetric", "missing term", 0, backward=cholesky_with(symmetric=False)),
]
