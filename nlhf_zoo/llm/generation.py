"""Sampling from one causal LM, or from the token-level geometric mixture of several, with every KV cache on.

What costs is how often a model is called. A mixture is drafted by one of its models, several tokens in a row, in the
calls that serve the model's other rows as well; each of its other models reads a draft in one call, and it is accepted
or mended so that what is drawn has exactly the mixture's distribution (`nlhf_zoo.llm.speculative`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from nlhf_zoo.llm.reading import GrowingReader, Reader
from nlhf_zoo.llm.speakers import Mixture, Rules, Speaker
from nlhf_zoo.llm.speculative import LOGITS_HELD, LONGEST, DraftLength

__all__ = ["Request", "drafting_first", "generate"]


@attrs.frozen(eq=False)
class Request:
    """Whose responses are wanted: models and their weights in the geometric mixture; one model of weight 1 is plain."""

    parts: tuple[tuple[Any, float], ...]


@attrs.define(eq=False)
class _Desk:
    """A model at work, and the speakers whose rows it reads, one after the other."""

    reader: Reader
    speakers: list[Any]

    def present(self) -> list[Any]:
        return [speaker for speaker in self.speakers if len(speaker.rows)]

    def draft(self, rules: Rules, count: int) -> None:
        """Draw `count` tokens for every row that goes on so long."""
        for _ in range(count):
            mine = self.present()
            if not mine:
                return
            last, position = _joined([one.last for one in mine]), _joined([one.position for one in mine])
            logits = self.reader.read(last, position)[:, -1]
            drawn = rules.draw(logits)
            sizes = [len(one.rows) for one in mine]
            for one, tokens, by in zip(mine, drawn.split(sizes), logits.split(sizes), strict=True):
                one.draw(tokens, by)
            staying = [one.after_a_token() for one in mine]
            if self.leave(mine, staying):
                for one, rows in zip(mine, staying, strict=True):
                    one.leave(rows)

    def verify(self) -> None:
        """Read all drafts."""
        mine = self.present()
        if not mine:
            return
        tokens, position = zip(*(one.to_verify() for one in mine), strict=True)
        logits = self.reader.read(_joined(tokens), _joined(position))
        for one, heard in zip(mine, logits.split([len(one.rows) for one in mine]), strict=True):
            one.hear(self.reader.network, heard)

    def follow(self, count: int) -> None:
        """Forget what did not stand of the last `count` tokens, and rows that have ended."""
        mine = self.present()
        if mine:
            self.reader.take_back(_joined([one.standing(count) for one in mine]), count)
            self.leave(mine, [one.after_a_round() for one in mine])

    def leave(self, mine: Sequence[Any], staying: Sequence[Tensor | None]) -> bool:
        """Whether a row left."""
        if all(rows is None for rows in staying):
            return False
        pairs = zip(mine, staying, strict=True)
        rows = _joined([torch.ones_like(one.ended) if rows is None else rows for one, rows in pairs])
        left = torch.nonzero(rows).flatten()
        if len(left) == len(rows):
            return False
        self.reader.keep(left)
        return True


def _joined(columns: Sequence[Tensor]) -> Tensor:
    return columns[0] if len(columns) == 1 else torch.cat(list(columns))


def _growing(network: Any, prompts: Tensor, mask: Tensor, rows: Tensor, new_tokens: int) -> Reader:
    return GrowingReader.of_prompts(network, prompts, mask, rows)


@torch.no_grad()
def generate(
    requests: Sequence[Request],
    prompts: Tensor,
    prompt_mask: Tensor,
    *,
    num_samples: int,
    max_new_tokens: int,
    stop: Sequence[int],
    padding: int,
    temperature: float,
    allowed: Tensor | None,
    generator: torch.Generator | None,
    open_reader: Callable[[Any, Tensor, Tensor, Tensor, int], Reader] = _growing,
    patience: int = 0,
) -> list[tuple[Tensor, Tensor]]:
    """Draw `num_samples` continuations of each prompt for each request.

    A prompt is read once a model, whatever the number of samples and requests; a model that has a part in several
    requests reads the tokens of all of them in one pass; rows that have ended leave the batch. A mixture is drafted by
    the one of its models that is requested alone too, or that has the largest weight.

    Args:
        prompts: (B, S) int64, padded on the left.
        prompt_mask: (B, S) bool.
        stop: ids that end a response.
        open_reader: reads prompts (B, S) with their mask (int64), for the rows (N,) that go on from them by at most so
            many tokens.
        patience: tokens between two looks for rows that have ended, as in `Rules`; other draws than with 0.

    Returns:
        For each request tokens (B, K, T) int64 padded on the right, and mask (B, K, T) bool with the stop token
        included; T is the longest response of the request.
    """
    ends = torch.tensor(list(stop), device=prompts.device, dtype=torch.int64)
    rules = Rules(max_new_tokens, ends, padding, temperature, allowed, generator, patience)
    whose = torch.arange(len(prompts), device=prompts.device).repeat_interleave(num_samples)
    mask = prompt_mask.long()
    speakers = [
        (Mixture if len(parts) > 1 else Speaker).after(prompts[whose], mask[whose], rules, parts)
        for parts in drafting_first(requests)
    ]
    mixtures = [speaker for speaker in speakers if isinstance(speaker, Mixture)]

    def desks(served: Sequence[tuple[Any, Speaker]]) -> list[_Desk]:
        networks = {id(network): network for network, _ in served}
        mine = [(one, [speaker for network, speaker in served if network is one]) for one in networks.values()]
        return [_Desk(opened(one, whose.repeat(len(its))), its) for one, its in mine]

    def opened(network: Any, rows: Tensor) -> Reader:
        reader = open_reader(network, prompts, mask, rows, max_new_tokens)
        reading.callback(reader.close)
        return reader

    with contextlib.ExitStack() as reading:
        drafters = desks([(speaker.parts[0][0], speaker) for speaker in speakers])
        verifiers = desks([(network, speaker) for speaker in mixtures for network, _ in speaker.parts[1:]])
        length = DraftLength(_longest([*drafters, *verifiers]))
        while any(len(speaker.rows) for speaker in speakers):
            waiting = [mixture for mixture in mixtures if len(mixture.rows)]
            count = min(length.tokens, max(one.room for one in waiting)) if waiting else max_new_tokens
            for desk in drafters:
                desk.draft(rules, count)
            for desk in verifiers:
                desk.verify()
            for mixture in waiting:
                mixture.settle(length)
            for desk in (*drafters, *verifiers) if waiting else ():
                desk.follow(count)
            for mixture in waiting:
                mixture.leave(mixture.stays)
    rules.check()
    return [speaker.spoken((len(prompts), num_samples)) for speaker in speakers]


def drafting_first(requests: Sequence[Request]) -> list[tuple[tuple[Any, float], ...]]:
    """The parts of each request in an order whose first one drafts.

    That is best a model which is called for rows of its own anyway, or else the one nearest to the mixture.
    """
    alone = {id(request.parts[0][0]) for request in requests if len(request.parts) == 1}
    return [tuple(sorted(one.parts, key=lambda part: (id(part[0]) not in alone, -part[1]))) for one in requests]


def _longest(desks: Sequence[_Desk]) -> int:
    """How many tokens of mixtures may be drafted at a time."""
    readers = [desk.reader for desk in desks if any(isinstance(one, Mixture) for one in desk.speakers)]
    if not all(reader.takes_back for reader in readers):
        return 1
    numbers = max((reader.unused.numel() for reader in readers if reader.unused is not None), default=1)
    return max(1, min(LONGEST, LOGITS_HELD // numbers))
