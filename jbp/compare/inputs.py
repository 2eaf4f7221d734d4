"""The smallest generated input on which a rule is wrong, as code that shows it again.

Hypothesis draws the sizes (1 first, and with `empty` also 0) and how values are made, from simple to nasty, and shrinks
what fails. An example whose right answer is not finite proves nothing and is passed over. See `shapes` for the words.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from ..errors import InputError
from ..programs.arguments import Arguments, is_float
from ..programs.program import Program, Together
from ..programs.sites import sites_of
from .comparison import Comparison
from .error import LeafError, errors
from .gradients import RETURNS_VALUES, compare, compare_with
from .judge import judged
from .parts import VALUE, named_parts
from .report import Report
from .reproduction import reproduction
from .rules import compare_rules
from .shapes import FLOATS, annotated, arrays, hypothesis_or_error, parse_shapes, usual_args


def search(
    f: Callable[..., Any],
    shapes: str | None = None,
    *,
    oracle: Callable[..., Any] | None = None,
    dtype: str = "float32",
    examples: int = 50,
    seed: int = 0,
    empty: bool = False,
) -> Report:
    """Compare the custom rules in `f` on generated inputs, and report the smallest on which one is wrong.

    A rule is wrong in its gradient, or in what its forward pass makes f return, which is compared with the primals'.

    With an `oracle` both are functions that return gradients, as for `compare`. `shapes` as for `arrays`; read off
    jaxtyping's annotations unless given; sizes are those of `SIZES`, so a rule that is wrong only at others (a tile of
    128) needs them as numbers. The report's `reproduce` is code that makes the comparison again. If none of
    `examples` fails, the report is that of a usual one, and says how many there were.

    Raises `InputError` if a rule itself raises (with the same code), if every example is refused, or if no shapes are
    known.
    """
    shapes = annotated(f) if shapes is None else shapes
    for role, given in (("f", f), ("oracle", oracle)):
        if not callable(given) and not (role == "oracle" and given is None):
            raise InputError(f"search: {role} must be a function, got {given!r}. As in search(f, 'N I, I O').")
    if not isinstance(examples, (int, np.integer)) or examples < 1:
        raise InputError(f"search: examples must be a whole number of at least 1, got {examples!r}.")
    if shapes is None:
        raise InputError("search: f's arguments are not annotated with shapes. Give them, as in search(f, 'N I, I O').")
    if dtype not in FLOATS:
        raise InputError(f"search: dtype must be one of {', '.join(FLOATS)}, got {dtype!r}.")
    hypothesis = hypothesis_or_error()
    usual = usual_args(parse_shapes(shapes, dtype))
    kind = "" if oracle is not None else _kind(f, usual)
    quick, careful = _Asked(f, oracle, kind, hurry=True), _Asked(f, oracle, kind)
    known: dict[Any, bool] = {}  # examples are drawn again as they shrink, and many draws are alike
    key = lambda args: tuple((a.shape, a.tobytes()) for a in args)

    def fails(args: tuple[np.ndarray, ...]) -> bool:
        if key(args) not in known:
            known[key(args)] = quick.fails(args) and careful.fails(args)
        return known[key(args)]

    settings = hypothesis.settings(
        max_examples=examples, deadline=None, database=None, derandomize=False, print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    try:
        args = hypothesis.find(arrays(shapes, dtype, empty), fails, settings=settings, random=random.Random(seed))
    except hypothesis.errors.NoSuchExample:
        if not quick.tried:
            raise InputError(
                f"search: every example is refused: {quick.refused} Give shapes that f takes."
            ) from quick.refused
        report = careful.report(usual, timing=True, checks=True)
        told = f"{quick.tried} generated examples passed; this is one more."
        return replace(report, reproduce="" if report.ok else report.reproduce, notes=(*report.notes, told))
    try:
        report = careful.report(args, checks=True)
    except InputError as error:
        code = reproduction(f, oracle, args, kind)
        raise InputError(f"{error} To see it again:\n\n{code}") from error
    return replace(report, notes=(*report.notes, f"The smallest case found in {quick.tried} examples."))


@dataclass
class _Asked:
    """Comparisons of one function at one example after another; what is compiled is kept."""

    f: Callable[..., Any]
    oracle: Callable[..., Any] | None
    kind: str
    hurry: bool = False
    programs: dict[Any, Any] = field(default_factory=dict)
    tried: int = 0
    refused: InputError | None = None

    def report(self, args: tuple, timing: bool = False, checks: bool = False) -> Report:
        """Of the gradients, or if only the value is wrong, of the value; with code that makes it again."""
        if self.oracle is not None:
            if self.hurry:
                report = compare_with(self.f, self.oracle, args, named_parts, False, checks=False, hurry=True)
            else:
                report = compare(self.f, self.oracle, *args, timing=timing, checks=checks)
        else:
            told = checks and self.kind == "vjp"
            report = compare_rules(self.f, args, None, self.kind, timing, told, self.programs, hurry=self.hurry)
            if not _wrong(report) and (value := self.value(args)) is not None:
                return replace(value, reproduce=reproduction(self.f, None, args, VALUE))
        return replace(report, reproduce=reproduction(self.f, self.oracle, args, self.kind))

    def value(self, args: tuple) -> Report | None:
        """Of what f returns when it is differentiated, against its primals; None if it is right."""
        key = VALUE, *((np.shape(a), a.dtype) for a in args)
        if key not in self.programs:
            whose = zip(("f, differentiated,", "f"), both_values(self.f), strict=True)
            both = [Program(f"search: {who}", values, args, self.hurry) for who, values in whose]
            self.programs[key] = Together.of(*both)
        together, given = self.programs[key], Arguments.of(args).arrays
        if not any(map(_leaf_wrong, errors(*map(named_parts, together(*given))))):
            return None
        note = "The value of f, as the rule's forward pass has it, against the primal's."
        name, pair = getattr(self.f, "__name__", ""), (together.rule, together.oracle)
        report = judged(Comparison("search", name, *pair, named_parts, given, notes=(note,)))
        return report if _wrong(report) else None

    def fails(self, args: tuple) -> bool:
        """Whether a rule is wrong or raises."""
        try:
            report = self.report(args)
        except InputError as error:
            if any(part in str(error) for part in (": f raises", "the oracle raises", "nothing to differentiate")):
                self.refused = error
                return False
            return True
        self.tried += 1
        return _wrong(report)


def both_values(f: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """f as it is when it is differentiated, with the forward passes of its rules, and by itself; float outputs only."""

    def output(out: Any) -> dict[str, Any]:
        floats = [leaf for leaf in jax.tree.leaves(out) if is_float(leaf)]
        return {"output": floats[0] if len(floats) == 1 else floats}

    differentiated, by_itself = lambda *args: output(jax.linearize(f, *args)[0]), lambda *args: output(f(*args))
    setattr(differentiated, RETURNS_VALUES, True)
    return differentiated, by_itself


def _wrong(report: Report) -> bool:
    """Whether a leaf is, in it or in a call inside."""
    return any(map(_leaf_wrong, report.leaves)) or any(map(_wrong, report.calls))


def _leaf_wrong(leaf: LeafError) -> bool:
    return not leaf.ok


def _kind(f: Callable[..., Any], args: Sequence[Any]) -> str:
    """Which custom rules f calls: "vjp", or if there are none, "jvp" if there are such."""
    jaxpr = Program("search: f", f, tuple(args)).jaxpr
    kinds = [kind for kind in ("vjp", "jvp") if sites_of(jaxpr, kind)]
    if not kinds:
        raise InputError("search: f calls no custom_vjp or custom_jvp. If it is a gradient itself, give an oracle.")
    return kinds[0]
