"""The induction. Read this first, then `layers/dense.py`, then `readouts.py`.

The text's C(W, b; x) is a function of θ = (W, b), with x and y fixed. Its gradient is found by an induction over
layers: at each layer, everything follows from the later derivative δ and from what the forward pass kept.
`reverse` is that induction with its three dials; `Cost` turns them for the quantities that people ask for.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .compare import VALUE, Part, Report, compare_with, in_blocks, step_reports
from .layer import (
    Context,
    InputError,
    Layer,
    Theta,
    batch_of,
    check_finite,
    check_gradients,
    described,
    walk,
    wide_dtype,
)
from .layers.function import Function
from .layout import Layout
from .losses import Loss
from .network import Network
from .pair import Pair
from .readouts import Leaves, Pairs, Reader, Readout, Summed, collect
from .trace import run


def reverse(
    layer: Layer,
    params: Any,
    x: Any,
    seed: Callable[[Any], tuple[Any, Any]],
    read: Callable[[Pair], Any],
    context: Context = Context(),
    feedback: Any = None,
) -> tuple[Any, Any, Any]:
    """(what `seed` says of the output, δ of x, readings in the structure of params).

    The three dials: `seed(output) -> (anything, delta)` is what enters at the output; `feedback` (the params unless
    given) is what carries delta down; `read(pair)` is what is read at each parameter.
    """
    output, saved = layer.forward(params, x, context)  # going forward, each layer keeps what its step back needs
    said, delta = seed(output)  # base case: δ at the output
    delta_x, readings = layer.backward(params if feedback is None else feedback, saved, delta, read)  # inductive steps
    return said, delta_x, readings


@dataclass(frozen=True)
class Cost:
    """C : R^(#W+#b) → R, the loss of a network on a batch, as a function of θ with x and y fixed.

    `reduction`: `"mean"`, Σ_n w_n C_n / Σ_n w_n, or `"sum"`, Σ_n w_n C_n, over the examples; the weights `w: [N]` are
    ones unless given. Every method takes θ `[P]`, x `[N, *input]`, y as the loss has it, and a `Context`; is a pure
    function; and is jitted. `jax.grad(cost)` is the oracle for `cost.grad`.

    Raises `InputError` where shapes or dtypes don't fit. What depends on values (labels in range, NaN in data) can't be
    checked under jit: `cost.check(theta, x, y)` checks it, and `fit` and `compare` call that.
    """

    network: Network
    loss: Loss
    reduction: Literal["mean", "sum"] = "mean"

    def __post_init__(self):
        if not isinstance(self.network, Network):
            raise InputError(f"Cost: expected a Network, got {self.network!r}. Write Network(layers, input=(...)).")
        if isinstance(self.loss, type) or not isinstance(self.loss, Loss):
            raise InputError(f"Cost: expected a loss, got {self.loss!r}. Write jbp.losses.HalfSquaredError().")
        if self.reduction not in ("mean", "sum"):
            raise InputError(f"Cost: reduction must be 'mean' or 'sum', got {self.reduction!r}.")

    @property
    def layout(self) -> Layout:
        """The layout of θ."""
        return self.network.layout

    def init(self, key: PRNGKeyArray) -> Float[Array, "P"]:
        """θ from the layers' initialisers."""
        return self.network.init(key)

    # -- on the vector ----------------------------------------------------------------------------------------------

    def __call__(self, theta: Theta, x: Any, y: Any, *, weights=None, context=Context()) -> Float[Array, ""]:
        """C, going forward only."""
        return _value(self, theta, x, y, weights, context)

    def value_and_grad(self, theta: Theta, x: Any, y: Any, *, weights=None, context=Context(), feedback=None):
        """(C, ∇C `[P]`) by the hand-written reverse pass. `feedback: [P]` carries delta down in place of θ."""
        return _value_and_grad(self, theta, x, y, weights, context, feedback)

    def grad(self, theta: Theta, x: Any, y: Any, *, weights=None, context=Context(), feedback=None):
        """∇C `[P]` by the hand-written reverse pass."""
        return self.value_and_grad(theta, x, y, weights=weights, context=context, feedback=feedback)[1]

    def measure(self, theta: Theta, x: Any, y: Any, *readouts: Readout, weights=None, context=Context(), feedback=None):
        """(C, tuple of the readouts' results), all from one reverse pass. A single readout's result comes alone.

        Readouts of single examples speak of the unscaled per-example cost C_n.
        """
        if not readouts or not all(isinstance(r, Readout) and not isinstance(r, type) for r in readouts):
            got = ", ".join(map(repr, readouts)) or "none"
            raise InputError(
                f"Cost.measure: expected readouts, got {got}. As in cost.measure(theta, x, y, Gradient())."
            )
        if not self.layout.size:
            raise InputError("Cost.measure: this network has no parameters to read anything at. Add a layer that has.")
        value, results = _measure(self, readouts, theta, x, y, weights, context, feedback)
        return value, results[0] if len(readouts) == 1 else results

    def pairs(self, theta: Theta, x: Any, y: Any, *, context=Context(), feedback=None) -> dict[str, Pair]:
        """{leaf name: Pair} of the unscaled per-example costs C_n."""
        pairs = self.measure(theta, x, y, Pairs(), context=context, feedback=feedback)[1]
        return {name: pairs[name] for name in self.layout.names}

    # -- on leaves: for programs that stay inside one jit -----------------------------------------------------------

    def value_leaves(self, params: Any, x: Any, y: Any, *, weights=None, context=Context()) -> Float[Array, ""]:
        """C with θ as leaves, going forward only, and no jit of its own."""
        x, y = self._check(x, y, weights, None, context)
        output, _ = self.network.layer.forward(params, x, context)
        return self._seed(y, weights, scaled=False)(output)[0]

    def value_and_grad_leaves(self, params: Any, x: Any, y: Any, *, weights=None, context=Context(), feedback=None):
        """(C, ∇C) with θ and ∇C as leaves, `cost.layout.unflatten(theta)`, and no jit of its own.

        Convert once per compiled program and use this inside: a vector in a hot step costs up to twice the time.
        """
        x, y = self._check(x, y, weights, feedback, context)
        read = lambda pair: pair.gradient()
        C, _, gradient = reverse(
            self.network.layer, params, x, self._seed(y, weights, scaled=True), read, context, feedback
        )
        check_gradients(params, gradient)
        return C, jax.tree.map(lambda leaf, g: g.astype(leaf.dtype), params, gradient)

    def _seed(self, y: Any, weights: Any, scaled: bool) -> Callable[[Any], tuple[Any, Any]]:
        """The cost's own δ at the output: of C if scaled, else of each C_n."""

        def seed(output):
            self.loss.check(output, y)
            values, delta = self.loss.value(output, y), self.loss.delta(output, y)
            factors = self._factors(weights, values)
            if scaled:
                delta = jax.tree.map(lambda d: d * factors.reshape(-1, *(1,) * (d.ndim - 1)), delta)
            return (factors * values).sum(), jax.tree.map(lambda d, a: d.astype(a.dtype), delta, output)

        return seed

    def _factors(self, weights: Any, values: Float[Array, "N"]) -> Float[Array, "N"]:
        """The factor of each C_n in C."""
        w = jnp.ones_like(values) if weights is None else jnp.asarray(weights, values.dtype)
        return w / w.sum() if self.reduction == "mean" else w

    def _check(self, x: Any, y: Any, weights: Any, feedback: Any, context: Context = Context()) -> tuple[Any, Any]:
        if not isinstance(context, Context):
            raise InputError(f"context: expected a Context, got {context!r}. Write jbp.Context(key=key).")
        x, y = self.network.layer.check(x), jax.tree.map(jnp.asarray, y)
        n = jax.tree.leaves(x)[0].shape[0]
        if weights is not None and (not hasattr(weights, "shape") or jnp.shape(weights) != (n,)):
            raise InputError(
                f"weights: expected one weight for each example, [{n}], got {described(weights)}. "
                "Use jnp.asarray(weights), one number for each row of x."
            )
        for part in jax.tree.leaves(y):
            if jnp.shape(part)[:1] != (n,):
                raise InputError(f"y: expected {n} examples as in x, got {described(part)}. x and y go row by row.")
        if feedback is not None:
            for path, layer in walk(self.network.layer.layers):
                if isinstance(layer, Function) and layer.init_params is not None:
                    raise InputError(
                        f"feedback: layer {'.'.join(path)} is a from_function layer, whose jax.vjp carries delta with "
                        "its own params. Write that layer by hand, or leave feedback out."
                    )
        return x, y

    # -- against the oracle -----------------------------------------------------------------------------------------

    def compare(
        self, theta: Theta, x: Any, y: Any, *, weights=None, context=Context(), timing=True, checks=False
    ) -> Report:
        """The hand-written gradient against `jax.grad` of the same cost, both against float64, leaf by leaf.

        Where they disagree, each layer is compared by itself on what really reached it: `report.enters` names the
        first, in the order of the reverse pass, that is wrong.
        """
        self.check(theta, x, y, weights=weights)
        settings = {"weights": weights, "context": context}

        def rule(theta, x, y):
            return self.value_and_grad(theta, x, y, **settings)

        def oracle(theta, x, y):
            return jax.value_and_grad(self)(theta, x, y, **settings)

        def summed(theta, x, y, weights):
            return jax.value_and_grad(replace(self, reduction="sum"))(theta, x, y, weights=weights)

        w = np.ones(jax.tree.leaves(x)[0].shape[0], np.float32) if weights is None else np.asarray(weights)
        total = float(w.astype(np.float64).sum()) if self.reduction == "mean" else 1.0
        # a key draws other noise for fewer examples, and a mask is not cut: then there are no blocks
        alone = all(part is None for part in (context.key, context.mask, context.side))

        def shadow(program, arrays):
            return in_blocks(summed, arrays[0], (x, y, w), total, program)

        def calls(arrays):
            theta = arrays[0]  # where it is wrong
            return step_reports(run(self, theta, x, y, **settings, mark=lambda path: Summed()), self.loss, y)

        return compare_with(
            rule, oracle, (theta, x, y), self._parts, timing, checks=checks, calls=calls, name=self.name,
            shadow=shadow if alone else None, elsewhere=True,
            pieces=(lambda arrays: [part for _, part in self._leaves(*arrays)],
                    lambda leaves: [np.concatenate([leaf.ravel() for leaf in leaves])]),
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The loss and the network, for a report."""
        return f"{type(self.loss).__name__} of {self.layout.size:,} parameters"

    def _parts(self, result: tuple[Any, Any]) -> list[Part]:
        """(C, ∇C) as parts: C, and each leaf with its coordinates' symbols."""
        C, gradient = result
        leaves = self._leaves(np.asarray(gradient))  # slicing it on the device would compile a program for each leaf
        return [Part(VALUE, C, lambda at: "C"), *(Part(n, a, partial(self.layout.symbol_at, n)) for n, a in leaves)]

    def _leaves(self, vector: Float[np.ndarray, "P"]) -> list[tuple[str, np.ndarray]]:
        """The named leaves of a vector like θ."""
        layout = self.layout
        places = zip(layout.names, layout.offsets, layout.sizes, layout.shapes, strict=False)
        return [(name, vector[i : i + n].reshape(shape)) for name, i, n, shape in places]

    # -- what needs values, not shapes ------------------------------------------------------------------------------

    def check(self, theta: Theta, x: Any, y: Any, *, weights=None) -> None:
        """Raise `InputError` where *values* don't fit: NaN or inf in θ, x, y or the weights, labels out of range, no
        weight at all. Not under jit.
        """
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((theta, x, y, weights))):
            raise InputError("Cost.check: it reads values, and under jit there are none. Call it outside jit.")
        self.layout.check(theta)
        x, y = self._check(x, y, weights, None)
        output = batch_of(self.network.output, jax.tree.leaves(x)[0].shape[0])
        self.loss.check(output, y)
        for name, value in (("theta", theta), ("x", x), ("y", y), ("weights", weights)):
            check_finite(name, value)
        if weights is not None and self.reduction == "mean" and np.sum(weights) == 0:
            raise InputError("weights: a mean needs weights whose sum is not 0, got a sum of 0. Give some weight.")
        if hasattr(self.loss, "check_values"):
            self.loss.check_values(output, y)


@partial(jax.jit, static_argnums=0)
def _value(cost, theta, x, y, weights, context):
    return cost.value_leaves(cost.layout.unflatten(theta), x, y, weights=weights, context=context)


@partial(jax.jit, static_argnums=0)
def _value_and_grad(cost, theta, x, y, weights, context, feedback):
    unflatten = cost.layout.unflatten
    if feedback is not None:
        cost.layout.check(feedback, "feedback")
    C, gradient = cost.value_and_grad_leaves(
        unflatten(theta),
        x,
        y,
        weights=weights,
        context=context,
        feedback=None if feedback is None else unflatten(feedback),
    )
    return C, cost.layout.flatten(gradient)


@partial(jax.jit, static_argnums=(0, 1))
def _measure(cost, readouts, theta, x, y, weights, context, feedback):
    params = cost.layout.unflatten(theta)
    if feedback is not None:
        cost.layout.check(feedback, "feedback")
    x, y = cost._check(x, y, weights, feedback, context)
    n = jax.tree.leaves(x)[0].shape[0]
    factors = cost._factors(weights, jnp.ones(n, wide_dtype(theta.dtype)))
    C, _, readings = reverse(
        cost.network.layer,
        params,
        x,
        cost._seed(y, weights, scaled=False),
        Reader((Leaves(), *readouts), factors),  # whose shapes are checked; it is not computed if nobody asks
        context,
        None if feedback is None else cost.layout.unflatten(feedback),
    )
    gradient, *results = collect((Leaves(), *readouts), cost.layout, readings)
    check_gradients(params, gradient)
    return C, tuple(results)
