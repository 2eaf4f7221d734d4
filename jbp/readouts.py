"""Readouts: what is read at each parameter. A few lines each, over the primitives of the pair.

A readout says what to read off one leaf's pair, and how the leaves' readings become one result. `reverse.Cost.measure`
takes any number of them through one reverse pass; what nobody reads is not computed.

Pairs carry the unscaled cost C_n of each example. `weights: [N]` are the factors of C_n in the reduced cost
C = Σ_n weights_n C_n (1/N for a mean), so that Σ_n weights_n g_n is its gradient.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from .layout import Layout, joined
from .pair import Pair, Stack


@runtime_checkable
class Readout(Protocol):
    """A frozen, hashable dataclass."""

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Any:
        """One leaf's reading."""

    def stack(self, readings: Any) -> Any:
        """The reading of a leaf of L stacked blocks, from each block's own, stacked by a loop along a first axis L."""

    def collect(self, layout: Layout, readings: list[Any]) -> Any:
        """The result from all leaves' readings, in the layout's order."""


@dataclass(frozen=True)
class Gradient:
    """∇C = Σ_n weights_n g_n as a vector `[P]`: the gradient of the reduced cost."""

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Float[Array, "*leaf"]:
        return pair.weighted_gradient(weights)

    def stack(self, readings: Float[Array, "L *block"]) -> Float[Array, "*leaf"]:
        return readings

    def collect(self, layout: Layout, readings: list[Any]) -> Float[Array, "P"]:
        return joined([g.ravel() for g in readings])


@dataclass(frozen=True)
class Leaves(Gradient):
    """The gradient by leaves, in the structure of the params."""

    def collect(self, layout: Layout, readings: list[Any]) -> Any:
        return layout.treedef.unflatten(readings)


@dataclass(frozen=True)
class PerExampleGradients:
    """g_n = ∇C_n as `[N, P]`, of the unscaled cost of each example. Holds N·P numbers."""

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Float[Array, "N *leaf"]:
        return pair.per_example()

    def stack(self, readings: Float[Array, "L N *block"]) -> Float[Array, "N *leaf"]:
        return jnp.moveaxis(readings, 0, 1)

    def collect(self, layout: Layout, readings: list[Any]) -> Float[Array, "N P"]:
        return jnp.concatenate([g.reshape(g.shape[0], -1) for g in readings], axis=1)


@dataclass(frozen=True)
class SquaredNorms:
    """‖g_n‖² as `[N]`, of the unscaled cost of each example; no g_n is formed where the pair has a shorter way.

    Goodfellow 2015, arXiv:1510.01799. In at least float32.
    """

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Float[Array, "N"]:
        return pair.squared_norms()

    def stack(self, readings: Float[Array, "L N"]) -> Float[Array, "N"]:
        return readings.sum(0)

    def collect(self, layout: Layout, readings: list[Any]) -> Float[Array, "N"]:
        return jnp.stack(readings).sum(0)


@dataclass(frozen=True)
class Pairs:
    """The pairs themselves, by the name of the leaf."""

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Pair:
        return pair

    def stack(self, readings: Pair) -> Pair:
        return Stack(readings)

    def collect(self, layout: Layout, readings: list[Any]) -> dict[str, Pair]:
        return dict(zip(layout.names, readings, strict=True))


@dataclass(frozen=True)
class Reader:
    """The `read` of several readouts at once: what `backward` calls on each leaf's pair.

    A layer that loops over blocks calls it inside the loop, and `stack` on what the loop has stacked.
    """

    readouts: tuple[Readout, ...]
    weights: Float[Array, "N"]

    def __call__(self, pair: Pair) -> tuple[Any, ...]:
        return tuple(readout.read(pair, self.weights) for readout in self.readouts)

    def stack(self, readings: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(readout.stack(reading) for readout, reading in zip(self.readouts, readings, strict=True))


@dataclass(frozen=True)
class Summed:
    """The `read` that gives the gradient of Σ_n C_n alone."""

    def __call__(self, pair: Pair) -> Any:
        return pair.gradient()

    def stack(self, gradients: Any) -> Any:
        return gradients


def collect(readouts: tuple[Readout, ...], layout: Layout, readings: Any) -> tuple[Any, ...]:
    """Each readout's result from readings in the structure of the params."""
    leaves = layout.treedef.flatten_up_to(readings)
    return tuple(readout.collect(layout, [leaf[i] for leaf in leaves]) for i, readout in enumerate(readouts))
