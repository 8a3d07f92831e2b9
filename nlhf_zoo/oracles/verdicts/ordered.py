"""A judge that is asked one order at a time, made antisymmetric, and that never forgets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nlhf_zoo.interfaces import PreferenceOracle
from nlhf_zoo.oracles.sequence_scores import same_length
from nlhf_zoo.oracles.verdicts.question import Question
from nlhf_zoo.oracles.verdicts.verdicts import Record, Verdicts

__all__ = ["OrderedJudge"]


class OrderedJudge(PreferenceOracle):
    """P(a > b) = (Q(a, b) + 1 - Q(b, a)) / 2, Q the judge's verdict on one order.

    So P(a, b) + P(b, a) = 1, whatever the judge's liking for the first or the second place; a response
    against itself is not asked, and is 1/2. A comparison is one query of the solver, and up to two questions.

    Attributes:
        verdicts: where answers are kept and looked up; set by the subclass.
    """

    verdicts: Verdicts

    @abstractmethod
    def ask(self, questions: Sequence[Question], record: Record) -> None:
        """Ask the judge each of these different questions, and `record` verdicts as they come."""

    @property
    def samples(self) -> bool:
        """Whether the judge may answer the same question differently."""
        return False

    @property
    def measured(self) -> Mapping[str, float]:
        return {"cache_hits": float(self.verdicts.hits)}

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """(B,) float64 P(first > second | prompt) in [0, 1], on the CPU.

        Raises:
            BadInput: columns of unequal length, or no verdict to be had (`JudgeFailed`).
        """
        same_length(prompts, first, second)
        answer = torch.full((len(prompts),), 0.5, dtype=torch.float64)
        differ = [i for i in range(len(prompts)) if first[i] != second[i]]
        x, a, b = ([column[i] for i in differ] for column in (prompts, first, second))
        forward, backward = self.one_order(x + x, a + b, b + a).chunk(2) if differ else (answer[:0], answer[:0])
        answer[differ] = (forward + (1 - backward)) / 2
        return answer

    def one_order(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """(B,) float64 Q(first, second): the judge's word in this order alone, not a preference."""
        return self._answers(prompts, first, second, repeat=0)

    def asked_again(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """(B,) float64 Q(first, second) of a second asking, kept apart from the first."""
        return self._answers(prompts, first, second, repeat=1)

    def _answers(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str], repeat: int) -> Tensor:
        same_length(prompts, first, second)
        questions = [Question(*row, repeat=repeat) for row in zip(prompts, first, second, strict=True)]
        verdicts = self.verdicts.of(questions, self.ask)
        return torch.tensor([verdict.probability for verdict in verdicts], dtype=torch.float64)
