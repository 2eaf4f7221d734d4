"""Kronecker factors against blocks of the GGN by autodiff in float64, and the optimiser that uses them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import as_numpy, assert_close, assert_told, over_calls

import jbp
from jbp.losses import LinearCrossEntropy, SoftmaxCrossEntropy

WORDS = jax.ShapeDtypeStruct((2,), jnp.int32)
SOFTMAX = SoftmaxCrossEntropy()


class Asked:
    """A cost in float64 on a few examples, with its GGN `[P, P]` from products, which tests of their own hold."""

    def __init__(self, layers: Any, spec: Any, loss: Any = SOFTMAX, n: int = 3, reduction: str = "mean") -> None:
        rng = np.random.default_rng(0)
        network = layers if isinstance(layers, jbp.Network) else jbp.Network(layers, spec)
        self.cost = jbp.Cost(network, loss, reduction)
        self.theta = jnp.asarray(rng.standard_normal(self.cost.layout.size) / 2)
        x = self.cost.network.input
        words = x.dtype == jnp.int32
        self.x = jnp.asarray(
            rng.integers(0, 4, (n, *x.shape)) if words else rng.standard_normal((n, *x.shape)), x.dtype
        )
        shape = (n, *self.cost.network.output.shape)
        labels = "CrossEntropy" in type(loss).__name__
        self.y = jnp.asarray(rng.integers(0, 2, shape[:-1]) if labels else rng.standard_normal(shape))
        self.weights = jnp.asarray(np.arange(1.0, n + 1))

    def measure(self, *readouts: Any) -> Any:
        return as_numpy(self.cost.measure(self.theta, self.x, self.y, *readouts, weights=self.weights)[1])

    @property
    def factors(self) -> np.ndarray:
        """w_n."""
        return np.asarray(self.cost._factors(self.cost.layout.unflatten(self.theta), self.x, self.y, self.weights))

    def blocks(self, seed: Any = "exact") -> dict[str, np.ndarray]:
        """The diagonal blocks of the GGN, or of a seed's Fisher matrix, by the leaf's name."""
        eye = jnp.eye(self.cost.layout.size)
        ggn = np.asarray(self.cost.fvp(self.theta, self.x, self.y, eye, seed=seed, weights=self.weights))
        offsets = self.cost.layout.offsets
        cut = zip(self.cost.layout.names, offsets, offsets[1:], strict=False)
        return {name: ggn[i:j, i:j] for name, i, j in cut}


def chain(n: int = 3, **settings: Any) -> Asked:
    return Asked([jbp.Dense(3), jbp.Tanh(), jbp.Dense(3)], (2,), n=n, **settings)


@pytest.mark.parametrize(
    "seed", ["exact", "empirical", jbp.Sampled(jax.random.key(0), 3)], ids=["exact", "empirical", "sampled"]
)
@pytest.mark.parametrize("shared", ["expand", "reduce"])
def test_exact_for_one_example_without_positions(seed: Any, shared: str, x64: None):
    asked = chain(1)
    blocks = asked.blocks(seed)
    for name, (A, G) in asked.measure(jbp.KroneckerFactors(seed, shared)).items():
        assert_close(np.kron(A, G), blocks[name], 1e-11)


def test_the_factors_of_a_chain(x64: None):
    """A is the second moment of what the kernel met; without positions G is the block of the bias."""
    asked = chain()
    found, blocks, w = asked.measure(jbp.KroneckerFactors()), asked.blocks(), asked.factors
    theta = np.asarray(asked.theta)
    inside = np.tanh(np.asarray(asked.x) @ theta[:6].reshape(2, 3) + theta[6:9])
    for i, a in ((0, np.asarray(asked.x)), (2, inside)):
        assert_close(found[f"{i}.w"].A, np.einsum("n,ni,nj->ij", w / w.sum(), a, a), 1e-11)
        assert_close(found[f"{i}.w"].G, blocks[f"{i}.b"], 1e-11)
        assert_close(tuple(found[f"{i}.b"]), (np.ones((1, 1)), blocks[f"{i}.b"]), 1e-11)


# -- averages along a chain: KFRA -------------------------------------------------------------------------------------


def test_kfra_of_one_example_is_that_of_the_leaves(x64: None):
    asked = Asked([jbp.Tanh(), jbp.Dense(3), jbp.Tanh(), jbp.Dense(3, bias=False), jbp.GELU()], (2,), n=1)
    assert_close(kfra(asked), asked.measure(jbp.KroneckerFactors()), 1e-11)


def kfra(asked: Asked) -> Any:
    return as_numpy(jbp.kfra(asked.cost, asked.theta, asked.x, asked.y, weights=asked.weights))


def test_kfra_of_dense_layers_alone_is_that_of_the_leaves(x64: None):
    """Nothing between them depends on the example."""
    asked = Asked([jbp.Dense(3), jbp.Dense(4), jbp.Dense(3)], (2,))
    assert_close(kfra(asked), asked.measure(jbp.KroneckerFactors()), 1e-11)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_kfra_is_its_recursion(reduction: str, x64: None):
    asked = chain(reduction=reduction)
    found, w, theta = kfra(asked), asked.factors, np.asarray(asked.theta)
    inside = np.tanh(np.asarray(asked.x) @ theta[:6].reshape(2, 3) + theta[6:9])
    W, slope = theta[9:18].reshape(3, 3), 1 - inside**2
    p = np.asarray(jax.nn.softmax(inside @ W + theta[18:][None]))
    G = np.einsum("n,nab->ab", w, np.stack([np.diag(each) - np.outer(each, each) for each in p]))
    assert_close(found["2.b"].G, G, 1e-11)
    below = (W @ G @ W.T) * np.einsum("n,ni,nj->ij", w / w.sum(), slope, slope)
    assert_close(found["0.w"].G, below, 1e-11)
    assert_close(found["0.w"].A, np.einsum("n,ni,nj->ij", w / w.sum(), asked.x, asked.x), 1e-11)
    assert np.linalg.norm(below - asked.blocks()["0.b"]) > 1e-3 * np.linalg.norm(below)  # another than the leaf's own
    assert jbp.CorrectedEigenvalues.of(found)


@pytest.mark.parametrize(("layers", "loss"), [
    ([jbp.Dense(3), jbp.Softmax(), jbp.Dense(3)], SOFTMAX),
    ([jbp.Residual(jbp.Dense(2)), jbp.Dense(3)], SOFTMAX),
    ([jbp.Frozen(jbp.Dense(3)), jbp.Dense(3)], SOFTMAX),
    ([jbp.Dense(3), jbp.Tanh()], LinearCrossEntropy(4)),
], ids=["softmax", "residual", "frozen", "loss with params"])  # fmt: skip
def test_kfra_is_of_plain_chains_alone(layers: Any, loss: Any, as_for_a_user: None):
    asked = Asked(layers, (2,), loss)
    assert_told(lambda: jbp.kfra(asked.theta, asked.x, asked.y, 1), "kfra: expected a Cost first, got […]")
    assert_told(lambda: kfra(asked), "kfra: expected a plain chain of dense layers and element-wise functions, […]")


def test_shared_positions_expand_and_reduce(x64: None):
    """A table of positions behind the kernel has each position's δ; the bias has their sum."""
    asked = Asked([jbp.Dense(3), jbp.Positions(2), jbp.Tanh(), jbp.Dense(2)], (2, 2), reduction="positions")
    found, blocks, w = (
        asked.measure(jbp.KroneckerFactors(), jbp.KroneckerFactors(shared="reduce")),
        asked.blocks(),
        asked.factors,
    )
    x, each = np.asarray(asked.x), blocks["1.table"].reshape(2, 3, 2, 3)
    expand, reduce = (its["0.w"] for its in found)
    assert_close(expand.A, np.einsum("n,nti,ntj->ij", w / w.sum() / 2, x, x), 1e-11)
    assert_close(expand.G, np.einsum("totp->op", each), 1e-11)
    assert_close(reduce.A, np.einsum("n,ni,nj->ij", w / w.sum(), x.mean(1), x.mean(1)), 1e-11)
    assert_close(reduce.G, blocks["0.b"], 1e-11)


def test_of_tables_gains_loops_and_frozen_leaves(x64: None):
    attention = jbp.Residual(jbp.Sequential([jbp.LayerNorm(), jbp.Attention(2)]))
    layers = [jbp.Embedding(4, 4), jbp.Repeat(attention, 2), jbp.Frozen(jbp.Dense(4)), jbp.Dense(2)]
    asked = Asked(layers, WORDS)
    found, blocks = asked.measure(jbp.KroneckerFactors()), asked.blocks()
    w = asked.factors
    counts = np.zeros(4)
    np.add.at(counts, np.asarray(asked.x), (w / w.sum() / 2)[:, None] * np.ones(2))
    assert_close(found["0.table"].A.d, counts, 1e-11)
    gain = next(name for name in found if name.endswith("gain"))
    whole = blocks[gain].reshape(2, 4, 2, 4)
    assert_close(found[gain].G, np.stack([whole[0, :, 0], whole[1, :, 1]]), 1e-11)
    bias = next(name for name in found if name.endswith("out.b"))
    assert found[bias].G.shape == (2, 4, 4)
    assert found[bias.replace(".b", ".w")].A.shape == (2, 4, 4)
    assert {name for name, its in found.items() if its is None} == {"2.fixed.w", "2.fixed.b"}


def test_the_loss_s_own_leaves(x64: None):
    asked = Asked([jbp.Dense(3), jbp.Tanh()], (2,), LinearCrossEntropy(4), n=1)
    blocks = asked.blocks()
    for name, (A, G) in asked.measure(jbp.KroneckerFactors()).items():
        assert_close(np.kron(A, G), blocks[name], 1e-11)


def test_eigenvalue_correction_is_the_diagonal_in_the_eigenbases(x64: None):
    layers = [
        jbp.Embedding(4, 3),
        jbp.Positions(2),
        jbp.Repeat(jbp.Residual(jbp.Dense(3)), 2),
        jbp.LayerNorm(),
        jbp.Dense(2),
    ]
    asked = Asked(layers, WORDS)
    factors = asked.measure(jbp.KroneckerFactors())
    found, blocks = asked.measure(jbp.CorrectedEigenvalues.of(factors)), asked.blocks()
    for name, (u_a, u_g) in jbp.eigenbases(factors).items():
        block, shape = blocks[name], found[name].shape
        if name.startswith("2."):  # block by block of the loop
            size = len(block) // 2
            block = block.reshape(2, size, 2, size)
            parts = [(block[i, :, i], u_a[i], u_g[i], found[name][i]) for i in range(2)]
        else:
            parts = [(block, np.eye(shape[0]) if u_a is None else u_a, u_g, found[name])]
        for part, a, g, values in parts:
            u = np.kron(a, g)
            assert_close(values.ravel(), np.diag(u.T @ part @ u), 1e-10)


def test_large_factors_come_as_their_diagonals(x64: None):
    asked = chain()
    whole, cut = asked.measure(jbp.KroneckerFactors(), jbp.KroneckerFactors(largest=2))
    assert_close(cut["0.w"].A, whole["0.w"].A, 1e-12)
    assert_close(cut["0.w"].G.d, np.diag(whole["0.w"].G), 1e-12)
    assert_close(cut["0.b"].G.d, np.diag(whole["0.b"].G), 1e-12)


# -- leaves of other people's models ----------------------------------------------------------------------------------


def model(apply: Any, n: int, x: tuple[int, ...], **shapes: tuple[int, ...]) -> Asked:
    """A model under squares, whose forms are `Outer`, `Patches` and `Sum`."""
    rng = np.random.default_rng(1)
    params = {name: jnp.asarray(rng.standard_normal(shape) / 2) for name, shape in shapes.items()}
    return Asked(jbp.from_model(apply, params, x), x, jbp.losses.HalfSquaredError(), n)


def test_a_kernel_that_is_used_transposed(x64: None):
    """δ is what its rows met, and a its columns."""
    asked = model(lambda p, x: jnp.tanh(x @ p["w"].T) @ p["v"].T, 1, (12,), w=(10, 12), v=(2, 10))
    assert asked.cost.network.forms["w"] == "Outer"
    factors, diagonal, rows, gram, of_each = asked.measure(
        jbp.KroneckerFactors(), jbp.DiagonalGGN(), jbp.GGNFactors(), jbp.GGNGram(), jbp.DiagonalGGN(of_each=True)
    )
    blocks = asked.blocks()
    for name, (A, G) in factors.items():
        assert_close(np.kron(A, G), blocks[name], 1e-11)
    assert_close(diagonal, np.concatenate([np.diag(blocks[name]) for name in asked.cost.layout.names]), 1e-11)
    assert_close(of_each[0] * asked.factors[0], diagonal, 1e-11)
    assert_close(gram, rows @ rows.T, 1e-11)
    values = asked.measure(jbp.CorrectedEigenvalues.of(factors))
    for name, (u_a, u_g) in jbp.eigenbases(factors).items():
        u = np.kron(u_a, u_g)
        assert_close(values[name].ravel(), np.diag(u.T @ blocks[name] @ u), 1e-10)


@pytest.mark.parametrize("shared", ["expand", "reduce"])
def test_the_kernel_of_a_convolution(shared: str, x64: None):
    """The block itself where each example has one place; the definition, of JAX's own patches, where it has four."""
    axes = ("NHWC", "HWIO", "NHWC")

    def apply(p: Any, x: Any) -> Any:
        out = jax.lax.conv_general_dilated(x, p["w"], (1, 1), "VALID", dimension_numbers=axes)
        return out.reshape(len(x), -1)

    one = model(apply, 1, (3, 3, 2), w=(3, 3, 2, 2))
    A, G = one.measure(jbp.KroneckerFactors(shared=shared))["w"]
    block = one.blocks()["w"]
    assert_close(np.kron(A, G), block, 1e-11)
    u = np.kron(np.linalg.eigh(A)[1], np.linalg.eigh(G)[1])
    values = one.measure(jbp.CorrectedEigenvalues.of({"w": jbp.Factors(A, G)}))["w"]
    assert_close((u * values.ravel()) @ u.T, block, 1e-11)
    four = model(apply, 3, (4, 4, 2), w=(3, 3, 2, 2))
    A, G = four.measure(jbp.KroneckerFactors(shared=shared))["w"]
    patches = jax.lax.conv_general_dilated_patches(four.x, (3, 3), (1, 1), "VALID", dimension_numbers=axes)
    a = np.asarray(patches).reshape(3, 4, 2, 9).swapaxes(2, 3).reshape(3, 4, 18)
    w = four.factors
    if shared == "reduce":
        a = a.mean(1, keepdims=True)
    assert_close(A, np.einsum("n,nti,ntj->ij", w / w.sum() / a.shape[1], a, a), 1e-11)
    assert_close(G, np.eye(2) * 4 * w.sum(), 1e-11)  # the loss's Hessian is I at four places of two channels
    assert_close(four.measure(jbp.KroneckerFactors(shared=shared, largest=5))["w"].A.d, np.diag(A), 1e-11)


# -- the optimiser ----------------------------------------------------------------------------------------------------


def test_one_step_is_the_damped_block_s_inverse(x64: None):
    """One example without positions: (A + π√λ)⁻¹ ⊗ (G + √λ/π)⁻¹ of exact blocks; of a bias (G + λ)⁻¹."""
    asked, damping = chain(1), 0.1
    rule = jbp.kfac(asked.cost, 1.0, damping=damping, momentum=0.0, clip=None, seed="exact")
    params = asked.cost.layout.unflatten(asked.theta)
    gradient = asked.cost.grad(asked.theta, asked.x, asked.y)
    on_leaves = asked.cost.layout.unflatten(gradient)
    batch = asked.x, asked.y, jbp.Context()
    step, _ = rule.update(on_leaves, rule.init(params), params, batch=batch)
    for name, g, change in asked.cost.layout.map(lambda *each: each, on_leaves, step):
        A, G = asked.measure(jbp.KroneckerFactors())[name]
        if name.endswith("b"):
            assert_close(change, -np.linalg.solve(G + damping * np.eye(3), g), 1e-9)
            continue
        pi = np.sqrt(np.trace(A) / len(A) / (np.trace(G) / len(G)))
        a, b = A + pi * np.sqrt(damping) * np.eye(len(A)), G + np.sqrt(damping) / pi * np.eye(len(G))
        assert_close(change, -np.linalg.solve(a, np.asarray(g)) @ np.linalg.inv(b), 1e-9)
    vector, _ = rule.update(gradient, rule.init(asked.theta), asked.theta, batch=batch)
    assert_close(vector, asked.cost.layout.flatten(step), 1e-12)


def test_factors_are_averages_and_inverses_stand_between(x64: None):
    asked = chain()
    x, y, theta = asked.x, asked.y, asked.theta
    rule = jbp.kfac(asked.cost, 0.1, every=2, decay=0.4, seed="exact")
    state, averages = rule.init(theta), []
    for i in range(5):
        _, state = rule.update(theta, state, theta, batch=(x + i, y, jbp.Context()))
        averages.append(as_numpy(state[0].averages["0.w"].A))
    A = [np.asarray(asked.cost.measure(theta, x + i, y, jbp.KroneckerFactors())[1]["0.w"].A) for i in (0, 2, 4)]
    assert_close(averages[0], A[0])
    assert_close(averages[1], averages[0], 0)
    assert_close(averages[2], 0.4 * A[0] + 0.6 * A[1])
    assert_close(averages[4], 0.4 * averages[2] + 0.6 * A[2])


def test_the_examples_weights_reach_the_factors():
    """From `update`, and from `fit`: an example of weight 0 leaves no trace."""
    asked = chain()
    x, y, theta = asked.x.astype(jnp.float32), asked.y.astype(jnp.int32), asked.theta.astype(jnp.float32)
    rule, weights = jbp.kfac(asked.cost, 0.1, seed="exact"), jnp.array([1.0, 2.0, 0.0])
    _, state = rule.update(theta, rule.init(theta), theta, batch=(x, y, jbp.Context()), weights=weights)
    expected = asked.cost.measure(theta, x, y, jbp.KroneckerFactors(), weights=weights)[1]
    assert_close(state[0].averages, as_numpy(expected), 1e-6)
    run = lambda x: jbp.fit(asked.cost, theta, (x, y), optimizer=rule, weights=weights, batch_size=3, epochs=2)
    assert_close(run(x.at[2].set(9.0)).theta, np.asarray(run(x).theta), 1e-5)


def test_fit_takes_it_and_frozen_leaves_stay():
    network = jbp.Network(
        [jbp.Frozen(jbp.Dense(8)), jbp.LayerNorm(), jbp.Tanh(), jbp.Dense(4), jbp.Tanh(), jbp.Dense(10)], (64,)
    )
    cost = jbp.Cost(network, SOFTMAX)
    theta, digits = network.init(jax.random.key(0)), jbp.data.digits()
    x, y = digits.x[:256], digits.y[:256]
    rule = lambda: jbp.kfac(cost, optax.constant_schedule(0.05), damping=1e-2, every=2)
    run = jbp.fit(cost, theta, (x, y), optimizer=rule(), batch_size=64, epochs=3)
    again = jbp.fit(cost, None, (x, y), optimizer=rule(), batch_size=64, epochs=6, resume=run.state)
    assert cost(again.theta, x, y) < cost(run.theta, x, y) < cost(theta, x, y)
    frozen = slice(0, 64 * 8 + 8)
    assert_close(again.theta[frozen], theta[frozen], 0)


# -- wrong calls ------------------------------------------------------------------------------------------------------


def tied() -> jbp.Cost:
    both = jbp.Sequential([jbp.Embedding(3, 2), jbp.Dense(3, bias=False)])
    return jbp.Cost(jbp.Network([jbp.Tied(both, {"1.w": "0.table.T"})], WORDS), SOFTMAX)


def turned() -> jbp.Cost:
    both = jbp.Sequential([jbp.Dense(3), jbp.Tanh(), jbp.Dense(2)])
    return jbp.Cost(jbp.Network([jbp.Tied(both, {"2.w": "0.w.T"})], (2,)), SOFTMAX)


def _ask(cost: jbp.Cost, *readouts: Any) -> Any:
    x, y = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2), jnp.int32)
    return cost.measure(jnp.zeros(cost.layout.size), x, y, *readouts)


def _step(gradient: Any, batch: Any) -> Any:
    theta, rule = jnp.zeros(17), jbp.kfac(COST, 0.1)
    return rule.update(gradient, rule.init(theta), theta, batch=batch)


def wider() -> Any:
    """Factors of a network of another width."""
    cost = jbp.Cost(jbp.mlp(2, 4, 2, last=jbp.Identity()), SOFTMAX)
    return cost.measure(jnp.zeros(22), *BATCH, jbp.KroneckerFactors())[1]


BATCH = jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32)
COST = jbp.Cost(jbp.mlp(2, 3, 2, last=jbp.Identity()), SOFTMAX)
WRONG = [
    (lambda: jbp.KroneckerFactors(shared="all"), "KroneckerFactors: shared must be 'expand' or 'reduce', got 'all'."),
    (
        lambda: jbp.KroneckerFactors(largest=0),
        "KroneckerFactors: largest must be a whole number of at least 1, or None, got 0.",
    ),
    (
        lambda: COST.measure(jnp.zeros(17), *BATCH, jbp.CorrectedEigenvalues({})),
        "CorrectedEigenvalues: expected arrays of the leaves 0.w, […]",
    ),
    (
        lambda: _ask(tied(), jbp.KroneckerFactors()),
        "layer 0: leaf layer.0.table: factors: the leaf is used in several ways […]",
    ),
    (
        lambda: turned().measure(jnp.zeros(11), jnp.ones((1, 2)), jnp.zeros(1, jnp.int32), jbp.KroneckerFactors()),
        "layer 0: leaf layer.0.w: factors: the leaf is used as it is and transposed, so its second moment is no […]",
    ),
    (lambda: jbp.kfac(COST.network, 0.1), "kfac: expected a Cost first, got Network. As in kfac(cost, 0.1)."),
    (lambda: jbp.kfac(COST, 0.1, damping=0.0), "kfac: damping must be above 0, got 0.0."),
    (lambda: jbp.kfac(COST, 0.1, damping="1e-3"), "kfac: damping must be above 0, got '1e-3'."),
    (lambda: jbp.kfac(COST, 0.1, momentum=None), "kfac: momentum must be in [0, 1), got None."),
    (lambda: jbp.kfac(COST, 0.1, clip="1"), "kfac: clip must be above 0, or None, got '1'."),
    (lambda: jbp.kfac(COST, 0.1, decay=[0.9]), "kfac: decay must be in [0, 1), got [0.9]."),
    (
        lambda: jbp.kfac(COST, 0.1, seed=jbp.Sampled(jax.random.key(1))),
        "kfac: seed must be 'sampled' (by key=), 'exact' or 'empirical', got Sampled.",
    ),
    (
        lambda: jbp.CorrectedEigenvalues(COST.measure(jnp.zeros(17), *BATCH, jbp.KroneckerFactors())[1]),
        "CorrectedEigenvalues: expected bases, got Factors. Write CorrectedEigenvalues.of(factors).",
    ),
    (
        lambda: jbp.CorrectedEigenvalues.of(COST.measure(jnp.zeros(17), *BATCH, jbp.KroneckerFactors())),
        "eigenbases: expected {leaf's name: Factors}, got tuple. Give what KroneckerFactors() gave: […]",
    ),
    (
        lambda: COST.measure(jnp.zeros(17), *BATCH, jbp.CorrectedEigenvalues.of(wider())),
        "[…]CorrectedEigenvalues: expected a basis of 3 directions, got one of 4. Take the factors from this cost.",
    ),
    (lambda: jbp.kfac(COST, 0.1, every=0), "kfac: every must be a whole number of at least 1, got 0."),
    (
        lambda: jbp.kfac(jbp.Cost(COST.network, jbp.losses.from_function(lambda z, y: z.sum(1))), 0.1),
        "kfac: the loss FromFunction has no likelihood, no method sample. […]",
    ),
    (
        lambda: jbp.kfac(COST, 0.1).update(jnp.zeros(17), jbp.kfac(COST, 0.1).init(jnp.zeros(17)), jnp.zeros(17)),
        "kfac: update needs the params and the batch of its gradient, for the factors. […]",
    ),
    (lambda: jbp.kfac(COST, "0.1"), "kfac: learning_rate must be a number or an optax schedule, got '0.1'."),
    (
        lambda: jbp.kfac(COST, 0.1).init(jnp.zeros(16)),
        "kfac: expected vectors [P] = [17] like theta, or trees of leaves, got float32[16]. […]",
    ),
    (lambda: _step(jnp.zeros(16), BATCH), "kfac: expected vectors [P] = [17] like theta, […]"),
    (lambda: _step(jnp.zeros(17), BATCH[:1]), "kfac: batch must be (x, y) or (x, y, context), got float32[1, 2]."),
]


@over_calls(WRONG)
@pytest.mark.usefixtures("as_for_a_user")
def test_wrong_calls(call: Any, message: str):
    assert_told(call, message)
