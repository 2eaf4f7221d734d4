"""A page as data: every kind of block in every way to write it; and that nothing else writes."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
from test_page import Parsed

import jbp
from jbp import paint
from jbp.blocks import Code, Column, Conclusion, Equation, Maths, Picture, Section, Table, Text, as_json, lines
from jbp.markup import Page

PACKAGE = Path(jbp.__file__).parent


class Told(Page):
    """One block of each kind."""

    def blocks(self):
        yield Section("A <name>")
        yield Picture(lambda: '<svg role="img"></svg>')
        columns = Column("leaf", "name"), Column("size", "number"), Column("page", wide=True), Column("", "word")
        rows = (("a.b", "12", "x|y", ""), ""), (("c", "3", "", "BAD"), "wrong")
        yield Section("Leaves", (Table(columns, rows),), "quiet")
        equation = Equation("s", (("=", "δ^2", ""), ("=", "1e-05", "as ‖δ‖")))
        yield Section(Maths("Step $δ^3$"), (Text(Maths("$w^2_{3←7}$ < 1")), equation, Code("y = f(x)")))
        yield Section("right", (Text("hidden"),), "folded")
        yield Section("bad", (Text("shown"),), "open")
        yield Conclusion(False, "It is <not> right.")
        yield Code("import x\n", "Again:")


TEXT = """\
A <name>

leaf  size
a.b     12
c        3  BAD

Step δ^3
  w^2_{3←7} < 1
  s = δ^2
    = 1e-05  as ‖δ‖
  | y = f(x)
shown
It is <not> right.

Again:

import x"""

MARKDOWN = r"""### ❌ FAILS

It is &lt;not> right.

### A &lt;name>

### Leaves

| leaf | size | page |  |
| --- | --- | --- | --- |
| `a.b` | 12 | x\|y |  |
| `c` | 3 |  | **BAD** |

### Step $\delta ^3$

$w^2_{3\leftarrow 7}$ &lt; 1

$$
\begin{aligned}
s &= \delta ^2 \\
 &= 1\cdot 10^{-5} && as \|\delta \|
\end{aligned}
$$

```text
y = f(x)
```

<details><summary>right</summary>

hidden

</details>

<details><summary>bad</summary>

shown

</details>

```python
import x
```
"""


def test_as_text():
    assert str(Told()) == repr(Told()) == TEXT
    tones = {line: tone for line, tone in lines(Told().blocks()) if tone}
    assert tones == {
        "A <name>": "title",
        "c        3  BAD": "wrong",
        "Step δ^3": "title",
        "It is <not> right.": "wrong",
    }


def test_as_markdown():
    assert Told().to_markdown() == Told()._repr_markdown_() == MARKDOWN


def test_as_html():
    page, part = Told().to_html(), Told()._repr_html_()
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert "<title>A &lt;name&gt;</title>" in page
    assert "<svg" in page
    assert "<svg" not in part
    for text in (page, part):
        parsed = Parsed(text)
        assert "A <name>" in parsed.text
        assert "It is <not> right." in parsed.text
        assert ["open" in details for details in parsed.details] == [False, True]
        assert '<code>a.<wbr>b</code></td><td class="number">12</td>' in text
        assert '<tr class="wrong">' in text
        assert '<span class="m">w<sup>2</sup><sub>3←7</sub></span> &lt; 1' in text
        assert parsed.text.index("FAILS") < parsed.text.index("A <name>", 10)


def test_as_json():
    told = {"a": math.nan, "b": (1, -math.inf, 1 + 2j), "c": None, "d": {"e": 0.1}}
    assert json.loads(as_json(told)) == {"a": "nan", "b": [1, "-inf", "(1+2j)"], "c": None, "d": {"e": 0.1}}


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_a_log_axis_has_a_place_for_every_number():
    with paint.new_figure("test", 4, 3) as drawn:
        axes = drawn.subplots()
        place = paint.log_axis(axes, [0.0, 1e-3, math.inf, math.nan])
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert (ticks[-2], ticks[-1], "10⁻³" in ticks) == ("0", "NaN, ∞", True)
    low, high = axes.get_xlim()
    assert low < place(0) < place(1e-3) == 1e-3 < place(math.inf) == place(math.nan) < high


def test_the_same_figure_is_the_same_file_and_a_part_of_a_page(tmp_path):
    written = []
    for name in ("a.svg", "b.svg"):
        with paint.new_figure("test", 2, 1) as drawn:
            drawn.subplots().plot([0, 1], color=paint.RULE)
        paint.save(drawn, tmp_path / name)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    inline = paint.inline(drawn, "first")
    assert inline.startswith('<svg viewBox="0 0 144 72" role="img" aria-label="first">')
    assert "var(--rule)" in inline
    assert all(name.startswith("first-") for name in re.findall(r' id="([^"]*)"', inline))


def test_without_matplotlib_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = r"^jbp\.Who: matplotlib is not installed, and this needs it. Write: pip install 'jbp\[cli\]'$"
    with pytest.raises(jbp.InputError, match=said), paint.new_figure("jbp.Who", 1, 1):
        pass


@pytest.mark.parametrize(
    ("what", "where"),
    [
        (r"</(table|tr|td|p|h\d)>", {"markup.py"}),
        (r"rc_context|rcParams|savefig\(", {"paint.py"}),
        (r"#0072B2|#D55E00|#E69F00", {"paint.py"}),
        (r"json\.dumps\(.*allow_nan|\.ljust|\.rjust", {"blocks.py"}),
    ],
)  # fmt: skip
def test_output_is_written_once(what: str, where: set[str]):
    texts = {path.name: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert {name for name, text in texts.items() if re.search(what, text)} == where
