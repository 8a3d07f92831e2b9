"""Sampled comparisons: an oracle that answers each question with a coin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import EnumerableOracle, PairwiseLoss, QueryCount

if TYPE_CHECKING:
    from nlhf_zoo.interfaces import Policy

__all__ = ["SampledOracle"]


class SampledOracle(EnumerableOracle):
    """Wraps an oracle over listed responses; its payoffs are means of Bernoulli comparisons.

    One `payoff` draws, for each response y, `comparisons` opponents y' ~ mu and one coin with probability
    P(y > y') each: Y * comparisons queries, an unbiased estimate of u_mu with standard error at most
    1 / (2 sqrt(comparisons)). Signed combinations of policies are sampled by their absolute weights.
    Its randomness is the generator that the caller passes, never a hidden one.

    Args:
        oracle: the truth, which holds a preference matrix.
        comparisons: comparisons a response, from 1 to 2^31 - 1.
    """

    answers_by_coin = True

    def __init__(self, oracle: EnumerableOracle, comparisons: int = 1) -> None:
        if comparisons < 1:
            raise BadInput(f"a sampled oracle needs at least 1 comparison a response, got {comparisons}")
        if comparisons >= 2**31:
            raise BadInput(f"a sampled oracle draws fewer than 2**31 comparisons a response, got {comparisons}")
        self.base = oracle
        self.comparisons = comparisons
        self.batch_shape = oracle.batch_shape
        self.num_responses = oracle.num_responses

    @property
    def labels(self) -> Sequence[str] | None:  # type: ignore[override]  # a property serves the attribute
        return self.base.labels

    def matrix(self) -> Tensor:
        """The true P, for measuring; a solver that reads it is not sampling."""
        return self.base.matrix()

    def uniform_policy(self) -> Policy:
        return self.base.uniform_policy()

    def query_cost(self, method: str, *args: Any, **kwargs: Any) -> QueryCount:
        if method == "payoff":
            return QueryCount(sampled=self.num_responses * self.comparisons)
        return super().query_cost(method, *args, **kwargs)

    def payoff(
        self,
        opponent: Tensor,
        *,
        loss: PairwiseLoss | None = None,
        log_ratio: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if generator is None:
            raise BadInput("a sampled oracle needs a seeded generator; pass seed= to solve()")
        matrix = self.base.matrix()
        size = opponent.abs().sum(-1, keepdim=True)
        shape = (*opponent.shape[:-1], self.num_responses, self.comparisons)
        drawn = torch.multinomial(
            (opponent.abs() / size).reshape(-1, self.num_responses),
            self.num_responses * self.comparisons,
            replacement=True,
            generator=generator,
        ).reshape(shape)
        chance = matrix.expand(*shape[:-1], self.num_responses).gather(-1, drawn)
        coins = torch.bernoulli(chance, generator=generator).to(opponent.dtype)
        if loss is not None:
            assert log_ratio is not None
            other = log_ratio.unsqueeze(-2).expand(*shape[:-1], self.num_responses).gather(-1, drawn)
            coins = loss.signal(coins, log_ratio.unsqueeze(-1) - other)
        signs = opponent.sign().unsqueeze(-2).expand(*shape[:-1], self.num_responses).gather(-1, drawn)
        return (coins * signs).mean(-1) * size

    def probability(self, prompts: Any, first: Any, second: Any) -> Tensor:
        """(B,) the chance of the coin: `answers_by_coin` tells whoever asks to throw it, from its own generator."""
        return self.base.probability(prompts, first, second)
