"""The real handwritten digits that ship with the package. Nothing is downloaded.

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998,
doi:10.24432/C50P49, licence CC BY 4.0: the 1,797 images of its test part, 8×8 pixels of 0 … 16, as scikit-learn's
`load_digits` has them, in the same order. Stored unchanged, as bytes, in `digits.npz`.
"""

from importlib.resources import files
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

HELD_OUT = 360


class Digits(NamedTuple):
    """Images as rows in [0, 1] (pixel / 16), and labels 0 … 9; on the host, as NumPy arrays."""

    x: Float32[np.ndarray, "N 64"]
    y: Int32[np.ndarray, "N"]
    held_out_x: Float32[np.ndarray, "M 64"]
    held_out_y: Int32[np.ndarray, "M"]


def digits() -> Digits:
    """1,437 digits to train on and 360 held out: by a fixed rule, the last 360 of the set."""
    with (files("jbp") / "digits.npz").open("rb") as file, np.load(file) as stored:
        x, y = stored["x"].reshape(-1, 64).astype(np.float32) / 16, stored["y"].astype(np.int32)
    return Digits(x[:-HELD_OUT], y[:-HELD_OUT], x[-HELD_OUT:], y[-HELD_OUT:])
