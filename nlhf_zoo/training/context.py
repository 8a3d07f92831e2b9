"""Whether prompts and answers fit into what the model can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nlhf_zoo.errors import BadInput
from nlhf_zoo.llm.tokens import Decoding, encode_prompts
from nlhf_zoo.training.stream import PromptText

__all__ = ["check_context"]


def check_context(prompts: Sequence[PromptText], model_config: Any, tokenizer: Any, decoding: Decoding) -> None:
    """Pass where the longest of the prompts, cut as it will be, leaves room for the longest answer.

    A model without a limit of its positions passes always; one with a limit fails beyond it, or writes nonsense.

    Args:
        model_config: transformers' own.

    Raises:
        BadInput: there is no room.
    """
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return
    if decoding.max_prompt_tokens + decoding.max_new_tokens <= positions:
        return
    longest = max(
        int(encode_prompts([prompt.rendered], tokenizer, decoding, templated=prompt.templated).mask.sum())
        for prompt in prompts
    )
    if longest + decoding.max_new_tokens > positions:
        raise BadInput(
            f"the model reads {positions} tokens, fewer than the longest prompt, {longest}, and max_new_tokens,"
            f" {decoding.max_new_tokens}, together; lower max_prompt_tokens or max_new_tokens"
        )
