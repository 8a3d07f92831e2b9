"""From anywhere to the neighbourhood of the equilibrium: a primal-dual interior point method."""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
    beta, log_reference = payoffs.beta, payoffs.log_reference
    p = (log_reference.softmax(-1) + 1 / payoffs.size) / 2
    u = payoffs.of(p)
    f = beta * (p.log() - log_reference) - u
    low, high = f.aminmax(dim=-1, keepdim=True)
    v = low - 0.1 * (high - low) - 1e-3
    s = f - v
    found = payoffs.at(_candidate(payoffs, p, u))
    for _ in range(_MOST):
        reached = found.size <= level
        if bool(reached.all()):
            break
        dp, ds, dv = _direction(systems, p, s, f - v - s, beta)
        length = (_TO_THE_BOUNDARY * _room(p, s, dp, ds)).clamp_max(1.0)
        length = length * ~reached.unsqueeze(-1)
        p, s, v = p + length * dp, s + length * ds, v + length * dv
        if not bool(torch.isfinite(p).all()):
            break
        u = payoffs.of(p)
        f = beta * (p.log() - log_reference) - u
        found = found.where(reached, payoffs.at(_candidate(payoffs, p, u)))
    return found, found.size <= level


def _direction(systems: Systems, p: Tensor, s: Tensor, miss: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """(dp, ds, dv) towards the mu that the predictor finds within reach; `miss` is the equation's error."""
    systems.factor(p / (beta + s))
    total = 1 - p.sum(-1, keepdim=True)
    dp, _ = systems.solve(-miss - s, total, 3e-2)
    ds = -s - s * dp / p
    mu = (p * s).mean(-1, keepdim=True)
    length = _room(p, s, dp, ds).clamp_max(1.0)
    ahead = ((p + length * dp) * (s + length * ds)).mean(-1, keepdim=True)
    centre = mu * (ahead / mu).clamp(1e-4, 1.0) ** 3
    # Second order of p s, and of the logarithm as far as its series is of use.
    curved = 0.5 * beta * (dp / p).clamp(-1, 1).square()
    gain = (centre - dp * ds) / p - s
    dp, dv = systems.solve(-miss + curved + gain, total, 1e-3)
    return dp, gain - s * dp / p, dv


def _room(p: Tensor, s: Tensor, dp: Tensor, ds: Tensor) -> Tensor:
    """(..., 1) how far p and s can go before one of them turns negative."""
    fastest = torch.maximum((-dp / p).amax(-1, keepdim=True), (-ds / s).amax(-1, keepdim=True))
    return 1 / fastest.clamp_min(1e-3)


def _candidate(payoffs: Payoffs, p: Tensor, u: Tensor) -> Tensor:
    """(..., Y) p without its slack: a response of next to no weight goes where the others' payoffs put it."""
    z = p.log()
    own = payoffs.log_reference + u / payoffs.beta
    own = own - (p * (own - z)).sum(-1, keepdim=True) / p.sum(-1, keepdim=True)
    light = torch.maximum(own, z) < math.log(payoffs.beta / payoffs.size)
    return torch.where(light, own, z).log_softmax(-1)
