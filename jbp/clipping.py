"""Sums of the examples' gradients g_n = ∇C_n, of the unscaled costs, weighted by their norms: clipped sums.

The norms over all leaves are known only after the pass, so what is read at each leaf is its pair; then the norms and
the weighted sum come from the same pairs, and nothing is propagated twice (book-keeping: Bu et al. 2022,
arXiv:2210.00038). A pair is kept in its smaller form, g_n or (a, δ).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .layer import InputError, described
from .layout import Layout
from .moments import counted
from .pair import Pair
from .readouts import on_vector, pairs_by_name
from .uses import Stack

_static: Any = {"static": True}


def clip_factors(squared: Float[Array, "N"], max_norm: Any) -> Float[Array, "N"]:
    """min(1, max_norm/‖g_n‖) from ‖g_n‖²: 1 for a norm of 0, NaN for a max_norm that is not above 0, or infinite."""
    most = jnp.asarray(max_norm, squared.dtype)
    most = jnp.where(most > 0, most, jnp.nan)
    # one maximum, and not two branches: XLA may compute `squared` twice, with other last bits
    norms = jnp.sqrt(jnp.maximum(squared, jnp.finfo(squared.dtype).tiny))  # at 0, sqrt has no slope
    return most / jnp.maximum(norms, most)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClippedSum:
    """Σ_n min(1, max_norm/‖g_n‖) g_n as a vector `[P]`, in one backward pass; with noise it is the gradient of DP-SGD.

    Over the examples whose weight is not 0, each counted once: padding has weight 0. A g_n of norm 0 is not clipped.

    `max_norm`: a positive number, or an array `[]` that may change from call to call without compiling anew; the sum is
    NaN where that is not positive and finite.
    `per`: what has a norm: `"example"`, all leaves of an example together; `"leaf"`, each leaf by itself; or
    {name of a group: [patterns of leaf names]}, as in {"kernels": ["*.w"], "rest": ["*.b"]}, each leaf in exactly one.
    `weights`: in place of a max_norm, w(norms `[N]`) -> `[N]`: then the sum is Σ_n w(‖g_n‖) g_n. A function of a module
    compiles once. What it gives for a norm of 0 must be finite.

    Raises `InputError` for a max_norm that is not positive, and for groups that don't cover each leaf once.
    Abadi et al. 2016, arXiv:1607.00133.
    """

    max_norm: Any = None
    per: Any = field(default="example", metadata=_static)
    weights: Any = field(default=None, metadata=_static)

    def __post_init__(self):
        if isinstance(self.per, Mapping):
            groups = tuple((name, (p,) if isinstance(p, str) else tuple(p)) for name, p in self.per.items())
            object.__setattr__(self, "per", groups)
        elif not (self.per in ("example", "leaf") or isinstance(self.per, tuple)):
            raise InputError(f"ClippedSum: per must be 'example', 'leaf' or {{group: [patterns]}}, got {self.per!r}.")
        if self.weights is not None and not callable(self.weights):
            raise InputError(f"ClippedSum: weights must be a function of the norms [N], got {self.weights!r}.")
        is_number = isinstance(self.max_norm, (int, float, np.number)) and not isinstance(self.max_norm, bool)
        if isinstance(self.max_norm, (bool, str, complex)) or (is_number and not 0 < self.max_norm < math.inf):
            raise InputError(f"ClippedSum: max_norm must be a positive number, got {self.max_norm!r}.")

    def for_leaf(self, layout: Layout, i: int) -> "ClippedSum":
        if (self.max_norm is None) == (self.weights is None):
            raise InputError("ClippedSum: expected a max_norm or weights=f(norms), one of the two.")
        if self.weights is None and jnp.shape(self.max_norm) != ():
            raise InputError(f"ClippedSum: max_norm must be one positive number, got {described(self.max_norm)}.")
        self.groups(layout)
        return self

    def groups(self, layout: Layout) -> list[list[str]]:
        """The names of the leaves that have a norm together. Raises `InputError` unless each leaf is in one group."""
        if self.per == "example":
            return [list(layout.names)]
        if self.per == "leaf":
            return [[name] for name in layout.names]
        found: dict[str, list[str]] = {group: [] for group, _ in self.per}
        for name in layout.names:
            its = [group for group, patterns in self.per if any(fnmatchcase(name, p) for p in patterns)]
            if len(its) != 1:
                raise InputError(
                    f"ClippedSum: leaf {name} is in {' and '.join(its) if its else 'no group'}. Give patterns that "
                    "hold each leaf once."
                )
            found[its[0]].append(name)
        if empty := [group for group, names in found.items() if not names]:
            raise InputError(f"ClippedSum: group {empty[0]} holds none of {', '.join(layout.names)}.")
        return list(found.values())

    def sensitivity(self, layout: Layout) -> Any:
        """The largest norm of what one example adds to the sum: max_norm·√(number of norms). What noise is measured by.

        Raises `InputError` where `weights` is any function.
        """
        if self.max_norm is None:
            raise InputError("ClippedSum.sensitivity: weights=f bound nothing. Give a max_norm.")
        return self.max_norm * math.sqrt(len(self.groups(layout)))

    def read(self, pair: Pair, weights: Float[Array, "N"]) -> Pair:
        return pair.condensed().weighted(counted(weights))

    def stack(self, readings: Pair) -> Pair:
        return Stack(readings)

    def collect(self, layout: Layout, readings: list[Any]) -> Float[Array, "P"]:
        pairs = pairs_by_name(layout, readings)
        sums: dict[str, Any] = {}
        for names in self.groups(layout):
            w = self._weights_of(jnp.stack([pairs[name].squared_norms() for name in names]).sum(0))
            sums |= {name: pairs[name].weighted_gradient(w) for name in names}
        return on_vector([sums[name] for name in layout.names])

    def _weights_of(self, squared: Float[Array, "N"]) -> Float[Array, "N"]:
        """The weight of each example from its squared norm."""
        if self.weights is None:
            return clip_factors(squared, self.max_norm)
        found = self.weights(jnp.sqrt(squared))
        if jnp.shape(found) != squared.shape:
            raise InputError(
                f"ClippedSum: weights must return a number for each of {list(squared.shape)} norms, got "
                f"{described(found)}."
            )
        return found
