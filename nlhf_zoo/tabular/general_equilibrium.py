"""The regularised equilibrium under any strictly convex f-divergence: Newton's method along paths in beta."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Divergence, Game
from nlhf_zoo.metrics import duality_gap
from nlhf_zoo.tabular.central_path import central_path
from nlhf_zoo.tabular.policy import TabularPolicy, enumerable

__all__ = ["FixedPoint", "general_equilibrium"]

_MOST_STRIDES = 400
_MOST_NEWTON = 15
_MOST_HALVINGS = 8
_SHORTEST = 1.01
_LONGEST = 100.0


@attrs.frozen(eq=False)
class FixedPoint:
    """What the search found.

    Attributes:
        policy: the equilibrium, (..., Y).
        duality_gap: (...) what it reaches.
        newton_steps: linear systems solved.
        rescues: strides along the path that had to be taken back.
    """

    policy: TabularPolicy
    duality_gap: Tensor
    newton_steps: int
    rescues: int


def general_equilibrium(game: Game, tol: float = 1e-10) -> FixedPoint:
    """The equilibrium for beta > 0 and any strictly convex divergence, certified by its duality gap.

    Where the slope is bounded, along a central path of policies and prices (see `central_path`); a few dozen linear
    systems, whatever the game. Where it is not, or where that did not get there, along the path of equilibria in beta:
    with p(s) = argmax_p <p, s> - D(p || pi_ref), the gradient of a convex function, and A = P - 1/2, an equilibrium
    solves s = A p(s) / beta. The Jacobian I - A (dp/ds) / beta is never singular: A is skew and dp/ds positive
    semi-definite. The path is followed from beta = 1 down, each game of a batch at its own pace: a tangent step in
    1 / beta predicts, damped Newton corrects, and the stride adapts. Computed in float64, from the matrix.

    The policy is what the gap certifies: a probability that no payoff in double precision decides may differ.

    Raises:
        BadInput: the responses cannot be listed, the reference leaves one out, beta = 0, or D is not strictly convex.
        NotConverged: the tolerance was not reached; a duality gap resolves about 1e-15.
    """
    from nlhf_zoo.tabular.equilibrium import NotConverged  # which calls this module

    divergence = game.divergence
    if not divergence.strictly_convex:
        raise BadInput(f"{divergence.name} is not strictly convex: the equilibrium under it need not be unique")
    if game.beta <= 0:
        raise BadInput(f"a regularised equilibrium needs beta > 0, got {game.beta:g}")
    if not isinstance(game.reference, TabularPolicy):
        raise BadInput(f"equilibrium() needs a tabular reference, not a {type(game.reference).__name__}")
    matrix, log_reference = enumerable(game).matrix().double(), game.reference.log_probs.double()
    if not bool(torch.isfinite(log_reference).all()):
        raise BadInput("the reference gives a response probability zero; every response needs a positive one")
    shape = torch.broadcast_shapes(matrix.shape[:-1], log_reference.shape)
    problem = _Problem(matrix.expand(*shape, shape[-1]) - 0.5, log_reference.expand(shape), divergence)
    found = None
    for method in (_by_prices, _by_answers) if math.isfinite(divergence.slope_at_infinity) else (_by_answers,):
        try:
            found = _better(found, method(problem, game.beta), problem, game.beta)
        except RuntimeError:  # torch.linalg: a singular system
            continue
        if bool((found.duality_gap <= tol).all()):
            return found
    if found is None:
        raise NotConverged(f"equilibrium: beta = {game.beta:g} is too small for double precision")
    raise NotConverged(f"equilibrium: duality gap {float(found.duality_gap.max()):.1e} reached, {tol:.1e} asked for")


def _by_prices(problem: _Problem, beta: float) -> tuple[Tensor, int, int]:
    log_p, steps = central_path(problem.skew, problem.log_reference, problem.divergence, beta)
    return log_p, steps, 0


def _by_answers(problem: _Problem, beta: float) -> tuple[Tensor, int, int]:
    s, steps, back = _follow_path(problem, beta)
    return problem.answer(s), steps, back


def _better(known: FixedPoint | None, found: tuple[Tensor, int, int], problem: _Problem, beta: float) -> FixedPoint:
    """What was found, game by game where it is better than what is known."""
    log_p, steps, back = found
    lost = log_p.isnan().any(-1, keepdim=True)
    policy = TabularPolicy(torch.where(lost, problem.log_reference, log_p))
    payoff = problem.payoff(policy.log_probs) + 0.5
    gap = duality_gap(payoff, policy.log_probs, problem.log_reference, beta, problem.divergence)
    if known is None:
        return FixedPoint(policy, gap, steps, back)
    before = known.duality_gap <= gap
    log_p = torch.where(before.unsqueeze(-1), known.policy.log_probs, policy.log_probs)
    gap = torch.where(before, known.duality_gap, gap)
    return FixedPoint(TabularPolicy(log_p), gap, known.newton_steps + steps, known.rescues + back)


class _Problem:
    """s = A p(s) / beta modulo constants, for games of shape (...); s is payoffs per beta, p(s) does not know beta."""

    def __init__(self, skew: Tensor, log_reference: Tensor, divergence: Divergence) -> None:
        self.skew, self.log_reference, self.divergence = skew, log_reference, divergence

    def answer(self, s: Tensor) -> Tensor:
        """(..., Y) log p(s), p(s) = argmax_p <p, s> - D(p || pi_ref)."""
        return self.divergence.improve(s, [(self.log_reference, 1.0)])

    def payoff(self, log_p: Tensor) -> Tensor:
        """(..., Y) A p."""
        return (self.skew @ log_p.exp().unsqueeze(-1)).squeeze(-1)

    def solve(self, log_p: Tensor, right: Tensor, factor: Tensor) -> Tensor:
        """(..., Y) x with (I - factor A dp/ds) x = right; factor is (..., 1)."""
        inside = log_p > -torch.inf
        curvature = self.divergence.curvature_of_log(torch.where(inside, log_p - self.log_reference, 0.0))
        # dp(y) / d(s(y) - lambda) = rho / f''(p / rho), and lambda keeps the sum.
        rate = torch.where(inside, log_p.exp() / curvature, 0.0).nan_to_num(0.0, posinf=1e300).clamp_max(1e300)
        share = rate / rate.sum(-1, keepdim=True).clamp_min(1e-300)
        turned = factor.unsqueeze(-1) * self.skew
        moved = (turned - turned @ share.unsqueeze(-1)) * rate.unsqueeze(-2)
        system = torch.eye(rate.shape[-1], dtype=rate.dtype, device=rate.device) - moved
        return torch.linalg.solve(system, right.unsqueeze(-1)).squeeze(-1)


def _follow_path(problem: _Problem, goal: float) -> tuple[Tensor, int, int]:
    """From a large beta down to `goal`, each game at its own pace; (s, systems solved, strides taken back)."""
    shape = problem.log_reference.shape
    inverse = torch.full((*shape[:-1], 1), min(1.0, 1 / goal), dtype=torch.float64, device=problem.skew.device)
    stride = torch.full_like(inverse, 4.0)
    s, steps, _ = _newton(problem, torch.zeros(shape, dtype=torch.float64, device=inverse.device), inverse, goal)
    log_p, back = problem.answer(s), 0
    for _ in range(_MOST_STRIDES):
        arrived = inverse >= 1 / goal
        if bool(arrived.all()) or bool((~arrived & (stride < _SHORTEST)).any()):
            break
        further = (inverse * stride).clamp_max(1 / goal)
        # The tangent of the path in 1 / beta.
        payoff = problem.payoff(log_p)
        ahead = problem.solve(log_p, payoff, inverse) * (further - inverse)
        trial, used, done = _newton(problem, s + ahead, further, goal)
        steps += used + 1
        back += int(not bool(done.all()))
        s, inverse = torch.where(done, trial, s), torch.where(done, further, inverse)
        log_p = torch.where(done, problem.answer(s), log_p)
        stride = torch.where(done, (stride**1.5).clamp_max(_LONGEST), stride**0.4)
    return s, steps, back


def _newton(problem: _Problem, s: Tensor, inverse: Tensor, goal: float) -> tuple[Tensor, int, Tensor]:
    """Damped Newton at beta = 1 / `inverse`, (..., 1): (s, systems solved, (..., 1) which games got there).

    On the way down the path a rough answer will do; at the goal, what rounding allows.
    """
    final = inverse >= 1 / goal
    log_p = problem.answer(s)
    r = s - inverse * problem.payoff(log_p)
    settled = torch.zeros_like(final)
    for step in range(_MOST_NEWTON):
        size = r.abs().amax(-1, keepdim=True)
        settled = settled | (size <= torch.where(final, 1e-15 * inverse, 1e-3 * inverse.clamp_max(1.0)))
        if bool(settled.all()):
            return s, step, settled
        direction = problem.solve(log_p, -r, inverse)
        length, moved = torch.ones_like(size), settled.clone()
        for _ in range(_MOST_HALVINGS):
            trial = torch.where(moved, s, s + length * direction)
            log_trial = problem.answer(trial)
            new = trial - inverse * problem.payoff(log_trial)
            better = ~moved & (_norm(new) <= (1 - 0.1 * length) * _norm(r))
            s, log_p, r = (torch.where(better, a, b) for a, b in ((trial, s), (log_trial, log_p), (new, r)))
            moved = moved | better
            if bool(moved.all()):
                break
            length = torch.where(moved, length, length / 3)
        # At rounding level nothing falls any further: that game is finished, not stuck.
        settled = settled | (~moved & (size <= 1e-9 * inverse))
        if not bool((moved & ~settled).any()):
            return s, step + 1, settled
    return s, _MOST_NEWTON, settled


def _norm(r: Tensor) -> Tensor:
    return r.square().sum(-1, keepdim=True).sqrt()
