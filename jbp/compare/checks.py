"""What is looked at besides values: how a rule behaves under JAX's transformations, and what it keeps.

Most of these are mathematics, so both sides are run in float64 (`replay`): they agree to the last digits or not at all.
A check that can't be tried (a rule that is not differentiable twice, say) tells why and fails nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from ..errors import InputError, described, said
from ..programs.arguments import is_float
from ..programs.program import Program
from ..programs.replay import equations
from .comparison import Comparison
from .derivatives import of_floats
from .equalities import EQUAL, distance, equal, mapped, scanned
from .error import FAR, errors, rms
from .evidence import Evidence
from .identities import Identities
from .parts import check_same
from .points import beside, movement
from .report import Check, Report
from .saved import saved

WIDE = 1e-5  # of a leaf's size: constants that are rounded to float32 make less


def of_gradients(comparison: Comparison, rule: Callable[..., Any], given: Evidence) -> tuple[Check, ...]:
    """Of any function that returns gradients."""
    arguments = comparison.rule.arguments
    arrays = arguments.arrays

    def plain(arrays: Sequence[Any]) -> Any:
        return jax.tree.leaves(rule(*arguments.filled(arrays)))

    return (
        *_types(comparison),
        _determinism(comparison, lambda: Program("rule", rule, arguments.filled(arrays))),
        _without_jit(comparison, given, lambda: rule(*arguments.filled(arrays))),
        *equal(
            {"vmap": lambda a: mapped(jax.vmap, plain, a), "scan": lambda a: mapped(scanned, plain, a)},
            arrays,
        ),
    )


def _in_float64(comparison: Comparison, given: Evidence) -> Iterator[Check]:
    """Of float16 and narrower: a factor of 1.01 hides behind their rounding, and not in float64.

    Nothing is told at a kink, where a rule may choose, nor of programs whose own constants are so narrow that they
    differ by as much.
    """
    arrays, rule, oracle = comparison.arrays, comparison.rule, comparison.oracle
    if not isinstance(oracle, Program) or given.met is not None or not any(map(is_narrow, arrays)):
        return
    if any(map(_has_narrow_constants, (rule, oracle))):
        yield Check("in float64", None, "can't be told: constants in the program are rounded to its dtype")
        return
    run = lambda program: lambda *a: comparison.leaves(program.exact(*a))
    noise = movement(run(rule), beside(arrays))
    far = [
        (part.name, rms(np.where(keep, a - b, 0)), rms(np.where(keep, b, 0)), rms(moved))
        for part, a, b, moved in zip(given.got, run(rule)(*arrays), run(oracle)(*arrays), noise, strict=True)
        for keep in [np.isfinite(a) & np.isfinite(b)]
    ]
    wrong = [f"{name} by {off / size if size else off:.1e}" for name, off, size, moved in far
             if off > max(WIDE * size, FAR * moved)]  # fmt: skip
    yield Check("in float64", not wrong, f"differs in {wrong[0]} of its size" if wrong else "as the oracle")


def _has_narrow_constants(program: Program) -> bool:
    """Whether a float of 16 bits or fewer stands in the program that may have been rounded: no small fraction."""
    literals = (v.val for eqn in equations(program.jaxpr) for v in eqn.invars if isinstance(v, Literal))
    values = [np.asarray(a).astype(np.float64) for a in (*literals, *program.jaxpr.consts) if is_narrow(a)]
    return any((np.isfinite(v) & (v * 64 != np.round(v * 64))).any() for v in values)


def of_rule(identities: Identities, comparison: Comparison, given: Evidence) -> tuple[Check, ...]:
    """Of a flat function with custom rules, at one set of arguments."""
    args = tuple(identities.args)
    plain = identities.derivative
    turns = len(comparison.arrays) and np.shape(comparison.arrays[0]) != np.shape(args[0])
    told = [] if turns else [
        _determinism(comparison, lambda: Program("rule", lambda *a: plain(a), args)),
        _without_jit(comparison, given, lambda: plain(args)),
    ]  # fmt: skip
    found = [*_types(comparison), *told, *_in_float64(comparison, given), *identities.checks()]
    if identities.kind == "vjp":
        arrays, floats = identities.arrays, identities.floats
        ruled, bare = (of_floats(f, floats, arrays) for f in (identities.ruled, identities.bare))
        found += [*_float0(identities.ruled, arrays), saved(ruled, bare, [arrays[i] for i in floats])]
    return tuple(found)


def also_in_float32(report: Report, args: tuple, again: Callable[[tuple], Report]) -> Report:
    """The report; for float16 and narrower with a check where rounding hides less, at float32 arguments."""
    if not any(map(is_narrow, jax.tree.leaves(args))):
        return report
    try:
        found = again(jax.tree.map(lambda a: a.astype(np.float32) if is_narrow(a) else a, args))
    except InputError as error:
        check = Check("in float32", None, f"can't be tried: {error}")
    else:
        forward = all(check.ok is not False for check in found.checks if check.name == "forward value")
        ok = found.values_ok and forward and all(call.values_ok for call in found.calls)
        check = Check("in float32", ok, found.verdict)
    return replace(report, checks=(*report.checks, check))


def is_narrow(a: Any) -> bool:
    """Whether this is an array of floats of 16 bits or fewer."""
    return hasattr(a, "dtype") and is_float(a) and float(jnp.finfo(a.dtype).eps) > 1e-6


def _types(comparison: Comparison) -> Iterator[Check]:
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
    if all(is_float(a) for a in arrays):
        return
    try:
        outs, pull = jax.vjp(lambda *a: [o for o in ruled(*a) if is_float(o)], *arrays)
        wrong = [described(g) for a, g in zip(arrays, pull(outs), strict=True)
                 if not is_float(a) and g.dtype != jax.dtypes.float0]  # fmt: skip
        yield Check("integer arguments", not wrong, "; ".join(wrong) or "gradients of dtype float0")
    except Exception as error:  # whatever a stranger's rule raises is the answer
        yield Check("integer arguments", False, f"{said(error)}")


def _determinism(comparison: Comparison, again: Callable[[], Program]) -> Check:
    """Two runs must be equal bit by bit, and a second trace the same function."""
    arrays = comparison.arrays
    if not _repeats(comparison.rule, arrays):
        return Check("determinism", False, "two runs of one compiled program differ")
    if isinstance(comparison.oracle, Program) and not _repeats(comparison.oracle, arrays):
        return Check("determinism", False, "two runs of the oracle differ, so what it says is chance")
    if _small(arrays):
        pairs = zip(*(jax.tree.leaves(p.exact(*arrays)) for p in (again(), comparison.rule)), strict=True)
        if max((distance(a, b) for a, b in pairs), default=0.0) > EQUAL:
            text = "traced again it is another function: it depends on more than its arguments"
            return Check("determinism", False, text)
    return Check("determinism", True, "two runs are equal bit by bit")


def _repeats(program: Program, arrays: Sequence[Any]) -> bool:
    """Whether two runs are equal bit by bit."""
    first, second = ([np.asarray(a).tobytes() for a in jax.tree.leaves(program(*arrays))] for _ in range(2))
    return first == second


def _small(arrays: Sequence[Any]) -> bool:
    return sum(np.size(a) for a in arrays) <= 1 << 16


def _without_jit(comparison: Comparison, given: Evidence, run: Callable[[], Any]) -> Check:
    """Run op by op, the rule must be as near to the shadow as it must be when it is compiled."""
    try:
        got = comparison.parts(run())
        check_same(comparison.who, got, given.got)
        got, compiled, plain, exact = map(given.finite, (got, given.got, given.plain, given.exact))
        before, eager = errors(compiled, plain, exact), errors(got, plain, exact)
    except Exception as error:  # whatever a stranger's rule raises is the answer
        return Check("without jit", None, f"can't be tried: {said(error)}")
    worse = [e.name for e, c in zip(eager, before, strict=True) if c.ok and not e.ok and e.error > 8 * c.allowed]
    return Check("without jit", not worse, f"wrong in {worse[0]}" if worse else "as with it")
