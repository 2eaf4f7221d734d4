"""What chooses or orders elements: gather, embedding, max and its ties, sort, top-k; and cumulative sums and products.

Indices: V rows of a table, W features, N examples, T positions.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

from .case import Rule, cast, hide_nan, integers, narrow_sum, numbers, one_wrong, ones, positive, wide

# -- gather: y = x[:, i], distinct i; embedding: rows of a table, repeated; row 0 is padding and gives 0 --------------


def gather(x, index):
    return x[index]


def gather_forward(x, index):
    return x[index], (jnp.zeros_like(x), index)


def gather_backward(saved, delta):
    zeros, index = saved
    return zeros.at[index].add(delta), None


def gather_sets(saved, delta):
    zeros, index = saved
    return zeros.at[index].set(delta), None


def gather_by_one_hot(saved, delta):
    zeros, index = saved
    return jax.nn.one_hot(index, len(zeros), dtype=delta.dtype).T @ delta, None


def embedding(table, index):
    return jnp.where((index > 0)[:, None], wide(table)[index], 0).astype(table.dtype)


def embedding_forward(table, index):
    return embedding(table, index), (jnp.zeros_like(table), index)


def embedding_backward(saved, delta, padding=True):
    zeros, index = saved
    delta = jnp.where((index > 0)[:, None], delta, 0) if padding else delta
    return wide(zeros).at[index].add(wide(delta)).astype(zeros.dtype), None


def embedding_in_bfloat16(saved, delta):
    zeros, index = saved
    hot = jax.nn.one_hot(index, len(zeros), dtype=delta.dtype) * (index > 0).astype(delta.dtype)[:, None]
    return narrow_sum(hot[:, :, None] * delta[:, None, :], jnp.bfloat16), None


def divided_by_count(saved, delta):
    zeros, index = saved
    count = jnp.zeros(len(zeros), delta.dtype).at[index].add(jnp.ones(len(index), delta.dtype))
    return embedding_backward(saved, delta)[0] / jnp.maximum(count, 1)[:, None], None


DISTINCT, REPEATED = np.int32([4, 0, 2]), np.int32([3, 1, 3, 0, 3, 5, 1])
GATHER = Rule("gather", gather, gather_forward, gather_backward, (numbers(70, 6, 3), DISTINCT))
EMBEDDING = Rule("embedding", embedding, embedding_forward, embedding_backward, (numbers(71, 6, 3), REPEATED))
OFTEN = (numbers(71, 3, 4), integers(72, 3, 500))

CASES = [
    GATHER.right("distinct indices"),
    GATHER.right("distinct indices, set for add", backward=gather_sets),
    GATHER.right("by a one-hot", backward=gather_by_one_hot, args=(numbers(70, 6, 3), REPEATED)),
    GATHER.right("negative indices", args=(numbers(70, 6, 3), np.int32([-1, 0, -2]))),
    GATHER.right("no indices", args=(numbers(70, 6, 3), np.zeros(0, np.int32))),
    GATHER.wrong("the row before", "off by one", 0, saved=lambda s: (s[0], s[1] - 1)),
    GATHER.wrong("rows in sorted order", "wrong formula", 0, saved=lambda s: (s[0], jnp.sort(s[1]))),
    GATHER.wrong(
        "the last index dropped", "dropped chunk", 0, backward=lambda s, d: gather_backward((s[0], s[1][:-1]), d[:-1])
    ),
    GATHER.wrong("the cotangent ignored", "cotangent ignored", 0, delta=ones),
    GATHER.wrong(
        "one of 10,000 elements",
        "one element of 10,000",
        0,
        gradient=one_wrong,
        args=(numbers(73, 1000, 10), integers(74, 1000, 20)),
    ),
    EMBEDDING.right("repeated indices, padding"),
    EMBEDDING.right("500 indices of 3 rows", args=OFTEN, hard=True),
    EMBEDDING.right("bfloat16", args=cast(OFTEN, ml_dtypes.bfloat16), hard=True),
    EMBEDDING.wrong(
        "repeated rows overwrite",
        "set instead of add",
        0,
        backward=lambda s, d: (gather_sets(s, d)[0].at[0].set(0), None),
    ),
    EMBEDDING.wrong("repeated rows are averaged", "wrong broadcast sum", 0, backward=divided_by_count),
    EMBEDDING.wrong(
        "padding is not masked", "missing mask", 0, backward=lambda s, d: embedding_backward(s, d, padding=False)
    ),
    EMBEDDING.wrong("row 1 is taken for padding too", "one row zero", 0, gradient=lambda g: g.at[1].set(0)),
    EMBEDDING.wrong("summed in bfloat16", "bfloat16 accumulation", 0, backward=embedding_in_bfloat16, args=OFTEN),
]

# -- max of each row: ties share the gradient, as in JAX --------------------------------------------------------------


def largest(x):
    return x.max(-1)


def largest_forward(x):
    y = largest(x)
    return y, (x, y)


def largest_backward(saved, delta, share=True):
    x, y = saved
    at = (x == y[:, None]).astype(x.dtype)
    return (delta[:, None] * (at / at.sum(-1, keepdims=True) if share else at),)


def first_largest(saved, delta):
    x, _ = saved
    return (delta[:, None] * jax.nn.one_hot(x.argmax(-1), x.shape[1], dtype=x.dtype),)


def max_pool(x):
    """Over windows of 2 × 2."""
    return x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2).max((1, 3))


def max_pool_forward(x):
    y = max_pool(x)
    return y, (x, y)


def max_pool_backward(saved, delta, share=True):
    x, y = saved
    spread = lambda a: jnp.repeat(jnp.repeat(a, 2, 0), 2, 1)
    at = (x == spread(y)).astype(x.dtype)
    count = at.reshape(y.shape[0], 2, y.shape[1], 2).sum((1, 3))
    return (at * spread(delta / count if share else delta),)


TIES = (np.float32([[1, 3, 3, 0], [2, 2, 2, 2], [0, 1, 2, 3]]),)
MAX = Rule("max", largest, largest_forward, largest_backward, (numbers(75, 4, 5),))
MAX_POOL = Rule("max pooling", max_pool, max_pool_forward, max_pool_backward, (numbers(76, 4, 6),))
FLAT = (np.maximum(numbers(76, 4, 6) - 1, 0),)  # after a ReLU: windows of zeros

CASES += [
    MAX.right("by argmax", backward=first_largest),
    MAX.right("ties share", args=TIES),
    MAX.right("one element", args=(numbers(75, 4, 1),)),
    MAX.wrong(
        "each tie gets all", "wrong at a tie", 0, backward=lambda s, d: largest_backward(s, d, share=False), args=TIES
    ),
    MAX.wrong(
        "ties get nothing",
        "wrong at a tie",
        0,
        backward=lambda s, d: (
            jnp.where((s[0] == s[1][:, None]).sum(-1, keepdims=True) > 1, 0, largest_backward(s, d)[0]),
        ),
        args=TIES,
    ),
    MAX.wrong("the smallest gets it", "wrong formula", 0, saved=lambda s: (-s[0], (-s[0]).max(-1))),
    MAX.wrong("the mask without the cotangent", "cotangent ignored", 0, delta=ones),
    MAX_POOL.right("2 × 2"),
    MAX_POOL.right("windows of equal values share", args=FLAT),
    MAX_POOL.wrong(
        "each tie gets all", "wrong at a tie", 0, backward=lambda s, d: max_pool_backward(s, d, share=False), args=FLAT
    ),
    MAX_POOL.wrong("windows begin a column late", "wrong offset", 0, gradient=lambda g: jnp.roll(g, 1, 1)),
    MAX_POOL.wrong(
        "the whole window gets it", "missing mask", 0, backward=lambda s, d: (jnp.repeat(jnp.repeat(d, 2, 0), 2, 1),)
    ),
]

# -- sort, and the k largest ------------------------------------------------------------------------------------------


def sort(x):
    return jnp.sort(x)


def sort_forward(x):
    order = jnp.argsort(x)
    return x[order], order


def sort_backward(order, delta):
    return (jnp.zeros_like(delta).at[order].set(delta),)


def top3(x):
    return lax.top_k(x, 3)[0]


def top3_forward(x):
    y, index = lax.top_k(x, 3)
    return y, (jnp.zeros_like(x), index)


def top3_backward(saved, delta):
    zeros, index = saved
    return (jax.vmap(lambda z, i, d: z.at[i].set(d))(zeros, index, delta),)


SORT = Rule("sort", sort, sort_forward, sort_backward, (numbers(77, 8),))
TOP = Rule("top 3", top3, top3_forward, top3_backward, (numbers(78, 4, 6),))

CASES += [
    SORT.right("by argsort"),
    SORT.right("by the inverse permutation", backward=lambda order, d: (d[jnp.argsort(order)],)),
    SORT.wrong("the permutation for its inverse", "transpose", 0, backward=lambda order, d: (d[order],)),
    SORT.wrong("not permuted", "missing term", 0, backward=lambda order, d: (d,)),
    TOP.right("by its indices"),
    TOP.wrong("in the order of positions", "wrong formula", 0, saved=lambda s: (s[0], jnp.sort(s[1]))),
    TOP.wrong("only the largest", "missing term", 0, delta=lambda d: d.at[:, 1:].set(0)),
]

# -- cumulative sum and product ---------------------------------------------------------------------------------------


def later(x):
    """Σ_{s ≥ t} x_s."""
    return lax.cumsum(x, 0, reverse=True)


def cumsum(x):
    return lax.cumsum(x, 0)


def cumsum_forward(x):
    return cumsum(x), None


def cumsum_backward(_, delta):
    return (later(delta),)


def cumprod(x):
    return lax.cumprod(x, 0)


def cumprod_forward(x):
    y = cumprod(x)
    return y, (x, y)


def cumprod_backward(saved, delta):
    """c_t = δ_t + x_{t+1} c_{t+1}, and x_t's gradient is y_{t-1} c_t: no division."""
    x, y = saved
    step = lambda c, dx: ((c + dx[0]) * dx[1], c + dx[0])
    _, c = lax.scan(step, jnp.zeros_like(x[0]), (delta, x), reverse=True)
    return (jnp.concatenate([jnp.ones_like(y[:1]), y[:-1]]) * c,)


def cumprod_by_division(saved, delta):
    x, y = saved
    return (later(delta * y) / x,)


CUMSUM = Rule("cumulative sum", cumsum, cumsum_forward, cumsum_backward, (numbers(79, 5, 5),))
CUMPROD = Rule("cumulative product", cumprod, cumprod_forward, cumprod_backward, (positive(80, 6, 2),))
WITH_ZERO = (np.float32([[1, 2], [2, 0], [0, 3], [3, 0.5], [0.5, 2]]),)

CASES += [
    CUMSUM.right("the sum from the end"),
    CUMSUM.right("a triangle of ones", backward=lambda _, d: (jnp.tril(jnp.ones((5, 5), d.dtype)).T @ d,)),
    CUMSUM.right("1,000 terms", args=(numbers(79, 1000, 2),), hard=True),
    CUMSUM.wrong("not reversed", "transpose", 0, backward=lambda _, d: (lax.cumsum(d, 0),)),
    CUMSUM.wrong("without the step itself", "off by one", 0, backward=lambda _, d: (later(d) - d,)),
    CUMSUM.wrong("along the other axis", "wrong axis", 0, backward=lambda _, d: (later(d.T).T,)),
    CUMSUM.wrong(
        "in bfloat16",
        "bfloat16 accumulation",
        0,
        backward=lambda _, d: (later(d.astype(jnp.bfloat16)).astype(d.dtype),),
    ),
    CUMPROD.right("by division where nothing is 0", backward=cumprod_by_division),
    CUMPROD.right("zeros", args=WITH_ZERO, hard=True),
    CUMPROD.right(
        "over- and underflow on the way",
        args=(np.float32(10) ** (4 * np.sin(np.arange(24, dtype=np.float32))).reshape(12, 2),),
        hard=True,
    ),
    CUMPROD.wrong("0/0 at a zero", "NaN", 0, backward=cumprod_by_division, args=WITH_ZERO),
    CUMPROD.wrong(
        "0/0 at a zero, and 0 is put for NaN",
        "NaN hidden",
        0,
        backward=cumprod_by_division,
        gradient=hide_nan,
        args=WITH_ZERO,
    ),
    CUMPROD.wrong("not divided by x", "missing term", 0, backward=lambda s, d: (later(d * s[1]),)),
    CUMPROD.wrong(
        "y of this step for the one before", "off by one", 0, backward=lambda s, d: (cumprod_backward(s, d)[0] * s[0],)
    ),
]
