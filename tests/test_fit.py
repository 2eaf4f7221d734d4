"""`fit` is gradient descent: equal to a loop written out, over every example once an epoch, and honest when it fails.

optax promotes dtypes, so the strict promotion of `conftest.py` is off here.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jbp
from jbp import losses

STREAM, COURSE = (sys.modules[f"jbp.{name}"] for name in ("stream", "course"))


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def batches(*sizes: int, dtype: Any = np.float64) -> list:
    return [(numbers(i, n, 3).astype(dtype), numbers(100 + i, n, 2).astype(dtype)) for i, n in enumerate(sizes, 1)]


# -- equal to a loop --------------------------------------------------------------------------------------------------


def f(params: Any, x: Any, y: Any) -> Any:
    """The cost of the network below, from the text's formulas."""
    (w2, b2), _, (w3, b3) = params
    return 0.5 * jnp.square(jnp.tanh(x @ w2 + b2[None]) @ w3 + b3[None] - y).sum(1).mean()


def small_cost(**settings: Any) -> jbp.Cost:
    network = jbp.Network([jbp.Dense(4), jbp.Tanh(), jbp.Dense(2)], (3,), **settings)
    return jbp.Cost(network, losses.HalfSquaredError())


def loop(cost: jbp.Cost, theta: Any, batches: Any, optimizer: Any, f: Callable = f) -> tuple[list, list]:
    """(θ before each step and after the last, the cost at each step), by `jax.grad` and optax."""

    @jax.jit
    def step(params, state, x, y):
        value, gradient = jax.value_and_grad(f)(params, x, y)
        value_fn = lambda params: f(params, x, y)
        updates, state = optax.with_extra_args_support(optimizer).update(
            gradient, state, params, value=value, grad=gradient, value_fn=value_fn
        )
        return optax.apply_updates(params, updates), state, value

    params = cost.layout.unflatten(theta)
    state, thetas, costs = optimizer.init(params), [theta], []
    for x, y in batches:
        params, state, value = step(params, state, x, y)
        thetas.append(cost.layout.flatten(params))
        costs.append(value)
    return thetas, costs


def kernels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def not_biases(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: path[-1].name != "b", params)


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum, clipped, on a schedule": optax.chain(
        optax.clip_by_global_norm(0.5), optax.sgd(optax.linear_schedule(0.2, 0, 5), momentum=0.9)
    ),
    "adam": optax.adam(1e-2),
    "adamw, mask by ndim": optax.adamw(1e-2, weight_decay=0.1, mask=kernels),
    "adamw, mask by name": optax.adamw(1e-2, weight_decay=0.1, mask=not_biases),
    "lbfgs, searching along a line": optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(5)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_descent_equals_a_loop(name: str, x64: None):
    cost = small_cost()
    theta = jnp.asarray(numbers(0, cost.layout.size))
    thetas, costs = loop(cost, theta, batches(4, 4, 4, 4, 4), OPTIMIZERS[name])
    run = jbp.fit(cost, theta, batches(4, 4, 4, 4, 4), optimizer=OPTIMIZERS[name])
    np.testing.assert_allclose(run.theta, thetas[-1], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(run.history.cost, costs, rtol=1e-10)
    assert run.stopped is None


SGD = OPTIMIZERS["sgd"]


@pytest.mark.parametrize("block_steps", [1, 256])
def test_batches_of_different_shapes_in_two_epochs(block_steps: int, x64: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(STREAM, "BLOCK_STEPS", block_steps)
    cost = small_cost()
    theta = jnp.asarray(numbers(0, cost.layout.size))
    thetas, costs = loop(cost, theta, batches(4, 4, 2, 4) * 2, SGD)
    run = jbp.fit(cost, theta, batches(4, 4, 2, 4), optimizer=SGD, epochs=2)
    np.testing.assert_allclose(run.theta, thetas[-1], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(run.history.cost, costs, rtol=1e-10)
    assert [(record["epoch"], record["step"]) for record in run.history.epochs] == [(1, 4), (2, 8)]


def test_an_iterator_lasts_one_epoch(x64: None):
    cost = small_cost()
    theta = jnp.asarray(numbers(0, cost.layout.size))
    run = jbp.fit(cost, theta, (batch for batch in batches(4, 4, 4)), optimizer=SGD)
    np.testing.assert_array_equal(run.theta, jbp.fit(cost, theta, batches(4, 4, 4), optimizer=SGD).theta)
    assert run.history.cost.shape == (3,)


def test_inputs_may_be_pytrees(x64: None):
    product = jbp.from_function(None, lambda _, x: x[0] * x[1][:, None])
    cost = jbp.Cost(jbp.Network([product, jbp.Dense(2)], ((3,), ())), losses.HalfSquaredError())

    def linear(params, x, y):
        return 0.5 * jnp.square((x[0] * x[1][:, None]) @ params[1].w + params[1].b[None] - y).sum(1).mean()

    theta, data = jnp.asarray(numbers(0, 8)), [((x, x[:, 0]), y) for x, y in batches(4, 4, 4)]
    run = jbp.fit(cost, theta, data, optimizer=SGD)
    np.testing.assert_allclose(run.theta, loop(cost, theta, data, SGD, linear)[0][-1], rtol=1e-10, atol=1e-12)


def test_evaluate_sees_the_theta_of_each_epochs_end(x64: None):
    cost, seen = small_cost(), []
    theta = jnp.asarray(numbers(0, cost.layout.size))

    def evaluate(theta):
        seen.append(theta)
        return {"number": 10 * len(seen)}

    run = jbp.fit(cost, theta, batches(4, 4, 4), optimizer=SGD, epochs=3, evaluate=evaluate)
    thetas, _ = loop(cost, theta, batches(4, 4, 4) * 3, SGD)
    np.testing.assert_allclose(np.stack(seen), np.stack(thetas)[[3, 6, 9]], rtol=1e-10, atol=1e-12)
    assert [record["number"] for record in run.history.epochs] == [10, 20, 30]
    assert [record["step"] for record in run.history.epochs] == [3, 6, 9]
    seconds = [record["seconds"] for record in run.history.epochs]
    assert 0 < seconds[0] < seconds[1] < seconds[2]


# -- every example once an epoch --------------------------------------------------------------------------------------


def rows_by_step(n: int, batch_size: int, epochs: int, **settings: Any) -> np.ndarray:
    """How often each example is in each step's batch, `[steps, n]`.

    C_i = 4ⁱ and θ stays, so that the digits to base 4 of a step's cost are the numbers of its rows.
    """
    cost = jbp.Cost(jbp.Network([jbp.Dense(1, bias=False)], (1,)), losses.SquaredError(), "sum")
    x, y = np.ones((n, 1)), 2.0 ** np.arange(n)[:, None]
    run = jbp.fit(cost, jnp.zeros(1), (x, y), optimizer=optax.set_to_zero(), batch_size=batch_size, epochs=epochs,
        **settings)  # fmt: skip
    expected_steps = -(-epochs * n // batch_size)
    assert [record["step"] for record in run.history.epochs] == [-(-e * n // batch_size) for e in range(1, epochs + 1)]
    assert run.history.cost.shape == (expected_steps,)
    return run.history.cost.astype(np.int64)[:, None] // 4 ** np.arange(n) % 4


@pytest.mark.parametrize(("n", "batch_size", "epochs"), [(10, 10, 3), (12, 3, 2), (10, 3, 2), (10, 4, 5), (7, 6, 3)])
def test_each_epoch_holds_each_example_once(n: int, batch_size: int, epochs: int, x64: None):
    counts = rows_by_step(n, batch_size, epochs)
    sizes = counts.sum(1)
    assert list(sizes[:-1]) == [batch_size] * (len(sizes) - 1)
    assert sizes.sum() == epochs * n
    done = sizes.cumsum()[:, None]
    assert np.all(counts.cumsum(0) >= done // n)  # of the epochs that are over, each example has been seen
    assert np.all(counts.cumsum(0) <= -(-done // n))  # and at most once in the one that runs


def test_a_batch_is_no_larger_than_the_data(x64: None):
    cost = jbp.Cost(jbp.Network([jbp.Dense(1)], (1,)), losses.SquaredError())
    run = jbp.fit(cost, jnp.ones(2), (np.ones((5, 1)), np.ones((5, 1))), batch_size=64, epochs=3)
    assert run.history.cost.shape == (3,)


def test_the_key_alone_decides_the_order(x64: None, monkeypatch: pytest.MonkeyPatch):
    order = lambda seed: rows_by_step(10, 3, 6, key=jax.random.key(seed))
    first = order(0)
    np.testing.assert_array_equal(first, order(0))
    assert np.any(first != order(1))
    assert np.any(first[:10] != first[10:])  # epochs 1 to 3, and 4 to 6: each is shuffled anew
    monkeypatch.setattr(STREAM, "BLOCK_STEPS", 1)  # drawn an epoch at a time
    np.testing.assert_array_equal(first, order(0))
    monkeypatch.setattr(COURSE, "SECONDS_PER_CALL", 0.0)  # a step at a time
    np.testing.assert_array_equal(first, order(0))


# -- a cost that is not finite ----------------------------------------------------------------------------------------


def diverging(theta: float = 1.0, **settings: Any) -> jbp.Run:
    """w ← w(1 − 10⁴) on C = ½w², which overflows float32 at step 5."""
    cost = jbp.Cost(jbp.Network([jbp.Dense(1, bias=False)], (1,)), losses.HalfSquaredError())
    data = np.ones((4, 1), np.float32), np.zeros((4, 1), np.float32)
    return jbp.fit(cost, jnp.full(1, theta), data, optimizer=optax.sgd(1e4), batch_size=4, epochs=20, **settings)


@pytest.mark.parametrize("seconds_per_call", [1.0, 0.0], ids=["in the middle of a call", "at the first step of a call"])
def test_the_last_theta_of_a_finite_cost_is_returned(seconds_per_call: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(COURSE, "SECONDS_PER_CALL", seconds_per_call)
    with pytest.warns(UserWarning, match="the cost became inf at step 5") as warned:
        run = diverging()
    np.testing.assert_allclose(run.theta, [9999.0**4], rtol=1e-6)
    np.testing.assert_allclose(run.history.cost, [0.5 * 9999.0 ** (2 * t) for t in range(5)] + [np.inf], rtol=1e-5)
    assert [record["step"] for record in run.history.epochs] == [1, 2, 3, 4, 5]  # finished before the step that failed
    assert run.stopped == str(warned[0].message) == (
        "fit: the cost became inf at step 5. Stopped; run.theta is θ of step 4, the last with a finite cost, "
        "4.996e+31. Lower the learning rate, clip the gradient, or look at the data."
    )  # fmt: skip


def test_a_theta_without_a_finite_cost_is_returned_as_it_was():
    with pytest.warns(UserWarning, match="before the first step"):
        run = diverging(1e30)
    np.testing.assert_array_equal(run.theta, [np.float32(1e30)])
    assert list(run.history.cost) == [np.inf]
    assert run.history.epochs == []
    assert run.stopped == ("fit: the cost is inf at the θ given, before the first step; θ is returned unchanged.")


def test_a_theta_whose_first_step_fails_is_returned(monkeypatch: pytest.MonkeyPatch):
    """The second call fails at its first step, and the first call had only one."""
    with pytest.warns(UserWarning, match="the cost became inf at step 1"):
        run = diverging(1e18)
    np.testing.assert_array_equal(run.theta, [np.float32(1e18)])
    assert run.history.cost.shape == (2,)


# -- noise, precision, compilation, the bar ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """y = x · noise, a number drawn from the context's key; x itself without one."""

    traces: ClassVar[list[str]] = []

    def init(self, key, x):
        return ()

    def forward(self, params, x, context):
        noise = jnp.ones(()) if context.key is None else jax.random.uniform(context.key)
        return x * noise.astype(x.dtype), noise

    def backward(self, params, feedback, saved, delta, read):
        self.traces.append("backward")
        return delta * saved.astype(delta.dtype), ()


def noisy_costs(seed: int) -> np.ndarray:
    cost = jbp.Cost(jbp.Network([Noise(), jbp.Dense(1, bias=False)], (1,)), losses.HalfSquaredError())
    data = np.ones((4, 1), np.float32), np.zeros((4, 1), np.float32)
    settings = {"optimizer": FROZEN, "batch_size": 4, "epochs": 12}
    return jbp.fit(cost, jnp.ones(1), data, key=jax.random.key(seed), **settings).history.cost


FROZEN = optax.set_to_zero()


def test_each_step_has_noise_of_its_own():
    costs = noisy_costs(0)
    assert len(set(costs)) == 12
    np.testing.assert_array_equal(costs, noisy_costs(0))
    assert not set(costs) & set(noisy_costs(1))


@pytest.mark.parametrize("optimizer", [SGD, FROZEN, None], ids=["sgd", "without extra arguments", "the default"])
def test_a_second_fit_compiles_nothing(optimizer: Any):
    def fit(seed):
        cost = jbp.Cost(jbp.Network([Noise(), jbp.Dense(1)], (1,)), losses.HalfSquaredError())
        x, y = (numbers(seed + i, 5, 1).astype(np.float32) for i in range(2))
        jbp.fit(cost, jnp.ones(2), (x, y), optimizer=optimizer, batch_size=2, epochs=2, key=jax.random.key(seed))

    Noise.traces.clear()
    fit(0)
    compiled = len(Noise.traces)
    assert compiled
    fit(1)
    assert len(Noise.traces) == compiled


def test_training_computed_in_bfloat16():
    cost = small_cost(compute_dtype=jnp.bfloat16)
    x = numbers(0, 64, 3).astype(np.float32)
    y = np.tanh(x[:, :2])
    run = jbp.fit(cost, cost.init(jax.random.key(0)), (x, y), optimizer=optax.adam(3e-2), batch_size=16, epochs=25)
    assert run.theta.dtype == np.float32
    assert run.history.cost[-4:].mean() < 0.1 * run.history.cost[:4].mean()


def test_arrays_train_by_default():
    cost = small_cost()
    x = numbers(0, 50, 3).astype(np.float32)
    run = jbp.fit(cost, cost.init(jax.random.key(0)), (x, np.tanh(x[:, :2])), epochs=2)
    assert run.history.cost.shape == (2,)  # batches of 64 of which there are 50
    assert run.history.cost[1] < run.history.cost[0]


@pytest.mark.parametrize(("data", "shown"), [(list, "4/4"), (iter, "4/?")], ids=["known length", "unknown length"])
def test_a_bar_shows_steps_and_cost(data: Callable, shown: str, capsys: pytest.CaptureFixture):
    pytest.importorskip("rich", reason="the bar is drawn by rich, of the extra [cli]")
    cost, theta = small_cost(), numbers(0, 26).astype(np.float32)
    run = jbp.fit(cost, theta, data(batches(4, 4, 4, 4, dtype=np.float32)), optimizer=SGD, progress=True)
    out = capsys.readouterr().out
    assert shown in out
    assert f"cost {run.history.cost[-1]:.4g}" in out


def test_without_a_bar_nothing_is_printed(capsys: pytest.CaptureFixture):
    jbp.fit(small_cost(), numbers(0, 26).astype(np.float32), batches(4, dtype=np.float32), optimizer=SGD)
    assert capsys.readouterr() == ("", "")
