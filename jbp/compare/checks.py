"""What is looked at besides values: how a rule behaves under JAX's transformations, and what it keeps.

Most of these are mathematics, so both sides are run in float64 (`replay`): they agree to the last digits or not at all.
A check that can't be tried (a rule that is not differentiable twice, say) tells why and fails nothing.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ..layer import InputError, described
from .derivatives import in_pieces
from .differences import Slopes, beside, unit_of
from .error import FAR, errors
from .parts import check_same
from .program import Program, said
from .replay import BITS, equations
from .report import Check
from .saved import saved

if TYPE_CHECKING:
    from .judge import Comparison

EXACT = 1e-9  # relative to the largest element: how far two ways of one computation may be in float64
Pair = tuple[Any, Any]  # two results that must be equal


def of_gradients(comparison: "Comparison", rule: Callable[..., Any]) -> tuple[Check, ...]:
    """Of any function that returns gradients."""
    arguments = comparison.rule.arguments
    arrays = arguments.arrays

    def plain(arrays: Sequence[Any]) -> Any:
        return jax.tree.leaves(rule(*arguments.filled(arrays)))

    return (
        *_types(comparison),
        _determinism(comparison, lambda: Program("rule", rule, arguments.filled(arrays))),
        _without_jit(comparison, lambda: rule(*arguments.filled(arrays))),
        *_equal(
            comparison,
            {"vmap": lambda a: _mapped(jax.vmap, plain, a), "scan": lambda a: _mapped(_scan, plain, a)},
            arrays,
        ),
    )


def of_vjp(
    ruled: Callable, bare: Callable, arrays: Sequence[Any], cotangents: Sequence[Any], comparison: "Comparison"
) -> tuple[Check, ...]:
    """Of a flat function with a custom_vjp, `ruled`, and without it, `bare`, at one set of arguments."""
    floats = [i for i, a in enumerate(arrays) if jnp.issubdtype(a.dtype, jnp.inexact)]
    n = len(arrays)

    def of_floats(function: Callable, arrays: Sequence[Any], only: Sequence[int] = floats) -> Callable:
        def run(*moving: Any) -> list[Any]:
            filled = list(arrays)
            for i, a in zip(only, moving, strict=True):
                filled[i] = a
            return [out for out in function(*filled) if jnp.issubdtype(jnp.result_type(out), jnp.inexact)]

        return run

    def gradient(
        function: Callable, arrays: Sequence[Any], cotangents: Sequence[Any], only: Sequence[int] = floats
    ) -> list:
        return list(jax.vjp(of_floats(function, arrays, only), *(arrays[i] for i in only))[1](list(cotangents)))

    def forward(args: Sequence[Any]) -> Pair:
        outs = jax.vjp(of_floats(ruled, args[:n]), *(args[i] for i in floats))[0]
        return outs, of_floats(bare, args[:n])(*(args[i] for i in floats))

    def linearity(args: Sequence[Any]) -> Pair:
        arrays, u = args[:n], args[n:]
        v = [jnp.flip(c) for c in u]
        scaled = lambda factor, tree: [(factor * t).astype(t.dtype) for t in tree]
        add = lambda a, b: [x + y for x, y in zip(a, b, strict=True)]
        mixed = gradient(ruled, arrays, add(scaled(3, u), scaled(-2, v)))
        apart = add(scaled(3, gradient(ruled, arrays, u)), scaled(-2, gradient(ruled, arrays, v)))
        up = 16.0 if min(c.dtype.itemsize for c in u) == 1 else 1024.0  # what every dtype holds
        large = scaled(1 / up, gradient(ruled, arrays, scaled(up, u)))
        small = scaled(up, gradient(ruled, arrays, scaled(1 / up, u)))
        plain = gradient(ruled, arrays, u)
        return [*mixed, *large, *small], [*apart, *plain, *plain]

    def partial(args: Sequence[Any]) -> Pair:
        """Of one argument, and from one output, at a time: the others' perturbations are symbolic zeros."""
        arrays, u = args[:n], args[n:]
        alone = [gradient(ruled, arrays, u, [i])[0] for i in floats]
        total = gradient(ruled, arrays, u)
        if len(u) > 1:
            first = [u[0], *(jnp.zeros_like(c) for c in u[1:])]
            single = jax.vjp(lambda *m: of_floats(ruled, arrays)(*m)[0], *(arrays[i] for i in floats))[1](u[0])
            return [*alone, *single], [*total, *gradient(ruled, arrays, first)]
        return alone, total

    # not along the arguments themselves: there the second derivative of a homogeneous function is 0
    waves = [np.cos(0.5 + 1.7 * np.arange(arrays[i].size)).reshape(arrays[i].shape) for i in floats]
    direction = [(wave * unit_of(arrays[i])).astype(arrays[i].dtype) for i, wave in zip(floats, waves, strict=True)]

    def second(args: Sequence[Any], reverse: bool) -> Pair:
        arrays, u = args[:n], args[n:]
        moving = [arrays[i] for i in floats]

        def once(function: Callable) -> Callable:
            def run(*moving: Any) -> list[Any]:
                filled = list(arrays)
                for i, a in zip(floats, moving, strict=True):
                    filled[i] = a
                return gradient(function, filled, u)

            return run

        # beside the first derivative: a second that is zero but for rounding is then no larger than it should be
        join = lambda seconds, firsts: [jnp.stack([a, b]) for a, b in zip(seconds, firsts, strict=True)]
        first = once(ruled)(*moving)
        if reverse:
            return tuple(join(jax.vjp(once(g), *moving)[1](direction), first) for g in (ruled, bare))  # type: ignore[return-value]
        return tuple(join(jax.jvp(once(g), moving, direction)[1], first) for g in (ruled, bare))  # type: ignore[return-value]

    plain = lambda args: gradient(ruled, args[:n], args[n:])
    autodiff = lambda args: gradient(bare, args[:n], args[n:])
    tried: dict[str, Callable[[Sequence[Any]], Pair]] = {
        "forward value": forward,
        "linear in the cotangent": linearity,
        "symbolic zeros": partial,
        "vmap": lambda a: _mapped(jax.vmap, plain, a),
        "scan": lambda a: _mapped(_scan, plain, a),
        "second order, forward": lambda a: second(a, False),
        "second order, reverse": lambda a: second(a, True),
    }
    args = [*arrays, *cotangents]
    with_turns = len(comparison.arrays) and np.shape(comparison.arrays[0]) != np.shape(args[0])
    told = [] if with_turns else [
        _determinism(comparison, lambda: Program("rule", lambda *a: plain(a), tuple(args))),
        _without_jit(comparison, lambda: plain(args)),
    ]  # fmt: skip
    found = [
        _settled(check, (autodiff, plain), args, floats, direction, second)
        if check.ok is False and "second" in check.name
        else check
        for check in _equal(comparison, tried, args)
    ]
    return (*_types(comparison), *_float0(ruled, arrays), *told, *found,
            saved(of_floats(ruled, arrays), of_floats(bare, arrays), [arrays[i] for i in floats]))  # fmt: skip


# -- equal in float64 -------------------------------------------------------------------------------------------------


def _scan(function: Callable) -> Callable:
    return lambda args: jax.lax.map(function, args)


def _mapped(transform: Callable, function: Callable, args: Sequence[Any]) -> Pair:
    """A function mapped over two points, and on each by itself."""
    stacked = [jnp.stack([a, (a * 0.75).astype(a.dtype) if jnp.issubdtype(a.dtype, jnp.inexact) else a]) for a in args]
    each = [function([a[i] for a in stacked]) for i in range(2)]
    return transform(function)(stacked), [jnp.stack(pair) for pair in zip(*each, strict=True)]


def _equal(comparison: "Comparison", tried: dict[str, Callable], arrays: Sequence[Any]) -> Iterator[Check]:
    """Each pair of computations in float64, all in one program."""
    able: dict[str, Callable] = {}
    reasons: dict[str, str] = {}
    rounds: set[str] = set()  # what keeps its own precision in float64
    for name, pair in tried.items():
        try:
            jaxpr = jax.make_jaxpr(pair)(list(arrays))
            if any(eqn.primitive.name == "custom_lin" for eqn in equations(jaxpr)):
                reasons[name] = "can't be tried: forward mode meets a custom_vjp, inside the rule itself"
                continue
            able[name] = pair
            rounds |= {name} if any(eqn.primitive.name in BITS for eqn in equations(jaxpr)) else set()
        except Exception as error:  # whatever a stranger's rule raises is the answer
            reasons[name] = f"can't be tried: {said(error)}"
    try:
        program = Program("checks", lambda *a: {name: pair(list(a)) for name, pair in able.items()}, tuple(arrays))
        results = program.exact(*arrays)
    except InputError as error:
        results, reasons = {}, {name: f"can't be tried: {error}" for name in tried}
    epsilon = max((float(jnp.finfo(a.dtype).eps) for a in arrays if jnp.issubdtype(a.dtype, jnp.inexact)), default=0.0)
    noise: list[Any] = []
    for name in tried:
        if name in reasons:
            yield Check(name, None, reasons[name])
            continue
        # a rule and its primal may hold different constants, rounded to their dtype; a rule and itself may not
        tolerance = 64 * epsilon if name in rounds or name.startswith(("second", "forward")) else 0.0
        got, expected = results[name]
        far = max((_distance(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)
        ok = far <= max(EXACT, tolerance)
        if not ok and math.isfinite(far):
            noise = noise or [program.exact(*near) for near in beside(arrays)]
            ok = all(map(_within, got, expected, *([*zip(*run[name], strict=True)] for run in noise)))
        yield Check(name, ok, f"relative difference {far:.1e} in float64")


def _distance(a: Any, b: Any) -> float:
    """The largest difference relative to the largest element; NaN only equals NaN in the same place."""
    a, b = np.asarray(a), np.asarray(b)
    if not a.size:
        return 0.0
    odd = ~np.isfinite(a) | ~np.isfinite(b)
    if (odd & (np.nan_to_num(a, nan=0.5) != np.nan_to_num(b, nan=0.5))).any():
        return float("inf")
    off, peak = np.abs(np.where(odd, 0, a) - np.where(odd, 0, b)).max(), np.abs(np.where(odd, 0, b)).max()
    return float(off / peak) if peak else float(off)


def _within(got: Any, expected: Any, first: Pair, *others: Pair) -> bool:
    """Whether two results differ by no more than the noise of either: what rounding leaves where all else cancels."""
    with np.errstate(all="ignore"):
        noise = max(np.abs(np.asarray(pair[k]) - np.asarray(first[k])).max() for pair in others for k in (0, 1))
        return bool(np.all(np.abs(np.asarray(got) - np.asarray(expected)) <= FAR * noise))


def _settled(
    check: Check, gradients: Sequence[Callable], args: Sequence[Any], floats: Sequence[int], direction: Sequence[Any],
    second: Callable,
) -> Check:  # fmt: skip
    """A second order that differs from autodiff's is right all the same if central differences of the gradient say so.

    Of autodiff's gradient; where that has no slope (it is NaN, or jumps at a kink), of the rule's.
    """
    reverse = check.name.endswith("reverse")
    try:
        both = Program("second order", lambda *a: [pair[0] for pair in second(list(a), reverse)[0]], tuple(args))
        got = both.exact(*args)
        slopes = [
            Slopes(Program("the gradient", lambda *a, g=g: g(list(a)), tuple(args)), args, floats).along(
                in_pieces(direction)
            )
            for g in gradients
        ]
    except InputError:
        return check
    for g, of_autodiff, of_rule in zip(got, *slopes, strict=False):
        smooth = np.isfinite(of_autodiff.value) & (of_autodiff.error < 1e-3 * np.abs(of_autodiff.value).max(initial=0))
        far = [1e-6 * np.abs(s.value).max(initial=0) for s in (of_autodiff, of_rule)]
        agrees = np.where(smooth, of_autodiff.agrees(g, far[0]), of_rule.agrees(g, far[1]))
        if not np.all(agrees):
            return Check(check.name, False, f"{check.text}; central differences of the gradient don't agree either")
    return Check(check.name, True, "as central differences of the gradient, if not as autodiff's")


# -- the rest ---------------------------------------------------------------------------------------------------------


def _types(comparison: "Comparison") -> Iterator[Check]:
    rule, oracle = (jax.tree.leaves(program.out) for program in (comparison.rule, comparison.oracle))
    how = {True: "weakly", False: "strongly"}
    different = [
        f"{described(a)} {how[a.weak_type]} typed, {how[b.weak_type]} by the oracle"
        for a, b in zip(rule, oracle, strict=True)
        if a.weak_type != b.weak_type
    ]
    yield Check("weak types", None if different else True, "; ".join(different[:3]) or "as the oracle's")


def _float0(ruled: Callable, arrays: Sequence[Any]) -> Iterator[Check]:
    """Integer arguments have gradients of dtype float0."""
    if all(jnp.issubdtype(a.dtype, jnp.inexact) for a in arrays):
        return
    try:
        outs, pull = jax.vjp(
            lambda *a: [o for o in ruled(*a) if jnp.issubdtype(jnp.result_type(o), jnp.inexact)], *arrays
        )
        wrong = [described(g) for a, g in zip(arrays, pull(outs), strict=True)
                 if not jnp.issubdtype(a.dtype, jnp.inexact) and g.dtype != jax.dtypes.float0]  # fmt: skip
        yield Check("integer arguments", not wrong, "; ".join(wrong) or "gradients of dtype float0")
    except Exception as error:  # whatever a stranger's rule raises is the answer
        yield Check("integer arguments", False, f"{said(error)}")


def _determinism(comparison: "Comparison", again: Callable[[], Program]) -> Check:
    """Two runs must be equal bit by bit, and a second trace the same function."""
    arrays = comparison.arrays
    if not _repeats(comparison.rule, arrays):
        return Check("determinism", False, "two runs of one compiled program differ")
    if isinstance(comparison.oracle, Program) and not _repeats(comparison.oracle, arrays):
        return Check("determinism", False, "two runs of the oracle differ, so what it says is chance")
    if _small(arrays):
        pairs = zip(*(jax.tree.leaves(p.exact(*arrays)) for p in (again(), comparison.rule)), strict=True)
        if max((_distance(a, b) for a, b in pairs), default=0.0) > EXACT:
            text = "traced again it is another function: it depends on more than its arguments"
            return Check("determinism", False, text)
    return Check("determinism", True, "two runs are equal bit by bit")


def _repeats(program: Program, arrays: Sequence[Any]) -> bool:
    """Whether two runs are equal bit by bit."""
    first, second = ([np.asarray(a).tobytes() for a in jax.tree.leaves(program(*arrays))] for _ in range(2))
    return first == second


def _small(arrays: Sequence[Any]) -> bool:
    return sum(np.size(a) for a in arrays) <= 1 << 16


def _without_jit(comparison: "Comparison", run: Callable[[], Any]) -> Check:
    """Run op by op, the rule must be as near to the shadow as it must be when it is compiled."""
    plain = comparison.plain
    try:
        got = comparison.parts(run())
        check_same(comparison.who, got, plain)
        compiled = errors(comparison.got, plain, comparison.exact)
        eager = errors(got, plain, comparison.exact)
    except Exception as error:  # whatever a stranger's rule raises is the answer
        return Check("without jit", None, f"can't be tried: {said(error)}")
    worse = [e.name for e, c in zip(eager, compiled, strict=True) if c.ok and not e.ok and e.error > 8 * c.allowed]
    return Check("without jit", not worse, f"wrong in {worse[0]}" if worse else "as with it")
