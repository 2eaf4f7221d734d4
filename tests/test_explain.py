"""`explain`: every number of the argument against `jax.grad`, the pairs, each layer's vjp; and what it prints."""

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from matplotlib.mathtext import MathTextParser

import jbp
from jbp import record
from jbp.explain import explain
from jbp.explain.equations import equations_of
from jbp.explain.parts import Line, Term, rows_of
from jbp.layers.compose import Inner

HALF = jbp.losses.HalfSquaredError()


@dataclass(frozen=True)
class Loop:
    """`layer`, n times, in a `lax.scan`; params `[n, *leaf]`.

    forward    x_{i+1} = f(x_i)
    backward   δ_i = δ_{i+1}
               through f
    """

    layer: jbp.Layer
    n: int

    def init(self, key, x):
        return Inner(jax.vmap(lambda key: self.layer.init(key, x))(jax.random.split(key, self.n)))

    def forward(self, params, x, context):
        return jax.lax.scan(lambda x, block: self.layer.forward(block, x, context), x, params.layer)

    def backward(self, params, feedback, saved, delta, read):
        def body(delta, block):
            *block, read = block
            return self.layer.backward(*block, delta, read)

        blocks = params.layer, feedback.layer, saved, read.layer
        delta, readings = jax.lax.scan(body, delta, blocks, reverse=True)
        return delta, Inner(jbp.stacked(read.layer, readings))


@dataclass(frozen=True)
class Fork:
    """y = left(x) + right(2x): a container that makes δ of its own for a layer in it."""

    left: jbp.Layer
    right: jbp.Layer

    def init(self, key, x):
        return {"left": self.left.init(key, x), "right": self.right.init(key, x)}

    def forward(self, params, x, context):
        a, left = self.left.forward(params["left"], x, context)
        b, right = self.right.forward(params["right"], x, context)
        return a + 2 * b, (left, right)

    def backward(self, params, feedback, saved, delta, read):
        a, left = self.left.backward(params["left"], feedback["left"], saved[0], delta, read["left"])
        b, right = self.right.backward(params["right"], feedback["right"], saved[1], 2 * delta, read["right"])
        return a + b, {"left": left, "right": right}


@dataclass(frozen=True)
class Mapped:
    """A container that runs its layer on each example by itself, in `jax.vmap`."""

    layer: jbp.Layer

    def init(self, key, x):
        return self.layer.init(key, x)

    def forward(self, params, x, context):
        each = lambda x: self.layer.forward(params, x[None], context)
        y, saved = jax.vmap(each)(x)
        return y[:, 0], saved

    def backward(self, params, feedback, saved, delta, read):
        delta, _ = jax.vmap(lambda saved, d: self.layer.backward(params, feedback, saved, d[None], read))(saved, delta)
        return delta[:, 0], ()


def tiny():
    """(cost, θ, x, y) of a 2-3-2 network with plain numbers, three examples."""
    cost = jbp.Cost(jbp.mlp(2, 3, 2), HALF)
    theta = jnp.asarray(np.linspace(-1, 1, cost.layout.size) ** 3)
    x = jnp.array([[1.0, 0.5], [-0.5, 2.0], [0.25, -1.0]])
    return cost, theta, x, jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def nested():
    """(cost, θ, x, y) of a network with a loop, a fork, functions, nested containers and positions."""
    f = jbp.from_function(lambda key, x: {"g": jnp.ones(x.shape)}, lambda p, x: jnp.sin(x * p["g"][None]))
    block = jbp.Residual(jbp.Sequential([jbp.Tanh(), jbp.Dense(3)]))
    layers = [jbp.Dense(3), Loop(block, 2), Fork(jbp.Dense(3), f), jbp.Sequential([jbp.Dense(2), jbp.Softmax()])]
    cost = jbp.Cost(jbp.Network(layers, (2, 4)), HALF, "sum")
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), cost.network.dtype)
    return cost, normal(cost.layout.size), normal(3, 2, 4), normal(3, 2, 2)


def check(e, cost, theta, x, y):
    """The value is the gradient's, and each line in symbols has its value in numbers."""
    expected = jax.grad(cost)(theta, x, y)
    tolerance = 1e-12 * float(jnp.abs(expected).max())
    assert abs(e.value - expected[e.index]) <= tolerance
    assert e.value == e.contributions.sum()
    assert (e.ok, e.note, set(e.agrees)) == (True, "", set(e.oracles))
    for way, value in e.oracles.items():
        assert abs(value - e.value) <= (1e-9 if way == "central difference" else tolerance)
    for part in e.parts:
        for line in part.lines:
            if line.terms:
                assert sum(term.value for term in line.terms) == pytest.approx(line.value, rel=1e-12, abs=1e-15)


def test_every_coordinate_of_a_tiny_network(x64):
    cost, theta, x, y = args = tiny()
    pairs = cost.pairs(theta, x, y)
    assert cost.layout.size == 17
    for i in range(17):
        symbol = cost.layout.symbol(i)
        e = explain(*args, symbol)
        check(e, *args)
        assert (e.symbol, e.index, e.theta) == (symbol, i, theta[i])
        base, last = e.parts[0], e.parts[-2]
        np.testing.assert_allclose(base.after.values, pairs["2.b"].g[e.example, 0], rtol=1e-12)
        assert [p.title.split(":")[0] for p in e.parts] == [
            "Base case",
            *(["Inductive step"] if i < 9 else []),
            "Last product",
            "Over the 3 examples",
        ]
        factors = last.lines[0].terms[0].factors
        if symbol[0] == "w":
            (j, k), pair = map(int, re.findall(r"(\d)←(\d)", symbol)[0]), pairs["0.w" if i < 9 else "2.w"]
            assert factors == (float(pair.a[e.example, 0, k]), float(pair.delta[e.example, 0, j]))
        elif i < 9:
            np.testing.assert_allclose(e.parts[1].after.values, pairs["0.b"].g[e.example, 0], rtol=1e-12)


def test_every_step_of_any_network_is_its_layers_own_vjp(x64):
    cost, theta, x, y = args = nested()
    run = record.run(*args)
    kinds = {step.kind for step in run.steps}
    assert kinds >= {"Loop", "Fork", "Function", "Residual", "Sequential", "Dense", "Tanh", "Softmax"}

    def vjp(step):
        params, x, delta = jax.tree.map(jnp.asarray, (step.params, step.x, step.delta))
        return jax.vjp(lambda x: step.layer.forward(params, x, jbp.Context())[0], x)[1](delta)[0]

    expected = jax.jit(lambda: [vjp(step) for step in run.steps])()
    for step, delta_x in zip(run.steps, expected, strict=True):
        np.testing.assert_allclose(step.delta_x, delta_x, rtol=1e-11, atol=1e-13)
    assert [step.name for step in run.rows] == [
        *("0", "1.layer.layer.0@0", "1.layer.layer.1@0", "1.layer.layer.0@1", "1.layer.layer.1@1"),
        *("2.right", "2.left", "3.0", "3.1"),
    ]
    pairs = cost.pairs(theta, x, y)
    for name, leaf in run.leaves.items():
        np.testing.assert_allclose(leaf.pair.gradient(), pairs[name].gradient(), rtol=1e-11, atol=1e-13)


def test_every_leaf_of_any_network(x64):
    args = nested()
    symbols = {
        "0.w[3,1]": ["3", "2", "1", "0"],
        "1.layer.layer.1.w[0,2,1]": ["3", "2", "1.layer", "1.layer.layer.1"],  # the second block, then the first
        "1.layer.layer.1.b[1,1]": ["3", "2", "1.layer.layer.1"],
        "2.left.w[0,1]": ["3", "2.left"],
        "2.right.g[1,2]": ["3", "2", "2.right"],  # the fork makes 2δ
        "3.0.b[1]": ["3.1", "3.0"],
    }
    for symbol, route in symbols.items():
        e = explain(*args, symbol)
        check(e, *args)
        assert [path for part in e.parts for path in part.layers] == route
    cost, theta, _, y = args
    through = [part for part in explain(*args, "0.b[0]").parts if part.before]
    tail = lambda a: cost.loss.value(jbp.Softmax().forward((), a @ w + b[None, None], jbp.Context())[0], y).sum()
    w, b = cost.layout.unflatten(theta)[3][0]
    a = jnp.asarray(record.run(*args).rows[-2].x)
    n = explain(*args, "0.b[0]").example
    np.testing.assert_allclose(through[0].after.values, jax.grad(tail)(a)[n].ravel(), rtol=1e-11, atol=1e-13)


def test_one_example_and_weights(x64):
    cost, theta, x, y = args = tiny()
    one = explain(cost, theta, x[:1], y[:1], "w^3_{1<-2}")
    check(one, cost, theta, x[:1], y[:1])
    assert one.parts[-1].title == "Last product"
    assert "∂C/∂a^3" in str(one)
    assert "C_n" not in str(one)
    weights = jnp.array([1.0, 0.0, 3.0])
    e = explain(*args, "b^2_0", weights=weights, example=0)
    assert e.value == pytest.approx(float(jax.grad(cost)(theta, x, y, weights=weights)[6]), rel=1e-12)
    assert (e.example, e.contributions[1]) == (0, 0)


GOLDEN = """\
∂C/∂w^2_{0←1}, by induction
  C = 0.227252, the mean over 3 examples; x, y and all of θ but coordinate 3, w^2_{0←1} = -0.244141, stay fixed.
  C_n is the cost of example n alone. Written out for n = 0, which contributes most.

Base case: δ^3, from HalfSquaredError
  δ^3_j = f′(z^3_j) · ∂C_n/∂a^3_j
  | HalfSquaredError   C = ½ Σ_j (y_j − a_j)²,  δ = a − y
  | Sigmoid: a = 1/(1 + e⁻ᶻ); f′ = a(1 − a), 0 far out.
  a^3_1 = 0.77008, y_1 = 0, z^3_1 = 1.20876
  ∂C_n/∂a^3_1 = 0.77008
  δ^3_1 = f′(z^3_1) · ∂C_n/∂a^3_1 = 0.177057 · 0.77008 = 0.136348
  δ^3 = (-0.0675531, 0.136348), ‖δ^3‖ = 0.152165.

Inductive step: δ^2 from δ^3
  δ^2_j = f′(z^2_j) · Σ_i w^3_{i←j} δ^3_i
  z^2_0 = -1.1377, a^2_0 = 0.242744
  ∂C_n/∂a^2_0 = Σ_i w^3_{i←0} δ^3_i
              = -0.00013194  w^3_{0←0} δ^3_0 = 0.00195312 · (-0.0675531)
              + 0.00213044   w^3_{1←0} δ^3_1 = 0.015625 · 0.136348
              = 0.0019985
  δ^2_0 = f′(z^2_0) · ∂C_n/∂a^2_0 = 0.183819 · 0.0019985 = 0.000367362
  δ^2 = (0.000367362, 0.00295381, 0.00975889), ‖δ^2‖ = 0.0102027, 0.0671 of ‖δ^3‖ = 0.152165.

Last product
  ∂C_n/∂w^2_{0←1} = a^1_1 · δ^2_0 = 0.5 · 0.000367362 = 0.000183681
"""


def test_golden_text(x64):
    text = str(explain(*tiny(), "w^2_{0<-1}"))
    assert text.split("\nOver the 3 examples")[0] == GOLDEN
    over, rows = (part.splitlines() for part in text.split("\nOver the 3 examples\n")[1].split("\n\nThe same number\n"))
    assert over == [
        "  ∂C/∂w^2_{0←1} = 1/3 Σ_n ∂C_n/∂w^2_{0←1}",
        "                = 6.12271e-05  1/3 ∂C_0/∂w^2_{0←1} = 0.333333 · 0.000183681",
        "                - 4.65666e-05  1/3 ∂C_1/∂w^2_{0←1} = 0.333333 · (-0.0001397)",
        "                + 5.92037e-05  1/3 ∂C_2/∂w^2_{0←1} = 0.333333 · 0.000177611",
        "                = 7.38642e-05",
    ]
    assert [row[:23].strip() for row in rows] == [
        "written out here", "cost.value_and_grad", "jax.grad(cost)", "central difference"
    ]  # fmt: skip
    assert all(" agrees  " in row for row in rows[1:])


def test_long_sums_are_elided_and_add_up():
    values = np.random.default_rng(0).standard_normal(20)
    terms = tuple(Term(("w", f"δ_{i}"), (float(v), -1.0)) for i, v in enumerate(values))
    line = Line("s", "Σ_i w δ_i", terms, float(-values.sum()))
    _, *shown, rest, total = rows_of(line)
    assert [float(note.split("= ")[1].split(" ·")[0]) for *_, note in shown] == pytest.approx(
        sorted(values, key=abs, reverse=True)[:5], rel=1e-5
    )
    assert rest[2] == "the 15 others, each smaller"
    added = sum(-float(number) if sign == "-" else float(number) for sign, number, _ in (*shown, rest))
    assert added == pytest.approx(line.value, abs=1e-4)
    assert float(total[1]) == pytest.approx(line.value, rel=1e-5)


class Tags(HTMLParser):
    """Whether tags are balanced, and what they are."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag != "meta":
            self.open.append(tag)
        assert not any(name in ("src", "href") for name, _ in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize(("make", "symbol"), [(tiny, "w^2_{2←1}"), (nested, "2.right.g[1,2]")])
def test_markdown_and_html(make, symbol, x64):
    e = explain(*make(), symbol)
    markdown = e.to_markdown()
    outside = re.sub(r"```.*?```", "", markdown, flags=re.S)
    blocks, inline = (
        re.findall(r"\$\$(.*?)\$\$", outside, re.S),
        re.findall(r"\$([^$]+)\$", re.sub(r"\$\$.*?\$\$", "", outside, flags=re.S)),
    )
    assert len(blocks) == sum(len(part.lines) + bool(part.law) for part in e.parts)
    parser = MathTextParser("path")
    equations = [*inline, *(row for block in blocks for row in block.strip().split("\n")[1:-1])]
    for side in {side.strip() for equation in equations for side in equation.removesuffix(r" \\").split("&")} - {""}:
        parser.parse(f"${side}$")
    assert not set("δ∂←·′‖Σ") & set("".join((*blocks, *inline)))
    tags = Tags()
    tags.feed(e.to_html())
    assert tags.open == []
    assert not tags.seen & {"script", "link", "img"}
    assert e._repr_markdown_() == markdown
    assert e._repr_html_() in e.to_html()


@dataclass(frozen=True)
class Straight(jbp.ReLU):
    """ReLU forward, the identity back."""

    def slope(self, saved):
        return jnp.ones_like(saved)


VERDICTS = {
    "tap": (jbp.Tap(lambda d: 2 * d), [True, False, False], "layer 1 is a Tap, which may mean that"),
    "clip": (jbp.Tap(lambda d: jnp.clip(d, -0.1, 0.1)), [False, False, False], "layer 1 is a Tap: is it linear in δ?"),
    "rule": (Straight(), [True, False, False], "not the derivative of C: unless a layer means that"),
    "kink": (jbp.LeakyReLU(), [True, True, False], "C has a kink"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_it_says_what_does_not_agree(name, x64):
    layer, agree, sentence = VERDICTS[name]
    cost = jbp.Cost(jbp.Network([jbp.Dense(3, bias=False), layer, jbp.Dense(1)], input=(2,)), HALF)
    theta = jnp.asarray([0.5, -0.5, 0.0, 0.5, 0.25, 0.0, 1.0, 2.0, 3.0, 0.1])  # z of the last neuron is 0
    e = explain(cost, theta, *(jnp.asarray(v) for v in ([[1.0, 3.0]] * 2, [[0.0]] * 2)), "0.w[0,2]")
    e = e if name == "kink" else explain(cost, theta, jnp.ones((2, 2)), jnp.zeros((2, 1)), "0.w[0,1]")
    assert list(e.agrees.values()) == agree
    assert sentence in e.note
    assert e.note in str(e)
    assert str(e).count("DOES NOT AGREE") == 3 - sum(agree)
    assert "NOT the same number" in e.to_markdown()


@pytest.mark.parametrize("settings", [{"dtype": jnp.bfloat16}, {"compute_dtype": jnp.bfloat16}, {}], ids=str)
def test_what_is_allowed_is_rounding(settings):
    cost = jbp.Cost(jbp.mlp(6, 5, 4, activation=jbp.Tanh(), **settings), HALF)
    rng = np.random.default_rng(0)
    theta = jnp.asarray(rng.standard_normal(cost.layout.size), cost.network.dtype)
    x, y = (jnp.asarray(rng.standard_normal((20, n)), cost.network.dtype) for n in (6, 4))
    gradient = np.asarray(cost.grad(theta, x, y))
    most = int(np.abs(gradient).argmax())
    for i in (*range(0, cost.layout.size, 15), most):
        e = explain(cost, theta, x, y, cost.layout.symbol(i))
        assert e.ok
    assert e.allowed["jax.grad(cost)"] < (0.8 if settings else 1e-4) * abs(e.value)  # a factor of 2 shows


class Plain:
    pass


@dataclass(frozen=True)
class Stated:
    """A layer.

    forward    y = x
    backward   δx = δ,
               as it is
    Saved: nothing.
    """


def test_equations_are_the_docstrings():
    equations = equations_of
    assert equations(Plain()) == ("Plain",)
    assert equations(Stated()) == ("forward    y = x", "backward   δx = δ,", " " * 11 + "as it is")
    assert equations(jbp.Residual(jbp.Dense(3))) == (
        "Residual     y = x + f(x);                δx = δ + (δ through f)",
    )
    assert [line.split()[0] for line in equations(jbp.Dense(3))] == ["forward", "backward", "gradient"]
    assert equations(jbp.Tanh())[0] == "Tanh: a = tanh z; f′ = 1 − a², 0 far out."
    assert [line.split()[0] for line in equations(jbp.Softmax())] == ["Softmax:"]


def test_errors():
    cost, theta, x, y = args = tiny()
    with pytest.raises(
        jbp.InputError, match=r"unknown symbol 'w\^2_\{9←1\}'. The nearest is w\^2_\{2←1\}, of w\^2_\{0←0\}"
    ):
        explain(*args, "w^2_{9←1}")
    with pytest.raises(jbp.InputError, match=r"example must be one of 0 … 2, got 3"):
        explain(*args, "b^2_0", example=3)
    with pytest.raises(jbp.InputError, match="not under jit, grad or vmap"):
        jax.jit(lambda theta: explain(cost, theta, x, y, "b^2_0").value)(theta)
    jaxtyping.config.update("jaxtyping_disable", True)
    mapped = jbp.Cost(jbp.Network([jbp.Dense(3), Mapped(jbp.Tanh())], (2,)), HALF)
    try:
        assert explain(mapped, theta[:9], x, jnp.zeros((3, 3)), "w^2_{0←0}").ok  # a vmap over examples is seen
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@dataclass(frozen=True)
class Noise:
    """y = x · (0 or 2) by the context's key."""

    def init(self, key, x):
        return ()

    def forward(self, params, x, context):
        if context.key is None:
            return x, jnp.ones_like(x)
        keep = 2 * jax.random.bernoulli(context.key, 0.5, x.shape).astype(x.dtype)
        return x * keep, keep

    def backward(self, params, feedback, saved, delta, read):
        return delta * saved, ()


def test_float32_without_x64_and_with_noise():
    cost = jbp.Cost(jbp.Network([jbp.Dense(2), Noise()], (2,)), HALF)
    theta, (_, _, x, y) = jnp.linspace(-1, 1, 6), tiny()
    quiet = explain(cost, theta, x, y, "w^2_{0←1}")
    with jax.enable_x64(True):
        exact = float(jax.grad(cost)(*(jnp.asarray(a, jnp.float64) for a in map(np.asarray, (theta, x, y))))[2])
    assert quiet.oracles["central difference"] == pytest.approx(exact, rel=1e-9)
    assert quiet.oracles["cost.value_and_grad"] == pytest.approx(exact, rel=1e-5)
    assert not jax.config.read("jax_enable_x64")
    noisy = explain(cost, theta, x, y, "w^2_{0←1}", context=jbp.Context(key=jax.random.key(3)))
    assert (quiet.dtype, noisy.dtype) == ("float64", "float32")  # in float64 the same key draws other noise
    assert noisy.oracles["cost.value_and_grad"] == pytest.approx(noisy.value, rel=1e-5)
    assert noisy.oracles["central difference"] == pytest.approx(noisy.value, rel=1e-3)
    assert noisy.value != pytest.approx(quiet.value, rel=1e-3)


@pytest.mark.parametrize("weights", [None, np.float64([1.0, 3.0])], ids=["alike", "weighted"])
@pytest.mark.parametrize("loss", [jbp.losses.SoftmaxCrossEntropy(ignore=0), jbp.losses.LinearCrossEntropy(3, ignore=0)])
def test_a_mean_over_positions(loss: Any, weights: Any, x64: None):
    cost = jbp.Cost(jbp.Network([jbp.Dense(3)], (4, 2)), loss, "positions")
    theta, x, y = cost.init(jax.random.key(0)), np.ones((2, 4, 2)), np.array([[0, 1, 2, 1], [2, 0, 0, 1]])
    found = jbp.explain(cost, theta, x, y, "0.w[1,2]", weights=weights)
    assert found.ok
    assert found.value == pytest.approx(float(jax.grad(cost)(theta, x, y, weights=weights)[5]), rel=1e-9)
    assert "the mean over all positions of 2 examples" in str(found)
    assert ("1/5 Σ_n" if weights is None else "w_0/Σ_n w_n T_n") in str(found)
