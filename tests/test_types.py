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
    table = rows(README)
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
