"""Mixtures drafted by one model and verified by the others: the distribution is exactly the mixture's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nlhf_zoo.llm import CausalLMPolicy, Decoding, all_responses, speculative
from nlhf_zoo.llm.generation import Request, generate
from nlhf_zoo.llm.policy import GeometricMixture, LanguagePolicy, sample_together
from nlhf_zoo.llm.reading import GrowingReader
from nlhf_zoo.llm.small_models import byte_tokenizer
from nlhf_zoo.llm.speculative import DraftLength, residual, settle
from tests.test_llm_policy import ARCHITECTURES, network

PROMPTS = ("hi", "a longer prompt, of more tokens", "mid size")
GOES_BACK = ("llama", "gpt2", "opt", "qwen3")


def distance(counts: Tensor, exact: Tensor) -> float:
    """Chi-square of counts against probabilities, in standard deviations above its mean."""
    expected = exact * counts.sum()
    common = expected >= 5
    rare = torch.stack([(~common * counts).sum(), (~common * expected).sum()])
    seen, wanted = torch.cat([counts[common], rare[:1]]), torch.cat([expected[common], rare[1:]])
    free = int((wanted > 0).sum()) - 1
    value = ((seen - wanted) ** 2 / wanted.clamp_min(1e-9))[wanted > 0].sum()
    return float((value - free) / (2 * free) ** 0.5)


@given(st.integers(0, 10_000), st.floats(0, 5))
def test_what_is_accepted_and_what_replaces_the_rest_add_up_to_the_mixture(seed: int, apart: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    drafted = torch.randn(3, 7, generator=draw, dtype=torch.float64)
    wanted = (drafted + apart * torch.randn(3, 7, generator=draw, dtype=torch.float64)).log_softmax(-1)
    drafted = drafted.log_softmax(-1)
    accepted = drafted.exp() * (wanted - drafted).exp().clamp_max(1)
    missing = residual(drafted, wanted)
    mended = (1 - accepted.sum(-1, keepdim=True)) * missing / missing.sum(-1, keepdim=True)
    assert torch.allclose(accepted + mended, wanted.exp(), atol=1e-12)


def test_settled_tokens_are_drawn_from_the_wanted_distribution() -> None:
    draw = torch.Generator().manual_seed(3)
    many, count = 60_000, 3
    drafted, wanted = (torch.randn(count, 5, generator=draw).mul(1.5).log_softmax(-1) for _ in range(2))
    drafts = torch.stack([torch.multinomial(one.exp(), many, True, generator=draw) for one in drafted], 1)
    tokens, accepted = settle(drafts, drafted.expand(many, -1, -1), wanted.expand(many, -1, -1), draw)
    assert set(accepted.tolist()) == {0, 1, 2, 3}
    for place in range(count):
        reached = accepted >= place
        assert distance(tokens[reached, place].bincount(minlength=5), wanted[place].exp()) < 4
    chances = torch.minimum(drafted.exp(), wanted.exp()).sum(-1)
    assert float((accepted >= 1).float().mean()) == pytest.approx(float(chances[0]), abs=0.01)


def test_one_distribution_is_never_refused() -> None:
    same = torch.randn(50, 4, 9, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    drafts = torch.randint(0, 9, (50, 4))
    tokens, accepted = settle(drafts, same, same, torch.Generator().manual_seed(1))
    assert torch.equal(tokens, drafts)
    assert bool((accepted == 4).all())


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8, 0.95, 1.0])
def test_the_draft_is_as_long_as_pays(rate: float) -> None:
    length = DraftLength()
    length.saw(round(1e6 * rate), round(1e6 * (1 - rate)))
    gains = {k: sum(rate**j for j in range(k)) / (k + 1) for k in range(1, speculative.LONGEST + 1)}
    assert gains[length.tokens] == pytest.approx(max(gains.values()), rel=1e-3)
    assert DraftLength(most=1).tokens == 1


@contextlib.contextmanager
def counted(*models: Any) -> Iterator[dict[int, int]]:
    calls = {id(model): 0 for model in models}
    handles = [
        model.register_forward_pre_hook(lambda m, _: calls.update({id(m): calls[id(m)] + 1})) for model in models
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def policies(architecture: str, length: int = 4) -> list[CausalLMPolicy]:
    """Three models that are far apart, with two letters and the end to say."""
    tokenizer = byte_tokenizer()
    tokens = (*(tokenizer.convert_tokens_to_ids(letter) for letter in "ab"), int(tokenizer.eos_token_id))
    decoding = Decoding(length, 64, allowed_tokens=tokens)  # type: ignore[arg-type]  # a fast tokenizer's ids
    return [CausalLMPolicy(network(architecture, seed), tokenizer, decoding) for seed in range(3)]


def mixtures(first: LanguagePolicy, second: LanguagePolicy, third: LanguagePolicy) -> list[LanguagePolicy]:
    both = GeometricMixture(first, second, 0.6)
    return [both, GeometricMixture(third, both, 0.7)]


@pytest.mark.parametrize(
    ("architecture", "alone"), [("llama", False), *((name, True) for name in (*GOES_BACK, "bloom"))]
)
def test_whole_responses_have_the_mixtures_distribution(architecture: str, alone: bool) -> None:
    """Mixtures of two and three models, beside one of them and each other; responses that end, and that are cut."""
    first, second, third = policies(architecture)
    asked = [*([first] if alone else []), *mixtures(first, second, third)]
    drawn = sample_together(asked, PROMPTS[:2], 1500, torch.Generator().manual_seed(4))
    responses = all_responses(first, 2)
    for policy, answers in zip(asked, drawn, strict=True):
        with torch.no_grad():
            exact = policy.log_prob(PROMPTS[:2], responses).double().exp()
        for i in range(2):
            counts = torch.tensor([answers.texts[i].count(text) for text in responses.texts[i]], dtype=torch.float64)
            # Texts leave the end token out, so that a response that ended at the limit reads like one that was cut.
            merged: dict[str, list[float]] = {}
            for text, chance, count in zip(responses.texts[i], exact[i].tolist(), counts.tolist(), strict=True):
                merged[text] = [merged.get(text, [0.0])[0] + chance, count]
            chances, seen = torch.tensor(list(merged.values()), dtype=torch.float64).T
            assert float(seen.sum()) == 1500
            assert distance(seen, chances) < 4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_columns_that_are_taken_back_leave_no_trace(architecture: str) -> None:
    model = network(architecture)
    batch = CausalLMPolicy(model, byte_tokenizer()).encode(PROMPTS)
    mask, rows = batch.mask.long(), torch.arange(3)
    with torch.no_grad():
        reader = GrowingReader.of_prompts(model, batch.tokens, mask, rows)
        assert reader.takes_back == (architecture in GOES_BACK)
        if not reader.takes_back:
            return
        draw = torch.Generator().manual_seed(0)
        kept = torch.tensor([1, 4, 2])
        drafts, follow = (torch.randint(3, 250, (3, 4), generator=draw) for _ in range(2))
        places = mask.sum(-1, keepdim=True) - 1 + torch.arange(4)
        before = torch.cat([batch.tokens[:, -1:], drafts[:, :3]], 1)
        reader.read(before, places)
        reader.take_back(kept, 4)
        found = reader.read(follow, places + kept[:, None])
        for row in range(3):
            own = GrowingReader.of_prompts(model, batch.tokens, mask, rows[row : row + 1])
            text = torch.cat([before[row, : kept[row]], follow[row]])[None]
            wanted = own.read(text, places[row, 0] + torch.arange(text.shape[1])[None])[:, -4:]
            assert torch.allclose(found[row], wanted[0], atol=1e-5)


def test_models_that_agree_verify_many_tokens_at_once() -> None:
    first, second = network("llama"), network("llama", 1)
    batch = CausalLMPolicy(first, byte_tokenizer()).encode(PROMPTS)
    requests = [Request(((first, 1.0),)), Request(((second, 1e-6), (first, 1 - 1e-6)))]
    with counted(first, second) as calls:
        drawn = generate(
            requests, batch.tokens, batch.mask, num_samples=2, max_new_tokens=40, stop=(), padding=0, temperature=1.0,
            allowed=None, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    assert all(bool(mask.all()) and mask.shape == (3, 2, 40) for _, mask in drawn)
    assert calls == {id(first): 40, id(second): calls[id(second)]}
    assert calls[id(second)] <= 8


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in GOES_BACK])
def test_models_that_cannot_forget_are_mixed_token_by_token(architecture: str) -> None:
    first, second = network(architecture), network(architecture, 1)
    batch = CausalLMPolicy(first, byte_tokenizer()).encode(PROMPTS)
    with counted(first, second) as calls:
        generate(
            [Request(((first, 0.5), (second, 0.5)))], batch.tokens, batch.mask, num_samples=1, max_new_tokens=5,
            stop=(), padding=0, temperature=1.0, allowed=None, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    assert set(calls.values()) == {5}
