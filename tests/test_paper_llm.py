"""The language of throws: its judges, and what is measured over every response."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch

from benchmarks.paper.listed import Kinds, Listed, listed
from benchmarks.paper.throw_games import Scale, Workshop
from benchmarks.paper.throws import PROMPTS, WORDS, Judge, fit_reference, split_prompts, throw_of
from nlhf_zoo.llm import CausalLMPolicy
from nlhf_zoo.llm.tokens import Decoding
from nlhf_zoo.metrics import duality_gap
from nlhf_zoo.training.config import TrainConfig

TEXTS = tuple(" ".join(words) for size in range(4) for words in itertools.product(WORDS, repeat=size))


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_a_judge_sees_no_order_and_its_kinds_are_all_it_sees(weight: float) -> None:
    judge, draw = Judge(weight), random.Random(0)
    for _ in range(300):
        prompt, first, second = draw.choice(PROMPTS), draw.choice(TEXTS), draw.choice(TEXTS)
        kinds = Kinds.of(judge, prompt, TEXTS)
        a, b = (int(kinds.place[TEXTS.index(text)]) for text in (first, second))
        (asked,) = judge([prompt], [first], [second])
        assert asked + judge.preference(prompt, second, first) == pytest.approx(1, abs=1e-15)
        assert float(kinds.preference[a, b]) == pytest.approx(asked, abs=1e-15)


def test_the_judges_go_in_a_circle_by_their_weight() -> None:
    pure = ["rock stone rock", "scissors blade blade", "paper sheet sheet"]
    for prompt in PROMPTS:
        rates = [Judge(1.0).preference(prompt, pure[at], pure[(at + 1) % 3]) for at in range(3)]
        assert rates == [0.9, 0.7, 0.8]
        transitive = [Judge(0.0).preference(prompt, pure[at], pure[(at + 1) % 3]) for at in range(3)]
        assert min(transitive) < 0.5
    assert throw_of("paper rock") == WORDS["paper"]
    assert throw_of("paper rock stone") == WORDS["rock"]
    assert throw_of("") is None


def some_policy(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(split_prompts()[1]), count, generator=generator, dtype=torch.float64)
    return drawn.log_softmax(-1)


class Responses:
    texts = (TEXTS,)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_measures_are_those_of_the_whole_matrix(weight: float) -> None:
    judge, beta = Judge(weight), 0.05
    measures = Listed(Responses(), some_policy(len(TEXTS), 0))
    policy = some_policy(len(TEXTS), 1)
    gaps, wins = [], []
    for prompt, row, reference in zip(split_prompts()[1], policy, measures.reference, strict=True):
        matrix = torch.tensor([[judge.preference(prompt, a, b) for b in TEXTS] for a in TEXTS], dtype=torch.float64)
        gaps.append(float(duality_gap(matrix @ row.exp(), row, reference, beta)))
        wins.append(float(row.exp() @ matrix @ reference.exp()))
    found = measures.measured(policy, judge, beta)
    assert found["gap"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-10)
    assert found["win_rate"] == pytest.approx(sum(wins) / len(wins), rel=1e-12)
    assert found["gap"] > 0.1
    best = measures.measured(measures.equilibrium(judge, beta), judge, beta)
    assert best["gap"] < 1e-10


def trained(workshop: Workshop, solver: str, out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    from nlhf_zoo.training.run import train

    settings = workshop.game(0.5)["train"] | {"eval_every": 0, "steps": 3, "logger": "none", "progress": False}
    train(TrainConfig(**settings, solver=solver, out=out, seed=1))
    return load_file(out / "policy" / "model.safetensors")


def test_a_table_is_the_policys_own_log_probabilities(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    fit_reference(folder, steps=2, seed=0)
    measures = listed(folder)
    assert measures.reference.exp().sum(-1).tolist() == pytest.approx([1.0] * 12)
    policy = CausalLMPolicy.from_pretrained(str(folder), decoding=Decoding(max_new_tokens=4, max_prompt_tokens=8))
    drawn = policy.sample(split_prompts()[1], 5, torch.Generator().manual_seed(0))
    place = {tuple(row): at for at, row in enumerate(measures.responses.tokens[0].tolist())}
    asked = policy.log_prob(split_prompts()[1], drawn)
    for at, rows in enumerate(drawn.tokens.tolist()):
        mine = [float(measures.reference[at, place[tuple(row)]]) for row in rows]
        assert mine == pytest.approx(asked[at].tolist(), abs=1e-5)


@pytest.mark.slow
def test_nash_prox_is_nash_mp_in_its_practical_form(tmp_path: Path) -> None:
    workshop = Workshop.made(tmp_path, Scale(fit_steps=5, prompts=4))
    one, other, third = (trained(workshop, name, tmp_path / name) for name in ("nash_mp", "nash_prox", "online_ipo"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], third[name]) for name in one)
