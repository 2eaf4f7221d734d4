"""Weight gradients of bfloat16 layers, added up over 2,000 steps: jbp's err less than autodiff's of the same product.

    jbp        its pairs multiply in bfloat16, add up in float32, and return float32
    autodiff   jax.grad of the bfloat16 product: rounded to bfloat16 before the float32 θ meets it
    mixed      jax.grad of bfloat16 x times float32 θ, `preferred_element_type=float32`: no product is bfloat16's

All are compared with float64 on the same bfloat16 numbers: the error of the accumulated sum as a part of its norm. The
mixed product is as exact as jbp's, and one operand of each of its products is float32: none runs as bfloat16 does.

    python bench/bfloat16_weight_gradients.py [--quick]
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout is measured, installed or not

import jbp

STEPS, BATCH, INPUTS, OUTPUTS = 2000, 64, 128, 64
LEAST = 0.1  # of autodiff's error, which ours may be at most


@jax.jit
def drawn(i: Any) -> tuple[jax.Array, jax.Array]:
    """x and δ of a step: of a mean that is not 0, so that the sum of many gradients is a gradient and not noise."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), i))
    x, delta = (jax.random.normal(key, (BATCH, n)) for key, n in zip(keys, (INPUTS, OUTPUTS), strict=True))
    return (x + 0.5).astype(jnp.bfloat16), (delta + 0.1).astype(jnp.bfloat16)


@partial(jax.jit, static_argnums=0)
def total(way: str, steps: Any) -> jax.Array:
    """The sum of the gradients of a kernel whose θ is float32, in float32."""
    dense = jbp.Dense(OUTPUTS, bias=False)
    w = jnp.ones((INPUTS, OUTPUTS))

    def add(i: Any, total: jax.Array) -> jax.Array:
        x, delta = drawn(i)
        if way == "jbp":
            params = dense.init(jax.random.key(0), jax.ShapeDtypeStruct((INPUTS,), jnp.bfloat16))
            _, back = jbp.run(dense, params._replace(w=w.astype(jnp.bfloat16)), x)
            return total + back(delta, jbp.read_gradient)[1].w
        if way == "mixed":
            product = lambda w: jax.lax.dot(x, w, preferred_element_type=jnp.float32).astype(jnp.bfloat16)
        else:
            product = lambda w: x @ w.astype(jnp.bfloat16)
        return total + jax.vjp(product, w)[1](delta)[0]

    return jax.lax.fori_loop(0, steps, add, jnp.zeros_like(w))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 steps")
    steps = 20 if parser.parse_args().quick else STEPS
    true = np.zeros((INPUTS, OUTPUTS))
    for i in range(steps):
        x, delta = (np.asarray(a.astype(jnp.float32), np.float64) for a in drawn(i))
        true += x.T @ delta
    ways = ("jbp", "autodiff", "mixed")
    error = {way: np.linalg.norm(total(way, steps) - true) / np.linalg.norm(true) for way in ways}
    for way, found in error.items():
        print(f"{way:9} off by {found:.2e} of the sum of {steps:,} gradients")
    ok = error["jbp"] <= LEAST * error["autodiff"]
    print(f"jbp's error is {error['jbp'] / error['autodiff']:.4f} of autodiff's: {'holds' if ok else 'DOES NOT HOLD'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
