"""Layers as a user writes them from the page of `jbp.Layer`: each a proof that the contract carries it."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import jbp


@dataclass(frozen=True)
class Loop:
    """n equal blocks in a `lax.scan`: the example of the page, which a test holds equal to this."""

    layer: jbp.Layer
    n: int

    def init(self, key, x):
        return {"layer": jax.vmap(lambda key: self.layer.init(key, x))(jax.random.split(key, self.n))}

    def forward(self, params, x, context):
        def turn(x, block):
            i, params = block
            return jbp.step("layer", self.layer, params, x, context.child(i))

        return jax.lax.scan(turn, x, (jnp.arange(self.n), params["layer"]))

    def backward(self, params, feedback, saved, delta, read):
        def turn(delta, block):
            params, feedback, kept, read = block
            return jbp.step_back(self.layer, params, feedback, kept, delta, read)

        blocks = params["layer"], feedback["layer"], saved, read["layer"]
        delta, readings = jax.lax.scan(turn, delta, blocks, reverse=True)
        return delta, {"layer": jbp.stacked(read["layer"], readings)}


@dataclass(frozen=True)
class LayerNorm:
    """y = g·x̂ + b, x̂ = (x − mean)·r, r = 1/√(var + ε); δx = r (δ̂ − mean δ̂ − x̂ mean(δ̂ x̂)), δ̂ = g δ. Saved: x̂, r."""

    epsilon: float = 1e-5

    def init(self, key, x):
        return {"g": jnp.ones(x.shape[-1:], x.dtype), "b": jnp.zeros(x.shape[-1:], x.dtype)}

    def forward(self, params, x, context):
        centred = x - x.mean(-1, keepdims=True)
        r = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        along = (None,) * (x.ndim - 1)
        return centred * r * params["g"][along] + params["b"][along], (centred * r, r)

    def backward(self, params, feedback, saved, delta, read):
        normal, r = saved
        d = delta * feedback["g"][(None,) * (delta.ndim - 1)]
        mean = lambda a: a.mean(-1, keepdims=True)
        delta_x = r * (d - mean(d) - normal * mean(d * normal))
        return delta_x, {"g": read["g"](jbp.Sum(delta * normal)), "b": read["b"](jbp.Sum(delta))}


@dataclass(frozen=True)
class Attention:
    """o = softmax(q kᵀ/√D) v, causal, on (q, k, v), each `[N, T, H, D]`. Saved: q, k, v and the probabilities."""

    def init(self, key, x):
        return ()

    def forward(self, params, x, context):
        q, k, v = x
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / jnp.sqrt(q.shape[-1]).astype(q.dtype)
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
        p = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), -1)
        return jnp.einsum("nhqk,nkhd->nqhd", p, v), (q, k, v, p)

    def backward(self, params, feedback, saved, delta, read):
        q, k, v, p = saved
        dp = jnp.einsum("nqhd,nkhd->nhqk", delta, v)
        ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / jnp.sqrt(q.shape[-1]).astype(q.dtype)
        dq, dk = jnp.einsum("nhqk,nkhd->nqhd", ds, k), jnp.einsum("nhqk,nqhd->nkhd", ds, q)
        return (dq, dk, jnp.einsum("nhqk,nqhd->nkhd", p, delta)), ()


@dataclass(frozen=True)
class Heads:
    """`[N, T, H·D]` to `[N, T, H, D]`; back where heads is None."""

    heads: int | None

    def init(self, key, x):
        return ()

    def forward(self, params, x, context):
        n, t, *rest = x.shape
        return x.reshape(n, t, *((self.heads, -1) if self.heads else (-1,))), jnp.zeros((*rest, 0))

    def backward(self, params, feedback, saved, delta, read):
        return delta.reshape(*delta.shape[:2], *saved.shape[:-1]), ()


@dataclass(frozen=True)
class Checkpoint:
    """The layer, with x alone saved: it runs forward again in reverse, on the true params."""

    layer: jbp.Layer

    def init(self, key, x):
        return {"layer": self.layer.init(key, x)}

    def forward(self, params, x, context):
        y, _ = jbp.step("layer", self.layer, params["layer"], x, context)
        return y, (x, context)

    def backward(self, params, feedback, saved, delta, read):
        (x, context), delta = jax.lax.optimization_barrier((saved, delta))
        _, kept = jbp.step("layer", self.layer, params["layer"], x, context)
        delta, readings = jbp.step_back(self.layer, params["layer"], feedback["layer"], kept, delta, read["layer"])
        return delta, {"layer": readings}


@dataclass(frozen=True)
class Reversible:
    """n couplings y₁ = x₁ + f(x₂), y₂ = x₂ + g(y₁). Saved: the last (y₁, y₂); each x is computed back from its y."""

    f: jbp.Layer
    g: jbp.Layer
    n: int

    def init(self, key, x):
        def one(key):
            return {"f": self.f.init(key, x[1]), "g": self.g.init(jax.random.fold_in(key, 1), x[0])}

        return jax.vmap(one)(jax.random.split(key, self.n))

    def forward(self, params, x, context):
        def turn(x, block):
            i, its = block
            y1 = x[0] + jbp.step("f", self.f, its["f"], x[1], context.child(i))[0]
            return (y1, x[1] + jbp.step("g", self.g, its["g"], y1, context.child(i))[0]), None

        y, _ = jax.lax.scan(turn, x, (jnp.arange(self.n), params))
        return y, (y, context)

    def backward(self, params, feedback, saved, delta, read):
        y, context = saved

        def turn(carry, block):
            (y1, y2), (d1, d2) = carry
            i, its, back, read = block
            of_g, kept_g = jbp.step("g", self.g, its["g"], y1, context.child(i))
            x2 = y2 - of_g
            e1, of_g = jbp.step_back(self.g, its["g"], back["g"], kept_g, d2, read["g"])
            d1 = d1 + e1
            of_f, kept_f = jbp.step("f", self.f, its["f"], x2, context.child(i))
            e2, read_f = jbp.step_back(self.f, its["f"], back["f"], kept_f, d1, read["f"])
            return ((y1 - of_f, x2), (d1, d2 + e2)), {"f": read_f, "g": of_g}

        blocks = jnp.arange(self.n), params, feedback, read
        (_, delta), readings = jax.lax.scan(turn, (y, delta), blocks, reverse=True)
        return delta, jbp.stacked(read, readings)


@dataclass(frozen=True)
class LSTM:
    """x `[N, T, I]` to every h `[N, T, H]`: z = x wx + h wh + b; c = f c + i g; h = o tanh c. Saved: per step."""

    width: int

    def init(self, key, x):
        normal = lambda seed, *shape: jax.random.normal(jax.random.fold_in(key, seed), shape, x.dtype)
        return {
            "wx": normal(0, x.shape[-1], 4 * self.width),
            "wh": normal(1, self.width, 4 * self.width),
            "b": jnp.zeros(4 * self.width, x.dtype),
        }

    def forward(self, params, x, context):
        def step(carry, xw):
            h, c = carry
            i, f, g, o = jnp.split(xw + h @ params["wh"], 4, -1)
            i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
            new = f * c + i * g
            y = o * jnp.tanh(new)
            return (y, new), (y, (h, c, i, f, g, o, jnp.tanh(new)))

        zero = jnp.zeros((x.shape[0], self.width), x.dtype)
        _, (y, kept) = jax.lax.scan(step, (zero, zero), jnp.swapaxes(x @ params["wx"] + params["b"][None, None], 0, 1))
        return jnp.swapaxes(y, 0, 1), (x, kept)

    def backward(self, params, feedback, saved, delta, read):
        x, kept = saved

        def step(carry, turn):
            dh, dc = carry
            d, (_, c, i, f, g, o, t) = turn
            dh = dh + d
            dc = dc + dh * o * (1 - t * t)
            dz = [dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * t * o * (1 - o)]
            dz = jnp.concatenate(dz, -1)
            return (dz @ feedback["wh"].T, dc * f), dz

        zero = jnp.zeros_like(kept[1][0])
        _, dz = jax.lax.scan(step, (zero, zero), (jnp.swapaxes(delta, 0, 1), kept), reverse=True)
        dz, h = jnp.swapaxes(dz, 0, 1), jnp.swapaxes(kept[0], 0, 1)
        readings = {
            "wx": read["wx"](jbp.Outer(x, dz)),
            "wh": read["wh"](jbp.Outer(h, dz)),
            "b": read["b"](jbp.Sum(dz)),
        }
        return dz @ feedback["wx"].T, readings


@dataclass(frozen=True)
class Embedding:
    """Row x of a table `[V, O]`, for whole numbers x `[N, *T]`. Saved: x."""

    vocabulary: int
    width: int

    def init(self, key, x):
        return {"table": jax.random.normal(key, (self.vocabulary, self.width))}

    def forward(self, params, x, context):
        return params["table"][x], x

    def backward(self, params, feedback, saved, delta, read):
        return None, {"table": read["table"](jbp.Gather(saved, delta))}

    def check_values(self, x):
        if (x < 0).any() or (x >= self.vocabulary).any():
            raise jbp.InputError(f"Embedding: expected x in 0 … {self.vocabulary - 1}, got {x.min()} … {x.max()}.")


@dataclass(frozen=True)
class Tied:
    """Layers of which the last one's kernel is the first one's table, transposed: one leaf, one pair of its uses."""

    layer: jbp.Sequential

    def full(self, params):
        return (*params[:-1], params[-1]._replace(w=params[0]["table"].T))

    def init(self, key, x):
        params = self.layer.init(key, x)
        return (*params[:-1], params[-1]._replace(w=None))

    def forward(self, params, x, context):
        return jbp.step("layer", self.layer, self.full(params), x, context)

    def backward(self, params, feedback, saved, delta, read):
        inside = ({"table": jbp.read_pair}, *read[1:-1], read[-1]._replace(w=jbp.read_pair))
        delta, r = jbp.step_back(self.layer, self.full(params), self.full(feedback), saved, delta, inside)
        both = jbp.Several((r[0]["table"], r[-1].w.transposed()))
        return delta, ({"table": read[0]["table"](both)}, *r[1:-1], r[-1]._replace(w=None))


@dataclass(frozen=True)
class LinearCrossEntropy:
    """C_n = Σ_t logsumexp(h w) − (h w)_y, for h `[N, T, W]`: a loss with parameters. Saved: h, y, logsumexp."""

    classes: int

    def init(self, key, x):
        return {"w": jax.random.normal(key, (x[0].shape[-1], self.classes), x[0].dtype)}

    def forward(self, params, x, context):
        h, y = x
        z = h @ params["w"]
        total = jax.nn.logsumexp(z, -1)
        return (total - jnp.take_along_axis(z, y[..., None], -1)[..., 0]).sum(-1), (h, y, total)

    def backward(self, params, feedback, saved, delta, read):
        h, y, total = saved
        p = jnp.exp(h @ params["w"] - total[..., None])
        e = (p - jax.nn.one_hot(y, self.classes, dtype=p.dtype)) * delta[:, None, None]
        return (e @ feedback["w"].T, None), {"w": read["w"](jbp.Outer(h, e))}


@dataclass(frozen=True)
class InOneSweep(LinearCrossEntropy):
    """The same, one example after another, forward and back in one sweep: no logits of the whole batch exist."""

    def turn(self, params, feedback, x, delta, read, context):
        def one(example):
            h, y, d = example
            z = h @ params["w"]
            total = jax.nn.logsumexp(z, -1)
            e = (jnp.exp(z - total[:, None]) - jax.nn.one_hot(y, self.classes, dtype=z.dtype)) * d
            return (total - jnp.take_along_axis(z, y[:, None], -1)[:, 0]).sum(), e @ feedback["w"].T, e

        values, delta_h, e = jax.lax.map(one, (*x, delta))
        return values, (delta_h, None), {"w": read["w"](jbp.Outer(x[0], e))}


@dataclass(frozen=True)
class BatchNorm:
    """y = (x − mean)/√(var + ε) over the batch. Saved: y and the scale."""

    mixes_examples = True

    def init(self, key, x):
        return ()

    def forward(self, params, x, context):
        centred = x - x.mean(0, keepdims=True)
        r = jax.lax.rsqrt(jnp.square(centred).mean(0, keepdims=True) + 1e-5)
        return centred * r, (centred * r, r)

    def backward(self, params, feedback, saved, delta, read):
        y, r = saved
        mean = lambda a: a.mean(0, keepdims=True)
        return r * (delta - mean(delta) - y * mean(delta * y)), ()


def block(width: int) -> Any:
    """A residual block of a small network."""
    return jbp.Residual(jbp.Sequential([LayerNorm(), jbp.Dense(2 * width), jbp.GELU(), jbp.Dense(width)]))
