"""A game that shows something, made small: fewer responses, rounder numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import attrs

from nlhf_zoo.testing.case import Case

__all__ = ["shrunk"]

_Shown = TypeVar("_Shown")
_MOST_TRIES = 400


def shrunk(case: Case, shown: _Shown, show: Callable[[Case], _Shown | None]) -> _Shown:
    """What the smallest case found shows, begun at `case`, which shows `shown`.

    Args:
        show: of a case what it shows; `None` where that is nothing.
    """
    tries = 0
    smaller = True
    while smaller and tries < _MOST_TRIES:
        smaller = False
        for candidate in _simpler(case):
            tries += 1
            found = show(candidate)
            if found is not None:
                case, shown, smaller = candidate, found, True
                break
    return shown


def _simpler(case: Case) -> Iterator[Case]:
    """Cases a little simpler than this one, the simplest first."""
    for response in range(case.size):
        if case.size > 2:
            yield _without(case, response)
    if case.start is not None and not case.nearby:
        yield attrs.evolve(case, start=None)
    for digits in (0, 1, 2, 3):
        for made in (_rounded_matrix(case, digits), _rounded_weights(case, digits)):
            if made != case:
                yield made


def _without(case: Case, response: int) -> Case:
    kept = [i for i in range(case.size) if i != response]
    return attrs.evolve(
        case,
        matrix=[[case.matrix[i][j] for j in kept] for i in kept],
        reference=[case.reference[i] for i in kept],
        start=None if case.start is None else [case.start[i] for i in kept],
    )


def _rounded_matrix(case: Case, digits: int) -> Case:
    rows = [[0.5] * case.size for _ in range(case.size)]
    for i in range(case.size):
        for j in range(i + 1, case.size):
            # In twos, so that 0 digits leave 1/2 what it is.
            rows[i][j] = round(round(2 * case.matrix[i][j], digits) / 2, 12)
            rows[j][i] = round(1 - rows[i][j], 12)
    return attrs.evolve(case, matrix=rows)


def _rounded_weights(case: Case, digits: int) -> Case:
    # Near an equilibrium a start is a small number itself.
    start = case.start if case.start is None or case.nearby else [round(x, digits) + 0.0 for x in case.start]
    return attrs.evolve(case, reference=[round(x, digits) + 0.0 for x in case.reference], start=start)
