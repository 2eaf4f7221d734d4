"""The projection with its cross-entropy, whose logits never exist as a whole: what the laws don't cover."""

from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from cases import READOUTS, N, assert_close, cast, draw
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from own_layers import Embedding
from scipy import special
from test_laws import assert_at_most_twice_the_error, flops_of_products

import jbp
from jbp.losses import LinearCrossEntropy
from jbp.pair import Whole
from jbp.programs.calls import inner_jaxprs
from jbp.recomputed import Portion, Recomputed, cut, size_of_pieces

ALL = {"ignore": 2, "label_smoothing": 0.1, "z_loss": 0.2}
# shape of the labels, classes, chunk, settings
SIZES: dict[str, tuple[tuple[int, ...], int, int | None, dict[str, Any]]] = {
    "one chunk": ((N, 5), 7, None, {}),
    "a chunk that does not divide T": ((N, 5), 7, 2 * N, ALL),
    "a chunk that divides T": ((N, 6), 7, 2 * N, {}),
    "fewer positions than examples": ((N, 5), 7, 3, ALL),
    "one position a chunk": ((3, 4), 5, 1, {}),
    "T = 1": ((N, 1), 7, 3, ALL),
    "N = 1": ((1, 9), 7, 4, ALL),
    "N = T = 1": ((1, 1), 3, 1, {}),
    "no positions": ((N,), 7, 3, ALL),
    "two axes of positions": ((3, 2, 5), 4, 6, ALL | {"positions": "mean"}),
    "mean": ((N, 5), 7, 16, {"positions": "mean", "ignore": 1}),
}
over_sizes = pytest.mark.parametrize("size", SIZES)


def both(size: str, reduction: str = "sum", dtype: Any = jnp.float64) -> tuple[jbp.Cost, jbp.Cost, Any, Any, Any]:
    """(the cost, the same of the unfused pair, θ, x, y). Both have the same θ."""
    shape, classes, chunk, settings = SIZES[size]
    loss = LinearCrossEntropy(classes, chunk, **settings)
    layers, spec = [jbp.Dense(3), jbp.Tanh()], jax.ShapeDtypeStruct((*shape[1:], 4), dtype)
    layer, apart = loss.unfused()
    cost = jbp.Cost(jbp.Network(layers, spec, dtype=dtype), loss, reduction)
    unfused = jbp.Cost(jbp.Network([*layers, layer], spec, dtype=dtype), apart, reduction)
    assert cost.layout.sizes == unfused.layout.sizes
    theta, x = (draw(i, jax.ShapeDtypeStruct(s, dtype)) for i, s in enumerate([(cost.layout.size,), (*shape, 4)]))
    y = jnp.asarray(np.random.default_rng(2).integers(0, classes, shape), jnp.int32)
    return cost, unfused, theta, x, y


@over_sizes
def test_it_equals_the_unfused_pair(size: str, x64: None):
    """The value, the gradient and every readout, read chunk by chunk or off the whole pair."""
    reduction = "mean" if SIZES[size][3].get("positions") else "positions"
    cost, unfused, theta, x, y = both(size, reduction)
    weights = jnp.arange(1.0, len(x) + 1)
    # of one example what speaks of noise is refused, or the rounding of 0
    noise = (jbp.NoiseScale, jbp.Variance, jbp.SignalToNoise) if len(x) == 1 else ()
    readouts = (*(readout for readout, _ in READOUTS if not isinstance(readout, noise)), jbp.Along(theta))
    adding = [readout for readout in readouts if getattr(readout, "adds", False)]
    kinds = [type(readout) for readout in adding]
    assert kinds == [jbp.Gradient, jbp.PerExampleGradients, jbp.MeanGradient, jbp.Along]

    @jax.jit
    def ask(*args):
        every, added = (cost.measure(*args, *asked, weights=weights) for asked in (readouts, adding))
        gradients = cost.value_and_grad(*args, weights=weights), jax.value_and_grad(cost)(*args, weights=weights)
        return cost(*args, weights=weights), *gradients, every, added

    value, (gradient, *rest) = due = jax.jit(lambda *args: unfused.measure(*args, *readouts, weights=weights))(
        theta, x, y
    )
    of_adding = tuple(r for readout, r in zip(readouts, (gradient, *rest), strict=True) if readout in adding)
    assert_close(ask(theta, x, y), (value, (value, gradient), (value, gradient), due, (value, of_adding)))


def answers(pair: jbp.Pair, w: Any) -> tuple[Any, ...]:
    alone = pair.gradient(), pair.per_example(), pair.squared_norms(), pair.squares(), pair.factors()
    return *alone, pair.weighted_gradient(w)


@pytest.mark.parametrize("size", ["a chunk that does not divide T", "N = 1", "no positions"])
def test_the_whole_pair_answers_as_an_outer(size: str, x64: None):
    cost, unfused, theta, x, y = both(size)
    last = lambda cost: list(cost.pairs(theta, x, y).values())[-1]
    pair, outer = last(cost), last(unfused)
    assert isinstance(pair, Recomputed)
    assert isinstance(outer, jbp.Outer)
    w, v = jnp.arange(1.0, len(x) + 1), draw(5, jax.ShapeDtypeStruct((3, SIZES[size][1]), jnp.float64))
    index = jnp.arange(2 * len(x)).reshape(-1, 2) % 3
    table = jbp.Gather(index, draw(6, jax.ShapeDtypeStruct((*index.shape, v.shape[1]), v.dtype))).of(v.shape)

    @jax.jit
    def ask(pair, other, outer, table):
        """[(what is asked, what is due)]"""
        its = outer, table, jbp.Several((outer, table)), Whole(outer.gradient(), outer.per_example())
        flips = (lambda pair: pair), (lambda pair: pair.transposed())
        return [
            *((answers(flip(pair), w), answers(flip(outer), w)) for flip in flips),
            *(((pair.inner(one), one.inner(pair)), (outer.inner(one),) * 2) for one in its),
            *(((pair.dots(one), one.dots(pair)), (outer.dots(one), outer.dots(one).T)) for one in its),
            ((pair.inner(other), pair.dots(other)), (outer.inner(outer), outer.dots(outer))),
            ((pair.along(v), pair.transposed().along(v.T)), (outer.along(v), outer.along(v))),
        ]

    for got, due in ask(pair, pair, outer, table):
        assert_close(got, due)


def test_a_portion_is_the_pair_of_examples_of_which_the_others_are_zero(x64: None):
    a, delta = (draw(i, jax.ShapeDtypeStruct((3, 2, size), jnp.float64)) for i, size in enumerate((4, 5)))
    w, v = jnp.arange(1.0, 6.0), draw(3, jax.ShapeDtypeStruct((4, 5), jnp.float64))
    portion = Portion(jbp.Outer(a, delta), jnp.int32(3), 5)  # the last of the three has no place
    spread = lambda a: jnp.zeros((5, *a.shape[1:])).at[3:].set(a[:2])
    whole = jbp.Outer(spread(a), spread(delta))
    ask = lambda p: (p.per_example(), p.along(v), p.squared_norms(), p.transposed().per_example())
    assert_close(ask(portion), ask(whole))
    inside = Portion(jbp.Outer(a[:2], delta[:2]), jnp.int32(3), 5)
    assert_close((inside.gradient(), inside.weighted_gradient(w)), (whole.gradient(), whole.weighted_gradient(w)))


def test_pieces_are_even():
    assert [size_of_pieces(*sizes) for sizes in ((10, 4), (10, 5), (10, 99), (10, 0), (1025, 512))] == [
        4,
        5,
        10,
        1,
        342,
    ]
    assert cut(jnp.arange(5), 0, 2).tolist() == [[0, 1], [2, 3], [4, 0]]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("confident", [False, True], ids=["any", "confident"])
def test_in_low_precision_it_errs_at_most_twice_as_much_as_autodiff_of_the_unfused(dtype: Any, confident: bool):
    loss = LinearCrossEntropy(7, 48, label_smoothing=0.0 if confident else 0.1, z_loss=0.0 if confident else 0.01)
    layer, apart = loss.unfused()
    w = draw(0, jax.ShapeDtypeStruct((9, 7), dtype))
    y = jnp.asarray(np.random.default_rng(1).integers(0, 7, (16, 20)), jnp.int32)
    h = draw(2, jax.ShapeDtypeStruct((16, 20, 9), dtype))
    if confident:  # the label's column of w stands out in h
        h = (h / 4 + 2 * jnp.take(w.T, y, axis=0)).astype(dtype)
    params, delta = type(layer.init(jax.random.key(0), jax.ShapeDtypeStruct((9,), dtype)))(w, None), jnp.ones(16)

    def by_hand(params, h, delta):
        _, (delta_h, _), reading = loss.turn(params, params, (h, y), delta, read, jbp.Context())
        return delta_h, reading.w

    def by_autodiff(params, h, delta):
        c = lambda w, h: (apart.value(layer.forward(params._replace(w=w), h, jbp.Context())[0], y) * delta).sum()
        return jax.grad(c, (1, 0))(params.w, h)

    read = jbp.readers(params, jbp.read_gradient)
    got, its = jax.jit(by_hand)(params, h, delta), jax.jit(by_autodiff)(params, h, delta)
    with jax.enable_x64(True):
        true = jax.jit(by_autodiff)(*cast((params, h, delta), jnp.float64))
    assert got[1].dtype == jnp.float32
    assert_at_most_twice_the_error(got, its, true, dtype)


TIED = {"loss.w": "0.table.T"}


@pytest.mark.parametrize("chunk", [None, 2 * N, 3])
def test_tied_to_an_embedding(chunk: int | None, x64: None):
    """One leaf, one pair of its uses, cross terms included; and the second order."""
    words = jax.ShapeDtypeStruct((5,), jnp.int32)
    net = jbp.Network([Embedding(6, 3), jbp.Residual(jbp.Dense(3)), jbp.Tanh()], input=words)
    cost = jbp.Cost(net, LinearCrossEntropy(6, chunk, **ALL), tied=TIED)
    assert cost.layout == net.layout
    theta = draw(0, jax.ShapeDtypeStruct((cost.layout.size,), jnp.float64))
    x, y = (jnp.asarray(np.random.default_rng(i).integers(0, 6, (N, 5)), jnp.int32) for i in (1, 2))
    v = jnp.cos(jnp.arange(theta.size, dtype=theta.dtype))
    gradient = jax.grad(cost)

    @jax.jit
    def ask(theta):
        hand, auto = (jax.jvp(lambda t, f=f: f(t, x, y), (theta,), (v,)) for f in (cost.grad, gradient))
        each = jax.vmap(lambda x, y: gradient(theta, x[None], y[None]))(x, y)
        added = cost.measure(theta, x, y, jbp.PerExampleGradients(), jbp.Along(v))[1]
        whole = cost.measure(theta, x, y, jbp.PerExampleGradients(), jbp.SquaredNorms())[1]
        return hand, auto, each, added, whole, cost.read(cost.pairs(theta, x, y), jbp.SquaredNorms())

    hand, auto, each, added, whole, norms = ask(theta)
    assert_close(hand, auto)
    assert_close(added, (each, each @ v))
    assert_close(whole, (each, jnp.square(each).sum(1)))
    assert_close(norms, whole[1])
    assert cost.compare(theta, x, y, timing=False).ok


def test_its_formula_by_numpy(x64: None):
    """Value and both gradients, for a mean over positions with everything on."""
    rng = np.random.default_rng(0)
    h, w, y, delta = rng.normal(size=(4, 5, 3)), rng.normal(size=(3, 6)), rng.integers(0, 6, (4, 5)), rng.normal(size=4)
    loss = LinearCrossEntropy(6, 7, positions="mean", **ALL)
    z = h @ w
    log_sum = special.logsumexp(z, -1, keepdims=True)
    q = 0.9 * np.eye(6)[y] + 0.1 / 6
    factors = (y != 2) / np.maximum((y != 2).sum(1, keepdims=True), 1)
    c = (factors[..., None] * (log_sum - z) * q).sum((1, 2)) + (factors[..., None] * 0.2 * log_sum**2).sum((1, 2))
    errors = (delta[:, None] * factors)[..., None] * (special.softmax(z, -1) * (1 + 0.4 * log_sum) - q)
    params = loss.init(jax.random.key(0), (jax.ShapeDtypeStruct((5, 3), jnp.float64), None))._replace(w=jnp.asarray(w))
    read = jbp.readers(params, jbp.read_gradient)
    x = (jnp.asarray(h), jnp.asarray(y))
    got, (delta_h, _), gradient = loss.turn(params, params, x, jnp.asarray(delta), read, jbp.Context())
    assert_close((got, delta_h, gradient.w), (c, errors @ w.T, np.einsum("nti,nto->io", h, errors)))
    assert_close(loss.forward(params, x, jbp.Context())[0], c)


def test_labels_out_of_range(x64: None):
    cost, _, theta, x, y = both("fewer positions than examples")
    for wrong in (7, -1):
        bad = y.at[1, 2].set(wrong)
        assert np.isnan(cost(theta, x, bad))
        assert np.isnan(cost.value_and_grad(theta, x, bad)[0])
        assert np.isnan(cost.grad(theta, x, bad)).any()
        with pytest.raises(jbp.InputError, match=rf"LinearCrossEntropy: .* y\[1, 2\] = {wrong} \(1 out of range\)"):
            cost.check(theta, x, bad)
    ignored = jbp.Cost(cost.network, LinearCrossEntropy(7, 3, ignore=-100))
    assert np.isfinite(ignored.grad(theta, x, y.at[1].set(-100))).all()
    ignored.check(theta, x, y.at[1].set(-100))


@pytest.mark.parametrize("size", ["one chunk", "a chunk that does not divide T", "no positions"])
def test_transforms(size: str, x64: None):
    """vmap over θ, and a scan over batches."""
    cost, _, theta, x, y = both(size)
    many = jnp.stack([theta, 2 * theta, -theta])
    by_each = lambda f: jax.jit(jax.vmap(lambda theta: f(theta, x, y)))(many)
    assert_close(by_each(cost.value_and_grad), by_each(jax.value_and_grad(cost)))
    step = lambda t, _: (t - 0.01 * cost.grad(t, x, y), cost(t, x, y))
    _, values = jax.jit(lambda t: jax.lax.scan(step, t, None, 3))(theta)
    assert values[2] < values[0]
    exported = jax.export.export(jax.jit(cost.value_and_grad), platforms=("cpu", "cuda", "tpu"))(theta, x, y)
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_a_batch_over_eight_devices(kind: AxisType, x64: None):
    """Positions are cut, not examples, so that each device keeps its own."""
    cost, unfused, theta, x, y = both("a chunk that does not divide T")
    expected = unfused.value_and_grad(theta, x, y)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(kind,), devices=jax.devices("cpu"))
    with jax.set_mesh(mesh):
        x, y = jax.device_put((x, y), NamedSharding(mesh, PartitionSpec("batch")))
        got = jax.device_get(cost.value_and_grad(theta, x, y))
    assert_close(got, expected)


# -- what it costs ----------------------------------------------------------------------------------------------------

BATCH, POSITIONS, WIDTH, CLASSES, CHUNK = 4, 64, 16, 1000, 32


def large(chunk: int | None = CHUNK) -> tuple[LinearCrossEntropy, Any, Any, Any]:
    """(loss, params, (h, y), delta) as specs."""
    loss = LinearCrossEntropy(CLASSES, chunk)
    h = jax.ShapeDtypeStruct((BATCH, POSITIONS, WIDTH), jnp.float32)
    spec = jax.ShapeDtypeStruct(h.shape[1:], h.dtype), None
    params = jax.eval_shape(lambda key: loss.init(key, spec), jax.random.key(0))
    return loss, params, (h, jax.ShapeDtypeStruct(h.shape[:2], jnp.int32)), jax.ShapeDtypeStruct((BATCH,), jnp.float32)


def turned(loss: LinearCrossEntropy, reader: Any) -> Any:
    def turn(params, x, delta):
        return loss.turn(params, params, x, delta, jbp.readers(params, reader), jbp.Context())

    return turn


def sizes_in(jaxpr: Any) -> set[int]:
    inside = [sizes_in(inner) for eqn in jaxpr.eqns for inner in inner_jaxprs(eqn)]
    return {v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars}.union(*inside)


def test_values_and_gradient_are_three_products():
    loss, *args = large()
    product = 2 * BATCH * POSITIONS * WIDTH * CLASSES
    assert flops_of_products(jax.make_jaxpr(turned(loss, jbp.read_gradient))(*args)) == 3 * product
    forward = lambda params, x: loss.forward(params, x, jbp.Context())[0]
    assert flops_of_products(jax.make_jaxpr(forward)(*args[:2])) == product


NORMS = jbp.Reader(lambda pair, own: pair.squared_norms(), lambda r: r.sum(0))


READERS = {"gradient": (jbp.read_gradient, CHUNK), "norms": (NORMS, POSITIONS)}


@pytest.mark.parametrize(("reader", "rows"), READERS.values(), ids=READERS)
def test_the_logits_never_exist_as_a_whole(reader: Any, rows: int):
    """Nothing in the program is larger than the logits of one chunk, or of one example where readings don't add."""
    loss, *args = large()
    assert max(sizes_in(jax.make_jaxpr(turned(loss, reader))(*args).jaxpr)) == max(rows * CLASSES, WIDTH * CLASSES)
    temporary = jax.jit(turned(loss, reader)).lower(*args).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 4 * BATCH * POSITIONS * CLASSES
    back = lambda params, x, delta: jbp.run(loss, params, x)[1](delta)
    assert max(sizes_in(jax.make_jaxpr(back)(*args).jaxpr)) == CHUNK * CLASSES


def test_without_a_chunk_at_most_eight_million_logits_exist():
    assert LinearCrossEntropy(50_304)._most == 128
    assert LinearCrossEntropy(1 << 24)._most == 1


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def as_for_a_user():
    """Without the type checker of `conftest.py`."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


H, Y = jnp.ones((2, 3, 4)), jnp.zeros((2, 3), jnp.int32)


def on(h: Any, y: Any) -> Any:
    loss = LinearCrossEntropy(5)
    params = loss.init(jax.random.key(0), (jax.ShapeDtypeStruct((3, 4), jnp.float32), None))
    return loss.forward(params, (h, y), jbp.Context())


def cost_of(layers: Any, **settings: Any) -> jbp.Cost:
    return jbp.Cost(jbp.Network(layers, input=(3, 4)), LinearCrossEntropy(5, **settings), "positions")


WRONG = [
    (
        lambda: LinearCrossEntropy(0),
        "LinearCrossEntropy: classes must be a whole number of at least 1, got 0. Count the labels.",
    ),
    (
        lambda: LinearCrossEntropy(2.5),
        "LinearCrossEntropy: classes must be a whole number of at least 1, got 2.5. Count the labels.",
    ),
    (
        lambda: LinearCrossEntropy(5, 0),
        "LinearCrossEntropy: chunk must be a whole number of at least 1, got 0. Leave it out for at most 7·2²⁰ logits "
        "at a time.",
    ),
    (
        lambda: LinearCrossEntropy(5, label_smoothing=1.0),
        "LinearCrossEntropy: label_smoothing must be in [0, 1), got 1.0. As in 0.1.",
    ),
    (
        lambda: LinearCrossEntropy(5, z_loss=-1.0),
        "LinearCrossEntropy: z_loss must be at least 0, got -1.0. As in 1e-4.",
    ),
    (
        lambda: LinearCrossEntropy(5, ignore=0.5),
        "LinearCrossEntropy: ignore must be a label, a whole number, or None, got 0.5. As in -1.",
    ),
    (
        lambda: LinearCrossEntropy(5, positions="max"),
        "LinearCrossEntropy: positions must be 'sum' or 'mean', got 'max'. The reduction over examples is Cost's.",
    ),
    (
        lambda: jbp.losses.SoftmaxCrossEntropy(z_loss=-0.1),
        "SoftmaxCrossEntropy: z_loss must be at least 0, got -0.1. As in 1e-4.",
    ),
    (
        lambda: on(H, [[0, 0, 0]]),
        "LinearCrossEntropy(5): expected (h, y) of one array each, got (float32[2, 3, 4], 0, 0, 0). Use "
        "jnp.asarray(y), and let the network end in one array.",
    ),
    (
        lambda: on(H[..., :3], Y),
        "LinearCrossEntropy(5): expected floats h [N, ..., W = 4], got float32[2, 3, 3]. Check the width of the "
        "network's last layer.",
    ),
    (
        lambda: on(H, Y[:, :2]),
        "LinearCrossEntropy(5): expected y as integer labels [2, 3] for h float32[2, 3, 4], got int32[2, 2]. Give "
        "one label for each position.",
    ),
    (
        lambda: on(H, Y.astype(jnp.float32)),
        "LinearCrossEntropy(5): expected y as integer labels [2, 3] for h float32[2, 3, 4], got float32[2, 3]. "
        "Cast labels to int32.",
    ),
    (
        lambda: on(H, jnp.ones((2, 3, 5))),
        "LinearCrossEntropy(5): expected y as integer labels [2, 3] for h float32[2, 3, 4], got float32[2, 3, 5]. "
        "Weights of classes are for SoftmaxCrossEntropy.",
    ),
    (
        lambda: cost_of([jbp.Dense(2)])(jnp.zeros(10), jnp.ones((2, 3, 4)), Y),
        "theta: expected [P] = [20] (#W = 18, #b = 2), got [10]. Make one with cost.init(key) or",
    ),
    (
        lambda: cost_of([jbp.Fork([jbp.Dense(2), jbp.Dense(2)])]),
        "LinearCrossEntropy(5): expected (h, y) with one float output h [N, ..., W] of the network",
    ),
    (
        lambda: cost_of([jbp.Dense(2)], positions="mean"),
        "Cost: reduction='positions' needs the sum over positions. Give the loss positions='sum'.",
    ),
]


@pytest.mark.parametrize(("call", "says"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_call_is_told_what_to_do(call: Any, says: str, as_for_a_user: None):
    with pytest.raises(jbp.InputError) as error:
        call()
    assert says in str(error.value)


# -- bfloat16 ---------------------------------------------------------------------------------------------------------


def test_weight_gradients_of_a_bfloat16_network_come_in_float32():
    """From products of bfloat16 that add up in float32: no gradient of a float32 θ is ever rounded to bfloat16."""
    net = jbp.Network([jbp.Dense(6), jbp.Tanh(), jbp.Dense(4)], input=(5,), compute_dtype=jnp.bfloat16)
    cost = jbp.Cost(net, LinearCrossEntropy(3, 4))
    theta = cost.init(jax.random.key(0))
    x, y = draw(1, jax.ShapeDtypeStruct((N, 5), jnp.float32)), jnp.arange(N) % 3
    dots = products(jax.make_jaxpr(lambda theta: cost.grad(theta, x, y))(theta).jaxpr)
    kernels = {(5, 6), (6, 4), (4, 3)}
    found = [(operands, out.dtype) for operands, out in dots if out.shape in kernels]
    assert len(found) == 3
    assert all(operands == {np.dtype(jnp.bfloat16)} and dtype == jnp.float32 for operands, dtype in found)
    gradient = cost.grad(theta, x, y)
    assert gradient.dtype == jnp.float32
    first = gradient[:30]
    assert np.any(first != first.astype(jnp.bfloat16).astype(jnp.float32))


def products(jaxpr: Any) -> list[tuple[set[Any], Any]]:
    """(dtypes of the operands, the result) of each product."""
    dots = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
    found = [({v.aval.dtype for v in eqn.invars}, eqn.outvars[0].aval) for eqn in dots]
    return found + [each for eqn in jaxpr.eqns for inner in inner_jaxprs(eqn) for each in products(inner)]
