"""Curvature from one reverse pass: products at most 1.9 (GGN) and 2.5 (Hessian) of one gradient on a GPT.

    4 GPT blocks     width 256, 4 heads, 2 × 256 positions, 128 classes: cost.ggnvp, cost.hvp, Kronecker factors of
                     sampled labels (no gradient beside them), each against cost.grad; beside them jvp of jax.grad, as
                     an expert writes a Hessian product
    784-1024×2-10    the GGN's diagonal, exact (10 columns), and of one sampled label, against one gradient; its peers
                     are jax.jacobian contracted, and BackPACK's DiagGGN{Exact,MC} where it is installed
    K-FAC            the same blocks at 2 × 1024 positions: ten steps with factors and inverses made once, against ten
                     of Adam by the same gradient
    the NTK          784-1024×2-10, 64 × 64 examples, 10 outputs, against contracting whole Jacobians in blocks (which
                     takes minutes at 256 × 256, where jbp's time stands alone)

float32; all programs return what they name on vectors.
"""

import time
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import mlps
import numpy as np
import optax
import transformers

import jbp

GRADIENT = "one gradient"


def network(quick: bool, positions: int) -> tuple[jbp.Cost, str]:
    """A small GPT, and what it is called."""
    width, t, classes, blocks = (32, 16, 11, 2) if quick else (256, positions, 128, 4)
    layers = [
        jbp.Embedding(classes, width),
        jbp.Repeat(transformers.gpt_block(width, 4), blocks),
        jbp.LayerNorm(),
        jbp.Dense(classes),
    ]
    net = jbp.Network(layers, jax.ShapeDtypeStruct((t,), jnp.int32))
    title = f"{blocks} GPT blocks, width {width}, 2 × {t}"
    return jbp.Cost(net, jbp.losses.SoftmaxCrossEntropy(), "positions"), title


def drawn(cost: jbp.Cost) -> tuple[Any, Any, Any]:
    """(θ, x, y) of two examples."""
    (t,), (_, classes), rng = cost.network.input.shape, cost.network.output.shape, np.random.default_rng(0)
    x, y = (jnp.asarray(rng.integers(0, classes, (2, t)), jnp.int32) for _ in range(2))
    return cost.init(jax.random.key(0)), x, y


def gpt(report: harness.Report) -> None:
    cost, title = network(report.quick, 256)
    (theta, x, y), rng = drawn(cost), np.random.default_rng(1)
    v = jnp.asarray(rng.standard_normal(theta.shape), theta.dtype)
    seed = jbp.Sampled(jax.random.key(1))
    of = lambda f, *args: harness.compiled(f, theta, x, y, *args)
    base = {GRADIENT: of(cost.grad)}
    by_autodiff = lambda theta, x, y, v: jax.jvp(lambda theta: jax.grad(cost)(theta, x, y), (theta,), (v,))[1]
    beside = {"jvp of jax.grad": of(by_autodiff, v)}
    ours = {
        "cost.ggnvp": of(cost.ggnvp, v),
        "cost.hvp": of(cost.hvp, v),
        "Kronecker factors, sampled": of(lambda theta, x, y: cost.measure(theta, x, y, jbp.KroneckerFactors(seed))[1]),
    }
    harness.agree(beside["jvp of jax.grad"].call(), {"cost.hvp": ours["cost.hvp"].call()}, 1e-3)
    race = report.race(title, ours, base, beside)
    for name, bound in zip(ours, (1.9, 2.5, 1.35), strict=True):
        report.row(race, GRADIENT, race, name, GRADIENT, time_at_most=bound)
    report.row(race, "`jvp of jax.grad`", race, "cost.hvp", "jvp of jax.grad")


def ten_steps(cost: jbp.Cost, theta: Any, x: Any, y: Any) -> dict[str, tuple[Callable, Any, Any]]:
    """{optimiser: ten steps of it, its params and its state}, by one and the same gradient, on leaves."""
    params = cost.layout.unflatten(theta)

    def of(rule: optax.GradientTransformationExtraArgs) -> tuple[Callable, Any, Any]:
        def step(carry: Any, _: Any) -> tuple[Any, Any]:
            params, state = carry
            value, gradient = cost.value_and_grad_leaves(params, x, y)
            update, state = rule.update(gradient, state, params, batch=(x, y))
            return (optax.apply_updates(params, update), state), value

        return lambda params, state: jax.lax.scan(step, (params, state), length=10), params, rule.init(params)

    return {"K-FAC": of(jbp.kfac(cost, 0.1)), "Adam": of(optax.with_extra_args_support(optax.adam(1e-3)))}


def kfac(report: harness.Report) -> None:
    cost, title = network(report.quick, 1024)
    steps = {name: harness.compiled(*ten, steps=10) for name, ten in ten_steps(cost, *drawn(cost)).items()}
    ours, peers = {"K-FAC": steps["K-FAC"]}, {"Adam": steps["Adam"]}
    race = report.race(f"a step, {title}", ours, peers, rounds=3)
    report.row("a K-FAC step", "an Adam step", race, "K-FAC", time_at_most=1.5)


def diagonal(report: harness.Report) -> None:
    width, n = (16, 8) if report.quick else (1024, 128)
    net = jbp.mlp(784, width, width, 10, activation=jbp.ReLU(), last=jbp.Identity())
    cost = jbp.Cost(net, jbp.losses.SoftmaxCrossEntropy())
    theta, rng = net.init(jax.random.key(0)), np.random.default_rng(0)
    x, y = jnp.asarray(rng.random((n, 784)), jnp.float32), jnp.asarray(rng.integers(0, 10, n), jnp.int32)
    measure = lambda readout: lambda theta, x, y: cost.measure(theta, x, y, readout)[1]

    def naive(theta, x, y):
        def one(x, y):
            z = net(theta, x[None])
            jacobian = jax.jacobian(lambda theta: net(theta, x[None])[0])(theta)  # [10, P]
            roots = cost.loss.hessian_root(z, y[None])[:, 0]
            return jnp.square(roots @ jacobian).sum(0)

        return jax.lax.map(lambda example: one(*example), (x, y)).mean(0)

    of = lambda f: harness.compiled(f, theta, x, y)
    ours = {
        "DiagonalGGN, exact": of(measure(jbp.DiagonalGGN())),
        "DiagonalGGN, one sample": of(measure(jbp.DiagonalGGN(jbp.Sampled(jax.random.key(0))))),
    }
    peers = {"Jacobians, one by one": of(naive)}
    harness.agree(peers["Jacobians, one by one"].call(), {"exact": ours["DiagonalGGN, exact"].call()}, 1e-4)
    peers |= backpack(net, theta, x, y)
    race = report.race(f"Diagonal of the GGN, {net.layout.size:,} parameters", ours, peers, {GRADIENT: of(cost.grad)})
    for name in ours:
        report.row(race, GRADIENT, race, name, GRADIENT)
    if "BackPACK, exact" in peers:
        report.row(race, "BackPACK's DiagGGNExact", race, "DiagonalGGN, exact", "BackPACK, exact", time_at_most=0.7)
        report.row(race, "BackPACK's DiagGGNMC", race, "DiagonalGGN, one sample", "BackPACK, MC", time_at_most=0.7)


def backpack(net: jbp.Network, theta: Any, x: Any, y: Any) -> dict[str, harness.Rival]:
    """BackPACK's diagonals of the same network with the same weights, where it is installed."""
    torch, package = harness.optional("torch"), harness.optional("backpack")
    if torch is None or package is None:
        return {}
    from backpack import extensions

    model = package.extend(mlps.relu_in_torch([(p.w, p.b) for p in net.layout.unflatten(theta) if p != ()]))
    loss = package.extend(torch.nn.CrossEntropyLoss())
    x, y = torch.from_numpy(np.array(x)), torch.from_numpy(np.array(y)).long()

    def call(extension: Any, name: str) -> Any:
        def run() -> Any:
            model.zero_grad()
            with package.backpack(extension):
                loss(model(x), y).backward()
            return [getattr(p, name).numpy() for p in model.parameters()]

        return run

    exact = call(extensions.DiagGGNExact(), "diag_ggn_exact")
    return {
        "BackPACK, exact": harness.Rival(exact),
        "BackPACK, MC": harness.Rival(call(extensions.DiagGGNMC(), "diag_ggn_mc")),
    }


def kernel(report: harness.Report) -> None:
    width, n, block = (16, 8, 4) if report.quick else (1024, 64, 32)
    net = jbp.mlp(784, width, width, 10, activation=jbp.ReLU(), last=jbp.Identity())
    theta, rng = net.init(jax.random.key(0)), np.random.default_rng(0)
    x = jnp.asarray(rng.random((n, 784)), jnp.float32)

    def contracted(theta, x):
        one = jax.jacobian(lambda theta, x: net(theta, x[None])[0])
        jacobian = lambda x: jax.vmap(one, (None, 0))(theta, x).reshape(-1, theta.size)
        blocks = x.reshape(-1, block, 784)
        row = lambda one: jax.lax.map(lambda two: one @ jacobian(two).T, blocks)
        found = jax.lax.map(lambda x: row(jacobian(x)), blocks)  # [blocks, blocks, block · 10, block · 10]
        found = found.reshape(n // block, n // block, block, 10, block, 10)
        return found.transpose(0, 2, 1, 4, 3, 5).reshape(n, n, 10, 10)

    ours = {"jbp.ntk": harness.compiled(lambda theta, x: jbp.ntk(net, theta, x), theta, x)}
    peers = {"Jacobians, contracted": harness.compiled(contracted, theta, x)}
    harness.agree(peers["Jacobians, contracted"].call(), {"jbp.ntk": ours["jbp.ntk"].call()}, 1e-4)
    race = report.race(f"NTK of {n} × {n} examples", ours, peers, rounds=max(3, report.rounds // 4))
    report.row(race, "contracted Jacobians", race, "jbp.ntk", time_at_most=0.1)
    many = jnp.asarray(rng.random((4 * n, 784)), jnp.float32)
    whole = harness.compiled(lambda theta, x: jbp.ntk(net, theta, x), theta, many)
    jax.block_until_ready(whole.call())
    seconds = min(timed(whole.call) for _ in range(3))
    report.note(f"jbp.ntk of {4 * n} × {4 * n} examples takes {seconds:.2g} s (one process)")


def timed(call: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def measure(report: harness.Report) -> None:
    gpt(report)
    kfac(report)
    diagonal(report)
    kernel(report)


if __name__ == "__main__":
    harness.run(__doc__, measure, rounds=12)
