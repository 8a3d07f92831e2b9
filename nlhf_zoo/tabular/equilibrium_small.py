"""One small game: fixed points, the range of a matrix of low rank, and Newton's method, at numpy's speed."""

from __future__ import annotations

import numpy as np
import torch

from nlhf_zoo.tabular.equilibrium_passes import Array, Independence, Passes, Seen, on_range

__all__ = ["near_reference", "polished"]

_MOST_RANK = 4
_MOST_NEWTON = 20
_NEAR = 60.0


def near_reference(passes: Passes, enough: float) -> tuple[Seen, bool, int]:
    """The best point found without an interior point method, whether |r| <= `enough` there, and systems solved."""
    seen, done = passes.fixed_points(passes.look(passes.log_reference), enough)
    if done:
        return seen, True, 0
    start, steps = seen, 0
    z = _of_low_rank(passes, seen)
    if z is not None:
        low = passes.look(z)
        if low.size <= 1e-3:
            start = low
    if start.size <= _NEAR:
        start, done, steps = polished(passes, start, enough)
    return (start if start.size < seen.size else seen), done, steps


def _of_low_rank(passes: Passes, seen: Seen) -> Array | None:
    """(Y,) z by `on_range`, where P - 1/2 has a rank of at most 4."""
    directions, images = [seen.p], [seen.u - 0.5]
    independence = Independence(len(seen.p))
    while len(images) <= _MOST_RANK and independence.adds(images[-1]):
        # Any directions will do; these are neither flat nor degenerate.
        other = passes.look(passes.log_reference + (3 / np.ptp(images[-1])) * images[-1])
        directions.append(other.p)
        images.append(other.u - 0.5)
    if len(images) > _MOST_RANK:
        return None
    return on_range(passes, np.array(directions), np.array(images))


def polished(passes: Passes, seen: Seen, enough: float) -> tuple[Seen, bool, int]:
    """Newton's method from `seen` on; the point, whether |r| <= `enough` or rounding's there, and systems solved."""
    skew = passes.payoffs.matrix.cpu().numpy() - 0.5
    for step in range(_MOST_NEWTON):
        if passes.settled(seen, enough):
            return seen, True, step
        trial = _searched(passes, seen, _newton_step(skew, seen, passes.beta))
        if trial is None:
            # At rounding level nothing falls any further.
            return seen, seen.size <= 1e-6, step + 1
        seen = trial
    return seen, passes.settled(seen, enough), _MOST_NEWTON


def _newton_step(skew: Array, seen: Seen, beta: float) -> Array:
    weights = seen.p / beta
    # The Jacobian's transpose row by row, `skew` being so, which is its column-major form, as LAPACK wants it.
    transposed = skew * weights[:, None]
    transposed += weights[:, None] * (seen.u - seen.p @ seen.u)
    transposed.flat[:: len(weights) + 1] += 1
    step, _ = torch.linalg.solve_ex(torch.from_numpy(transposed).mT, torch.from_numpy(-seen.r))
    step = step.numpy()
    return step - seen.p @ step


def _searched(passes: Passes, seen: Seen, step: Array) -> Seen | None:
    """Halve the step until |r|^2 falls; `None` if it does not."""
    value, length = seen.r @ seen.r, 1.0
    while length > 1e-3:
        dz = length * step
        # In p where p > beta, in log p elsewhere: see `equilibrium_newton`.
        moved = np.where(seen.p > passes.beta, np.log1p(np.maximum(dz, -0.9)), dz)
        trial = passes.look(seen.z + moved)
        if trial.r @ trial.r <= (1 - 0.2 * length) * value:
            return trial
        if seen.size <= 1e-6:
            return None
        length /= 2
    return None
