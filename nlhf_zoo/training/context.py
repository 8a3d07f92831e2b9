"""Whether tokens, prompts and answers fit the models of a run, and what of them is not as one might think."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from nlhf_zoo.errors import BadInput
from nlhf_zoo.llm.tokens import Decoding, encode_prompts, stop_tokens
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.stream import PromptText

__all__ = ["check_context", "check_vocabulary", "remark"]

logger = logging.getLogger("nlhf_zoo.training")

_AT_ONCE = 1000
"""Prompts whose tokens are counted in one call."""


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


def check_vocabulary(model_config: Any, reference_config: Any, tokenizer: Any, reference_tokenizer: Any = None) -> None:
    """Pass where model and reference know the tokenizer's tokens, by the same numbers.

    Otherwise an embedding is read beyond its end, or the reference scores another text than the policy wrote.

    Args:
        model_config, reference_config: transformers' own.
        tokenizer: the policy's.
        reference_tokenizer: the reference's own, where it is another model.

    Raises:
        BadInput: it does not hold.
    """
    size, other = (config.get_text_config().vocab_size for config in (model_config, reference_config))
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    most = max(tokenizer.vocab_size, *(number + 1 for number in special if number is not None))
    if most > size:
        raise BadInput(f"tokenizer: it has {most} tokens, the model {size}; give the one that belongs to the model")
    if other != size:
        raise BadInput(f"reference: it has {other} tokens, the model {size}; give one with the model's vocabulary")
    if reference_tokenizer is not None:
        theirs = reference_tokenizer.get_vocab()
        differ = sum(theirs.get(token, number) != number for token, number in tokenizer.get_vocab().items())
        if differ:
            raise BadInput(f"reference: it numbers {differ} tokens otherwise; give one with the model's vocabulary")


def remark(
    config: TrainConfig, prompts: Sequence[PromptText], held_out: Sequence[PromptText], tokenizer: Any, network: Any
) -> None:
    """Say in the log what a run will do with its prompts and answers that its owner may not have meant."""
    if config.batch_size > len(prompts):
        logger.warning(
            "batch_size %d exceeds the %d training prompts: batches repeat them", config.batch_size, len(prompts)
        )
    if config.eval_prompts is None and len(held_out) < config.eval_size:
        logger.warning(
            "eval_size %d: %d of the prompts are held out, half of those that differ, and %d trained on",
            *(config.eval_size, len(held_out), len(prompts)),
        )
    common = len({p.rendered for p in prompts} & {p.rendered for p in held_out})
    if common:
        logger.warning("%d of the eval_prompts are trained on too: the evaluation is not held out", common)
    lengths = _too_long(prompts, tokenizer, config.max_prompt_tokens)
    if lengths:
        logger.warning(
            "%d of the %d training prompts are longer than max_prompt_tokens %d and lose their beginning;"
            " the longest has %d tokens",
            *(len(lengths), len(prompts), config.max_prompt_tokens, max(lengths)),
        )
    if not stop_tokens(network, tokenizer):
        logger.warning(
            "neither tokenizer nor model names an end-of-sequence token: every answer is max_new_tokens %d long",
            config.max_new_tokens,
        )


def _too_long(prompts: Sequence[PromptText], tokenizer: Any, most: int) -> list[int]:
    """Tokens of each text that has more than `most`, those left out that the tokenizer puts in front."""
    # A token stands for a byte at least, so that short texts need not be looked at.
    long = [prompt.rendered for prompt in prompts if len(prompt.rendered.encode()) > most]
    counts: list[int] = []
    for start in range(0, len(long), _AT_ONCE):
        rows: Sequence[Sequence[int]] = tokenizer(long[start : start + _AT_ONCE], add_special_tokens=False)["input_ids"]
        counts += [len(row) for row in rows]
    return [count for count in counts if count > most]
