"""The equilibrium under divergences of bounded slope: a primal-dual method along a central path."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from nlhf_zoo.interfaces import Divergence

__all__ = ["central_path"]

_MOST_STEPS = 1000
_MOST_HALVINGS = 30
_NEAR = 0.5
_FIRST_STRIDE = 0.1
_BOLDEST = 1e-3
_SHORTEST = 0.9
_PATIENCE = 5
_NEGLIGIBLE = math.log(1e-20)
_SOLVED = 1e-13
_ROUNDING = 1e-9


def central_path(skew: Tensor, log_reference: Tensor, divergence: Divergence, beta: float) -> tuple[Tensor, int]:
    """(..., Y) log p for games A = P - 1/2 (..., Y, Y), and the linear systems solved; f'(inf) must be a number.

    An equilibrium is p > 0 with prices z = lambda - A p > 0 that obey z = beta (f'(inf) - f'(p / ref)), response by
    response. For the forward KL that is p z = beta ref: the weighted central path of the linear programme, and others
    are much like it. Newton steps for this curve, in logarithms, keep p and z positive and z = lambda - A p true; the
    matrix is a positive diagonal minus a skew one, and never singular. Where the steps begin, beta is large and no
    reference below 1/Y; beta falls first, and then what the reference is raised to, each as fast as the iterates stay
    near. Rare responses have no say in where the path turns, so that it has no corners but those of the answer.
    """
    target = _Target(log_reference, divergence, beta)
    x = target.reference.log_softmax(-1)
    p = x.exp()
    price = divergence.log_slack(x - target.reference)[..., :1].exp()
    target = attrs.evolve(target, near=(2 / price).clamp_min(beta))
    z = target.near * price - _against(skew, p)
    stride = torch.full_like(price, _FIRST_STRIDE)
    best, idle = torch.full_like(price, math.inf), torch.zeros_like(price)
    for step in range(_MOST_STEPS):
        target = target.moved(stride, target.off(x, z).abs().amax(-1, keepdim=True) <= _NEAR)
        off = target.off(x, z)
        size = off.abs().amax(-1, keepdim=True)
        idle = torch.where(target.arrived & (size >= 0.9 * best), idle + 1, 0)
        best = torch.where(target.arrived, torch.minimum(best, size), math.inf)
        done = target.arrived & ((size <= _SOLVED) | (idle > _PATIENCE))
        if bool(done.all()):
            return x.log_softmax(-1), step
        rate = divergence.slack_rate(x - target.reference)
        q = _direction(torch.diag_embed(z * rate) - skew * p.unsqueeze(-2), p, z, off)
        # dz by the curve and not as lambda - A p, which cancels where a price is small.
        dz = -z * (off + rate * q)
        limits = torch.where(x < _NEGLIGIBLE, -dz / z, torch.maximum(-q, -dz / z))
        length = (0.95 / limits.amax(-1, keepdim=True).clamp_min(0.95)).where(~done, 0.0)
        trial = x
        for _ in range(_MOST_HALVINGS):
            trial = target.stepped(x, z + length * dz, length * q)
            there = target.off(trial, z + length * dz).abs().amax(-1, keepdim=True)
            larger = ~(there <= (1 - 0.1 * length) * size) & (size >= _ROUNDING) & ~done
            if not bool(larger.any()):
                break
            length = torch.where(larger, length / 2, length)
        x, z = torch.where(done, x, trial), z + length * dz
        p = x.exp()
        stride = torch.where(length > 0.9, (stride**1.3).clamp_min(_BOLDEST), (stride**0.7).clamp_max(_SHORTEST))
    return x.log_softmax(-1), _MOST_STEPS


def _against(skew: Tensor, p: Tensor) -> Tensor:
    return (skew @ p.unsqueeze(-1)).squeeze(-1)


def _direction(system: Tensor, p: Tensor, z: Tensor, off: Tensor) -> Tensor:
    """(..., Y) the relative change of p, which keeps its sum."""
    both = torch.linalg.solve(system, torch.stack([-z * off, -torch.ones_like(z)], -1))
    free, shift = both.unbind(-1)
    return free - shift * ((p * free).sum(-1, keepdim=True) / (p * shift).sum(-1, keepdim=True))


@attrs.frozen(eq=False)
class _Target:
    """The curve that is steered for: z = near (f'(inf) - f'(p / reference)), reference raised to e^lift at least."""

    log_reference: Tensor
    divergence: Divergence
    beta: float
    near: Tensor = attrs.Factory(lambda self: torch.full_like(self.log_reference[..., :1], self.beta), takes_self=True)
    lift: Tensor = attrs.Factory(
        lambda self: self._lowest.clamp_min(-math.log(self.log_reference.shape[-1])), takes_self=True
    )

    @property
    def _lowest(self) -> Tensor:
        return self.log_reference.amin(-1, keepdim=True)

    @property
    def reference(self) -> Tensor:
        """(..., Y) logarithms, not normalised."""
        return torch.maximum(self.log_reference, self.lift)

    @property
    def arrived(self) -> Tensor:
        """(..., 1) whether the curve is the game's own."""
        return (self.near <= self.beta) & (self.lift <= self._lowest)

    def moved(self, stride: Tensor, which: Tensor) -> _Target:
        """Nearer to the game's own by this factor, where `which` (..., 1) says so."""
        falling = self.near > self.beta
        near = torch.where(which & falling, (self.near * stride).clamp_min(self.beta), self.near)
        lower = torch.maximum(self.lift + stride.log(), self._lowest)
        return attrs.evolve(self, near=near, lift=torch.where(which & ~falling, lower, self.lift))

    def off(self, x: Tensor, z: Tensor) -> Tensor:
        """(..., Y) log z minus what the curve wants at log p = x."""
        return z.log() - self.near.log() - self.divergence.log_slack(x - self.reference)

    def stepped(self, x: Tensor, z: Tensor, q: Tensor) -> Tensor:
        """(..., Y) log of p (1 + q); what is negligible goes to its place on the curve at once."""
        here = self.divergence.log_inverse_of_slack(z.log() - self.near.log()) + self.reference
        place = (x < _NEGLIGIBLE) & (here < _NEGLIGIBLE)
        return torch.where(place, here, x + torch.log1p(q.clamp_min(-0.99)))
