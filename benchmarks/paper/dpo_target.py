"""Where DPO comes to rest, found as a root and not by running it: E_{y'~mu}[P(y > y') - sigma(beta h(y, y'))] = 0.

Online DPO's pairs come from itself, mu = pi; offline DPO's from the reference. On Bradley-Terry preferences both are
pi_ref exp(r / beta); elsewhere nothing but the equation describes them.
"""

from __future__ import annotations

from typing import Any

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
        online: whether the pairs come from the policy itself, or from the reference.
        beta: DPO's.
        logits: (Y,) h, the log-ratio to the reference up to a constant.
        log_probs: (Y,).
        residual: the largest error of the equation.
    """

    online: bool
    beta: float
    logits: Floats
    log_probs: Floats
    residual: float

    def kl(self, log_reference: Floats) -> float:
        """KL to the reference, in nats."""
        return float(np.exp(self.log_probs) @ (self.log_probs - log_reference))


def rest_at(
    matrix: Floats, log_reference: Floats, beta: float, start: Rest | None = None, *, online: bool = True
) -> Rest:
    """The fixed point at `beta`, followed from a large beta (or `start`) down.

    Raises:
        ArithmeticError: Newton's method lost it.
    """
    easy = Rest(online, max(beta, _EASY), np.zeros(len(matrix)), log_reference, np.inf)
    found = start or _newton(matrix, log_reference, easy)
    while found.beta != beta:
        following = max(beta, found.beta * _STEP) if beta < found.beta else min(beta, found.beta / _STEP)
        # Along the path h grows like 1 / beta, exactly so on Bradley-Terry preferences.
        guess = attrs.evolve(found, beta=following, logits=found.logits * found.beta / following)
        found = _newton(matrix, log_reference, guess)
    return found


def at_distance(matrix: Floats, log_reference: Floats, kl: float, *, online: bool = True) -> Rest:
    """The fixed point as far from the reference as `kl` nats, by the choice of DPO's own beta.

    The farthest that there is, where none is as far: on a cycle small betas lead no farther than the even mixture.
    """
    before = found = rest_at(matrix, log_reference, _EASY, online=online)
    while found.kl(log_reference) < kl:
        if found.beta < _SMALLEST:
            return found
        before, found = found, rest_at(matrix, log_reference, found.beta * _STEP, found)

    def off(log_beta: float) -> float:
        return rest_at(matrix, log_reference, float(np.exp(log_beta)), before).kl(log_reference) - kl

    if before is found:
        return found
    log_beta: Any = brentq(off, np.log(found.beta), np.log(before.beta), xtol=1e-10)
    return rest_at(matrix, log_reference, float(np.exp(log_beta)), before)


def _newton(matrix: Floats, log_reference: Floats, guess: Rest) -> Rest:
    equation = _own_pairs if guess.online else _reference_pairs
    beta, h = guess.beta, guess.logits
    error, slope = equation(matrix, log_reference, beta, h)
    for _ in range(200):
        size = float(np.abs(error).max())
        if size < _ROUNDING:
            break
        # A constant added to h changes nothing: the slope is singular along it, and the added term keeps h centred.
        step = np.linalg.solve(slope - beta / len(h), -error)
        start, length = h, 1.0
        while length > 1e-8:
            h = start + length * (step - step.mean())
            error, slope = equation(matrix, log_reference, beta, h)
            if float(np.abs(error).max()) < size * (1 - 1e-4 * length):
                break
            length /= 2
    residual = float(np.abs(error).max())
    if not residual < 1e-8:
        raise ArithmeticError(f"DPO's fixed point at beta = {beta:g}: off by {residual:.1e}")
    return Rest(guess.online, beta, h, log_softmax(log_reference + h), residual)


def _own_pairs(matrix: Floats, log_reference: Floats, beta: float, h: Floats) -> tuple[Floats, Floats]:
    """The equation's left side (Y,) and its derivative in h (Y, Y), for pairs from the policy itself."""
    p = np.exp(log_softmax(log_reference + h))
    signal, bend = _signal(matrix, beta, h)
    error = signal @ p
    return error, p * (signal - error[:, None] + bend) - np.diag(bend @ p)


def _reference_pairs(matrix: Floats, log_reference: Floats, beta: float, h: Floats) -> tuple[Floats, Floats]:
    """The same for pairs from the reference."""
    p = np.exp(log_reference)
    signal, bend = _signal(matrix, beta, h)
    return signal @ p, p * bend - np.diag(bend @ p)


def _signal(matrix: Floats, beta: float, h: Floats) -> tuple[Floats, Floats]:
    implied = expit(beta * (h[:, None] - h[None, :]))
    return matrix - implied, beta * implied * (1 - implied)
