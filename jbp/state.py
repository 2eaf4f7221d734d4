"""Where a descent stands, so that it can go on from there as if it had never ended; in memory, as arrays, on disk."""

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .history import Best, History, Search
from .layer import InputError
from .layout import Layout

FILE = "state.npz"
FORMAT = 1
DTYPES = "dtypes"  # in the file alone: of arrays whose dtype numpy does not write


@dataclass(frozen=True)
class End:
    """What came after the last full batch of a descent that is over: the short batch that ends its last epoch."""

    theta: Float[Array, "P"]
    cost: np.ndarray
    record: dict[str, Any]


@dataclass(frozen=True)
class State:
    """Where the stream of a descent stands after its last full batch; `fit(..., resume=state)` goes on from there.

    `leaves`: θ's leaves as `theta.<name>`, the optimiser's as `optimizer.<path>`. `step`: how many batches are done.
    `batch_size` and `examples` are None where an iterable gave the batches. `history` and `search` (for the best
    epoch) are those of the steps done. `owed`: the epoch that ended here has no record yet.
    """

    leaves: dict[str, Any]
    optimizer: str  # an outline of the optimiser's state
    program: bytes  # what tells an optimiser's constants from others, empty if that is not known
    key: PRNGKeyArray
    step: int = 0
    batch_size: int | None = None
    examples: int | None = None
    seconds: float = 0.0
    history: History = field(default_factory=History)
    search: Search = field(default_factory=Search)
    owed: bool = False
    end: End | None = None

    def __repr__(self) -> str:
        size = sum(a.size for name, a in self.leaves.items() if _part(name) == "theta")
        at = f"State after step {self.step:,}, {len(self.history.epochs):,} epochs: {size:,} parameters"
        return f"{at}, optimizer {self.optimizer}"

    # -- what there is and what there should be -----------------------------------------------------------------------

    def dtype(self, layout: Layout) -> Any:
        """θ's dtype: float64 if it has that, else the layout's."""
        dtypes = {np.dtype(a.dtype) for name, a in self.leaves.items() if _part(name) == "theta"}
        return np.dtype(np.float64) if dtypes == {np.dtype(np.float64)} else layout.dtype

    def placed(self, params: Any, optimizer: Any) -> tuple[Any, Any]:
        """(params, the optimiser's state) in the structure of these specs. Raises `InputError` where leaves differ."""
        theta, outline = self._placed("theta", params), outline_of(optimizer, params)
        if outline != self.optimizer:
            raise InputError(
                f"fit: the state is of another optimizer: its own keeps {self.optimizer}, this one {outline}. Give the "
                "optimizer that it was made with, or begin anew from its θ: fit(cost, run.theta, ...)."
            )
        return theta, self._placed("optimizer", optimizer)

    def _placed(self, part: str, specs: Any) -> Any:
        due = by_name(part, specs)
        here = {name: leaf for name, leaf in self.leaves.items() if _part(name) == part}
        what, remedy = ("layout", "network") if part == "theta" else ("optimizer", "optimizer")
        for name in [*due, *here]:
            there, new = (_described(leaves.get(name)) for leaves in (here, due))
            if there != new:
                raise InputError(
                    f"fit: the state is of another {what}: leaf {name.partition('.')[2] or 'θ'} is {there} there, "
                    f"and {new} here. Give the {remedy} that it was made with."
                )
        return jax.tree.unflatten(jax.tree.structure(specs), [here[name] for name in due])

    def check(self, new: "State", epochs: int) -> None:
        """Raise `InputError` that names the difference, unless a descent that begins as `new` can go on from here."""
        if (self.examples is None) != (new.examples is None):
            there, here = ("arrays", "an iterable of batches")[:: 1 if self.examples else -1]
            raise InputError(f"fit: the state is of other data: {there} there, {here} here. Give the same data.")
        if self.examples != new.examples:
            there, here = f"{self.examples} examples", f"{new.examples}"
            raise InputError(f"fit: the state is of other data: {there} there, {here} here. Give the same data.")
        if self.batch_size != new.batch_size:
            raise InputError(
                f"fit: the state has another batch size: {self.batch_size} there, {new.batch_size} here. "
                f"Give batch_size={self.batch_size}."
            )
        if new.key.dtype != self.key.dtype or not np.array_equal(_array(new.key), _array(self.key)):
            raise InputError(
                f"fit: the state has another key: {_array(self.key)} there, {_array(new.key)} here. Give the same key; "
                "or none, and the state's own goes on."
            )
        if self.program and self.program != new.program:
            raise InputError(
                "fit: the state is of another optimizer: its leaves are the same, but a constant of it or its formula "
                "is not. Give the one that it was made with; or, to go on with this one, "
                "resume={name: a for name, a in state.arrays().items() if name != 'program'}."
            )
        done = len(self.history.epochs) + self.owed
        if self.examples and self.batch_size:
            less = self.step > epochs * self.examples // self.batch_size
        else:  # in an epoch, or after it?
            less = done == epochs and self.step > (self.history.epochs[-1]["step"] if not self.owed else self.step)
        if done > epochs or less:
            raise InputError(
                f"fit: the state stands at step {self.step}, after {done} epochs, and epochs={epochs} is the total, "
                "which is less. Give more."
            )

    # -- as arrays ----------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as {name: array}, for safetensors, orbax-checkpoint or `numpy.savez`; `fit(resume=)` takes it back.

        `theta.*` and `optimizer.*` are the leaves, `key` the data of the key, `cost` the history's; `program` tells an
        optimiser's constants from others; `about` is the rest, as bytes of JSON text.
        """
        return {name: _array(value) for name, value in self._values().items()}

    def _values(self) -> dict[str, Any]:
        about = {
            "format": FORMAT, "step": self.step, "batch_size": self.batch_size, "examples": self.examples,
            "key": str(jax.random.key_impl(self.key)), "optimizer": self.optimizer, "seconds": self.seconds,
            "owed": self.owed, "epochs": self.history.epochs, "best": self.search.by, "since": self.search.since,
            "jax": jax.__version__,
            "keys": {name: str(jax.random.key_impl(a)) for name, a in self.leaves.items() if _is_key(a)},
        }  # fmt: skip
        more: dict[str, Any] = {}
        if best := self.search.best:
            more["best.theta"] = best.theta
            about |= {"best_epoch": best.epoch, "best_value": best.value}
        if self.end:
            more |= {"end.theta": self.end.theta, "end.cost": self.end.cost}
            about["end"] = self.end.record
        if self.program:
            more["program"] = np.frombuffer(self.program, np.uint8)
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        return {**self.leaves, **more, "key": self.key, "cost": self.history.cost, "about": text}

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> "State":
        """The state whose `arrays()` these are."""
        arrays = dict(arrays)
        if missing := [name for name in ("about", "key", "cost") if name not in arrays]:
            raise InputError(
                f"fit: expected the arrays of a state, got a dict without {', '.join(missing)}. Give run.state, or "
                "what run.state.arrays() returned."
            )
        about = json.loads(np.asarray(arrays.pop("about")).tobytes())
        if about["format"] != FORMAT:
            raise InputError(
                f"fit: the state has format {about['format']}, this version of jbp reads format {FORMAT}. Begin anew."
            )
        for name, array in arrays.items():
            narrow = jnp.result_type(float) != np.float64 and array.dtype.name in ("float64", "int64", "uint64")
            if narrow and name not in ("cost", "end.cost"):
                raise InputError(
                    f"fit: {name} of the state is {array.dtype}, which needs JAX's x64. "
                    "Set jax.config.update('jax_enable_x64', True)."
                )
        key = jax.random.wrap_key_data(jnp.asarray(arrays.pop("key")), impl=about["key"])
        program = np.asarray(arrays.pop("program", [])).astype(np.uint8).tobytes()
        cost = np.asarray(arrays.pop("cost"), np.float64)
        history, best, end = History(cost, about["epochs"]), None, None
        if "best_epoch" in about:
            best = Best(jnp.asarray(arrays.pop("best.theta")), about["best_epoch"], about["best_value"])
        if "end" in about:
            end = End(
                jnp.asarray(arrays.pop("end.theta")), np.asarray(arrays.pop("end.cost"), np.float64), about["end"]
            )
        for name, kind in about["keys"].items():
            arrays[name] = jax.random.wrap_key_data(jnp.asarray(arrays[name]), impl=kind)
        return cls(
            arrays, about["optimizer"], program if about["jax"] == jax.__version__ else b"", key, about["step"],
            about["batch_size"], about["examples"], about["seconds"], history,
            Search(about["best"], best, about["since"]), about["owed"], end,
        )  # fmt: skip

    # -- on disk ------------------------------------------------------------------------------------------------------

    def write(self, directory: str | os.PathLike) -> None:
        """Write it to `directory/state.npz`, so that at any time either the old file stands there whole or the new."""
        directory = Path(directory)
        part = directory / f"{FILE}.part"
        with open(part, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                dtypes = {}
                for name, value in self._values().items():
                    # of a copy: while a view of a leaf's own memory lives, the next step could not be done in place
                    array = _array(jnp.copy(value) if isinstance(value, jax.Array) else value)
                    if array.dtype.kind == "V":  # numpy writes no bfloat16: its bits, and its name
                        dtypes[name], array = array.dtype.name, array.view(f"u{array.dtype.itemsize}")
                    _write(archive, name, array)
                _write(archive, DTYPES, np.frombuffer(json.dumps(dtypes).encode(), np.uint8))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, directory / FILE)
        if hasattr(os, "O_DIRECTORY"):  # the name, too
            handle = os.open(directory, os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    @classmethod
    def read(cls, directory: str | os.PathLike) -> "State | None":
        """The state that stands in `directory`, None if there is none."""
        path = Path(directory) / FILE
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(
                f"fit: {path} can't be read as the state of a descent: {error}. Give another directory, or remove it."
            ) from error
        for name, dtype in json.loads(arrays.pop(DTYPES).tobytes()).items():
            arrays[name] = arrays[name].view(jnp.dtype(dtype))
        return cls.of(arrays)


def _write(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array(entry, array, allow_pickle=False)


def by_name(part: str, tree: Any) -> dict[str, Any]:
    """{part.path: leaf} of a tree. Raises `InputError` if two have the same name."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    names = [".".join(filter(None, (part, jax.tree_util.keystr(p, simple=True, separator=".")))) for p, _ in paths]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"fit: two leaves have the name {twice[0]}. Rename one, so that a state can tell them apart.")
    return dict(zip(names, (leaf for _, leaf in paths), strict=True))


def outline_of(optimizer: Any, params: Any) -> str:
    """An optimiser's state in words, each tree like the params as θ."""
    like: Any = jax.tree.structure(params)

    def said(node: Any) -> str:
        if jax.tree.structure(node) == like and like != jax.tree.structure(0):
            return "θ"
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            return f"{type(node).__name__}({', '.join(map(said, node))})"
        if isinstance(node, (tuple, list)):
            return f"({', '.join(map(said, node))})"
        if isinstance(node, dict):
            return f"{{{', '.join(f'{name}: {said(part)}' for name, part in node.items())}}}"
        return "–" if node is None else "·" if len(jax.tree.leaves(node)) == 1 else type(node).__name__

    return said(optimizer)


def _part(name: str) -> str:
    return name.partition(".")[0]


def _is_key(a: Any) -> bool:
    return isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key)


def _array(value: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(value) if _is_key(value) else value)


def _described(leaf: Any) -> str:
    return "absent" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
