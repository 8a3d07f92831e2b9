"""Responses that the length limit cut off: told from finished ones, counted, and put at a disadvantage where asked."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nlhf_zoo import CausalLMPolicy, Game, PreferenceOracle
from nlhf_zoo.llm import Decoding
from nlhf_zoo.llm.judging import Judging, self_play
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.llm.tokens import PromptBatch, TokenResponses, ended, join_responses
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.run import train
from tests.test_training import folder  # noqa: F401  # a fixture
from tests.tiny_training import settings

TOKENIZER = byte_tokenizer()
POLICY = CausalLMPolicy(small_llama(TOKENIZER, hidden=16, layers=1, heads=2, seed=0), TOKENIZER, Decoding(4))


class Says(PreferenceOracle):
    """P(first > second) is what it was told of the two texts, or one minus that."""

    def __init__(self, preferred: float, penalty: float) -> None:
        self.preferred, self.unfinished_penalty = preferred, penalty

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        said = [self.preferred if a < b else 1 - self.preferred for a, b in zip(first, second, strict=True)]
        return torch.tensor(said, dtype=torch.float64)


def drawn(*finished: bool, texts: str = "abc") -> TokenResponses:
    tokens = torch.zeros(1, len(finished), 1, dtype=torch.int64)
    whether = torch.tensor([finished])
    return TokenResponses(tokens, tokens == 0, (tuple(texts[: len(finished)]),), finished=whether)


PROMPT = PromptBatch(("p",), ("p",), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool))


@given(st.floats(1e-6, 1 - 1e-6), st.floats(1e-3, 30))
def test_it_is_a_reward_taken_away(preferred: float, penalty: float) -> None:
    """With P = sigmoid(r(a) - r(b)), as if the reward of the one cut off were lower by the penalty."""
    oracle, reward = Says(preferred, penalty), math.log(preferred) - math.log1p(-preferred)
    judged = self_play(Game(oracle, POLICY, 0.1), PROMPT, drawn(False, True, False))[0]
    assert torch.equal(judged + judged.T, torch.ones(3, 3, dtype=torch.float64))
    expected = torch.tensor([reward - penalty, reward, reward + penalty], dtype=torch.float64).sigmoid()
    torch.testing.assert_close(torch.stack([judged[0, 1], judged[0, 2], judged[1, 2]]), expected)
    with Judging(Game(oracle, POLICY, 0.1)) as judging:
        met = judging.paired(PROMPT, drawn(True, False, texts="ab"), drawn(False, False, texts="bc")).answers(None)
    torch.testing.assert_close(met[0], expected[[2, 1]])


@pytest.mark.parametrize("by_coin", [False, True])
@pytest.mark.parametrize("preferred", [0.0, 0.3, 1.0])
def test_at_infinity_it_loses_for_certain(preferred: float, by_coin: bool) -> None:
    oracle = Says(preferred, math.inf)
    oracle.answers_by_coin = by_coin
    judged = self_play(Game(oracle, POLICY, 0.1), PROMPT, drawn(False, True))
    assert judged[0].tolist() == [[0.5, 0.0], [1.0, 0.5]]
    alike = self_play(Game(oracle, POLICY, 0.1), PROMPT, drawn(False, False))[0, 0, 1]
    assert alike in (0.0, 1.0) if by_coin else alike == preferred


def test_what_ended_is_told_by_its_last_token() -> None:
    end = TOKENIZER.eos_token_id
    tokens = torch.tensor([[[5, end, 0], [5, 6, 7], [end, 0, 0], [5, 6, end]]])
    mask = torch.tensor([[[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]]]).bool()
    assert ended(tokens, mask, [end]).tolist() == [[True, False, True, True]]
    assert ended(tokens, mask, []).tolist() == [[False] * 4]
    sampled = POLICY.sample(["a", "b"], 64, torch.Generator().manual_seed(0))
    assert sampled.finished is not None
    stops = [
        row[:count].tolist()[-1] == end
        for row, count in zip(sampled.tokens.flatten(0, 1), sampled.lengths.flatten(), strict=True)
    ]
    assert sampled.finished.flatten().tolist() == stops
    joined = join_responses([sampled, sampled], 0)
    assert joined.finished is not None
    assert joined.finished.shape == (4, 64)


def test_a_run_tells_the_share_and_learns_to_end(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """A judge without any opinion of its own: only the penalty is left to learn from."""
    indifferent = {
        "oracle_options": {"function": f"{__name__}:no_opinion"},
        "steps": 60,
        "learning_rate": 1e-2,
        "progress": False,
    }
    config = settings(folder, tmp_path / "run", unfinished_penalty=math.inf, **indifferent)
    result = train(TrainConfig(**config))
    assert result["unfinished"] < 0.5 < result["reference_unfinished"]
    logs = [path.read_text().splitlines() for path in (tmp_path / "run" / "logs").rglob("metrics.csv")]
    seen = [float(row["train/unfinished"]) for rows in logs for row in csv.DictReader(rows) if row["train/unfinished"]]
    assert seen[-1] < 0.5 < seen[0]
    # The judge itself was not made to say so.
    assert result["win_rate"]["training"]["mean"] == 0.5


def test_a_run_is_resumed_from_its_own_settings(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "run"
    train(TrainConfig(**settings(folder, out, unfinished_penalty=math.inf, steps=1, checkpoint_every=1)))
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert saved["unfinished_penalty"] == math.inf
    assert train(TrainConfig(**{**saved, "steps": 2, "resume": True}))["steps"] == 2


def no_opinion(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    return [0.5] * len(first)
