"""The central path of the unregularised game: an interior-point method for its self-dual linear programme.

With A = P - 1/2 skew, the winners are the x >= 0 with sum x = 1 and s = t - A x >= 0 at t = 0. Because
x^T A x = 0, the complementarity gap x^T s is t itself: the programme is its own dual, and an iterate with
x, s > 0 is a policy that no response beats by more than t. The central path x_i s_i = mu leads to the analytic
centre of the set of winners, whose support is the largest (Goldman and Tucker 1956; the steps: Mehrotra 1992).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Mask", "PathPoint", "central_path"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_MOST_ITERATIONS = 100
_ROUNDING = 1e-16
_NEIGHBOURHOOD = 1e-3
_LONG_ENOUGH = 0.3
_MOST_CUTS = 30


@attrs.frozen(eq=False)
class PathPoint:
    """A point close to the central path.

    Attributes:
        iteration: linear systems factorised to get here.
        x: (Y,) float64 > 0, sum 1: a policy.
        s: (Y,) float64 > 0, by how much each response's payoff falls short of 1/2 + t, to rounding.
        t: what no response wins over 1/2, to rounding.
        supported: (Y,) bool, who seems to belong to the largest support: whose s falls faster than its x (an
            indicator without scale, El-Bakry, Tapia and Zhang 1994).
    """

    iteration: int
    x: Floats
    s: Floats
    t: float
    supported: Mask


def central_path(matrix: Floats, workspace: Floats) -> Iterator[PathPoint]:
    """Predictor-corrector steps towards t = 0, until double precision is used up.

    Args:
        matrix: (Y, Y) float64, C order, P with P + P^T = 1.
        workspace: (Y, Y) float64, C order, overwritten in every step; free for other use between them.
    """
    size = len(matrix)
    x = np.full(size, 1 / size)
    advantage = matrix @ x - 0.5
    t = 2 * float(advantage.max()) + 1e-3
    s = t - advantage
    for iteration in range(1, _MOST_ITERATIONS + 1):
        system = _factorised(matrix, workspace, x, s, t)
        new_x, new_s, new_t = _step(system)
        if not (new_x.min() > 0 and new_s.min() > 0):  # NaN fails too: singular to working precision
            return
        supported = new_x * s > new_s * x
        x, s, t = new_x, new_s, new_t
        yield PathPoint(iteration, x, s, t, supported)
        if t <= _ROUNDING:
            return


def _step(system: _System) -> tuple[Floats, Floats, float]:
    """Mehrotra's step; a more centred one where it would leave the wide neighbourhood of the path at once."""
    x, s = system.x, system.s
    mu = float(x @ s) / len(x)
    dx, ds, _ = system.direction(np.zeros_like(x))
    length = min(1.0, 1 / _rate(x, dx, s, ds))
    ahead = float((x + length * dx) @ (s + length * ds)) / len(x)
    longest, step = -1.0, (dx, ds, 0.0)
    for product in ((ahead / mu) ** 3 * mu - dx * ds, np.full_like(x, 0.2 * mu), np.full_like(x, 0.8 * mu)):
        trial = system.direction(product)
        length = _length(system, trial[0], trial[1])
        if length > longest:
            longest, step = length, trial
        if length > _LONG_ENOUGH:
            break
    return x + longest * step[0], s + longest * step[1], system.t + longest * step[2]


def _length(system: _System, dx: Floats, ds: Floats) -> float:
    """How far x and s stay positive, and none of their products falls far behind the mean; 0 if nowhere."""
    x, s = system.x, system.s
    length = min(1.0, max(0.9, 1 - system.t) / _rate(x, dx, s, ds))
    for _ in range(_MOST_CUTS):
        products = (x + length * dx) * (s + length * ds)
        if products.min() >= _NEIGHBOURHOOD * products.mean():
            return length
        length *= 0.7
    return 0.0


@attrs.frozen(eq=False)
class _System:
    """Newton's system at (x, s, t), factorised.

    It is (diag(s/x) - A) dx + dt = r, sum dx = 0. Because the sum is prescribed, 1/2 may be added to every entry of
    the matrix: diag(s/x) + P^T stays regular where the support's part of diag(s/x) - A does not.
    """

    lu: Floats
    pivots: NDArray[Any]
    x: Floats
    s: Floats
    t: float
    shortfall: Floats
    constant: Floats

    def direction(self, product: Floats) -> tuple[Floats, Floats, float]:
        """(dx, ds, dt) towards x s = product, to first order."""
        wanted = product / self.x
        dx = _solve(self.lu, self.pivots, wanted - self.shortfall)
        dt = float(dx.sum() - (1 - self.x.sum())) / float(self.constant.sum())
        dx -= dt * self.constant
        return dx, wanted - self.s * (1 + dx / self.x), dt


def _factorised(matrix: Floats, workspace: Floats, x: Floats, s: Floats, t: float) -> _System:
    from scipy.linalg import get_lapack_funcs

    (getrf,) = get_lapack_funcs(("getrf",), dtype=np.float64)
    # In the Fortran order that LAPACK factorises in place, this is the transposed, diag(s/x) + P^T.
    workspace[:] = matrix
    workspace.ravel()[:: len(x) + 1] += s / x
    lu, pivots, _ = getrf(workspace.T, overwrite_a=True)
    shortfall = t - (matrix @ x - 0.5)
    return _System(lu, pivots, x, s, t, shortfall, _solve(lu, pivots, np.ones(len(x))))


def _solve(lu: Floats, pivots: NDArray[Any], right: Floats) -> Floats:
    from scipy.linalg import get_lapack_funcs

    (getrs,) = get_lapack_funcs(("getrs",), dtype=np.float64)
    return getrs(lu, pivots, right)[0]


def _rate(x: Floats, dx: Floats, s: Floats, ds: Floats) -> float:
    """1 over the step at which the first of x and s reaches zero; a tiny number where none does."""
    return max(float((-dx / x).max()), float((-ds / s).max()), 1e-9)
