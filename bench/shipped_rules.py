"""The custom derivatives that ship in jax (from 0.10.2 on), optax 0.2.8 and flax 0.12.8, each on one small call.

`OUTSIDE` runs on a CPU; `CANNOT` says why the rest does not. Found by reading each mention of custom_vjp, custom_jvp,
custom_gradient, defvjp and defjvp in the three packages (rules of primitives, `ad.defjvp`, are autodiff itself).

    python bench/shipped_rules.py --only special --json rules.json
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.scipy.special as sp
import numpy as np
import optax
from flax import nnx
from flax.core import apply, lift
from flax.linen import fp8_ops as fp8
from jax import export, lax
from jax.experimental.ode import odeint
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.gpu import attention as gpu_attention
from jax.experimental.pallas.ops.gpu import layer_norm as gpu_layer_norm
from jax.experimental.pallas.ops.gpu import rms_norm as gpu_rms_norm
from jax.experimental.pallas.ops.tpu import flash_attention as tpu_flash
from jax.experimental.pallas.ops.tpu.megablox import ops as megablox
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

import jbp

SLOW = ("hyp2f1", "hyp1f1", "expi", "expn", "sici", "fresnel", "odeint")  # a minute or more each, to compile


@dataclass(frozen=True)
class Outside:
    name: str  # the public call; after a comma, the point or the variant
    kind: str  # "vjp" or "jvp"
    f: Callable  # of *args, through which autodiff meets the shipped rule
    args: tuple  # numpy float32 arrays
    plain: str = "both"  # autodiff of the primal, rules stripped: "both" modes, "forward" only, or "none"
    dtype: str = "any"  # "float32" where f is written for it
    meant: str = ""  # why the rule is not meant to be the derivative of its primal, or only nearly; "" if it is
    found: str = ""  # what is wrong at these arguments, against central differences in float64, or in o.dtype
    context: Callable = nullcontext  # entered around everything, the backward pass too


def jvp(name, f, *args, **kw):
    return Outside(name, "jvp", f, args, **kw)


def vjp(name, f, *args, **kw):
    return Outside(name, "vjp", f, args, **kw)


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def at(*values):
    return np.array(values, np.float32)


# ---- functions whose call takes more than one line ----
def softmax(x, where=None):  # the rule is off by default
    with jax.softmax_custom_jvp(True):
        return jax.nn.softmax(x, where=where)


def of_complex(f):  # real arguments and results, a complex rule between
    def g(re, im):
        z = f(lax.complex(re, im))
        return z.real, z.imag

    return g


def square_root(a):  # the root of x² = a by Newton's method, in a while loop as solvers have
    def newton(g, x0):
        return lax.while_loop(lambda x: jnp.abs(g(x)).max() > 1e-6, lambda x: x - g(x) / (2 * x), x0)

    return lax.custom_root(lambda x: x * x - a, jnp.ones_like(a), newton, lambda g, y: y / g(jnp.ones_like(y)))


def pendulum(y0, ts, length, drag):
    def velocity(y, t, length, drag):
        return jnp.stack([y[1], -jnp.sin(y[0]) / length - drag * y[1] * jnp.cos(t)])

    return odeint(velocity, y0, ts, length, drag, rtol=1e-6, atol=1e-6)


@jax.custom_gradient
def log1p_exp(x):  # jax's own example of custom_gradient
    e = jnp.exp(x)
    return jnp.log1p(e), lambda g: g * (1 - 1 / (1 + e))


def linen(x, kernel):  # the docstring's example, without its sign
    def dense(module, x):
        return module(x)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            rule = nn.custom_vjp(dense, lambda m, x: nn.vjp(dense, m, x), lambda pull, g: pull(g))
            return rule(nn.Dense(2, use_bias=False), x)

    return Model().apply({"params": {"Dense_0": {"kernel": kernel}}}, x)


def lifted(x, kernel):
    def f(scope, x):
        return jnp.tanh(x @ scope.param("kernel", lambda _: kernel))

    rule = lift.custom_vjp(f, lambda scope, x: lift.vjp(f, scope, x), lambda pull, g: pull(g))
    return apply(rule)({"params": {"kernel": kernel}}, x)


class Wave(nnx.Module):
    def __init__(self, x, y):
        self.x, self.y = nnx.Param(x), nnx.Param(y)


def wave(m):
    return jnp.sin(m.x[...]) * m.y[...]


def wave_forward(m):
    return wave(m), (jnp.cos(m.x[...]), jnp.sin(m.x[...]), m)


def nnx_pure(x, y):
    def backward(saved, g):
        cos_x, sin_x, m = saved
        return (Wave(cos_x * g * m.y[...], sin_x * g),)

    rule = nnx.custom_vjp(wave, graph_updates=False)
    rule.defvjp(wave_forward, backward)
    return rule(Wave(x, y))


def nnx_graph(x, y):
    def backward(saved, g):
        (updates,), g = g
        cos_x, sin_x, m = saved
        out = jax.tree.map(lambda a: a, updates)
        out["x"][...], out["y"][...] = cos_x * g * m.y[...], sin_x * g
        return (out,)

    rule = nnx.custom_vjp(wave, graph_updates=True)
    rule.defvjp(wave_forward, backward)
    return rule(Wave(x, y))


MATMUL = (((1,), (0,)), ((), ()))
E4M3, E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2
HISTORY = at(1.5, 2.0, 0.5)


def fp8_layer(op, x, w):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = op(amax_history_length=3)
        state = module.init(jax.random.key(0), x, w, MATMUL)
        return module.apply(state, x, w, MATMUL)


def fp8_quantized(x, scale, history):  # a product with q, so that the float8 result has a float32 reader
    q, new_scale = fp8.in_q(jnp.float32, E4M3, x, scale, history)
    return q.astype(x.dtype) * new_scale


def fp8_dot(x, w, grad_scale, grad_history):
    one = jnp.ones(1, jnp.float32)
    qx, qw = fp8.quantize(x, E4M3, one, x.dtype), fp8.quantize(w, E4M3, one, x.dtype)
    return fp8.quantized_dot(x, qx, one, w, qw, one, grad_scale, grad_history, MATMUL, x.dtype)


def gpu_mha(q, k, v, **kw):
    return gpu_attention.mha(q, k, v, None, sm_scale=0.25, causal=True, interpret=True, **kw)


SIZES = {f"block_{n}": 128 for n in ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")}
CAUSAL = np.tril(np.ones((8, 8), bool))


def splash_mha(q, k, v, **kw):
    mask = splash_mask.MultiHeadMask([splash_mask.CausalMask((128, 128))])
    return splash.make_splash_mha(
        mask=mask, head_shards=1, q_seq_shards=1, interpret=True, block_sizes=splash.BlockSizes(**SIZES), **kw
    )(q, k, v)


def splash_plain(q, k, v, sinks=None, **kw):
    return splash.attention_reference_custom(CAUSAL, q, k, v, None, sinks, **kw)


def gmm(x, w, existing=None, transpose=False, sizes=(5, 11)):
    tiles = (8, 128, 128)
    return megablox.gmm(x, w, np.array(sizes, np.int32), jnp.float32, tiles, None, existing, transpose, True)


# ---- the list ----
X, POS, PROB = normal(3, 4), at(0.3, 0.9, 1.7, 4.2, 11.0), at(1e-6, 0.2, 0.5, 0.8, 0.999)
XT, W, SYM = X.T.copy(), normal(4, 2), normal(3, 3, seed=5) + normal(3, 3, seed=5).T
RANK1 = np.outer(at(1, 2, 3, 4), at(1, -1, 2, 0.5))
INF, TIE = float("inf"), "a kink: the rule takes one subgradient"
MECHANISM = "the rule is the user's; the mechanism is what ships"
QUANT, META = "straight-through, or float8 gradients", "the 'gradient' of scale and history is their next value; "
QKV = tuple(normal(1, 16, 2, 16, seed=s) for s in range(3))
TPU_QKV = tuple(normal(1, 128, 128, seed=s, scale=0.3) for s in range(3))
SMALL_QKV = tuple(normal(8, 4, seed=s) for s in range(3))
NORM = normal(2, 3, 40), normal(40, seed=1), normal(40, seed=2)
GROUPS = normal(16, 128), normal(2, 128, 128, seed=1, scale=0.1)
GPU, TPU = "jax.experimental.pallas.ops.gpu.", "jax.experimental.pallas.ops.tpu."
PALLAS, REFERENCE = {"plain": "none", "dtype": "float32"}, {"dtype": "float32"}
LN, RMS = partial(gpu_layer_norm.layer_norm, interpret=True), partial(gpu_rms_norm.rms_norm, interpret=True)
NORM_PALLAS = {"plain": "forward", "dtype": "float32"}
EPS = {"found": "the xla backward takes eps = 1e-5, whatever the forward's", **NORM_PALLAS}

OUTSIDE: list[Outside] = [
    # jax.nn
    jvp("jax.nn.relu", jax.nn.relu, X),
    jvp("jax.nn.relu, 0", jax.nn.relu, at(-1, -0.0, 0, 1), meant=TIE),
    jvp("jax.nn.relu6", jax.nn.relu6, 4 * X),
    jvp("jax.nn.relu6, 0 and 6", jax.nn.relu6, at(-1, 0, 3, 6, 7), meant=TIE),
    jvp("jax.nn.softmax", softmax, X),
    jvp("jax.nn.softmax, where", partial(softmax, where=np.array([True, True, False, True])), X),
    jvp("jax.nn.softmax, ties and large", softmax, at(300, 300, 0, -300)),
    jvp("jax.nn.log1mexp", jax.nn.log1mexp, at(1e-4, 0.1, 0.69, 0.7, 3, 40)),
    # jax.numpy, jax.lax
    jvp("jax.numpy.logaddexp", jnp.logaddexp, X, X[::-1].copy()),
    jvp("jax.numpy.logaddexp, equal and far", jnp.logaddexp, at(2, -90, 200, -INF), at(2, 90, 200, 1)),
    jvp(
        "jax.numpy.logaddexp, both inf",
        jnp.logaddexp,
        at(INF, INF, -INF),
        at(INF, 0, -INF),
        found="(1, 1) at (∞, ∞), whose weights should sum to 1; NaN at (−∞, −∞)",
    ),
    jvp("jax.numpy.logaddexp, complex", of_complex(lambda z: jnp.logaddexp(z, z * z)), X, normal(3, 4)),
    jvp("jax.numpy.logaddexp2", jnp.logaddexp2, X, X[::-1].copy()),
    jvp("jax.numpy.logaddexp2, equal and far", jnp.logaddexp2, at(2, -90, 100), at(2, 90, 100)),
    jvp("jax.numpy.i0", jnp.i0, 3 * X),
    jvp("jax.numpy.i0, 0", jnp.i0, at(0, -0.0)),
    jvp(
        "jax.numpy.i0, near 0",
        jnp.i0,
        at(1e-3, 1e-5, 1e-6),
        found="cancels in float32 (5 % off at 1e-6, 0 at 1e-7), as plain autodiff does",
    ),
    jvp("jax.numpy.frexp", jnp.frexp, 5 * X),
    jvp("jax.numpy.sinc", jnp.sinc, X),
    jvp("jax.numpy.sinc, 0", jnp.sinc, at(0, 0.01, 1)),
    jvp("jax.numpy.linalg.slogdet, 1 × 1", jnp.linalg.slogdet, normal(3, 1, 1)),
    jvp("jax.numpy.linalg.slogdet, 2 × 2", jnp.linalg.slogdet, normal(3, 2, 2)),
    jvp("jax.numpy.linalg.slogdet, lu", jnp.linalg.slogdet, normal(2, 4, 4)),
    jvp("jax.numpy.linalg.slogdet, qr", partial(jnp.linalg.slogdet, method="qr"), normal(4, 4), plain="none"),
    jvp("jax.numpy.linalg.slogdet, complex", of_complex(lambda a: sum(jnp.linalg.slogdet(a))), SYM, normal(3, 3)),
    jvp("jax.numpy.linalg.det", jnp.linalg.det, normal(2, 4, 4)),
    jvp("jax.numpy.linalg.det, rank 3 of 4", jnp.linalg.det, RANK1 + np.diag(at(1, 1, 0, 0))),
    jvp("jax.numpy.linalg.det, rank 2 of 4", jnp.linalg.det, RANK1 + np.diag(at(1, 0, 0, 0))),
    jvp("jax.numpy.linalg.pinv, tall", jnp.linalg.pinv, normal(5, 3)),
    jvp("jax.numpy.linalg.pinv, wide", jnp.linalg.pinv, normal(3, 5)),
    jvp("jax.numpy.linalg.pinv, hermitian", partial(jnp.linalg.pinv, hermitian=True), SYM),
    jvp("jax.lax.custom_root", square_root, POS, plain="forward", meant=MECHANISM),
    # jax.scipy.special
    jvp("jax.scipy.special.wofz", of_complex(sp.wofz), normal(8), normal(8, seed=1)),
    jvp("jax.scipy.special.erfcx", sp.erfcx, at(-2, -0.3, 0, 0.7, 5)),
    jvp(
        "jax.scipy.special.erfcx, large",
        sp.erfcx,
        at(8, 9.1, 9.5, 20, 60),
        found="2 x erfcx(x) − 2/√π cancels: 7e-4 off at 60 in float32, where plain autodiff is exact",
    ),
    jvp(
        "jax.scipy.special.erfcx, 9.3",
        sp.erfcx,
        at(9.3),
        found="in float32 the value itself is 0: exp(x²) erfc(x) underflows before the series takes over at 9.4",
    ),
    jvp("jax.scipy.special.erfcx, complex", of_complex(sp.erfcx), normal(8), normal(8, seed=1)),
    jvp("jax.scipy.special.dawsn", sp.dawsn, at(-3, -0.5, 0, 0.2, 2.4, 2.6, 6, 40)),
    jvp("jax.scipy.special.logit", sp.logit, PROB),
    jvp("jax.scipy.special.xlogy", sp.xlogy, at(0, 0.5, -2, 3), at(0.7, 2, 1e-5, 1e5)),
    jvp(
        "jax.scipy.special.xlogy, (0, 0)",
        sp.xlogy,
        at(0, 0),
        at(0, 1),
        found="∂/∂y is NaN at (0, 0); it is 0, and the docstring promises a derivative there",
    ),
    jvp("jax.scipy.special.xlog1py", sp.xlog1py, at(0, 0.5, -2, 3), at(0.7, 2, 1e-5, -0.9)),
    jvp(
        "jax.scipy.special.xlog1py, (0, −1)",
        sp.xlog1py,
        at(0, 0),
        at(-1, 1),
        found="∂/∂y is NaN at (0, −1); it is 0, and the docstring promises a derivative there",
    ),
    jvp("jax.scipy.special.entr", sp.entr, PROB),
    jvp("jax.scipy.special.kl_div", sp.kl_div, PROB, PROB[::-1].copy()),
    jvp("jax.scipy.special.zeta", sp.zeta, at(1.1, 2, 3.5, 12), at(0.6, 1, 2.5, 7), plain="none"),
    jvp(
        "jax.scipy.special.log_ndtr",
        sp.log_ndtr,
        at(-8, -1, 0, 1, 4.9),
        found="exp(logpdf − ans) cancels: 8 units in the last place at −8, where plain autodiff is within one",
    ),
    jvp(
        "jax.scipy.special.log_ndtr, tails",
        sp.log_ndtr,
        at(-30, -21, -11, 5.5, 9),
        found="the same: 191 units in the last place at −30",
    ),
    jvp(
        "jax.scipy.special.log_ndtr, far tail",
        sp.log_ndtr,
        at(-1000, -3000, -1e4, -1e5),
        found="exp(logpdf − ans) cancels: 2981 for 10000 and 1 for 100000 in float32; plain autodiff is exact",
    ),
    jvp("jax.scipy.special.expi", sp.expi, at(-5, -0.4, 0.1, 1.3, 7), plain="forward"),
    jvp("jax.scipy.special.sici", sp.sici, at(0.1, 1, 3.9, 4.1, 20)),
    jvp("jax.scipy.special.sici, 0 and negative", lambda x: sp.sici(x)[0], at(0, -1, -5)),
    jvp("jax.scipy.special.expn, n = 3", lambda x: sp.expn(3.0, x), POS, plain="forward"),
    jvp(
        "jax.scipy.special.expn, n = 0",
        lambda x: sp.expn(0.0, x),
        POS,
        plain="forward",
        found="NaN at x ≤ 1: the rule asks for expn(−1, x)",
    ),
    jvp("jax.scipy.special.poch", sp.poch, at(0.5, 2, 3.3), at(1.5, 0.2, 2)),
    jvp("jax.scipy.special.poch, m = 0 and a negative z", sp.poch, at(2, -0.5), at(0, 1.7)),
    jvp("jax.scipy.special.hyp1f1", sp.hyp1f1, at(0.7, 2.5, 1.2), at(1.9, 1.5, 3), at(0.5, 3, 9), plain="forward"),
    jvp(
        "jax.scipy.special.hyp1f1, a = b, a = 0, x = 0",
        sp.hyp1f1,
        at(1.5, 0, 1),
        at(1.5, 2, 2),
        at(0.5, 1, 0),
        plain="forward",
        found="∂/∂a is 0 at a = 0 (0.5996 at (0, 2, 1))",
    ),
    jvp(
        "jax.scipy.special.hyp2f1",
        sp.hyp2f1,
        at(0.7, 2.5, 1.1),
        at(1.9, 1.5, 0.4),
        at(3.1, 2.2, 2),
        at(0.3, -0.4, 0.6),
        plain="forward",
    ),
    jvp(
        "jax.scipy.special.hyp2f1, x = 0, b = c, a = −2",
        sp.hyp2f1,
        at(0.7, 0.5, -2),
        at(1.9, 1.5, 1.1),
        at(3.1, 1.5, 2),
        at(0, 0.5, 0.3),
        plain="forward",
        found="∂/∂a is NaN at a = −2 (0.1159 there)",
    ),
    jvp("jax.scipy.special.owens_t", sp.owens_t, at(0.3, -1.2, 2, 0.1), at(0.5, 0.8, -3, 6)),
    jvp("jax.scipy.special.owens_t, h = 0, a = 0, a = 1", sp.owens_t, at(0, 1, 1, 0), at(2, 0, 1, 0)),
    jvp("jax.scipy.special.fresnel", sp.fresnel, at(-2, 0, 0.5, 1.59, 1.61, 7)),
    # jax: custom_vjp
    vjp(
        "jax.experimental.ode.odeint",
        pendulum,
        at(1.0, 0.2),
        at(0, 0.5, 1.1, 1.5),
        np.array(0.8, "f4"),
        np.array(0.3, "f4"),
        plain="forward",
        meant="the adjoint equation, solved to rtol: 1e-5 from the primal's derivative, in any precision",
    ),
    vjp("jax.export.Exported.call", export.export(jax.jit(lambda x, y: jnp.sin(x) @ y))(X, XT).call, X, XT, **PALLAS),
    vjp("jax.custom_gradient", log1p_exp, X, meant=MECHANISM),
    vjp(GPU + "layer_norm", LN, *NORM, **NORM_PALLAS),
    vjp(GPU + "layer_norm, eps 0.5", partial(LN, eps=0.5), *NORM, **NORM_PALLAS),
    vjp(GPU + "layer_norm, xla, eps 0.5", partial(LN, eps=0.5, backward_pass_impl="xla"), *NORM, **EPS),
    vjp(GPU + "rms_norm", RMS, *NORM, **NORM_PALLAS),
    vjp(GPU + "rms_norm, eps 0.5", partial(RMS, eps=0.5), *NORM, **NORM_PALLAS),
    vjp(GPU + "rms_norm, xla, eps 0.5", partial(RMS, eps=0.5, backward_pass_impl="xla"), *NORM, **EPS),
    vjp(GPU + "attention.mha", gpu_mha, *QKV, **PALLAS),
    vjp(GPU + "attention.mha, xla", partial(gpu_mha, backward_pass_impl="xla"), *QKV, **PALLAS),
    vjp(
        TPU + "flash_attention",
        partial(tpu_flash.flash_attention, causal=True),
        *(a[None] for a in TPU_QKV),
        normal(1, 1, 128, 128, seed=3),
        context=pltpu.force_tpu_interpret_mode,
        **PALLAS,
    ),
    vjp(
        TPU + "flash_attention.mha_reference",
        partial(tpu_flash.mha_reference, causal=True),
        *(a[None, None] for a in SMALL_QKV),
        normal(1, 1, 8, 8, seed=3),
        **REFERENCE,
    ),
    vjp(TPU + "megablox.gmm", gmm, *GROUPS, **PALLAS),
    vjp(TPU + "megablox.gmm, transposed", partial(gmm, transpose=True), *GROUPS, **PALLAS),
    vjp(
        TPU + "megablox.gmm, existing_out",
        gmm,
        *GROUPS,
        normal(16, 128, seed=2),
        found="existing_out gets g where the forward has overwritten it; it is 0 there",
        **PALLAS,
    ),
    vjp(TPU + "splash_attention.make_splash_mha", splash_mha, *TPU_QKV, **PALLAS),
    vjp(
        TPU + "splash_attention.make_splash_mha, soft cap",
        partial(splash_mha, attn_logits_soft_cap=2.0),
        *TPU_QKV,
        **PALLAS,
    ),
    vjp(TPU + "splash_attention.attention_reference_custom", splash_plain, *SMALL_QKV, **REFERENCE),
    vjp(
        TPU + "splash_attention.attention_reference_custom, sinks",
        splash_plain,
        *SMALL_QKV,
        np.array(0.4, "f4"),
        **REFERENCE,
    ),
    vjp(
        TPU + "splash_attention.attention_reference_custom, soft cap",
        partial(splash_plain, attn_logits_soft_cap=2.0),
        *SMALL_QKV,
        **REFERENCE,
    ),
    # optax
    vjp("optax.scale_gradient", lambda x: optax.scale_gradient(x, 0.25), X, meant="scales an identity's gradient"),
    jvp("optax.projections.projection_simplex", optax.projections.projection_simplex, normal(6)),
    jvp(
        "optax.projections.projection_simplex, tie",
        optax.projections.projection_simplex,
        at(0.5, 0.5, 0, -0.5),
        meant=TIE,
    ),
    jvp("optax.projections.projection_l1_ball", optax.projections.projection_l1_ball, normal(6)),
    jvp("optax.safe_softmax_cross_entropy", optax.safe_softmax_cross_entropy, X, PROB[:4] / PROB[:4].sum()),
    jvp(
        "optax.safe_softmax_cross_entropy, its minimum",
        optax.safe_softmax_cross_entropy,
        X,
        np.exp(X) / np.exp(X).sum(-1, keepdims=True),
    ),  # the gradient is 0 but for rounding, in rule and autodiff
    jvp(
        "optax.safe_softmax_cross_entropy, a logit of −∞",
        lambda x: optax.safe_softmax_cross_entropy(x, at(0, 0.4, 0.6)),
        at(-INF, 0, 1),
        found="right in reverse; forward mode (jvp, jacfwd) is NaN: 0 · −∞ with the labels' zero tangent",
    ),
    jvp("optax.safe_softmax_cross_entropy, a label of 0", optax.safe_softmax_cross_entropy, normal(2, 3), at(1, 0, 0)),
    # flax
    vjp("flax.linen.fp8_ops.in_qdq", partial(fp8.in_qdq, jnp.float32, E4M3), X, at(1), HISTORY, meant=META + QUANT),
    vjp("flax.linen.fp8_ops.out_qdq", partial(fp8.out_qdq, jnp.float32, E5M2), X, at(1), HISTORY, meant=META + QUANT),
    vjp("flax.linen.fp8_ops.in_q", fp8_quantized, X, at(1), HISTORY, meant=META + "x gets none"),
    vjp(
        "flax.linen.fp8_ops.out_dq",
        partial(fp8.out_dq, jnp.float32),
        at(2),
        at(0.5),
        X,
        dtype="float32",
        meant="passes through; the scales, here 2 · 0.5, are quantized_dot's business and get none",
    ),
    vjp("flax.linen.fp8_ops.quantized_dot", fp8_dot, X, XT, at(1), HISTORY, dtype="float32", meant=META + QUANT),
    vjp("flax.linen.Fp8DotGeneralOp", partial(fp8_layer, nn.Fp8DotGeneralOp), X, XT, meant=QUANT),
    vjp("flax.linen.Fp8DirectDotGeneralOp", partial(fp8_layer, nn.Fp8DirectDotGeneralOp), X, XT, meant=QUANT),
    jvp(
        "flax.linen.fp8_ops.dot_general_with_precision",
        lambda x, w: fp8.dot_general_with_precision(x, w, MATMUL),
        X,
        XT,
    ),
    vjp("flax.linen.custom_vjp", linen, X, W, meant=MECHANISM),
    vjp("flax.core.lift.custom_vjp", lifted, X, W, meant=MECHANISM),
    vjp("flax.nnx.custom_vjp, graph_updates=False", nnx_pure, X, normal(3, 4, seed=1), meant=MECHANISM),
    vjp("flax.nnx.custom_vjp, graph_updates=True", nnx_graph, X, normal(3, 4, seed=1), meant=MECHANISM),
]

CANNOT: dict[str, str] = {
    "jax._src.ad_checkpoint.primal_left_tangent_right": "private; its tangent is the second argument's, by intention",
    'jax.nn.dot_product_attention(implementation="cudnn")': "_dot_product_attention: needs cuDNN",
    "jax._src.cudnn.fused_attention_stablehlo.dot_product_attention(use_fp8=True)": "needs cuDNN on Hopper",
    "jax.nn.scaled_dot_general": "scaled_dot_general_fn: the primitive scaled_matmul has no CPU lowering (traces only)",
    "jax.experimental.rnn.lstm": "needs cuDNN: jaxlib's gpu_rnn is empty on a CPU",
    "jax.experimental.pallas.ops.gpu.attention_mgpu.attention": "Mosaic GPU: asserts that CUDA is installed",
    "jax.experimental.jax2tf.call_tf": "needs TensorFlow",
    "jax.experimental.jax2tf.convert": "its custom_gradient is TensorFlow's, around a JAX function",
    "jax._src.ad_checkpoint.custom_remat": "private; the rule is the user's; lin, jvp, vjp raise NotImplementedError",
    "jax._src.state.discharge._eval_jaxpr_ad_error": "a rule that raises: differentiation after discharge is an error",
    "jax.experimental.hijax.VJPHiPrimitive": "remat3, checkpoint_name, searchsorted, nonzero, scan3 and einshape have "
    "rules on a call_hi_primitive, not on a custom_vjp_call",
    "flax.nnx.compat.custom_vjp, flax.linen.NANOOFp8DotGeneralOp, Fp8Einsum": "no rule of their own: those above",
}


# ---- comparing ----


@dataclass(frozen=True)
class Row:
    """One rule, compared: `ok` is None where it can't be."""

    name: str
    kind: str
    ok: bool | None
    verdict: str
    oracle: str
    notes: tuple[str, ...]
    meant: str
    found: str
    seconds: float


def compared(rule: Outside) -> jbp.Report:
    """The report on one rule, values only."""
    with rule.context():
        if rule.kind == "vjp":
            return jbp.compare_vjp(rule.f, *rule.args, timing=False, checks=False)
        return jbp.compare_jvp(rule.f, *rule.args, timing=False, checks=False)


def row(rule: Outside) -> Row:
    """The comparison of one rule in a few words; whatever is raised is one of them."""
    started = time.perf_counter()
    oracle, notes, ok = "", (), None
    try:
        report = compared(rule)
    except Exception as error:
        verdict = f"can't be compared: {type(error).__name__}: {str(error).splitlines()[0]}"
    else:
        ok, notes = report.ok, tuple(dict.fromkeys(_all_notes(report)))
        verdict, oracle = _verdict(report), _oracle(notes)
    seconds = time.perf_counter() - started
    return Row(rule.name, rule.kind, ok, verdict, oracle, notes, rule.meant, rule.found, seconds)


def _all_notes(report: jbp.Report) -> Iterator[str]:
    yield from report.notes
    for call in report.calls:
        yield from _all_notes(call)


def _verdict(report: jbp.Report) -> str:
    if report.ok:
        excused = next((leaf.excused for leaf in (*report.leaves, report.total) if leaf.excused), "")
        if excused:
            return f"right; {excused}"
        ratio = report.total.ratio
        return (
            f"right: {ratio:.2f} times autodiff's error" if math.isfinite(ratio) else "right, where autodiff is exact"
        )
    inner = next((call for call in report.calls if not call.ok), report)
    leaf = inner.worst
    where = f"{leaf.where} is {leaf.got:.7g}, in float64 {leaf.expected:.7g}"
    return f"WRONG in {inner.name}: {leaf.pattern + '; ' if leaf.pattern else ''}{where}"


def _oracle(notes: tuple[str, ...]) -> str:
    if any("the oracle is central differences" in note for note in notes):
        return "central differences"
    return "forward mode" if any("the oracle is forward mode" in note for note in notes) else "autodiff"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="those whose name contains it")
    parser.add_argument("--slow", action="store_true", help=f"also {', '.join(SLOW)}")
    parser.add_argument("--json", metavar="FILE", help="write the table")
    settings = parser.parse_args()
    chosen = [o for o in OUTSIDE if settings.only in o.name]
    if not settings.slow:
        chosen = [o for o in chosen if not any(slow in o.name for slow in SLOW)]
    rows: list[Row] = []
    for rule in chosen:
        rows.append(found := row(rule))
        short = found.name.replace("jax.experimental.pallas.ops", "pallas")
        print(f"{short:58} {found.kind}  {found.oracle:19}  {found.verdict}", flush=True)
        meant, known = found.meant and f"meant: {found.meant}", found.found and f"known: {found.found}"
        for text in (*found.notes, meant, known):
            if text:
                print(f"    {text}", flush=True)
    unexplained = [r.name for r in rows if r.ok is False and not (r.meant or r.found)]
    missed = [r.name for r in rows if r.ok and r.found]
    print()
    print(
        f"{len(rows)} rules: {sum(r.ok is True for r in rows)} right, {sum(r.ok is False for r in rows)} wrong, "
        f"{sum(r.ok is None for r in rows)} can't be compared."
    )
    print(f"Wrong, and neither meant nor known: {', '.join(unexplained) or 'none'}.")
    print(f"Known faults that passed: {', '.join(missed) or 'none'}.")
    if settings.json:
        Path(settings.json).write_text(json.dumps([asdict(r) for r in rows], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
