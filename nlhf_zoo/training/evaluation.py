"""How good a policy is: win rate against the reference, distance from it, and answers to read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch

from nlhf_zoo.interfaces import PreferenceOracle
from nlhf_zoo.intervals import wilson_interval
from nlhf_zoo.llm import LanguagePolicy
from nlhf_zoo.training.module import seeded
from nlhf_zoo.training.processes import by_first, everyone, place
from nlhf_zoo.training.stream import PromptText, encoded_prompts

__all__ = ["Answers", "Estimate", "Report", "answer", "distance", "report", "small_distance", "verdicts", "win_rate"]


@attrs.frozen
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float
    samples: int


@attrs.frozen
class Answers:
    """One response to each prompt, with log-probabilities under the policy that gave it.

    `finished` says which ended by themselves, and not at the length limit.
    """

    prompts: tuple[PromptText, ...]
    texts: tuple[str, ...]
    log_probs: tuple[float, ...]
    reference_log_probs: tuple[float, ...]
    lengths: tuple[int, ...]
    finished: tuple[bool, ...] = ()

    @property
    def unfinished(self) -> float:
        """Share that the length limit cut off."""
        return 1 - sum(self.finished) / len(self.finished)

    @property
    def distinct(self) -> float:
        """Share of different texts, in (0, 1]."""
        return len(set(self.texts)) / len(self.texts)

    @property
    def distinct_bigrams(self) -> float | None:
        """Different pairs of neighbouring words over all pairs, all texts together; `None` without any."""
        pairs = [pair for text in self.texts for pair in itertools.pairwise(text.split())]
        return len(set(pairs)) / len(pairs) if pairs else None

    @property
    def entropy(self) -> float:
        """Nats a token, the mean of -log-probability over all tokens drawn."""
        return -sum(self.log_probs) / max(1, sum(self.lengths))


@torch.no_grad()
def answer(
    policy: LanguagePolicy, reference: LanguagePolicy, prompts: Sequence[PromptText], *, seed: int, batch_size: int
) -> Answers:
    """Sample one response to each prompt, each process a share of the batches; a collective call, equal on all.

    Draws are seeded by (seed, batch), so that the answers do not depend on the number of processes.
    """
    starts = range(0, len(prompts), batch_size)
    rank, processes = place()
    mine: dict[int, Answers] = {}
    for first in range(0, len(starts), processes):
        # One that has no batch left answers the last again: spread weights need every process in every pass.
        start = starts[min(first + rank, len(starts) - 1)]
        rows = tuple(prompts[start : start + batch_size])
        batch = encoded_prompts(rows, policy)
        drawn = policy.sample(batch, 1, seeded(policy.device, seed, start))
        assert drawn.finished is not None  # of what was sampled it is known
        mine[start] = Answers(
            rows,
            tuple(row[0] for row in drawn.texts),
            tuple(policy.log_prob(batch, drawn).flatten().double().tolist()),
            tuple(reference.log_prob(batch, drawn).flatten().double().tolist()),
            tuple(drawn.lengths.flatten().tolist()),
            tuple(drawn.finished.flatten().tolist()),
        )
    found = {start: answers for share in everyone(mine) for start, answers in share.items()}
    in_order = [attrs.astuple(found[start], recurse=False) for start in starts]
    return Answers(*(sum(column, ()) for column in zip(*in_order, strict=True)))


def verdicts(oracle: PreferenceOracle, first: Answers, second: Answers) -> tuple[float, ...]:
    """P(first > second) of each prompt, answered once by both; not counted as queries."""
    with oracle.uncounted(), torch.no_grad():
        judged = oracle.probability([p.judged for p in first.prompts], list(first.texts), list(second.texts))
    return tuple(judged.double().tolist())


def win_rate(judged: Sequence[float]) -> Estimate:
    """The mean of verdicts over prompts.

    The interval is Wilson's. With soft preferences it is conservative: their variance is at most a coin's.
    """
    low, high = wilson_interval(sum(judged), len(judged))
    return Estimate(sum(judged) / len(judged), low, high, len(judged))


def distance(answers: Answers) -> Estimate:
    """KL(policy || reference) per response in nats, the mean log-ratio of the policy's own answers (k1)."""
    gaps = torch.tensor(answers.log_probs, dtype=torch.float64) - torch.tensor(answers.reference_log_probs)
    mean, count = float(gaps.mean()), len(gaps)
    half = 1.96 * float(gaps.std()) / math.sqrt(count) if count > 1 else math.inf
    return Estimate(mean, mean - half, mean + half, count)


def small_distance(answers: Answers) -> float:
    """The same distance by the estimator k3, r - 1 - log r with r = reference/policy: never negative.

    Its noise is small where the distance is, so that it can tell a policy that has not moved; far away it is useless.
    """
    logs = [theirs - mine for mine, theirs in zip(answers.log_probs, answers.reference_log_probs, strict=True)]
    return sum(math.expm1(min(log, 700.0)) - log for log in logs) / len(logs)


@attrs.frozen
class Report:
    """What was measured, and what it was measured on.

    Attributes:
        figures: as in result.json.
        policy, reference: both sides' answers.
        judged: oracle -> P(policy's answer > reference's) of each prompt.
    """

    figures: dict[str, Any]
    policy: Answers
    reference: Answers
    judged: Mapping[str, tuple[float, ...]]

    def samples(self, count: int) -> list[dict[str, Any]]:
        """The first prompts with both answers, and each oracle's preference for the policy's."""
        rows: list[dict[str, Any]] = []
        for i, prompt in enumerate(self.policy.prompts[:count]):
            row = {"prompt": prompt.judged, "reference": self.reference.texts[i], "policy": self.policy.texts[i]}
            rows.append(row | {f"wins by {name}": values[i] for name, values in self.judged.items()})
        return rows


def report(
    policy: LanguagePolicy,
    reference: LanguagePolicy,
    prompts: Sequence[PromptText],
    oracles: Mapping[str, PreferenceOracle],
    *,
    seed: int,
    batch_size: int,
) -> Report:
    """Win rate under each oracle, KL, length, entropy and diversity. A collective call.

    The first process alone asks the oracles.
    """
    mine = answer(policy, reference, prompts, seed=seed, batch_size=batch_size)
    # Another seed: with equal draws an untrained policy would meet its own answers.
    theirs = answer(reference, reference, prompts, seed=seed + 1, batch_size=batch_size)
    judged = by_first(lambda: {name: verdicts(oracle, mine, theirs) for name, oracle in oracles.items()})
    figures: dict[str, Any] = {
        "win_rate": {name: attrs.asdict(win_rate(values)) for name, values in judged.items()},
        "kl_to_reference": attrs.asdict(distance(mine)),
        "kl_to_reference_k3": small_distance(mine),
        "length": sum(mine.lengths) / len(mine.lengths),
        "reference_length": sum(theirs.lengths) / len(theirs.lengths),
        "unfinished": mine.unfinished,
        "reference_unfinished": theirs.unfinished,
        "entropy": mine.entropy,
        "distinct": mine.distinct,
        "distinct_bigrams": mine.distinct_bigrams,
        "prompts": len(prompts),
    }
    return Report(figures, mine, theirs, judged)
