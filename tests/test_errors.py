"""What a wrong call is told: who, what was expected, what arrived, and one remedy; word for word.

Each row is a call and its message; `[…]` stands for words of JAX's own that one JAX says and another does not. The
type checker and the strict promotion of `conftest.py` are off here, as they are for a user.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import assert_told, over_calls
from jax.experimental import io_callback

import jbp
from jbp import losses

pytestmark = pytest.mark.usefixtures("as_for_a_user")


def network(*layers, input=(3,), **settings):
    return jbp.Network(layers, input, **settings)


def mlp():
    return jbp.Cost(jbp.mlp(3, 4, 2), losses.HalfSquaredError())


def classifier(**settings):
    return jbp.Cost(network(jbp.Dense(4)), losses.SoftmaxCrossEntropy(**settings))


def fit(data=None, **settings):
    """`jbp.fit` of the small network, on good data unless given others."""
    return jbp.fit(mlp(), THETA, (X, Y) if data is None else data, **settings)


def compare(rule, oracle, *args, **settings):
    return jbp.compare(rule, oracle, *args, timing=False, **settings)


def compare_vjp(f, *args, **settings):
    return jbp.compare_vjp(f, *args, timing=False, **settings)


def compare_jvp(f, *args, **settings):
    return jbp.compare_jvp(f, *args, timing=False, **settings)


def product(forward=None, backward=None):
    """x w with a custom_vjp: the right one, unless given others."""

    def product(x, w):
        return x @ w

    f = jax.custom_vjp(product)
    f.defvjp(forward or (lambda x, w: (x @ w, (x, w))), backward or (lambda saved, g: (g @ saved[1].T, saved[0].T @ g)))
    return f


def raises(*args):
    raise KeyError("no such thing")


def writes(x):
    """Twice x, with a side effect."""
    io_callback(lambda a: None, None, x)
    return 2 * x


def divides_by_zero(x):
    """What raises as it runs, not as it is traced."""
    return jax.pure_callback(lambda a: 1 / 0, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def deleted(a):
    a.delete()
    return a


def under_jit(compare, *functions):
    return jax.jit(lambda x: compare(*functions, x) and x)(X)


def with_nan(a):
    return a.at[1].set(jnp.nan)


THETA, X, Y = jnp.zeros(26), jnp.ones((5, 3)), jnp.ones((5, 2))
W = jnp.ones((3, 2))
THETA4, LABELS = jnp.zeros(16), jnp.array([0, 1, 2, 3, 0])
KEY = jax.random.key(0)
WEIGHTS = jnp.ones(5)
PAIR = jax.ShapeDtypeStruct((3,), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.float32)
RESIDUAL = network(jbp.Residual(jbp.Dense(3)))

THETA_LENGTH = (
    "theta: expected [P] = [26] (#W = 20, #b = 6), got [25]. Make one with net.init(key) or layout.flatten(tree)."
)
EPOCHS = "fit: epochs and batch_size must be whole numbers above 0, got {}."
CROSS_ENTROPY = (
    "SoftmaxCrossEntropy: expected y as integer labels [5] or as floats [5, 4] for output float32[5, 4], got {}. "
    "Cast labels to int32, or use jax.nn.one_hot(y, K)."
)
WEIGHTS_DUE = (
    "weights: expected one weight for each example, [5], got {}. "
    "Use jnp.asarray(weights), one number for each row of x."
)
ARRAY_DUE = (
    "x: expected one array with the batch axis first, got {}. Use jnp.asarray(x), or build the Network for this input."
)
OPTIMIZER = "fit: expected an optax transformation as optimizer, got {}. As in optax.adam(1e-3)."
BATCH = "fit: expected each batch as (x, y), got {}. Give two arrays as the tuple (x, y)."
SYMBOL = "layout.index: unknown symbol {!r}. The nearest leaf has symbols {}."
NEAREST = "layout.index: unknown symbol {!r}. The nearest is {}."


KEY_DUE = "{}.init: expected a random key, got {}. {}"
LOGITS = (
    "Cost: {0}CrossEntropy expects logits and applies the {1} itself, and the network ends in {2}(). End it in a "
    "Dense, mlp(..., last=jbp.Identity()); or, if both are meant, put jbp.Identity() behind {2}()."
)


def _zeros_of_a_row(key, shape, dtype):
    return jnp.zeros(shape[0], dtype)


class _Table:
    """Rows and columns that are no array, as a data frame."""

    def __init__(self, rows):
        self.shape = rows.shape
        self.to_numpy = lambda dtype: rows.astype(dtype)


@dataclass
class _NotFrozen:
    rate: float = 0.1

    def init(self, key, x):
        return ()

    def forward(self, params, x, context):
        return x, ()

    def backward(self, params, feedback, saved, delta, read):
        return delta, ()


@dataclass(frozen=True)
class _HoldsAnArray:
    array: Any

    def init(self, key, x):
        return ()

    def forward(self, params, x, context):
        return x, ()

    def backward(self, params, feedback, saved, delta, read):
        return delta, ()


@dataclass(frozen=True)
class _Raises(_HoldsAnArray):
    """A layer whose `array` is its forward, of x and the context."""

    def forward(self, params, x, context):
        return self.array(x, context), ()


@dataclass(frozen=True)
class _NoInit(_HoldsAnArray):
    array: Any = None

    def init(self, key, x):
        raise ZeroDivisionError("no params")


MASKED = jbp.Context(mask=jnp.ones((4, 2), bool))
MASK_DUE = (
    "context.mask: expected 5 examples as in x, got {}. It goes row by row with x; what does not belongs in "
    "context.side."
)
EMPTY_CONTEXT = (
    "Shapes are found by tracing it: forward has to work with an empty Context(), where key, mask and side are None."
)
ARGNUMS = "argnums: expected the number of an argument, or a tuple of numbers, got {}. As in argnums=0."
SHAPES_DUE = 'shapes: expected a text such as "N I, I O", got {}. Write axes of each argument.'


@dataclass(frozen=True)
class _Scaled:
    """C_n = ½ Σ_i s_i (output_i − y_i)²: a loss with parameters."""

    def init(self, key, x):
        return {"s": jnp.ones(x[0].shape, x[0].dtype)}

    def forward(self, params, x, context):
        difference = x[0] - x[1]
        return (params["s"][None] * jnp.square(difference)).sum(1) / 2, difference

    def backward(self, params, feedback, saved, delta, read):
        squares = jbp.Sum(jnp.square(saved) * delta[:, None] / 2)
        return (feedback["s"][None] * saved * delta[:, None], None), {"s": read["s"](squares)}


def scaled(*layers: Any) -> jbp.Cost:
    return jbp.Cost(network(jbp.Dense(2), *layers), _Scaled())


OF_THE_LOSS = (
    "{} speaks of the network's own coordinates; loss.{} belongs to the loss. Its derivative is cost.grad(theta, x, "
    "y)[{}]."
)
NO_GRADIENT = (
    "compare: expected two functions that return gradients, got {}, which has the shape of no argument, {}. Wrap them "
    "in jax.grad, or say by function= what they are gradients of."
)

WRONG_CALLS: list[tuple[Callable, str]] = [
    # θ
    (lambda: mlp()(THETA[:-1], X, Y), THETA_LENGTH),
    (lambda: mlp().grad(THETA[:-1], X, Y), THETA_LENGTH),
    (lambda: mlp().network(THETA[:-1], X), THETA_LENGTH),
    (lambda: mlp().compare(THETA[:-1], X, Y), THETA_LENGTH),
    (lambda: jbp.fit(mlp(), THETA[:-1], (X, Y)), THETA_LENGTH),
    (lambda: jbp.as_function(mlp().network)(THETA[:-1], X), THETA_LENGTH),
    (lambda: mlp()(THETA[None], X, Y), THETA_LENGTH.replace("[25]", "[1, 26]")),
    (lambda: mlp()(THETA.astype(jnp.bfloat16), X, Y),
     "theta: expected float32[26], got bfloat16[26]. Cast it with theta.astype(float32), or build the Network with "
     "dtype=bfloat16."),
    (lambda: mlp()(THETA.astype(jnp.int32), X, Y),
     "theta: expected float32[26], got int32[26]. Cast it with theta.astype(float32)."),
    (lambda: mlp()(mlp().layout.unflatten(THETA), X, Y),
     "theta: expected one vector [P] = [26], got tuple of (float32[3, 4], float32[4], float32[4, 2], float32[2]). "
     "Make one with layout.flatten(tree) or jnp.asarray(list)."),
    # x
    (lambda: mlp()(THETA, X[0], Y), "x: expected a batch [N, 3], got one example float32[3]. Write x[None]."),
    (lambda: mlp().network(THETA, X[0]), "x: expected a batch [N, 3], got one example float32[3]. Write x[None]."),
    (lambda: mlp()(THETA, X[:, :2], Y),
     "x: expected a batch [N, 3], got float32[5, 2]. Build the Network for this input."),
    (lambda: mlp()(THETA, X[:, :, None], Y),
     "x: expected a batch [N, 3], got float32[5, 3, 1]. Reshape it to (-1, 3)."),
    (lambda: mlp()(THETA, X.astype(jnp.int32), Y),
     "x: expected floats, got int32[5, 3]. Use x.astype(float32), and scale pixels to [0, 1]."),
    (lambda: mlp()(THETA, X[:0], Y[:0]), "x: expected at least one example, got an empty batch float32[0, 3]."),
    (lambda: network(jbp.from_function(None, lambda _, x: x[0] + x[1]), input=PAIR)(jnp.zeros(0), (X, X[:2])),
     "x: every part needs the same number N of examples, got (float32[5, 3], float32[2, 3])."),
    (lambda: mlp()(THETA, [[1.0, 2.0, 3.0]], Y),
     ARRAY_DUE.format("a list")),
    (lambda: mlp().grad(THETA, X.tolist(), Y), ARRAY_DUE.format("a list")),
    (lambda: mlp()(THETA.tolist(), X, Y),
     "theta: expected one vector [P] = [26], got a list. Make one with layout.flatten(tree) or jnp.asarray(list)."),
    (lambda: mlp()(THETA, X, Y.tolist()), "y: expected 5 examples as in x, got a list. x and y go row by row."),
    (lambda: mlp()(THETA, None, Y), ARRAY_DUE.format("NoneType")),
    # y
    (lambda: mlp()(THETA, X, (Y, Y)),
     "HalfSquaredError: expected y as one array, got tuple of (float32[5, 2], float32[5, 2]). Use jnp.asarray(y)."),
    (lambda: mlp()(THETA, X, Y[:3]), "y: expected 5 examples as in x, got float32[3, 2]. x and y go row by row."),
    (lambda: jbp.Cost(jbp.mlp(3, 1), losses.HalfSquaredError())(jnp.zeros(4), X, Y[:, 0]),
     "HalfSquaredError: expected float y of the output's shape float32[5, 1], got float32[5]. Give y the shape of "
     "the output, as in y[..., None]."),
    (lambda: mlp()(THETA, X, LABELS),
     "HalfSquaredError: expected float y of the output's shape float32[5, 2], got int32[5]. Give y the shape of the "
     "output; labels become jax.nn.one_hot(y, K)."),
    (lambda: mlp()(THETA, X, X),
     "HalfSquaredError: expected float y of the output's shape float32[5, 2], got float32[5, 3]. Give y the shape "
     "of the output, as in y.reshape(output.shape)."),
    (lambda: jbp.Cost(jbp.mlp(3, 2), losses.Huber())(jnp.zeros(8), X, Y.astype(jnp.int32)),
     "Huber: expected float y of the output's shape float32[5, 2], got int32[5, 2]. Cast y to float."),
    (lambda: classifier()(THETA4, X, LABELS.astype(jnp.float32)), CROSS_ENTROPY.format("float32[5]")),
    (lambda: classifier()(THETA4, X, LABELS[:, None]), CROSS_ENTROPY.format("int32[5, 1]")),
    (lambda: classifier()(THETA4, X, jnp.ones((5, 3))), CROSS_ENTROPY.format("float32[5, 3]")),
    # values
    (lambda: classifier().check(THETA4, X, LABELS.at[2].set(4)),
     "SoftmaxCrossEntropy: expected labels in 0 … 3, got y[2] = 4 (1 out of range). Mark labels to leave out with "
     "ignore=."),
    (lambda: jbp.fit(classifier(ignore=-1), THETA4, (X, jnp.array([-1, -2, 0, 7, -1]))),
     "SoftmaxCrossEntropy: expected labels in 0 … 3, got y[1] = -2 (2 out of range). Mark labels to leave out with "
     "ignore=."),
    (lambda: mlp().check(with_nan(THETA), X, Y),
     "theta: expected finite numbers, got theta[1] = nan (1 of 26 not finite). Clean the data first."),
    (lambda: mlp().compare(THETA, with_nan(X), Y),
     "x: expected finite numbers, got x[1, 0] = nan (3 of 15 not finite). Clean the data first."),
    (lambda: fit((X, Y.at[2, 1].set(-jnp.inf))),
     "y: expected finite numbers, got y[2, 1] = -inf (1 of 10 not finite). Clean the data first."),
    (lambda: fit([(X, Y), (with_nan(X), Y)]),
     "x: expected finite numbers, got x[6, 0] = nan (3 of 30 not finite). Clean the data first."),
    (lambda: jbp.Cost(network(jbp.Dense(2)), losses.SigmoidCrossEntropy()).check(jnp.zeros(8), X, -Y),
     "SigmoidCrossEntropy: expected y in [0, 1], got y[0, 0] = -1.0 (10 out of range). Rescale y."),
    (lambda: jax.jit(mlp().check)(THETA, X, Y),
     "Cost.check: it reads values, and under jit there are none. Call it outside jit."),
    # weights, feedback, readouts
    (lambda: mlp()(THETA, X, Y, weights=WEIGHTS[:4]),
     WEIGHTS_DUE.format("float32[4]")),
    (lambda: mlp().grad(THETA, X, Y, weights=WEIGHTS[:, None]),
     WEIGHTS_DUE.format("float32[5, 1]")),
    (lambda: mlp()(THETA, X, Y, weights=[1.0, 2.0, 3.0, 4.0, 5.0]),
     WEIGHTS_DUE.format("a list")),
    (lambda: mlp().compare(THETA, X, Y, weights=jnp.zeros(5)),
     "weights: a mean needs weights whose sum is not 0, got a sum of 0. Give some weight."),
    (lambda: mlp().grad(THETA, X, Y, feedback=THETA[:-1]), THETA_LENGTH.replace("theta", "feedback", 1)),
    (lambda: mlp().grad(THETA, X, Y, context=None),
     "context: expected a Context, got None. Write jbp.Context(key=key)."),
    (lambda: jbp.Cost(network(jbp.Tanh()), losses.HalfSquaredError()).measure(
        jnp.zeros(0), X, X, jbp.SquaredNorms()),
     "Cost.measure: this network has no parameters to read anything at. Add a layer that has."),
    (lambda: _function_cost().grad(jnp.zeros(21), X, Y, feedback=jnp.zeros(21)),
     "feedback: layer 1.layer (Function) carries delta with its own params only. Write that layer by hand, or leave "
     "feedback out."),
    (lambda: mlp().measure(THETA, X, Y),
     "Cost.measure: expected readouts, got none. As in cost.measure(theta, x, y, Gradient())."),
    (lambda: mlp().measure(THETA, X, Y, jbp.Gradient),
     "Cost.measure: expected readouts, got <class 'jbp.readouts.Gradient'>. As in cost.measure(theta, x, y, "
     "Gradient())."),
    (lambda: mlp().measure(THETA, X, Y, "gradient"),
     "Cost.measure: expected readouts, got 'gradient'. As in cost.measure(theta, x, y, Gradient())."),
    # Cost
    (lambda: jbp.Cost(jbp.mlp(3, 2), losses.HalfSquaredError),
     "Cost: expected a loss, got the class HalfSquaredError. Write HalfSquaredError()."),
    (lambda: jbp.Cost(jbp.mlp(3, 2), "mse"),
     "Cost: expected a loss, got 'mse'. Write jbp.losses.HalfSquaredError()."),
    (lambda: jbp.Cost(losses.HalfSquaredError(), jbp.mlp(3, 2)),
     "Cost: expected a Network, got HalfSquaredError(). Write Network(layers, input=(...))."),
    (lambda: jbp.Cost(jbp.mlp(3, 2), losses.HalfSquaredError(), "average"),
     "Cost: reduction must be 'mean', 'sum' or 'positions', got 'average'."),
    # networks and layers
    (lambda: network(jbp.Dense), "Sequential: layers[0] is no layer: <class 'jbp.layers.dense.Dense'>. Give Dense()."),
    (lambda: network(jbp.Dense(3), 5),
     "Sequential: layers[1] is no layer: 5. Give an instance with init, forward, backward."),
    (lambda: network(jax.nn.relu),
     f"Sequential: layers[0] is no layer: {jax.nn.relu!r}. Give jbp.from_function(None, lambda params, x: f(x)), or "
     "the layer of that name, as in jbp.ReLU()."),
    (lambda: jbp.Sequential(jbp.Tanh()), "Sequential: expected a list of layers, got Tanh(). Write Sequential([...])."),
    (lambda: jbp.Residual(jbp.Tanh), "Residual: layer is no layer: <class 'jbp.activations.Tanh'>. Give Tanh()."),
    (lambda: jbp.Residual([jbp.Tanh()]), "Residual: layer is no layer: [Tanh()]. Give Sequential([...])."),
    (lambda: jbp.Tap(3), "Tap: expected fn as a function of delta, got 3. As in Tap(lambda delta: delta)."),
    (lambda: jbp.Network(5, (3,)), "Network: expected a list of layers, got 5. As in Network([Dense(10)], (784,))."),
    (lambda: network(_HoldsAnArray(np.ones(3))),
     "Network: layer 0: _HoldsAnArray.array: a setting must be hashable, got float32[3]. Arrays belong into the params "
     "or the Context."),
    (lambda: network(jbp.Residual(_HoldsAnArray([1, 2]))),
     "Network: layer 0.layer: _HoldsAnArray.array: a setting must be hashable, got the list [1, 2]. Write it as a "
     "tuple."),
    (lambda: network(_HoldsAnArray({"rate": 1})),
     "Network: layer 0: _HoldsAnArray.array: a setting must be hashable, got the dict {'rate': 1}. Write it as a tuple "
     "of pairs, or a frozen dataclass."),
    (lambda: network(jbp.Dense(3), jbp.LeakyReLU(jnp.float32(0.1))),
     "Network: layer 1: LeakyReLU.negative_slope: a setting must be hashable, got float32[]. Write float(value)."),
    (lambda: network(_NotFrozen()),
     "Network: layer 0: a layer and a loss must be hashable, and _NotFrozen is not. Write @dataclass(frozen=True)."),
    (lambda: jbp.Cost(jbp.mlp(3, 2), losses.Huber(jnp.float32(1))),
     "Cost: Huber.d: a setting must be hashable, got float32[]. Write float(value)."),
    (lambda: jbp.Cost(jbp.mlp(3, 2), losses.SoftmaxCrossEntropy(ignore=[0])),
     "Cost: SoftmaxCrossEntropy.ignore: a setting must be hashable, got the list [0]. Write it as a tuple."),
    (lambda: jbp.Cost(jbp.mlp(3, 2), losses.SoftmaxCrossEntropy(ignore=np.zeros(2, np.int32))),
     "Cost: SoftmaxCrossEntropy.ignore: a setting must be hashable, got int32[2]. Arrays belong into y."),
    (lambda: jbp.Cost(jbp.mlp(3, 2), losses.SoftmaxCrossEntropy()), LOGITS.format("Softmax", "softmax", "Sigmoid")),
    (lambda: jbp.Cost(jbp.mlp(3, 2), losses.SigmoidCrossEntropy()), LOGITS.format("Sigmoid", "sigmoid", "Sigmoid")),
    (lambda: jbp.Cost(network(jbp.Sequential([jbp.Dense(2), jbp.Softmax()])), losses.SoftmaxCrossEntropy(0.1)),
     LOGITS.format("Softmax", "softmax", "Softmax")),
    (lambda: jbp.Cost(network(jbp.Dense(2), jbp.Sequential([jbp.Softmax()])), losses.SigmoidCrossEntropy()),
     LOGITS.format("Sigmoid", "sigmoid", "Softmax")),
    # random keys
    (lambda: mlp().network.init(0), KEY_DUE.format("Network", "0", "Write jax.random.key(0).")),
    (lambda: mlp().init(42), KEY_DUE.format("Cost", "42", "Write jax.random.key(42).")),
    (lambda: mlp().init(None), KEY_DUE.format("Cost", "None", "Write jax.random.key(0).")),
    (lambda: mlp().network.init(jnp.zeros(2)), KEY_DUE.format("Network", "float32[2]", "Write jax.random.key(0).")),
    (lambda: mlp().network.init(jax.random.split(KEY)),
     KEY_DUE.format("Network", "key<fry>[2]", "Give one of them, as in keys[0].")),
    (lambda: mlp().init(jax.random.split(jax.random.PRNGKey(0))),
     KEY_DUE.format("Cost", "uint32[2, 2]", "Give one of them, as in keys[0].")),
    (lambda: mlp()(THETA, X, Y, context=jbp.Context(key=0)),
     "context.key: expected a random key, got int32[]. Write jbp.Context(key=jax.random.key(0))."),
    (lambda: mlp().network(THETA, X, jbp.Context(key=7)),
     "context.key: expected a random key, got 7. Write jbp.Context(key=jax.random.key(7))."),
    (lambda: mlp().network(THETA, X, KEY),
     "context: expected a Context, got key<fry>[]. Write jbp.Context(key=key)."),
    # what JAX can't take
    (lambda: mlp()(THETA, np.ones((5, 3), object), Y),
     "x: expected an array of numbers, got an array of object [5, 3]. Cast it, as in np.asarray(x.tolist(), "
     "dtype='float32')."),
    (lambda: mlp().network(THETA, np.array([np.ones(3), np.ones(2)], object)),
     "x: expected an array of numbers, got an array of object [2]. Cast it, as in np.asarray(x.tolist(), "
     "dtype='float32')."),
    (lambda: mlp().grad(THETA, X, np.ones((5, 2), object)),
     "y: expected an array of numbers, got an array of object [5, 2]. Cast it, as in np.asarray(y.tolist(), "
     "dtype='float32')."),
    (lambda: mlp().check(np.ones(26, object), X, Y),
     "theta: expected an array of numbers, got an array of object [26]. Cast it, as in np.asarray(theta.tolist(), "
     "dtype='float32')."),
    (lambda: mlp().measure(THETA, X, Y, jbp.Gradient(), weights=np.ones(5, object)),
     "weights: expected an array of numbers, got an array of object [5]. Cast it, as in np.asarray(weights.tolist(), "
     "dtype='float32')."),
    (lambda: classifier()(THETA4, X, np.array(["cat", "dog", "cat", "cat", "dog"])),
     "y: expected an array of numbers, got an array of <U3 [5]. Number the words, as in np.unique(y, "
     "return_inverse=True)[1]."),
    (lambda: mlp()(THETA, _Table(np.ones((5, 3))), Y),
     "x: expected an array of numbers, got _Table. Write x.to_numpy(dtype='float32')."),
    (lambda: mlp()(THETA, X, _Table(np.ones((5, 2)))),
     "y: expected an array of numbers, got _Table. Write y.to_numpy(dtype='float32')."),
    (lambda: mlp()(THETA, X, "labels"),
     "y: expected an array of numbers, got str. Use np.asarray(y, dtype='float32')."),
    (lambda: network(jbp.from_function(None, lambda _, x: x.sum(0))),
     "layer 0: forward must keep the batch axis: for 7919 examples it returned float32[3]. Treat each example by "
     "itself, with axis 0 the batch."),
    (lambda: network(input=(0, 3)), "Network: every axis of the input needs at least 1 entry, got (0, 3)."),
    (lambda: network(compute_dtype="bf16"),
     "Network: compute_dtype must be a float dtype, as in jnp.bfloat16, got 'bf16'."),
    (lambda: jbp.mlp(3), "mlp: expected at least an input and an output width, got (3,). As in mlp(784, 30, 10)."),
    (lambda: network(jbp.Dense(2), input=np.ones((5, 3), np.float32)),
     "Network: input must be the shape of one example, got the data itself, float32[5, 3]. Write input=x.shape[1:]."),
    (lambda: network(jbp.from_function(None, lambda _, x: x[0]), input=(X, X)),
     "Network: input must be the shape of one example, got the data itself, float32[5, 3]. Write input=x.shape[1:]."),
    (lambda: network(jbp.Dense(2), input=X.shape)(jnp.zeros(8), X),
     "x: expected a batch [N, 5, 3], got one example float32[5, 3]. Write x[None], or, if its first axis counts "
     "examples, Network(..., input=(3,))."),
    (lambda: network(jbp.Dense(4), "relu"),
     "Sequential: layers[1] is no layer: 'relu'. Give the layer itself, as in jbp.ReLU()."),
    (lambda: network(input=3), "Network: input must be the shape of one example, as in (784,), got 3."),
    (lambda: network(jbp.Dense(3), dtype=jnp.float64),
     "Network: dtype=float64 needs JAX's x64. Set jax.config.update('jax_enable_x64', True)."),
    (lambda: network(jbp.Dense(3), compute_dtype=jnp.int8), "Network: compute_dtype must be a float dtype, got int8."),
    (lambda: jbp.Dense(0), "Dense: width must be a whole number of at least 1, got 0."),
    (lambda: network(jbp.Dense(64, 30), input=(64,)),
     "Dense: bias must be True or False, got 30. The number of inputs is read off the x that arrives: for 30 outputs "
     "write Dense(30)."),
    (lambda: jbp.Dense(10, "zeros"),
     "Dense: bias must be True or False, got 'zeros'. Initial biases are biases=, as in Dense(10, biases='zeros')."),
    (lambda: jbp.Dense(2, weights=W),
     "Dense: weights must name an initialiser or be a function (key, shape, dtype) -> array, got float32[3, 2]. As in "
     "jax.nn.initializers.constant(0.1)."),
    (lambda: jbp.Dense(2, biases=0.1),
     "Dense: biases must name an initialiser or be a function (key, shape, dtype) -> array, got 0.1. As in "
     "jax.nn.initializers.constant(0.1)."),
    (lambda: jbp.Dense(2).init(KEY, (3,)),
     "Dense(2): expected one float input x [N, ..., I], got 3. Give the input an axis of features, or cast it to "
     "float."),
    (lambda: jbp.from_function(jnp.sin, None),
     "from_function: apply must be a function, got None. As in from_function(None, lambda params, x: jnp.sin(x)), None "
     "for no parameters."),
    (lambda: jbp.from_function({"g": 1}, lambda params, x: x),
     "from_function: init must be a function, got {'g': 1}. As in from_function(None, lambda params, x: jnp.sin(x)), "
     "None for no parameters."),
    (lambda: jbp.Dense(3.0), "Dense: width must be a whole number of at least 1, got 3.0."),
    (lambda: network(jbp.Tanh(), jbp.Dense(3), input=()),
     "layer 1: Dense(3): expected one float input x [N, ..., I], got float32[N]. Give the input an axis of features, "
     "or cast it to float."),
    (lambda: network(jbp.Dense(3), input=jax.ShapeDtypeStruct((3,), jnp.int32)),
     "layer 0: Dense(3): expected one float input x [N, ..., I], got int32[N, 3]. Give the input an axis of features, "
     "or cast it to float."),
    (lambda: jbp.Dense(4).forward(jbp.Dense(4).init(KEY, PAIR[0]), X[:, :2], jbp.Context()),
     "Dense(4): expected x [N, ..., I = 3], got float32[5, 2]. Check the width of the layer before."),
    (lambda: network(jbp.Tanh(), input=jax.ShapeDtypeStruct((3,), jnp.int32)),
     "layer 0: Tanh: expected a float input z, got int32[3]. Cast it, or join its parts."),
    (lambda: network(jbp.Tanh(), input=PAIR),
     "layer 0: Tanh: expected a float input z, got (float32[3], float32[3]). Cast it, or join its parts."),
    (lambda: network(jbp.Softmax(), input=()),
     "layer 0: Softmax: expected a float input z with a class axis, got float32[]. Give the input an axis of "
     "classes, or cast it."),
    (lambda: network(jbp.Residual(jbp.Sequential([jbp.Tanh(), jbp.Dense(3, weights="xavier")]))),
     "layer 0.layer.1: unknown initialiser 'xavier'. Name one of zeros, ones, lecun_normal, lecun_uniform, he_normal, "
     "he_uniform, glorot_normal, glorot_uniform, kaiming_normal, kaiming_uniform, xavier_normal, xavier_uniform, "
     "normal, uniform, truncated_normal, orthogonal, or give a function (key, shape, dtype) -> array, as in "
     "jax.nn.initializers.constant(0.1)."),
    (lambda: network(jbp.Dense(3, biases="lecun_normal")),
     "layer 0: biases: the initialiser 'lecun_normal' fails for shape [3]: Can't compute input and output sizes of a "
     "1-dimensional weights tensor with default in_axis. Must be at least 2D or specify in_axis explicitly."),
    (lambda: network(jbp.Dense(2, weights=_zeros_of_a_row)),
     f"layer 0: weights: expected float32[3, 2] from the initialiser {_zeros_of_a_row!r}, got float32[3]. Give a "
     "function (key, shape, dtype) -> array; jax.nn.initializers' own need a call, as in lecun_normal()."),
    (lambda: network(jbp.Dense(3), jbp.Residual(jbp.Sequential([jbp.Dense(4), jbp.Tanh()]))),
     "layer 1: Residual: x + layer(x) needs the layer to keep the shape of x, (x, layer(x)) is "
     "(float32[3], float32[4]) without the batch axis. Change the layer's width."),
    (lambda: jbp.LeakyReLU(0), "LeakyReLU: negative_slope must be above 0, got 0. For 0 use ReLU()."),
    (lambda: losses.Huber(0), "Huber: d must be above 0, got 0. It is the residual where the parabola ends."),
    (lambda: losses.Huber().sample(KEY, Y),
     "Huber: has no likelihood here to sample from. Use HalfSquaredError for a Gaussian one."),
    (lambda: losses.SoftmaxCrossEntropy(1.0), "SoftmaxCrossEntropy: smoothing must be in [0, 1), got 1.0."),
    # layout
    (lambda: jbp.Layout.of({"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16)}),
     "Layout: one vector has one float dtype, got a: float32, b: bfloat16. Cast the leaves to one dtype."),
    (lambda: jbp.Layout.of({"a": jnp.ones(2, jnp.int32)}),
     "Layout: one vector has one float dtype, got a: int32. Cast the leaves to one dtype."),
    (lambda: mlp().layout.flatten({"a": 1.0}),
     "Layout.flatten: expected leaves 0.w, 0.b, 2.w, 2.b in the structure of this layout, got a. Start from "
     "layout.unflatten(theta), or make Layout.of(tree)."),
    (lambda: mlp().layout.flatten(jax.tree.map(jnp.transpose, mlp().layout.unflatten(THETA))),
     "Layout.flatten: leaf 0.w has shape [3, 4] in this layout, got [4, 3]. Transpose it."),
    (lambda: mlp().layout.flatten(mlp().layout.unflatten(THETA.astype(jnp.float32))[:1] + (((),) * 3)),
     "Layout.flatten: expected leaves 0.w, 0.b, 2.w, 2.b in the structure of this layout, got 0.w, 0.b. Start from "
     "layout.unflatten(theta), or make Layout.of(tree)."),
    (lambda: mlp().layout.index("w^2_{4←0}"), NEAREST.format("w^2_{4←0}", "w^2_{3←0}, of w^2_{0←0} … w^2_{3←2}")),
    (lambda: mlp().layout.index("w^9_{0<-0}"), NEAREST.format("w^9_{0<-0}", "w^3_{0←0}, of w^3_{0←0} … w^3_{1←3}")),
    (lambda: mlp().layout.index("b^2"), SYMBOL.format("b^2", "b^2_0 … b^2_3")),
    (lambda: RESIDUAL.layout.index("0.layer.v[0,1]"),
     SYMBOL.format("0.layer.v[0,1]", "0.layer.w[0,0] … 0.layer.w[2,2]")),
    (lambda: network(jbp.Tanh()).layout.index("b^2_0"),
     "layout.index: unknown symbol 'b^2_0': this layout has no coordinates."),
    (lambda: mlp().layout.symbol(26), "layout.symbol: coordinate 26 is not in θ; it has coordinates 0 … 25."),
    (lambda: mlp().layout.matrix(THETA, 1),
     "layout.matrix: layer l = 1 has no weights; l runs from 2 to L = 3."),
    (lambda: RESIDUAL.layout.num_layers,
     "layout.num_layers: defined for a plain chain of dense layers only; this layout has leaves 0.layer.w, "
     "0.layer.b. Use layout.unflatten(theta) and the leaf's path."),
    (lambda: mlp().layout.flatten(THETA),
     "Layout.flatten: expected leaves 0.w, 0.b, 2.w, 2.b in the structure of this layout, got float32[26]. Start from "
     "layout.unflatten(theta), or make Layout.of(tree)."),
    (lambda: mlp().value_and_grad_leaves({"w": X}, X, Y),
     "Cost.value_and_grad_leaves: params: expected leaves 0.w, 0.b, 2.w, 2.b in the structure of this layout, got w. "
     "Start from layout.unflatten(theta), or make Layout.of(tree)."),
    (lambda: mlp().value_leaves(jax.tree.map(jnp.transpose, mlp().layout.unflatten(THETA)), X, Y),
     "Cost.value_leaves: params: leaf 0.w has shape [3, 4] in this layout, got [4, 3]. Transpose it."),
    (lambda: network(jbp.Tanh()).layout.symbol(0),
     "layout.symbol: coordinate 0 is not in θ; it has no coordinates."),
    # compare
    (lambda: compare(3, 4, X),
     "compare: expected two functions, rule and oracle, got 3 and 4. As in compare(rule, jax.grad(f), x)."),
    (lambda: compare(jnp.sum, jnp.sum, X), NO_GRADIENT.format("float32[]", "float32[5, 3]")),
    (lambda: compare(jax.jit(jnp.sum), jax.jit(jnp.sum), X), NO_GRADIENT.format("float32[]", "float32[5, 3]")),
    (lambda: compare(lambda x: x.sum(0), lambda x: x.sum(0), X), NO_GRADIENT.format("float32[3]", "float32[5, 3]")),
    (lambda: compare(lambda x: (x.sum(), x[0]), lambda x: (x.sum(), x[0]), X),
     NO_GRADIENT.format("float32[3]", "float32[5, 3]")),
    (lambda: compare(lambda x: (x.sum(), ()), lambda x: (x.sum(), ()), X),
     NO_GRADIENT.format("nothing", "float32[5, 3]")),
    (lambda: compare(lambda x, w, b: x @ w + b[None], lambda x, w, b: x @ w + b[None], X, W, W[0]),
     NO_GRADIENT.format("float32[5, 2]", "(float32[5, 3], float32[3, 2], float32[2])")),
    (lambda: jbp.assert_gradients(jnp.sum, jnp.sum, X), NO_GRADIENT.format("float32[]", "float32[5, 3]")),
    (lambda: compare(lambda x: (), lambda x: (), X),
     "compare: the functions return nothing to compare. Return arrays."),
    (lambda: compare(lambda x: x, lambda x: x, LABELS),
     "compare: gradient is int32; a gradient has a float dtype. Return floats."),
    (lambda: compare(lambda x: x, lambda x: (x, x), X),
     "compare: rule and oracle return different structures: the oracle has leaves 0, 1; missing from the "
     "rule: 0, 1; only in the rule: gradient. Return gradients in one structure."),
    (lambda: compare(lambda x: x, lambda x: x[:1], X),
     "compare: leaf gradient is float32[1, 3] by the oracle, float32[5, 3] by the rule. A gradient has its "
     "argument's shape and dtype."),
    (lambda: compare(lambda x: x.astype(jnp.bfloat16), lambda x: x, X),
     "compare: leaf gradient is float32[5, 3] by the oracle, bfloat16[5, 3] by the rule. A gradient has its "
     "argument's shape and dtype."),
    (lambda: compare(lambda x: {"w": x, "b": {"c": x}}, lambda x: {"w": x, "b": {"d": x}}, X),
     "compare: rule and oracle return different structures: the oracle has leaves b.d, w; missing from the rule: b.d; "
     "only in the rule: b.c. Return gradients in one structure."),
    (lambda: compare(lambda x: (x.sum(), x), lambda x: x, X),
     "compare: rule and oracle return different structures: the oracle has leaves gradient; missing from the rule: "
     "none; only in the rule: value. Return gradients in one structure."),
    (lambda: compare(lambda x: {"w": x, "b": None}, lambda x: {"w": x, "b": x}, X),
     "compare: rule and oracle return different structures: the oracle has leaves b, w; missing from the rule: b; only "
     "in the rule: none. Return gradients in one structure."),
    (lambda: compare(lambda x: 2 * x[None] * jnp.ones((4, 5, 3)), lambda x: 8 * x, X),
     "compare: leaf gradient is float32[5, 3] by the oracle, float32[4, 5, 3] by the rule. A gradient has its "
     "argument's shape and dtype. It is not summed over the batch: summed over its first axis it is the oracle's."),
    (lambda: compare(lambda x: 2 * x[None] * jnp.ones((4, 5, 3)), lambda x: 3 * x, X),
     "compare: leaf gradient is float32[5, 3] by the oracle, float32[4, 5, 3] by the rule. A gradient has its "
     "argument's shape and dtype. It has an axis too many."),
    (lambda: compare(lambda x: {"w": x.T}, lambda x: {"w": x}, X),
     "compare: leaf w is float32[5, 3] by the oracle, float32[3, 5] by the rule. A gradient has its argument's shape "
     "and dtype. It is transposed."),
    (lambda: compare(raises, lambda x: x, X), "compare: the rule raises KeyError: 'no such thing'"),
    (lambda: compare(lambda x: x, raises, X), "compare: the oracle raises KeyError: 'no such thing'"),
    (lambda: compare(lambda x, y: x, lambda x: x, X),
     "compare: the rule raises TypeError: <lambda>.<locals>.<lambda>() missing 1 required positional argument: 'y'"),
    (lambda: compare(lambda x: x, jax.grad(lambda x: x), X),
     "compare: the oracle raises TypeError: Gradient only defined for scalar-output functions. Output had shape: "
     "(5, 3).[…]"),
    (lambda: compare(lambda x: x if x[0, 0] > 0 else -x, lambda x: x, X),
     "compare: the rule raises TracerBoolConversionError: Attempted boolean conversion of traced array with shape "
     "bool[]. Write jnp.where or jax.lax.cond in place of if."),
    (lambda: compare(lambda x: 2 * np.asarray(x), lambda x: 2 * x, X[0]),
     "compare: the rule raises TracerArrayConversionError: The numpy.ndarray conversion method __array__() was called "
     "on traced array with shape float32[3]. Write it with jax.numpy, or as jax.pure_callback(f, x, x): f in NumPy, "
     "its result like x."),
    (lambda: compare(lambda x: x * float(x[0, 0]), lambda x: x, X),
     "compare: the rule raises ConcretizationTypeError: Abstract tracer value encountered where concrete value is "
     "expected: traced array with shape float32[]. Keep to jax.numpy, without float(), int(), .item() or math of an "
     "argument."),
    (lambda: compare(lambda x: "relu", lambda x: x, X),
     "compare: the rule raises TypeError: it returned a value of type <class 'str'>, which is not a valid JAX type"),
    (lambda: compare(divides_by_zero, lambda x: x, X),
     "compare: the rule fails as it runs: ZeroDivisionError: division by zero"),
    (lambda: compare(lambda x: x, divides_by_zero, X),
     "compare: the oracle fails as it runs: ZeroDivisionError: division by zero"),
    (lambda: compare(writes, lambda x: 2 * x, X),
     "compare: the rule has side effects (IO), and it is run many times. Take them out to compare."),
    (lambda: compare(lambda x: 2 * x, writes, X),
     "compare: the oracle has side effects (IO), and it is run many times. Take them out to compare."),
    (lambda: compare(lambda x: x > 0, lambda x: x > 0, X),
     "compare: gradient is bool; a gradient has a float dtype. Return floats."),
    (lambda: compare(lambda x: x, lambda x: x, deleted(X + 1)),
     "compare: an argument's array has been deleted, perhaps donated. Make it anew."),
    (lambda: under_jit(compare, lambda x: x, lambda x: x),
     "compare: it reads values, and under jit there are none. Call it outside jit."),
    (lambda: compare(lambda x: 2 * x, lambda x: 3 * x, X, function=lambda x: x),
     "compare: the function must return one scalar, got float32[5, 3]. Give what they are gradients of."),
    (lambda: compare(lambda x: 2 * x, lambda x: 3 * x, X, function=raises),
     "compare: the function raises KeyError: 'no such thing'"),
    # compare_vjp
    (lambda: compare_vjp("softmax", X), "compare_vjp: expected a function, got 'softmax'. As in compare_vjp(f, x)."),
    (lambda: compare_vjp(jnp.sin, X),
     "compare_vjp: no custom_vjp is called in sin on a path that a derivative takes. To compare two gradient functions "
     "use compare(rule, oracle, ...)."),
    (lambda: compare_vjp(jax.nn.relu, X),
     "compare_vjp: no custom_vjp is called in relu on a path that a derivative takes, but a custom_jvp is: relu. Use "
     "compare_jvp."),
    (lambda: compare_vjp(
        lambda x: jax.lax.while_loop(lambda a: a.sum() < 9, lambda a: product()(a, W[:, :1]) + a, x), X),
     "compare_vjp: no custom_vjp is called in <lambda> on a path that a derivative takes; product stands under a while "
     "loop or in another rule. Compare it by itself."),
    (lambda: compare_vjp(lambda x: product()(x.astype(float), W), X.astype(int)),
     "compare_vjp: f has no arguments of a float dtype, got int32[5, 3]: nothing to differentiate."),
    (lambda: compare_vjp(lambda x: product()(x, W).astype(int), X),
     "compare_vjp: f has no outputs of a float dtype, got int32[5, 2]: nothing to differentiate."),
    (lambda: compare_vjp(lambda: product()(X, W)),
     "compare_vjp: f has no arguments of a float dtype, got nothing: nothing to differentiate."),
    (lambda: compare_vjp(product(), X, W, cotangent=X),
     "compare_vjp: the cotangent must be like float32[5, 2], got float32[5, 3]. Leave it out for random numbers."),
    (lambda: compare_vjp(product(), X, W, cotangent=(Y, Y)),
     "compare_vjp: the cotangent must be like float32[5, 2], got (float32[5, 2], float32[5, 2]). Leave it out for "
     "random numbers."),
    (lambda: compare_vjp(raises, X), "compare_vjp: f raises KeyError: 'no such thing'"),
    (lambda: compare_vjp(product(), X, X),
     "compare_vjp: f raises TypeError: dot_general requires contracting dimensions to have the same shape, got (3,) "
     "and (5,)."),
    (lambda: compare_vjp(product(), X),
     "compare_vjp: f raises TypeError: The input arguments to the custom_vjp-decorated function product could not be "
     "resolved to positional-only arguments. Binding failed with the error: missing a required argument: 'w'"),
    (lambda: compare_vjp(jax.custom_vjp(lambda x: x), X),
     "compare_vjp: f raises AttributeError: No VJP defined for custom_vjp function <lambda> using defvjp."),
    (lambda: compare_vjp(product(backward=raises), X, W),
     "compare_vjp: the rule of product raises KeyError: 'no such thing'"),
    (lambda: compare_vjp(product(forward=raises), X, W),
     "compare_vjp: the rule of product raises KeyError: 'no such thing'"),
    (lambda: compare_vjp(product(backward=lambda saved, g: (g @ saved[1].T, g.T @ saved[0])), X, W),
     "compare_vjp: the rule of product raises ValueError: Custom VJP bwd rule […]must produce an output with the same "
     "type as the args tuple of the primal function, but at output[1] the bwd rule produced an output of type "
     "float32[2,3] corresponding to an input of type float32[3,2], so the shapes do not match"),
    (lambda: compare_vjp(product(backward=lambda saved, g: (g @ saved[1].T, saved[0][:, :, None] * g[:, None])), X, W),
     "compare_vjp: the rule of product raises ValueError: Custom VJP bwd rule […]must produce an output with the same "
     "type as the args tuple of the primal function, but at output[1] the bwd rule produced an output of type "
     "float32[5,3,2] corresponding to an input of type float32[3,2], so the shapes do not match"),
    (lambda: compare_vjp(lambda x: product()(writes(x), W), X),
     "compare_vjp: f has side effects (IO), and it is run many times. Take them out to compare."),
    (lambda: compare_vjp(product(backward=lambda saved, g: (writes(saved[0]), saved[0].T @ g)), X, W),
     "compare_vjp: the rule of product has side effects (IO), and it is run many times. Take them out to compare."),
    (lambda: under_jit(compare_vjp, lambda x: product()(x, W)),
     "compare_vjp: it reads values, and under jit there are none. Call it outside jit."),
    # compare_jvp
    (lambda: compare_jvp(3, X), "compare_jvp: expected a function, got 3. As in compare_jvp(f, x)."),
    (lambda: compare_jvp(jnp.sin, X),
     "compare_jvp: no custom_jvp is called in sin on a path that a derivative takes. To compare two gradient functions "
     "use compare(rule, oracle, ...)."),
    (lambda: compare_jvp(product(), X, W),
     "compare_jvp: no custom_jvp is called in product on a path that a derivative takes, but a custom_vjp is: product. "
     "Use compare_vjp."),
    (lambda: compare_jvp(jax.nn.relu, X, tangent=(X[0],)),
     "compare_jvp: the tangent must be like float32[5, 3], got float32[3]. Leave it out for random numbers."),
    (lambda: compare_jvp(lambda x: jax.nn.relu(x > 0), X),
     "compare_jvp: f has no outputs of a float dtype, got int32[5, 3]: nothing to differentiate."),
    (lambda: compare_vjp(product(), X, W, argnums="x"), ARGNUMS.format("'x'")),
    (lambda: compare_jvp(jax.nn.relu, X, argnums=1.5), ARGNUMS.format("1.5")),
    (lambda: compare(jnp.cos, jnp.cos, X, argnums=(0, None)), ARGNUMS.format("(0, None)")),
    (lambda: compare(jnp.cos, jnp.cos, X, argnums=()), ARGNUMS.format("()")),
    (lambda: jbp.assert_vjp(product(), X, W, tol=1e-3),
     "assert_vjp: there is no keyword tol. It takes cotangent, argnums, timing, checks."),
    (lambda: jbp.assert_gradients(jnp.cos, jnp.cos, X, tol=1e-3),
     "assert_gradients: there is no keyword tol. It takes function, argnums, timing, checks."),
    (lambda: jbp.mlp(3, 2, bias=False), "mlp: there is no keyword bias. It takes dtype, compute_dtype."),
    (lambda: jbp.arrays(3), SHAPES_DUE.format("3")),
    (lambda: jbp.search(product(), ["N I", "I O"]), SHAPES_DUE.format("['N I', 'I O']")),
    (lambda: jbp.search(3, "N"), "search: f must be a function, got 3. As in search(f, 'N I, I O')."),
    (lambda: jbp.search(product(), "N I, I O", examples="many"),
     "search: examples must be a whole number of at least 1, got 'many'."),
    # what a layer of one's own raises as shapes are inferred
    (lambda: network(jbp.Dense(3), jbp.Residual(_Raises(lambda x, context: x * jax.random.normal(context.key)))),
     "layer 1.layer: forward raises TypeError: unexpected PRNG key type <class 'NoneType'>. " + EMPTY_CONTEXT),
    (lambda: network(jbp.Sequential([jbp.Tanh(), _Raises(lambda x, context: x * context.mask[:, None])])),
     "layer 1: forward raises TypeError: 'NoneType' object is not subscriptable. " + EMPTY_CONTEXT),
    (lambda: network(jbp.Fork([jbp.Tanh(), _Raises(lambda x, context: x if x[0, 0] > 0 else -x)])),
     "layer 0.1: forward raises TracerBoolConversionError: Attempted boolean conversion of traced array with shape "
     "bool[]. Write jnp.where or jax.lax.cond in place of if. " + EMPTY_CONTEXT),
    (lambda: network(jbp.Tanh(), jbp.Frozen(jbp.from_function(lambda key, x: x.shape[7], lambda params, x: x))),
     "layer 1.fixed: init raises IndexError: tuple index out of range. Shapes are found by tracing it with an input "
     "spec, without the batch axis."),
    (lambda: jbp.Cost(network(jbp.Dense(2)), _NoInit()),
     "layer loss: init raises ZeroDivisionError: no params. Shapes are found by tracing it with an input spec, without "
     "the batch axis."),
    # a mask that no layer uses
    (lambda: mlp()(THETA, X, Y, context=MASKED), MASK_DUE.format("bool[4, 2]")),
    (lambda: mlp().check(THETA, X, Y, context=MASKED), MASK_DUE.format("bool[4, 2]")),
    (lambda: mlp().measure(THETA, X, Y, jbp.SquaredNorms(), context=MASKED), MASK_DUE.format("bool[4, 2]")),
    (lambda: mlp().network(THETA, X, jbp.Context(mask=jnp.ones(()))), MASK_DUE.format("float32[]")),
    (lambda: jbp.as_function(mlp().network)(THETA, X, MASKED), MASK_DUE.format("bool[4, 2]")),
    (lambda: mlp().check(THETA, X, Y, context=jbp.Context(mask="all")),
     "context.mask: expected an array of numbers, got str. Use np.asarray(context.mask, dtype='float32')."),
    # a loss's own coordinates
    (lambda: jbp.explain(scaled(), jnp.ones(10), X, Y, "loss.s[1]"), OF_THE_LOSS.format("explain", "s[1]", 9)),
    (lambda: jbp.draw.single(scaled(), "loss.s[0]"), OF_THE_LOSS.format("draw.single", "s[0]", 8)),
    (lambda: jbp.draw.single(scaled(), "loss.s[0]", jnp.ones(10), X[0], Y[0]),
     OF_THE_LOSS.format("draw.single", "s[0]", 8)),
    (lambda: jbp.draw.computation(scaled(jbp.Residual(jbp.Dense(2))), highlight="loss.s[1]"),
     OF_THE_LOSS.format("draw.computation", "s[1]", 15)),
    # fit
    (lambda: fit(epochs=0), EPOCHS.format("0 and 64")),
    (lambda: fit(epochs=1.5), EPOCHS.format("1.5 and 64")),
    (lambda: fit(batch_size=-1), EPOCHS.format("1 and -1")),
    (lambda: fit(5), "fit: data must be arrays (x, y) or an iterable of batches (x, y), got int."),
    (lambda: fit(iter([(X, Y)]), epochs=2),
     "fit: data is an iterator, which ends with the first of 2 epochs. Pass a list or another iterable that starts "
     "anew, or epochs=1."),
    (lambda: fit([]), "fit: data gave no batch in epoch 1. Pass an iterable that starts anew each time."),
    (lambda: fit(_Once(iter([(X, Y)])), epochs=2),
     "fit: data gave no batch in epoch 2. Pass an iterable that starts anew each time."),
    (lambda: fit([(X, Y, X)]), BATCH.format("tuple")),
    (lambda: fit([{"x": X, "y": Y}]), BATCH.format("dict")),
    (lambda: fit([X, Y]),
     "fit: data is a list of 2 arrays, (float32[5, 3], float32[5, 2]). Pass arrays as the tuple (x, y), or a list of "
     "batches [(x, y), ...]."),
    (lambda: fit({"x": X, "y": Y}),
     "fit: data must be arrays (x, y) or an iterable of batches (x, y), got dict."),
    (lambda: fit(optimizer="adam"), OPTIMIZER.format("'adam'")),
    (lambda: fit(optimizer=optax.adam), OPTIMIZER.format(repr(optax.adam))),
    (lambda: fit(evaluate=lambda theta: 0.5),
     "fit: evaluate must return a dict of numbers by name, got float. As in {\"accuracy\": 0.9}."),
    (lambda: jbp.fit(mlp().network, THETA, (X, Y)),
     "fit: expected a Cost first, got Network. As in fit(cost, theta, (x, y))."),
    (lambda: fit((X, Y[:3])), "y: expected 5 examples as in x, got float32[3, 2]. x and y go row by row."),
    (lambda: fit([(X, Y), (X[:, :2], Y)]),
     "x: expected a batch [N, 3], got float32[5, 2]. Build the Network for this input."),
]  # fmt: skip


@dataclass
class _Once:
    """An iterable, not an iterator, that has nothing to give the second time."""

    batches: Iterator

    def __iter__(self):
        return self.batches


def _function_cost():
    scale = jbp.from_function(lambda key, x: {"g": jnp.ones(x.shape)}, lambda params, x: x * params["g"][None])
    return jbp.Cost(network(jbp.Dense(3), jbp.Residual(scale), jbp.Dense(2, bias=False)), losses.HalfSquaredError())


@over_calls(WRONG_CALLS)
def test_a_wrong_call_is_told_what_to_do(call: Callable, message: str):
    assert_told(call, message)


def _random(x):
    """Twice x, nearly: another one each time."""
    noisy = lambda a: np.float32(2 + 1e-2 * np.random.default_rng().standard_normal()) * np.asarray(a)
    return jax.pure_callback(noisy, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")


class _Counted:
    """2x and as many times 0.1 as it has been traced."""

    times = 0

    def __call__(self, x):
        self.times += 1
        return 2 * x + 0.1 * self.times


NAN = "The arguments hold NaN or infinity: "
# What is no error, but said in the report: a call, and lines that its text must hold.
SAID: dict[str, tuple[Callable, list[str]]] = {
    "NaN in an argument of compare": (
        lambda: compare(lambda x, w: w, lambda x, w: w, {"a": X, "b": [with_nan(X)]}, 1.5),
        [f"{NAN}x.b.0[1, 0] = nan, 3 of 15."],
    ),
    "infinity in arguments of compare_vjp": (
        lambda: compare_vjp(product(), X.at[4, 2].set(-jnp.inf), with_nan(W)),
        [f"{NAN}x[4, 2] = -inf, 1 of 15; w[1, 0] = nan, 2 of 6."],
    ),
    "a scalar that is NaN": (
        lambda: compare_vjp(lambda scale: product()(X, W).sum() * scale, float("nan"), checks=False),
        [f"{NAN}scale = nan."],
    ),
    "NaN in compare_jvp": (lambda: compare_jvp(jax.nn.relu, with_nan(X)), [f"{NAN}x[1, 0] = nan, 3 of 15."]),
    "NaN in a cotangent": (
        lambda: compare_vjp(product(), X, W, cotangent=with_nan(Y), checks=False),
        ["The cotangents hold NaN or infinity: output[1, 0] = nan, 2 of 10."],
    ),
    "infinity in a tangent": (
        lambda: compare_jvp(jax.nn.relu, X, tangent=(X.at[4, 2].set(jnp.inf),)),
        ["The tangents hold NaN or infinity: x[4, 2] = inf, 1 of 15."],
    ),
    "NaN in bfloat16, and a key": (
        lambda: compare(lambda key, x: x, lambda key, x: x, KEY, with_nan(X.astype(jnp.bfloat16)), checks=False),
        [f"{NAN}x[1, 0] = nan, 3 of 15."],
    ),
    "a gradient that is NaN by both": (
        lambda: compare(lambda x: x * jnp.nan, lambda x: x * jnp.nan, X, checks=False),
        ["UNDECIDED: gradient, all elements, where no finite derivative is known, and the rule is NaN as autodiff is; "
         "nothing else was compared."],
    ),
    "a rule that is another each time": (
        lambda: compare(_random, lambda x: 2 * x, X),
        ["determinism  FAILS  two runs of one compiled program differ"],
    ),
    "a rule that is another each time it is traced": (
        lambda: compare(_Counted(), lambda x: 2 * x, X),
        ["determinism  FAILS  traced again it is another function: it depends on more than its arguments"],
    ),
    "an oracle that is another each time": (
        lambda: compare(lambda x: 2 * x, _random, X),
        ["determinism  FAILS  two runs of the oracle differ, so what it says is chance",
         "The values agree, but determinism FAILS: two runs of the oracle differ, so what it says is chance"],
    ),
    "a while loop hides a rule beside another": (
        lambda: compare_vjp(
            lambda x: product()(x, W) + jax.lax.while_loop(
                lambda a: a.sum() < 99, lambda a: product()(a, 2 * jnp.eye(2)), Y), X, checks=False,
        ),
        ["Not looked into, under a while loop or another rule: product."],
    ),
    "words among the arguments": (
        lambda: compare(lambda x, kind, names: x, lambda x, kind, names: x, X, "relu", np.array(["a"]), checks=False),
        ["The gradients agree: the rms difference is 0.0e+00, 4.8e-07 allowed."],
    ),
    "right, and of no use": (
        lambda: compare(lambda x: 1 - jnp.cos(x), lambda x: 1 - jnp.cos(x), 1e-4 * X, checks=False),
        ["gradient: in float32 both are off by 1.0e+00 of its size: the function itself loses digits here."],
    ),
    "float64 with x64 off": (
        lambda: compare_vjp(product(), np.ones((5, 3)), W, checks=False),
        ["JAX takes float64 as float32 while x64 is off: x. To compare in float64, set "
         "jax.config.update('jax_enable_x64', True)."],
    ),
    "float64 with x64 off, of a tree": (
        lambda: compare(lambda p: p, lambda p: p, {"w": np.ones(3), "b": [np.float64(2.0)], "i": X},
                        checks=False),
        ["JAX takes float64 as float32 while x64 is off: p.b.0, p.w. To compare in float64, set "
         "jax.config.update('jax_enable_x64', True)."],
    ),
    "a callback keeps its precision": (
        lambda: compare(lambda x: x, lambda x: jax.pure_callback(np.copy, x, x), X, checks=False),
        ["compare: the oracle holds pure_callback, which keeps its own precision in the float64 shadow."],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SAID)
def test_what_is_no_error_is_said_in_the_report(what: str):
    call, lines = SAID[what]
    report = call()
    for line in lines:
        assert line in str(report).splitlines()


@pytest.mark.parametrize("call", [
    lambda: compare(jnp.cos, jnp.cos, X), lambda: compare_vjp(product(), X, W), lambda: compare_jvp(jax.nn.relu, X)
])  # fmt: skip
def test_of_finite_arguments_nothing_is_said(call: Callable):
    report = call()
    assert report.ok
    assert report.notes == ()


def _model(params, x):
    return jnp.square(x @ params["w"] + params["b"][None]).sum()


_EACH = jax.vmap(lambda params, x: jax.grad(_model)(params, x[None]), in_axes=(None, 0))
_FLAT = lambda tree: jnp.concatenate([a.ravel() for a in jax.tree.leaves(tree)])


@pytest.mark.parametrize("gradient", [
    jax.grad(_model), jax.value_and_grad(_model), jax.grad(_model, (0, 1)), jax.grad(_model, 1),
    lambda p, x: jax.grad(_model)(p, x)["w"], lambda p, x: _FLAT(jax.grad(_model)(p, x)),
    lambda p, x: _FLAT(jax.grad(_model, (0, 1))(p, x)), lambda p, x: tuple(jnp.split(jax.grad(_model, 1)(p, x), [2])),
    _EACH, lambda p, x: jax.vmap(_FLAT)(_EACH(p, x)),
])  # fmt: skip
def test_gradients_come_in_many_forms(gradient: Callable):
    """By argument, with the value, as one vector, in pieces, for each example: none is taken for no gradient."""
    assert compare(gradient, gradient, {"w": W, "b": W[0]}, X, checks=False).ok


def test_function_says_what_gradients_are_of():
    gradient = lambda x: jax.grad(_model)({"w": W, "b": W[0]}, x)
    assert compare(gradient, gradient, X, function=lambda x: _model({"w": W, "b": W[0]}, x), checks=False).ok


def test_a_legacy_key_is_a_key():
    for key in (jax.random.PRNGKey(3), np.asarray(jax.random.PRNGKey(3))):
        np.testing.assert_array_equal(mlp().init(key), mlp().init(jax.random.key(3)))
        np.testing.assert_array_equal(mlp().network.init(key), mlp().network.init(jax.random.key(3)))
        assert mlp()(THETA, X, Y, context=jbp.Context(key=key)) == mlp()(THETA, X, Y)
    assert jax.vmap(mlp().init)(jax.random.split(KEY, 3)).shape == (3, 26)  # a traced one too


def test_who_means_both_a_softmax_and_its_cross_entropy_says_so():
    cost = jbp.Cost(network(jbp.Dense(4), jbp.Softmax(), jbp.Identity()), losses.SoftmaxCrossEntropy())
    assert np.isfinite(cost(THETA4, X, LABELS))


def test_an_input_error_is_a_value_error():
    assert issubclass(jbp.InputError, ValueError)


def test_a_bar_without_rich(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(jbp.InputError) as error:
        fit(progress=True)
    assert str(error.value) == "fit: progress=True draws its bar with rich. Install it with: pip install 'jbp[cli]'"
    assert fit().stopped is None  # without a bar, nothing needs rich


# -- labels out of range, where values can't raise --------------------------------------------------------------------


@pytest.mark.parametrize("label", [-2, 4, 1000])
@pytest.mark.parametrize("ignore", [None, -1])
def test_a_label_out_of_range_gives_nan_and_never_a_plausible_number(label: int, ignore: int | None):
    cost, y = classifier(ignore=ignore), LABELS.at[2].set(label)
    value, gradient = cost.value_and_grad(THETA4, X, y)
    assert np.isnan(value)
    assert np.isnan(cost(THETA4, X, y))
    assert np.isnan(gradient).all()
    assert list(np.isnan(cost.measure(THETA4, X, y, jbp.SquaredNorms())[1])) == [n == 2 for n in range(5)]


def test_an_ignored_label_counts_nothing():
    kept = jnp.array([0, 1, 3, 4])
    cost = jbp.Cost(network(jbp.Dense(4)), losses.SoftmaxCrossEntropy(ignore=-1), "sum")
    theta, x, y = jnp.linspace(-1, 1, 16), jnp.cos(jnp.arange(15.0).reshape(5, 3)), LABELS.at[2].set(-1)
    cost.check(theta, x, y)
    np.testing.assert_allclose(cost.grad(theta, x, y), cost.grad(theta, x[kept], y[kept]), rtol=1e-6, atol=1e-7)
    assert cost.measure(theta, x, y, jbp.SquaredNorms())[1][2] == 0


# -- a layer of one's own whose backward breaks its promise -----------------------------------------------------------


@dataclass(frozen=True)
class Broken:
    """y = xw + b, with a backward that returns the wrong thing."""

    fault: Callable

    def init(self, key, x):
        return {"w": jnp.ones((3, 3)), "b": jnp.zeros(3)}

    def forward(self, params, x, context):
        return x @ params["w"] + params["b"][None], x

    def backward(self, params, feedback, saved, delta, read):
        w, b = jbp.Outer(saved[:, None], delta[:, None]), jbp.Sum(delta[:, None])
        return self.fault(delta @ params["w"].T, {"w": read["w"](w), "b": read["b"](b)})


DELTA = (
    "backward must return the delta of x, float32[5, 3] like x itself, got {}. "
    "Return (delta of x, readings), in this order."
)
READINGS = (
    "backward must return readings in the structure of the params, PyTreeDef({{'b': *, 'w': *}}), got PyTreeDef({}). "
    "Call each leaf's reader once, with its pair."
)
BOTH = "backward must return (delta of x, readings), got {}. Return both, in this order."
LEAF = "layer {}: leaf {}: expected Outer(a [N, *T, I], delta [N, *T, O]) of a leaf [I, O] = {}, got {}. Check both."
FAULTS = {
    "no readings at all": (lambda dx, r: dx, BOTH.format("float32[5, 3]")),
    "nothing": (lambda dx, r: None, BOTH.format("nothing")),
    "a delta of the wrong width": (lambda dx, r: (dx[:, :2], r), DELTA.format("float32[5, 2]")),
    "a delta summed over the batch": (lambda dx, r: (dx.sum(0), r), DELTA.format("float32[3]")),
    "a delta of the wrong dtype": (lambda dx, r: (dx.astype(jnp.bfloat16), r), DELTA.format("bfloat16[5, 3]")),
    "no delta": (lambda dx, r: (None, r), DELTA.format("nothing")),
    "the order swapped": (lambda dx, r: (r, dx), DELTA.format("(float32[3], float32[3, 3])")),
    "a reading left out": (lambda dx, r: (dx, {"w": r["w"]}), READINGS.format("{'w': *}")),
    "a tuple for a dict": (lambda dx, r: (dx, (r["b"], r["w"])), READINGS.format("(*, *)")),
    "no readings": (lambda dx, r: (dx, None), READINGS.format("None")),
}
PLACES = {
    "in a chain": (lambda layer: (jbp.Dense(3), layer, jbp.Dense(2)), "layer 1: "),
    "nested": (
        lambda layer: (jbp.Residual(jbp.Sequential([jbp.Tanh(), jbp.Residual(layer)])), jbp.Dense(2)),
        "layer 0.layer.1.layer: ",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", PLACES)
def test_a_broken_backward_is_named_with_its_path(fault: str, place: str):
    (break_, message), (layers, path) = FAULTS[fault], PLACES[place]
    cost = jbp.Cost(network(*layers(Broken(break_))), losses.HalfSquaredError())
    with pytest.raises(jbp.InputError) as error:
        cost.grad(cost.init(KEY), X, Y)
    assert str(error.value) == path + message


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("nested", [False, True], ids=["alone", "nested"])
def test_a_broken_backward_is_named_in_as_function(fault: str, nested: bool):
    break_, message = FAULTS[fault]
    layer = jbp.Sequential([jbp.Tanh(), jbp.Residual(Broken(break_))]) if nested else Broken(break_)
    function, params = jbp.as_function(layer), layer.init(KEY, jax.ShapeDtypeStruct((3,), jnp.float32))
    with pytest.raises(jbp.InputError) as error:
        jax.grad(lambda params: function(params, X).sum())(params)
    assert str(error.value) == ("layer 1.layer: " if nested else "") + message


def test_a_tap_that_breaks_delta_is_named():
    cost = jbp.Cost(network(jbp.Dense(2), jbp.Tap(lambda delta: delta[0])), losses.HalfSquaredError())
    with pytest.raises(jbp.InputError) as error:
        cost.grad(jnp.zeros(8), X, Y)
    assert str(error.value) == "layer 1: " + DELTA.format("float32[2]").replace("[5, 3]", "[5, 2]")


# -- readouts where there is no rule of their own ---------------------------------------------------------------------


def test_readouts_of_a_function_follow_their_definition(x64: None):
    cost = _function_cost()
    theta = jnp.cos(jnp.arange(cost.layout.size, dtype=jnp.float64))
    x, y = jnp.sin(jnp.arange(15.0).reshape(5, 3)), jnp.cos(jnp.arange(10.0).reshape(5, 2))
    one = lambda x, y: jax.grad(cost)(theta, x[None], y[None])
    each = jax.vmap(one)(x, y)
    _, (got, norms) = cost.measure(theta, x, y, jbp.PerExampleGradients(), jbp.SquaredNorms())
    np.testing.assert_allclose(got, each, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(norms, (each**2).sum(1), rtol=1e-12)


@pytest.mark.parametrize("readout", [jbp.Gradient(), jbp.SquaredNorms(), jbp.PerExampleGradients()], ids=repr)
def test_a_pair_of_the_wrong_shape_is_named(readout: Any):
    """Norms would come out of it without complaint, and wrong."""
    cost = jbp.Cost(network(jbp.Tanh(), Narrow()), losses.HalfSquaredError())
    for call in (cost.grad, lambda *args: cost.measure(*args, readout)):
        with pytest.raises(jbp.InputError) as error:
            call(jnp.zeros(9), X, X)
        assert str(error.value) == LEAF.format("1", "w", "[3, 3]", "(float32[5, 3], float32[5, 2])")


@dataclass(frozen=True)
class Narrow:
    """y = xw, whose pair leaves out an output."""

    def init(self, key, x):
        return {"w": jnp.ones((3, 3))}

    def forward(self, params, x, context):
        return x @ params["w"], x

    def backward(self, params, feedback, saved, delta, read):
        return delta @ params["w"].T, {"w": read["w"](jbp.Outer(saved, delta[:, :2]))}


def test_a_forward_without_saved_is_named():
    with pytest.raises(jbp.InputError) as error:
        network(jbp.Residual(ForwardAlone()))
    assert str(error.value) == (
        "layer 0.layer: forward must return (output, saved), got float32[7919, 3]. Return both, in this order."
    )


@dataclass(frozen=True)
class ForwardAlone:
    def init(self, key, x):
        return ()

    def forward(self, params, x, context):
        return x

    def backward(self, params, feedback, saved, delta, read):
        return delta, ()


def test_labels_of_a_byte_may_have_256_classes():
    cost = jbp.Cost(network(jbp.Identity(), input=(256,)), losses.SoftmaxCrossEntropy())
    x, y = jnp.zeros((2, 256)), jnp.array([0, 255], jnp.uint8)
    cost.check(jnp.zeros(0), x, y)
    np.testing.assert_allclose(cost(jnp.zeros(0), x, y), np.log(256), rtol=1e-6)
