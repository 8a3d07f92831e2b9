"""Judge calls beside the next generation: the same results as without, truly beside it, and errors that arrive."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nlhf_zoo import Anchor, BadInput, CausalLMPolicy, Game, Opponent, PairRegression, PreferenceOracle, Update
from nlhf_zoo.interfaces import Rollout
from nlhf_zoo.llm import Decoding, sampled_objective
from nlhf_zoo.llm.builtin_engine import BuiltinEngine
from nlhf_zoo.llm.judging import self_play
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.llm.tokens import TokenResponses, join_responses
from nlhf_zoo.oracles import CallableOracle
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.run import train
from tests.test_training import folder, weights  # noqa: F401  # folder is a fixture
from tests.tiny_training import settings

TOKENIZER = byte_tokenizer()
PROMPTS = ["one", "a longer prompt", "three", "4", "fünf"]
PATIENCE = 60.0
"""Seconds after which something that never happens is taken for one that does not."""


class Letters(PreferenceOracle):
    """Prefers vowels; keeps what it was asked, and by which thread."""

    def __init__(self, waits: bool, by_coin: bool = False) -> None:
        self.waits, self.answers_by_coin = waits, by_coin
        self.asked: list[list[str]] = []
        self.threads: set[threading.Thread] = set()

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        self.asked.append(list(prompts))
        self.threads.add(threading.current_thread())
        gaps = [sum(map(a.count, "aeiou")) - sum(map(b.count, "aeiou")) for a, b in zip(first, second, strict=True)]
        return torch.sigmoid(torch.tensor(gaps, dtype=torch.float64))


def policy(seed: int, engine: Any = None) -> CausalLMPolicy:
    model = small_llama(TOKENIZER, hidden=32, layers=1, heads=2, seed=seed)
    return CausalLMPolicy(model, TOKENIZER, Decoding(max_new_tokens=8, engine=engine or BuiltinEngine()))


STUDENT, OTHER, REFERENCE = policy(0), policy(1), policy(2)
ANCHORS = [Anchor(REFERENCE, 0.1)]
UPDATES = {
    "self-play": Update(start=STUDENT, opponent=STUDENT, anchors=ANCHORS),
    "two opponents": Update(start=STUDENT, opponent=Opponent([(OTHER, 0.7), (STUDENT, 0.3)]), anchors=ANCHORS),
    "a fit": Update(start=STUDENT, opponent=STUDENT, anchors=ANCHORS, fit=PairRegression()),
    "no opponent": Update(start=STUDENT, opponent=None, anchors=ANCHORS),
}


def objective(update: Update, oracle: PreferenceOracle, chunks: int) -> tuple[dict[str, float], Tensor]:
    """What an objective measured, and its gradient."""
    STUDENT.network.zero_grad()
    game = Game(oracle, REFERENCE, 0.1)
    prompts, generator = STUDENT.encode(PROMPTS), torch.Generator().manual_seed(3)
    found = sampled_objective(STUDENT, update, game, prompts, 3, generator, chunks=chunks)
    found.loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in STUDENT.network.parameters() if p.grad is not None])
    return {name: float(value) for name, value in found.measured.items()}, gradient


@pytest.mark.parametrize("by_coin", [False, True])
@pytest.mark.parametrize("chunks", [1, 2, 3, 9])
@pytest.mark.parametrize("name", UPDATES)
def test_the_thread_changes_nothing(name: str, chunks: int, by_coin: bool) -> None:
    inline, beside = Letters(False, by_coin), Letters(True, by_coin)
    expected, gradient = objective(UPDATES[name], inline, chunks)
    found, its_gradient = objective(UPDATES[name], beside, chunks)
    assert found == expected
    assert torch.equal(its_gradient, gradient)
    assert beside.asked == inline.asked
    assert beside.queries == inline.queries
    opponents = {"two opponents": 2, "no opponent": 0}.get(name, 1)
    assert len(beside.asked) == opponents * min(chunks, len(PROMPTS))
    # Each prompt is asked about by every opponent's matches: 3 pairs, or 3 meetings.
    assert beside.queries.sampled == opponents * 3 * len(PROMPTS)
    assert inline.threads <= {threading.current_thread()}
    if opponents:
        assert len(beside.threads) == 1
        assert threading.current_thread() not in beside.threads


def test_a_batch_in_one_chunk_is_the_plain_one() -> None:
    """Chunks of their own draw, one chunk draws as `sample` does."""
    oracle = Letters(True)
    objective(UPDATES["self-play"], oracle, 1)
    drawn = STUDENT.sample(PROMPTS, 3, torch.Generator().manual_seed(3))
    expected = Letters(False)
    self_play(Game(expected, REFERENCE, 0.1), STUDENT.encode(PROMPTS), drawn)
    assert oracle.asked == expected.asked


class Meeting:
    """Two places where each side says that it is there, and waits for the other."""

    def __init__(self) -> None:
        self.judge_has_begun, self.second_generation_has_begun = threading.Event(), threading.Event()


class WaitingJudge(Letters):
    def __init__(self, meeting: Meeting) -> None:
        super().__init__(waits=True)
        self.meeting = meeting

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        if not self.asked:
            self.meeting.judge_has_begun.set()
            assert self.meeting.second_generation_has_begun.wait(PATIENCE), "generation waits for the judge"
        return Letters.probability(self, prompts, first, second)


class WaitingEngine(BuiltinEngine):
    def __init__(self, meeting: Meeting) -> None:
        self.meeting, self.generated = meeting, 0

    def generate(self, *parts: Any, **how: Any) -> list[Rollout]:
        self.generated += 1
        if self.generated == 2:
            self.meeting.second_generation_has_begun.set()
            assert self.meeting.judge_has_begun.wait(PATIENCE), "the judge waits for generation"
        return super().generate(*parts, **how)


def test_the_first_chunk_is_judged_while_the_second_is_generated() -> None:
    """Neither can end before the other has begun: without overlap, both would wait in vain."""
    meeting = Meeting()
    judge = WaitingJudge(meeting)
    student = policy(0, WaitingEngine(meeting))
    update = Update(start=student, opponent=student, anchors=ANCHORS)
    prompts = student.encode(PROMPTS)
    found = sampled_objective(
        student, update, Game(judge, REFERENCE, 0.1), prompts, 3, torch.Generator().manual_seed(3), chunks=2
    )
    expected, _ = objective(UPDATES["self-play"], Letters(False), 2)
    assert {name: float(value) for name, value in found.measured.items()} == expected


class FailingJudge(Letters):
    def __init__(self, waits: bool, error: Exception) -> None:
        super().__init__(waits)
        self.error = error

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        answer = Letters.probability(self, prompts, first, second)
        if len(self.asked) == 2:
            raise self.error
        return answer


@pytest.mark.parametrize("error", [BadInput("the budget is spent"), ConnectionError("gone"), KeyError("x")])
def test_errors_arrive_as_they_are_and_nothing_more_is_asked(error: Exception) -> None:
    queries = []
    for waits in (False, True):
        judge = FailingJudge(waits, error)
        with pytest.raises(type(error)) as caught:
            objective(UPDATES["self-play"], judge, 4)
        assert caught.value is error
        assert len(judge.asked) == 2
        queries.append(judge.queries)
    assert queries[0] == queries[1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("nlhf_zoo_judge")]


class Careless(Letters):
    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        return torch.tensor([0.7 if a < b else 0.3 if a > b else 0.5 for a, b in zip(first, second, strict=True)])


def test_a_judge_beside_a_training_in_bf16_names_its_dtype() -> None:
    default = torch.get_default_dtype()
    objective(UPDATES["self-play"], Careless(True), 1)
    torch.set_default_dtype(torch.bfloat16)
    try:
        objective(UPDATES["self-play"], Letters(True), 1)
        objective(UPDATES["self-play"], Careless(False), 1)
        with pytest.raises(BadInput, match=r"Careless .*bfloat16.*dtype"):
            objective(UPDATES["self-play"], Careless(True), 1)
    finally:
        torch.set_default_dtype(default)


def test_joined_responses_are_the_same_responses() -> None:
    short = TokenResponses(torch.tensor([[[5, 2]]]), torch.tensor([[[True, True]]]), (("a",),))
    long = TokenResponses(torch.tensor([[[6, 7, 8]]]), torch.tensor([[[True, True, False]]]), (("bc",),))
    joined = join_responses([short, long], 9)
    assert joined.tokens.tolist() == [[[5, 2, 9]], [[6, 7, 8]]]
    assert joined.mask.tolist() == [[[True, True, False]], [[True, True, False]]]
    assert joined.texts == (("a",), ("bc",))
    assert joined.log_probs is None


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8])
def test_parts_of_a_batch_are_the_batch(parts: int) -> None:
    batch = STUDENT.encode(PROMPTS)
    split = list(batch.split(parts))
    sizes = [len(part) for part in split]
    assert len(split) == min(parts, len(PROMPTS))
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.cat([part.tokens for part in split]), batch.tokens)
    assert torch.equal(torch.cat([part.mask for part in split]), batch.mask)
    assert [text for part in split for text in part.texts] == list(batch.texts)


def test_a_run_with_a_judge_that_waits_is_the_same_run(
    folder: Path,  # noqa: F811  # the fixture
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = []
    for waits in (False, True):
        monkeypatch.setattr(CallableOracle, "waits", waits)
        out = tmp_path / str(waits)
        train(TrainConfig(**settings(folder, out, judge_chunks=2, steps=3)))
        ended.append(weights(out))
    assert all(torch.equal(ended[0][name], value) for name, value in ended[1].items())
