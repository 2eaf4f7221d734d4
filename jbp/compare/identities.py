"""Computations that must be equal: what mathematics says of a right rule under JAX's transformations.

Each is run in float64 (`replay`), where the two sides agree to the last digits or not at all.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..programs.arguments import filled, is_float
from ..programs.program import Program
from .derivatives import Flat, floats_of, in_pieces, of_floats, paired, pulled, pushed
from .differences import DIRECTIONS, Slope, Slopes, summed
from .equalities import EQUAL, Both, distance, equal, mapped, scanned, tolerance_of
from .points import stream, unit_of
from .report import Check


@dataclass(frozen=True)
class Identities:
    """Of a flat function with custom rules, `ruled`, and without, `bare`, at one set of arguments.

    `kind`: "vjp", with `seeds` the cotangents of its float outputs, or "jvp", with tangents of its float arguments. No
    derivative is taken for the first `consts` arrays. What is compared gets the arrays and the seeds in one list.
    """

    kind: str
    ruled: Flat
    bare: Flat
    arrays: Sequence[Any]
    seeds: Sequence[Any]
    consts: int = 0

    @property
    def args(self) -> list[Any]:
        return [*self.arrays, *self.seeds]

    @cached_property
    def floats(self) -> list[int]:
        return [i for i in floats_of(self.arrays) if i >= self.consts]

    def split(self, args: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        return list(args[: len(self.arrays)]), list(args[len(self.arrays) :])

    def derivative(self, args: Sequence[Any], function: Flat | None = None) -> list[Any]:
        """The rule's, unless another function is given."""
        derivative = pulled if self.kind == "vjp" else pushed
        return derivative(function or self.ruled, self.floats, *self.split(args))

    def checks(self) -> Iterator[Check]:
        """Each identity, tried."""
        linear = "linear in the cotangent" if self.kind == "vjp" else "linear in the tangent"
        tried: dict[str, Callable[[Sequence[Any]], Both]] = {
            "forward value": self.forward_value,
            linear: self.linearity,
            "symbolic zeros": self.one_at_a_time,
            "vmap": lambda args: mapped(jax.vmap, self.derivative, args),
            "scan": lambda args: mapped(scanned, self.derivative, args),
            "second order, forward": lambda args: self.second_order(args, False),
        }
        if self.kind == "vjp":
            tried["second order, reverse"] = lambda args: self.second_order(args, True)
        else:
            tried["transposed"] = self.transposed
        for check in equal(tried, self.args):
            if check.ok is False and check.name.startswith("second order"):
                yield self.settled(check, check.name.endswith("reverse"))
            elif check.ok is None and check.name == "transposed" and self._reversible:
                yield Check(
                    check.name,
                    False,
                    "reverse mode takes the primal, and not the rule: " + check.text.partition(": ")[2],
                )
            else:
                yield check

    def forward_value(self, args: Sequence[Any]) -> Both:
        """All outputs, integers too, as they are while a derivative is taken."""
        arrays, seeds = self.split(args)
        moving = [arrays[i] for i in self.floats]

        def run(*moving: Any) -> list[Any]:
            return list(self.ruled(*filled(arrays, self.floats, moving)))

        outs = jax.vjp(run, *moving)[0] if self.kind == "vjp" else jax.jvp(run, moving, seeds)[0]
        told = [i for i, out in enumerate(outs) if not jnp.issubdtype(out.dtype, jax.dtypes.extended)]  # no keys
        due = list(self.bare(*arrays))
        return [outs[i] for i in told], [due[i] for i in told]

    def linearity(self, args: Sequence[Any]) -> Both:
        arrays, u = self.split(args)
        v = [jnp.flip(c) for c in u]
        at = lambda seeds: self.derivative([*arrays, *seeds])
        scaled = lambda factor, tree: [(factor * t).astype(t.dtype) for t in tree]
        add = lambda a, b: [x + y for x, y in zip(a, b, strict=True)]
        plain, other = at(u), at(v)
        finite = lambda result: [
            jnp.where(jnp.isfinite(p) & jnp.isfinite(o), r, 0)  # sums of infinities say nothing
            for r, p, o in zip(result, plain, other, strict=True)
        ]
        mixed, apart = at(add(scaled(3, u), scaled(-2, v))), add(scaled(3, plain), scaled(-2, other))
        up = 16.0 if min(c.dtype.itemsize for c in u) == 1 else 1024.0  # what every dtype holds
        large, small = scaled(1 / up, at(scaled(up, u))), scaled(up, at(scaled(1 / up, u)))
        return [*finite(mixed), *finite(large), *finite(small)], [*finite(apart), *finite(plain), *finite(plain)]

    def one_at_a_time(self, args: Sequence[Any]) -> Both:
        """Of one argument, and from one output, at a time: the others' perturbations are symbolic zeros."""
        arrays, u = self.split(args)
        total = self.derivative(args)
        if self.kind == "jvp":
            parts = [pushed(self.ruled, [i], arrays, [t]) for i, t in zip(self.floats, u, strict=True)]
            return [sum(outs[1:], outs[0]) for outs in zip(*parts, strict=True)], total
        alone = [pulled(self.ruled, [i], arrays, u)[0] for i in self.floats]
        if len(u) == 1:
            return alone, total
        first = [u[0], *(jnp.zeros_like(c) for c in u[1:])]
        one = lambda *arrays: [out for out in self.ruled(*arrays) if is_float(out)][:1]
        single = pulled(one, self.floats, arrays, u[:1])
        return [*alone, *single], [*total, *self.derivative([*arrays, *first])]

    def transposed(self, args: Sequence[Any]) -> Both:
        """⟨u, J t⟩ = ⟨Jᵀ u, t⟩: a rule for forward mode that reverse mode transposes."""
        arrays, t = self.split(args)
        out = self.derivative(args)
        u = [wave_like(o).astype(o.dtype) for o in out]
        back = pulled(self.ruled, self.floats, arrays, u)
        return [paired(out, u)], [paired(back, t)]

    @property
    def _reversible(self) -> bool:
        """Whether reverse mode takes the primal."""
        run = of_floats(self.bare, self.floats, self.arrays)
        try:
            jax.eval_shape(lambda *moving: jax.vjp(run, *moving)[0], *(self.arrays[i] for i in self.floats))
        except Exception:  # whatever a stranger's function raises is the answer
            return False
        return True

    @cached_property
    def direction(self) -> list[np.ndarray]:
        """Not along the arguments themselves: there the second derivative of a homogeneous function is 0."""
        arrays = [self.arrays[i] for i in self.floats]
        return [(wave_like(a) * unit_of(a)).astype(a.dtype) for a in arrays]

    @cached_property
    def symmetric(self) -> list[np.ndarray] | None:
        """A direction that leaves matrices symmetric which are so; None where no argument is a symmetric matrix."""
        arrays = [np.asarray(self.arrays[i]) for i in self.floats]
        are = [_is_symmetric(a) for a in arrays]
        of = lambda v, is_so: ((v + _turned(v)) / 2).astype(v.dtype) if is_so else v
        return list(map(of, self.direction, are)) if any(are) else None

    def second_order(self, args: Sequence[Any], reverse: bool, direction: Sequence[Any] | None = None) -> Both:
        arrays, seeds = self.split(args)
        moving = [arrays[i] for i in self.floats]
        direction = self.direction if direction is None else direction

        def once(function: Flat) -> Callable:
            return lambda *moving: self.derivative([*filled(arrays, self.floats, moving), *seeds], function)

        # beside the first derivative: a second that is zero but for rounding is then no larger than it should be
        first = once(self.ruled)(*moving)
        if reverse:
            both = [jax.vjp(once(g), *moving)[1](list(direction)) for g in (self.ruled, self.bare)]
        else:
            both = [jax.jvp(once(g), moving, list(direction))[1] for g in (self.ruled, self.bare)]
        ruled, bare = ([jnp.stack([a, b]) for a, b in zip(seconds, first, strict=True)] for seconds in both)
        return ruled, bare

    def settled(self, check: Check, reverse: bool) -> Check:
        """A second order that differs from autodiff's is right if central differences of the derivative say so.

        It is judged only where they say so of autodiff's own: not where a derivative is stopped, jumps, or has lost its
        digits. Nor where it differs as soon as a symmetric matrix ceases to be so, and the primal reads the symmetric
        part alone: the derivative by a symmetric matrix may be written in ways that differ off those.
        """
        args = tuple(self.args)
        try:
            both = Program(
                "second order", lambda *a: [[p[0] for p in side] for side in self.second_order(a, reverse)], args
            )
            ruled, bare = both.exact(*args)
            by_autodiff = self._differences(self.bare, reverse)
            if not by_autodiff(bare):
                told = "autodiff's own differs from central differences of the derivative"
                return Check(check.name, None, told, undecided=True)
            if by_autodiff(ruled):
                return Check(check.name, True, "as central differences of the derivative, if not as autodiff's")
            wrong = f"{check.text}, and central differences agree with autodiff"
            agrees, unseen = self._along_symmetric(reverse) if self.symmetric else (False, False)
            if agrees and unseen:
                told = "a matrix is symmetric, and the primal reads its symmetric part alone; the rule is right there, "
                return Check(check.name, None, f"{told}and another function's off symmetric matrices", undecided=True)
            if agrees:
                wrong = f"{wrong}: the rule is right only while a matrix that is symmetric here stays so"
            elif self._differences(self.ruled, reverse)(bare):
                wrong = f"{wrong}: the rule's values are right beside the arguments too, but their derivative is not"
            else:
                wrong = f"{wrong}: the rule's values are right at these arguments, and not beside them"
            return Check(check.name, False, wrong)
        except InputError as error:
            return Check(check.name, None, f"it can't be told: {error}", undecided=True)

    def _along_symmetric(self, reverse: bool) -> tuple[bool, bool]:
        """(whether the second order agrees along directions that leave symmetric matrices so, whether the primal is the
        same when an antisymmetric matrix is added to them), in float64."""

        def run(*args: Any) -> Both:
            arrays, _ = self.split(args)
            off = zip(self.floats, self.direction, self.symmetric or (), strict=True)
            moved = filled(arrays, self.floats, [arrays[i] + ((v - s) / 16).astype(v.dtype) for i, v, s in off])
            values = [of_floats(self.bare, range(len(arrays)), arrays)(*at) for at in (arrays, moved)]
            return self.second_order(args, reverse, self.symmetric), values

        both = Program("second order, symmetric", run, tuple(self.args)).exact(*self.args)
        limit = max(EQUAL, tolerance_of(self.args))
        agrees, unseen = ([distance(a, b) for a, b in zip(*pair, strict=True)] for pair in both)
        return max(agrees, default=0.0) <= limit, max(unseen, default=0.0) <= EQUAL

    def _differences(self, function: Flat, reverse: bool) -> Callable[[Sequence[Any]], bool]:
        """Whether second derivatives are the slopes of a function's first one, where central differences find them."""
        args = tuple(self.args)
        derivative = Program("the derivative", lambda *args: self.derivative(args, function), args)
        probes = list(self._second(Slopes(derivative, args, self.floats), reverse))

        def agrees(seconds: Sequence[Any]) -> bool:
            with np.errstate(invalid="ignore"):
                return all(bool(np.all(slope.agrees(ask(seconds), far))) for ask, slope, far in probes)

        return agrees

    def _second(self, slopes: Slopes, reverse: bool) -> Iterator[tuple[Callable[[Sequence[Any]], Any], Slope, Any]]:
        """(what a second derivative says, its slope, how far it may be) for each number that is asked about.

        Forward mode gives J v, the slopes of the derivative along v; reverse mode Jᵀ v: ⟨w, Jᵀ v⟩ = ⟨v, J w⟩.
        """

        tiny = np.finfo(np.float64).tiny

        def told(slope: Slope, size: float) -> tuple[Slope, float]:
            vague = ~slope.kink & ~(8 * slope.error < 1e-3 * size)  # it jumps, or differences can't tell
            return slope._replace(value=np.where(vague, np.nan, slope.value)), 1e-6 * size

        if not reverse:
            for i, slope in enumerate(slopes.along(in_pieces(self.direction))):
                size = float(np.abs(slope.value).max(initial=tiny))
                yield itemgetter(i), *told(slope, size)
            return
        random, v = stream("second order"), in_pieces(self.direction)
        for _ in range(DIRECTIONS):
            w = [u * random.standard_normal(u.shape) for u in slopes.units()]
            slope, size = summed(slopes.along(w), v)
            yield partial(paired_with, w), *told(slope, max(size, tiny))


def paired_with(w: Sequence[Any], result: Sequence[Any]) -> float:
    """Re Σ w · result."""
    return sum(float(np.real(a * b).sum()) for a, b in zip(result, w, strict=True))


def wave_like(a: Any) -> np.ndarray:
    return np.cos(0.5 + 1.7 * np.arange(np.size(a))).reshape(np.shape(a))


def _turned(a: np.ndarray) -> np.ndarray:
    """The conjugate transpose of each matrix."""
    return np.conj(np.swapaxes(a, -1, -2))


def _is_symmetric(a: np.ndarray) -> bool:
    """Whether these are matrices equal to their conjugate transposes, up to last bits, and not mere numbers."""
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] < 2:
        return False
    return distance(a, _turned(a)) <= 4 * float(jnp.finfo(a.dtype).eps)
