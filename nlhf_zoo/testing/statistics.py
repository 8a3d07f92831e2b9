"""Tests of claims under sampling: what repetition can refute, at a stated rate of false alarms."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["FALSE_ALARM", "expectation_refuted", "probability_refuted"]

FALSE_ALARM = 1e-6
"""Probability that one test of a true claim alarms; with 1,000 tests a run, one run in a thousand."""


def expectation_refuted(measured: Sequence[float], bound: float) -> float:
    """The p-value of "the mean is at most `bound`", by Student's t, one-sided.

    Distances are not normal but skewed to the right, and there the test errs on the safe side: a sample whose
    mean is high has a high spread too, so that large t is rarer than Student's law says.
    """
    from scipy.stats import t as student

    count = len(measured)
    mean = math.fsum(measured) / count
    variance = math.fsum((x - mean) ** 2 for x in measured) / (count - 1)
    if variance == 0:
        return 1.0 if mean <= bound * (1 + 1e-9) + 1e-15 else 0.0
    return float(student.sf((mean - bound) / math.sqrt(variance / count), count - 1))


def probability_refuted(failures: int, repetitions: int, delta: float) -> float:
    """The p-value of "a run misses its bound with probability at most `delta`", by the exact binomial law."""
    from scipy.stats import binom

    return float(binom.sf(failures - 1, repetitions, delta))
