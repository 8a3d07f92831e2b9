"""Several judges as one: averaged or outvoted, and how far they disagree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import PreferenceOracle
from nlhf_zoo.oracles import orders

__all__ = ["Disagreement", "EnsembleOracle", "Member"]


def _positive(member: Member, _: Any, weight: float) -> None:
    if not (math.isfinite(weight) and weight > 0):
        raise BadInput(f"ensemble: the weight of {member.name} must be a number > 0, got {weight}")


@attrs.frozen(eq=False)
class Member:
    """One judge of several.

    Attributes:
        name: for logs.
        oracle: who judges.
        weight: > 0, relative to the others'.
    """

    name: str
    oracle: PreferenceOracle
    weight: float = attrs.field(default=1.0, converter=float, validator=_positive)


@attrs.frozen
class Disagreement:
    """How far judges are apart, over B comparisons.

    Attributes:
        pairs: B.
        spread: mean over comparisons and pairs of judges of |P_i - P_j|, in [0, 1].
        split: share of comparisons in which one judge prefers the first response and another the second.
    """

    pairs: int = 0
    spread: float = 0.0
    split: float = 0.0

    @classmethod
    def of(cls, opinions: Tensor) -> Disagreement:
        """From (M, B) preferences of M >= 2 judges."""
        count, pairs = opinions.shape
        if not pairs:
            return cls()
        i, j = torch.triu_indices(count, count, offset=1)
        split = (opinions > 0.5).any(0) & (opinions < 0.5).any(0)
        return cls(pairs, float((opinions[i] - opinions[j]).abs().mean()), float(split.double().mean()))

    def __add__(self, other: Disagreement) -> Disagreement:
        total = self.pairs + other.pairs
        if not total:
            return self
        mine, theirs = self.pairs / total, other.pairs / total
        return Disagreement(total, mine * self.spread + theirs * other.spread, mine * self.split + theirs * other.split)


class EnsembleOracle(PreferenceOracle):
    """P = sum of w_i P_i, or by a vote: 1 where judges of more than half the weight prefer the first, 0 where
    the second, 1/2 otherwise (a judge at P_i = 1/2 abstains with half its weight to either side).

    Antisymmetric where its members are. A comparison is one query, whatever the number of judges.

    Args:
        members: two or more, of different names.
        vote: by majority, instead of the average.

    Raises:
        BadInput: fewer than two members, or two of one name.
    """

    def __init__(self, members: Sequence[Member], *, vote: bool = False) -> None:
        if len(members) < 2:
            raise BadInput(f"ensemble: give two or more members, got {len(members)}")
        if len({member.name for member in members}) < len(members):
            raise BadInput("ensemble: two members have the same name; give them different ones with name")
        self.members, self.vote = tuple(members), vote
        self.disagreement = Disagreement()
        self.waits = all(member.oracle.waits for member in members)
        # Members answer with probabilities here; a coin, if any, is thrown once, on what they come to.
        self.answers_by_coin = any(member.oracle.answers_by_coin for member in members)

    def __repr__(self) -> str:
        names = ", ".join(f"{member.name} x {member.weight:g}" for member in self.members)
        return f"EnsembleOracle({names}, {'voted' if self.vote else 'averaged'})"

    @property
    def measured(self) -> Mapping[str, float]:
        """Disagreement over all comparisons so far, and what members have to tell, under their names."""
        own = {"disagreement": self.disagreement.spread, "split_verdicts": self.disagreement.split}
        theirs = {f"{m.name}/{name}": value for m in self.members for name, value in m.oracle.measured.items()}
        return own | theirs

    @property
    def samples(self) -> bool:
        return any(orders.samples(member.oracle) for member in self.members)

    def probability(self, prompts: Any, first: Any, second: Any) -> Tensor:
        """(B,) float64 P(first > second | prompt) in [0, 1], on the CPU."""
        opinions = self.opinions(prompts, first, second)
        self.disagreement += Disagreement.of(opinions)
        return self._combined(opinions)

    def opinions(self, prompts: Any, first: Any, second: Any) -> Tensor:
        """(M, B) float64 what each member says, in their order."""
        return self._asked(lambda oracle: oracle.probability(prompts, first, second))

    def one_order(self, prompts: Any, first: Any, second: Any) -> Tensor:
        """(B,) float64 the members' words in this order alone, combined as their preferences are."""
        return self._combined(self._asked(lambda oracle: orders.one_order(oracle, prompts, first, second)))

    def asked_again(self, prompts: Any, first: Any, second: Any) -> Tensor:
        """(B,) float64 the same, asked anew of those members that sample."""
        return self._combined(self._asked(lambda oracle: orders.asked_again(oracle, prompts, first, second)))

    def _asked(self, answer: Callable[[PreferenceOracle], Tensor]) -> Tensor:
        return torch.stack([answer(member.oracle).double().cpu() for member in self.members])

    def _combined(self, opinions: Tensor) -> Tensor:
        weights = torch.tensor([member.weight for member in self.members], dtype=torch.float64)
        weights = weights / weights.sum()
        if not self.vote:
            return weights @ opinions
        # Signs cancel exactly for opposite orders, which sums of shares do not.
        balance = weights @ (opinions - 0.5).sign()
        return torch.where(balance.abs() < 1e-12, 0.5, (balance.sign() + 1) / 2)
