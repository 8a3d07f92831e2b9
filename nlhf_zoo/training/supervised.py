"""Supervised fits: a language model to responses, a pairwise judge to preferences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.intervals import wilson_interval
from nlhf_zoo.llm.tokens import Decoding, encode_prompts, encode_responses, padding_id
from nlhf_zoo.oracles.pairwise_model import PAIRWISE_TEMPLATE, PairwiseModelOracle
from nlhf_zoo.oracles.sequence_scores import padded
from nlhf_zoo.training.fitting import Fit, Schedule, run_fit

__all__ = ["LanguageModelMetrics", "PreferenceMetrics", "fit_language_model", "fit_preference_model", "split"]

Row = TypeVar("Row", bound=tuple[str, ...])


@attrs.frozen(kw_only=True)
class LanguageModelMetrics:
    """What a fit of a language model came to; held-out figures are `None` where nothing was held out.

    Attributes:
        steps: optimiser steps.
        seconds: wall time of the fit alone.
        train_loss: mean nats a token over the last epoch's batches, as they were met.
        held_out: examples never trained on.
        held_out_tokens: their response tokens, ends included.
        held_out_loss: mean nats a response token on them.
        held_out_perplexity: exp of it.
    """

    steps: int
    seconds: float
    train_loss: float
    held_out: int
    held_out_tokens: int
    held_out_loss: float | None
    held_out_perplexity: float | None


@attrs.frozen(kw_only=True)
class PreferenceMetrics:
    """What a fit of a judge came to; held-out figures are `None` where nothing was held out.

    Attributes:
        steps: optimiser steps.
        seconds: wall time of the fit alone.
        train_loss: mean nats a pair over the last epoch's batches, as they were met.
        held_out: pairs never trained on.
        held_out_loss: mean nats a pair on them; a coin's is log 2 = 0.693.
        accuracy: share of them where P(chosen > rejected) > 1/2, a tie counting half.
        accuracy_interval: its 95 % Wilson interval.
    """

    steps: int
    seconds: float
    train_loss: float
    held_out: int
    held_out_loss: float | None
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None


def fit_language_model(
    model: Any,
    tokenizer: Any,
    examples: Sequence[tuple[str, str]],
    *,
    epochs: int | None = None,
    max_steps: int | None = None,
    held_out: float | Sequence[tuple[str, str]] = 0.1,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    max_length: int = 512,
    max_response_length: int | None = None,
    prompt_weight: float = 0.0,
    seed: int = 0,
    accelerator: str = "auto",
    precision: Any = "32-true",
    progress: bool = True,
) -> LanguageModelMetrics:
    """Fit a causal language model, in place, to the responses of (prompt, response) pairs.

    The loss is the mean over response tokens, the end-of-sequence token included (a response that is cut
    has no end). Texts are tokenised and cut just as `CausalLMPolicy` does it.

    Args:
        model: transformers causal LM; afterwards on the device it came on, in eval mode.
        tokenizer: its tokenizer.
        examples: rendered prompts and responses.
        epochs: passes over the examples; give this or `max_steps`.
        max_steps: optimiser steps.
        held_out: examples to measure on, or the share of the prompts to split off for it, in [0, 1).
        batch_size: examples a step.
        learning_rate: of AdamW at its height: linear warm-up over 5 % of the steps, then a cosine to a tenth.
        weight_decay: of AdamW.
        max_length: in tokens, prompt and response together; longer prompts lose their beginning.
        max_response_length: in tokens, end included; half of `max_length`, unless given.
        prompt_weight: weight of a prompt token in the loss, >= 0. Small models that start from nothing
            learn the language from prompts too; held-out figures are of responses alone, always.
        seed: of the split, the order and dropout; global random state is left as it was.
        accelerator: as Lightning's.
        precision: as Lightning's.
        progress: show Lightning's progress bar.

    Raises:
        BadInput: no examples, a share outside [0, 1), lengths that leave no room, or not exactly one of
            `epochs` and `max_steps`.
    """
    response_length = max_response_length or max_length // 2
    if not 0 < response_length < max_length:
        raise BadInput(f"max_response_length must be between 1 and {max_length - 1}, got {response_length}")
    schedule = Schedule(epochs, max_steps, batch_size, learning_rate, weight_decay, seed, accelerator, precision)
    decoding = Decoding(max_new_tokens=response_length, max_prompt_tokens=max_length - response_length)
    train, test = split(examples, held_out, seed)
    fit = _LanguageModelFit(model, schedule, padding_id(tokenizer), prompt_weight)
    home = model.device
    try:
        done = run_fit(fit, _tokens(train, tokenizer, decoding), progress)
        fit.prompt_weight = 0.0
        total, tokens = fit.measure(_tokens(test, tokenizer, decoding))
    finally:
        model.to(home).eval()
    return LanguageModelMetrics(
        steps=done.steps,
        seconds=done.seconds,
        train_loss=done.loss,
        held_out=len(test),
        held_out_tokens=int(tokens),
        held_out_loss=total / tokens if test else None,
        held_out_perplexity=math.exp(total / tokens) if test else None,
    )


def fit_preference_model(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str, str]],
    *,
    epochs: int | None = None,
    max_steps: int | None = None,
    held_out: float | Sequence[tuple[str, str, str]] = 0.1,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    max_length: int = 512,
    template: str = PAIRWISE_TEMPLATE,
    seed: int = 0,
    accelerator: str = "auto",
    precision: Any = "32-true",
    progress: bool = True,
) -> PreferenceMetrics:
    """Fit a pairwise judge, in place: -log P(chosen > rejected), P as `PairwiseModelOracle` computes it.

    Both orders of every pair are seen in every step, so the judge learns nothing from the place.

    Args:
        model: transformers sequence classifier with one output; afterwards on the device it came on, in
            eval mode.
        tokenizer: its tokenizer.
        pairs: (prompt, chosen, rejected), prompts rendered.
        epochs: passes over the pairs; give this or `max_steps`.
        max_steps: optimiser steps.
        held_out: pairs to measure on, or the share of the prompts to split off for it, in [0, 1).
        batch_size: pairs a step (twice as many texts).
        learning_rate: of AdamW at its height: linear warm-up over 5 % of the steps, then a cosine to a tenth.
        weight_decay: of AdamW.
        max_length: in tokens; as in `PairwiseModelOracle`, to which this and `template` must be given too.
        template: text with {prompt}, {first} and {second}.
        seed: of the split, the order and dropout; global random state is left as it was.
        accelerator: as Lightning's.
        precision: as Lightning's.
        progress: show Lightning's progress bar.

    Raises:
        BadInput: no pairs, a share outside [0, 1), or not exactly one of `epochs` and `max_steps`.
    """
    schedule = Schedule(epochs, max_steps, batch_size, learning_rate, weight_decay, seed, accelerator, precision)
    oracle = PairwiseModelOracle(model, tokenizer, template=template, max_length=max_length, batch_size=batch_size)
    train, test = split(pairs, held_out, seed)
    fit = _PreferenceFit(model, schedule, oracle)
    home = model.device
    try:
        done = run_fit(fit, _both_orders(train, oracle), progress)
        total, count = fit.measure(_both_orders(test, oracle))
        right = _right(test, oracle)
    finally:
        model.to(home).eval()
    return PreferenceMetrics(
        steps=done.steps,
        seconds=done.seconds,
        train_loss=done.loss,
        held_out=len(test),
        held_out_loss=total / count if test else None,
        accuracy=right / len(test) if test else None,
        accuracy_interval=wilson_interval(right, len(test)) if test else None,
    )


def split(rows: Sequence[Row], held_out: float | Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows to measure on; rows with the same prompt (their first entry) stay together.

    Args:
        held_out: the share of the prompts to hold out, in [0, 1), or the held-out rows themselves.
        seed: of the draw.

    Raises:
        BadInput: nothing to train on, or a share outside [0, 1).
    """
    if not isinstance(held_out, int | float):
        train, test = list(rows), list(held_out)
    elif not 0 <= held_out < 1:
        raise BadInput(f"held_out must be a share in [0, 1) or a list of examples, got {held_out}")
    else:
        prompts = list(dict.fromkeys(row[0] for row in rows))
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
        away = {prompts[i] for i in order[: round(held_out * len(prompts))]}
        train, test = [row for row in rows if row[0] not in away], [row for row in rows if row[0] in away]
    if not train:
        raise BadInput("nothing to train on: give more examples or hold fewer out")
    return train, test


class _LanguageModelFit(Fit):
    """Items are (prompt ids, response ids)."""

    def __init__(self, model: Any, schedule: Schedule, pad: int, prompt_weight: float) -> None:
        super().__init__(model, schedule)
        self.pad, self.prompt_weight = pad, prompt_weight

    def collate(self, items: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        batch = padded([prompt + response for prompt, response in items], self.pad, "cpu")
        weight = torch.zeros(batch["input_ids"].shape)
        for row, (prompt, response) in enumerate(items):
            weight[row, : len(prompt)] = self.prompt_weight
            weight[row, len(prompt) : len(prompt) + len(response)] = 1
        return {**batch, "weight": weight}

    def total_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        ids, weight = batch["input_ids"], batch["weight"][:, 1:]
        logits = self.model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False).logits[:, :-1]
        nats = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        return (nats * weight.flatten()).sum(), weight.sum()


class _PreferenceFit(Fit):
    """Items are (ids of chosen before rejected, ids of rejected before chosen)."""

    def __init__(self, model: Any, schedule: Schedule, oracle: PairwiseModelOracle) -> None:
        super().__init__(model, schedule)
        self.pad = oracle.scorer.pad_token_id

    def collate(self, items: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        return padded([pair[order] for order in (0, 1) for pair in items], self.pad, "cpu")

    def total_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        forward, backward = self.model(**batch).logits[:, 0].float().chunk(2)
        nats = -F.logsigmoid((forward - backward) / 2)
        return nats.sum(), torch.ones_like(nats).sum()


def _tokens(
    examples: Sequence[tuple[str, str]], tokenizer: Any, decoding: Decoding
) -> list[tuple[list[int], list[int]]]:
    if not examples:
        return []
    prompts = encode_prompts([prompt for prompt, _ in examples], tokenizer, decoding)
    responses = encode_responses([[response] for _, response in examples], tokenizer, decoding)
    return [
        (prompt[kept].tolist(), response[0][answered[0]].tolist())
        for prompt, kept, response, answered in zip(
            prompts.tokens, prompts.mask, responses.tokens, responses.mask, strict=True
        )
    ]


def _both_orders(
    pairs: Sequence[tuple[str, str, str]], oracle: PairwiseModelOracle
) -> list[tuple[list[int], list[int]]]:
    forward = oracle.scorer.encode([{"prompt": x, "first": a, "second": b} for x, a, b in pairs])
    backward = oracle.scorer.encode([{"prompt": x, "first": b, "second": a} for x, a, b in pairs])
    return list(zip(forward, backward, strict=True))


def _right(pairs: Sequence[tuple[str, str, str]], oracle: PairwiseModelOracle) -> float:
    if not pairs:
        return 0.0
    prompts, chosen, rejected = (list(column) for column in zip(*pairs, strict=True))
    with oracle.uncounted():
        better = oracle.probability(prompts, chosen, rejected) - 0.5
    return float((better.sign() + 1).sum() / 2)
