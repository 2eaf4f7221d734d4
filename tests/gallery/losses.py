"""Log-sum-exp, softmax, cross-entropies, attention, Huber's loss: what is built on exp, and losses.

Indices: N examples, K classes; in attention T positions, D features of a head.
"""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from .case import Rule, cast, hide_nan, integers, numbers, one_wrong, ones, through, times, wide

# -- log-sum-exp: y = log Σ exp x, ∂y/∂x = softmax(x) -----------------------------------------------------------------


def logsumexp(x):
    return jax.nn.logsumexp(x, axis=-1)


def logsumexp_forward(x):
    y = logsumexp(x)
    return y, (x, y)


def logsumexp_backward(saved, delta):
    x, y = saved
    return (delta[:, None] * jnp.exp(x - y[:, None]),)


def logsumexp_by_softmax(saved, delta, axis=-1):
    return (delta[:, None] * jax.nn.softmax(saved[0], axis),)


def naive_softmax(x):
    e = jnp.exp(x)
    return e / e.sum(-1, keepdims=True)


def logsumexp_naive(saved, delta):
    return (delta[:, None] * naive_softmax(saved[0]),)


LOGSUMEXP = Rule("log-sum-exp", logsumexp, logsumexp_forward, logsumexp_backward, (numbers(40, 4, 4),))
LARGE = (50 * numbers(41, 6, 5) + np.float32(100),)
MASKED = (np.where(np.tri(5, dtype=bool), numbers(42, 5, 5), np.float32(-1e30)),)

CASES = [
    LOGSUMEXP.right("by hand"),
    LOGSUMEXP.right("large logits", backward=logsumexp_by_softmax, args=LARGE, hard=True),
    LOGSUMEXP.right("masked logits of -1e30", args=MASKED, hard=True),
    LOGSUMEXP.right("equal logits", backward=logsumexp_by_softmax, args=(np.full((3, 7), 2, np.float32),)),
    LOGSUMEXP.right("one class", args=(numbers(40, 3, 1),)),
    LOGSUMEXP.right("no examples", args=(numbers(40, 0, 3),)),
    LOGSUMEXP.wrong("not divided by the sum", "missing term", 0, saved=lambda s: (s[0], 0 * s[1])),
    LOGSUMEXP.wrong("overflows at large logits", "unstable", 0, backward=logsumexp_naive, args=LARGE),
    LOGSUMEXP.wrong(
        "overflows, and 0 is put for NaN", "NaN hidden", 0, backward=logsumexp_naive, gradient=hide_nan, args=LARGE
    ),
    LOGSUMEXP.wrong("softmax over examples", "wrong axis", 0, backward=lambda s, d: logsumexp_by_softmax(s, d, axis=0)),
    LOGSUMEXP.wrong("the cotangent ignored", "cotangent ignored", 0, delta=ones),
    LOGSUMEXP.wrong(
        "the largest gets it all",
        "missing term",
        0,
        backward=lambda s, d: (d[:, None] * jax.nn.one_hot(s[0].argmax(-1), 4, dtype=d.dtype),),
    ),
    LOGSUMEXP.wrong("exp in bfloat16", "rounded output", 0, saved=lambda s: (through(jnp.bfloat16)(s[0]), s[1])),
    LOGSUMEXP.wrong(
        "exp overflows in float16",
        "overflow",
        0,
        backward=lambda s, d: (d[:, None] * naive_softmax(s[0].astype(jnp.float16)).astype(d.dtype),),
        args=(np.float32(12) + numbers(40, 4, 4),),
    ),
]

# -- softmax: the gradient is p (δ - Σ p δ) ---------------------------------------------------------------------------


def softmax(x):
    return jax.nn.softmax(wide(x), -1).astype(x.dtype)


def softmax_forward(x):
    p = softmax(x)
    return p, (x, jax.nn.softmax(wide(x), -1))


def softmax_backward(saved, delta, total=lambda x: x.sum(-1, keepdims=True)):
    x, p = saved
    delta = wide(delta)
    return ((p * (delta - total(p * delta))).astype(x.dtype),)


def softmax_by_jacobian(saved, delta):
    x, p = saved
    jacobian = jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None, :]
    return ((jacobian @ wide(delta)[:, :, None])[..., 0].astype(x.dtype),)


def softmax_without(what):
    return lambda saved, delta: softmax_backward(saved, delta, what)


SOFTMAX = Rule("softmax", softmax, softmax_forward, softmax_backward, (numbers(43, 4, 4),))

CASES += [
    SOFTMAX.right("by hand"),
    SOFTMAX.right("by its Jacobian", backward=softmax_by_jacobian),
    SOFTMAX.right("large logits", args=LARGE, hard=True),
    SOFTMAX.right("bfloat16", args=cast((numbers(43, 8, 8),), ml_dtypes.bfloat16), hard=True),
    SOFTMAX.right("float16", args=cast((numbers(43, 8, 8),), np.float16), hard=True),
    SOFTMAX.wrong("the sum is missing", "missing term", 0, backward=softmax_without(jnp.zeros_like)),
    SOFTMAX.wrong("a mean for the sum", "factor", 0, backward=softmax_without(lambda x: x.mean(-1, keepdims=True))),
    SOFTMAX.wrong(
        "the sum over examples", "wrong axis", 0, backward=softmax_without(lambda x: x.sum(0, keepdims=True))
    ),
    SOFTMAX.wrong("p is the logits", "stale value", 0, saved=lambda s: (s[0], wide(s[0]))),
    SOFTMAX.wrong("the last row is zero", "one row zero", 0, gradient=lambda g: g.at[-1].set(0)),
]

# -- softmax cross-entropy: the mean of logsumexp(x) - x[label]; label -1 is left out ---------------------------------


def cross_entropy(x, labels):
    kept = labels >= 0
    of_label = jnp.take_along_axis(jax.nn.log_softmax(x), jnp.where(kept, labels, 0)[:, None], 1)[:, 0]
    return -jnp.where(kept, of_label, 0).sum() / kept.sum().astype(x.dtype)


def cross_entropy_forward(x, labels):
    return cross_entropy(x, labels), (x, labels)


def cross_entropy_backward(saved, delta, softmax=jax.nn.softmax, target=True, masked=True, mean=True):
    x, labels = saved
    kept = labels >= 0
    g = softmax(x) - (jax.nn.one_hot(labels, x.shape[1], dtype=x.dtype) if target else 0)
    g = jnp.where(kept[:, None], g, 0) if masked else g
    return delta * g / (kept.sum().astype(x.dtype) if mean else 1), None


def cross_entropy_with(**fault):
    return lambda saved, delta: cross_entropy_backward(saved, delta, **fault)


def label_by_difference(saved, delta):
    """p - 1 at the label as minus the sum of the others, which does not cancel."""
    x, labels = saved
    p = jax.nn.softmax(x)
    label = jax.nn.one_hot(labels, x.shape[1], dtype=bool)
    others = jnp.where(label, 0, p)
    g = jnp.where(label, -others.sum(-1, keepdims=True), others)
    return delta * jnp.where((labels >= 0)[:, None], g, 0) / (labels >= 0).sum().astype(x.dtype), None


LABELS = np.int32([0, 3, 1, -1, 2, 2])
CONFIDENT = (20 * np.eye(4, dtype=np.float32)[[0, 3, 1, 0, 2, 2]] + numbers(45, 6, 4), LABELS)
CROSS = Rule(
    "softmax cross-entropy", cross_entropy, cross_entropy_forward, cross_entropy_backward, (numbers(44, 6, 4), LABELS)
)
HUGE = (200 * numbers(46, 6, 4), LABELS)

CASES += [
    CROSS.right("integer labels, one left out"),
    CROSS.right("confident logits", backward=label_by_difference, args=CONFIDENT, hard=True),
    CROSS.right("huge logits", args=HUGE, hard=True),
    CROSS.right("equal logits", args=(np.zeros((6, 4), np.float32), LABELS)),
    CROSS.right("one class", args=(numbers(44, 3, 1), np.int32([0, 0, 0])), hard=True),
    CROSS.wrong("the label's term is missing", "missing term", 0, backward=cross_entropy_with(target=False)),
    CROSS.wrong("the sum is missing", "missing term", 0, backward=cross_entropy_with(softmax=jnp.exp)),
    CROSS.wrong("1/N forgotten", "factor", 0, backward=cross_entropy_with(mean=False)),
    CROSS.wrong("1/N counts the label left out", "factor", 0, gradient=times(5 / 6)),
    CROSS.wrong("the label left out is not masked", "missing mask", 0, backward=cross_entropy_with(masked=False)),
    CROSS.wrong("the sign", "sign", 0, gradient=jnp.negative),
    CROSS.wrong("labels of the next example", "off by one", 0, saved=lambda s: (s[0], jnp.roll(s[1], 1))),
    CROSS.wrong("labels count from 1", "off by one", 0, saved=lambda s: (s[0], jnp.where(s[1] < 0, -1, s[1] - 1))),
    CROSS.wrong(
        "softmax over examples", "wrong axis", 0, backward=cross_entropy_with(softmax=lambda x: jax.nn.softmax(x, 0))
    ),
    CROSS.wrong("the cotangent ignored", "cotangent ignored", 0, delta=ones),
    CROSS.wrong(
        "overflows at huge logits", "unstable", 0, backward=cross_entropy_with(softmax=naive_softmax), args=HUGE
    ),
    CROSS.wrong(
        "overflows, and 0 is put for NaN",
        "NaN hidden",
        0,
        backward=cross_entropy_with(softmax=naive_softmax),
        gradient=hide_nan,
        args=HUGE,
    ),
    CROSS.wrong(
        "softmax in bfloat16",
        "rounded output",
        0,
        backward=cross_entropy_with(softmax=lambda x: through(jnp.bfloat16)(jax.nn.softmax(x))),
    ),
    CROSS.wrong(
        "one of 10,000 logits",
        "one element of 10,000",
        0,
        gradient=one_wrong,
        args=(numbers(44, 100, 100), integers(45, 100, 100)),
    ),
]

# -- sigmoid cross-entropy: log(1 + exp x) - x y; y a probability -----------------------------------------------------


def sigmoid_cross_entropy(x, y):
    return jax.nn.softplus(x) - x * y


def sigmoid_cross_entropy_forward(x, y):
    return sigmoid_cross_entropy(x, y), (x, y)


def sigmoid_cross_entropy_backward(saved, delta, sigmoid=jax.nn.sigmoid):
    x, y = saved
    return delta * (sigmoid(x) - y), -delta * x


BOTH_SIDES = np.float32([-100, -80, -20, -1e-4, 0, 1e-4, 20, 80, 100])
HALVES = np.float32([0, 1, 0.5] * 3)
SIGMOID = Rule(
    "sigmoid cross-entropy",
    sigmoid_cross_entropy,
    sigmoid_cross_entropy_forward,
    sigmoid_cross_entropy_backward,
    (numbers(47, 9), HALVES),
)

CASES += [
    SIGMOID.right("by hand"),
    SIGMOID.right("logits up to ±100", args=(BOTH_SIDES, HALVES), hard=True),
    SIGMOID.wrong(
        "exp x / (1 + exp x)",
        "unstable",
        0,
        backward=lambda s, d: sigmoid_cross_entropy_backward(s, d, lambda x: jnp.exp(x) / (1 + jnp.exp(x))),
        args=(BOTH_SIDES, HALVES),
    ),
    SIGMOID.wrong("no gradient for the targets", "stop_gradient", 1, gradient=jnp.zeros_like),
    SIGMOID.wrong(
        "the slope of the sigmoid is there twice",
        "missing term",
        0,
        backward=lambda s, d: (
            sigmoid_cross_entropy_backward(s, d)[0] * jax.nn.sigmoid(s[0]) * (1 - jax.nn.sigmoid(s[0])),
            -d * s[0],
        ),
    ),
    SIGMOID.wrong(
        "p is clipped to [0.01, 0.99]",
        "missing term",
        0,
        backward=lambda s, d: sigmoid_cross_entropy_backward(s, d, lambda x: jnp.clip(jax.nn.sigmoid(x), 0.01, 0.99)),
        args=(BOTH_SIDES, HALVES),
    ),
]

# -- attention: P = softmax(q kᵀ / √D + mask), y = P v ----------------------------------------------------------------


def weights(q, k, scale=None, diagonal=0):
    """P[h, t, s]; position t sees s ≤ t + diagonal."""
    scores = q @ k.mT * (scale or 1 / math.sqrt(q.shape[-1]))
    seen = jnp.tril(jnp.ones(scores.shape[1:], bool), diagonal)
    return jax.nn.softmax(jnp.where(seen[None], scores, -jnp.inf), -1)


def attention(q, k, v):
    return (weights(wide(q), wide(k)) @ wide(v)).astype(q.dtype)


def attention_forward(q, k, v):
    return attention(q, k, v), (q, k, v)


def attention_backward(saved, delta, weights=weights, total=True, scale=True):
    q, k, v = (wide(a) for a in saved)
    d, p = wide(delta), weights(q, k)
    of_p = d @ v.mT
    of_scores = p * (of_p - (p * of_p).sum(-1, keepdims=True) if total else of_p)
    of_scores = of_scores / math.sqrt(q.shape[-1]) if scale else of_scores
    return tuple(g.astype(delta.dtype) for g in (of_scores @ k, of_scores.mT @ q, p.mT @ d))


def attention_by_rows(saved, delta):
    """Σ_s P ∂P = δ · y, as FlashAttention has it; one query at a time."""
    q, k, v = saved
    p, scale = weights(q, k), 1 / math.sqrt(q.shape[-1])
    of_sum = (delta * (p @ v)).sum(-1)
    gq, gk = [], jnp.zeros_like(k)
    for t in range(q.shape[1]):
        s = p[:, t] * ((delta[:, t : t + 1] @ v.mT)[:, 0] - of_sum[:, t : t + 1]) * scale
        gq.append((s[:, None] @ k)[:, 0])
        gk = gk + s[:, :, None] * q[:, t : t + 1]
    return jnp.stack(gq, 1), gk, p.mT @ delta


def attention_with(**fault):
    return lambda saved, delta: attention_backward(saved, delta, **fault)


def attention_drops_keys(saved, delta):
    q, k, v = attention_backward(saved, delta)
    return q, k.at[:, 4:].set(0), v.at[:, 4:].set(0)


QKV = (numbers(50, 2, 5, 4), numbers(51, 2, 5, 4), numbers(52, 2, 5, 4))
ATTENTION = Rule("attention", attention, attention_forward, attention_backward, QKV)

CASES += [
    ATTENTION.right("causal"),
    ATTENTION.right("one query at a time", backward=attention_by_rows),
    ATTENTION.right("large scores", args=(30 * QKV[0], QKV[1], QKV[2]), hard=True),
    ATTENTION.right("bfloat16", args=cast(QKV, ml_dtypes.bfloat16), hard=True),
    ATTENTION.right("one position", args=tuple(a[:, :1] for a in QKV), hard=True),
    ATTENTION.wrong(
        "the mask is missing", "missing mask", backward=attention_with(weights=lambda q, k: weights(q, k, diagonal=9))
    ),
    ATTENTION.wrong(
        "the mask is one position off",
        "off by one",
        backward=attention_with(weights=lambda q, k: weights(q, k, diagonal=1)),
    ),
    ATTENTION.wrong("the softmax's sum is missing", "missing term", backward=attention_with(total=False)),
    ATTENTION.wrong("1/√D forgotten", "factor", backward=attention_with(scale=False)),
    ATTENTION.wrong(
        "1/D for 1/√D in P", "factor", backward=attention_with(weights=lambda q, k: weights(q, k, 1 / q.shape[-1]))
    ),
    ATTENTION.wrong(
        "P not transposed for v",
        "transpose",
        2,
        backward=lambda s, d: (*attention_backward(s, d)[:2], weights(*s[:2]) @ d),
    ),
    ATTENTION.wrong("k and v swapped", "swapped leaves", gradients=lambda q, k, v: (q, v, k)),
    ATTENTION.wrong("k of another head", "stale value", saved=lambda s: (s[0], s[1][::-1], s[2])),
    ATTENTION.wrong("the last block of keys dropped", "dropped chunk", backward=attention_drops_keys),
    ATTENTION.wrong("the second query's row zero", "one row zero", 0, gradient=lambda g: g.at[:, 1].set(0)),
    ATTENTION.wrong(
        "P in bfloat16",
        "rounded output",
        backward=attention_with(weights=lambda q, k: through(jnp.bfloat16)(weights(q, k))),
    ),
    ATTENTION.wrong("k is a constant", "stop_gradient", 1, gradient=jnp.zeros_like),
    ATTENTION.wrong(
        "bfloat16, the softmax's sum is missing",
        "missing term",
        backward=attention_with(total=False),
        args=cast(QKV, ml_dtypes.bfloat16),
    ),
]

# -- Huber's loss: r²/2 where |r| ≤ 1, |r| - 1/2 beyond; the sum ------------------------------------------------------


def huber(x, y):
    r = x - y
    return jnp.where(jnp.abs(r) <= 1, r * r / 2, jnp.abs(r) - 0.5).sum()


def huber_forward(x, y):
    return huber(x, y), x - y


def huber_backward(r, delta, slope=lambda r: jnp.clip(r, -1, 1)):
    g = delta * slope(r)
    return g, -g


HUBER = Rule("Huber loss", huber, huber_forward, huber_backward, (2 * numbers(55, 12), numbers(56, 12)))
MANY = (2 * numbers(55, 10_000), np.zeros(10_000, np.float32))

CASES += [
    HUBER.right("a clipped residual"),
    HUBER.right("residuals of exactly 0 and ±1", args=(np.float32([-2, -1, 0, 1, 2]), np.zeros(5, np.float32))),
    HUBER.wrong("not clipped", "missing mask", backward=lambda r, d: huber_backward(r, d, lambda r: r)),
    HUBER.wrong("clipped at 2", "factor", backward=lambda r, d: huber_backward(r, d, lambda r: jnp.clip(r, -2, 2))),
    HUBER.wrong("the target's sign", "sign", 1, gradient=jnp.negative),
    HUBER.wrong("one of 10,000 residuals", "one element of 10,000", 0, gradient=one_wrong, args=MANY),
    HUBER.wrong("the cotangent's square", "not linear in the cotangent", delta=lambda d: d * d),
]
