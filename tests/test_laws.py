"""The laws: what holds for every layer, loss and readout of the table in `cases.py`. Float64 decides."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    COSTS,
    LAYERS,
    LOSSES,
    NETWORKS,
    READOUTS,
    CostCase,
    LayerCase,
    LossCase,
    N,
    NoisyGain,
    as_numpy,
    assert_close,
    cast,
    covering,
    draw,
    over,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import special

import jbp
from jbp.pair import Whole
from jbp.programs.calls import inner_jaxprs
from jbp.uses import Stack

LOW_PRECISION = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda dtype: dtype.__name__)

# Where a law is dear, rows that have each class, setting, number of axes and nesting of the whole table, and each form
# of pairs in it (two stacks under one leaf have a row of their own).
SOME_LAYERS, SOME_NETWORKS = covering(LAYERS), covering(NETWORKS)
SOME_COSTS = covering(COSTS, "tied, a leaf of two loops")
REPEATS = 16  # draws of params, x and delta
WEIGHTS = np.arange(1, N + 1) / 4  # of the examples of a cost


# -- what the laws speak of, each compiled once for a dtype ------------------------------------------------------------


@cache
def passes(case: LayerCase) -> Callable[..., dict[str, Any]]:
    """(params, x, delta), each REPEATS times -> forward, and the pass back by hand and by `jax.vjp` of forward."""
    layer, context = case.layer, case.context

    def ask(params, x, delta):
        output, saved = layer.forward(params, x, context)
        _, vjp = jax.vjp(lambda params, x: layer.forward(params, x, context)[0], params, x)
        gradient, delta_x = vjp(delta)
        delta_x = jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, delta_x)
        by_hand = jbp.run(layer, params, x, context)[1](delta, jbp.read_gradient)
        return {"output": output, "saved": saved, "by hand": by_hand, "by autodiff": (delta_x, gradient)}

    return jax.jit(jax.vmap(ask))


@cache
def loss_passes(case: LossCase) -> Callable[..., dict[str, Any]]:
    """(output, y) -> the loss's value, and its derivative by hand and by `jax.grad` of value."""

    def ask(output, y):
        by_autodiff = jax.grad(lambda output: case.loss.value(output, y).sum())(output)
        value, delta = case.loss.value(output, y), case.loss.delta(output, y)
        return {"value": value, "by hand": delta, "by autodiff": by_autodiff}

    return jax.jit(ask)


@cache
def exact(case: CostCase) -> dict[str, Any]:
    """All that the laws ask of a cost, by hand and by autodiff, in float64, for REPEATS draws of (θ, x, y)."""
    with jax.enable_x64(True):
        cost, weights = case.cost(), jnp.asarray(WEIGHTS)
        of_one = jax.value_and_grad(jbp.Cost(cost.network, cost.loss, "sum"))

        def ask(theta, feedback, x, y):
            v = jnp.cos(jnp.arange(theta.size, dtype=theta.dtype))
            by_hand = partial(cost.value_and_grad, x=x, y=y, weights=weights)
            one = lambda theta, x, y: of_one(theta, *jax.tree.map(lambda a: a[None], (x, y)))
            examples = jax.vmap(one, (None, 0, 0))
            by_autodiff = lambda theta: examples(theta, x, y)
            pairs = cost.pairs(theta, x, y).values()
            reduced = lambda of_examples: jax.tree.map(lambda a: weights / weights.sum() @ a, of_examples)
            if case in SOME_COSTS:
                hand, hand_along_v = jax.jvp(by_hand, (theta,), (v,))
                auto, auto_along_v = jax.jvp(by_autodiff, (theta,), (v,))
                readouts = cost.measure(theta, x, y, *(readout for readout, _ in READOUTS), weights=weights)
                leaves = cost.value_and_grad_leaves(cost.layout.unflatten(theta), x, y, weights=weights)[1]
                more = {
                    "hessian product by hand": hand_along_v,
                    "hessian product by autodiff": reduced(auto_along_v),
                    "readouts": readouts,
                    "by hand, on leaves": cost.layout.flatten(cost.layout.filled(leaves, theta.dtype)),
                }
            else:
                hand, auto, more = by_hand(theta), by_autodiff(theta), {}
            return more | {
                "by hand": hand,
                "by autodiff": reduced(auto),
                "examples": auto,
                "pairs": jnp.concatenate([pair.per_example().reshape(N, -1) for pair in pairs], axis=1),
                "with feedback": by_hand(theta, feedback=feedback) if carries(cost) else None,
            }

        theta, x, y = cast(case.draw(case.cost(dtype=jnp.float32), REPEATS), jnp.float64)
        return as_numpy(jax.jit(jax.vmap(ask))(theta, theta, x, y))


def carries(cost: jbp.Cost) -> bool:
    """Whether another vector may carry delta."""
    return jbp.layer.says(cost.network.layer.layers, "own_feedback_only") is None


def first(case: CostCase, cost: jbp.Cost) -> tuple[jax.Array, Any, Any]:
    """(θ, x, y) of the first draw, in the cost's dtype."""
    args = as_numpy(case.draw(case.cost(dtype=jnp.float32), REPEATS))
    return cast(jax.tree.map(lambda a: jnp.asarray(a[0]), args), cost.network.dtype)


# -- Law 1: the oracle ------------------------------------------------------------------------------------------------


@over(LAYERS)
def test_backward_is_the_vjp_of_forward(case: LayerCase, x64: None):
    result = passes(case)(*case.draw(jnp.float64, REPEATS))
    assert_close(result["by hand"], result["by autodiff"])


@over(COSTS)
def test_the_gradient_of_a_cost_is_that_of_autodiff(case: CostCase):
    assert_close(exact(case)["by hand"], exact(case)["by autodiff"])


@over(SOME_COSTS)
def test_its_gradient_on_leaves_is_the_same(case: CostCase):
    assert_close(exact(case)["by hand, on leaves"], exact(case)["by autodiff"][1])


@over(LOSSES)
def test_delta_is_the_gradient_of_the_value(case: LossCase, x64: None):
    result = loss_passes(case)(*case.draw(jnp.float64))
    assert_close(result["by hand"], result["by autodiff"])


def assert_at_most_twice_the_error(by_hand: Any, by_autodiff: Any, exact: Any, dtype: Any) -> None:
    """Each leaf's RMS error is at most twice autodiff's, plus what a correct rounding to `dtype` may cost."""
    rms = lambda a: np.sqrt(np.mean(np.square(a)))
    half_ulp = float(jnp.finfo(dtype).eps) / 2
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(exact)[0]]
    for path, *leaves in zip(paths, *map(jax.tree.leaves, (by_hand, by_autodiff, exact)), strict=True):
        ours, autodiffs, true = (np.asarray(leaf, np.float64) for leaf in leaves)
        error, allowed = rms(ours - true), 2 * rms(autodiffs - true) + half_ulp * rms(true)
        assert error <= allowed, f"leaf {path}: RMS error {error:.3e}, allowed {allowed:.3e}, RMS {rms(true):.3e}"


@LOW_PRECISION
@over(SOME_LAYERS)
def test_in_low_precision_a_layer_errs_at_most_twice_as_much_as_autodiff(case: LayerCase, dtype: Any):
    args = case.draw(dtype, REPEATS)
    result = passes(case)(*args)
    with jax.enable_x64(True):
        true = passes(case)(*cast(args, jnp.float64))["by autodiff"]
    assert_at_most_twice_the_error(result["by hand"], result["by autodiff"], true, dtype)


@LOW_PRECISION
@over(LOSSES)
def test_in_low_precision_a_loss_errs_at_most_twice_as_much_as_autodiff(case: LossCase, dtype: Any):
    args = case.draw(dtype, n=256)
    result = loss_passes(case)(*args)
    with jax.enable_x64(True):
        true = loss_passes(case)(*cast(args, jnp.float64))["by autodiff"]
    assert_at_most_twice_the_error(result["by hand"], result["by autodiff"], true, dtype)


@LOW_PRECISION
@over([case for case in LOSSES if case.likelihood and case.draw_y is not draw])
def test_confident_outputs_cost_no_digits(case: LossCase, dtype: Any):
    """Where the model is right and sure of it, δ = p − y is a small difference of numbers near 1."""
    noise, y = case.draw(dtype, n=256)
    right = jax.nn.one_hot(y, case.shape[-1], dtype=dtype) if y.ndim < noise.ndim else jnp.sign(noise)
    args = 10 * right + noise / 4, y if y.ndim < noise.ndim else (right > 0).astype(dtype)
    result = loss_passes(case)(*args)
    with jax.enable_x64(True):
        true = loss_passes(case)(*cast(args, jnp.float64))["by autodiff"]
    assert_at_most_twice_the_error(result["by hand"], result["by autodiff"], true, dtype)


@over(SOME_NETWORKS)
def test_in_low_precision_a_cost_errs_at_most_twice_as_much_as_autodiff(case: CostCase):
    cost, weights = case.cost(compute_dtype=jnp.bfloat16), jnp.asarray(WEIGHTS, jnp.float32)

    def ask(theta, x, y):
        read = cost.measure(theta, x, y, jbp.Gradient(), weights=weights)[1]
        by_hand = cost.grad(theta, x, y, weights=weights)
        return (by_hand, read), (jax.grad(cost)(theta, x, y, weights=weights),) * 2

    by_hand, by_autodiff = jax.jit(jax.vmap(ask))(*case.draw(cost, REPEATS))
    assert_at_most_twice_the_error(by_hand, by_autodiff, (exact(case)["by autodiff"][1],) * 2, jnp.bfloat16)


def test_the_context_reaches_every_layer_with_a_key_of_its_own(x64: None):
    layers, spec = (NoisyGain(), jbp.Residual(NoisyGain()), NoisyGain()), (4, 50)
    case = CostCase("noise", layers, spec, jbp.losses.HalfSquaredError(), draw)
    cost = case.cost()
    theta, x, y = first(case, cost)
    mask = jnp.arange(4)[None] < jnp.arange(N)[:, None]
    context = jbp.Context(jax.random.key(1), mask)
    assert_close(cost.grad(theta, x, y, context=context), jax.grad(cost)(theta, x, y, context=context))
    through_one = jbp.Network(layers[:1], spec)(theta[:50], x, context) != 0
    through_all = cost.network(theta, x, context) != 0
    assert not through_one[~mask].any()
    assert 0.4 < through_one[mask].mean() < 0.6  # a layer drops half; the first and the last together, more
    assert 0.2 < through_all[mask].mean() < 0.3


def test_a_tap_edits_delta_in_reverse_only(x64: None):
    tapped = LayerCase("", jbp.Sequential([jbp.Dense(3), jbp.Tap(lambda delta: 3 * delta)]), (2,), None)
    plain = LayerCase("", jbp.Sequential([jbp.Dense(3), jbp.Identity()]), (2,), None)
    params, x, delta = tapped.draw(jnp.float64, REPEATS)
    assert_close(passes(tapped)(params, x, delta)["output"], passes(plain)(params, x, delta)["output"])
    assert_close(passes(tapped)(params, x, delta)["by hand"], passes(plain)(params, x, 3 * delta)["by autodiff"])


# -- Law 2: forward equals an independent implementation --------------------------------------------------------------


@over(LAYERS)
def test_forward_equals_an_independent_implementation(case: LayerCase, x64: None):
    params, x, delta = as_numpy(case.draw(jnp.float64, REPEATS))
    outputs = as_numpy(passes(case)(params, x, delta)["output"])
    for i in range(REPEATS):
        assert_close(outputs[i], case.forward(*jax.tree.map(lambda a, i=i: a[i], (params, x))))


@over(LOSSES)
def test_a_loss_equals_an_independent_implementation(case: LossCase, x64: None):
    args = case.draw(jnp.float64)
    assert_close(loss_passes(case)(*args)["value"], case.value(*as_numpy(args)))


# -- Law 3: sums over examples ----------------------------------------------------------------------------------------


@over(COSTS)
def test_pairs_hold_the_gradients_of_single_examples(case: CostCase):
    assert_close(exact(case)["pairs"], exact(case)["examples"][1])


@over(SOME_COSTS)
def test_every_readout_equals_its_definition(case: CostCase, x64: None):
    values, gradients = exact(case)["examples"]
    factors = WEIGHTS / WEIGHTS.sum()
    value, readouts = exact(case)["readouts"]
    assert_close(value, values @ factors)
    by_definition = jax.vmap(lambda g: [definition(g, jnp.asarray(factors)) for _, definition in READOUTS])
    for got, expected in zip(readouts, jax.jit(by_definition)(gradients), strict=True):
        assert_close(got, expected)


@pytest.mark.parametrize(("reduction", "weights", "factors"), [
    ("mean", None, np.full(N, 1 / N)),
    ("mean", np.full(N, 3.0), np.full(N, 1 / N)),
    ("mean", WEIGHTS, WEIGHTS / WEIGHTS.sum()),
    ("sum", None, np.ones(N)),
    ("sum", WEIGHTS, WEIGHTS),
])  # fmt: skip
def test_the_reductions_of_a_cost(reduction: str, weights: Any, factors: np.ndarray, x64: None):
    case = COSTS[0]
    cost = case.cost(reduction)
    args = first(case, cost)
    values, gradients = (part[0] for part in exact(case)["examples"])
    expected = (values @ factors, factors @ gradients)
    assert_close(cost(*args, weights=weights), expected[0])
    assert_close(cost.grad(*args, weights=weights), expected[1])
    assert_close(cost.value_and_grad(*args, weights=weights), expected)
    assert_close(cost.measure(*args, jbp.Gradient(), weights=weights), expected)


@dataclass(frozen=True)
class PairCase:
    """A pair form at given sizes: `draw(seed, n, t)` gives the pair and its per-example gradients by definition."""

    name: str
    draw: Callable[[int, int, int], tuple[jbp.Pair, np.ndarray]]
    t: int = 1

    def block(self, g: np.ndarray) -> tuple[int, ...]:
        """The leaf's shape, of one block if it is of stacked ones."""
        return g.shape[2:] if self.name.startswith("stack") else g.shape[1:]


def projections(leaf: tuple[int, ...]) -> tuple[Any, Any]:
    """A and B of 2 and 3 columns for a leaf; no A for one that has not two axes."""
    return (normal(40, leaf[0], 2) if len(leaf) == 2 else None), normal(41, *leaf[-1:], 3)


def projected(g: np.ndarray, A: Any, B: Any) -> np.ndarray:
    return g @ B if A is None else np.einsum("ir,n...io,os->n...rs", A, g, B)


def normal(seed: int, *shape: int) -> jax.Array:
    return draw(seed, jax.ShapeDtypeStruct(shape, jnp.float64))


def outer(i, o, seed, n, t):
    a, delta = normal(seed, n, t, i), normal(seed + 1, n, t, o)
    return jbp.Outer(a, delta), np.einsum("nti,nto->nio", a, delta)


def summed(leaf, seed, n, t):
    g = normal(seed, n, t, *leaf)
    return jbp.Sum(g), np.asarray(g).sum(1)


def whole(leaf, seed, n, t):
    g = normal(seed, n, *leaf)
    return Whole(g.sum(0), g), np.asarray(g)


def stacked(block, seed, n, t):
    """Three blocks of another form, as a loop stacks them."""
    pairs, g = zip(*(block(seed + 10 * i, n, t) for i in range(3)), strict=True)
    return Stack(jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)), np.stack(g, axis=1)


def gathered(rows, o, seed, n, t):
    """Some indices count from the end, some have no row."""
    index, delta = np.random.default_rng(seed).integers(-rows - 1, rows + 1, (n, t)), normal(seed, n, t, o)
    g = np.zeros((n, rows, o))
    for at, i in np.ndenumerate(index):
        if -rows <= i < rows:
            g[at[0], i] += delta[at]
    return jbp.Gather(jnp.asarray(index), delta).of((rows, o)), g


def several(seed, n, t):
    """A table that is looked up, that is a kernel too, and that a function uses."""
    uses, g = zip(*(use(seed + 10 * i, n, t) for i, use in enumerate(USES)), strict=True)
    return jbp.Several(uses).of((4, 3)), sum(g)


USES = partial(gathered, 4, 3), partial(outer, 4, 3), partial(whole, (4, 3))
KERNELS = (
    PairCase("outer, one position", partial(outer, 4, 3)),
    PairCase("outer, few positions and a wide kernel", partial(outer, 9, 8), t=3),  # Gram matrices over positions
    PairCase("outer, many positions and a tiny kernel", partial(outer, 2, 2), t=9),  # one example after another
)
PAIRS = (
    *KERNELS,
    PairCase("sum, one position", partial(summed, (3,))),
    PairCase("sum, positions", partial(summed, (2, 3)), t=4),
    PairCase("sum, scalar leaf", partial(summed, ()), t=4),
    PairCase("whole", partial(whole, (2, 3))),
    PairCase("stack of outers", partial(stacked, partial(outer, 4, 3)), t=2),
    PairCase("stack of sums", partial(stacked, partial(summed, (3,))), t=2),
)
TABLES = (
    PairCase("gather", partial(gathered, 4, 3), t=6),
    PairCase("several uses", several, t=3),
    PairCase("stack of gathers", partial(stacked, partial(gathered, 4, 3)), t=5),
)


@over((*PAIRS, *TABLES))
def test_a_pair_answers_by_definition(case: PairCase, x64: None):
    """In the form's own shorter way, and as `Pair` defines it from the per-example gradients."""
    (pair, g), (other, g_other) = case.draw(0, 5, case.t), case.draw(100, 2, case.t + 1)
    twin, g_twin = case.draw(300, 5, case.t + 1)  # of the same examples
    w, v = normal(200, 5), normal(201, *g.shape[1:])
    A, B = projections(case.block(g))
    rows, rows_other = g.reshape(5, -1), g_other.reshape(2, -1)
    expected = {
        "per_example": g,
        "gradient": g.sum(0),
        "weighted_gradient": np.einsum("n,n...->...", w, g),
        "squared_norms": (rows**2).sum(1),
        "squares": (g**2).sum(0),
        "weighted squares": np.einsum("n,n...->...", w, g**2),
        "weighted": np.einsum("n,n...->n...", w, g),
        "examples": g[[3, 0, 3]],
        "condensed": g,
        "dots": rows @ rows_other.T,
        "inner": (g * g_twin).reshape(5, -1).sum(1),
        "along": rows @ np.ravel(v),
    }
    if g.ndim > 1:  # a number has no axis to project
        expected["projected"] = projected(g, A, B)

    @jax.jit
    def ask(w, v):
        given = {
            "weighted_gradient": (w,), "dots": (other,), "inner": (twin,), "along": (v,), "weighted squares": (w,),
            "weighted": (w,), "examples": (jnp.array([3, 0, 3]),), "projected": (A, B),
        }  # fmt: skip
        told = lambda answer: answer.per_example() if isinstance(answer, jbp.Pair) else answer
        ask = lambda of, name, *self: told(getattr(of, name.split()[-1])(*self, *given.get(name, ())))
        own = {name: ask(pair, name) for name in expected}
        defined = {name: ask(jbp.Pair, name, pair) for name in expected if name != "per_example"}
        return own, defined

    own, defined = ask(w, v)
    assert_close(own, expected)
    assert_close(defined, {name: expected[name] for name in defined})


@pytest.mark.parametrize("one", range(3))
@pytest.mark.parametrize("two", range(3))
@pytest.mark.parametrize("t", [1, 9])
def test_uses_of_different_forms_have_their_cross_terms(one: int, two: int, t: int, x64: None):
    (pair, g), (other, g_other) = USES[one](0, 5, t), USES[two](100, 5, 2)
    answers = lambda pair, other: (pair.inner(other), pair.dots(other), pair.transposed().gradient())
    dots = g.reshape(5, -1) @ g_other.reshape(5, -1).T
    assert_close(jax.jit(answers)(pair, other), ((g * g_other).reshape(5, -1).sum(1), dots, g.sum(0).T))


@over(PAIRS)
def test_the_kronecker_factors_of_one_example_at_one_position_are_exact(case: PairCase, x64: None):
    pair, g = case.draw(0, 1, 1)
    assert_close(np.kron(*jbp.Pair.factors(pair)), np.outer(g, g))
    if isinstance(pair, Stack):  # a pair of factors for each block
        for i, block in enumerate(np.moveaxis(g, 1, 0)):
            assert_close(np.kron(*(factor[i] for factor in pair.factors())), np.outer(block, block))
    else:
        assert_close(np.kron(*pair.factors()), np.outer(g, g))


@over(KERNELS)
def test_the_kronecker_factors_of_a_kernel_are_second_moments(case: PairCase, x64: None):
    pair, _ = case.draw(0, 5, case.t)
    a, delta = (np.reshape(part, (-1, part.shape[-1])) for part in (pair.a, pair.delta))
    assert_close(pair.factors(), (a.T @ a / len(a), delta.T @ delta / 5))


@over([case for case in PAIRS if case.name.startswith(("sum", "whole"))])
def test_without_kronecker_structure_the_factor_is_the_whole_second_moment(case: PairCase, x64: None):
    pair, g = case.draw(0, 5, case.t)
    assert_close(np.kron(*pair.factors()), g.reshape(5, -1).T @ g.reshape(5, -1) / 5)


QUESTIONS = {
    "squared_norms": lambda pair: pair.squared_norms(),
    "inner": lambda pair: pair.inner(pair),
    "dots": lambda pair: pair.dots(pair),
}


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize(("t", "i", "o"), [(2, 64, 64), (64, 4, 4)])
def test_a_kernel_answers_in_the_cheaper_of_two_ways(name: str, t: int, i: int, o: int):
    """By Gram matrices over few positions of a wide kernel, by each g_n over many of a small one."""
    pair = jbp.Outer(jnp.ones((4, t, i)), jnp.ones((4, t, o)))
    grams = 4 if name == "dots" else 1  # of each example with each
    dots = grams * 4 * 4 * i * o if name == "dots" else 0
    most = min(4 * grams * 2 * t * t * (i + o), 2 * 4 * 2 * t * i * o + dots)
    assert 0 < flops_of_products(jax.make_jaxpr(QUESTIONS[name])(pair)) <= most


def flops_of_products(jaxpr: Any, turns: int = 1) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        inside = turns * eqn.params["length"] if eqn.primitive.name == "scan" else turns
        total += sum(flops_of_products(inner, inside) for inner in inner_jaxprs(eqn))
        if eqn.primitive.name == "dot_general":
            (over, _), _ = eqn.params["dimension_numbers"]
            over = math.prod(eqn.invars[0].aval.shape[axis] for axis in over)
            total += 2 * turns * over * eqn.outvars[0].aval.size
    return total


@over(KERNELS)
def test_a_pair_of_bfloat16_answers_in_float32(case: PairCase):
    """What it holds is bfloat16; what it answers errs by float32's rounding, not by bfloat16's."""
    with jax.enable_x64(True):
        pair = cast(case.draw(0, 5, case.t)[0], jnp.bfloat16)
        w, v = cast((normal(1, 5), normal(2, *pair.per_example().shape[1:])), jnp.float32)
        true = jax.jit(answers)(*cast((pair, w, v), jnp.float64))
    got = jax.jit(answers)(pair, w, v)
    assert {answer.dtype for answer in jax.tree.leaves(got)} == {np.dtype(np.float32)}
    assert_close(got, true, relative=64 * float(jnp.finfo(jnp.float32).eps))


def answers(pair: jbp.Pair, w: jax.Array, v: jax.Array) -> dict[str, Any]:
    names = ("per_example", "gradient", "squared_norms", "squares", "factors")
    given = {"weighted_gradient": w, "along": v, "dots": pair}
    return {n: getattr(pair, n)() for n in names} | {n: getattr(pair, n)(arg) for n, arg in given.items()}


@pytest.mark.parametrize("readout", [readout for readout, _ in READOUTS], ids=lambda one: repr(one).split(" at 0x")[0])
def test_a_readout_of_a_loop_is_the_readout_of_the_stack(readout: Any, x64: None):
    """Read in each block and stacked, as `lax.scan` stacks it, or read off the stacked pair: the same."""
    blocks, w = [outer(4, 3, seed, 5, 2)[0] for seed in range(3)], normal(9, 5)
    readings = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(readout.read(block, w) for block in blocks))
    stack = Stack(jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks))
    assert_close(readout.stack(readings), readout.read(stack, w))


# -- Law 4: feedback --------------------------------------------------------------------------------------------------


@over(COSTS)
def test_feedback_by_the_weights_themselves_changes_no_bit(case: CostCase):
    """But with the old emitters, which fuse two passes of one program in two ways: there, a last place or two."""
    if carries(case.cost()):
        old = "--xla_cpu_use_fusion_emitters=false" in os.environ["XLA_FLAGS"]
        assert_close(exact(case)["with feedback"][1], exact(case)["by hand"][1], 1e-14 if old else 0)
    else:
        cost = case.cost()
        theta, x, y = first(case, cost)
        with pytest.raises(jbp.InputError, match="feedback"):
            cost.grad(theta, x, y, feedback=theta)


def test_feedback_by_other_weights_is_feedback_alignment(x64: None):
    """Lillicrap et al. 2016: δ^ℓ = (B^{ℓ+1})ᵀ δ^{ℓ+1} · σ′(z^ℓ), written out for three layers of sigmoids."""
    cost = jbp.Cost(jbp.mlp(4, 5, 3), jbp.losses.HalfSquaredError(), "sum")
    theta, feedback = normal(0, cost.layout.size), normal(1, cost.layout.size)
    x, y = normal(2, 6, 4), normal(3, 6, 3)

    (w2, b2), _, (w3, b3), _ = as_numpy(cost.layout.unflatten(theta))
    a1 = np.asarray(x)
    a2 = special.expit(a1 @ w2 + b2)
    a3 = special.expit(a2 @ w3 + b3)
    delta3 = (a3 - y) * a3 * (1 - a3)
    delta2 = delta3 @ np.asarray(cost.layout.matrix(feedback, 3)) * a2 * (1 - a2)
    expected = [(a1.T @ delta2).ravel(), delta2.sum(0), (a2.T @ delta3).ravel(), delta3.sum(0)]
    assert_close(cost.grad(theta, x, y, feedback=feedback), np.concatenate(expected))


# -- Law 5: backward is linear in δ, and saved holds no parameter -----------------------------------------------------


@over(LAYERS)
def test_backward_is_linear_in_delta(case: LayerCase, x64: None):
    params, x, delta1 = as_numpy(case.draw(jnp.float64, REPEATS))
    delta2 = as_numpy(case.draw(jnp.float64, REPEATS, seed=10)[2])
    back = lambda delta: as_numpy(passes(case)(params, x, delta)["by hand"])
    combined = lambda one, two: jax.tree.map(lambda a, b: 2 * a - 3 * b, one, two)
    assert_close(back(combined(delta1, delta2)), combined(back(delta1), back(delta2)))


@over(LAYERS)
def test_saved_holds_no_parameter(case: LayerCase):
    """Nothing that is saved follows the params while it stays the same under another x."""
    (params, x, delta), (other_params, other_x, _) = (case.draw(jnp.float32, REPEATS, seed) for seed in (0, 10))
    save = lambda params, x: jax.tree.leaves(passes(case)(params, x, delta)["saved"])
    for leaf, by_params, by_x in zip(save(params, x), save(other_params, x), save(params, other_x), strict=True):
        assert np.array_equal(leaf, by_params) or not np.array_equal(leaf, by_x)


# -- Law 6: transforms ------------------------------------------------------------------------------------------------


@over(SOME_COSTS)
def test_the_derivative_of_the_gradient_is_the_hessian_product(case: CostCase):
    assert_close(exact(case)["hessian product by hand"], exact(case)["hessian product by autodiff"])


@over(NETWORKS[-1:])
def test_the_gradient_under_scan(case: CostCase, x64: None):
    """Under jit and vmap every case is in `exact`."""
    cost, args = case.cost(), cast(case.draw(case.cost(dtype=jnp.float32), REPEATS), jnp.float64)
    step = lambda carry, args: (carry, cost.value_and_grad(*args, weights=WEIGHTS))
    assert_close(jax.lax.scan(step, None, args)[1], exact(case)["by autodiff"])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@over(SOME_NETWORKS)
def test_a_batch_over_eight_devices_gives_the_same_gradient(case: CostCase, kind: AxisType, x64: None):
    cost = case.cost()
    theta, x, y = first(case, cost)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(kind,), devices=jax.devices("cpu"))
    with jax.set_mesh(mesh):
        spread = partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec("batch")))
        x, y, weights = spread((x, y, jnp.asarray(WEIGHTS)))
        assert len(jax.tree.leaves(x)[0].sharding.device_set) == 8
        _, gradient = jax.device_get(cost.value_and_grad(theta, x, y, weights=weights))
    assert_close(gradient, exact(case)["by autodiff"][1][0])


@over(SOME_COSTS)
def test_a_cost_lowers_for_every_platform(case: CostCase):
    cost = case.cost()
    exported = jax.export.export(jax.jit(cost.value_and_grad), platforms=("cpu", "cuda", "tpu"))(*first(case, cost))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert [aval.shape for aval in exported.out_avals] == [(), (cost.layout.size,)]


@dataclass(frozen=True)
class Counting:
    """The identity, which counts how often it is traced."""

    traces: ClassVar[list[str]] = []

    def init(self, key, x):
        return ()

    def forward(self, params, x, context):
        self.traces.append("forward")
        return x, ()

    def backward(self, params, feedback, saved, delta, read):
        self.traces.append("backward")
        return delta, ()


@pytest.mark.parametrize("call", [
    lambda cost, *args: cost(*args),
    lambda cost, *args: cost.grad(*args),
    lambda cost, *args: cost.value_and_grad(*args, weights=np.ones(N)),
    lambda cost, *args: cost.grad(*args, context=jbp.Context(jax.random.key(3)), feedback=args[0]),
    lambda cost, *args: cost.measure(*args, jbp.Gradient(), jbp.SquaredNorms()),
    lambda cost, *args: cost.pairs(*args),
], ids=["cost", "grad", "weights", "context and feedback", "measure", "pairs"])  # fmt: skip
def test_a_second_call_does_not_recompile(call: Callable):
    """An equal cost, built anew, on other numbers. Building traces too, to know the shapes."""
    case = CostCase("", (jbp.Dense(3), Counting()), (2,), jbp.losses.HalfSquaredError(), draw)
    traced = []
    for seed in (0, 1):
        cost = case.cost()
        args = jax.tree.map(lambda a: a[0], case.draw(cost, 1, seed=seed))
        Counting.traces.clear()
        call(cost, *args)
        traced.append(len(Counting.traces))
    assert traced[0] > 0
    assert traced[1] == 0


# -- losses -----------------------------------------------------------------------------------------------------------


@over([case for case in LOSSES if hasattr(case.loss, "hessian_root")])  # a loss needs none for its gradient
def test_the_hessian_of_a_loss(case: LossCase, x64: None):
    output, y = case.draw(jnp.float64)
    v = draw(9, output)

    @jax.jit
    def ask(output, y, v):
        one = lambda output, y: case.loss.value(output[None], y[None])[0]
        derivative = jax.jvp(lambda output: case.loss.delta(output, y), (output,), (v,))[1]
        products = (case.loss.hessian_product(output, y, v), derivative)
        return jax.vmap(jax.hessian(one))(output, y), products, case.loss.hessian_root(output, y)

    hessian, products, root = as_numpy(ask(output, y, v))
    hessian, root = hessian.reshape(N, v[0].size, -1), root.reshape(-1, N, v[0].size)
    expected = np.einsum("nij,nj->ni", hessian, np.reshape(v, (N, -1))).reshape(v.shape)
    assert_close(products, (expected, expected))
    assert_close(np.einsum("kni,knj->nij", root, root), hessian)


@over([case for case in LOSSES if case.likelihood])
def test_samples_have_the_moments_of_the_likelihood(case: LossCase):
    """For C = −log p(y), E δ = 0 and E δδᵀ = H, the Hessian at any y. Six standard errors, at a fixed seed."""
    samples = 20_000
    output = case.draw(jnp.float32, n=1)[0]
    many = jnp.repeat(output, samples, axis=0)
    y = jax.jit(case.loss.sample)(jax.random.key(0), many)
    case.loss.check(many, y)
    delta = np.asarray(case.loss.delta(many, y), np.float64).reshape(samples, -1)
    root = np.asarray(case.loss.hessian_root(output, y[:1]), np.float64).reshape(-1, delta.shape[1])
    for moments, expected in ((delta, 0), (np.einsum("ni,nj->nij", delta, delta), root.T @ root)):
        standard_error = moments.std(0) / np.sqrt(samples)
        assert np.all(np.abs(moments.mean(0) - expected) <= 6 * standard_error)


def test_huber_has_no_likelihood():
    with pytest.raises(jbp.InputError, match="likelihood"):
        jbp.losses.Huber().sample(jax.random.key(0), jnp.zeros((2, 3)))


def test_huber_at_its_kink(x64: None):
    loss, output = jbp.losses.Huber(0.5), jnp.array([[-0.5, 0.5, 0.0, 3.0, -3.0]])
    zero, one = jnp.zeros_like(output), jnp.ones_like(output)
    np.testing.assert_array_equal(loss.value(output, zero), [0.125 + 0.125 + 0.5 * 2.75 + 0.5 * 2.75])
    np.testing.assert_array_equal(loss.delta(output, zero), [[-0.5, 0.5, 0, 0.5, -0.5]])
    np.testing.assert_array_equal(loss.hessian_product(output, zero, one), [[1, 1, 1, 0, 0]])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__)
def test_cross_entropies_far_out(dtype: Any):
    z = jnp.array([[0.0, 1e4, -1e4]], dtype)
    y = jnp.array([[1.0, 1.0, 1.0]], dtype)
    sigmoid = jbp.losses.SigmoidCrossEntropy()
    np.testing.assert_allclose(sigmoid.value(z, y), [np.log(2) + float(-z[0, 2])], rtol=1e-6)
    np.testing.assert_array_equal(sigmoid.delta(z, y), [[-0.5, 0, -1]])
    np.testing.assert_array_equal(sigmoid.hessian_product(z, y, y), [[0.25, 0, 0]])
    softmax = jbp.losses.SoftmaxCrossEntropy()
    np.testing.assert_array_equal(softmax.value(z, jnp.array([1])), [0])
    np.testing.assert_array_equal(softmax.value(z, jnp.array([2])), [2 * float(-z[0, 2])])
    np.testing.assert_array_equal(softmax.delta(z, jnp.array([2])), [[0, 1, -1]])


def test_a_class_ruled_out_by_minus_infinity():
    z, y, loss = jnp.array([[0.0, -jnp.inf, 0.0]]), jnp.array([0]), jbp.losses.SoftmaxCrossEntropy()
    np.testing.assert_allclose(loss.value(z, y), [np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(loss.delta(z, y), [[-0.5, 0, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(loss.hessian_product(z, y, jnp.ones((1, 3))), [[0, 0, 0]], atol=1e-6)


def test_a_label_out_of_range_is_nan_and_an_ignored_one_counts_nothing():
    z = jnp.zeros((1, 3))
    loss = jbp.losses.SoftmaxCrossEntropy(ignore=-1)
    assert np.isnan(loss.value(z, jnp.array([3]))).all()
    assert np.isnan(loss.delta(z, jnp.array([-2]))).all()
    np.testing.assert_array_equal(loss.value(z, jnp.array([-1])), [0])
    np.testing.assert_array_equal(loss.delta(z, jnp.array([-1])), [[0, 0, 0]])
    cost = jbp.Cost(jbp.Network([jbp.Identity()], (3,)), loss)
    with pytest.raises(jbp.InputError, match=r"y\[1\] = 3 \(1 out of range\)"):
        cost.check(jnp.zeros(0), jnp.zeros((2, 3)), jnp.array([-1, 3]))
