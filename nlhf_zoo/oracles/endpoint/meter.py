"""What calls cost, and when no more of them may be made."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from nlhf_zoo.errors import BadInput
from nlhf_zoo.oracles.endpoint.reply import Reply
from nlhf_zoo.oracles.failures import BudgetSpent, JudgeFailed
from nlhf_zoo.oracles.verdicts.verdicts import Verdicts

__all__ = ["Budget", "Call", "Meter"]


def _not_negative(_: object, field: object, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise BadInput(f"judge option {getattr(field, 'name', '')} must be a number >= 0, got {value}")


@attrs.frozen(kw_only=True)
class Budget:
    """Limits over all runs that share a file of verdicts; `None` is no limit.

    Attributes:
        max_calls: calls that the server may have charged for; never exceeded.
        max_money: in the currency of the prices. A call is not begun if those in flight and itself, each at
            the dearest price seen, would go over; it may be exceeded by what the first calls, made before any
            price is known, and a call dearer than all before it cost too much.
        price_in, price_out: of a million tokens, read and written.
    """

    max_calls: int | None = attrs.field(default=None, validator=_not_negative)
    max_money: float | None = attrs.field(default=None, validator=_not_negative)
    price_in: float = attrs.field(default=0.0, validator=_not_negative)
    price_out: float = attrs.field(default=0.0, validator=_not_negative)

    def __attrs_post_init__(self) -> None:
        if self.max_money is not None and self.price_in + self.price_out <= 0:
            raise BadInput("judge option max_money needs prices: give price_in and price_out, per million tokens")

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


@attrs.frozen
class Call:
    """One call that was begun, and the money set aside for it."""

    aside: float


class Meter:
    """Calls of one judge, counted before they are made, in the file that its verdicts are in."""

    def __init__(self, name: str, budget: Budget, verdicts: Verdicts) -> None:
        self.name, self.budget, self.verdicts = name, budget, verdicts
        self.refused = 0

    def begin(self) -> Call:
        """Before a call.

        Raises:
            BudgetSpent: it would go over a limit.
        """
        limits = {"max_calls": self.budget.max_calls, "max_money": self.budget.max_money}
        aside = self.verdicts.store.begin_call(self.verdicts.judge, **limits)
        if aside is None:
            raise BudgetSpent(self._spent_line())
        return Call(aside)

    def void(self, call: Call) -> None:
        """The server has refused the call and charges nothing."""
        self.refused += 1
        self.verdicts.store.void_call(self.verdicts.judge, call.aside)

    def end(self, call: Call, reply: Reply) -> None:
        """The call was answered.

        Raises:
            JudgeFailed: there is a budget in money, and the server does not tell how many tokens it charges.
        """
        known = reply.tokens_in is not None and reply.tokens_out is not None
        if not known and self.budget.max_money is not None:
            raise JudgeFailed(f"{self.name} reports no usage, so max_money cannot be kept; use max_calls")
        tokens = {"tokens_in": reply.tokens_in or 0, "tokens_out": reply.tokens_out or 0}
        self.verdicts.store.end_call(self.verdicts.judge, call.aside, money=self.budget.cost(**tokens), **tokens)

    @property
    def measured(self) -> Mapping[str, float]:
        """Calls, money and tokens of all runs that share the file; refused calls of this process."""
        spent = self.verdicts.store.spending(self.verdicts.judge)
        return {
            "calls": float(spent.calls),
            "money": spent.money,
            "tokens_in": float(spent.tokens_in),
            "tokens_out": float(spent.tokens_out),
            "refused_calls": float(self.refused),
            "unread": float(self.verdicts.store.unread(self.verdicts.judge)),
        }

    def _spent_line(self) -> str:
        spent = self.verdicts.store.spending(self.verdicts.judge)
        limits = [f"max_calls={self.budget.max_calls}"] if self.budget.max_calls is not None else []
        limits += [f"max_money={self.budget.max_money:g}"] if self.budget.max_money is not None else []
        return (
            f"{self.name}: the budget is spent ({spent.calls} calls, {spent.money:.4g} in money;"
            f" {', '.join(limits)}); raise it and go on with resume, no verdict is paid for twice"
        )
