"""What a comparison found: a table in a terminal, Markdown, JSON, a picture, a page, or an AssertionError."""

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..programs.clock import Measured, Race
from .error import EXACT, FLOOR, K, LeafError
from .parts import VALUE
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
class Report:
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
    maps: tuple[
        Any, ...
    ] = ()  # |rule − shadow| of each leaf, as matrices of at most 64 × 64: rows and columns evenly spread

    @property
    def kind(self) -> Verdict:
        """WRONG if a leaf, the total, a check or a call inside is; EMPTY if both gradients are 0 everywhere."""
        checks = [check for check in self.checks if check.ok is False]
        if not self.values_ok or checks or any(call.kind is Verdict.WRONG for call in self.calls):
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
        for call in self.calls:
            if call.kind is Verdict.WRONG:
                return call.name
        return None if self.values_ok else self.worst.name

    @property
    def verdict(self) -> str:
        """One line: whether the gradients agree, and if not, where."""
        if not self.values_ok:
            return self._disagreement()
        failed = [check for check in self.checks if check.ok is False]
        wrong = [call for call in self.calls if call.kind is Verdict.WRONG]
        if wrong:
            return f"The gradients DISAGREE in {wrong[0].name}{self._at(wrong[0])}: {wrong[0].verdict}"
        if failed:
            return f"The values agree, but {failed[0].name} FAILS: {failed[0].text}"
        if self.kind is Verdict.EMPTY:
            return "Nothing was compared: both gradients are 0 everywhere. Compare at arguments where they are not."
        undecided = "; ".join(self._undecided())
        if not self._compared:
            return f"UNDECIDED: {undecided}; nothing else was compared." if undecided else "UNDECIDED."
        return self._agreement() + (f" UNDECIDED: {undecided}." if undecided else "")

    def _agreement(self) -> str:
        if excused := [leaf for leaf in (*self.leaves, self.total) if leaf.excused]:
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
                yield f"{leaf.name}, {count} elements, where no finite derivative is known{shared}"
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
        if self.calls and self.enters:
            first = next((call for call in self.calls if call.kind is Verdict.WRONG), None)
            coarse = next((leaf for call in self.calls for leaf in call.leaves if leaf.epsilon > worst.epsilon), None)
            if first:
                text += f" The error enters in {first.name}{self._at(first)}."
            elif coarse:
                text += f" No call inside is wrong alone, but some compute in {coarse.dtype}, which is coarser."
            else:
                text += " No call inside is wrong alone."
        return text

    @staticmethod
    def _at(call: "Report") -> str:
        return f" ({call.where})" if call.where else ""

    # -- as text ----------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return "\n".join(map(str.rstrip, self._lines()))

    __repr__ = __str__

    def _lines(self) -> Iterator[str]:
        if self.name:
            yield from (f"{self.name}{self._at(self)}", "")
        yield from _table(
            (HEAD, *(_row(leaf) for leaf in self._shown())), (str.ljust, *(str.rjust,) * 8, str.ljust, str.ljust)
        )
        for leaf in self.leaves:
            if leaf.pattern and not leaf.ok:
                yield f"{leaf.name}: {leaf.pattern}"
        if self.rule and self.oracle:
            yield from ("", *(_measured_line(*m) for m in (("hand-written", self.rule), ("autodiff", self.oracle))))
        if self.race:
            yield f"time: {_race(self.race)}"
        if self.checks:
            marks = {True: "ok", False: "FAILS", None: "—"}
            yield from ("", *_table([(c.name, marks[c.ok], c.text) for c in self.checks], (str.ljust,) * 3))
        if self.calls:
            yield from ("", "calls of custom rules, in the order of the reverse pass")
            yield from _table([_call_row(call) for call in self.calls], (str.ljust,) * 4)
        for call in self.calls:
            if call.kind is Verdict.WRONG:
                yield from ("", *(f"  {line}" for line in call._lines()))
        pooled = f", pooled over {self.points} points" if self.points > 1 else ""
        yield from ("", f"errors: rms difference from float64, relative to the leaf's rms{pooled}")
        yield f"allowed: {RULE}"
        yield from self.notes
        yield from (
            f"{call.name}: {note}" for call in self.calls if call.kind is not Verdict.WRONG for note in call.notes
        )
        yield self.verdict
        if self.reproduce:
            yield from ("", "To make it again:", "", self.reproduce)

    def _shown(self) -> tuple[LeafError, ...]:
        return (*self.leaves, self.total) if len(self.leaves) > 1 else self.leaves

    def to_markdown(self) -> str:
        """A summary for GitHub: the verdict, the leaves, the checks; the rest folded away."""
        mark = "✅" if self.ok else "❌"
        lines = [f"### {mark} {self.name or 'gradient'}", "", self.verdict, ""]
        head = ("leaf", "size", "error", "autodiff's", "allowed", "ratio", "ulps 50 / 99 / 100 %", "worst element", "")
        lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        for leaf in self._shown():
            name, size, error, plain, allowed, ratio, ulps, _, _, where, told = _row(leaf)
            what = told if leaf.ok else f"**{leaf.pattern or 'wrong'}**"
            cells = [f"`{name}`", size, error, plain, allowed, ratio, ulps, f"`{where}`", what]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines += ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        if self.race:
            lines += ["", f"Time: {_race(self.race)}."]
        if self.checks:
            marks = {True: "✅", False: "❌", None: "➖"}
            lines += ["", "| check | | |", "| --- | --- | --- |"]
            lines += [f"| {c.name} | {marks[c.ok]} | {c.text} |" for c in self.checks]
        for call in self.calls:
            title = f"{'✅' if call.ok else '❌'} {call.name}"
            lines += ["", f"<details><summary>{title}</summary>", "", call.to_markdown(), "", "</details>"]
        if self.reproduce:
            lines += ["", "```python", self.reproduce.rstrip(), "```"]
        return "\n".join(lines)

    def to_json(self) -> str:
        """All of the report as JSON text. What is not finite, and a complex number, stands as a string."""
        return json.dumps(self._plain(), indent=1)

    def _plain(self) -> dict[str, Any]:
        measured = {
            name: m._asdict() for name, m in (("rule", self.rule), ("oracle", self.oracle), ("race", self.race)) if m
        }
        told = {"name": self.name, "where": self.where, "enters": self.enters, "reproduce": self.reproduce}
        return {
            "ok": self.ok,
            "kind": self.kind.name,
            "verdict": self.verdict,
            "leaves": [_plain_leaf(leaf) for leaf in self.leaves],
            "total": _plain_leaf(self.total),
            **json_ready(measured),
            "points": self.points,
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "calls": [call._plain() for call in self.calls],
            "notes": list(self.notes),
            **{key: value for key, value in told.items() if value},
        }

    # -- as pictures ------------------------------------------------------------------------------------------------

    def figure(self) -> Any:
        """A matplotlib figure: errors against autodiff's and what is allowed, error maps, time and memory."""
        from .page import figure

        return figure(self)

    def to_html(self, path: str | Path | None = None) -> str:
        """One page with pictures that needs nothing else; written to `path` if that is given."""
        from .page import page

        text = page(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def _repr_html_(self) -> str:
        from .page import body

        return body(self)

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


RULE = f"{K:g} times autodiff's error, or {FLOOR:g} ε of the dtype; in float64 {EXACT:g}"
HEAD = ("leaf", "size", "error", "autodiff's", "allowed", "ratio", "ulps 50/99/100 %", "1−cos", "largest", "at", "")


def _row(leaf: LeafError) -> tuple[str, ...]:
    unit = leaf.scale or 1.0
    return (
        leaf.name, f"{leaf.size:,}", f"{leaf.error / unit:.1e}", f"{leaf.oracle_error / unit:.1e}",
        f"{leaf.allowed / unit:.1e}", short(leaf.ratio), "/".join(map(short, leaf.ulps)),
        f"{max(1 - leaf.cosine, 0):.0e}", f"{leaf.largest:.1e}", leaf.where, state(leaf),
    )  # fmt: skip


def state(leaf: LeafError) -> str:
    """What the table says of a leaf: as the verdict does, and nothing where it agrees."""
    if leaf.kind is Verdict.WRONG or leaf.kind is Verdict.UNDECIDED:
        return leaf.kind.name
    told = ["excused"] if leaf.excused else []
    return ", ".join([*told, *([f"{leaf.undecided:,} UNDECIDED"] if leaf.undecided else [])])


def _call_row(call: Report) -> tuple[str, ...]:
    wrong = [check.name for check in call.checks if check.ok is False]
    state = "ok" if call.kind is Verdict.AGREE else call.kind.name
    what = call.worst.pattern or f"{short(call.worst.ratio)} times autodiff's error in {call.worst.name}"
    return f"  {call.name}", call.where, state, ", ".join(wrong) if call.values_ok and wrong else what


def short(value: float) -> str:
    """A ratio in few characters."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2f}" if value < 10 else f"{value:.0f}" if value < 1000 else f"{value:.0e}"


def _table(rows: Any, adjust: Any) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f(cell, w) for f, cell, w in zip(adjust, row, widths, strict=True)) for row in rows]


def _measured_line(name: str, m: Measured) -> str:
    flops = f"  {m.flops / 1e6:9.3f} MFLOP" if m.flops is not None and m.flops >= 0 else ""
    return (
        f"{name:13} {m.seconds * 1e3:9.3f} ms  {m.temp_bytes / 1e6:9.3f} MB temporary{flops}  "
        f"{m.compile_seconds:6.2f} s to compile"
    )


def _race(race: Race) -> str:
    sure = "" if race.low > 1 or race.high < 1 else "; a tie as far as this shows"
    return f"{race.ratio:.2f} times autodiff's, quartiles {race.low:.2f} to {race.high:.2f} of {race.pairs} pairs{sure}"


def _plain_leaf(leaf: LeafError) -> Any:
    more = {k: getattr(leaf, k) for k in ("allowed", "ratio", "ok")} | {"kind": leaf.kind.name}
    return json_ready(dataclasses.asdict(leaf) | more)


def json_ready(value: Any) -> Any:
    """What JSON can hold: NaN, infinity and complex numbers become strings."""
    if isinstance(value, dict):
        return {key: json_ready(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(part) for part in value]
    return (
        str(value) if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)) else value
    )
