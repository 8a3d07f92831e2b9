"""From anywhere to the neighbourhood of the equilibrium: a primal-dual interior point method."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.tabular.equilibrium_passes import Array
from nlhf_zoo.tabular.equilibrium_payoffs import Payoffs, Point
from nlhf_zoo.tabular.equilibrium_systems import Systems

__all__ = ["interior"]

_MOST = 80
_TO_THE_BOUNDARY = 0.995


def interior(payoffs: Payoffs, systems: Systems, level: float) -> tuple[Point, Tensor]:
    """A point with |r| <= level, and (...) in which games it was reached; in the others, the last one seen.

    The equilibrium is the p on the simplex with beta (log p - log pi_ref) - P p = v 1. A slack is added,

        beta (log p - log pi_ref) - P p = v 1 + s,    p s = mu,    s > 0,

    and mu driven to zero by Mehrotra's predictor and corrector (SIAM J. Optim. 2 (1992) 575): a mu well above
    beta makes the problem one of linear complementarity, which takes a dozen factorisations whatever beta and Y
    are, where following the equilibria down in beta takes many. The entropy enters as a convex barrier does.
    """
    beta, device = payoffs.beta, payoffs.log_reference.device
    log_reference = payoffs.log_reference.cpu().numpy()

    def payoffs_of(p: Array) -> Array:
        return payoffs.of(torch.from_numpy(p).to(device)).cpu().numpy()

    def size_of(z: Array) -> Array:
        """(...) |r| there, whose payoffs are cheap where the policy is close to p."""
        q = np.exp(z)
        narrow = payoffs.narrowing_pays
        r = z - log_reference - (u + payoffs.narrow_change(q - p) if narrow else payoffs_of(q)) / beta
        return np.abs(r - (q * r).sum(-1, keepdims=True)).max(-1)

    reference = np.exp(log_reference - log_reference.max(-1, keepdims=True))
    p = (reference / reference.sum(-1, keepdims=True) + 1 / payoffs.size) / 2
    u = payoffs_of(p)
    f = beta * (np.log(p) - log_reference) - u
    low, high = f.min(-1, keepdims=True), f.max(-1, keepdims=True)
    v = low - 0.1 * (high - low) - 1e-3
    s = f - v
    z = _candidate(log_reference, p, u, beta)
    size = size_of(z)
    for _ in range(_MOST):
        reached = np.asarray(size <= level)
        if reached.all():
            break
        dp, ds, dv = _direction(systems, p, s, f - v - s, beta)
        length = np.minimum(_TO_THE_BOUNDARY * _room(p, s, dp, ds), 1.0) * ~reached[..., None]
        p, s, v = p + length * dp, s + length * ds, v + length * dv
        if not np.isfinite(p).all():
            break
        u = payoffs_of(p)
        f = beta * (np.log(p) - log_reference) - u
        trial = _candidate(log_reference, p, u, beta)
        z, size = np.where(reached[..., None], z, trial), np.where(reached, size, size_of(trial))
    found = payoffs.at(torch.from_numpy(z).to(device))
    return found, found.size <= level


def _direction(systems: Systems, p: Array, s: Array, miss: Array, beta: float) -> tuple[Array, Array, Array]:
    """(dp, ds, dv) towards the mu that the predictor finds within reach; `miss` is the equation's error."""
    systems.factor(_tensor(p / (beta + s), systems))
    total = _tensor(1 - p.sum(-1, keepdims=True), systems)
    inverse = 1 / p
    dp = systems.solve(_tensor(-miss - s, systems), total, 3e-2)[0].cpu().numpy()
    relative = dp * inverse
    ds = -s - s * relative
    ps = p * s
    mu = ps.mean(-1, keepdims=True)
    length = np.minimum(_room(p, s, dp, ds), 1.0)
    ahead = ((p + length * dp) * (s + length * ds)).mean(-1, keepdims=True)
    centre = mu * np.clip(ahead / mu, 1e-4, 1.0) ** 3
    # Second order of p s, and of the logarithm as far as its series is of use.
    curved = 0.5 * beta * np.clip(relative, -1, 1) ** 2
    gain = (centre - dp * ds) * inverse - s
    step, dv = systems.solve(_tensor(-miss + curved + gain, systems), total, 1e-2)
    dp = step.cpu().numpy()
    return dp, gain - s * dp * inverse, dv.cpu().numpy()


def _tensor(x: Array, systems: Systems) -> Tensor:
    return torch.from_numpy(x).to(systems.device)


def _room(p: Array, s: Array, dp: Array, ds: Array) -> Array:
    """(..., 1) how far p and s can go before one of them turns negative."""
    fastest = -np.minimum((dp / p).min(-1, keepdims=True), (ds / s).min(-1, keepdims=True))
    return 1 / np.maximum(fastest, 1e-3)


def _candidate(log_reference: Array, p: Array, u: Array, beta: float) -> Array:
    """(..., Y) p without its slack: a response of next to no weight goes where the others' payoffs put it."""
    z = np.log(p)
    own = log_reference + u / beta
    own = own - (p * (own - z)).sum(-1, keepdims=True) / p.sum(-1, keepdims=True)
    light = np.maximum(own, z) < math.log(beta / p.shape[-1])
    z = np.where(light, own, z)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))
