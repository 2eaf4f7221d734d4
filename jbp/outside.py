"""What arrives from outside and is of the wrong kind: random keys, arrays that JAX can't take, settings that can't be
hashed, outputs that are no logits. Each is an `InputError` that says what to write instead."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .layer import Context, InputError, Layer, described, walk
from .layers.compose import Sequential


def check_key(who: str, key: Any, remedy: str = "{}") -> None:
    """Raise `InputError` unless `key` is one random key: of `jax.random.key`, or a legacy one of uint32 words."""
    is_array = isinstance(key, (jax.Array, np.ndarray))
    typed = is_array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    axes = key.ndim - (not typed) if typed or (is_array and key.dtype == np.uint32) else -1  # of an array of keys
    if axes == 0:
        return
    write = f"Write {remedy.format(f'jax.random.key({key if type(key) is int and key >= 0 else 0})')}."
    if axes > 0:
        write = "Give one of them, as in keys[0]."
    raise InputError(f"{who}: expected a random key, got {described(key) if is_array else repr(key)}. {write}")


def check_context(context: Any) -> None:
    """Raise `InputError` unless it is a `Context`, with a random key or none."""
    if not isinstance(context, Context):
        key = getattr(context, "dtype", None) is not None and jnp.issubdtype(context.dtype, jax.dtypes.prng_key)
        raise InputError(
            f"context: expected a Context, got {described(context) if key else repr(context)}. "
            "Write jbp.Context(key=key)."
        )
    check_arrays(**{"context.mask": context.mask})
    if context.key is not None:
        check_key("context.key", context.key, "jbp.Context(key={})")


def check_mask(x: Any, mask: Any) -> None:
    """Raise `InputError` unless each array of a mask has as many examples as x."""
    check_arrays(**{"context.mask": mask})
    n = jax.tree.leaves(x)[0].shape[0]
    for part in jax.tree.leaves(mask):
        if jnp.shape(part)[:1] != (n,):
            raise InputError(
                f"context.mask: expected {n} examples as in x, got {described(part)}. It goes row by row with x; what "
                "does not belongs in context.side."
            )


def check_arrays(**given: Any) -> None:
    """Raise `InputError` where a leaf is nothing that JAX takes: objects, words, a table of another library."""
    for name, value in given.items():
        for leaf in jax.tree.leaves(value):
            dtype = getattr(leaf, "dtype", None)
            if isinstance(leaf, (jax.Array, bool, int, float, complex)):
                continue
            if dtype is not None and _numeric(leaf, dtype):
                continue
            if dtype is not None and hasattr(leaf, "shape"):
                got, kind = f"an array of {dtype} {list(leaf.shape)}", getattr(dtype, "kind", "")
                remedy = f"Cast it, as in np.asarray({name}.tolist(), dtype='float32')"
                if kind in "UST":
                    remedy = f"Number the words, as in np.unique({name}, return_inverse=True)[1]"
            else:
                got, remedy = f"{type(leaf).__name__}", f"Use np.asarray({name}, dtype='float32')"
                if hasattr(leaf, "to_numpy"):
                    remedy = f"Write {name}.to_numpy(dtype='float32')"
            raise InputError(f"{name}: expected an array of numbers, got {got}. {remedy}.")


def _numeric(leaf: Any, dtype: Any) -> bool:
    """Whether an array's dtype is one of JAX's; a table that only has a dtype is no array."""
    extended = jnp.issubdtype(dtype, jax.dtypes.extended)
    return extended or (not hasattr(leaf, "to_numpy") and getattr(dtype, "kind", "O") not in "OSUTMm")


def check_hashable(who: str, *things: Any) -> None:
    """Raise `InputError` where a layer or a loss can't be hashed: it names the innermost one and its field."""
    if _hashed(things):
        return
    layers = [found for i, thing in enumerate(things) for found in walk(thing, (str(i),))]
    path, bad = next((path, layer) for path, layer in reversed(layers) if not _hashed(layer))
    where = f"{who}: " if who == "Cost" else f"{who}: layer {'.'.join(path)}: "
    names: list[str] = [field.name for field in fields(bad)] if is_dataclass(bad) else []
    for name in names:
        if not _hashed(value := getattr(bad, name)):
            got = described(value) if hasattr(value, "dtype") else f"the {type(value).__name__} {value!r}"
            raise InputError(
                f"{where}{type(bad).__name__}.{name}: a setting must be hashable, got {got}. "
                + _hashable(value, "y" if who == "Cost" else "the params or the Context")
            )
    raise InputError(
        f"{where}a layer and a loss must be hashable, and {type(bad).__name__} is not. Write @dataclass(frozen=True)."
    )


def _hashable(value: Any, home: str) -> str:
    """What to write instead."""
    if hasattr(value, "dtype"):
        return "Write float(value)." if value.shape == () else f"Arrays belong into {home}."
    return "Write it as a tuple." if isinstance(value, list) else "Write it as a tuple of pairs, or a frozen dataclass."


def _hashed(thing: Any) -> bool:
    try:
        hash(thing)
    except TypeError:
        return False
    return True


def check_logits(layers: Sequence[Layer], loss: Any) -> None:
    """Raise `InputError` where a network ends in what a cross-entropy of logits does itself."""
    last: Any = layers[-1] if layers else None
    while isinstance(last, Sequential) and last.layers:
        last = last.layers[-1]
    own = getattr(loss, "applies", None)
    if own and getattr(last, "gives_probabilities", False):
        who, its = type(loss).__name__, type(last).__name__
        raise InputError(
            f"Cost: {who} expects logits and applies the {own} itself, and the network ends in {its}(). End it in a "
            f"Dense, mlp(..., last=jbp.Identity()); or, if both are meant, put jbp.Identity() behind {its}()."
        )
