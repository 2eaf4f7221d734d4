"""An optax transformation as the program that it traces to.

optax makes its transformations anew at each call, and two of them are never equal: `optax.adam(1e-3)` written twice
would compile everything twice. Here two are equal where `init` and `update` trace to the same equations with the same
constants. What this tells them apart by is also what a state on disk remembers of its optimiser.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from .layer import Context, InputError, Shape, wide_dtype
from .layout import Layout
from .reverse import Cost

NEVER_ASKED = (
    "custom_jvp_call",
    "custom_vjp_call",
)  # their rules are never asked: nobody differentiates a traced update


@dataclass(frozen=True, eq=False)
class Rule:
    """`init(params)` and `update(gradient, state, params, **more)`, with all leaves but the frozen ones.

    `program` is what both trace to. Rules of one program are equal, so that nothing is compiled again. `params` and
    `state` are the specs of all leaves and of the optimiser's state.
    """

    init: Callable[..., Any]
    update: Callable[..., Any]
    program: tuple
    params: Any
    state: Any

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Rule) and self.program == other.program)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.program)

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that are the same for equal rules in another process; a few unequal rules share them."""
        return hashlib.sha256("".join(_words(self.program)).encode()).digest()


def trained(layout: Layout, tree: Any) -> Any:
    """The tree of leaves with None in place of those that are frozen: an optimiser keeps nothing for them."""
    free = layout.trainable
    if all(free):
        return tree
    leaves = layout.treedef.flatten_up_to(tree)
    return layout.treedef.unflatten([leaf if one else None for leaf, one in zip(leaves, free, strict=True)])


def completed(layout: Layout, tree: Any, params: Any) -> Any:
    """The tree of `trained`, filled with the frozen leaves of the params."""
    free = layout.trainable
    if all(free):
        return tree
    pairs = zip(free, layout.treedef.flatten_up_to(tree), jax.tree.leaves(params), strict=True)
    return layout.treedef.unflatten([new if one else old for one, new, old in pairs])


def check_optimizer(optimizer: Any) -> None:
    """Raise `InputError` unless it is an optax transformation."""
    if isinstance(optimizer, type) or not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
        raise InputError(
            f"fit: expected an optax transformation as optimizer, got {optimizer!r}. As in optax.adam(1e-3)."
        )
    try:
        hash(optimizer)
    except TypeError:
        raise InputError(
            f"fit: the optimizer {type(optimizer).__name__} is not hashable, so that no program can be kept for it. "
            "Make it an optax.GradientTransformation, or a frozen dataclass."
        ) from None


def rule_of(cost: Cost, optimizer: Any, dtype: Any, batch: Any = None) -> Rule:
    """The rule of an optimiser for a θ of this dtype. `batch`: (x, y, weights, context), arrays or specs of one.

    An update that takes no extra arguments doesn't depend on the batch. For one that does, the rule of no batch can
    only begin: it is equal where `init` alone is.
    """
    more = isinstance(optimizer, optax.GradientTransformationExtraArgs)
    shape = Shape.of(batch) if more and batch is not None else None
    return _rule(cost, optimizer, np.dtype(dtype), shape, more, jnp.result_type(float))


@lru_cache(maxsize=256)
def _rule(cost: Cost, optimizer: Any, dtype: Any, batch: Shape | None, more: bool, floats: Any) -> Rule:
    update = optax.with_extra_args_support(optimizer).update
    theta = jax.ShapeDtypeStruct((cost.layout.size,), dtype)
    params = jax.eval_shape(cost.layout.unflatten, theta)
    free = trained(cost.layout, params)
    state = jax.eval_shape(optimizer.init, free)
    # what the traces depend on, the structure of what they give, and then themselves
    program: list[Any] = [Shape.of(free), Shape.of(state), (cost, batch) if more else None]
    program.append(program_of(jax.make_jaxpr(optimizer.init)(free)))
    if batch is not None or not more:
        value = jax.ShapeDtypeStruct((), wide_dtype(dtype))
        specs = (None, None, None, Context()) if batch is None else batch.treedef.unflatten(
            [jax.ShapeDtypeStruct(*leaf) for leaf in batch.leaves]
        )  # fmt: skip
        step = lambda params, *more: updates(cost, update, params, *more)
        program.append(program_of(jax.make_jaxpr(step)(params, free, state, value, specs)))
    return _first(Rule(optimizer.init, update, tuple(program), params, state))


@lru_cache(maxsize=256)
def _first(rule: Rule) -> Rule:
    """The first of all equal rules, so that what is compiled for one is found by identity."""
    return rule


def updates(cost: Cost, update: Callable[..., Any], params: Any, gradient: Any, state: Any, value: Any, batch: Any):
    """(params, state) after the optimiser's step on the gradient of the trained leaves."""
    layout, (x, y, of_examples, context), free = cost.layout, batch, trained(cost.layout, params)

    def value_fn(free, batch=None, whole=None, weights=None):  # line searches hand it what they do not know themselves
        return cost.value_leaves(completed(layout, free, params), x, y, weights=of_examples, context=context)

    told = {"value": value, "grad": gradient, "value_fn": value_fn, "batch": (x, y, context), "whole": params}
    told |= {"weights": of_examples}
    change, state = update(gradient, state, free, **told)
    return completed(layout, optax.apply_updates(free, change), params), state


# -- a traced program as a value --------------------------------------------------------------------------------------


def program_of(jaxpr: Any) -> tuple:
    """A jaxpr as a value that is equal for equal programs: equations, shapes, constants by their bytes."""
    consts, jaxpr = getattr(jaxpr, "consts", ()), getattr(jaxpr, "jaxpr", jaxpr)
    numbers: dict[Any, int] = {}

    def atom(v: Any) -> Any:
        return _value(np.asarray(v.val)) + _aval(v) if isinstance(v, Literal) else numbers.setdefault(v, len(numbers))

    return (
        tuple(map(_value, consts)),
        tuple((atom(v), _aval(v)) for v in (*jaxpr.constvars, *jaxpr.invars)),
        tuple(
            (eqn.primitive.name, tuple(map(atom, eqn.invars)), tuple((atom(v), _aval(v)) for v in eqn.outvars),
             tuple(sorted(_params(eqn))))
            for eqn in jaxpr.eqns
        ),
        tuple(map(atom, jaxpr.outvars)),
    )  # fmt: skip


def _aval(v: Any) -> tuple:
    aval = v.aval
    return tuple(getattr(aval, "shape", ())), str(getattr(aval, "dtype", aval)), getattr(aval, "weak_type", False)


class _Param(tuple):
    """(name, value), sorted by name alone."""

    def __lt__(self, other: Any) -> bool:
        return self[0] < other[0]


def _params(eqn: Any) -> Iterator[_Param]:
    for name, value in eqn.params.items():
        if eqn.primitive.name.startswith(NEVER_ASKED) and not isinstance(value, (Jaxpr, ClosedJaxpr)):
            continue
        yield _Param((name, _value(value)))


def _value(value: Any) -> tuple:
    """A constant or a parameter of an equation as something hashable; what can't be compared equals itself alone."""
    if isinstance(value, (Jaxpr, ClosedJaxpr)):
        return ("jaxpr", program_of(value))
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        array = np.asarray(value)
        return ("array", array.shape, str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest())
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, *map(_value, value))
    if isinstance(value, Mapping):
        return ("dict", tuple((str(name), _value(part)) for name, part in value.items()))
    try:
        hash(value)
    except TypeError:
        return ("object", _Same(value))
    return (type(value).__name__, value)


@dataclass(frozen=True, eq=False)
class _Same:
    """Something that is equal to nothing but itself."""

    value: Any


def _words(value: Any) -> Iterator[str]:
    """Words of a program that don't change from one process to another; where it runs is left out."""
    if isinstance(value, _Param) and any(word in value[0] for word in ("sharding", "mesh", "device", "layout")):
        return
    if isinstance(value, tuple):
        yield "("
        for part in value:
            yield from _words(part)
        yield ")"
    elif value is None or isinstance(value, (str, bytes, bool, int, float, complex, np.dtype)):
        yield f"{value!r},"
    else:
        yield f"{type(value).__name__},"
