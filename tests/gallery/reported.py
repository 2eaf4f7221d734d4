"""Derivatives that public projects had wrong, or were accused of: special functions, kinks, losses.

Each is written from its mathematics; its name says what the report is about and where it stands. Some of the right ones
are there because they were accused, or because autodiff of the primal is what is wrong.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, i0e, i1e, polygamma

from .case import Case, Rule, numbers


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
    """By reflection: ψ′(x) = π² / sin²(πx) − ψ′(1 − x) for x < 0; the sine at the distance from a whole number."""
    below = jnp.where(x < 0, x, np.float32(-0.5))
    sine = jnp.sin(np.float32(np.pi) * (below - jnp.round(below)))
    return jnp.where(x < 0, jnp.square(np.float32(np.pi) / sine) - polygamma(1, 1 - below), polygamma(1, jnp.abs(x)))


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
