"""Arguments of a function as their arrays, and how to put others in their place."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError, is_whole


@dataclass(frozen=True)
class Arguments:
    """Arguments as their arrays, and how to put others in their place. What is neither array nor float stays put."""

    leaves: tuple[Any, ...]
    treedef: Any
    places: tuple[int, ...]  # of the arrays among the leaves

    @classmethod
    def of(cls, args: Any) -> "Arguments":
        leaves, treedef = jax.tree.flatten(args)
        leaves = [_canonical(leaf) for leaf in leaves]
        places = tuple(i for i, leaf in enumerate(leaves) if _is_array(leaf) or type(leaf) in (float, complex))
        return cls(tuple(leaves), treedef, places)

    @property
    def arrays(self) -> list[Any]:
        return [
            self.leaves[i] if hasattr(self.leaves[i], "dtype") else jnp.asarray(self.leaves[i]) for i in self.places
        ]

    def names(self, f: Callable[..., Any]) -> list[str]:
        """Of the arrays, by f's own parameters, where the arguments are the tuple of f's."""
        try:
            parameters = list(inspect.signature(f).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        paths, _ = jax.tree_util.tree_flatten_with_path(self.treedef.unflatten(self.leaves))
        names = []
        for i in self.places:
            first, *rest = paths[i][0]
            name = plain[first.idx] if first.idx < len(plain) else f"argument {first.idx}"
            inner = jax.tree_util.keystr(tuple(rest), simple=True, separator=".")
            names.append(f"{name}.{inner}" if inner else name)
        return names

    def places_of(self, argnums: int | Sequence[int]) -> list[int]:
        """Of the arrays, by place, those that stand in some of the arguments, by number as in `jax.grad`."""
        listed = isinstance(argnums, Sequence) and not isinstance(argnums, str)
        wanted: list[Any] = [argnums] if is_whole(argnums) else [*argnums] if listed else []  # type: ignore[misc]
        if not wanted or not all(map(is_whole, wanted)):
            raise InputError(
                f"argnums: expected the number of an argument, or a tuple of numbers, got {argnums!r}. As in argnums=0."
            )
        paths, _ = jax.tree_util.tree_flatten_with_path(self.treedef.unflatten(self.leaves))
        count = len(self.treedef.children())
        if any(not -count <= k < count for k in wanted):
            raise InputError(f"argnums: there are {count} arguments, got {argnums}. Count them from 0.")
        wanted = [k % count for k in wanted]
        return [k for k, i in enumerate(self.places) if paths[i][0][0].idx in wanted]

    def filled(self, arrays: Sequence[Any]) -> Any:
        """The arguments with other arrays."""
        leaves = list(self.leaves)
        for i, array in zip(self.places, arrays, strict=True):
            leaves[i] = array
        return self.treedef.unflatten(leaves)


def is_float(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jnp.inexact)


def filled(arrays: Sequence[Any], places: Sequence[int], moving: Sequence[Any]) -> list[Any]:
    """The arrays with others at some places."""
    others = dict(zip(places, moving, strict=True))
    return [others.get(i, a) for i, a in enumerate(arrays)]


def not_finite(what: str, names: Sequence[str], arrays: Sequence[Any]) -> list[str]:
    """A remark if there is NaN or infinity in `what`: no error, as an infinite logit may be meant."""
    found = []
    for name, array in zip(names, arrays, strict=True):
        if not jnp.issubdtype(array.dtype, jnp.inexact) or (finite := np.isfinite(array := np.asarray(array))).all():
            continue
        first = tuple(map(int, np.argwhere(~finite)[0]))
        bad = f", {(~finite).sum():,} of {array.size:,}" if array.size > 1 else ""
        found.append(f"{name}{list(first) if first else ''} = {array[first]}{bad}")
    return [f"{what} NaN or infinity: {'; '.join(found)}."] if found else []


def narrowed(f: Callable[..., Any], args: tuple) -> tuple[str, ...]:
    """A remark if NumPy's float64 among the arguments is taken as float32, which JAX does in silence with x64 off."""
    given, leaves = Arguments.of(args), jax.tree.leaves(args)
    is_narrowed = lambda a: isinstance(a, (np.ndarray, np.generic)) and is_float(a) and _canonical(a).dtype != a.dtype
    names = [name for name, i in zip(given.names(f), given.places, strict=True) if is_narrowed(leaves[i])]
    if not names:
        return ()
    those = f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
    return (
        f"JAX takes float64 as float32 while x64 is off: {those}. To compare in float64, set "
        "jax.config.update('jax_enable_x64', True).",
    )


def _canonical(leaf: Any) -> Any:
    """A NumPy array in the dtype in which JAX takes it: with x64 off, int64 as int32 and float64 as float32."""
    if isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.kind in "iufc":
        return leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False)
    return leaf


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and getattr(leaf.dtype, "kind", "V") not in "OSUMm"
