"""What coordinates of θ are called, and which one a symbol means.

In a plain chain of dense layers they have the text's symbols, w^ℓ_{j←k} and b^ℓ_j; elsewhere a path with an index, as
in `1.layer.g[3]`.
"""

import difflib
import itertools
import math
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .layer import InputError

LOSS = "loss."  # in front of the names of a loss's own leaves
_WEIGHT = re.compile(r"w\^\{?(\d+)\}?_\{?(\d+)(?:←|<-)(\d+)\}?")
_BIAS = re.compile(r"b\^\{?(\d+)\}?_\{?(\d+)\}?")
_PATH = re.compile(r"([^\[\]]+)\[([\d, ]*)\]")


@dataclass(frozen=True)
class Symbols:
    """The symbols of leaves with these names and shapes."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def chain(self) -> dict[int, dict[str, int]] | None:
        """{ℓ: {"w": leaf, "b": leaf}} if the leaves are those of a plain chain of dense layers, else None."""
        layers: dict[int, dict[str, int]] = {}
        for leaf, name in enumerate(self.names):
            if name.startswith(LOSS):  # a loss's own leaves stand behind the network's
                continue
            if not (found := re.fullmatch(r"(\d+)\.([wb])", name)):
                return None
            layers.setdefault(int(found[1]), {})[found[2]] = leaf
        chain = {l: layers[i] for l, i in enumerate(sorted(layers), start=2)}
        kernels = [self.shapes[leaves["w"]] for leaves in chain.values() if "w" in leaves]
        plain = (
            len(kernels) == len(chain) > 0
            and all(len(shape) == 2 for shape in kernels)
            and all(out[1] == into[0] for out, into in itertools.pairwise(kernels))
            and all(self.shapes[v["b"]] == self.shapes[v["w"]][1:] for v in chain.values() if "b" in v)
        )
        return chain if plain else None

    def of(self, leaf: int, where: tuple[int, ...]) -> str:
        """The symbol of the element `where` of a leaf, by its number."""
        for l, leaves in (self.chain or {}).items():
            if leaves.get("w") == leaf:
                return f"w^{_braced(l)}_{{{where[1]}←{where[0]}}}"
            if leaves.get("b") == leaf:
                return f"b^{_braced(l)}_{_braced(where[0])}"
        return f"{self.names[leaf]}[{','.join(map(str, where))}]" if where else self.names[leaf]

    def found(self, who: str, symbol: str) -> tuple[int, tuple[int, ...]]:
        """(the leaf's number, the index in it) of a symbol. Raises `InputError` if there is none."""
        leaf, where = self._parsed(symbol)
        if leaf is None or len(where) != len(shape := self.shapes[leaf]) or any(np.array(where) >= shape):
            raise InputError(self._unknown(who, symbol, leaf, where))
        return leaf, where

    def _parsed(self, symbol: str) -> tuple[int | None, tuple[int, ...]]:
        chain, bare = self.chain or {}, "".join(symbol.split())
        if found := _WEIGHT.fullmatch(bare):
            l, j, k = map(int, found.groups())
            return chain.get(l, {}).get("w"), (k, j)
        if found := _BIAS.fullmatch(bare):
            l, j = map(int, found.groups())
            return chain.get(l, {}).get("b"), (j,)
        symbol = symbol.strip()
        if symbol in self.names:
            return self.names.index(symbol), ()
        if (found := _PATH.fullmatch(symbol)) and found[1] in self.names:
            return self.names.index(found[1]), tuple(int(k) for k in found[2].split(",") if k.strip())
        return None, ()

    def _unknown(self, who: str, symbol: str, leaf: int | None, where: tuple[int, ...]) -> str:
        """The text of the error for an unknown symbol: what there is, and the nearest to what was asked for."""
        full = [n for n, shape in enumerate(self.shapes) if math.prod(shape)]
        unknown = f"{who}: unknown symbol {symbol!r}"
        if not full:
            return f"{unknown}: this layout has no coordinates."
        asked = re.match(r"([wb])\^\{?(\d+)", "".join(symbol.split()))
        if leaf is None:
            nearest = difflib.get_close_matches(symbol.split("[")[0], self.names, n=1, cutoff=0)
            leaf = self.names.index(nearest[0]) if nearest and not self.chain else full[0]
            for l, leaves in (self.chain or {}).items():  # the layer asked for, or the last one below it
                if asked and int(asked[2]) >= l:
                    leaf = leaves.get(asked[1], leaf)
        last = tuple(n - 1 for n in self.shapes[leaf])
        there = f"{self.of(leaf, tuple(0 for _ in last))} … {self.of(leaf, last)}"
        if where and len(where) == len(last):
            return f"{unknown}. The nearest is {self.of(leaf, tuple(map(min, where, last)))}, of {there}."
        letters = "Weights are w^ℓ_{j←k}, biases b^ℓ_j. " if self.chain and not asked else ""
        return f"{unknown}. {letters}The nearest leaf has symbols {there}."


def _braced(number: int) -> str:
    return str(number) if number < 10 else f"{{{number}}}"
