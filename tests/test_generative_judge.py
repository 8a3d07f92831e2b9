"""A local language model as a judge: its logits, both orders, its cache; and several judges as one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import QueryCount
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.oracles import CallableOracle, EnsembleOracle, GenerativeModelOracle
from nlhf_zoo.oracles.audit import audit
from nlhf_zoo.oracles.build import build_oracle
from nlhf_zoo.oracles.ensemble import Disagreement, Member
from nlhf_zoo.oracles.judge_prompt import JudgePrompt

TOKENIZER = byte_tokenizer()
MODEL = small_llama(TOKENIZER, hidden=32, layers=2, heads=2, seed=4)
for _weight in MODEL.parameters():
    if _weight.ndim == 2:
        _weight.data.mul_(6)
PROMPT = JudgePrompt(system="Judge.", user="{prompt}|{first}|{second}", first="A", second="B")
COLUMNS = (
    ["Where?", "Why so, at length?", "Where?", ""],
    ["here", "ok", "here", "x"],
    ["there", "no {braces}", "there", "x"],
)


def test_verdicts_are_those_of_the_next_tokens_logits() -> None:
    oracle = GenerativeModelOracle(MODEL, TOKENIZER, prompt=PROMPT, batch_size=2)
    a, b = (TOKENIZER(x, add_special_tokens=False)["input_ids"][0] for x in "AB")

    def q(x: str, first: str, second: str) -> torch.Tensor:
        text = TOKENIZER.apply_chat_template(
            [{"role": "system", "content": "Judge."}, {"role": "user", "content": f"{x}|{first}|{second}"}],
            add_generation_prompt=True,
            tokenize=False,
        )
        logits = MODEL(torch.tensor([TOKENIZER(text)["input_ids"]])).logits[0, -1].detach().double()
        return logits[[a, b]].softmax(0)[0]

    expected = [
        (q(x, f, s) + 1 - q(x, s, f)) / 2 if f != s else torch.tensor(0.5) for x, f, s in zip(*COLUMNS, strict=True)
    ]
    found = oracle.probability(*COLUMNS)
    torch.testing.assert_close(found, torch.stack(expected).double(), rtol=0, atol=1e-5)
    assert (found - 0.5).abs().max() > 0.005
    assert oracle.queries == QueryCount(sampled=4)
    one = oracle.one_order(*(column[:1] for column in COLUMNS))
    torch.testing.assert_close(one, q("Where?", "here", "there").reshape(1), rtol=0, atol=1e-5)


def test_batch_size_and_padding_change_nothing() -> None:
    answers = [
        GenerativeModelOracle(MODEL, TOKENIZER, prompt=PROMPT, batch_size=n).probability(*COLUMNS) for n in (1, 7)
    ]
    torch.testing.assert_close(*answers, rtol=0, atol=1e-5)


def test_a_base_model_without_chat_template_judges_too() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    oracle = GenerativeModelOracle(MODEL, tokenizer, prompt=PROMPT)
    assert oracle.template.text == "Judge.\n\n{prompt}|{first}|{second}\n\nAnswer: "
    assert oracle.probability(*COLUMNS).shape == (4,)


def test_a_chat_template_without_system_messages_gets_one_message() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m['content'] }}>{% endfor %}{% if add_generation_prompt %}!{% endif %}"
    )
    oracle = GenerativeModelOracle(MODEL, tokenizer, prompt=PROMPT)
    assert oracle.template.text == "<Judge.\n\n{prompt}|{first}|{second}>!"


def test_verdicts_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(BadInput, match="begin with the same token"):
        GenerativeModelOracle(MODEL, TOKENIZER, prompt=JudgePrompt(user=PROMPT.user, first="r1", second="r2"))
    with pytest.raises(BadInput, match="without verdict"):
        GenerativeModelOracle(MODEL, TOKENIZER, prompt=JudgePrompt(user=PROMPT.user, verdict="(A|B)"))


def test_it_is_loaded_by_name_and_keeps_its_verdicts(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path / "lm")
    TOKENIZER.save_pretrained(tmp_path / "lm")
    options = {"path": str(tmp_path / "lm"), "device": "cpu", "batch_size": "2", "cache": str(tmp_path / "v.sqlite")}
    first = build_oracle("generative_model", options)
    answer = first.probability(*COLUMNS)
    again = build_oracle("generative_model", {**options, "batch_size": 3})
    assert torch.equal(again.probability(*COLUMNS), answer)
    assert (first.measured["cache_hits"], again.measured["cache_hits"]) == (2, 6)
    with pytest.raises(BadInput, match="no/such/model"):
        build_oracle("generative_model", {"path": "no/such/model"})


# --- several judges


def always(value: float) -> CallableOracle:
    def judge(prompts, first, second):
        return [value if a < b else 1 - value for a, b in zip(first, second, strict=True)]

    return CallableOracle(judge)


def ensemble(*values: float, vote: bool = False, weights: tuple[float, ...] | None = None) -> EnsembleOracle:
    shares = weights or (1.0,) * len(values)
    members = [Member(f"m{i}", always(v), w) for i, (v, w) in enumerate(zip(values, shares, strict=True))]
    return EnsembleOracle(members, vote=vote)


PAIR = (["x"], ["a"], ["b"])


@pytest.mark.parametrize(
    ("values", "vote", "weights", "expected"),
    [
        ((0.9, 0.6, 0.3), False, None, 0.6),
        ((0.9, 0.6, 0.3), True, None, 1.0),
        ((0.9, 0.4, 0.3), True, None, 0.0),
        ((0.9, 0.1), True, None, 0.5),
        ((0.9, 0.1), False, (3, 1), 0.7),
        ((0.6, 0.1, 0.1), True, (3, 1, 1), 1.0),
        ((0.5, 0.9, 0.5), True, None, 1.0),
    ],
)
def test_averages_and_votes(values, vote, weights, expected) -> None:
    oracle = ensemble(*values, vote=vote, weights=weights)
    forward, backward = oracle.probability(*PAIR), oracle.probability(PAIR[0], PAIR[2], PAIR[1])
    assert forward.item() == pytest.approx(expected)
    assert (forward + backward).item() == pytest.approx(1)
    assert oracle.queries == QueryCount(sampled=2)


def test_disagreement_is_measured() -> None:
    oracle = ensemble(0.9, 0.6, 0.3)
    oracle.probability(*PAIR)
    assert oracle.disagreement.spread == pytest.approx((0.3 + 0.6 + 0.3) / 3)
    assert oracle.disagreement.split == 1
    assert oracle.measured["split_verdicts"] == 1
    found = audit(oracle, *PAIR)
    assert found.disagreement == pytest.approx(0.4)
    assert found.split_verdicts == 1
    assert any("prefer different responses" in line for line in found.warnings)
    together = Disagreement(3, 0.3, 1.0) + Disagreement(1, 0.7, 0.0)
    assert (together.pairs, together.spread, together.split) == (4, pytest.approx(0.4), 0.75)
    assert Disagreement.of(torch.tensor([[0.5, 0.7], [0.9, 0.6]])).split == 0


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([{"oracle": "callable", "options": {"function": "math:pow"}}], "two or more members"),
        ([{"oracle": "callable", "weights": 2}, {}], "member 1 must be a mapping"),
        ("none", "must be a list"),
        ([{"oracle": "nobody"}, {"oracle": "nobody"}], "no oracle named 'nobody'"),
        ([{"oracle": "callable", "options": {"function": "math:pow"}, "weight": 0}] * 2, "weight of callable"),
        ([{"oracle": "callable", "options": {"function": "math:pow"}, "name": "n"}] * 2, "same name"),
    ],
)
def test_bad_members_are_named(members, message) -> None:
    with pytest.raises(BadInput, match=message):
        build_oracle("ensemble", {"members": members})


def test_members_keep_their_own_caches(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path / "lm")
    TOKENIZER.save_pretrained(tmp_path / "lm")
    local = {"path": str(tmp_path / "lm"), "device": "cpu", "cache": str(tmp_path / "v.sqlite")}
    members = [
        {"oracle": "generative_model", "options": local},
        {"oracle": "callable", "options": {"function": "tests.test_judges:prefers_shorter"}, "weight": 2},
    ]
    oracle = build_oracle("ensemble", {"members": members, "vote": "false"})
    answer = oracle.probability(*COLUMNS)
    alone = build_oracle("generative_model", local)
    mine, theirs = alone.probability(*COLUMNS), build_oracle("callable", members[1]["options"]).probability(*COLUMNS)
    torch.testing.assert_close(answer, (mine + 2 * theirs) / 3)
    assert alone.measured["cache_hits"] == 6
    assert oracle.measured["generative_model/cache_hits"] == 2
