"""Backpropagation through time, each a `lax.scan` back over the steps; and through a network of two layers.

Indices: T steps, N examples, I inputs, H neurons.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

from .case import Rule, cast, clipped, narrow_sum, numbers, ones, positive, times, wide


def before(h0, h):
    """h one step earlier: h_{t-1}, beginning with h_0."""
    return jnp.concatenate([h0[None], h[:-1]])


# -- a linear recurrence: h_t = a_t h_{t-1} + b_t, h_{-1} = 0 ---------------------------------------------------------


def recurrence(a, b):
    step = lambda h, ab: (ab[0] * h + ab[1],) * 2
    return lax.scan(step, jnp.zeros_like(b[0]), (a, b))[1]


def recurrence_forward(a, b):
    h = recurrence(a, b)
    return h, (a, h)


def recurrence_backward(saved, delta, carry=1.0, late=0):
    """c_t = δ_t + a_{t+1} c_{t+1}: b's gradient. a's is h_{t-1} c_t."""
    a, h = saved
    following = jnp.concatenate([a[1:], jnp.zeros_like(a[:1])]) if not late else a
    step = lambda c, da: (da[0] + carry * da[1] * c,) * 2
    _, c = lax.scan(step, jnp.zeros_like(a[0]), (delta, following), reverse=True)
    return before(jnp.zeros_like(h[0]), h) * c, c


def recurrence_in_parallel(saved, delta):
    a, h = saved
    following = jnp.concatenate([jnp.zeros_like(a[:1]), a[1:][::-1]])
    join = lambda l, r: (l[0] * r[0], r[0] * l[1] + r[1])
    c = lax.associative_scan(join, (following, delta[::-1]))[1][::-1]
    return before(jnp.zeros_like(h[0]), h) * c, c


RECURRENCE = Rule(
    "linear recurrence", recurrence, recurrence_forward, recurrence_backward, (positive(90, 6, 3), numbers(91, 6, 3))
)

CASES = [
    RECURRENCE.right("step by step"),
    RECURRENCE.right("in parallel", backward=recurrence_in_parallel),
    RECURRENCE.right("one step", args=(positive(90, 1, 3), numbers(91, 1, 3))),
    RECURRENCE.right(
        "200 steps that forget",
        backward=recurrence_in_parallel,
        args=(np.float32(0.6) * positive(90, 200, 3), numbers(91, 200, 3)),
        hard=True,
    ),
    RECURRENCE.wrong(
        "a of this step for the next one's",
        "off by one in time",
        backward=lambda s, d: recurrence_backward(s, d, late=1),
    ),
    RECURRENCE.wrong(
        "h of this step for the one before",
        "off by one in time",
        0,
        backward=lambda s, d: (s[1] * recurrence_backward(s, d)[1], recurrence_backward(s, d)[1]),
    ),
    RECURRENCE.wrong(
        "the carry is detached", "detached carry", backward=lambda s, d: recurrence_backward(s, d, carry=0.0)
    ),
    RECURRENCE.wrong("a and b swapped", "swapped leaves", gradients=lambda a, b: (b, a)),
    RECURRENCE.wrong("the last step's cotangent dropped", "dropped chunk", delta=lambda d: d.at[-1].set(0)),
]

# -- RNN: h_t = tanh(x_t U + h_{t-1} W + b) ---------------------------------------------------------------------------


def rnn(params, x, h0):
    def step(h, x):
        h = jnp.tanh(x @ params["U"] + h @ params["W"] + params["b"][None])
        return h, h

    return lax.scan(step, h0, x)[1]


def rnn_forward(params, x, h0):
    h = rnn(params, x, h0)
    return h, (params, x, h0, h)


def rnn_backward(saved, delta, slope=lambda h: 1 - h * h, carry=lambda t: 1.0, change=lambda d: d, before=before):
    """z_t = (δ_t + z_{t+1} Wᵀ) tanh′; the gradients are sums over t of what met z_t."""
    params, x, h0, h = saved

    def step(carried, now):
        delta, h, t = now
        z = change((delta + carry(t) * carried) * slope(h))
        return z @ params["W"].T, z

    to_h0, z = lax.scan(step, jnp.zeros_like(h0), (delta, h, jnp.arange(len(h))), reverse=True)
    met = {"U": jnp.einsum("tni,tnh->ih", x, z), "W": jnp.einsum("tng,tnh->gh", before(h0, h), z), "b": z.sum((0, 1))}
    return met, z @ params["U"].T, to_h0


def rnn_with(**fault):
    return lambda saved, delta: rnn_backward(saved, delta, **fault)


def every_third(t):
    """1, but 0 at the steps where a window of truncated backpropagation ends."""
    return jnp.where(t % 3 == 2, 0.0, 1.0)


def parameters(seed, inputs, neurons, gates=1):
    shapes = {"U": (inputs, gates * neurons), "W": (neurons, gates * neurons), "b": (gates * neurons,)}
    return {name: numbers(seed + i, *shape) / np.float32(2) for i, (name, shape) in enumerate(shapes.items())}


RNN = Rule("RNN", rnn, rnn_forward, rnn_backward, (parameters(92, 3, 3), numbers(95, 6, 2, 3), numbers(96, 2, 3)))
NARROW_RNN = Rule(
    "RNN",
    lambda *args: rnn(*jax.tree.map(wide, args)),
    lambda *args: (rnn(*jax.tree.map(wide, args)), args),
    lambda args, d: jax.tree.map(
        lambda g, a: g.astype(a.dtype), rnn_backward(rnn_forward(*jax.tree.map(wide, args))[1], d), args
    ),
    (cast(RNN.args[0], ml_dtypes.bfloat16), *RNN.args[1:]),
)

CASES += [
    RNN.right("through time"),
    RNN.right(
        "one step, one example, one neuron",
        args=(parameters(92, 1, 1), numbers(95, 1, 1, 1), numbers(96, 1, 1)),
        hard=True,
    ),
    RNN.right("saturated", args=(jax.tree.map(lambda p: 8 * p, parameters(92, 3, 3)), *RNN.args[1:]), hard=True),
    NARROW_RNN.right("bfloat16 parameters, float32 inputs", hard=True),
    RNN.wrong("h of this step for the one before", "off by one in time", 0, backward=rnn_with(before=lambda h0, h: h)),
    RNN.wrong("truncated every 3 steps", "detached carry", backward=rnn_with(carry=every_third)),
    RNN.wrong("the slope of the step before", "off by one in time", saved=lambda s: (*s[:3], before(s[2], s[3]))),
    RNN.wrong("no slope", "missing term", backward=rnn_with(slope=jnp.ones_like)),
    RNN.wrong("W carries z down untransposed", "transpose", saved=lambda s: (s[0] | {"W": s[0]["W"].T}, *s[1:])),
    RNN.wrong("no gradient for the first state", "zero leaf", 2, gradient=jnp.zeros_like),
    RNN.wrong("U and W swapped", "swapped leaves", 0, gradient=lambda g: g | {"U": g["W"], "W": g["U"]}),
    RNN.wrong("clipped at each step", "not linear in the cotangent", backward=rnn_with(change=clipped)),
]

# -- LSTM: i, f, g, o = gates(x_t U + h_{t-1} W + b), c_t = f c_{t-1} + i g, h_t = o tanh c_t -------------------------


def gates(z):
    i, f, g, o = jnp.split(z, 4, -1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def lstm_steps(params, x, h0, c0):
    def step(state, x):
        h, c = state
        i, f, g, o = activated = gates(x @ params["U"] + h @ params["W"] + params["b"][None])
        c = f * c + i * g
        h = o * jnp.tanh(c)
        return (h, c), (h, c, activated)

    return lax.scan(step, (h0, c0), x)[1]


def lstm(params, x, h0, c0):
    return lstm_steps(params, x, h0, c0)[0]


def lstm_forward(params, x, h0, c0):
    h, c, activated = lstm_steps(params, x, h0, c0)
    return h, (params, x, h0, c0, h, c, activated)


def lstm_backward(
    saved, delta, before_c=before, before_h=before, detach_c=False, squash=True, slopes=True, order="ifgo"
):
    params, x, h0, c0, h, c, activated = saved

    def step(carried, now):
        of_h, of_c = carried
        delta, c, c_before, (i, f, g, o) = now
        of_h = of_h + delta
        t = jnp.tanh(c)
        of_c = of_c + of_h * o * ((1 - t * t) if squash else 1)
        by = {"i": of_c * g, "f": of_c * c_before, "g": of_c * i, "o": of_h * t}
        slope = {"i": i * (1 - i), "f": f * (1 - f), "g": 1 - g * g, "o": o * (1 - o)}
        z = jnp.concatenate([by[gate] * slope[gate] if slopes or gate == "g" else by[gate] for gate in order], -1)
        return (z @ params["W"].T, of_c * (0 if detach_c else f)), z

    start = jnp.zeros_like(h0), jnp.zeros_like(c0)
    (to_h0, to_c0), z = lax.scan(step, start, (delta, c, before_c(c0, c), activated), reverse=True)
    met = {"U": jnp.einsum("tni,tnk->ik", x, z), "W": jnp.einsum("tnh,tnk->hk", before_h(h0, h), z), "b": z.sum((0, 1))}
    return met, z @ params["U"].T, to_h0, to_c0


def lstm_with(**fault):
    return lambda saved, delta: lstm_backward(saved, delta, **fault)


def on(leaf, change):
    return lambda g: g | {leaf: change(g[leaf])}


LSTM = Rule(
    "LSTM", lstm, lstm_forward, lstm_backward,
    (parameters(100, 3, 2, 4), numbers(103, 5, 3, 3), numbers(104, 3, 2), numbers(105, 3, 2)),
)  # fmt: skip

CASES += [
    LSTM.right("through time"),
    LSTM.right("40 steps", args=(LSTM.args[0], numbers(103, 40, 3, 3), *LSTM.args[2:]), hard=True),
    LSTM.wrong(
        "the forget gate meets c of this step", "off by one in time", backward=lstm_with(before_c=lambda c0, c: c)
    ),
    LSTM.wrong("W meets h of this step", "off by one in time", 0, backward=lstm_with(before_h=lambda h0, h: h)),
    LSTM.wrong("c's carry is detached", "detached carry", backward=lstm_with(detach_c=True)),
    LSTM.wrong("gates in the order i, g, f, o", "swapped leaves", backward=lstm_with(order="igfo")),
    LSTM.wrong("c's tanh has no slope", "missing term", backward=lstm_with(squash=False)),
    LSTM.wrong("the sigmoids have no slope", "missing term", backward=lstm_with(slopes=False)),
    LSTM.wrong("b's gradient of one example", "wrong broadcast sum", 0, gradient=on("b", times(1 / 3))),
    LSTM.wrong("no gradient for c_0", "zero leaf", 3, gradient=jnp.zeros_like),
    LSTM.wrong("the sign of U", "sign", 0, gradient=on("U", jnp.negative)),
    LSTM.wrong(
        "gates of the step before",
        "stale value",
        saved=lambda s: (*s[:6], jax.tree.map(lambda a: jnp.roll(a, 1, 0), s[6])),
    ),
    LSTM.wrong("the first step is dropped", "dropped chunk", 1, gradient=lambda g: g.at[0].set(0)),
]

# -- two layers: y = tanh(x w1 + b1) w2 + b2, parameters in a nested pytree -------------------------------------------


def network(params, x):
    hidden, out = params
    return jnp.tanh(x @ hidden["w"] + hidden["b"][None]) @ out["w"] + out["b"][None]


def network_forward(params, x):
    a = jnp.tanh(x @ params[0]["w"] + params[0]["b"][None])
    return network(params, x), (params, x, a)


def network_backward(saved, delta, slope=lambda a: 1 - a * a):
    (hidden, out), x, a = saved
    z = delta @ out["w"].T * slope(a)
    return ({"w": x.T @ z, "b": z.sum(0)}, {"w": a.T @ delta, "b": delta.sum(0)}), z @ hidden["w"].T


LAYERS = tuple({"w": numbers(110 + i, 4, 4), "b": numbers(112 + i, 4)} for i in range(2))
NETWORK = Rule("two-layer network", network, network_forward, network_backward, (LAYERS, numbers(114, 20, 4)))


def on_layer(index, leaf, change):
    return lambda g: tuple(on(leaf, change)(layer) if i == index else layer for i, layer in enumerate(g))


CASES += [
    NETWORK.right("nested parameters"),
    NETWORK.wrong("the layers swapped", "swapped leaves", 0, gradient=lambda g: g[::-1]),
    NETWORK.wrong("the slope is missing", "missing term", backward=lambda s, d: network_backward(s, d, jnp.ones_like)),
    NETWORK.wrong("the slope of the output's layer", "stale value", saved=lambda s: (*s[:2], jnp.roll(s[2], 1, 0))),
    NETWORK.wrong("the first layer's bias gets nothing", "zero leaf", 0, gradient=on_layer(0, "b", jnp.zeros_like)),
    NETWORK.wrong(
        "the second layer's bias in bfloat16",
        "bfloat16 accumulation",
        0,
        backward=lambda s, d: (
            on_layer(1, "b", lambda _: narrow_sum(d, jnp.bfloat16))(network_backward(s, d)[0]),
            network_backward(s, d)[1],
        ),
    ),
    NETWORK.wrong(
        "the last minibatch of 8 dropped",
        "dropped chunk",
        0,
        backward=lambda s, d: (network_backward((s[0], s[1][:16], s[2][:16]), d[:16])[0], network_backward(s, d)[1]),
    ),
    NETWORK.wrong(
        "the mean of the minibatches", "wrong broadcast sum", 0, gradient=lambda g: jax.tree.map(lambda a: a / 3, g)
    ),
    NETWORK.wrong("the cotangent ignored", "cotangent ignored", delta=ones),
]
