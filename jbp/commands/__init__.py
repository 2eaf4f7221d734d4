"""The commands of the command line, by the word that calls each. The first is what `jbp` alone does."""

from types import ModuleType

from . import check, draw, explain, flow, train

COMMANDS: dict[str, ModuleType] = {
    "train": train, "compare": train, "check": check, "draw": draw, "explain": explain, "flow": flow,
}  # fmt: skip
