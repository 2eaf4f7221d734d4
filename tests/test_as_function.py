"""Any layer as a plain JAX function with its own backward, and any JAX function as a layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LAYERS, MASK, LayerCase, Lookup, N, NoisyGain, as_numpy, assert_close, draw, over

import jbp

DENSE = jbp.Sequential([jbp.Dense(4), jbp.Tanh(), jbp.Dense(2)])
SPEC = jax.ShapeDtypeStruct((3,), jnp.float32)


def of_plain_jax(layer: jbp.Layer) -> Any:
    """(params, x, context) -> y with autodiff's gradient: the layer's own forward."""
    return lambda params, x, context: layer.forward(params, x, context)[0]


def gradients(f: Any, params: Any, x: Any, delta: Any, *context: Any) -> Any:
    """The gradient of Σ δ·f with respect to the params, and to x where it is of floats."""
    floats = all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(x))
    cost = lambda params, x: (f(params, x, *context) * delta).sum()
    return jax.jit(jax.grad(cost, argnums=(0, 1) if floats else 0))(params, x)


@over([case for case in LAYERS if jax.tree.leaves(case.params)])
def test_gradients_are_those_of_autodiff(case: LayerCase, x64: None):
    params, x, delta = jax.tree.map(lambda a: a[0], case.draw(jnp.float64, 1))
    expected = gradients(of_plain_jax(case.layer), params, x, delta, case.context)
    assert_close(gradients(jbp.as_function(case.layer), params, x, delta, case.context), expected)


def test_it_is_the_layers_own_backward_that_runs():
    f = jbp.as_function(jbp.Tap(lambda delta: 7 * delta))
    np.testing.assert_array_equal(jax.grad(lambda x: f((), x).sum())(jnp.ones((2, 3))), np.full((2, 3), 7))


def test_it_runs_eagerly_and_under_vmap_and_scan(x64: None):
    case = LayerCase("", DENSE, (3,), None)
    args = case.draw(jnp.float64, 4)
    f = jbp.as_function(DENSE)
    step = lambda params, x, delta: gradients(f, params, x, delta)
    expected = jax.vmap(lambda *args: gradients(of_plain_jax(DENSE), *args, jbp.Context()))(*args)
    assert_close(jax.vmap(step)(*args), expected)
    assert_close(jax.lax.scan(lambda carry, args: (carry, step(*args)), None, args)[1], expected)
    one = jax.tree.map(lambda a: a[0], args)
    eager = jax.grad(lambda params: (f(params, one[1]) * one[2]).sum())(one[0])
    assert_close(eager, jax.tree.map(lambda a: a[0], expected)[0])


def test_a_network_is_a_function_of_theta(x64: None):
    net = jbp.Network(DENSE.layers, (3,))
    theta, x = draw(
        0, (jax.ShapeDtypeStruct((net.layout.size,), jnp.float64), jax.ShapeDtypeStruct((N, 3), jnp.float64))
    )
    f = jbp.as_function(net)
    np.testing.assert_array_equal(f(theta, x), net(theta, x))
    delta = jnp.cos(jnp.arange(2.0 * N)).reshape(N, 2)
    assert_close(gradients(f, theta, x, delta), gradients(net, theta, x, delta))


def test_a_network_of_low_compute_precision_gives_gradients_in_its_own():
    net = jbp.Network(DENSE.layers, (3,), compute_dtype=jnp.bfloat16)
    theta, x = draw(
        0, (jax.ShapeDtypeStruct((net.layout.size,), jnp.float32), jax.ShapeDtypeStruct((N, 3), jnp.float32))
    )
    gradient, delta_x = gradients(jbp.as_function(net), theta, x, jnp.ones((N, 2), jnp.bfloat16))
    assert gradient.dtype == delta_x.dtype == jnp.float32
    assert jbp.as_function(net)(theta, x).dtype == jnp.bfloat16


def test_integer_inputs_have_no_delta(x64: None):
    f, x = jbp.as_function(Lookup(2)), jnp.array([[0, 3, 3], [1, 1, 1]])
    params = {"table": jnp.ones((4, 2))}
    gradient = jax.grad(lambda params: f(params, x).sum())(params)
    np.testing.assert_array_equal(gradient["table"], [[1, 1], [3, 3], [0, 0], [2, 2]])
    with pytest.raises(TypeError, match="int"):
        jax.grad(lambda x: f(params, x).sum())(x)


def test_the_context_passes_through(x64: None):
    layer, context = jbp.Sequential([NoisyGain(), jbp.Tanh()]), jbp.Context(jax.random.key(0), jnp.asarray(MASK))
    params, x, delta = jax.tree.map(lambda a: a[0], LayerCase("", layer, (3, 2), None).draw(jnp.float64, 1))
    f = jbp.as_function(layer)
    assert_close(gradients(f, params, x, delta, context), gradients(of_plain_jax(layer), params, x, delta, context))
    y = f(params, x, context)
    assert not y[~MASK].any()
    assert (y[MASK] == 0).any()
    np.testing.assert_array_equal(f(params, x) == 0, np.zeros(x.shape, bool))  # no key, no noise, no mask


# -- in both modes ----------------------------------------------------------------------------------------------------

hijax = pytest.mark.skipif(not hasattr(jax.experimental.hijax, "HiPrim"), reason="this JAX has no HiPrim of hijax")
FOLDED = jbp.Network([jbp.Dense(2), jbp.Tanh()], (3,))
BOTH_MODES = {
    "Dense": (jbp.Dense(2), (3,)),
    "Network": (FOLDED, (3,)),
    "DotProductAttention": (jbp.DotProductAttention(causal=True, soft_cap=2.0), ((3, 2, 2), (4, 1, 2), (4, 1, 3))),
}
AROUND = {  # a cost of (params, x), and what a model around it does with the function
    "nothing": lambda f, params, x: f(params, x),
    "checkpoint": lambda f, params, x: jax.checkpoint(f)(params, x),
    "vmap": lambda f, params, x: jax.vmap(f, (None, 0))(params, jnp.stack([x, 2 * x])),
    "vmap of params": lambda f, params, x: jax.vmap(f, (0, None))(jnp.stack([params, 2 * params]), x),
    "scan of checkpoints": lambda f, params, x: jax.lax.scan(
        jax.checkpoint(lambda c, i: (c + f(params, x * i).sum(), None)), 0.0, jnp.arange(2.0)
    )[0],
}


def derivatives(cost: Any, more: bool) -> Any:
    """Those of both modes, of (params, x) along v, once and twice; `more` of them."""

    def of(args: Any, v: Any) -> dict[str, Any]:
        both = jax.grad(cost, (0, 1))
        found = {
            "grad": both(*args),
            "jvp of grad": jax.jvp(both, args, v),
            "grad of jvp": jax.grad(lambda *args: jax.jvp(cost, args, v)[1], (0, 1))(*args),
        }
        if more:
            along = lambda *args: sum(map(jnp.vdot, *map(jax.tree.leaves, (both(*args), v))))
            found |= {
                "linearize": jax.linearize(cost, *args)[1](*v),
                "grad of grad": jax.grad(along, (0, 1))(*args),
                "hessian": jax.hessian(cost)(*args),
                "reverse over forward": jax.jacrev(jax.jacfwd(cost))(*args),
            }
        return found

    return jax.jit(of)


@hijax
@pytest.mark.parametrize(
    ("name", "around"), [*((name, "nothing") for name in BOTH_MODES), *(("Network", way) for way in list(AROUND)[1:])]
)
def test_both_modes_give_what_autodiff_of_the_forward_gives(name: str, around: str, x64: None):
    layer, shapes = BOTH_MODES[name]
    spec = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct((2, *shape), jnp.float64), shapes, is_leaf=lambda s: isinstance(s[0], int)
    )
    params, plain = jnp.linspace(-1.0, 1.0, FOLDED.layout.size), FOLDED
    if layer is not FOLDED:
        plain = lambda params, x: layer.forward(params, x, jbp.Context())[0]
        params = layer.init(jax.random.key(0), jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), spec))
    args = (params, draw(0, spec))
    v = draw(1, jax.eval_shape(lambda: args))
    cost = lambda f: lambda params, x: jnp.sin(AROUND[around](f, params, x)).sum()
    more = name == "Dense"
    got = derivatives(cost(jbp.as_function(layer, forward_mode=True)), more)(args, v)
    assert_close(got, derivatives(cost(plain), more)(args, v))


@hijax
def test_every_reverse_is_the_layers_own():
    """Seven times autodiff's, by a `Tap`, wherever a model calls it; and forward mode is the derivative."""
    f, x = jbp.as_function(jbp.Tap(lambda delta: 7 * delta), forward_mode=True), jnp.ones((2, 3))
    ways = {
        "itself": lambda x: f((), x),
        "jit": jax.jit(lambda x: f((), x)),
        "checkpoint": jax.checkpoint(lambda x: f((), x)),
        "all saved": jax.checkpoint(lambda x: f((), x), policy=jax.checkpoint_policies.everything_saveable),
        "vmap": jax.vmap(lambda x: f((), x[None])[0]),
        "vmap of checkpoint": jax.vmap(jax.checkpoint(lambda x: f((), x[None])[0])),
        "checkpoint of vmap": jax.checkpoint(jax.vmap(lambda x: f((), x[None])[0])),
        "scan": lambda x: jax.lax.scan(lambda c, _: (f((), c), None), x, None, length=1)[0],
        "scan of checkpoint": lambda x: jax.lax.scan(jax.checkpoint(lambda c, _: (f((), c), None)), x, None, length=1)[
            0
        ],
        "cond": lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: f((), x), lambda x: x, x),
    }
    for name, way in ways.items():
        np.testing.assert_array_equal(jax.grad(lambda x, way=way: way(x).sum())(x), 7 * x, err_msg=name)
        np.testing.assert_array_equal(jax.jvp(way, (x,), (x,))[1], x, err_msg=name)


@hijax
def test_both_modes_with_whole_numbers_a_context_and_logs(x64: None):
    lookup, index = jbp.as_function(Lookup(2), forward_mode=True), jnp.array([[0, 3, 3], [1, 1, 1]])
    table = {"table": jnp.ones((4, 2))}
    due = jnp.array([[1.0, 1.0], [3.0, 3.0], [0.0, 0.0], [2.0, 2.0]])
    assert_close(jax.grad(lambda p: lookup(p, index).sum())(table)["table"], due)
    assert_close(jax.jvp(lambda p: lookup(p, index), (table,), (table,))[1], lookup(table, index))

    layer, context = jbp.Sequential([NoisyGain(), jbp.Tanh()]), jbp.Context(jax.random.key(0), jnp.asarray(MASK))
    params, x, delta = jax.tree.map(lambda a: a[0], LayerCase("", layer, (3, 2), None).draw(jnp.float64, 1))
    f = jbp.as_function(layer, forward_mode=True)
    assert_close(gradients(f, params, x, delta, context), gradients(of_plain_jax(layer), params, x, delta, context))

    logs = {"norms": jbp.SquaredNorms()}
    logged, alone = (jbp.as_function(DENSE, logs=logs, forward_mode=mode) for mode in (True, False))
    params = jax.tree.map(lambda p: p.astype(jnp.float64), DENSE.init(jax.random.key(0), SPEC))
    x = draw(0, jax.ShapeDtypeStruct((N, 3), jnp.float64))
    found = []
    for f in (logged, alone):
        _, vjp = jax.vjp(lambda p, f=f: (f(p, x, log="here") ** 2).sum(), params)
        found.append(vjp.with_logs(jnp.ones(())))
    assert set(found[0][1]) == {"here.norms"}
    assert_close(*found)
    assert_close(jax.jvp(lambda p: logged(p, x, log="here"), (params,), (params,))[0], plain(params, x))


@hijax
def test_a_fault_is_found_inside_a_function_of_both_modes():
    f = jbp.as_function(jbp.Tap(lambda delta: 7 * delta), forward_mode=True)
    report = jbp.compare_vjp(lambda x: jnp.sin(f((), x)), jnp.linspace(0.0, 1.0, 6).reshape(2, 3))
    assert "off by the factor 7.000" in report.verdict


def test_forward_mode_needs_hijax(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jbp.both_modes._HiPrim", object)
    with pytest.raises(jbp.InputError, match=r"needs jax\.experimental.hijax\.HiPrim\. Install"):
        jbp.as_function(DENSE, forward_mode=True)


# -- inside other libraries -------------------------------------------------------------------------------------------


def plain(params: Any, x: jax.Array) -> jax.Array:
    """DENSE, written out."""
    return jnp.tanh(x @ params[0].w + params[0].b[None]) @ params[2].w + params[2].b[None]


X = draw(1, jax.ShapeDtypeStruct((N, 3), jnp.float32))


def assert_float32_close(got: Any, expected: Any) -> None:
    assert_close(got, expected, relative=16 * float(jnp.finfo(jnp.float32).eps))


def test_inside_a_linen_module():
    linen = pytest.importorskip("flax.linen", reason="Flax is not among the test dependencies")

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            params = self.param("hidden", DENSE.init, SPEC)
            return linen.Dense(1)(jbp.as_function(DENSE)(params, x))

    variables = Model().init(jax.random.key(0), X)
    of_model = jax.grad(lambda variables: Model().apply(variables, X).sum())(variables)["params"]
    dense, hidden = (variables["params"][name] for name in ("Dense_0", "hidden"))
    expected = jax.grad(lambda hidden: (plain(hidden, X) @ dense["kernel"]).sum())(hidden)
    assert_float32_close(of_model["hidden"], expected)


def test_inside_an_nnx_module():
    nnx = pytest.importorskip("flax.nnx", reason="Flax is not among the test dependencies")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Param(DENSE.init(rngs.params(), SPEC))
            self.last = nnx.Linear(2, 1, rngs=rngs)

        def __call__(self, x):
            return self.last(jbp.as_function(DENSE)(self.hidden.get_value(), x))

    model = Model(nnx.Rngs(0))
    of_model = nnx.grad(lambda model: model(X).sum())(model)
    kernel = model.last.kernel.get_value()
    expected = jax.grad(lambda hidden: (plain(hidden, X) @ kernel).sum())(model.hidden.get_value())
    assert_float32_close(of_model.hidden.get_value(), expected)


def test_inside_an_equinox_module():
    equinox = pytest.importorskip("equinox", reason="Equinox is not among the test dependencies")

    class Model(equinox.Module):
        hidden: Any
        last: Any

        def __call__(self, x):
            return jax.vmap(self.last)(jbp.as_function(DENSE)(self.hidden, x))

    model = Model(DENSE.init(jax.random.key(0), SPEC), equinox.nn.Linear(2, 1, key=jax.random.key(1)))
    of_model = equinox.filter_grad(lambda model: model(X).sum())(model)
    expected = jax.grad(lambda hidden: (plain(hidden, X) @ model.last.weight.T).sum())(model.hidden)
    assert_float32_close(of_model.hidden, expected)


def test_a_flax_model_as_a_layer_of_a_network():
    linen = pytest.importorskip("flax.linen", reason="Flax is not among the test dependencies")
    model = linen.Dense(4)
    as_layer = jbp.from_function(lambda key, x: model.init(key, jnp.zeros((1, *x.shape), x.dtype))["params"],
                                 lambda params, x: model.apply({"params": params}, x))  # fmt: skip
    net = jbp.Network([jbp.Dense(3), as_layer, jbp.Sigmoid(), jbp.Dense(2)], (3,))
    cost, theta = jbp.Cost(net, jbp.losses.HalfSquaredError()), net.init(jax.random.key(0))
    y = jnp.ones((N, 2))
    assert net.layout.names == ("0.w", "0.b", "1.bias", "1.kernel", "3.w", "3.b")
    assert net.layout.num_biases == 3 + 4 + 2
    assert_float32_close(cost.grad(theta, X, y), jax.grad(cost)(theta, X, y))
    per_example = cost.measure(theta, X, y, jbp.PerExampleGradients())[1]
    assert_float32_close(per_example.mean(0), as_numpy(cost.grad(theta, X, y)))
