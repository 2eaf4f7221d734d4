"""jbp's layers inside Flax and Equinox, and a Flax module inside a jbp network."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp

import jbp

BLOCK = jbp.Residual(jbp.Sequential([jbp.Dense(32), jbp.GELU(), jbp.Dense(16)]))
SPEC = jax.ShapeDtypeStruct((16,), jnp.float32)


class InFlax(nn.Module):
    @nn.compact
    def __call__(self, x):
        params = self.param("block", lambda key: BLOCK.init(key, SPEC))
        return nn.Dense(10)(jbp.as_function(BLOCK)(params, x))  # differentiated by the block's own backward


class InEquinox(eqx.Module):
    params: object
    linear: eqx.nn.Linear

    def __init__(self, key):
        self.params = BLOCK.init(key, SPEC)
        self.linear = eqx.nn.Linear(16, 10, key=key)

    def __call__(self, x):
        return jax.vmap(self.linear)(jbp.as_function(BLOCK)(self.params, x))


def main():
    x = jax.random.normal(jax.random.key(0), (8, 16))

    model = InFlax()
    variables = model.init(jax.random.key(1), x)
    gradient = jax.grad(lambda v: jnp.sum(model.apply(v, x) ** 2))(variables)
    print("in Flax:", jax.tree.map(jnp.shape, gradient["params"]["block"]))

    gradient = eqx.filter_grad(lambda model: jnp.sum(model(x) ** 2))(InEquinox(jax.random.key(1)))
    print("in Equinox:", jax.tree.map(jnp.shape, gradient.params))

    module = nn.Dense(16)
    flax_layer = jbp.from_function(lambda key, x: module.init(key, jnp.zeros((1, *x.shape), x.dtype)), module.apply)
    network = jbp.Network([flax_layer, BLOCK, jbp.Dense(10)], input=(16,))
    cost = jbp.Cost(network, jbp.losses.SoftmaxCrossEntropy())
    report = cost.compare(network.init(jax.random.key(2)), x, jnp.arange(8))
    print(report)
    assert report.ok
    return report


if __name__ == "__main__":
    main()
