"""Curvature: products, seeds and what is read at them, against their definitions by autodiff in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import as_numpy, assert_close, assert_told, over_calls

import jbp
from jbp.losses import (
    HalfSquaredError,
    Huber,
    LinearCrossEntropy,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    SquaredError,
)
from jbp.seeds import columns_of

N, T = 3, 2  # examples, positions
WORDS = jax.ShapeDtypeStruct((T,), jnp.int32)


class Case(NamedTuple):
    """Layers on an input, a loss and a reduction; `tied` is the cost's, and `unfused` the same loss without params."""

    layers: tuple
    input: Any
    loss: Any
    reduction: str = "mean"
    tied: Any = ()


def block(width: int) -> jbp.Layer:
    attention = jbp.Residual(jbp.Sequential([jbp.LayerNorm(), jbp.Attention(2, causal=True, rope=10.0)]))
    return jbp.Sequential([attention, jbp.Residual(jbp.Sequential([jbp.Dense(3), jbp.GELU(), jbp.Dense(width)]))])


CASES = {
    "chain": Case((jbp.Dense(4), jbp.Tanh(), jbp.Dense(3)), (2,), SoftmaxCrossEntropy()),
    "chain, squares": Case((jbp.Dense(3), jbp.Sigmoid(), jbp.Dense(2)), (2,), HalfSquaredError(), "sum"),
    "questions, norm": Case((jbp.LayerNorm(), jbp.Dense(3)), (4,), SigmoidCrossEntropy()),
    "frozen": Case((jbp.Frozen(jbp.Dense(3)), jbp.Tanh(), jbp.Dense(3)), (2,), SoftmaxCrossEntropy(0.1, z_loss=0.1)),
    "tied": Case(
        (jbp.Tied(jbp.Sequential([jbp.Dense(3), jbp.Tanh(), jbp.Dense(2)]), {"2.w": "0.w.T"}),),
        (2,),
        HalfSquaredError(),
    ),
    "positions": Case(
        (jbp.Embedding(5, 4), jbp.Positions(T), jbp.Repeat(block(4), 2), jbp.Dense(3)),
        WORDS,
        SoftmaxCrossEntropy(ignore=2),
        "positions",
    ),
    "mean over positions": Case(
        (jbp.Embedding(4, 2), jbp.Tanh(), jbp.Dense(3)), WORDS, SoftmaxCrossEntropy(ignore=2, positions="mean")
    ),
    "loss with params": Case((jbp.Dense(3), jbp.Tanh()), (2,), LinearCrossEntropy(4)),
    "loss with a tied leaf": Case(
        (jbp.Embedding(4, 2), jbp.Tanh()), WORDS, LinearCrossEntropy(4), "mean", {"loss.w": "0.table.T"}
    ),
}
every = pytest.mark.parametrize("name", CASES)
WEIGHTS = np.array([0.5, 2.0, 1.0])


@dataclass(frozen=True, eq=False)
class Asked:
    """A cost, its arguments, and its output and loss per example as functions of θ for autodiff."""

    cost: jbp.Cost
    theta: Any
    x: Any
    y: Any
    output: Callable[[Any], Any]  # θ -> what the loss without params meets [N, ...]
    loss: Any
    factors: Any  # of C_n in C

    @cached_property
    def jacobian(self) -> np.ndarray:
        """J `[N, C, P]`."""
        return np.asarray(jax.jit(jax.jacobian(self.output))(self.theta)).reshape(N, -1, self.cost.layout.size)

    @cached_property
    def ggn_of_each(self) -> np.ndarray:
        """J_nᵀ H_n J_n `[N, P, P]`, H_n by autodiff of the loss's value."""
        each = lambda z, y: jax.hessian(lambda z: self.loss.value(z[None], y[None])[0])(z)
        hessians = np.asarray(jax.jit(jax.vmap(each))(self.output(self.theta), self.y))
        c = self.jacobian.shape[1]
        return np.einsum("nap,nab,nbq->npq", self.jacobian, hessians.reshape(N, c, c), self.jacobian)

    @property
    def ggn(self) -> np.ndarray:
        """Σ_n w_n J_nᵀ H_n J_n `[P, P]`."""
        return np.einsum("n,npq->pq", self.factors, self.ggn_of_each)


@cache
def _asked(name: str) -> Asked:
    layers, spec, loss, reduction, tied = CASES[name]
    cost = jbp.Cost(jbp.Network(layers, spec), loss, reduction, tied)
    rng = np.random.default_rng(0)
    theta = jnp.asarray(rng.standard_normal(cost.layout.size) / 2)
    x = cost.network.input
    x = rng.integers(0, 4, (N, *x.shape)) if x.dtype == jnp.int32 else rng.standard_normal((N, *x.shape))
    shape = (N, *cost.network.output.shape)
    y = rng.integers(0, 3, shape[:-1]) if "CrossEntropy" in type(loss).__name__ else rng.standard_normal(shape)
    y = rng.random(shape) if isinstance(loss, SigmoidCrossEntropy) else y
    net = lambda theta: cost.network(cost.split(theta)[0], x)
    if isinstance(loss, LinearCrossEntropy):
        output = lambda theta: net(theta) @ cost.loss_params(theta).w
        loss = loss.unfused()[1]
    else:
        output = net
    w = jnp.asarray(WEIGHTS)
    x, y = (jnp.asarray(a, jnp.int32 if a.dtype.kind == "i" else jnp.float64) for a in (x, y))
    total = {"mean": w.sum(), "sum": 1.0, "positions": (w * cost.counted(y, N)).sum()}[reduction]
    return Asked(cost, theta, x, y, output, loss, np.asarray(w / total))


@pytest.fixture
def asked(name: str, x64: None) -> Asked:
    return _asked(name)


def measure(asked: Asked, *readouts: Any) -> Any:
    return as_numpy(asked.cost.measure(asked.theta, asked.x, asked.y, *readouts, weights=jnp.asarray(WEIGHTS))[1])


def drawn(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(5).standard_normal(shape))


# -- products ---------------------------------------------------------------------------------------------------------


@every
def test_hvp_is_the_hessian_of_the_cost(asked: Asked):
    C = lambda theta: asked.cost(theta, asked.x, asked.y, weights=jnp.asarray(WEIGHTS))
    hessian = np.asarray(jax.jit(jax.hessian(C))(asked.theta))
    v = drawn(2, asked.cost.layout.size)
    ask = lambda v: asked.cost.hvp(asked.theta, asked.x, asked.y, v, weights=jnp.asarray(WEIGHTS))
    assert_close(ask(v), v @ hessian, 1e-11)
    assert_close(ask(v[0]), hessian @ v[0], 1e-11)


@pytest.mark.parametrize("name", ["chain", "frozen", "loss with a tied leaf"])
def test_the_hessian_s_diagonal_is_exact_without_a_key(asked: Asked):
    C = lambda theta: asked.cost(theta, asked.x, asked.y, weights=jnp.asarray(WEIGHTS))
    expected = np.diag(np.asarray(jax.jit(jax.hessian(C))(asked.theta)))
    ask = asked.cost.hessian_diagonal
    diagonal, error = ask(asked.theta, asked.x, asked.y, chunk=7, weights=jnp.asarray(WEIGHTS))
    assert_close(diagonal, expected, 1e-11)
    assert not np.any(error)


def test_an_estimate_of_the_hessian_s_diagonal_is_within_its_error(x64: None):
    """Over many draws the mean is right, and the error that is stated is the spread of the estimates."""
    asked = _asked("chain")
    ask = asked.cost.hessian_diagonal
    exact, _ = ask(asked.theta, asked.x, asked.y)
    keys = jax.random.split(jax.random.key(0), 200)
    found, stated = jax.vmap(lambda key: ask(asked.theta, asked.x, asked.y, key=key, samples=20))(keys)
    spread = np.std(found, 0)
    assert np.all(np.abs(np.mean(found, 0) - exact) <= 5 * spread / 200**0.5)
    ratio = np.sqrt(np.mean(np.square(stated), 0)) / spread
    assert np.all(
        np.abs(ratio - 1) < 5 / 400**0.5 * 2
    )  # five standard errors of a spread of 200, and as much of theirs


def test_xdiag_is_right_in_the_mean_and_states_its_error(x64: None):
    asked = _asked("chain")
    ask = partial(asked.cost.hessian_diagonal, asked.theta, asked.x, asked.y)
    exact, _ = ask()
    keys = jax.random.split(jax.random.key(0), 200)
    found, stated = jax.vmap(lambda key: ask(key=key, samples=12, estimator="xdiag"))(keys)
    spread = np.std(found, 0)
    assert np.all(np.abs(np.mean(found, 0) - exact) <= 5 * spread / 200**0.5)
    assert (
        0.5 < np.sqrt(np.mean(np.square(stated)) / np.mean(np.square(spread))) < 2
    )  # six estimates that share products


@pytest.mark.parametrize("samples", [14, 20])
def test_xdiag_is_exact_where_the_hessian_has_fewer_directions(samples: int, x64: None):
    """Of a linear network on two examples: two directions for each of its three outputs, and six in all."""
    cost = jbp.Cost(jbp.Network([jbp.Dense(3, bias=False)], (4,)), HalfSquaredError())
    theta, x, y = drawn(12), drawn(2, 4), drawn(2, 3)
    diagonal, error = cost.hessian_diagonal(theta, x, y, key=jax.random.key(1), samples=samples, estimator="xdiag")
    assert_close(diagonal, cost.hessian_diagonal(theta, x, y)[0], 1e-10)
    assert np.all(error <= 1e-10)


@every
def test_ggnvp_is_j_h_j(asked: Asked):
    v = drawn(2, asked.cost.layout.size)
    ask = lambda v: asked.cost.ggnvp(asked.theta, asked.x, asked.y, v, weights=jnp.asarray(WEIGHTS))
    assert_close(ask(v), v @ asked.ggn, 1e-11)
    assert_close(ask(v[1]), asked.ggn @ v[1], 1e-11)


@every
def test_fvp(asked: Asked):
    v = drawn(asked.cost.layout.size)
    ask = lambda seed: asked.cost.fvp(asked.theta, asked.x, asked.y, v, seed=seed, weights=jnp.asarray(WEIGHTS))
    assert_close(ask("exact"), asked.ggn @ v, 1e-11)
    values = lambda theta: asked.loss.value(asked.output(theta), asked.y)
    g = np.asarray(jax.jit(jax.jacobian(values))(asked.theta))
    assert_close(ask("empirical"), (g.T * asked.factors) @ (g @ v), 1e-11)
    sampled = jbp.Sampled(jax.random.key(3), 4)
    rows = measure(asked, jbp.GGNFactors(sampled))  # the same key, the same labels
    assert rows.shape == (4 * N, v.size)
    assert_close(ask(sampled), rows.T @ (rows @ v), 1e-11)


# -- seeds ------------------------------------------------------------------------------------------------------------


@every
def test_the_ggn_s_diagonal_its_factors_and_their_gram(asked: Asked):
    readouts = jbp.DiagonalGGN(), jbp.DiagonalGGN(of_each=True), jbp.GGNFactors(), jbp.GGNGram()
    diagonal, of_each, rows, gram = measure(asked, *readouts)
    assert_close(rows.T @ rows, asked.ggn, 1e-11)
    assert_close(diagonal, np.diag(asked.ggn), 1e-11)
    assert_close(gram, rows @ rows.T, 1e-11)
    assert_close(of_each, np.einsum("npp->np", asked.ggn_of_each), 1e-11)


LIKELIHOODS = (
    HalfSquaredError(),
    SquaredError(),
    SigmoidCrossEntropy(),
    SoftmaxCrossEntropy(),
    SoftmaxCrossEntropy(0.2, ignore=1, positions="mean", z_loss=0.3),
)


@pytest.mark.parametrize("loss", LIKELIHOODS, ids=repr)
def test_sampled_columns_mean_the_loss_s_hessian(loss: Any, x64: None):
    """The mean of S Sᵀ over many labels is H_n within five standard errors, element by element."""
    output, many = drawn(N, T, 3), 3000
    y = jnp.asarray([[0, 1], [1, 1], [2, 0]]) if isinstance(loss, SoftmaxCrossEntropy) else jnp.ones(output.shape)
    each = np.asarray(columns_of(jbp.Sampled(jax.random.key(1), many), loss, output, y)).reshape(many, N, -1)
    root = np.asarray(loss.hessian_root(output, y)).reshape(-1, N, output[0].size)
    samples = many * np.einsum("kna,knb->knab", each, each)
    error = np.abs(samples.mean(0) - np.einsum("kna,knb->nab", root, root))
    assert (error <= 5 * samples.std(0) / np.sqrt(many) + 1e-12).all()


def test_seeds_and_the_loss_s_own_in_one_call_keep_their_order(x64: None):
    asked = _asked("chain")
    seed = jbp.Sampled(jax.random.key(2))
    readouts = jbp.Gradient(), jbp.DiagonalGGN(), jbp.SquaredNorms(), jbp.GGNFactors(seed), jbp.DiagonalGGN(seed)
    together, alone = measure(asked, *readouts), [measure(asked, readout) for readout in readouts]
    assert_close(together, tuple(alone), 1e-14)


def test_one_forward_and_one_reverse_for_each_seed(x64: None):
    """Products of matrices in the program, of a chain of two dense layers: 2 forward; a reverse is one for δ of the
    first layer, and what the readouts need."""
    asked, key = _asked("chain"), jax.random.key(0)

    def products(*readouts: Any) -> int:
        ask = lambda theta: asked.cost.measure(theta, asked.x, asked.y, *readouts)[1]
        return str(jax.make_jaxpr(ask)(asked.theta)).count("dot_general")

    gradient = products(jbp.Gradient())
    exact = products(jbp.DiagonalGGN())
    assert products(jbp.Gradient(), jbp.DiagonalGGN()) <= gradient + exact - 2  # the forward is one
    sampled = jbp.Sampled(key)
    one, two = products(jbp.DiagonalGGN(sampled)), products(jbp.DiagonalGGN(sampled), jbp.DiagonalGGN(sampled, True))
    assert two < 2 * one - 2  # the reverse is one, too


# -- wrong calls ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fused:
    """A loss with params that does not say what it fuses: C_n = b Σ output."""

    def init(self, key, x):
        return {"b": jnp.ones(())}

    def forward(self, params, x, context):
        total = x[0].sum(1)
        return params["b"] * total, total

    def backward(self, params, feedback, saved, delta, read):
        return (feedback["b"] * jnp.broadcast_to(delta[:, None], (len(saved), 2)), None), {
            "b": read["b"](jbp.Sum(delta * saved))
        }


NET = jbp.mlp(2, 3, 2, last=jbp.Identity())
X, Y, THETA = jnp.zeros((4, 2)), jnp.zeros((4, 2)), jnp.zeros(NET.layout.size)
SQUARES, OTHERS = jbp.Cost(NET, HalfSquaredError()), jbp.Cost(NET, jbp.losses.from_function(lambda a, y: a.sum(1)))
WIDE = jbp.Cost(jbp.Network([jbp.Dense(2000)], (2000,)), HalfSquaredError())
KEY = jbp.Sampled(jax.random.key(0))
REMEDY = " Give it one, as jbp.losses tells, […]"


def measured(cost: jbp.Cost, *readouts: Any, **settings: Any) -> Any:
    return cost.measure(jnp.zeros(cost.layout.size), X, Y, *readouts, **settings)


WRONG = [
    (
        lambda: SQUARES.hvp(THETA, X, Y, THETA[1:]),
        "v: expected a vector [P] = [17] like theta, or several [K, 17], […]",
    ),
    (
        lambda: SQUARES.fvp(THETA, X, Y, NET.layout.unflatten(THETA)),
        "v: expected a vector [P] = [17] like theta, or several [K, 17], got tuple of […]",
    ),
    (lambda: SQUARES.hvp(THETA, X, Y, THETA.astype(complex)), "v: expected a vector [P] = [17] like theta, […]"),
    (
        lambda: measured(SQUARES, jbp.DiagonalGGN(None)),
        "DiagonalGGN: seed must be 'exact', 'empirical' or a jbp.Sampled, got None. […]",
    ),
    (lambda: SQUARES.ggnvp(THETA, X, Y, jnp.zeros((1, 1, 17))), "v: expected a vector [P] = [17] like theta, […]"),
    (
        lambda: SQUARES.hessian_diagonal(THETA, X, Y, key=3),
        "Cost.hessian_diagonal: expected a random key, got 3. Write key=jax.random.key(3).",
    ),
    (
        lambda: SQUARES.hessian_diagonal(THETA, X, Y, key=jax.random.key(0), estimator="hutch"),
        "Cost.hessian_diagonal: estimator must be 'signs' or 'xdiag', got 'hutch'.",
    ),
    (
        lambda: SQUARES.hessian_diagonal(THETA, X, Y, key=jax.random.key(0), estimator="xdiag"),
        "Cost.hessian_diagonal: 100 products are more than two for each of 17 parameters. Leave out the key: […]",
    ),
    (
        lambda: SQUARES.hessian_diagonal(THETA, X, Y, key=jax.random.key(0), samples=2, estimator="xdiag"),
        "Cost.hessian_diagonal: samples must be a whole number of at least 4, got 2.",
    ),
    (
        lambda: SQUARES.hessian_diagonal(THETA, X, Y, key=jax.random.key(0), samples=1),
        "Cost.hessian_diagonal: samples must be a whole number of at least 2, got 1.",
    ),
    (
        lambda: OTHERS.ggnvp(THETA, X, Y, THETA),
        f"Cost.ggnvp: the loss FromFunction has no curvature, no method hessian_product.{REMEDY}",
    ),
    (
        lambda: measured(OTHERS, jbp.DiagonalGGN()),
        f"DiagonalGGN: the loss FromFunction has no curvature, no method hessian_root.{REMEDY}",
    ),
    (
        lambda: measured(OTHERS, jbp.DiagonalGGN(KEY)),
        f"DiagonalGGN: the loss FromFunction has no likelihood, no method sample.{REMEDY}",
    ),
    (
        lambda: measured(jbp.Cost(NET, Huber()), jbp.DiagonalGGN(KEY)),
        "Huber: has no likelihood here to sample from. Use HalfSquaredError for a Gaussian one.",
    ),
    (
        lambda: jbp.Cost(NET, Huber()).fvp(THETA, X, Y, THETA),
        "Huber: has no likelihood here to sample from. Use HalfSquaredError for a Gaussian one.",
    ),
    (
        lambda: jbp.Cost(NET, Fused()).ggnvp(jnp.zeros(18), X, Y, jnp.zeros(18)),
        "curvature: the loss Fused is a layer with params, and says nothing of the curvature at its end. […]",
    ),
    (lambda: jbp.Sampled(None), "Sampled: expected a random key, got None. Write jbp.Sampled(jax.random.key(0))."),
    (lambda: jbp.Sampled(3), "Sampled: expected a random key, got 3. Write jbp.Sampled(jax.random.key(3))."),
    (lambda: jbp.Sampled(jax.random.key(0), 0), "Sampled: samples must be a whole number of at least 1, got 0."),
    (
        lambda: measured(SQUARES, jbp.DiagonalGGN(jbp.Sampled)),
        "DiagonalGGN: seed must be 'exact', 'empirical' or a jbp.Sampled, got <class 'jbp.seeds.Sampled'>. […]",
    ),
    (
        lambda: measured(SQUARES, jbp.KroneckerFactors("recursive")),
        "KroneckerFactors: there is no seed 'recursive', since KFRA averages over the examples at each layer, […]",
    ),
    (
        lambda: jax.eval_shape(
            lambda theta, x: WIDE.measure(theta, x, x, jbp.DiagonalGGN()),
            *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((WIDE.layout.size,), (512, 2000))),
        ),
        "seed 'exact': the columns of the loss's root would take 7.6 GiB at the output, more than 4, and […]",
    ),
    (
        lambda: measured(SQUARES, jbp.DiagonalGGN(), feedback=THETA),
        "Cost.measure: DiagonalGGN speaks of J, which θ itself carries. Leave out feedback.",
    ),
    (
        lambda: SQUARES.read(SQUARES.pairs(THETA, X, Y), jbp.DiagonalGGN()),
        "Cost.read: these pairs are of the loss's own δ, and DiagonalGGN is of another seed. Use cost.measure.",
    ),
]


@over_calls(WRONG)
@pytest.mark.usefixtures("as_for_a_user")
def test_wrong_calls(call: Callable, message: str):
    assert_told(call, message)
