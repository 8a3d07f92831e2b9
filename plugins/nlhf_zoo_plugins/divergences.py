"""The f-divergences: reverse and forward KL, Jensen-Shannon, alpha, chi-squared, squared Hellinger, total variation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Divergence, ReverseKL
from nlhf_zoo.registry import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

_F_DPO = "Wang et al., 'Beyond Reverse KL', arXiv 2309.16240"
_F_DPG = "Go et al., arXiv 2302.08215"


@attrs.frozen
class ForwardKL(Divergence):
    """KL(rho || pi), f(t) = -log t: mass-covering, no response of the anchor is ever given up."""

    name: ClassVar[str] = "forward_kl"
    summary: ClassVar[str] = "KL(anchor || policy), mass-covering; f(t) = -log t"
    source: ClassVar[str] = f"{_F_DPO}; {_F_DPG}"

    @property
    def slope_at_zero(self) -> float:
        return -math.inf

    @property
    def slope_at_infinity(self) -> float:
        return 0.0

    def generator(self, ratio: Tensor) -> Tensor:
        return -ratio.log()

    def derivative(self, ratio: Tensor) -> Tensor:
        return -1 / ratio

    def derivative_of_log(self, log_ratio: Tensor) -> Tensor:
        return -(-log_ratio).exp()

    def curvature_of_log(self, log_ratio: Tensor) -> Tensor:
        return (-log_ratio).exp()

    def log_slack(self, log_ratio: Tensor) -> Tensor:
        return -log_ratio

    def log_inverse_of_slack(self, log_slack: Tensor) -> Tensor:
        return -log_slack

    def merge(self, log_rhos: Tensor, shares: Sequence[float]) -> Tensor:
        return _power_mean(log_rhos, shares, 1.0)

    def interior_terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return log_q.exp() * (log_q - log_p)


def _power_mean(log_rhos: Tensor, shares: Sequence[float], power: float) -> Tensor:
    """(..., Y) log of (sum_j s_j rho_j^power)^(1 / power): the anchor of anchors under f''(t) = t^(-1 - power)."""
    import torch

    s = torch.tensor(shares, dtype=log_rhos.dtype, device=log_rhos.device).reshape(-1, *[1] * (log_rhos.ndim - 1))
    middle = (s * log_rhos).sum(0)
    apart = power * (log_rhos - middle)
    # At a small power the sum is 1 and a little: that little is what counts.
    near = torch.log1p((s * torch.expm1(apart.clamp(-1, 1))).sum(0))
    far = (apart + s.log()).logsumexp(0)
    return middle + torch.where(apart.abs().amax(0) < 1, near, far) / power


@attrs.frozen
class JensenShannon(Divergence):
    """KL(pi || m) + KL(rho || m), m = (pi + rho) / 2: the papers' form, twice the Jensen-Shannon of statistics.

    f(t) = t log t - (t + 1) log((t + 1) / 2), f'(t) = log(2 t / (t + 1)).
    """

    name: ClassVar[str] = "jensen_shannon"
    summary: ClassVar[str] = "KL(policy || m) + KL(anchor || m), m their mean; f'(t) = log(2t / (1 + t))"
    source: ClassVar[str] = f"{_F_DPO}; {_F_DPG}"

    @property
    def slope_at_zero(self) -> float:
        return -math.inf

    @property
    def slope_at_infinity(self) -> float:
        return math.log(2)

    def generator(self, ratio: Tensor) -> Tensor:
        import torch

        return torch.xlogy(ratio, 2 * ratio / (1 + ratio)) + (2 / (1 + ratio)).log()

    def derivative(self, ratio: Tensor) -> Tensor:
        return (2 * ratio / (1 + ratio)).log()

    def derivative_of_log(self, log_ratio: Tensor) -> Tensor:
        return math.log(2) - _softplus(-log_ratio)

    def curvature_of_log(self, log_ratio: Tensor) -> Tensor:
        return (-log_ratio).sigmoid()

    def log_slack(self, log_ratio: Tensor) -> Tensor:
        import torch

        # log log(1 + 1/t): at large t the inner logarithm is 1/t - 1/(2 t^2), and underflows long after that.
        far = -log_ratio - (-log_ratio).exp() / 2
        return torch.where(log_ratio > 20, far, _softplus(-log_ratio.clamp_max(20)).log())

    def log_inverse_of_slack(self, log_slack: Tensor) -> Tensor:
        import torch

        slack = log_slack.exp()
        small = slack < 1e-8
        middle = -torch.expm1(slack.clamp(1e-8, 1.0)).log()
        large = -slack - torch.log1p(-(-slack.clamp_min(1.0)).exp())
        return torch.where(small, -log_slack - slack / 2, torch.where(slack < 1, middle, large))

    def conjugate(self, slope: Tensor) -> Tensor:
        import torch

        top = slope >= math.log(2)
        # -log(2 - e^s), written so that it keeps its precision around s = 0.
        return torch.where(top, math.inf, -torch.log1p(-torch.expm1(torch.where(top, 0.0, slope))))

    def interior_terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        gap = log_p - log_q
        return log_p.exp() * (math.log(2) - _softplus(-gap)) + log_q.exp() * (math.log(2) - _softplus(gap))


def _softplus(x: Tensor) -> Tensor:
    # torch's own softplus is rounded to x above 20.
    import torch

    return torch.logaddexp(x, torch.zeros_like(x))


def _check_alpha(_: Any, __: Any, alpha: float) -> None:
    if not math.isfinite(alpha) or alpha in (0.0, 1.0):
        raise BadInput(f"alpha must be a number other than 0 (forward_kl) and 1 (reverse_kl), got {alpha}")


@attrs.frozen
class Alpha(Divergence):
    """f(t) = (t^alpha - alpha t + alpha - 1) / (alpha (alpha - 1)), the Cressie-Read form: f''(t) = t^(alpha - 2).

    alpha -> 1 is the reverse KL, alpha -> 0 the forward KL, 1/2 twice the squared Hellinger, 2 half the chi-squared.
    Papers on f-DPO write 1 - alpha for this alpha. Below 1 it covers mass, above 1 it can leave responses out: see
    `ChiSquared` for what that means to a solver.

    Attributes:
        alpha: any number but 0 and 1.
    """

    name: ClassVar[str] = "alpha"
    summary: ClassVar[str] = "Cressie-Read: f''(t) = t^(alpha - 2); 0 and 1 are the limits forward and reverse KL"
    source: ClassVar[str] = f"Cressie and Read 1984; {_F_DPO}"
    alpha: float = attrs.field(default=0.5, converter=float, validator=_check_alpha)

    def generator(self, ratio: Tensor) -> Tensor:
        import torch

        alpha = self.alpha
        return (torch.expm1(alpha * ratio.log()) - alpha * (ratio - 1)) / (alpha * (alpha - 1))

    def derivative(self, ratio: Tensor) -> Tensor:
        return self.derivative_of_log(ratio.log())

    def derivative_of_log(self, log_ratio: Tensor) -> Tensor:
        import torch

        return torch.expm1((self.alpha - 1) * log_ratio) / (self.alpha - 1)

    def curvature_of_log(self, log_ratio: Tensor) -> Tensor:
        return ((self.alpha - 1) * log_ratio).exp()

    @property
    def slope_at_zero(self) -> float:
        return -math.inf if self.alpha < 1 else 1 / (1 - self.alpha)

    @property
    def slope_at_infinity(self) -> float:
        return math.inf if self.alpha > 1 else 1 / (1 - self.alpha)

    def log_slack(self, log_ratio: Tensor) -> Tensor:
        return (self.alpha - 1) * log_ratio - math.log(1 - self.alpha)

    def slack_rate(self, log_ratio: Tensor) -> Tensor:
        import torch

        return torch.full_like(log_ratio, 1 - self.alpha)

    def log_inverse_of_slack(self, log_slack: Tensor) -> Tensor:
        return (log_slack + math.log(1 - self.alpha)) / (self.alpha - 1)

    def log_inverse(self, slope: Tensor) -> Tensor:
        import torch

        below = (self.alpha - 1) * slope  # t^(alpha - 1) - 1
        edge = math.inf if self.alpha < 1 else -math.inf
        return torch.where(below > -1, torch.log1p(below.clamp_min(-1)) / (self.alpha - 1), edge)

    def merge(self, log_rhos: Tensor, shares: Sequence[float]) -> Tensor:
        return _power_mean(log_rhos, shares, 1 - self.alpha)

    def interior_terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        import torch

        alpha, gap = self.alpha, log_p - log_q
        near = gap.clamp(-1, 1)
        close = log_q.exp() * (torch.expm1(alpha * near) - alpha * torch.expm1(near))
        apart = (alpha * log_p + (1 - alpha) * log_q).exp() - alpha * log_p.exp() - (1 - alpha) * log_q.exp()
        return torch.where(gap.abs() < 1, close, apart) / (alpha * (alpha - 1))


@attrs.frozen
class ChiSquared(Divergence):
    """sum_y (pi(y) - rho(y))^2 / rho(y), f(t) = (t - 1)^2 (Pearson): improvements leave the worst responses out.

    D(pi || rho) is infinite where pi has a response that rho has not. A solver that holds near its own last policy by
    this divergence can therefore lose a response for good: one step that sets it to zero, and no later step brings it
    back, whatever its payoff. On a table that is said in a warning. The equilibrium itself, held to the reference
    alone, does not suffer from it.
    """

    name: ClassVar[str] = "chi_squared"
    summary: ClassVar[str] = "Pearson's sum of (policy - anchor)^2 / anchor; f(t) = (t - 1)^2"
    source: ClassVar[str] = "Pearson 1900; Huang et al., arXiv 2407.13399"

    @property
    def slope_at_zero(self) -> float:
        return -2.0

    @property
    def slope_at_infinity(self) -> float:
        return math.inf

    def generator(self, ratio: Tensor) -> Tensor:
        return (ratio - 1).square()

    def derivative(self, ratio: Tensor) -> Tensor:
        return 2 * (ratio - 1)

    def derivative_of_log(self, log_ratio: Tensor) -> Tensor:
        import torch

        return 2 * torch.expm1(log_ratio)

    def curvature_of_log(self, log_ratio: Tensor) -> Tensor:
        return 2 * log_ratio.exp()

    def log_inverse(self, slope: Tensor) -> Tensor:
        import torch

        return torch.log1p((slope / 2).clamp_min(-1))

    def conjugate(self, slope: Tensor) -> Tensor:
        import torch

        return torch.where(slope > -2, slope + slope.square() / 4, -1.0)

    def merge(self, log_rhos: Tensor, shares: Sequence[float]) -> Tensor:
        return _power_mean(log_rhos, shares, -1.0)

    def interior_terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        import torch

        return (torch.expm1(log_p - log_q) * (log_q / 2).exp()).square()


@attrs.frozen
class SquaredHellinger(Divergence):
    """sum_y (sqrt pi(y) - sqrt rho(y))^2, f(t) = (sqrt t - 1)^2; in [0, 2], without the factor 1/2 of some books."""

    name: ClassVar[str] = "squared_hellinger"
    summary: ClassVar[str] = "sum of (sqrt policy - sqrt anchor)^2; f(t) = (sqrt t - 1)^2"
    source: ClassVar[str] = "Hellinger 1909; Csiszar 1967"

    @property
    def slope_at_zero(self) -> float:
        return -math.inf

    @property
    def slope_at_infinity(self) -> float:
        return 1.0

    def generator(self, ratio: Tensor) -> Tensor:
        return (ratio.sqrt() - 1).square()

    def derivative(self, ratio: Tensor) -> Tensor:
        return 1 - ratio.rsqrt()

    def derivative_of_log(self, log_ratio: Tensor) -> Tensor:
        import torch

        return -torch.expm1(-log_ratio / 2)

    def curvature_of_log(self, log_ratio: Tensor) -> Tensor:
        return (-log_ratio / 2).exp() / 2

    def log_slack(self, log_ratio: Tensor) -> Tensor:
        return -log_ratio / 2

    def log_inverse_of_slack(self, log_slack: Tensor) -> Tensor:
        return -2 * log_slack

    def conjugate(self, slope: Tensor) -> Tensor:
        import torch

        return torch.where(slope < 1, slope / (1 - slope).clamp_min(0), math.inf)

    def merge(self, log_rhos: Tensor, shares: Sequence[float]) -> Tensor:
        return _power_mean(log_rhos, shares, 0.5)

    def interior_terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return ((log_p / 2).exp() - (log_q / 2).exp()).square()


@attrs.frozen
class TotalVariation(Divergence):
    """1/2 sum_y |pi(y) - rho(y)|, f(t) = |t - 1| / 2: not strictly convex, and used where that makes sense.

    An improvement is a linear programme; of its solutions, `improve` returns the one that moves no probability
    without a gain and shares what is tied in equal proportion. A duality gap is well defined, an equilibrium need
    not be unique and no proximal rate is known: `equilibrium` refuses. f'(1) is taken to be 0.
    """

    name: ClassVar[str] = "total_variation"
    summary: ClassVar[str] = "half the sum of |policy - anchor|; not strictly convex: no unique equilibrium, no rate"
    source: ClassVar[str] = _F_DPG
    strictly_convex: ClassVar[bool] = False

    @property
    def slope_at_zero(self) -> float:
        return -0.5

    @property
    def slope_at_infinity(self) -> float:
        return 0.5

    def generator(self, ratio: Tensor) -> Tensor:
        return (ratio - 1).abs() / 2

    def derivative(self, ratio: Tensor) -> Tensor:
        return (ratio - 1).sign() / 2

    def derivative_of_log(self, log_ratio: Tensor) -> Tensor:
        return log_ratio.sign() / 2

    def curvature_of_log(self, log_ratio: Tensor) -> Tensor:
        import torch

        return torch.zeros_like(log_ratio)

    def log_inverse(self, slope: Tensor) -> Tensor:
        """0 for |s| < 1/2, where t = 1 is the kink with s among its slopes."""
        import torch

        return torch.where(slope <= -0.5, -math.inf, torch.where(slope >= 0.5, math.inf, 0.0)).to(slope.dtype)

    def conjugate(self, slope: Tensor) -> Tensor:
        import torch

        return torch.where(slope > 0.5, math.inf, slope.clamp_min(-0.5))

    def interior_terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return (log_p.exp() - log_q.exp()).abs() / 2

    def improve(self, payoff: Tensor, anchors: Sequence[tuple[Tensor, float]]) -> Tensor:
        """As in `Divergence`; each response's marginal gain is a falling staircase, filled from the top."""
        import torch

        shape = torch.broadcast_shapes(payoff.shape, *(log_rho.shape for log_rho, _ in anchors))
        edges = torch.stack([log_rho.exp().double().expand(shape) for log_rho, _ in anchors], -1)
        edges, order = edges.sort(-1)
        weights = torch.tensor([weight for _, weight in anchors], dtype=torch.float64, device=payoff.device)[order]
        nothing, everything = torch.zeros_like(edges[..., :1]), torch.ones_like(edges[..., :1])
        # Stairs between 0, the anchors' probabilities and 1; each anchor passed takes its weight off the gain.
        length = torch.cat([nothing, edges, everything], -1).diff(dim=-1)
        lost = torch.cat([nothing, weights.cumsum(-1)], -1)
        gain = payoff.double().expand(shape).unsqueeze(-1) - lost
        ranked, places = gain.flatten(-2).sort(-1, descending=True)
        filled = length.flatten(-2).gather(-1, places).cumsum(-1)
        last = (filled < 1 - 1e-14).sum(-1, keepdim=True).clamp_max(filled.shape[-1] - 1)
        level = ranked.gather(-1, last).unsqueeze(-1)
        above, tied = torch.where(gain > level, length, 0.0), torch.where(gain == level, length, 0.0)
        share = (1 - above.sum((-2, -1), keepdim=True)) / tied.sum((-2, -1), keepdim=True).clamp_min(1e-300)
        p = (above + share.clamp(0, 1) * tied).sum(-1)
        return (p / p.sum(-1, keepdim=True)).log().to(payoff.dtype)


@hookimpl
def nlhf_zoo_divergences() -> list[type[Divergence]]:
    return [ReverseKL, ForwardKL, JensenShannon, Alpha, ChiSquared, SquaredHellinger, TotalVariation]
