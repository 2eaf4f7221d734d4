"""The command line: `jbp COMMAND [--option VALUE ...]`; `jbp` alone is `jbp train`, `jbp --version` says which it is.

Exit code: that of the command; 2 if a word or an option does not fit, 130 after Ctrl-C.
"""

import argparse
import importlib.metadata
import io
import platform
import sys
from collections.abc import Sequence
from typing import Any

import jax

from .commands import COMMANDS
from .commands.options import checked, one_of, parse, words_of
from .layer import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """The command line `jbp`; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # where there is no ←, \u2190 instead of an error
    argv = sys.argv[1:] if argv is None else argv
    if "--version" in argv:
        print(version())
        return 0
    try:
        command, settings = understood(argv)
        return COMMANDS[command].run(settings)
    except (InputError, OSError) as error:
        print("jbp:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jbp: interrupted", file=sys.stderr)
        return 130


def version() -> str:
    """One line for a report of a fault."""
    try:
        own = importlib.metadata.version("jbp")
    except importlib.metadata.PackageNotFoundError:
        own = "(not installed: imported from its folder)"
    return f"jbp {own}, jax {jax.__version__}, Python {platform.python_version()} on {platform.system()}"


def understood(argv: Sequence[str]) -> tuple[str, Any]:
    """(command, its settings) of a command line. Raises `InputError` where a word of it does not fit."""
    names, words = list(COMMANDS), list(argv)
    command, alone = names[0], True
    if words and not words[0].startswith("-"):
        known = {"parse": lambda name: names[names.index(name)], "expected": one_of(names), "example": command}
        try:
            command, alone = checked(known)(words.pop(0)), False
        except argparse.ArgumentTypeError as error:
            raise InputError(f"command: {error}") from None
    module = COMMANDS[command]
    description = (module.__doc__ or "").replace("`", "")
    if alone:
        prog, usage = "jbp", f"jbp [{' | '.join(names)}] [--option VALUE ...]"
        others = [name for name in names if COMMANDS[name] is not module]
        lines = [f"jbp {name:<8} {(COMMANDS[name].__doc__ or '').splitlines()[0]}" for name in others]
        lines = [line.replace("`", "") for line in lines]
        description += "\nOther commands, each with its own --help:\n\n" + "\n".join(lines)
        description += "\n\nThe options are those of jbp train; jbp --version says which jbp and which JAX this is."
    else:
        prog = f"jbp {command}"
        usage = " ".join((prog, *words_of(module.Settings), "[--option VALUE ...]"))
    return command, parse(module.Settings, command, words, prog, usage, description)


if __name__ == "__main__":
    sys.exit(main())
