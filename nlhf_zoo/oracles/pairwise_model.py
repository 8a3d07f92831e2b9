"""A pairwise judge: a transformer that reads a prompt and two responses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nlhf_zoo.interfaces import PreferenceOracle
from nlhf_zoo.oracles.sequence_scores import (
    SequenceScorer,
    default_max_length,
    load_judge,
    preference,
    same_length,
    save_judge,
)
from nlhf_zoo.oracles.templates import Template

__all__ = ["PAIRWISE_TEMPLATE", "PairwiseModelOracle"]

PAIRWISE_TEMPLATE = "{prompt}\n\n[A] {first}\n\n[B] {second}\n\n[better]"


class PairwiseModelOracle(PreferenceOracle):
    """P(a > b | x) = sigmoid((z(x, a, b) - z(x, b, a)) / 2), z the logit of a sequence classifier.

    Both orders are asked, so P(a, b) + P(b, a) = 1 and P(a, a) = 1/2 hold exactly, whatever the model's
    liking for the first or the second place; `one_order` tells what that liking is. No reward stands
    behind P: it may be intransitive. A comparison counts as one query, though it takes two forward
    passes; the same comparison twice in a call is computed once.

    Args:
        model: transformers sequence classifier with one output; P is computed on its device.
        tokenizer: its tokenizer.
        template: text with {prompt}, {first} and {second}. Prompts are put in as they come, rendered.
        max_length: in tokens; longer texts lose the prompt from the left, then the responses' ends.
            Left out: what the model and the tokenizer are made for.
        batch_size: texts a forward pass.

    Raises:
        BadInput: several outputs, or a template without these three fields.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        template: str = PAIRWISE_TEMPLATE,
        max_length: int | None = None,
        batch_size: int = 32,
    ) -> None:
        if max_length is None:
            max_length = default_max_length(model, tokenizer)
        parsed = Template(template, ("prompt", "first", "second"))
        self.scorer = SequenceScorer(model, tokenizer, parsed, max_length, batch_size)

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
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> PairwiseModelOracle:
        """From a folder or a hub id; `template` and `max_length` are those saved beside it, unless given.

        Raises:
            BadInput: nothing usable there (see `load_classifier`).
        """
        asked = load_judge(
            path,
            "pairwise_model",
            revision=revision,
            card={"template": template, "max_length": max_length},
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        return cls(**asked, batch_size=batch_size)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write model (safetensors), tokenizer and input format into a folder that `load` reads."""
        return save_judge(path, "pairwise_model", self.scorer)

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """(B,) float32 P(first > second | prompt) in [0, 1], on the model's device.

        Raises:
            BadInput: the columns are not equally long.
        """
        same_length(prompts, first, second)
        forward, backward = (
            list(zip(prompts, first, second, strict=True)),
            list(zip(prompts, second, first, strict=True)),
        )
        logits = self._logits(forward + backward)
        return preference((logits[: len(forward)] - logits[len(forward) :]) / 2)

    def one_order(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """(B,) float32 sigmoid(z(x, first, second)): the judge's word in this order alone, not a preference."""
        same_length(prompts, first, second)
        return self._logits(list(zip(prompts, first, second, strict=True))).sigmoid()

    def _logits(self, asked: Sequence[tuple[str, str, str]]) -> Tensor:
        place = {key: i for i, key in enumerate(dict.fromkeys(asked))}
        rows = [{"prompt": prompt, "first": a, "second": b} for prompt, a, b in place]
        return self.scorer.scores(rows)[[place[key] for key in asked]]
