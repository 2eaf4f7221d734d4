"""What is the type of C? The README's table, row by row: each expression has the type that stands beside it.

One jaxtyping context for all rows, so that a letter is the same number wherever it stands.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from jaxtyping import Array, Float

import jbp

HEADING = "## What is the type of C?"
# until the table stands in the README, as it will stand there
PENDING = """\
## What is the type of C?

| the text | in jbp | type | what it is |
|---|---|---|---|
| x | `x` | `Float[Array, "N I"]` | inputs, a row for each example |
| y | `y` | `Float[Array, "N K"]` | the outputs that ought to be |
| a^L | `net(theta, x)` | `Float[Array, "N K"]` | the outputs that are |
| L | `net.layout.num_layers` | `int` | layers, the input layer included: 3 |
| ℓ | `l` | `int` | a layer; those with weights are 2 … L |
| #W | `net.layout.num_weights` | `int` | number of weights |
| #b | `net.layout.num_biases` | `int` | number of biases |
| #W + #b | `net.layout.size` | `int` | P |
| (W, b) | `theta` | `Float[Array, "P"]` | all weights and biases, unrolled into one vector θ |
| W^ℓ | `net.layout.matrix(theta, l)` | `Float[Array, "j k"]` | the weights into layer ℓ, as a matrix |
| b^ℓ | `net.layout.unflatten(theta)[2 * (l - 2)].b` | `Float[Array, "j"]` | its biases |
| w^ℓ_{j←k} | `theta[net.layout.index("w^2_{3←7}")]` | `Float[Array, ""]` | one weight: a real number |
| C | `cost` | `jbp.Cost` | a function R^(#W+#b) → R, with x and y fixed |
| C(W, b; x) | `cost(theta, x, y)` | `Float[Array, ""]` | its value: a real number |
| C_n | `cost.loss.value(net(theta, x), y)` | `Float[Array, "N"]` | the cost of each example |
| ∇C | `cost.grad(theta, x, y)` | `Float[Array, "P"]` | ∂C/∂θ, by the hand-written pass |
| ∇C | `jax.grad(cost)(theta, x, y)` | `Float[Array, "P"]` | the same, by autodiff |
| ∂C/∂W^ℓ | `net.layout.matrix(cost.grad(theta, x, y), l)` | `Float[Array, "j k"]` | of the type of W^ℓ |
| ∂C/∂w^ℓ_{j←k} | `cost.grad(theta, x, y)[net.layout.index("w^2_{3←7}")]` | `Float[Array, ""]` | what descent needs |
| a^{ℓ−1} | `cost.pairs(theta, x, y)["0.w"].a` | `Float[Array, "N T k"]` | what W^ℓ met going forward |
| δ^ℓ | `cost.pairs(theta, x, y)["0.w"].delta` | `Float[Array, "N T j"]` | ∂C_n/∂z^ℓ, what it met coming back |
| ∂C_n/∂a^L | `cost.loss.delta(net(theta, x), y)` | `Float[Array, "N K"]` | the base case |
| ∂C/∂x | `jax.grad(cost, argnums=1)(theta, x, y)` | `Float[Array, "N I"]` | with θ fixed instead: another type |
"""
README = (Path(__file__).parent.parent / "README.md").read_text()

digits = jbp.data.digits()
NAMES = {
    "jax": jax, "jbp": jbp, "Array": Array, "Float": Float,
    "x": jnp.asarray(digits.x[:5]), "y": jax.nn.one_hot(digits.y[:5], 10), "net": (net := jbp.mlp(64, 30, 10)),
    "cost": jbp.Cost(net, jbp.losses.HalfSquaredError()), "theta": net.init(jax.random.key(0)), "l": 2,
}  # fmt: skip


def rows(text):
    """(expression, type) of each row of the table under the heading."""
    table = text.split(HEADING, 1)[1].split("\n## ")[0]
    return re.findall(r"^\|[^|]*\| `([^|]*)` \| `([^|]*)` \|", table, re.M)


def wrong(table):
    """The rows whose expression is not of its type."""
    with jaxtyping.jaxtyped("context"):
        return [row for row in table if not isinstance(eval(row[0], NAMES), eval(row[1], NAMES))]


def test_every_row():
    table = rows(README if HEADING in README else PENDING)
    assert len(table) >= 20
    assert wrong(table) == []


def test_sizes():
    layout = net.layout
    assert layout.num_weights + layout.num_biases == layout.size == NAMES["theta"].size
    assert layout.num_layers == 3


@pytest.mark.parametrize(
    "row",
    [
        ("theta", 'Float[Array, "P Q"]'),
        ("net.layout.matrix(theta, l).T", 'Float[Array, "j k"]'),
        ("net.layout.num_layers", 'Float[Array, ""]'),
        ("cost.grad(theta, x, y)[1:]", 'Float[Array, "P"]'),
    ],
)
def test_a_wrong_type_is_found(row):
    right = ("theta", 'Float[Array, "P"]'), ("net.layout.matrix(theta, l)", 'Float[Array, "j k"]')
    assert wrong([*right, row]) == [row]
