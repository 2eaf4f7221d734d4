"""Ten models of other libraries go through `from_model` untouched: what single examples say is what vmap(grad) says."""

import jax
import jax.numpy as jnp
import pytest
from cases import assert_close, draw
from published_models import MODELS, Published

import jbp
from jbp import losses

N = 3


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_published_model_goes_through_untouched(model: Published, x64):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        apply, params = model.make()
        net = jbp.from_model(apply, params, input=model.x, per_example=model.per_example)
        assert set(net.forms.values()) == model.forms
        cost, theta = jbp.Cost(net, losses.HalfSquaredError()), net.layout.flatten(params)
        batch = lambda spec: jax.ShapeDtypeStruct((N, *spec.shape), spec.dtype)
        x = draw(1, jax.tree.map(batch, model.x))
        y = draw(2, batch(net.output))

        def by_definition(theta, x, y):
            own = apply if model.per_example else lambda params, x: apply(params, jax.tree.map(lambda a: a[None], x))[0]
            value = lambda theta, x, y: jnp.square(own(net.layout.unflatten(theta), x) - y).sum() / 2
            g = jax.vmap(jax.grad(value), (None, 0, 0))(theta, x, y)
            n2 = jnp.square(g).sum(1)
            limit = jnp.sqrt(jnp.median(n2))
            return g, n2, limit, jnp.minimum(1, limit / jnp.sqrt(n2)) @ g

        g, n2, limit, clipped = jax.jit(by_definition)(theta, x, y)
        asked = jbp.Gradient(), jbp.PerExampleGradients(), jbp.SquaredNorms(), jbp.ClippedSum(float(limit))
        found = jax.jit(lambda *args: cost.measure(*args, *asked)[1])(theta, x, y)
        assert_close(found, (g.mean(0), g, n2, clipped), 1e-10)
