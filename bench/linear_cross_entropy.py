"""A projection to 50k classes with its cross-entropy, value and gradients: the logits never exist as a whole.

8 × 256 positions of width 256, 50,304 classes, float32; every program returns the value and the gradients of the kernel
and of its input. jbp.losses.LinearCrossEntropy makes both in one sweep over chunks of positions, of three products; its
peers are jax.grad of the product and the cross-entropy as they are mostly written, with the kernel [width, classes] or,
as a table that is tied has it, [classes, width], whose gradient XLA is faster at. Beside them stands jax.grad of jbp's
own forward, as it is, which keeps the logits of every chunk, and with each chunk under jax.checkpoint, which computes
them again and so takes four products.
"""

from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import optax

import jbp

CHUNK = 128  # positions whose logits exist at a time
OURS, TIED = "jbp", "jbp, tied to a table [classes, width]"
SAME, CHECKPOINTED = "jax.grad: the same forward", "jax.grad: the same forward, checkpointed"


def usual() -> dict[str, Callable]:
    """(w, h, y) -> the mean over positions, as people write it."""

    def by_hand(w, h, y):
        z = h @ w
        return (jax.nn.logsumexp(z, -1) - jnp.take_along_axis(z, y[..., None], -1)[..., 0]).mean()

    def by_log_softmax(w, h, y):
        return -jnp.take_along_axis(jax.nn.log_softmax(h @ w), y[..., None], -1).mean()

    def by_optax(w, h, y):
        return optax.softmax_cross_entropy_with_integer_labels(h @ w, y).mean()

    ways: dict[str, Callable] = {"log-sum-exp": by_hand, "log_softmax": by_log_softmax, "optax": by_optax}
    return ways | {f"{name}, [classes, width]": lambda w, h, y, f=f: f(w.T, h, y) for name, f in ways.items()}


def measure(report: harness.Report) -> None:
    examples, positions, width, classes = (2, 8, 16, 100) if report.quick else (8, 256, 256, 50_304)
    loss = jbp.losses.LinearCrossEntropy(classes, CHUNK)
    keys = jax.random.split(jax.random.key(0), 3)
    w = 0.05 * jax.random.normal(keys[0], (width, classes))
    h = jax.random.normal(keys[1], (examples, positions, width))
    y = jax.random.randint(keys[2], (examples, positions), 0, classes)
    like = loss.init(keys[0], (jax.ShapeDtypeStruct(h.shape[1:], h.dtype), None))
    context, share = jbp.Context(), 1 / y.size

    def ours(w: Any, h: Any, y: Any) -> Any:
        params = like._replace(w=w)
        read = jbp.readers(params, jbp.read_gradient)
        c, (delta_h, _), reading = loss.turn(params, params, (h, y), jnp.full(examples, share), read, context)
        return c.sum() * share, (reading.w, delta_h)

    turned_over = jbp.Reader(lambda pair, own: pair.transposed().gradient(), lambda each: each, adds=True)

    def tied(table: Any, h: Any, y: Any) -> Any:
        """As a cost does it that is tied to a table: the kernel is its transpose, and so is what is read."""
        params = like._replace(w=table.T)
        read = like._replace(w=turned_over)
        c, (delta_h, _), reading = loss.turn(params, params, (h, y), jnp.full(examples, share), read, context)
        return c.sum() * share, (reading.w, delta_h)

    def same(w: Any, h: Any, y: Any) -> Any:
        return loss.forward(like._replace(w=w), (h, y), context)[0].sum() * share

    def checkpointed(w: Any, h: Any, y: Any) -> Any:
        t = min(positions, CHUNK // examples)
        cut = lambda a: jnp.moveaxis(a.reshape(examples, -1, t, *a.shape[2:]), 1, 0)
        chunk = jax.checkpoint(lambda part: same(w, *part))
        return jax.lax.map(chunk, (cut(h), cut(y))).sum()

    of = lambda f, w=w: harness.compiled(jax.value_and_grad(f, (0, 1)), w, h, y)
    peers = {f"jax.grad: {way}": of(f, jnp.array(w.T) if "[" in way else w) for way, f in usual().items()}
    beside = {SAME: of(same), CHECKPOINTED: of(checkpointed)}
    mine = {OURS: harness.compiled(ours, w, h, y), TIED: harness.compiled(tied, jnp.array(w.T), h, y)}
    expected = next(iter(peers.values())).call()
    named = {name: rival.call() for name, rival in {**mine, **peers, **beside}.items()}
    turned = {name: (c, (of_w.T, of_h)) for name, (c, (of_w, of_h)) in named.items() if "[" in name}
    harness.agree(expected, named | turned, 1e-4)

    title = f"{examples} × {positions} positions of width {width}, {classes:,} classes"
    race = report.race(title, mine, peers, beside)
    what = f"projection with cross-entropy, {title}"
    report.row(what, "`jax.grad`, the fastest of six", race, OURS, time_at_most=0.88, memory_at_most=0.1)
    report.row("the same", "`jax.grad` of the same forward", race, OURS, SAME, time_at_most=0.8)
    report.row("the same", "and with each chunk under `jax.checkpoint`", race, OURS, CHECKPOINTED, time_at_most=0.8)
    report.row("the same, tied to a table [classes, width]", "`jax.grad`, the fastest of six", race, TIED)


if __name__ == "__main__":
    harness.run(__doc__, measure, rounds=9)
