"""Scoring in chunks, from a cache and without a float32 copy of the logits, against one plain pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nlhf_zoo.interfaces import ITSELF, Game, Opponent, Update
from nlhf_zoo.llm import scoring
from nlhf_zoo.llm.forward import forward
from nlhf_zoo.llm.generation import Request, generate
from nlhf_zoo.llm.objective import sampled_objective
from nlhf_zoo.llm.policy import CausalLMPolicy, GeometricMixture
from nlhf_zoo.llm.scoring import length_chunks, score, selected_log_prob
from nlhf_zoo.llm.tokens import Decoding
from nlhf_zoo.oracles import CallableOracle
from tests.test_llm_policy import ARCHITECTURES, network, policy

PROMPTS = ("hi", "a longer prompt, of more tokens", "mid size")


def plain_pass(
    model: Any, prompts: Tensor, prompt_mask: Tensor, tokens: Tensor, kept: Tensor, temperature: float
) -> Any:
    count, width = tokens.shape[1:]
    ids = torch.cat([prompts.repeat_interleave(count, 0), tokens.flatten(0, 1)], 1)
    mask = torch.cat([prompt_mask.repeat_interleave(count, 0), kept.flatten(0, 1)], 1).long()
    logits = forward(model, ids, mask, (mask.cumsum(-1) - 1).clamp_min(0), use_cache=False).logits
    log_probs = (logits[:, -width - 1 : -1] / temperature).log_softmax(-1)
    chosen = log_probs.gather(-1, tokens.flatten(0, 1)[..., None])[..., 0]
    return torch.where(kept.flatten(0, 1), chosen, 0.0).reshape(tokens.shape)


def ragged(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mine = policy()
    batch = mine.encode(PROMPTS)
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 250, (len(PROMPTS), count, 9), generator=draw)
    lengths = torch.randint(1, 10, (len(PROMPTS), count, 1), generator=draw)
    return batch.tokens, batch.mask, tokens, torch.arange(9) < lengths


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "bloom"])
def test_values_and_gradients_are_those_of_one_plain_pass(
    architecture: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "WORTH_A_PASS", {"cpu": 4})
    model, given_ = network(architecture), ragged(count)
    found = score([(model, 1.0)], *given_, temperature=0.7, allowed=None)
    wanted = plain_pass(model, *given_, 0.7)
    assert torch.allclose(found, wanted, atol=1e-9)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameters = list(model.parameters())
    slopes = [
        torch.autograd.grad((values * weights).sum(), parameters, allow_unused=True) for values in (found, wanted)
    ]
    for mine, theirs in zip(*slopes, strict=True):
        assert (mine is None) == (theirs is None)
        # Norms are computed in float32 whatever the model's precision, the order of sums decides the last digits.
        assert mine is None or torch.allclose(mine, theirs, atol=1e-5, rtol=1e-5)


def test_a_model_that_recomputes_activations_is_scored_too() -> None:
    model: Any = copy.deepcopy(policy().network)  # what is switched on leaves a hook when it is switched off
    plain = plain_pass(model, *ragged(2), 1.0)
    model.activation_checkpointing_enable()
    model.train()
    found = score([(model, 1.0)], *ragged(2), temperature=1.0, allowed=None)
    assert torch.allclose(found, plain, atol=1e-9)
    assert found.requires_grad


@given(st.lists(st.integers(0, 300), min_size=1, max_size=40), st.integers(1, 500))
def test_chunks_hold_every_row_once_and_little_padding(lengths: list[int], worth: int) -> None:
    chunks = length_chunks(lengths, worth)
    assert sorted(row for chunk in chunks for row in chunk) == list(range(len(lengths)))
    for chunk in chunks:
        longest, inside = lengths[chunk[0]], 0
        for row in chunk:
            assert lengths[row] <= longest
            if lengths[row] < (1 - scoring.PADDING) * longest:
                assert inside < worth, "a chunk worth a pass takes no much shorter row"
            inside += lengths[row]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limited", [False, True])
def test_selected_log_probabilities_are_log_softmax(
    dtype: torch.dtype, limited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 40)
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 11, generator=draw).mul(4).to(dtype).requires_grad_()
    index = torch.randint(0, 6, (4, 5), generator=draw)
    allowed = torch.arange(11) < 6 if limited else None
    found = selected_log_prob(logits, index, 0.5, allowed)
    exact = logits.detach().double().requires_grad_()
    wanted = (exact / 0.5 if allowed is None else (exact / 0.5).masked_fill(~allowed, -torch.inf)).log_softmax(-1)
    wanted = wanted.gather(-1, index[..., None])[..., 0]
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(found.double(), wanted, atol=1e-12 if dtype == torch.float64 else 1e-5)
    (mine,) = torch.autograd.grad(found.square().sum(), logits)
    (theirs,) = torch.autograd.grad(wanted.square().sum(), exact)
    close = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.02}[dtype]
    assert torch.allclose(mine.double(), theirs, atol=close * float(theirs.abs().max()))
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(lambda x: selected_log_prob(x, index, 0.5, None), logits)


def test_a_prompt_is_read_once_and_ended_rows_are_not_scored() -> None:
    model, (prompts, mask, tokens, kept) = network("llama"), ragged(3)
    read: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, __, k: read.append(k["input_ids"].numel()), with_kwargs=True)
    try:
        score([(model, 1.0)], prompts, mask, tokens, kept, temperature=1.0, allowed=None)
    finally:
        handle.remove()
    assert read[0] == prompts.numel()
    assert sum(read[1:]) <= 9 * (int(kept.sum(-1).max()) - 1)


def test_policies_sampled_together_have_their_own_distributions() -> None:
    """First tokens of the student, and of its mixture with another, drawn in one pass."""
    student, other = network("llama"), network("llama", 1)
    batch = policy().encode(["hi"])
    requests = [Request(((student, 1.0),)), Request(((student, 0.4), (other, 0.6)))]
    drawn = generate(
        requests, batch.tokens, batch.mask, num_samples=20000, max_new_tokens=2, stop=(), padding=0, temperature=1.0,
        allowed=None, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    for (tokens, _), request in zip(drawn, requests, strict=True):
        first, second = tokens[0, :, 0].bincount(minlength=259) / 20000, tokens[0, :, 1].unique()
        candidates = torch.arange(259)[None, :, None]
        exact = score(
            request.parts, batch.tokens, batch.mask, candidates, torch.ones_like(candidates).bool(), temperature=1.0,
            allowed=None,
        )[0, :, 0].exp().detach()  # fmt: skip
        assert float(exact.sum()) == pytest.approx(1.0, abs=1e-9)
        assert float((first - exact).abs().sum()) / 2 < 0.08, "total variation of 20,000 draws"
        assert len(second) > 1


def test_a_model_that_speaks_twice_is_called_once_a_token() -> None:
    student, other = network("llama"), network("llama", 1)
    calls = {id(student): 0, id(other): 0}
    handles = [
        model.register_forward_pre_hook(lambda m, _: calls.update({id(m): calls[id(m)] + 1}))
        for model in (student, other)
    ]
    decoding = Decoding(5, 64, allowed_tokens=tuple(range(10, 60)))
    first, second = (CausalLMPolicy(model, policy().tokenizer, decoding) for model in (student, other))
    game = Game(CallableOracle(lambda _, a, b: [0.5] * len(a)), second, 0.1)
    update = Update(start=first, opponent=Opponent(GeometricMixture(first, second, 0.5)), anchors=[(second, 0.1)])
    try:
        with torch.no_grad():
            first.sample(["hi", "there"], 2, torch.Generator().manual_seed(0))
            alone = calls[id(student)]
            sampled_objective(first, update, game, first.encode(["hi", "there"]), 2, torch.Generator().manual_seed(0))
    finally:
        for handle in handles:
            handle.remove()
    scoring_calls = 2
    assert alone == 5
    assert calls[id(student)] - alone <= alone + scoring_calls


@pytest.mark.parametrize("itself", [True, False])
def test_one_response_a_prompt_needs_another_opponent(itself: bool) -> None:
    from nlhf_zoo import BadInput

    decoding = Decoding(4, 64)
    mine, other = (CausalLMPolicy(network("llama", seed), policy().tokenizer, decoding) for seed in (0, 1))
    game = Game(CallableOracle(lambda _, a, b: [float(len(x) > len(y)) for x, y in zip(a, b, strict=True)]), other, 0.1)
    update = Update(start=mine, opponent=ITSELF if itself else other, anchors=[(other, 0.1)])
    ask = (mine, update, game, mine.encode(PROMPTS), 1, torch.Generator().manual_seed(0))
    if itself:
        with pytest.raises(BadInput, match="num_samples"):
            sampled_objective(*ask)
    else:
        assert torch.isfinite(sampled_objective(*ask).loss)
