"""The exact improvement under any f-divergence: safe root solves, batched."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nlhf_zoo.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

    from nlhf_zoo.interfaces.divergence import Divergence

__all__ = ["inverse_by_bracket", "mixed_improvement", "monotone_root", "narrow_bracket", "proximal_improvement"]

_MOST = 300
_DOUBLINGS = 24
_NORMALISED = 1e-14
_LARGEST = 1e300
_FLATTEST = 1e6


def narrow_bracket(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    low: Tensor,
    high: Tensor,
    *,
    start: Tensor | None = None,
    tolerance: Tensor | float = 0.0,
    resolution: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(...) two points around the zero of an increasing function: Newton, and bisection wherever that is too slow.

    The two are the same where a value within `tolerance` was met, and a few roundings apart where there is none. Each
    entry is solved for itself and stands still once it is done: it does not depend on the others.

    Args:
        function: x -> (value, slope), elementwise; the slope is a hint and may be wrong or NaN. A value that is
            NaN counts as too large for x >= 0 and as too small for x < 0.
        low, high: (...) brackets; where the zero is outside, the nearer end is found.
        start: (...) where to begin, the middle unless given.
        tolerance: a value that counts as zero.
        resolution: a difference in x, besides x's own rounding, below which the function is all rounding.
    """
    import torch

    eps = torch.finfo(low.dtype).eps
    x = low + (high - low) / 2 if start is None else torch.minimum(torch.maximum(start, low), high)
    done = torch.zeros_like(x, dtype=torch.bool)
    before = high - low
    for _ in range(_MOST):
        value, slope = function(x)
        value = torch.where(value.isnan(), torch.where(x < 0, -1.0, 1.0), value)
        hit = value.abs() <= tolerance
        low = torch.where(~done & (hit | (value < 0)), x, low)
        high = torch.where(~done & (hit | (value > 0)), x, high)
        width = high - low
        unit = (eps * x.abs()).clamp_min(resolution)
        done = done | (width <= 32 * unit) | (width <= eps * torch.maximum(low.abs(), high.abs()))
        if bool(done.all()):
            break
        newton = x - value / slope
        step = (newton - x).abs()
        # While Newton converges from one side, the other end of the bracket stays behind: a last step that goes too
        # far on purpose closes it.
        newton = torch.where(step <= 8 * unit, x - torch.sign(value) * 16 * unit, newton)
        fast = (newton > low) & (newton < high) & (step <= before / 2)
        x = torch.where(done, x, torch.where(fast, newton, low + width / 2))
        before = torch.where(fast, step, width / 2)
    return low, high


def monotone_root(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    low: Tensor,
    high: Tensor,
    *,
    start: Tensor | None = None,
    tolerance: Tensor | float = 0.0,
) -> Tensor:
    """(...) the zero itself: the middle of `narrow_bracket`."""
    low, high = narrow_bracket(function, low, high, start=start, tolerance=tolerance)
    return low + (high - low) / 2


def inverse_by_bracket(
    function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], target: Tensor, floor: float
) -> Tensor:
    """a with function(a) = target, elementwise, for an increasing function on the line; -inf for target <= floor.

    Solved in float64, returned in the target's dtype. Where function(a) stays below the target, a is inf.
    """
    import torch

    with torch.no_grad():
        goal = target.detach().double()
        inside = (goal > floor) & goal.isfinite()
        reach = torch.where(inside, goal, function(torch.zeros_like(goal)))
        low, high = -torch.ones_like(reach), torch.ones_like(reach)
        for _ in range(_DOUBLINGS):
            short, far = function(low) > reach, function(high) < reach
            if not bool((short | far).any()):
                break
            low, high = torch.where(short, 2 * low, low), torch.where(far, 2 * high, high)
        scale = torch.finfo(torch.float64).eps * (1 + reach.abs())
        a = monotone_root(lambda x: (function(x) - reach, slope(x)), low, high, tolerance=scale)
        a = torch.where(function(high) < reach, math.inf, a)
        a = torch.where(inside, a, torch.where(goal <= floor, -math.inf, goal))
    return a.to(target.dtype)


def proximal_improvement(divergence: Divergence, payoff: Tensor, anchors: Sequence[tuple[Tensor, float]]) -> Tensor:
    """(..., Y) log of argmax_p <p, payoff> - sum_j w_j D_f(p || rho_j); see `Divergence.improve`.

    Stationarity is sum_j w_j f'(p(y) / rho_j(y)) = payoff(y) - lambda, or p(y) = 0 where the left side is at its
    smallest and too large still. Given lambda, each response is solved for log p by itself: by (f')^-1 with one
    anchor, by a bracketed Newton iteration with several. lambda then normalises: log sum p is monotone in it, and
    some response has p >= 1/Y and all have p <= 1, which brackets it.
    """
    import torch

    if not divergence.strictly_convex:
        raise BadInput(f"{divergence.name} is not strictly convex: an improvement under it is not unique")
    with torch.no_grad():
        kind = _BySlack if math.isfinite(divergence.slope_at_infinity) else _BySlope
        return _solve(kind(divergence, payoff, anchors))


def mixed_improvement(payoff: Tensor, anchors: Sequence[tuple[Tensor, float, Divergence]]) -> Tensor:
    """(..., Y) log of argmax_p <p, payoff> - sum_j w_j D_j(p || rho_j): every anchor with a divergence of its own.

    Raises:
        BadInput: as `Divergence.improve`; or none of the divergences grows without bound (f'(inf) = inf for none).
    """
    import torch

    kinds = [divergence for _, _, divergence in anchors]
    if not any(kind.strictly_convex for kind in kinds):
        raise BadInput(f"{kinds[0].name} is not strictly convex: an improvement under it is not unique")
    if all(math.isfinite(kind.slope_at_infinity) for kind in kinds):
        raise BadInput("anchors of different divergences need one whose slope is unbounded, reverse_kl for instance")
    with torch.no_grad():
        return _solve(_Mixed(kinds, payoff, [(log_rho, weight) for log_rho, weight, _ in anchors]))


def _solve(problem: _Problem) -> Tensor:
    """(..., Y) normalised log-probabilities; the multiplier is found by a bracketed Newton iteration."""
    import torch

    low, high = problem.bracket()

    def excess(multiplier: Tensor) -> tuple[Tensor, Tensor]:
        target, moved = problem.target(multiplier.unsqueeze(-1))
        log_p = problem.log_p(target)
        inside = log_p > -math.inf
        x = torch.where(inside, log_p, 0.0)
        rate = torch.where(inside, moved / problem.slope(x), 0.0)
        return log_p.logsumexp(-1), (log_p.softmax(-1) * rate).sum(-1)

    low, high = narrow_bracket(excess, low, high, start=low, tolerance=problem.rounding, resolution=problem.resolution)
    return problem.between(low, high).to(problem.dtype)


class _Problem(ABC):
    """One improvement, weights scaled to add up to 1, in a coordinate that is increasing in log p.

    Attributes:
        shares: (J, 1, ..., 1) weights.
        log_rho: (J, ..., Y) anchors.
        below: (..., Y) payoffs minus their maximum, <= 0: the best response's distance to it is exact.
        support: (..., Y) responses that no anchor leaves out.
        rounding: (...) of log sum p.
        resolution: (...) of a multiplier.
    """

    def __init__(self, divergence: Divergence, payoff: Tensor, anchors: Sequence[tuple[Tensor, float]]) -> None:
        import torch

        self.divergence = divergence
        self.dtype = payoff.dtype
        for log_rho, _ in anchors:
            self.dtype = torch.promote_types(self.dtype, log_rho.dtype)
        payoff = payoff.double()
        for log_rho, _ in anchors:
            payoff = payoff.expand_as(payoff + log_rho)
        log_rho = torch.stack([log_rho.double().expand_as(payoff) for log_rho, _ in anchors])
        weights = torch.tensor([weight for _, weight in anchors], dtype=torch.float64, device=payoff.device)
        self.support = log_rho.isfinite().all(0)
        if not bool(payoff.isfinite().all()):
            raise BadInput("payoffs must be finite")
        if not bool(self.support.any(-1).all()):
            raise BadInput("the anchors of an update have no response in common; no policy is at a finite divergence")
        self.shares = (weights / weights.sum()).reshape(-1, *[1] * payoff.ndim)
        self.log_rho = torch.where(self.support, log_rho, 0.0)
        scaled = torch.where(self.support, payoff / weights.sum(), -math.inf)
        self.below = torch.where(self.support, scaled - scaled.amax(-1, keepdim=True), 0.0)
        eps = torch.finfo(torch.float64).eps
        self.rounding = _NORMALISED + 2 * eps * self.log_rho.abs().amax((0, -1))
        self.resolution = eps * (1 - self.below).amax(-1)

    def log_p(self, target: Tensor) -> Tensor:
        """(..., Y) log p with `coordinate(log p) = target`; -inf for a response left out."""
        import torch

        a = self.inverse(target)
        if len(self.shares) == 1:
            return torch.where(self.support, a + self.log_rho[0], -math.inf)
        inside = self.support & (a > -math.inf)
        a = torch.where(inside, a, 0.0)
        low, high = a + self.log_rho.amin(0), a + self.log_rho.amax(0)
        goal = torch.where(inside, target, self.coordinate(high))
        eps = torch.finfo(torch.float64).eps
        noise = 2 * eps * torch.maximum(low.abs(), self.log_rho.abs().amax(0))

        def short(x: Tensor) -> tuple[Tensor, Tensor]:
            reached, slope = self.coordinate(x), self.slope(x)
            value = reached - goal
            small = value.abs() <= 4 * eps * (1 + goal.abs()) + noise * slope
            return torch.where(small, 0.0, value), self.chord(reached, goal, slope)

        begin = a + (self.shares * self.log_rho).sum(0)
        x = monotone_root(short, torch.where(inside, low, high), high, start=begin)
        return torch.where(inside, x, -math.inf)

    def chord(self, reached: Tensor, goal: Tensor, slope: Tensor) -> Tensor:
        """(..., Y) what to divide `reached - goal` by for a good Newton step, given the coordinate's slope."""
        return slope

    def between(self, low: Tensor, high: Tensor) -> Tensor:
        """(..., Y) normalised log p from two neighbouring multipliers, whose probabilities miss 1 by rounding.

        Payoffs of a million weights, or a saturated f', make steps of log sum p that are much larger than rounding.
        The missing probability goes where it is taken from by the last such step; each response stays between two
        solutions of its own equation.
        """
        import torch

        less = self.log_p(self.target(low.unsqueeze(-1))[0]).clamp_max(0.0)
        if bool((low == high).all()):
            return less.log_softmax(-1)
        more = self.log_p(self.target(high.unsqueeze(-1))[0]).clamp_max(0.0)
        gained = more.exp() - less.exp()
        missing = 1 - less.exp().sum(-1, keepdim=True)
        share = (missing / gained.sum(-1, keepdim=True).clamp_min(1 / _LARGEST)).clamp(0, 1)
        # log(p + share gained), keeping the logarithm of a p that underflows.
        mixed = torch.logaddexp(less + torch.log1p(-share), more + share.log())
        return torch.where((low == high).unsqueeze(-1), less, mixed).log_softmax(-1)

    @abstractmethod
    def coordinate(self, log_p: Tensor) -> Tensor:
        """(..., Y) the left side of stationarity, increasing in log p."""

    @abstractmethod
    def slope(self, log_p: Tensor) -> Tensor:
        """(..., Y) its derivative."""

    @abstractmethod
    def inverse(self, target: Tensor) -> Tensor:
        """(..., Y) log t at which the coordinate is `target`, if all anchors were at log 1."""

    @abstractmethod
    def target(self, multiplier: Tensor) -> tuple[Tensor, Tensor]:
        """(..., Y) the right side of stationarity for a (..., 1) multiplier, and its derivative in it."""

    @abstractmethod
    def bracket(self) -> tuple[Tensor, Tensor]:
        """(...) multipliers at which probabilities add up to <= 1 and to >= 1."""


class _BySlope(_Problem):
    """f' without upper bound: the coordinate is sum_j w_j f'(p / rho_j), the multiplier -lambda + max payoff."""

    def coordinate(self, log_p: Tensor) -> Tensor:
        return (self.shares * self.divergence.derivative_of_log(log_p - self.log_rho)).sum(0)

    def slope(self, log_p: Tensor) -> Tensor:
        return (self.shares * self.divergence.curvature_of_log(log_p - self.log_rho)).sum(0)

    def chord(self, reached: Tensor, goal: Tensor, slope: Tensor) -> Tensor:
        import torch

        floor = self.divergence.slope_at_zero
        if math.isinf(floor):
            return slope
        # f' - f'(0) is a power, or a sum of powers, of t: its logarithm is what is nearly straight in log t.
        ratio = (reached - goal) / (goal - floor)
        straight = slope * (goal - floor) / (reached - floor) * ratio / torch.log1p(ratio)
        return torch.where(straight.isfinite() & (ratio != 0), straight, slope)

    def inverse(self, target: Tensor) -> Tensor:
        return self.divergence.log_inverse(target)

    def target(self, multiplier: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        return multiplier + self.below, torch.ones_like(self.below)

    def bracket(self) -> tuple[Tensor, Tensor]:
        import torch

        ends: list[Tensor] = []
        for log_p in (-math.log(self.below.shape[-1]), 0.0):
            needed = self.coordinate(torch.full_like(self.below, log_p)) - self.below
            ends.append(torch.where(self.support, needed, math.inf).amin(-1).clamp_max(_LARGEST))
        return ends[0], ends[1]


class _BySlack(_Problem):
    """f' bounded: the coordinate is -log sum_j w_j (f'(inf) - f'(p / rho_j)), since f' itself is soon all rounding.

    The multiplier is -log of what the best response's slack is; another's is larger by how far it is below.
    """

    def __init__(self, divergence: Divergence, payoff: Tensor, anchors: Sequence[tuple[Tensor, float]]) -> None:
        import torch

        super().__init__(divergence, payoff, anchors)
        self.resolution = torch.full_like(self.resolution, torch.finfo(torch.float64).eps)

    def _log_slacks(self, log_p: Tensor) -> Tensor:
        return self.shares.log() + self.divergence.log_slack(log_p - self.log_rho)

    def coordinate(self, log_p: Tensor) -> Tensor:
        return -self._log_slacks(log_p).logsumexp(0)

    def slope(self, log_p: Tensor) -> Tensor:
        rates = self.divergence.slack_rate(log_p - self.log_rho)
        return (self._log_slacks(log_p).softmax(0) * rates).sum(0)

    def inverse(self, target: Tensor) -> Tensor:
        return self.divergence.log_inverse_of_slack(-target)

    def target(self, multiplier: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        below = (-self.below).log()
        return -torch.logaddexp(-multiplier, below), (-multiplier - below).sigmoid()

    def bracket(self) -> tuple[Tensor, Tensor]:
        import torch

        uniform = self.coordinate(torch.full_like(self.below, -math.log(self.below.shape[-1])))
        alone = self.coordinate(torch.zeros_like(self.below))
        best = self.support & (self.below == 0)
        return (
            torch.where(self.support, uniform, math.inf).amin(-1),
            torch.where(best, alone, math.inf).amin(-1).clamp_max(_FLATTEST),
        )


class _Mixed(_BySlope):
    """Anchors of different divergences, at least one of them with an unbounded slope."""

    def __init__(
        self, divergences: Sequence[Divergence], payoff: Tensor, anchors: Sequence[tuple[Tensor, float]]
    ) -> None:
        super().__init__(divergences[0], payoff, anchors)
        self.divergences = divergences

    def coordinate(self, log_p: Tensor) -> Tensor:
        terms = zip(self.shares, self.divergences, self.log_rho, strict=True)
        return sum((share * kind.derivative_of_log(log_p - rho) for share, kind, rho in terms), 0 * log_p)

    def slope(self, log_p: Tensor) -> Tensor:
        terms = zip(self.shares, self.divergences, self.log_rho, strict=True)
        return sum((share * kind.curvature_of_log(log_p - rho) for share, kind, rho in terms), 0 * log_p)

    def chord(self, reached: Tensor, goal: Tensor, slope: Tensor) -> Tensor:
        return slope

    def inverse(self, target: Tensor) -> Tensor:
        shares = [float(share) for share in self.shares.flatten()]
        kinds = list(zip(shares, self.divergences, strict=True))

        def total(a: Tensor) -> Tensor:
            return sum((share * kind.derivative_of_log(a) for share, kind in kinds), 0 * a)

        def rate(a: Tensor) -> Tensor:
            return sum((share * kind.curvature_of_log(a) for share, kind in kinds), 0 * a)

        return inverse_by_bracket(total, rate, target, sum(share * kind.slope_at_zero for share, kind in kinds))
