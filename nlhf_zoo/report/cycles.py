"""Three responses of which each beats the next: how many there are, and the clearest of them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

__all__ = ["Cycles", "three_cycles"]

_MARGIN = 1e-9
"""A preference nearer to one half than this decides nothing."""


@attrs.frozen
class Cycles:
    """Cycles of length three, which are there as soon as there is a cycle of any length without ties.

    Attributes:
        count: how many of the triples are cycles.
        triples: how many triples there are.
        clearest: positions (i, j, k) of cycles where i beats j, j beats k and k beats i; first the one whose
            closest preference is the farthest from one half.
    """

    count: int
    triples: int
    clearest: tuple[tuple[int, int, int], ...]


def three_cycles(matrix: Any, most: int = 4, among: Sequence[int] | None = None) -> Cycles:
    """The cycles of length three of a preference matrix.

    Args:
        matrix: (Y, Y), P(row beats column); NaN where unknown, which beats nothing.
        most: how many to name.
        among: name only cycles within these positions, unless there are none; the count is of all.
    """
    margin = np.nan_to_num(np.asarray(matrix, dtype=np.float64) - 0.5, nan=-1.0)
    beats = (margin > _MARGIN).astype(np.float64)
    count = round(float(((beats @ beats) * beats.T).sum()) / 3)
    if not count:
        return Cycles(0, math.comb(len(margin), 3), ())
    found = _clearest(margin, np.asarray(among, dtype=int), most) if among is not None else []
    found = found or _clearest(margin, np.arange(len(margin)), most)
    return Cycles(count, math.comb(len(margin), 3), tuple(found))


def _clearest(margin: np.ndarray, members: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    within = margin[np.ix_(members, members)]
    best: list[tuple[float, tuple[int, int, int]]] = []
    for i in range(len(within)):
        # Each cycle is met once, from its first member on.
        closest = np.minimum(np.minimum(within[i, i + 1 :, None], within[i + 1 :, i]), within[i + 1 :, i + 1 :])
        if not closest.size:
            continue
        flat = np.argsort(closest, axis=None)[::-1][:most]
        for j, k in zip(*np.unravel_index(flat, closest.shape), strict=True):
            if closest[j, k] > _MARGIN:
                triple = (int(members[i]), int(members[i + 1 + j]), int(members[i + 1 + k]))
                best.append((float(closest[j, k]), triple))
    return [triple for _, triple in heapq.nlargest(most, best)]
