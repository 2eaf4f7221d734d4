"""Rules at kinks: any slope between both sides is right there, and beside them only the one of that side.

The arguments lie on kinks exactly: whole numbers, exact fits, ties, blank rows.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .case import Case, Rule

f4 = np.float32
OFF, SLOPE = "wrong beside a kink", "no slope of the kink"


def forty(z):
    """The sign, and 40 at 0."""
    return jnp.where(z == 0, 40, jnp.sign(z))


def by_arguments(function, primal, backward, *args):
    """A rule that saves its arguments."""
    return Rule(function, primal, lambda *a: (primal(*a), a), backward, args)


# -- |x² − y|, L1 of an exact fit, hinge, clip ------------------------------------------------------------------------


def bent(slope, factor=1.0):
    def backward(saved, delta):
        x, y = saved
        d = factor * delta * slope(x * x - y)
        return 2 * x * d, -d

    return backward


ABS = by_arguments("|x² − y|", lambda x, y: jnp.abs(x * x - y), bent(jnp.sign), f4(2), f4(4))


def l1(x, w, y):
    return jnp.abs(x @ w - y).sum()


def l1_backward(slope, factor=1.0):
    def backward(saved, delta):
        x, w, y = saved
        d = factor * delta * slope(x @ w - y)
        return d @ w.T, x.T @ d, -d

    return backward


X, W = f4([[1, 2], [0.5, 1]]), f4([[1, -1], [0.5, 2]])
L1 = by_arguments("L1 of an exact fit", l1, l1_backward(jnp.sign), X, W, X @ W)
THIRDS = f4([[0.1, 0.7], [-0.3, 1.3]]), f4([[1.1, -0.9], [0.7, 0.3]])
L1_ROUNDED = by_arguments(
    "L1 of a fit exact but for rounding", l1, l1_backward(jnp.sign), *THIRDS, THIRDS[0] @ THIRDS[1]
)


def hinge(w, x, y):
    return jnp.maximum(0, 1 - lax.stop_gradient(y) * (x @ w)).sum()


def hinge_backward(met, factor=1.0):
    def backward(saved, delta):
        w, x, y = saved
        d = -delta * factor * y * met(1 - y * (x @ w))
        return x.T @ d, d[:, None] * w[None], None

    return backward


ABOVE, AT_LEAST = lambda m: (m > 0).astype(m.dtype), lambda m: (m >= 0).astype(m.dtype)
HINGE = by_arguments(
    "hinge on its margin", hinge, hinge_backward(ABOVE), f4([0.5, 1]), f4([[2, 0], [0, 1], [-2, -1]]), f4([1, 1, -1])
)


def clip_backward(inside, outside=0.0):
    return lambda saved, delta: (jnp.where(inside(saved[0]), delta, outside * delta),)


CLIP = by_arguments(
    "clip on its bounds",
    lambda x: jnp.clip(x, -1, 1),
    clip_backward(lambda x: jnp.abs(x) < 1),
    f4([-2, -1, 0, 1, 3]),
)

# -- relu behind a product, chains, leaky relu, softshrink, |x| |y| ---------------------------------------------------


def relu_product(x, w):
    return jnp.maximum(x @ w, 0)


def relu_backward(met):
    def backward(saved, delta):
        x, w = saved
        d = delta * met(x @ w)
        return d @ w.T, x.T @ d

    return backward


BLANK = f4([[0, 0], [1, 2], [-1, 0.5]]), f4([[1, -1, 0.5], [0.5, 2, -1]])
RELU = by_arguments("relu of a product, a blank row", relu_product, relu_backward(ABOVE), *BLANK)
RELU_ZERO = by_arguments(
    "relu of a product, weights 0", relu_product, relu_backward(ABOVE), f4([[0.125], [-0.13]]), f4([[0, 0]])
)


def chain(x, w):
    return w * jax.nn.relu(1 - jax.nn.relu(1 - x))


def chain_backward(met):
    def backward(saved, delta):
        x, w = saved
        inner = jnp.maximum(1 - x, 0)
        return delta * w * met(1 - inner) * met(1 - x), delta * jnp.maximum(1 - inner, 0)

    return backward


CHAIN = by_arguments("relu behind relu", chain, chain_backward(ABOVE), f4([0, 1, 0.25, 2]), f4([2, -1, 3, 0.5]))


def leaky(x):
    return jnp.where(x > 0, x, 0.2 * x)


def leaky_backward(at_zero, below=0.2):
    slope = lambda x: jnp.where(x > 0, 1, jnp.where(x == 0, at_zero, below))
    return lambda saved, delta: (delta * slope(saved[0]),)


LEAKY = by_arguments("leaky relu at 0", leaky, leaky_backward(0.2), f4([-1, 0, 2, 0]))


def shrink(x):
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.5, 0)


def shrink_backward(met, factor=1.0):
    return lambda saved, delta: (factor * delta * met(jnp.abs(saved[0]) - 0.5),)


SHRINK = by_arguments("softshrink at its threshold", shrink, shrink_backward(ABOVE), f4([-0.5, 0, 0.5, 1.5]))


def cross(x, y):
    return jnp.sum(jnp.abs(x) * jnp.abs(y))


def cross_backward(sign):
    return lambda saved, delta: (
        delta * sign(saved[0]) * jnp.abs(saved[1]),
        delta * sign(saved[1]) * jnp.abs(saved[0]),
    )


CROSS = by_arguments("|x| |y| at 0", cross, cross_backward(jnp.sign), f4([0, 1, 0]), f4([2, 0, 0]))


def difference(x, w):
    return w * (jnp.maximum(x[0], 0) - jnp.maximum(x[1], 0))


def difference_backward(slopes):
    def backward(saved, delta):
        x, w = saved
        return delta * w * slopes(x), delta * (jnp.maximum(x[0], 0) - jnp.maximum(x[1], 0))

    return backward


def slopes(*at_zero):
    """Of both relus, with their signs: at 0 as given."""
    return lambda x: jnp.where(x > 0, f4([1, -1]), jnp.where(x < 0, 0, f4(at_zero)))


DIFFERENCE = by_arguments("relu minus relu", difference, difference_backward(slopes(0, 0)), f4([0, 0]), f4(2))

# -- ties: max, min, sort, pooling ------------------------------------------------------------------------------------


def ties_of(x):
    """1 where an element is the largest of its row."""
    return (x == x.max(-1, keepdims=True)).astype(x.dtype)


def of_the_max(shares):
    return lambda saved, delta: (delta[:, None] * shares(saved[0], ties_of(saved[0])),)


def equal_shares(x, ties):
    return ties / ties.sum(-1, keepdims=True)


def the_first(x, ties):
    return jax.nn.one_hot(x.argmax(-1), x.shape[-1], dtype=x.dtype)


def unequal(x, ties):
    weights = ties * (1 + jnp.arange(x.shape[-1], dtype=x.dtype))[None]
    return weights / weights.sum(-1, keepdims=True)


def above_the_mean(x, ties):
    return equal_shares(x, (x >= x.mean(-1, keepdims=True)).astype(x.dtype))


MAX = by_arguments(
    "max of ties", lambda x: x.max(-1), of_the_max(equal_shares), f4([[1, 1, 0, 1], [0, 2, 2, 1], [0, 0, 0, 3]])
)


def sort_backward(saved, delta):
    return (jnp.zeros_like(saved[0]).at[jnp.argsort(saved[0])].set(delta),)


def sorted_means(saved, delta):
    """Ties have the mean of their places' cotangents."""
    x = saved[0]
    back = jnp.zeros_like(x).at[jnp.argsort(x)].set(delta)
    ties = (x[:, None] == x[None]).astype(x.dtype)
    return (ties @ back / ties.sum(-1),)


def sorted_sums(saved, delta):
    x = saved[0]
    back = jnp.zeros_like(x).at[jnp.argsort(x)].set(delta)
    return ((x[:, None] == x[None]).astype(x.dtype) @ back,)


SORT = by_arguments("sort of ties", lambda x: jnp.sort(x), sort_backward, f4([2, 1, 2, 0, 1]))


def pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID")


def pool_backward(shares):
    def backward(saved, delta):
        (x,) = saved
        windows = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2).swapaxes(1, 2).reshape(-1, 4)
        back = delta.reshape(-1, 1) * shares(windows, ties_of(windows))
        return (back.reshape(x.shape[0] // 2, x.shape[1] // 2, 2, 2).swapaxes(1, 2).reshape(x.shape),)

    return backward


PATCH = f4([[0, 0, 1, 2], [0, 0, 3, 1], [0, 1, 0, 0], [1, 0, 0, 0]])
POOL = by_arguments("max pooling of blank patches", pool, pool_backward(the_first), PATCH)


def lesser(x, y):
    return jnp.minimum(x, y)


def lesser_backward(share):
    def backward(saved, delta):
        x, y = saved
        of_x = jnp.where(x == y, share[0], (x < y).astype(x.dtype))
        of_y = jnp.where(x == y, share[1], (y < x).astype(x.dtype))
        return delta * of_x, delta * of_y

    return backward


MIN = by_arguments("min of two equal numbers", lesser, lesser_backward((0.5, 0.5)), f4([1, 2, 3]), f4([1, 5, 3]))


# -- in a loop --------------------------------------------------------------------------------------------------------


def falling(x):
    return lax.scan(lambda c, _: (jnp.maximum(c - 1, 0), None), x, length=3)[0].sum()


def falling_backward(met):
    def backward(saved, delta):
        (x,) = saved
        slope = delta * jnp.ones_like(x)
        for k in range(1, 4):
            slope = slope * met(x - k)
        return (slope,)

    return backward


LOOP = by_arguments("relu in a loop", falling, falling_backward(ABOVE), f4([3, 2, 5, 3.5]))

CASES: list[Case] = [
    ABS.right("0 at the kink"),
    ABS.right("the right side's slope", backward=bent(lambda z: jnp.where(z >= 0, 1.0, -1.0))),
    ABS.right("0.3 at the kink", backward=bent(lambda z: jnp.where(z == 0, 0.3, jnp.sign(z)))),
    ABS.wrong("−30 times, which is 0 at the kink", OFF, backward=bent(jnp.sign, -30.0)),
    ABS.wrong("40 at the kink", SLOPE, backward=bent(forty)),
    ABS.wrong("the sign of one side on both", OFF, backward=bent(jnp.ones_like)),
    ABS.wrong("slopes that are no choice of one kink", SLOPE,
              gradients=lambda x, y: (jnp.where(x == 0, 2.0, x), jnp.where(y == 0, 0.5, y))),
    L1.right("0 at its kinks"),
    L1.right("the right side's slope", backward=l1_backward(lambda z: jnp.where(z >= 0, 1.0, -1.0))),
    L1.wrong("3 times, which is 0 at the kinks", OFF, backward=l1_backward(jnp.sign, 3.0)),
    L1.wrong("40 at the kinks", SLOPE, backward=l1_backward(forty)),
    L1_ROUNDED.right("0 at its kinks"),
    L1_ROUNDED.wrong("3 times", OFF, backward=l1_backward(jnp.sign, 3.0)),
    L1_ROUNDED.wrong("40 at the kinks", SLOPE,
                     backward=l1_backward(lambda z: jnp.where(jnp.abs(z) < 1e-5, 40, jnp.sign(z)))),
    HINGE.right("0 on the margin"),
    HINGE.right("−y on the margin", backward=hinge_backward(AT_LEAST)),
    HINGE.wrong("twice on the margin", SLOPE, backward=hinge_backward(lambda m: jnp.where(m == 0, 2, ABOVE(m)))),
    HINGE.wrong("half of it", OFF, backward=hinge_backward(ABOVE, 0.5)),
    CLIP.right("0 on its bounds"),
    CLIP.right("1 on its bounds", backward=clip_backward(lambda x: jnp.abs(x) <= 1)),
    CLIP.wrong("passes what is outside", OFF, backward=clip_backward(lambda x: jnp.abs(x) < 1, 1.0)),
    CLIP.wrong("inside and outside exchanged", OFF, backward=clip_backward(lambda x: jnp.abs(x) > 1)),
    RELU.right("0 at the kinks"),
    RELU.right("1 at the kinks", backward=relu_backward(AT_LEAST)),
    RELU.right("half at the kinks", backward=relu_backward(lambda z: (AT_LEAST(z) + ABOVE(z)) / 2)),
    RELU.wrong("2 at the kinks", SLOPE, backward=relu_backward(lambda z: jnp.where(z == 0, 2, ABOVE(z)))),
    RELU.wrong("the slope of the other side", OFF, backward=relu_backward(lambda z: 1 - ABOVE(z))),
    RELU_ZERO.right("0 at the kinks"),
    RELU_ZERO.wrong("−1 at the kinks", SLOPE, backward=relu_backward(lambda z: jnp.where(z == 0, -1, ABOVE(z)))),
    RELU_ZERO.wrong("0 everywhere but where it is met", OFF, backward=relu_backward(lambda z: 0.3 * ABOVE(z))),
    CHAIN.right("0 at its kinks"),
    CHAIN.right("1 at its kinks", backward=chain_backward(AT_LEAST)),
    CHAIN.wrong("3 at its kinks", SLOPE, backward=chain_backward(lambda z: jnp.where(z == 0, 3, ABOVE(z)))),
    CHAIN.wrong("the outer one left out", OFF, backward=lambda saved, delta: (
        delta * saved[1] * ABOVE(1 - saved[0]), chain_backward(ABOVE)(saved, delta)[1])),
    LEAKY.right("the left slope"),
    LEAKY.right("the right slope", backward=leaky_backward(1.0)),
    LEAKY.right("between both", backward=leaky_backward(0.7)),
    LEAKY.wrong("0 at the kink", SLOPE, backward=leaky_backward(0.0)),
    LEAKY.wrong("0 below", OFF, backward=leaky_backward(0.2, 0.0)),
    SHRINK.right("0 at the threshold"),
    SHRINK.right("1 at the threshold", backward=shrink_backward(AT_LEAST)),
    SHRINK.wrong("1 everywhere", OFF, backward=shrink_backward(jnp.ones_like)),
    SHRINK.wrong("−1 at the threshold", SLOPE, backward=shrink_backward(lambda z: jnp.where(z == 0, -1, ABOVE(z)))),
    CROSS.right("0 at its kinks"),
    CROSS.right("1 at its kinks", backward=cross_backward(lambda z: jnp.where(z >= 0, 1.0, -1.0))),
    CROSS.wrong("3 at its kinks", SLOPE, backward=cross_backward(lambda z: jnp.where(z == 0, 3.0, jnp.sign(z)))),
    DIFFERENCE.right("0 at both"),
    DIFFERENCE.right("1 at one, half at the other", backward=difference_backward(slopes(1, -0.5))),
    DIFFERENCE.wrong("both of one sign", SLOPE, backward=difference_backward(slopes(1, 1))),
    MAX.right("equal shares"),
    MAX.right("all for the first", backward=of_the_max(the_first)),
    MAX.right("unequal shares", backward=of_the_max(unequal)),
    MAX.wrong("all for each", SLOPE, backward=of_the_max(lambda x, ties: ties.astype(x.dtype))),
    MAX.wrong("half for each", SLOPE, backward=of_the_max(lambda x, ties: 0.5 * ties)),
    MAX.wrong("a share for what is no tie", SLOPE, backward=of_the_max(above_the_mean)),
    SORT.right("each its own"),
    SORT.right("the mean of the ties", backward=sorted_means),
    SORT.wrong("the sum of the ties", SLOPE, backward=sorted_sums),
    SORT.wrong("the permutation, not its inverse", OFF, backward=lambda saved, delta: (delta[jnp.argsort(saved[0])],)),
    POOL.right("all for the first"),
    POOL.right("equal shares", backward=pool_backward(equal_shares)),
    POOL.wrong("all for each", SLOPE, backward=pool_backward(lambda x, ties: ties.astype(x.dtype))),
    MIN.right("half for each"),
    MIN.right("all for y", backward=lesser_backward((0.0, 1.0))),
    MIN.wrong("all for both", SLOPE, backward=lesser_backward((1.0, 1.0))),
    MIN.wrong("nothing for both", SLOPE, backward=lesser_backward((0.0, 0.0))),
    LOOP.right("0 at its kinks"),
    LOOP.right("1 at its kinks", backward=falling_backward(AT_LEAST)),
    LOOP.wrong("2 at its kinks", SLOPE, backward=falling_backward(lambda z: jnp.where(z == 0, 2, ABOVE(z)))),
]  # fmt: skip
