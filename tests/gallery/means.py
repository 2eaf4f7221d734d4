"""Mean and variance as two outputs, the weighted mean, average pooling.

N examples come first, or steps of time.
"""

import jax.numpy as jnp
import numpy as np

from .case import Rule, numbers, positive, times
from .normalizations import mean

# -- mean and variance: two outputs -----------------------------------------------------------------------------------


def moments(x):
    centred = x - mean(x, 0)
    return x.mean(0), (centred**2).mean(0)


def moments_forward(x):
    return moments(x), x - mean(x, 0)


def moments_backward(centred, delta, again=True):
    of_mean, of_variance = delta
    centred = centred - mean(centred, 0) if again else centred  # 0 but for the mean's rounding
    return ((of_mean[None] + 2 * centred * of_variance[None]) / len(centred),)


MOMENTS = Rule("mean and variance", moments, moments_forward, moments_backward, (numbers(35, 7, 3),))

CASES = [
    MOMENTS.right("two outputs"),
    MOMENTS.right("large mean, small variance", args=(1000 + np.float32(0.01) * numbers(35, 50, 3),), hard=True),
    MOMENTS.right("one example", args=(numbers(35, 1, 3),), hard=True),
    MOMENTS.wrong(
        "x - mean keeps the mean's rounding",
        "unstable",
        0,
        backward=lambda s, d: moments_backward(s, d, again=False),
        args=(1000 + np.float32(0.01) * numbers(35, 50, 3),),
    ),
    MOMENTS.wrong("the variance's cotangent is dropped", "missing term", 0, delta=lambda d: (d[0], 0 * d[1])),
    MOMENTS.wrong("1/N forgotten", "factor", 0, gradient=times(7)),
    MOMENTS.wrong("the outputs' cotangents swapped", "swapped leaves", 0, delta=lambda d: d[::-1]),
    MOMENTS.wrong("N by an integer division", "integer division", 0, gradient=times(7 / (7 // 2 * 2))),
    MOMENTS.wrong("the square's factor 2", "factor", 0, delta=lambda d: (d[0], d[1] / 2)),
]

# -- the weighted mean: y = Σ w x / Σ w -------------------------------------------------------------------------------


def weighted_mean(x, w):
    return (w[:, None] * x).sum(0) / w.sum()


def weighted_mean_forward(x, w):
    y = weighted_mean(x, w)
    return y, (x, w, y)


def weighted_mean_backward(saved, delta):
    x, w, y = saved
    return w[:, None] * delta[None] / w.sum(), (x - y[None]) @ delta / w.sum()


def weighted_mean_centred_twice(saved, delta):
    """y's own rounding is in each x - y; its weighted mean is 0 but for that."""
    x, w, y = saved
    return weighted_mean_backward((x - y[None], w, weighted_mean(x - y[None], w)), delta)


WEIGHTED = Rule(
    "weighted mean", weighted_mean, weighted_mean_forward, weighted_mean_backward, (numbers(36, 6, 3), positive(37, 6))
)

CASES += [
    WEIGHTED.right("by hand"),
    WEIGHTED.right("some weights are 0", args=(numbers(36, 6, 3), np.float32([1, 0, 2, 0, 0, 3]))),
    WEIGHTED.right(
        "values far from 0",
        backward=weighted_mean_centred_twice,
        args=(100 + numbers(36, 6, 3), positive(37, 6)),
        hard=True,
    ),
    WEIGHTED.wrong("the weights' sum is a constant", "stop_gradient", 1, saved=lambda s: (s[0], s[1], 0 * s[2])),
    WEIGHTED.wrong("divided by N", "factor", 0, gradient=times(0.9)),
    WEIGHTED.wrong("the weights get nothing", "zero leaf", 1, gradient=jnp.zeros_like),
    WEIGHTED.wrong("the weights' sign", "sign", 1, gradient=jnp.negative),
    WEIGHTED.wrong(
        "the weights are ignored",
        "missing term",
        0,
        backward=lambda s, d: (jnp.broadcast_to(d[None] / len(s[1]), s[0].shape), weighted_mean_backward(s, d)[1]),
    ),
]

# -- average pooling over windows of 3, the last one partial ----------------------------------------------------------

WINDOW = 3


def windows(t):
    """[t, t'] 1 where step t is in window t', over the number of steps there."""
    member = np.arange(t)[:, None] // WINDOW == np.arange(-(-t // WINDOW))[None]
    return member / member.sum(0)


def average_pool(x):
    return jnp.asarray(windows(x.shape[0]).T, x.dtype) @ x


def average_pool_forward(x):
    return average_pool(x), jnp.zeros(x.shape[:1], x.dtype)


def average_pool_backward(steps, delta):
    t = len(steps)
    last = t - (t - 1) // WINDOW * WINDOW
    counts = jnp.full(len(delta), WINDOW, delta.dtype).at[-1].set(last)
    return (jnp.repeat(delta / counts[:, None], WINDOW, 0)[:t],)


POOL = Rule("average pooling", average_pool, average_pool_forward, average_pool_backward, (numbers(38, 7, 3),))

CASES += [
    POOL.right("the last window is partial"),
    POOL.right("one step", args=(numbers(38, 1, 3),)),
    POOL.wrong(
        "the last window divides by 3",
        "integer division",
        0,
        backward=lambda s, d: (jnp.repeat(d / WINDOW, WINDOW, 0)[: len(s)],),
    ),
    POOL.wrong("the last window dropped", "dropped chunk", 0, gradient=lambda g: g.at[-1].set(0)),
    POOL.wrong("windows begin a step early", "wrong offset", 0, gradient=lambda g: jnp.roll(g, -1, 0)),
]
