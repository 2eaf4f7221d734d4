"""Derivatives that public projects had wrong, or were accused of: special functions, kinks, linear algebra.

Each is written from its mathematics; its name says what the report is about and where it stands. Some of the right ones
are there because they were accused, or because autodiff of the primal is what is wrong.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cholesky, solve_triangular
from jax.scipy.special import digamma, i0e, i1e, polygamma

from .case import Case, Rule, numbers, positive, times


def elementwise(function, f, slope, *args, hard=False):
    """y = f(x); the gradient is slope(x) δ."""
    return Rule(function, f, lambda x: (f(x), x), lambda x, d: (slope(x) * d,), args, hard)


# -- log-sigmoid, written with two kinks at 0 that cancel -------------------------------------------------------------

LOG_SIGMOID = elementwise(
    "log-sigmoid at 0, jax#2140",
    lambda x: -(jnp.maximum(-x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))),
    lambda x: jax.nn.sigmoid(-x),
    np.float32([-2, 0, 1.5, 0, 30]),
)

CASES = [
    LOG_SIGMOID.right("1/2 at 0, where autodiff meets two kinks", hard=True),
    LOG_SIGMOID.wrong(
        "0 at 0",
        "wrong at a tie",
        0,
        backward=lambda x, d: (jnp.where(x == 0, 0, jax.nn.sigmoid(-x)) * d,),
    ),
]

# -- hard sigmoid -----------------------------------------------------------------------------------------------------


def sixth(inside):
    return lambda x: jnp.where(inside(x), np.float32(1 / 6), 0)


HARD_SIGMOID = elementwise(
    "hard sigmoid at ±3, pytorch#51438",
    lambda x: jnp.clip(x / 6 + np.float32(0.5), 0, 1),
    sixth(lambda x: jnp.abs(x) < 3),
    np.float32([-4, -3, -1, 0, 3, 5]),
    hard=True,
)

CASES += [
    HARD_SIGMOID.right("0 at the ends"),
    HARD_SIGMOID.right("1/6 at the ends", backward=lambda x, d: (sixth(lambda x: jnp.abs(x) <= 3)(x) * d,)),
    HARD_SIGMOID.wrong(
        "1/3 at the ends",
        "wrong at a tie",
        0,
        backward=lambda x, d: ((sixth(lambda x: jnp.abs(x) <= 3)(x) + sixth(lambda x: jnp.abs(x) == 3)(x)) * d,),
    ),
    HARD_SIGMOID.wrong(
        "the slope goes on beyond the ends", "missing mask", 0, backward=lambda x, d: (d * np.float32(1 / 6),)
    ),
]

# -- special functions ------------------------------------------------------------------------------------------------


def i1(x):
    return jnp.exp(jnp.abs(x)) * i1e(x)


I0 = elementwise(
    "Bessel's I₀ at 0, jax#11479",
    lambda x: jnp.exp(jnp.abs(x)) * i0e(x),
    i1,
    np.float32([-1.5, 0, 0.5, 2]),
)


def trigamma(x):
    """By reflection: ψ′(x) = π² / sin²(πx) − ψ′(1 − x) for x < 0. sin of π times the distance to a whole number."""
    distance = x - jnp.round(x)
    mirrored = jnp.square(np.float32(np.pi) / jnp.sin(np.float32(np.pi) * distance)) - polygamma(1, 1 - x)
    return jnp.where(x < 0, mirrored, polygamma(1, jnp.abs(x)))


DIGAMMA = elementwise(
    "ψ at negative numbers, jax#37635", digamma, trigamma, np.float32([-16.5, -2.5, -0.75, 0.5, 3]), hard=True
)


def sinc_slope(x):
    """cos(πx)/x − sin(πx)/(πx²), by its series where these two cancel."""
    t = np.float32(np.pi) * x
    t2 = t * t
    series = -t / 3 * (1 - t2 / 10 * (1 - t2 / 28 * (1 - t2 / 54 * (1 - t2 / 88))))
    far = jnp.where(jnp.abs(t) > 1, t, 1)
    return np.float32(np.pi) * jnp.where(jnp.abs(t) > 1, (jnp.cos(far) - jnp.sin(far) / far) / far, series)


SINC = elementwise(
    "sinc near 0, jax#40629", jnp.sinc, sinc_slope, np.float32([1e-5, -3e-4, 0.01, 0.5, 2.25]), hard=True
)

CASES += [
    I0.right("I₁"),
    I0.wrong("1 at 0", "wrong formula", 0, backward=lambda x, d: ((i1(x) + (x == 0).astype(x.dtype)) * d,)),
    DIGAMMA.right("by reflection, where JAX's own is not"),
    DIGAMMA.wrong(
        "the reflection's first term is missing",
        "missing term",
        0,
        backward=lambda x, d: (jnp.where(x < 0, -polygamma(1, jnp.abs(1 - x)), polygamma(1, jnp.abs(x))) * d,),
    ),
    SINC.right("by its series, where autodiff's terms cancel"),
    SINC.wrong("half of it near 0", "factor", 0, backward=lambda x, d: (
        jnp.where(jnp.abs(x) < 0.1, sinc_slope(x) / 2, sinc_slope(x)) * d,
    )),
]  # fmt: skip


# -- accused, and right -----------------------------------------------------------------------------------------------


def arctan2_backward(saved, d):
    y, x = saved
    return d * x / (x * x + y * y), -d * y / (x * x + y * y)


ARCTAN2 = Rule(
    "arctan2 of small numbers, jax#18605",
    jnp.arctan2,
    lambda y, x: (jnp.arctan2(y, x), (y, x)),
    arctan2_backward,
    (np.float32([1e-10, -2e-8, 0.5]), np.float32([1e-10, 3e-9, -1])),
)

SIGMOID = Rule(
    "sigmoid by its output, darknet#2151",
    jax.nn.sigmoid,
    lambda x: (jax.nn.sigmoid(x), jax.nn.sigmoid(x)),
    lambda y, d: (y * (1 - y) * d,),
    (numbers(100, 7),),
)


def normalised(x):
    centred = x - x.mean(1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(1, keepdims=True) + np.float32(1e-5))


def normalised_forward(x):
    centred = x - x.mean(1, keepdims=True)
    scale = 1 / jnp.sqrt(jnp.square(centred).mean(1, keepdims=True) + np.float32(1e-5))
    return centred * scale, (centred * scale, scale)


def normalised_backward(saved, d):
    y, scale = saved
    return (scale * (d - d.mean(1, keepdims=True) - y * (d * y).mean(1, keepdims=True)),)


NORMALISED = Rule(
    "the sum of a LayerNorm, pytorch#63541",
    normalised,
    normalised_forward,
    normalised_backward,
    (numbers(101, 4, 16),),
)


def summed(case: Case) -> Case:
    """The same rule under a sum: δ is 1 everywhere."""
    return Case(case.name, case.function, lambda x: case.f(x).sum(), case.args, case.kind, case.leaf, case.hard)


CASES += [
    ARCTAN2.right("large, as it must be", hard=True),
    ARCTAN2.wrong("clipped to 1", "wrong formula", 0, gradient=lambda g: jnp.clip(g, -1, 1)),
    SIGMOID.right("y (1 − y)"),
    SIGMOID.wrong("y (1 − y) of x itself", "stale value", 0, forward=lambda x: (jax.nn.sigmoid(x), x)),
    summed(NORMALISED.right("a gradient that is 0 but for rounding", hard=True)),
    summed(NORMALISED.wrong("without the mean of δ", "missing term", 0, backward=lambda s, d: (
        s[1] * (d - s[0] * (d * s[0]).mean(1, keepdims=True)),
    ))),
]  # fmt: skip

# -- losses -----------------------------------------------------------------------------------------------------------


def isrlu(x):
    return jnp.where(x < 0, x / jnp.sqrt(1 + x * x), x)


ISRLU = elementwise(
    "inverse square root unit, pytorch#4355",
    isrlu,
    lambda x: jnp.where(x < 0, 1 / jnp.sqrt(1 + x * x) ** 3, 1),
    numbers(102, 9),
)


def smooth_l1(x, y):
    d = x - y
    return jnp.where(jnp.abs(d) < 1, d * d / 2, jnp.abs(d) - np.float32(0.5))


SMOOTH_L1 = Rule(
    "smooth L1, attorch#13",
    smooth_l1,
    lambda x, y: (smooth_l1(x, y), x - y),
    lambda d, delta: (delta * jnp.clip(d, -1, 1), -delta * jnp.clip(d, -1, 1)),
    (3 * numbers(103, 8), numbers(104, 8)),
)

GAMMA = 2


def focal(x, y):
    """−(1 − p)^γ log p for the probability p of the label."""
    p = jax.nn.sigmoid(jnp.where(y == 1, x, -x))
    return -((1 - p) ** GAMMA) * jnp.log(p)


def focal_backward(saved, d, by_p=False):
    x, y = saved
    sign = jnp.where(y == 1, np.float32(1), np.float32(-1))
    p, q = jax.nn.sigmoid(sign * x), jax.nn.sigmoid(-sign * x)
    slope = GAMMA * p * q**GAMMA * jnp.log(p) - q ** (GAMMA + 1)
    return d * sign * (slope / (p * q) if by_p else slope), None


FOCAL = Rule(
    "focal loss, catboost_focal_loss#2",
    focal,
    lambda x, y: (focal(x, y), (x, y)),
    focal_backward,
    (numbers(105, 6), np.int32([0, 1, 1, 0, 1, 0])),
)

CASES += [
    ISRLU.right("(1 + x²)^(−3/2) below 0"),
    ISRLU.wrong("without δ", "cotangent ignored", 0, delta=jnp.ones_like),
    SMOOTH_L1.right("clipped"),
    SMOOTH_L1.wrong("the difference below 1, not its size", "wrong formula", backward=lambda d, delta: (
        delta * jnp.minimum(d, 1), -delta * jnp.minimum(d, 1),
    )),
    FOCAL.right("by the logit"),
    FOCAL.wrong("by the probability", "wrong formula", 0, backward=lambda s, d: focal_backward(s, d, by_p=True)),
]  # fmt: skip

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
    """Rows that are longer than `most` are scaled to it."""

    def f(x):
        n = jnp.sqrt(jnp.square(x).sum(1, keepdims=True))
        return x * jnp.where(n > most, most / jnp.where(n > most, n, 1), 1)

    def backward(x, d):
        n = jnp.sqrt(jnp.square(x).sum(1, keepdims=True))
        long, safe = n > most, jnp.where(n > most, n, 1)
        along = x * (x * d).sum(1, keepdims=True) / safe**2
        return (jnp.where(long, most / safe * (d - along), d if most else 0),)

    return f, lambda x: (f(x), x), backward


ROWS = np.float32([[3, 4, 0], [0.3, 0.1, -0.2], [-1, 2, 2]])
RENORM = Rule("renorm of rows, pytorch#80804", *renormed(1.0), (ROWS,))
RENORM_TO_0 = Rule("renorm to 0 at 0, pytorch#80804", *renormed(0.0), (np.float32([[0.1, 0, 0.3], [0, 0, 0]]),), True)
EPS = np.float32(0.1)


def unit(x):
    return x / (jnp.sqrt(jnp.square(x).sum(1, keepdims=True)) + EPS)


def unit_backward(x, d, inner=0):
    n = jnp.sqrt(jnp.square(x).sum(1, keepdims=True))
    return (d / (n + EPS) - x * (x * d).sum(1, keepdims=True) / ((n + inner) * (n + EPS) ** 2),)


UNIT = Rule("x / (‖x‖ + ε), chainer#4190", unit, lambda x: (unit(x), x), unit_backward, (ROWS,))

CASES += [
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
        jnp.where(jnp.square(x).sum(1, keepdims=True) == 0, d, 0),
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
