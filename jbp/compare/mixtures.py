"""Shares at kinks: where each stands in a program's comparisons, which conditions they keep, which are nearest.

A share is a number from 0 to 1. Those of an exchange of equal numbers in a sorted array leave one place and come to
another: at each place as much leaves as comes, and at most 1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls
from scipy.sparse import csr_array

from .sides import steps_of

FIRM = 1e4  # what a condition on shares weighs beside the largest derivative by one


def placed_shares(rows: np.ndarray, most: int, where: Sequence[Any], flat: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Rows of shares, at most so many, as so many arrays of the shapes of the comparisons."""
    some = [m for m in where if m is not None]
    parts = np.split(rows, np.cumsum([len(f) for f in flat])[:-1], axis=1)
    found = []
    for m, at, part in zip(some, flat, parts, strict=True):
        placed = np.zeros((most, m.size))
        placed[: len(rows), at] = part
        found.append(placed.reshape(most, *m.shape))
    return found


def where_live(where: Sequence[Any], flat: Sequence[np.ndarray], live: np.ndarray) -> list[np.ndarray]:
    """Where kinks are met that are no jumps."""
    found, parts = [], np.split(live, np.cumsum([len(f) for f in flat])[:-1])
    for m, at, part in zip([m for m in where if m is not None], flat, parts, strict=True):
        met = np.zeros(m.size, bool)
        met[at] = part
        found.append(met.reshape(m.shape))
    return found


def places_of_exchanges(some: Sequence[tuple[Any, bool]], flat: Sequence[np.ndarray]) -> tuple[csr_array, csr_array]:
    """[places, kinks] twice: which kink's share leaves a place of a sorted array, and which comes to it."""
    leaves, comes, kink, base = [], [], [], 0
    begin = np.cumsum([0, *map(len, flat)])
    for (m, exchanges), at, first in zip(some, flat, begin, strict=False):
        if exchanges:
            k = m.shape[-1]
            leaves.append(base + at // k)
            comes.append(base + at // k + steps_of(k)[at % k])
            kink.append(first + np.arange(len(at)))
            base += m.size // k
    places = np.concatenate([*leaves, *comes]) if kink else np.zeros(0, int)
    used, place = np.unique(places, return_inverse=True)
    kinks, shape = np.concatenate(kink) if kink else places, (len(used), int(begin[-1]))
    matrix = lambda rows: csr_array((np.ones(len(kinks)), (rows, kinks)), shape)
    left, come = np.split(place.ravel(), 2)
    return matrix(left), matrix(come)


def least_squares(columns: np.ndarray, off: np.ndarray, here: np.ndarray, leaves: np.ndarray, comes: np.ndarray) -> Any:
    """The shares that bring the derivative nearest: from 0 to 1, and at each place as much leaves as comes, at most 1.

    Lawson & Hanson's least squares of numbers that are not negative; the conditions are rows of a large weight.
    """
    used = columns.any(0) | leaves.any(0)
    conditions = np.unique(np.hstack([leaves, comes])[:, np.tile(used, 2)], axis=0)
    leaves, comes = np.split(conditions, 2, axis=1)
    free = np.eye(used.sum())[~leaves.any(0)]  # those that stand in no such condition
    limits, rest = np.vstack([leaves, free]), np.eye(len(leaves) + len(free))
    firm = FIRM * np.abs(columns).max(initial=1e-300)
    rows = np.block(
        [
            [columns[:, used], np.zeros((len(off), len(rest)))],
            [firm * (leaves - comes), np.zeros((len(leaves), len(rest)))],
            [firm * limits, firm * rest],
        ]
    )
    wanted = np.concatenate([off + columns @ here, np.zeros(len(leaves)), np.full(len(rest), firm)])
    q, r = np.linalg.qr(rows)
    shares = here.copy()
    shares[used] = nnls(r, q.T @ wanted)[0][: used.sum()]
    return np.clip(shares, 0, 1)
