"""A descent that is resumed has the bits of one without a pause, whatever the pause was: nothing is approximate."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jbp
from jbp import losses


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small_cost(width: int = 4, bias: bool = True, **settings: Any) -> jbp.Cost:
    network = jbp.Network([jbp.Dense(width, bias=bias), jbp.Tanh(), jbp.Dense(2)], (3,), **settings)
    return jbp.Cost(network, losses.HalfSquaredError())


N = 21
X, Y = numbers(1, N, 3), numbers(2, N, 2)
BATCHES = [(numbers(i, n, 3), numbers(50 + i, n, 2)) for i, n in enumerate((4, 4, 3, 4))]
COST = small_cost()
THETA = numbers(0, COST.layout.size)
ADAM = optax.adam(optax.cosine_decay_schedule(1e-2, 40))
SETTINGS: dict[str, Any] = {"optimizer": ADAM, "batch_size": 4, "key": jax.random.key(7)}


def loss_of(theta: Any) -> dict[str, float]:
    return {"loss": float(COST(theta, X, Y))}


def same_bits(one: jbp.Run, other: jbp.Run) -> None:
    """θ, the optimiser's state, history and best are the same, bit for bit; times aside."""
    np.testing.assert_array_equal(one.theta, other.theta)
    np.testing.assert_array_equal(one.history.cost, other.history.cost)
    without_times = lambda run: [{k: v for k, v in r.items() if "seconds" not in k} for r in run.history.epochs]
    assert without_times(one) == without_times(other)
    arrays, others = one.state.arrays(), other.state.arrays()
    assert arrays.keys() == others.keys()
    for name in arrays.keys() - {"about"}:
        np.testing.assert_array_equal(arrays[name], others[name], err_msg=name)
    assert one.stopped == other.stopped
    assert (one.best is None) == (other.best is None)
    if one.best:
        np.testing.assert_array_equal(one.best.theta, other.best.theta)
        assert (one.best.epoch, one.best.value) == (other.best.epoch, other.best.value)


# -- a pause between epochs -------------------------------------------------------------------------------------------


NOISY = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(1)), optax.sgd(0.1))
CASES: dict[str, dict[str, Any]] = {
    "arrays, the last batch short": {"data": (X, Y)},
    "arrays, every batch full": {"data": (X[:20], Y[:20])},
    "more in a batch than there are examples": {"data": (X, Y), "batch_size": 100},
    "weights": {"data": (X, Y), "weights": np.abs(numbers(3, N))},
    "a list of batches": {"data": BATCHES},
    "a function of the epoch": {"data": lambda epoch: [(x + epoch, y) for x, y in BATCHES]},
    "momentum": {"data": (X, Y), "optimizer": optax.sgd(0.1, momentum=0.9)},
    "the optimiser's own noise": {"data": (X, Y), "optimizer": NOISY},
    "feedback by the step": {"data": (X, Y), "feedback": lambda theta, step: theta * (1 + 0.1 * step)},
}  # fmt: skip


@pytest.mark.parametrize("how", ["state", "arrays"])
@pytest.mark.parametrize("case", CASES)
def test_three_epochs_and_three_are_six(case: str, how: str):
    settings = SETTINGS | CASES[case] | {"evaluate": loss_of, "best": "-loss"}
    data = settings.pop("data")
    whole = jbp.fit(COST, THETA, data, epochs=6, **settings)
    half = jbp.fit(COST, THETA, data, epochs=3, **settings)
    resume = half.state if how == "state" else half.state.arrays()
    same_bits(jbp.fit(COST, None, data, epochs=6, resume=resume, **settings), whole)
    assert len(half.history.epochs) == 3  # which a state resumed leaves alone
    same_bits(jbp.fit(COST, None, data, epochs=6, resume=resume, **settings), whole)


def test_the_state_stands_after_the_last_full_batch():
    run = jbp.fit(COST, THETA, (X, Y), epochs=3, **SETTINGS)
    assert run.history.cost.shape == (16,)  # 63 examples: 15 batches of 4, and one of 3
    assert run.state.step == 15
    assert [record["epoch"] for record in run.state.history.epochs] == [1, 2]
    longer = jbp.fit(COST, THETA, (X, Y), epochs=6, **SETTINGS)
    np.testing.assert_array_equal(run.history.cost[:15], longer.history.cost[:15])
    assert run.history.cost[15] != longer.history.cost[15]


@pytest.mark.parametrize("data", [(X, Y), (X[:20], Y[:20]), BATCHES], ids=["short", "full", "batches"])
def test_a_descent_that_is_over_returns_at_once(data: Any):
    asked = []

    def evaluate(theta):
        asked.append(theta)
        return loss_of(theta)

    settings = SETTINGS | {"epochs": 3, "evaluate": evaluate, "best": "-loss"}
    run = jbp.fit(COST, THETA, data, **settings)
    assert len(asked) == 3
    same_bits(jbp.fit(COST, None, data, resume=run.state, **settings), run)
    same_bits(jbp.fit(COST, None, data, resume=run.state.arrays(), **settings), run)
    assert len(asked) == 3


def test_patience_and_best_go_on():
    losses_told = [5.0, 3.0, 4.0, 3.5, 3.0, 3.2, 1.0]

    def descend(epochs, told, **more):
        told = iter(told)
        settings = SETTINGS | {"best": "-loss", "patience": 3, "evaluate": lambda theta: {"loss": next(told)}}
        return jbp.fit(COST, THETA, BATCHES, epochs=epochs, **settings, **more)

    whole = descend(7, losses_told)
    assert (len(whole.history.epochs), whole.best.epoch, whole.best.value) == (5, 2, 3.0)
    assert whole.stopped == "fit: 3 epochs without a better -loss. Stopped after epoch 5; the best is epoch 2, 3."
    same_bits(descend(7, losses_told[3:], resume=descend(3, losses_told).state), whole)
    same_bits(descend(7, [], resume=whole.state), whole)  # its patience is over


def test_a_key_of_the_state_goes_on_by_itself():
    settings = {"optimizer": ADAM, "batch_size": 4}
    whole = jbp.fit(COST, THETA, (X, Y), epochs=2, key=jax.random.key(7), **settings)
    half = jbp.fit(COST, THETA, (X, Y), epochs=1, key=jax.random.PRNGKey(7), **settings)
    same_bits(jbp.fit(COST, None, (X, Y), epochs=2, resume=half.state, **settings), whole)


def test_an_iterator_may_be_the_one_epoch_that_is_left():
    whole = jbp.fit(COST, THETA, BATCHES, epochs=2, **SETTINGS)
    half = jbp.fit(COST, THETA, BATCHES, epochs=1, **SETTINGS)
    same_bits(jbp.fit(COST, None, iter(BATCHES), epochs=2, resume=half.state, **SETTINGS), whole)


def test_a_function_gets_the_epoch():
    epochs = []

    def data(epoch):
        epochs.append(epoch)
        return BATCHES

    half = jbp.fit(COST, THETA, data, epochs=2, **SETTINGS)
    jbp.fit(COST, None, data, epochs=4, resume=half.state, **SETTINGS)
    assert epochs == [1, 2, 3, 4]


# -- what others read and write ---------------------------------------------------------------------------------------


def half_and_whole(cost: jbp.Cost, theta: Any) -> tuple[jbp.Run, jbp.Run]:
    return tuple(jbp.fit(cost, theta, (X, Y), epochs=epochs, **SETTINGS) for epochs in (2, 4))


def in_bfloat16() -> tuple[jbp.Cost, Any]:
    cost = small_cost(dtype=jnp.bfloat16)
    return cost, jnp.asarray(THETA, jnp.bfloat16)


@pytest.mark.parametrize("make", [lambda: (COST, THETA), in_bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("module", ["numpy", "flax"])
def test_safetensors_takes_the_arrays(make: Callable, module: str, tmp_path: Path):
    safetensors = pytest.importorskip(
        f"safetensors.{module}", reason="it needs safetensors: pip install 'jbp[checkpoint]'"
    )
    cost, theta = make()
    half, whole = half_and_whole(cost, theta)
    safetensors.save_file(half.state.arrays(), tmp_path / "state.safetensors")
    arrays = safetensors.load_file(tmp_path / "state.safetensors")
    same_bits(jbp.fit(cost, None, (X, Y), epochs=4, resume=arrays, **SETTINGS), whole)


@pytest.mark.parametrize("make", [lambda: (COST, THETA), in_bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)  # orbax's own
def test_orbax_takes_the_arrays(make: Callable, tmp_path: Path):
    orbax = pytest.importorskip("orbax.checkpoint", reason="it needs orbax-checkpoint: pip install 'jbp[checkpoint]'")
    cost, theta = make()
    half, whole = half_and_whole(cost, theta)
    with orbax.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", half.state.arrays())
        arrays = checkpointer.restore(tmp_path / "state")
    same_bits(jbp.fit(cost, None, (X, Y), epochs=4, resume=arrays, **SETTINGS), whole)


def test_the_arrays_are_plain_numbers_by_name():
    arrays = jbp.fit(COST, THETA, (X, Y), epochs=1, **SETTINGS).state.arrays()
    assert {type(a) for a in arrays.values()} == {np.ndarray}
    assert {name for name in arrays if name.startswith("theta")} == {f"theta.{name}" for name in COST.layout.names}
    assert arrays["theta.0.w"].shape == arrays["optimizer.0.mu.0.w"].shape == (3, 4)
    np.testing.assert_array_equal(arrays["key"], jax.random.key_data(SETTINGS["key"]))
    assert not any(a.dtype.hasobject for a in arrays.values())


# -- on disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: (COST, THETA), in_bfloat16], ids=["float32", "bfloat16"])
def test_what_stands_there_wins_over_theta(make: Callable, tmp_path: Path):
    cost, theta = make()
    _, whole = half_and_whole(cost, theta)
    directory = tmp_path / "new" / "runs"
    jbp.fit(cost, theta, (X, Y), epochs=2, save=directory, **SETTINGS)
    run = jbp.fit(cost, 0 * theta, (X, Y), epochs=4, save=str(directory), **SETTINGS)
    same_bits(run, whole)
    same_bits(jbp.fit(cost, None, (X, Y), epochs=4, save=directory, **SETTINGS), whole)
    assert [path.name for path in directory.iterdir()] == ["state.npz"]
    same_bits(jbp.fit(cost, None, (X, Y), epochs=4, resume=jbp.State.read(directory), **SETTINGS), whole)


def test_each_epoch_is_written(tmp_path: Path):
    stands = []

    def evaluate(theta):
        state = jbp.State.read(tmp_path)
        stands.append(state and len(state.history.epochs))
        return {}

    jbp.fit(COST, THETA, (X, Y), epochs=4, save=tmp_path, evaluate=evaluate, **SETTINGS)
    assert stands == [None, 1, 2, 3]


def test_a_write_that_is_cut_off_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    half, whole = half_and_whole(COST, THETA)
    jbp.fit(COST, THETA, (X, Y), epochs=2, save=tmp_path, **SETTINGS)
    (tmp_path / "state.npz.part").write_bytes(b"half of something")
    same_bits(jbp.fit(COST, None, (X, Y), epochs=4, save=tmp_path, **SETTINGS), whole)
    monkeypatch.setattr(os, "replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        half.state.write(tmp_path)
    assert jbp.State.read(tmp_path).history.epochs == jbp.State.read(tmp_path).history.epochs != []


KILLED = """
import sys
import jax, numpy as np, optax
import jbp
from test_state import COST, SETTINGS, THETA, X, Y, loss_of

def evaluate(theta):
    print("epoch", flush=True)
    return loss_of(theta)

jbp.fit(COST, THETA, (X, Y), epochs=100_000, save=sys.argv[1], evaluate=evaluate, best="-loss", **SETTINGS)
"""


def test_a_process_that_is_killed_loses_an_epoch_at_most(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    seen, command = 0, [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        for _ in child.stdout:
            seen += 1
            if seen == 5:
                child.send_signal(signal.SIGKILL)  # wherever it is by then
    assert child.returncode == -signal.SIGKILL
    state = jbp.State.read(tmp_path)
    done = len(state.history.epochs)
    assert seen - 1 <= done <= seen
    settings = SETTINGS | {"evaluate": loss_of, "best": "-loss", "epochs": done + 2}
    same_bits(jbp.fit(COST, THETA, (X, Y), save=tmp_path, **settings), jbp.fit(COST, THETA, (X, Y), **settings))


# -- a pause anywhere -------------------------------------------------------------------------------------------------


class Interrupting:
    """Data that presses Ctrl-C as batch `at` of all is taken; the same batches in each epoch."""

    def __init__(self, at: int):
        self.at, self.taken = at, 0

    def __iter__(self):
        for x, y in BATCHES:
            self.taken += 1
            if self.taken == self.at:
                os.kill(os.getpid(), signal.SIGINT)
            yield x, y


@pytest.fixture
def a_step_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules["jbp.course"], "SECONDS_PER_CALL", 0.0)
    monkeypatch.setattr(sys.modules["jbp.stream"], "BLOCK_STEPS", 1)


@pytest.mark.parametrize("at", [1, 3, 4, 5, 7])
def test_ctrl_c_in_the_middle_of_an_epoch(at: int, a_step_at_a_time: None, tmp_path: Path):
    usual = signal.getsignal(signal.SIGINT)
    whole = jbp.fit(COST, THETA, BATCHES, epochs=3, **SETTINGS)
    run = jbp.fit(COST, THETA, Interrupting(at), epochs=3, save=tmp_path, **SETTINGS)
    assert signal.getsignal(signal.SIGINT) is usual
    step = run.history.cost.size
    assert 1 <= step <= at
    assert run.interrupted
    assert (
        run.stopped == f"fit: interrupted at step {step}, in epoch {1 + step // 4} of 3. run.state goes on from there."
    )
    np.testing.assert_array_equal(run.history.cost, whole.history.cost[:step])
    same_bits(jbp.fit(COST, None, BATCHES, epochs=3, resume=run.state, **SETTINGS), whole)
    same_bits(jbp.fit(COST, None, BATCHES, epochs=3, save=tmp_path, **SETTINGS), whole)


def test_ctrl_c_among_arrays(a_step_at_a_time: None):
    def evaluate(theta):
        if not interrupted:
            interrupted.append(os.kill(os.getpid(), signal.SIGINT))
        return loss_of(theta)

    interrupted = [None]
    settings = SETTINGS | {"evaluate": evaluate, "epochs": 4}
    whole = jbp.fit(COST, THETA, (X, Y), **settings)
    interrupted.clear()
    run = jbp.fit(COST, THETA, (X, Y), **settings)
    assert run.interrupted
    assert len(run.history.epochs) == 1
    same_bits(jbp.fit(COST, None, (X, Y), resume=run.state, **settings), whole)


def test_a_second_ctrl_c_raises_at_once():
    usual, reached = signal.getsignal(signal.SIGINT), []

    def evaluate(theta):
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("after the first")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
        reached.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        jbp.fit(COST, THETA, (X, Y), epochs=4, evaluate=evaluate, **SETTINGS)
    assert reached == ["after the first"]
    assert signal.getsignal(signal.SIGINT) is usual


def test_somebody_elses_handler_is_left_alone():
    caught = []

    def evaluate(theta):
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    before = signal.signal(signal.SIGINT, lambda *_: caught.append("theirs"))
    try:
        run = jbp.fit(COST, THETA, (X, Y), epochs=2, evaluate=evaluate, **SETTINGS)
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught == ["theirs", "theirs"]
    assert run.stopped is None


@pytest.mark.parametrize("data", [(X, Y), BATCHES], ids=["arrays", "batches"])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_an_evaluate_that_raises_is_asked_again(data: Any, epoch: int, tmp_path: Path):
    calls = []

    def evaluate(theta):
        calls.append(theta)
        return loss_of(theta) if len(calls) != epoch else {"loss": 1 / 0}

    settings = SETTINGS | {"epochs": 3, "best": "-loss"}
    whole = jbp.fit(COST, THETA, data, evaluate=loss_of, **settings)
    with pytest.warns(UserWarning, match=r"(?s)evaluate raised ZeroDivisionError.*line .*in evaluate"):
        run = jbp.fit(COST, THETA, data, evaluate=evaluate, save=tmp_path, **settings)
    assert run.stopped == (
        f"fit: evaluate raised ZeroDivisionError: division by zero after epoch {epoch} of 3. Stopped; run has all that "
        "was done, and run.state goes on from there."
    )
    assert len(run.history.epochs) == epoch - 1
    np.testing.assert_array_equal(run.history.cost, whole.history.cost[: run.history.cost.size])
    np.testing.assert_array_equal(run.theta, calls[-1])
    same_bits(jbp.fit(COST, None, data, evaluate=loss_of, resume=run.state, **settings), whole)
    same_bits(jbp.fit(COST, None, data, evaluate=loss_of, save=tmp_path, **settings), whole)


def test_stop_is_said_and_stands(tmp_path: Path):
    asked = []

    def evaluate(theta):
        asked.append(theta)
        return {"stop": np.bool_(len(asked) == 2)}

    settings = SETTINGS | {"epochs": 5, "evaluate": evaluate}
    run = jbp.fit(COST, THETA, BATCHES, save=tmp_path, **settings)
    assert run.stopped == "fit: evaluate asked to stop. Stopped after epoch 2 of 5."
    assert not run.interrupted
    same_bits(jbp.fit(COST, THETA, BATCHES, save=tmp_path, **settings), run)  # it has ended
    assert len(asked) == 2
    on = jbp.fit(COST, None, BATCHES, resume=run.state, **settings)  # somebody wants it to go on
    assert on.stopped is None
    np.testing.assert_array_equal(on.theta, jbp.fit(COST, THETA, BATCHES, epochs=5, **SETTINGS).theta)


# -- a state that does not fit ----------------------------------------------------------------------------------------


def resumed(cost: jbp.Cost = COST, data: Any = (X, Y), epochs: int = 2, **settings: Any) -> Callable:
    def call(state):
        return jbp.fit(cost, None, data, epochs=epochs, resume=state, **SETTINGS | settings)

    return call


OTHERS: dict[str, tuple[Callable, str]] = {
    "layout": (
        resumed(small_cost(5)),
        "fit: the state is of another layout: leaf 0.w is float32[3, 4] there, and float32[3, 5] here. Give the "
        "network that it was made with.",
    ),
    "layout without a leaf": (
        resumed(small_cost(bias=False)),
        "fit: the state is of another layout: leaf 0.b is float32[4] there, and absent here. Give the network that it "
        "was made with.",
    ),
    "optimizer": (
        resumed(optimizer=optax.sgd(0.1)),
        "fit: the state is of another optimizer: its own keeps (ScaleByAdamState(·, θ, θ), ScaleByScheduleState(·)), "
        "this one (EmptyState(), EmptyState()). Give the optimizer that it was made with, or begin anew from its θ: "
        "fit(cost, run.theta, ...).",
    ),
    "a constant of the optimizer": (
        resumed(optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, 41))),
        "fit: the state is of another optimizer: its leaves are the same, but a constant of it or its formula is not. "
        "Give the one that it was made with; or, to go on with this one, "
        "resume={name: a for name, a in state.arrays().items() if name != 'program'}.",
    ),
    "batch size": (
        resumed(batch_size=5),
        "fit: the state has another batch size: 4 there, 5 here. Give batch_size=4.",
    ),
    "key": (
        resumed(key=jax.random.key(8)),
        "fit: the state has another key: [0 7] there, [0 8] here. Give the same key; or none, and the state's own goes "
        "on.",
    ),
    "examples": (
        resumed(data=(X[:20], Y[:20])),
        "fit: the state is of other data: 21 examples there, 20 here. Give the same data.",
    ),
    "batches": (
        resumed(data=BATCHES),
        "fit: the state is of other data: arrays there, an iterable of batches here. Give the same data.",
    ),
    "fewer epochs": (
        lambda state: resumed(epochs=1)(jbp.fit(COST, THETA, (X, Y), epochs=2, **SETTINGS).state),
        "fit: the state stands at step 10, after 1 epochs, and epochs=1 is the total, which is less. Give more.",
    ),
    "another best": (
        lambda state: resumed(best="loss", evaluate=loss_of)(
            jbp.fit(COST, THETA, (X, Y), best="-loss", evaluate=loss_of, **SETTINGS).state
        ),
        "fit: the state has searched for best='-loss', and its other θ are gone. Give that, or best=None.",
    ),
    "a run": (lambda state: resumed()(jbp.fit(COST, THETA, (X, Y), **SETTINGS)),
              "fit: resume must be a state, got a Run. Give run.state."),
    "a path": (lambda state: resumed()("state.npz"),
               "fit: resume must be a state, got str. Give run.state, or the dict of its arrays."),
    "other arrays": (lambda state: resumed()({"theta": THETA}),
                     "fit: expected the arrays of a state, got a dict without about, key, cost. Give run.state, or "
                     "what run.state.arrays() returned."),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_another_state_is_named(what: str):
    call, text = OTHERS[what]
    state = jbp.fit(COST, THETA, (X, Y), **SETTINGS).state
    with pytest.raises(jbp.InputError) as error:
        call(state)
    assert str(error.value) == text


def test_on_purpose_with_another_constant():
    state = jbp.fit(COST, THETA, (X, Y), **SETTINGS).state
    arrays = {name: a for name, a in state.arrays().items() if name != "program"}
    other = SETTINGS | {"optimizer": optax.adam(optax.cosine_decay_schedule(1e-3, 40))}
    run = jbp.fit(COST, None, (X, Y), epochs=2, resume=arrays, **other)
    assert len(run.history.epochs) == 2


def test_a_file_of_something_else_is_named(tmp_path: Path):
    (tmp_path / "state.npz").write_bytes(b"not a state")
    with pytest.raises(jbp.InputError, match="can't be read as the state of a descent"):
        jbp.fit(COST, THETA, (X, Y), save=tmp_path)
    with pytest.raises(jbp.InputError, match="can't be a directory"):
        jbp.fit(COST, THETA, (X, Y), save=tmp_path / "state.npz")


def test_a_state_of_float64_needs_x64():
    with jax.enable_x64(True):
        arrays = jbp.fit(COST, jnp.asarray(THETA, np.float64), (X, Y), **SETTINGS).state.arrays()
        assert arrays["theta.0.w"].dtype == np.float64
        assert jbp.fit(COST, None, (X, Y), epochs=2, resume=arrays, **SETTINGS).theta.dtype == np.float64
    with pytest.raises(jbp.InputError, match=r"theta\.0\.w of the state is float64, which needs JAX's x64"):
        jbp.fit(COST, None, (X, Y), epochs=2, resume=arrays, **SETTINGS)


def test_no_theta_and_nothing_to_resume(tmp_path: Path):
    with pytest.raises(jbp.InputError, match="there is no theta to begin at"):
        jbp.fit(COST, None, (X, Y), save=tmp_path)


# -- what is whose ----------------------------------------------------------------------------------------------------


def test_nothing_that_the_caller_holds_is_written_into():
    """A network of one leaf that is a vector: unflatten and flatten give the very same array."""
    scaled = jbp.from_function(lambda key, x: jnp.ones(3), lambda p, x: x * p[None])
    cost = jbp.Cost(jbp.Network([scaled], (3,)), losses.SquaredError())
    held = [jnp.arange(3.0)]
    copies = [np.array(held[0])]

    def evaluate(theta):
        held.append(theta)
        copies.append(np.array(jnp.copy(theta)))
        return {"loss": len(held)}

    slow = optax.GradientTransformation(lambda params: (params, held[0]), lambda g, s, p: (g, s))  # a state of others'
    settings = {"optimizer": optax.chain(slow, optax.sgd(1e-3)), "batch_size": 4, "best": "loss", "evaluate": evaluate}
    x = numbers(4, 8, 3)
    first = jbp.fit(cost, held[0], (x, x), epochs=2, **settings)
    for state in (first.state, first.state.arrays()):
        leaves = first.state.arrays()
        run = jbp.fit(cost, None, (x, x), epochs=4, resume=state, **settings)
        held += [first.theta, run.theta, run.best.theta]
        copies += [np.array(a) for a in held[-3:]]
        for name, leaf in first.state.arrays().items():
            np.testing.assert_array_equal(leaf, leaves[name])
    assert not any(a.is_deleted() for a in held)
    for a, copy in zip(held, copies, strict=True):
        np.testing.assert_array_equal(a, copy)
