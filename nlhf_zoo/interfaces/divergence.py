"""What regularises: an f-divergence between a policy and an anchor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import attrs

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Divergence", "ReverseKL"]


class Divergence(ABC):
    """D_f(pi || rho) = sum_y rho(y) f(pi(y) / rho(y)), f convex with f(1) = 0."""

    name: ClassVar[str]
    summary: ClassVar[str] = ""

    @abstractmethod
    def generator(self, ratio: Tensor) -> Tensor:
        """f(t), elementwise, for t >= 0."""

    @abstractmethod
    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """(...) D_f(p || q) of two (..., Y) normalised log-probability tensors."""

    @abstractmethod
    def improve(self, payoff: Tensor, anchors: Sequence[tuple[Tensor, float]]) -> Tensor:
        """(..., Y) log-probabilities of argmax_p  <p, payoff> - sum_j w_j D_f(p || rho_j).

        Args:
            payoff: (..., Y).
            anchors: pairs of (..., Y) log-probabilities log rho_j and a weight w_j > 0.
        """


@attrs.frozen
class ReverseKL(Divergence):
    """KL(pi || rho), f(t) = t log t: the regulariser of the papers and of every game unless said otherwise."""

    name: ClassVar[str] = "reverse_kl"
    summary: ClassVar[str] = "KL(policy || anchor), the regulariser of NLHF"

    def generator(self, ratio: Tensor) -> Tensor:
        import torch

        return torch.xlogy(ratio, ratio)

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        import torch

        # 0 log 0 = 0, and a response that both leave out contributes nothing.
        p = log_p.exp()
        return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)

    def improve(self, payoff: Tensor, anchors: Sequence[tuple[Tensor, float]]) -> Tensor:
        total = sum(weight for _, weight in anchors)
        logits = payoff / total
        for log_rho, weight in anchors:
            logits = logits + (weight / total) * log_rho
        return logits.log_softmax(-1)
