"""The map between named leaves and the vector θ, and the text's names for its coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import NETWORKS, CostCase, draw, over
from jax.flatten_util import ravel_pytree

import jbp
from jbp.layout import Layout

ODD = {"scalar": jnp.float32(3), "empty": jnp.zeros((0, 2)), "cube": jnp.arange(24.0).reshape(2, 3, 4), "none": None}


def layout_of(*widths: int, bias: bool = True) -> Layout:
    return jbp.Network([jbp.Dense(width, bias=bias) for width in widths[1:]], (widths[0],)).layout


@over(NETWORKS)
def test_flatten_and_unflatten_are_inverse_and_ravel_pytree_s_order(case: CostCase):
    layout = case.cost().layout
    theta = draw(0, jax.ShapeDtypeStruct((layout.size,), jnp.float32))
    tree = jax.jit(layout.unflatten)(theta)
    both = jax.jit(lambda tree: (layout.flatten(tree), ravel_pytree(tree)[0]))
    np.testing.assert_array_equal(both(tree), [theta] * 2)
    assert Layout.of(tree) == layout


@over(NETWORKS)
def test_every_coordinate_has_a_symbol_of_its_own(case: CostCase):
    layout = case.cost().layout
    symbols = [layout.symbol(i) for i in range(layout.size)]
    assert [layout.index(symbol) for symbol in symbols] == list(range(layout.size))
    assert len(set(symbols)) == layout.size == layout.num_weights + layout.num_biases


def test_scalar_and_empty_leaves():
    layout = Layout.of(ODD)
    theta = layout.flatten(ODD)
    np.testing.assert_array_equal(theta, ravel_pytree(ODD)[0])
    assert jax.tree.structure(layout.unflatten(theta)) == jax.tree.structure(ODD)
    assert layout.names == ("cube", "empty", "scalar")
    assert layout.sizes == (24, 0, 1)
    assert [layout.symbol(i) for i in (0, 23, 24)] == ["cube[0,0,0]", "cube[1,2,3]", "scalar"]
    assert [layout.index(layout.symbol(i)) for i in range(25)] == list(range(25))


def test_no_leaves():
    layout = Layout.of(())
    assert layout.size == layout.num_weights == layout.num_biases == 0
    assert layout.flatten(()).shape == (0,)
    assert layout.unflatten(jnp.zeros(0)) == ()
    with pytest.raises(jbp.InputError, match="no coordinates"):
        layout.index("w^2_{0←0}")


def test_the_table_of_notation():
    """The text's network: L = 3, and C : R^(#W+#b) → R."""
    layout = jbp.mlp(784, 30, 10).layout
    assert layout.names == ("0.w", "0.b", "2.w", "2.b")
    assert (layout.num_layers, layout.is_chain) == (3, True)
    assert (layout.num_weights, layout.num_biases, layout.size) == (784 * 30 + 30 * 10, 30 + 10, 23_860)
    assert layout.symbol(0) == "w^2_{0←0}"
    assert layout.symbol(1) == "w^2_{1←0}"  # a kernel is stored as [k, j]
    assert layout.symbol(784 * 30) == "b^2_0"
    assert layout.symbol(layout.size - 1) == "b^3_9"
    assert layout.symbol(layout.size - 10) == "b^3_0"


def test_the_entry_jk_of_a_matrix_is_the_weight_from_k_to_j():
    layout = layout_of(3, 12, 2)
    theta = jnp.arange(float(layout.size))
    for l, shape in ((2, (12, 3)), (3, (2, 12))):
        matrix = layout.matrix(theta, l)
        assert matrix.shape == shape
        for j, k in np.ndindex(*shape):
            assert matrix[j, k] == layout.index(f"w^{l}_{{{j}←{k}}}")


def test_a_matrix_times_activations_is_the_forward_pass(x64: None):
    net = jbp.Network([jbp.Dense(4), jbp.Identity(), jbp.Dense(2)], (3,))
    theta, a = draw(0, (jax.ShapeDtypeStruct((net.layout.size,), jnp.float64), jax.ShapeDtypeStruct((3,), jnp.float64)))
    b2, b3 = (leaf for name, leaf in zip(net.layout.names, jax.tree.leaves(net.layout.unflatten(theta)), strict=True)
              if name.endswith("b"))  # fmt: skip
    expected = net.layout.matrix(theta, 3) @ (net.layout.matrix(theta, 2) @ a + b2) + b3
    np.testing.assert_allclose(net(theta, a[None])[0], expected, rtol=1e-12)


def test_arrows_may_be_ascii_and_numbers_may_have_digits():
    layout = layout_of(*[2] * 10, 13)  # L = 11, and 13 neurons in its last layer
    assert layout.num_layers == 11
    assert layout.symbol(layout.size - 1) == "b^{11}_{12}"
    assert layout.index("b^{11}_{12}") == layout.size - 1
    assert layout.index("w^2_{1<-0}") == layout.index("w^2_{1←0}") == 1
    assert layout.symbol(layout.index("w^{11}_{12<-1}")) == "w^{11}_{12←1}"
    for same in ("w^{2}_{1←0}", "w^2_{1 <- 0}", " w^2_{1<-0}", "w^2_1<-0", "w^{ 2 }_1←0 "):
        assert layout.index(same) == 1
    assert layout.symbol(layout.index("b^9_1")) == "b^9_1"


def test_a_chain_without_biases():
    layout = layout_of(3, 4, 2, bias=False)
    assert (layout.num_layers, layout.num_biases, layout.num_weights) == (3, 0, 20)
    assert layout.symbol(19) == "w^3_{1←3}"
    with pytest.raises(jbp.InputError, match="unknown symbol"):
        layout.index("b^2_0")


def test_off_a_chain_a_coordinate_has_a_path():
    layout = jbp.Network([jbp.Dense(3), jbp.Residual(jbp.Dense(3))], (2,)).layout
    assert not layout.is_chain
    assert layout.names == ("0.w", "0.b", "1.layer.w", "1.layer.b")
    assert layout.symbol(0) == "0.w[0,0]"
    assert layout.symbol(layout.size - 1) == "1.layer.b[2]"
    assert layout.index("1.layer.w[2,1]") == layout.offsets[2] + 7
    assert (layout.num_weights, layout.num_biases) == (6 + 9, 6)
    with pytest.raises(
        jbp.InputError, match=r"num_layers: defined for a plain chain of dense layers only.*1\.layer\.w"
    ):
        _ = layout.num_layers
    with pytest.raises(jbp.InputError, match="plain chain"):
        layout.matrix(jnp.zeros(layout.size), 2)


def test_layouts_are_hashable_and_static_under_jit():
    layout = layout_of(3, 4, 2)
    assert hash(layout) == hash(layout_of(3, 4, 2))
    assert layout == layout_of(3, 4, 2) != layout_of(3, 5, 2)
    theta = jnp.arange(float(layout.size))
    again = jax.jit(lambda layout, theta: layout.flatten(layout.unflatten(theta)), static_argnums=0)(layout, theta)
    np.testing.assert_array_equal(again, theta)


@pytest.mark.parametrize(
    "symbol", ["w^2_{4←0}", "w^2_{0←3}", "w^9_{0←0}", "w^1_{0←0}", "b^3_2", "b^2_", "nonsense", "0.w[0]", ""]
)
def test_an_unknown_symbol_raises(symbol: str):
    with pytest.raises(jbp.InputError, match="unknown symbol"):
        layout_of(3, 4, 2).index(symbol)


@pytest.mark.parametrize(
    ("symbol", "says"),
    [
        ("w^2_{33<-1}", "The nearest is w^2_{3←1}, of w^2_{0←0} … w^2_{3←2}."),
        ("w^7_{0<-9}", "The nearest is w^3_{0←3}, of w^3_{0←0} … w^3_{1←3}."),
        ("a^2_0", "Weights are w^ℓ_{j←k}, biases b^ℓ_j. The nearest leaf has symbols w^2_{0←0} … w^2_{3←2}."),
        ("b^2", "The nearest leaf has symbols b^2_0 … b^2_3."),
    ],
)
def test_an_unknown_symbol_is_told_the_nearest(symbol: str, says: str):
    with pytest.raises(jbp.InputError) as error:
        layout_of(3, 4, 2).index(symbol)
    assert str(error.value) == f"layout.index: unknown symbol {symbol!r}. {says}"


def test_what_is_no_symbol_is_not_printed_whole():
    with pytest.raises(jbp.InputError, match=r"expected a symbol, a str like .*, got int32\[64, 10\]\."):
        layout_of(3, 4, 2).index(jnp.zeros((64, 10), jnp.int32))


def test_what_does_not_fit_raises():
    layout = layout_of(3, 4, 2)
    tree = layout.unflatten(jnp.zeros(layout.size))
    with pytest.raises(jbp.InputError, match=rf"expected \[P\] = \[{layout.size}\] \(#W = 20, #b = 6\), got \[5\]"):
        layout.unflatten(jnp.zeros(5))
    with pytest.raises(jbp.InputError, match="expected float32"):
        layout.unflatten(jnp.zeros(layout.size, jnp.bfloat16))
    with pytest.raises(
        jbp.InputError, match=r"leaf 0\.w has shape \[3, 4\] in this layout, got \[4, 3\]. Transpose it"
    ):
        layout.flatten((tree[0]._replace(w=tree[0].w.T), tree[1]))
    with pytest.raises(jbp.InputError, match="expected leaves"):
        layout.flatten(tree[:1])
    with pytest.raises(jbp.InputError, match="one vector has one float dtype"):
        Layout.of({"a": jnp.zeros(2), "b": jnp.zeros(2, jnp.bfloat16)})
    with pytest.raises(jbp.InputError, match="one vector has one float dtype"):
        Layout.of({"a": jnp.zeros(2, jnp.int32)})
    with pytest.raises(jbp.InputError, match="coordinates 0 … 25"):
        layout.symbol(26)
    with pytest.raises(jbp.InputError, match="l runs from 2 to L = 3"):
        layout.matrix(jnp.zeros(layout.size), 1)


def test_locate_is_where_a_coordinate_stands():
    net = jbp.mlp(2, 3, 2)
    for i in range(net.layout.size):
        name, where = net.layout.locate(i)
        assert net.layout.symbol_at(name, where) == net.layout.symbol(i)
        assert net.layout.leaves(np.arange(17))[net.layout.names.index(name)][where] == i
    with pytest.raises(jbp.InputError, match=r"layout.locate: coordinate 17 is not in θ; it has coordinates 0 … 16"):
        net.layout.locate(17)
    empty = jbp.Layout.of({"a": np.zeros((0, 3)), "b": np.zeros(2), "c": np.zeros((0,)), "d": np.zeros(())})
    assert [empty.locate(i) for i in range(3)] == [("b", (0,)), ("b", (1,)), ("d", ())]
