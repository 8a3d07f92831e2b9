"""From the neighbourhood of the equilibrium to it: fixed-point and Newton steps; the proximal point method as a net."""

from __future__ import annotations

import torch
from torch import Tensor

from nlhf_zoo.tabular.equilibrium_payoffs import Payoffs, Point, here, there
from nlhf_zoo.tabular.equilibrium_systems import DenseSystems, SparedSystems, Systems

__all__ = ["LARGE", "newton", "proximal", "systems_of"]

_MOST_FIXED = 30
_MOST_NEWTON = 20
_MOST_PROXIMAL = 500
_SMALLEST_ETA = 1e-9
LARGE = 512
"""Games of more responses are solved one by one, and no further than was asked for."""


def systems_of(payoffs: Payoffs) -> Systems:
    """The linear solver that suits these games."""
    single = payoffs.matrix.ndim == 2
    return SparedSystems(payoffs) if single and payoffs.size > LARGE else DenseSystems(payoffs)


def newton(payoffs: Payoffs, systems: Systems, point: Point, enough: float) -> tuple[Point, Tensor]:
    """|r| <= `enough` or as low as rounding lets it be; and (...) in which games that was reached.

    Fixed-point steps z <- log pi_ref + u / beta come first, while each gains a digit. The Jacobian
    I - (P - 1/2) Cov / beta of Newton's is never singular, whatever the game: Cov is positive semi-definite
    and P - 1/2 is skew, so their product has an imaginary spectrum.
    """
    point = _fixed_points(payoffs, point, enough)
    settled = _settled(payoffs, point, enough)
    for _ in range(_MOST_NEWTON):
        if bool(settled.all()):
            break
        before = point.size
        point, moved = _search(payoffs, point, _newton_step(payoffs, systems, point), settled)
        # At rounding level nothing falls any further: that game is finished, not stuck.
        settled = settled | _settled(payoffs, point, enough) | (~moved & (before <= 1e-6))
        if not bool((moved & ~settled).any()):
            break
    return point, settled


def _settled(payoffs: Payoffs, point: Point, enough: float) -> Tensor:
    return point.size <= payoffs.rounding(point.z).clamp_min(enough)


def _fixed_points(payoffs: Payoffs, point: Point, enough: float) -> Point:
    if bool((point.size > 1).any()):
        return point
    for _ in range(_MOST_FIXED):
        if bool(_settled(payoffs, point, enough).all()):
            break
        trial = payoffs.at((point.z - point.r).log_softmax(-1))
        gained = bool((10 * trial.size <= point.size).all())
        point = trial.where(trial.size < point.size, point)
        if not gained:
            break
    return point


def _newton_step(payoffs: Payoffs, systems: Systems, point: Point) -> Tensor:
    beta = payoffs.beta
    systems.factor(here(point.p / beta))
    # An error of dp comes back in the residual as much as 1 / beta times larger.
    accuracy = max(1e-10, min(1e-2, float(point.size.amax())) * min(1.0, 100 * beta))
    dp, _ = systems.solve(here(-beta * point.r), 0.0, accuracy)
    dz = payoffs.change(there(dp, point.r)) / beta - point.r
    return dz - (point.p * dz).sum(-1, keepdim=True)


def _search(payoffs: Payoffs, point: Point, direction: Tensor, settled: Tensor) -> tuple[Point, Tensor]:
    """Halve the step, game by game, until |r|^2 falls; returns the points, and (...) which games moved."""
    value = point.r.square().sum(-1)
    length = torch.ones_like(value)
    best, moved = point, torch.zeros_like(settled)
    tiny = point.size <= 1e-6
    for _ in range(10):
        trial = payoffs.at(_moved(point, length.unsqueeze(-1) * direction, payoffs.beta))
        better = ~moved & ~settled & (trial.r.square().sum(-1) <= (1 - 0.2 * length) * value)
        best = trial.where(better, best)
        moved = moved | better
        if bool((moved | settled | tiny).all()):
            break
        length = torch.where(moved, length, length / 2)
    return best, moved


def _moved(point: Point, dz: Tensor, beta: float) -> Tensor:
    """The step in log p, or in p (which agrees to first order) where the error of the former would weigh more.

    A step dz in log p is off by p dz^2 / 2 in p, and so by up to p dz^2 / beta in the residual; one in p is off by
    dz^2 / 2 itself.
    """
    return (point.z + torch.where(point.p > beta, dz.clamp_min(-0.9).log1p(), dz)).log_softmax(-1)


def proximal(payoffs: Payoffs, enough: float) -> tuple[Point, int, int]:
    """The exact proximal point method, each of its games solved by Newton; the point, systems solved, steps.

    A step contracts KL(equilibrium || pi) by 1 / (1 + eta) whatever eta > 0 is (`exact_prox`), and its game, of
    coefficient beta (1 + 1/eta), is as easy as a small eta makes it: eta grows while Newton succeeds.
    """
    eta, systems = 1.0, systems_of(payoffs)
    point = payoffs.at(payoffs.log_reference.log_softmax(-1))
    step = 0
    for step in range(1, _MOST_PROXIMAL + 1):
        weight = payoffs.beta * (1 + 1 / eta)
        held = payoffs.held_at((payoffs.log_reference + point.z / eta) / (1 + 1 / eta), weight)
        trial, done = newton(held, systems, held.at(point.z), 0.1)
        if not bool(done.all()):
            eta /= 8
            if eta < _SMALLEST_ETA:
                break
            continue
        point, eta = payoffs.at(trial.z), min(eta * 4, 1e3)
        if bool((point.size <= 1).all()):
            polished, done = newton(payoffs, systems, point, enough)
            if bool(done.all()):
                return polished, systems.solved, step
    return point, systems.solved, step
