"""Any judge of texts, with its answers kept in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import EnumerableOracle, PreferenceOracle
from nlhf_zoo.oracles import orders
from nlhf_zoo.oracles.sequence_scores import same_length
from nlhf_zoo.oracles.verdicts.question import Question, Verdict
from nlhf_zoo.oracles.verdicts.store import VerdictStore
from nlhf_zoo.oracles.verdicts.verdicts import Record, Verdicts

__all__ = ["CachedOracle"]

Judge = Callable[[PreferenceOracle, Any, Any, Any], Tensor]


class CachedOracle(PreferenceOracle):
    """Answers from the store; what is not there is asked of the oracle in one call, and kept before it is used.

    Args:
        oracle: a judge of texts.
        store: where its answers are kept.
        identity: all that changes its answers.

    Raises:
        BadInput: an oracle over listed responses, which has its answers already.
    """

    def __init__(self, oracle: PreferenceOracle, store: VerdictStore, identity: Mapping[str, Any]) -> None:
        if isinstance(oracle, EnumerableOracle):
            raise BadInput("an oracle over listed responses needs no cache; leave the option out")
        self.base = oracle
        self.answers_by_coin, self.waits = oracle.answers_by_coin, oracle.waits
        self.verdicts = Verdicts(store, identity)

    def __repr__(self) -> str:
        return f"CachedOracle({self.base!r}, {self.verdicts.store!r})"

    @property
    def samples(self) -> bool:
        return orders.samples(self.base)

    @property
    def measured(self) -> Mapping[str, float]:
        return {**self.base.measured, "cache_hits": float(self.verdicts.hits)}

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """(B,) float64 P(first > second | prompt) in [0, 1], on the CPU."""
        return self._answers(_probability, prompts, first, second, order=False)

    def one_order(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """(B,) float64 the judge's word in this order alone."""
        return self._answers(orders.one_order, prompts, first, second)

    def asked_again(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """(B,) float64 the judge's word in this order at a second asking."""
        return self._answers(orders.asked_again, prompts, first, second, repeat=1)

    def _answers(
        self, judge: Judge, prompts: Sequence[str], first: Sequence[str], second: Sequence[str], **kind: Any
    ) -> Tensor:
        same_length(prompts, first, second)

        def ask(questions: Sequence[Question], record: Record) -> None:
            x, a, b = ([getattr(q, part) for q in questions] for part in ("prompt", "first", "second"))
            answers = judge(self.base, x, a, b).double().tolist()
            record({q: Verdict(p) for q, p in zip(questions, answers, strict=True)})

        questions = [Question(*row, **kind) for row in zip(prompts, first, second, strict=True)]
        found = self.verdicts.of(questions, ask)
        return torch.tensor([verdict.probability for verdict in found], dtype=torch.float64)


def _probability(oracle: PreferenceOracle, prompts: Any, first: Any, second: Any) -> Tensor:
    return oracle.probability(prompts, first, second)
