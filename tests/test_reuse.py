"""Scoring that takes over what drawing has computed, against scoring that computes it anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from nlhf_zoo.interfaces import ITSELF, Game, Opponent, Update
from nlhf_zoo.llm import CausalLMPolicy, Decoding, GeometricMixture, builtin_engine
from nlhf_zoo.llm.adapters import AdapterNetwork, SharedModel, lora_config
from nlhf_zoo.llm.objective import sampled_objective
from nlhf_zoo.llm.reuse import Recorder
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.llm.tokens import TokenResponses
from nlhf_zoo.oracles import CallableOracle
from tests.test_llm_policy import ARCHITECTURES, PROMPTS, network

WHOLE = ("llama", "qwen3", "gemma3_text", "mistral", "bloom")
"""Where every linear layer is a `Linear` that sees rows and tokens apart."""


def speaking(model: Any, **decoding: Any) -> CausalLMPolicy:
    options = {"max_new_tokens": 12, "allowed_tokens": tuple(range(2, 12)), **decoding}
    return CausalLMPolicy(model, byte_tokenizer(), Decoding(**options))


def drawn(policy: CausalLMPolicy, count: int = 3, seed: int = 3) -> TokenResponses:
    return policy.sample(PROMPTS, count, torch.Generator().manual_seed(seed))


def slopes(policy: CausalLMPolicy, responses: TokenResponses, parameters: list[Tensor]) -> tuple[Tensor, list[Any]]:
    found = policy.token_log_prob(PROMPTS, responses)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return found.detach(), list(torch.autograd.grad((found * weights).sum(), parameters, allow_unused=True))


def alike(mine: tuple[Tensor, list[Any]], theirs: tuple[Tensor, list[Any]], close: float) -> None:
    assert torch.allclose(mine[0], theirs[0], atol=close)
    for one, other in zip(mine[1], theirs[1], strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=10 * close, rtol=1e-5)


@contextlib.contextmanager
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Rows that linear layers multiply, call by call."""
    seen: list[int] = []
    multiply = nn.functional.linear
    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "linear", lambda x, *rest: seen.append(x[..., 0].numel()) or multiply(x, *rest))
        yield seen


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_and_gradients_are_those_of_scoring_anew(
    architecture: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = speaking(network(architecture))
    responses = drawn(policy, count)
    parameters = list(policy.network.parameters())
    with products(monkeypatch) as multiplied:
        mine = slopes(policy, responses, parameters)
    if architecture in WHOLE:
        assert not multiplied
    # In gemma's norms, and all of bloom, numbers are float32.
    close = {"bloom": 1e-5, "gemma3_text": 1e-6}.get(architecture, 1e-10)
    alike(mine, slopes(policy, attrs.evolve(responses, read=()), parameters), close)
    # What was used is not there twice; a second scoring computes it.
    alike(slopes(policy, responses, parameters), mine, close)


def test_what_was_computed_with_other_weights_or_of_other_prompts_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = speaking(network("llama", 5))
    parameters = list(policy.network.parameters())
    responses = drawn(policy)
    with torch.no_grad():
        parameters[3].mul_(1.01)
    alike(slopes(policy, responses, parameters), slopes(policy, attrs.evolve(responses, read=()), parameters), 1e-10)
    responses = drawn(policy)
    others = tuple(text.upper() for text in PROMPTS)
    found, wanted = (policy.log_prob(others, some) for some in (responses, attrs.evolve(responses, read=())))
    assert torch.allclose(found, wanted, atol=1e-10)
    assert not torch.allclose(found, policy.log_prob(PROMPTS, attrs.evolve(responses, read=())), atol=1e-3)
    responses = drawn(policy)
    policy.network.train()
    try:
        with products(monkeypatch) as multiplied:
            slopes(policy, responses, parameters)
        assert multiplied, "there might be dropout"
    finally:
        policy.network.eval()


def test_nothing_is_kept_without_gradients_nor_for_recomputed_activations_nor_in_half_precision() -> None:
    policy = speaking(network("llama", 6))
    with torch.no_grad():
        assert drawn(policy).read == ()
    assert drawn(policy).read[0].spoken is not None
    model: Any = policy.network
    model.activation_checkpointing_enable()
    try:
        assert drawn(policy).read == ()
    finally:
        model.activation_checkpointing_disable()
    with torch.autocast("cpu", torch.bfloat16):
        assert Recorder.of(model) is None
    half = Recorder.of(network("llama", 7).to(torch.bfloat16))
    network("llama", 7).to(torch.float64)
    assert half is not None
    assert half.layers == ()


class Odd(nn.Module):
    """Layers that are called twice, or written over, beside one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.over, self.once = (nn.Linear(4, 4) for _ in range(3))
        self.config, self.device = None, torch.device("cpu")

    def forward(self, read: Tensor) -> Tensor:
        return self.once(self.over(self.twice(self.twice(read))).mul_(2))


def test_layers_called_twice_or_written_over_are_left_out() -> None:
    odd = Odd()
    recorder = Recorder.of(odd)
    assert recorder is not None
    with recorder.listening(), torch.no_grad():
        odd(torch.ones(2, 3, 4))
    recorder.note_prompts()
    with recorder.listening(), torch.no_grad():
        out = odd(torch.ones(2, 1, 4))
    recorder.note(0, torch.arange(2), torch.zeros(2, dtype=torch.int64), 2)
    mask = torch.ones(2, 3, dtype=torch.bool)
    spoken = recorder.read(mask.long(), mask, torch.Size((2, 1))).spoken
    assert spoken is not None
    assert set(spoken.prompt) == set(spoken.said) == {odd.once}
    assert torch.equal(spoken.said[odd.once][0], out[:, 0])
    assert "forward" not in vars(odd.once)


def test_a_step_is_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Self-play and a mixture as the opponent; the reference is not asked for the prompts again."""
    student, reference = speaking(network("llama", 8)), speaking(network("qwen3", 9))
    reference.network.requires_grad_(False)
    game = Game(CallableOracle(lambda _, a, b: [float(len(x) > len(y)) for x, y in zip(a, b, strict=True)]), reference)
    anchors = [(reference, 0.1)]
    mixed = Update(start=student, opponent=Opponent(GeometricMixture(student, reference, 0.5)), anchors=anchors)
    real, parameters = builtin_engine.generate, list(student.network.parameters())
    read: list[int] = []
    handle = reference.network.register_forward_pre_hook(
        lambda _, __, k: read.append(k["input_ids"].shape[1]), with_kwargs=True
    )

    def step(update: Update, count: int) -> tuple[Tensor, list[Any]]:
        draw = torch.Generator().manual_seed(4)
        loss = sampled_objective(student, update, game, student.encode(PROMPTS), count, draw).loss
        return loss.detach(), list(torch.autograd.grad(loss, parameters))

    try:
        for update, count in ((mixed, 1), (mixed, 2), (Update(start=student, opponent=ITSELF, anchors=anchors), 2)):
            read.clear()
            mine = step(update, count)
            prompts_read = sum(width > 12 for width in read)
            with monkeypatch.context() as patch:
                patch.setattr(
                    builtin_engine, "generate", lambda *a, **k: [(*one[:2], ()) for one in real(*a, **{**k, "keep": 0})]
                )
                alike(mine, step(update, count), 1e-10)
            assert prompts_read == 1, update
    finally:
        handle.remove()
        reference.network.requires_grad_(True)


def test_an_adapter_of_a_shared_model_is_replayed_alone() -> None:
    base = small_llama(byte_tokenizer(), hidden=32, layers=2, heads=2, seed=0).double()
    shared = SharedModel.of(base, lora_config(4, 8.0), resting="student", seed=0)
    shared.add("reference")
    for factor in shared.factors("student"):
        nn.init.normal_(factor.weight, std=0.3)  # type: ignore[arg-type]
    student = speaking(AdapterNetwork(shared, "student"))
    reference = speaking(AdapterNetwork(shared, "reference", bare=True))
    parameters = [one for one in student.network.parameters() if one.requires_grad]
    responses = drawn(student)
    before = reference.log_prob(PROMPTS, responses)
    mine = slopes(student, responses, parameters)
    assert torch.allclose(before, reference.log_prob(PROMPTS, attrs.evolve(responses, read=())), atol=1e-10)
    assert not torch.allclose(before, mine[0].sum(-1), atol=1e-3)
    alike(mine, slopes(student, attrs.evolve(responses, read=()), parameters), 1e-10)
