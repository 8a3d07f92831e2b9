"""A scalar reward model as a judge, by the Bradley-Terry model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import PreferenceOracle
from nlhf_zoo.oracles.sequence_scores import (
    SequenceScorer,
    default_max_length,
    load_judge,
    preference,
    same_length,
    save_judge,
)
from nlhf_zoo.oracles.templates import Template, chat_template

__all__ = ["REWARD_TEMPLATE", "RewardModelOracle"]

REWARD_TEMPLATE = "{prompt}{response}"


class RewardModelOracle(PreferenceOracle):
    """P(a > b | x) = sigmoid((r(x, a) - r(x, b)) / temperature), r the logit of a sequence classifier.

    Transitive by construction: with this judge a Condorcet winner always exists. Within one call the reward
    of a repeated (prompt, response) is computed once.

    Args:
        model: transformers sequence classifier with one output; P is computed on its device.
        tokenizer: its tokenizer.
        template: text with {prompt} and {response}. The default joins the two, which is right where
            prompts come rendered by the chat template that the reward model was trained on, generation
            prompt included. "chat" wraps a plain prompt as one user turn and the response as the
            assistant's, by the chat template of this tokenizer.
        temperature: > 0; large values make the judge undecided.
        max_length: in tokens; longer texts lose the prompt from the left, then the response's end.
        batch_size: texts a forward pass.

    Raises:
        BadInput: several outputs, a template without these two fields, a temperature that is not positive.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        template: str = REWARD_TEMPLATE,
        temperature: float = 1.0,
        max_length: int | None = None,
        batch_size: int = 32,
    ) -> None:
        if not (math.isfinite(temperature) and temperature > 0):
            raise BadInput(f"temperature must be a positive number, got {temperature}")
        if max_length is None:
            max_length = default_max_length(model, tokenizer)
        text = chat_template(tokenizer) if template == "chat" else template
        self.temperature = float(temperature)
        self.scorer = SequenceScorer(model, tokenizer, Template(text, ("prompt", "response")), max_length, batch_size)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: Any = "auto",
        dtype: Any = None,
        batch_size: int = 32,
        max_length: int | None = None,
        template: str | None = None,
        temperature: float | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> RewardModelOracle:
        """From a folder or a hub id; template, temperature and max_length are those saved beside it, unless given.

        Raises:
            BadInput: nothing usable there (see `load_classifier`).
        """
        asked = load_judge(
            path,
            "reward_model",
            revision=revision,
            card={"template": template, "temperature": temperature, "max_length": max_length},
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        return cls(**asked, batch_size=batch_size)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write model (safetensors), tokenizer and input format into a folder that `load` reads."""
        return save_judge(path, "reward_model", self.scorer, temperature=self.temperature)

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """(B,) float32 P(first > second | prompt) in [0, 1], on the model's device.

        Raises:
            BadInput: the columns are not equally long.
        """
        same_length(prompts, first, second)
        rewards = self.reward([*prompts, *prompts], [*first, *second])
        return preference((rewards[: len(prompts)] - rewards[len(prompts) :]) / self.temperature)

    def reward(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """(B,) float32 r(prompt, response), on the model's device."""
        same_length(prompts, responses)
        asked = list(zip(prompts, responses, strict=True))
        place = {key: i for i, key in enumerate(dict.fromkeys(asked))}
        rows = [{"prompt": prompt, "response": response} for prompt, response in place]
        return self.scorer.scores(rows)[[place[key] for key in asked]]
