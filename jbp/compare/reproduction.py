"""A comparison as code that makes it again: imports, the arguments number by number, and the call."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..programs.calls import RULES
from .parts import VALUE

SHOWN = 256  # elements of an array, up to which it is printed number by number


def reproduction(f: Callable[..., Any], oracle: Callable[..., Any] | None, args: Sequence[Any], kind: str) -> str:
    """Code that makes a comparison again."""
    lines = ["import ml_dtypes  # its dtypes are NumPy's too"] if any("ml_dtypes" in _dtype(a) for a in args) else []
    lines += ["import numpy as np", "", "import jbp"]
    names = []
    for role, function in (("f", f), ("oracle", oracle)):
        if function is None:
            continue
        module, name = str(getattr(function, "__module__", None)), getattr(function, "__qualname__", "")
        if module in sys.modules:  # where a rule may stand under another name than its primal's, which it bears
            name = next((n for n, value in vars(sys.modules[module]).items() if value is function), "")
        known = module not in ("None", "__main__") and name.isidentifier()
        lines.append(f"from {module} import {name}" if known else f"# {role}: your function")
        names.append(name if known else role)
    lines += ["", *(f"x{i} = {_literal(a)}" for i, a in enumerate(args))]
    if kind == VALUE:
        lines.insert(lines.index("import jbp") + 1, "from jbp.compare.inputs import both_values")
        names = [f"*both_values({names[0]})"]
    call = ", ".join([*names, *(f"x{i}" for i in range(len(args)))])
    return "\n".join([*lines, f"print(jbp.compare{f'_{kind}' if kind in RULES else ''}({call}))", ""])


def _dtype(a: np.ndarray) -> str:
    return f"np.{a.dtype.name}" if hasattr(np, a.dtype.name) else f"ml_dtypes.{a.dtype.name}"


def _literal(a: Any) -> str:
    a = np.asarray(a)
    if a.size > SHOWN:
        return f"np.zeros({a.shape}, {_dtype(a)})  # {a.size:,} elements: put yours here"
    if np.iscomplexobj(a) and a.size:  # part by part: written as one, signs of zeros and infinities are lost
        real, imaginary = (_literal(part.astype(np.float64)) for part in (a.real, a.imag))
        return f"np.vectorize(complex)({real}, {imaginary}).astype({_dtype(a)})"
    wide = a.astype(float) if jnp.issubdtype(a.dtype, jnp.floating) else a
    text = repr(wide.tolist()).replace("nan", "np.nan").replace("inf", "np.inf")
    return f"np.array({text}, {_dtype(a)})" + (f".reshape{a.shape}" if not a.size else "")
