"""Sampling from one causal LM, or from the token-level geometric mixture of several, with every KV cache on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.llm.forward import forward

__all__ = ["generate", "mixed_log_probs"]


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


@torch.no_grad()
def generate(
    parts: Sequence[tuple[Any, float]],
    prompts: Tensor,
    prompt_mask: Tensor,
    *,
    num_samples: int,
    max_new_tokens: int,
    stop: Sequence[int],
    padding: int,
    temperature: float,
    allowed: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Draw `num_samples` continuations of each prompt.

    The prompt is read once a model, whatever the number of samples; rows that have ended leave the batch.

    Args:
        parts: models and their weights in the geometric mixture; one model of weight 1 is plain sampling.
        prompts: (B, S) int64, padded on the left.
        prompt_mask: (B, S) bool.
        stop: ids that end a response.

    Returns:
        tokens (B, K, T) int64 padded on the right, and mask (B, K, T) bool with the stop token included.
    """
    rows = prompts.shape[0] * num_samples
    device = prompts.device
    networks, weights = [n for n, _ in parts], [w for _, w in parts]
    mask = prompt_mask.long()
    position = (mask.cumsum(-1) - 1).clamp_min(0)
    caches: list[Any] = []
    logits: list[Tensor] = []
    for network in networks:
        out = forward(network, prompts, mask, position, use_cache=True, keep=1)
        out.cache.batch_repeat_interleave(num_samples)
        caches.append(out.cache)
        logits.append(out.logits[:, -1].repeat_interleave(num_samples, 0))
    mask = mask.repeat_interleave(num_samples, 0)
    next_position = mask.sum(-1, keepdim=True)
    ends = torch.tensor(list(stop), device=device, dtype=torch.int64)

    tokens = torch.full((rows, max_new_tokens), padding, dtype=torch.int64, device=device)
    kept = torch.zeros((rows, max_new_tokens), dtype=torch.bool, device=device)
    live = torch.arange(rows, device=device)
    length = max_new_tokens
    for t in range(max_new_tokens):
        log_probs = mixed_log_probs(logits, weights, temperature, allowed)
        drawn = torch.multinomial(log_probs.exp(), 1, generator=generator)
        tokens[live, t] = drawn[:, 0]
        kept[live, t] = True
        going = ~torch.isin(drawn[:, 0], ends)
        if t + 1 == max_new_tokens:
            break
        count = int(going.sum())
        if count == 0:
            length = t + 1
            break
        if count < len(live):
            index = torch.nonzero(going).flatten()
            live, drawn, mask, next_position = live[index], drawn[index], mask[index], next_position[index]
            for cache in caches:
                cache.batch_select_indices(index)
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], 1)
        logits = []
        for network, cache in zip(networks, caches, strict=True):
            out = forward(network, drawn, mask, next_position, cache=cache, use_cache=True)
            logits.append(out.logits[:, -1])
        next_position = next_position + 1
    shape = (prompts.shape[0], num_samples, length)
    return tokens[:, :length].reshape(shape), kept[:, :length].reshape(shape)
