"""Several losses of one network as one: C_n = Σ_k w_k C_nk.

    value    Σ_k w_k value_k(output_k, y_k)
    delta    Σ_k w_k delta_k(output_k, y_k); of an output that is a tuple of K parts, each term's own

For multi-task networks (an output for each task: `jbp.Fork`) and for several costs of one output. `jbp.by_term` reads
each term by itself.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..layer import InputError, described
from .loss import Loss, all_positions


@dataclass(frozen=True)
class Terms:
    """C_n = Σ_k w_k C_nk of K losses without params; y is a tuple of K, one for each term.

    An output that is a tuple of K parts gives term k its part k; any other output is that of every term. `weights`: K
    numbers, ones unless given.
    """

    losses: tuple[Any, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self):
        object.__setattr__(self, "losses", tuple(self.losses))
        for loss in self.losses:
            if not isinstance(loss, Loss) or isinstance(loss, type):
                raise InputError(f"Terms: expected losses with value and delta, got {loss!r}.")
        if not self.losses:
            raise InputError("Terms: expected at least one loss, got none.")
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(map(float, self.weights)))
            if len(self.weights) != len(self.losses):
                raise InputError(f"Terms: expected {len(self.losses)} weights, one a loss, got {len(self.weights)}.")

    @property
    def mixes_examples(self) -> bool:
        return any(getattr(loss, "mixes_examples", False) for loss in self.losses)

    def parts(self, output: Any, y: Any) -> list[tuple[Any, Any]]:
        """(output, y) of each term. Raises `InputError` where y is not K of them, or the output is another tuple."""
        k = len(self.losses)
        if not isinstance(y, tuple) or len(y) != k:
            raise InputError(f"Terms: expected y as a tuple of {k}, one for each loss, got {described(y)}.")
        if not isinstance(output, tuple):
            return [(output, each) for each in y]
        if len(output) != k:
            raise InputError(f"Terms: expected an output of {k} parts, one for each loss, got {described(output)}.")
        return list(zip(output, y, strict=True))

    def check(self, output: Any, y: Any) -> None:
        for loss, part in zip(self.losses, self.parts(output, y), strict=True):
            if hasattr(loss, "check"):
                loss.check(*part)

    def check_values(self, output: Any, y: Any) -> None:
        for loss, part in zip(self.losses, self.parts(output, y), strict=True):
            if hasattr(loss, "check_values"):
                loss.check_values(*part)

    def value(self, output: Any, y: Any) -> Float[Array, "N"]:
        terms = zip(self._weights, self.losses, self.parts(output, y), strict=True)
        return jnp.stack([w * loss.value(*part) for w, loss, part in terms]).sum(0)

    def delta(self, output: Any, y: Any) -> Any:
        deltas = [
            jax.tree.map(lambda d, w=w: w * d, loss.delta(*part))
            for w, loss, part in zip(self._weights, self.losses, self.parts(output, y), strict=True)
        ]
        return tuple(deltas) if isinstance(output, tuple) else jax.tree.map(lambda *each: sum(each), *deltas)

    def counted(self, output: Any, y: Any) -> Float[Array, "N"]:
        """T_n, where the terms can't differ in it. Raises `InputError` where they can."""
        axes = {a.shape[1:-1] for a in jax.tree.leaves(output)}
        if len(axes) > 1 or any(hasattr(loss, "counted") for loss in self.losses):
            raise InputError(
                "Terms: reduction='positions' divides by how many positions count, which may be another number for "
                "each term. Give each of them positions='mean', and reduce by 'mean'."
            )
        return all_positions(output)

    def term(self, k: int) -> "OneTerm":
        """Term k by itself, unweighted, on the whole output and the whole y."""
        return OneTerm(self, k)

    @property
    def _weights(self) -> tuple[float, ...]:
        return self.weights or (1.0,) * len(self.losses)


@dataclass(frozen=True)
class OneTerm:
    """C_nk: one of several losses, with a δ of 0 at the parts of the output that are the others'."""

    terms: Terms
    k: int

    def value(self, output: Any, y: Any) -> Float[Array, "N"]:
        return self.terms.losses[self.k].value(*self.terms.parts(output, y)[self.k])

    def delta(self, output: Any, y: Any) -> Any:
        own = self.terms.losses[self.k].delta(*self.terms.parts(output, y)[self.k])
        if not isinstance(output, tuple):
            return own
        return tuple(own if i == self.k else jax.tree.map(jnp.zeros_like, part) for i, part in enumerate(output))
