"""Responses and the matches they play: generation chunk by chunk, judged while the next is generated."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from nlhf_zoo.interfaces import Itself, Update
from nlhf_zoo.llm.judging import Asked, Judging
from nlhf_zoo.llm.policy import LanguagePolicy, as_language, same_network, sample_together
from nlhf_zoo.llm.tokens import PromptBatch, TokenResponses, join_responses, padding_id

__all__ = ["Match", "Played", "play"]


@attrs.frozen(eq=False)
class Match:
    """The author's responses against one opponent of an update.

    Attributes:
        weight: the opponent's in the update.
        answers: the opponent's K responses a prompt; `None` where the author's met each other.
        asked: the questions, a chunk of prompts each, in the order of the prompts.
    """

    weight: float
    answers: TokenResponses | None
    asked: tuple[Asked, ...]

    def judged(self, generator: torch.Generator | None) -> Tensor:
        """(B, K, K) in self-play, (B, K) against an opponent's answers: P(response > the other), once it is there."""
        return torch.cat([one.answers(generator) for one in self.asked])


@attrs.frozen(eq=False)
class Played:
    """K responses a prompt, and their matches, which may still be with the judge."""

    drawn: TokenResponses
    matches: tuple[Match, ...]


def play(
    author: LanguagePolicy,
    update: Update,
    judging: Judging,
    prompts: PromptBatch,
    num_samples: int,
    generator: torch.Generator | None,
    *,
    chunks: int = 1,
) -> Played:
    """Let the author, and every other opponent, answer; and ask the judge.

    Args:
        chunks: parts of the batch that are generated in turn. Draws depend on the number of chunks, not on whether a
            judge is asked beside them.
    """
    met = _opponents(author, update)
    elsewhere = [opponent for opponent, _ in met if not same_network(opponent, author)]
    drawn: list[TokenResponses] = []
    answers: list[list[TokenResponses]] = [[] for _ in met]
    asked: list[list[Asked]] = [[] for _ in met]
    for part in prompts.split(chunks):
        mine, *others = sample_together([author, *elsewhere], part, num_samples, generator)
        drawn.append(mine)
        waiting = iter(others)
        for at, (opponent, _) in enumerate(met):
            if same_network(opponent, author):
                asked[at].append(judging.self_play(part, mine))
            else:
                theirs = next(waiting)
                answers[at].append(theirs)
                asked[at].append(judging.paired(part, mine, theirs))
    padding = padding_id(author.tokenizer)
    matches = tuple(
        Match(weight, join_responses(theirs, padding) if theirs else None, tuple(questions))
        for (_, weight), theirs, questions in zip(met, answers, asked, strict=True)
    )
    return Played(join_responses(drawn, padding), matches)


def _opponents(author: LanguagePolicy, update: Update) -> tuple[tuple[LanguagePolicy, float], ...]:
    if update.opponent is None:
        return ()
    if isinstance(update.opponent, Itself):
        return ((author, 1.0),)
    return tuple((as_language(policy), weight) for policy, weight in update.opponent.terms)
