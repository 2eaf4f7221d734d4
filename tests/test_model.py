"""Anybody's model: the pairs that are found in its trace answer every readout as `vmap(grad)` does, in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_close, draw
from flax import linen as nn
from flax import nnx

import jbp
from jbp import losses

eqx = pytest.importorskip("equinox")
N = 3


@pytest.fixture(autouse=True)
def promotion_as_for_a_user():
    """Other people's models add a bias to a batch, and a float32 to a float64."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def spec(*shape: int, dtype: Any = np.float64) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def numbers(seed: int, **shapes: tuple[int, ...]) -> dict[str, Any]:
    """Params by name, normal over the square root of 8."""
    return draw(seed, {name: spec(*shape) for name, shape in shapes.items()}, scale=8**-0.5)


@dataclass(frozen=True)
class ModelCase:
    """A model as its library makes it, and the forms of its leaves. `make() -> (apply, params)`; x: one example's."""

    name: str
    make: Callable[[], tuple[Callable, Any]]
    x: Any
    forms: dict[str, str]
    per_example: bool = False

    def network(self) -> tuple[Any, Any, Any]:
        """(net, θ, a batch x)."""
        apply, params = self.make()
        net = jbp.from_model(apply, params, input=self.x, per_example=self.per_example)
        return net, net.layout.flatten(params), draw(1, jax.ShapeDtypeStruct((N, *self.x.shape), self.x.dtype))


def plain_mlp():
    def apply(p, x):
        return jnp.tanh(x @ p["w"] + p["b"]) @ p["v"].T

    return apply, numbers(0, w=(6, 70), b=(70,), v=(60, 70))


def equinox_mlp():
    model = eqx.nn.MLP(6, 3, 70, 2, key=jax.random.key(0), dtype=jnp.float64)
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    return lambda params, x: eqx.combine(params, rest)(x), params


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        settings = {"param_dtype": jnp.float64}
        x = nn.relu(nn.Conv(32, (3, 3), (2, 1), **settings)(x))
        x = nn.Conv(32, (2, 3), feature_group_count=4, padding="VALID", kernel_dilation=(1, 2), **settings)(x)
        x = nn.GroupNorm(4, **settings)(x)
        x = nn.ConvTranspose(32, (3, 3), (2, 2), **settings)(x)
        return nn.Dense(3, **settings)(x.mean((1, 2)))


def linen_cnn():
    params = Cnn().init(jax.random.key(0), jnp.zeros((1, 7, 8, 4), jnp.float64))["params"]
    return lambda params, x: Cnn().apply({"params": params}, x), params


class Gpt(nnx.Module):
    def __init__(self, rngs):
        settings = {"rngs": rngs, "param_dtype": jnp.float64}
        self.table = nnx.Embed(1100, 8, dtype=jnp.float64, **settings)
        self.norm = nnx.LayerNorm(8, **settings)
        self.attention = nnx.MultiHeadAttention(2, 8, qkv_features=2400, decode=False, **settings)

    def __call__(self, x):
        h = self.table(x)
        return self.table.attend(h + self.attention(self.norm(h), mask=nnx.make_causal_mask(x, dtype=jnp.float64)))


def nnx_gpt():
    graph, params = nnx.split(Gpt(nnx.Rngs(0)), nnx.Param)
    return lambda params, x: nnx.merge(graph, params)(x), params


def rnn():
    def apply(p, x):
        def step(h, x):
            h = jnp.tanh(x @ p["into"] + h @ p["on"] + p["b"])
            return h, h

        last, all_ = jax.lax.scan(step, p["first"], x)
        return (all_.sum(0) + last) @ p["out"]

    return apply, numbers(0, into=(70, 70), on=(70, 70), b=(70,), first=(70,), out=(70, 60))


def stacked_blocks():
    def apply(p, x):
        @jax.checkpoint
        def block(h, own):
            return h + jnp.tanh(h @ own["w"] + own["b"]) @ p["shared"], None

        return jax.lax.scan(block, x, p["blocks"])[0] @ p["shared"]

    return apply, {**numbers(0, shared=(70, 70)), "blocks": numbers(1, w=(3, 70, 70), b=(3, 70))}


def experts():
    def apply(p, x):
        h = jnp.einsum("nei,eoi->neo", jnp.tanh(x), p["w"])
        return jnp.einsum("neo,eok->nk", h, p["w"][:, :, ::-1].swapaxes(1, 2)) @ p["once"]

    return apply, numbers(0, w=(3, 40, 40), once=(40, 2))


@jax.custom_vjp
def scaled(w, x):
    return x @ w


scaled.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, d: (2 * jnp.outer(kept[1], d), d @ kept[0].T))


def rule_and_branches():
    """A rule of one's own, whose gradient is twice that of its primal, and a branch for each sign of the input."""

    def apply(p, x):
        h = scaled(p["w"], x)
        h = jax.lax.cond(x.sum() > 0, lambda w, h: h @ w, lambda w, h: h @ w.T, p["v"], h)
        return h @ p["o"]

    return apply, numbers(0, w=(70, 70), v=(70, 70), o=(70, 3), idle=(2,))


def tokens(*shape: int) -> Any:
    return spec(*shape, dtype=np.int32)


CASES = [
    ModelCase("plain MLP", plain_mlp, spec(6), {"b": "Sum", "v": "Outer", "w": "Outer"}),
    ModelCase(
        "Equinox MLP",
        equinox_mlp,
        spec(6),
        {f"layers.{i}.{name}": form for i in range(3) for name, form in (("weight", "Outer"), ("bias", "Sum"))},
        per_example=True,
    ),
    ModelCase(
        "Flax linen CNN",
        linen_cnn,
        spec(7, 8, 4),
        {
            **{f"Conv_{i}.{name}": form for i in (0, 1) for name, form in (("bias", "Sum"), ("kernel", "Patches"))},
            "ConvTranspose_0.bias": "Sum",
            "ConvTranspose_0.kernel": "Patches",
            "Dense_0.bias": "Sum",
            "Dense_0.kernel": "Outer",
            "GroupNorm_0.bias": "Sum",
            "GroupNorm_0.scale": "Sum",
        },
    ),
    ModelCase(
        "Flax NNX GPT",
        nnx_gpt,
        tokens(5),
        {
            **{
                f"attention.{part}.{name}": form
                for part in ("key", "out", "query", "value")
                for name, form in (("bias", "Sum"), ("kernel", "Outer"))
            },
            "norm.bias": "Sum",
            "norm.scale": "Sum",
            "table.embedding": "Gather + Outer",
        },
    ),
    ModelCase(
        "RNN", rnn, spec(4, 70), {"b": "Sum", "first": "Sum", "into": "Outer", "on": "Outer", "out": "Outer"}, True
    ),
    ModelCase(
        "stacked blocks",
        stacked_blocks,
        spec(2, 70),
        {"blocks.b": "Sum", "blocks.w": "Stack of Outer", "shared": "Outer"},
    ),
    ModelCase("experts", experts, spec(3, 40), {"once": "Outer", "w": "Whole: goes into rev"}),
    ModelCase(
        "a rule, branches",
        rule_and_branches,
        spec(70),
        {
            "idle": "Nothing",
            "o": "Outer",
            "v": "Whole: goes into cond",
            "w": "Whole: held by scaled, which has a rule of its own",
        },
        per_example=True,
    ),
]  # fmt: skip
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@cases
def test_every_readout_equals_its_definition(case: ModelCase, x64):
    net, theta, x = case.network()
    output = net(theta, x)
    assert net.forms == case.forms
    cost = jbp.Cost(net, losses.HalfSquaredError())
    y = draw(2, output)
    one = lambda theta, x, y: cost(theta, x[None], y[None])
    g = jax.jit(jax.vmap(jax.grad(one), (None, 0, 0)))(theta, x, y)
    v, w = draw(3, theta), draw(4, jnp.ones(N))
    asked = jbp.Gradient(), jbp.PerExampleGradients(), jbp.SquaredNorms(), jbp.Along(v)
    C, found = cost.measure(theta, x, y, *asked, weights=w)
    assert_close(C, cost(theta, x, y, weights=w))
    assert_close(found, (w @ g / w.sum(), g, jnp.square(g).sum(1), g @ v), 1e-11)
    parts = zip(cost.pairs(theta, x, y).values(), jax.vmap(net.layout.leaves)(g), strict=True)
    for pair, each in parts:
        rows = each.reshape(N, -1)
        assert_close(pair.squares(), jnp.square(each).sum(0), 1e-11)
        assert_close(pair.dots(pair), rows @ rows.T, 1e-11)
        assert_close(pair.inner(pair), jnp.square(rows).sum(1), 1e-11)
        assert_close(pair.gradient(), each.sum(0), 1e-11)


@cases
def test_forward_is_the_models_own_and_theta_its_params(case: ModelCase, x64):
    apply, params = case.make()
    net, theta, x = case.network()
    own = jax.vmap(apply, (None, 0)) if case.per_example else apply
    assert_close(net(theta, x), own(params, x))
    assert_close(net.layout.unflatten(theta), params, 0)
    assert_close(net.init(jax.random.key(7)), theta, 0)


@cases
def test_norms_and_clipped_gradients_of_a_loss(case: ModelCase, x64):
    apply, params = case.make()
    x = draw(1, jax.ShapeDtypeStruct((N, *case.x.shape), case.x.dtype))

    def loss(params, x):
        return jnp.square(apply(params, x) if case.per_example else apply(params, x[None])).sum()

    g = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, x)
    norms = jnp.sqrt(sum(jnp.square(each).reshape(N, -1).sum(1) for each in jax.tree.leaves(g)))
    assert_close(jbp.per_example_norms(loss, params, x), norms, 1e-11)
    limit = float(jnp.sort(norms)[1])
    factors = jnp.minimum(1, limit / norms)
    expected = jax.tree.map(lambda each: jnp.tensordot(factors, each, 1), g)
    assert_close(jbp.clipped_grad(loss, params, x, limit), expected, 1e-11)
    if case.name == "plain MLP":
        assert_close(jax.jit(lambda p, x: jbp.clipped_grad(loss, p, x, limit))(params, x), expected, 1e-11)


def test_an_example_without_a_gradient_is_not_clipped(x64):
    loss = lambda params, x: x * params["w"].sum()
    grad = jbp.clipped_grad(loss, {"w": jnp.ones(2)}, jnp.array([0.0, 0.5, 3.0]), 1.0)
    assert_close(grad, {"w": jnp.full(2, 0.5 + 2**-0.5)})
    assert_close(jbp.clipped_grad(loss, {"w": jnp.ones(2)}, jnp.zeros(2), 1.0), {"w": jnp.zeros(2)}, 0)


def test_gradients_of_narrow_params_are_narrow():
    params = {"w": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(2)}
    loss = lambda params, x: (x @ params["w"].astype(jnp.float32) + params["b"]).sum()
    grad = jbp.clipped_grad(loss, params, jnp.ones((2, 3)), 1.0)
    assert {name: g.dtype for name, g in grad.items()} == {"w": jnp.bfloat16, "b": jnp.float32}


# -- examples that are mixed ------------------------------------------------------------------------------------------


MIXING = {
    "a mean": (lambda p, x: x @ p - x.mean(0, keepdims=True), "reduce_sum"),
    "a Gram matrix": (lambda p, x: x @ p + x @ (x.T @ x)[:, :1], "dot_general"),
    "a roll": (lambda p, x: x @ p + jnp.roll(x, 1, 0), "slice"),
    "a reversal": (lambda p, x: x @ p + x[::-1], "rev"),
    "a permutation": (lambda p, x: x @ p + x[jnp.argsort(x[:, 0])], "sort"),
    "a running sum": (lambda p, x: jnp.cumsum(x @ p, 0), "cumsum"),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_model_that_mixes_examples_is_found_out(name, x64):
    apply, where = MIXING[name]
    net = jbp.from_model(apply, jnp.ones((2, 2)), input=(2,))
    assert net.layers[0].mixed_in == where
    assert list(net.forms.values()) == [f"Whole: examples mix in {where}"]
    cost = jbp.Cost(net, losses.HalfSquaredError())
    theta, x = net.init(jax.random.key(0)), draw(0, spec(N, 2))
    expected = jax.grad(cost)(theta, x, x)
    assert_close(cost.value_and_grad(theta, x, x)[1], expected)
    assert_close(cost.measure(theta, x, x, jbp.Gradient())[1], expected)
    with pytest.raises(jbp.InputError, match="speaks of single examples, and layer model \\(Model\\) mixes them"):
        cost.measure(theta, x, x, jbp.SquaredNorms())


def test_batch_norm_in_training_mixes_and_in_evaluation_does_not(x64):
    def network(training):
        model = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=not training)])
        made = model.init(jax.random.key(0), jnp.zeros((2, 3)))
        rest = {name: part for name, part in made.items() if name != "params"}
        apply = lambda params, x: model.apply({"params": params, **rest}, x, mutable=["batch_stats"])[0]
        return jbp.from_model(apply, made["params"], input=jax.ShapeDtypeStruct((3,), np.float32))

    assert [network(training).layers[0].mixed_in for training in (True, False)] == ["reduce_sum", None]


# -- the tools --------------------------------------------------------------------------------------------------------


def small(kind: str) -> tuple[Any, Any]:
    """(a network, θ) of 4 → 5 → 2 in float32."""
    if kind == "Flax NNX":
        rngs = nnx.Rngs(0)
        model = nnx.Sequential(nnx.Linear(4, 5, rngs=rngs), nnx.tanh, nnx.Linear(5, 2, rngs=rngs))
        graph, params = nnx.split(model, nnx.Param)
        net = jbp.from_model(lambda params, x: nnx.merge(graph, params)(x), params, input=(4,))
    else:
        params, rest = eqx.partition(eqx.nn.MLP(4, 2, 5, 1, key=jax.random.key(0)), eqx.is_inexact_array)
        net = jbp.from_model(lambda params, x: jax.vmap(eqx.combine(params, rest))(x), params, input=(4,))
    return net, net.init(jax.random.key(0))


@pytest.mark.parametrize("kind", ["Flax NNX", "Equinox"])
def test_the_tools_take_it(kind):
    net, theta = small(kind)
    cost = jbp.Cost(net, losses.HalfSquaredError())
    x, y = draw(0, spec(6, 4), np.float32), draw(1, spec(6, 2), np.float32)
    report = cost.compare(theta, x, y, timing=False)
    assert report.ok, report.verdict
    assert [row.name for row in report.leaves if row.name in net.layout.names] == list(net.layout.names)
    assert "model  Model" in str(jbp.flow(cost, theta, x, y))
    symbol = next(name for name in net.layout.names if name.endswith(("kernel", "weight"))) + "[1,1]"
    found = jbp.explain(cost, theta, x, y, symbol)
    assert found.agrees
    assert_close(found.value, jax.grad(cost)(theta, x, y)[net.layout.index(symbol)], 1e-5)
    for graph in (jbp.draw.network(net, theta), jbp.draw.computation(cost, theta, x[0], y[0])):
        assert any("Model" in node.label for node in graph.nodes)
    run = jbp.fit(cost, theta, (x, y), batch_size=3, epochs=2, key=jax.random.key(0))
    assert float(cost(run.theta, x, y)) < float(cost(theta, x, y))
    assert jax.grad(lambda theta: jbp.as_function(net)(theta, x).sum())(theta).shape == theta.shape


def test_delta_costs_no_more_than_autodiffs():
    """A model's products run once: the reverse pass takes up what forward has linearised."""
    net, theta = small("Flax NNX")
    cost = jbp.Cost(net, losses.HalfSquaredError())
    x, y = draw(0, spec(64, 4), np.float32), draw(1, spec(64, 2), np.float32)
    products = lambda f: jax.jit(f).lower(net.layout.unflatten(theta)).as_text().count("stablehlo.dot_general")
    ours = products(lambda params: cost.value_and_grad_leaves(params, x, y))
    assert ours == products(jax.value_and_grad(lambda params: cost.value_leaves(params, x, y))) == 5


# -- errors -----------------------------------------------------------------------------------------------------------

PARAMS = {"w": np.ones((2, 3), np.float32)}


def LOSS(params, x):
    return (x @ params["w"]).sum()


X = np.ones((4, 2), np.float32)
WRONG = {
    "no function": (
        lambda: jbp.from_model(3, PARAMS, (2,)),
        "from_model: apply must be a function, got 3. As in from_model(model.apply, params, input=(784,)).",
    ),
    "whole numbers": (
        lambda: jbp.from_model(LOSS, {"n": np.arange(2, dtype=np.int32)}, (2,)),
        "from_model: every leaf of params is a float array, got int32[2] at n. Split off what is not trained and close "
        "over it, as by eqx.partition(model, eqx.is_inexact_array), or nnx.split(model, nnx.Param, ...).",
    ),
    "no params": (
        lambda: jbp.from_model(LOSS, {}, (2,)),
        "from_model: expected params, a pytree of float arrays, got nothing, which has none. Give the model's own.",
    ),
    "no batch axis": (
        lambda: jbp.from_model(LOSS, PARAMS, (2,)),
        "from_model: apply must keep the batch axis: for 7919 examples it returned float32[]. "
        "Of a model on one example, say from_model(..., per_example=True).",
    ),
    "no scalar": (
        lambda: jbp.per_example_norms(lambda params, x: x @ params["w"], PARAMS, X),
        "per_example_norms: loss_fn(params, example) must be one float, got float32[3] for one example float32[2]. "
        "Sum over positions and classes, and return nothing besides.",
    ),
    "no positive norm": (
        lambda: jbp.clipped_grad(LOSS, PARAMS, X, 0.0),
        "clipped_grad: max_norm must be a positive number, got 0.0. "
        "To clip nothing, take the gradient itself: jax.grad.",
    ),
    "NaN": (
        lambda: jbp.clipped_grad(LOSS, PARAMS, X, float("nan")),
        "clipped_grad: max_norm must be a positive number, got nan. "
        "To clip nothing, take the gradient itself: jax.grad.",
    ),
    "no number": (
        lambda: jbp.clipped_grad(LOSS, PARAMS, X, None),
        "clipped_grad: max_norm must be a positive number, got None. "
        "To clip nothing, take the gradient itself: jax.grad.",
    ),
    "unequal N": (
        lambda: jbp.clipped_grad(LOSS, PARAMS, (X, X[:3]), 1.0),
        "clipped_grad: batch needs the same number N of examples, at least 1, along the first axis of every leaf, got "
        "(float32[4, 2], float32[3, 2]). What is the same for all examples belongs into loss_fn.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_say_what_to_do(name, as_for_a_user):
    call, text = WRONG[name]
    with pytest.raises(jbp.InputError) as error:
        call()
    assert str(error.value) == text
