"""Compare the hand-written gradient in a function of yours with autodiff: `jbp check file.py:function`.

The function is named by its file, or by its module, as in `jbp check package.module:function`.

Every jax.custom_vjp (or custom_jvp) that the function calls is compared with autodiff of its own primal, on generated
inputs of the shapes given, ordinary and at the edges; the smallest that fails is printed with code that shows it again.
With --oracle the function is itself a gradient, and the other one the reference. Shapes are read off jaxtyping's
annotations unless they are given.
Exit code: 0 if it is right on every example, 1 if not, 2 if it can't be compared.
"""

import difflib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import paint
from ..compare import annotated, search
from ..compare.shapes import FLOATS, parse_shapes
from ..errors import InputError
from ..programs.sites import LIBRARIES
from . import options


def _reference(given: str) -> str:
    """A text of the form package.module:function or path/file.py:function."""
    place, _, name = given.rpartition(":")
    parts = name.split(".") if place.endswith(".py") else [*place.split("."), *name.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise ValueError
    return given


FUNCTION = "a function as file.py:function or package.module:function"


@dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    function: str | None = options.option(
        None, _reference, FUNCTION, "mine/layers.py:softmax", "", word=True, required=True
    )
    shapes: str | None = options.option(
        None, lambda text: (parse_shapes(text), text)[1], "axes of each argument, with commas between", "'N I, I O'",
        "a letter is a size, drawn anew; 'V D, N T: int32 < V' has whole numbers below V"
    )  # fmt: skip
    dtype: str = options.choice(FLOATS, "of the floats")
    oracle: str | None = options.option(
        None, _reference, FUNCTION, "mine/layers.py:gradient",
        "the reference, if the function is a gradient itself"
    )  # fmt: skip
    examples: int = options.number(50, int, 1, 10**6, "a whole number above 0", "generated inputs")
    seed: int = options.number(0, int, 0, 2**31 - 1, "a whole number from 0 to 2147483647", "for the inputs")
    empty: str = options.choice(("no", "yes"), "whether axes may be empty")
    json: str | None = options.file("report.json", "write the report")
    html: str | None = options.file("report.html", "write it as one page with pictures", (".html",))
    markdown: str | None = options.file("report.md", "write a summary for GitHub", (".md",))


def run(settings: Settings) -> int:
    """Print the report; the exit code."""
    if settings.html:
        paint.needed()
    assert settings.function is not None
    function = loaded(settings.function)
    oracle = loaded(settings.oracle) if settings.oracle else None
    shapes = annotated(function) if settings.shapes is None else settings.shapes
    if shapes is None:
        raise InputError(
            f"check: the arguments of {settings.function} are not annotated with shapes, as in Float[Array, 'N I']. "
            "Give them with --shapes 'N I, I O'."
        )
    try:
        report = search(
            function, shapes, oracle=oracle, dtype=settings.dtype, examples=settings.examples, seed=settings.seed,
            empty=settings.empty == "yes",
        )  # fmt: skip
    except InputError as error:
        place = _raised_at(error)
        told, again, code = re.sub("^search:", "check:", str(error)).partition(" To see it again:")
        told = f"{told.removesuffix('.')} ({place})." if place else told
        raise InputError(f"{told}{again}{code}") from error
    print(report)
    if settings.json:
        options.write(settings.json, report.to_json())
    if settings.markdown:
        options.write(settings.markdown, report.to_markdown())
    if settings.html:
        report.to_html(settings.html)
    return 0 if report.ok else 1


def _raised_at(error: BaseException) -> str:
    """The file and line of the user's in which an error arose, the innermost; "" where it is none of theirs."""
    while isinstance(error, InputError):
        if error.__cause__ is None:
            return ""
        error = error.__cause__
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [(file, line) for file, line in frames if not any(part in file for part in (*LIBRARIES, _HERE, "<"))]
    return f"{Path(own[-1][0]).name}, line {own[-1][1]}" if own else ""


_HERE = str(Path(__file__).resolve().parents[1])


def _of_file(path: Path) -> Any:
    """The module in a file: under its full name if it lies in a package, else under the file's own."""
    if not path.is_file():
        raise InputError(f"check: there is no file {path}. Name one from the folder that you call it in.")
    path = path.resolve()
    root, names = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        root, names = root.parent, [root.name, *names]
    sys.path.insert(0, str(root))  # what it imports may lie beside it
    name = ".".join(names)
    if len(names) > 1:
        return importlib.import_module(name.removesuffix(".__init__"))
    if getattr(sys.modules.get(name), "__file__", None) == str(path):
        return sys.modules[name]
    if name in sys.modules or name in sys.stdlib_module_names:  # another's name, which others may mean
        name = f"{name}_of_{path.parent.name}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def loaded(reference: str) -> Callable[..., Any]:
    """The function that a reference names. Raises `InputError` where there is none."""
    place, _, name = reference.rpartition(":")
    sys.path[:0] = [""] if "" not in sys.path else []  # the folder that the command is called in
    try:
        found: Any = _of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except InputError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            raise InputError(
                f"check: there is no module {place}. Call it from the folder that holds it, or install it."
            ) from None
        raise InputError(f"check: {place} can't be imported: {error}. Install what it needs.") from None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise InputError(
            f"check: {place} raises {type(error).__name__} when it is imported: {error}. Mend it first."
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, [n for n in dir(found) if callable(getattr(found, n))], n=1)
            hint = f"Did you mean {near[0]}?" if near else "Check the name."
            raise InputError(f"check: {place} has no {name}. {hint}")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"check: {reference} is {type(found).__name__}, not a function. Name a function.")
    return found
