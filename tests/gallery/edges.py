"""Rules where a derivative is infinite or absent, is stopped, or has no second one; and arguments that must not move.

At the edge of a domain an infinite derivative is right, and nothing else. Where autodiff has none, central differences
decide, or nobody does; the rest of the leaf is judged as usual.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .case import Case, numbers
from .kinks import by_arguments

f4 = np.float32
INFINITE, ABSENT, REST, STOP = "infinite derivative", "absent derivative", "beside an absent derivative", "stopped"
EDGE = f4([0, 1, 2])


def elementwise(slope):
    return lambda saved, delta: (delta * slope(saved[0]),)


def at(where, value, slope):
    """The slope, and `value` at one place."""
    return elementwise(lambda x: jnp.where(x == where, value, slope(jnp.where(x == where, 0.5, x))))


ROOT = by_arguments("sqrt at 0", jnp.sqrt, elementwise(lambda x: 0.5 / jnp.sqrt(x)), EDGE)
LOG = by_arguments("log at 0", jnp.log, elementwise(lambda x: 1 / x), EDGE)
POWER = by_arguments("x^0.5 at 0", lambda x: x**0.5, elementwise(lambda x: 0.5 * x**-0.5), EDGE)
CUBE = by_arguments("cube root at 0", jnp.cbrt, at(0, jnp.inf, lambda x: 1 / (3 * jnp.cbrt(x) ** 2)), f4([-1, 0, 8]))
ARC = by_arguments("arccos at 1", jnp.arccos, elementwise(lambda x: -1 / jnp.sqrt(1 - x * x)), f4([0, 1, -0.5]))
ENTROPY = by_arguments(
    "x log x at 0", lambda x: jnp.where(x == 0, 0, x * jnp.log(x)), at(0, -jnp.inf, lambda x: 1 + jnp.log(x)), EDGE
)


def norms(x):
    return jnp.sqrt((x * x).sum(-1))


def norms_backward(at_zero, factor=1.0):
    def backward(saved, delta):
        (x,) = saved
        n = norms(x)[:, None]
        return (factor * delta[:, None] * jnp.where(n == 0, at_zero, x / jnp.where(n == 0, 1, n)),)

    return backward


NORM = by_arguments("norm of a row of 0", norms, norms_backward(0.0), f4([[0, 0], [3, 4], [-1, 2]]))


def sinc(x):
    return jnp.where(x == 0, 1, jnp.sin(x) / x)


def sinc_slope(x):
    return (x * jnp.cos(x) - jnp.sin(x)) / (x * x)


SINC = by_arguments("0/0 behind a where", sinc, at(0, 0.0, sinc_slope), f4([0, 0.5, 2]))
MASKED = f4([[1.0, 0.5], [-np.inf, -np.inf], [0.3, -np.inf]])


def lse(x):
    m = jnp.where(jnp.isfinite(x.max(-1)), x.max(-1), 0)
    return jnp.log(jnp.exp(x - m[:, None]).sum(-1)) + m


def lse_backward(factor):
    def backward(saved, delta):
        (x,) = saved
        top = jnp.where(jnp.isfinite(lse(x)), lse(x), 0)
        return (delta[:, None] * jnp.exp(x - top[:, None]) * factor,)

    return backward


LSE = by_arguments("logsumexp of a masked row", lse, lse_backward(f4(1)), MASKED)


def softmax(x):
    return jnp.exp(x - lse(x)[:, None])


def softmax_backward(factor):
    def backward(saved, delta):
        (x,) = saved
        p = jnp.where(jnp.isfinite(lse(x))[:, None], softmax(x), 0)
        return (factor * p * (delta - (delta * p).sum(-1, keepdims=True)),)

    return backward


SOFTMAX = by_arguments("softmax of a masked row", softmax, softmax_backward(1.0), MASKED[:2])

# -- stopped ----------------------------------------------------------------------------------------------------------


def td(q, t):
    return (q - lax.stop_gradient(t)) ** 2


def td_backward(factor=2.0):
    return lambda saved, delta: (factor * delta * (saved[0] - saved[1]), 0 * saved[1])


TD = by_arguments("squared error, target stopped", td, td_backward(), f4([1.0, -0.5]), f4([0.3, 0.7]))


def through(x, s):
    return s * (x + lax.stop_gradient(jnp.round(x) - x))


STE = by_arguments(
    "rounding, straight through",
    through,
    lambda r, d: (r[1] * d, (jnp.round(r[0]) * d).sum()),
    f4([0.3, 1.2, -2.4]),
    f4(0.5),
)


def clipped_through(x):
    y = jnp.clip(x, -1, 1)
    return y + lax.stop_gradient(jnp.sign(x) - y)


SIGN = by_arguments(
    "sign, straight through a clip",
    clipped_through,
    elementwise(lambda x: (jnp.abs(x) <= 1).astype(x.dtype)),
    f4([0.3, 1, -2.4, -0.7]),
)


def standardized(x):
    return x / lax.stop_gradient(jnp.sqrt((x * x).mean()))


SCALE = by_arguments(
    "divided by its own size, stopped",
    standardized,
    lambda saved, delta: (delta / jnp.sqrt((saved[0] ** 2).mean()),),
    numbers(3, 5),
)

# -- second order -----------------------------------------------------------------------------------------------------


def square_root(a):
    w, v = jnp.linalg.eigh(a)
    return (v * jnp.sqrt(w)[None]) @ v.T


def square_root_backward(factor=1.0):
    def backward(saved, g):
        w, v = jnp.linalg.eigh(saved[0])
        q = jnp.sqrt(w)
        g = v @ ((v.T @ g @ v) / (q[:, None] + q[None, :])) @ v.T
        return (factor * (g + g.T) / 2,)

    return backward


EIGEN = by_arguments(
    "matrix square root, equal eigenvalues", square_root, square_root_backward(), f4(np.eye(3) + np.ones((3, 3)))
)


def nuclear(a):
    return jnp.linalg.svd(a, compute_uv=False).sum()


def nuclear_backward(factor=1.0):
    def backward(saved, delta):
        u, _, v = jnp.linalg.svd(saved[0], full_matrices=False)
        return (factor * delta * u @ v,)

    return backward


NUCLEAR = by_arguments("nuclear norm", nuclear, nuclear_backward(), numbers(4, 3, 3))

# -- labels, masks and probabilities as arguments ---------------------------------------------------------------------


def entropy(w, x, y):
    return -(jax.nn.log_softmax(jnp.maximum(x @ w, 0)) * lax.stop_gradient(y)).sum(-1).mean()


def entropy_backward(factor=1.0):
    def backward(saved, delta):
        w, x, y = saved
        z = x @ w
        d = delta * factor * (jax.nn.softmax(jnp.maximum(z, 0)) - y) * (z > 0).astype(z.dtype) / len(x)
        return x.T @ d, d @ w.T, None

    return backward


LABELS = f4(np.eye(3)[[0, 1, 2, 0]])
INPUTS = np.concatenate([np.zeros((1, 2), f4), numbers(6, 3, 2)])
CROSS = by_arguments(
    "cross-entropy behind relu, labels given", entropy, entropy_backward(), numbers(5, 2, 3), INPUTS, LABELS
)


def looked_up(table, index):
    return table[jnp.floor(index).astype(jnp.int32)]


def looked_up_backward(factor=1.0):
    def backward(saved, delta):
        table, index = saved
        rows = jnp.floor(index).astype(jnp.int32)
        return factor * jnp.zeros_like(table).at[rows].add(delta), jnp.zeros_like(index)

    return backward


LOOKUP = by_arguments("rows by indices as floats", looked_up, looked_up_backward(), numbers(7, 3, 2), f4([0, 2, 2, 1]))


CASES: list[Case] = [
    ROOT.right("infinite"),
    ROOT.wrong("123 there", INFINITE, backward=at(0, 123.0, lambda x: 0.5 / jnp.sqrt(x))),
    ROOT.wrong("0 there", INFINITE, backward=at(0, 0.0, lambda x: 0.5 / jnp.sqrt(x))),
    ROOT.wrong("−∞ there", INFINITE, backward=at(0, -jnp.inf, lambda x: 0.5 / jnp.sqrt(x))),
    ROOT.wrong("without its half", REST, backward=elementwise(lambda x: 1 / jnp.sqrt(x))),
    LOG.right("infinite"),
    LOG.wrong("1/ε there", INFINITE, backward=elementwise(lambda x: 1 / jnp.maximum(x, 1e-8))),
    POWER.right("infinite"),
    POWER.wrong("0 there", INFINITE, backward=at(0, 0.0, lambda x: 0.5 * x**-0.5)),
    CUBE.right("infinite"),
    CUBE.wrong("twice elsewhere", REST, backward=at(0, jnp.inf, lambda x: 2 / (3 * jnp.cbrt(x) ** 2))),
    ARC.right("infinite"),
    ARC.wrong("of the other sign there", INFINITE, backward=at(1, jnp.inf, lambda x: -1 / jnp.sqrt(1 - x * x))),
    ENTROPY.right("infinite"),
    ENTROPY.wrong("without its 1", REST, backward=at(0, -jnp.inf, jnp.log)),
    NORM.right("0 in that row"),
    NORM.right("0.6 in that row", backward=norms_backward(0.6)),
    NORM.wrong("5 in that row", ABSENT, backward=norms_backward(5.0)),
    NORM.wrong("NaN in that row, as autodiff is", ABSENT, backward=norms_backward(jnp.nan)),
    NORM.wrong("half in the others", REST, backward=norms_backward(0.0, 0.5)),
    SINC.right("0 there"),
    SINC.wrong("0.3 there", ABSENT, backward=at(0, 0.3, sinc_slope)),
    SINC.wrong("NaN there, as autodiff is", ABSENT, backward=elementwise(sinc_slope)),
    SINC.wrong("the sign elsewhere", REST, backward=at(0, 0.0, lambda x: -sinc_slope(x))),
    LSE.right("0 in the masked row"),
    LSE.wrong("a finite row half as large", REST, backward=lse_backward(f4([[0.5], [1], [1]]))),
    SOFTMAX.right("0 in the masked row"),
    SOFTMAX.wrong("half in the others", REST, backward=softmax_backward(0.5)),
    TD.right("by hand"),
    TD.wrong("without its 2", STOP, backward=td_backward(1.0)),
    STE.right("by hand"),
    STE.wrong("s left out", STOP, backward=lambda r, d: (d, (jnp.round(r[0]) * d).sum())),
    SIGN.right("1 on the bounds"),
    SIGN.wrong("passes what is outside", STOP, backward=elementwise(jnp.ones_like)),
    SCALE.right("by hand"),
    SCALE.wrong("its square", STOP, backward=lambda saved, delta: (delta / (saved[0] ** 2).mean(),)),
    EIGEN.right("by hand"),
    EIGEN.wrong("twice", "factor", backward=square_root_backward(2.0)),
    NUCLEAR.right("by hand"),
    NUCLEAR.wrong("half", "factor", backward=nuclear_backward(0.5)),
    CROSS.right("by hand"),
    CROSS.wrong("of the sum, not the mean", "factor", backward=entropy_backward(4.0)),
    LOOKUP.right("by hand"),
    LOOKUP.wrong("twice", "factor", backward=looked_up_backward(2.0)),
]  # fmt: skip
