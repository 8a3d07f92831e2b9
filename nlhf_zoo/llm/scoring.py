"""Log-probabilities of given responses: prompts read once, little padding, no float32 copy of all logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nlhf_zoo.llm.forward import base_network, forward
from nlhf_zoo.llm.mixing import mixed_log_probs
from nlhf_zoo.llm.reuse import Outputs, PromptsRead, Spoken, branch, plain_cache, recomputes, replayed, trains
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
    read: Sequence[PromptsRead] = (),
) -> Tensor:
    """(B, K, T) log-probability of each response token under a model or a geometric mixture of several; 0 on padding.

    Differentiable. Each model reads a prompt once for its K responses, where it can go on from a cache with
    gradients, and the responses by chunks of about equal length.

    Args:
        parts: models and their weights.
        prompts, prompt_mask: (B, S), padded on the left.
        tokens, kept: (B, K, T), padded on the right.
        read: what was computed of these very responses when they were drawn; used up.
    """
    count = tokens.shape[1]
    answer, mask = tokens.flatten(0, 1), kept.flatten(0, 1)
    lengths: list[int] = mask.sum(-1).tolist()
    networks, weights = [network for network, _ in parts], [weight for _, weight in parts]
    worth = WORTH_A_PASS["cpu" if tokens.device.type == "cpu" else "accelerator"]
    if any(is_spread(network) for network in networks):
        # Every pass gathers the weights of all processes, which must come to the same number of passes: one.
        worth = sum(lengths) + 1
        texts = [_Text(network, prompts, prompt_mask) for network in networks]
    else:
        texts = [_begun(network, prompts, prompt_mask, read, count) for network in networks]
    chunks = length_chunks(lengths, worth)
    indices = [torch.tensor(chunk, device=tokens.device) for chunk in chunks]
    widths = [lengths[chunk[0]] for chunk in chunks]
    known = [text.known(indices, widths, count) for text in texts]
    pieces: list[Tensor] = []
    for at, (rows, width) in enumerate(zip(indices, widths, strict=True)):
        one, one_mask, whose = answer[rows, :width], mask[rows, :width], rows // count
        if width == 0:
            pieces.append(torch.zeros(one.shape, dtype=torch.float32, device=one.device))
            continue
        logits: list[Tensor] = []
        for text, outputs in zip(texts, known, strict=True):
            with replayed(outputs[at]):
                logits.append(text.logits(one, one_mask, whose))
        if len(logits) == 1:
            chosen = selected_log_prob(logits[0], one, temperature, allowed)
        else:
            chosen = mixed_log_probs(logits, weights, temperature, allowed).gather(-1, one[..., None])[..., 0]
        pieces.append(torch.where(one_mask, chosen, 0.0))
    padded = [torch.nn.functional.pad(piece, (0, tokens.shape[-1] - piece.shape[-1])) for piece in pieces]
    return torch.cat(padded)[torch.cat(indices).argsort()].reshape(tokens.shape)


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp_min(0)


@attrs.frozen(eq=False)
class _Text:
    """Prompts that a network is to go on from.

    Attributes:
        begun: its output on the prompts, cache included; without it they are read together with each response.
        spoken: what its layers are known to put out.
    """

    network: Any
    prompts: Tensor
    mask: Tensor
    begun: Any = None
    spoken: Spoken | None = None

    def known(self, rows: Sequence[Tensor], widths: Sequence[int], count: int) -> Sequence[Outputs]:
        """What its layers are known to put out in the passes to come, chunk by chunk."""
        if self.spoken is None:
            return [{} for _ in rows]
        # The last token is predicted, never read.
        chunks = self.spoken.chunks(rows, [max(width - 1, 0) for width in widths])
        if self.begun is None:
            for chunk, some in zip(chunks, rows, strict=True):
                self.spoken.put_before(chunk, some // count)
            self.spoken.prompt.clear()
        return chunks

    def logits(self, answer: Tensor, kept: Tensor, whose: Tensor) -> Tensor:
        """(N, T, V) before each response token; `whose` are the prompts."""
        # The last token is predicted, never read, so it is left off the input.
        mask = torch.cat([self.mask[whose], kept[:, :-1]], 1).long()
        if self.begun is None:
            ids = torch.cat([self.prompts[whose], answer[:, :-1]], 1)
            width = answer.shape[-1]
            logits: Tensor = forward(self.network, ids, mask, _positions(mask), use_cache=False, keep=width).logits
            return logits
        first = self.begun.logits[:, -1:][whose]
        if answer.shape[-1] == 1:
            return first
        cache = branch(self.begun.cache)
        cache.batch_select_indices(whose)
        position = _positions(mask)[:, self.mask.shape[-1] :]
        rest = forward(self.network, answer[:, :-1], mask, position, cache=cache, use_cache=True).logits
        return torch.cat([first, rest], 1)


def _begun(network: Any, prompts: Tensor, mask: Tensor, read: Sequence[PromptsRead], count: int) -> _Text:
    """The prompts, read once for all their responses where the model can go on from a cache."""
    before = next((one for one in read if one.stands_for(network, prompts, mask)), None)
    output, spoken = (None, None) if before is None else (before.output, before.spoken)
    if output is not None and not (torch.is_grad_enabled() and trains(network)):
        return _Text(network, prompts, mask, output)
    # A single response to a prompt is as well read together with it. Activation checkpointing turns caches off.
    if count > 1 and not (base_network(network).training and recomputes(network)):
        with replayed({} if spoken is None else spoken.prompt):
            output = forward(network, prompts, mask.long(), _positions(mask.long()), use_cache=True, keep=1)
        if plain_cache(getattr(output, "cache", None)):
            return _Text(network, prompts, mask, output, spoken)
    return _Text(network, prompts, mask, None, spoken)
