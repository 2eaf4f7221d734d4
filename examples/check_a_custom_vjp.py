"""Somebody's custom_vjp, wrong in one place, and what `jbp.compare_vjp` says of it.

LayerNorm with a hand-written backward that forgets one of the two terms through which x enters by its statistics; deep
inside a model, called twice. Each call is compared on the values and cotangents that really reach it.

    python examples/check_a_custom_vjp.py
"""

import jax
import jax.numpy as jnp

import jbp


def statistics(x):
    mean = x.mean(-1, keepdims=True)
    return mean, jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)


@jax.custom_vjp
def layer_norm(x, gain):
    mean, scale = statistics(x)
    return (x - mean) * scale * gain


def forward(x, gain):
    return layer_norm(x, gain), (x, gain)


def backward(saved, delta):
    x, gain = saved
    mean, scale = statistics(x)
    normed, g = (x - mean) * scale, delta * gain
    wrong = scale * (g - normed * (g * normed).mean(-1, keepdims=True))  # − g.mean(−1) is missing
    return wrong, (delta * normed).sum(0)


layer_norm.defvjp(forward, backward)


def model(params, x):
    for w, gain in params:
        x = jnp.tanh(layer_norm(x @ w, gain))
    return (x**2).mean()


def main():
    keys = jax.random.split(jax.random.key(0), 3)
    params = [(jax.random.normal(key, (6, 6)), jnp.ones(6)) for key in keys[:2]]
    report = jbp.compare_vjp(model, params, jax.random.normal(keys[2], (8, 6)), timing=False, checks=False)
    print(report)
    wrong = [call for call in report.calls if not call.ok]
    assert not report.ok
    assert [call.name for call in wrong] == ["layer_norm#2", "layer_norm#1"]  # in the order of the reverse pass
    assert wrong[0].worst.name == "x"
    assert "missing the term along axis 1" in wrong[0].worst.pattern
    return report


if __name__ == "__main__":
    main()
