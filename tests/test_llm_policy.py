"""Sampling and scoring on causal language models of several architectures."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch

from nlhf_zoo import BadInput, TabularPolicy
from nlhf_zoo.llm import CausalLMPolicy, Decoding, all_responses
from nlhf_zoo.llm.mixing import mixed_log_probs
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama

PROMPTS = ("hi", "a longer prompt, of more tokens", "mid size")
ARCHITECTURES = ("llama", "gpt2", "opt", "bloom", "qwen3", "gemma3_text", "mistral")


@functools.cache
def network(architecture: str, seed: int = 0) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = byte_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    own = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
        "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
        "bloom": {"n_layer": 2, "n_head": 2},
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(architecture, **{**sizes, **own.get(architecture, {})})
        # Bloom's ALiBi bias overflows transformers' float64 mask on padded rows.
        model = AutoModelForCausalLM.from_config(config).to(torch.float32 if architecture == "bloom" else torch.float64)
        model.eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(3)
    return model


def policy(architecture: str = "llama", seed: int = 0, **decoding: Any) -> CausalLMPolicy:
    options = {"max_new_tokens": 6, **decoding}
    return CausalLMPolicy(network(architecture, seed), byte_tokenizer(), Decoding(**options))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_and_batching_change_no_log_probability(architecture: str) -> None:
    mine = policy(architecture)
    answers = [["yes", "no"], ["a", "bcdef"], ["", "xyz"]]
    together = mine.log_prob(PROMPTS, answers)
    for i, prompt in enumerate(PROMPTS):
        for k in range(2):
            alone = mine.log_prob([prompt], [[answers[i][k]]])
            assert torch.allclose(alone[0, 0], together[i, k], atol=1e-9 if together.dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampling_with_caches_agrees_with_scoring(architecture: str) -> None:
    """What generate() drew has, scored in one pass, the frequency with which it was drawn."""
    tokens = tuple(byte_tokenizer().convert_tokens_to_ids(letter) for letter in "abc")
    mine = policy(architecture, max_new_tokens=3, allowed_tokens=(*tokens, byte_tokenizer().eos_token_id))
    responses = all_responses(mine, len(PROMPTS))
    table = mine.log_prob(PROMPTS, responses).double().exp()
    assert torch.allclose(table.sum(-1), torch.ones(3, dtype=torch.float64), atol=1e-5)
    drawn = mine.sample(PROMPTS, 3000, torch.Generator().manual_seed(1))
    for i in range(len(PROMPTS)):
        for text, chance in zip(responses.texts[i], table[i].tolist(), strict=True):
            seen = drawn.texts[i].count(text) / 3000
            assert abs(seen - chance) <= 5 * math.sqrt(chance * (1 - chance) / 3000) + 1e-3


def test_mixture_samples_token_by_token_with_both_caches() -> None:
    tokens = tuple(byte_tokenizer().convert_tokens_to_ids(letter) for letter in "abc")
    first, second = (policy(seed=s, max_new_tokens=2, allowed_tokens=tokens) for s in (1, 2))
    mixed = first.mixture(second, 0.3)
    responses = all_responses(first, 1)
    table = mixed.log_prob(PROMPTS[:1], responses).detach().exp()[0]
    assert float(table.sum()) == pytest.approx(1, abs=1e-9)
    drawn = mixed.sample(PROMPTS[:1], 6000, torch.Generator().manual_seed(2))
    for text, chance in zip(responses.texts[0], table.tolist(), strict=True):
        assert abs(drawn.texts[0].count(text) / 6000 - chance) <= 5 * math.sqrt(chance / 6000)
    # By hand, for the first token: the normalised product of powers.
    one = all_responses(policy(max_new_tokens=1, allowed_tokens=tokens), 1)
    tables = [policy(seed=s, max_new_tokens=1, allowed_tokens=tokens).log_prob(PROMPTS[:1], one) for s in (1, 2)]
    by_hand = (0.7 * tables[0] + 0.3 * tables[1]).log_softmax(-1)
    first, second = (policy(seed=s, max_new_tokens=1, allowed_tokens=tokens) for s in (1, 2))
    assert torch.allclose(first.mixture(second, 0.3).log_prob(PROMPTS[:1], one), by_hand, atol=1e-9)
    exact = TabularPolicy(tables[0]).mixture(TabularPolicy(tables[1]), 0.3)
    assert torch.allclose(first.mixture(second, 0.3).table(PROMPTS[:1], one), exact.log_probs, atol=1e-9)


def test_ended_rows_leave_and_the_others_go_on() -> None:
    """Rows that stop early are dropped from the batch; the log-probabilities of the rest stay right."""
    end = int(byte_tokenizer().eos_token_id)
    tokens = (byte_tokenizer().convert_tokens_to_ids("a"), end)
    mine = policy(max_new_tokens=8, allowed_tokens=tokens)
    drawn = mine.sample(PROMPTS, 200, torch.Generator().manual_seed(0))
    assert drawn.mask.any(-1).all()
    ended = drawn.tokens.masked_fill(~drawn.mask, 0).eq(end).any(-1)
    full = drawn.lengths == 8
    assert bool((ended | full).all())
    assert bool(ended.any())
    lengths = drawn.lengths.double()
    scored = torch.stack([mine.log_prob(PROMPTS, [[("a" * n)] for _ in PROMPTS])[:, 0] for n in range(8)], -1).exp()
    expected = (scored[:, :7] * torch.arange(1, 8)).sum(-1) + 8 * (1 - scored[:, :7].sum(-1))
    assert torch.allclose(lengths.mean(-1), expected.double(), atol=5 * float(lengths.std()) / 200**0.5)


def test_temperature_is_part_of_the_policy() -> None:
    logits = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cold = mixed_log_probs([logits], [1.0], 0.5, None)
    assert torch.allclose(cold, (2 * logits).log_softmax(-1))
    plain, warm = (policy(temperature=t).log_prob(PROMPTS, [["ab"]] * 3) for t in (1.0, 2.0))
    assert not torch.allclose(plain, warm)


def test_the_same_seed_draws_the_same() -> None:
    one, two, other = (policy().sample(PROMPTS, 3, torch.Generator().manual_seed(seed)).texts for seed in (0, 0, 1))
    assert one == two != other


def test_sampling_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    policy().sample(PROMPTS, 2, torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())


def test_average_moves_parameters_and_leaves_both_as_they_were() -> None:
    first, second = policy(seed=1), policy(seed=2)
    kept = [p.clone() for p in first.network.parameters()]
    middle = first.average(second, 0.25)
    for a, b, m, k in zip(
        first.network.parameters(), second.network.parameters(), middle.network.parameters(), kept, strict=True
    ):
        assert torch.allclose(m, 0.75 * a + 0.25 * b)
        assert torch.equal(a, k)


def test_long_prompts_lose_their_beginning() -> None:
    short = policy(max_prompt_tokens=4)
    assert torch.allclose(short.log_prob(["12345678"], [["a"]]), short.log_prob(["xx345678"], [["a"]]))


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: policy().sample([], 1, None), "no prompts"),
        (lambda: all_responses(policy()), "allowed_tokens"),
        (lambda: all_responses(policy(max_new_tokens=9, allowed_tokens=tuple(range(10, 20)))), "too many"),
        (lambda: policy().mixture(TabularPolicy.uniform(3), 0.5), "TabularPolicy"),
        (lambda: CausalLMPolicy.from_pretrained("./no/such/place"), "no/such/place"),
    ],
)
def test_misuse_is_one_line(work: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        work()
    assert "\n" not in str(caught.value)


def test_from_pretrained_reads_what_transformers_wrote(tmp_path: Any) -> None:
    tokenizer = byte_tokenizer()
    model = small_llama(tokenizer, hidden=32, layers=1, heads=2, seed=0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = CausalLMPolicy.from_pretrained(str(tmp_path))
    mine = CausalLMPolicy(model.eval(), tokenizer)
    assert torch.allclose(loaded.log_prob(PROMPTS, [["ab"]] * 3), mine.log_prob(PROMPTS, [["ab"]] * 3), atol=1e-6)


def test_pickled_weights_are_refused(tmp_path: Any) -> None:
    tokenizer = byte_tokenizer()
    model = small_llama(tokenizer, hidden=32, layers=1, heads=2, seed=0)
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput):
        CausalLMPolicy.from_pretrained(str(tmp_path))
