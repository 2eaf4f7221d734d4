"""Where the parameters of a traced function meet its data: products, lookups, convolutions.

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
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from .calls import INLINE, inner_jaxprs, is_call, name_of, primal_of, scan_inputs
from .replay import aval_of, bind
from .views import Moves, reshaped, transposed

ALWAYS_SMALL = 1 << 12  # numbers of a leaf of which one copy for each example is always welcome
_SEEN = ("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "convert_element_type", "copy")


@dataclass(frozen=True)
class Seen:
    """A parameter leaf, or the block of it that a turn of a loop has, as it is seen at some place.

    `loops`: for each loop around, from the outermost in, whether it goes over blocks of the leaf, or closes over it.
    `shape`: of the leaf, or the block.
    """

    leaf: int
    shape: tuple[int, ...]
    moves: Moves
    loops: tuple[bool, ...]
    value: Any


@dataclass(frozen=True)
class Meeting:
    """Where a leaf meets the data. `shape` and `dtype` of what it adds to, with the loops' turns in front.

    `kind`: "outer" (a product), "gather" (a lookup), "patches" (a convolution). `settled(met, delta)` brings what one
    example meets at one turn, and the δ there, into the kind's form. `block` and `moves`: how the leaf, or its block,
    becomes the form's own. `stacked`: the form's first axis counts blocks of the product itself.
    """

    leaf: int
    kind: str
    loops: tuple[bool, ...]
    block: tuple[int, ...]
    moves: Moves
    settled: Callable[[Any, Any], tuple[Any, Any]]
    shape: tuple[int, ...]
    dtype: Any
    stacked: bool = False
    window: tuple[Any, ...] = ()


@dataclass
class Walk:
    """One run through a program: sites as they are met, what is met there, and the reasons why a leaf has none."""

    zeros: Iterator[Any] | None = None  # to be added at the sites; None to find them
    sites: list[Meeting] = field(default_factory=list)
    met: list[Any] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        value = lambda v: jnp.asarray(v.val, aval_of(v).dtype) if isinstance(v, Literal) else env[v]
        for eqn in jaxpr.eqns:
            outs = self._equation(eqn, [value(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [value(v) for v in jaxpr.outvars]

    def plain(self, value: Any, why: str) -> Any:
        """The value as data; if it is a parameter, the leaf has no site for this use."""
        if isinstance(value, Seen):
            self.refused.setdefault(value.leaf, why)
            return value.value
        return value

    def _equation(self, eqn: JaxprEqn, ins: list[Any]) -> Sequence[Any]:
        views, name = [i for i, v in enumerate(ins) if isinstance(v, Seen)], eqn.primitive.name
        if not views:
            return bind(eqn, ins)
        if name in INLINE:
            return self._call(eqn, ins)
        if name == "scan":
            return self._scan(eqn, ins)
        if name in _SEEN and (view := _seen_through(eqn, ins[0])) is not None:
            return [view]
        found = None
        if len(views) == 1:
            if name == "dot_general":
                found = _product(eqn, ins, views[0])
            elif name in ("gather", "dynamic_slice") and views == [0]:
                found = _lookup(eqn, ins)
            elif name == "conv_general_dilated" and views == [1]:
                found = _convolution(eqn, ins)
        if found is None:
            return bind(eqn, [self.plain(v, _why(eqn)) for v in ins])
        out = bind(eqn, [v.value if isinstance(v, Seen) else v for v in ins])[0]
        return [self._site(*found, out)]

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
        data = [i for i, v in enumerate(ins) if not isinstance(v, Seen)]
        own = [next(self.zeros) for _ in _sites_inside(lambda walk, *ins: walk.run(jaxpr, consts, ins), ins)]
        walks: list[Walk] = []

        def again(given: list[Any], leaves: list[Any], zeros: list[Any]) -> tuple[list[Any], list[Any]]:
            walk, rest, values = Walk(iter(zeros)), iter(given), iter(leaves)
            args = [replace(v, value=next(values)) if isinstance(v, Seen) else next(rest) for v in ins]
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
        blocks: dict[int, Seen] = {}
        for i, v in enumerate(ins):
            if isinstance(v, Seen) and i < first:
                blocks[i] = replace(v, loops=(*v.loops, False))
            elif isinstance(v, Seen) and v.moves:
                ins[i] = self.plain(v, "moved before a loop cuts it")
            elif isinstance(v, Seen):
                blocks[i] = replace(v, shape=v.shape[1:], loops=(*v.loops, True))
        values = [v.value if isinstance(v, Seen) else v for v in ins]
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
    values = [v.value if isinstance(v, Seen) else v for v in ins]

    def go(values: list[Any]) -> None:
        given = zip(ins, values, strict=True)
        run(walk, *(replace(v, value=a) if isinstance(v, Seen) else a for v, a in given))

    jax.eval_shape(go, values)
    return walk.sites


def _why(eqn: JaxprEqn) -> str:
    """Why a leaf has no pair of its own form: what it goes into."""
    name = eqn.primitive.name
    if is_call(eqn):
        return f"held by {name_of(eqn)}, which has a rule of its own"
    return f"goes into {name}"


def _seen_through(eqn: JaxprEqn, view: Seen) -> Seen | None:
    """The view behind an equation that only moves numbers; None where it does more."""
    name, p, aval = eqn.primitive.name, eqn.params, aval_of(eqn.outvars[0])
    if not jnp.issubdtype(aval.dtype, jnp.floating) or math.prod(aval.shape) != math.prod(view.value.shape):
        return None
    axes = list(p.get("broadcast_dimensions", ()))
    if (name == "reshape" and p.get("dimensions") is not None) or axes != sorted(axes):
        return None
    if name == "transpose":
        moves = transposed(view.shape, view.moves, p["permutation"])
    else:
        moves = reshaped(view.shape, view.moves, aval.shape)
    return replace(view, moves=moves, value=bind(eqn, [view.value])[0])


_PENDING: Any = {"shape": (), "dtype": None}  # of a site whose output is not yet known


def _product(eqn: JaxprEqn, ins: list[Any], w: int) -> tuple[Meeting, Any]:
    """A leaf `[B, I, O]` times a `[B, T, I]`: B blocks, of which a plain product has none."""
    contracted, batched = eqn.params["dimension_numbers"]
    view, a = ins[w], ins[1 - w]
    (wc, ac), (wb, ab) = (contracted[w], contracted[1 - w]), (batched[w], batched[1 - w])
    wf = [i for i in range(view.value.ndim) if i not in (*wc, *wb)]
    af = [i for i in range(a.ndim) if i not in (*ac, *ab)]
    extent = lambda shape, axes: math.prod(shape[i] for i in axes)
    B = (extent(view.value.shape, wb),) if wb else ()
    I, O, T = extent(view.value.shape, wc), extent(view.value.shape, wf), extent(a.shape, af)
    moves = transposed(view.shape, view.moves, (*wb, *wc, *wf))
    moves = reshaped(view.shape, moves, (*B, I, O))
    # the output's axes: those of the blocks, then the free ones of the left and of the right operand
    mine, its = (len(wf), len(af)) if w == 0 else (len(af), len(wf))
    parts = range(len(wb)), range(len(wb), len(wb) + mine), range(len(wb) + mine, len(wb) + mine + its)
    order = [*parts[0], *(parts[2] if w == 0 else parts[1]), *(parts[1] if w == 0 else parts[2])]

    def settled(a: Any, delta: Any) -> tuple[Any, Any]:
        return a.transpose(*ab, *af, *ac).reshape(*B, T, I), delta.transpose(order).reshape(*B, T, O)

    return Meeting(view.leaf, "outer", view.loops, view.shape, moves, settled, stacked=bool(B), **_PENDING), a


def _lookup(eqn: JaxprEqn, ins: list[Any]) -> tuple[Meeting, Any] | None:
    """Rows of a table `[V, …]`, whole ones; None for any other lookup."""
    view, p = ins[0], eqn.params
    shape = view.value.shape
    if len(shape) < 2 or p["slice_sizes"] != (1, *shape[1:]):
        return None
    V, O, clip = shape[0], math.prod(shape[1:]), True
    if eqn.primitive.name == "dynamic_slice":
        index, order = ins[1], tuple(range(len(shape)))
    else:
        d, out = p["dimension_numbers"], aval_of(eqn.outvars[0]).ndim
        axes = (d.collapsed_slice_dims, d.start_index_map, d.operand_batching_dims)
        if axes != ((0,), (0,), ()):
            return None
        index, order = ins[1][..., 0], (*(i for i in range(out) if i not in d.offset_dims), *d.offset_dims)
        clip = p["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP

    def settled(index: Any, delta: Any) -> tuple[Any, Any]:
        # a lookup that does not fill has the nearest row for an index outside; one that fills has none, also below 0
        index = jnp.clip(index, 0, V - 1) if clip else jnp.where(index < 0, V, index)
        return index.reshape(-1), delta.transpose(order).reshape(-1, O)

    moves = reshaped(view.shape, view.moves, (V, O))
    return Meeting(view.leaf, "gather", view.loops, view.shape, moves, settled, **_PENDING), index


def _convolution(eqn: JaxprEqn, ins: list[Any]) -> tuple[Meeting, Any] | None:
    """A kernel `[*window, I, O]` on x `[B, *space, C]`; None where groups of examples have kernels of their own."""
    view, p = ins[1], eqn.params
    if p["batch_group_count"] != 1:
        return None
    d = p["dimension_numbers"]
    order = lambda spec: (spec[0], *spec[2:], spec[1])
    o, i, *window = d.rhs_spec
    moves = transposed(view.shape, view.moves, (*window, i, o))

    def settled(x: Any, delta: Any) -> tuple[Any, Any]:
        return x.transpose(order(d.lhs_spec)), delta.transpose(order(d.out_spec))

    strides, padding, *dilations = p["window_strides"], p["padding"], p["lhs_dilation"], p["rhs_dilation"]
    settings = (tuple(strides), tuple(map(tuple, padding)), *map(tuple, dilations), p["feature_group_count"])
    site = Meeting(view.leaf, "patches", view.loops, view.shape, moves, settled, window=settings, **_PENDING)
    return site, ins[0]


# -- the plan of a program -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Uses:
    """How a traced function's first `leaves` arguments are used. `small`: leaves whose zero is added to themselves."""

    jaxpr: ClosedJaxpr
    leaves: int
    sites: tuple[Meeting, ...]
    small: tuple[int, ...]
    whole: dict[int, str]

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
