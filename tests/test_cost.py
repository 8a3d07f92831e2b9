"""The cost model against tensors that are really there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from nlhf_zoo import Game
from nlhf_zoo.cli import main
from nlhf_zoo.drive import configure
from nlhf_zoo.interfaces import PreferenceOracle
from nlhf_zoo.llm import CausalLMPolicy, Decoding
from nlhf_zoo.llm.forward import forward
from nlhf_zoo.llm.host import HostNetwork
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.cost import DEVICES, Held, Passes, Shape, memory, seconds
from nlhf_zoo.training.estimate import estimate, passes
from nlhf_zoo.training.memory import load_pool

TOKENIZER = byte_tokenizer()


class Even(PreferenceOracle):
    def probability(self, prompts: Any, first: Any, second: Any) -> torch.Tensor:
        return torch.full((len(first),), 0.5)


def bytes_of(tensors: Any) -> int:
    """Of the memory behind tensors, each piece counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize(("hidden", "layers"), [(64, 2), (128, 6)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_is_that_of_the_tensors(hidden: int, layers: int, checkpointing: bool) -> None:
    network = small_llama(TOKENIZER, hidden=hidden, layers=layers, heads=4, seed=0)
    policy = CausalLMPolicy(network, TOKENIZER, Decoding(max_new_tokens=48, allowed_tokens=tuple(range(3, 259))))
    rows, prompts = 8, policy.encode(["x" * 31] * 4)
    responses = policy.sample(prompts, 2, torch.Generator().manual_seed(0))
    expected = memory(Shape.of(network), Held(3), rows=rows, prompt=32, response=48, checkpointing=checkpointing)

    weights = set(network.parameters())
    optimizer = torch.optim.AdamW(weights)
    if checkpointing:
        network.activation_checkpointing_enable()
        network.train()
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = policy.log_prob(prompts, responses).mean()
    own = {w.untyped_storage().data_ptr() for w in weights}
    activations = bytes_of(t for t in kept if t.untyped_storage().data_ptr() not in own)
    loss.backward()
    optimizer.step()
    moments = [v for state in optimizer.state.values() for v in state.values() if v.numel() > 1]
    assert expected.weights == 3 * bytes_of(weights)
    assert expected.gradients == bytes_of([w.grad for w in weights])
    assert expected.optimizer == bytes_of(moments)
    # The backward pass keeps one of the three copies of the logits.
    modelled = expected.activations + expected.logits / 3
    if checkpointing:
        # Recomputed one block at a time: what that block keeps is not in the list.
        modelled -= expected.activations - memory_without_blocks(expected, network, rows)
    assert activations == pytest.approx(modelled, rel=0.25)

    mask = torch.ones(rows, 80, dtype=torch.long)
    with torch.no_grad():
        out = forward(network.eval(), mask, mask, mask.cumsum(-1) - 1, use_cache=True)
    cached = bytes_of(t for layer in out.cache.layers for t in (layer.keys, layer.values))
    assert expected.cache == pytest.approx(cached, rel=0.02)


def memory_without_blocks(expected: Any, network: Any, rows: int) -> float:
    return rows * 80 * 4 * network.config.hidden_size * (network.config.num_hidden_layers + 3)


@pytest.mark.parametrize("changes", [{}, {"frozen_dtype": "bfloat16"}, {"lora_rank": 4}], ids=str)
def test_an_estimate_counts_networks_as_they_are_held(tmp_path: Path, changes: dict[str, Any]) -> None:
    small_llama(TOKENIZER, hidden=32, layers=2, heads=4, seed=0).save_pretrained(tmp_path / "lm")
    TOKENIZER.save_pretrained(tmp_path / "lm")
    config = TrainConfig(model=str(tmp_path / "lm"), prompts="", oracle="", out=tmp_path / "o", **changes)
    found = estimate(config, "h100")
    pool = load_pool(config, TOKENIZER, Decoding())
    pool.restore({"slots": {}, "spares": found["models_held"] - 2})
    for spare in pool.spares:
        if isinstance(spare, HostNetwork):
            spare(input_ids=torch.zeros(1, 1, dtype=torch.long))
    held = [spare.copied if isinstance(spare, HostNetwork) else spare.parameters() for spare in pool.spares]
    bases = [] if pool.base is None else [pool.base]
    there = {w for network in (pool.student, pool.reference, *bases) for w in network.parameters()}
    assert found["gib"]["weights"] * 2**30 == bytes_of(there.union(*held))
    trained = bytes_of(w for w in pool.student.parameters() if w.requires_grad)
    assert found["gib"]["gradients"] * 2**30 == trained
    assert found["gib"]["optimizer"] * 2**30 == 2 * trained


def test_spread_memory_is_divided_and_gathered_to_generate() -> None:
    shape = Shape.of(small_llama(TOKENIZER, hidden=64, layers=2, heads=4, seed=0))
    sizes = {"rows": 2, "prompt": 4, "response": 4}
    alone, spread = memory(shape, Held(3), **sizes), memory(shape, Held(3), devices=8, spread=True, **sizes)
    assert spread.weights + spread.gradients + spread.optimizer == 6 * shape.parameters * 4 / 8
    assert spread.gathered == shape.parameters * 4
    assert alone.gathered == 0


@pytest.mark.parametrize(
    ("name", "options", "expected", "held"),
    [
        ("nash_mp", {"kappa": 0.1}, Passes(1, 1, 1, 0, 2, 1), 3),  # reference and target are scored
        (
            "nash_md",
            {"eta": 0.25},
            Passes(2, 3, 1, 1, 1, 1),
            2,
        ),  # the student drafts for its mixture with the reference
        ("online_dpo", {}, Passes(1, 1, 1, 0, 1, 1), 2),
    ],
)
def test_passes_are_what_the_solver_asks_for(name: str, options: Any, expected: Passes, held: int) -> None:
    network = small_llama(TOKENIZER, hidden=32, layers=1, heads=2, seed=0)
    game = Game(Even(), CausalLMPolicy(network, TOKENIZER), 0.5)
    found, models = passes(configure(name, **options), game, 1)
    assert (found, models) == (expected, held)


def test_time_grows_as_the_work_does() -> None:
    shape = Shape.of(small_llama(TOKENIZER, hidden=64, layers=2, heads=4, seed=0))
    sizes: dict[str, Any] = {"rows": 8, "prompt": 32, "response": 64}
    h100, h200 = DEVICES["h100"], DEVICES["h200"]
    work = Passes(1, 1, 1, 0, 2, 1)
    base = seconds(shape, Held(3), work, h100, **sizes)
    thrice = seconds(shape, Held(3), work, h100, accumulate=3, **sizes)
    assert thrice.step - thrice.updating == pytest.approx(3 * (base.step - base.updating))
    assert thrice.updating == base.updating > 0, "one update a step"
    dear = seconds(shape, Held(3), work, attrs.evolve(h100, calling=2 * h100.calling), **sizes)
    assert dear.generating - base.generating == pytest.approx(64 * 2 * h100.calling), "each token, each layer"
    assert (
        seconds(shape, Held(3), work, h200, **sizes).generating < base.generating
    )  # it reads faster, and computes the same
    assert seconds(shape, Held(3), work, h200, **sizes).training == base.training
    thrice_drawn = attrs.evolve(work, sampled=3, cached=3, reading=3)
    assert seconds(shape, Held(3), thrice_drawn, h100, **sizes).generating == pytest.approx(3 * base.generating)
    replayed = seconds(shape, Held(3), work, h100, captured=True, **sizes)
    assert base.generating - replayed.generating == pytest.approx(64 * 2 * (h100.calling - h100.replaying))
    mixed = seconds(shape, Held(2), Passes(2, 3, 1, 1, 1, 1), h100, **sizes)
    assert base.generating < mixed.generating < 1.2 * base.generating, "16 tokens of a draft are read in one call"
    assert base.exchanging == 0 < seconds(shape, Held(3), work, h100, devices=8, **sizes).exchanging


def test_an_estimate_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_llama(TOKENIZER, hidden=32, layers=1, heads=2, seed=0).save_pretrained(tmp_path / "lm")
    flags = ["--model", str(tmp_path / "lm"), "--prompts", "none", "--oracle", "callable", "--out", str(tmp_path / "o")]
    assert main(["train", *flags, "--devices", "8", "--strategy", "fsdp2", "--estimate", "h100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["models_held"] == 3
    assert found["fits"]
    assert found["gib"]["weights"] == pytest.approx(3 * found["parameters"] * 4 / 8 / 2**30)
    assert not (tmp_path / "o").exists()
    assert main(["train", *flags, "--estimate", "abacus"]) == 2
    assert "h100" in capsys.readouterr().err
