"""What regularises: an f-divergence between a policy and an anchor."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import attrs

from nlhf_zoo.interfaces.proximal import inverse_by_bracket, proximal_improvement

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Divergence", "ReverseKL"]


class Divergence(ABC):
    """D_f(pi || rho) = sum_y rho(y) f(pi(y) / rho(y)), f convex on t >= 0 with f(1) = 0.

    A subclass, a frozen attrs class whose fields are its parameters, writes `generator` and `derivative`; all else
    follows, by bracketed root solves where no closed form is given. f'(1) is free: f(t) + c (t - 1) is the same
    divergence for every c. The log-space forms take a = log t, so that references with log-probabilities down to
    -700 neither overflow nor cancel; a closed form there is worth more than anywhere else. Tensors keep dtype and
    device, unless said otherwise; elementwise methods take any shape.

    Class attributes:
        name: what it is registered and called by.
        summary: one line for `nlhf-zoo list`.
        source: where it is from.
        strictly_convex: whether f is; only then is an improvement, and an equilibrium for beta > 0, unique.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    strictly_convex: ClassVar[bool] = True

    @abstractmethod
    def generator(self, ratio: Tensor) -> Tensor:
        """f(t), elementwise, for t >= 0; in (-inf, inf], inf at most at t = 0."""

    @abstractmethod
    def derivative(self, ratio: Tensor) -> Tensor:
        """f'(t), elementwise, non-decreasing in t >= 0; f'(0+) at 0, which may be -inf."""

    def derivative_of_log(self, log_ratio: Tensor) -> Tensor:
        """f'(exp(a)), elementwise. Unless overridden, a is cut at 98% of the dtype's largest exponent."""
        import torch

        return self.derivative(log_ratio.clamp_max(0.98 * math.log(torch.finfo(log_ratio.dtype).max)).exp())

    def curvature_of_log(self, log_ratio: Tensor) -> Tensor:
        """d f'(exp(a)) / da = t f''(t) >= 0, elementwise; by automatic differentiation unless overridden."""
        import torch

        with torch.enable_grad():
            a = log_ratio.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.derivative_of_log(a).sum(), a)
        return slope

    @property
    def slope_at_zero(self) -> float:
        """f'(0+), -inf or a number; where it is a number, improvements can leave a response out altogether."""
        import torch

        slope = float(self.derivative(torch.zeros((), dtype=torch.float64)))
        return -math.inf if math.isnan(slope) else slope

    @property
    def slope_at_infinity(self) -> float:
        """lim f'(t), inf or a number; what probability costs where the anchor has none.

        Unless overridden, f' is taken to have arrived where it is the same at t = 1e200 and 1e300.
        """
        import torch

        near, far = (float(self.derivative(torch.tensor(t, dtype=torch.float64))) for t in (1e200, 1e300))
        return far if abs(far - near) <= 1e-12 * (1 + abs(far)) else math.inf

    def log_slack(self, log_ratio: Tensor) -> Tensor:
        """log(f'(inf) - f'(exp(a))), elementwise, where f'(inf) is a number.

        Override against cancellation: this one has lost all digits where the slack is below 1e-15 of f'(inf), and
        an improvement held by several such anchors is then wrong.
        """
        return (self.slope_at_infinity - self.derivative_of_log(log_ratio)).log()

    def slack_rate(self, log_ratio: Tensor) -> Tensor:
        """-d `log_slack`(a) / da, elementwise; only speed depends on it."""
        return self.curvature_of_log(log_ratio) / self.log_slack(log_ratio).exp()

    def log_inverse(self, slope: Tensor) -> Tensor:
        """log t with f'(t) = s, elementwise; -inf for s <= f'(0+), inf for s >= f'(inf)."""
        top = self.slope_at_infinity
        if math.isfinite(top):
            return self.log_inverse_of_slack((top - slope).clamp_min(0).log())
        return inverse_by_bracket(self.derivative_of_log, self.curvature_of_log, slope, self.slope_at_zero)

    def log_inverse_of_slack(self, log_slack: Tensor) -> Tensor:
        """log t with log(f'(inf) - f'(t)) = `log_slack`, elementwise, where f'(inf) is a number.

        Unless overridden, a slack that double precision does not tell from 0 gives inf.
        """
        import torch

        top = self.slope_at_infinity
        resolved = log_slack.double() > math.log(4 * torch.finfo(torch.float64).eps * (1 + abs(top)))
        found = inverse_by_bracket(
            lambda a: -self.log_slack(a),
            self.slack_rate,
            torch.where(resolved, -log_slack, 0.0),
            -math.log(top - self.slope_at_zero),
        )
        return torch.where(resolved, found, math.inf)

    def inverse(self, slope: Tensor) -> Tensor:
        """t >= 0 with f'(t) = s, elementwise; 0 for s <= f'(0+), inf for s >= f'(inf)."""
        return self.log_inverse(slope).exp()

    def conjugate(self, slope: Tensor) -> Tensor:
        """f*(s) = sup over t >= 0 of s t - f(t), elementwise; -f(0) for s <= f'(0+), inf for s >= f'(inf)."""
        import torch

        t = self.inverse(slope)
        inside = t.isfinite()
        t = torch.where(inside, t, 1.0)
        value = torch.where(t > 0, slope * t, 0.0) - self.generator(t)
        # s t and f(t) may both overflow, and f*(s) with them.
        return torch.where(inside & ~value.isnan(), value, math.inf)

    def interior_terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """(..., Y) q f(p / q), elementwise, for finite log-probabilities; differentiable in `log_p`."""
        import torch

        gap = (log_p - log_q).clamp_max(0.98 * math.log(torch.finfo(log_p.dtype).max))
        ratio = gap.exp()
        # The larger of the two in front: with q in front, q = 0 by underflow would hide an infinite f.
        return torch.where(gap > 0, log_p.exp() / ratio.clamp_min(1.0), log_q.exp()) * self.generator(ratio)

    def terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """(..., Y) q f(p / q), elementwise: q f(0) where p = 0, p f'(inf) where q = 0, 0 where both are."""
        import torch

        here, there = log_p > -math.inf, log_q > -math.inf
        inside = here & there
        # What `where` throws away must be finite too, or its gradient is not a number.
        value = self.interior_terms(torch.where(inside, log_p, 0.0), torch.where(inside, log_q, 0.0))
        if bool(inside.all()):
            return value
        at_zero = float(self.generator(torch.zeros((), dtype=torch.float64)))
        top = self.slope_at_infinity
        no_p = log_q.exp() * at_zero if math.isfinite(at_zero) else torch.full_like(value, at_zero)
        no_q = log_p.exp() * top if math.isfinite(top) else torch.full_like(value, top)
        edge = torch.where(there, no_p, torch.where(here, no_q, 0.0))
        return torch.where(inside, value, edge)

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """(...) D_f(p || q) >= 0 of two (..., Y) normalised log-probability tensors; differentiable in `log_p`."""
        return self.terms(log_p, log_q).sum(-1)

    def merge(self, log_rhos: Tensor, shares: Sequence[float]) -> Tensor | None:
        """(..., Y) log rho with sum_j s_j f'(p / rho_j) = f'(p / rho) for every p; `None` where there is none.

        It spares improvements a search for each response, where several anchors hold by this divergence.

        Args:
            log_rhos: (J, ..., Y) finite, not necessarily normalised; nor is the answer.
            shares: J numbers s_j > 0 that add up to 1.
        """
        return None

    def improve(self, payoff: Tensor, anchors: Sequence[tuple[Tensor, float]]) -> Tensor:
        """(..., Y) log-probabilities of argmax_p  <p, payoff> - sum_j w_j D_f(p || rho_j).

        The maximum is over policies that leave out whatever an anchor leaves out. Solved in float64 by a safe
        bracketed Newton iteration, batched over the leading dimensions, and returned in the inputs' dtype; not
        differentiable.

        Args:
            payoff: (..., Y), finite.
            anchors: pairs of (..., Y) log-probabilities log rho_j and a weight w_j > 0.

        Raises:
            BadInput: a payoff that is not finite, anchors without a response in common, or f not strictly convex.
        """
        return proximal_improvement(self, payoff, anchors)


@attrs.frozen
class ReverseKL(Divergence):
    """KL(pi || rho), f(t) = t log t: the regulariser of the papers and of every game unless said otherwise."""

    name: ClassVar[str] = "reverse_kl"
    summary: ClassVar[str] = "KL(policy || anchor), the regulariser of NLHF; f(t) = t log t"
    source: ClassVar[str] = "Munos et al., arXiv 2312.00886"

    def generator(self, ratio: Tensor) -> Tensor:
        import torch

        return torch.xlogy(ratio, ratio)

    def derivative(self, ratio: Tensor) -> Tensor:
        return ratio.log() + 1

    def derivative_of_log(self, log_ratio: Tensor) -> Tensor:
        return log_ratio + 1

    def curvature_of_log(self, log_ratio: Tensor) -> Tensor:
        import torch

        return torch.ones_like(log_ratio)

    @property
    def slope_at_zero(self) -> float:
        return -math.inf

    @property
    def slope_at_infinity(self) -> float:
        return math.inf

    def log_inverse(self, slope: Tensor) -> Tensor:
        return slope - 1

    def conjugate(self, slope: Tensor) -> Tensor:
        return (slope - 1).exp()

    def terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        import torch

        # 0 log 0 = 0, and a response that both leave out contributes nothing.
        p = log_p.exp()
        return torch.where(p > 0, p * (log_p - log_q), 0.0)

    def merge(self, log_rhos: Tensor, shares: Sequence[float]) -> Tensor:
        return sum((share * log_rho for share, log_rho in zip(shares, log_rhos, strict=True)), 0 * log_rhos[0])

    def improve(self, payoff: Tensor, anchors: Sequence[tuple[Tensor, float]]) -> Tensor:
        total = sum(weight for _, weight in anchors)
        logits = payoff / total
        for log_rho, weight in anchors:
            logits = logits + (weight / total) * log_rho
        return logits.log_softmax(-1)
