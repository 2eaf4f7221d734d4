"""Anybody's model: the pairs that are found in its trace answer every readout as `vmap(grad)` does, in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import as_numpy, assert_close, draw, entry
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
        return jnp.einsum("neo,eok->nk", h, p["w"].swapaxes(1, 2)) @ p["once"]

    return apply, numbers(0, w=(3, 40, 40), once=(40, 2))


def worked_on():
    """Leaves that are multiplied, scaled, joined, cut, masked and turned round before they are used."""

    def apply(p, x):
        x = jnp.tanh(x @ (p["a"] @ p["b"]))
        x = jnp.tanh(x @ (p["scaled"] * p["gain"] / jnp.linalg.norm(p["scaled"], axis=0)))
        x = x + jnp.tanh(x @ jnp.concatenate([p["left"], p["right"].T], 1))
        for i in range(3):
            x = x + jnp.tanh(x @ p["stacked"][i])
        x = x + x @ jnp.where(p["masked"] > 0, p["masked"], 0.0)
        one, two = jnp.split(x, 2)
        return two @ p["flipped"][:6] + one @ p["flipped"][6:] + x @ p["flipped"][::-1]

    shapes = {"a": (12, 2), "b": (2, 12), "scaled": (12, 12), "gain": (12,), "left": (12, 5), "right": (7, 12)}
    return apply, numbers(0, **shapes, stacked=(3, 12, 12), masked=(12, 12), flipped=(12, 12))


def worked_on_in_loops():
    def apply(p, x):
        def block(h, own):
            deep, joined, turned = own

            def step(h, x):
                h = jnp.tanh(x @ (2 * deep) + h @ jnp.concatenate([p["left"], p["right"]], 0))
                return h, h

            h = jax.lax.scan(step, jnp.zeros(12), h)[1]
            return jnp.tanh(h @ joined) @ turned, None

        own = p["deep"], jnp.concatenate([p["first"][None], p["second"][None]]), p["turned"].swapaxes(0, 1)
        return jax.lax.scan(jax.checkpoint(block), x, own)[0]

    shapes = {"deep": (2, 12, 12), "left": (5, 12), "right": (7, 12), "first": (12, 12), "second": (12, 12)}
    return apply, numbers(0, **shapes, turned=(12, 2, 12))


def standardised():
    """A weight-standardised kernel (Qiao et al. 2019), whose outputs look up a scaled table."""

    def apply(p, x):
        centred = p["kernel"] - p["kernel"].mean((0, 1, 2))
        kernel = centred / jnp.sqrt(jnp.square(centred).mean((0, 1, 2)) + 1e-5)
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y.mean((1, 2)) + (p["table"] * 3.0)[jnp.argmax(x[:, :, 0, 0], 1)]

    return apply, numbers(0, kernel=(3, 3, 3, 4), table=(7, 4))


def gains():
    return lambda p, x: p["g"] * x + p["b"], numbers(0, g=(5,), b=(5,))


def lookup():
    return lambda p, x: p["table"][x], numbers(0, table=(600, 8))


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
    ModelCase("experts", experts, spec(3, 40), {"once": "Outer", "w": "Stack of Outer + Outer"}),
    ModelCase(
        "worked on",
        worked_on,
        spec(12),
        {
            "a": "Derived, Outer of what dot_general makes",
            "b": "Derived, Outer of what dot_general makes",
            "flipped": "Outer + Derived, Outer of what rev makes",
            "gain": "Derived, Outer of what div makes",
            "left": "Outer",
            "masked": "Derived, Outer of what select_n makes",
            "right": "Outer",
            "scaled": "Derived, Outer of what div makes",
            "stacked": "Outer",
        },
        per_example=True,
    ),
    ModelCase(
        "worked on in loops",
        worked_on_in_loops,
        spec(6, 12),
        {
            "deep": "Derived, Stack of Outer of what mul makes",
            "first": "Derived, Stack of Outer of what concatenate makes",
            "left": "Outer",
            "right": "Outer",
            "second": "Derived, Stack of Outer of what concatenate makes",
            "turned": "Derived, Stack of Outer of what moves makes",
        },
        per_example=True,
    ),
    ModelCase(
        "standardised kernels",
        standardised,
        spec(7, 6, 3),
        {"kernel": "Derived, Patches of what div makes", "table": "Derived, Gather of what mul makes"},
    ),
    ModelCase("gains", gains, spec(5), {"b": "Sum", "g": "Sum"}),
    ModelCase("lookup", lookup, tokens(3), {"table": "Gather"}),
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
    assert net.forms == case.forms
    cost = jbp.Cost(net, losses.HalfSquaredError())
    y = draw(2, jax.eval_shape(net, theta, x))
    one = lambda theta, x, y: cost(theta, x[None], y[None])
    g = jax.jit(jax.vmap(jax.grad(one), (None, 0, 0)))(theta, x, y)
    v, w = draw(3, theta), draw(4, jnp.ones(N))
    asked = jbp.Gradient(), jbp.PerExampleGradients(), jbp.SquaredNorms(), jbp.Along(v)
    C, found = cost.measure(theta, x, y, *asked, weights=w)
    assert_close(C, cost(theta, x, y, weights=w))
    w, g = as_numpy((w, g))
    assert_close(found, (w @ g / w.sum(), g, np.square(g).sum(1), g @ v), 1e-11)

    @jax.jit
    def answers(theta, x, y):
        pairs = cost.pairs(theta, x, y).values()
        return [(pair.squares(), pair.dots(pair), pair.inner(pair), pair.gradient()) for pair in pairs]

    for answer, each in zip(answers(theta, x, y), parts(net.layout, g), strict=True):
        rows = each.reshape(N, -1)
        assert_close(answer, (np.square(each).sum(0), rows @ rows.T, np.square(rows).sum(1), each.sum(0)), 1e-11)


def parts(layout: jbp.Layout, g: np.ndarray) -> list[np.ndarray]:
    """Gradients [N, P] by leaves, each [N, *shape]."""
    cuts = np.cumsum(layout.sizes)[:-1]
    return [part.reshape(N, *shape) for part, shape in zip(np.split(g, cuts, 1), layout.shapes, strict=True)]


@cases
def test_forward_is_the_models_own_and_theta_its_params(case: ModelCase, x64):
    apply, params = case.make()
    net, theta, x = case.network()
    own = jax.vmap(apply, (None, 0)) if case.per_example else apply
    assert_close(jax.jit(net)(theta, x), jax.jit(own)(params, x))
    assert_close(net.layout.unflatten(theta), params, 0)
    assert_close(net.init(jax.random.key(7)), theta, 0)


@cases
def test_norms_and_clipped_gradients_of_a_loss(case: ModelCase, x64):
    apply, params = case.make()
    x = draw(1, jax.ShapeDtypeStruct((N, *case.x.shape), case.x.dtype))

    def loss(params, x):
        return jnp.square(apply(params, x) if case.per_example else apply(params, x[None])).sum()

    g = as_numpy(jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, x))
    norms = np.sqrt(sum(np.square(each).reshape(N, -1).sum(1) for each in jax.tree.leaves(g)))
    assert_close(jbp.per_example_norms(loss, params, x), norms, 1e-11)
    limit = float(np.sort(norms)[1])
    factors = np.minimum(1, limit / norms)
    expected = jax.tree.map(lambda each: np.tensordot(factors, each, 1), g)
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


def test_a_while_loop_that_asks_all_examples_mixes():
    """It has a forward, and autodiff no reverse."""
    apply = lambda p, x: jax.lax.while_loop(lambda h: h[:, 0].max() < 9, lambda h: h + 1 + jnp.square(h), x @ p)
    assert jbp.from_model(apply, jnp.ones((2, 2)), input=(2,)).layers[0].mixed_in == "reduce_max"


def test_a_loop_over_each_example_does_not_mix():
    apply = lambda p, x: jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ p), x)
    assert jbp.from_model(apply, jnp.ones((2, 2)), input=(2,)).layers[0].mixed_in is None
    loop = lambda p, x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] @ p)), (0, x))[1]
    assert jbp.from_model(loop, jnp.ones((2, 2)), input=(2,)).layers[0].mixed_in is None


def test_batch_norm_in_training_mixes_and_in_evaluation_does_not(x64):
    def network(training):
        model = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=not training)])
        made = model.init(jax.random.key(0), jnp.zeros((2, 3)))
        rest = {name: part for name, part in made.items() if name != "params"}
        apply = lambda params, x: model.apply({"params": params, **rest}, x, mutable=["batch_stats"])[0]
        return jbp.from_model(apply, made["params"], input=jax.ShapeDtypeStruct((3,), np.float32))

    assert [network(training).layers[0].mixed_in for training in (True, False)] == ["reduce_sum", None]


# -- from_function ----------------------------------------------------------------------------------------------------


def products_and_a_window(p, x):
    h = jnp.tanh(x @ p["w"] + p["b"]).reshape(-1, 8, 10)
    h = jax.lax.conv_general_dilated(h, p["k"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))
    return h.reshape(h.shape[0], -1) @ p["v"].T


def test_a_function_inside_a_network_has_its_pairs(x64):
    made = numbers(0, w=(6, 80), b=(80,), k=(3, 10, 40), v=(20, 320))
    function = jbp.from_function(lambda key, x: made, products_and_a_window)
    net = jbp.Network([jbp.Dense(6), function, jbp.Tanh(), jbp.Dense(2)], input=(4,), dtype=np.float64)
    cost, theta = jbp.Cost(net, losses.HalfSquaredError()), net.init(jax.random.key(0))
    x, y = draw(1, spec(N, 4)), draw(2, spec(N, 2))
    forms = {"b": "Sum", "k": "Patches", "v": "Outer", "w": "Outer"}
    assert function.forms(made, spec(6)) == forms
    kinds = {name: type(pair).__name__ for name, pair in cost.pairs(theta, x, y).items()}
    assert {name: kinds[f"1.{name}"] for name in forms} == forms
    one = lambda theta, x, y: cost(theta, x[None], y[None])
    g = jax.jit(jax.vmap(jax.grad(one), (None, 0, 0)))(theta, x, y)
    asked = jbp.Gradient(), jbp.PerExampleGradients(), jbp.SquaredNorms()
    assert_close(cost.measure(theta, x, y, *asked)[1], (g.mean(0), g, jnp.square(g).sum(1)), 1e-11)


def test_a_function_runs_once():
    """XLA merges the run in reverse with the first: the products are those of jax.grad."""
    function = jbp.from_function(lambda key, x: {"w": jnp.ones((6, 70))}, lambda p, x: jnp.tanh(x @ p["w"]))
    cost = jbp.Cost(jbp.Network([function, jbp.Dense(2)], input=(6,)), losses.HalfSquaredError())
    theta, x, y = cost.network.init(jax.random.key(0)), jnp.ones((4, 6)), jnp.ones((4, 2))
    count = lambda f: jax.jit(f).lower(theta).compile().as_text().count(" tanh(")
    assert count(lambda theta: cost.value_and_grad(theta, x, y)) == count(lambda theta: cost(theta, x, y)) == 1


def test_a_function_that_mixes_and_does_not_say_so_has_its_true_gradient(x64):
    function = jbp.from_function(lambda key, x: {"g": jnp.ones(x.shape)}, lambda p, x: p["g"][None] * (x - x.mean(0)))
    cost = jbp.Cost(jbp.Network([function], input=(3,), dtype=np.float64), losses.HalfSquaredError())
    theta, x, y = cost.network.init(jax.random.key(0)), draw(1, spec(N, 3)), draw(2, spec(N, 3))
    assert function.forms({"g": theta}, spec(3)) == {"g": "Whole: examples mix in reduce_sum"}
    assert_close(cost.value_and_grad(theta, x, y)[1], jax.grad(cost)(theta, x, y))


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


def test_explain_of_leaves_that_are_moved_convolved_and_stacked(x64):
    def apply(p, x):
        h = jax.lax.conv_general_dilated(x, p["k"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))
        for i in range(2):
            h = jnp.tanh(h @ p["w"][i])
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, p["blocks"])[0].sum(1)

    shapes = {"k": (3, 2, 4), "w": (2, 4, 4), "blocks": (3, 4, 4)}
    params = {name: draw(0, spec(*shape)) for name, shape in shapes.items()}
    net = jbp.from_model(apply, params, input=(5, 2))
    assert net.forms == {"blocks": "Stack of Outer", "k": "Patches", "w": "Outer"}
    cost, theta = jbp.Cost(net, losses.HalfSquaredError()), net.init(jax.random.key(0))
    x, y = draw(0, spec(3, 5, 2)), draw(1, spec(3, 4))
    for symbol in ("k[1,0,2]", "w[1,2,3]", "blocks[2,1,3]"):
        found = jbp.explain(cost, theta, x, y, symbol)
        assert found.agrees
        assert_close(found.value, jax.grad(cost)(theta, x, y)[net.layout.index(symbol)])


def test_factors_of_a_convolution(x64):
    """A and G of the product of patches: for one position and one example they are the whole second moment."""
    params = numbers(0, k=(3, 2, 4))
    apply = lambda p, x: jax.lax.conv_general_dilated(x, p["k"], (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC"))
    cost = jbp.Cost(jbp.from_model(apply, params, input=spec(3, 2)), losses.HalfSquaredError())
    x, y = draw(0, spec(1, 3, 2)), draw(1, spec(1, 1, 4))
    pair = cost.pairs(cost.layout.flatten(params), x, y)["k"]
    A, G = pair.factors()
    g = pair.per_example().ravel()
    assert_close(jnp.kron(A, G), jnp.outer(g, g), 1e-11)


def test_in_bfloat16_the_pairs_are_as_near_as_autodiff():
    """δ is that of jax.vjp in bfloat16; the gradients differ by their rounding."""
    params = {"w": draw(0, spec(8, 80), np.float32), "k": draw(1, spec(80, 3), np.float32)}
    apply = lambda p, x: (jnp.tanh(x @ p["w"]) @ (2 * p["k"])).astype(jnp.float32)
    narrow = lambda p, x: apply(jax.tree.map(lambda a: a.astype(jnp.bfloat16), p), x.astype(jnp.bfloat16))
    net = jbp.from_model(narrow, params, input=(8,))
    cost, theta = jbp.Cost(net, losses.HalfSquaredError()), net.init(jax.random.key(0))
    x, y = draw(2, spec(N, 8), np.float32), draw(3, spec(N, 3), np.float32)
    g = jax.vmap(jax.grad(lambda theta, x, y: cost(theta, x[None], y[None])), (None, 0, 0))(theta, x, y)
    found = cost.measure(theta, x, y, jbp.PerExampleGradients(), jbp.SquaredNorms())[1]
    assert found[0].dtype == found[1].dtype == jnp.float32
    assert_close(found, (g, jnp.square(g).sum(1)), 4 * float(jnp.finfo(jnp.bfloat16).eps))


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
    assert found.value == entry(jax.grad(cost)(theta, x, y), net.layout.index(symbol))
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
