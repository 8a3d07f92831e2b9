"""Newton's method on one game, at numpy's speed; its linear systems are solved by LU, or as `SparedSystems` does."""

from __future__ import annotations

import numpy as np
import torch

from nlhf_zoo.tabular.equilibrium_passes import Passes, Seen
from nlhf_zoo.tabular.equilibrium_payoffs import Array
from nlhf_zoo.tabular.equilibrium_systems import SparedSystems

__all__ = ["polished"]

_MOST_NEWTON = 25
_LIGHT = 0.1
_NEARLY = 1e-3
_BY_NUMPY = 128  # numpy's LAPACK keeps to one thread for so few, as torch's cannot be told to


def polished(passes: Passes, seen: Seen, enough: float, systems: SparedSystems | None = None) -> tuple[Seen, bool, int]:
    """Newton's method from `seen` on; the point, whether |r| <= `enough` or rounding's there, and systems factored.

    The Jacobian I - (P - 1/2) Cov / beta is never singular, whatever the game: Cov is positive semi-definite and
    P - 1/2 is skew, so their product has an imaginary spectrum.
    """
    before = systems.solved if systems else 0
    count = 0
    for count in range(_MOST_NEWTON):
        if passes.settled(seen, enough):
            if seen.exact:
                break
            seen = passes.look(seen.z)
            if passes.settled(seen, enough):
                break
        step = _spared_step(systems, seen, passes.beta, enough) if systems else _dense_step(passes, seen)
        trial = _searched(passes, seen, step, near=systems is not None and seen.size > _NEARLY)
        if trial is None:
            if not seen.exact:
                seen = passes.look(seen.z)
                continue
            # At rounding level nothing falls any further.
            return seen, seen.size <= 1e-6, (systems.solved - before if systems else count + 1)
        seen = trial
    return seen, seen.exact and passes.settled(seen, enough), (systems.solved - before if systems else count)


def _dense_step(passes: Passes, seen: Seen) -> Array:
    weights = seen.p / passes.beta
    # The Jacobian's transpose row by row, which is its column-major form, as LAPACK wants it; P - 1/2 is skew.
    transposed = passes.payoffs.matrix.cpu().numpy() - (0.5 - (seen.u - seen.p @ seen.u))
    transposed *= weights[:, None]
    transposed.flat[:: len(weights) + 1] += 1
    if len(weights) <= _BY_NUMPY:
        try:
            step = np.linalg.solve(transposed.T, -seen.r)
        except np.linalg.LinAlgError:  # overflown
            step = np.full_like(seen.r, np.nan)
    else:
        step = torch.linalg.solve_ex(torch.from_numpy(transposed).mT, torch.from_numpy(-seen.r))[0].numpy()
    return step - seen.p @ step


def _spared_step(systems: SparedSystems, seen: Seen, beta: float, enough: float) -> Array:
    systems.factor(seen.p / beta)
    # Far away a rough step will do as well; near, what is left of an exact one is about the square of its size.
    accuracy = min(0.3, max(0.3 * enough / seen.size, 0.1 * seen.size, 1e-4))
    # An error of dp may come back in the residual 1 / beta times larger.
    accuracy *= min(1.0, 1e4 * beta)
    dp, multiplier = systems.solve(-beta * seen.r, 0.0, accuracy)
    # Equal in an exact solution; an error weighs less in dp where there is probability, in its payoffs elsewhere.
    step = np.where(seen.p > _LIGHT / len(dp), dp / seen.p, (systems.image + multiplier) / beta - seen.r)
    return step - seen.p @ step


def _searched(passes: Passes, seen: Seen, step: Array, near: bool) -> Seen | None:
    """Halve the step until |r|^2 falls; `None` if it does not."""
    value, length = seen.r @ seen.r, 1.0
    while length > 1e-3:
        dz = length * step
        # A step dz in log p is off by p dz^2 / 2 in p, and so by up to p dz^2 / beta in the residual; one in p,
        # which agrees to first order, is off by dz^2 / 2 itself.
        moved = np.where(seen.p > passes.beta, np.log1p(np.maximum(dz, -0.9)), dz)
        trial = passes.look(seen.z + moved, seen if near else None)
        if trial.r @ trial.r <= (1 - 0.2 * length) * value:
            return trial
        if seen.size <= 1e-6:
            return None
        length /= 2
    return None
