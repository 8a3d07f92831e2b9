"""The exact improvement under any f-divergence: safe root solves, batched."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from nlhf_zoo.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

    from nlhf_zoo.interfaces.divergence import Divergence

__all__ = ["inverse_by_bracket", "mixed_improvement", "monotone_root", "narrow_bracket", "proximal_improvement"]

_MOST = 300
_DOUBLINGS = 24
_WIDENINGS = 12
_AT_ONCE = 15
_FARTHEST = 5.0
_EPS = 2.0**-52
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
    before = torch.full_like(x, math.inf)
    for _ in range(_MOST):
        value, slope = function(x)
        value = torch.where(value.isnan(), torch.where(x < 0, -1.0, 1.0), value)
        hit = value.abs() <= tolerance
        low = torch.where(~done & (hit | (value < 0)), x, low)
        high = torch.where(~done & (hit | (value > 0)), x, high)
        if bool((hit | done).all()):
            break
        width = high - low
        unit = (eps * x.abs()).clamp_min(resolution)
        done = done | (width <= 32 * unit) | (width <= eps * torch.maximum(low.abs(), high.abs()))
        if bool(done.all()):
            break
        newton = x - value / slope
        # A slope that overflows makes a step of 0, which says nothing.
        step = torch.where(slope.isinf(), math.inf, (newton - x).abs())
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
    resolution: Tensor | float = 0.0,
) -> Tensor:
    """(...) the zero itself: the middle of `narrow_bracket`."""
    low, high = narrow_bracket(function, low, high, start=start, tolerance=tolerance, resolution=resolution)
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
    """(..., Y) log of argmax_p <p, payoff> - sum_j w_j D_f(p || rho_j); see `Divergence.improve`."""
    if not divergence.strictly_convex:
        raise BadInput(f"{divergence.name} is not strictly convex: an improvement under it is not unique")
    return _improvement(payoff, [(log_rho, weight, divergence) for log_rho, weight in anchors])


def mixed_improvement(payoff: Tensor, anchors: Sequence[tuple[Tensor, float, Divergence]]) -> Tensor:
    """(..., Y) log of argmax_p <p, payoff> - sum_j w_j D_j(p || rho_j): every anchor with a divergence of its own.

    Raises:
        BadInput: as `Divergence.improve`, where none of the divergences is strictly convex.
    """
    kinds = [divergence for _, _, divergence in anchors]
    if not any(kind.strictly_convex for kind in kinds):
        raise BadInput(f"{kinds[0].name} is not strictly convex: an improvement under it is not unique")
    return _improvement(payoff, anchors)


def _improvement(payoff: Tensor, anchors: Sequence[tuple[Tensor, float, Divergence]]) -> Tensor:
    """Stationarity is sum_j w_j f_j'(p(y) / rho_j(y)) = payoff(y) - lambda, or p(y) = 0 where that has no solution.

    Anchors of one divergence are merged where it can. Given lambda, each response is then solved for log p by itself:
    by (f')^-1 where one anchor is left, by bracketed Newton steps from the last lambda's answer where several are.
    lambda normalises: log sum p is monotone in it, and some response has p >= 1/Y and all have p <= 1, which
    brackets it.
    """
    import torch

    with torch.no_grad():
        bounded = all(math.isfinite(kind.slope_at_infinity) for _, _, kind in anchors)
        problem = (_BySlack if bounded else _BySlope)(payoff, anchors)
        if (answer := problem.at_once()) is not None:
            return answer.to(problem.dtype)
        low, high = problem.bracket()
        # Where one response takes everything the zero is the upper end itself, which no Newton step may reach.
        high = high + (high - low) / 16

        def excess(multiplier: Tensor) -> tuple[Tensor, Tensor]:
            log_p, rate = problem.respond(multiplier)
            total = log_p.logsumexp(-1)
            problem.learn(total)
            return total, problem.straight(multiplier, total, (log_p.softmax(-1) * rate).sum(-1))

        low, high = narrow_bracket(
            excess, low, high, start=low, tolerance=problem.rounding, resolution=problem.resolution
        )
        return problem.between(low, high).to(problem.dtype)


def _merged(
    log_rho: Tensor, shares: Sequence[float], kinds: Sequence[Divergence]
) -> list[tuple[float, Divergence, Tensor]]:
    """(share, divergence, (..., Y) anchor), as few as can stand for (J, ..., Y) anchors."""
    groups: list[tuple[Divergence, list[int]]] = []
    for index, kind in enumerate(kinds):
        members = next((members for known, members in groups if known == kind), None)
        if members is None:
            groups.append((kind, [index]))
        else:
            members.append(index)
    terms: list[tuple[float, Divergence, Tensor]] = []
    for kind, members in groups:
        weight = sum(shares[index] for index in members)
        one = None
        if len(members) > 1:
            one = kind.merge(log_rho[members], [shares[index] / weight for index in members])
        if one is not None:
            terms.append((weight, kind, one))
        else:
            terms += [(shares[index], kind, log_rho[index]) for index in members]
    return terms


class _Problem(ABC):
    """One improvement, weights scaled to add up to 1, in a coordinate that is increasing in log p.

    Where several terms are left, it remembers between which log-probabilities the answer lies, and the last that were
    found: the next multiplier's are near by.

    Attributes:
        terms: (share, divergence, (..., Y) anchor).
        below: (..., Y) payoffs minus their maximum, <= 0: the best response's distance to it is exact.
        support: (..., Y) responses that no anchor leaves out.
        rounding: (...) of log sum p.
        resolution: (...) of a multiplier.
        floor: the coordinate at p = 0; -inf, or a response is left out where its target is smaller.
    """

    def __init__(self, payoff: Tensor, anchors: Sequence[tuple[Tensor, float, Divergence]]) -> None:
        import torch

        self.dtype = payoff.dtype
        for log_rho, _, _ in anchors:
            self.dtype = torch.promote_types(self.dtype, log_rho.dtype)
        payoff = payoff.double()
        for log_rho, _, _ in anchors:
            payoff = payoff.expand_as(payoff + log_rho)
        log_rho = torch.stack([log_rho.double().expand_as(payoff) for log_rho, _, _ in anchors])
        self.support = log_rho.isfinite().all(0)
        if not bool(payoff.isfinite().all()):
            raise BadInput("payoffs must be finite")
        if not bool(self.support.any(-1).all()):
            raise BadInput("the anchors of an update have no response in common; no policy is at a finite divergence")
        log_rho = torch.where(self.support, log_rho, 0.0)
        total = math.fsum(weight for _, weight, _ in anchors)
        shares = [weight / total for _, weight, _ in anchors]
        self.terms = _merged(log_rho, shares, [kind for _, _, kind in anchors])
        scaled = torch.where(self.support, payoff / total, -math.inf)
        self.below = torch.where(self.support, scaled - scaled.amax(-1, keepdim=True), 0.0)
        self.size = log_rho.abs().amax(0)
        self.rounding = _NORMALISED + 2 * _EPS * self.size.amax(-1)
        self.resolution = _EPS * (1 - self.below).amax(-1)
        self.floor = -math.inf
        self._found: _Found | None = None

    def at_once(self) -> Tensor | None:
        """(..., Y) normalised log p by Newton's method on all of the conditions together; `None` where it gets lost.

        Stationarity and normalisation are checked, and are enough: wherever iterates come from, the answer is right.
        """
        import torch

        if len(self.terms) == 1 or self.floor > -math.inf:
            return None
        x = torch.where(self.support, self._mean(), -math.inf).log_softmax(-1)
        x = torch.where(self.support, x, 0.0)
        best = torch.where(self.support & (self.below == 0), self.coordinate(x), -math.inf)
        multiplier = best.amax(-1, keepdim=True)
        for _ in range(_AT_ONCE):
            slope = self.slope(x)
            target, moved = self.target(multiplier)
            off = target - self.coordinate(x)
            log_p = torch.where(self.support, x, -math.inf)
            total = log_p.logsumexp(-1, keepdim=True)
            near = off.abs() <= self._noise(target, x, slope)
            if bool(((near | ~self.support).all(-1) & (total.squeeze(-1).abs() <= self.rounding)).all()):
                return log_p.log_softmax(-1)
            p = log_p.exp()
            step = off / slope
            rate = moved / slope
            shift = -(total + (p * step).sum(-1, keepdim=True)) / (p * rate).sum(-1, keepdim=True)
            x = x + (step + rate * shift).clamp(-_FARTHEST, _FARTHEST)
            multiplier = multiplier + shift
        return None

    def _weighted(self, of: Callable[[Divergence, Tensor], Tensor]) -> Tensor:
        """(..., Y) the sum over the terms of share * of(divergence, log rho)."""
        first, *others = (share * of(kind, log_rho) for share, kind, log_rho in self.terms)
        return sum(others, first)

    def _mean(self) -> Tensor:
        return self._weighted(lambda kind, log_rho: log_rho)

    def _noise(self, target: Tensor, log_p: Tensor, slope: Tensor) -> Tensor:
        """(..., Y) differences of the coordinate from its target that rounding explains."""
        import torch

        steep = slope.nan_to_num(0.0, posinf=0.0)  # where it overflows, nothing is near
        return 4 * _EPS * (1 + target.abs()) + 2 * _EPS * torch.maximum(log_p.abs(), self.size) * steep

    def respond(self, multiplier: Tensor) -> tuple[Tensor, Tensor]:
        """(..., Y) log p at a (...) multiplier, -inf for a response left out, and its derivative in the multiplier."""
        import torch

        target, moved = self.target(multiplier.unsqueeze(-1))
        if len(self.terms) == 1:
            _, _, log_rho = self.terms[0]
            log_p = torch.where(self.support, self.inverse(target) + log_rho, -math.inf)
        else:
            log_p = self._search(target)
        inside = log_p > -math.inf
        return log_p, torch.where(inside, moved / self.slope(torch.where(inside, log_p, 0.0)), 0.0)

    def _search(self, target: Tensor) -> Tensor:
        import torch

        inside = self.support & (target > self.floor)
        known = self._found or self._first(target)
        start = known.x + (target - known.target) / known.slope
        start = torch.where(start.isfinite(), start, known.x)
        slope = known.slope

        def short(x: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal slope
            reached, slope = self.coordinate(x), self.slope(x)
            value = reached - target
            close = ~inside | (value.abs() <= self._noise(target, x, slope))
            return torch.where(close, 0.0, value), self.chord(reached, target, slope)

        x = monotone_root(short, known.low, known.high, start=start, resolution=_EPS / 32)
        self._found = attrs.evolve(known, x=x, target=target, slope=slope)
        return torch.where(inside, x, -math.inf)

    def _first(self, target: Tensor) -> _Found:
        """Between what the responses lie, given the smallest multiplier's target."""
        import torch

        mean = self._mean().clamp_max(0.0)
        low, width = mean - 1, 1.0
        for _ in range(_WIDENINGS):
            short = self.support & (self.coordinate(low) > target.clamp_min(self.floor))
            if not bool(short.any()):
                break
            width *= 4
            low = torch.where(short, low - width, low)
        # At the answer no probability exceeds 1; cut right there, too large a multiplier would look normalised.
        return _Found(low, torch.ones_like(low), mean, target, self.slope(mean))

    def learn(self, total: Tensor) -> None:
        """Narrow what is known of the answer, given (...) log sum p of the last multiplier's."""
        import torch

        if self._found is None:
            return
        found, few = self._found, (total <= 0).unsqueeze(-1)
        low = torch.where(few & (found.target > self.floor), found.x, found.low)
        self._found = attrs.evolve(found, low=low, high=torch.where(few, found.high, found.x))

    def chord(self, reached: Tensor, target: Tensor, slope: Tensor) -> Tensor:
        """(..., Y) what to divide `reached - target` by for a good Newton step, given the coordinate's slope."""
        return slope

    def straight(self, multiplier: Tensor, total: Tensor, slope: Tensor) -> Tensor:
        """(...) what to divide `total` by for a good Newton step of the multiplier, given its slope."""
        return slope

    def between(self, low: Tensor, high: Tensor) -> Tensor:
        """(..., Y) normalised log p from two neighbouring multipliers, whose probabilities miss 1 by rounding.

        Payoffs of a million weights, or a saturated f', make steps of log sum p that are much larger than rounding.
        The missing probability goes where it is taken from by the last such step; each response stays between two
        solutions of its own equation.
        """
        import torch

        less = self.respond(low)[0].clamp_max(0.0)
        if bool((low == high).all()):
            return less.log_softmax(-1)
        more = self.respond(high)[0].clamp_max(0.0)
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
        """(..., Y) log(p / rho) at which the coordinate is `target`, where one term is left."""

    @abstractmethod
    def target(self, multiplier: Tensor) -> tuple[Tensor, Tensor]:
        """(..., Y) the right side of stationarity for a (..., 1) multiplier, and its derivative in it."""

    @abstractmethod
    def bracket(self) -> tuple[Tensor, Tensor]:
        """(...) multipliers at which probabilities add up to <= 1 and to >= 1."""


class _BySlope(_Problem):
    """Some f' without upper bound: the coordinate is sum_j w_j f_j'(p / rho_j), the multiplier -lambda + max payoff."""

    def __init__(self, payoff: Tensor, anchors: Sequence[tuple[Tensor, float, Divergence]]) -> None:
        super().__init__(payoff, anchors)
        self.floor = sum(share * kind.slope_at_zero for share, kind, _ in self.terms)

    def coordinate(self, log_p: Tensor) -> Tensor:
        return self._weighted(lambda kind, log_rho: kind.derivative_of_log(log_p - log_rho))

    def slope(self, log_p: Tensor) -> Tensor:
        return self._weighted(lambda kind, log_rho: kind.curvature_of_log(log_p - log_rho))

    def chord(self, reached: Tensor, target: Tensor, slope: Tensor) -> Tensor:
        import torch

        if math.isinf(self.floor):
            return slope
        # f' - f'(0) is a power, or a sum of powers, of t: its logarithm is what is nearly straight in log t.
        ratio = (reached - target) / (target - self.floor)
        straight = slope * (target - self.floor) / (reached - self.floor) * ratio / torch.log1p(ratio)
        return torch.where(straight.isfinite() & (ratio != 0), straight, slope)

    def straight(self, multiplier: Tensor, total: Tensor, slope: Tensor) -> Tensor:
        import torch

        if math.isinf(self.floor):
            return slope
        # And so is log sum p in the logarithm of the multiplier.
        ratio = total / ((multiplier - self.floor) * slope)
        return torch.where(ratio.abs() > 1e-8, slope * ratio / -torch.expm1(-ratio), slope)

    def inverse(self, target: Tensor) -> Tensor:
        return self.terms[0][1].log_inverse(target)

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
    """All f' bounded: the coordinate is -log sum_j w_j (f_j'(inf) - f_j'(p / rho_j)); f' itself is soon all rounding.

    The multiplier is -log of what the best response's slack is; another's is larger by how far it is below.
    """

    def __init__(self, payoff: Tensor, anchors: Sequence[tuple[Tensor, float, Divergence]]) -> None:
        import torch

        super().__init__(payoff, anchors)
        self.resolution = torch.full_like(self.resolution, _EPS)
        room = sum(share * (kind.slope_at_infinity - kind.slope_at_zero) for share, kind, _ in self.terms)
        self.floor = -math.log(room)

    def _log_slacks(self, log_p: Tensor) -> Tensor:
        import torch

        slacks = (math.log(share) + kind.log_slack(log_p - log_rho) for share, kind, log_rho in self.terms)
        return torch.stack(list(slacks))

    def coordinate(self, log_p: Tensor) -> Tensor:
        if len(self.terms) == 1:
            _, kind, log_rho = self.terms[0]
            return -kind.log_slack(log_p - log_rho)
        return -self._log_slacks(log_p).logsumexp(0)

    def slope(self, log_p: Tensor) -> Tensor:
        import torch

        rates = [kind.slack_rate(log_p - log_rho) for _, kind, log_rho in self.terms]
        if len(rates) == 1:
            return rates[0]
        return (self._log_slacks(log_p).softmax(0) * torch.stack(rates)).sum(0)

    def inverse(self, target: Tensor) -> Tensor:
        return self.terms[0][1].log_inverse_of_slack(-target)

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


@attrs.frozen(eq=False)
class _Found:
    """(..., Y) log-probabilities `x` that answered `target`, the coordinate's slope there, and bounds of the answer."""

    low: Tensor
    high: Tensor
    x: Tensor
    target: Tensor
    slope: Tensor
