"""Who did best: what a run is judged by, ranks with bootstrap intervals, and whether that can be told apart."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

__all__ = [
    "DRAWS",
    "FLOOR",
    "Criterion",
    "FinalGap",
    "QueriesToTolerance",
    "Ranking",
    "WorstCase",
    "combined",
    "fewest",
    "ranking",
]

FLOOR = 1e-14
"""Duality gaps below are rounding: equal."""
DRAWS = 2000
LEVEL = 0.95
_FLIPPED = 14
"""Runs up to which every pattern of signs is tried; of more runs, as many patterns are drawn as these have."""

Floats = np.ndarray[Any, np.dtype[np.float64]]
Cell = Mapping[str, Any]


class Criterion(ABC):
    """What solvers are ranked by, and their grids chosen by.

    Attributes:
        metric: its name in the summary.
        words: what it is, for a verdict.
        lower: whether less is better.
        tie: what equal values are called.
    """

    metric: str
    words: str
    lower: bool = True
    tie: str = "equal"

    @abstractmethod
    def known(self, key: str, cell: Cell) -> float | None:
        """What the run that ended in `cell`, under this key, came to; `None` where that is not known (yet)."""

    @abstractmethod
    def cost(self, key: str, cell: Cell) -> tuple[float, ...]:
        """The same for tuning, on a scale that may be averaged over runs: less is better, later numbers break ties."""

    def end(self, key: str, cell: Cell) -> float | None:
        """As `known`; the worst there is where the run failed."""
        if "rows" not in cell:
            return math.inf if self.lower else -math.inf
        return self.known(key, cell)

    def shown_score(self, score: Sequence[float]) -> float | None:
        """One number for a person; null where a run failed."""
        return score[0] if math.isfinite(score[0]) else None

    def shown(self, value: float) -> str:
        """A median for a verdict."""
        return f"at a median of {value:.3g}"

    def redrawn(self, key: str) -> Floats | None:
        """(DRAWS,) what the run came to on bootstrap samples of what it was measured on; `None` if that was exact."""
        return None


class FinalGap(Criterion):
    """The duality gap at the end of a run."""

    metric, words, tie = "duality_gap", "final duality gap", "equal within rounding"

    def known(self, key: str, cell: Cell) -> float | None:
        value = _gaps(cell)[-1]
        return math.inf if math.isnan(value) else max(value, FLOOR)

    def cost(self, key: str, cell: Cell) -> tuple[float, ...]:
        course = [_log(gap) for gap in _gaps(cell)]
        return course[-1], sum(course) / len(course)

    def shown(self, value: float) -> str:
        return "at a median below rounding" if value <= FLOOR else super().shown(value)


@attrs.frozen
class QueriesToTolerance(Criterion):
    """Queries until the duality gap is at most `tol`; all runs that never are, are equal, and behind."""

    tol: float
    metric: str = attrs.field(init=False, default="queries_to_tol")
    words: str = attrs.field(
        init=False, default=attrs.Factory(lambda self: f"queries to a duality gap of {self.tol:g}", takes_self=True)
    )

    def known(self, key: str, cell: Cell) -> float:
        pairs = zip(cell["rows"]["queries"], _gaps(cell), strict=True)
        return next((float(queries) for queries, gap in pairs if gap <= self.tol), math.inf)

    def cost(self, key: str, cell: Cell) -> tuple[float, ...]:
        reached = self.known(key, cell)
        spent = min(reached, cell["rows"]["queries"][-1])
        return float(math.isinf(reached)), math.log10(max(spent, 1)), _log(_gaps(cell)[-1])

    def shown_score(self, score: Sequence[float]) -> float | None:
        """The mean log10 queries; null where a run did not get there."""
        return score[1] if score[0] == 0 else None

    def shown(self, value: float) -> str:
        return "whose median run did not get there" if math.isinf(value) else f"after a median of {value:,.0f}"


@attrs.frozen(eq=False)
class WorstCase(Criterion):
    """The win rate against the policy of the pool that a run's policy does worst against.

    A win rate against the reference alone can be had by a policy that everybody else beats, where preferences go in
    circles. This one is 1/2 less the policy's exploitability by the pool: a lower bound on its true exploitability.

    Attributes:
        judge: "training" or "held_out".
        values: key of a run -> (1 + DRAWS,) its own, and on bootstrap samples of the prompts; empty where the
            policies have not met.
    """

    judge: str
    values: Mapping[str, Floats] = attrs.field(factory=dict)
    lower: bool = attrs.field(init=False, default=False)
    metric: str = attrs.field(
        init=False, default=attrs.Factory(lambda self: f"worst_case_{self.judge}", takes_self=True)
    )
    words: str = attrs.field(init=False, default=attrs.Factory(lambda self: _in_the_pool(self.judge), takes_self=True))

    def known(self, key: str, cell: Cell) -> float | None:
        found = self.values.get(key)
        return None if found is None else float(found[0])

    def cost(self, key: str, cell: Cell) -> tuple[float, ...]:
        value = self.known(key, cell)
        return (math.inf if value is None else -value,)

    def shown_score(self, score: Sequence[float]) -> float | None:
        return -score[0] if math.isfinite(score[0]) else None

    def redrawn(self, key: str) -> Floats | None:
        found = self.values.get(key)
        return None if found is None else found[1:]


def _in_the_pool(judge: str) -> str:
    return f"worst-case win rate in the pool, {judge.replace('_', '-')} judge"


def _gaps(cell: Cell) -> Sequence[float]:
    return cell["rows"]["metrics"]["duality_gap"]


def _log(gap: float) -> float:
    return math.inf if math.isnan(gap) or math.isinf(gap) else math.log10(max(gap, FLOOR))


@attrs.frozen(eq=False)
class Ranking:
    """Ranks of k contestants over n runs, 1 the best, ties shared.

    Attributes:
        mean, low, high: (k,) mean rank over runs, with its 95 % bootstrap interval.
        ranks: (n, k) of each run.
        draws: (draws, k) mean ranks of the bootstrap's samples.
        best: contestants that cannot be told apart from the leader, the leader first.
    """

    mean: Floats
    low: Floats
    high: Floats
    ranks: Floats
    draws: Floats
    best: tuple[int, ...]

    @property
    def runs(self) -> int:
        return len(self.ranks)


def fewest(contestants: int) -> int:
    """Random runs that are needed: fewer, even if one contestant leads in all of them, may agree by chance."""
    return 1 + math.ceil(math.log2(_pairs(contestants) / (1 - LEVEL)))


def _pairs(contestants: int) -> int:
    return max(1, math.comb(contestants, 2))


def ranking(values: Floats, lower: bool, deterministic: bool = False, redrawn: Floats | None = None) -> Ranking:
    """Ranks of (n, k) final values, one row a run.

    Args:
        lower: whether less is better.
        deterministic: nothing was random, so that a single run says all there is to say of its game.
        redrawn: (DRAWS, n, k) the values on samples of what they were measured on, where that was sampled: each
            draw of the runs then has one of them.
    """
    sign = 1 if lower else -1
    ranks = _ranks(values * sign)
    runs = len(ranks)
    counts = _resampled(runs, np.random.default_rng(0))
    drawn = ranks if redrawn is None else _ranks(redrawn * sign)
    draws = (counts[:, None] @ drawn)[:, 0] / runs
    return _judged(ranks, np.ones(runs), draws, random=not deterministic)


def _resampled(size: int, generator: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(DRAWS, size) how often each is in a bootstrap sample; a multinomial's draws take six times as long."""
    drawn = generator.integers(size, size=(DRAWS, size)) + size * np.arange(DRAWS)[:, None]
    return np.bincount(drawn.ravel(), minlength=DRAWS * size).reshape(DRAWS, size)


def combined(rankings: Sequence[Ranking]) -> Ranking:
    """Over several games of the same contestants, which count alike: the games and the runs on each are resampled."""
    games = len(rankings)
    counts = _resampled(games, np.random.default_rng(1))
    draws = np.einsum("bg,gbk->bk", counts / games, np.stack([one.draws for one in rankings]))
    weights = np.concatenate([np.full(one.runs, 1 / one.runs) for one in rankings])
    return _judged(np.concatenate([one.ranks for one in rankings]), weights, draws, random=True)


def _judged(ranks: Floats, weights: Floats, draws: Floats, *, random: bool) -> Ranking:
    """
    Args:
        weights: (n,) of the runs.
        random: whether another seed, or another game, might have ranked them otherwise.
    """
    mean = weights @ ranks / weights.sum()
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
    leader = int(np.argmin(mean))
    rivals = [at for at in np.argsort(mean, kind="stable").tolist() if at != leader]
    # A bootstrap of few runs is too sure by far, but it alone knows of redrawn values and of other games.
    least = np.percentile(draws - draws[:, [leader]], tail / max(1, len(rivals)), axis=0)
    leads = weights[:, None] * (ranks - ranks[:, [leader]])
    close = [at for at in rivals if least[at] <= 0 or (random and not _told(leads[:, at], len(mean)))]
    return Ranking(mean, low, high, ranks, draws, (leader, *close))


def _told(leads: Floats, contestants: int) -> bool:
    """Whether a rival's (n,) leads are too much for chance: of equals each has either sign as likely as not.

    The test of all patterns of signs, exact for any number of runs; two-sided, and by Bonferroni over all pairs of
    contestants, because the leader is known from the same runs.
    """
    leads = leads[leads != 0]
    runs = len(leads)
    if runs <= _FLIPPED:
        patterns = 1 - 2 * (np.arange(2**runs)[:, None] >> np.arange(runs) & 1)
    else:
        patterns = np.random.default_rng(2).choice([-1, 1], size=(2**_FLIPPED, runs))
        patterns[0] = 1  # the one at hand, without which the test would not be exact
    as_much = np.abs(patterns @ leads) >= abs(leads.sum()) * (1 - 1e-9)
    return bool(as_much.mean() * _pairs(contestants) <= 1 - LEVEL)


def _ranks(values: Floats) -> Floats:
    """(..., k), ties shared; with 1 for the least of a row."""
    from scipy.stats import rankdata

    return rankdata(values, axis=-1).astype(float)
