"""Tied leaves: one leaf that stands at several places of a layer.

    forward    y = f(θ), where θ has the leaf s also at t: θ_t = s, or sᵀ
    backward   that of f; δ goes through each use
    gradient   ∂C/∂s = Σ over the uses; the pair of s is `Several` of theirs, so that norms have the cross terms

Saved: what f saves. The leaf at t is no parameter: params hold None there. Each use is read where it stands, and its
reading added to the others' if such readings add up (gradients do), so that a tie keeps nothing; else the pairs are
kept, and s is read once they are all there (norms). Source: Press & Wolf 2017, arXiv:1608.05859.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..layer import Context, InputError, Layer, at
from ..layout import Fixed
from ..reader import all_uses, first_use, read_nothing
from ..run import Kept, step, step_back
from .compose import Inner, check_layer


def _is_none(node: Any) -> bool:
    return node is None


def _named(tree: Any, is_leaf: Any = _is_none) -> tuple[dict[str, Any], Any]:
    """({name: leaf}, structure) of params, None among the leaves."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}, treedef


def _fixed(tree: Any) -> tuple[str, ...]:
    """Where params that are held fixed begin, as in `0.`."""
    nodes, _ = _named(tree, lambda node: isinstance(node, Fixed))
    return tuple(f"{name}." if name else "" for name, node in nodes.items() if isinstance(node, Fixed))


@dataclass(frozen=True)
class Tied:
    """`layer` with ties {a leaf: the leaf that stands in its place}, as in `{"2.w": "0.table.T"}`.

    Names are those of the layer's own layout; `.T` is the transpose of a leaf of two axes. Several leaves may be tied
    to one. Inside a loop, the same leaf of another loop may stand, block by block, but no transpose.
    """

    layer: Layer
    ties: Any

    def __post_init__(self):
        check_layer("Tied: layer", self.layer)
        pairs = tuple(self.ties.items()) if isinstance(self.ties, Mapping) else self.ties
        if not isinstance(pairs, tuple) or not all(
            isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(name, str) for name in pair) for pair in pairs
        ):
            raise InputError(
                f"Tied: ties must be {{a leaf: the leaf in its place}}, got {self.ties!r}. "
                "As in ties={'2.w': '0.table.T'}."
            )
        object.__setattr__(self, "ties", tuple(sorted(pairs)))

    def init(self, key: PRNGKeyArray, x: Any) -> Inner:
        with at("layer"):
            full = self.layer.init(key, x)
        leaves, treedef = _named(full)
        self._check(leaves)
        return Inner(treedef.unflatten([None if name in dict(self.ties) else leaf for name, leaf in leaves.items()]))

    def _check(self, leaves: dict[str, Any]) -> None:
        """Raise `InputError` where a tie names no leaf, or joins leaves that are not alike."""
        real, ties = {name: leaf for name, leaf in leaves.items() if leaf is not None}, dict(self.ties)
        for name, to in ties.items():
            tie, (source, flipped) = f"Tied: ties={{{name!r}: {to!r}}}", _source(to, real)
            if name not in real or source not in real:
                raise InputError(
                    f"{tie} must name two leaves of the layer ({', '.join(real) or 'it has none'}), the second may be "
                    "a transpose, as in '0.w.T'."
                )
            if source in ties:
                instead = "another leaf" if source == name else ties[source]
                raise InputError(f"{tie} ties to {source}, which is tied itself. Tie it to {instead}.")
            shape, of = jnp.shape(real[source]), jnp.shape(real[name])
            if flipped and len(shape) != 2:
                raise InputError(
                    f"{tie} transposes a leaf {list(shape)}. Only leaves of two axes have a transpose; those of a loop "
                    "have a first axis for its turns."
                )
            if of != (shape[::-1] if flipped else shape):
                raise InputError(
                    f"{tie} joins shapes {list(of)} and {list(shape[::-1] if flipped else shape)}. "
                    "Tie leaves of one shape; '.T' transposes the second."
                )

    def _filled(self, params: Any) -> Any:
        """The params of the layer: each tied leaf from its source."""
        leaves, treedef = _named(params)
        fixed = _fixed(params)
        filled = dict(leaves)
        for name, to in self.ties:
            source, flipped = _source(to, leaves)
            leaf = leaves[source]
            if source.startswith(fixed):  # a leaf that is held fixed is so in each of its uses
                leaf = jax.lax.stop_gradient(leaf)
            filled[name] = leaf.T if flipped else leaf
        return treedef.unflatten(list(filled.values()))

    def forward(self, params: Inner, x: Any, context: Context) -> tuple[Any, Kept]:
        return step("layer", self.layer, self._filled(params.layer), x, context)

    def backward(self, params: Inner, feedback: Inner, saved: Kept, delta: Any, read: Inner) -> tuple[Any, Inner]:
        full, carries = self._filled(params.layer), self._filled(feedback.layer)
        leaves, _ = _named(params.layer)
        fixed = _fixed(params.layer)
        _, treedef = _named(full)
        mine = dict(zip(leaves, treedef.flatten_up_to(read.layer), strict=True))
        inside = dict(mine)
        uses: dict[str, list[str]] = {}
        for name, to in self.ties:
            source, flipped = _source(to, leaves)
            if source.startswith(fixed):
                inside[name] = read_nothing
            else:
                inside[name], inside[source] = first_use(mine[source], flipped), first_use(mine[source], False)
                uses.setdefault(source, [source]).append(name)
        delta, readings = step_back(self.layer, full, carries, saved, delta, treedef.unflatten(list(inside.values())))
        found = dict(zip(leaves, treedef.flatten_up_to(readings), strict=True))
        for source, names in uses.items():
            found[source] = all_uses(mine[source], [found[name] for name in names])
        return delta, Inner(treedef.unflatten([None if n in dict(self.ties) else r for n, r in found.items()]))


def _source(to: str, leaves: Mapping[str, Any]) -> tuple[str, bool]:
    """(the leaf's name, whether it is transposed) of the right side of a tie."""
    return (to, False) if to in leaves else (to.removesuffix(".T"), to.endswith(".T"))
