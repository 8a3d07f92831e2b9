"""Who did best: final values, ranks with bootstrap intervals, and whether that can be told apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

__all__ = ["FEWEST", "FLOOR", "Ranking", "better", "combined", "final", "ranking"]

FLOOR = 1e-14
"""Duality gaps below are rounding: equal."""
FEWEST = 5
"""Fewer random runs that all agree may do so by chance."""
LEVEL = 0.95
_DRAWS = 2000

Floats = np.ndarray[Any, np.dtype[np.float64]]


def better(metric: str) -> int:
    """1 where less is better, -1 where more is."""
    return -1 if metric.startswith("win_rate") else 1


def final(cell: Mapping[str, Any] | None, metric: str) -> float:
    """The last measurement of a cell; the worst there is where it failed."""
    values = (cell or {}).get("rows", {}).get("metrics", {}).get(metric)
    if not values or math.isnan(values[-1]):
        return math.inf * better(metric)
    return max(values[-1], FLOOR) if better(metric) > 0 else values[-1]


@attrs.frozen(eq=False)
class Ranking:
    """Ranks of k contestants over n runs, 1 the best, ties shared.

    Attributes:
        mean, low, high: (k,) mean rank over runs, with its 95 % bootstrap interval.
        draws: (draws, k) mean ranks of the bootstrap's samples.
        best: contestants that cannot be told apart from the leader, the leader first.
        runs: n.
    """

    mean: Floats
    low: Floats
    high: Floats
    draws: Floats
    best: tuple[int, ...]
    runs: int


def ranking(values: Floats, metric: str, deterministic: bool = False) -> Ranking:
    """Ranks of (n, k) final values, one row a run.

    Args:
        deterministic: nothing was random, so that a single run says all there is to say of its game.
    """
    ranks = _ranks(values * better(metric))
    runs = len(ranks)
    counts = np.random.default_rng(0).multinomial(runs, np.full(runs, 1 / runs), size=_DRAWS)
    return _judged(ranks.mean(0), counts @ ranks / runs, runs, enough=deterministic or runs >= FEWEST)


def combined(rankings: Sequence[Ranking]) -> Ranking:
    """Over several games of the same contestants, resampling the games and the runs on each."""
    games = len(rankings)
    counts = np.random.default_rng(1).multinomial(games, np.full(games, 1 / games), size=_DRAWS)
    draws = np.einsum("bg,gbk->bk", counts / games, np.stack([one.draws for one in rankings]))
    runs = sum(one.runs for one in rankings)
    return _judged(np.mean([one.mean for one in rankings], axis=0), draws, runs, enough=runs >= FEWEST)


def _judged(mean: Floats, draws: Floats, runs: int, *, enough: bool) -> Ranking:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
    leader = int(np.argmin(mean))
    rivals = [at for at in np.argsort(mean, kind="stable").tolist() if at != leader]
    # The leader is compared with each rival: intervals are widened (Bonferroni) for them to hold together.
    least = (
        np.percentile(draws - draws[:, [leader]], tail / max(1, len(rivals)), axis=0) if rivals else np.zeros(len(mean))
    )
    close = [at for at in rivals if not (enough and least[at] > 0)]
    return Ranking(mean, low, high, draws, (leader, *close), runs)


def _ranks(values: Floats) -> Floats:
    """(n, k), ties shared; with 1 for the least of a row."""
    from scipy.stats import rankdata

    return rankdata(values, axis=1).astype(float)
