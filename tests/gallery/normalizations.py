"""LayerNorm, RMSNorm and BatchNorm.

Indices: N examples, W features.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from .case import (
    Rule,
    cast,
    clipped,
    narrow_sum,
    numbers,
    positive,
    times,
    wide,
)

EPSILON = 1e-5


def mean(x, axis=-1):
    return x.mean(axis, keepdims=True)


# -- LayerNorm: x̂ = (x - mean) / √(var + ε), y = gain x̂ + bias ------------------------------------------------------


def normalized(x, axis=-1, ddof=0):
    """x̂ and 1/σ."""
    centred = x - mean(x, axis)
    variance = (centred**2).sum(axis, keepdims=True) / (x.shape[axis] - ddof)
    return centred * jax.lax.rsqrt(variance + EPSILON), jax.lax.rsqrt(variance + EPSILON)


def layer_norm(x, gain, bias):
    return normalized(x)[0] * gain[None] + bias[None]


def layer_norm_forward(x, gain, bias, normalized=normalized):
    xhat, scale = normalized(x)
    return layer_norm(x, gain, bias), (x, xhat, scale, gain)


def through_statistics(g, xhat, scale, axis=-1, mean_term=True, variance_term=True):
    """What x̂'s gradient g is at x: σ⁻¹ (g - x̂ mean(g x̂) - mean(g)), the mean last: x̂'s own is 0 but for rounding."""
    g = g - xhat * mean(g * xhat, axis) if variance_term else g
    return scale * (g - mean(g, axis) if mean_term else g)


def layer_norm_backward(saved, delta, **terms):
    _, xhat, scale, gain = saved
    gx = through_statistics(delta * gain[None], xhat, scale, **terms)
    return gx, (delta * xhat).sum(0), delta.sum(0)


def without(*names, backward):
    """A backward with these terms left out."""
    return lambda saved, delta: backward(saved, delta, **dict.fromkeys(names, False))


def layer_norm_from_x(saved, delta):
    """All recomputed from x: nothing else saved. In float32 where x is narrower."""
    x, _, _, gain = saved
    g = layer_norm_backward((x, *normalized(wide(x)), wide(gain)), wide(delta))
    return g[0].astype(x.dtype), g[1].astype(gain.dtype), g[2].astype(gain.dtype)


def narrow_layer_norm(x, gain, bias):
    return layer_norm(wide(x), wide(gain), wide(bias)).astype(x.dtype)


def narrow_layer_norm_forward(x, gain, bias):
    return narrow_layer_norm(x, gain, bias), (x, None, None, gain)


def centred_late(x):
    """The variance as mean(x²) - mean(x)²."""
    scale = jax.lax.rsqrt(jnp.maximum(mean(x * x) - mean(x) ** 2, 0) + EPSILON)
    return (x - mean(x)) * scale, scale


def epsilon_outside(x):
    centred = x - mean(x)
    scale = 1 / (jnp.sqrt(mean(centred**2)) + EPSILON)
    return centred * scale, scale


def saving(normalized):
    """A forward with the right output, that saves an x̂ and a 1/σ from elsewhere."""
    return lambda x, gain, bias: layer_norm_forward(x, gain, bias, normalized)


SQUARE = (numbers(20, 6, 6), positive(21, 6), numbers(22, 6))
LAYER_NORM = Rule("LayerNorm", layer_norm, layer_norm_forward, layer_norm_backward, SQUARE)
NARROW = Rule("LayerNorm", narrow_layer_norm, narrow_layer_norm_forward, layer_norm_from_x, SQUARE)
FAR = (1000 + np.float32(0.1) * numbers(23, 6, 32), positive(24, 32), numbers(25, 32))
TINY = (np.float32(0.003) * numbers(26, 6, 16), positive(27, 16), numbers(28, 16))

CASES = [
    LAYER_NORM.right("by hand"),
    LAYER_NORM.right("recomputed from x", backward=layer_norm_from_x),
    LAYER_NORM.right("large mean, small variance", args=FAR, hard=True),
    LAYER_NORM.right("variance near ε", args=TINY, hard=True),
    LAYER_NORM.right("one feature", args=(numbers(20, 6, 1), positive(21, 1), numbers(22, 1)), hard=True),
    NARROW.right("bfloat16", args=cast(SQUARE, ml_dtypes.bfloat16), hard=True),
    NARROW.right("float16", args=cast(SQUARE, np.float16), hard=True),
    LAYER_NORM.wrong("the mean's term", "missing term", 0, backward=without("mean_term", backward=layer_norm_backward)),
    LAYER_NORM.wrong(
        "the variance's term", "missing term", 0, backward=without("variance_term", backward=layer_norm_backward)
    ),
    LAYER_NORM.wrong(
        "mean and variance are constants",
        "stop_gradient",
        0,
        backward=without("mean_term", "variance_term", backward=layer_norm_backward),
    ),
    LAYER_NORM.wrong(
        "the gain is forgotten on the way to x",
        "missing term",
        0,
        backward=lambda s, d: (through_statistics(d, s[1], s[2]), *layer_norm_backward(s, d)[1:]),
    ),
    LAYER_NORM.wrong(
        "the gain meets x for x̂",
        "stale value",
        1,
        backward=lambda s, d: (layer_norm_backward(s, d)[0], (d * s[0]).sum(0), d.sum(0)),
    ),
    LAYER_NORM.wrong(
        "means over examples",
        "wrong axis",
        0,
        backward=lambda s, d: (through_statistics(d * s[3][None], s[1], s[2], axis=0), *layer_norm_backward(s, d)[1:]),
    ),
    LAYER_NORM.wrong("gain and bias swapped", "swapped leaves", gradients=lambda x, gain, bias: (x, bias, gain)),
    LAYER_NORM.wrong(
        "bias's gradient of one example",
        "wrong broadcast sum",
        2,
        backward=lambda s, d: (*layer_norm_backward(s, d)[:2], d[0]),
    ),
    LAYER_NORM.wrong("gain's gradient a mean", "wrong broadcast sum", 1, gradient=times(1 / 6)),
    LAYER_NORM.wrong("ε outside the root", "wrong epsilon", forward=saving(epsilon_outside), args=TINY),
    LAYER_NORM.wrong("divides by N - 1", "factor", forward=saving(lambda x: normalized(x, ddof=1))),
    LAYER_NORM.wrong("the variance as a difference of squares", "unstable", forward=saving(centred_late), args=FAR),
    LAYER_NORM.wrong("clipped", "not linear in the cotangent", 0, gradient=clipped),
    LAYER_NORM.wrong(
        "bias summed in bfloat16",
        "bfloat16 accumulation",
        2,
        backward=lambda s, d: (*layer_norm_backward(s, d)[:2], narrow_sum(d, jnp.bfloat16)),
        args=(numbers(20, 64, 6), *SQUARE[1:]),
    ),
    NARROW.wrong(
        "bfloat16, without the variance's term",
        "missing term",
        0,
        backward=lambda s, d: (
            layer_norm_backward((s[0], *normalized(wide(s[0])), wide(s[3])), wide(d), variance_term=False)[0].astype(
                d.dtype
            ),
            *layer_norm_from_x(s, d)[1:],
        ),
        args=cast(SQUARE, ml_dtypes.bfloat16),
    ),
]

# -- RMSNorm: y = gain x / √(mean(x²) + ε) ----------------------------------------------------------------------------


def rms_scale(x):
    return jax.lax.rsqrt(mean(x * x) + EPSILON)


def rms_norm(x, gain):
    return x * rms_scale(x) * gain[None]


def rms_norm_forward(x, gain, scale=rms_scale):
    return rms_norm(x, gain), (x, scale(x), gain)


def rms_norm_backward(saved, delta, mean=mean, projection=True):
    x, scale, gain = saved
    g, xhat = delta * gain[None], x * scale
    of_scale = xhat * mean(g * xhat) if projection else 0
    return scale * (g - of_scale), (delta * xhat).sum(0)


RMS_NORM = Rule("RMSNorm", rms_norm, rms_norm_forward, rms_norm_backward, (numbers(30, 5, 6), positive(31, 6)))

CASES += [
    RMS_NORM.right("by hand"),
    RMS_NORM.right(
        "large and small examples",
        args=(np.float32([[1e6], [1e3], [1], [1e-2], [1e-6]]) * numbers(30, 5, 6), positive(31, 6)),
        hard=True,
    ),
    RMS_NORM.wrong(
        "the scale is a constant", "stop_gradient", 0, backward=without("projection", backward=rms_norm_backward)
    ),
    RMS_NORM.wrong(
        "a sum for a mean",
        "factor",
        0,
        backward=lambda s, d: rms_norm_backward(s, d, mean=lambda x: x.sum(-1, keepdims=True)),
    ),
    RMS_NORM.wrong(
        "the norm for its root mean square",
        "factor",
        forward=lambda x, gain: rms_norm_forward(x, gain, lambda x: rms_scale(x) / 6**0.5),
    ),
    RMS_NORM.wrong(
        "ε outside the root",
        "wrong epsilon",
        forward=lambda x, gain: rms_norm_forward(x, gain, lambda x: 1 / (jnp.sqrt(mean(x * x)) + EPSILON)),
        args=TINY[:2],
    ),
    RMS_NORM.wrong(
        "the projection's mean over examples",
        "wrong axis",
        0,
        backward=lambda s, d: rms_norm_backward(s, d, mean=lambda x: mean(x, 0)),
    ),
    RMS_NORM.wrong(
        "squares overflow in float16",
        "overflow",
        forward=lambda x, gain: rms_norm_forward(x, gain, lambda x: rms_scale(x.astype(jnp.float16)).astype(x.dtype)),
        args=(300 * numbers(30, 5, 6), positive(31, 6)),
    ),
    RMS_NORM.wrong("the first example's row zero", "one row zero", 0, gradient=lambda g: g.at[0].set(0)),
]

# -- BatchNorm with the batch's statistics: LayerNorm along the other axis --------------------------------------------


def batch_norm(x, gain, bias):
    return normalized(x, 0)[0] * gain[None] + bias[None]


def batch_norm_forward(x, gain, bias, **changes):
    return batch_norm(x, gain, bias), (*normalized(x, 0, **changes), gain)


def batch_norm_backward(saved, delta, **terms):
    xhat, scale, gain = saved
    return (
        through_statistics(delta * gain[None], xhat, scale, **{"axis": 0, **terms}),
        (delta * xhat).sum(0),
        delta.sum(0),
    )


BATCH_NORM = Rule("BatchNorm", batch_norm, batch_norm_forward, batch_norm_backward, SQUARE)

CASES += [
    BATCH_NORM.right("by hand"),
    BATCH_NORM.right(
        "large mean, small variance",
        args=(1000 + np.float32(0.1) * numbers(23, 32, 3), positive(24, 3), numbers(25, 3)),
        hard=True,
    ),
    BATCH_NORM.wrong(
        "statistics are constants, as at evaluation",
        "stop_gradient",
        0,
        backward=without("mean_term", "variance_term", backward=batch_norm_backward),
    ),
    BATCH_NORM.wrong("running statistics", "stale value", saved=lambda s: (s[0] + 0.1, s[1] * 0.9, s[2])),
    BATCH_NORM.wrong("means over features", "wrong axis", 0, backward=lambda s, d: batch_norm_backward(s, d, axis=1)),
    BATCH_NORM.wrong(
        "the unbiased variance", "factor", forward=lambda x, gain, bias: batch_norm_forward(x, gain, bias, ddof=1)
    ),
    BATCH_NORM.wrong(
        "means of one device's half of the batch",
        "wrong broadcast sum",
        0,
        backward=lambda s, d: (
            jnp.concatenate(
                [
                    batch_norm_backward((h, s[1], s[2]), e)[0]
                    for h, e in zip(jnp.split(s[0], 2), jnp.split(d, 2), strict=True)
                ]
            ),
            *batch_norm_backward(s, d)[1:],
        ),
    ),
]
