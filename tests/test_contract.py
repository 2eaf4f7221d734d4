"""The contract carries what is to be built on it: loops, recomputation, ties, losses with params, readers by leaf."""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import own_layers as own
import pytest
from cases import N, assert_close, batch, draw
from own_layers import Checkpoint, Embedding, InOneSweep, LayerNorm, LinearCrossEntropy, Loop, Reversible, block
from test_laws import flops_of_products

import jbp
from jbp.uses import Nothing

HALF = jbp.losses.HalfSquaredError()


def spec(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float64)


WORDS = jax.ShapeDtypeStruct((3,), jnp.int32)
HEADS = jbp.Sequential(
    [jbp.Fork([jbp.Sequential([jbp.Dense(4, bias=False), own.Heads(2)])] * 3), own.Attention(), own.Heads(None)]
)

LAYERS: dict[str, tuple[Any, Any]] = {
    "the page's loop": (Loop(block(3), 3), spec(2, 3)),
    "a loop in a loop": (Loop(Loop(jbp.Residual(jbp.Dense(3)), 2), 2), spec(3)),
    "layer norm": (LayerNorm(), spec(2, 4)),
    "attention": (jbp.Residual(HEADS), spec(3, 4)),
    "checkpoint in a loop": (Loop(Checkpoint(block(3)), 2), spec(3)),
    "reversible": (Reversible(block(2), jbp.Sequential([jbp.Dense(2), jbp.Tanh()]), 3), (spec(2), spec(2))),
    "LSTM": (own.LSTM(3), spec(4, 2)),
    "a tie through a loop": (
        own.Tied(jbp.Sequential([Embedding(5, 3), Loop(block(3), 2), jbp.Dense(5)])), WORDS
    ),
    "fork and parallel": (
        jbp.Sequential([jbp.Fork([jbp.Dense(3), jbp.Tanh()]), jbp.Parallel([jbp.Tanh(), jbp.Dense(2)])]), spec(2)
    ),
    "residual of a part": (
        jbp.Sequential([jbp.Fork([jbp.Identity(), jbp.Dense(2)]),
                        jbp.Residual(jbp.Parallel([jbp.Dense(3), jbp.Tanh()]), of=lambda x: x)]), spec(3)
    ),
    "residual of one part": (
        jbp.Sequential([jbp.Fork([jbp.Dense(2), jbp.Dense(2)]),
                        jbp.Residual(jbp.from_function(None, lambda p, x: x[0] * x[1]), of=lambda x: x[0])]), spec(3)
    ),
    "frozen": (jbp.Sequential([jbp.Frozen(jbp.Dense(3)), jbp.Tanh(), Loop(jbp.Frozen(block(3)), 2)]), spec(2)),
}  # fmt: skip


def drawn(layer: Any, x: Any, dtype: Any = jnp.float64) -> tuple[Any, Any, Any]:
    """(params, x, delta)."""
    x = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, dtype if s.dtype == np.float64 else s.dtype), x)
    params = jax.eval_shape(lambda key: layer.init(key, x), jax.random.key(0))
    output, _ = jax.eval_shape(layer.forward, params, batch(x, N), jbp.Context())
    return tuple(draw(i, part) for i, part in enumerate((params, batch(x, N), output)))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_the_contract(name: str, x64: None):
    """Its way back is autodiff's; its single examples are autodiff's, too; feedback by itself changes no bit."""
    layer, x = LAYERS[name]
    params, x, delta = drawn(layer, x)
    layout = jbp.Layout.of(params)
    per_example = jbp.readers(params, jbp.Reader(lambda pair, _: pair.per_example(), lambda r: jnp.moveaxis(r, 0, 1)))
    norms = jbp.readers(params, jbp.Reader(lambda pair, _: pair.squared_norms(), lambda r: r.sum(0)))
    forward = lambda params, x: layer.forward(params, x, jbp.Context())[0]

    @jax.jit
    def ask(params, x, delta):
        _, back = jbp.run(layer, params, x)
        _, vjp = jax.vjp(forward, params, x)
        one = lambda x, d: jax.vjp(lambda p: forward(p, jax.tree.map(lambda a: a[None], x)), params)[1](
            jax.tree.map(lambda a: a[None], d)
        )[0]
        flat = lambda tree: jnp.concatenate([g.reshape(N, -1) for g in jax.tree.leaves(tree)], 1)
        each = flat(jax.vmap(one)(x, delta))
        gradient, delta_x = vjp(delta)
        delta_x = jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, delta_x)
        read = back(delta, per_example)[1]
        return {
            "by hand": back(delta),
            "with feedback": back(delta, feedback=params),
            "by autodiff": (delta_x, gradient),
            "examples": (flat(read), each),
            "norms": (sum(jax.tree.leaves(back(delta, norms)[1])), jnp.square(each).sum(1)),
        }

    result = ask(params, x, delta)
    assert_close(result["by hand"], result["by autodiff"], 1e-11)
    jax.tree.map(np.testing.assert_array_equal, result["by hand"], result["with feedback"])
    if layout.size:
        assert_close(*result["examples"], 1e-11)
        assert_close(*result["norms"], 1e-11)


def test_the_page_shows_the_loop_that_is_tested():
    page = textwrap.dedent(
        inspect.getdoc(jbp.Layer).split("stacked along a first axis:\n\n")[1].split("What a layer may")[0]
    )
    namespace = {"dataclass": dataclass, "jax": jax, "jnp": jnp, "jbp": jbp}
    exec(page, namespace)
    params, x, delta = drawn(Loop(jbp.Dense(3), 2), spec(3), jnp.float32)
    results = [jbp.run(loop(jbp.Dense(3), 2), params, x)[1](delta)
               for loop in (Loop, namespace["Loop"])]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, *results)


def looped() -> tuple[jbp.Cost, Any, Any, Any]:
    """(cost, θ, x, y) of a network with a loop."""
    net = jbp.Network([jbp.Dense(3), Loop(block(3), 3), jbp.Dense(2)], input=(2,))
    cost = jbp.Cost(net, HALF)
    theta, x, y = (
        draw(i, jax.ShapeDtypeStruct(s, net.dtype)) for i, s in enumerate([(net.layout.size,), (N, 2), (N, 2)])
    )
    return cost, theta, x, y


def test_a_loop_is_known_to_every_part_of_the_house(x64: None):
    cost, theta, x, y = looped()
    assert_close(cost.grad(theta, x, y), jax.grad(cost)(theta, x, y))
    f = jbp.as_function(cost.network)
    assert_close(jax.grad(lambda t: HALF.value(f(t, x), y).mean())(theta), jax.grad(cost)(theta, x, y))
    assert cost.compare(theta, x, y, timing=False).ok
    assert len(jbp.flow(cost, theta, x, y).rows) == 2 + 3 * 4
    assert jbp.explain(cost, theta, x, y, cost.layout.symbol(20)).ok


def test_recomputation_under_feedback_uses_the_true_params(x64: None):
    """A checkpointed network under feedback gives the bits of one that keeps everything."""
    networks = [
        jbp.Network([jbp.Dense(3), wrap(block(3)), jbp.Dense(2)], input=(2,)) for wrap in (lambda l: l, Checkpoint)
    ]
    plain, checkpointed = (jbp.Cost(net, HALF) for net in networks)
    theta, feedback, x, y = (draw(i, spec(*s)) for i, s in enumerate([(plain.layout.size,)] * 2 + [(N, 2)] * 2))
    assert_close(checkpointed.grad(theta, x, y, feedback=feedback), plain.grad(theta, x, y, feedback=feedback))
    wrong = plain.grad(theta, x, y) - plain.grad(theta, x, y, feedback=feedback)
    assert jnp.abs(wrong).max() > 0.1


# -- losses with parameters -------------------------------------------------------------------------------------------

APART: dict[str, tuple[Any, tuple[int, ...]]] = {
    "dense": (jbp.Sequential([jbp.Dense(64), jbp.Tanh(), jbp.Dense(32)]), (48,)),
    "a loop over attention": (jbp.Repeat(jbp.Residual(jbp.Attention(2, causal=True)), 3), (5, 16)),
    "tied": (jbp.Tied(jbp.Sequential([jbp.Dense(64), jbp.Tanh(), jbp.Dense(32)]), {"2.w": "0.w.T"}), (32,)),
}


@pytest.mark.parametrize("name", APART)
def test_deltas_and_gradients_apart_do_nothing_twice(name: str):
    """`pairs`, the first pass, and `read`, the second, do the products of one pass, those of a tied leaf once too."""
    layer, shape = APART[name]
    cost = jbp.Cost(jbp.Network([layer], shape), HALF)
    theta, x, y = (
        jax.ShapeDtypeStruct(s, jnp.float32)
        for s in ((cost.layout.size,), (64, *shape), (64, *cost.network.output.shape))
    )
    products = lambda f, *args: flops_of_products(jax.make_jaxpr(f)(*args))
    first = products(cost.pairs, theta, x, y)
    second = products(lambda pairs: cost.read(pairs, jbp.Gradient()), jax.eval_shape(cost.pairs, theta, x, y))
    whole = products(cost.value_and_grad, theta, x, y)
    assert whole <= first + second <= 1.03 * whole  # a sum over examples with weights counts as a product
    assert whole / 4 < second < whole / 2


LOSSES = {"two passes": LinearCrossEntropy(5), "one sweep": InOneSweep(5)}
TIES: dict[str, Any] = {"its own": {}, "tied": {"loss.w": "0.table.T"}}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("tie", TIES)
def test_a_loss_with_params(loss: str, tie: str, x64: None):
    """Its leaves stand behind the network's in θ; a tie is one leaf with the pairs of both uses."""
    net = jbp.Network([Embedding(5, 3), Loop(block(3), 2)], input=WORDS)
    cost = jbp.Cost(net, LOSSES[loss], tied=TIES[tie])
    names = [*net.layout.names, *([] if TIES[tie] else ["loss.w"])]
    assert list(cost.layout.names) == names
    theta = draw(0, spec(cost.layout.size))
    x, y = draw(1, batch(WORDS, N)), draw(2, batch(WORDS, N))
    weights = jnp.arange(1.0, N + 1)
    assert_close(
        cost.value_and_grad(theta, x, y, weights=weights),
        jax.jit(jax.value_and_grad(cost))(theta, x, y, weights=weights),
    )
    each = jax.jit(jax.vmap(lambda x, y: jax.grad(cost)(theta, x[None], y[None])))(x, y)
    _, (got, norms, along, gradient) = cost.measure(
        theta, x, y, jbp.PerExampleGradients(), jbp.SquaredNorms(), jbp.Along(theta), jbp.Gradient(), weights=weights
    )
    assert_close(got, each, 1e-11)
    assert_close(norms, jnp.square(each).sum(1), 1e-11)
    assert_close(along, each @ theta, 1e-11)
    assert_close(gradient, cost.grad(theta, x, y, weights=weights))
    assert_close(cost.read(cost.pairs(theta, x, y), jbp.SquaredNorms()), norms)
    assert cost.init(jax.random.key(0)).shape == theta.shape
    first, second = cost.split(theta)
    assert (first.size, second.size) == (net.layout.size, cost.layout.size - net.layout.size)
    assert cost.compare(theta, x, y, timing=False).ok


def test_a_tie_to_a_frozen_leaf_is_frozen_in_both_uses(x64: None):
    net = jbp.Network([jbp.Frozen(Embedding(5, 3)), jbp.Tanh(), jbp.Dense(3)], input=WORDS)
    cost = jbp.Cost(net, LinearCrossEntropy(5), tied={"loss.w": "0.fixed.table.T"})
    theta, x, y = draw(0, spec(cost.layout.size)), draw(1, batch(WORDS, N)), draw(2, batch(WORDS, N))
    assert_close(cost.grad(theta, x, y), jax.grad(cost)(theta, x, y))
    assert not np.any(cost.grad(theta, x, y)[:15])
    each = jax.vmap(lambda x, y: jax.grad(cost)(theta, x[None], y[None]))(x, y)
    assert_close(cost.measure(theta, x, y, jbp.PerExampleGradients())[1], each, 1e-11)


def test_a_tie_that_fits_nothing_is_named():
    net = jbp.Network([Embedding(5, 3)], input=WORDS)
    for tied, says in (({"loss.w": "0.w"}, "0.table"), ({"w": "0.table"}, "loss.w"), ({"loss.w": "0.table"}, "[3, 5]")):
        with pytest.raises(jbp.InputError, match="tied") as error:
            jbp.Cost(net, LinearCrossEntropy(5), tied=tied)
        assert says in str(error.value)


def test_a_wrong_loss_with_params_is_named():
    @dataclass(frozen=True)
    class Wrong(LinearCrossEntropy):
        def backward(self, params, feedback, saved, delta, read):
            (d, _), readings = super().backward(params, feedback, saved, delta, read)
            return (2 * d, None), readings

    net = jbp.Network([jbp.Dense(3)], input=(2, 4))
    cost = jbp.Cost(net, Wrong(5))
    theta = draw(0, jax.ShapeDtypeStruct((cost.layout.size,), jnp.float32))
    x, y = draw(1, batch(net.input, N)), draw(2, jax.ShapeDtypeStruct((N, 2), jnp.int32))
    report = cost.compare(theta, x, y, timing=False)
    assert not report.ok
    assert "the base case" in str(report.enters)


# -- readers, one for each leaf ---------------------------------------------------------------------------------------


def test_an_optimisers_step_at_the_leaf_itself(x64: None):
    """θ − 0.1 ∇C as the reading of each leaf, of looped blocks too: the whole gradient never exists."""
    cost, theta, x, y = looped()

    @jax.jit
    def step(theta):
        params = cost.layout.unflatten(theta)
        read = jbp.readers(
            params, lambda leaf: jbp.Reader(lambda pair, w: w - 0.1 * pair.gradient(), lambda r: r, leaf)
        )
        output, back = jbp.run(cost.network.layer, params, x)
        return cost.layout.flatten(back(HALF.delta(output, y) / N, read)[1])

    assert_close(step(theta), theta - 0.1 * jax.grad(cost)(theta, x, y))


def test_one_forward_and_several_seeds(x64: None):
    """Rows of the Jacobian by `vmap` of `back`, which crosses jit."""
    cost, theta, x, _ = looped()
    params = cost.layout.unflatten(theta)
    output, back = jax.jit(jbp.run, static_argnums=0)(cost.network.layer, params, x)
    seeds = jnp.eye(output.size).reshape(-1, *output.shape)
    rows = jax.jit(lambda back: jax.vmap(lambda seed: cost.layout.flatten(back(seed)[1]))(seeds))(back)
    assert_close(rows, jax.jacrev(lambda t: cost.network(t, x).ravel())(theta))


def test_equal_readers_are_compiled_once():
    params, x, delta = drawn(jbp.Dense(2), spec(3), jnp.float32)
    traced = []

    @jax.jit
    def ask(back, delta, read):
        traced.append(1)
        return back(delta, read)

    for scale in (1, 2):
        ask(jbp.run(jbp.Dense(2), params, x)[1], scale * delta, jbp.readers(params, jbp.read_gradient))
    assert len(traced) == 1


@pytest.mark.parametrize(("call", "says"), [
    (lambda back, d: back(d[:, :1]), "back: expected delta like the output, float32[8, 2], got float32[8, 1]"),
    (lambda back, d: back(d, {"w": 1}), "read: expected a Reader for each leaf"),
    (lambda back, d: back(d, jax.tree.map(lambda _: 5, back.args[1])), "read: expected a Reader at leaf w, got 5"),
    (lambda back, d: back(d, feedback=(1, 2)), "feedback: expected leaves like the params"),
])  # fmt: skip
def test_a_wrong_way_back_is_told_what_to_do(call: Callable, says: str):
    params, x, delta = drawn(jbp.Dense(2), spec(3), jnp.float32)
    with pytest.raises(jbp.InputError) as error:
        call(jbp.run(jbp.Dense(2), params, x)[1], delta)
    assert says in str(error.value)


@dataclass(frozen=True)
class Unstacked(Loop):
    """A loop that forgets to hand its readings to `stacked`."""

    def backward(self, params, feedback, saved, delta, read):
        def turn(delta, block):
            return jbp.step_back(self.layer, *block[:3], delta, block[3])

        delta, readings = jax.lax.scan(
            turn, delta, (params["layer"], feedback["layer"], saved, read["layer"]), reverse=True
        )
        return delta, {"layer": readings}


@dataclass(frozen=True)
class Raw(jbp.Dense):
    """A gradient in the place of a reading."""

    def backward(self, params, feedback, saved, delta, read):
        delta_x, readings = jbp.Dense.backward(self, params, feedback, saved, delta, read)
        return delta_x, readings._replace(b=delta.sum(0))


@pytest.mark.parametrize("layer", [Unstacked(jbp.Dense(3), 2), Raw(3)], ids=["unstacked", "raw"])
@pytest.mark.parametrize("readout", [jbp.SquaredNorms(), jbp.PerExampleGradients()], ids=repr)
def test_a_reading_of_the_wrong_shape_is_named(layer: Any, readout: Any):
    cost = jbp.Cost(jbp.Network([layer], input=(3,)), HALF)
    x = jnp.ones((4, 3))
    with pytest.raises(jbp.InputError, match=r"expected .*'s reading"):
        cost.measure(jnp.ones(cost.layout.size), x, x, readout)


def test_a_table_is_read_as_jax_indexes_it(x64: None):
    """From the end where an index is negative; outside, no row."""
    index, delta = jnp.array([[4, -1, 0], [4, 5, 9]]), draw(0, spec(2, 3, 2))
    pair = jbp.Gather(index, delta).of((5, 2))
    other = jbp.Outer(draw(1, spec(2, 2, 5)), draw(2, spec(2, 2, 2)))
    each = jax.vmap(
        lambda i, d: jax.vjp(lambda table: table.at[i].get(mode="fill", fill_value=0), jnp.zeros((5, 2)))[1](d)[0]
    )(index, delta)
    assert_close(pair.per_example(), each)
    assert_close(pair.squared_norms(), jnp.square(each).sum((1, 2)))
    assert_close(pair.inner(other), (each * other.per_example()).sum((1, 2)))
    both = jbp.Several((pair, other)).of((5, 2))
    assert_close(both.squared_norms(), jnp.square(both.per_example()).sum((1, 2)))


def test_a_tie_into_a_loop_is_refused():
    @dataclass(frozen=True)
    class Scored(LinearCrossEntropy):
        def init(self, key, x):
            return {"w": jnp.zeros((5, 4), x[0].dtype)}

    net = jbp.Network([jbp.Dense(5), Loop(LayerNorm(), 4)], input=(2, 3))
    cost = jbp.Cost(net, Scored(4), tied={"loss.w": "1.layer.g.T"})
    x, y = jnp.ones((2, 2, 3)), jnp.zeros((2, 2), jnp.int32)
    with pytest.raises(jbp.InputError, match="tied: a loop uses the leaf"):
        cost.grad(jnp.ones(cost.layout.size), x, y)


# -- what a layer says of itself ---------------------------------------------------------------------------------------


def mixing(**settings: Any) -> tuple[jbp.Cost, Any, Any, Any]:
    net = jbp.Network([jbp.Dense(3), own.BatchNorm(), jbp.Dense(2)], input=(4,))
    theta, x, y = (
        draw(i, jax.ShapeDtypeStruct(s, net.dtype)) for i, s in enumerate([(net.layout.size,), (N, 4), (N, 2)])
    )
    return jbp.Cost(net, HALF, **settings), theta, x, y


def test_a_network_that_mixes_examples_has_a_gradient_and_no_single_ones(x64: None):
    cost, theta, x, y = mixing()
    weights = jnp.arange(1.0, N + 1)
    due = jax.grad(cost)(theta, x, y, weights=weights)
    assert_close(cost.grad(theta, x, y, weights=weights), due)
    assert_close(cost.measure(theta, x, y, jbp.Gradient(), weights=weights)[1], due)
    for call in (lambda: cost.measure(theta, x, y, jbp.SquaredNorms()), lambda: cost.pairs(theta, x, y)):
        with pytest.raises(jbp.InputError, match=r"layer 1 \(BatchNorm\) mixes them"):
            call()
    assert cost.compare(theta, x, y, timing=False).ok


def test_what_mixes_is_found_wherever_it_stands():
    @dataclass(frozen=True)
    class Holder:
        parts: Any

        def init(self, key, x): ...
        def forward(self, params, x, context): ...
        def backward(self, params, feedback, saved, delta, read): ...

    class Plain:  # no dataclass
        def __init__(self, layer):
            self.layer = layer

        init, forward, backward = Holder.init, Holder.forward, Holder.backward

    norm = own.BatchNorm()
    assert jbp.layer.says(Plain(norm), "mixes_examples")
    for parts in (norm, (norm,), [norm], {"a": norm}, ((jbp.Tanh(), norm),), jbp.Residual(norm)):
        assert jbp.layer.says(Holder(parts), "mixes_examples")
    assert jbp.layer.says(Holder((jbp.Tanh(),)), "mixes_examples") is None


def test_own_feedback_only_is_refused_at_the_border():
    layer = jbp.Residual(jbp.from_function(lambda key, x: {"a": jnp.ones(())}, lambda p, x: p["a"] * x))
    params, x = layer.init(jax.random.key(0), jax.ShapeDtypeStruct((2,), jnp.float32)), jnp.ones((3, 2))
    output, back = jbp.run(layer, params, x)
    with pytest.raises(jbp.InputError, match=r"layer layer \(Function\)"):
        back(output, feedback=params)


def test_values_that_reach_a_layer_are_checked_by_it():
    """Also in a loop, and with the layer's path."""
    net = jbp.Network([Embedding(4, 2), jbp.Dense(2)], input=WORDS)
    cost = jbp.Cost(net, HALF)
    theta, y = jnp.ones(cost.layout.size), jnp.ones((2, 3, 2))
    cost.check(theta, jnp.array([[0, 1, 2], [3, 0, 1]]), y)
    with pytest.raises(jbp.InputError, match="layer 0: Embedding: expected x in 0 … 3, got 0 … 4"):
        cost.check(theta, jnp.array([[0, 1, 2], [4, 0, 1]]), y)
    inside = jbp.Network([Loop(jbp.Residual(Positive()), 2)], input=(2,))
    with pytest.raises(jbp.InputError, match=r"layer 0\.layer\.layer: negative"):
        jbp.Cost(inside, HALF).check(jnp.zeros(0), -jnp.ones((3, 2)), jnp.ones((3, 2)))


@dataclass(frozen=True)
class Positive(jbp.Identity):
    def check_values(self, x):
        if (x < 0).any():
            raise jbp.InputError("negative")


# -- frozen leaves -----------------------------------------------------------------------------------------------------


def test_frozen_leaves_have_no_gradient_and_cost_none(x64: None):
    net = jbp.Network([jbp.Frozen(jbp.Dense(3)), jbp.Tanh(), jbp.Dense(2)], input=(4,))
    cost = jbp.Cost(net, HALF)
    assert dict(zip(net.layout.names, net.layout.trainable, strict=True)) == {
        "0.fixed.w": False, "0.fixed.b": False, "2.w": True, "2.b": True,
    }  # fmt: skip
    theta, x, y = (draw(i, spec(*s)) for i, s in enumerate([(net.layout.size,), (N, 4), (N, 2)]))
    assert_close(cost.grad(theta, x, y), jax.grad(cost)(theta, x, y))
    assert not np.any(cost.grad(theta, x, y)[:15])
    leaves = cost.value_and_grad_leaves(net.layout.unflatten(theta), x, y)[1]
    assert leaves[0].fixed == (None, None)
    _, (each, norms) = cost.measure(theta, x, y, jbp.PerExampleGradients(), jbp.SquaredNorms())
    assert not np.any(each[:, :15])
    assert_close(norms, jnp.square(each).sum(1))
    assert cost.compare(theta, x, y, timing=False).ok


def test_nothing_is_zero_in_every_primitive():
    pair = Nothing(3, (2, 4))
    zeros = {"per_example": (3, 2, 4), "gradient": (2, 4), "squared_norms": (3,), "squares": (2, 4)}
    assert {name: getattr(pair, name)().shape for name in zeros} == zeros
    assert pair.weighted_gradient(jnp.ones(3)).shape == (2, 4)
    assert pair.along(jnp.ones((2, 4))).shape == pair.inner(pair).shape == (3,)
    assert pair.dots(Nothing(5, (2, 4))).shape == (3, 5)


def test_a_use_without_a_derivative_does_not_count_as_one():
    kernel = jbp.Outer(jnp.ones((3, 2)), jnp.ones((3, 4)))
    assert isinstance(jbp.Several((Nothing(3, (2, 4)), kernel)).of((2, 4)), jbp.Outer)
    assert isinstance(jbp.Several((Nothing(3, (2, 4)), Nothing(3, (2, 4)))).of((2, 4)), Nothing)


# -- reductions over positions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["sum", "mean"])
def test_positions_that_are_ignored_do_not_count(positions: str, x64: None):
    loss = jbp.losses.SoftmaxCrossEntropy(ignore=-1, positions=positions)
    net = jbp.Network([jbp.Dense(4)], input=(3, 2))
    theta, x = draw(0, spec(net.layout.size)), draw(1, spec(N, 3, 2))
    y = draw(2, jax.ShapeDtypeStruct((N, 3), jnp.int32)) - 1
    tokens = -jnp.where(
        y == -1, 0, jnp.take_along_axis(jax.nn.log_softmax(net(theta, x)), jnp.maximum(y, 0)[..., None], -1)[..., 0]
    )
    counted = (y != -1).astype(tokens.dtype).sum(1)
    if positions == "mean":
        assert_close(loss.value(net(theta, x), y), tokens.sum(1) / jnp.maximum(counted, 1))
        with pytest.raises(jbp.InputError, match="positions='sum'"):
            jbp.Cost(net, loss, "positions")
        cost = jbp.Cost(net, loss)
    else:
        cost = jbp.Cost(net, loss, "positions")
        assert_close(cost(theta, x, y), tokens.sum() / counted.sum())
    assert_close(cost.grad(theta, x, y), jax.grad(cost)(theta, x, y))
    assert_close(cost.measure(theta, x, y, jbp.Gradient())[1], jax.grad(cost)(theta, x, y))


@pytest.mark.parametrize(
    "loss", [jbp.losses.SoftmaxCrossEntropy(ignore=-1, positions="sum"), jbp.losses.HalfSquaredError()]
)
def test_weights_weigh_the_positions_of_their_examples(loss: Any, x64: None):
    """Σ w_n C_n / Σ w_n T_n; a loss that counts nothing itself has all positions."""
    net = jbp.Network([jbp.Dense(4)], input=(3, 5, 2))
    theta, x, w = draw(0, spec(net.layout.size)), draw(1, spec(N, 3, 5, 2)), draw(2, spec(N)) ** 2
    y, counted = draw(3, spec(N, 3, 5, 4)), np.full(N, 15.0)
    if isinstance(loss, jbp.losses.SoftmaxCrossEntropy):
        y = draw(3, jax.ShapeDtypeStruct((N, 3, 5), jnp.int32)) - 1
        counted = np.sum(y != -1, axis=(1, 2)).astype(np.float64)
    cost = jbp.Cost(net, loss, "positions")
    expected = lambda theta: (w * loss.value(net(theta, x), y)).sum() / (w * counted).sum()
    assert_close(cost(theta, x, y, weights=w), expected(theta))
    assert_close(cost.value_and_grad(theta, x, y, weights=w)[1], jax.grad(expected)(theta))
    with pytest.raises(jbp.InputError, match="how many positions count"):
        cost.read(cost.pairs(theta, x, y), jbp.Gradient())


# -- readouts of anybody's model ---------------------------------------------------------------------------------------

logs = pytest.mark.skipif(not hasattr(jax.custom_vjp, "defvjp_with_logs"), reason="this JAX has no defvjp_with_logs")


@logs
def test_logs_hand_readouts_out_of_a_model(x64: None):
    layer = block(3)
    f = jbp.as_function(layer, logs={"norms": jbp.SquaredNorms(), "gradient": jbp.Gradient()})
    params, x, _ = drawn(Loop(layer, 2), spec(3))
    first = jax.tree.map(lambda a: a[0], params["layer"])
    _, vjp = jax.vjp(lambda p: (f(p, x, log="block3") ** 2).mean(), first)
    (gradient,), found = vjp.with_logs(jnp.ones(()))
    plain = jax.grad(lambda p: (f(p, x) ** 2).mean())
    assert_close(gradient, plain(first))
    assert set(found) == {"block3.norms", "block3.gradient"}
    assert_close(found["block3.gradient"], jbp.Layout.of(first).flatten(gradient))
    each = jax.vmap(
        lambda x: jbp.Layout.of(first).flatten(jax.grad(lambda p: (f(p, x[None]) ** 2).sum() / x.size / N)(first))
    )(x)
    assert_close(found["block3.norms"], jnp.square(each).sum(1), 1e-11)

    def model(blocks):
        return (jax.lax.scan(lambda x, p: (f(p, x, log="block"), None), x, blocks)[0] ** 2).mean()

    _, vjp = jax.vjp(model, params["layer"])
    assert vjp.with_logs(jnp.ones(()))[1]["block.norms"].shape == (2, N)
    _, vjp = jax.vjp(lambda p: f(p, x).sum(), first)
    assert not vjp.with_logs(jnp.ones(()))[1]


@logs
def test_wrong_logs_are_told_what_to_do():
    for layer, logs, says in (
        (jbp.Dense(2), {"n": 5}, "is no readout"),
        (own.BatchNorm(), {"n": jbp.SquaredNorms()}, "mixes them"),
    ):
        with pytest.raises(jbp.InputError, match=says):
            jbp.as_function(layer, logs=logs)
    f = jbp.as_function(jbp.Dense(2))
    with pytest.raises(jbp.InputError, match="has no logs"):
        f((jnp.ones((2, 2)), jnp.ones(2)), jnp.ones((3, 2)), log="a")


# -- each reader is called once ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gain:
    """y = w·x; `reads(read, feedback, x, delta)` is the reading of w `[I]`."""

    reads: Callable

    def init(self, key, x):
        return {"w": jnp.ones(x.shape[-1:], x.dtype)}

    def forward(self, params, x, context):
        return x * params["w"][(None,) * (x.ndim - 1)], x

    def backward(self, params, feedback, saved, delta, read):
        return delta * feedback["w"][(None,) * (delta.ndim - 1)], {"w": self.reads(read["w"], saved, delta)}


def _sums(x: jax.Array, delta: jax.Array) -> jbp.Sum:
    return jbp.Sum(x * delta)


def _in_chunks(read: Any, x: jax.Array, delta: jax.Array) -> Any:
    """Position by position, where such readings add up."""
    if not read.adds:
        return read(_sums(x, delta))
    parts = [read(_sums(x[:, t : t + 1], delta[:, t : t + 1])) for t in range(x.shape[1])]
    return jax.tree.map(lambda *readings: sum(readings), *parts)


def _in_a_loop(read: Any, x: jax.Array, delta: jax.Array) -> Any:
    """In a `lax.scan` of one turn, whose body is traced twice: its carry is of a weak type at first."""
    turn = lambda carry, read: (carry + x.sum(), read(_sums(x, delta)))
    own = jax.tree.map(lambda a: a[None], read)
    return jax.tree.map(lambda r: r[0], jax.lax.scan(turn, 0.0, own, length=1)[1])


_HELD = jax.jit(lambda read, x, delta: read(_sums(x, delta)))
_HELD_RAW = jax.jit(lambda read, x, delta: (x * delta).sum((0, 1)))
ONCE: dict[str, Callable] = {
    "once": lambda read, x, delta: read(_sums(x, delta)),
    "in chunks": _in_chunks,
    "in a loop": _in_a_loop,
    "in each branch": lambda read, x, delta: jax.lax.cond(
        x.sum() > 0, lambda: read(_sums(x, delta)), lambda: read(jbp.Sum(delta * x))
    ),
    "in a program that is kept": _HELD,
    "checkpointed": lambda read, x, delta: jax.checkpoint(lambda read: read(_sums(x, delta)))(read),
    "through a reader of one's own": lambda read, x, delta: jbp.Reader(lambda pair, own: read(pair), lambda r: r)(
        _sums(x, delta)
    ),
}
NOT_ONCE: dict[str, tuple[Callable, str]] = {
    "in halves": (lambda read, x, delta: read(_sums(x / 2, delta)) + read(_sums(x / 2, delta)), "twice"),
    "for nothing": (lambda read, x, delta: (read(jbp.Sum(delta)), read(_sums(x, delta)))[1], "twice"),
    "never": (lambda read, x, delta: (x * delta).sum((0, 1)), "0 times"),
    "never, in a program that is kept": (_HELD_RAW, "0 times"),
    "never, in a loop": (
        lambda read, x, delta: jax.lax.map(lambda d: (d[0] * d[1]).sum(0), (x, delta)).sum(0), "0 times"
    ),
}  # fmt: skip


def gained(*layers: Any) -> tuple:
    """(cost, θ, x, y) of these layers on 4 examples of 2 positions."""
    cost = jbp.Cost(jbp.Network([jbp.Dense(3), *layers], (2, 4)), HALF)
    of = lambda *shape: jax.ShapeDtypeStruct(shape, cost.network.dtype)
    return cost, cost.init(jax.random.key(0)), draw(1, of(4, 2, 4)), draw(2, of(4, 2, 3))


READ_IN = {
    "alone": (lambda layer: layer, "layer 1: leaf w"),
    "frozen": (jbp.Frozen, "layer 1.fixed: leaf w"),
    "nested": (lambda layer: jbp.Residual(jbp.Sequential([layer])), "layer 1.layer.0: leaf w"),
    "in blocks": (lambda layer: Loop(layer, 2), "layer 1.layer: leaf w"),
}


@pytest.mark.parametrize("place", ["alone", "in blocks"])
@pytest.mark.parametrize("how", ONCE)
def test_a_reader_that_is_called_once_in_each_trace_is_no_fault(how: str, place: str, x64: None):
    around, _ = READ_IN[place]
    cost, theta, x, y = gained(around(Gain(ONCE[how])))
    assert_close(cost.grad(theta, x, y), jax.grad(cost)(theta, x, y))
    cost.check(theta, x, y)
    for _ in range(2):  # the second time programs are kept
        output, back = jbp.run(cost.network.layer, cost.layout.unflatten(theta), x)
        back(output)
    norms = cost.measure(theta, x, y, jbp.SquaredNorms())[1]
    assert_close(norms, jnp.square(cost.measure(theta, x, y, jbp.PerExampleGradients())[1]).sum(1))


@pytest.mark.parametrize("place", READ_IN)
@pytest.mark.parametrize("how", NOT_ONCE)
def test_a_reader_that_is_not_called_once_is_named(how: str, place: str):
    (around, where), (reads, times) = READ_IN[place], NOT_ONCE[how]
    cost, theta, x, y = gained(around(Gain(reads)))
    says = f"{where}: its reader was called {times}; call it exactly once, with the leaf's pair"
    asked = {
        "check": cost.check,
        "compare": cost.compare,
        "norms": lambda *args: cost.measure(*args, jbp.SquaredNorms()),
        "pairs": cost.pairs,
        "fit": lambda theta, x, y: jbp.fit(cost, theta, (x, y), batch_size=2, epochs=1),
    }
    if times == "0 times":
        run = lambda theta, x: jbp.run(cost.network.layer, cost.network.layout.unflatten(theta), x)
        asked |= {
            "grad": cost.grad,
            "grad again": cost.grad,
            "back": lambda theta, x, y: run(theta, x)[1](y),
            "as_function": lambda theta, x, y: jax.grad(lambda t: jbp.as_function(cost.network)(t, x).sum())(theta),
        }
    for ask in asked.values():
        with pytest.raises(jbp.InputError) as error:
            ask(theta, x, y)
        assert str(error.value).startswith(says)


def test_a_child_that_is_run_twice_is_read_as_a_pair():
    """A container that hands its readers to two uses of a child, and adds, gets told so."""

    @dataclass(frozen=True)
    class Twice(Loop):
        def init(self, key, x):
            return {"layer": self.layer.init(key, x)}

        def forward(self, params, x, context):
            x, first = jbp.step("first", self.layer, params["layer"], x, context)
            x, second = jbp.step("second", self.layer, params["layer"], x, context)
            return x, (first, second)

        def backward(self, params, feedback, saved, delta, read):
            its, back, read = params["layer"], feedback["layer"], read["layer"]
            delta, second = jbp.step_back(self.layer, its, back, saved[1], delta, read)
            delta, first = jbp.step_back(self.layer, its, back, saved[0], delta, read)
            return delta, {"layer": jax.tree.map(jnp.add, first, second)}

    cost, theta, x, y = gained(Twice(jbp.Dense(3), 2))
    assert_close(cost.grad(theta, x, y), jax.grad(cost)(theta, x, y), 1e-5)
    for ask in (cost.check, lambda *args: cost.measure(*args, jbp.SquaredNorms())):
        with pytest.raises(jbp.InputError, match=r"layer 1\.first: leaf w: its reader was called twice"):
            ask(theta, x, y)


def test_a_loss_that_does_not_call_its_reader_is_named():
    class Without(LinearCrossEntropy):
        def backward(self, params, feedback, saved, delta, read):
            delta_x, _ = super().backward(params, feedback, saved, delta, {"w": lambda pair: None})
            return delta_x, {"w": feedback["w"]}

    net = jbp.Network([jbp.Dense(3)], input=(2, 4))
    cost = jbp.Cost(net, Without(5))
    x, y = draw(1, batch(net.input, N)), draw(2, jax.ShapeDtypeStruct((N, 2), jnp.int32))
    with pytest.raises(jbp.InputError, match="layer loss: leaf w: its reader was called 0 times"):
        cost.grad(cost.init(jax.random.key(0)), x, y)


def test_readings_of_none_do_not_add_up():
    """A reader of one's own may say `adds` and read None; then a layer in pieces can't add them."""
    layer = Gain(NOT_ONCE["in halves"][0])
    params, x, delta = drawn(layer, spec(3), jnp.float32)
    with pytest.raises(jbp.InputError, match="leaf w: its reader was called twice"):
        jbp.run(layer, params, x)[1](delta, jbp.Reader(lambda pair, own: None, lambda r: r, adds=True))


# -- what an author of a container may get wrong ----------------------------------------------------------------------


def _stepped() -> tuple:
    layer = jbp.Dense(3)
    params = layer.init(jax.random.key(0), jax.ShapeDtypeStruct((2,), jnp.float32))
    x = jnp.ones((N, 2), params.w.dtype)
    kept = jbp.step("a", layer, params, x, jbp.Context())[1]
    return layer, params, x, kept, jbp.readers(params, jbp.read_gradient)


WRONG_CALLS: dict[str, tuple[Callable, str]] = {
    "no context": (lambda l, p, x, k, r: jbp.step("a", l, p, x, None), "step: expected the context .* got nothing"),
    "no feedback": (
        lambda l, p, x, k, r: jbp.step_back(l, p, None, k, jnp.ones((N, 3), x.dtype), r),
        "layer a: step_back: expected feedback like the params",
    ),
    "what was saved, in place of what was kept": (
        lambda l, p, x, k, r: jbp.step_back(l, p, p, x, jnp.ones((N, 3), x.dtype), r),
        "step_back: expected what step kept of this child",
    ),
    "the delta of another child": (
        lambda l, p, x, k, r: jbp.step_back(l, p, p, k, jnp.ones((N, 2), x.dtype), r),
        "layer a: step_back: expected delta like the child's output",
    ),
    "readers of a readout": (lambda l, p, x, k, r: jbp.readers(p, jbp.Gradient), "readers: expected a Reader, or"),
    "readers of no reader": (lambda l, p, x, k, r: jbp.readers(p, lambda leaf: 3), "readers: .* got 3"),
    "readings of two turns in a list": (
        lambda l, p, x, k, r: jbp.stacked(r, [p, p]),
        "stacked: expected a reading for",
    ),
    "readings in place of readers": (lambda l, p, x, k, r: jbp.stacked(p, p), "stacked: expected the readers"),
    "uses of nothing": (lambda l, p, x, k, r: jbp.Several(()).of((2,)), "one pair for each use, got \\(\\)"),
    "a tie in words": (
        lambda l, p, x, k, r: jbp.Cost(jbp.mlp(2, 2), HALF, tied="loss.w"),
        "Cost: tied must be {a leaf of the loss: a leaf of the network}, got 'loss.w'",
    ),
}


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_a_wrong_call_of_a_containers_author_is_named(call: str):
    wrong, says = WRONG_CALLS[call]
    with pytest.raises(jbp.InputError, match=says):
        wrong(*_stepped())


# -- layers by name ---------------------------------------------------------------------------------------------------


def test_named_layers_are_the_same_network_under_their_names(x64: None):
    def layers(sequence: Any) -> Any:
        block = jbp.Residual(jbp.Sequential(sequence("norm", jbp.LayerNorm(), "wide", jbp.Dense(4))))
        two = jbp.Fork(sequence("one", jbp.Dense(2), "two", jbp.Tanh()))
        apart = jbp.Parallel(sequence("left", jbp.Dense(3), "right", jbp.Dense(3)))
        return sequence("first", jbp.Dense(4), "block", block, "both", two, "apart", apart, "sum", SUM)

    by_name = lambda *parts: dict(zip(parts[::2], parts[1::2], strict=True))
    named, plain = (jbp.Network(layers(how), (3,)) for how in (by_name, lambda *parts: list(parts[1::2])))
    assert named.layout.names[:4] == ("first.w", "first.b", "block.layer.norm.gain", "block.layer.norm.bias")
    assert [name for name in named.layout.names if name.startswith("apart")] == [
        "apart.left.w", "apart.left.b", "apart.right.w", "apart.right.b"
    ]  # fmt: skip
    costs = [jbp.Cost(net, jbp.losses.HalfSquaredError()) for net in (named, plain)]
    theta, x, y = costs[0].init(jax.random.key(0)), np.ones((2, 3)), np.zeros((2, 3))
    for one, two in zip(*(cost.value_and_grad(theta, x, y) for cost in costs), strict=True):
        np.testing.assert_array_equal(one, two)
    assert jbp.Network(layers(by_name), (3,)) == named
    assert hash(jbp.Network(layers(by_name), (3,))) == hash(named)


SUM = jbp.from_function(None, lambda _, x: x[0] + x[1])


@pytest.mark.parametrize("names", [["a b"], ["class"], ["_own"], [3]], ids=str)
def test_a_name_of_a_layer_is_an_identifier(names: list[Any]):
    with pytest.raises(jbp.InputError, match="expected names of layers"):
        jbp.Sequential(dict.fromkeys(names, jbp.Tanh()))


def test_an_error_names_the_layer_by_its_name():
    with pytest.raises(jbp.InputError, match=r"^layer block\.layer\.attention: Attention: expected a width"):
        jbp.Network({"block": jbp.Residual(jbp.Sequential({"attention": jbp.Attention(3)}))}, (5, 4))
