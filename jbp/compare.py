"""One gradient function against another: error, where it is, time and memory.

The measure of error is a float64 shadow of the oracle: the oracle run again on the same inputs in float64, whether or
not the caller has JAX's x64 on. Autodiff in float32 has an error too; a hand-written rule is right if its own is no
worse than `K` times that. So no tolerance is picked by hand. Leaf by leaf, and for all leaves together,

    rms(rule − shadow) ≤ max(K · rms(oracle − shadow), FLOOR · ε · rms(shadow)),    ε of the leaf's dtype.

For float64 there is nothing wider to measure by: there a rule must equal the oracle to `EXACT` of the leaf's scale.

Rounding is a matter of luck in a leaf of few elements: autodiff may happen to hit one of them to the last bit. So a
rule that fails at the arguments given is tried at `NEARBY` points close by as well, and the errors of all are pooled.
Bad luck does not last; a wrong rule stays wrong, also one that is wrong at the one point given.
"""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .layer import InputError

K = 2.0  # as in FlashAttention's own tests
FLOOR = 4.0  # units in the last place, for a leaf where autodiff happens to err by next to nothing
EXACT = 1e-12
NEARBY = 16
SECONDS = 0.5  # spent on timing


@dataclass(frozen=True)
class LeafError:
    """How far a leaf is from the float64 shadow: root mean squares over it, and the one element that is furthest."""

    name: str
    size: int
    scale: float  # rms of the shadow
    error: float  # rms of rule − shadow
    oracle_error: float  # rms of oracle − shadow
    epsilon: float  # of the leaf's dtype
    largest: float  # |rule − shadow| of the element that is furthest off
    where: str  # its symbol
    got: float
    expected: float

    @property
    def allowed(self) -> float:
        """What `error` may be at most. NaN if the shadow is not finite: that vouches for nothing."""
        if not math.isfinite(self.scale):
            return math.nan
        if self.epsilon < EXACT:
            return EXACT * self.scale
        return max(K * self.oracle_error, FLOOR * self.epsilon * self.scale)

    @property
    def ratio(self) -> float:
        """The rule's error in units of the oracle's own."""
        return (
            1.0
            if self.error == self.oracle_error
            else self.error / self.oracle_error
            if self.oracle_error
            else math.inf
        )

    @property
    def excess(self) -> float:
        """The error in units of what is allowed; infinite where it is NaN."""
        if self.error == 0 and self.allowed >= 0:
            return 0.0
        excess = self.error / self.allowed if self.allowed else math.inf
        return math.inf if math.isnan(excess) else excess

    @property
    def ok(self) -> bool:
        """Whether the error is allowed. NaN and infinity never are."""
        return self.excess <= 1


class Measured(NamedTuple):
    """Median time of a call, temporary memory of the compiled program, time to trace and compile it."""

    seconds: float
    temp_bytes: int
    compile_seconds: float


@dataclass(frozen=True)
class Report:
    """What `compare` found: `print(report)` shows a table; `.ok`, `.worst`, `.to_json()`.

    `leaves` in order, `total` for all of them as one vector (a cost's value stands by itself), and time and memory.
    """

    leaves: tuple[LeafError, ...]
    total: LeafError
    rule: Measured | None
    oracle: Measured | None
    points: int = 1  # at which errors were taken and pooled

    @property
    def ok(self) -> bool:
        """Whether the total and every leaf pass."""
        return all(leaf.ok for leaf in (*self.leaves, self.total))

    @property
    def worst(self) -> LeafError:
        """The leaf whose error is largest against what is allowed."""
        return max(self.leaves, key=lambda leaf: leaf.excess)

    @property
    def verdict(self) -> str:
        """One line: whether the gradients agree, and if not, where."""
        if self.ok and self.total.oracle_error == 0:  # float64, or luck
            return (
                f"The gradients agree: the rms difference is {self.total.error:.1e}, {self.total.allowed:.1e} allowed."
            )
        if self.ok:
            return f"The gradients agree: the error is {self.total.ratio:.2f} times autodiff's own."
        worst = max(self.worst, self.total, key=lambda leaf: leaf.excess)
        return (
            f"The gradients DISAGREE, most in {worst.name}: rms error {worst.error:.1e}, allowed {worst.allowed:.1e}; "
            f"{worst.where} is {worst.got:.6g} by the rule and {worst.expected:.6g} in float64."
        )

    def to_json(self) -> str:
        """All of the report as JSON text. What is not finite stands as a string."""

        def plain(value: Any) -> Any:
            if isinstance(value, LeafError):
                return plain(dataclasses.asdict(value) | {k: getattr(value, k) for k in ("allowed", "ratio", "ok")})
            if isinstance(value, dict):
                return {key: plain(part) for key, part in value.items()}
            return str(value) if isinstance(value, float) and not math.isfinite(value) else value

        measured = {name: m._asdict() for name, m in (("rule", self.rule), ("oracle", self.oracle)) if m}
        leaves = [plain(leaf) for leaf in self.leaves]
        return json.dumps(
            {"ok": self.ok, "leaves": leaves, "total": plain(self.total), **measured, "points": self.points}, indent=1
        )

    def __str__(self) -> str:
        head = ("leaf", "size", "error", "autodiff's", "ratio", "largest", "at", "")
        rows = [head, *(_row(leaf) for leaf in (*self.leaves, self.total))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        adjust = (str.ljust, *(str.rjust,) * 5, str.ljust, str.ljust)
        lines = ["  ".join(f(cell, w) for f, cell, w in zip(adjust, row, widths, strict=True)) for row in rows]
        if self.rule and self.oracle:
            lines += ["", *(_measured_line(*m) for m in (("hand-written", self.rule), ("autodiff", self.oracle)))]
        pooled = f", pooled over {self.points} points" if self.points > 1 else ""
        lines += ["", f"errors: rms difference from float64, relative to the leaf's rms{pooled}", self.verdict]
        return "\n".join(map(str.rstrip, lines))

    __repr__ = __str__


def _row(leaf: LeafError) -> tuple[str, ...]:
    unit = leaf.scale or 1.0
    errors = f"{leaf.error / unit:.1e}", f"{leaf.oracle_error / unit:.1e}", f"{leaf.ratio:.2f}", f"{leaf.largest:.1e}"
    return leaf.name, f"{leaf.size:,}", *errors, leaf.where, "" if leaf.ok else "WRONG"


def _measured_line(name: str, m: Measured) -> str:
    time_and_memory = f"{m.seconds * 1e3:9.3f} ms  {m.temp_bytes / 1e6:9.3f} MB temporary"
    return f"{name:13} {time_and_memory}  {m.compile_seconds:6.2f} s to compile"


# -- comparing --------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """One leaf of a result: its name, its array, and the symbol of an element's index."""

    name: str
    array: Any
    symbol: Callable[[tuple[int, ...]], str]


def compare(rule: Callable[..., Any], oracle: Callable[..., Any], *args: Any, timing: bool = True) -> Report:
    """Compare two functions of `args` that return gradients, or (value, gradients): any pytrees of one structure.

    `rule` is the hand-written one, `oracle` the reference, such as `jax.grad(f)`. Both are jitted here; the oracle
    runs again in float64, and must follow its arguments into it. `timing=False` leaves time and memory out.
    Raises `InputError` where the two differ in structure, shape or dtype.
    """
    if not callable(rule) or not callable(oracle):
        raise InputError(
            f"compare: expected two functions, rule and oracle, got {rule!r} and {oracle!r}. "
            "As in compare(rule, jax.grad(f), x)."
        )
    return compare_with(rule, oracle, args, named_parts, timing)


def compare_with(
    rule: Callable[..., Any],
    oracle: Callable[..., Any],
    args: tuple,
    parts: Callable[[Any], list[Part]],
    timing: bool = True,
) -> Report:
    """`compare`, with how a result falls into parts."""
    (run_rule, rule_size), (run_oracle, oracle_size) = _compiled(rule, args), _compiled(oracle, args)
    shadow = jax.jit(lambda *args: oracle(*args))

    def errors(args: tuple) -> list[LeafError]:
        with jax.enable_x64(True):
            exact = jax.device_get(shadow(*in_float64(args)))
        return _errors(parts(run_rule(*args)), parts(run_oracle(*args)), parts(exact))

    points = [errors(args)]
    if not all(leaf.ok for leaf in points[0]):
        points += [errors(near) for near in _nearby(args)]
    *leaves, total = map(_pooled, zip(*points, strict=True))
    if not timing:
        return Report(tuple(leaves), total, None, None, len(points))
    times = _alternating_medians(partial(run_rule, *args), partial(run_oracle, *args))
    measured = Measured(times[0], *rule_size), Measured(times[1], *oracle_size)
    return Report(tuple(leaves), total, *measured, len(points))


def _errors(got: list[Part], plain: list[Part], exact: list[Part]) -> list[LeafError]:
    """The errors of all leaves, and last of their total, at one point."""
    _check_same(got, plain)
    if not got:
        raise InputError("compare: the functions return nothing to compare. Return arrays.")
    for part in got:
        if not jnp.issubdtype(part.array.dtype, jnp.inexact):
            raise InputError(
                f"compare: {part.name} is {part.array.dtype}; a gradient has a float dtype. Return floats."
            )
    for part in exact:
        if part.array.dtype not in (np.float64, np.complex128):
            raise InputError(
                f"compare: the float64 shadow of the oracle gives {part.array.dtype} in {part.name}. "
                "The oracle must follow its arguments into float64; take casts to a fixed dtype out of it."
            )
    leaves = [_leaf_error(part, b.array, c.array) for part, b, c in zip(got, plain, exact, strict=True)]
    gradients = [i for i, part in enumerate(got) if part.name != VALUE] or range(len(got))
    return [*leaves, _leaf_error(*_joined([(got[i], plain[i].array, exact[i].array) for i in gradients]))]


def _nearby(args: Any) -> Iterator[Any]:
    """Arguments close to these: every float smaller by up to 1/64 of itself, so that zeros and signs stay."""
    random = np.random.default_rng(0)

    def moved(a: Any) -> Any:
        if not hasattr(a, "dtype") or not jnp.issubdtype(a.dtype, jnp.inexact):
            return a
        near = (np.asarray(a) * (1 - random.uniform(0, 2**-6, np.shape(a)))).astype(a.dtype)
        return jax.device_put(near, a.sharding) if isinstance(a, jax.Array) else near

    return (jax.tree.map(moved, args) for _ in range(NEARBY))


def _pooled(errors: tuple[LeafError, ...]) -> LeafError:
    """One leaf's errors at all points as one; what is said of single elements is of the first point."""
    scale, error, oracle_error = (
        _rms([getattr(e, name) for e in errors]) for name in ("scale", "error", "oracle_error")
    )
    return dataclasses.replace(errors[0], scale=scale, error=error, oracle_error=oracle_error)


VALUE = "value"  # the name of the cost's value in a result (value, gradients)


def named_parts(result: Any) -> list[Part]:
    """The parts of any pytree, by path and index. A pair whose first member is a scalar is (value, gradients)."""
    if (
        isinstance(result, tuple)
        and len(result) == 2
        and isinstance(result[0], (jax.Array, np.ndarray, np.generic))
        and (result[0].ndim == 0)
    ):
        value, gradients = result
        return [Part(VALUE, value, lambda at: VALUE), *named_parts([gradients])]
    paths, _ = jax.tree_util.tree_flatten_with_path(
        result[0] if isinstance(result, list) and len(result) == 1 else result
    )
    names = [(jax.tree_util.keystr(path, simple=True, separator=".") or "gradient", leaf) for path, leaf in paths]
    return [Part(name, leaf, partial(_place, name)) for name, leaf in names]


def _place(name: str, at: tuple[int, ...]) -> str:
    return f"{name}[{','.join(map(str, at))}]"


def _check_same(got: list[Part], plain: list[Part]) -> None:
    names, expected = [p.name for p in got], [p.name for p in plain]
    if names != expected:
        raise InputError(
            f"compare: rule and oracle return different structures: the oracle has leaves {', '.join(expected)}, "
            f"the rule {', '.join(names)}. Return gradients in one structure."
        )
    for a, b in zip(got, plain, strict=True):
        if jnp.shape(a.array) != jnp.shape(b.array) or a.array.dtype != b.array.dtype:
            raise InputError(
                f"compare: leaf {a.name} is {b.array.dtype}{list(b.array.shape)} by the oracle, "
                f"{a.array.dtype}{list(a.array.shape)} by the rule. A gradient has its argument's shape and dtype."
            )


def in_float64(args: Any) -> Any:
    """A pytree with its floats in float64 (and complex128), exactly; what is no float stays."""

    def wider(a: Any) -> Any:
        dtype = getattr(a, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            return a
        return np.asarray(a).astype(np.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64)

    return jax.tree.map(wider, args)


# -- error ------------------------------------------------------------------------------------------------------------


def _rms(a: Any) -> float:
    a = np.asarray(a)
    peak = float(np.max(np.abs(a), initial=0))
    if peak == 0 or not math.isfinite(peak):
        return peak
    return peak * float(np.sqrt(np.mean(np.square(np.abs(a) / peak))))  # neither overflow nor underflow


def _leaf_error(part: Part, plain: Any, exact: Any) -> LeafError:
    dtype = part.array.dtype
    got, plain = (np.asarray(a).astype(exact.dtype) for a in (part.array, plain))
    with np.errstate(invalid="ignore"):  # ∞ − ∞ is NaN, and NaN never passes
        difference = np.abs(got - exact)
        errors = _rms(exact), _rms(difference), _rms(plain - exact), float(jnp.finfo(dtype).eps)
    if not difference.size:
        return LeafError(part.name, 0, *errors, 0.0, "", 0.0, 0.0)
    furthest = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
    at = tuple(map(int, np.unravel_index(furthest, difference.shape)))
    elements = float(difference[at]), part.symbol(at), float(np.real(got[at])), float(np.real(exact[at]))
    return LeafError(part.name, got.size, *errors, *elements)


def _joined(leaves: list[tuple[Part, Any, Any]]) -> tuple[Part, Any, Any]:
    """All leaves as one, so that the total is judged as each leaf is."""
    got, plain, exact = (
        np.concatenate([np.ravel(array) for array in arrays])
        for arrays in zip(*((part.array, plain, exact) for part, plain, exact in leaves), strict=True)
    )
    offsets = np.cumsum([0, *(np.size(exact) for _, _, exact in leaves)])

    def symbol(at: tuple[int, ...]) -> str:
        leaf = int(np.searchsorted(offsets, at[0], side="right")) - 1
        part, _, exact = leaves[leaf]
        return part.symbol(tuple(int(i) for i in np.unravel_index(at[0] - offsets[leaf], exact.shape)))

    return Part("total", got, symbol), plain, exact


# -- time and memory --------------------------------------------------------------------------------------------------


def _compiled(function: Callable[..., Any], args: tuple) -> tuple[Callable[..., Any], tuple[int, float]]:
    """(the compiled function, (temporary bytes, seconds to trace and compile))."""
    started = time.perf_counter()
    program = jax.jit(lambda *args: function(*args)).lower(*args).compile()
    seconds = time.perf_counter() - started
    memory: Any = program.memory_analysis()
    return program, (int(memory.temp_size_in_bytes), seconds)


def _alternating_medians(*runs: Callable[[], Any]) -> list[float]:
    times: list[list[float]] = [[] for _ in runs]
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until or len(times[0]) < 5:
        for run, spent in zip(runs, times, strict=True):
            started = time.perf_counter()
            jax.block_until_ready(run())
            spent.append(time.perf_counter() - started)
    return [statistics.median(spent) for spent in times]
