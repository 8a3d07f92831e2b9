"""One large game by few passes over its matrix: the game on the span of the policies seen so far."""

from __future__ import annotations

import numpy as np

from nlhf_zoo.tabular.equilibrium_passes import Array, Independence, Passes, Seen, normalised, on_range, product

__all__ = ["subspace"]

_MOST = 60
_WINDOW = 5
_MOST_INNER = 40
_KEPT = 12
_MOST_RANK = 10
_LIGHT = 0.1
_NEARLY = 1e-8


def subspace(passes: Passes, enough: float) -> tuple[Seen, bool]:
    """The best point of a single game found from its reference, and whether |r| <= `enough`, or rounding, there.

    Fixed-point steps are taken while each gains a digit. Then a nonlinear Krylov method begins: the payoffs
    u_i = (P - 1/2) x_i of every direction x_i are kept, and with z(c) = log pi_ref + sum_i c_i u_i / beta and
    p(c) = softmax z(c) the coefficients c are those that bring sum_i c_i x_i nearest to p(c), a small nonlinear
    least-squares problem that needs no pass. What the span misses, p(c) - sum_i c_i x_i, is the next direction.
    The residual of z(c) is the payoff of that over -beta, so that each pass both measures and extends. A P - 1/2
    of low rank takes a few passes more than its rank; otherwise their number is that of the best Krylov method
    on a shifted skew matrix, and grows like 1 / beta.
    """
    seen, done = passes.fixed_points(passes.look(passes.log_reference), enough)
    if done:
        return seen, True
    kept, best, sizes = _Kept(passes), seen, [seen.size]
    while kept.extend(seen) and not _hopeless(sizes, enough):
        z = kept.solve_on_range()
        seen = passes.look(kept.solve(0.05 * min(seen.size, 1.0)) if z is None else z)
        sizes.append(seen.size)
        best = seen if seen.size <= best.size else best
        if passes.settled(seen, enough):
            return seen, True
    return best, False


def _hopeless(sizes: list[float], enough: float) -> bool:
    """Whether the recent rate would not bring the residual down within the passes that there are."""
    left = _MOST - len(sizes)
    if len(sizes) > 2 and max(sizes[-3:]) <= _NEARLY and min(sizes[-2:]) > 0.5 * min(sizes[:-2]):
        return True  # all but rounding is done, and this method's is larger than Newton's
    if len(sizes) <= 2 * _WINDOW:
        return left <= 0
    recent, earlier = min(sizes[-_WINDOW:]), min(sizes[:-_WINDOW])
    return left <= 0 or recent * (recent / earlier) ** (left / _WINDOW) > enough


class _Kept:
    """Directions x_i, their payoffs u_i, and the coefficients c of the current policy."""

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self._x = np.empty((_KEPT, len(passes.log_reference)))
        self._u = np.empty_like(self._x)
        self._c = np.empty(0)
        self._independence, self._independent = Independence(self._x.shape[1]), True

    def extend(self, seen: Seen) -> bool:
        """Take in what the span misses of a policy; false where that is nothing."""
        if len(self._c) == _KEPT:
            self._merge()
        count = len(self._c)
        missed = seen.p - product(self._c, self._x[:count])
        scale = np.abs(missed).sum()
        if not scale > 0 or not np.isfinite(scale):
            return False
        self._x[count] = missed / scale
        self._u[count] = (seen.u - 0.5 - product(self._c, self._u[:count])) / scale
        self._c = np.append(self._c, scale)
        self._independent = self._independence.adds(self._u[count]) if count < _MOST_RANK else True
        return True

    def _merge(self) -> None:
        """Put the two oldest directions together as they stand: a shifted skew matrix has a short recurrence."""
        for rows in (self._x, self._u):
            rows[0] = self._c[0] * rows[0] + self._c[1] * rows[1]
            rows[1:-1] = rows[2:].copy()
        self._c = np.concatenate([[1.0], self._c[2:]])

    def solve_on_range(self) -> Array | None:
        """(Y,) z of the equilibrium where the last image depended on the others (`on_range`)."""
        count = len(self._c)
        if self._independent or count > _MOST_RANK:
            return None
        return on_range(self._passes, self._x[:count], self._u[:count])

    def solve(self, accuracy: float) -> Array:
        """(Y,) z(c) of the c that fits best, to `accuracy` in the log-probabilities; by Gauss and Newton."""
        beta, count = self._passes.beta, len(self._c)
        x, u, c = self._x[:count], self._u[:count], self._c
        z = self._log_probs(c, u)
        p = np.exp(z)
        # Misses are weighed as the entropy weighs them, but those of next to no probability by what they pay.
        weight = 1 / np.sqrt(np.maximum(p, _LIGHT * beta / len(p)))
        miss = (product(c, x) - p) * weight
        value = miss @ miss
        for _ in range(_MOST_INNER):
            slope = (x - (u - product(u, p)[:, None]) * (p / beta)) * weight
            try:
                step = np.linalg.solve(product(slope, slope.T), -product(slope, miss))
            except np.linalg.LinAlgError:
                break
            # The error of a full step is of second order. A small one needs no search, and rounding would not let
            # one succeed.
            last, length = bool(np.ptp(product(step, u)) <= accuracy**0.5 * beta), 1.0
            while length > 1e-3:
                trial = c + length * step
                z_trial = self._log_probs(trial, u)
                p_trial = np.exp(z_trial)
                miss_trial = (product(trial, x) - p_trial) * weight
                value_trial = miss_trial @ miss_trial
                if last or value_trial <= value:
                    break
                length /= 2
            else:
                break
            c, z, p, miss, value = trial, z_trial, p_trial, miss_trial, value_trial
            if last:
                break
        self._c = c
        return z

    def _log_probs(self, c: Array, u: Array) -> Array:
        return normalised(self._passes.log_reference + product(c, u) / self._passes.beta)
