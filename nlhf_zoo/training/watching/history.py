"""The numbers of a run so far, as the rules that judge them read them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import attrs

__all__ = ["History", "Row", "mean_and_error", "swings"]

Row = Mapping[str, float]
"""What was measured at "step"; a number that was not measured then is absent."""


@attrs.frozen
class History:
    """Rows in the order of their steps.

    Attributes:
        training: one a gradient step: loss, length, log_prob_per_token, distinct, and where they are defined
            kl_to_reference, decisiveness, length_correlation.
        evaluations: one an evaluation: win_rate with win_rate_low and win_rate_high, kl.
        steps: gradient steps that the run is to have.
        start: length, log_prob_per_token and distinct, each with NAME_error, of the model that training starts from,
            where it was measured; at a high learning rate a run's first window is well under way.
    """

    training: Sequence[Row] = ()
    evaluations: Sequence[Row] = ()
    steps: int = 1
    start: Row = attrs.field(factory=dict)

    @property
    def window(self) -> int:
        """Gradient steps that make up "now": a tenth of the run, from 8 to 50."""
        return max(8, min(50, self.steps // 10))

    def before(self, name: str) -> tuple[float, float]:
        """Mean and standard error at the start; in the run's first window, where that was not measured."""
        if name in self.start:
            return self.start[name], self.start[f"{name}_error"]
        return mean_and_error(values(self.training[: self.window], name))

    def last(self, name: str) -> list[float]:
        """Values of the last window, the first window of the run left out."""
        return values(self.training[self.window :][-self.window :], name)


def values(rows: Sequence[Row], name: str) -> list[float]:
    """One column, where it is there and finite."""
    return [row[name] for row in rows if math.isfinite(row.get(name, math.nan))]


def mean_and_error(sample: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; of fewer than two values the error is infinite."""
    if len(sample) < 2:
        return (sample[0] if sample else math.nan), math.inf
    return statistics.fmean(sample), statistics.stdev(sample) / math.sqrt(len(sample))


def swings(lows: Sequence[float], highs: Sequence[float], least: float = 0.0) -> int:
    """How often a series of intervals turned round: moves up and down between intervals that do not overlap.

    A rise counts once its low end has passed the high end of the lowest interval since the last turn by `least`, a
    fall likewise; the first move counts too. A series that rises and stays has one swing, noise within its
    intervals none.
    """
    count, direction = 0, 0
    floor, ceiling = math.inf, -math.inf
    for low, high in zip(lows, highs, strict=True):
        floor, ceiling = min(floor, high), max(ceiling, low)
        if direction <= 0 and low > floor + least:
            count, direction, ceiling = count + 1, 1, low
        elif direction >= 0 and high < ceiling - least:
            count, direction, floor = count + 1, -1, high
    return count
