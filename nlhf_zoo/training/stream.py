"""Prompts in a seeded order, as a function of the batch number alone: so a run resumes anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from lightning.pytorch import LightningDataModule

from nlhf_zoo.llm import LanguagePolicy, PromptBatch
from nlhf_zoo.llm.tokens import encode_prompts

__all__ = ["PromptData", "PromptText", "encoded_prompts", "prompt_order"]


@attrs.frozen
class PromptText:
    """One prompt: what the model reads, what a judge reads, and whether a chat template wrote the former."""

    rendered: str
    judged: str
    templated: bool = False


def encoded_prompts(prompts: Sequence[PromptText], policy: LanguagePolicy) -> PromptBatch:
    """Prompts as tokens on the policy's device; those of one run are all templated, or none is."""
    return encode_prompts(
        [p.rendered for p in prompts],
        policy.tokenizer,
        policy.decoding,
        policy.device,
        judged=[p.judged for p in prompts],
        templated=all(p.templated for p in prompts),
    )


def prompt_order(count: int, seed: int, start: int, length: int) -> list[int]:
    """Entries `start` to `start + length` of an endless sequence of passes through all prompts, each reshuffled."""
    order: list[int] = []
    position = start
    while len(order) < length:
        epoch, offset = divmod(position, count)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        shuffled = torch.randperm(count, generator=generator).tolist()
        taken = shuffled[offset : offset + length - len(order)]
        order += taken
        position += len(taken)
    return order


class PromptData(LightningDataModule):
    """Batches of `batch_size` prompts; each carries its number in the run, from which all its draws are seeded.

    An optimizer step takes as many batches as there are processes times `accumulate_grad_batches`. They are numbered
    through, so that any split of that product into processes and batches in turn is the same run.
    """

    def __init__(self, prompts: Sequence[PromptText], batch_size: int, seed: int) -> None:
        super().__init__()
        self.prompts, self.batch_size, self.seed = prompts, batch_size, seed

    def train_dataloader(self) -> Any:
        return _Batches(self)

    def batch(self, turn: int) -> tuple[int, tuple[PromptText, ...]]:
        """This process's batch of a turn, and that batch's number among those of all processes."""
        world = self.trainer.world_size if self.trainer else 1
        rank = self.trainer.global_rank if self.trainer else 0
        number = turn * world + rank
        order = prompt_order(len(self.prompts), self.seed, number * self.batch_size, self.batch_size)
        return number, tuple(self.prompts[i] for i in order)


class _Batches:
    """An endless loader that begins where the trainer stands."""

    def __init__(self, data: PromptData) -> None:
        self.data = data

    def __iter__(self) -> Iterator[tuple[int, tuple[PromptText, ...]]]:
        trainer = self.data.trainer
        start = 0 if trainer is None else trainer.global_step * trainer.accumulate_grad_batches
        return (self.data.batch(turn) for turn in itertools.count(start))
