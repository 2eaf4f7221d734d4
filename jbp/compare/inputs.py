"""Generated inputs: shapes in words, values at the edges, and the smallest case that fails as code that shows it again.

    "N I, I O"              two arrays; a letter is one size, drawn anew for each example; a number is itself
    "V D, N T: int32 < V"   after a colon the dtype; whole numbers from 0 to below the size V
    ""                      a scalar

Hypothesis draws the sizes (1 first, and with `empty` also 0) and how values are made, from simple to nasty, and shrinks
what fails. An example whose right answer is not finite proves nothing and is passed over.
"""

import inspect
import random
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..programs.arguments import Arguments
from ..programs.program import Program, Together
from ..programs.sites import sites_of
from .comparison import Comparison
from .error import LeafError, errors
from .gradients import compare, compare_with
from .judge import judged
from .parts import VALUE, named_parts
from .report import Report
from .reproduction import reproduction
from .rules import compare_rules

SIZES = (1, 2, 3, 4, 8, 17)  # of an axis that a letter stands for: a few small ones, as each shape is compiled anew
FLOATS = ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128")

# How values are made: (name, function of a random generator, shape and dtype); simple ones first, as things shrink.
Style = Callable[[np.random.Generator, tuple[int, ...], Any], np.ndarray]
STYLES: dict[str, Style] = {
    "ones": lambda r, shape, dtype: np.ones(shape),
    "small whole numbers (ties)": lambda r, shape, dtype: r.integers(-2, 3, shape).astype(float),
    "normal": lambda r, shape, dtype: r.standard_normal(shape),
    "zeros": lambda r, shape, dtype: np.zeros(shape),
    "all equal": lambda r, shape, dtype: np.full(shape, r.standard_normal()),
    "large": lambda r, shape, dtype: 30 * r.standard_normal(shape),
    "a large mean": lambda r, shape, dtype: 100 + r.standard_normal(shape),
    "of all sizes": lambda r, shape, dtype: r.standard_normal(shape) * 10.0 ** r.integers(-4, 4, shape),
    "one huge": lambda r, shape, dtype: _one(r, shape, float(jnp.finfo(dtype).max) ** 0.25),
    "some zeros": lambda r, shape, dtype: r.standard_normal(shape) * r.integers(0, 2, shape),
    "tiny": lambda r, shape, dtype: r.standard_normal(shape) * float(jnp.finfo(dtype).tiny) ** 0.5,
}


def _one(r: np.random.Generator, shape: tuple[int, ...], value: float) -> np.ndarray:
    a = r.standard_normal(shape)
    if a.size:
        a.reshape(-1)[int(r.integers(a.size))] = value
    return a


@dataclass(frozen=True)
class Spec:
    """One argument: axes by letter or number, dtype, and for whole numbers the axis whose size they stay below."""

    axes: tuple[str, ...]
    dtype: str
    below: str | None = None

    def shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        return tuple(int(a) if a.isdigit() else sizes[a] for a in self.axes)


def parse_shapes(shapes: str, dtype: str = "float32") -> list[Spec]:
    """The arguments that a text like `"N I, I O: bfloat16"` describes. Raises `InputError` where it does not."""
    specs = []
    for text in shapes.split(","):
        match = re.fullmatch(r"\s*([A-Za-z_0-9 ]*?)\s*(?::\s*(\w+)\s*(?:<\s*(\w+))?)?\s*", text)
        kind = (match and match[2]) or dtype
        try:
            jnp.dtype(kind)
        except TypeError:
            raise InputError(f"shapes: no dtype is called {kind!r}. Write for example float32 or bfloat16.") from None
        if match is None:
            raise InputError(
                "shapes: expected arguments with commas between, each its axes and perhaps a dtype, got "
                f"{text.strip()!r}. "
                'Write for example "N I, I O" or "V D, N T: int32 < V".'
            )
        specs.append(Spec(tuple(match[1].split()), kind, match[3]))
    letters = {axis for spec in specs for axis in spec.axes}
    for spec in specs:
        if spec.below and not spec.below.isdigit() and spec.below not in letters:
            raise InputError(
                f"shapes: no axis is called {spec.below!r}, which whole numbers should stay below. "
                f"Name one of {', '.join(sorted(letters))}."
            )
    return specs


def arrays(shapes: str, dtype: str = "float32", empty: bool = False) -> Any:
    """A Hypothesis strategy of tuples of NumPy arrays, by a text like `"N I, I O"`; see the head of this file.

    Raises `InputError` where Hypothesis is not installed or the text does not fit.
    """
    st = _hypothesis().strategies
    specs = parse_shapes(shapes, dtype)
    letters = sorted({a for spec in specs for a in (*spec.axes, spec.below or "1") if not a.isdigit()})

    @st.composite
    def draw(draw: Any) -> tuple[np.ndarray, ...]:
        sizes = {a: draw(st.sampled_from((0, *SIZES) if empty else SIZES)) for a in letters}
        return tuple(
            _values(spec, sizes, draw(st.sampled_from(list(STYLES))), draw(st.integers(0, 999))) for spec in specs
        )

    return draw()


def _values(spec: Spec, sizes: dict[str, int], style: str, seed: int) -> np.ndarray:
    shape, generator, dtype = spec.shape(sizes), np.random.default_rng(seed), jnp.dtype(spec.dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        made = STYLES[style](generator, shape, dtype)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            made = made + 1j * STYLES[style](generator, shape, dtype)
        return np.asarray(made).astype(dtype)
    if dtype == np.dtype(bool):
        return generator.integers(0, 2, shape).astype(bool)
    below = int(spec.below) if spec.below and spec.below.isdigit() else sizes[spec.below] if spec.below else 4
    return generator.integers(0, max(below, 1), shape).astype(dtype) if below else np.zeros(shape, dtype)


def annotated(f: Callable[..., Any]) -> str | None:
    """The shapes that jaxtyping's annotations of a function state, in the words of `arrays`; None if one is missing."""
    try:
        parameters = list(inspect.signature(f).parameters.values())
        hints = typing.get_type_hints(inspect.unwrap(f))
    except (TypeError, ValueError, NameError):
        return None
    found = []
    for parameter in parameters:
        hint: Any = hints.get(parameter.name)
        if parameter.default is not parameter.empty and not hasattr(hint, "dim_str"):
            continue
        if not hasattr(hint, "dim_str"):
            return None
        axes = " ".join(axis.strip("*#?_") or "A" for axis in hint.dim_str.replace("...", "A").split())
        kinds = [str(kind) for kind in hint.dtypes] if not isinstance(hint.dtypes, str) else [hint.dtypes]
        if any("float" in kind for kind in kinds):
            found.append(axes)
        else:
            kind = next((k for k in ("int32", "bool", "complex64") if k in kinds), "int32")
            found.append(f"{axes}: {kind}")
    return ", ".join(found) if found else None


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
    if examples < 1:
        raise InputError(f"search: examples must be at least 1, got {examples}.")
    if shapes is None:
        raise InputError("search: f's arguments are not annotated with shapes. Give them, as in search(f, 'N I, I O').")
    if dtype not in FLOATS:
        raise InputError(f"search: dtype must be one of {', '.join(FLOATS)}, got {dtype!r}.")
    hypothesis = _hypothesis()
    usual = _usual_args(parse_shapes(shapes, dtype))
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
            raise InputError(f"search: every example is refused: {quick.refused} Give shapes that f takes.") from None
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
    refused: str = ""

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
                self.refused = str(error)
                return False
            return True
        self.tried += 1
        return _wrong(report)


def both_values(f: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """f as it is when it is differentiated, with the forward passes of its rules, and by itself; float outputs only."""

    def output(out: Any) -> dict[str, Any]:
        floats = [leaf for leaf in jax.tree.leaves(out) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
        return {"output": floats[0] if len(floats) == 1 else floats}

    return lambda *args: output(jax.linearize(f, *args)[0]), lambda *args: output(f(*args))


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


def _usual_args(specs: Sequence[Spec]) -> tuple[np.ndarray, ...]:
    """Arguments of usual sizes and values."""
    letters = sorted({a for spec in specs for a in (*spec.axes, spec.below or "1") if not a.isdigit()})
    sizes = {a: 3 + i for i, a in enumerate(letters)}
    return tuple(_values(spec, sizes, "normal", i) for i, spec in enumerate(specs))


def _hypothesis() -> Any:
    try:
        import hypothesis
        import hypothesis.strategies
    except ModuleNotFoundError:
        raise InputError(
            "hypothesis is not installed, and generated inputs need it. Write: pip install 'jbp[check]'"
        ) from None
    return hypothesis
