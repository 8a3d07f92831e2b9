"""Hypothesis strategies for games: preference matrices by kind, references, betas, whole cases.

Everything is made of small integers, so that what fails shrinks to few responses and round numbers: to
P = 1/2, to the uniform reference, to beta = 1, to a single step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from nlhf_zoo.testing.case import Case

__all__ = ["KINDS", "MODERATE", "batches", "betas", "cases", "matrices", "orders", "references", "sampled_cases"]

Matrix = list[list[float]]


def _square(size: int, entry: Callable[[int, int], float], exact: bool = False) -> Matrix:
    rows = [[0.5] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1, size):
            # Hundredths print as hundredths; Bradley-Terry's own values stay exact to the last bit.
            rows[i][j] = entry(i, j) if exact else round(entry(i, j), 12)
            rows[j][i] = 1 - rows[i][j] if exact else round(1 - rows[i][j], 12)
    return rows


def _levels(draw: DrawFn, count: int, most: int) -> list[int]:
    """`count` integers in [-most, most] for the price of one draw; they shrink to 0, then to 1, -1, 2, ..."""
    raw = [byte % (2 * most + 1) for byte in draw(st.binary(min_size=count, max_size=count))]
    return [(k + 1) // 2 if k % 2 else -(k // 2) for k in raw]


def _margins(draw: DrawFn, size: int) -> Callable[[int, int], float]:
    """P(i > j) - 1/2 for i < j, in hundredths."""
    levels = iter(_levels(draw, size * (size - 1) // 2, 50))
    return lambda i, j: next(levels) / 100


def _random(draw: DrawFn, size: int) -> Matrix:
    margin = _margins(draw, size)
    return _square(size, lambda i, j: 0.5 + margin(i, j))


def _low_rank(draw: DrawFn, size: int) -> Matrix:
    x, y = _levels(draw, size, 10), _levels(draw, size, 10)
    return _square(size, lambda i, j: 0.5 + (x[i] * y[j] - y[i] * x[j]) / 400)


def _bradley_terry(draw: DrawFn, size: int, largest: int = 10) -> Matrix:
    scores = [level / 2 for level in _levels(draw, size, largest)]
    return _square(size, lambda i, j: 1 / (1 + math.exp(scores[j] - scores[i])), exact=True)


def _mild_bradley_terry(draw: DrawFn, size: int) -> Matrix:
    return _bradley_terry(draw, size, largest=2)


def _cyclic(draw: DrawFn, size: int) -> Matrix:
    margin = draw(st.integers(1, 50)) / 100
    return _square(size, lambda i, j: 0.5 + (margin if 2 * ((j - i) % size) <= size else -margin))


def _chosen(draw: DrawFn, size: int, values: Sequence[float]) -> Matrix:
    picks = iter(draw(st.binary(min_size=size * size, max_size=size * size)))
    return _square(size, lambda i, j: values[next(picks) % len(values)])


def _near_deterministic(draw: DrawFn, size: int) -> Matrix:
    return _chosen(draw, size, [1.0, 0.0, 1 - 1e-9, 1e-9, 0.999, 0.001])


def _ties(draw: DrawFn, size: int) -> Matrix:
    return _chosen(draw, size, [0.5, 1.0, 0.0, 0.75, 0.25])


def _dominated(draw: DrawFn, size: int) -> Matrix:
    loss, margin = draw(st.integers(1, 50)) / 100, _margins(draw, size)
    return _square(size, lambda i, j: 0.5 + (loss if j == size - 1 else margin(i, j)))


def _condorcet(draw: DrawFn, size: int) -> Matrix:
    margin = _margins(draw, size)
    return _square(size, lambda i, j: 0.5 + (abs(margin(i, j)) or 0.01 if i == 0 else margin(i, j)))


def _blocks(draw: DrawFn, size: int) -> Matrix:
    between, margin, half = draw(st.integers(-50, 50)) / 100, _margins(draw, size), size // 2
    return _square(size, lambda i, j: 0.5 + (between if (i < half) != (j < half) else margin(i, j)))


def _many(draw: DrawFn, size: int) -> Matrix:
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    values = generator.integers(0, 1000, (24, 24))
    return _square(min(4 * size, 24), lambda i, j: float(values[i, j]) / 1000)


KINDS: dict[str, Callable[[DrawFn, int], Matrix]] = {
    "random": _random,
    "cyclic": _cyclic,
    "low_rank": _low_rank,
    "bradley_terry": _bradley_terry,
    "near_deterministic": _near_deterministic,
    "ties": _ties,
    "dominated": _dominated,
    "condorcet": _condorcet,
    "blocks": _blocks,
    "mild_bradley_terry": _mild_bradley_terry,
    "many": _many,
}
"""How each kind of preference matrix is drawn; "many" has up to 24 responses, all others as many as asked."""

MODERATE = ("random", "cyclic", "low_rank", "mild_bradley_terry", "ties", "condorcet", "blocks")


@st.composite
def matrices(draw: DrawFn, sizes: Sequence[int] = (2, 3, 1, 4, 5, 6), kinds: Sequence[str] = tuple(KINDS)) -> Matrix:
    """Y x Y preference matrices as nested lists, P + P^T = 1 exactly."""
    kind = draw(st.sampled_from(list(kinds)))
    return KINDS[kind](draw, draw(st.sampled_from(list(sizes))))


@st.composite
def references(draw: DrawFn, size: int, deepest: int = 50) -> list[float]:
    """Y log-weights: uniform, random (0 to -3), or nearly degenerate (down to -deepest)."""
    spread = draw(st.sampled_from(["uniform", "mild", "deep"] if deepest > 3 else ["uniform", "mild"]))
    if spread == "uniform":
        return [0.0] * size
    raw = draw(st.binary(min_size=size, max_size=size))
    if spread == "mild":
        return [0.0 - (byte % (min(30, 10 * deepest) + 1)) / 10 for byte in raw]
    return [0.0 - (byte % 51) * deepest / 50 for byte in raw]


def betas(low: float = 1e-4, high: float = 10.0) -> SearchStrategy[float]:
    """Round numbers in [low, high]; powers of ten are the simplest."""
    powers = [10.0**e for e in (0, -1, 1, -2, -3, -4, 2, 3)]
    others = [round(m * 10.0**e, 7) for e in (-1, 0, -2, -3, -4, 1) for m in (5, 2, 3, 7)]
    return st.sampled_from([b for b in (*powers, *others) if low <= b <= high])


@st.composite
def cases(
    draw: DrawFn,
    *,
    sizes: Sequence[int] = (2, 3, 1, 4, 5, 6),
    kinds: Sequence[str] = tuple(KINDS),
    low: float = 1e-4,
    high: float = 10.0,
    deepest: int = 50,
    steps: int | Sequence[int] = 5,
    elsewhere: bool = False,
) -> Case:
    """Whole cases: a matrix, a reference, beta in [low, high], 1 to `steps` steps.

    Args:
        sizes: see `matrices`.
        kinds: see `matrices`.
        low: see `betas`.
        high: see `betas`.
        deepest: see `references`.
        steps: the largest number of steps, or the numbers to choose from.
        elsewhere: whether to start at a policy of its own, too.
    """
    matrix = draw(matrices(sizes, kinds))
    size = len(matrix)
    return Case(
        matrix=matrix,
        reference=draw(references(size, deepest)),
        beta=draw(betas(low, high)),
        steps=draw(st.integers(1, steps) if isinstance(steps, int) else st.sampled_from(list(steps))),
        start=draw(st.none() | references(size, deepest)) if elsewhere else None,
    )


@st.composite
def sampled_cases(draw: DrawFn, **keywords: Any) -> Case:
    """Cases under a sampled oracle with a seed, or under the exact one."""
    import attrs

    case = draw(cases(**keywords))
    return attrs.evolve(case, comparisons=draw(st.integers(0, 3)), seed=draw(st.integers(0, 1000)))


@st.composite
def batches(draw: DrawFn, count: int = 3, **keywords: Any) -> list[Case]:
    """Two to `count` cases that can be stacked: the same Y, beta and number of steps."""
    import attrs

    first = draw(cases(**keywords))
    size = first.size
    found = [first]
    plain = [kind for kind in KINDS if kind != "many"]
    for _ in range(draw(st.integers(1, count - 1))):
        matrix = draw(matrices((size,), plain if size <= 6 else ("random",)))
        found.append(attrs.evolve(first, matrix=matrix, reference=draw(references(size))))
    return found


def orders(size: int) -> SearchStrategy[list[int]]:
    """Permutations of the responses 0 to Y - 1."""
    return st.permutations(range(size)).map(list)
