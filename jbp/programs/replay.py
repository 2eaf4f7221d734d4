"""A traced function run again, equation by equation, with one thing changed.

    recast            every float is a float64 (complex128): the same mathematics with next to no rounding
    without_rules     a call of a custom_vjp (or custom_jvp) function is its own primal, and autodiff goes through it
    quiet             nothing is printed by `jax.debug`
    first_nonfinite   which equation makes the first NaN or infinity out of finite numbers

`recast` changes the program that was traced, not the function: casts to a fixed dtype inside it don't stop it,
constants stay as they were rounded, and random bits are those of the original dtype. So it is the same function.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from ..errors import InputError
from .calls import HIJAX, INLINE, OURS, PLAIN, SHARDED, VMAP, has_rule, inner_jaxprs, is_call, primal_of, sharded

# What `change` gets: an equation, the values that go in, and `again`, which makes an inner jaxpr a function under the
# same change. It returns the values that come out.
Change = Callable[[JaxprEqn, list[Any], Callable[[Any], Callable[..., list[Any]]]], Sequence[Any]]

Dtypes = Callable[[Any], Any]  # from a dtype to that which takes its place


def replay(jaxpr: ClosedJaxpr | Jaxpr, change: Change, read: Callable[[Any], Any] = lambda value: value) -> Callable:
    """The jaxpr as a function of its flat arguments, each equation done by `change`; `read` on constants and arguments.

    Values are let go after their last use, so that a run outside jit holds no more than it needs.
    """
    inner, consts = (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, ClosedJaxpr) else (jaxpr, [])
    again = lambda part: replay(part, change, read)

    def run(*args: Any) -> list[Any]:
        env: dict[Any, Any] = {}
        last = {v: i for i, eqn in enumerate(inner.eqns) for v in eqn.invars if not isinstance(v, Literal)}
        kept = {v for v in inner.outvars if not isinstance(v, Literal)}
        env.update(zip(inner.constvars, map(read, consts), strict=True))
        env.update(zip(inner.invars, map(read, args), strict=True))
        value = lambda v: read(_literal(v)) if isinstance(v, Literal) else env[v]
        for i, eqn in enumerate(inner.eqns):
            with _on_its_mesh(eqn):
                outs = change(eqn, [value(v) for v in eqn.invars], again)
            env.update(zip(eqn.outvars, outs, strict=True))
            for v in {v for v in eqn.invars if not isinstance(v, Literal)} - kept:
                if last[v] == i:
                    env.pop(v, None)
        return [value(v) for v in inner.outvars]

    return run


def _on_its_mesh(eqn: JaxprEqn) -> Any:
    """Where a program goes from explicit axes to automatic ones and back, its equations do so, too."""
    mesh, here = eqn.ctx.cur_abstract_mesh, jax.sharding.get_abstract_mesh()
    if mesh == here or mesh.empty or mesh.manual_axes or here.manual_axes:
        return nullcontext()
    return jax.sharding.use_abstract_mesh(mesh)


def aval_of(v: Any) -> Any:
    """The shape and dtype of a variable or literal."""
    return v.aval


def _literal(v: Literal) -> Any:
    return np.asarray(v.val, aval_of(v).dtype) if isinstance(v.val, (int, float, complex, bool)) else v.val


def bind(eqn: JaxprEqn, values: Sequence[Any], params: dict[str, Any] | None = None) -> Sequence[Any]:
    """The equation as it is, on other values, or with other params."""
    bound = eqn.primitive.get_bind_params(eqn.params if params is None else params)
    outs = eqn.primitive.bind(*values, **bound)
    return [*outs] if eqn.primitive.multiple_results else [outs]


def equations(jaxpr: ClosedJaxpr | Jaxpr) -> Iterator[JaxprEqn]:
    """All equations, those of inner jaxprs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in inner_jaxprs(eqn):
            yield from equations(inner)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (ClosedJaxpr, Jaxpr))


def _with_inner(eqn: JaxprEqn, values: Sequence[Any], again: Callable, dtype: Dtypes) -> Sequence[Any]:
    """The equation with its inner jaxprs traced again under the change; `dtype` maps those of their arguments."""

    if eqn.primitive.name == SHARDED:
        return sharded(eqn, again(*inner_jaxprs(eqn)))(*values)

    def traced(value: Any) -> Any:
        if not _is_jaxpr(value):
            return value
        avals = [_of_dtype(v.aval, dtype) for v in (value.jaxpr if isinstance(value, ClosedJaxpr) else value).invars]
        closed = jax.make_jaxpr(again(value))(*avals)
        if isinstance(value, ClosedJaxpr):
            return closed
        if closed.consts:
            raise InputError(f"{eqn.primitive.name} holds constants in its inner program; it can't be run again.")
        return closed.jaxpr

    params = {k: jax.tree.map(traced, v, is_leaf=_is_jaxpr) if _holds_jaxpr(v) else v for k, v in eqn.params.items()}
    return bind(eqn, values, params)


def _of_dtype(aval: Any, dtype: Dtypes) -> Any:
    """The type of a value in another dtype: of the same shape, on the same mesh."""
    return aval.update(dtype=dtype(aval.dtype), weak_type=False)


def _holds_jaxpr(value: Any) -> bool:
    return any(_is_jaxpr(leaf) for leaf in jax.tree.leaves(value, is_leaf=_is_jaxpr))


# -- in another dtype -------------------------------------------------------------------------------------------------

ROUNDS = ("reduce_precision", "optimization_barrier")  # what rounds, and what only stands in the way
OPAQUE = ("pure_callback", "ffi_call", "pallas_call", "call_exported")  # can't be looked into
BITS = (*OPAQUE, "bitcast_convert_type", "nextafter", "rng_uniform")  # mean something in the original dtype alone
DEBUG = ("debug_callback", "debug_print")


def double_dtype(dtype: Any) -> Any:
    """float64 for a float, complex128 for a complex, any other dtype itself."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.dtype(np.complex128)
    return np.dtype(np.float64) if jnp.issubdtype(dtype, jnp.floating) else dtype


def to_double(value: Any) -> Any:
    """An array of floats in float64 (complex128), exactly; what is none stays."""
    return _in_dtype(value, double_dtype(value.dtype)) if hasattr(value, "dtype") else value


def _in_dtype(value: Any, dtype: Any) -> Any:
    if value.dtype == dtype:
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value).astype(dtype)
    return jax.lax.convert_element_type(value, dtype)


def in_float64(tree: Any) -> Any:
    """A pytree with its floats as NumPy arrays in float64 (complex128), exactly; what is no float stays."""
    return jax.tree.map(lambda a: to_double(np.asarray(a)) if _is_float(a) else a, tree)


def _is_float(a: Any) -> bool:
    return hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.inexact)


def recast(jaxpr: ClosedJaxpr) -> Callable[..., list[Any]]:
    """The jaxpr as a function that runs in float64, whatever the dtypes of its arguments; to be called with x64 on."""

    def change(eqn: JaxprEqn, values: list[Any], again: Callable) -> Sequence[Any]:
        name = eqn.primitive.name
        if name in ROUNDS:
            return values
        if is_call(eqn):
            return again(primal_of(eqn))(*values)
        if name in BITS:
            own = [_in_dtype(a, aval_of(v).dtype) for a, v in zip(values, eqn.invars, strict=True)]
            return list(map(to_double, bind(eqn, own)))
        if inner_jaxprs(eqn):
            return _with_inner(eqn, values, again, double_dtype)
        params = dict(eqn.params)
        for key, value in params.items():
            if key == "precision" and value is not None:
                params[key] = None
            elif value is not None and ("dtype" in key or key == "preferred_element_type") and _plain(value):
                params[key] = double_dtype(np.dtype(value))
        return bind(eqn, values, params)

    return replay(jaxpr, change, to_double)


def noise_of(jaxpr: ClosedJaxpr) -> float:
    """ε of the widest steps that floats are rounded to in `recast` nevertheless; 0 if there are none."""
    narrow = [aval_of(v).dtype for e in equations(jaxpr) if e.primitive.name in BITS for v in e.invars]
    return max((float(jnp.finfo(dtype).eps) for dtype in narrow if jnp.issubdtype(dtype, jnp.inexact)), default=0.0)


def _plain(dtype: Any) -> bool:
    """Whether it is a dtype of numbers, not of random keys."""
    return not jnp.issubdtype(dtype, jax.dtypes.extended)


# -- without custom rules, without output ------------------------------------------------------------------------------


def without_rules(jaxpr: ClosedJaxpr, kind: str) -> Callable[..., list[Any]]:
    """The jaxpr as a function that autodiff goes through: calls with a rule of this kind are their own primals.

    So are those with a rule for vmap alone, through which reverse mode can't go, and those of hijax without any rule.
    """
    other = "jvp" if kind == "vjp" else "vjp"

    def is_primal(eqn: JaxprEqn) -> bool:
        name = eqn.primitive.name
        return has_rule(eqn, kind) or name == VMAP or (name == HIJAX and not has_rule(eqn, other))

    return _instead(jaxpr, is_primal, lambda eqn, values, again: again(primal_of(eqn))(*values))


def opened(jaxpr: ClosedJaxpr) -> Callable[..., list[Any]]:
    """The jaxpr as a function without rules for vmap, through which reverse mode can't go."""
    return _instead(jaxpr, _named(VMAP), lambda eqn, values, again: again(primal_of(eqn))(*values))


def unstopped(jaxpr: ClosedJaxpr) -> Callable[..., list[Any]]:
    """The jaxpr as a function in which `stop_gradient` stops nothing."""
    return _instead(jaxpr, _named("stop_gradient"), lambda eqn, values, again: values)


def quiet(jaxpr: ClosedJaxpr) -> Callable[..., list[Any]]:
    """The jaxpr as a function without what `jax.debug` prints and calls."""
    return _instead(jaxpr, _named(*DEBUG), lambda eqn, values, again: [])


def _named(*names: str) -> Callable[[JaxprEqn], bool]:
    return lambda eqn: eqn.primitive.name in names


def _instead(jaxpr: ClosedJaxpr, those: Callable[[JaxprEqn], bool], do: Change) -> Callable[..., list[Any]]:
    """The jaxpr as a function in which some equations are done by `do`, wherever they sit but in what has a rule."""

    def change(eqn: JaxprEqn, values: list[Any], again: Callable) -> Sequence[Any]:
        if those(eqn):
            return do(eqn, values, again)
        if not any(those(e) for j in inner_jaxprs(eqn) for e in equations(j)):
            return bind(eqn, values)
        if is_call(eqn):
            return again(primal_of(eqn))(*values) if eqn.primitive.name in PLAIN else bind(eqn, values)
        return _with_inner(eqn, values, again, lambda dtype: dtype)

    return replay(jaxpr, change)


# -- where NaN comes from ---------------------------------------------------------------------------------------------


def first_nonfinite(jaxpr: ClosedJaxpr, args: Sequence[Any]) -> str | None:
    """The first equation that makes NaN or infinity of finite numbers, and its line; None if there is none."""
    found: list[str] = []

    def change(eqn: JaxprEqn, values: list[Any], again: Callable) -> Sequence[Any]:
        if found:
            raise StopIteration
        outs = bind(eqn, values)
        if not all(map(_finite, outs)) and all(map(_finite, values)):
            for inner in inner_jaxprs(eqn) if eqn.primitive.name in (HIJAX, *INLINE) else ():
                again(inner)(*values)
            kind = "NaN" if any(map(_has_nan, outs)) else "infinity"
            line = f" ({line_of(eqn)})" if line_of(eqn) else ""
            found.append(f"{kind} first appears in {eqn.primitive.name}{line}")
            raise StopIteration
        return outs

    with suppress(StopIteration):
        replay(jaxpr, change)(*args)
    return found[0] if found else None


def _finite(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is None or not jnp.issubdtype(dtype, jnp.inexact) or bool(jnp.isfinite(value).all())


def _has_nan(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jnp.inexact) and bool(jnp.isnan(value).any())


def line_of(eqn: JaxprEqn) -> str:
    """Where in the user's code an equation comes from, as `file.py:12, function`; empty if that is not known."""
    frames = getattr(eqn.source_info.traceback, "frames", ()) or ()
    for frame in frames:
        if not any(place in frame.file_name for place in ("/jax/", *OURS, "<")):
            return f"{frame.file_name.rpartition('/')[2]}:{frame.line_num}, {frame.function_name.rpartition('.')[2]}"
    return ""
