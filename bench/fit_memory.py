"""What jbp.fit keeps to go back to the last θ of a finite cost costs at most one more state.

100 million parameters, 6 layers of 4096, float32, Adam: a state, θ and the optimiser's two moments, is 1.2 GB. Each way
descends in a process of its own, and what counts is how much the process grows, at its peak, over what it holds before:
JAX, θ and the batch. The peer is a compiled step of jax.grad and optax with donated buffers, called in a loop.
`python bench/fit_memory.py`; a number behind it is another width.
"""

import os
import resource
import subprocess
import sys
from functools import partial

WIDTH, LAYERS, BATCH, STEPS = 4096, 6, 16, 8
WAYS = ("jbp", "jbp, the way back renewed", "optax")


def peak() -> int:
    """Bytes that the process has held at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def grown(way: str, width: int) -> tuple[int, int]:
    """(bytes by which the process grows as it descends, bytes of one state)."""
    import jax
    import jax.numpy as jnp
    import optax

    import jbp
    from jbp import descent

    cost = jbp.Cost(jbp.mlp(*[width] * (LAYERS + 1)), jbp.losses.HalfSquaredError())
    adam, theta = optax.adam(1e-3), jnp.zeros(cost.layout.size) + 1e-3
    x = jnp.ones((BATCH * STEPS, width))
    jax.block_until_ready((theta, x))
    before = peak()
    if way == "optax":

        @partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state, x):
            def C(params):
                a = x
                for layer in params:
                    a = jax.nn.sigmoid(a @ layer.w + layer.b) if layer else a
                return 0.5 * jnp.square(a - x).sum(1).mean()

            updates, state = adam.update(jax.grad(C)(params), state, params)
            return optax.apply_updates(params, updates), state

        params = cost.layout.unflatten(theta)
        state = adam.init(params)
        for i in range(0, len(x), BATCH):
            params, state = step(params, state, x[i : i + BATCH])
        jax.block_until_ready(params)
    else:
        if way.endswith("renewed"):  # after each step, instead of after ten seconds
            descent.BACK_SECONDS, descent.BACK_STEPS = 0.0, 1
        jbp.fit(cost, theta, (x, x), optimizer=adam, batch_size=BATCH)
    return peak() - before, 3 * theta.nbytes


def main(words: list[str]) -> int:
    width = int(words[-1]) if words and words[-1].isdigit() else WIDTH
    if words and words[0] in WAYS:
        print(*grown(words[0], width))
        return 0
    sizes, state = {}, 0
    for way in WAYS:
        done = subprocess.run(
            [sys.executable, __file__, way, str(width)], capture_output=True, text=True, check=True, env=os.environ
        )
        sizes[way], state = map(int, done.stdout.split())
        print(
            f"{way:28} {sizes[way] / 1e9:6.2f} GB, {sizes[way] / state:.2f} states of {state / 1e9:.2f} GB", flush=True
        )
    more = [(sizes[way] - sizes["optax"]) / state for way in WAYS[:2]]
    ok = max(more) <= 1.05
    said = "at most one" if ok else "TOO MUCH"
    print(f"jbp.fit holds {more[0]:.2f}, renewed {more[1]:.2f} states more than optax: {said}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
