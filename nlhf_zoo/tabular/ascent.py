"""How parameters climb an objective: its gradient, the natural gradient, its maximum, Adam's step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import attrs
import torch
from torch import Tensor

__all__ = ["Ascent", "Optimizer", "adam_step"]

Optimizer = Literal["sgd", "adam", "natural", "lbfgs"]


@attrs.frozen(eq=False)
class Ascent:
    """J(theta) = mean over games of value(log_probs(theta)).

    The mean is over the games that share a parameter vector; vectors of their own each have a J of their own.

    Attributes:
        log_probs: from theta (..., n) to normalised log-probabilities (..., Y), differentiable.
        tangent: from theta to the derivative (..., Y, n) of the scores, which are log-probabilities up to a constant.
        value: from log-probabilities (..., Y) to what each game (...) gains, differentiable.
    """

    log_probs: Callable[[Tensor], Tensor]
    tangent: Callable[[Tensor], Tensor]
    value: Callable[[Tensor], Tensor]

    def gradient(self, theta: Tensor) -> Tensor:
        """(..., n) dJ/dtheta."""
        return self._value_and_gradient(theta)[1]

    def _value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            moving = theta.detach().requires_grad_()
            value = self.value(self.log_probs(moving))
            vectors = theta.numel() // theta.shape[-1]
            total = value.sum() * (vectors / value.numel())
            (gradient,) = torch.autograd.grad(total, moving)
        return total.detach(), gradient

    def natural_gradient(self, theta: Tensor, damping: float) -> Tensor:
        """(..., n) (F + damping I)^+ dJ/dtheta, F the Fisher information.

        F = E_pi (T - E_pi T)^T (T - E_pi T), T the tangent; the mean of this over games that share theta. Solved
        by least squares on F^(1/2), which keeps twice the digits of F; its singular values below rounding of the
        largest count as 0.
        """
        slope, p = self._slope_in_log_probs(theta)
        root = p.sqrt()
        tangent = self.tangent(theta)
        tangent = tangent - (p.unsqueeze(-1) * tangent).sum(-2, keepdim=True)
        wanted = torch.where(p > 0, slope / root, 0.0)
        rows = torch.cat([root.unsqueeze(-1) * tangent, wanted.unsqueeze(-1)], -1)
        rows = _shared_as_rows(rows, theta.shape[:-1])
        left, size, right = torch.linalg.svd(rows[..., :-1], full_matrices=False)
        rounding = size.amax(-1, keepdim=True) * max(rows.shape[-2:]) * torch.finfo(size.dtype).eps
        inverse = torch.where(size > rounding, size / (size.square() + damping), 0.0)
        along = inverse.unsqueeze(-1) * (left.mT @ rows[..., -1:])
        return (right.mT @ along).reshape(theta.shape)

    def _slope_in_log_probs(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The objective's gradient in the scores, and the probabilities, game by game, both (..., Y)."""
        log_probs = self.log_probs(theta).detach()
        games = self.value(log_probs).shape
        with torch.enable_grad():
            scores = log_probs.expand(*games, log_probs.shape[-1]).clone().requires_grad_()
            value = self.value(scores.log_softmax(-1))
            (slope,) = torch.autograd.grad(value.sum(), scores)
        return slope, scores.detach().exp()

    def maximum(self, theta: Tensor) -> Tensor:
        """(..., n) where J is largest, near theta: 100 iterations of L-BFGS, on all games at once."""
        moving = theta.clone()
        search = torch.optim.LBFGS(
            [moving],
            max_iter=100,
            history_size=50,
            tolerance_grad=0.0,
            tolerance_change=1e-16,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            value, gradient = self._value_and_gradient(moving)
            moving.grad = -gradient
            return -float(value)

        search.step(closure)
        return moving.detach()


def _shared_as_rows(rows: Tensor, owners: torch.Size) -> Tensor:
    """(..., R, c) to (*owners, R', c): the games that share parameters become rows, scaled to be a mean."""
    games = rows.shape[:-2]
    padded = (1,) * (len(games) - len(owners)) + tuple(owners)
    kept = [i for i, (own, all_) in enumerate(zip(padded, games, strict=True)) if own == all_]
    shared = [i for i in range(len(games)) if i not in kept]
    count = math.prod(games[i] for i in shared)
    moved = rows.permute(*kept, *shared, -2, -1)
    return moved.reshape(*(games[i] for i in kept), count * rows.shape[-2], rows.shape[-1]) / count**0.5


def adam_step(
    theta: Tensor, gradient: Tensor, learning_rate: float, moments: Mapping[str, Tensor] | None
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Where one step of Adam, uphill, leads, and the moments after it; `None` begins anew."""
    moving = theta.clone()
    adam = torch.optim.Adam([moving], lr=learning_rate, maximize=True)
    if moments is not None:
        adam.state[moving] = {name: value.clone() for name, value in moments.items()}
    moving.grad = gradient
    adam.step()
    return moving.detach(), dict(adam.state[moving])
