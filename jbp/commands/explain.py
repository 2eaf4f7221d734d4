"""The inductive argument for one weight or bias of a network on the shipped digits, with its numbers.

`jbp explain 'w^2_{3<-7}'` writes out δ at the output, each step down, and the last product; then the same number by
jax.grad and by a central difference. C is the mean over the digits, and one of them is written out.
"""

from dataclasses import dataclass
from pathlib import Path

from ..explain import explain
from . import options


@dataclass(frozen=True)
class Settings(options.DigitsNetwork):
    """What the command line asks for."""

    symbol: str = options.option(
        "", str, "a weight or bias", "'w^2_{3<-7}'", "the coordinate of θ", word=True, required=True
    )
    digit: int | None = options.which_digit(None, "the digit that is written out; unless given, what contributes most")
    out: str | None = options.file(
        "argument.html", "write it there, not to the terminal: a page, Markdown with LaTeX, or text",
        (".html", ".md", ".txt"),
    )  # fmt: skip


def run(settings: Settings) -> int:
    """Write the argument; the exit code."""
    with settings.in_precision():
        cost, theta, x, y, *_ = settings.job()
        found = explain(cost, theta, x, y, settings.symbol, example=settings.digit)
    if settings.out is None:
        print(found)
        return 0
    suffix = Path(settings.out).suffix.lower()
    text = found.to_html() if suffix == ".html" else found.to_markdown() if suffix == ".md" else f"{found}\n"
    options.write(settings.out, text)
    print(f"∂C/∂{found.symbol} = {found.value:.6g}, by induction: {settings.out}")
    return 0
