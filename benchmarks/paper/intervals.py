"""Bootstrap intervals for the studies: 95 %, percentiles, always the same draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]

DRAWS = 2000


def resampled(values: Sequence[Any] | Floats) -> Floats:
    """(DRAWS, n, ...) the n rows of `values`, drawn with replacement."""
    rows = np.asarray(values, dtype=np.float64)
    return rows[np.random.default_rng(0).integers(len(rows), size=(DRAWS, len(rows)))]


def median_interval(values: Sequence[float]) -> dict[str, float | None]:
    """Median and its interval; `None` stands for an infinite end (a run that never got there)."""
    drawn = np.quantile(resampled(values), 0.5, axis=1, method="inverted_cdf")
    low, high = np.quantile(drawn, (0.025, 0.975), method="inverted_cdf")
    middle = np.quantile(np.asarray(values, dtype=np.float64), 0.5, method="inverted_cdf")
    return {name: _finite(value) for name, value in (("median", middle), ("low", low), ("high", high))}


def mean_interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and its interval."""
    low, high = np.quantile(resampled(values).mean(1), (0.025, 0.975))
    return {name: _finite(value) for name, value in (("mean", np.mean(values)), ("low", low), ("high", high))}


def statistic_interval(rows: Sequence[Any] | Floats, statistic: Callable[[Floats], float]) -> dict[str, float | None]:
    """A statistic of (n, ...) rows and its interval over resampled rows."""
    drawn = [statistic(sample) for sample in resampled(rows)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    value = statistic(np.asarray(rows, dtype=np.float64))
    return {"value": _finite(value), "low": _finite(low), "high": _finite(high)}


def _finite(value: Any) -> float | None:
    """Four digits are what an interval is good for."""
    return float(f"{float(value):.4g}") if math.isfinite(float(value)) else None
