"""Is this oracle worth training against? Asked before, answered in a handful of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import PreferenceOracle
from nlhf_zoo.intervals import wilson_interval
from nlhf_zoo.oracles import orders
from nlhf_zoo.oracles.ensemble import Disagreement, EnsembleOracle

__all__ = ["Audit", "accuracy", "audit", "audit_rows"]


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
        inconsistency: mean |Q - Q'| of two askings of the same question; `None` where the judge does not sample.
        changed_verdicts: share of them whose winner changed.
        disagreement: mean |P_i - P_j| between the members of an ensemble; `None` of a single judge.
        split_verdicts: share of pairs in which members prefer different responses.
        accuracy: share of labelled pairs judged right, P = 1/2 counting half; `None` without labels.
        accuracy_interval: its 95 % Wilson interval.
        labelled_pairs: how many there were.
    """

    pairs: int
    antisymmetry_error: float
    position_bias: float
    order_flips: float
    decisiveness: float
    inconsistency: float | None = None
    changed_verdicts: float | None = None
    disagreement: float | None = None
    split_verdicts: float | None = None
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    labelled_pairs: int = 0

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
        if self.changed_verdicts is not None and self.changed_verdicts > 0.1:
            found.append(
                f"the judge's winner changes in {self.changed_verdicts:.0%} of the pairs when it is asked again;"
                " lower its temperature, or use log-probabilities"
            )
        if self.split_verdicts is not None and self.split_verdicts > 0.5:
            found.append(f"the judges prefer different responses in {self.split_verdicts:.0%} of the pairs")
        if self.accuracy is not None and self.accuracy_interval is not None and self.accuracy_interval[0] <= 0.5:
            low, high = self.accuracy_interval
            found.append(
                f"the oracle is no better than a coin on labelled pairs: {self.accuracy:.1%} [{low:.1%}, {high:.1%}]"
            )
        return tuple(found)


_WORDS = {
    "pairs": "pairs asked about",
    "antisymmetry_error": "max |P(a,b) + P(b,a) - 1|",
    "position_bias": "position bias (+ first, - second)",
    "order_flips": "winner changes with the order",
    "decisiveness": "mean |P - 1/2|",
    "inconsistency": "mean |Q - Q'| asked twice",
    "changed_verdicts": "winner changes when asked twice",
    "disagreement": "mean |P_i - P_j| of its judges",
    "split_verdicts": "its judges are split",
    "accuracy": "accuracy on labelled pairs",
    "labelled_pairs": "labelled pairs",
}


def audit_rows(found: Sequence[Audit]) -> list[tuple[str, list[float | None]]]:
    """What was measured, in words, with the number of each; what was measured of none is left out."""
    rows = [(words, [getattr(one, name) for one in found]) for name, words in _WORDS.items()]
    unlabelled = _WORDS["labelled_pairs"]
    return [
        (words, numbers)
        for words, numbers in rows
        if any(number is not None and (number or words != unlabelled) for number in numbers)
    ]


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
    both = ((first, second), (second, first))
    with oracle.uncounted(), torch.no_grad():
        forward, backward = (oracle.probability(prompts, *pair).double() for pair in both)
        raw = [forward, backward]
        if isinstance(oracle, orders.AsksBothOrders):
            raw = [oracle.one_order(prompts, *pair).double() for pair in both]
        again = orders.asked_again(oracle, prompts, first, second).double() if orders.samples(oracle) else None
        apart = Disagreement.of(oracle.opinions(prompts, first, second)) if isinstance(oracle, EnsembleOracle) else None
    accuracy, interval = _accuracy(forward, labels)
    return Audit(
        pairs=count,
        antisymmetry_error=float((forward + backward - 1).abs().max()),
        position_bias=float((raw[0] + raw[1] - 1).mean() / 2),
        order_flips=float(((raw[0] - 0.5) * (raw[1] - 0.5) > 0).double().mean()),
        decisiveness=float((forward - 0.5).abs().mean()),
        inconsistency=None if again is None else float((raw[0] - again).abs().mean()),
        changed_verdicts=None if again is None else float(((raw[0] - 0.5) * (again - 0.5) < 0).double().mean()),
        disagreement=None if apart is None else apart.spread,
        split_verdicts=None if apart is None else apart.split,
        accuracy=accuracy,
        accuracy_interval=interval,
        labelled_pairs=0 if labels is None else count,
    )


def accuracy(oracle: PreferenceOracle, prompts: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
    """The fields of an `Audit` that labelled pairs fill, where they are other pairs than the audited ones."""
    with oracle.uncounted(), torch.no_grad():
        answer = oracle.probability(prompts, chosen, rejected).double()
    share, interval = _accuracy(answer, [1.0] * len(answer))
    return {"accuracy": share, "accuracy_interval": interval, "labelled_pairs": len(answer)}


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
