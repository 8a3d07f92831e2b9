"""The demo's language: a judge that goes in a circle, and text that it can judge."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlhf_zoo.demo.language import (
    CYCLE,
    KINDS,
    all_prompts,
    examples,
    fluency,
    judge,
    kind_matrix,
    kind_of,
    respond,
    second_judge,
    split_prompts,
)
from nlhf_zoo.errors import BadInput

PROMPTS = all_prompts()
WORDS = st.sampled_from([word for words in KINDS.values() for word in words] + ["The", "sea", "is", "and", "xq", "."])
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(WORDS, max_size=10).map(" ".join),
    st.integers(0, 2**32 - 1).map(lambda seed: examples(1, seed)[0][1]),
)
JUDGES = pytest.mark.parametrize("judge", [judge, second_judge])


def pure(kind: str, prompt: str) -> str:
    """A well-formed answer with two words of the kind."""
    (place,) = re.findall(r"the (\w+)", prompt)
    one, two = KINDS[kind][:2]
    return f"The {place} is {one} and {two}."


@JUDGES
@given(prompt=st.sampled_from(PROMPTS) | st.text(max_size=30), first=TEXTS, second=TEXTS)
def test_judge_is_antisymmetric_to_the_last_bit(judge, prompt: str, first: str, second: str):
    forward, backward, itself = judge([prompt, prompt, prompt], [first, second, first], [second, first, first]).tolist()
    assert forward + backward == 1
    assert itself == 0.5
    assert 0 < forward < 1


@given(first=TEXTS, second=TEXTS, prompt=st.sampled_from(PROMPTS))
def test_judge_looks_at_each_pair_alone(first: str, second: str, prompt: str):
    alone = judge([prompt], [first], [second]).item()
    assert judge([PROMPTS[0], prompt], ["x", first], ["y", second])[1].item() == alone


@JUDGES
def test_kinds_go_in_a_strict_circle(judge):
    prompt = PROMPTS[7]
    answers = {kind: pure(kind, prompt) for kind in KINDS}
    for winner, loser in CYCLE:
        assert judge([prompt], [answers[winner]], [answers[loser]]).item() > 0.55
    winners = {winner for winner, _ in CYCLE}
    losers = {loser for _, loser in CYCLE}
    assert winners == losers == set(KINDS)


def test_pure_answers_meet_at_the_given_strengths():
    prompt = PROMPTS[0]
    for (winner, loser), rate in CYCLE.items():
        assert judge([prompt], [pure(winner, prompt)], [pure(loser, prompt)]).item() == pytest.approx(rate, abs=1e-12)


def test_kind_matrix_is_a_preference_without_a_best_kind():
    matrix = np.array(kind_matrix())
    np.testing.assert_allclose(matrix + matrix.T, 1, rtol=0, atol=1e-15)
    assert (matrix > 0.5).sum(1).tolist() == [1, 1, 1]
    assert len({*CYCLE.values()}) == 3  # unequal, or the best mixture would be the uniform one


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "broken", ["", "sea sea sea", "Teh seaa isx golben", "the sea is bright and", "bright golden pale clear " * 5]
)
def test_broken_text_loses_to_well_formed_text_of_any_kind(kind: str, broken: str):
    prompt = "Describe the sea at dawn."
    assert judge([prompt], [pure(kind, prompt)], [broken]).item() > 0.5


def test_naming_the_wrong_place_is_worse():
    prompt = "Describe the sea at dawn."
    right, wrong = "The sea is bright and golden.", "The lake is bright and golden."
    assert judge([prompt], [right], [wrong]).item() > 0.5


@given(st.integers(0, 10_000), st.sampled_from(list(KINDS)), st.sampled_from(PROMPTS))
def test_generated_answers_are_fluent_and_of_their_kind(seed: int, kind: str, prompt: str):
    text = respond(prompt, kind, np.random.default_rng(seed))
    assert fluency(prompt, text) == 1
    assert kind_of(text) in (kind, None)  # None: one word of another kind slipped in


def test_kinds_are_told_apart():
    assert kind_of("The sea is bright and golden.") == "light"
    assert kind_of("The sea is humming and bright and loud.") == "sound"
    assert kind_of("The sea is bright and loud.") is None
    assert kind_of("The sea.") is None


def test_word_families_do_not_overlap():
    for first, second in itertools.combinations(KINDS.values(), 2):
        assert not set(first) & set(second)


def test_examples_are_decided_by_their_seed():
    assert examples(50, 3) == examples(50, 3)
    assert examples(50, 3) != examples(50, 4)
    assert examples(20, 3)[:10] != examples(10, 5)
    state = np.random.get_state()[1].copy()  # type: ignore[index]  # the legacy state is a tuple
    examples(10, 0)
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]  # see above


def test_examples_have_every_kind_in_unequal_shares():
    kinds = [kind_of(response) for _, response in examples(3000, 0)]
    shares = {kind: kinds.count(kind) / len(kinds) for kind in KINDS}
    assert shares["light"] > shares["sound"] > shares["movement"] > 0.1


def test_prompts_are_split_without_overlap():
    train, held_out = split_prompts(40, seed=1)
    assert len(held_out) == 40
    assert sorted(train + held_out) == sorted(all_prompts())
    assert split_prompts(40, seed=1) == (train, held_out)
    assert split_prompts(40, seed=2)[1] != held_out


def test_prompts_and_answers_are_short():
    assert max(map(len, PROMPTS)) <= 40
    assert max(len(response) for _, response in examples(2000, 0)) <= 46


@pytest.mark.parametrize("held_out", [0, len(PROMPTS)])
def test_split_needs_prompts_on_both_sides(held_out: int):
    with pytest.raises(BadInput, match="held_out"):
        split_prompts(held_out, seed=0)


def test_judge_refuses_columns_of_unequal_length():
    with pytest.raises(BadInput, match="as many prompts as answers"):
        judge(["x"], ["a", "b"], ["a", "b"])
