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

from .gather import Gather
from .layer import spec_of
from .pair import Outer, Pair, Sum, Whole
from .patches import Patches, Viewed, Window
from .programs.calls import has_rule
from .programs.meets import Meeting, Uses, planned
from .programs.replay import equations
from .uses import Nothing, Several, Stack

One = Callable[[Any, Any], Any]


def over_examples(one: One, params: Any, x: Any) -> Any:
    """The function of one example on a batch `[N, ...]`."""
    return jax.vmap(one, (None, 0))(params, x)


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

    uses: dict[int, list[Pair]] = {i: [] for i in range(len(leaves))}
    for i, total, gradients in zip(plan.whole, totals, each, strict=True):
        uses[i].append(Whole(total, gradients))
    for i, g in zip(plan.small, at_leaves, strict=True):
        uses[i].append(Sum(g))
    for site, a, d in zip(plan.sites, met, at_sites, strict=True):
        if site.leaf not in plan.small:
            uses[site.leaf].append(_pair(site, a, d))
    pairs = [
        Nothing(n, jnp.shape(leaf), leaf.dtype) if not own else own[0] if len(own) == 1 else Several(tuple(own))
        for leaf, own in zip(leaves, uses.values(), strict=True)
    ]
    delta_parts: list[Any] = [None] * len(traced.parts)
    for i, part in zip(traced.floats, delta_its, strict=True):
        delta_parts[i] = part
    return traced.treedef.unflatten(delta_parts), pairs


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

    A leaf that is used several times has its forms with a +, each once; a leaf that a loop goes over has those of
    its blocks.
    """
    kinds = {"outer": "Outer", "gather": "Gather", "patches": "Patches"}

    def of(i: int) -> str:
        if i in plan.whole:
            return f"Whole: {plan.whole[i]}"
        if i in plan.small:
            return "Sum"
        found = [("Stack of " if any(site.loops) or site.stacked else "") + kinds[site.kind]
                 for site in plan.sites if site.leaf == i]  # fmt: skip
        return " + ".join(dict.fromkeys(found)) or "Nothing"

    return {name: of(i) for i, name in enumerate(names)}
