"""Log-probabilities of given responses: prompts read once, little padding, no float32 copy of all logits."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nlhf_zoo.llm.forward import base_network, forward
from nlhf_zoo.llm.mixing import mixed_log_probs
from nlhf_zoo.llm.sharding import is_spread

__all__ = ["length_chunks", "score", "selected_log_prob"]

PADDING = 0.1
"""How much shorter than the longest of its chunk a row may be, as a share, once the chunk is worth a pass."""

WORTH_A_PASS = {"cpu": 256, "accelerator": 8192}
"""Tokens below which a chunk is not split further: a pass over so few is no faster than one over more."""

LOGITS_AT_ONCE = 2**22
"""Numbers that `selected_log_prob` holds in float32 at a time."""


def length_chunks(lengths: Sequence[int], worth: int) -> list[list[int]]:
    """Rows in chunks of about equal length, the longest first; every row once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    chunks: list[list[int]] = []
    tokens = 0
    for row in order:
        if not chunks or (tokens >= worth and lengths[row] < (1 - PADDING) * lengths[chunks[-1][0]]):
            chunks.append([])
            tokens = 0
        chunks[-1].append(row)
        tokens += lengths[row]
    return chunks


class _SelectedLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, temperature: float, allowed: Tensor | None) -> Tensor:
        flat, chosen = logits.flatten(0, -2), index.flatten()
        found = torch.empty(chosen.shape, dtype=_wide(logits.dtype), device=logits.device)
        normaliser = torch.empty_like(found)
        for rows in _slices(flat):
            scaled = _scaled(flat[rows], temperature, allowed)
            normaliser[rows] = scaled.logsumexp(-1)
            found[rows] = scaled.gather(-1, chosen[rows, None])[:, 0] - normaliser[rows]
        ctx.save_for_backward(logits, index, normaliser)
        ctx.temperature, ctx.allowed = temperature, allowed
        return found.reshape(index.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        logits, index, normaliser = ctx.saved_tensors
        flat, chosen, slope = logits.flatten(0, -2), index.flatten(), gradient.flatten()
        answer = torch.empty_like(flat)
        for rows in _slices(flat):
            share = (_scaled(flat[rows], ctx.temperature, ctx.allowed) - normaliser[rows, None]).exp_()
            share *= -slope[rows, None]
            share.scatter_add_(-1, chosen[rows, None], slope[rows, None].to(share.dtype))
            answer[rows] = share / ctx.temperature
        return answer.reshape(logits.shape), None, None, None


def selected_log_prob(logits: Tensor, index: Tensor, temperature: float, allowed: Tensor | None) -> Tensor:
    """(...) log softmax(logits / temperature)[index], in float32 at least, for (..., V) logits of any precision.

    A block of rows at a time, forward and backward: what is kept for the gradient is the logits as they are.
    """
    return _SelectedLogProb.apply(logits, index, temperature, allowed)  # type: ignore[no-any-return]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _scaled(logits: Tensor, temperature: float, allowed: Tensor | None) -> Tensor:
    scaled = logits.to(_wide(logits.dtype)) / temperature
    return scaled if allowed is None else scaled.masked_fill_(~allowed, -torch.inf)


def _slices(flat: Tensor) -> Iterator[slice]:
    step = max(1, LOGITS_AT_ONCE // flat.shape[-1])
    return (slice(at, at + step) for at in range(0, len(flat), step))


def score(
    parts: Sequence[tuple[Any, float]],
    prompts: Tensor,
    prompt_mask: Tensor,
    tokens: Tensor,
    kept: Tensor,
    *,
    temperature: float,
    allowed: Tensor | None,
) -> Tensor:
    """(B, K, T) log-probability of each response token under a model or a geometric mixture of several; 0 on padding.

    Differentiable. Each model reads a prompt once for its K responses, where it can go on from a cache with
    gradients, and the responses by chunks of about equal length.

    Args:
        parts: models and their weights.
        prompts, prompt_mask: (B, S), padded on the left.
        tokens, kept: (B, K, T), padded on the right.
    """
    count = tokens.shape[1]
    answer, mask = tokens.flatten(0, 1), kept.flatten(0, 1)
    lengths: list[int] = mask.sum(-1).tolist()
    networks, weights = [network for network, _ in parts], [weight for _, weight in parts]
    worth = WORTH_A_PASS["cpu" if tokens.device.type == "cpu" else "accelerator"]
    read = None
    if any(is_spread(network) for network in networks):
        # Every pass gathers the weights of all processes, which must come to the same number of passes: one.
        worth = sum(lengths) + 1
    elif count > 1:
        read = _prompts_read(networks, prompts, prompt_mask)
    pieces: list[Tensor] = []
    chunks = length_chunks(lengths, worth)
    for chunk in chunks:
        rows = torch.tensor(chunk, device=tokens.device)
        width = lengths[chunk[0]]
        one, one_mask, whose = answer[rows, :width], mask[rows, :width], rows // count
        if width == 0:
            pieces.append(torch.zeros(one.shape, dtype=torch.float32, device=one.device))
            continue
        if read is None:
            logits = [_whole(network, prompts[whose], prompt_mask[whose], one, one_mask) for network in networks]
        else:
            logits = [_continued(network, seen, prompt_mask, one, one_mask, whose) for network, seen in read]
        if len(logits) == 1:
            chosen = selected_log_prob(logits[0], one, temperature, allowed)
        else:
            chosen = mixed_log_probs(logits, weights, temperature, allowed).gather(-1, one[..., None])[..., 0]
        pieces.append(torch.where(one_mask, chosen, 0.0))
    padded = [torch.nn.functional.pad(piece, (0, tokens.shape[-1] - piece.shape[-1])) for piece in pieces]
    order = torch.tensor([row for chunk in chunks for row in chunk], device=tokens.device)
    return torch.cat(padded)[order.argsort()].reshape(tokens.shape)


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp_min(0)


def _whole(network: Any, prompt: Tensor, prompt_mask: Tensor, answer: Tensor, kept: Tensor) -> Tensor:
    """(N, T, V) logits before each response token, of prompts and responses read together."""
    # The last token is predicted, never read, so it is left off the input.
    ids = torch.cat([prompt, answer], 1)[:, :-1]
    mask = torch.cat([prompt_mask, kept], 1)[:, :-1].long()
    logits: Tensor = forward(network, ids, mask, _positions(mask), use_cache=False, keep=answer.shape[-1]).logits
    return logits


def _prompts_read(networks: Sequence[Any], prompts: Tensor, prompt_mask: Tensor) -> list[tuple[Any, Any]] | None:
    """Each model with its output on the prompts, cache included; `None` where one cannot go on from a cache."""
    if any(_recomputes(network) for network in networks):
        return None
    mask = prompt_mask.long()
    read = [
        (network, forward(network, prompts, mask, _positions(mask), use_cache=True, keep=1)) for network in networks
    ]
    return read if all(_plain(getattr(out, "cache", None)) for _, out in read) else None


def _recomputes(network: Any) -> bool:
    # Activation checkpointing turns caches off.
    base = base_network(network)
    return bool(base.training and getattr(base, "is_activation_checkpointing", False))


def _plain(cache: Any) -> bool:
    """Whether a cache is keys and values only, and so may be copied row by row with its gradients."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = getattr(cache, "layers", None)
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _continued(network: Any, seen: Any, prompt_mask: Tensor, answer: Tensor, kept: Tensor, whose: Tensor) -> Tensor:
    """(N, T, V) logits before each response token, given what the model made of the prompts; `whose` are their rows."""
    first = seen.logits[:, -1:][whose]
    if answer.shape[-1] == 1:
        return first
    cache = copy.copy(seen.cache)
    cache.layers = [copy.copy(layer) for layer in seen.cache.layers]
    cache.batch_select_indices(whose)
    mask = torch.cat([prompt_mask[whose], kept[:, :-1]], 1).long()
    position = _positions(mask)[:, prompt_mask.shape[-1] :]
    rest = forward(network, answer[:, :-1], mask, position, cache=cache, use_cache=True).logits
    return torch.cat([first, rest], 1)
