"""What an equation calls, in whichever form JAX writes it down: the one place that reads its parameters.

custom_vjp_call, custom_jvp_call   a function with a rule for a derivative
call_hi_primitive                  hijax's form of the same: an object that has the rules, and expands to the function
                                   (a class of one's own, or a custom_vjp with generic_batching=True)
custom_vmap_call                   a function with a rule for vmap: where nothing is mapped, it is that function
scan                               a loop; which of its inputs are carried
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import jax
from jax.experimental import hijax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

OURS = ("/jbp/compare/", "/jbp/programs/")  # where files that trace a user's function stand: no place in their code
RULES = {"vjp": "custom_vjp_call", "jvp": "custom_jvp_call"}
HIJAX = "call_hi_primitive"
VMAP = "custom_vmap_call"
SHARDED = "shard_map"
# What forward mode makes of a custom_vjp: reverse mode alone can use it.
LINEAR = ("custom_lin", "call_hi_primitive_linearized")
# The parameter that holds what is called: of calls without a rule for a derivative, and of all.
PLAIN = dict.fromkeys(("closed_call", "core_call", "eval_jaxpr"), "call_jaxpr") | {VMAP: "call"}
INLINE = ("jit", "pjit", *PLAIN, "checkpoint", "remat2", "compute_on", "xla_metadata_call")  # nothing but a call
CALLS = PLAIN | dict.fromkeys(RULES.values(), "call_jaxpr") | {"remat_opt": "fwd_jaxpr"}  # of optimize_remat=True

_HiPrim: Any = getattr(hijax, "HiPrim", None) or getattr(hijax, "VJPHiPrimitive", None)
_OF_JAX = {"CustomVJPTraced": {"vjp"}, "CustomJVPTraced": {"jvp"}}  # what custom_vjp and custom_jvp may become


def has_rule(eqn: JaxprEqn, kind: str) -> bool:
    """Whether it calls a function that has its own rule for a derivative of this kind, "vjp" or "jvp"."""
    if eqn.primitive.name == HIJAX:
        return kind in _rules(_hi(eqn))
    return eqn.primitive.name == RULES[kind]


def is_call(eqn: JaxprEqn) -> bool:
    """Whether it calls a function, with rules or without."""
    return eqn.primitive.name == HIJAX or eqn.primitive.name in CALLS


def primal_of(eqn: JaxprEqn) -> ClosedJaxpr:
    """The function that it calls, without that function's rules."""
    return _expanded(eqn) if eqn.primitive.name == HIJAX else eqn.params[CALLS[eqn.primitive.name]]


def inner_jaxprs(eqn: JaxprEqn) -> list[ClosedJaxpr | Jaxpr]:
    """The jaxprs that it holds: of a loop, a branch, a call."""
    return [_expanded(eqn)] if eqn.primitive.name == HIJAX else list(_jaxprs_in(eqn.params.values()))


def _jaxprs_in(values: Iterable[Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    for value in values:
        if isinstance(value, (ClosedJaxpr, Jaxpr)):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _jaxprs_in(value)


def scan_inputs(eqn: JaxprEqn) -> tuple[int, int]:
    """How many inputs of a `scan` are constants of its body, and how many are carried; the others are cut into turns.

    JAX states it as two numbers (`num_consts`, `num_carry`) or as the structure of the inputs (`ft_in`).
    """
    if "ft_in" in eqn.params:
        consts, carry, _ = eqn.params["ft_in"].unpack()
        return len(consts), len(carry)
    return eqn.params["num_consts"], eqn.params["num_carry"]


def sharded(eqn: JaxprEqn, function: Callable[..., Sequence[Any]]) -> Callable[..., list[Any]]:
    """Another function in place of that of a `shard_map`: on the same mesh, with the same shards."""
    p = eqn.params
    axes = p["newly_manual_axes"] if "newly_manual_axes" in p else p["manual_axes"]
    specs: Any = {name: tuple(p[name]) for name in ("in_specs", "out_specs")}
    shards = lambda *args: tuple(function(*args))
    on_mesh = jax.shard_map(shards, mesh=p["mesh"], axis_names=set(axes), check_vma=p["check_vma"], **specs)
    return lambda *args: list(on_mesh(*args))


# -- of a call with rules ---------------------------------------------------------------------------------------------


def name_of(eqn: JaxprEqn) -> str:
    """The name of the function that is called; of a class of hijax's, where it is one."""
    if eqn.primitive.name != HIJAX:
        return str(primal_of(eqn).jaxpr.debug_info.func_name)
    prim = _hi(eqn)
    return str(prim.traced.fun_name) if hasattr(prim, "traced") else type(prim).__name__


def source_of(eqn: JaxprEqn) -> str:
    """Where the function is written, as `name at folder/file.py:12`."""
    if eqn.primitive.name != HIJAX:
        return str(primal_of(eqn).jaxpr.debug_info.func_src_info)
    prim = _hi(eqn)
    if hasattr(prim, "traced"):
        return str(prim.traced.jaxpr.jaxpr.debug_info.func_src_info)
    code = type(prim).expand.__code__
    return f"{type(prim).__name__} at {code.co_filename}:{code.co_firstlineno}"


def count_of_constants(eqn: JaxprEqn) -> int:
    """How many of its first inputs are values that the function closes over: they get no derivative."""
    if eqn.primitive.name != HIJAX:
        return eqn.params["num_consts"]
    prim = _hi(eqn)  # a custom_vjp's arguments are its constants, those of its forward, and the user's
    return len(jax.tree.leaves(prim.in_avals[:2])) if hasattr(prim, "drop_fwd_consts") else 0


def argument_names(eqn: JaxprEqn) -> list[str]:
    """The names of the inputs, where the function's (or its rule's) own parameters tell them."""
    names, count = _parameters(eqn), len(eqn.invars)
    consts = [f"constant {i}" for i in range(count - len(names))] if 0 < len(names) < count else []
    return [*consts, *names] if len(names) + len(consts) == count else [f"argument {i}" for i in range(count)]


def _parameters(eqn: JaxprEqn) -> list[str]:
    if eqn.primitive.name != HIJAX:
        info = getattr(eqn.params.get("fwd_jaxpr_thunk"), "debug_info", None)
        return list(getattr(info, "arg_names", None) or ())
    prim = _hi(eqn)
    if hasattr(prim, "traced"):
        return [name for name in prim.traced.jaxpr.jaxpr.debug_info.arg_names or () if name]
    parameters: Sequence[Any] = list(inspect.signature(prim.expand).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return []
    paths, _ = jax.tree_util.tree_flatten_with_path(tuple(prim.in_avals))
    return [f"{parameters[path[0].idx].name}{jax.tree_util.keystr(path[1:])}" for path, _ in paths]


# -- of hijax ---------------------------------------------------------------------------------------------------------


def _hi(eqn: JaxprEqn) -> Any:
    """The object that an equation calls; where that is another's image under vmap, the other."""
    prim = eqn.params["_prim"]
    while isinstance(inner := getattr(prim, "prim", None), _HiPrim):
        prim = inner
    return prim


def _rules(prim: Any) -> set[str]:
    """The kinds of derivatives for which it has a rule of its own; a reverse that is made of its jvp is none."""
    known = _OF_JAX.get(type(prim).__name__)
    if known is not None and type(prim).__module__.startswith("jax."):
        return known
    has = lambda method: getattr(type(prim), method) is not getattr(_HiPrim, method)
    made = lambda method, by: getattr(type(prim), method) is getattr(getattr(hijax, by, None), method, None)
    own = has("vjp_fwd") and not made("vjp_fwd", "vjp_from_jvp")
    if made("vjp_fwd", "vjp_from_lin"):
        own = not made("lin", "linearize_from_jvp")
    return {kind for kind, there in (("jvp", has("jvp")), ("vjp", own)) if there}


@lru_cache(1024)  # by identity; and so that it is traced with the settings under which it is met first
def _expanded(eqn: JaxprEqn) -> ClosedJaxpr:
    prim = eqn.params["_prim"]
    flat = lambda *args: jax.tree.leaves(prim.expand(*jax.tree.unflatten(prim.in_tree, args)))
    return jax.make_jaxpr(flat)(*(v.aval for v in eqn.invars))
