"""Intervals over seeds: the mean of what independent runs measured, with a 95 % bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np

__all__ = ["Interval", "mean_interval"]

_DRAWS = 4000


@attrs.frozen
class Interval:
    """A mean over n runs with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def plain(self) -> dict[str, float]:
        return {"mean": _round(self.mean), "low": _round(self.low), "high": _round(self.high), "n": self.n}


def mean_interval(values: Sequence[float]) -> Interval:
    """Percentile bootstrap of the mean, the same draws for the same number of runs."""
    found = np.asarray(values, dtype=float)
    picked = np.random.default_rng(0).integers(len(found), size=(_DRAWS, len(found)))
    low, high = np.percentile(found[picked].mean(1), [2.5, 97.5])
    return Interval(float(found.mean()), float(low), float(high), len(found))


def _round(value: float) -> float:
    return float(f"{value:.4g}")
