"""The equations of a layer or a loss, taken from what its docstring says."""

import inspect
import re
import sys
from typing import Any

_MARKED = re.compile(r"\s*(forward|backward|gradient)\b", re.I)


def equations_of(layer: Any) -> tuple[str, ...]:
    """The equations of a layer (or loss), from its docstring and its module's; its class's name if there are none.

    The lines that begin with forward, backward or gradient, and those under them that stand further in. If its class
    has none: the module's lines that begin with the class's name, or else the class's first line if it is an equation;
    and, unless that line has δ in it, the module's own.
    """
    kind = type(layer)
    own = _cleaned(kind.__doc__)
    if marked := _passages(own, _MARKED):
        return marked
    module = _cleaned(getattr(sys.modules.get(kind.__module__), "__doc__", None))
    named = [line for line in _passages(module, re.compile(rf"\s*{kind.__name__}\b")) if "=" in line]
    first = [f"{kind.__name__}: {line}" for line in own[:1] if "=" in line and not line.startswith(f"{kind.__name__}(")]
    rest = () if first and "δ" in first[0] else _passages(module, _MARKED)
    return (*(named or first), *rest) or (kind.__name__,)


def _cleaned(doc: str | None) -> list[str]:
    return [line.rstrip() for line in inspect.cleandoc(doc or "").splitlines()]


def _passages(lines: list[str], begins: re.Pattern[str]) -> tuple[str, ...]:
    """The lines that match, each with the lines right under it that stand further in."""
    found: list[str] = []
    margin = None
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if begins.match(line):
            found.append(line.strip())
            margin = indent
        elif margin is not None and line and indent > margin:
            found.append(" " * (indent - margin) + line.strip())
        else:
            margin = None
    return tuple(found)
