"""Where Online DPO comes to rest, found as a root and not by running it: E_{y'~pi}[P(y > y') - sigma(beta h(y, y'))] = 0.

On Bradley-Terry preferences this is pi_ref exp(r / beta); elsewhere nothing but the equation describes it.
"""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, log_softmax

__all__ = ["Rest", "at_distance", "rest_at"]

Floats = NDArray[np.float64]

_EASY = 10.0  # at such a beta every policy is near the reference, and Newton needs no help
_STEP = 0.7
_SMALLEST = 1e-4
_ROUNDING = 1e-11


@attrs.frozen(eq=False)
class Rest:
    """One fixed point.

    Attributes:
        beta: DPO's.
        logits: (Y,) h, the log-ratio to the reference up to a constant.
        log_probs: (Y,).
        residual: the largest error of the equation.
    """

    beta: float
    logits: Floats
    log_probs: Floats
    residual: float

    def kl(self, log_reference: Floats) -> float:
        """KL to the reference, in nats."""
        return float(np.exp(self.log_probs) @ (self.log_probs - log_reference))


def rest_at(matrix: Floats, log_reference: Floats, beta: float, start: Rest | None = None) -> Rest:
    """The fixed point at `beta`, followed from a large beta (or `start`) down.

    Raises:
        ArithmeticError: Newton's method lost it.
    """
    found = start or _newton(matrix, log_reference, max(beta, _EASY), np.zeros(len(matrix)))
    while found.beta != beta:
        following = max(beta, found.beta * _STEP) if beta < found.beta else min(beta, found.beta / _STEP)
        # Along the path h grows like 1 / beta, exactly so on Bradley-Terry preferences.
        found = _newton(matrix, log_reference, following, found.logits * found.beta / following)
    return found


def at_distance(matrix: Floats, log_reference: Floats, kl: float) -> Rest:
    """The fixed point as far from the reference as `kl` nats, by the choice of DPO's own beta.

    The farthest that there is, where none is as far: on a cycle small betas lead no farther than the even mixture.
    """
    before = found = rest_at(matrix, log_reference, _EASY)
    while found.kl(log_reference) < kl:
        if found.beta < _SMALLEST:
            return found
        before, found = found, rest_at(matrix, log_reference, found.beta * _STEP, found)

    def off(log_beta: float) -> float:
        return rest_at(matrix, log_reference, float(np.exp(log_beta)), before).kl(log_reference) - kl

    if before is found:
        return found
    log_beta = brentq(off, np.log(found.beta), np.log(before.beta), xtol=1e-10)
    return rest_at(matrix, log_reference, float(np.exp(log_beta)), before)


def _newton(matrix: Floats, log_reference: Floats, beta: float, logits: Floats) -> Rest:
    h, (error, slope) = logits, _equation(matrix, log_reference, beta, logits)
    for _ in range(200):
        size = float(np.abs(error).max())
        if size < _ROUNDING:
            break
        # A constant added to h changes nothing: the slope is singular along it, and h is kept centred.
        step = np.linalg.lstsq(slope, -error, rcond=1e-14)[0]
        length = 1.0
        while length > 1e-8:
            tried = h + length * (step - step.mean())
            error, slope = _equation(matrix, log_reference, beta, tried)
            if float(np.abs(error).max()) < size * (1 - 1e-4 * length):
                break
            length /= 2
        h = tried
    residual = float(np.abs(error).max())
    if not residual < 1e-8:
        raise ArithmeticError(f"Online DPO's fixed point at beta = {beta:g}: off by {residual:.1e}")
    return Rest(beta, h, log_softmax(log_reference + h), residual)


def _equation(matrix: Floats, log_reference: Floats, beta: float, h: Floats) -> tuple[Floats, Floats]:
    """The equation's left side (Y,) and its derivative in h (Y, Y)."""
    p = np.exp(log_softmax(log_reference + h))
    implied = expit(beta * (h[:, None] - h[None, :]))
    signal, bend = matrix - implied, beta * implied * (1 - implied)
    error = signal @ p
    slope = p * (signal - error[:, None] + bend) - np.diag(bend @ p)
    return error, slope
