"""Meshes of devices: collectives are replayed where they meet, and data stay cut as they came."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import jvp, numbers, vjp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jbp
from jbp.layer import InputError

X, W = numbers(0, 8, 3), numbers(1, 3, 2)
SHARED = P()
KINDS = [AxisType.Auto, AxisType.Explicit]


def mesh_of(kind: AxisType, *sizes: int) -> Any:
    return jax.make_mesh(sizes, tuple("de"[: len(sizes)]), axis_types=(kind,) * len(sizes))


def on_shards(
    f: Callable, out_specs: Any = SHARED, axes: str = "d", sizes: tuple[int, ...] = (4,), **settings: Any
) -> Any:
    """f(x, w) of shards of x and the whole of w."""
    mesh = mesh_of(AxisType.Auto, *sizes)
    return jax.shard_map(f, mesh=mesh, in_specs=(P("d"), P()), out_specs=out_specs, axis_names=set(axes), **settings)


# -- collectives ------------------------------------------------------------------------------------------------------


def everything(x, w):
    """Collectives among what else a program holds."""
    h = jax.nn.softmax(jax.nn.silu(x @ w))
    h = lax.scan(lambda c, _: (jnp.tanh(c) * (1 + lax.axis_index("d")).astype(c.dtype), None), h, length=2)[0]
    h = lax.cond(h.sum() > 0, lambda h: h * 2, lambda h: h + h.sum(), h)
    h = lax.ppermute(h, "d", [(0, 1), (1, 0)])
    most = lax.pmax(lax.stop_gradient(h.max()), "d")
    together = lax.psum(lax.all_gather(h, "d").sum() * jnp.exp(most), "d")
    return lax.pmean(jax.checkpoint(lambda h: (h**2).mean())(h), "d") + together


MODELS: dict[str, Callable] = {
    "pmean": lambda x, w: lax.pmean((jnp.tanh(x @ w) ** 2).mean(), "d"),
    "psum": lambda x, w: lax.psum((jnp.tanh(x @ w) ** 2).sum(), "d"),
    "axis_index": lambda x, w: lax.psum(jnp.tanh(x @ w).sum() * lax.axis_index("d").astype(x.dtype), "d"),
    "everything": everything,
}


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("axes", ["d", "de"])
@pytest.mark.parametrize("model", MODELS)
def test_a_gradient_through_collectives_is_run_again_in_float64(model: str, axes: str, check_vma: bool):
    f = on_shards(MODELS[model], axes=axes, sizes=(2, 2), check_vma=check_vma)
    right, wrong = jax.grad(f, 1), lambda x, w: 1.01 * jax.grad(f, 1)(x, w)
    assert jbp.compare(right, right, X, W, timing=False, checks=False).ok
    report = jbp.compare(wrong, right, X, W, timing=False, checks=False)
    assert report.worst.pattern == "off by the factor 1.010"
    program = sys.modules["jbp.programs.program"].Program("f", f, (X, W))
    with jax.enable_x64(True):
        due = jax.jit(f)(*map(np.float64, (X, W)))
    np.testing.assert_allclose(program.exact(X, W), due, rtol=1e-12)


# -- rules ------------------------------------------------------------------------------------------------------------


def product(x, w):
    return x @ w


def dense(backward: Callable) -> Callable:
    f = jax.custom_vjp(product)
    f.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, d: backward(*saved, d))
    return f


def right(x, w, d):
    return d @ w.T, x.T @ d


def summed(x, w, d):
    """A psum too many: what shard_map does for w is done already."""
    return d @ w.T, lax.psum(x.T @ d, "d")


def test_a_rule_inside_a_shard_map_is_compared_as_part_of_the_whole():
    def model(backward: Callable) -> Callable:
        return on_shards(lambda x, w: jnp.tanh(dense(backward)(x, w)), P("d"), check_vma=False)

    report = vjp(model(right), X, W)
    assert report.ok, report
    assert report.calls == ()
    assert "Inside a shard_map, and so compared as part of the whole: product." in report.notes
    report = vjp(jax.jit(model(summed)), X, W)
    assert not report.ok
    assert [(leaf.name, leaf.ok) for leaf in report.leaves] == [("x", True), ("w", False)]


@pytest.mark.parametrize("factor", [1, 2])
def test_a_rule_inside_a_shard_map_and_one_outside(factor: float):
    square = jax.custom_vjp(lambda x: x * x)
    square.defvjp(lambda x: (x * x, x), lambda x, d: (2 * factor * d * x,))
    inner = on_shards(lambda x, w: lax.pmean((dense(right)(x, w) ** 2).mean(), "d"), check_vma=False)
    report = vjp(lambda x, w: inner(x, square(w)), X, W)
    assert report.ok == (factor == 1)
    assert [(call.name, call.ok) for call in report.calls] == [("<lambda>", factor == 1)]
    assert "Inside a shard_map, and so compared as part of the whole: product." in report.notes


@pytest.mark.parametrize("factor", [1, 2])
def test_a_rule_for_forward_mode_inside_a_shard_map(factor: float):
    cube = jax.custom_jvp(lambda x: x**3)
    cube.defjvp(lambda p, t: (p[0] ** 3, factor * 3 * p[0] ** 2 * t[0]))
    assert jvp(on_shards(lambda x, w: lax.pmean(cube(x @ w).mean(), "d")), X, W).ok == (factor == 1)


# -- explicit axes ----------------------------------------------------------------------------------------------------


def test_rules_on_a_mesh_with_explicit_axes():
    with jax.set_mesh(mesh := mesh_of(AxisType.Explicit, 4)):
        x = jax.device_put(X, NamedSharding(mesh, P("d")))
        w = jax.device_put(W, NamedSharding(mesh, P()))

        def backward(factor: float) -> Callable:
            product_of = lambda x, d: jnp.einsum("ni,no->io", x, d, out_sharding=P())
            return lambda x, w, d: (d @ w.T, factor * product_of(x, d))

        around: dict[str, Callable] = {
            "alone": lambda f: f,
            "inside": lambda f: lambda x, w: jnp.sum(f(x, w) ** 2),
            "scan": lambda f: lambda x, w: lax.scan(lambda s, _: (f(f(s, w), w.T), f(s, w)), x, length=2)[1].sum(),
        }
        for place, put in around.items():
            report = vjp(put(dense(backward(1))), x, w, checks=place == "alone")
            assert report.ok, (place, report)
            assert len(report.calls) == {"alone": 0, "inside": 1, "scan": 3}[place]
            report = vjp(put(dense(backward(2))), x, w)
            assert [(leaf.name, leaf.ok) for leaf in report.leaves if leaf.name == "w"] == [("w", False)]
        with pytest.raises(InputError, match="returns bfloat16"):
            vjp(dense(lambda x, w, d: (d @ w.T, backward(1)(x, w, d)[1].astype(jnp.bfloat16))), x, w)


def classifier() -> jbp.Cost:
    net = jbp.Network([jbp.Dense(16), jbp.ReLU(), jbp.Dense(10)], (6,))
    return jbp.Cost(net, jbp.losses.SoftmaxCrossEntropy())


@pytest.mark.parametrize("kind", KINDS)
def test_cost_compare_keeps_the_batch_cut_over_the_mesh(kind: AxisType):
    """Both in the rule's compiled program and in its float64 shadow no device holds more than its own examples."""
    cost, labels = classifier(), np.arange(64, dtype=np.int32) % 10
    with jax.set_mesh(mesh := mesh_of(kind, 8)):
        cut = NamedSharding(mesh, P("d"))
        theta = jax.device_put(cost.network.init(jax.random.key(0)), NamedSharding(mesh, P()))
        x, y = jax.device_put(numbers(2, 64, 6), cut), jax.device_put(labels, cut)
        report = cost.compare(theta, x, y, timing=False)
        assert report.ok, report
        rule = sys.modules["jbp.programs.program"].Program("the rule", cost.value_and_grad, (theta, x, y))
        program = rule.compiled[0]
        assert [s.spec for s in jax.tree.leaves(program.input_shardings)] == [P(), P("d"), P("d")]
        assert "f32[8,16]" in program.as_text()  # a shard's activations
        assert "f32[64,16]" not in program.as_text()
        with jax.enable_x64(True):
            wide = rule._wide.lower(rule.jaxpr.consts, [theta, x, y]).compile().as_text()
        assert "f64[8,16]" in wide
        assert "f64[64,16]" not in wide


@pytest.mark.parametrize("kind", KINDS)
def test_labels_out_of_range_are_named_on_a_mesh(kind: AxisType):
    cost = classifier()
    theta = cost.network.init(jax.random.key(0))
    with jax.set_mesh(mesh := mesh_of(kind, 8)):
        x, y = (jax.device_put(a, NamedSharding(mesh, P("d"))) for a in (numbers(2, 8, 6), np.int32([*range(7), 10])))
        with pytest.raises(InputError, match=r"got y\[7\] = 10 \(1 out of range\)"):
            cost.check(jax.device_put(theta, NamedSharding(mesh, P())), x, y)


# -- as a function of shards ------------------------------------------------------------------------------------------

hijax = pytest.mark.skipif(not hasattr(jax.experimental.hijax, "HiPrim"), reason="this JAX has no HiPrim of hijax")


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("forward_mode", [False, pytest.param(True, marks=hijax)])
@pytest.mark.parametrize("kind", KINDS)
def test_as_function_inside_a_shard_map(kind: AxisType, forward_mode: bool, check_vma: bool):
    """Its gradients for params that the shards share are the sums over all of them."""
    net = jbp.mlp(3, 4, 2)
    theta, f = net.init(jax.random.key(0)), jbp.as_function(net, forward_mode=forward_mode)
    due = jax.grad(lambda t, x: jnp.sum(net(t, x) ** 2), (0, 1))(theta, X)
    with jax.set_mesh(mesh := mesh_of(kind, 4)):
        spread = jax.shard_map(f, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d"), check_vma=check_vma)
        t, x = jax.device_put(theta, NamedSharding(mesh, P())), jax.device_put(X, NamedSharding(mesh, P("d")))
        for transform in (jax.jit, lambda f: f):
            got = transform(jax.grad(lambda t, x: jnp.sum(spread(t, x) ** 2), (0, 1)))(t, x)
            for a, b in zip(got, due, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# -- a network on explicit axes ---------------------------------------------------------------------------------------


def decoder() -> jbp.Cost:
    attention = jbp.Residual(jbp.Sequential([jbp.LayerNorm(), jbp.Attention(2)]))
    layers = [jbp.Embedding(5, 4), jbp.Repeat(attention, 2), jbp.Dense(3)]
    net = jbp.Network(layers, jax.ShapeDtypeStruct((2,), np.int32))
    return jbp.Cost(net, jbp.losses.SoftmaxCrossEntropy(), "positions")


def step_of_kfac(cost: jbp.Cost, theta: Any, x: Any, y: Any) -> Any:
    rule = jbp.kfac(cost, 0.1)
    return rule.update(cost.grad(theta, x, y), rule.init(theta), theta, batch=(x, y))[0]


ASKED: dict[str, Callable] = {
    "the output": lambda cost, theta, x, y: cost.network(theta, x),
    "compare": lambda cost, *args: cost.compare(*args, timing=False, checks=False).ok,
    "check": lambda cost, *args: cost.check(*args),
    "explain": lambda cost, *args: jbp.explain(cost, *args, "0.table[1,2]").value,
    "flow": lambda cost, *args: [row.delta for row in jbp.flow(cost, *args).rows],
    "draw": lambda cost, *args: jbp.draw.computation(cost, args[0], *(np.asarray(a)[0] for a in args[1:])).dot(),
    "kfac": step_of_kfac,
}


@pytest.mark.parametrize("entered", [True, False], ids=["in its context", "by the arrays alone"])
@pytest.mark.parametrize("what", ASKED)
def test_on_explicit_axes_all_is_as_on_one_device(what: str, entered: bool, x64: None):
    cost, x = decoder(), numbers(2, 8, 2).argsort(0).astype(np.int32) % 5
    theta, y = cost.init(jax.random.key(0)), x % 3
    due = ASKED[what](cost, theta, x, y)
    mesh = mesh_of(AxisType.Explicit, 4)
    theta, x, y = (jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in ((theta, P()), (x, P("d")), (y, P("d"))))
    with jax.set_mesh(mesh) if entered else nullcontext():
        got = ASKED[what](cost, theta, x, y)
        if what == "the output":
            assert jax.typeof(got).sharding.spec[0] == "d"
    if isinstance(due, str):
        assert got == due
    else:
        close = lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9, atol=1e-12)
        jax.tree.map(close, got, due)


STEPS: dict[str, Callable] = {
    "gradient": lambda cost, theta, *data: cost.grad(theta, *data),
    "by autodiff": lambda cost, theta, *data: jax.grad(cost)(theta, *data),
    "Hessian product": lambda cost, theta, *data: cost.hvp(theta, *data, theta),
    "readout": lambda cost, theta, *data: cost.measure(theta, *data, jbp.Gradient())[1],
}


@pytest.mark.parametrize("what", STEPS)
def test_a_theta_that_is_cut_has_gradients_that_are_cut_alike(what: str, x64: None):
    cost = jbp.Cost(jbp.mlp(4, 4, 4), jbp.losses.HalfSquaredError())
    theta, x, y = cost.init(jax.random.key(0)), numbers(0, 8, 4), numbers(1, 8, 4)
    step = lambda *args: args[0] - 0.1 * STEPS[what](cost, *args)
    due = step(theta, x, y)
    with jax.set_mesh(mesh := mesh_of(AxisType.Explicit, 4)):
        got = step(*(jax.device_put(a, NamedSharding(mesh, P("d"))) for a in (theta, x, y)))
    assert jax.typeof(got).sharding.spec == P("d")
    np.testing.assert_allclose(np.asarray(got), np.asarray(due), rtol=1e-9, atol=1e-12)


def test_as_function_on_explicit_axes(x64: None):
    net, x = decoder().network, numbers(2, 8, 2).argsort(0).astype(np.int32) % 5
    theta, f = net.init(jax.random.key(0)), jbp.as_function(net)
    both = lambda theta, x: (f(theta, x), jax.grad(lambda theta: jnp.square(f(theta, x)).sum())(theta))
    due = both(theta, x)
    with jax.set_mesh(mesh := mesh_of(AxisType.Explicit, 4)):
        got = both(*(jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in ((theta, P()), (x, P("d")))))
    assert jax.typeof(got[0]).sharding.spec[0] == "d"
    for a, b in zip(got, due, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9, atol=1e-12)
