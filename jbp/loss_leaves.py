"""The leaves of a loss that has parameters: its own, behind the network's in θ, and those tied to the network's.

A tied leaf is one leaf with one pair of its uses. The loss reads it first; then the network's reader reads both uses
together, or adds two readings where such readings add up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .layer import InputError, Layer, at, inferred
from .layout import Layout
from .network import Network
from .reader import first_use, last_use, read_nothing
from .symbols import LOSS


def input_of_loss(network: Network) -> tuple[Any, None]:
    """What a loss's `init` gets as x: (the output's spec in θ's dtype, None), since y is not known yet."""

    def in_theta(s: Any) -> Any:
        floating = jnp.issubdtype(s.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(s.shape, network.dtype if floating else s.dtype)

    return jax.tree.map(in_theta, network.output), None


@dataclass(frozen=True)
class LossLeaves:
    """The leaves of a loss: its own, which belong to θ, and those that are tied to leaves of the network.

    `ties`: for each leaf of the loss None, or (number of the network's leaf, whether it is transposed).
    """

    treedef: Any  # of all params of the loss
    ties: tuple[tuple[int, bool] | None, ...]
    shapes: tuple[Any, ...]  # specs of all leaves
    network: Layout

    @classmethod
    def of(cls, network: Network, loss: Layer, tied: Mapping[str, str]) -> "LossLeaves":
        """Raises `InputError` where a tie names no leaf or joins leaves of different shapes."""
        with at("loss"), inferred("init"):
            specs = jax.eval_shape(lambda key: loss.init(key, input_of_loss(network)), jax.random.key(0))
        paths, treedef = jax.tree_util.tree_flatten_with_path(specs)
        names = [LOSS + jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
        layout = network.layout
        for name, to in tied.items():
            if name not in names or _untransposed(to, layout) not in layout.names:
                raise InputError(
                    f"Cost: tied={{{name!r}: {to!r}}} must name a loss's leaf ({', '.join(names) or 'it has none'}) "
                    f"and one of the network ({', '.join(layout.names)}), or its transpose as in '0.w.T'."
                )
        ties: list[tuple[int, bool] | None] = []
        for name, (_, spec) in zip(names, paths, strict=True):
            if name not in tied:
                ties.append(None)
                continue
            to = _untransposed(tied[name], layout)
            i, flipped = layout.names.index(to), to != tied[name]
            shape = layout.shapes[i][::-1] if flipped else layout.shapes[i]
            if shape != spec.shape:
                raise InputError(
                    f"Cost: tied={{{name!r}: {tied[name]!r}}} joins shapes {list(spec.shape)} and {list(shape)}. "
                    "Tie leaves of one shape; '.T' transposes the network's."
                )
            ties.append((i, flipped))
        return cls(treedef, tuple(ties), tuple(spec for _, spec in paths), layout)

    @property
    def own(self) -> int:
        """How many leaves of its own the loss has."""
        return self.ties.count(None)

    @property
    def spec(self) -> Any:
        """The specs of the loss's own leaves; None where one is tied."""
        return self.treedef.unflatten(
            [s if tie is None else None for s, tie in zip(self.shapes, self.ties, strict=True)]
        )

    def filled(self, network: Any, own: list[Any]) -> Any:
        """All params of the loss, those that are tied from the network's."""
        leaves, rest = self.network.treedef.flatten_up_to(network), iter(own)

        def of(i: int, transposed: bool) -> Any:  # a leaf that is held fixed is so in each of its uses
            leaf = leaves[i] if self.network.trainable[i] else jax.lax.stop_gradient(leaves[i])
            return leaf.T if transposed else leaf

        return self.treedef.unflatten([next(rest) if tie is None else of(*tie) for tie in self.ties])

    def readers(self, network: Any, own: list[Any]) -> Any:
        """Readers of all leaves of the loss: a tied leaf's is that of its first use."""
        leaves, rest = self.network.treedef.flatten_up_to(network), iter(own)
        of = lambda i, transposed: first_use(leaves[i], transposed) if self.network.trainable[i] else read_nothing
        return self.treedef.unflatten([next(rest) if tie is None else of(*tie) for tie in self.ties])

    def last(self, network: Any, readings: Any) -> Any:
        """The network's readers, where a tied leaf's reads all its uses, from the readings of the loss."""
        leaves = self.network.treedef.flatten_up_to(network)
        for tie, reading in zip(self.ties, self.treedef.flatten_up_to(readings), strict=True):
            if tie is not None and self.network.trainable[tie[0]]:
                leaves[tie[0]] = last_use(leaves[tie[0]], reading, self.network.shapes[tie[0]])
        return self.network.treedef.unflatten(leaves)

    def without_ties(self, readings: Any) -> Any:
        """The readings of the loss's own leaves; None where one is tied."""
        leaves = zip(self.treedef.flatten_up_to(readings), self.ties, strict=True)
        return self.treedef.unflatten([reading if tie is None else None for reading, tie in leaves])


def _untransposed(name: str, layout: Layout) -> str:
    return name if name in layout.names else name.removesuffix(".T")
