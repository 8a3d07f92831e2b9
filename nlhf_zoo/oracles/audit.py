"""Is this oracle worth training against? Asked before, answered in a handful of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import PreferenceOracle
from nlhf_zoo.intervals import wilson_interval

__all__ = ["AsksBothOrders", "Audit", "audit"]


@runtime_checkable
class AsksBothOrders(Protocol):
    """An oracle that makes a judge antisymmetric by asking both orders, and can tell what it said of one."""

    def one_order(self, prompts: Any, first: Any, second: Any) -> Tensor: ...


@attrs.frozen(kw_only=True)
class Audit:
    """What was found on B pairs.

    Attributes:
        pairs: B.
        antisymmetry_error: max |P(a, b) + P(b, a) - 1| of the oracle that a solver sees; 0 is required.
        position_bias: mean (Q(a, b) + Q(b, a) - 1) / 2 in [-1/2, 1/2], positive where the first place is
            favoured. Q is the judge's word in one order where the oracle averages both, otherwise P.
        order_flips: share of pairs whose winner changes with the order, by Q.
        decisiveness: mean |P(a, b) - 1/2| in [0, 1/2]; near 0 the oracle teaches nothing.
        accuracy: share of labelled pairs judged right, P = 1/2 counting half; `None` without labels.
        accuracy_interval: its 95 % Wilson interval.
    """

    pairs: int
    antisymmetry_error: float
    position_bias: float
    order_flips: float
    decisiveness: float
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each thing that would spoil a training; empty for a sound oracle."""
        found: list[str] = []
        if self.antisymmetry_error > 1e-3:
            found.append(
                f"the oracle contradicts itself: P(a,b) + P(b,a) is off 1 by up to {self.antisymmetry_error:.3g};"
                " ask both orders and average"
            )
        if abs(self.position_bias) > 0.1:
            place = "first" if self.position_bias > 0 else "second"
            found.append(f"the judge favours the {place} place by {abs(self.position_bias):.0%}")
        if self.order_flips > 0.25:
            found.append(f"the judge's winner changes with the order in {self.order_flips:.0%} of the pairs")
        if self.decisiveness < 0.02:
            found.append(
                f"the oracle is near 1/2 (mean distance {self.decisiveness:.3g}): expect no gain over the reference"
            )
        if self.accuracy is not None and self.accuracy_interval is not None and self.accuracy_interval[0] <= 0.5:
            low, high = self.accuracy_interval
            found.append(
                f"the oracle is no better than a coin on labelled pairs: {self.accuracy:.1%} [{low:.1%}, {high:.1%}]"
            )
        return tuple(found)


def audit(
    oracle: PreferenceOracle,
    prompts: Any,
    first: Any,
    second: Any,
    labels: Sequence[float] | Tensor | None = None,
) -> Audit:
    """Ask the oracle about B >= 1 pairs, in both orders; the questions are not counted as queries.

    Args:
        prompts, first, second: as in `oracle.probability`, B pairs of different responses.
        labels: 1 where the first response is the better one, 0 where the second is.

    Raises:
        BadInput: no pairs, or labels that are not B zeros and ones.
    """
    count = len(first)
    if count == 0:
        raise BadInput("an audit needs at least one pair of responses")
    judge = oracle.one_order if isinstance(oracle, AsksBothOrders) else None
    with oracle.uncounted(), torch.no_grad():
        forward, backward = (oracle.probability(prompts, *pair).double() for pair in ((first, second), (second, first)))
        raw = [forward, backward]
        if judge is not None:
            raw = [judge(prompts, *pair).double() for pair in ((first, second), (second, first))]
    accuracy, interval = _accuracy(forward, labels)
    return Audit(
        pairs=count,
        antisymmetry_error=float((forward + backward - 1).abs().max()),
        position_bias=float((raw[0] + raw[1] - 1).mean() / 2),
        order_flips=float(((raw[0] - 0.5) * (raw[1] - 0.5) > 0).double().mean()),
        decisiveness=float((forward - 0.5).abs().mean()),
        accuracy=accuracy,
        accuracy_interval=interval,
    )


def _accuracy(
    forward: Tensor, labels: Sequence[float] | Tensor | None
) -> tuple[float, tuple[float, float]] | tuple[None, None]:
    if labels is None:
        return None, None
    truth = torch.as_tensor(labels, dtype=torch.float64, device=forward.device)
    if truth.shape != forward.shape or not ((truth == 0) | (truth == 1)).all():
        raise BadInput(f"an audit of {len(forward)} pairs needs as many labels, each 0 or 1")
    right = ((forward - 0.5).sign() * (2 * truth - 1) + 1) / 2
    return float(right.mean()), wilson_interval(float(right.sum()), len(forward))
