"""Asking the oracle about sampled responses: each unordered pair once, each coin from the run's own generator."""

from __future__ import annotations

import torch
from torch import Tensor

from nlhf_zoo.interfaces import Game
from nlhf_zoo.llm.tokens import PromptBatch, TokenResponses

__all__ = ["ask", "paired", "self_play"]


def ask(
    game: Game, prompts: list[str], first: list[str], second: list[str], generator: torch.Generator | None
) -> Tensor:
    """(N,) P(first > second), judged in the precision that the oracle was loaded in, not in that of the training."""
    oracle, default = game.oracle, torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            answer = oracle.probability(prompts, first, second).double()
    finally:
        torch.set_default_dtype(default)
    if oracle.answers_by_coin:
        answer = torch.bernoulli(answer.cpu(), generator=_on_cpu(generator))
    return answer


def _on_cpu(generator: torch.Generator | None) -> torch.Generator | None:
    # A coin a pair is little work: it is drawn on the CPU, from a seed that the run's generator gives.
    if generator is None or generator.device.type == "cpu":
        return generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))


def self_play(
    game: Game, prompts: PromptBatch, drawn: TokenResponses, generator: torch.Generator | None = None
) -> Tensor:
    """(B, K, K) P(response i > response j), each unordered pair asked once."""
    count = drawn.num_samples
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    rows = [(b, i, j) for b in range(len(prompts)) for i, j in pairs]
    answer = ask(
        game,
        [prompts.judged[b] for b, _, _ in rows],
        [drawn.texts[b][i] for b, i, _ in rows],
        [drawn.texts[b][j] for b, _, j in rows],
        generator,
    ).to(drawn.tokens.device)
    judged = torch.full((len(prompts), count, count), 0.5, dtype=torch.float64, device=drawn.tokens.device)
    b, i, j = torch.tensor(rows, device=judged.device).T
    judged[b, i, j] = answer
    judged[b, j, i] = 1 - answer
    return judged


def paired(
    game: Game,
    prompts: PromptBatch,
    drawn: TokenResponses,
    answers: TokenResponses,
    generator: torch.Generator | None,
) -> Tensor:
    """(B, K) P(response k > the opponent's answer k)."""
    answer = ask(
        game,
        [text for text in prompts.judged for _ in range(drawn.num_samples)],
        [text for row in drawn.texts for text in row],
        [text for row in answers.texts for text in row],
        generator,
    )
    return answer.to(drawn.tokens.device).reshape(len(prompts), -1)
