"""Derivatives of flat functions by all their float arguments, in both modes; and what reaches each call inside."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError, described
from ..programs.arguments import filled, is_float
from ..programs.program import Program
from ..programs.sites import Site, Tapped
from .points import stream, widened

Flat = Callable[..., Sequence[Any]]


def floats_of(arrays: Sequence[Any]) -> list[int]:
    return [i for i, a in enumerate(arrays) if is_float(a)]


def of_floats(function: Flat, floats: Sequence[int], arrays: Sequence[Any]) -> Flat:
    """The function of its float arguments, and its float outputs."""
    return lambda *moving: [out for out in function(*filled(arrays, floats, moving)) if is_float(out)]


def pulled(function: Flat, floats: list[int], arrays: Sequence[Any], cotangents: Sequence[Any]) -> list[Any]:
    """The gradients of ⟨cotangents, function⟩."""
    outs, pull = jax.vjp(of_floats(function, floats, arrays), *(arrays[i] for i in floats))
    return list(pull([laid_out_as(c, out) for c, out in zip(cotangents, outs, strict=True)]))


def pushed(function: Flat, floats: list[int], arrays: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
    """The tangents of the function's outputs."""
    run = of_floats(function, floats, arrays)
    tangents = [laid_out_as(t, arrays[i]) for t, i in zip(tangents, floats, strict=True)]
    return list(jax.jvp(run, [arrays[i] for i in floats], tangents)[1])


def laid_out_as(a: Any, like: Any) -> Any:
    """The array cut over the mesh as another is, where the mesh has explicit axes: that is its type there."""
    sharding = getattr(jax.typeof(like), "sharding", None)
    return a if sharding is None or not sharding.mesh.explicit_axes else jax.reshard(a, sharding)


def pulled_forward(function: Flat, floats: list[int], arrays: Sequence[Any], cotangents: Sequence[Any]) -> list[Any]:
    """As `pulled`, in forward mode: one run for each element; for a complex one two, ∂/∂x − i ∂/∂y."""
    run, moving = of_floats(function, floats, arrays), [jnp.asarray(arrays[i]) for i in floats]

    def gradient(k: int) -> Any:
        dtype, is_complex = moving[k].dtype, jnp.iscomplexobj(moving[k])

        def along(i: Any, step: Any) -> Any:
            hot = [jnp.zeros(a.size, a.dtype) for a in moving]
            hot[k] = hot[k].at[i].set(jnp.asarray(step, dtype))
            tangents = [h.reshape(a.shape) for h, a in zip(hot, moving, strict=True)]
            return paired(jax.jvp(run, moving, tangents)[1], cotangents)

        def element(i: Any) -> Any:
            real = along(i, 1)
            return (jax.lax.complex(real, -along(i, 1j)) if is_complex else real).astype(dtype)

        return jax.lax.map(element, jnp.arange(moving[k].size)).reshape(moving[k].shape)

    return [gradient(k) for k in range(len(moving))]


def in_pieces(arrays: Sequence[Any]) -> list[np.ndarray]:
    return [widened(a) for a in arrays]


def paired(outs: Sequence[Any], cotangents: Sequence[Any]) -> Any:
    """Re Σ cotangent · output: the scalar whose gradient a vjp is."""
    floats = [out for out in outs if is_float(out)]
    terms = [jnp.real(c * out) for c, out in zip(cotangents, floats, strict=True)]
    wide = jnp.float64 if any(t.dtype == np.float64 for t in terms) else jnp.float32  # float8 promotes to nothing
    return sum((t.astype(wide).sum() for t in terms), jnp.zeros((), wide))


def reached(kind: str, tapped: Tapped, arrays: Sequence[Any], floats: list[int], seeds: Sequence[Any]) -> list[Any]:
    """(inputs, cotangents or tangents, number of turns) of each call; with a first axis of turns if there are loops."""
    probes = tapped.probes()

    def backward(arrays: Any, seeds: Any) -> Any:
        def run(probes: Any) -> Any:
            outs, inputs, hit = tapped(arrays, probes)
            return [out for out in outs if is_float(out)], (inputs, hit)

        _, pull, (inputs, hit) = jax.vjp(run, probes, has_aux=True)
        return inputs, [[c for c in site if c is not None] for site in pull(list(seeds))[0]], hit

    def forward(arrays: Any, seeds: Any) -> Any:
        def run(*moving: Any) -> Any:
            _, inputs, hit = tapped(filled(arrays, floats, moving), probes)
            return [[a for a in site if is_float(a)] for site in inputs], (inputs, hit)

        _, tangents, (inputs, hit) = jax.jvp(run, [arrays[i] for i in floats], list(seeds), has_aux=True)
        return inputs, tangents, hit

    program = Program(
        "compare: f with its calls tapped", backward if kind == "vjp" else forward, (list(arrays), list(seeds))
    )
    inputs, seeds, hits = program(*arrays, *seeds)
    return [_turns(tapped.sites[i], inputs[i], seeds[i], hits[i]) for i in range(len(tapped.sites))]


def _turns(site: Site, inputs: Sequence[Any], seeds: Sequence[Any], hit: Any) -> tuple[list[Any], list[Any], int]:
    """What reached a call, turn by turn along one axis; as it is, if there is no loop around it."""
    if not site.loops:
        return list(inputs), list(seeds), int(hit)
    places = np.flatnonzero(np.asarray(hit).reshape(-1))
    axes = len(site.loops)
    pick = lambda a: a.reshape(-1, *a.shape[axes:])[places]
    return [pick(a) for a in inputs], [pick(s) for s in seeds], len(places)


def seeds_like(who: str, given: Any, like: Sequence[Any], tree: Any, kind: str, one: bool) -> list[Any]:
    """Cotangents of the float outputs (tangents of the float arguments): as given, or random; `one`: 1 for a scalar."""
    floats = [a for a in like if is_float(a)]
    what = "cotangent" if kind == "vjp" else "tangent"
    if given is not None:
        leaves = [leaf for leaf in jax.tree.leaves(given) if getattr(leaf, "dtype", None) != jax.dtypes.float0]
        if [jnp.shape(leaf) for leaf in leaves] != [a.shape for a in floats]:
            raise InputError(
                f"{who}: the {what} must be like {described(tree)}, got {described(given)}. "
                "Leave it out for random numbers."
            )
        return [jnp.asarray(leaf, a.dtype) for leaf, a in zip(leaves, floats, strict=True)]
    if one and kind == "vjp" and len(floats) == 1 and not floats[0].shape:
        return [jnp.ones((), floats[0].dtype)]
    random = stream(what)

    def draw(a: Any) -> Any:
        numbers = random.standard_normal(a.shape)
        if jnp.issubdtype(a.dtype, jnp.complexfloating):
            numbers = numbers + 1j * random.standard_normal(a.shape)
        return jnp.asarray(np.asarray(numbers).astype(a.dtype))

    return [draw(a) for a in floats]
