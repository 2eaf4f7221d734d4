"""Leaves by the names under which others publish them: θ from a checkpoint, and a checkpoint from θ.

A table says where each leaf's numbers are, `{leaf: place}`; a leaf that is not in it stands under its own name. A place
is a published name, then what Python would write behind the array:

    "wte.weight"                            the array
    "h.{i}.ln_1.weight"                     of stacked blocks, one array for each i = 0 … L − 1, the leaf's first axis
    "h.{i}.attn.c_attn.weight[:, 64:128]"   a part of an array, others of which belong to other leaves
    "layers.{i}.q_proj.weight.T"            transposed: a kernel is [in, out] here, [out, in] in PyTorch's Linear

Of two or more letters in braces, each stands for one leading axis of the leaf. A function of `get` makes what no place
can say, and has no way back: `lambda get: get("conv.weight").transpose(2, 3, 1, 0)`.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .errors import InputError, described

_PLACE = re.compile(r"(?P<name>.+?)(\[(?P<cut>[\d:, ]+)\])?(?P<transposed>\.T)?")
_FORM = "As in 'h.{i}.attn.weight', 'h.{i}.attn.weight[:, 0:64]' or 'h.{i}.attn.weight.T'."
_SHOWN = 4  # names in an error


@dataclass(frozen=True)
class _Place:
    """Where a leaf's numbers are: a name, with a letter in braces for each leading axis, a slice, a transpose."""

    name: str
    letters: tuple[str, ...]
    cut: tuple[slice, ...]
    transposed: bool

    @classmethod
    def of(cls, who: str, leaf: str, shape: tuple[int, ...], text: Any) -> "_Place":
        """The place that a text says. Raises `InputError` where it says none for a leaf of this shape."""
        found = _PLACE.fullmatch(text) if isinstance(text, str) else None
        parts = [part.strip().split(":") for part in ((found and found["cut"]) or ":").split(",")]
        if not found or any(len(part) != 2 for part in parts):
            raise InputError(
                f"{who}: leaf {leaf}: expected a published name or a function of get, got {text!r}. {_FORM}"
            )
        letters = tuple(dict.fromkeys(re.findall(r"\{(\w+)\}", found["name"])))
        if len(letters) > len(shape):
            raise InputError(
                f"{who}: leaf {leaf} has shape {list(shape)}, and {text!r} counts over {len(letters)} axes. "
                "Leave a letter in braces out."
            )
        cut = tuple(slice(*(int(end) if end.strip() else None for end in part)) for part in parts)
        return cls(found["name"], letters, cut if found["cut"] else (), bool(found["transposed"]))

    def blocks(self, shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], str]]:
        """(index of a block in the leaf, the name of its array)."""
        for index in np.ndindex(*shape[: len(self.letters)]):
            name = self.name
            for letter, i in zip(self.letters, index, strict=True):
                name = name.replace(f"{{{letter}}}", str(i))
            yield index, name

    def read(self, array: np.ndarray) -> np.ndarray:
        """The block from its array, as a view."""
        part = array[self.cut] if len(self.cut) <= array.ndim else array
        return part.T if self.transposed else part


def _places(who: str, leaves: Iterable[str], shapes: Iterable[tuple[int, ...]], table: Any) -> list[Any]:
    """The place of each leaf, or its function."""
    if not isinstance(table, Mapping | None):
        raise InputError(f"{who}: names must be {{leaf: published name}}, got {described(table)}. {_FORM}")
    table = dict(table or {})
    each = list(zip(leaves, shapes, strict=True))
    for name in table:
        if name not in dict(each):
            raise InputError(
                f"{who}: names has {name!r}, which is no leaf of this layout. {_nearest(name, dict(each))}"
                "Its leaves are layout.names."
            )
    own = lambda leaf: _Place(leaf, (), (), False)
    made = lambda leaf, shape, place: place if callable(place) else _Place.of(who, leaf, shape, place)
    return [made(leaf, shape, table[leaf]) if leaf in table else own(leaf) for leaf, shape in each]


# -- from elsewhere ---------------------------------------------------------------------------------------------------


def from_elsewhere(layout: Any, source: Any, names: Any, ignore: Iterable[str]) -> np.ndarray:
    """θ `[P]` on the host: see `Layout.load`."""
    who = "layout.load"
    places, arrays = _places(who, layout.names, layout.shapes, names), _arrays(who, source)
    leaves = list(zip(layout.names, layout.shapes, places, strict=True))
    wanted = {
        name: leaf for leaf, shape, place in leaves if isinstance(place, _Place) for _, name in place.blocks(shape)
    }
    if missing := [name for name in wanted if name not in arrays]:
        raise InputError(
            f"{who}: {len(missing)} of {len(wanted)} arrays are not in the source: "
            f"{_listed(f'{name} (leaf {wanted[name]})' for name in missing)}. {_nearest(missing[0], arrays)}"
            "Give names={leaf: published name}, or put them into the source."
        )
    used = set(wanted)

    def get(name: str) -> np.ndarray:
        if name not in arrays:
            raise InputError(f"{who}: get({name!r}) asks for what is not in the source. {_nearest(name, arrays)}")
        used.add(name)
        return _checked(who, name, arrays[name])

    theta = np.empty(layout.size, layout.dtype)
    for (leaf, shape, place), room in zip(leaves, layout.leaves(theta), strict=True):
        if not isinstance(place, _Place):
            room[...] = _fitting(who, leaf, shape, "its function", np.asarray(place(get)))
            continue
        for index, name in place.blocks(shape):
            array = get(name)
            room[index] = _fitting(who, leaf, shape[len(index) :], name, place.read(array), array.shape)
    patterns = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    if over := [name for name in arrays if name not in used and not any(fnmatchcase(name, p) for p in patterns)]:
        raise InputError(
            f"{who}: {len(over)} of {len(arrays)} arrays belong to no leaf: {_listed(over)}. Give names="
            "{leaf: published name}; what the network has no place for, name in ignore=, as in ignore=['*.attn.bias']."
        )
    return theta


def _arrays(who: str, source: Any) -> dict[str, Callable[[], Any]]:
    """{name: what gives the array} of a tree, a safetensors file, or a folder of such files."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise InputError(
                f"{who}: expected a safetensors file, or a folder of them, got {str(path)!r}. Check the path."
            )
        return {name: give for file in files for name, give in _stored(who, file).items()}
    paths = jax.tree_util.tree_flatten_with_path(source)[0]
    named = [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in paths]
    if not named or not all(name and hasattr(leaf, "shape") for name, leaf in named):
        raise InputError(
            f"{who}: expected arrays by name, or the path of a safetensors file, got {described(source)}. "
            "As in {'wte.weight': array}."
        )
    if len(arrays := dict(named)) < len(named):
        raise InputError(f"{who}: two arrays of the source have one name, as 'a.b' and {{'a': {{'b': …}}}} have.")
    return {name: partial(_on_host, who, name, leaf) for name, leaf in arrays.items()}


def _stored(who: str, file: Path) -> dict[str, Callable[[], Any]]:
    """{name: what reads the array} of a safetensors file."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise InputError(
            f"{who}: a file needs safetensors, which is missing. Run pip install 'jbp[checkpoint]'."
        ) from error
    try:
        opened = safe_open(file, framework="numpy")
    except SafetensorError as error:
        raise InputError(
            f"{who}: {file} is no safetensors file: {error}. Save it again, or pass the arrays."
        ) from error
    return {name: partial(opened.get_tensor, name) for name in opened.keys()}  # noqa: SIM118, it is no dict


def _on_host(who: str, name: str, leaf: Any) -> np.ndarray:
    try:
        return np.asarray(leaf)
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"{who}: {name} does not become a NumPy array: {error}. Of a PyTorch tensor pass "
            "tensor.detach().float().cpu().numpy()."
        ) from error


def _checked(who: str, name: str, give: Callable[[], Any]) -> np.ndarray:
    array = give()
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(
            f"{who}: expected floats, {name} is {array.dtype}{list(array.shape)}. Cast it, or give another name."
        )
    return array


def _fitting(who: str, leaf: str, due: Any, origin: str, block: Any, of: Any = None) -> Any:
    """The block, if it has the shape that is due."""
    if block.shape != due:
        whole = "" if of in (None, block.shape) else f", of an array {list(of)}"
        raise InputError(
            f"{who}: leaf {leaf}: expected {list(due)}, got {list(block.shape)} from {origin}{whole}. "
            + (
                "Write .T behind its name."
                if block.shape == due[::-1]
                else "Check the settings of the network and the table of names."
            )
        )
    return block


def _listed(names: Iterable[str]) -> str:
    all_names = list(names)
    return ", ".join([*all_names[:_SHOWN], *(["…"] if len(all_names) > _SHOWN else [])])


def _nearest(name: str, there: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(there), n=1)
    return f"The nearest name is {nearest[0]}. " if nearest else ""


# -- and back ---------------------------------------------------------------------------------------------------------


def to_elsewhere(layout: Any, theta: Any, names: Any) -> dict[str, np.ndarray]:
    """{published name: array} of a vector like θ: see `Layout.named`."""
    who = "layout.named"
    parts: dict[str, list[tuple[str, tuple[slice, ...], np.ndarray]]] = {}
    places = _places(who, layout.names, layout.shapes, names)
    for leaf, shape, place, value in zip(layout.names, layout.shapes, places, layout.leaves(theta), strict=True):
        if not isinstance(place, _Place):
            raise InputError(
                f"{who}: leaf {leaf} is made by a function, which has no way back. Leave it out of names, or say its "
                "place as a name."
            )
        for index, name in place.blocks(shape):
            block = value[index]
            parts.setdefault(name, []).append((leaf, place.cut, block.T if place.transposed else block))
    return {name: _whole(who, name, its) for name, its in parts.items()}


def _whole(who: str, name: str, parts: list[tuple[str, tuple[slice, ...], np.ndarray]]) -> np.ndarray:
    """The array whose parts these are, contiguous. Raises `InputError` where they leave a gap, or overlap."""
    shape = [0] * parts[0][2].ndim
    spans = []
    for leaf, cut, block in parts:
        if len(cut) > block.ndim or block.ndim != len(shape):
            raise InputError(f"{who}: leaf {leaf}, a block {list(block.shape)}, is no part of {name}. Check the slice.")
        starts = [part.start or 0 for part in cut] + [0] * (block.ndim - len(cut))
        spans.append(tuple(slice(start, start + n) for start, n in zip(starts, block.shape, strict=True)))
        shape = [max(size, span.stop) for size, span in zip(shape, spans[-1], strict=True)]
    whole, times = np.empty(shape, parts[0][2].dtype), np.zeros(shape, np.int8)
    for span, (_, _, block) in zip(spans, parts, strict=True):
        whole[span] = block
        times[span] += 1
    if not (times == 1).all():
        leaves = ", ".join(leaf for leaf, _, _ in parts)
        how = "overlap" if (times > 1).any() else "leave a gap"
        raise InputError(f"{who}: leaves {leaves} are the parts of {name} {list(shape)}, and {how}. Check the slices.")
    return whole
