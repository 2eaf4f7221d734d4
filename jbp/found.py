"""The pairs of a function that somebody else wrote, found in its trace; autodiff carries δ.

    forward(one, params, x) -> (output, kept)
    back(one, params, kept, delta) -> (delta of x, a pair for each leaf of params)

`one(params, x_n)` is a function of one example, of which `over_examples` makes that of a batch. Where a leaf meets the
data in a product, a lookup or a convolution, stands `Outer`, `Gather`, `Patches`; `Sum` where the leaf is small;
`Whole`, with the reason, where it is neither. `forms` tells which.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .derived import Derived
from .gather import Gather
from .layer import PROBE, batch_of, spec_of
from .pair import Outer, Pair, Sum, Whole
from .patches import Patches, Viewed, Window
from .programs.calls import has_rule
from .programs.made import Made, Origin, part_of_a_row, sources, worth
from .programs.meetings import Meeting
from .programs.meets import Uses, planned
from .programs.mixing import mixing
from .programs.replay import equations
from .uses import Nothing, Several, Stack

One = Callable[[Any, Any], Any]


def over_examples(one: One, params: Any, x: Any) -> Any:
    """The function of one example on a batch `[N, ...]`."""
    return jax.vmap(one, (None, 0))(params, x)


def alone(apply: Callable[[Any, Any], Any], params: Any, x: Any) -> Any:
    """The output of one example under a function of a batch."""
    output = apply(params, jax.tree.map(lambda a: a[None], x))
    return jax.tree.map(lambda a: a[0], output)


def on_a_batch(apply: Callable[[Any, Any], Any], params: Any, spec: Any) -> tuple[Any, str | None]:
    """(the trace of apply on a batch of `PROBE`, the primitive in which its examples meet or None)."""
    treedef: Any
    flat, treedef = jax.tree.flatten((params, batch_of(spec, PROBE)))
    leaves = len(jax.tree.leaves(params))
    traced = jax.make_jaxpr(lambda *args: jax.tree.leaves(apply(*treedef.unflatten(args))))(*flat)
    return traced, mixing(traced, PROBE, [i >= leaves for i in range(len(flat))])


def plan_of(one: One, params: Any, spec: Any) -> Uses:
    """How one(params, x_n) uses its params; `spec` is that of one example."""
    treedef: Any
    flat, treedef = jax.tree.flatten((params, spec))
    floats = lambda *args: [a for a in jax.tree.leaves(one(*treedef.unflatten(args))) if has_delta(a)]
    return planned(jax.make_jaxpr(floats)(*flat), len(jax.tree.leaves(params)))


def has_delta(a: Any) -> bool:
    """Whether a value is of a float dtype, so that there is a δ of it."""
    return jnp.issubdtype(jnp.result_type(a), jnp.inexact)


class Traced:
    """A function of one example, planned, on params and a batch x `[N, ...]`."""

    def __init__(self, one: One, params: Any, x: Any):
        self.plan = plan_of(one, params, spec_of(x))
        self.treedef: Any
        self.leaves, (self.parts, self.treedef) = jax.tree.leaves(params), jax.tree.flatten(x)
        self.floats = [i for i, part in enumerate(self.parts) if has_delta(part)]
        self.n = self.parts[0].shape[0]

    @property
    def arguments(self) -> tuple[list[Any], list[Any], Any]:
        """What δ is taken of: leaves without a site, the floats of x, the zeros at the sites."""
        return (
            [self.leaves[i] for i in self.plan.whole],
            [self.parts[i] for i in self.floats],
            self.plan.zeros(self.n),
        )

    def __call__(self, whole: list[Any], its: list[Any], zeros: Any, axis: int | None = None) -> Any:
        """(float outputs, what is met at the sites), examples first; `axis`: that of the examples in `whole`."""

        def each(whole: list[Any], its: list[Any], parts: list[Any], zeros: Any) -> Any:
            leaves, data = [*self.leaves], [*self.parts]
            for i, leaf in zip(self.plan.whole, whole, strict=True):
                leaves[i] = leaf
            for i, part in enumerate(parts):
                data[i] = part
            for i, part in zip(self.floats, its, strict=True):
                data[i] = part
            return self.plan.run(leaves, data, zeros)

        return jax.vmap(each, (axis, 0, 0, 0))(whole, its, self.parts, zeros)


def forward(one: One, params: Any, x: Any) -> tuple[Any, Any]:
    """(output, what `back` needs) of a batch."""
    traced = Traced(one, params, x)
    outputs, vjp, met = jax.vjp(traced, *traced.arguments, has_aux=True)
    structure: Any
    spec, structure = jax.tree.flatten(jax.eval_shape(partial(over_examples, one), params, x))
    if any(has_rule(eqn, "vjp") for eqn in equations(traced.plan.jaxpr)):
        # whoever differentiates what jax.vjp returned goes through a rule's forward, and not by the rule: the output is
        # the function's own, and XLA merges most of both
        return over_examples(one, params, x), (x, vjp, met)
    if len(outputs) < len(spec):  # whole numbers have no δ, and are no outputs of the plan
        found, rest = iter(outputs), jax.tree.leaves(over_examples(one, params, x))
        outputs = [next(found) if has_delta(out) else out for out in rest]
    return structure.unflatten(outputs), (x, vjp, met)


def back(one: One, params: Any, kept: Any, delta: Any) -> tuple[Any, list[Pair]]:
    """(δ of x, a pair for each leaf of the params in its order) from δ of the output and what `forward` kept."""
    x, vjp, met = kept
    traced = Traced(one, params, x)
    plan, leaves, n = traced.plan, traced.leaves, traced.n
    delta, (whole, its, zeros) = [d for d in jax.tree.leaves(delta) if has_delta(d)], traced.arguments
    totals, delta_its, (at_leaves, at_sites) = vjp(delta)
    copies = [jnp.broadcast_to(leaf, (n, *leaf.shape)) for leaf in whole]
    each = jax.vjp(lambda whole: traced(whole, its, zeros, 0)[0], copies)[1](delta)[0] if whole else []

    uses: dict[Origin, list[Pair]] = {leaf: [] for leaf in (*range(len(leaves)), *plan.derived)}
    for i, total, gradients in zip(plan.whole, totals, each, strict=True):
        uses[i].append(Whole(total, gradients))
    for i, g in zip(plan.small, at_leaves, strict=True):
        uses[i].append(Sum(g))
    for site, a, d in zip(plan.sites, met, at_sites, strict=True):
        uses[site.leaf].append(_pair(site, a, d))
    for made in plan.derived:
        pair = _all(uses.pop(made))
        for i in made.sources:
            uses[i].append(_derived(made, i, pair, leaves))
    nothing = lambda leaf: Nothing(n, jnp.shape(leaf), leaf.dtype)
    pairs = [_all(own) or nothing(leaf) for leaf, own in zip(leaves, uses.values(), strict=True)]
    delta_parts: list[Any] = [None] * len(traced.parts)
    for i, part in zip(traced.floats, delta_its, strict=True):
        delta_parts[i] = part
    return traced.treedef.unflatten(delta_parts), pairs


def _all(uses: list[Pair]) -> Any:
    """One pair for all uses; None where there are none."""
    return Several(tuple(uses)) if len(uses) > 1 else uses[0] if uses else None


def _derived(made: Made, source: int, pair: Pair, leaves: list[Any]) -> Pair:
    """The pair of a leaf of which something is made that has this pair."""
    if isinstance(pair, Outer) and (place := part_of_a_row(made, source)) is not None:
        # of a concatenation: those rows or columns are the leaf's
        view, axis, part = place[0], place[1], slice(*place[2:])
        own = Outer(pair.a[..., part], pair.delta) if axis == 0 else Outer(pair.a, pair.delta[..., part])
        return Viewed(own, view.shape, view.moves) if view.moves else own

    def f(others: dict[int, Any], leaf: Any) -> Any:
        return worth(made, others | {source: leaf})

    others = {i: leaves[i] for i in made.sources if i != source}
    return Derived(pair, jax.tree_util.Partial(f, others), leaves[source])


def _pair(site: Meeting, a: Any, delta: Any) -> Pair:
    """The pair of one use, from what it met and δ, both with the axes of the examples and of the loops in front."""
    settled = site.settled
    for _ in range(1 + len(site.loops)):
        settled = jax.vmap(settled)
    a, delta = settled(a, delta)
    # axes of blocks go before the examples: those of loops over blocks, then those of the product itself
    blocks = [1 + i for i, over in enumerate(site.loops) if over]
    own = [1 + len(site.loops)] if site.stacked else []
    a, delta = (jnp.moveaxis(part, (*blocks, *own), range(len(blocks) + len(own))) for part in (a, delta))
    pair: Pair
    if site.kind == "patches":
        pair = Patches(a, delta, Window(*site.window))
    else:
        pair = Gather(a, delta) if site.kind == "gather" else Outer(a, delta)
    for _ in own:
        pair = Stack(pair)
    if site.kind == "outer" and not own and site.moves == (("transpose", (1, 0)),):
        pair = pair.transposed()
    elif site.moves:
        pair = Viewed(pair, site.block, site.moves)
    for _ in blocks:
        pair = Stack(pair)
    return pair


def forms(plan: Uses, names: tuple[str, ...]) -> dict[str, str]:
    """{leaf name: the form of its pair}, "Whole: why not" where there is none, "Nothing" for a leaf that is not used.

    A leaf that is worked on before it meets the data is "Derived, Outer of what mul makes". A leaf that is used several
    times has its forms with a +, each once; a leaf that a loop goes over has those of
    its blocks.
    """
    kinds = {"outer": "Outer", "gather": "Gather", "patches": "Patches"}

    def of(i: int) -> str:
        if i in plan.whole:
            return f"Whole: {plan.whole[i]}"
        if i in plan.small:
            return "Sum"
        found = []
        for site in plan.sites:
            form = ("Stack of " if any(site.loops) or site.stacked else "") + kinds[site.kind]
            if isinstance(site.leaf, Made) and not (form == "Outer" and part_of_a_row(site.leaf, i)):
                form = f"Derived, {form} of what {site.leaf.name} makes"
            if i in sources(site.leaf):
                found.append(form)
        return " + ".join(dict.fromkeys(found)) or "Nothing"

    return {name: of(i) for i, name in enumerate(names)}
