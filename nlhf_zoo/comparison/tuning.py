"""Choosing hyperparameters: at equal budgets, on seeds and games that no reported run has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from nlhf_zoo.comparison.config import TUNING_SEEDS_FROM
from nlhf_zoo.comparison.entries import SolverEntry
from nlhf_zoo.comparison.scores import FLOOR, better, final
from nlhf_zoo.comparison.tasks import Run

__all__ = ["Choice", "chosen", "tuning_seeds"]


@attrs.frozen(kw_only=True)
class Choice:
    """What the tuning of one solver came to.

    Attributes:
        on: labels of the games tuned on.
        points: grid points tried.
        seeds: the tuning seeds that each was run on.
        queries, tokens: spent by all of them together.
        options: the point that did best.
        tried: each point with its score, the mean of the runs' final log10 duality gaps (or win rate); null where
            it failed.
    """

    on: Sequence[str]
    points: int
    seeds: tuple[int, ...]
    queries: int
    tokens: int
    options: Mapping[str, Any]
    tried: Sequence[Mapping[str, Any]]


def tuning_seeds(entry: SolverEntry, largest: int, seeds: int) -> tuple[int, ...]:
    """As many for each point that the whole grid costs what the largest grid does, up to the rest of the division."""
    return tuple(range(TUNING_SEEDS_FROM, TUNING_SEEDS_FROM + seeds * largest // len(entry.points)))


def chosen(
    entry: SolverEntry, runs: Sequence[Sequence[Run]], cells: Mapping[str, Mapping[str, Any]], metric: str
) -> Choice:
    """The best point of a grid.

    Args:
        runs: for each point, its tuning runs.
        cells: key of a run -> its finished cell.
        metric: what counts, at the end of a run.
    """
    scores = [_score([cells[run.key] for run in mine], metric) for mine in runs]
    best = min(range(len(scores)), key=lambda at: scores[at])
    rows = [cells[run.key]["rows"] for mine in runs for run in mine if "rows" in cells[run.key]]
    return Choice(
        on=list(dict.fromkeys(run.game.label for run in runs[0])),
        points=len(entry.points),
        seeds=tuple(sorted({run.seed for run in runs[0]})),
        queries=sum(row["queries"][-1] for row in rows),
        tokens=sum(row["tokens"][-1] for row in rows),
        options=entry.points[best],
        tried=[
            {"options": dict(point), "score": score[0] * better(metric) if math.isfinite(score[0]) else None}
            for point, score in zip(entry.points, scores, strict=True)
        ],
    )


def _score(cells: Sequence[Mapping[str, Any]], metric: str) -> tuple[float, float]:
    """The mean over runs of the end, and to break ties of the whole course; the less the better."""
    ends = [_logged(final(cell, metric), metric) for cell in cells]
    courses = [[_logged(value, metric) for value in _course(cell, metric)] for cell in cells]
    means = [sum(course) / len(course) if course else math.inf for course in courses]
    return sum(ends) / len(ends), sum(means) / len(means)


def _course(cell: Mapping[str, Any], metric: str) -> Sequence[float]:
    return cell.get("rows", {}).get("metrics", {}).get(metric, ())


def _logged(value: float, metric: str) -> float:
    if math.isnan(value) or math.isinf(value):
        return math.inf
    return math.log10(max(value, FLOOR)) if better(metric) > 0 else -value
