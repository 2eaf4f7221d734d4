"""Where everything of a picture stands, in inches, y downwards. Knows graphs, and nothing of how they are painted.

Two arrangements: `columns` for neurons, `rows` for layers.
"""

import re
from dataclasses import dataclass, field

from .graph import Plan

Point = tuple[float, float]


@dataclass
class Placed:
    """Centres and sizes of nodes, rectangles of boxes, a path for each edge, and places for texts."""

    at: dict[str, Point] = field(default_factory=dict)
    size: dict[str, Point] = field(default_factory=dict)
    boxes: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    paths: list[list[Point]] = field(default_factory=list)
    labels: list[Point | None] = field(default_factory=list)
    captions: list[tuple[float, float, str]] = field(default_factory=list)
    smooth: bool = True

    def extent(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of everything."""
        spots = [
            (x - w / 2, y - h / 2, x + w / 2, y + h / 2) for i, (x, y) in self.at.items() for w, h in [self.size[i]]
        ]
        spots += self.boxes.values()
        spots += [(x, y, x, y) for path in self.paths for x, y in path]
        spots += [(x - w / 2, y, x + w / 2, y + h) for x, y, text in self.captions for w, h in [extent_of(text)]]
        left, top, right, bottom = zip(*spots, strict=True)
        return min(left), min(top), max(right), max(bottom)


def extent_of(text: str) -> Point:
    """About how wide and high a text of 8 points is."""
    lines = [re.sub(r"\\(leftarrow|ldots|vdots)", "…", line) for line in text.split("\n")]
    longest = max(len(re.sub(r"[${}^_\\]", "", line)) for line in lines)
    return longest * 0.067, len(lines) * 0.15


def numbered(graph: Plan) -> bool:
    return any(node.value is not None for node in graph.nodes)


def is_usual(graph: Plan) -> bool:
    """Whether it is the usual graph of neurons: without C."""
    return graph.direction == "right" and all(node.kind != "cost" for node in graph.nodes)
