"""Response sets that can be listed: every sequence of allowed tokens, for exact expectations."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from nlhf_zoo.errors import BadInput
from nlhf_zoo.llm.tokens import TokenResponses, decode, padding_id, stop_tokens

if TYPE_CHECKING:
    from nlhf_zoo.llm.policy import LanguagePolicy

__all__ = ["all_responses"]

_MOST = 100_000


def all_responses(policy: LanguagePolicy, num_prompts: int = 1) -> TokenResponses:
    """Every response that the policy can give, the same list for each prompt: Y rows that sum to probability 1.

    Raises:
        BadInput: the policy allows all tokens, or more than 100,000 responses.
    """
    allowed = policy.decoding.allowed_tokens
    if allowed is None:
        raise BadInput("responses can be listed only where Decoding(allowed_tokens=...) names the tokens")
    length = policy.decoding.max_new_tokens
    if len(allowed) ** length > _MOST:
        raise BadInput(f"{len(allowed)}^{length} responses are too many to list; the most is {_MOST}")
    stops = set(stop_tokens(policy.parts[0][0], policy.tokenizer))
    rows: list[tuple[int, ...]] = []
    for size in range(1, length + 1):
        for sequence in itertools.product(allowed, repeat=size):
            ended = sequence[-1] in stops
            if not stops.intersection(sequence[:-1]) and (ended or size == length):
                rows.append(sequence)
    tokens = torch.full((len(rows), length), padding_id(policy.tokenizer), dtype=torch.int64)
    mask = torch.zeros((len(rows), length), dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    tokens = tokens.expand(num_prompts, -1, -1).to(policy.device)
    mask = mask.expand(num_prompts, -1, -1).to(policy.device)
    return TokenResponses(tokens, mask, decode(tokens, mask, policy.tokenizer))
