"""A graph as what people see: a picture on a figure or in a file, text, and itself in a notebook."""

import io
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from .. import paint
from ..layer import InputError
from . import text
from .graph import Plan

PICTURES, TEXTS = (".svg", ".png", ".pdf"), (".dot", ".gv", ".mmd", ".md")


@dataclass(frozen=True, eq=False)
class Graph(Plan):
    """What the three functions of `jbp.draw` return. `save(path)` draws it; a notebook shows it by itself."""

    def __repr__(self) -> str:
        return f"<Graph: {self.title}; {len(self.nodes)} nodes, {len(self.edges)} edges>"

    def figure(self) -> Any:
        """A matplotlib `Figure` of its own: neither pyplot nor a display is touched."""
        paint.needed("Graph.figure")
        from .figure import figure

        return figure(self)

    def dot(self) -> str:
        """The graph in Graphviz's language."""
        return text.dot(self)

    def mermaid(self) -> str:
        """The graph in Mermaid's language, which Markdown viewers draw."""
        return text.mermaid(self)

    def save(self, path: str | PathLike) -> Path:
        """Write a picture (.svg, .png, .pdf) or text (.dot, .gv; .mmd, and .md with a fence around). Returns the path.

        Raises `InputError` for another suffix, and where the file can't be written.
        """
        if not isinstance(path, (str, PathLike)):
            raise InputError(f"Graph.save: expected a path, got {path!r}. Write for example graph.save('network.svg').")
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in PICTURES + TEXTS:
            raise InputError(
                f"Graph.save: expected a file that ends in {', '.join(PICTURES + TEXTS)}, got {str(path)!r}. "
                f"Write for example {path.stem or 'network'}.svg."
            )
        if suffix in TEXTS:
            written = self.dot() if suffix in (".dot", ".gv") else self.mermaid()
            written = f"```mermaid\n{written}```\n" if suffix == ".md" else written
        else:
            drawn = self.figure()
        try:
            if suffix in TEXTS:
                path.write_text(written, encoding="utf-8")
            else:
                paint.save(drawn, path)
        except OSError as error:
            raise InputError(
                f"Graph.save: expected a file that can be written, got {str(path)!r} ({error.strerror}). "
                "Name one in a folder of yours."
            ) from error
        return path

    def _repr_svg_(self) -> str | None:
        """For notebooks. Without matplotlib they show the text of `repr`."""
        try:
            drawn = self.figure()
        except InputError:
            return None
        file = io.StringIO()
        paint.save(drawn, file, "svg")
        return file.getvalue()
