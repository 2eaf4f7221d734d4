"""The digits that ship with the package: what they are, to the last bit."""

import hashlib

import numpy as np
import pytest

import jbp

DIGITS = jbp.data.digits()
IMAGES = "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
LABELS = "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0"


def all_digits() -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([DIGITS.x, DIGITS.held_out_x]), np.concatenate([DIGITS.y, DIGITS.held_out_y])


def test_shapes_dtypes_and_ranges():
    assert [(part.shape, part.dtype) for part in DIGITS] == [
        ((1437, 64), np.float32),
        ((1437,), np.int32),
        ((360, 64), np.float32),
        ((360,), np.int32),
    ]
    x, y = all_digits()
    assert (x.min(), x.max()) == (0, 1)
    np.testing.assert_array_equal(16 * x, np.round(16 * x))  # pixels of 0 … 16
    assert (y.min(), y.max()) == (0, 9)
    assert np.bincount(DIGITS.held_out_y).min() > 20  # every class is held out as well


def test_the_content():
    x, y = all_digits()
    assert hashlib.sha256((16 * x).astype(np.uint8).tobytes()).hexdigest() == IMAGES
    assert hashlib.sha256(y.astype(np.uint8).tobytes()).hexdigest() == LABELS


def test_nothing_is_shared_between_two_calls():
    first = jbp.data.digits()
    first.x[:] = -1
    np.testing.assert_array_equal(jbp.data.digits().x, DIGITS.x)


def test_they_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn, whose digits these are, isn't installed")
    expected = datasets.load_digits()
    x, y = all_digits()
    np.testing.assert_array_equal(16 * x, expected.data)
    np.testing.assert_array_equal(y, expected.target)
