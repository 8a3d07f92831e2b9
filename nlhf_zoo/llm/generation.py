"""Sampling from one causal LM, or from the token-level geometric mixture of several, with every KV cache on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from nlhf_zoo.llm.forward import forward

__all__ = ["Request", "generate", "mixed_log_probs"]


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


@attrs.frozen(eq=False)
class Request:
    """Whose responses are wanted: models and their weights in the geometric mixture; one model of weight 1 is plain."""

    parts: tuple[tuple[Any, float], ...]


@attrs.define(eq=False)
class _Reader:
    """One model at work: its cache, and the requests whose rows it reads, one after the other."""

    network: Any
    requests: list[int]
    cache: Any = None
    logits: Tensor | None = None


@torch.no_grad()
def generate(
    requests: Sequence[Request],
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
) -> list[tuple[Tensor, Tensor]]:
    """Draw `num_samples` continuations of each prompt for each request.

    A prompt is read once a model, whatever the number of samples and requests; a model that has a part in several
    requests reads the tokens of all of them in one pass; rows that have ended leave the batch.

    Args:
        prompts: (B, S) int64, padded on the left.
        prompt_mask: (B, S) bool.
        stop: ids that end a response.

    Returns:
        For each request tokens (B, K, T) int64 padded on the right, and mask (B, K, T) bool with the stop token
        included; T is the longest response of the request.
    """
    from nlhf_zoo.llm.growing_cache import grow_in_place  # it loads transformers

    device, rows = prompts.device, prompts.shape[0] * num_samples
    mask = prompt_mask.long()
    position = (mask.cumsum(-1) - 1).clamp_min(0)
    readers = _readers(requests)
    for reader in readers:
        out = forward(reader.network, prompts, mask, position, use_cache=True, keep=1)
        out.cache.batch_repeat_interleave(num_samples)
        if len(reader.requests) > 1:
            out.cache.batch_select_indices(torch.arange(rows, device=device).repeat(len(reader.requests)))
        grow_in_place(out.cache)
        reader.cache = out.cache
        reader.logits = out.logits[:, -1].repeat_interleave(num_samples, 0).repeat(len(reader.requests), 1)
    mask = mask.repeat_interleave(num_samples, 0).repeat(len(requests), 1)
    next_position = mask.sum(-1, keepdim=True)
    ends = torch.tensor(list(stop), device=device, dtype=torch.int64)

    tokens = torch.full((len(requests) * rows, max_new_tokens), padding, dtype=torch.int64, device=device)
    kept = torch.zeros(tokens.shape, dtype=torch.bool, device=device)
    live = torch.arange(len(requests) * rows, device=device)
    counts = [rows] * len(requests)
    for t in range(max_new_tokens):
        log_probs = _next(requests, readers, counts, temperature, allowed)
        drawn = torch.multinomial(log_probs.exp(), 1, generator=generator)
        tokens[live, t] = drawn[:, 0]
        kept[live, t] = True
        if t + 1 == max_new_tokens:
            break
        going = ~torch.isin(drawn[:, 0], ends)
        left = int(going.sum())
        if left == 0:
            break
        if left < len(live):
            whose = torch.arange(len(requests), device=device).repeat_interleave(torch.tensor(counts, device=device))
            for reader in readers:
                _drop(reader, going, counts)
            index = torch.nonzero(going).flatten()
            live, drawn, mask, next_position = live[index], drawn[index], mask[index], next_position[index]
            counts = torch.bincount(whose[index], minlength=len(requests)).tolist()
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], 1)
        starts = [sum(counts[:i]) for i in range(len(counts))]
        for reader in readers:
            parts = [slice(starts[i], starts[i] + counts[i]) for i in reader.requests if counts[i]]
            if not parts:
                continue
            columns = [_rows(column, parts) for column in (drawn, mask, next_position)]
            reader.logits = forward(reader.network, *columns, cache=reader.cache, use_cache=True).logits[:, -1]
        next_position = next_position + 1
    return [
        _trimmed(one, keep, (prompts.shape[0], num_samples))
        for one, keep in zip(tokens.split(rows), kept.split(rows), strict=True)
    ]


def _readers(requests: Sequence[Request]) -> list[_Reader]:
    readers: list[_Reader] = []
    for i, request in enumerate(requests):
        for network, _ in request.parts:
            known = next((reader for reader in readers if reader.network is network), None)
            if known is None:
                readers.append(_Reader(network, [i]))
            else:
                known.requests.append(i)
    return readers


def _next(
    requests: Sequence[Request],
    readers: Sequence[_Reader],
    counts: Sequence[int],
    temperature: float,
    allowed: Tensor | None,
) -> Tensor:
    """(rows, V) log-probabilities of the next token, request after request."""
    found: list[list[Tensor]] = [[] for _ in requests]
    for reader in readers:
        assert reader.logits is not None
        sizes = [counts[i] for i in reader.requests]
        if sum(sizes):
            for i, logits in zip(reader.requests, reader.logits.split(sizes), strict=True):
                found[i].append(logits)
    # Readers stand in the order in which models first appear, a request's parts may not.
    mixed: list[Tensor] = []
    for i, request in enumerate(requests):
        if not counts[i]:
            continue
        order = [reader.network for reader in readers if i in reader.requests]
        weights = [next(w for network, w in request.parts if network is one) for one in order]
        mixed.append(mixed_log_probs(found[i], weights, temperature, allowed))
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def _rows(column: Tensor, parts: Sequence[slice]) -> Tensor:
    if len(parts) == 1:
        return column[parts[0]]
    return torch.cat([column[part] for part in parts])


def _drop(reader: _Reader, going: Tensor, counts: Sequence[int]) -> None:
    """Take ended rows out of a reader's cache."""
    starts = [sum(counts[:i]) for i in range(len(counts))]
    parts = [slice(starts[i], starts[i] + counts[i]) for i in reader.requests if counts[i]]
    if not parts:
        return
    mine = _rows(going, parts)
    if not bool(mine.all()) and bool(mine.any()):
        reader.cache.batch_select_indices(torch.nonzero(mine).flatten())


def _trimmed(tokens: Tensor, kept: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    length = int(kept.sum(-1).max())
    return tokens[:, :length].reshape(*shape, length), kept[:, :length].reshape(*shape, length)
