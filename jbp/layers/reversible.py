"""Reversible couplings: a stream of any depth of which only the end is kept.

    forward    y₁ = x₁ + f(x₂),  y₂ = x₂ + g(y₁)               n times, each with params of its own
    backward   x₂ = y₂ − g(y₁),  x₁ = y₁ − f(x₂)               the inputs, from the outputs
               ε = δ₁ + (δ₂ through g),  δ of x₁ = ε,  δ of x₂ = δ₂ + (ε through f)
    gradient   that of f and g, from their own pairs, stacked `[n, *leaf]`

Saved: the last (y₁, y₂) and the context, because every x follows from them. In reverse f and g run forward once more,
on the true params. Shapes: x₁, y₁ alike and x₂, y₂ alike. Source: Gomez et al. 2017, arXiv:1707.04585.

Each x comes back with rounding errors, which grow with the depth. Measured: the largest relative RMS error of a leaf's
gradient, for f = g = LayerNorm, Dense, GELU, Dense at width 64, beside that of autodiff, which keeps every x:

    couplings    float64    float32 (autodiff)    bfloat16 (autodiff)
    8            2e-15      9e-7 (5e-7)           0.010 (0.012)
    32           5e-15      2e-6 (8e-7)           0.013 (0.015)
    128          2e-14      1e-5 (1e-6)           0.032 (0.018)

So f and g should normalise their x. Without that LayerNorm the stream grows from coupling to coupling, each
subtraction cancels, and the gradient is wrong: by 7e-10 in float64 and by 0.4 in float32 at 32 couplings, by all of it
at 128. `cost.compare` shows it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..errors import check_whole
from ..layer import Context, InputError, Layer, Shape, at, batch_of, described, output_spec, spec_of, wide
from ..reader import stacked
from ..run import step, step_back
from .compose import check_layer


class Coupling(NamedTuple):
    """Params of the couplings, stacked along a first axis."""

    f: Any
    g: Any


@dataclass(frozen=True)
class Reversible:
    """n couplings of f and g, on a tuple (x₁, x₂) or on the two halves of the last axis of one array.

    The output is of the kind of x. f takes x₂ to the shape of x₁, g takes y₁ to the shape of x₂.
    """

    f: Layer
    g: Layer
    n: int

    def __post_init__(self):
        check_layer("Reversible: f", self.f)
        check_layer("Reversible: g", self.g)
        check_whole("Reversible", least=0, n=self.n)

    def init(self, key: PRNGKeyArray, x: Any) -> Coupling:
        x1, x2 = _halves_of_spec(x)

        def one(key: PRNGKeyArray) -> Coupling:
            with at("f"):
                f = self.f.init(jax.random.fold_in(key, 0), x2)
            with at("g"):
                return Coupling(f, self.g.init(jax.random.fold_in(key, 1), x1))

        params = jax.eval_shape(one, key)
        for name, layer, its, given, due in (
            ("f", self.f, params.f, x2, x1),
            ("g", self.g, params.g, x1, x2),
        ):
            with at(name):
                if (y := output_spec(layer, its, given)) != due:
                    to, of = ("x1", "x2") if name == "f" else ("x2", "y1")
                    raise InputError(
                        f"Reversible: {name} is added to {to}, so {name}({of}) must be like {to}, {described(due)} "
                        f"without the batch axis, got {described(y)}. Change the width of {name}."
                    )
        return jax.vmap(one)(jax.random.split(key, self.n))

    def forward(self, params: Coupling, x: Any, context: Context) -> tuple[Any, Any]:
        halves = _halves(x)
        first, second = (half.dtype for half in halves)

        def turn(stream: Any, block: Any) -> tuple[Any, None]:
            (x1, x2), (i, its) = stream, block
            y1 = x1 + wide(step("f", self.f, its.f, x2.astype(second), context.child(i))[0])
            return (y1, x2 + wide(step("g", self.g, its.g, y1.astype(first), context.child(i))[0])), None

        # low precision is added up in float32, so that the x's come back to the last bit of it
        y, _ = jax.lax.scan(turn, tuple(map(wide, halves)), (jnp.arange(self.n), params), length=self.n)
        return _like(x, (y[0].astype(first), y[1].astype(second))), (y, context, Shape.of(halves))

    def backward(self, params: Coupling, feedback: Coupling, saved: Any, delta: Any, read: Coupling) -> tuple[Any, Any]:
        y, context, shape = saved
        (y, context), delta = jax.lax.optimization_barrier(((y, context), delta))
        (_, first), (_, second) = shape.leaves

        def turn(carry: Any, block: Any) -> tuple[Any, Coupling]:
            ((y1, y2), (d1, d2)), (i, its, back, reader) = carry, block
            # reverses y2 = x2 + g(y1)
            of_g, kept = step("g", self.g, its.g, y1.astype(first), context.child(i))
            through, read_g = step_back(self.g, its.g, back.g, kept, d2.astype(second), reader.g)
            x2, d1 = y2 - wide(of_g), d1 + wide(through)
            # reverses y1 = x1 + f(x2)
            of_f, kept = step("f", self.f, its.f, x2.astype(second), context.child(i))
            through, read_f = step_back(self.f, its.f, back.f, kept, d1.astype(first), reader.f)
            x1, d2 = y1 - wide(of_f), d2 + wide(through)
            return ((x1, x2), (d1, d2)), Coupling(read_f, read_g)

        carry = y, tuple(map(wide, _halves(delta)))
        blocks = jnp.arange(self.n), params, feedback, read
        (_, (d1, d2)), readings = jax.lax.scan(turn, carry, blocks, length=self.n, reverse=True)
        return _like(delta, (d1.astype(first), d2.astype(second))), stacked(read, readings)


def _halves(x: Any, shown: Any = None) -> tuple[Any, Any]:
    """(x₁, x₂) of a batch. Raises `InputError` where there are no two, about `shown` if given."""
    if isinstance(x, (tuple, list)):
        if len(x) == 2 and all(hasattr(half, "dtype") and jnp.issubdtype(half.dtype, jnp.floating) for half in x):
            return x[0], x[1]
    elif hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) and x.ndim > 1 and x.shape[-1] % 2 == 0:
        width = x.shape[-1] // 2
        return x[..., :width], x[..., width:]
    raise InputError(
        "Reversible: expected a tuple (x1, x2) of float arrays, or one of an even last axis [..., 2 W], got "
        f"{described(x if shown is None else shown)}. Make the width even, or a tuple by Fork([f, g])."
    )


def _halves_of_spec(x: Any) -> tuple[Any, Any]:
    """The same of a spec, which has no batch axis."""
    return spec_of(jax.eval_shape(lambda batch: _halves(batch, x), batch_of(x)))


def _like(x: Any, halves: tuple[Any, Any]) -> Any:
    """The two halves in the structure of x."""
    return type(x)(halves) if isinstance(x, (tuple, list)) else jnp.concatenate(halves, -1)
