"""The implicit improvement: a policy that is its own best answer, by payoff queries alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Divergence, EnumerableOracle, ReverseKL
from nlhf_zoo.metrics import span
from nlhf_zoo.tabular.equilibrium_search import Effort, search

__all__ = ["solve_implicit"]

Anchors = Sequence[tuple[Tensor, float]]

_TOLERANCE = 1e-14
_MOST = 100_000
_SOLVED = 1e-9


def solve_implicit(
    oracle: EnumerableOracle,
    anchors: Anchors,
    divergence: Divergence,
    start: Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, dict[str, float]]:
    """(..., Y) the pi with pi = argmax_p p . u_pi - sum_j w_j D(p || rho_j), and what it took.

    With total weight w >= 1/2 and the reverse KL the map is a contraction with factor 1 / (2 w) (payoffs
    lie in [0, 1]), and is iterated as it stands. Below that, Nash-MP's two steps with step size 2 are
    taken, which contract by 1 / (1 + 2 w). Where either would take more queries than the Y that tell the whole
    matrix, or does not settle because answers are noisy, those are asked, and the equilibrium of the matrix told,
    made skew, is searched for directly. Other divergences: see `_general`. Every payoff is a query and is counted.

    Raises:
        ArithmeticError: not converged; the message says how far.
        BadInput: the divergence is not strictly convex.
    """
    if not isinstance(divergence, ReverseKL):
        return _general(oracle, anchors, divergence, start, generator)
    total = sum(weight for _, weight in anchors)

    def answer(log_probs: Tensor, held: Anchors) -> Tensor:
        return divergence.improve(oracle.payoff(log_probs.exp(), generator=generator), held)

    queries = 1 if total >= 0.5 else 2
    current, needed, taken = start, _iterations(total), 0
    while queries * needed <= oracle.num_responses and taken < 1.5 * needed + 10:
        if queries == 1:
            new = answer(current, anchors)
        else:
            held = [*anchors, (current, 0.5)]
            new = answer(answer(current, held), held)
        taken += 1
        # Log-probabilities of size s carry rounding of s * 2e-16: asking for less would never end.
        change = float((span(new, current) / (1 + new.abs().amax())).amax())
        current = new
        if change <= _TOLERANCE * max(1.0, torch.finfo(new.dtype).eps / 2e-16):
            return current, {"inner_iterations": float(taken)}
    return _from_the_matrix(oracle, anchors, total, start, generator), {"inner_iterations": float(taken)}


def _iterations(total: float) -> float:
    """How many the contraction takes at this weight until a change of one is below the tolerance."""
    if total == 0.5:
        return math.inf
    return -math.log(_TOLERANCE) / (math.log(2 * total) if total > 0.5 else math.log1p(2 * total))


def _from_the_matrix(
    oracle: EnumerableOracle,
    anchors: Anchors,
    total: float,
    start: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """(..., Y) the equilibrium by `search` on the matrix that Y queries tell, with the anchors as one:

    weight w at their weighted geometric mean.
    """
    shape = torch.broadcast_shapes(oracle.batch_shape, start.shape[:-1])
    corners = torch.eye(oracle.num_responses, dtype=start.dtype, device=start.device)
    columns = [oracle.payoff(corner.expand(*shape, -1), generator=generator) for corner in corners]
    told = torch.stack(columns, dim=-1).double()
    mean = functools.reduce(torch.add, [log_rho.double() * (weight / total) for log_rho, weight in anchors])
    reference = mean.expand(*shape, -1).log_softmax(-1)
    found = search((told - told.mT + 1) / 2, reference, total, 0.0, Effort())
    off = found.residual / (1 + found.log_probs.abs().amax(-1).cpu().numpy())
    if not (off <= _SOLVED).all():
        raise ArithmeticError(f"implicit update not converged: log-probabilities off by {off.max():.1e}")
    return found.log_probs.to(start.dtype)


def _general(
    oracle: EnumerableOracle,
    anchors: Anchors,
    divergence: Divergence,
    start: Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, dict[str, float]]:
    """Mirror prox in the payoffs u that the answer p(u) = argmax_p <p, u> - sum_j w_j D(p || rho_j) is best to.

    half = (u + h P p(u)) / (1 + h) and u+ = (u + h P p(half)) / (1 + h), the dual form of Nash-MP: what is held near
    is u, by the Bregman divergence of the regulariser itself, so that a response which an iterate leaves out can come
    back. h is accepted, game by game, where the mirror-prox inequality holds, and halved where it does not.
    """
    if not divergence.strictly_convex:
        raise BadInput(f"an implicit update needs a strictly convex divergence, not {divergence.name}")

    def bregman(a: Tensor, b: Tensor, at: Tensor) -> Tensor:
        """(..., 1) of the regulariser, from p = exp(b) = p(at) to exp(a)."""
        paid = sum(w * (divergence.terms(a, rho) - divergence.terms(b, rho)) for rho, w in anchors)
        return (paid - at * (a.exp() - b.exp())).sum(-1, keepdim=True)

    u = oracle.payoff(start.exp(), generator=generator)
    log_p = divergence.improve(u, anchors)
    h = torch.ones_like(u[..., :1])
    change = float("inf")
    for iteration in range(1, _MOST + 1):
        first = oracle.payoff(log_p.exp(), generator=generator)
        change = float((first - u).abs().amax())
        # An improvement is normalised to 1e-14: payoffs agree no better than that.
        if change <= 10 * _TOLERANCE * max(1.0, torch.finfo(u.dtype).eps / 2e-16):
            return log_p, {"inner_iterations": float(iteration)}
        half = (u + h * first) / (1 + h)
        log_half = divergence.improve(half, anchors)
        second = oracle.payoff(log_half.exp(), generator=generator)
        new = (u + h * second) / (1 + h)
        log_new = divergence.improve(new, anchors)
        gained = h * ((second - first) * (log_new.exp() - log_half.exp())).sum(-1, keepdim=True)
        room = bregman(log_half, log_p, u) + (1 + h) * bregman(log_new, log_half, half)
        # Below rounding the inequality decides nothing, and the step is left as it was.
        clear = room > 1e-12
        kept = (gained <= room) | ~clear
        u, log_p = torch.where(kept, new, u), torch.where(kept, log_new, log_p)
        h = torch.where(kept, torch.where(clear, h * 1.2, h), h / 2)
    raise ArithmeticError(f"implicit update not converged: change {change:.1e} after {_MOST} iterations")
