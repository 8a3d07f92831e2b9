"""Everyone against everyone: answers of several policies, judged; and the mixture that theory says to expect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch import Tensor

from nlhf_zoo.demo import language
from nlhf_zoo.interfaces import Game
from nlhf_zoo.oracles import MatrixOracle
from nlhf_zoo.tabular import TabularPolicy, equilibrium

__all__ = ["Answers", "Expectation", "Judge", "expectation", "kind_shares", "pairwise", "pure_answers", "wins"]

Judge = Callable[[Sequence[str], Sequence[str], Sequence[str]], Tensor]
Answers = Sequence[Sequence[str]]
"""Answers to each prompt, as many to each."""


def wins(judge: Judge, prompts: Sequence[str], first: Answers, second: Answers) -> tuple[float, int]:
    """Sum of P(first's answer > second's) over prompts and all pairs of a prompt, and the *independent* comparisons.

    All pairs lower the variance, but answers that meet several times are not independent: the count is that
    of the pairs one against one, so that an interval made from it errs on the wide side.
    """
    rows = [(p, a, b) for p, mine, theirs in zip(prompts, first, second, strict=True) for a in mine for b in theirs]
    rate = float(judge(*(list(column) for column in zip(*rows, strict=True))).mean())
    comparisons = sum(min(len(mine), len(theirs)) for mine, theirs in zip(first, second, strict=True))
    return rate * comparisons, comparisons


def pairwise(judge: Judge, prompts: Sequence[str], players: Mapping[str, Answers]) -> list[list[float]]:
    """(P, P) win rates of the row's player over the column's; a player against itself is at 1/2."""
    names = list(players)
    rates = [[0.5] * len(names) for _ in names]
    for i, one in enumerate(names):
        for j in range(i):
            won, comparisons = wins(judge, prompts, players[one], players[names[j]])
            rates[i][j] = won / comparisons
            rates[j][i] = 1 - rates[i][j]
    return rates


def pure_answers(prompts: Sequence[str], kind: str, count: int, seed: int) -> list[list[str]]:
    """Well-formed answers that are wholly of one kind: the opponents that show where a policy can be beaten."""
    import numpy as np

    generator = np.random.default_rng(seed)
    answers: list[list[str]] = []
    for prompt in prompts:
        mine: list[str] = []
        while len(mine) < count:
            text = language.respond(prompt, kind, generator)
            if language.leaning(text)[list(language.KINDS).index(kind)] == 1:
                mine.append(text)
        answers.append(mine)
    return answers


def kind_shares(answers: Answers) -> dict[str, float]:
    """How much of each kind the answers are, on average; `other` is the rest."""
    leanings = [language.leaning(text) for texts in answers for text in texts]
    shares = {kind: sum(row[at] for row in leanings) / len(leanings) for at, kind in enumerate(language.KINDS)}
    return {**shares, "other": max(0.0, 1 - sum(shares.values()))}


@attrs.frozen
class _Class:
    """Answers that the judge cannot tell apart: equal leaning and equal fluency."""

    leaning: tuple[float, ...]
    fluency: float


@attrs.frozen
class Expectation:
    """The regularised equilibrium.

    Attributes:
        kinds: its shares of each kind.
        win_rate: against the reference.
        worst: how often the well-formed answers of one kind beat it that do so most often.
    """

    kinds: dict[str, float]
    win_rate: float
    worst: float


def expectation(prompts: Sequence[str], reference: Answers, beta: float) -> Expectation:
    """What theory expects: the regularised equilibrium, computed exactly on the answers that the reference gives.

    The judge sees of an answer only its leaning and its fluency, so the game on texts is a game on classes of
    them, whose reference is how often the reference's answers fall into each.
    """
    classes = Counter(
        _Class(language.leaning(text), round(language.fluency(prompt, text), 6))
        for prompt, texts in zip(prompts, reference, strict=True)
        for text in texts
    )
    kept = list(classes)
    matrix = [[language.preference(a.leaning, a.fluency, b.leaning, b.fluency) for b in kept] for a in kept]
    counts = torch.tensor([classes[item] for item in kept], dtype=torch.float64)
    policy = TabularPolicy((counts / counts.sum()).log())
    oracle = MatrixOracle(torch.tensor(matrix, dtype=torch.float64))
    probs = equilibrium(Game(oracle, policy, beta=beta)).probs
    leanings = torch.tensor([item.leaning for item in kept], dtype=torch.float64)
    kinds = dict(zip(language.KINDS, (probs @ leanings).tolist(), strict=True))
    kinds["other"] = max(0.0, 1 - sum(kinds.values()))
    pure = [tuple(float(at == kind) for at in range(len(language.KINDS))) for kind in range(len(language.KINDS))]
    beaten = [[language.preference(one, 1.0, item.leaning, item.fluency) for item in kept] for one in pure]
    worst = float((torch.tensor(beaten, dtype=torch.float64) @ probs).max())
    return Expectation(kinds, float(probs @ oracle.matrix() @ policy.probs), worst)
