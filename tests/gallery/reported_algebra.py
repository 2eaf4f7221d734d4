"""Derivatives that public projects had wrong: products and norms with zeros and NaN in them, smoothing, linear algebra.

Each is written from its mathematics; its name says what the report is about and where it stands. Of some of the right
ones autodiff of the primal is what is wrong.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cholesky, solve_triangular

from .case import Rule, numbers, positive, times

# -- products, sums, norms, with zeros and NaN in them -----------------------------------------------------------------


def product(x):
    return jnp.prod(x, axis=1)


def product_backward(x, d):
    """The product of the others, from both sides."""
    ones = jnp.ones_like(x[:, :1])
    before = jnp.cumprod(jnp.concatenate([ones, x[:, :-1]], 1), 1)
    after = jnp.cumprod(jnp.concatenate([ones, x[:, :0:-1]], 1), 1)[:, ::-1]
    return (d[:, None] * before * after,)


def product_divided(x, d, otherwise=None):
    g = d[:, None] * product(x)[:, None] / x
    return (g if otherwise is None else jnp.where(x == 0, otherwise, g),)


PRODUCT = Rule(
    "product with zeros, pytorch#82644",
    product,
    lambda x: (product(x), x),
    product_backward,
    (np.float32([[2, 0, 3], [2, 3, 4], [0, 0, 5]]),),
)


def mean_of_squares(x):
    """Over what is a number."""
    there = ~jnp.isnan(x * x)
    return jnp.where(there, x * x, 0).sum() / there.sum().astype(x.dtype)


MEAN_OF_SQUARES = Rule(
    "mean of squares beside NaN, jax#9040",
    mean_of_squares,
    lambda x: (mean_of_squares(x), x),
    lambda x, d: (jnp.where(jnp.isnan(x), 0, d * 2 * x / (~jnp.isnan(x)).sum().astype(x.dtype)),),
    (np.float32([1, np.nan, -2, 3]),),
    hard=True,
)


def log_sum(a, b):
    """log Σ b exp a."""
    top = jax.lax.stop_gradient(a.max())
    return top + jnp.log((b * jnp.exp(a - top)).sum())


LOG_SUM = Rule(
    "log Σ b exp a where b is 0, jax#22398",
    log_sum,
    lambda a, b: (log_sum(a, b), (a, b, log_sum(a, b))),
    lambda s, d: (d * s[1] * jnp.exp(s[0] - s[2]), d * jnp.exp(s[0] - s[2])),
    (numbers(106, 5), np.float32([1, 0, 2, 0, 0.5])),
)


def renormed(most):
    """Rows that are longer than their `most` [T, 1] are scaled to it."""

    def f(x):
        n = jnp.sqrt(jnp.square(x).sum(1, keepdims=True))
        return x * jnp.where(n > most, most / jnp.where(n > most, n, 1), 1)

    def backward(x, d):
        n = jnp.sqrt(jnp.square(x).sum(1, keepdims=True))
        long, safe = n > most, jnp.where(n > most, n, 1)
        along = x * (x * d).sum(1, keepdims=True) / safe**2
        return (jnp.where(long, most / safe * (d - along), jnp.where(most > 0, d, 0)),)

    return f, lambda x: (f(x), x), backward


ROWS = np.float32([[3, 4, 0], [0.3, 0.1, -0.2], [-1, 2, 2]])
MOST = np.float32([[1], [0], [1]])
RENORM = Rule("renorm of rows, pytorch#80804", *renormed(np.float32([[1], [1], [1]])), (ROWS,))
RENORM_TO_0 = Rule("renorm to 0 at 0, pytorch#80804", *renormed(MOST), (ROWS * np.float32([[1], [0], [1]]),), True)
EPS = np.float32(0.1)


def unit(x):
    return x / (jnp.sqrt(jnp.square(x).sum(1, keepdims=True)) + EPS)


def unit_backward(x, d, inner=0):
    n = jnp.sqrt(jnp.square(x).sum(1, keepdims=True))
    return (d / (n + EPS) - x * (x * d).sum(1, keepdims=True) / ((n + inner) * (n + EPS) ** 2),)


UNIT = Rule("x / (‖x‖ + ε), chainer#4190", unit, lambda x: (unit(x), x), unit_backward, (ROWS,))

CASES = [
    PRODUCT.right("the product of the others"),
    PRODUCT.wrong("the product over x", "NaN", 0, backward=product_divided),
    PRODUCT.wrong("0 where x is", "NaN hidden", 0, backward=lambda x, d: product_divided(x, d, otherwise=0)),
    MEAN_OF_SQUARES.right("0 where it is NaN, where autodiff is NaN"),
    MEAN_OF_SQUARES.wrong("NaN where it is", "NaN", 0, backward=lambda x, d: (
        d * 2 * x / (~jnp.isnan(x)).sum().astype(x.dtype),
    )),
    MEAN_OF_SQUARES.wrong("divided by all", "factor", 0, gradient=times(0.75)),
    LOG_SUM.right("exp(a − y)"),
    LOG_SUM.wrong("b's share over b", "NaN", 1, backward=lambda s, d: (
        d * s[1] * jnp.exp(s[0] - s[2]), d * s[1] * jnp.exp(s[0] - s[2]) / s[1],
    )),
    LOG_SUM.wrong("0 where b is", "NaN hidden", 1, backward=lambda s, d: (
        d * s[1] * jnp.exp(s[0] - s[2]), jnp.where(s[1] == 0, 0, d * jnp.exp(s[0] - s[2])),
    )),
    RENORM.right("across the row"),
    RENORM.wrong("the scale is a constant", "stop_gradient", 0, backward=lambda x, d: (
        d * jnp.minimum(1, 1 / jnp.sqrt(jnp.square(x).sum(1, keepdims=True))),
    )),
    RENORM_TO_0.right("0, where autodiff is the identity"),
    RENORM_TO_0.wrong("the identity, as autodiff has it", "wrong formula", 0, backward=lambda x, d: (
        jnp.where(jnp.square(x).sum(1, keepdims=True) == 0, d, RENORM_TO_0.backward(x, d)[0]),
    )),
    UNIT.right("ε beside the norm"),
    UNIT.wrong("ε in the norm as well", "wrong epsilon", 0, backward=lambda x, d: unit_backward(x, d, inner=EPS)),
]  # fmt: skip

# -- median -----------------------------------------------------------------------------------------------------------


def median(x):
    return jnp.sort(x)[x.shape[0] // 2]


def median_backward(saved, d, share=lambda equal: equal / equal.sum()):
    x, y = saved
    return (d * share((x == y).astype(x.dtype)),)


MEDIAN = Rule(
    "median of equal numbers, Paddle#42385",
    median,
    lambda x: (median(x), (x, median(x))),
    median_backward,
    (np.float32([1, 3, 2, 2, 5]),),
)

CASES += [
    MEDIAN.right("to one that is it", args=(np.float32([4, 3, 1, 2, 5]),)),
    MEDIAN.wrong(
        "to each that equals it", "wrong at a tie", 0, backward=lambda s, d: median_backward(s, d, lambda equal: equal)
    ),
]

# -- smoothing: Σ_k w_k f(x + σ z_k) by Gauss and Hermite's points ----------------------------------------------------

POINTS, SHARES = (a.astype(np.float32) for a in np.polynomial.hermite_e.hermegauss(5))
SHARES, SIGMA = SHARES / SHARES.sum(), np.float32(0.5)


def cubic(x):
    return x**3 - 2 * x


def smoothed(x):
    return cubic(x[:, None] + SIGMA * POINTS[None]) @ SHARES


def smoothed_backward(x, d, over=SIGMA):
    """Stein: the mean of f(x + σz) z / σ, which has the mean of z f(x) / σ, 0, taken off."""
    rise = cubic(x[:, None] + SIGMA * POINTS[None]) - cubic(x)[:, None]
    return (d * (rise @ (SHARES * POINTS)) / over,)


SMOOTHED = Rule(
    "a smoothed function, optax#1308",
    smoothed,
    lambda x: (smoothed(x), x),
    smoothed_backward,
    (numbers(107, 6),),
)

CASES += [
    SMOOTHED.right("over σ"),
    SMOOTHED.wrong("not over σ", "factor", 0, backward=lambda x, d: smoothed_backward(x, d, over=1)),
]

# -- linear algebra ---------------------------------------------------------------------------------------------------


def lower_solve(a, b):
    return solve_triangular(a, b, lower=True)


def lower_solve_backward(saved, d, mask=jnp.tril):
    a, y = saved
    of_b = solve_triangular(a, d, lower=True, trans=1)
    return mask(-of_b[:, None] * y[None]), of_b


LOWER = np.float32([[2, 7, -3], [1, 1.5, 4], [-1, 0.5, 3]])  # above the diagonal stands what is not read
TRIANGULAR = Rule(
    "triangular solve, jax#1458",
    lower_solve,
    lambda a, b: (lower_solve(a, b), (a, lower_solve(a, b))),
    lower_solve_backward,
    (LOWER, numbers(108, 3)),
)


def upper_cholesky(a):
    return cholesky(a, lower=False)


def upper_cholesky_backward(u, d, read=True):
    """A = Uᵀ U of the upper triangle: Φ(Ū Uᵀ), solved from both sides; each number above the diagonal stands twice."""
    p = jnp.tril(u @ jnp.triu(d).T)
    p = p - jnp.diag(jnp.diag(p)) / 2
    s = solve_triangular(u, solve_triangular(u, p + p.T).T).T / 2
    twice = jnp.triu(2 * s) - jnp.diag(jnp.diag(s))
    return (twice if read else s,)


CHOLESKY = Rule(
    "Cholesky's factor of an upper triangle, jax#40421",
    upper_cholesky,
    lambda a: (upper_cholesky(a), upper_cholesky(a)),
    upper_cholesky_backward,
    (np.float32([[4, 1, 0.5], [1, 3, -1], [0.5, -1, 2]]),),
    hard=True,
)


def exponential(a):
    """Of a symmetric matrix, by its eigenvectors."""
    values, vectors = jnp.linalg.eigh(a)
    return vectors * jnp.exp(values)[None] @ vectors.T


def exponential_backward(a, d, equal=True):
    """Divided differences of exp, which between equal eigenvalues are its derivative (Daleckii and Krein)."""
    values, vectors = jnp.linalg.eigh(a)
    difference = values[:, None] - values[None]
    same = jnp.abs(difference) < 1e-3
    quotient = (jnp.exp(values)[:, None] - jnp.exp(values)[None]) / jnp.where(same, 1, difference)
    middle = jnp.exp((values[:, None] + values[None]) / 2)
    quotient = jnp.where(same, middle if equal else middle * jnp.eye(len(values), dtype=a.dtype), quotient)
    inner = quotient * (vectors.T @ ((d + d.T) / 2) @ vectors)
    return (vectors @ inner @ vectors.T,)


EXPONENTIAL = Rule(
    "a function of a matrix with equal eigenvalues, jax#8732",
    exponential,
    lambda a: (exponential(a), a),
    exponential_backward,
    (np.diag(np.float32([1, 1, 2, 0.5])),),
    hard=True,
)


def projected(p, g, h):
    """The z next to −p with g · z ≤ h."""
    return -p - jnp.maximum(0, (-p @ g - h) / (g @ g)) * g


def projected_backward(saved, d, power=1):
    """By the conditions z + p + λg = 0 and, where λ > 0, g · z = h."""
    p, g, h = saved
    force = jnp.maximum(0, (-p @ g - h) / (g @ g))
    z = -p - force * g
    v = jnp.where(force > 0, d @ g / (g @ g), 0)
    u = d - v * g
    return -u, -(force**power) * u - v * z, v


PROJECTED = Rule(
    "a quadratic program, optnet#8",
    projected,
    lambda p, g, h: (projected(p, g, h), (p, g, h)),
    projected_backward,
    (np.float32([-2, -1, 0.5, -3]), positive(109, 4), np.float32(0.5)),
)

CASES += [
    TRIANGULAR.right("nothing above the diagonal"),
    TRIANGULAR.wrong("above the diagonal too", "missing mask", 0, backward=lambda s, d: (
        lower_solve_backward(s, d, mask=lambda g: g)
    )),
    CHOLESKY.right("nothing below the diagonal"),
    CHOLESKY.wrong("below the diagonal too", "missing mask", 0, backward=lambda u, d: (
        upper_cholesky_backward(u, d, read=False)
    )),
    EXPONENTIAL.right("where autodiff is NaN"),
    EXPONENTIAL.wrong("nothing between equal ones", "missing term", 0, backward=lambda a, d: (
        exponential_backward(a, d, equal=False)
    )),
    PROJECTED.right("by the conditions"),
    PROJECTED.right("a constraint that does not bind", args=(
        np.float32([2, 1, -0.5, 3]), positive(109, 4), np.float32(1),
    )),
    PROJECTED.wrong("λ twice", "wrong formula", 1, backward=lambda s, d: projected_backward(s, d, power=2)),
]  # fmt: skip
