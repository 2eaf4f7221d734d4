"""Where the parameters of a traced function meet its data, see `meetings`, and in between what is made of them alone.

The function is traced on one example. `planned` walks the trace and finds for each parameter leaf how it is used; at
each meeting (`Meeting`) stands what the leaf meets and what it adds to. `Uses.run` runs the function again with a zero
added at each site and hands out what was met there: the zero's cotangent is δ. In a loop (`lax.scan`) both are stacked
turn by turn. Of a leaf that is small, the zero is added to the leaf itself (`LEAF`): its cotangent is the example's
gradient. What is neither is named with the reason (`Uses.whole`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from .calls import INLINE, inner_jaxprs, is_call, name_of, primal_of, scan_inputs
from .made import Constant, Made, Seen, fixed, itself, made, sources, through
from .meetings import Meeting, convolution, lookup, product
from .replay import aval_of, bind

ALWAYS_SMALL = 1 << 12  # numbers of a leaf of which one copy for each example is always welcome


@dataclass
class Walk:
    """One run through a program: sites as they are met, what is met there, and the reasons why a leaf has none."""

    zeros: Iterator[Any] | None = None  # to be added at the sites; None to find them
    sites: list[Meeting] = field(default_factory=list)
    met: list[Any] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        given = [*map(Constant, consts), *args]
        env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), given, strict=True))
        value = lambda v: Constant(np.asarray(v.val, aval_of(v).dtype)) if isinstance(v, Literal) else env[v]
        for eqn in jaxpr.eqns:
            outs = self._equation(eqn, [value(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [value(v) for v in jaxpr.outvars]

    def plain(self, value: Any, why: str) -> Any:
        """The value as data; if it is a parameter, its leaves have no site for this use."""
        if isinstance(value, Seen):
            for leaf in sources(value.leaf):
                self.refused.setdefault(leaf, why)
        return _value(value)

    def _equation(self, eqn: JaxprEqn, ins: list[Any]) -> Sequence[Any]:
        views, name = [i for i, v in enumerate(ins) if isinstance(v, Seen)], eqn.primitive.name
        alone = all(isinstance(v, (Seen, Constant)) for v in ins)  # no data goes in
        if not views and not alone:
            return bind(eqn, [_value(v) for v in ins])
        if name in INLINE:
            return self._call(eqn, ins)
        if not views:
            return fixed(eqn, ins)
        if name == "scan" and not alone:
            return self._scan(eqn, ins)
        if len(ins) == 1 and (found := through(eqn, ins[0])) is not None:
            return found
        if len(views) == 1 and (site := self._meeting(eqn, ins, views[0], alone)) is not None:
            return [self._site(*site, bind(eqn, [_value(v) for v in ins])[0])]
        if alone and all(_may_be_made(aval_of(v).dtype) for v in eqn.outvars):
            return made(eqn, ins)
        return bind(eqn, [self.plain(v, _why(eqn)) for v in ins])

    def _meeting(self, eqn: JaxprEqn, ins: list[Any], view: int, alone: bool) -> tuple[Meeting, Any] | None:
        """Where the leaf that goes in at `view` meets what else goes in; None where it does not."""
        name, values = eqn.primitive.name, [v if isinstance(v, Seen) else _value(v) for v in ins]
        if name in ("gather", "dynamic_slice") and view == 0:
            return lookup(eqn, values)
        if alone:
            return None
        if name == "dot_general":
            return product(eqn, values, view)
        return convolution(eqn, values) if name == "conv_general_dilated" and view == 1 else None

    def _site(self, site: Meeting, met: Any, out: Any) -> Any:
        self.sites.append(replace(site, shape=out.shape, dtype=out.dtype))
        self.met.append(met)
        return out if self.zeros is None else out + next(self.zeros)

    def _call(self, eqn: JaxprEqn, ins: list[Any]) -> Sequence[Any]:
        inner = primal_of(eqn) if is_call(eqn) else inner_jaxprs(eqn)[0]
        jaxpr, consts = (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())
        if eqn.primitive.name not in ("checkpoint", "remat2"):
            return self.run(jaxpr, consts, ins)
        if self.zeros is None:
            return [self.plain(out, "handed out of a checkpoint") for out in self.run(jaxpr, consts, ins)]
        data = [i for i, v in enumerate(ins) if not isinstance(v, (Seen, Constant))]
        own = [next(self.zeros) for _ in _sites_inside(lambda walk, *ins: walk.run(jaxpr, consts, ins), ins)]
        walks: list[Walk] = []

        def again(given: list[Any], leaves: list[Any], zeros: list[Any]) -> tuple[list[Any], list[Any]]:
            walk, rest, values = Walk(iter(zeros)), iter(given), iter(leaves)
            args = [
                replace(v, value=next(values)) if isinstance(v, Seen) else v if isinstance(v, Constant) else next(rest)
                for v in ins
            ]
            outs = [walk.plain(out, "") for out in walk.run(jaxpr, consts, args)]
            walks.append(walk)
            return outs, walk.met

        policy = {k: eqn.params[k] for k in ("prevent_cse", "policy") if k in eqn.params}
        leaves = [v.value for v in ins if isinstance(v, Seen)]
        outs, met = jax.checkpoint(again, **policy)([ins[i] for i in data], leaves, own)
        self.sites += walks[0].sites
        self.met += met
        return outs

    def _scan(self, eqn: JaxprEqn, ins: list[Any]) -> Sequence[Any]:
        p, (first, count) = eqn.params, scan_inputs(eqn)
        jaxpr, consts, length = p["jaxpr"].jaxpr, p["jaxpr"].consts, p["length"]
        ins = [self.plain(v, "carried by a loop") if first <= i < first + count else v for i, v in enumerate(ins)]
        blocks: dict[int, Seen | Constant] = {}
        for i, v in enumerate(ins):
            if isinstance(v, Constant) and i < first:
                blocks[i] = v
            elif isinstance(v, Seen) and i < first:
                blocks[i] = replace(v, loops=(*v.loops, False))
            elif isinstance(v, Seen):
                blocks[i] = replace(itself(v), shape=v.value.shape[1:], loops=(*v.loops, True))
        values = [_value(v) for v in ins]
        walks: list[Walk] = []

        def body(carry: Any, turn: Any) -> tuple[Any, Any]:
            xs, zeros = turn
            walk = Walk(None if zeros is None else iter(zeros))
            args = [*values[:first], *carry, *xs]
            args = [replace(blocks[i], value=a) if i in blocks else a for i, a in enumerate(args)]
            outs = [walk.plain(out, "handed out of a loop") for out in walk.run(jaxpr, consts, args)]
            walks.append(walk)
            return outs[:count], (outs[count:], walk.met)

        xs, carry = values[first + count :], values[first : first + count]
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
        jax.eval_shape(lambda carry, xs: body(carry, (xs, None)), carry, one)
        found = walks[0]
        self.refused = found.refused | self.refused
        zeros = None if self.zeros is None else [next(self.zeros) for _ in found.sites]
        loop = lambda carry, turn: body(carry, turn)
        unroll = {"unroll": p["unroll"]} if "unroll" in p else {}
        carry, (ys, met) = jax.lax.scan(loop, carry, (xs, zeros), length, p["reverse"], **unroll)
        self.sites += [replace(site, shape=(length, *site.shape)) for site in found.sites]
        self.met += met
        return [*carry, *ys]


def _sites_inside(run: Callable[..., Any], ins: list[Any]) -> list[Meeting]:
    """The sites of a part of a program, without running it."""
    walk = Walk()
    values = [_value(v) for v in ins]

    def go(values: list[Any]) -> None:
        given = zip(ins, values, strict=True)
        run(walk, *(replace(v, value=a) if isinstance(v, (Seen, Constant)) else a for v, a in given))

    jax.eval_shape(go, values)
    return walk.sites


def _may_be_made(dtype: Any) -> bool:
    """Whether what is made of leaves is followed: floats, and the masks by which they are chosen."""
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.bool_)


def _value(value: Any) -> Any:
    """As data."""
    return value.value if isinstance(value, (Seen, Constant)) else value


def _why(eqn: JaxprEqn) -> str:
    """Why a leaf has no pair of its own form: what it goes into."""
    name = eqn.primitive.name
    if is_call(eqn):
        return f"held by {name_of(eqn)}, which has a rule of its own"
    return f"goes into {name}"


# -- the plan of a program -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Uses:
    """How a traced function's first `leaves` arguments are used. `small`: leaves whose zero is added to themselves."""

    jaxpr: ClosedJaxpr
    leaves: int
    sites: tuple[Meeting, ...]
    small: tuple[int, ...]
    whole: dict[int, str]

    @property
    def derived(self) -> list[Made]:
        """What is made of leaves and meets the data, each once."""
        return list(dict.fromkeys(site.leaf for site in self.sites if isinstance(site.leaf, Made)))

    def zeros(self, n: int) -> tuple[list[Any], list[Any]]:
        """(a zero for each small leaf, one for each site), of n examples."""
        avals = self.jaxpr.in_avals
        return (
            [jnp.zeros((n, *avals[i].shape), avals[i].dtype) for i in self.small],
            [jnp.zeros((n, *site.shape), site.dtype) for site in self.sites],
        )

    def run(self, leaves: Sequence[Any], rest: Sequence[Any], zeros: Any) -> tuple[list[Any], list[Any]]:
        """(outputs, what is met at each site) of one example."""
        at_leaves, at_sites = zeros
        walk = Walk(iter(at_sites))
        added = dict(zip(self.small, at_leaves, strict=True))
        outs = walk.run(self.jaxpr.jaxpr, self.jaxpr.consts, [*_args(leaves, self, added), *rest])
        return [walk.plain(out, "") for out in outs], walk.met


def _args(leaves: Sequence[Any], plan: Uses, added: dict[int, Any]) -> Iterator[Any]:
    for i, leaf in enumerate(leaves):
        if i in added:
            yield leaf + added[i]
        elif i in plan.whole:
            yield leaf
        else:
            yield Seen(i, jnp.shape(leaf), (), (), leaf)


def planned(jaxpr: ClosedJaxpr, leaves: int) -> Uses:
    """The plan of a function of one example whose first `leaves` arguments are parameters, the others data."""
    plan, largest = Uses(jaxpr, leaves, (), (), {}), _largest(jaxpr.jaxpr, leaves)
    while True:
        walk = Walk()

        def go(args: Sequence[Any], plan: Uses = plan, walk: Walk = walk) -> None:
            params = _args(args[:leaves], plan, dict.fromkeys(plan.small, 0.0))
            outs = walk.run(jaxpr.jaxpr, jaxpr.consts, [*params, *args[leaves:]])
            for out in outs:
                walk.plain(out, "is itself an output")

        jax.eval_shape(go, jaxpr.in_avals)
        if not walk.refused:
            return replace(plan, sites=tuple(walk.sites))
        fits = lambda i: math.prod(jaxpr.in_avals[i].shape) <= max(ALWAYS_SMALL, largest)
        small = [i for i in walk.refused if fits(i)]
        whole = {i: why for i, why in walk.refused.items() if not fits(i)}
        plan = replace(plan, small=tuple(sorted({*plan.small, *small})), whole=plan.whole | whole)


def _largest(jaxpr: Jaxpr, leaves: int) -> int:
    """The size of the largest value of one example that depends on the data."""
    depends, largest = set(jaxpr.invars[leaves:]), 0
    for eqn in jaxpr.eqns:
        if any(v in depends for v in eqn.invars if not isinstance(v, Literal)):
            depends |= set(eqn.outvars)
            largest = max(largest, *(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars), 0)
    return largest
