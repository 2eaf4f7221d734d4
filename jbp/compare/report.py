"""What a comparison found: its verdict, and all of it as blocks, as data, as a picture, or as an AssertionError."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .. import blocks as b
from .. import paint
from ..markup import TALL, Page
from ..programs.clock import Measured, Race
from . import picture
from .error import EXACT, FLOOR, K, LeafError
from .parts import VALUE
from .table import leaf_table, short
from .verdict import Verdict


@dataclass(frozen=True)
class Check:
    """Something besides values that was looked at. `ok` is None where it is only told, or could not be tried.

    `undecided`: it was tried, and there is nothing to judge it by.
    """

    name: str
    ok: bool | None
    text: str
    undecided: bool = False


@dataclass(frozen=True, repr=False)
class Report(Page):
    """`print(report)` shows a table; `.ok`, `.kind`, `.worst`, `.to_json()`, `.to_markdown()`, `.to_html()`,
    `.figure()`.

    `leaves` in order, `total` for all of them as one vector (a cost's value stands by itself). `calls` are reports of
    the calls of custom rules inside, in the order of the reverse pass: `enters` names the first that is wrong. `rule`
    and `oracle` hold time and memory, `race` the ratio of their times. A notebook shows the report by itself.
    """

    leaves: tuple[LeafError, ...]
    total: LeafError
    rule: Measured | None = None
    oracle: Measured | None = None
    points: int = 1  # at which errors were taken and pooled
    name: str = ""
    where: str = ""  # the line of the rule's call
    race: Race | None = None
    checks: tuple[Check, ...] = ()
    calls: tuple["Report", ...] = ()
    notes: tuple[str, ...] = ()
    reproduce: str = ""  # code that makes this comparison again, where inputs were generated
    maps: tuple[Any, ...] = ()  # |rule − shadow| of each leaf, as matrices of at most 64 × 64, evenly spread over it

    @property
    def kind(self) -> Verdict:
        """WRONG if a leaf, the total, a check or a call inside is; EMPTY if both gradients are 0 everywhere."""
        if not self.values_ok or self._failed or self._wrong:
            return Verdict.WRONG
        kinds = [*(leaf.kind for leaf in self._gradients), *(call.kind for call in self.calls)]
        if all(kind is Verdict.EMPTY for kind in kinds):
            return Verdict.EMPTY
        undecided = any(leaf.undecided for leaf in self.leaves) or any(check.undecided for check in self.checks)
        if undecided or any(call.kind is Verdict.UNDECIDED for call in self.calls):
            return Verdict.UNDECIDED
        return Verdict.AGREE

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, and something was compared."""
        return self.kind in (Verdict.AGREE, Verdict.UNDECIDED) and self._compared

    @property
    def _compared(self) -> bool:
        """Whether a gradient that is not 0 was judged, here or in a call inside."""
        return any(leaf.kind is Verdict.AGREE for leaf in self._gradients) or any(c._compared for c in self.calls)

    @property
    def _failed(self) -> list[Check]:
        return [check for check in self.checks if check.ok is False]

    @property
    def _wrong(self) -> list["Report"]:
        return [call for call in self.calls if call.kind is Verdict.WRONG]

    @property
    def _gradients(self) -> tuple[LeafError, ...]:
        return tuple(leaf for leaf in self.leaves if leaf.name != VALUE) or self.leaves

    @property
    def values_ok(self) -> bool:
        """Whether no leaf is wrong, nor the total."""
        return all(leaf.ok for leaf in (*self.leaves, self.total))

    @property
    def worst(self) -> LeafError:
        """The leaf whose error is largest against what is allowed; one that does not pass, if there is any."""
        return max(self.leaves, key=lambda leaf: (not leaf.ok, leaf.excess))

    @property
    def enters(self) -> str | None:
        """Where an error enters first, in the order of the reverse pass: a call or a leaf by name; None if nowhere."""
        inside = self._wrong
        return inside[0].name if inside else None if self.values_ok else self.worst.name

    @property
    def verdict(self) -> str:
        """One line: whether the gradients agree, and if not, where."""
        if not self.values_ok:
            return self._disagreement()
        if wrong := self._wrong:
            return f"The gradients DISAGREE in {wrong[0].name}{self._at(wrong[0])}: {wrong[0].verdict}"
        if failed := self._failed:
            return f"The values agree, but {failed[0].name} FAILS: {failed[0].text}"
        if self.kind is Verdict.EMPTY:
            return "Nothing was compared: both gradients are 0 everywhere. Compare at arguments where they are not."
        undecided = "; ".join(self._undecided())
        if not self._compared:
            return f"UNDECIDED: {undecided}; nothing else was compared." if undecided else "UNDECIDED."
        return self._agreement() + (f" UNDECIDED: {undecided}." if undecided else "")

    def _agreement(self) -> str:
        if excused := [leaf for leaf in (*self.leaves, self.total) if leaf.excused and not leaf.undecided]:
            return f"The rule passes: {excused[0].name}: {excused[0].excused}."
        if self.total.oracle_error == 0:  # float64, or luck
            return (
                f"The gradients agree: the rms difference is {self.total.error:.1e}, {self.total.allowed:.1e} allowed."
            )
        floor = ", within a few units in the last place" if self.total.ratio > K else ""
        return f"The gradients agree: the error is {self.total.ratio:.2f} times autodiff's own{floor}."

    def _undecided(self) -> Iterator[str]:
        """What could not be decided."""
        for leaf in self.leaves:
            if leaf.undecided:
                count = "all" if leaf.undecided == leaf.size else f"{leaf.undecided:,} of {leaf.size:,}"
                shared = ", and the rule is NaN as autodiff is" if leaf.shares_nan else ""
                reason = f": {leaf.excused}" if leaf.excused else f", where no finite derivative is known{shared}"
                yield f"{leaf.name}, {count} elements{reason}"
        checks = [check for check in self.checks if check.undecided]
        for text in dict.fromkeys(check.text for check in checks):
            yield f"{' and '.join(check.name for check in checks if check.text == text)}: {text}"
        yield from (f"{call.name}: {'; '.join(call._undecided())}" for call in self.calls
                    if call.kind is Verdict.UNDECIDED)  # fmt: skip

    def _disagreement(self) -> str:
        worst = self.worst if not self.worst.ok else self.total
        pattern = f"{worst.pattern}; " if worst.pattern else ""
        error = f"rms error {worst.error:.1e}, allowed {worst.allowed:.1e}; " if not worst.wrong else ""
        digits = 6 if abs(worst.got - worst.expected) > 1e-5 * abs(worst.expected) else 9
        text = (
            f"The gradients DISAGREE, most in {worst.name}: {pattern}{error}{worst.where} is "
            f"{worst.got:.{digits}g} by the rule and {worst.expected:.{digits}g} {worst.by}."
        )
        if wrong := self._wrong:
            return f"{text} The error enters in {wrong[0].name}{self._at(wrong[0])}."
        coarse = next((leaf for call in self.calls for leaf in call.leaves if leaf.epsilon > worst.epsilon), None)
        if coarse:
            return f"{text} No call inside is wrong alone, but some compute in {coarse.dtype}, which is coarser."
        return text + " No call inside is wrong alone." * bool(self.calls)

    @staticmethod
    def _at(call: "Report") -> str:
        return f" ({call.where})" if call.where else ""

    # -- as blocks, as data, as a picture ---------------------------------------------------------------------------

    def blocks(self) -> Iterator[b.PageBlock]:
        """The name, the leaves, what it costs, the checks, the calls inside; the verdict, and what it rests on."""
        yield b.Section(f"{self.name}{self._at(self)}" if self.name else "")
        yield b.Picture(lambda: paint.inline(self.figure(), "errors"))
        wrong = [leaf for leaf in self.leaves if not leaf.ok]
        leaves = "1 leaf" if len(self.leaves) == 1 else f"{len(self.leaves):,} leaves"
        first = ", these first" if wrong and len(self.leaves) > TALL else ""
        total = (self.total,) if len(self.leaves) > 1 else ()
        patterns = (b.Text(f"{leaf.name}: {leaf.pattern}") for leaf in wrong if leaf.pattern)
        title = f"{leaves}, {f'{len(wrong):,}' if wrong else 'none'} wrong{first}"
        yield b.Section(title, (leaf_table((*self.leaves, *total)), *patterns), "quiet")
        if self.rule and self.oracle:
            costs = [_measured_line("hand-written", self.rule), _measured_line("autodiff", self.oracle)]
            costs += [f"time: {_raced(self.race)}"] if self.race else []
            yield b.Section("Time and memory", tuple(map(b.Text, costs)), "quiet")
        if self.checks:
            marks = {True: ("ok", ""), False: ("FAILS", "wrong"), None: ("—", "")}
            rows = tuple(((c.name, marks[c.ok][0], c.text), marks[c.ok][1]) for c in self.checks)
            columns = b.Column("", "name"), b.Column("", "word"), b.Column("")
            yield b.Section("Besides values", (b.Table(columns, rows),), "quiet")
        if self.calls:
            table = b.Table((b.Column(""),) * 4, tuple(call._row() for call in self.calls))
            title = "calls of custom rules, in the order of the reverse pass"
            yield b.Section(title, (table, *(call._inside() for call in self.calls)))
        pooled = f", pooled over {self.points} points" if self.points > 1 else ""
        others = (f"{c.name}: {note}" for c in self.calls if c.kind is not Verdict.WRONG for note in c.notes)
        errors = f"errors: rms difference from float64, relative to the leaf's rms{pooled}"
        told = errors, f"allowed: {ALLOWED}", *self.notes, *others
        yield b.Section("", tuple(map(b.Text, told)), "quiet")
        yield b.Conclusion(self.ok, self.verdict)
        if self.reproduce:
            yield b.Code(self.reproduce, "To make it again:")

    def _row(self) -> tuple[tuple[str, ...], str]:
        """A call as a row of a table, and its tone: its name, its place, its state, what stands out."""
        failed = ", ".join(check.name for check in self._failed)
        state = "ok" if self.kind is Verdict.AGREE else self.kind.name
        what = self.worst.pattern or f"{short(self.worst.ratio)} times autodiff's error in {self.worst.name}"
        what = failed if self.values_ok and failed else what
        return (self.name, self.where, state, what), "wrong" * (self.kind is Verdict.WRONG)

    def _inside(self) -> b.Section:
        """A call as a part of the report around it."""
        blocks = tuple(block for block in self.blocks() if not isinstance(block, b.Picture))
        return b.Section(" ".join(filter(None, self._row()[0])), blocks, "open" if self._row()[1] else "folded")

    def to_json(self) -> str:
        """All of the report as JSON text. What is not finite, and a complex number, stands as a string."""
        return b.as_json(self._plain())

    def _plain(self) -> dict[str, Any]:
        measured = {"rule": self.rule, "oracle": self.oracle, "race": self.race}
        told = {"name": self.name, "where": self.where, "enters": self.enters, "reproduce": self.reproduce}
        return {
            "ok": self.ok,
            "kind": self.kind.name,
            "verdict": self.verdict,
            "leaves": [_plain_leaf(leaf) for leaf in self.leaves],
            "total": _plain_leaf(self.total),
            **{name: m._asdict() for name, m in measured.items() if m},
            "points": self.points,
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "calls": [call._plain() for call in self.calls],
            "notes": list(self.notes),
            **{key: value for key, value in told.items() if value},
        }

    def figure(self) -> Any:
        """A matplotlib `Figure`: errors against autodiff's and what is allowed, error maps, time and memory.

        Raises `InputError` without matplotlib.
        """
        inside = [(f"{call.name}: {call.worst.name}", call.worst) for call in self.calls]
        costs = [picture.cost_panel(self.rule, self.oracle, self.race)] if self.rule and self.oracle else []
        errors, maps = picture.error_panel(self.leaves, self.total, inside), picture.map_panel(self.leaves, self.maps)
        return picture.together(self.verdict, self.ok, [errors, *maps, *costs])

    # -- as a test --------------------------------------------------------------------------------------------------

    def raise_if_bad(self) -> "Report":
        """The report itself if it is ok; else raise `GradientsDisagree`, whose message is the whole report."""
        __tracebackhide__ = True  # pytest then shows the caller's line, and the report below it
        if not self.ok:
            raise GradientsDisagree(self)
        return self


class GradientsDisagree(AssertionError):
    """A comparison that failed. `report` is the whole of it, and so is the message."""

    def __init__(self, report: Report):
        super().__init__(f"\n{report}")
        self.report = report


ALLOWED = f"{K:g} times autodiff's error, or {FLOOR:g} ε of the dtype; in float64 {EXACT:g}"


def _measured_line(name: str, m: Measured) -> str:
    flops = f"  {m.flops / 1e6:9.3f} MFLOP" if m.flops is not None and m.flops >= 0 else ""
    return (
        f"{name:13} {m.seconds * 1e3:9.3f} ms  {m.temp_bytes / 1e6:9.3f} MB temporary{flops}  "
        f"{m.compile_seconds:6.2f} s to compile"
    )


def _raced(race: Race) -> str:
    sure = "" if race.low > 1 or race.high < 1 else "; a tie as far as this shows"
    return f"{race.ratio:.2f} times autodiff's, quartiles {race.low:.2f} to {race.high:.2f} of {race.pairs} pairs{sure}"


def _plain_leaf(leaf: LeafError) -> Any:
    more = {k: getattr(leaf, k) for k in ("allowed", "ratio", "ok")} | {"kind": leaf.kind.name}
    return dataclasses.asdict(leaf) | more
