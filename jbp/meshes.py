"""Meshes of devices with explicit axes, as `jax.make_mesh` makes them: there an array's type says how it is cut.

Types have no rule for much of what a reverse pass does with examples (to go through them one by one, to join them with
positions, all inner products), so that it is computed as on automatic axes, where XLA cuts what comes between.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, PartitionSpec

Cuts = Callable[[tuple[Any, ...]], Callable[[Any], PartitionSpec]]  # from arguments: from a result: how that is cut


def uncut(args: tuple[Any, ...]) -> Callable[[Any], PartitionSpec]:
    """Each device has all of a result."""
    return lambda result: PartitionSpec()


def as_rows(i: int) -> Cuts:
    """The rows of a result are cut as those of argument number i."""

    def cuts(args: tuple[Any, ...]) -> Callable[[Any], PartitionSpec]:
        first = _cut(jax.tree.leaves(args[i])[0])[:1]
        return lambda result: PartitionSpec(*first)

    return cuts


def as_leaves(i: int) -> Cuts:
    """A result of the shape of a leaf of argument number i, as a gradient has it, is cut as that leaf."""

    def cuts(args: tuple[Any, ...]) -> Callable[[Any], PartitionSpec]:
        specs = {leaf.shape: PartitionSpec(*_cut(leaf)) for leaf in jax.tree.leaves(args[i]) if hasattr(leaf, "shape")}
        return lambda result: specs.get(result.shape, PartitionSpec())

    return cuts


def _cut(a: Any) -> tuple[Any, ...]:
    """The mesh axes that each of its axes is cut over."""
    return tuple(jax.typeof(a).sharding.spec)


def on_any_mesh(f: Callable, cuts: Cuts = uncut) -> Callable:
    """f, which may be called with arrays that are cut over a mesh with explicit axes; `cuts` says how its results are.

    Where there is none, it is f.
    """

    @wraps(f)
    def run(*args: Any, **settings: Any) -> Any:
        structure: Any
        leaves, structure = jax.tree.flatten((args, settings))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
        meshes = [mesh for i in places if (mesh := jax.typeof(leaves[i]).sharding.mesh).explicit_axes]
        if not meshes:
            return f(*args, **settings)
        mesh, cut = meshes[0], cuts(args)
        automatic = mesh.update_axis_types(dict.fromkeys(mesh.explicit_axes, AxisType.Auto))
        with jax.sharding.use_abstract_mesh(automatic):
            for i in places:
                leaves[i] = jax.reshard(leaves[i], PartitionSpec())
            args, settings = structure.unflatten(leaves)
            results = f(*args, **settings)
        with jax.sharding.use_abstract_mesh(mesh):
            return jax.tree.map(lambda a: jax.reshard(a, cut(a)), results)

    return run


def on_host(tree: Any) -> Any:
    """The arrays that several devices hold as NumPy's, which any device takes."""
    spread = lambda a: isinstance(a, jax.Array) and not isinstance(a, jax.core.Tracer) and len(a.devices()) > 1
    return jax.tree.map(lambda a: np.asarray(a) if spread(a) else a, tree)


def jitted(*static: int, cuts: Cuts = uncut) -> Callable[[Callable], Any]:
    """A decorator: `jax.jit` with these arguments static, on any mesh."""
    return lambda f: partial(jax.jit, static_argnums=static)(on_any_mesh(f, cuts))
