"""Meshes of devices with explicit axes, as `jax.make_mesh` makes them: there an array's type says how it is cut.

Types have no rule for much of what a reverse pass does with examples (to go through them one by one, to join them with
positions, all inner products), so that it is computed as on automatic axes, where XLA cuts what comes between.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec


def on_any_mesh(f: Callable, rows: int | None = None) -> Callable:
    """f, which may be called with arrays that are cut over a mesh with explicit axes.

    Its results are whole on each device or, where an argument's number is given as `rows`, cut as the rows of that.
    """

    @wraps(f)
    def run(*args: Any, **settings: Any) -> Any:
        structure: Any
        leaves, structure = jax.tree.flatten((args, settings))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
        meshes = [mesh for i in places if (mesh := jax.typeof(leaves[i]).sharding.mesh).explicit_axes]
        if not meshes:
            return f(*args, **settings)

        def on_arrays(*arrays: Any) -> Any:
            filled: Any = dict(zip(places, arrays, strict=True))
            args, settings = structure.unflatten([filled.get(i, leaf) for i, leaf in enumerate(leaves)])
            return f(*args, **settings)

        cut = () if rows is None else jax.typeof(jax.tree.leaves(args[rows])[0]).sharding.spec[:1]
        with jax.sharding.use_abstract_mesh(meshes[0]):
            automatic = jax.sharding.auto_axes(
                on_arrays, axes=meshes[0].explicit_axes, out_sharding=PartitionSpec(*cut)
            )
            return automatic(*(leaves[i] for i in places))

    return run


def on_host(tree: Any) -> Any:
    """The arrays that several devices hold as NumPy's, which any device takes."""
    spread = lambda a: isinstance(a, jax.Array) and not isinstance(a, jax.core.Tracer) and len(a.devices()) > 1
    return jax.tree.map(lambda a: np.asarray(a) if spread(a) else a, tree)


def jitted(*static: int) -> Callable[[Callable], Any]:
    """A decorator: `jax.jit` with these arguments static, on any mesh."""
    return lambda f: partial(jax.jit, static_argnums=static)(on_any_mesh(f))
