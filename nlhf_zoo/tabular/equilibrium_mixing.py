"""A few passes where the best response moves little: fixed-point steps, mixed as a Krylov method would mix them."""

from __future__ import annotations

import math

import numpy as np

from nlhf_zoo.tabular.equilibrium_passes import Passes, Seen
from nlhf_zoo.tabular.equilibrium_payoffs import Array

__all__ = ["mixed"]

_KEPT = 20
_WINDOW = 4
_WORTH_NARROWING = 8


def mixed(passes: Passes, seen: Seen, enough: float, most: int) -> tuple[Seen, bool]:
    """The best point found from `seen` in at most `most` passes, and whether |r| <= `enough`, or rounding, there.

    A step goes to the best response to a mixture of the policies seen: to z = log pi_ref + u / beta, where u are
    the mixture's payoffs, known without a pass. Its weights, of either sign, are those that make the mixture of
    the residuals smallest (Anderson, J. ACM 12 (1965) 547). On the linearised problem, a shifted skew one, that
    is GMRES. It ends early where the recent rate would not do.
    """
    if passes.settled(seen, enough):
        return seen, True
    mixture, best, sizes = _Mixture(len(seen.p)), seen, [seen.size]
    narrow: bool | None = None
    z = seen.z - seen.r
    while len(sizes) <= most:
        trial = passes.look(z, seen if narrow else None)
        sizes.append(trial.size)
        if not math.isfinite(trial.size):
            break
        best = trial if trial.size <= best.size else best
        settled = passes.settled(trial, enough)
        if settled and trial.exact:
            return trial, True
        if not settled and _hopeless(sizes, enough, most):
            break
        if narrow is None:
            narrow = _products_left(sizes, enough) >= _WORTH_NARROWING and passes.payoffs.narrowing_pays
        mixture.add(trial.both - seen.both)
        seen = trial
        if settled:
            z, narrow = seen.z, False
        else:
            z = passes.log_reference + mixture.payoffs(seen) / passes.beta
    return best, False


def _products_left(sizes: list[float], enough: float) -> float:
    rate, goal = sizes[-1] / sizes[-2], enough / sizes[-1]
    if goal >= 1:
        return 0.0
    return math.log(goal) / math.log(rate) if 0 < rate < 1 and goal > 0 else math.inf


def _hopeless(sizes: list[float], enough: float, most: int) -> bool:
    """Whether the recent rate would not bring the residual down within the passes that there are."""
    if sizes[-1] > 3 * sizes[0]:
        return True
    if len(sizes) <= 2 * _WINDOW:
        return False
    recent, earlier = min(sizes[-_WINDOW:]), min(sizes[:-_WINDOW])
    return recent * (recent / earlier) ** ((most - len(sizes)) / _WINDOW) > enough


class _Mixture:
    """Orthonormal differences of residuals, each after the difference of payoffs that goes with it."""

    def __init__(self, size: int) -> None:
        self._both = np.empty((_KEPT, 2 * size))
        self._r, self._u = self._both[:, size:], self._both[:, :size]
        self._count = 0

    def add(self, change: Array) -> None:
        """Take in (2 Y,) what changed in payoffs and residual; overwritten."""
        r = change[len(change) // 2 :]
        r -= np.add.reduce(r) / len(r)  # constants are no part of the problem
        kept = min(self._count, _KEPT)
        if kept:
            change -= (self._r[:kept] @ r) @ self._both[:kept]
        norm = math.sqrt(r @ r)
        if norm > 0:
            np.divide(change, norm, out=self._both[self._count % _KEPT])
            self._count += 1

    def payoffs(self, seen: Seen) -> Array:
        """(Y,) those of the mixture with the smallest residual."""
        kept = min(self._count, _KEPT)
        return seen.u - (self._r[:kept] @ seen.r) @ self._u[:kept]
