"""The token-level geometric mixture of several models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["mixed_log_probs"]


def mixed_log_probs(
    logits: Sequence[Tensor], weights: Sequence[float], temperature: float, allowed: Tensor | None
) -> Tensor:
    """(..., V) normalised log of prod_i p_i^{w_i}, p_i = softmax(logits_i / temperature), in float32 at least.

    Args:
        logits: one (..., V) tensor a model.
        weights: one a model; a single model's weight is 1.
        allowed: (V,) bool, tokens that may be drawn; all, where `None`.
    """
    total: Tensor | None = None
    for one, weight in zip(logits, weights, strict=True):
        scaled = (one if one.dtype == torch.float64 else one.float()) / temperature
        # log_softmax and logits differ by a constant, which the final normalisation removes.
        scaled = scaled if weight == 1 else weight * scaled
        total = scaled if total is None else total + scaled
    assert total is not None
    if allowed is not None:
        total = total.masked_fill(~allowed, -torch.inf)
    return total.log_softmax(-1)
