"""What is seen of a batch of responses on the way, for whoever watches the training; nothing here is trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["decisiveness", "distinct_pairs", "length_correlation"]


def distinct_pairs(texts: Sequence[Sequence[str]]) -> Tensor:
    """Share of the pairs of responses to one prompt that differ, in [0, 1]; B x K texts, K >= 2."""
    pairs = same = 0
    for row in texts:
        pairs += math.comb(len(row), 2)
        same += sum(math.comb(row.count(text), 2) for text in set(row))
    return torch.tensor(1 - same / pairs)


def length_correlation(lengths: Tensor, worth: Tensor) -> dict[str, Tensor]:
    """Pearson's correlation of (B, K) lengths and payoffs, each taken from its prompt's mean.

    Empty where all responses of a prompt are equally long, or worth the same.
    """
    ours, theirs = (part.double() - part.double().mean(-1, keepdim=True) for part in (lengths, worth))
    size = ours.norm() * theirs.norm()
    return {"length_correlation": (ours * theirs).sum() / size} if size > 0 else {}


def decisiveness(judged: Tensor, differ: Sequence[bool]) -> Tensor | None:
    """Mean |P - 1/2| in [0, 1/2] over the judged pairs whose two texts differ; `None` where none do."""
    told = (judged.flatten() - 0.5).abs()[torch.tensor(differ, device=judged.device)]
    return told.mean() if len(told) else None
