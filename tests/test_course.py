"""What happens in a descent besides its steps: the best epoch, weights, masks, feedback, what an optimiser is told."""

import json
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from test_state import BATCHES, COST, SETTINGS, THETA, N, X, Y, loss_of, numbers, same_bits, small_cost
from test_state import standard_promotion as standard_promotion

import jbp
from jbp import losses
from jbp.course import calls

DESCENT, COURSE, STREAM = (sys.modules[f"jbp.{name}"] for name in ("descent", "course", "stream"))


def said(name: str, *values: Any) -> Any:
    """An `evaluate` that returns one value after another."""
    following = iter(values)
    return lambda theta: {name: next(following)}


def fit(data: Any = (X, Y), **settings: Any) -> jbp.Run:
    return jbp.fit(COST, THETA, data, **SETTINGS | settings)


# -- the best epoch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("best", "values", "epoch"),
    [
        ("score", (1.0, 3.0, 2.0), 2),
        ("-score", (2.0, 3.0, 1.0), 3),
        ("score", (1.0, 1.0, 1.0), 1),  # of equal ones the first
        ("score", (math.nan, 1.0, math.nan), 2),
        ("-score", (math.nan, math.inf, 5), 3),
        ("-score", (-math.inf, 0.0, -math.inf), 1),
    ],
)
def test_the_best_epoch_and_its_theta(best: str, values: tuple, epoch: int):
    thetas = []
    evaluate = said("score", *values)
    run = fit(epochs=3, best=best, evaluate=lambda theta: (thetas.append(theta), evaluate(theta))[1])
    assert (run.best.epoch, run.best.value) == (epoch, values[epoch - 1])
    np.testing.assert_array_equal(run.best.theta, thetas[epoch - 1])
    assert run.stopped is None


def test_nan_is_never_best():
    run = fit(epochs=9, best="-score", patience=3, evaluate=said("score", *[math.nan] * 9))
    assert run.best is None
    assert len(run.history.epochs) == 3
    assert run.stopped == (
        "fit: 3 epochs without a better -score. Stopped after epoch 3; the best is none, it is NaN in all."
    )


def test_best_may_begin_later():
    half = fit(BATCHES, epochs=3, evaluate=said("score", 9.0, 8.0, 7.0))
    run = fit(
        BATCHES, epochs=9, resume=half.state, best="score", patience=2, evaluate=said("score", 1.0, 2.0, 1.0, 1.0)
    )
    assert (run.best.epoch, len(run.history.epochs)) == (5, 7)


# -- records ----------------------------------------------------------------------------------------------------------


def test_a_record_holds_plain_numbers():
    told = {"a": np.float32(0.5), "b": jnp.int32(3), "c": jnp.ones((1, 1)), "d": True, "e": "words", "f": None}
    record = fit(epochs=1, evaluate=lambda theta: told).history.epochs[0]
    assert {name: record[name] for name in told} == {
        "a": 0.5,
        "b": 3,
        "c": 1.0,
        "d": True,
        "e": "words",
        "f": None,
    }
    assert type(record["a"]) is float


@pytest.mark.parametrize("evaluate", [None, loss_of], ids=["without evaluate", "with"])
def test_seconds_since_the_start_and_of_each_epoch(evaluate: Any):
    run = fit(epochs=40, evaluate=evaluate)
    on = fit(epochs=60, evaluate=evaluate, resume=run.state)
    for records in (run.history.epochs, on.history.epochs):
        seconds, each = ([record[name] for record in records] for name in ("seconds", "epoch_seconds"))
        assert all(one > 0 for one in each)
        np.testing.assert_allclose(np.cumsum(each), seconds, rtol=1e-9)


def test_history_as_json():
    history = fit(epochs=2, evaluate=said("score", math.nan, 2.0)).history
    content = json.loads(history.to_json())
    assert content["cost"] == history.cost.tolist()
    assert [record["score"] for record in content["epochs"]] == ["nan", 2.0]
    assert [record["step"] for record in content["epochs"]] == [6, 11]


def test_history_as_a_figure():
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'jbp[cli]'")
    run = fit(epochs=3, evaluate=lambda theta: {"loss": 1.0, "accuracy": 0.5, "stop": False, "word": "w"})
    axes = run.history.figure().axes
    assert [a.get_title("left") for a in axes] == ["Cost of the batch", "accuracy", "loss"]
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), run.history.cost)
    np.testing.assert_array_equal(axes[2].lines[0].get_xdata(), [6, 11, 16])
    assert jbp.History().figure().axes[0].get_title("left") == "Cost of the batch"  # of no step


def test_a_run_in_a_few_lines():
    run = fit(epochs=200, best="-loss", evaluate=loss_of)
    lines = repr(run).splitlines()
    assert lines[0] == "Run: theta float32[26]"
    assert lines[1].startswith("  1,050 steps, 200 epochs, ")
    assert lines[2] == f"  cost of the batch {run.history.cost[0]:.6g} → {run.history.cost[-1]:.6g}"
    assert lines[3] == f"  epoch 1: step 6, loss {run.history.epochs[0]['loss']:.6g}"
    assert lines[4] == f"  epoch 200: step 1,050, loss {run.history.epochs[-1]['loss']:.6g}"
    assert lines[5] == f"  best: epoch {run.best.epoch}, {run.best.value:.6g}"
    assert len(lines) == 6
    assert repr(run.state) == (
        "State after step 1,050, 200 epochs: 26 parameters, "
        "optimizer (ScaleByAdamState(·, θ, θ), ScaleByScheduleState(·))"
    )
    assert repr(run.best) == f"Best(epoch={run.best.epoch}, value={run.best.value:.6g}, theta=float32[26])"
    assert repr(jbp.History()) == "0 steps, 0 epochs"


# -- row by row -------------------------------------------------------------------------------------------------------


def loop(batches: list, cost: jbp.Cost = COST, feedback: Any = None) -> np.ndarray:
    """θ after plain steps on the batches (x, y, weights, context), by the cost's own gradient."""
    theta = jnp.asarray(THETA)
    for step, (x, y, weights, context) in enumerate(batches):
        carry = feedback(theta, step) if callable(feedback) else feedback
        theta -= 0.1 * cost.grad(theta, x, y, weights=weights, context=context, feedback=carry)
    return theta


SGD: dict[str, Any] = {"optimizer": optax.sgd(0.1), "batch_size": 4, "key": jax.random.key(3)}


def rows_of_each_step(epochs: int) -> list[np.ndarray]:
    """The rows of each batch of the shuffle of `SGD`, read off the costs of a network that only adds up."""
    linear = jbp.Cost(jbp.Network([jbp.Dense(1, bias=False)], (N,)), losses.SquaredError(), "sum")
    rows = []

    def note(theta, step):
        return theta

    x = np.eye(N, dtype=np.float32)
    theta = np.zeros(N, np.float32)
    run = jbp.fit(
        linear, theta, (x, np.ones((N, 1), np.float32)), epochs=epochs, feedback=note,
        **SGD | {"optimizer": keep_gradients(N, -(-epochs * N // 4))},
    )  # fmt: skip
    kept = run.state.leaves["optimizer.gradients"]
    for gradient in np.asarray(kept)[: run.state.step]:
        rows.append(np.flatnonzero(gradient))
    return rows


def keep_gradients(size: int, steps: int) -> optax.GradientTransformation:
    """An optimiser that takes no step, and keeps each gradient."""

    def update(gradient, state, params=None):
        flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])
        kept = state["gradients"].at[state["step"]].set(flat)
        return jax.tree.map(jnp.zeros_like, gradient), {"gradients": kept, "step": state["step"] + 1}

    return optax.GradientTransformation(
        lambda params: {"gradients": jnp.zeros((steps, size)), "step": jnp.int32(0)}, update
    )


def test_weights_go_row_by_row():
    weights = np.abs(numbers(3, N))
    rows = rows_of_each_step(1)
    assert len(rows) == 5
    run = jbp.fit(COST, THETA, (X, Y), weights=weights, **SGD)
    batches = [(X[r], Y[r], weights[r], jbp.Context()) for r in rows]
    last = np.setdiff1d(np.arange(N), np.concatenate(rows))
    batches.append((X[last], Y[last], weights[last], jbp.Context()))
    np.testing.assert_allclose(run.theta, loop(batches), rtol=2e-5, atol=1e-6)


def masked_cost() -> jbp.Cost:
    """A network that multiplies x by the mask, `[N, 3]`, and adds the side input, `[3]`."""
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Mask:
        def init(self, key, x):
            return ()

        def forward(self, params, x, context):
            mask = jnp.ones_like(x) if context.mask is None else context.mask.astype(x.dtype)
            side = jnp.zeros(3, x.dtype) if context.side is None else context.side["shift"]
            return x * mask + side[None], mask

        def backward(self, params, feedback_or_saved, *more):
            saved, delta = (feedback_or_saved, more[0]) if len(more) == 2 else more[:2]
            return delta * saved, ()

    return jbp.Cost(jbp.Network([Mask(), jbp.Dense(4), jbp.Tanh(), jbp.Dense(2)], (3,)), losses.HalfSquaredError())


def test_a_mask_goes_row_by_row_and_the_side_input_whole():
    cost, mask, side = masked_cost(), numbers(5, N, 3) > 0, {"shift": numbers(6, 3)}
    rows = rows_of_each_step(1)
    last = np.setdiff1d(np.arange(N), np.concatenate(rows))
    batches = [(X[r], Y[r], None, jbp.Context(mask=jnp.asarray(mask[r]), side=side)) for r in [*rows, last]]
    expected = loop(batches, cost)
    run = jbp.fit(cost, THETA, (X, Y), context=jbp.Context(mask=mask, side=side), **SGD)
    np.testing.assert_allclose(run.theta, expected, rtol=2e-5, atol=1e-6)
    # batches that bring their own are the same
    run = jbp.fit(cost, THETA, [(x, y, context) for x, y, _, context in batches], **SGD)
    np.testing.assert_allclose(run.theta, expected, rtol=2e-5, atol=1e-6)
    assert np.abs(loop([(x, y, None, jbp.Context()) for x, y, *_ in batches], cost) - expected).max() > 1e-3


def test_batches_bring_weights_contexts_or_both():
    cost = masked_cost()
    batches: list[Any] = []
    for i, (x, y) in enumerate(BATCHES):
        weights = np.abs(numbers(60 + i, len(x))) if i % 2 else None
        context = jbp.Context(mask=numbers(70 + i, *x.shape) > 0, side={"shift": numbers(80 + i, 3)})
        batches.append((x, y, weights, context))
    expected = loop(batches, cost)
    as_given = [(x, y, w, c) if w is not None else (x, y, c) for x, y, w, c in batches]
    np.testing.assert_allclose(jbp.fit(cost, THETA, as_given, **SGD).theta, expected, rtol=2e-5, atol=1e-6)
    shared = {"shift": numbers(9, 3)}
    whole = [(x, y, w, jbp.Context(side=shared)) for x, y, w, _ in batches]
    weighted = [(x, y, w) if w is not None else (x, y) for x, y, w, _ in batches]
    run = jbp.fit(cost, THETA, weighted, context=jbp.Context(side=shared), **SGD)
    np.testing.assert_allclose(run.theta, loop(whole, cost), rtol=2e-5, atol=1e-6)


# -- feedback ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["vector", "function"])
def test_feedback_carries_delta(how: str):
    other = numbers(8, THETA.size)
    feedback = other if how == "vector" else lambda theta, step: theta + 0.1 * step * other
    batches = [(x, y, None, jbp.Context()) for x, y in BATCHES]
    expected = loop(batches, feedback=feedback)
    np.testing.assert_allclose(
        jbp.fit(COST, THETA, BATCHES, feedback=feedback, **SGD).theta, expected, rtol=2e-5, atol=1e-6
    )
    assert np.abs(loop(batches) - expected).max() > 1e-3


# -- the optimiser ----------------------------------------------------------------------------------------------------


def test_an_optimiser_that_takes_more_gets_the_batch():
    def update(updates, state, params=None, *, batch, value, **_):
        x, y, context = batch
        return jax.tree.map(jnp.zeros_like, updates), state + x.sum() + y.sum() + context.mask.sum() + value

    meter = optax.GradientTransformationExtraArgs(lambda params: jnp.float32(0), update)
    mask = np.ones((20, 3), np.float32)
    settings = SETTINGS | {"optimizer": meter}
    run = jbp.fit(COST, THETA, (X[:20], Y[:20]), context=jbp.Context(mask=mask), **settings)
    expected = X[:20].sum() + Y[:20].sum() + 60 + run.history.cost.sum()
    np.testing.assert_allclose(run.state.leaves["optimizer"], expected, rtol=1e-5)


def traced_optimizers() -> Any:
    traces = []

    def make(rate, boundaries=(3, 5), eps=1e-8):
        def schedule(count):
            traces.append(count)
            return rate * jnp.where(count < jnp.asarray(boundaries)[0], 1.0, 0.5)

        return optax.chain(optax.scale_by_adam(eps=eps), optax.scale_by_learning_rate(schedule))

    return make, traces


def test_equal_optimisers_compile_once():
    make, traces = traced_optimizers()
    compiled = lambda: (DESCENT._advance._cache_size(), DESCENT.begin._cache_size(), DESCENT._last._cache_size())
    settings = SETTINGS | {"epochs": 1}
    first = jbp.fit(COST, THETA, (X, Y), **settings | {"optimizer": make(0.01)})
    before = compiled()
    second = jbp.fit(COST, THETA, (X, Y), **settings | {"optimizer": make(0.01)})
    assert compiled() == before
    np.testing.assert_array_equal(first.theta, second.theta)
    assert traces
    for i, other in enumerate((make(0.02), make(0.01, (4, 5)), make(0.01, eps=1e-3)), 1):
        run = jbp.fit(COST, THETA, (X, Y), **settings | {"optimizer": other})
        assert compiled()[0] == before[0] + i
        assert np.any(run.theta != first.theta)


def kernels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def labels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: "w" if leaf.ndim > 1 else "b", params)


KINDS = {
    "adam": lambda: optax.adam(1e-3),
    "adamw, masked": lambda: optax.adamw(optax.warmup_cosine_decay_schedule(0, 1e-2, 3, 30), mask=kernels),
    "injected": lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=optax.linear_schedule(0.1, 0.0, 9)),
    "noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.sgd(0.1)),
    "lbfgs": lambda: optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(5)),
    "schedule free": lambda: optax.contrib.schedule_free_sgd(0.1),
    "by label, if finite": lambda: optax.apply_if_finite(
        optax.multi_transform({"w": optax.adam(0.1), "b": optax.sgd(0.1)}, labels), 3
    ),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_of_many_kinds(make: Any):
    settings = SETTINGS | {"epochs": 2}
    run = jbp.fit(COST, THETA, (X, Y), **settings | {"optimizer": make()})
    before = DESCENT._advance._cache_size()
    same_bits(jbp.fit(COST, THETA, (X, Y), **settings | {"optimizer": make()}), run)
    assert DESCENT._advance._cache_size() == before


def test_what_is_frozen_stays_and_has_no_state(monkeypatch: pytest.MonkeyPatch):
    cost = small_cost(6)
    theta = numbers(0, cost.layout.size)
    free = tuple(name.startswith("2.") for name in cost.layout.names)
    monkeypatch.setattr(type(cost.layout), "trainable", property(lambda layout: free), raising=False)
    run = jbp.fit(cost, theta, (X, Y), **SETTINGS)
    before, after = cost.layout.unflatten(jnp.asarray(theta)), cost.layout.unflatten(run.theta)
    for name, old, new, trained in zip(cost.layout.names, *map(jax.tree.leaves, (before, after)), free, strict=True):
        assert np.any(old != new) == trained, name
        assert (f"optimizer.0.mu.{name}" in run.state.leaves) == trained
    whole = jbp.fit(cost, theta, (X, Y), epochs=2, **SETTINGS)
    same_bits(jbp.fit(cost, None, (X, Y), epochs=2, resume=run.state, **SETTINGS), whole)


# -- the way back -----------------------------------------------------------------------------------------------------


def failing(at: int, steps: int = 12, **settings: Any) -> jbp.Run:
    """Batches of which the one of step `at` has no finite cost."""
    batches = [(numbers(i, 4, 3), numbers(50 + i, 4, 2)) for i in range(steps)]
    batches[at] = (batches[at][0], np.full((4, 2), 3e38, np.float32))
    with pytest.warns(UserWarning, match="the cost (became|is) inf at (step|the θ)"):
        return jbp.fit(COST, THETA, batches, **SETTINGS | settings)


@pytest.fixture(params=["from the beginning", "from a copy", "each step a call"])
def the_way_back(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    if request.param == "from a copy":
        monkeypatch.setattr(DESCENT, "BACK_SECONDS", 0.0)
        monkeypatch.setattr(DESCENT, "BACK_STEPS", 1)
    if request.param == "each step a call":
        monkeypatch.setattr(DESCENT, "LARGE_THETA", 0)


@pytest.mark.parametrize("at", range(11))
@pytest.mark.parametrize("block_steps", [1, 3, 256])
@pytest.mark.parametrize("seconds_per_call", [0.0, 1.0])
def test_it_goes_back_to_the_last_finite_cost(
    at: int, block_steps: int, seconds_per_call: float, the_way_back: None, monkeypatch: pytest.MonkeyPatch
):
    whole = jbp.fit(COST, THETA, [(numbers(i, 4, 3), numbers(50 + i, 4, 2)) for i in range(max(1, at - 1))], **SETTINGS)
    monkeypatch.setattr(STREAM, "BLOCK_STEPS", block_steps)
    monkeypatch.setattr(COURSE, "SECONDS_PER_CALL", seconds_per_call)
    run = failing(at)
    assert run.history.cost.shape == (at + 1,)
    expected = whole.theta if at > 1 else THETA
    np.testing.assert_allclose(run.theta, expected, rtol=1e-6)
    assert run.state.step == max(0, at - 1)
    np.testing.assert_array_equal(run.state.history.cost, run.history.cost[: run.state.step])


def test_a_short_last_batch_may_fail_too(the_way_back: None):
    """The rest of 21 examples is the row that each shuffle puts last; any row will do, if all but one are the same."""
    weights = optax.GradientTransformation(lambda p: (), lambda g, s, p: (jax.tree.map(lambda a: a * 0 + 1e38, g), s))
    cost = jbp.Cost(jbp.Network([jbp.Dense(1, bias=False)], (1,)), losses.HalfSquaredError())
    x, y = np.ones((5, 1), np.float32), np.zeros((5, 1), np.float32)
    with pytest.warns(UserWarning, match="the cost became inf at step 1"):
        run = jbp.fit(cost, np.zeros(1, np.float32), (x, y), optimizer=weights, batch_size=4)
    np.testing.assert_array_equal(run.theta, [0.0])
    assert run.state.step == 0
    assert run.history.epochs == []


def test_a_state_whose_cost_is_not_finite_is_said():
    state = fit((X[:20], Y[:20])).state
    arrays = state.arrays()
    arrays["theta.0.w"] = arrays["theta.0.w"] * np.float32(np.inf)
    with pytest.warns(UserWarning, match="the cost is nan at the θ of the state, before the first step"):
        run = fit((X[:20], Y[:20]), epochs=2, resume=arrays)
    assert run.history.cost.shape == (6,)
    assert run.state.step == 5


def test_copies_are_made_when_they_are_due(monkeypatch: pytest.MonkeyPatch):
    """Of a stream that goes on, only so many batches are held as the way back needs."""
    monkeypatch.setattr(STREAM, "BLOCK_STEPS", 1)
    monkeypatch.setattr(DESCENT, "BACK_BYTES", 0)
    descents = []
    made = DESCENT.Descent.__post_init__
    monkeypatch.setattr(DESCENT.Descent, "__post_init__", lambda self: (made(self), descents.append(self))[0])
    held = []

    def data():
        for i in range(30):
            held.append(len(descents[0].calls) if descents else 0)
            yield numbers(i, 4, 3), numbers(50 + i, 4, 2)

    fit(data())
    assert 4 <= max(held) <= 6


def test_calls_cover_each_step_once():
    block = STREAM.Block(None, None, np.zeros((10, 1), np.int32), 10, [3, 10])
    for pause in (True, False):
        steps = [(i, stop) for _, i, stop in calls([block, block], pause)]
        assert [i for i, _ in steps] == [0, *[stop % 10 for _, stop in steps[:-1]]]
        assert steps[-1][1] == 10
        assert any(stop == 3 for _, stop in steps) or not pause


# -- over a mesh ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_the_batch_is_cut_over_the_mesh(kind: str):
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    x, y = numbers(1, 40, 3), numbers(2, 40, 2)
    settings = SETTINGS | {"batch_size": 16, "epochs": 2}
    alone = jbp.fit(COST, THETA, (x, y), **settings)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(getattr(AxisType, kind),))
    with jax.set_mesh(mesh):
        cut = tuple(jax.device_put(a, NamedSharding(mesh, PartitionSpec("d"))) for a in (x, y))
        theta = jax.device_put(THETA, NamedSharding(mesh, PartitionSpec()))
        run = jbp.fit(COST, theta, cut, **settings)
        np.testing.assert_allclose(run.theta, alone.theta, rtol=1e-5, atol=1e-6)
        assert run.history.cost.shape == (5,)
        half = jbp.fit(COST, theta, cut, **settings | {"epochs": 1})
        on = jbp.fit(COST, None, cut, resume=half.state.arrays(), **settings)
        np.testing.assert_allclose(on.theta, run.theta, rtol=1e-6)
        # the program of a step: each of 8 devices has 2 of the 16 examples, [2, 4] at the hidden layer
        shuffled = STREAM.Shuffled((*cut, None, None), None, 16, jax.random.key(0))
        block = next(shuffled.blocks(1, 0, 0))
        params = COST.layout.unflatten(theta)
        rule = DESCENT.rule_of(COST, SETTINGS["optimizer"], np.float32)
        program = DESCENT._advance.lower(
            COST, rule, None, block.cut, block.by_row, None, block.rows, None, jax.random.key(0), 0, params,
            rule.init(params), 0, 1,
        ).compile().as_text()  # fmt: skip
    assert "f32[2,4]" in program
    assert "f32[16,4]" not in program


# -- wrong calls ------------------------------------------------------------------------------------------------------

KEY = "fit: key: expected a random key, got {}. Write jax.random.key({})."
WRONG = {
    "key=5": (lambda: fit(key=5), KEY.format("5", 5)),
    "two keys": (
        lambda: fit(key=jax.random.split(jax.random.key(0))),
        "fit: key: expected a random key, got key<fry>[2]. Give one of them, as in keys[0].",
    ),
    "an array as a key": (lambda: fit(key=np.ones(3, np.float32)), KEY.format("float32[3]", 0)),
    "best without evaluate": (
        lambda: fit(best="loss"),
        "fit: best='loss' is a number of evaluate, and there is none. Give evaluate=.",
    ),
    "best by an unknown name": (
        lambda: fit(best="accuracy", evaluate=loss_of),
        "fit: best='accuracy' names no number of evaluate, which returned loss. Name one of these, with a minus in "
        "front where less is better.",
    ),
    "best by no number": (
        lambda: fit(best="loss", evaluate=lambda theta: {"loss": "high"}),
        "fit: best='loss' needs a number, got 'high' from evaluate. Give float(...).",
    ),
    "best by nothing": (
        lambda: fit(best="-", evaluate=loss_of),
        "fit: best must name a number of evaluate, as in 'accuracy' or '-loss', got '-'.",
    ),
    "patience without best": (
        lambda: fit(patience=3, evaluate=loss_of),
        "fit: patience=3 waits for a better epoch. Say by what: best='accuracy', or best='-loss'.",
    ),
    "patience of none": (
        lambda: fit(patience=0, best="loss", evaluate=loss_of),
        "fit: patience must be a whole number of epochs above 0, got 0.",
    ),
    "a mask of other rows": (
        lambda: fit(context=jbp.Context(mask=np.ones((20, 3), np.float32))),
        "context.mask: expected 21 examples as in x, got float32[20, 3]. It goes row by row with x; what does not "
        "belongs in context.side.",
    ),
    "a context with a key": (
        lambda: fit(context=jbp.Context(jax.random.key(0))),
        "fit: the context has a key; fit draws each step's noise from key=. Leave it out of Context.",
    ),
    "no context": (
        lambda: fit(context={"mask": 1}),
        "context: expected a Context, got {'mask': 1}. Write jbp.Context(mask=mask).",
    ),
    "weights beside batches": (
        lambda: fit(BATCHES, weights=np.ones(4)),
        "fit: weights goes with arrays, and data gives batches. Let each bring its own: (x, y, weights).",
    ),
    "a mask beside batches": (
        lambda: fit(BATCHES, context=jbp.Context(mask=np.ones(4))),
        "fit: context.mask goes with arrays, and data gives batches. Let each bring its own: (x, y, "
        "jbp.Context(mask=mask)).",
    ),
    "weights of other rows": (
        lambda: fit(weights=np.ones(20, np.float32)),
        "weights: expected one weight for each example, [21], got float32[20]. Use jnp.asarray(weights), one number "
        "for each row of x.",
    ),
    "feedback of another length": (
        lambda: fit(feedback=THETA[:-1]),
        "feedback: expected [P] = [26] (#W = 20, #b = 6), got [25]. Make one with net.init(key) or "
        "layout.flatten(tree).",
    ),
    "a function that gives no batches": (
        lambda: fit(lambda epoch: (X, Y)),
        "fit: data(1) is a tuple of 2 arrays, (float32[21, 3], float32[21, 2]). Give a list of batches [(x, y), ...].",
    ),
    "a function that gives nothing": (
        lambda: fit(lambda epoch: None),
        "fit: data(1) must give an iterable of batches (x, y), got NoneType.",
    ),
    "evaluate that returns objects": (
        lambda: fit(evaluate=lambda theta: {"model": object()}),
        "fit: evaluate must return a dict of numbers by name, got object as 'model'. Give float(...) of it.",
    ),
    "evaluate that returns an array": (
        lambda: fit(evaluate=lambda theta: {"each": np.ones(3, np.float32)}),
        "fit: evaluate must return a dict of numbers by name, got float32[3] as 'each'. Give each number a name of its "
        "own.",
    ),
    "evaluate that returns a list": (
        lambda: fit(evaluate=lambda theta: {"each": [1.0, 2.0]}),
        "fit: evaluate must return a dict of numbers by name, got a list as 'each'. Give each number a name of its "
        "own.",
    ),
    "evaluate that returns the epoch": (
        lambda: fit(evaluate=lambda theta: {"epoch": 3}),
        "fit: evaluate returned 'epoch', which each record holds already. Give it another name.",
    ),
    "save is no directory": (lambda: fit(save=3), "fit: save must be a directory, got 3. As in save='runs/first'."),
}


@pytest.fixture
def as_users_run_it():
    """Without the checks of annotations at run time, whose errors would come first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_call_is_named(what: str):
    call, text = WRONG[what]
    with pytest.raises(jbp.InputError) as error:
        call()
    assert str(error.value) == text
