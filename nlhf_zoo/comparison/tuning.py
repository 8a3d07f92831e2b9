"""Choosing hyperparameters: at equal budgets, on seeds and games that no reported run has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from nlhf_zoo.comparison.config import TUNING_SEEDS_FROM
from nlhf_zoo.comparison.entries import SolverEntry
from nlhf_zoo.comparison.kinds import Kind
from nlhf_zoo.comparison.scores import Criterion
from nlhf_zoo.comparison.tasks import Run, Task

__all__ = ["Choice", "chosen", "together", "tuning_seeds"]


@attrs.frozen(kw_only=True)
class Choice:
    """What the tuning of one solver came to.

    Attributes:
        on: labels of the games tuned on.
        points: grid points tried.
        seeds: the tuning seeds that each was run on.
        queries, tokens: spent by all of them together.
        pool_queries: asked besides, to find out which did best.
        by: what points were compared by.
        options: the point that did best.
        tried: each point with its score, the mean over runs of the final log10 duality gap, of the log10 queries to
            `tol`, or of the worst-case win rate; null where a run failed, or did not get to `tol`.
    """

    on: Sequence[str]
    by: str
    points: int
    seeds: tuple[int, ...]
    queries: int
    tokens: int
    pool_queries: int
    options: Mapping[str, Any]
    tried: Sequence[Mapping[str, Any]]


def tuning_seeds(entry: SolverEntry, largest: int, seeds: int) -> tuple[int, ...]:
    """As many for each point that the whole grid costs what the largest grid does, up to the rest of the division."""
    return tuple(range(TUNING_SEEDS_FROM, TUNING_SEEDS_FROM + seeds * largest // len(entry.points)))


def together(
    runs: Sequence[Sequence[Run]], kinds: Mapping[str, Kind], cells: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[Task]]:
    """Game tuned on -> what the ended tuning runs of one contestant there are to be found out together.

    A contestant's variants meet each other and the reference, not its rivals: what is chosen of a grid does not depend
    on who else competes.
    """
    every = [run for mine in runs for run in mine if "rows" in cells.get(run.key, {})]
    labels = dict.fromkeys(run.game.label for mine in runs for run in mine)
    return {label: kinds[label].after([run for run in every if run.game.label == label]) for label in labels}


def chosen(
    entry: SolverEntry,
    runs: Sequence[Sequence[Run]],
    cells: Mapping[str, Mapping[str, Any]],
    criteria: Mapping[str, Criterion],
    pool_queries: int,
) -> Choice:
    """The best point of a grid.

    Args:
        runs: for each point, its tuning runs.
        cells: key of a run -> its finished cell.
        criteria: game tuned on -> what counts there.
        pool_queries: see `Choice`.
    """
    scores = [_score(mine, cells, criteria) for mine in runs]
    best = min(range(len(scores)), key=lambda at: scores[at])
    rows = [cells[run.key]["rows"] for mine in runs for run in mine if "rows" in cells[run.key]]
    first = criteria[runs[0][0].game.label]
    return Choice(
        on=list(criteria),
        by=first.words,
        points=len(entry.points),
        seeds=tuple(sorted({run.seed for run in runs[0]})),
        queries=sum(row["queries"][-1] for row in rows),
        tokens=sum(row["tokens"][-1] for row in rows),
        pool_queries=pool_queries,
        options=entry.points[best],
        tried=[
            {"options": dict(point), "score": first.shown_score(score)}
            for point, score in zip(entry.points, scores, strict=True)
        ],
    )


def _score(
    runs: Sequence[Run], cells: Mapping[str, Mapping[str, Any]], criteria: Mapping[str, Criterion]
) -> tuple[float, ...]:
    """The mean cost over runs, whichever games they were on; infinite where one of them failed."""
    costs = [
        criteria[run.game.label].cost(run.key, cells[run.key]) if "rows" in cells[run.key] else (math.inf,)
        for run in runs
    ]
    return tuple(sum(numbers) / len(numbers) for numbers in zip(*costs, strict=False))
