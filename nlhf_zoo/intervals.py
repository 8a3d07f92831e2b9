"""How sure a measured share is."""

from __future__ import annotations

import math

from nlhf_zoo.errors import BadInput

__all__ = ["wilson_interval"]


def wilson_interval(wins: float, comparisons: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a win rate or an accuracy; 95 % at the default z.

    Args:
        wins: number of wins in [0, comparisons]. A sum of probabilities may be given: their variance is
            at most that of zeros and ones, so the interval then errs on the wide side.
        comparisons: independent comparisons, > 0.

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        BadInput: no comparisons, or wins outside their range.

    Source: Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    if comparisons <= 0:
        raise BadInput(f"an interval needs at least one comparison, got {comparisons}")
    if not 0 <= wins <= comparisons:
        raise BadInput(f"wins must be between 0 and {comparisons}, got {wins}")
    rate, shrink = wins / comparisons, 1 + z * z / comparisons
    middle = (rate + z * z / (2 * comparisons)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / comparisons + z * z / (4 * comparisons**2))
    return max(0.0, min(middle - half, rate)), min(1.0, max(middle + half, rate))
