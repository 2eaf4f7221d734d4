"""Kinks: where the two sides of a comparison inside a program are equal, and which derivatives are right there.

At a kink a derivative is a choice: any slope of the closed interval between both one-sided slopes, at each kink by
itself. So a program is run again in which each comparison that is met at its equality (max, min, abs, clip, sort,
a `where` on x > 0) takes both sides at once, in shares t and 1 − t. Its value is the same for all t in [0, 1], as the
sides are equal; its derivative G(t) is what the choice t gives, affine in each t by itself. A result is right if it is
G(t) for some t.

    met       a comparison whose sides differ by no more than what rounding makes of them
    G(t)      found by least squares within the box: ‖G(t) − result‖ least
    a jump    a comparison whose sides give other values (a step function) is no kink, and stays as it is

Equal numbers that are sorted may stand in any order: place i takes in the share F_ij what stands at place j, not
further away than the array's size allows. What leaves a place comes back to it, Σ_j F_ij = Σ_j F_ji ≤ 1, so that the
least squares find the nearest mixture of orders. Floor, round, argmax and equality itself jump: they are met, and have
no shares. `while` loops, and branches of `cond` inside, stay as they are.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from scipy.sparse import csr_array

from ..programs.arguments import filled, is_float
from ..programs.program import Program, quickly
from .choices import dead_of, has_choices, softened
from .differences import Slopes
from .error import FLOOR
from .mixtures import least_squares, placed_shares, places_of_exchanges, where_live
from .sides import Choices, Shares

CHOSEN_AT_ONCE = 16  # choices that are run by one call; fewer where the derivative is large
MOST = 4096  # kinks whose shares are chosen one by one; where there are more, those of one comparison go together
LARGEST = 2**25  # numbers in the matrix of what each kink's share moves: they are fewer where the derivative is large
CHANCE = 1024  # comparisons of which one is met by rounding alone
SOLVES = 8  # of least squares: one is enough unless kinks stand behind one another
JUMP = 1e-2  # of what the derivative makes of the arguments' sizes: a change of the value by more is a jump


class Met(NamedTuple):
    """The kinks met at one point: for each comparison where, or None, and which side the program itself takes."""

    where: list[Any]
    own: list[Any]  # the shares of the program's own sides
    number: int
    shared: bool  # each has a share
    many: bool  # too many for a choice of each by itself, or sorted numbers too far apart for an exchange
    ordered: bool  # some of them are equal numbers that are sorted
    by_chance: bool  # a few of very many, and none is exact: the point itself is on no kink


class Kinks:
    """Of a function behind a derivative: which are met at a point, and the derivative there nearest to a result."""

    def __init__(self, slopes: Slopes, kind: str = "vjp"):
        self.slopes, self.kind, self.jaxpr = slopes, kind, slopes.program.jaxpr
        self._derivatives: dict[Any, Callable[..., Any]] = {}
        self.dead = frozenset(dead_of(self.jaxpr))
        self.kinds: list[Shares] = []

    @cached_property
    def _margins(self) -> Callable[..., Any]:
        """The margins of all comparisons, as the program computes them and in float64."""

        def margins(*arrays: Any) -> Any:
            choices = Choices(self.dead)
            outs = softened(self.jaxpr, choices)(*arrays)
            self.kinds = choices.kinds
            return choices.margins, outs

        program = Program("compare: comparisons", lambda *a: margins(*a)[0], tuple(self.slopes.arrays))
        self._tree = jax.tree.structure(program.out)

        def both(consts: Any, arrays: Any) -> Any:
            return jaxpr_as_fun(program.jaxpr)(*arrays), program.in_float64(consts, arrays)

        run = quickly(both)

        def at(arrays: Sequence[Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
            with jax.enable_x64(True):
                own, wide = jax.device_get(run(program.jaxpr.consts, list(arrays)))
            return [np.asarray(a, np.float64) for a in own], list(wide)

        return at

    @cached_property
    def any(self) -> bool:
        """Whether the program compares anything."""
        return has_choices(self.jaxpr, self.dead)

    def met(self, arrays: Sequence[Any], others: Sequence[Sequence[Any]]) -> Met | None:
        """Those met at the arguments; not what is equal at the other arguments all the same."""
        if not self.any:
            return None
        own, wide = self._margins(arrays)
        with np.errstate(all="ignore"):
            found = [np.abs(b) <= 2 * np.abs(a - b) for a, b in zip(own, wide, strict=True)]
            if not any(f.any() for f in found):
                return None
            moves = [np.zeros_like(f) for f in found]
            for other in others:
                moves = [m | (o != w) for m, o, w in zip(moves, self._margins(other)[1], wide, strict=True)]
                if all(m[f].all() for m, f in zip(moves, found, strict=True)):
                    break
        found = [f & m for f, m in zip(found, moves, strict=True)]
        twice = [1 + (kind is Shares.EXCHANGES) for kind in self.kinds]  # an exchange has two places
        count = sum(int(f.sum()) // n for f, n in zip(found, twice, strict=True))
        if not count:
            return None
        shared = all(k is not Shares.NONE or not f.any() for k, f in zip(self.kinds, found, strict=True))
        where = [f if f.any() and k is not Shares.NONE else None for k, f in zip(self.kinds, found, strict=True)]
        tied = [f for f, kind in zip(found, self.kinds, strict=True) if kind is Shares.EXCHANGES and f.any()]
        many = sum(int(f.sum()) for f in found) > self._most or any(
            f.shape[-1] < 2 * (f.shape[-2] - 1) and (f[..., 0] | f[..., -1]).any() for f in tied
        )
        free = [k is not Shares.EXCHANGES for k in self.kinds]  # sorted numbers stay where they stand
        sides = [np.where(f, 0.5 * (1 + np.sign(a)), 0) if f else 0 * a for f, a in zip(free, own, strict=True)]
        exact = any((f & ((a == 0) | (b == 0))).any() for f, a, b in zip(found, own, wide, strict=True))
        by_chance = not exact and count * CHANCE <= sum(f.size for f in found)
        return Met(where, sides, count, shared, many, bool(tied), by_chance)

    @property
    def _most(self) -> int:
        """The kinks whose shares are chosen one by one."""
        return min(MOST, self._rows)

    @property
    def _rows(self) -> int:
        """The derivatives that are held at once."""
        return LARGEST // max(1, sum(np.size(self.slopes.arrays[i]) for i in self.slopes.moving))

    @property
    def _at_once(self) -> int:
        return max(1, min(CHOSEN_AT_ONCE, self._rows))

    def nearest(self, met: Met, arrays: Sequence[Any], result: Sequence[Any], units: Sequence[float]) -> list[Any]:
        """The derivative at these kinks that is nearest to a result in float64; distances in a unit for each leaf.

        Where there are too many kinks, those of one comparison have one share (exchanges: of one distance).
        """
        run = self._derivative(met)
        flat = [np.flatnonzero(m) for m in met.where if m is not None]
        some = [(m, kind is Shares.EXCHANGES) for m, kind in zip(met.where, self.kinds, strict=True) if m is not None]
        shift = np.cumsum([0, *(m.shape[-1] if many else 1 for m, many in some)])[:-1]
        keys = [
            first + (at % m.shape[-1] if many else 0 * at)
            for first, at, (m, many) in zip(shift, flat, some, strict=True)
        ]
        of = np.unique(np.concatenate(keys), return_inverse=True)[1].ravel()  # those that have one share
        leaves, comes = places_of_exchanges(some, flat)
        exchanged = leaves.sum(0) > 0
        most = 1 / np.maximum(1, leaves.T @ (1 + leaves.sum(1)))  # a share that all may have at once
        live = np.ones(len(of), bool)  # kinks, not jumps
        target = self._vector(result, units)

        def at(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[Any]]:
            """(values, derivatives as vectors, those of the last row) at rows of shares, one for each kink."""
            values, vectors, last = [], [], []
            for start in range(0, len(rows), self._at_once):
                some = rows[start : start + self._at_once]
                shares = placed_shares(some, self._at_once, met.where, flat)
                value, derivatives = run(shares, len(some), arrays, where_live(met.where, flat, live))
                derivatives = [np.asarray(d)[: len(some)] for d in derivatives]
                values.append(np.asarray(value)[: len(some)])
                pieces = [self.pieces([d[i] for d in derivatives]) for i in range(len(some))]
                vectors += [self._vector(p, units) for p in pieces]
                last = pieces[-1]
            return np.concatenate(values), np.stack(vectors), last

        def solved(group: np.ndarray, share: np.ndarray) -> tuple[float, np.ndarray, list[Any]]:
            """(distance, shares, derivative) where the kinks of a group have one share."""
            nonlocal live
            best = math.inf, share, list[Any]()
            for _ in range(SOLVES):
                count = int(group.max()) + 1
                here = np.array([share[group == k][0] for k in range(count)])
                ones = np.repeat(here[None], 2 * count + 1, 0)
                ones[np.arange(count), np.arange(count)] = 1.0
                ones[count + np.arange(count), np.arange(count)] = 0.0
                values, vectors, derivative = at(ones[:, group])
                with np.errstate(all="ignore"):
                    off = target - vectors[-1]
                    distance = float(np.sqrt(np.mean(off**2)))
                    columns = (vectors[:count] - vectors[count:-1]).T
                    jumps = ~np.isfinite(columns).all(0) | self._jumps(values, count)
                if jumps[group][live].any():
                    live &= ~jumps[group]
                    continue
                if not distance < best[0] * (1 - 1e-6):
                    break
                best = distance, share, derivative
                if distance < 1e-3 or not columns.any():
                    break
                one = csr_array((np.ones(len(group)), (np.arange(len(group)), group)), (len(group), count))
                share = least_squares(columns, off, here, (leaves @ one).toarray(), (comes @ one).toarray())[group]
            return best

        own = [side[m] for side, m in zip(met.own, met.where, strict=True) if m is not None]
        _, (vector,), derivative = at(np.concatenate(own)[None])
        if np.sqrt(np.mean((target - vector) ** 2)) < FLOOR:
            return derivative
        together = math.inf, most / 2, list[Any]()
        for start in (0.5, 0.0, 1.0):
            if not (together[0] < FLOOR or (met.many and met.ordered)):
                together = min(together, solved(of, start * most), key=lambda found: found[0])
        if together[0] < FLOOR or len(of) > self._most:
            return together[2]
        begin = np.where(exchanged, most / 2, np.clip(together[1], 0.1, 0.9))
        return min(together, solved(np.arange(len(of)), begin), key=lambda found: found[0])[2]

    def pieces(self, derivatives: Sequence[Any]) -> list[np.ndarray]:
        """A derivative as the leaves of the result."""
        derivatives = list(map(np.asarray, derivatives))
        return self.slopes.split(derivatives) if self.kind == "vjp" else derivatives

    def _vector(self, leaves: Sequence[Any], units: Sequence[float]) -> np.ndarray:
        """All leaves in their units, those that are not finite as 0: they are judged elsewhere."""
        complex_ = any(map(np.iscomplexobj, leaves))
        dtype = np.complex128 if complex_ else np.float64
        whole = np.concatenate([np.asarray(a, dtype).ravel() / unit for a, unit in zip(leaves, units, strict=True)])
        return np.concatenate([whole.real, whole.imag]) if complex_ else whole

    def _jumps(self, values: np.ndarray, count: int) -> np.ndarray:
        """Whose share changes the value, and not its slope alone."""
        change = np.abs(values[:count] - values[count:-1]).reshape(count, -1).max(1, initial=0)
        return change > JUMP * np.abs(values[-1]).max(initial=0) + JUMP**2

    def _derivative(self, met: Met) -> Callable[..., Any]:
        """(shares of the rows, how many, arrays, where) -> (the value, the derivative) at each of them."""
        pattern = tuple(m is not None for m in met.where)
        if pattern in self._derivatives:
            return self._derivatives[pattern]
        tree, moving, kind = self._tree, self.slopes.moving, self.kind

        def one(shares: Any, arrays: Any, where: Any) -> Any:
            pairs = iter(zip(where, shares, strict=True))
            leaves = [_Pair(next(pairs) if some else None) for some in pattern]
            run = softened(
                self.jaxpr, Choices(self.dead, _opened(jax.tree.unflatten(tree, leaves)) or [None] * len(leaves))
            )

            def function(*floats: Any) -> Any:
                return [out for out in run(*filled(arrays, moving, floats)) if is_float(out)]

            floats = [arrays[i] for i in moving]
            if kind == "jvp":
                values, tangents = jax.jvp(function, floats, list(arrays[-len(moving) :]))
                return jnp.concatenate([jnp.real(v).ravel().astype(np.float32) for v in values]), tangents
            value, pull = jax.vjp(lambda *f: function(*f)[0], *floats)
            return value, list(pull(jnp.ones_like(value)))

        def rows(shares: Any, count: Any, arrays: Any, where: Any) -> Any:
            def row(i: Any, found: Any) -> Any:
                each = one([share[i] for share in shares], arrays, where)
                return jax.tree.map(lambda all_, a: all_.at[i].set(a), found, each)

            spec = jax.eval_shape(lambda shares: one(shares, arrays, where), [share[0] for share in shares])
            none = jax.tree.map(lambda s: jnp.zeros((self._at_once, *s.shape), s.dtype), spec)
            return jax.lax.fori_loop(0, count, row, none)

        some = [m for m in met.where if m is not None]
        zeros = [np.zeros((self._at_once, *m.shape), np.float32) for m in some]
        program = Program(
            "compare: the derivative at kinks", rows, (zeros, np.int32(0), list(self.slopes.arrays), some)
        )
        call = lambda shares, count, arrays, where: program.exact(*shares, np.int32(count), *arrays, *where)
        self._derivatives[pattern] = call
        return self._derivatives[pattern]


class _Pair(NamedTuple):
    """A leaf of the choices: (met, share), or None."""

    pair: Any


def _opened(tree: Any) -> Any:
    """The choices as nested lists; None for one in which nothing is met."""
    if isinstance(tree, _Pair):
        return tree.pair
    opened = [_opened(part) for part in tree]
    return opened if any(part is not None for part in opened) else None
