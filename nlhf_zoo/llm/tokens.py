"""Texts to padded token batches and back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Responses, RolloutEngine
from nlhf_zoo.llm.builtin_engine import BuiltinEngine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Decoding",
    "PromptBatch",
    "TokenResponses",
    "decode",
    "encode_prompts",
    "encode_responses",
    "ended",
    "join_responses",
    "stop_tokens",
]


@attrs.frozen
class Decoding:
    """How a policy answers; part of the policy, for sampling and log-probabilities alike.

    Attributes:
        max_new_tokens: a response ends with the end-of-sequence token, or at this length, >= 1.
        max_prompt_tokens: longer prompts lose their beginning.
        temperature: logits are divided by it, > 0.
        allowed_tokens: token ids that responses may hold; all, unless given. Leaving out the end-of-sequence
            token makes every response exactly `max_new_tokens` long.
        engine: what draws the responses.
    """

    max_new_tokens: int = attrs.field(default=128, validator=attrs.validators.ge(1))
    max_prompt_tokens: int = attrs.field(default=512, validator=attrs.validators.ge(1))
    temperature: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))
    allowed_tokens: tuple[int, ...] | None = None
    engine: RolloutEngine = attrs.field(factory=BuiltinEngine, eq=False, repr=False)


@attrs.frozen(eq=False)
class PromptBatch:
    """B prompts, padded on the left.

    Attributes:
        texts: what the model reads.
        judged: what an oracle reads; the same, unless a chat template stands between.
        tokens: (B, S) int64.
        mask: (B, S) bool, True on tokens of the prompt.
    """

    texts: tuple[str, ...]
    judged: tuple[str, ...]
    tokens: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def split(self, parts: int) -> Iterator[PromptBatch]:
        """The batch in order, in `parts` parts whose sizes differ by one at most; none is empty."""
        bounds = [len(self) * i // parts for i in range(parts + 1)]
        for start, end in itertools.pairwise(bounds):
            if start < end:
                rows = slice(start, end)
                yield PromptBatch(self.texts[rows], self.judged[rows], self.tokens[rows], self.mask[rows])

    def to(self, device: torch.device | str) -> PromptBatch:
        return attrs.evolve(self, tokens=self.tokens.to(device), mask=self.mask.to(device))


@attrs.frozen(eq=False)
class TokenResponses(Responses):
    """K responses to each of B prompts, padded on the right.

    Attributes:
        tokens: (B, K, T) int64.
        mask: (B, K, T) bool, True on tokens of the response, its end-of-sequence token included.
        texts: B rows of K texts, without special tokens.
        log_probs: (B, K, T) what the engine that drew them says of each token; see `Rollout`.
        finished: (B, K) bool, whether an end-of-sequence token ended it and not the length limit; `None`: not known.
    """

    tokens: Tensor
    mask: Tensor
    texts: tuple[tuple[str, ...], ...]
    log_probs: Tensor | None = None
    finished: Tensor | None = None

    @property
    def num_samples(self) -> int:  # type: ignore[override]  # a property serves the attribute
        return self.tokens.shape[1]

    @property
    def lengths(self) -> Tensor:
        """(B, K) tokens of each response."""
        return self.mask.sum(-1)


def join_responses(parts: Sequence[TokenResponses], padding: int) -> TokenResponses:
    """The same responses in one batch, padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.tokens.shape[-1] for part in parts)

    def padded(one: Tensor, value: float) -> Tensor:
        return torch.nn.functional.pad(one, (0, width - one.shape[-1]), value=value)

    log_probs = [padded(part.log_probs, 0.0) for part in parts if part.log_probs is not None]
    finished = [part.finished for part in parts if part.finished is not None]
    return TokenResponses(
        torch.cat([padded(part.tokens, padding) for part in parts]),
        torch.cat([padded(part.mask, False) for part in parts]),
        tuple(row for part in parts for row in part.texts),
        torch.cat(log_probs) if len(log_probs) == len(parts) else None,
        torch.cat(finished) if len(finished) == len(parts) else None,
    )


def ended(tokens: Tensor, mask: Tensor, stop: Sequence[int]) -> Tensor:
    """(B, K) bool: whether the last token of each response (B, K, T) is one of `stop`."""
    last = tokens.gather(-1, (mask.sum(-1, keepdim=True) - 1).clamp_min(0)).squeeze(-1)
    return torch.isin(last, torch.tensor(list(stop), dtype=last.dtype, device=last.device)) & mask.any(-1)


def stop_tokens(network: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end a response: the tokenizer's and those of the model's generation config."""
    ids: set[int] = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}  # type: ignore[arg-type]
    more = getattr(getattr(network, "generation_config", None), "eos_token_id", None)
    if more is not None:
        ids |= {int(i) for i in (more if isinstance(more, list | tuple) else [more])}
    return tuple(sorted(ids))


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with; masks tell padding from text, so any id does where the tokenizer has none."""
    chosen = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(chosen) if chosen is not None else 0  # type: ignore[arg-type]


def encode_prompts(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    decoding: Decoding,
    device: torch.device | str = "cpu",
    judged: Sequence[str] | None = None,
    templated: bool = False,
) -> PromptBatch:
    """Tokenise prompts as the tokenizer itself would; what a chat template wrote gets no special tokens more.

    Prompts that are cut keep their beginning-of-sequence token.

    Raises:
        BadInput: no prompts, or one that comes to no token at all.
    """
    if not texts:
        raise BadInput("no prompts to answer")
    rows = [_prompt_ids(text, tokenizer, templated, decoding.max_prompt_tokens) for text in texts]
    empty = next((i for i, row in enumerate(rows) if not row), None)
    if empty is not None:
        raise BadInput(
            f"prompt {empty} has no tokens, and the tokenizer no beginning-of-sequence token to stand for it"
        )
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), padding_id(tokenizer), dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = True
    return PromptBatch(tuple(texts), tuple(judged or texts), tokens.to(device), mask.to(device))


def _prompt_ids(text: str, tokenizer: PreTrainedTokenizerBase, templated: bool, most: int) -> list[int]:
    begin, end = tokenizer.bos_token, tokenizer.eos_token_id
    plain: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
    ids = plain
    if not templated and not (isinstance(begin, str) and begin and text.startswith(begin)):
        ids: list[int] = tokenizer(text)["input_ids"]  # type: ignore[assignment]
        # Some tokenizers close every text; a prompt is to be gone on with.
        if ids and ids[-1] == end and plain[-1:] != [end]:
            ids = ids[:-1]
    if len(ids) <= most:
        return ids
    return [ids[0], *ids[len(ids) - most + 1 :]] if ids[0] == tokenizer.bos_token_id and most > 1 else ids[-most:]


def encode_responses(
    texts: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    decoding: Decoding,
    device: torch.device | str = "cpu",
) -> TokenResponses:
    """Tokenise B rows of K response texts; the end-of-sequence token is added where it fits and may be used."""
    end = tokenizer.eos_token_id
    ends = end is not None and (decoding.allowed_tokens is None or end in decoding.allowed_tokens)
    rows: list[list[int]] = []
    for text in (text for row in texts for text in row):
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
        rows.append(([*ids, int(end)] if ends else ids)[: decoding.max_new_tokens])  # type: ignore[arg-type]
    width = max(1, *(len(row) for row in rows))
    tokens = torch.full((len(rows), width), padding_id(tokenizer), dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    shape = (len(texts), len(texts[0]), width)
    return TokenResponses(
        tokens.reshape(shape).to(device), mask.reshape(shape).to(device), tuple(tuple(row) for row in texts)
    )


def decode(tokens: Tensor, mask: Tensor, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, ...], ...]:
    """B rows of K texts of (B, K, T) tokens, special tokens left out."""
    rows, keep = tokens.cpu().tolist(), mask.cpu().tolist()
    return tuple(
        tuple(
            tokenizer.decode([t for t, k in zip(ids, kept, strict=True) if k], skip_special_tokens=True)  # type: ignore[misc]
            for ids, kept in zip(row, row_keep, strict=True)
        )
        for row, row_keep in zip(rows, keep, strict=True)
    )
