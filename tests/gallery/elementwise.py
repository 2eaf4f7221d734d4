"""Functions of numbers one by one, where cancellation, overflow and kinks are; and the norm of a vector."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from .case import Rule, cast, clipped, hide_nan, numbers, one_wrong, ones, positive, through, times, wide


def elementwise(name, f, slope, args, **settings):
    """y = f(x) with the slope by hand; saved: x."""
    return Rule(name, f, lambda x: (f(x), x), lambda x, delta: (delta * slope(x),), args, **settings)


def sloped(slope):
    """A backward with another slope."""
    return lambda x, delta: (delta * slope(x),)


BOTH_SIDES = np.float32([-100, -80, -20, -1, -1e-4, 0, 1e-4, 1, 20, 80, 100])

# -- softplus: log(1 + exp x) -----------------------------------------------------------------------------------------


def naive_sigmoid(x):
    return jnp.exp(x) / (1 + jnp.exp(x))


SOFTPLUS = elementwise("softplus", jax.nn.softplus, jax.nn.sigmoid, (numbers(60, 12),))

CASES = [
    SOFTPLUS.right("by hand"),
    SOFTPLUS.right("by tanh", backward=sloped(lambda x: (1 + jnp.tanh(x / 2)) / 2)),
    SOFTPLUS.right("up to ±100", args=(BOTH_SIDES,), hard=True),
    SOFTPLUS.wrong("exp x / (1 + exp x)", "unstable", 0, backward=sloped(naive_sigmoid), args=(BOTH_SIDES,)),
    SOFTPLUS.wrong(
        "exp x / (1 + exp x), and 0 is put for NaN",
        "NaN hidden",
        0,
        backward=sloped(naive_sigmoid),
        gradient=hide_nan,
        args=(BOTH_SIDES,),
    ),
    SOFTPLUS.wrong(
        "overflows in float16",
        "overflow",
        0,
        backward=sloped(lambda x: naive_sigmoid(x.astype(jnp.float16)).astype(x.dtype)),
        args=(12 + numbers(60, 12),),
    ),
    SOFTPLUS.wrong("the cotangent ignored", "cotangent ignored", 0, delta=ones),
]

# -- SiLU: x σ(x), and exact GELU: x Φ(x) -----------------------------------------------------------------------------


def silu_slope(x):
    s = jax.nn.sigmoid(x)
    return s + x * s * (1 - s)


def silu(x):
    return jax.nn.silu(wide(x)).astype(x.dtype)


def gelu(x):
    return x * normal(x)


def normal(x):
    """Φ, by erfc so that its left tail has digits."""
    return jax.lax.erfc(-x * math.sqrt(0.5)) / 2


def density(x):
    return jnp.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def gelu_slope(x):
    return normal(x) + x * density(x)


SILU = elementwise("SiLU", silu, silu_slope, (numbers(61, 12),))
GELU = elementwise("GELU", gelu, gelu_slope, (numbers(62, 12),))
NARROW_SILU = lambda x, delta: ((wide(delta) * silu_slope(wide(x))).astype(x.dtype),)

CASES += [
    SILU.right("by hand"),
    SILU.right("up to ±100", args=(BOTH_SIDES,), hard=True),
    SILU.right("bfloat16", backward=NARROW_SILU, args=cast((numbers(61, 40),), ml_dtypes.bfloat16), hard=True),
    SILU.right("float16", backward=NARROW_SILU, args=cast((numbers(61, 40),), np.float16), hard=True),
    SILU.wrong("x σ′ is missing", "missing term", 0, backward=sloped(jax.nn.sigmoid)),
    SILU.wrong("the output saved for x", "stale value", 0, saved=silu),
    SILU.wrong("the second term's sign", "sign", 0, backward=sloped(lambda x: 2 * jax.nn.sigmoid(x) - silu_slope(x))),
    SILU.wrong("one of 10,000", "one element of 10,000", 0, gradient=one_wrong, args=(numbers(61, 100, 100),)),
    GELU.right("by hand"),
    GELU.right("up to ±8", args=(np.linspace(-8, 8, 17, dtype=np.float32),), hard=True),
    GELU.wrong("x φ is missing", "missing term", 0, backward=sloped(normal)),
    GELU.wrong("φ without 1/√(2π)", "factor", 0, backward=sloped(lambda x: normal(x) + x * jnp.exp(-x * x / 2))),
    GELU.wrong(
        "the slope of its tanh approximation", "wrong formula", 0, backward=sloped(jax.vmap(jax.grad(jax.nn.gelu)))
    ),
    GELU.wrong("clipped", "not linear in the cotangent", 0, gradient=clipped),
]

# -- √x, 1/√x, (a - b) / (a + b), (exp x - 1) / x ---------------------------------------------------------------------


def root(x):
    return jnp.sqrt(x)


def inverse_root(x):
    return jax.lax.rsqrt(x)


def contrast(a, b):
    return (a - b) / (a + b)


def contrast_forward(a, b):
    return contrast(a, b), (a, b)


def contrast_backward(saved, delta):
    a, b = saved
    return 2 * delta * b / (a + b) ** 2, -2 * delta * a / (a + b) ** 2


def growth(x):
    """(exp x - 1) / x."""
    return jnp.expm1(x) / x


def growth_slope(x):
    """Where (exp x - growth) / x cancels, Σ_k (k - 1) x^(k - 2) / k!, k from 2."""
    series = sum(x ** (k - 2) * ((k - 1) / math.factorial(k)) for k in range(2, 20))
    return jnp.where(jnp.abs(x) < 1, series, (jnp.exp(x) - growth(x)) / x)


TINY_TO_HUGE = np.float32([1e-12, 1e-8, 1e-4, 0.5, 1, 2, 1e4, 1e8])
ROOT = elementwise("square root", root, lambda x: 0.5 / jnp.sqrt(x), (positive(63, 8),))
INVERSE = elementwise("inverse square root", inverse_root, lambda x: -0.5 * jax.lax.rsqrt(x) / x, (positive(64, 8),))
CONTRAST = Rule("contrast", contrast, contrast_forward, contrast_backward, (positive(65, 8), positive(66, 8)))
GROWTH = elementwise("(exp x - 1) / x", growth, growth_slope, (np.float32([-3, -1, -0.1, -1e-2, 3e-3, 0.02, 0.5, 2]),))

CASES += [
    ROOT.right("near 0", args=(TINY_TO_HUGE,), hard=True),
    ROOT.wrong(
        "a guard of 1e-6", "wrong epsilon", 0, backward=sloped(lambda x: 0.5 / jnp.sqrt(x + 1e-6)), args=(TINY_TO_HUGE,)
    ),
    ROOT.wrong("the factor ½", "factor", 0, gradient=times(2)),
    INVERSE.right("near 0", args=(TINY_TO_HUGE,), hard=True),
    INVERSE.right(
        "by the output's cube", backward=sloped(lambda x: -0.5 * jax.lax.rsqrt(x) ** 3), args=(TINY_TO_HUGE,), hard=True
    ),
    INVERSE.wrong("the output's square for its cube", "wrong formula", 0, backward=sloped(lambda x: -0.5 / x)),
    INVERSE.wrong("the sign", "sign", 0, gradient=jnp.negative),
    CONTRAST.right("by hand"),
    CONTRAST.right(
        "a and b of very different size", args=(positive(65, 8), np.float32(1e-5) * positive(66, 8)), hard=True
    ),
    CONTRAST.wrong(
        "the sum is a constant", "stop_gradient", backward=lambda s, d: (d / (s[0] + s[1]), -d / (s[0] + s[1]))
    ),
    CONTRAST.wrong("a and b swapped", "swapped leaves", gradients=lambda a, b: (b, a)),
    GROWTH.right("near 0", hard=True),
    GROWTH.wrong(
        "1/x forgotten in the second term", "factor", 0, backward=sloped(lambda x: (jnp.exp(x) - jnp.expm1(x)) / x)
    ),
]

# -- the norm ‖x‖ of each row, with gradient x/‖x‖, and 0 at 0 --------------------------------------------------------


def norm(x):
    square = (wide(x) ** 2).sum(-1)
    safe = jnp.where(square > 0, square, 1)
    return jnp.where(square > 0, jnp.sqrt(safe), 0).astype(x.dtype)


def norm_forward(x):
    y = norm(x)
    return y, (x, y)


def norm_backward(saved, delta, guard=True):
    x, y = (wide(a) for a in saved)
    inverse = jnp.where(y > 0, 1 / jnp.where(y > 0, y, 1), 0) if guard else 1 / y
    return ((x * (wide(delta) * inverse)[:, None]).astype(delta.dtype),)


ZERO_ROW = (np.float32([[3, 4], [0, 0], [1e-12, 1e-12], [1e10, -1e10]]),)
NORM = Rule("norm", norm, norm_forward, norm_backward, (numbers(67, 4, 3),))

CASES += [
    NORM.right("by hand"),
    NORM.right("0, tiny and huge rows", args=ZERO_ROW, hard=True),
    NORM.right(
        "float16, squares beyond its range",
        backward=lambda s, d: norm_backward((s[0], norm(wide(s[0]))), d),
        args=cast((300 * numbers(67, 4, 3),), np.float16),
        hard=True,
    ),
    NORM.wrong("0/0 at 0", "NaN", 0, backward=lambda s, d: norm_backward(s, d, guard=False), args=ZERO_ROW),
    NORM.wrong("ε added to the norm", "wrong epsilon", 0, saved=lambda s: (s[0], s[1] + 1e-3)),
    NORM.wrong("not divided by the norm", "missing term", 0, saved=lambda s: (s[0], jnp.ones_like(s[1]))),
    NORM.wrong(
        "one norm for all rows",
        "wrong axis",
        0,
        saved=lambda s: (s[0], jnp.full_like(s[1], jnp.sqrt((s[1] ** 2).sum()))),
    ),
    NORM.wrong(
        "squares overflow in float16",
        "overflow",
        0,
        backward=lambda s, d: norm_backward((s[0], jnp.sqrt((through(jnp.float16)(s[0] ** 2)).sum(-1))), d),
        args=(300 * numbers(67, 4, 3),),
    ),
]

# -- a residual branch and a gate: y = x + tanh(x) σ(g) ---------------------------------------------------------------


def gated(x, g):
    return x + jnp.tanh(x) * jax.nn.sigmoid(g)


def gated_forward(x, g):
    return gated(x, g), (jnp.tanh(x), jax.nn.sigmoid(g))


def gated_backward(saved, delta, identity=1.0, branch=1.0):
    t, s = saved
    return delta * (identity + branch * (1 - t * t) * s), delta * t * s * (1 - s)


GATED = Rule("gated residual", gated, gated_forward, gated_backward, (numbers(68, 8), numbers(69, 8)))

CASES += [
    GATED.right("by hand"),
    GATED.wrong(
        "the identity's branch is missing", "stop_gradient", 0, backward=lambda s, d: gated_backward(s, d, identity=0)
    ),
    GATED.wrong(
        "the gated branch is missing", "stop_gradient", 0, backward=lambda s, d: gated_backward(s, d, branch=0)
    ),
    GATED.wrong("no gradient for the gate", "zero leaf", 1, gradient=jnp.zeros_like),
    GATED.wrong("the two gradients swapped", "swapped leaves", gradients=lambda x, g: (g, x)),
    GATED.wrong(
        "clipped to a length of 1",
        "not linear in the cotangent",
        gradients=lambda x, g: (
            x / jnp.maximum(1, jnp.sqrt((x * x).sum())),
            g / jnp.maximum(1, 10 * jnp.sqrt((g * g).sum())),
        ),
    ),
]
