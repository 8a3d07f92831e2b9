"""What ends a run that asks a judge: one line for the person who runs it, and a run that can be resumed."""

from __future__ import annotations

from nlhf_zoo.errors import BadInput

__all__ = ["BudgetSpent", "JudgeFailed"]


class JudgeFailed(BadInput):
    """The judge gives no verdict: the endpoint is down, the key or the model refused, the answer unreadable."""


class BudgetSpent(JudgeFailed):
    """The next question would go over the budget in calls or in money; it was not asked."""
