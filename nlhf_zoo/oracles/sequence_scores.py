"""One number a text: a sequence-classification transformer, its tokenizer and its template."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.llm.folders import load_classifier, save_folder
from nlhf_zoo.llm.places import require_place
from nlhf_zoo.oracles.templates import Row, Template, encode

__all__ = [
    "CARD",
    "SequenceScorer",
    "default_max_length",
    "load_judge",
    "padded",
    "preference",
    "read_card",
    "same_length",
    "save_judge",
]

CARD = "nlhf_zoo_judge.json"
"""The file beside a judge's weights that says how to ask it."""


def _at_least_one(_: Any, attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"{attribute.name} must be a whole number >= 1, got {value!r}")


@attrs.frozen(eq=False)
class SequenceScorer:
    """The logit of a classifier with one output, for rows of texts rendered by a template.

    Attributes:
        model: transformers sequence classifier with one output.
        tokenizer: its tokenizer; without a padding token it pads with its end token.
        template: how a row becomes a text.
        max_length: in tokens; longer texts are shortened as `encode` says.
        batch_size: texts a forward pass, >= 1. It changes results by rounding alone.
    """

    model: Any
    tokenizer: Any
    template: Template
    max_length: int = attrs.field(validator=_at_least_one)
    batch_size: int = attrs.field(default=32, validator=_at_least_one)

    def __attrs_post_init__(self) -> None:
        if self.model.config.num_labels != 1:
            raise BadInput(f"a judge has one output, this model has {self.model.config.num_labels}")
        text_config = self.model.config.get_text_config()
        if text_config.pad_token_id is None:
            text_config.pad_token_id = self.pad_token_id

    @property
    def pad_token_id(self) -> int:
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        if pad is None and end is None:
            raise BadInput("the judge's tokenizer has neither a padding nor an end token; set pad_token")
        return end if pad is None else pad

    def encode(self, rows: Sequence[Row]) -> list[list[int]]:
        return encode(self.tokenizer, self.template, rows, self.max_length)

    def logits(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """(B,) float32 logits of one batch of token ids, differentiable in the model's parameters."""
        batch = padded(sequences, self.pad_token_id, self.model.device)
        return self.model(**batch).logits[:, 0].float()

    @torch.no_grad()
    def scores(self, rows: Sequence[Row]) -> Tensor:
        """(B,) float32 logits, by batches of about equal length, with the model in eval mode."""
        sequences = self.encode(rows)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]), reverse=True)
        result = torch.empty(len(rows), device=self.model.device)
        training = self.model.training
        self.model.eval()
        try:
            for at in range(0, len(order), self.batch_size):
                chosen = order[at : at + self.batch_size]
                result[chosen] = self.logits([sequences[i] for i in chosen])
        finally:
            self.model.train(training)
        return result


def padded(sequences: Sequence[Sequence[int]], pad: int, device: Any) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, (B, longest) int64, padded on the right."""
    width = max(len(ids) for ids in sequences)
    ids = torch.full((len(sequences), width), pad)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.as_tensor(sequence)
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def preference(margin: Tensor) -> Tensor:
    """sigmoid(margin), such that preference(m) + preference(-m) is exactly 1 in floating point."""
    high = margin.abs().sigmoid()
    return torch.where(margin >= 0, high, 1 - high)


def default_max_length(model: Any, tokenizer: Any) -> int:
    """The longest input that both the model and its tokenizer are made for; 1,024 where neither says."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [tokenizer.model_max_length, positions]
    return min((limit for limit in limits if limit and 0 < limit < 10**9), default=1024)


def read_card(path: str | os.PathLike[str], kind: str, revision: str | None) -> dict[str, Any]:
    """How a judge saved by this package is to be asked; empty for a judge that was not.

    Raises:
        BadInput: the file is not valid, or belongs to another kind of judge.
    """
    if Path(path).is_dir():
        file = Path(path, CARD) if Path(path, CARD).is_file() else None
    else:
        from transformers.utils.hub import cached_file

        require_place("judge", str(path))
        file = cached_file(
            str(path),
            CARD,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    if file is None:
        return {}
    try:
        card = json.loads(Path(file).read_text(encoding="utf-8"))
        found = card.pop("kind")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{CARD} in {str(path)!r} is not valid: {error}") from error
    if found != kind:
        raise BadInput(f"{str(path)!r} holds a judge of the kind {found}, not {kind}; use --oracle {found}")
    return card


def load_judge(
    path: str | os.PathLike[str], kind: str, *, revision: str | None, card: Mapping[str, Any], **loading: Any
) -> dict[str, Any]:
    """What a judge's constructor takes: its model and tokenizer, and of `card` what is `None`, as saved beside them.

    What neither gives is left to the constructor.

    Args:
        kind: as `read_card` checks it.
        loading: for `load_classifier`.

    Raises:
        BadInput: nothing usable there (see `load_classifier`), or another kind of judge.
    """
    saved = read_card(path, kind, revision)
    model, tokenizer = load_classifier(path, revision=revision, **loading)
    told = {name: saved.get(name) if value is None else value for name, value in card.items()}
    known = {name: value for name, value in told.items() if value is not None}
    return {"model": model, "tokenizer": tokenizer, **known}


def save_judge(path: str | os.PathLike[str], kind: str, scorer: SequenceScorer, **more: Any) -> Path:
    """Write model (safetensors), tokenizer and how to ask them into a folder that `load_judge` reads."""
    card = {"kind": kind, "template": scorer.template.text, **more, "max_length": scorer.max_length}
    return save_folder(path, scorer.model, scorer.tokenizer, {CARD: json.dumps(card, indent=2) + "\n"})


def same_length(prompts: Sequence[Any], *others: Sequence[Any]) -> None:
    """Raises BadInput unless all the columns are equally long."""
    lengths = [len(prompts), *(len(other) for other in others)]
    if len({*lengths}) > 1:
        raise BadInput(f"prompts and responses must be equally many, got {' and '.join(map(str, lengths))}")
