"""Derivatives that public kernel libraries had wrong: attention, mixtures of experts, recurrences, norms, losses.

Each is written from its mathematics; its name says what the report is about and where it stands. T steps or rows come
first, H heads before them, K inputs, N outputs, D channels.
"""

import jax
import jax.numpy as jnp
import numpy as np

from .case import Rule, integers, numbers

# -- a matrix for each group of rows ----------------------------------------------------------------------------------


def member(sizes, t):
    """[T, G]: 1 where row t is in group g."""
    ends = jnp.cumsum(sizes)
    rows = jnp.arange(t)[:, None]
    return ((rows < ends[None]) & (rows >= (ends - sizes)[None])).astype(jnp.float32)


def ragged(x, w, sizes):
    return jnp.einsum("tg,tk,gkn->tn", member(sizes, len(x)), x, w)


def ragged_backward(saved, d, fill=None):
    x, w, sizes = saved
    of = member(sizes, len(x))
    of_w = jnp.einsum("tg,tk,tn->gkn", of, x, d)
    if fill is not None:
        of_w = jnp.where((sizes == 0)[:, None, None], fill(of_w), of_w)
    return jnp.einsum("tg,tn,gkn->tk", of, d, w), of_w, None


RAGGED = Rule(
    "ragged matmul, tokamax#887",
    ragged,
    lambda x, w, sizes: (ragged(x, w, sizes), (x, w, sizes)),
    ragged_backward,
    (numbers(120, 7, 3), numbers(121, 4, 3, 2), np.int32([3, 0, 4, 0])),
)

CASES = [
    RAGGED.right("0 for an empty group"),
    RAGGED.wrong("an empty group has another's", "missing mask", 1, backward=lambda s, d: (
        ragged_backward(s, d, fill=lambda g: g[:1])
    )),
    RAGGED.wrong("an empty group has NaN", "NaN", 1, backward=lambda s, d: (
        ragged_backward(s, d, fill=lambda g: jnp.full_like(g, jnp.nan))
    )),
]  # fmt: skip

# -- experts' outputs, put together by the router's weights ------------------------------------------------------------


def combined(experts, weights, where):
    return jnp.einsum("nk,nkd->nd", weights, experts[where])


def combined_backward(saved, d):
    experts, weights, where = saved
    back = jnp.zeros_like(experts).at[where].add(weights[:, :, None] * d[:, None])
    return back, jnp.einsum("nd,nkd->nk", d, experts[where]), None


COMBINED = Rule(
    "a router's weights, maxtext#5042",
    combined,
    lambda experts, weights, where: (combined(experts, weights, where), (experts, weights, where)),
    combined_backward,
    (numbers(122, 6, 3), numbers(123, 4, 2), integers(124, 6, 4, 2)),
)

CASES += [
    COMBINED.right("by hand"),
    COMBINED.wrong("the router gets nothing", "zero leaf", 1, gradient=jnp.zeros_like),
]

# -- linear and cross-entropy in one, a loss for each row --------------------------------------------------------------


def row_losses(x, w, labels):
    z = x @ w
    return jax.nn.logsumexp(z, axis=1) - jnp.take_along_axis(z, labels[:, None], axis=1)[:, 0]


def row_losses_backward(saved, d):
    x, w, labels = saved
    of_z = d[:, None] * (jax.nn.softmax(x @ w, axis=1) - jax.nn.one_hot(labels, w.shape[1], dtype=w.dtype))
    return of_z @ w.T, x.T @ of_z, None


ROW_LOSSES = Rule(
    "linear cross-entropy by rows, Liger-Kernel#968",
    row_losses,
    lambda x, w, labels: (row_losses(x, w, labels), (x, w, labels)),
    row_losses_backward,
    (numbers(125, 5, 3), numbers(126, 3, 7), integers(127, 7, 5)),
)

CASES += [
    ROW_LOSSES.right("each row by its own δ"),
    ROW_LOSSES.wrong("made before δ is known", "cotangent ignored", delta=jnp.ones_like),
    ROW_LOSSES.wrong("all rows by the first one's δ", "stale value", delta=lambda d: jnp.full_like(d, 1) * d[:1]),
]

# -- a causal convolution that takes and gives its state, of fewer steps than it is wide ------------------------------


def causal(x, w, state):
    """y_t = Σ_i w_i e_{t+i} of e = (state, x), and the new state, e's end."""
    e = jnp.concatenate([state, x])
    windows = jnp.stack([e[i : i + len(x)] for i in range(len(w))])
    return (w[:, None] * windows).sum(0), e[len(x) :]


def causal_backward(saved, delta, to_x=None, to_state=True):
    e, w = saved
    d, end = delta
    t, s = len(d), len(end)
    back = jnp.zeros_like(e)
    for i in range(len(w)):
        back = back.at[i : i + t].add(w[i][None] * d)
    of_end = jnp.zeros_like(e).at[t:].add(end)
    of_x = of_end[s:] if to_x is None else to_x(end, t)
    of_w = jnp.stack([(d * e[i : i + t]).sum(0) for i in range(len(w))])
    return back[s:] + of_x, of_w, back[:s] + (of_end[:s] if to_state else 0)


CAUSAL = Rule(
    "a short chunk's causal convolution, flash-linear-attention#1140",
    causal,
    lambda x, w, state: (causal(x, w, state), (jnp.concatenate([state, x]), w)),
    causal_backward,
    (numbers(128, 2, 3), numbers(129, 4, 3), numbers(130, 3, 3)),
)

CASES += [
    CAUSAL.right("shorter than its window"),
    CAUSAL.right("longer than its window", args=(numbers(128, 6, 3), numbers(129, 4, 3), numbers(130, 3, 3))),
    CAUSAL.wrong("the state's δ from its first slot on", "wrong offset", 0, backward=lambda s, d: (
        causal_backward(s, d, to_x=lambda end, t: end[:t])
    )),
    CAUSAL.wrong("what is left of the old state", "missing term", 2, backward=lambda s, d: (
        causal_backward(s, d, to_state=False)
    )),
]  # fmt: skip

# -- the normalisation of a sum of two branches, each with a scale for its rows ---------------------------------------


def branches(x, z, r, s):
    v = x * r[:, None] + z * s[:, None]
    centred = v - v.mean(1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(1, keepdims=True) + np.float32(1e-5))


def branches_forward(x, z, r, s):
    v = x * r[:, None] + z * s[:, None]
    centred = v - v.mean(1, keepdims=True)
    scale = 1 / jnp.sqrt(jnp.square(centred).mean(1, keepdims=True) + np.float32(1e-5))
    return centred * scale, (x, z, r, s, centred * scale, scale)


def branches_backward(saved, d):
    x, z, r, s, y, scale = saved
    of_v = scale * (d - d.mean(1, keepdims=True) - y * (d * y).mean(1, keepdims=True))
    return of_v * r[:, None], of_v * s[:, None], (of_v * x).sum(1), (of_v * z).sum(1)


BRANCHES = Rule(
    "LayerNorm of two scaled branches, mamba#1023",
    branches,
    branches_forward,
    branches_backward,
    (numbers(131, 4, 8), numbers(132, 4, 8), numbers(133, 4), numbers(134, 4)),
)

CASES += [
    BRANCHES.right("by hand"),
    BRANCHES.wrong("the second without its scale", "factor", 1, backward=lambda s, d: (
        lambda x, z, r, q: (x, z / s[3][:, None], r, q)
    )(*branches_backward(s, d))),
]  # fmt: skip

# -- RMSNorm whose weights are told from 1 ----------------------------------------------------------------------------


def from_one(x, w):
    return x / jnp.sqrt(jnp.square(x).mean(1, keepdims=True) + np.float32(1e-6)) * (1 + w[None])


def from_one_backward(saved, d, one=1):
    x, w = saved
    scale = 1 / jnp.sqrt(jnp.square(x).mean(1, keepdims=True) + np.float32(1e-6))
    g = d * (one + w[None])
    y = x * scale
    return scale * (g - y * (g * y).mean(1, keepdims=True)), (d * y).sum(0)


FROM_ONE = Rule(
    "RMSNorm of 1 + w, Liger-Kernel#74",
    from_one,
    lambda x, w: (from_one(x, w), (x, w)),
    from_one_backward,
    (numbers(135, 4, 4), numbers(136, 4)),
)

CASES += [
    FROM_ONE.right("by hand"),
    FROM_ONE.wrong("w without the 1", "missing term", 0, backward=lambda s, d: from_one_backward(s, d, one=0)),
    FROM_ONE.wrong("w gets nothing, unsloth#4533", "zero leaf", 1, gradient=jnp.zeros_like),
    FROM_ONE.wrong("δ read by its columns, unsloth#10617", "transpose", delta=jnp.transpose),
]

# -- attention ---------------------------------------------------------------------------------------------------------


def probabilities(q, k):
    return jax.nn.softmax(jnp.einsum("htd,hsd->hts", q, k) / np.float32(q.shape[-1] ** 0.5), axis=-1)


def through_softmax(p, of_p):
    """δ at the scores."""
    return p * (of_p - (of_p * p).sum(-1, keepdims=True))


def of_heads(q, k, of_scores):
    scale = np.float32(q.shape[-1] ** 0.5)
    return jnp.einsum("hts,hsd->htd", of_scores, k) / scale, jnp.einsum("hts,htd->hsd", of_scores, q) / scale


def shared(q, k, v):
    """Query head h looks at key and value head h mod their number."""
    which = np.arange(len(q)) % len(k)
    return probabilities(q, k[which]) @ v[which]


def shared_backward(saved, d, group=lambda h, n, m: h % n):
    q, k, v = saved
    which = np.arange(len(q)) % len(k)
    p = probabilities(q, k[which])
    of_q, of_k = of_heads(q, k[which], through_softmax(p, jnp.einsum("htd,hsd->hts", d, v[which])))
    of_v = jnp.einsum("hts,htd->hsd", p, d)
    to = group(np.arange(len(q)), len(k), len(q) // len(k))
    return of_q, jnp.zeros_like(k).at[to].add(of_k), jnp.zeros_like(v).at[to].add(of_v)


SHARED = Rule(
    "attention of interleaved shared heads, native-sparse-attention-triton#27",
    shared,
    lambda q, k, v: (shared(q, k, v), (q, k, v)),
    shared_backward,
    (numbers(137, 6, 4, 3), numbers(138, 2, 5, 3), numbers(139, 2, 5, 3)),
)


def dropped(q, k, v, keep):
    return (probabilities(q, k) * kept(keep)) @ v


def kept(keep):
    return keep.astype(jnp.float32) * np.float32(1.25)


def dropped_backward(saved, d, after=False, of_all=False):
    q, k, v, keep = saved
    p = probabilities(q, k)
    of_p = jnp.einsum("htd,hsd->hts", d, v) * (1 if of_all else kept(keep))
    of_q, of_k = of_heads(q, k, through_softmax(p * kept(keep) if after else p, of_p))
    return of_q, of_k, jnp.einsum("hts,htd->hsd", p * kept(keep), d), None


DROPPED = Rule(
    "attention with dropout, nki-samples#81",
    dropped,
    lambda q, k, v, keep: (dropped(q, k, v, keep), (q, k, v, keep)),
    dropped_backward,
    (numbers(140, 2, 4, 3), numbers(141, 2, 4, 3), numbers(142, 2, 4, 3), np.minimum(integers(143, 5, 2, 4, 4), 1)),
)

CASES += [
    SHARED.right("by hand"),
    SHARED.wrong("heads grouped as if side by side", "wrong axis", backward=lambda s, d: (
        shared_backward(s, d, group=lambda h, n, m: h // m)
    )),
    DROPPED.right("by hand"),
    DROPPED.wrong("softmax after dropout", "stale value", backward=lambda s, d: dropped_backward(s, d, after=True)),
    DROPPED.wrong("δ of what was dropped", "missing mask", backward=lambda s, d: dropped_backward(s, d, of_all=True)),
]  # fmt: skip

# -- a gated layer -----------------------------------------------------------------------------------------------------


def gated(x, gate, up):
    return jax.nn.silu(x @ gate) * (x @ up)


def gated_backward(saved, d, both=True):
    x, gate, up = saved
    z, u = x @ gate, x @ up
    s = jax.nn.sigmoid(z)
    of_z, of_u = d * u * s * (1 + z * (1 - s)), d * z * s
    return of_z @ gate.T + (of_u @ up.T if both else 0), x.T @ of_z, x.T @ of_u


GATED = Rule(
    "SwiGLU, Liger-Kernel#1413",
    gated,
    lambda x, gate, up: (gated(x, gate, up), (x, gate, up)),
    gated_backward,
    (numbers(144, 4, 3), numbers(145, 3, 5), numbers(146, 3, 5)),
)

CASES += [
    GATED.right("by hand"),
    GATED.wrong("one of two products is lost", "missing term", 0, backward=lambda s, d: (
        gated_backward(s, d, both=False)
    )),
]  # fmt: skip

# -- the alignment of two labels to frames, of which there may be too few ---------------------------------------------

SWITCHES = np.array([1, 2])  # the frame at which the second label begins, of 3 frames at most


def alignments(logits, frames):
    """(score of each of the two alignments [N, 2], whether it exists, the label of each frame [2, T])."""
    labels = (np.arange(3)[None] >= SWITCHES[:, None]).astype(int)
    there = (jnp.arange(3)[None] < frames[:, None]).astype(logits.dtype)
    chosen = jax.nn.log_softmax(logits, axis=-1)[:, np.arange(3)[None], labels]
    return (chosen * there[:, None]).sum(-1), SWITCHES[None] < frames[:, None], labels


def alignment_loss(logits, frames):
    """−log of the probability that two labels come in their order; 0 where no alignment exists."""
    scores, exists, _ = alignments(logits, frames)
    return jnp.where(exists.any(1), -jax.nn.logsumexp(jnp.where(exists, scores, -1e30), axis=1), 0)


def alignment_backward(saved, d, none=0):
    logits, frames = saved
    scores, exists, labels = alignments(logits, frames)
    there = (jnp.arange(3)[None] < frames[:, None]).astype(logits.dtype)
    posterior = jax.nn.softmax(jnp.where(exists, scores, -1e30), axis=1)
    posterior = jnp.einsum("np,ptv->ntv", posterior, jax.nn.one_hot(labels, logits.shape[2], dtype=logits.dtype))
    p = jax.nn.softmax(logits, axis=-1)
    found = jnp.where(exists.any(1)[:, None, None], p - posterior, none * p)
    return d[:, None, None] * found * there[:, :, None], None


ALIGNMENT = Rule(
    "alignment of too few frames, returnn#1835",
    alignment_loss,
    lambda logits, frames: (alignment_loss(logits, frames), (logits, frames)),
    alignment_backward,
    (numbers(147, 3, 3, 4), np.int32([3, 2, 1])),
)

CASES += [
    ALIGNMENT.right("0 where no alignment exists"),
    ALIGNMENT.wrong("softmax where no alignment exists", "missing mask", 0, backward=lambda s, d: (
        alignment_backward(s, d, none=1)
    )),
]  # fmt: skip

# -- GroupNorm --------------------------------------------------------------------------------------------------------


def in_groups(x):
    return x.reshape(len(x), 2, 3)


def group_norm(x, w):
    g = in_groups(x)
    centred = g - g.mean(2, keepdims=True)
    return (centred / jnp.sqrt(jnp.square(centred).mean(2, keepdims=True) + np.float32(1e-5))).reshape(x.shape) * w[
        None
    ]


def group_norm_backward(saved, d):
    x, w = saved
    g = in_groups(x)
    centred = g - g.mean(2, keepdims=True)
    scale = 1 / jnp.sqrt(jnp.square(centred).mean(2, keepdims=True) + np.float32(1e-5))
    y, e = centred * scale, in_groups(d * w[None])
    of_x = scale * (e - e.mean(2, keepdims=True) - y * (e * y).mean(2, keepdims=True))
    return of_x.reshape(x.shape), (d * y.reshape(x.shape)).sum(0)


GROUP_NORM = Rule(
    "GroupNorm's weight, pytorch#140913",
    group_norm,
    lambda x, w: (group_norm(x, w), (x, w)),
    group_norm_backward,
    (numbers(148, 5, 6), numbers(149, 6)),
)

CASES += [
    GROUP_NORM.right("by hand"),
    GROUP_NORM.wrong("its channels in the other order", "transpose", 1, gradient=lambda g: g.reshape(2, 3).T.ravel()),
]
