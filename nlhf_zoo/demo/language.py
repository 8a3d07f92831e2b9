"""A small made-up language, and a judge of it that goes in a circle.

Prompts ask for a place at a time; an answer is one sentence that paints the place by its light, by its sounds
or by its movement. The judge prefers light to sound, sound to movement and movement to light, and
well-formed sentences to broken ones. So there is no best kind of answer, but there is one best mixture.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nlhf_zoo.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CYCLE",
    "KINDS",
    "all_prompts",
    "examples",
    "fluency",
    "judge",
    "kind_matrix",
    "kind_of",
    "leaning",
    "preference",
    "respond",
    "second_judge",
    "split_prompts",
]

KINDS: dict[str, tuple[str, ...]] = {
    "light": ("bright", "golden", "pale", "clear", "shining"),
    "sound": ("loud", "hushed", "quiet", "humming", "ringing"),
    "movement": ("slow", "rolling", "drifting", "turning", "restless"),
}
"""The kinds of answer, and the words that make an answer one of a kind."""

CYCLE: dict[tuple[str, str], float] = {
    ("light", "sound"): 0.85,
    ("sound", "movement"): 0.65,
    ("movement", "light"): 0.75,
}
"""How often a pure answer of the first kind beats one of the second: three unequal strengths, so that the best
mixture is not the uniform one."""

SHARES: dict[str, float] = {"light": 0.5, "sound": 0.3, "movement": 0.2}
"""How often each kind occurs in the examples that the reference is fitted to."""

_PLACES = (
    "sea",
    "river",
    "city",
    "forest",
    "market",
    "valley",
    "harbour",
    "garden",
    "meadow",
    "mountain",
    "village",
    "lake",
)
_TIMES = ("at dawn", "at noon", "at dusk", "at night", "in spring", "in summer", "in autumn", "in winter")
_REQUESTS = ("Describe the {place} {time}.", "Paint the {place} {time}.", "Tell me of the {place} {time}.")
_SENTENCES = ("The {place} is {one} and {two}.", "A {one}, {two} {place}.", "So {one} is the {place}, and {two}.")
_IMPURE = 0.1
_FLUENCY_WEIGHT = 12.0

_KIND_OF_WORD = {word: kind for kind, words in KINDS.items() for word in words}
_KNOWN = (
    frozenset(_KIND_OF_WORD)
    | frozenset(_PLACES)
    | frozenset(" ".join(_TIMES).split())
    | frozenset(["the", "is", "and", "a", "so"])
)
_WORD = re.compile(r"[a-z]+")


def all_prompts() -> list[str]:
    """Every prompt of the language, in a fixed order."""
    return [request.format(place=place, time=time) for place in _PLACES for time in _TIMES for request in _REQUESTS]


def split_prompts(held_out: int, seed: int) -> tuple[list[str], list[str]]:
    """Prompts to train on and prompts to evaluate with, without a common one.

    Raises:
        BadInput: as many held out as there are, or fewer than one.
    """
    prompts = all_prompts()
    if not 1 <= held_out < len(prompts):
        raise BadInput(f"held_out must be between 1 and {len(prompts) - 1}, got {held_out}")
    order = np.random.default_rng(seed).permutation(len(prompts))
    return [prompts[at] for at in order[held_out:]], [prompts[at] for at in order[:held_out]]


def respond(prompt: str, kind: str, generator: np.random.Generator) -> str:
    """A well-formed answer of this kind: two words of it, now and then one of them of another kind."""
    first, second = generator.choice(KINDS[kind], size=2, replace=False)
    if generator.random() < _IMPURE:
        second = generator.choice(KINDS[str(generator.choice([other for other in KINDS if other != kind]))])
    sentence = str(generator.choice(_SENTENCES))
    return sentence.format(place=_place(prompt) or "place", one=first, two=second)


def examples(count: int, seed: int, prompts: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """`count` pairs (prompt, response) for supervised fitting, kinds drawn by `SHARES`; the seed decides all.

    Raises:
        BadInput: a negative count, or no prompts.
    """
    prompts = all_prompts() if prompts is None else prompts
    if count < 0 or not prompts:
        raise BadInput(f"examples need a count >= 0 and at least one prompt, got {count} and {len(prompts)}")
    generator = np.random.default_rng(seed)
    kinds, shares = list(SHARES), list(SHARES.values())
    asked = generator.choice(len(prompts), size=count)
    styles = generator.choice(kinds, size=count, p=shares)
    return [
        (prompts[int(at)], respond(prompts[int(at)], str(kind), generator))
        for at, kind in zip(asked, styles, strict=True)
    ]


def _place(prompt: str) -> str | None:
    return next((word for word in _WORD.findall(prompt.lower()) if word in _PLACES), None)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


@functools.lru_cache(maxsize=1 << 16)
def leaning(text: str) -> tuple[float, ...]:
    """How much of each kind a text is: three numbers >= 0 in the order of `KINDS`, sum <= 1.

    Two different words of a kind, and none of another, make a text wholly that.
    """
    found = {word for word in _words(text) if word in _KIND_OF_WORD}
    counts = [sum(_KIND_OF_WORD[word] == kind for word in found) for kind in KINDS]
    return tuple(count / max(2, len(found)) for count in counts)


def kind_of(text: str) -> str | None:
    """The kind that dominates a text, or `None` where none does."""
    mine = leaning(text)
    best = max(mine)
    return None if best == 0 or mine.count(best) > 1 else list(KINDS)[mine.index(best)]


@functools.lru_cache(maxsize=1 << 16)
def fluency(prompt: str, text: str) -> float:
    """How well-formed an answer is, in [0, 1]: known words, none twice, a sentence's shape, the place asked for."""
    words = _words(text)
    if not words:
        return 0.0
    known = sum(word in _KNOWN for word in words) / len(words)
    fresh = len(set(words)) / len(words)
    shape = (text[:1].isupper() + text.endswith(".") + (text.count(".") == 1)) / 3
    place = float(_place(prompt) in words)
    length = math.exp(-max(0, len(words) - 8, 4 - len(words)) / 3)
    return (2 * known + fresh + shape + place + length) / 6


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _sigmoid(log_odds: float) -> float:
    """sigma(log_odds), such that _sigmoid(x) + _sigmoid(-x) is 1 to the last bit."""
    # 1 - p is exact for p in [1/2, 1], so the smaller of the two is computed from the larger.
    high = 0.5 + 0.5 * math.tanh(abs(log_odds) / 2)
    return high if log_odds >= 0 else 1.0 - high


def preference(
    leaning_a: Sequence[float],
    fluency_a: float,
    leaning_b: Sequence[float],
    fluency_b: float,
    strength: float = 1.0,
    weight: float = _FLUENCY_WEIGHT,
) -> float:
    """P(a > b) of two answers from all that the judge sees of them: how much of each kind, and how fluent."""
    order, log_odds = list(KINDS), weight * (fluency_a - fluency_b)
    for (winner, loser), rate in CYCLE.items():
        i, j = order.index(winner), order.index(loser)
        # Every term changes its sign, and nothing else, when the two answers change places.
        log_odds += strength * _logit(rate) * (leaning_a[i] * leaning_b[j] - leaning_a[j] * leaning_b[i])
    return _sigmoid(log_odds)


def _judge(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str], strength: float, weight: float
) -> Tensor:
    import torch

    if not len(prompts) == len(first) == len(second):
        raise BadInput(f"a judge needs as many prompts as answers, got {len(prompts)}, {len(first)} and {len(second)}")
    values = [
        preference(leaning(a), fluency(prompt, a), leaning(b), fluency(prompt, b), strength, weight)
        for prompt, a, b in zip(prompts, first, second, strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64)


def judge(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
    """(B,) float64 P(first > second | prompt): the intransitive judge that the demo trains against.

    The log-odds are bilinear in how much of each kind the two answers are, with the strengths of `CYCLE`,
    plus the difference of their fluency. P(a > b) + P(b > a) is exactly 1.

    Raises:
        BadInput: columns of unequal length.
    """
    return _judge(prompts, first, second, 1.0, _FLUENCY_WEIGHT)


def second_judge(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
    """A second opinion for the evaluation: the same circle half as strong, and half as much again on fluency."""
    return _judge(prompts, first, second, 0.5, 1.5 * _FLUENCY_WEIGHT)


def kind_matrix() -> list[list[float]]:
    """(3, 3) P(a pure answer of row's kind > one of column's kind), in the order of `KINDS`."""
    order = list(KINDS)
    matrix = [[0.5] * len(order) for _ in order]
    for (winner, loser), rate in CYCLE.items():
        matrix[order.index(winner)][order.index(loser)] = rate
        matrix[order.index(loser)][order.index(winner)] = 1 - rate
    return matrix
