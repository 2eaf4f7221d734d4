"""A projection to classes and its softmax cross-entropy in one, so that the logits of a batch never exist as a whole.

    forward    z = h w,  C_n = Σ_t f_t (log Σ_c e^{z_tc} − Σ_c q_tc z_tc + λ (log Σ_c e^{z_tc})²)
               q = (1 − s) onehot(y) + s/K,  s = label_smoothing,  λ = z_loss
    backward   ε_t = δ_n f_t ((1 + 2λ log Σ_c e^{z_tc}) softmax(z_t) − q_t),  δh_t = w ε_t
    gradient   ∂C/∂w = Σ_nt h_t ⊗ ε_t

f_t is 0 where the label is `ignore`, NaN where it is no class, and 1 elsewhere, divided by max(1, counted positions)
for positions="mean". All is computed for `chunk` positions at a time. Nothing comes after a loss, so δ_n is known
before its forward, and `turn` makes values and gradients in one sweep of three products over the chunks; autodiff of
a checkpointed forward needs four. Readings that add up are read chunk by chunk; for any other the pair computes ε
again, of whole examples.

Saved: h and y, because the logits are computed again. Shapes: h `[N, *T, W]`, y `[N, *T]`, w `[W, K]`, C_n `[N]`.
Source: Wijmans et al. 2024, arXiv:2411.09009 (logits that never exist); the sweep itself is the text's induction.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from ..errors import check_whole, is_whole
from ..layer import Context, InputError, described, einsum, wide_dtype
from ..layers.dense import Affine, Dense, Initializer, initialised
from ..pair import Outer
from ..recomputed import Portion, Recomputed, cut, over_pieces, size_of_pieces
from .cross_entropy import SoftmaxCrossEntropy, check_labels, counted_labels, label_factors

LOGITS = 7 << 20  # that exist at a time, at most, unless `chunk` says how many positions: 28 MiB of float32, in cache


@dataclass(frozen=True)
class LinearCrossEntropy:
    """C_n from h `[N, *T, W]` and labels y `[N, *T]`, with the kernel w `[W, classes]` as a leaf of its own.

    `chunk`: how many positions of the batch have logits at a time; None for at most 7·2²⁰ logits. A reading that does
    not add up, as squared norms, needs those of at least one example. `label_smoothing`, `ignore`, `positions` and
    `z_loss` are as in `SoftmaxCrossEntropy`, where the first is called `smoothing`. To tie w to a table `[classes, W]`
    of the network's first layer, write `Cost(net, loss, tied={"loss.w": "0.table.T"})`. Labels outside 0 … classes − 1
    are an error that `Cost.check` names; under jit they make the cost NaN.
    """

    classes: int
    chunk: int | None = None
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    ignore: int | None = None
    positions: Literal["sum", "mean"] = "sum"
    weights: str | Initializer = "lecun_normal"

    def __post_init__(self):
        check_whole("LinearCrossEntropy", classes=self.classes, remedy="Count the labels.")
        if self.chunk is not None:
            remedy = "Leave it out for at most 7·2²⁰ logits at a time."
            check_whole("LinearCrossEntropy", chunk=self.chunk, remedy=remedy)
        if not 0 <= self.label_smoothing < 1:
            raise InputError(
                f"LinearCrossEntropy: label_smoothing must be in [0, 1), got {self.label_smoothing}. As in 0.1."
            )
        if not 0 <= self.z_loss < math.inf:
            raise InputError(f"LinearCrossEntropy: z_loss must be at least 0, got {self.z_loss}. As in 1e-4.")
        if self.ignore is not None and not is_whole(self.ignore):
            raise InputError(
                f"LinearCrossEntropy: ignore must be a label, a whole number, or None, got {self.ignore!r}. As in -1."
            )
        if self.positions not in ("sum", "mean"):
            raise InputError(
                f"LinearCrossEntropy: positions must be 'sum' or 'mean', got {self.positions!r}. "
                "The reduction over examples is Cost's."
            )

    def unfused(self) -> tuple[Dense, SoftmaxCrossEntropy]:
        """The layer and the loss that this is, apart; with the same params."""
        loss = SoftmaxCrossEntropy(self.label_smoothing, self.ignore, self.positions, self.z_loss)
        return Dense(self.classes, bias=False, weights=self.weights), loss

    def init(self, key: PRNGKeyArray, x: Any) -> Affine:
        h: Any = x[0] if isinstance(x, tuple) and len(x) == 2 else None
        if not hasattr(h, "dtype") or not h.shape or not jnp.issubdtype(h.dtype, jnp.floating):
            raise InputError(
                f"LinearCrossEntropy({self.classes}): expected (h, y) with one float output h [N, ..., W] of the "
                f"network, without its batch axis, got {described(x)}. Let the network end in features."
            )
        return Affine(initialised("weights", self.weights, key, (h.shape[-1], self.classes), h.dtype), None)

    def check_values(self, x: tuple[Any, Any]) -> None:
        """Raise on labels out of range. Needs values, so it runs outside jit: `Cost.check` calls it."""
        check_labels("LinearCrossEntropy", x[1], self.classes, self.ignore)

    def counted(self, output: Any, y: Integer[Array, "N *T"]) -> Float[Array, "N"]:
        """How many positions of each example count; of the output the spec is enough."""
        return counted_labels(y, self.ignore, wide_dtype(output.dtype))

    def forward(self, params: Affine, x: tuple[Any, Any], context: Context) -> tuple[Float[Array, "N"], Any]:
        h, y, factors = self._positions(params, x)
        chunks = self._chunks(y)
        c = jax.lax.map(lambda part: part[2] * self._costs(params.w, *part[:2])[0], chunks.cut((h, y, factors)))
        return chunks.joined(c).sum(1), x

    def backward(
        self, params: Affine, feedback: Affine, saved: Any, delta: Float[Array, "N"], read: Affine
    ) -> tuple[tuple[Any, None], Affine]:
        h, y = saved
        h, delta = jax.lax.optimization_barrier((h, delta))  # else XLA keeps the logits of the first forward
        return self.turn(params, feedback, (h, y), delta, read, Context())[1:]

    def turn(
        self,
        params: Affine,
        feedback: Affine,
        x: tuple[Any, Any],
        delta: Float[Array, "N"],
        read: Affine,
        context: Context,
    ) -> tuple[Float[Array, "N"], tuple[Any, None], Affine]:
        h, y, factors = self._positions(params, x)
        scaled, chunks = factors * delta.astype(factors.dtype)[:, None], self._chunks(y)

        def chunk(part: Any) -> tuple[Any, Any]:
            (h, y, factors, scaled), first = part
            c, sums = self._costs(params.w, h, y)
            errors = self._errors(sums, y, scaled).astype(h.dtype)
            delta_h = einsum("nto,io->nti", errors, feedback.w).astype(h.dtype)
            reading = read.w(chunks.pair(Outer(h, errors), first)) if read.w.adds else ()
            return reading, (factors * c, delta_h)

        reading, (c, delta_h) = over_pieces(chunk, (chunks.cut((h, y, factors, scaled)), chunks.firsts))
        if not read.w.adds:
            reading = read.w(Recomputed(self, (h, y, scaled), params.w, max(1, self._most // y.shape[1])))
        return chunks.joined(c).sum(1), (chunks.joined(delta_h).reshape(x[0].shape), None), Affine(reading, None)

    def outer(self, each: tuple[Any, Any, Any], w: Float[Array, "W K"]) -> Outer:
        """The pair of some examples, made anew from their h `[n, T, W]`, y and factors of C_n `[n, T]`."""
        h, y, scaled = each
        return Outer(h, self._errors(self._costs(w, h, y)[1], y, scaled).astype(h.dtype))

    # -- one chunk: h [n, t, W], y and factors [n, t] -----------------------------------------------------------------

    def _costs(self, w: Any, h: Any, y: Any) -> tuple[Float[Array, "n t"], Any]:
        """(each position's cost without its factor, (e^{z − max}, its sum, log Σ_c e^{z_c}))."""
        z = einsum("nti,io->nto", h, w)
        top = jax.lax.stop_gradient(z.max(-1, keepdims=True))
        z = z - top  # p and C keep their digits near p = 1
        powers = jnp.exp(z)
        total = powers.sum(-1, keepdims=True)
        label = jnp.clip(y, 0, self.classes - 1)[..., None]  # where it is no class, the factor says so
        c = jnp.log(total) - (1 - self.label_smoothing) * jnp.take_along_axis(z, label, -1)
        if self.label_smoothing:
            c = c - self.label_smoothing * z.mean(-1, keepdims=True)
        log_sum = top + jnp.log(total)
        if self.z_loss:
            c = c + self.z_loss * jnp.square(log_sum)
        return c[..., 0], (powers, total, log_sum)

    def _errors(self, sums: Any, y: Any, scaled: Any) -> Float[Array, "n t K"]:
        """ε_t, the derivative by the logits."""
        powers, total, log_sum = sums
        scaled = scaled[..., None]
        of_p = scaled * (1 + 2 * self.z_loss * log_sum) if self.z_loss else scaled
        hot = jax.lax.broadcasted_iota(jnp.int32, powers.shape, powers.ndim - 1) == y[..., None]
        errors = powers * (of_p / total) - jnp.where(hot, (1 - self.label_smoothing) * scaled, 0)
        return errors - scaled * (self.label_smoothing / self.classes) if self.label_smoothing else errors

    # -- cutting the batch ---------------------------------------------------------------------------------------------

    @property
    def _most(self) -> int:
        if self.chunk is not None:
            return self.chunk
        return 1 << max(1, LOGITS // self.classes).bit_length() - 1  # a power of 2, which divides most sizes

    def _chunks(self, y: Any) -> "_Chunks":
        """Positions of every example, so that a batch may be spread over devices; examples where they are too many."""
        n, t = y.shape
        return _Chunks(n, t, size_of_pieces(n, self._most), size_of_pieces(t, self._most // n))

    def _positions(self, params: Affine, x: tuple[Any, Any]) -> tuple[Any, Any, Any]:
        """h `[N, T, W]`, y and the factors f `[N, T]`, with one axis of positions. Raises where they don't fit."""
        if not isinstance(x, tuple) or len(x) != 2 or any(not hasattr(part, "dtype") for part in x):
            raise InputError(
                f"LinearCrossEntropy({self.classes}): expected (h, y) of one array each, got {described(x)}. "
                "Use jnp.asarray(y), and let the network end in one array."
            )
        h, y = x
        width = params.w.shape[0]
        if h.ndim < 2 or h.shape[-1] != width or not jnp.issubdtype(h.dtype, jnp.floating):
            raise InputError(
                f"LinearCrossEntropy({self.classes}): expected floats h [N, ..., W = {width}], got {described(h)}. "
                "Check the width of the network's last layer."
            )
        if y.shape != h.shape[:-1] or not jnp.issubdtype(y.dtype, jnp.integer):
            weights = y.shape[:-1] == h.shape[:-1] and jnp.issubdtype(y.dtype, jnp.floating)
            other = "Give one label for each position." if y.shape != h.shape[:-1] else "Cast labels to int32."
            raise InputError(
                f"LinearCrossEntropy({self.classes}): expected y as integer labels {list(h.shape[:-1])} for "
                f"h {described(h)}, got {described(y)}. "
                + ("Weights of classes are for SoftmaxCrossEntropy." if weights else other)
            )
        n, t = h.shape[0], math.prod(h.shape[1:-1])
        factors = label_factors(y, self.classes, self.ignore, self.positions, wide_dtype(h.dtype))
        return h.reshape(n, t, width), y.astype(jnp.int32).reshape(n, t), factors.reshape(n, t)


@dataclass(frozen=True)
class _Chunks:
    """N examples of T positions in chunks of n examples and t positions, one after another."""

    N: int
    T: int
    n: int
    t: int

    def cut(self, arrays: Any) -> Any:
        """Arrays `[N, T, …]` as chunks `[C, n, t, …]`; what is missing in the last ones is 0, its factors too."""

        def of(a: Array) -> Array:
            if self.n == self.N:  # nothing is done to the examples, which may be spread over devices
                return jnp.moveaxis(cut(a, 1, self.t), 1, 0)
            a = jnp.moveaxis(cut(cut(a, 1, self.t), 0, self.n), 2, 1)
            return a.reshape(-1, *a.shape[2:])

        return jax.tree.map(of, arrays)

    @property
    def firsts(self) -> Integer[Array, "C"]:
        """The number of each chunk's first example."""
        along, across = -(-self.T // self.t), -(-self.N // self.n)
        return jnp.arange(across * along, dtype=jnp.int32) // along * self.n

    def joined(self, a: Array) -> Array:
        """`[N, T, …]` of `[C, n, t, …]`."""
        if self.n == self.N:
            a = jnp.moveaxis(a, 0, 1)
            return a.reshape(self.N, -1, *a.shape[3:])[:, : self.T]
        a = jnp.moveaxis(a.reshape(-1, -(-self.T // self.t), *a.shape[1:]), 1, 2)
        return a.reshape(a.shape[0] * self.n, -1, *a.shape[4:])[: self.N, : self.T]

    def pair(self, outer: Outer, first: Any) -> Any:
        """A chunk's pair as one of all N examples."""
        return outer if self.n == self.N else Portion(outer, first, self.N)
