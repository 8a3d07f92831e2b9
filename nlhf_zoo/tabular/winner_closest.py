"""The winner closest to a reference, KL(winner || reference), where there are many.

Solved in the dual, an exponential family: log x = log reference - C^T y + constant, with C the constraints that
count. So x is positive by construction, and what it misses is the gradient of a convex function.
"""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from nlhf_zoo.tabular.winner_path import Floats

__all__ = ["closest_on_face"]

_MOST_ROUNDS = 50
_MOST_STEPS = 200
_NATS_A_STAGE = 20.0
_VIOLATED = 1e-14


def closest_on_face(matrix: Floats, support: NDArray[np.intp], rows: Floats, log_reference: Floats) -> Floats:
    """(Y,) log-probabilities of the winner closest to the reference; -inf off the support.

    Responses off the support may bind at the answer (they do not inside the face): those that would beat it are
    added as constraints until none does.

    Args:
        matrix: (Y, Y) P.
        support: indices of the largest support S.
        rows: (rank, |S|) orthonormal basis of the row space of A_SS.
        log_reference: (Y,), finite.
    """
    bounded = np.zeros(0, dtype=np.intp)
    goal = log_reference[support]
    answer = np.full(len(matrix), -np.inf)
    y = np.zeros(len(rows))
    for _ in range(_MOST_ROUNDS):
        others = matrix[np.ix_(bounded, support)] - 0.5
        # Without their part in the row space, which is zero on the face, the new rows are as independent as can be.
        others -= (others @ rows.T) @ rows
        dual = _Dual(np.concatenate([rows, others]), len(rows))
        y = dual.solve_in_stages(goal, y)
        answer[support] = dual.log_policy(goal, y)
        payoffs = matrix @ np.exp(answer) - 0.5
        payoffs[support] = 0
        violated = np.setdiff1d(np.flatnonzero(payoffs > _VIOLATED), bounded)
        if len(violated) == 0:
            break
        bounded = np.append(bounded, violated)
        y = np.append(y, np.zeros(len(violated)))
    return answer


@attrs.frozen(eq=False)
class _Dual:
    """Minimise log sum exp(goal - C^T y) over y, free for the equations C x = 0 and y >= 0 for the rest, C x <= 0."""

    constraints: Floats
    equations: int

    def log_policy(self, goal: Floats, y: Floats) -> Floats:
        z = goal - self.constraints.T @ y
        return z - _log_sum(z)

    def solve_in_stages(self, goal: Floats, y: Floats) -> Floats:
        """Scale the reference up from uniform: Newton then never starts where all mass sits on one response."""
        stages = int(np.ceil(np.ptp(goal) / _NATS_A_STAGE))
        before = y
        for stage in range(1, stages):
            ahead = 2 * y - before if stage > 1 else y
            ahead[self.equations :] = np.maximum(ahead[self.equations :], 0)
            before, y = y, self.solve(goal * (stage / stages), ahead)
        return self.solve(goal, y)

    def solve(self, goal: Floats, y: Floats) -> Floats:
        """Projected Newton with Armijo's rule (Bertsekas 1982)."""
        value, gradient = self._value(goal, y)
        for _ in range(_MOST_STEPS):
            free = ~self._at_bound(y, gradient)
            size = float(np.abs(gradient[free]).max(initial=0.0))
            if size <= 1e-17:
                break
            step = np.zeros_like(y)
            step[free] = -self._newton(goal, y, gradient, free)
            for halving in range(40):
                trial = y + 0.5**halving * step
                trial[self.equations :] = np.maximum(trial[self.equations :], 0)
                new_value, new_gradient = self._value(goal, trial)
                left = np.abs(new_gradient[~self._at_bound(trial, new_gradient)]).max(initial=0.0)
                enough = 1e-4 * float(gradient @ (trial - y))
                # At rounding level the value says nothing any more, and the gradient still does.
                if new_value <= value + enough or (left < 0.5 * size and new_value <= value + 1e-12):
                    break
            else:
                break
            if new_value >= value and left >= size:
                break
            y, value, gradient = trial, new_value, new_gradient
        return y

    def _value(self, goal: Floats, y: Floats) -> tuple[float, Floats]:
        z = goal - self.constraints.T @ y
        total = _log_sum(z)
        return total, -(self.constraints @ np.exp(z - total))

    def _at_bound(self, y: Floats, gradient: Floats) -> NDArray[np.bool_]:
        bound = (y <= 0) & (gradient >= 0)
        bound[: self.equations] = False
        return bound

    def _newton(self, goal: Floats, y: Floats, gradient: Floats, free: NDArray[np.bool_]) -> Floats:
        from scipy.linalg import solve

        rows, slope = self.constraints[free], gradient[free]
        weighted = rows * np.exp(0.5 * self.log_policy(goal, y))
        hessian = weighted @ weighted.T - np.outer(slope, slope)
        # A little of the identity: the curvature may vanish to rounding where few responses carry the policy.
        hessian[np.diag_indices_from(hessian)] += 1e-15 * np.trace(hessian) + 1e-3 * np.abs(slope).max() ** 2
        return solve(hessian, slope, assume_a="sym")


def _log_sum(z: Floats) -> float:
    most = float(z.max())
    return most + float(np.log(np.exp(z - most).sum()))
