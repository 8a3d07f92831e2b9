"""How a parametric policy approaches the answer of an update, where it is not the plain policy gradient.

On a table an update has an exact answer p, log p = (v + sum_j w_j log rho_j) / w - log Z, w = sum_j w_j. Many
algorithms share that answer and differ only in the loss by which a language model goes there: a regression of
log-ratios on pairs (INPO, REBEL), on single responses (SPPO), a cross-entropy (DNO), another divergence to p
(f-DPG). Each is a `Fit`: p minimises it, and it is declared once, for softmax tables and language models alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import attrs

from nlhf_zoo.interfaces.divergence import Divergence

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DivergenceToAnswer", "Fit", "LogisticPairs", "PairRegression", "PointRegression"]


class Fit(ABC):
    """A loss over responses whose minimum is the answer of an update.

    Attributes:
        on_policy: whether responses come from the learning policy as it is now; otherwise they come from the
            update's start, whatever the policy has become since.
        pairwise: whether values enter as differences v(y) - v(y') only. In self-play among K responses a
            response's match with itself then counts, as 1/2: leaving it out would scale every difference by
            K / (K - 1), because P(y > y') is part of both values.
    """

    on_policy: bool = False
    pairwise: bool = False

    @abstractmethod
    def loss(self, gap: Tensor, value: Tensor, total: float, weights: Tensor | None = None) -> Tensor:
        """(...) the loss of each prompt.

        Args:
            gap: (..., K) sum_j w_j log(pi / rho_j) of K responses, differentiable in pi.
            value: (..., K) the payoff v of each, exact or an unbiased estimate; no gradient.
            total: w = sum_j w_j > 0; the answer satisfies gap = value + constant.
            weights: (..., K) probabilities of the responses where all are listed; `None` where the K are a
                sample, K >= 2, each as likely as any other.
        """


def _pairs(residual: Tensor, weights: Tensor | None) -> Tensor:
    """(...) mean over pairs of distinct draws of (r_i - r_j)^2: twice the variance, unbiased on a sample."""
    if weights is None:
        return 2 * residual.var(-1)
    mean = (weights * residual).sum(-1, keepdim=True)
    return 2 * (weights * (residual - mean).square()).sum(-1)


@attrs.frozen
class PairRegression(Fit):
    """E over pairs of (gap(y) - gap(y') - (v(y) - v(y')))^2 / (4 w).

    At the start its gradient is that of the policy gradient, exactly: the covariance of gap - v and the score.
    Sources: INPO (arXiv 2407.00617), REBEL (arXiv 2404.16767), which regress differences on pairs.
    """

    pairwise: bool = True

    def loss(self, gap: Tensor, value: Tensor, total: float, weights: Tensor | None = None) -> Tensor:
        return _pairs(gap - value, weights) / (4 * total)


@attrs.frozen
class PointRegression(Fit):
    """E of (gap(y) - (v(y) - centre))^2 / (2 w), the normalising constant replaced by a guess.

    Attributes:
        centre: of the payoffs; 1/2 is what a policy wins against itself (SPPO, arXiv 2405.00675, section 4).
    """

    centre: float = 0.5

    def loss(self, gap: Tensor, value: Tensor, total: float, weights: Tensor | None = None) -> Tensor:
        square = (gap - (value - self.centre)).square()
        return (square.mean(-1) if weights is None else (weights * square).sum(-1)) / (2 * total)


@attrs.frozen
class LogisticPairs(Fit):
    """Cross-entropy between sigma(v(y) - v(y')) and sigma(gap(y) - gap(y')) on pairs, times 2 / w.

    Source: DNO (arXiv 2404.03715), the logistic regression of its general form.
    """

    pairwise: bool = True

    def loss(self, gap: Tensor, value: Tensor, total: float, weights: Tensor | None = None) -> Tensor:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        want = torch.sigmoid(value.unsqueeze(-1) - value.unsqueeze(-2))
        terms = binary_cross_entropy_with_logits(gap.unsqueeze(-1) - gap.unsqueeze(-2), want, reduction="none")
        if weights is not None:
            return (weights.unsqueeze(-1) * weights.unsqueeze(-2) * terms).sum((-1, -2)) * (2 / total)
        count = gap.shape[-1]
        off = ~torch.eye(count, dtype=torch.bool, device=gap.device)
        return torch.where(off, terms, 0.0).sum((-1, -2)) * (2 / (total * count * (count - 1)))


@attrs.frozen
class DivergenceToAnswer(Fit):
    """w D_f(pi || p): towards the answer p under any divergence (f-DPG, arXiv 2302.08215).

    On a sample, a surrogate with the gradient E_pi[f'(pi / p) grad log pi]; its log Z is estimated from the same
    responses, E_pi[p~ / pi] = Z, which biases it by O(1 / K). With the reverse KL it is the plain policy gradient.
    """

    divergence: Divergence
    on_policy: bool = True

    def loss(self, gap: Tensor, value: Tensor, total: float, weights: Tensor | None = None) -> Tensor:
        import math

        ratio = (gap.detach() - value) / total  # log pi/p up to log Z
        if weights is not None:
            log_pi = weights.log() + (gap - gap.detach()) / total
            return total * self.divergence.value(log_pi, (weights.log() - ratio).log_softmax(-1))
        log_z = (-ratio).logsumexp(-1, keepdim=True) - math.log(ratio.shape[-1])
        slope = self.divergence.derivative_of_log(ratio + log_z)
        # Leave-one-out: the others' mean moves no gradient on average, and takes away most of the noise.
        others = (slope.sum(-1, keepdim=True) - slope) / (slope.shape[-1] - 1)
        return ((slope - others) * gap).mean(-1)
