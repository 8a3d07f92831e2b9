"""From anywhere to the neighbourhood of the equilibrium: a primal-dual interior point method."""

from __future__ import annotations

import math

import numpy as np

from nlhf_zoo.tabular.equilibrium_payoffs import Array, Payoffs, here
from nlhf_zoo.tabular.equilibrium_systems import Systems

__all__ = ["interior"]

_MOST = 80
_TO_THE_BOUNDARY = 0.995


def interior(payoffs: Payoffs, systems: Systems, level: float) -> Array:
    """(..., Y) log-probabilities with |r| <= level; the last seen in the games where it was not reached.

    The equilibrium is the p on the simplex with beta (log p - log pi_ref) - P p = v 1. A slack is added,

        beta (log p - log pi_ref) - P p = v 1 + s,    p s = mu,    s > 0,

    and mu driven to zero by Mehrotra's predictor and corrector (SIAM J. Optim. 2 (1992) 575): a mu well above
    beta makes the problem one of linear complementarity, which takes a dozen factorisations whatever beta and Y
    are, where following the equilibria down in beta takes many. The entropy enters as a convex barrier does.
    """
    beta, log_reference = payoffs.beta, here(payoffs.log_reference)

    def size_of(z: Array) -> Array:
        """(...) |r| there, whose payoffs are cheap where the policy is close to p."""
        q = np.exp(z)
        narrow = payoffs.narrowing_pays
        r = z - log_reference - (u + payoffs.narrow_change(q - p) if narrow else payoffs.product(q)) / beta
        return _most(np.abs(r - _sum(q * r)))[..., 0]

    reference = np.exp(log_reference - _most(log_reference))
    p = (reference / _sum(reference) + 1 / payoffs.size) / 2
    u = payoffs.product(p)
    f = beta * (np.log(p) - log_reference) - u
    low, high = _least(f), _most(f)
    v = low - 0.1 * (high - low) - 1e-3
    s = f - v
    z = _candidate(log_reference, p, u, beta)
    size = size_of(z)
    for _ in range(_MOST):
        reached = size <= level
        if reached.all():
            break
        dp, ds, dv = _direction(systems, p, s, f - v - s, beta)
        length = np.minimum(_TO_THE_BOUNDARY * _room(dp / p, ds / s), 1.0) * ~reached[..., None]
        p, s, v = p + length * dp, s + length * ds, v + length * dv
        if not np.isfinite(p).all():
            break
        u = payoffs.product(p)
        f = beta * (np.log(p) - log_reference) - u
        trial = _candidate(log_reference, p, u, beta)
        z, size = np.where(reached[..., None], z, trial), np.where(reached, size, size_of(trial))
    return z


def _direction(systems: Systems, p: Array, s: Array, miss: Array, beta: float) -> tuple[Array, Array, Array]:
    """(dp, ds, dv) towards the mu that the predictor finds within reach; `miss` is the equation's error."""
    systems.factor(p / (beta + s))
    total = 1 - _sum(p)
    inverse = 1 / p
    dp = systems.solve(-miss - s, total, 3e-2)[0]
    relative = dp * inverse
    falling = -1 - relative  # ds / s
    ds = s * falling
    length = np.minimum(_room(relative, falling), 1.0)
    mu = _sum(p * s)
    ahead = _sum((p + length * dp) * (s + length * ds)) / mu
    centre = mu / p.shape[-1] * np.minimum(np.maximum(ahead, 1e-4), 1.0) ** 3
    # Second order of p s, and of the logarithm as far as its series is of use.
    curved = 0.5 * beta * np.minimum(relative * relative, 1)
    gain = (centre - dp * ds) * inverse - s
    dp, dv = systems.solve(curved + gain - miss, total, 1e-2)
    return dp, gain - s * dp * inverse, dv


def _room(relative_p: Array, relative_s: Array) -> Array:
    """(..., 1) how far p and s can go before one of them turns negative, of the direction relative to them."""
    return 1 / np.maximum(-np.minimum(_least(relative_p), _least(relative_s)), 1e-3)


def _sum(x: Array) -> Array:
    return np.add.reduce(x, -1, keepdims=True)


def _least(x: Array) -> Array:
    return np.minimum.reduce(x, -1, keepdims=True)


def _most(x: Array) -> Array:
    return np.maximum.reduce(x, -1, keepdims=True)


def _candidate(log_reference: Array, p: Array, u: Array, beta: float) -> Array:
    """(..., Y) p without its slack: a response of next to no weight goes where the others' payoffs put it."""
    z = np.log(p)
    own = log_reference + u / beta
    own = own - _sum(p * (own - z)) / _sum(p)
    light = np.maximum(own, z) < math.log(beta / p.shape[-1])
    z = np.where(light, own, z)
    z = z - _most(z)
    return z - np.log(_sum(np.exp(z)))
