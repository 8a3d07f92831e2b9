"""A language of six words, and judges of it that go in a circle: small enough to list every response.

A prompt is two words; a response has up to four tokens. Its throw (rock, paper or scissors) is what most of its words
are, the earliest of them where there is a tie; so that no response stands between the throws, and only a policy that
draws several of them is safe. The judges are (1 - weight) x Bradley-Terry + weight x cycle:

- Bradley-Terry, P = sigma(r(a) - r(b)): r = 2 x words / 4, plus the share of the four that are of the prompt's throw;
- cycle: rock beats scissors with 0.9, paper rock with 0.8, scissors paper with 0.7; equal throws tie, and no throw at
  all loses with 0.95.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np

THROWS = ("rock", "paper", "scissors")
WORDS = {"rock": 0, "stone": 0, "paper": 1, "sheet": 1, "scissors": 2, "blade": 2}
"""Each word's throw, by its place in `THROWS`."""
PROMPTS = tuple(" ".join(pair) for pair in itertools.product(WORDS, repeat=2))
RESPONSE_TOKENS = 4
SHARES = (0.5, 0.3, 0.2)
"""How often a word of the examples that the reference is fitted to is of each throw."""

_CYCLE = {(0, 2): 0.9, (1, 0): 0.8, (2, 1): 0.7}
_SPECIAL = ("<pad>", "<bos>", "<eos>")


@functools.lru_cache(maxsize=1 << 16)
def throws_of(text: str) -> tuple[int, ...]:
    """The throw of each word."""
    return tuple(WORDS[word] for word in text.split() if word in WORDS)


@functools.lru_cache(maxsize=1 << 16)
def throw_of(text: str) -> int | None:
    """The throw of most words, the earliest where there is a tie; `None` of a text without a word."""
    throws = throws_of(text)
    return max(throws, key=lambda one: (throws.count(one), -throws.index(one))) if throws else None


@functools.lru_cache(maxsize=1 << 16)
def reward(prompt: str, text: str) -> float:
    """The Bradley-Terry part's, in [0, 3]."""
    throws = throws_of(text)
    return (2 * len(throws) + throws.count(throws_of(prompt)[0])) / RESPONSE_TOKENS


def cycle(first: int | None, second: int | None) -> float:
    """P(first throw > second)."""
    if first == second:
        return 0.5
    if first is None or second is None:
        return 0.05 if first is None else 0.95
    return _CYCLE[first, second] if (first, second) in _CYCLE else 1 - _CYCLE[second, first]


@attrs.frozen
class Judge:
    """P(first > second) = (1 - weight) x Bradley-Terry + weight x cycle; P(a, b) + P(b, a) = 1 up to rounding."""

    weight: float

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        return [self.preference(*row) for row in zip(prompts, first, second, strict=True)]

    def preference(self, prompt: str, first: str, second: str) -> float:
        transitive = 1 / (1 + math.exp(reward(prompt, second) - reward(prompt, first)))
        return (1 - self.weight) * transitive + self.weight * cycle(throw_of(first), throw_of(second))


transitive, mixed, cyclic = Judge(0.0), Judge(0.5), Judge(1.0)
JUDGES = {0.0: "transitive", 0.5: "mixed", 1.0: "cyclic"}
"""Weight -> this module's judge of it, for `--oracle callable --oracle-set function=benchmarks.paper.throws:NAME`."""


def tokenizer() -> object:
    """One token a word, and three special ones: a vocabulary of nine."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    built = Tokenizer(models.WordLevel({word: at for at, word in enumerate((*_SPECIAL, *WORDS))}, unk_token="<pad>"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    built.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=built, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )


def examples(count: int, seed: int) -> list[tuple[str, str]]:
    """`count` pairs (prompt, response) of one to four words that are drawn independently of the prompt."""
    generator = np.random.default_rng(seed)
    shares = [SHARES[throw] / 2 for throw in WORDS.values()]
    words = list(WORDS)
    return [
        (
            PROMPTS[generator.integers(len(PROMPTS))],
            " ".join(generator.choice(words, size=generator.integers(1, RESPONSE_TOKENS + 1), p=shares)),
        )
        for _ in range(count)
    ]


def fit_reference(folder: Path, *, steps: int, seed: int) -> None:
    """A Llama of 14 thousand parameters, fitted to the examples and saved in transformers format."""
    from nlhf_zoo.llm.folders import save_folder
    from nlhf_zoo.llm.small_models import small_llama
    from nlhf_zoo.training.supervised import fit_language_model

    words = tokenizer()
    model = small_llama(words, hidden=32, layers=1, heads=2, seed=seed, max_positions=16)
    fit_language_model(
        model,
        words,
        examples(64 * steps, seed),
        epochs=1,
        batch_size=64,
        learning_rate=1e-2,
        max_length=8,
        max_response_length=RESPONSE_TOKENS + 1,
        seed=seed,
        progress=False,
    )
    save_folder(folder, model, words, {})


def split_prompts() -> tuple[list[str], list[str]]:
    """24 prompts to train on and 12 to evaluate with, as many of each throw in both."""
    held_out = [prompt for at, prompt in enumerate(PROMPTS) if at % 3 == 1]
    return [prompt for prompt in PROMPTS if prompt not in held_out], held_out
