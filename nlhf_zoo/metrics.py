"""Distances and values of log-probability tables: KL, span, duality gap, and the value of an improvement.

All take normalised log-probabilities (..., Y), reduce the last dimension, and keep dtype and device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nlhf_zoo.interfaces import Divergence, ReverseKL

__all__ = ["best_response", "duality_gap", "improvement_value", "kl_divergence", "span"]


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(...) KL(p || q) in nats, accurate to relative precision also where p and q nearly agree.

    The plain sum of p (log p - log q) cancels to about 1e-16; since p and q both sum to 1, adding
    q - p changes nothing and makes every term non-negative.
    """
    gap = log_p - log_q
    p = log_p.exp()
    near = p * (torch.expm1(-gap) + gap)
    far = p * (gap - 1) + log_q.exp()
    terms = torch.where(gap.abs() < 0.5, near, far)
    return torch.where(torch.isneginf(log_p), log_q.exp(), terms).sum(-1)


def span(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(...) max - min of log p - log q: the uniform error of the log-probabilities."""
    # Where both are zero they agree; divergences with a finite slope at zero leave responses out.
    gap = torch.where(log_p == log_q, 0.0, log_p - log_q)
    return gap.amax(-1) - gap.amin(-1)


def best_response(payoff: Tensor, log_reference: Tensor, beta: float) -> Tensor:
    """(..., Y) log of pi_ref exp(u / beta) / Z, the regularised best response to payoffs u; beta > 0."""
    return (log_reference + payoff / beta).log_softmax(-1)


def duality_gap(
    payoff: Tensor, log_policy: Tensor, log_reference: Tensor, beta: float, divergence: Divergence | None = None
) -> Tensor:
    """(...) exploitability of pi, given its own payoffs u_pi (..., Y), which have u_pi . pi = 1/2.

    Under the reverse KL (the default) 2 beta KL(pi || BR(pi)) for beta > 0, accurate to relative precision, and
    2 (max_y u_pi(y) - 1/2) for beta = 0. Under any other D it is twice what the regularised best response gains,
    2 max_mu <mu - pi, u_pi> - beta D(mu || pi_ref) + beta D(pi || pi_ref): a difference, accurate to about 1e-15
    (and to rounding of beta D(pi || pi_ref), where that is large), and cut at 0. inf where D(pi || pi_ref) is.
    """
    if beta == 0:
        return (2 * (payoff.amax(-1) - 0.5)).clamp_min(0)
    if divergence is None or isinstance(divergence, ReverseKL):
        return 2 * beta * kl_divergence(log_policy, best_response(payoff, log_reference, beta))
    best = divergence.improve(payoff, [(log_reference, beta)])
    won = ((best.exp() - log_policy.exp()) * payoff).sum(-1)
    paid = divergence.terms(best, log_reference) - divergence.terms(log_policy, log_reference)
    return (2 * (won - beta * paid.sum(-1))).clamp_min(0)


def improvement_value(
    log_policy: Tensor, payoff: Tensor, anchors: Sequence[tuple[Tensor, float, Divergence]]
) -> Tensor:
    """(...) E_{y~pi} v(y) - sum_j w_j D_j(pi || rho_j): what an `Update` asks to maximise; differentiable.

    Args:
        log_policy, payoff: (..., Y).
        anchors: (..., Y) log-probabilities log rho_j, a weight w_j, and the divergence D_j.
    """
    value = (log_policy.exp() * payoff).sum(-1)
    for log_rho, weight, divergence in anchors:
        value = value - weight * divergence.value(log_policy, log_rho)
    return value
