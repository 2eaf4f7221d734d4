"""Each pattern is found in a gradient made by that very mistake, and none in a right or merely noisy one.

got = T(exact) + rounding,    T the mistake
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jbp.compare import error, patterns
from jbp.compare.parts import Part, place
from jbp.compare.patterns import pattern_of


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def named(got: Any, exact: np.ndarray, others: dict[str, Any] | None = None) -> str:
    """The pattern of a leaf in float32, or complex64, against the exact one."""
    dtype = np.complex64 if np.iscomplexobj(exact) else np.float32
    with np.errstate(all="ignore"):
        part = Part("w", np.asarray(got).astype(dtype), lambda at: place("w", at))
    right = Part("w", exact.astype(dtype), part.symbol)
    leaf = error.errors([part], [right], [Part("w", exact, part.symbol)])[0]
    return pattern_of(leaf, part.array, exact, others or {})


def put(a: np.ndarray, at: Any, value: Any) -> np.ndarray:
    a = a.copy()
    a[at] = value
    return a


W, SQUARE, T = numbers(0, 12, 8), numbers(1, 6, 6), numbers(2, 4, 5, 6)
BIG = numbers(3, 30, 30)
CENTRED = W - W.mean(1, keepdims=True)  # as after the mean over axis 1: its rows sum to zero
SOFTMAX = np.exp(W) / np.exp(W).sum(1, keepdims=True)
Z = numbers(4, 5, 6) + 1j * numbers(5, 5, 6)

# the right gradient, the wrong one, what is said
PATTERNS: dict[str, tuple[np.ndarray, np.ndarray, str]] = {
    "sign": (W, -W, "sign flipped"),
    "sign of a vector": (W[0], -W[0], "sign flipped"),
    "factor 2": (W, 2 * W, "off by the factor 2.000"),
    "factor 1.02": (W, 1.02 * W, "off by the factor 1.020"),
    "mean for sum": (W, W / 12, "off by the factor 0.083 = 1/12"),
    "factor of a scalar": (W[0, 0], 3 * W[0, 0], "off by the factor 3.000"),
    "zero": (W, 0 * W, "all zero"),
    "transposed": (SQUARE, SQUARE.T, "transposed"),
    "a triangle spread over both": (
        np.tril(SQUARE), (np.tril(SQUARE) + np.tril(SQUARE).T) / 2,
        "right only in its symmetric part, as if the matrix were always symmetric"),
    "axes swapped": (T[:, :4], np.swapaxes(T[:, :4], 0, 1), "axes 0 and 1 swapped"),
    "reversed": (W, W[::-1], "reversed along axis 0"),
    "reversed in 3-D": (T, T[:, :, ::-1], "reversed along axis 2"),
    "rolled": (W, np.roll(W, 1, 0), "rolled by +1 along axis 0"),
    "rolled back": (T, np.roll(T, -1, 1), "rolled by -1 along axis 1"),
    "off by one": (W, np.concatenate([0 * W[:1], W[:-1]]), "off by one along axis 0"),
    "off by one the other way": (W, np.concatenate([W[:, 1:], W[:, :1] * 0], 1), "off by one along axis 1"),
    "a row zero": (W, put(W, 3, 0), "row 3 is zero"),
    "a column zero": (W, put(W, (slice(None), 7), 0), "column 7 is zero"),
    "a row's sign": (W, put(W, 11, -W[11]), "row 11 is of the wrong sign"),
    "a column of others": (W, put(W, (slice(None), 0), W[:, 1]), "column 0 is wrong"),
    "rows zero": (W, put(W, slice(0, 4), 0), "4 of 12 rows are zero: 0, 1, 2, 3"),
    "many rows zero": (BIG, put(BIG, slice(4, 10), 0), "6 of 30 rows are zero: 4, 5, 6, 7, …"),
    "a slice zero": (T, put(T, (slice(None), 2), 0), "slice across axis 1 2 is zero"),
    "mean not taken off": (
        CENTRED, CENTRED + 0.7, "missing the term along axis 0: what is off is constant along it"),
    "the mean of a norm": (
        CENTRED, CENTRED + W[:, :1] ** 2, "missing the term along axis 1: the right one sums to zero along it"),
    "softmax without its sum": (
        SOFTMAX * (W - (SOFTMAX * W).sum(1, keepdims=True)), SOFTMAX * W,
        "missing the term along axis 1: the right one sums to zero along it"),
    "a shift per row": (W, W + numbers(6, 12, 1), "missing the term along axis 1: what is off is constant along it"),
    "averaged": (W, 0 * W + W.mean(0, keepdims=True), "the mean along axis 0, at each element"),
    "summed": (W, 0 * W + W.sum(1, keepdims=True), "the sum along axis 1, at each element"),
    "clipped": (W, W.clip(-0.3, 0.3), "clipped at 0.3"),
    "one element": (BIG, put(BIG, (4, 5), 9), "1 of 900 elements wrong"),
    "one element zero": (BIG, put(BIG, (4, 5), 0), "1 of 900 elements wrong (they are zero)"),
    "elements off by 1 %": (BIG, np.where(BIG > 2, 1.01 * BIG, BIG), f"{(BIG > 2).sum()} of 900 elements wrong"),
    "NaN": (W, put(W, (2, 3), np.nan), "NaN in 1 of 96 elements, first at [2,3]"),
    "NaN everywhere": (W, W * np.nan, "NaN in all elements, first at [0,0]"),
    "infinite": (W[0], put(W[0], slice(5, 7), np.inf), "infinite in 2 of 8 elements, first at [5]"),
    "conjugate": (Z, Z.conj(), "conjugate"),
    "minus conjugate": (Z, -Z.conj(), "conjugate with its sign flipped"),
    "complex sign": (Z, -Z, "sign flipped"),
    "complex factor": (Z, (0.5 + 1j) * Z, "off by the factor 0.500+1.000j"),
    "complex transposed": (Z[:, :5], Z[:, :5].T, "transposed"),
    "complex row": (Z, put(Z, 1, 0), "row 1 is zero"),
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
def test_a_mistake_has_its_name(name: str):
    exact, got, text = PATTERNS[name]
    assert named(got, exact) == text


@pytest.mark.parametrize("name", PATTERNS)
def test_a_mistake_keeps_its_name_under_noise_and_scale(name: str):
    """Rounding of 1e-5, gradients of size 1e±20: the mistake is the same."""
    exact, got, text = PATTERNS[name]
    for scale in (1e-20, 1e20):
        noisy = got * (1 + 1e-5 * np.random.default_rng(7).standard_normal(np.shape(got)))
        expected = text
        if name == "clipped":  # all at one value
            noisy, expected = got, f"clipped at {0.3 * scale:.4g}"
        with np.errstate(invalid="ignore"):
            assert named(scale * noisy, scale * exact) == expected


def test_the_gradient_of_another_leaf_is_named():
    assert named(SQUARE.T, SQUARE, {"q": W, "k": SQUARE.T}) == "the gradient of k"
    assert named(numbers(9, 6, 6), SQUARE, {"q": W, "k": SQUARE.T}) == ""


UNNAMED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "right": lambda w: w,
    "rounded to float32": lambda w: w.astype(np.float32).astype(np.float64),
    "noise of 1e-6": lambda w: w * (1 + 1e-6 * np.random.default_rng(7).standard_normal(w.shape)),
    "noise of the leaf's size": lambda w: w + np.random.default_rng(8).standard_normal(w.shape),
    "noise of 10 %": lambda w: w * (1 + 0.1 * np.random.default_rng(8).standard_normal(w.shape)),
    "another function": lambda w: np.abs(w) * np.sin(7 * w),
    "its square": lambda w: w * w,
}


SHAPES = [(), (7,), (6, 6), (12, 8), (1, 9), (3, 4, 5)]
# any wrong scalar is off by a factor
SCALARS = [name for name in UNNAMED if any(part in name for part in ("right", "float32", "1e-6"))]


@pytest.mark.parametrize(
    ("name", "shape"), [(name, shape) for shape in SHAPES for name in (UNNAMED if shape else SCALARS)]
)
def test_what_is_right_or_merely_noisy_has_no_name(name: str, shape: tuple[int, ...]):
    for exact in (numbers(10, *shape), numbers(10, *shape) + 1j * numbers(11, *shape)):
        if np.iscomplexobj(exact) and "float32" in name:
            continue
        assert named(UNNAMED[name](exact), exact) == ""


def test_what_vouches_for_nothing_has_no_pattern():
    assert named(W, W * np.inf) == ""
    assert named(np.zeros((0, 3)), np.zeros((0, 3))) == ""
    assert named(W, 0 * W) == ""


def test_a_large_leaf_is_tried_for_cheap_patterns_only(monkeypatch: pytest.MonkeyPatch):
    """Beyond `LIMIT` elements nothing is flipped, rolled or compared slice by slice."""
    monkeypatch.setattr(patterns, "LIMIT", BIG.size - 1)
    monkeypatch.setattr(patterns, "_order", lambda *_: pytest.fail("a costly pattern was tried"))
    assert named(-BIG, BIG) == "sign flipped"
    assert named(BIG / 4, BIG) == "off by the factor 0.250 = 1/4"
    assert named(0 * BIG, BIG) == "all zero"
    assert named(put(BIG, (4, 5), 9), BIG) == "1 of 900 elements wrong"
    assert named(BIG[::-1], BIG) == ""
