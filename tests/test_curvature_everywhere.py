"""Curvature through Checkpoint and `from_model`, with the examples cut over 8 devices, and computed in bfloat16."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import as_numpy, assert_close, cast, draw
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jbp

N = 8
BLOCK = jbp.Residual(jbp.Sequential([jbp.Dense(3), jbp.Tanh()]))


def apply(p: Any, x: Any) -> Any:
    """A model of somebody's, in the dtype of its x; its second kernel is used transposed."""
    w, b, v = (p[name].astype(x.dtype) for name in "wbv")
    return jnp.tanh(x @ w + b[None]) @ v.T


def cost_of(kind: str, compute: Any = None) -> jbp.Cost:
    if kind == "checkpoint":
        layers = [jbp.Repeat(jbp.Checkpoint(BLOCK), 2), jbp.Dense(2)]
        net = jbp.Network(layers, (3,), **({} if compute is None else {"compute_dtype": compute}))
    else:
        shapes = {"w": (3, 12), "b": (12,), "v": (2, 12)}
        params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
        in_dtype = apply if compute is None else lambda p, x: apply(p, x.astype(compute))
        net = jbp.from_model(in_dtype, params, (3,))
    return jbp.Cost(net, jbp.losses.HalfSquaredError())


def drawn(cost: jbp.Cost) -> tuple[Any, Any, Any]:
    """(θ, x, y) of numbers that float32 holds."""
    shapes = ((cost.layout.size,), (N, 3), (N, 2))
    given = tuple(draw(i, jax.ShapeDtypeStruct(shape, jnp.float32)) for i, shape in enumerate(shapes))
    return cast(given, cost.network.dtype)


def answers(cost: jbp.Cost, theta: Any, x: Any, y: Any) -> Any:
    v = jnp.cos(jnp.arange(theta.size, dtype=theta.dtype))
    return {
        "readouts": cost.measure(theta, x, y, jbp.DiagonalGGN(), jbp.KroneckerFactors())[1],
        "hvp": cost.hvp(theta, x, y, v),
        "ggnvp": cost.ggnvp(theta, x, y, v),
        "ntk": jbp.ntk(cost.network, theta, x, trace=True),
    }


def by_definition(cost: jbp.Cost, theta: Any, x: Any, y: Any) -> Any:
    """The same by autodiff: of half a squared error the GGN is JᵀJ/N. Of the factors, those of the last bias's."""
    v = jnp.cos(jnp.arange(theta.size, dtype=theta.dtype))
    J = jax.jacobian(lambda theta: cost.network(theta, x))(theta).astype(theta.dtype)
    return {
        "diagonal": (J**2).sum((0, 1)) / N,
        "hvp": jax.jvp(jax.grad(lambda theta: cost(theta, x, y)), (theta,), (v,))[1],
        "ggnvp": jnp.einsum("ncp,ncq,q->p", J, J, v) / N,
        "ntk": jnp.einsum("ncp,mcp->nm", J, J) / J.shape[1],
        "bias": jnp.einsum("nci,ncj->ij", *(2 * [J[..., bias_of(cost)]])) / N,
    }


def bias_of(cost: jbp.Cost) -> slice:
    name = next(name for name in cost.layout.names if name.endswith("b") and ".layer" not in name)
    i = cost.layout.names.index(name)
    return slice(cost.layout.offsets[i], cost.layout.offsets[i] + cost.layout.shapes[i][0])


def as_defined(cost: jbp.Cost, found: Any) -> Any:
    diagonal, factors = found["readouts"]
    name = next(name for name in factors if name.endswith("b") and ".layer" not in name)
    return {"diagonal": diagonal, "bias": factors[name].G, **{key: found[key] for key in ("hvp", "ggnvp", "ntk")}}


kinds = pytest.mark.parametrize("kind", ["checkpoint", "model"])


@kinds
def test_through_checkpoint_and_a_model(kind: str, x64: None):
    cost = cost_of(kind)
    args = drawn(cost)
    assert_close(as_defined(cost, answers(cost, *args)), by_definition(cost, *args), 1e-11)


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@kinds
def test_examples_cut_over_a_mesh_give_the_same(kind: str, axes: AxisType, x64: None):
    cost = cost_of(kind)
    theta, x, y = drawn(cost)
    due = as_numpy(answers(cost, theta, x, y))
    with jax.set_mesh(mesh := jax.make_mesh((8,), ("d",), axis_types=(axes,))):
        put = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))
        assert_close(as_numpy(answers(cost, put(theta, P()), put(x, P("d")), put(y, P("d")))), due)


@kinds
def test_in_bfloat16_it_errs_no_more_than_autodiff_does(kind: str):
    """At most twice autodiff's own error against float64, or 4 ε of the answer's scale; all answers are float32."""
    narrow = cost_of(kind, jnp.bfloat16)
    args = drawn(narrow)
    found, oracle = as_defined(narrow, answers(narrow, *args)), by_definition(narrow, *args)
    assert {a.dtype for a in jax.tree.leaves(found)} == {np.dtype("float32")}
    with jax.enable_x64(True):
        wide = cost_of(kind)
        true = by_definition(wide, *cast(args, jnp.float64))
    for name, right in as_numpy(true).items():
        off = lambda a, right=right: np.abs(np.asarray(a, np.float64) - right).max()
        allowed = max(2 * off(oracle[name]), 4 * float(jnp.finfo(jnp.bfloat16).eps) * np.abs(right).max())
        assert off(found[name]) <= allowed, name
