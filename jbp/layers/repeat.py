"""n equal blocks, one after another, whose params are stacked along a first axis.

    forward    x_{i+1} = f(θ_i, x_i), i = 0 … n − 1; y = x_n
    backward   δ_i = (δ_{i+1} through f at θ_i), i = n − 1 … 0; δ of x = δ_0
    gradient   ∂C/∂θ `[n, *leaf]`: that of each block from its own pair, stacked

Saved: what `step` keeps of each turn, stacked. Both ways are one `lax.scan`, so a program of 64 blocks is as long as
that of 2; with `unroll` both are n copies of the block, which XLA may fuse and overlap, and compiles n times as long.
Shapes: x and y alike, of any structure. A turn's noise is its own: block i gets `context.child(i)`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..errors import check_whole
from ..layer import Context, Layer, at
from ..reader import stacked
from ..run import step, step_back
from .compose import Inner, check_keeps_shape, check_layer
from .settings import check_flags


@dataclass(frozen=True)
class Repeat:
    """`layer` n times, each with params of its own; n = 0 is the identity. The leaves are the layer's, `[n, *leaf]`.

    `unroll`: n copies of the block in place of a loop, with the same leaves and the same noise.
    """

    layer: Layer
    n: int
    unroll: bool = False

    def __post_init__(self):
        check_layer("Repeat: layer", self.layer)
        check_whole("Repeat", least=0, n=self.n)
        check_flags("Repeat", unroll=self.unroll)

    def init(self, key: PRNGKeyArray, x: Any) -> Inner:
        of = lambda key: self.layer.init(key, x)
        with at("layer"):
            block = jax.eval_shape(of, key)
            check_keeps_shape("Repeat", self.layer, block, x, "as it enters the next turn")
            return Inner(jax.vmap(of)(jax.random.split(key, self.n)))

    @property
    def _unrolled(self) -> bool:
        return self.unroll and self.n > 0

    def forward(self, params: Inner, x: Any, context: Context) -> tuple[Any, Any]:
        def turn(x: Any, block: Any) -> tuple[Any, Any]:
            i, its = block
            return step("layer", self.layer, its, x, context.child(i))

        blocks = jnp.arange(self.n), params.layer
        if not self._unrolled:
            return jax.lax.scan(turn, x, blocks, length=self.n)
        kept = []
        for i in range(self.n):
            x, saved = turn(x, _block(i, blocks))
            kept.append(saved)
        return x, kept

    def backward(self, params: Inner, feedback: Inner, saved: Any, delta: Any, read: Inner) -> tuple[Any, Inner]:
        def turn(delta: Any, block: Any) -> tuple[Any, Any]:  # inductive step, from block i + 1 to block i
            (its, back, reader), kept = block
            return step_back(self.layer, its, back, kept, delta, reader)

        blocks = params.layer, feedback.layer, read.layer
        if not self._unrolled:
            delta, readings = jax.lax.scan(turn, delta, (blocks, saved), length=self.n, reverse=True)
        else:
            each: list[Any] = [None] * self.n
            for i in reversed(range(self.n)):
                delta, each[i] = turn(delta, (_block(i, blocks), saved[i]))
            readings = jax.tree.map(lambda *parts: jnp.stack(parts), *each)
        return delta, Inner(stacked(read.layer, readings))


def _block(i: int, blocks: Any) -> Any:
    """Block i of what is stacked, readers with what they own included."""
    return jax.tree.map(lambda a: a[i], blocks)
