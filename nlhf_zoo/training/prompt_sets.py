"""The prompts that a run trains on, and those that it is measured on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from nlhf_zoo.data.prompts import Prompt, read_prompts, render_prompts, transcript
from nlhf_zoo.errors import BadInput
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.stream import PromptText

__all__ = ["prompts_of"]


def prompts_of(config: TrainConfig, tokenizer: Any) -> tuple[tuple[PromptText, ...], tuple[PromptText, ...]]:
    """The prompts trained on, and the held-out ones of the evaluation.

    Raises:
        BadInput: unreadable, a chat that cannot be rendered, or too few to hold any out.
    """
    prompts = read_prompts(config.prompts, column=config.prompt_column, split=config.prompt_split)
    if config.eval_prompts is None:
        split_seed = config.seed if config.split_seed is None else config.split_seed
        prompts, held_out = _split(prompts, config.eval_size, split_seed)
    else:
        held_out = read_prompts(config.eval_prompts, column=config.prompt_column, split=config.prompt_split)
    return _texts(prompts, tokenizer, config), _texts(held_out, tokenizer, config)


def _split(prompts: Sequence[Prompt], size: int, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Those to train on and `size` different ones, at most half, that have no double among them."""
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(json.dumps(prompt, sort_keys=True), []).append(place)
    different = list(places.values())
    if len(different) < 2:
        raise BadInput("one prompt alone cannot be split into training and held-out prompts; give --eval-prompts")
    size = min(size, len(different) // 2)
    order = torch.randperm(len(different), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = [prompts[different[i][0]] for i in order[:size]]
    return [prompts[place] for i in order[size:] for place in different[i]], held_out


def _texts(prompts: Sequence[Prompt], tokenizer: Any, config: TrainConfig) -> tuple[PromptText, ...]:
    rendered = render_prompts(prompts, tokenizer, chat=config.chat)
    return tuple(
        PromptText(text, transcript(prompt), config.chat or not isinstance(prompt, str))
        for text, prompt in zip(rendered, prompts, strict=True)
    )
