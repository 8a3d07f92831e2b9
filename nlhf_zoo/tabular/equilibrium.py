"""The regularised equilibrium to machine precision: damped Newton, with proximal point to fall back on."""

from __future__ import annotations

import copy

import attrs
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game, ReverseKL
from nlhf_zoo.metrics import duality_gap
from nlhf_zoo.tabular.policy import TabularPolicy, enumerable
from nlhf_zoo.tabular.winner import von_neumann_winner

__all__ = ["EquilibriumReport", "NotConverged", "equilibrium", "find_equilibrium"]

_MOST_NEWTON = 20
_MOST_PROXIMAL = 500
_SHORTEST_STRIDE = 1.25


class NotConverged(ArithmeticError):
    """The tolerance was not reached; the message says what was."""


@attrs.frozen(eq=False)
class EquilibriumReport:
    """What the search found.

    Attributes:
        policy: the equilibrium, (..., Y).
        duality_gap: (...) what it reaches.
        newton_steps: linear systems solved, over all stages of the continuation.
        rescues: proximal point steps taken, where the path of equilibria was too crooked to follow.
    """

    policy: TabularPolicy
    duality_gap: Tensor
    newton_steps: int
    rescues: int


def equilibrium(game: Game, tol: float = 1e-10) -> TabularPolicy:
    """The symmetric equilibrium of the game, with a duality gap of at most `tol` (and usually far less).

    For beta = 0 this is a von Neumann winner. Batched over the leading dimensions; computed in float64.

    Raises:
        NotConverged: the tolerance was not reached.
        BadInput: the responses cannot be listed, or the reference leaves one out.
    """
    return find_equilibrium(game, tol).policy


def find_equilibrium(game: Game, tol: float = 1e-10) -> EquilibriumReport:
    """As `equilibrium`, with an account of the search.

    Solves r(z) = z - log pi_ref - P softmax(z) / beta = 0 modulo constants. The Jacobian
    I - (P - 1/2) Cov / beta is never singular, whatever the game: Cov is positive semi-definite and
    P - 1/2 is skew, so their product has an imaginary spectrum. The path of equilibria is followed from
    beta = 1 down: a tangent step predicts, damped Newton corrects, and the stride adapts. Where the path is too
    crooked, the exact proximal point method takes over, which converges from anywhere.
    """
    if not isinstance(game.divergence, ReverseKL):
        raise BadInput(f"equilibrium() knows the reverse KL only, not {type(game.divergence).__name__}")
    oracle = enumerable(game)
    if not isinstance(game.reference, TabularPolicy):
        raise BadInput(f"equilibrium() needs a tabular reference, not a {type(game.reference).__name__}")
    if game.beta == 0:
        policy = von_neumann_winner(oracle)
        matrix = oracle.matrix()
        gap = duality_gap((matrix @ policy.probs.unsqueeze(-1)).squeeze(-1), policy.log_probs, policy.log_probs, 0)
        return EquilibriumReport(policy, gap, 0, 0)
    log_reference = game.reference.log_probs.double()
    if not bool(torch.isfinite(log_reference).all()):
        raise BadInput("the reference gives a response probability zero; every response needs a positive one")
    payoffs = _Payoffs(oracle.matrix().double(), log_reference)

    try:
        z, steps, rescues = _follow_path(payoffs, game.beta)
    except RuntimeError:  # torch.linalg: a singular system
        raise NotConverged(f"equilibrium: beta = {game.beta:g} is too small for double precision") from None
    policy = TabularPolicy(z)
    gap = duality_gap(payoffs.of(z), policy.log_probs, log_reference, game.beta)
    if not bool((gap <= tol).all()):
        raise NotConverged(f"equilibrium: duality gap {float(gap.max()):.1e} reached, {tol:.1e} asked for")
    return EquilibriumReport(policy, gap, steps, rescues)


class _Payoffs:
    def __init__(self, matrix: Tensor, log_reference: Tensor) -> None:
        self.shape = torch.broadcast_shapes(matrix.shape[:-1], log_reference.shape)
        self.skew = matrix - 0.5
        self.log_reference = log_reference

    def of(self, z: Tensor) -> Tensor:
        return (self.skew @ z.softmax(-1).unsqueeze(-1)).squeeze(-1) + 0.5

    def residual(self, z: Tensor, beta: float) -> Tensor:
        r = z - self.log_reference - self.of(z) / beta
        # Constants are no part of the problem; their mean under pi is, to rounding, the cleanest to remove.
        return r - (z.softmax(-1) * r).sum(-1, keepdim=True)

    def newton_step(self, z: Tensor, r: Tensor, beta: float) -> Tensor:
        p = z.softmax(-1)
        cov = self.skew * p.unsqueeze(-2) - (self.skew @ p.unsqueeze(-1)) * p.unsqueeze(-2)
        jacobian = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device) - cov / beta
        return torch.linalg.solve(jacobian, -r.unsqueeze(-1)).squeeze(-1)

    def held_at(self, log_reference: Tensor) -> _Payoffs:
        """The same payoffs with another reference."""
        other = copy.copy(self)
        other.log_reference = log_reference
        return other


def _follow_path(payoffs: _Payoffs, goal: float) -> tuple[Tensor, int, int]:
    """From a large beta, where one Newton step is nearly enough, down to `goal`; (z, systems solved, rescues)."""
    beta, factor = max(goal, 1.0), 8.0
    z = payoffs.log_reference.expand(payoffs.shape).clone()
    z, steps, _ = _newton(payoffs, z, beta, rough=beta > goal)
    while beta > goal:
        smaller = max(goal, beta / factor)
        # The tangent of the path in 1 / beta: differentiate z = log pi_ref + u(z) / beta.
        ahead = payoffs.newton_step(z, -payoffs.of(z), beta) * (1 / smaller - 1 / beta)
        trial, used, done = _newton(payoffs, (z + ahead).log_softmax(-1), smaller, rough=smaller > goal)
        steps += used + 1
        if done:
            z, beta, factor = trial, smaller, min(factor * 2, 64.0)
        elif factor > _SHORTEST_STRIDE:
            factor = factor**0.5
        else:
            z, used, rescues = _proximal(payoffs, z, goal)
            return z, steps + used, rescues
    return z, steps, 0


def _proximal(payoffs: _Payoffs, z: Tensor, beta: float) -> tuple[Tensor, int, int]:
    """The exact proximal point method, each of its games solved by Newton; (z, systems solved, proximal steps).

    A step contracts KL(equilibrium || pi) by 1 / (1 + eta) whatever eta > 0 is (`exact_prox`), and its game, of
    coefficient beta (1 + 1/eta), is as easy as a small eta makes it: eta grows while Newton succeeds.
    """
    eta, steps = 1.0, 0
    for step in range(_MOST_PROXIMAL):
        weight = beta * (1 + 1 / eta)
        centre = (payoffs.log_reference + z / eta) / (1 + 1 / eta)
        trial, used, done = _newton(payoffs.held_at(centre), z, weight, rough=True)
        steps += used
        if not done:
            eta /= 8
            continue
        z, eta = trial, min(eta * 4, 1e3)
        if bool((payoffs.residual(z, beta).abs().amax(-1) <= 1).all()):
            polished, used, done = _newton(payoffs, z, beta, rough=False)
            steps += used
            if done:
                return polished, steps, step + 1
    return z, steps, _MOST_PROXIMAL


def _newton(payoffs: _Payoffs, z: Tensor, beta: float, rough: bool) -> tuple[Tensor, int, bool]:
    """Newton at one beta, to |r| <= 0.1 (`rough`) or until rounding stops it; (z, steps, whether all got there)."""
    r = payoffs.residual(z, beta)
    settled = torch.zeros(r.shape[:-1], dtype=torch.bool, device=r.device)
    for step in range(_MOST_NEWTON):
        size = r.abs().amax(-1)
        settled = settled | (size <= (0.1 if rough else 1e-16 * (1 / beta + z.abs().amax(-1))))
        if bool(settled.all()):
            return z, step, True
        z, r, moved = _search(payoffs, z, r, payoffs.newton_step(z, r, beta), beta)
        # At rounding level nothing falls any further: that game is finished, not stuck.
        settled = settled | (~moved & (size <= 1e-6) & (not rough))
        if not bool((moved | settled).all()):
            return z, step + 1, False
    return z, _MOST_NEWTON, False


def _search(payoffs: _Payoffs, z: Tensor, r: Tensor, direction: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Halve the step, game by game, until |r|^2 falls; returns the points, residuals, and which games moved."""
    value = r.square().sum(-1)
    length = torch.ones_like(value)
    best, best_r, moved = z, r, torch.zeros_like(value, dtype=torch.bool)
    for _ in range(12):
        trial = (z + length.unsqueeze(-1) * direction).log_softmax(-1)
        trial_r = payoffs.residual(trial, beta)
        better = ~moved & (trial_r.square().sum(-1) <= (1 - 0.2 * length) * value)
        best = torch.where(better.unsqueeze(-1), trial, best)
        best_r = torch.where(better.unsqueeze(-1), trial_r, best_r)
        moved = moved | better
        if bool(moved.all()):
            break
        length = torch.where(moved, length, length / 2)
    return best, best_r, moved
