"""Reports as pictures and as HTML: all of a comparison is there, escaped, readable, and needs nothing else."""

import io
import math
import sys
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import jbp
from jbp.compare import Check, Report
from jbp.compare.picture import amount, elided
from jbp.programs.clock import Measured, Race

VOID = {"meta", "br", "wbr"}


class Parsed(HTMLParser):
    """The text of a page, its tags and attributes. Every element must be closed, in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.words, self.details = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "details":
            self.details.append(dict(attributes))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


# -- reports ----------------------------------------------------------------------------------------------------------


QUIET = {"timing": False, "checks": False}


def numbers(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def total(p):
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(p))


def compared(change, p) -> Report:
    """Of the gradient of `total`, changed, against itself."""
    return jbp.compare(lambda p: change(jax.grad(total)(p)), jax.grad(total), p, **QUIET)


NASTY = {"<script>alert(1)</script>": numbers(3), 'a"b&c': numbers(2, 2), "$x_{$": numbers(4), "y\n<b>": numbers(1)}
TIMED = {
    "rule": Measured(1.5e-4, 19200, 0.5, 2.6e6),
    "oracle": Measured(1.2e-4, 0, 0.4, None),
    "race": Race(1.25, 0.99, 1.64, 808),
}


WHICH = (
    *("one", "scalar", "complex", "zero", "empty", "wrong", "many", "nasty", "calls", "timed", "bare"),
    "nothing is finite",
)


@cache
def reports() -> dict[str, Report]:
    wrong = {
        "sign": numbers(9, 5),
        "one": numbers(100, 100),
        "nan": numbers(6),
        "inf": numbers(2, 3, 4),
        "right": numbers(7),
    }

    def spoilt(g):
        return g | {
            "sign": -g["sign"], "one": g["one"].at[37, 41].add(0.1), "nan": g["nan"].at[2].set(jnp.nan),
            "inf": g["inf"].at[1, 2, 3].set(jnp.inf),
        }  # fmt: skip

    many = {f"encoder.block_{i:02d}.attention.self.query_projection.kernel": numbers(2, 3) for i in range(40)}
    one = compared(lambda g: g, numbers(50))
    bad = compared(spoilt, wrong)
    twice = jax.custom_vjp(lambda x: x * x)
    twice.defvjp(lambda x: (x * x, x), lambda x, d: (x * d,))
    once = jax.custom_vjp(jnp.sin)
    once.defvjp(lambda x: (jnp.sin(x), x), lambda x, d: (jnp.cos(x) * d,))
    calls = jbp.compare_vjp(lambda x: twice(once(x)), numbers(4, 3), **QUIET)
    checks = (Check("vmap", True, "as <it> should"), Check("jit", False, "not"), Check("scan", None, "can't be tried"))
    return {
        "one": one,
        "scalar": jbp.compare(jnp.cos, lambda x: jax.grad(total)(x), jnp.float32(0.5), **QUIET),
        "complex": jbp.compare(lambda z: jnp.conj(z), jnp.conj, jax.lax.complex(numbers(3), numbers(3)), **QUIET),
        "zero": compared(lambda g: jax.tree.map(jnp.zeros_like, g), {"a": jnp.full((3,), jnp.pi / 2), "b": numbers(3)}),
        "empty": compared(lambda g: g, {"a": numbers(0, 3), "b": numbers(2)}),
        "wrong": bad,
        "many": compared(lambda g: g | {next(iter(g)): -g[next(iter(g))]}, many),
        "nasty": compared(lambda g: jax.tree.map(jnp.negative, g), NASTY),
        "calls": calls,
        "timed": replace(one, **TIMED, checks=checks, reproduce="compare(f < g)\n", notes=("a <note>",), name="<f>"),
        "bare": replace(one, maps=()),
        "nothing is finite": replace(
            one, leaves=(replace(one.leaves[0], scale=math.nan, error=math.inf, oracle_error=math.nan),),
        ),
    }  # fmt: skip


every = pytest.mark.parametrize("which", WHICH)


# -- HTML -------------------------------------------------------------------------------------------------------------


def holds(text: str, report: Report) -> None:
    """All that a report has is in the text of a page."""
    assert report.verdict in text
    for leaf in report.leaves:
        assert f"{leaf.size:,}" in text
        assert leaf.name in text
        assert leaf.pattern in text
        assert f"{leaf.got:.6g}, {leaf.expected:.6g}" in text or not leaf.size
    for told in (*report.notes, *(c.text for c in report.checks), report.reproduce, report.name):
        assert told in text
    for call in report.calls:
        assert call.name in text
        assert call.ok or call.verdict in text


def apart(parsed: Parsed) -> None:
    """Nothing is fetched, nothing runs, and no two elements have one name."""
    assert not {"script", "link", "img", "iframe", "object", "use:"} & set(parsed.tags)
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    for name, value in parsed.attributes:
        assert name not in ("src", "onload", "onclick")
        assert "http" not in (value or "")
        if name in ("href", "xlink:href"):
            assert value.startswith("data:image/png;base64,") or value[1:] in ids, value[:80]


@every
def test_the_page_holds_all_and_needs_nothing(which: str):
    report = reports()[which]
    text = report.to_html()
    parsed = Parsed(text)
    holds(parsed.text, report)
    apart(parsed)
    assert text.startswith("<!doctype html>")
    assert "http" not in text.replace(report.verdict, "")
    assert ("✓ PASSES" if report.ok else "✗ FAILS") in parsed.text
    assert parsed.tags.count("svg") == 1
    assert "prefers-color-scheme: dark" in text


@every
def test_the_body_holds_all_but_pictures_without_matplotlib(which: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = reports()[which]
    parsed = Parsed(report._repr_html_())
    holds(parsed.text, report)
    apart(parsed)
    assert not {"html", "body", "head", "svg"} & set(parsed.tags)


def test_without_matplotlib_pictures_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for make in (Report.figure, Report.to_html):
        with pytest.raises(jbp.InputError, match=r"^Report.figure: matplotlib is not installed.*'jbp\[cli\]'"):
            make(reports()["one"])


def test_names_are_escaped():
    parsed = Parsed(reports()["nasty"].to_html())
    assert "script" not in parsed.tags
    assert "<script>alert(1)</script>" in parsed.text
    timed = reports()["timed"]
    assert "<note>" in Parsed(timed._repr_html_()).text
    assert "as &lt;it&gt; should" in timed._repr_html_()


def test_calls_that_are_wrong_are_open():
    report = reports()["calls"]
    assert [call.ok for call in report.calls] == [False, True]
    assert ["open" in details for details in Parsed(report._repr_html_()).details] == [True, False]


def test_wrong_leaves_come_first_in_a_long_table():
    report = reports()["many"]
    report = replace(report, leaves=report.leaves[1:] + report.leaves[:1])
    text = Parsed(report._repr_html_()).text.split("40 leaves, 1 wrong, these first")[1]
    assert text.index("block_00") < text.index("block_01")


def test_the_time_says_how_sure_it_is():
    text = Parsed(reports()["timed"]._repr_html_()).text
    assert "time: 1.25 times autodiff's, quartiles 0.99 to 1.64 of 808 pairs; a tie as far as this shows" in text
    for told in ("0.150 ms", "0.019 MB temporary", "2.600 MFLOP", "0.50 s to compile"):
        assert told in text


def test_the_page_is_written(tmp_path):
    path = tmp_path / "report.html"
    text = reports()["scalar"].to_html(path)
    assert path.read_text(encoding="utf-8") == text
    assert text.startswith("<!doctype html>")


# -- pictures ---------------------------------------------------------------------------------------------------------


def titles(drawn: Figure) -> list[str]:
    return [axes.get_title(loc="left").splitlines()[0] for axes in drawn.get_axes() if axes.get_title(loc="left")]


def rows(drawn: Figure) -> list[str]:
    return [label.get_text() for label in drawn.get_axes()[0].get_yticklabels()]


@every
def test_the_figure_has_its_panels(which: str):
    report = reports()[which]
    drawn = report.figure()
    if which in ("timed", "nasty", "calls"):  # the others are rendered as pages
        drawn.savefig(io.BytesIO(), format="png", dpi=40)
    told = titles(drawn)
    assert told[0].startswith("Error against autodiff's")
    assert told[1] == "Units in the last place"
    assert ("Time of a call" in told) == ("Time, rule ÷ autodiff" in told) == (report.rule is not None)
    maps = [t for t in told[2:] if not t.startswith(("Time", "Temporary"))]
    assert len(maps) == min(6, sum(np.size(m) > 0 for m in report.maps))
    assert sum(t.startswith("✗") for t in maps) == min(6, sum(not leaf.ok for leaf in report.leaves))
    assert all(len(row) <= 45 for row in rows(drawn))
    assert drawn.subfigs[0].texts[0].get_text().split() == report.verdict.split()


def test_rows_are_leaves_the_total_and_calls():
    assert rows(reports()["one"].figure()) == ["gradient"]
    assert rows(reports()["wrong"].figure()) == ["inf", "nan", "one", "right", "sign", "total"]
    inside = rows(reports()["calls"].figure())
    assert len(inside) == 3
    assert all(row.startswith("inside ") for row in inside[1:])


def test_many_leaves_are_elided_and_counted():
    drawn = reports()["many"].figure()
    shown = rows(drawn)
    assert titles(drawn)[0] == "Error against autodiff's: 30 of 40 leaves"
    assert len(shown) == 31
    assert len(set(shown)) == 31
    assert "block_00" in shown[0]  # the wrong one
    assert max(map(len, shown)) <= 32


def test_what_a_log_axis_has_no_place_for_is_drawn():
    ticks = lambda axes: [label.get_text() for label in axes.get_xticklabels()]
    left, right, *_ = reports()["wrong"].figure().get_axes()
    assert "NaN, ∞" in ticks(left)
    assert "NaN, ∞" in ticks(right)
    low, high = left.get_xlim()
    for line in left.get_lines():
        assert all(low <= x <= high for x in line.get_xdata())
    left, right, *_ = reports()["complex"].figure().get_axes()  # no error at all
    assert "0" in ticks(left)
    assert "0" in ticks(right)


def test_the_element_furthest_off_is_ringed():
    report = reports()["wrong"]
    drawn = report.figure()
    axes = next(a for a in drawn.get_axes() if a.get_title(loc="left").startswith("✗ one"))
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.get_lines()] == [(41, 37)] * 2
    assert "100 × 100, 64 × 64 shown" in axes.get_title(loc="left")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["w", "b"], ["w", "b"]),
        (["params.encoder.layer_3.attention.query.kernel"], ["para…enco…layer_3.atte…query.kern…"]),
        (["x" * 60], ["x" * 31 + "…"]),
        (["x" * 40 + "y", "x" * 40 + "z"], ["x" * 31 + "… #0", "x" * 31 + "… #1"]),
        ([".".join(["5" * 9] * 5)], ["555555555.555555…55555.555555555"]),
        (["a\nb"], ["a?b"]),
    ],
)  # fmt: skip
def test_long_names_are_elided(names: list[str], expected: list[str]):
    assert elided(names, 34 if "layer" in names[0] else 32) == expected


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0, "B", "0 B"), (19200, "B", "19.2 kB"), (3e-5, "s", "30 µs"), (2e-12, "s", "0.002 ns"), (90, "s", "90 s"),
        (5e20, "FLOP", "5e+05 PFLOP"), (0.5, "B", "0.5 B"), (math.nan, "s", "nan s"), (7e9, "B", "7 GB"),
    ],
)  # fmt: skip
def test_amounts_have_prefixes(value: float, unit: str, expected: str):
    assert amount(value, unit) == expected
