"""The induction. Read this first, then `layers/dense.py`, then `readouts.py`.

The text's C(W, b; x) is a function of θ = (W, b), with x and y fixed. Its gradient is found by an induction over
layers: at each layer, everything follows from the later derivative δ and from what the forward pass kept.
`Cost.induction` is that induction with its three dials; the rest of `Cost` turns them for the quantities that people
ask for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from . import curvature
from .checking import check_batch, check_everything, check_readouts
from .layer import Context, InputError, Layer, Theta, batch_of, says, wide_dtype
from .layout import Layout
from .loss_leaves import LossLeaves, input_of_loss
from .losses.loss import FromValue, all_positions, as_layer
from .meshes import as_leaves, jitted, on_any_mesh
from .network import Network, cast
from .outside import check_arrays, check_hashable, check_key, check_logits
from .pair import Pair
from .reader import Reader, check_gradients, read_gradient, read_nothing, read_whole
from .readouts import Pairs, Readout, Split, check_shapes, collect, readers_of
from .run import run, step, turned
from .seeds import Opened, check_seed, read_seeds, seed_of


class Params(NamedTuple):
    """Params of a cost whose loss has some: the network's leaves, then the loss's own."""

    network: Any
    loss: Any


@dataclass(frozen=True)
class Cost:
    """C : R^(#W+#b) → R, the loss of a network on a batch, as a function of θ with x and y fixed.

    `loss`: an object with `value` and `delta`, see `losses`; or a layer from (output, y) to C_n `[N]`, whose params, if
    it has any, are the last part of θ: `cost.layout` names them `loss.…`, `cost.init(key)` makes both parts, and
    `cost.split(theta)` gives them apart. `tied`: {a leaf of the loss: a leaf of the network}, as in
    `{"loss.w": "0.table"}`, or `"0.table.T"` for its transpose (`"0.fixed.table"` inside `Frozen`): one leaf, one pair
    of its uses.

    `reduction`: over the examples, with weights `w: [N]` that are ones unless given:
    `"mean"` Σ_n w_n C_n / Σ_n w_n, `"sum"` Σ_n w_n C_n, or `"positions"` Σ_n w_n C_n / Σ_n w_n T_n, where T_n is the
    number of positions of example n that count (the mean over tokens): as the loss's `counted(output, y) -> [N]` says,
    else all of them. Where labels are ignored is the loss's business; `context.mask` does not reach it.

    Every method takes θ `[P]`, x `[N, *input]`, y as the loss has it, and a `Context`; is a pure function; and is
    jitted. `jax.grad(cost)` is the oracle for `cost.grad`. Leaves that a layer holds fixed have gradient 0.

    Raises `InputError` where shapes or dtypes don't fit. What depends on values (labels in range, NaN in data) can't be
    checked under jit: `cost.check(theta, x, y)` checks it, and `fit` and `compare` call that.
    """

    network: Network
    loss: Any
    reduction: Literal["mean", "sum", "positions"] = "mean"
    tied: Any = ()

    def __post_init__(self):
        if not isinstance(self.network, Network):
            raise InputError(f"Cost: expected a Network, got {self.network!r}. Write Network(layers, input=(...)).")
        if self.reduction not in ("mean", "sum", "positions"):
            raise InputError(f"Cost: reduction must be 'mean', 'sum' or 'positions', got {self.reduction!r}.")
        check_hashable("Cost", self.loss)
        _ = self.loss_layer
        check_logits(self.network.layers, self.loss)
        if self.reduction == "positions" and getattr(self.loss, "positions", "sum") != "sum":
            raise InputError("Cost: reduction='positions' needs the sum over positions. Give the loss positions='sum'.")
        if not isinstance(self.tied, Mapping | tuple):
            raise InputError(
                f"Cost: tied must be {{a leaf of the loss: a leaf of the network}}, got {self.tied!r}. "
                "As in tied={'loss.w': '0.w'}."
            )
        object.__setattr__(self, "tied", tuple(sorted(dict(self.tied or ()).items())))
        _ = self._loss_leaves

    # -- the two parts of θ -----------------------------------------------------------------------------------------

    @cached_property
    def loss_layer(self) -> Layer:
        """The loss as a layer from (output, y) to C_n."""
        return as_layer(self.loss)

    @property
    def _place(self) -> str | None:
        """Where the loss stands in errors: one without params names itself."""
        return None if isinstance(self.loss_layer, FromValue) else "loss"

    @cached_property
    def _loss_leaves(self) -> "LossLeaves":
        return LossLeaves.of(self.network, self.loss_layer, dict(self.tied))

    @cached_property
    def layout(self) -> Layout:
        """The layout of θ: the network's leaves under their own names, then the loss's as `loss.…`."""
        if not self._loss_leaves.own:
            return self.network.layout
        layout = Layout.of(Params(self.network.params_spec, self._loss_leaves.spec))
        return replace(layout, names=tuple(name.removeprefix("network.") for name in layout.names))

    def split(self, theta: Theta) -> tuple[Float[Array, "Q"], Float[Array, "R"]]:
        """(the network's θ, the loss's θ), P = Q + R: `net(...)` takes the first."""
        self.layout.check(theta)
        return theta[: self.network.layout.size], theta[self.network.layout.size :]

    def coordinate(self, who: str, symbol: str) -> int:
        """The number in θ of one of the network's coordinates, by its symbol.

        Raises `InputError` for an unknown symbol, and in the name of `who` for a coordinate of the loss.
        """
        i = self.layout.index(symbol)
        if i >= self.network.layout.size:
            raise InputError(
                f"{who} speaks of the network's own coordinates; {self.layout.symbol(i)} belongs to the loss. Its "
                f"derivative is cost.grad(theta, x, y)[{i}]."
            )
        return i

    def init(self, key: PRNGKeyArray) -> Float[Array, "P"]:
        """θ from the initialisers of the layers and the loss."""
        check_key("Cost.init", key)
        return _init(self, key)

    def _apart(self, tree: Any) -> tuple[Any, list[Any]]:
        """(the network's tree, the loss's own leaves) of params, or of readers."""
        if not self._loss_leaves.own:
            return tree, []
        own: Any = jax.tree.structure(self._loss_leaves.spec)
        return tree.network, own.flatten_up_to(tree.loss)

    def _together(self, network: Any, loss: Any) -> Any:
        """The readings of the cost's params, from the network's and those of all leaves of the loss."""
        leaves = self._loss_leaves
        return Params(network, leaves.without_ties(loss)) if leaves.own else network

    def loss_params(self, theta: Theta) -> Any:
        """All params of the loss, those that are tied from the network's."""
        return self._loss_leaves.filled(*self._apart(self.layout.unflatten(jnp.asarray(theta))))

    # -- the induction ----------------------------------------------------------------------------------------------

    def induction(
        self,
        params: Any,
        feedback: Any,
        x: Any,
        y: Any,
        delta: Any,
        read: Any,
        context: Context,
        layer: Any = None,
        ran: Any = None,
    ) -> tuple[Float[Array, "N"], Any, Any]:
        """(C_n `[N]`, δ of x, readings in the structure of params).

        The three dials: `delta` `[N]`, the factor of each C_n, is what enters at the end; `feedback` is what carries
        it down, the params themselves if None; `read` is what is read at each parameter. `layer` stands for the
        network's own: a recorder around it; `ran` is the (output, back) of a forward that others go back through, too.
        """
        leaves, dtype = self._loss_leaves, self.network.layer.inner_dtype(params)
        carries = params if feedback is None else feedback
        (net, own), (net_back, own_back), (net_read, own_read) = map(self._apart, (params, carries, read))
        loss, loss_back = (cast(leaves.filled(*part), dtype) for part in ((net, own), (net_back, own_back)))

        # going forward, each layer keeps what its step back needs
        output, back = ran or run(layer or self.network.layer, net, x, context)
        # base case: δ at the output
        values, delta, loss_readings = turned(
            self._place,
            self.loss_layer,
            loss,
            loss_back,
            (output, y),
            delta,
            leaves.readers(net_read, own_read),
            context,
        )
        # inductive steps: δ of each layer from δ of the one after it
        delta_x, readings = back(delta, leaves.last(net_read, loss_readings), None if feedback is None else net_back)
        return values, delta_x, self._together(readings, loss_readings)

    def _forward(self, params: Any, x: Any, y: Any, context: Context) -> Float[Array, "N"]:
        """C_n, going forward only."""
        net, own = self._apart(params)
        output, _ = self.network.layer.forward(net, x, context)
        loss = cast(self._loss_leaves.filled(net, own), self.network.layer.inner_dtype(params))
        return step(self._place, self.loss_layer, loss, (output, y), context)[0]

    # -- on the vector ----------------------------------------------------------------------------------------------

    def __call__(self, theta: Theta, x: Any, y: Any, *, weights=None, context=Context()) -> Float[Array, ""]:
        """C, going forward only."""
        check_arrays(theta=theta, x=x, y=y, weights=weights)
        return _value(self, theta, x, y, weights, context)

    def value_and_grad(self, theta: Theta, x: Any, y: Any, *, weights=None, context=Context(), feedback=None):
        """(C, ∇C `[P]`) by the hand-written reverse pass. `feedback: [P]` carries delta down in place of θ."""
        check_arrays(theta=theta, x=x, y=y, weights=weights, feedback=feedback)
        return _value_and_grad(self, theta, x, y, weights, context, feedback)

    def grad(self, theta: Theta, x: Any, y: Any, *, weights=None, context=Context(), feedback=None):
        """∇C `[P]` by the hand-written reverse pass."""
        return self.value_and_grad(theta, x, y, weights=weights, context=context, feedback=feedback)[1]

    def measure(self, theta: Theta, x: Any, y: Any, *readouts: Readout, weights=None, context=Context(), feedback=None):
        """(C, tuple of the readouts' results), all from one forward and one reverse pass for each seed that they ask
        for (the loss's own δ, unless a readout has a `seed`). A single readout's result comes alone.

        Readouts of single examples speak of the unscaled per-example cost C_n; a network that mixes examples has none.
        """
        check_readouts("Cost.measure", self, readouts)
        for readout in readouts:
            if hasattr(readout, "seed"):
                check_seed(type(readout).__name__, readout.seed, self.loss_layer)
                if feedback is not None:
                    raise InputError(
                        f"Cost.measure: {type(readout).__name__} speaks of J, which θ itself carries. "
                        "Leave out feedback."
                    )
        check_arrays(theta=theta, x=x, y=y, weights=weights, feedback=feedback)
        split, arrays = Split.of(readouts)
        value, results = _measure(self, split, arrays, theta, x, y, weights, context, feedback)
        return value, results[0] if len(readouts) == 1 else results

    def hvp(self, theta: Theta, x: Any, y: Any, v: Any, *, weights=None, context=Context()) -> Float[Array, "*K P"]:
        """H v, H = ∂²C/∂θ², for v `[P]`, or for several `[K, P]`. Exact: the hand-written gradient, differentiated
        along v. Two to three gradients' work for each v."""
        return curvature.hvp(self, theta, x, y, v, weights, context)

    def hessian_diagonal(
        self,
        theta: Theta,
        x: Any,
        y: Any,
        *,
        key=None,
        samples=100,
        estimator: Literal["signs", "xdiag"] = "signs",
        chunk=16,
        weights=None,
        context=Context(),
    ) -> tuple[Float[Array, "P"], Float[Array, "P"]]:
        """(diagonal of H `[P]`, its standard error `[P]`). Without a key exact, by P Hessian products, `chunk` of them
        at a time, and the error is 0; with one an estimate by `samples` products. "signs": the mean of v ⊙ H v over
        random signs (Hutchinson's, as Bekas et al. 2007 have it for a diagonal), with an error that falls as
        1/√samples. "xdiag": the smaller error where few eigenvalues are large; it holds 2·samples vectors like θ."""
        return curvature.hessian_diagonal(self, theta, x, y, key, samples, estimator, chunk, weights, context)

    def ggnvp(self, theta: Theta, x: Any, y: Any, v: Any, *, weights=None, context=Context()) -> Float[Array, "*K P"]:
        """G v, G = Σ_n w_n J_nᵀ H_n J_n, for v `[P]` or `[K, P]`: J_n = ∂output_n/∂θ, H_n the loss's Hessian, w_n the
        factors of C_n in C. A loss with params is taken apart (`unfused`). About two gradients' work for each v."""
        return curvature.ggnvp(self, theta, x, y, v, weights, context)

    def fvp(
        self, theta: Theta, x: Any, y: Any, v: Any, *, seed: Any = "exact", weights=None, context=Context()
    ) -> Float[Array, "*K P"]:
        """F v, F = Σ_n w_n J_nᵀ E[S Sᵀ] J_n, S = ∂(−log likelihood)/∂output of labels from the model, for v `[P]` or
        `[K, P]`. `seed`: "exact" takes the expectation, and F is the GGN, for a loss that is −log of a likelihood;
        `jbp.Sampled(key)` draws labels; "empirical" has those of y: F = Σ_n w_n g_n g_nᵀ, which is another matrix."""
        return curvature.fvp(self, theta, x, y, v, seed, weights, context)

    def pairs(self, theta: Theta, x: Any, y: Any, *, context=Context(), feedback=None) -> dict[str, Pair]:
        """{leaf name: Pair} of the unscaled per-example costs C_n."""
        pairs = self.measure(theta, x, y, Pairs(), context=context, feedback=feedback)[1]
        return {name: pairs[name] for name in self.layout.names}

    def read(self, pairs: Mapping[str, Pair], *readouts: Readout, weights=None) -> Any:
        """The readouts' results from pairs kept earlier, `cost.pairs(...)`. A single readout's result comes alone.

        The factors of C_n are those of the reduction, which for `"positions"` is not known any more: that raises.
        """
        check_readouts("Cost.read", self, readouts)
        if seeded := [r for r in readouts if seed_of(r) is not None]:
            raise InputError(
                f"Cost.read: these pairs are of the loss's own δ, and {type(seeded[0]).__name__} is of another seed. "
                "Use cost.measure."
            )
        if self.reduction == "positions":
            raise InputError("Cost.read: pairs don't say how many positions count. Use cost.measure, or another cost.")
        if set(pairs) != set(self.layout.names):
            raise InputError(
                f"Cost.read: expected a pair for each of {', '.join(self.layout.names)}, got {', '.join(pairs)}. "
                "Pass what cost.pairs(theta, x, y) returned."
            )
        split, arrays = Split.of(readouts)
        results = _read(self, split, arrays, [pairs[name] for name in self.layout.names], weights)
        return results[0] if len(readouts) == 1 else results

    @cached_property
    def mixed_by(self) -> str | None:
        """The first layer, or the loss, that mixes the examples of a batch; None if each is by itself."""
        return says(self.network.layer.layers, "mixes_examples") or says(self.loss_layer, "mixes_examples")

    # -- on leaves: for programs that stay inside one jit -----------------------------------------------------------

    @on_any_mesh
    def value_leaves(self, params: Any, x: Any, y: Any, *, weights=None, context=Context()) -> Float[Array, ""]:
        """C with θ as leaves, going forward only, and no jit of its own."""
        self.layout.checked_leaves("Cost.value_leaves: params", params)
        x, y = self._check(x, y, weights, context)
        return (self._factors(params, x, y, weights) * self._forward(params, x, y, context)).sum()

    @partial(on_any_mesh, cuts=as_leaves(1))
    def value_and_grad_leaves(self, params: Any, x: Any, y: Any, *, weights=None, context=Context(), feedback=None):
        """(C, ∇C) with θ and ∇C as leaves, `cost.layout.unflatten(theta)`, and no jit of its own.

        The gradient of a leaf that is held fixed is None. Convert once per compiled program and use this inside: a
        vector in a hot step costs up to twice the time.
        """
        self.layout.checked_leaves("Cost.value_and_grad_leaves: params", params)
        x, y = self._check(x, y, weights, context, params, feedback)
        factors = self._factors(params, x, y, weights)
        values, _, gradient = self.induction(params, feedback, x, y, factors, self._readers(read_gradient), context)
        check_gradients(params, gradient)
        cast_back = lambda leaf, g: None if g is None else g.astype(leaf.dtype)
        return (factors * values).sum(), jax.tree.map(cast_back, params, gradient)

    def _readers(self, read: Reader) -> Any:
        """The reader of each leaf, that of a gradient; nothing is read where one is held fixed."""
        return self.layout.treedef.unflatten([read if t else read_nothing for t in self.layout.trainable])

    def _factors(self, params: Any, x: Any, y: Any, weights: Any) -> Float[Array, "N"]:
        """The factor of each C_n in C."""
        n, dtype = jax.tree.leaves(x)[0].shape[0], wide_dtype(self.network.layer.inner_dtype(params))
        w = jnp.ones(n, dtype) if weights is None else jnp.asarray(weights, dtype)
        if self.reduction == "sum":
            return w
        if self.reduction == "mean":
            return w / w.sum()
        return w / (w * self.counted(y, n).astype(dtype)).sum()

    def _base(self, factors: Float[Array, "N"]) -> tuple[Float[Array, "N"], Float[Array, "N"]]:
        """(δ of each C_n, weights of the readers).

        Readers meet the pairs of the unscaled C_n; mixed examples have none, and the seed itself is scaled.
        """
        ones = jnp.ones_like(factors)
        return (ones, factors) if self.mixed_by is None else (factors, ones)

    def counted(self, y: Any, n: int) -> Float[Array, "N"]:
        """T_n of n examples: as the loss says, else all positions, the axes between the first and the last."""
        output = batch_of(self.network.output, n)
        if hasattr(self.loss, "counted"):
            return self.loss.counted(output, y)
        return all_positions(output)

    def _check(
        self, x: Any, y: Any, weights: Any, context: Context = Context(), params: Any = None, feedback: Any = None
    ) -> tuple[Any, Any]:
        return check_batch(self, x, y, weights, context, params, feedback)

    def _parts_of(self, params: Any, feedback: Any) -> list[tuple[Layer, Any, Any]]:
        (net, own), (net_back, own_back) = self._apart(params), self._apart(feedback)
        return [(self.network.layer.layers, net, net_back), (self.loss_layer, own, own_back)]

    # -- against the oracle -----------------------------------------------------------------------------------------

    def compare(
        self, theta: Theta, x: Any, y: Any, *, weights=None, context=Context(), timing=True, checks=False
    ) -> Any:
        """The hand-written gradient against `jax.grad` of the same cost, both against float64, by leaf: a `Report`.

        Where they disagree, each layer is compared by itself on what really reached it: `report.enters` names the
        first, in the order of the reverse pass, that is wrong.
        """
        from .compare.costs import compare_cost  # the one place where the induction knows of comparing

        self.check(theta, x, y, weights=weights, context=context)
        return compare_cost(self, theta, x, y, weights, context, timing, checks)

    @property
    def name(self) -> str:
        """The loss and the network, for a report."""
        return f"{type(self.loss).__name__} of {self.layout.size:,} parameters"

    # -- what needs values, not shapes ------------------------------------------------------------------------------

    def check(self, theta: Theta, x: Any, y: Any, *, weights=None, context=Context()) -> None:
        """Raise `InputError` where *values* don't fit: NaN or inf in θ, x, y or the weights, labels out of range, no
        weight at all, and what a layer's own `check_values(x)` finds in the x that reaches it. Not under jit.

        It raises, too, where a layer's backward gives a leaf's reader its pair in pieces, though not all readings add
        up: a gradient alone would not tell.
        """
        check_everything(self, theta, x, y, weights, context)
        _read_whole.eval_shape(self, theta, x, y, context)


@partial(jax.jit, static_argnums=0)
def _init(cost, key):
    network = cost.network.init(key)
    if not cost._loss_leaves.own:
        return network
    loss = cost.loss_layer.init(Context(key).child("loss").key, input_of_loss(cost.network))
    return cost.layout.flatten(Params(cost.network.layout.unflatten(network), cost._loss_leaves.without_ties(loss)))


@jitted(0)
def _value(cost, theta, x, y, weights, context):
    return cost.value_leaves(cost.layout.unflatten(theta), x, y, weights=weights, context=context)


@jitted(0, cuts=as_leaves(1))
def _value_and_grad(cost, theta, x, y, weights, context, feedback):
    layout = cost.layout
    if feedback is not None:
        layout.check(feedback, "feedback")
        feedback = layout.unflatten(feedback)
    params = layout.unflatten(theta)
    C, gradient = cost.value_and_grad_leaves(params, x, y, weights=weights, context=context, feedback=feedback)
    return C, layout.flatten(layout.filled(gradient, theta.dtype))


@jitted(0)
def _read_whole(cost, theta, x, y, context):
    """The gradient by readers that don't add up: traced, and never run."""
    params = cost.layout.unflatten(theta)
    factors = cost._factors(params, x, y, None)
    return cost.induction(params, None, x, y, factors, cost._readers(read_whole), context)[2]


@jitted(0, 1, cuts=as_leaves(3))
def _measure(cost, split, arrays, theta, x, y, weights, context, feedback):
    params = cost.layout.unflatten(theta)
    if feedback is not None:
        cost.layout.check(feedback, "feedback")
        feedback = cost.layout.unflatten(feedback)
    x, y = cost._check(x, y, weights, context, params, feedback)
    factors = cost._factors(params, x, y, weights)
    delta, weights = cost._base(factors)
    readouts = split.filled(arrays)
    own, seeded = (tuple(r for r in readouts if (seed_of(r) is not None) is has_seed) for has_seed in (False, True))
    opened = Opened.of(cost, params, x, context) if seeded else None
    read, ran = readers_of(own, cost.layout, weights), None if opened is None else opened.network
    values, _, readings = cost.induction(params, feedback, x, y, delta, read, context, ran=ran)
    check_shapes(own, cost.layout, readings, factors.shape[0])
    results = iter(collect(own, cost.layout, readings))
    others = iter(read_seeds(opened, seeded, y, weights, factors.shape[0]) if opened else ())
    return (factors * values).sum(), tuple(next(results if seed_of(r) is None else others) for r in readouts)


@jitted(0, 1)
def _read(cost, split, arrays, pairs, weights):
    n = jax.eval_shape(lambda pairs: pairs[0].squared_norms(), pairs).shape[0]
    w = jnp.ones(n, wide_dtype(cost.layout.dtype)) if weights is None else jnp.asarray(weights)
    factors = w / w.sum() if cost.reduction == "mean" else w
    readouts = split.filled(arrays)
    readers = cost.layout.treedef.flatten_up_to(readers_of(readouts, cost.layout, factors))
    readings = cost.layout.treedef.unflatten([reader(pair) for reader, pair in zip(readers, pairs, strict=True)])
    return collect(readouts, cost.layout, readings)
