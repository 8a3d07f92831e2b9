"""Supervised fits learn what can be learnt, measure on what was held out, and repeat under their seed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nlhf_zoo.errors import BadInput
from nlhf_zoo.intervals import wilson_interval
from nlhf_zoo.llm import CausalLMPolicy, Decoding
from nlhf_zoo.llm.small_models import byte_tokenizer, judge_from, small_judge, small_llama
from nlhf_zoo.oracles import PairwiseModelOracle
from nlhf_zoo.training.length_buckets import LengthBuckets
from nlhf_zoo.training.supervised import fit_language_model, fit_preference_model, split

TOKENIZER = byte_tokenizer()
QUIET = {"accelerator": "cpu", "progress": False}
# The response repeats the prompt's letter: to be learnt from the prompt alone.
ECHO = [(f"{i}{letter}:", letter * 3) for i in range(10) for letter in "abcd"]
# The better response holds an exclamation mark, in whichever place it stands.
CHEERFUL = [(f"q{i}", f"{word}!", f"{word}.") for i in range(30) for word in ("yes", "no", "well")]
TEMPLATE = "{prompt}|{first}|{second}|"


def llama(seed: int = 0):
    return small_llama(TOKENIZER, hidden=32, layers=2, heads=2, seed=seed)


def test_a_language_model_learns_to_answer_and_to_stop():
    model = llama()
    found = fit_language_model(
        model, TOKENIZER, ECHO[:-4], max_steps=100, held_out=ECHO[-4:], learning_rate=1e-2, max_length=24, **QUIET
    )
    assert found.steps == 100
    assert found.held_out == 4
    assert found.held_out_tokens == 4 * 4
    assert found.held_out_loss is not None
    assert found.held_out_loss < 0.2
    assert found.held_out_perplexity == pytest.approx(math.exp(found.held_out_loss))
    assert not model.training
    policy = CausalLMPolicy(model, TOKENIZER, Decoding(max_new_tokens=12, max_prompt_tokens=12))
    responses = policy.sample(["9b:", "9d:"], 8, torch.Generator().manual_seed(0))
    right = sum(text == letter * 3 for row, letter in zip(responses.texts, "bd", strict=True) for text in row)
    assert right >= 12


def test_the_held_out_loss_is_the_policys_own_log_probability():
    model = llama(3)
    found = fit_language_model(
        model, TOKENIZER, ECHO[:8], max_steps=3, held_out=[("p", "xyz"), ("longer", "x")], max_length=16, **QUIET
    )
    policy = CausalLMPolicy(model, TOKENIZER, Decoding(max_new_tokens=8, max_prompt_tokens=8))
    log_probs = policy.log_prob(["p", "longer"], [["xyz"], ["x"]])
    assert found.held_out_tokens == 4 + 2
    assert found.held_out_loss == pytest.approx(-log_probs.sum().item() / 6, rel=1e-5)


def test_a_response_that_is_cut_has_no_end():
    found = fit_language_model(
        llama(), TOKENIZER, ECHO[:8], max_steps=1, held_out=[("p", "longer than four")], max_length=8, **QUIET
    )
    assert found.held_out_tokens == 4


def test_the_prompt_counts_in_training_only_by_its_weight():
    losses = []
    for weight in (0.0, 1.0):
        model = llama()
        found = fit_language_model(
            model, TOKENIZER, ECHO, max_steps=1, held_out=ECHO[:2], prompt_weight=weight, max_length=24, **QUIET
        )
        losses.append((found.train_loss, found.held_out_tokens))
    assert losses[0][0] != losses[1][0]
    assert losses[0][1] == losses[1][1] == 8


def test_a_judge_learns_a_preference_that_is_there():
    judge = small_judge(TOKENIZER, hidden=32, layers=2, heads=2, seed=0)
    found = fit_preference_model(
        judge, TOKENIZER, CHEERFUL, max_steps=60, batch_size=16, learning_rate=3e-3, template=TEMPLATE, **QUIET
    )
    assert found.held_out == 9
    assert found.accuracy == 1
    assert found.accuracy_interval == wilson_interval(9, 9)
    assert found.held_out_loss is not None
    assert found.held_out_loss < 0.3
    oracle = PairwiseModelOracle(judge, TOKENIZER, template=TEMPLATE, max_length=512)
    assert oracle.probability(["new", "new"], ["maybe!", "maybe."], ["maybe.", "maybe!"])[0] > 0.7


def test_a_judge_learns_nothing_where_there_is_nothing():
    noise = torch.Generator().manual_seed(0)
    flips = torch.randint(0, 2, (len(CHEERFUL),), generator=noise).bool().tolist()
    pairs = [(x, b, a) if flip else (x, a, b) for (x, a, b), flip in zip(CHEERFUL, flips, strict=True)]
    judge = small_judge(TOKENIZER, hidden=16, layers=1, heads=2, seed=0)
    found = fit_preference_model(judge, TOKENIZER, pairs, max_steps=20, held_out=0.5, template=TEMPLATE, **QUIET)
    assert found.accuracy_interval is not None
    assert found.accuracy_interval[0] < 0.5 < found.accuracy_interval[1]


@pytest.mark.parametrize("kind", ["language", "preference"])
def test_a_fit_repeats_under_its_seed_and_leaves_global_randomness_alone(kind):
    def fitted(seed: int) -> torch.Tensor:
        torch.rand(seed + 1)
        if kind == "language":
            model = llama()
            fit_language_model(model, TOKENIZER, ECHO, epochs=1, seed=seed, max_length=24, **QUIET)
        else:
            model = small_judge(TOKENIZER, hidden=16, layers=1, heads=2, seed=0, dropout=0.3)
            fit_preference_model(model, TOKENIZER, CHEERFUL[:24], epochs=1, seed=seed, template=TEMPLATE, **QUIET)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    state = torch.random.get_rng_state()
    first = fitted(1)
    torch.random.set_rng_state(state)
    torch.rand(2)
    expected = torch.random.get_rng_state()
    torch.random.set_rng_state(state)
    second = fitted(1)
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert torch.equal(first, second)
    assert not torch.equal(first, fitted(2))


def test_dropout_is_on_while_fitting_and_off_after():
    ends = []
    for dropout in (0.0, 0.5):
        judge = small_judge(TOKENIZER, hidden=16, layers=1, heads=2, seed=0, dropout=dropout)
        fit_preference_model(judge, TOKENIZER, CHEERFUL[:24], max_steps=2, template=TEMPLATE, **QUIET)
        assert not any(module.training for module in judge.modules())
        ends.append(judge.model.embed_tokens.weight.detach().clone())
    assert not torch.equal(*ends)


def test_a_judge_may_begin_as_a_language_model():
    model = llama(5)
    judge = judge_from(model, seed=0, dropout=0.1)
    assert judge.config.num_labels == 1
    assert judge.config.attention_dropout == 0.1
    ids = torch.tensor([[1, 5, 9]])
    torch.testing.assert_close(judge.model(ids).last_hidden_state, model.model(ids).last_hidden_state)
    assert torch.equal(judge.score.weight, judge_from(model, seed=0).score.weight)
    assert judge.model.embed_tokens.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=80), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_buckets_hold_every_item_once_an_epoch(lengths, size, seed):
    buckets, again = LengthBuckets(lengths, size, seed), LengthBuckets(lengths, size, seed)
    epochs = [list(buckets), list(buckets)]
    for batches in epochs:
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        assert all(1 <= len(batch) <= size for batch in batches)
        assert len(batches) == len(buckets)
    assert epochs == [list(again), list(again)]


def test_buckets_put_like_to_like_and_change_with_the_epoch():
    lengths = list(range(64))
    buckets = LengthBuckets(lengths, 8, 0)
    first, second = list(buckets), list(buckets)
    assert all(max(batch) - min(batch) == 7 for batch in first)
    assert first != second


@given(rows=st.lists(st.tuples(st.sampled_from("abcdef"), st.text(max_size=2)), min_size=2), seed=st.integers(0, 9))
def test_no_prompt_lies_on_both_sides_of_a_split(rows, seed):
    rows.append(("g", ""))
    train, test = split(rows, 0.4, seed)
    assert not {x for x, _ in train} & {x for x, _ in test}
    assert sorted(train + test) == sorted(rows)
    assert (train, test) == split(rows, 0.4, seed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give epochs or max_steps"),
        ({"epochs": 1, "max_steps": 1}, "give epochs or max_steps"),
        ({"epochs": 0}, "give epochs or max_steps"),
        ({"epochs": 1, "batch_size": 0}, "batch_size must be >= 1"),
        ({"epochs": 1, "learning_rate": 0.0}, "learning_rate > 0"),
        ({"epochs": 1, "held_out": 1.0}, "share in"),
        ({"epochs": 1, "max_length": 1}, "max_response_length"),
    ],
)
def test_what_cannot_be_fitted_is_refused(options, message):
    with pytest.raises(BadInput, match=message):
        fit_language_model(llama(), TOKENIZER, ECHO, **options)


def test_nothing_to_train_on_is_refused():
    with pytest.raises(BadInput, match="nothing to train on"):
        fit_language_model(llama(), TOKENIZER, [], epochs=1)
