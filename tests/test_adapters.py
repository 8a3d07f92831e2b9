"""Student, reference and all that a solver remembers as LoRA adapters of one model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nlhf_zoo import BadInput, solvers
from nlhf_zoo.llm import CausalLMPolicy, Decoding, GeometricMixture, scoring
from nlhf_zoo.llm.adapters import AdapterNetwork, SharedModel, lora_config, quiet_peft
from nlhf_zoo.llm.host import frozen_copy
from nlhf_zoo.llm.loading import load_causal_lm
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.training import memory, run
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.memory import adapter_pool
from nlhf_zoo.training.networks import NetworkPool
from nlhf_zoo.training.run import train
from tests.test_training import folder, killed_and_resumed, weights
from tests.tiny_training import settings

__all__ = ["folder"]  # a fixture

LORA = {"lora_rank": 4, "lora_alpha": 8.0, "learning_rate": 1e-2}


def lora(folder: Path, out: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(**settings(folder, out, **{**LORA, "eval_size": 4, **changes}))


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[NetworkPool]:
    """Every pool that a run has made, in order."""
    made: list[NetworkPool] = []

    def load_pool(*arguments: Any) -> NetworkPool:
        made.append(memory.load_pool(*arguments))
        return made[-1]

    monkeypatch.setattr(run, "load_pool", load_pool)
    return made


@pytest.fixture
def aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights as a copy has them: products on those of a mapped file, at odd addresses, may round otherwise."""
    load = memory.load_causal_lm
    monkeypatch.setattr(memory, "load_causal_lm", lambda *a, **k: frozen_copy(load(*a, **k)).requires_grad_(True))


def separate_pool(config: TrainConfig, tokenizer: Any, decoding: Decoding) -> NetworkPool:
    """The same networks as models of their own: each a peft model with a base that no other has."""
    settings = lora_config(config.lora_rank, config.lora_alpha)
    student, reference = (
        SharedModel.of(
            memory.load_causal_lm(config.model, dtype=torch.float32), settings, resting="student", seed=config.seed
        )
        for _ in range(2)
    )
    return NetworkPool(student.model, reference.model.eval(), tokenizer, decoding)


def base_model(pool: NetworkPool) -> Any:
    student = pool.student
    assert isinstance(student, AdapterNetwork)
    return student.get_base_model()


def trained(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in network.parameters() if parameter.requires_grad]


def adapted(pool: NetworkPool, network: AdapterNetwork, seed: int) -> None:
    """Factors of some size, where B would be 0."""
    with torch.no_grad():
        for i, factor in enumerate(network.parameters()):
            factor.copy_(torch.randn(factor.shape, generator=torch.Generator().manual_seed(100 * seed + i)) / 8)


SAME_AS_SEPARATE = {
    "nash_mp": {},
    "nash_mp literal": {"solver_options": {"kappa": None, "eta": None}, "inner_steps": 2},
    "nash_mp recomputed": {"gradient_checkpointing": True},
    "nash_md": {},
    "comal": {"inner_steps": 2},
    "exact_prox": {"inner_steps": 2},
    "nash_ema": {},
    "mpo": {},
}


@pytest.mark.usefixtures("aligned")
@pytest.mark.parametrize("name", SAME_AS_SEPARATE)
def test_adapters_are_as_good_as_separate_models(
    name: str, folder: Path, tmp_path: Path, pools: list[NetworkPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: student and spares of a run whose every network is a copy of its own."""
    options = {"steps": 5, "solver": name.split()[0], **SAME_AS_SEPARATE[name]}
    if "gradient_checkpointing" in options:  # it reads prompts again for each response: let both do so
        monkeypatch.setattr(scoring, "_prompts_read", lambda *_: None)
    shared = train(lora(folder, tmp_path / "shared", **options))
    mine = pools[0]
    monkeypatch.setattr(run, "load_pool", lambda *given: pools.append(separate_pool(*given)) or pools[-1])
    monkeypatch.setattr(run, "save_policy", lambda out, *_, **__: (out / "policy").mkdir() or {})
    # Recomputation is left to the shared model: without it, the separate ones say what the gradient is.
    apart = train(lora(folder, tmp_path / "apart", **{**options, "gradient_checkpointing": False}))
    theirs = pools[1]
    assert all(torch.equal(a, b) for a, b in zip(trained(mine.student), trained(theirs.student), strict=True))
    assert any(bool(factor.any()) for factor in trained(mine.student)[1::2]), "B has moved"
    assert len(mine.spares) == len(theirs.spares)
    for spare, other in zip(mine.spares, theirs.spares, strict=True):
        factors = [value for key, value in other.named_parameters() if "lora_" in key]
        assert all(torch.equal(a, b) for a, b in zip(spare.parameters(), factors, strict=True))
    for key in ("queries", "kl_to_reference", "win_rate", "tokens_generated"):
        assert shared[key] == apart[key], key


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(solvers()))
def test_every_registered_solver_trains_adapters(name: str, folder: Path, tmp_path: Path) -> None:
    if "llm" not in solvers()[name].backends:
        pytest.skip(f"{name} does not run on language models: {solvers()[name].only}")
    train(lora(folder, tmp_path / "run", solver=name, inner_steps=2))
    after = weights(tmp_path / "run")
    before = load_file(folder / "lm" / "model.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in after.values())
    # spin begins at its goal, the reference: what moves it there is rounding.
    assert name == "spin" or any(not torch.equal(before[key], value) for key, value in after.items())


@pytest.fixture
def pool() -> NetworkPool:
    tokenizer = byte_tokenizer()
    model = small_llama(tokenizer, hidden=32, layers=2, heads=2, seed=0)
    config = TrainConfig(model="nowhere", prompts="-", oracle="-", out="-", lora_rank=4)
    return adapter_pool(model, config, tokenizer, Decoding(max_new_tokens=8))


def test_the_student_starts_as_the_reference(pool: NetworkPool) -> None:
    plain = small_llama(byte_tokenizer(), hidden=32, layers=2, heads=2, seed=0)
    tokens = torch.arange(10).reshape(1, -1)
    for network in (pool.student, pool.reference):
        assert torch.equal(network(input_ids=tokens).logits, plain(input_ids=tokens).logits)


def test_two_caches_of_one_base_do_not_mix(pool: NetworkPool) -> None:
    """A mixture of two adapters generates, token by token, what two models of their own do."""
    import copy

    spare = pool.make_spare(pool.student)
    adapted(pool, pool.student, 1)
    adapted(pool, spare, 2)
    together = GeometricMixture(pool.policy(), pool.policy(spare), 0.4)
    # A copy of a network copies the model under it too.
    apart = GeometricMixture(pool.policy(copy.deepcopy(pool.student)), pool.policy(copy.deepcopy(spare)), 0.4)
    prompts = ["one", "another prompt"]
    mine, theirs = (m.sample(prompts, 3, torch.Generator().manual_seed(5)) for m in (together, apart))
    assert torch.equal(mine.tokens, theirs.tokens)
    assert torch.equal(together.log_prob(prompts, mine), apart.log_prob(prompts, mine))
    first, second = (pool.policy(network).log_prob(prompts, mine) for network in (pool.student, spare))
    assert not torch.allclose(first, second)


def test_gradients_are_the_students_alone(pool: NetworkPool) -> None:
    """Another adapter's pass between forward and backward changes neither flags nor gradients, recomputed or not."""
    spare = pool.make_spare(pool.student)
    adapted(pool, pool.student, 1)
    adapted(pool, spare, 2)
    tokens = torch.arange(12).reshape(2, -1)
    found = []
    for recompute in (False, True):
        if recompute:
            base_model(pool).activation_checkpointing_enable()
        pool.student.train(recompute)
        loss = pool.student(input_ids=tokens, use_cache=False).logits.square().mean()
        with torch.no_grad():
            for other in (spare, pool.reference):
                other(input_ids=tokens, use_cache=False)
        loss.backward()
        found.append([parameter.grad.clone() for parameter in pool.student.parameters()])
        pool.student.zero_grad()
        with_gradient = [parameter for parameter in pool.parameters() if parameter.requires_grad]
        assert {id(p) for p in with_gradient} == {id(p) for p in pool.student.parameters()}
    assert all(torch.equal(once, again) for once, again in zip(*found, strict=True))
    assert any(bool(gradient.any()) for gradient in found[0])


def test_train_mode_is_shared_and_comes_back(pool: NetworkPool) -> None:
    pool.student.train()
    pool._grow()
    pool.policy(pool.reference).sample(["a"], 2, torch.Generator().manual_seed(0))
    assert pool.student.training
    assert base_model(pool).training


@pytest.mark.parametrize("steps", [3, 4])
def test_resumed_is_uninterrupted(steps: int, folder: Path, tmp_path: Path) -> None:
    """Two phases of two batches: 3 steps end in the middle of an update, 4 at the end of one."""
    options = {"solver": "nash_mp", "solver_options": {"kappa": None, "eta": None}, "inner_steps": 2}
    train(lora(folder, tmp_path / "broken", steps=steps, **options))
    train(lora(folder, tmp_path / "broken", steps=7, resume=True, **options))
    train(lora(folder, tmp_path / "whole", steps=7, **options))
    for file in ("adapter/adapter_model.safetensors", "policy/model.safetensors"):
        one, two = (load_file(tmp_path / name / file) for name in ("broken", "whole"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_killed_run_resumes_to_identical_adapters(folder: Path, tmp_path: Path) -> None:
    killed_and_resumed(folder, tmp_path, kills=1, **LORA)


def test_memory_of_four_networks_is_that_of_one(tmp_path: Path, pools: list[NetworkPool]) -> None:
    """Distinct parameters in memory, and what a checkpoint holds: no base."""
    tokenizer = byte_tokenizer()
    base = small_llama(tokenizer, hidden=256, layers=2, heads=4, seed=0)
    base.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"say {i}:"}) for i in range(8)))
    literal = {"solver": "nash_mp", "solver_options": {"kappa": None, "eta": None}, "inner_steps": 2}
    result = train(lora(tmp_path, tmp_path / "run", lora_rank=2, steps=3, **literal))
    assert result["models_held"] == 4
    pool = pools[0]
    assert len(pool.spares) == 2
    one = sum(parameter.nbytes for parameter in base.parameters())
    distinct = {id(parameter): parameter.nbytes for parameter in pool.parameters()}
    assert one < sum(distinct.values()) < 1.1 * one
    saved = torch.load(tmp_path / "run" / "checkpoints" / "step=3.ckpt", weights_only=True)["state_dict"]
    factors = sum(parameter.nbytes for parameter in pool.student.parameters())
    assert sum(value.nbytes for value in saved.values()) == 3 * factors, "student and two spares"


def test_export_is_the_policy(folder: Path, tmp_path: Path, pools: list[NetworkPool]) -> None:
    from peft import PeftModel

    train(lora(folder, tmp_path / "run", lora_targets=["q_proj", "up_proj"]))
    student = pools[0].student
    tokens = torch.arange(10).reshape(1, -1)
    wanted = student(input_ids=tokens).logits
    plain = load_causal_lm(str(folder / "lm"), dtype=torch.float32)
    assert not torch.allclose(wanted, plain(input_ids=tokens).logits, atol=1e-3)
    for name in ("policy", "adapter"):
        loaded = CausalLMPolicy.from_pretrained(str(tmp_path / "run" / name))
        assert torch.allclose(loaded.network(input_ids=tokens).logits, wanted, atol=1e-5), name
    with quiet_peft():
        theirs = PeftModel.from_pretrained(plain, tmp_path / "run" / "adapter")
    assert torch.allclose(theirs(input_ids=tokens).logits, wanted, atol=1e-5)
    names = {key.split(".")[-3] for key in load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")}
    assert names == {"q_proj", "up_proj"}


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}], ids=["whole", "adapter on adapter"])
def test_training_goes_on_from_an_adapter(changes: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    """It is merged into its base, and the merged model is the reference."""
    train(lora(folder, tmp_path / "one"))
    start = str(tmp_path / "one" / "adapter")
    options = {"model": start, "steps": 1, "learning_rate": 1e-9, "eval_size": 4, **changes}
    result = train(TrainConfig(**settings(folder, tmp_path / "two", **options)))
    assert result["kl_to_reference"]["mean"] == pytest.approx(0, abs=1e-4)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)


def test_a_bf16_base_carries_float32_adapters(folder: Path, tmp_path: Path, pools: list[NetworkPool]) -> None:
    train(lora(folder, tmp_path / "run", frozen_dtype="bfloat16", steps=2))
    pool = pools[0]
    assert {parameter.dtype for parameter in trained(pool.student)} == {torch.float32}
    base = {p.dtype for key, p in pool.base.named_parameters() if "lora_" not in key}
    assert base == {torch.bfloat16}
    assert {value.dtype for value in weights(tmp_path / "run").values()} == {torch.float32}


def test_a_4_bit_base_trains_and_is_exported_whole(folder: Path, tmp_path: Path, pools: list[NetworkPool]) -> None:
    pytest.importorskip("bitsandbytes")
    options = {"load_in_4bit": True, "solver": "nash_mp", "checkpoint_every": 2}
    train(lora(folder, tmp_path / "whole", steps=4, **options))
    train(lora(folder, tmp_path / "broken", steps=2, **options))
    train(lora(folder, tmp_path / "broken", steps=4, resume=True, **options))
    one, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    quantised = [p for key, p in pools[0].base.named_parameters() if p.dtype == torch.uint8]
    assert len(quantised) == 7, "every linear layer of the one block"
    before, after = load_file(folder / "lm" / "model.safetensors"), weights(tmp_path / "whole")
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    key = "model.layers.0.mlp.up_proj.weight"
    moved = (before[key] - after[key]).abs().max()
    assert 0 < moved < 0.5, "the merged weights are the whole base's, not those of 4 bit"


def test_4_bit_without_bitsandbytes_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(BadInput, match=r"pip install 'nlhf-zoo\[quantised\]'") as caught:
        train(lora(folder, tmp_path / "run", load_in_4bit=True))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": -1}, "lora_rank"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_targets": ["no_such_proj"]}, "no_such_proj"),
        ({"lora_targets": "embed_tokens"}, "only linear layers"),
        ({"lora_rank": 0, "load_in_4bit": True}, "give lora_rank too"),
        ({"lora_rank": 0, "lora_targets": ["q_proj"]}, "give lora_rank too"),
        ({"reference": "elsewhere"}, "leave reference out"),
        ({"frozen_device": "cpu"}, "leave it out"),
        ({"frozen_device": "disk"}, "null or cpu"),
        ({"strategy": "fsdp2", "load_in_4bit": True}, "give frozen_dtype bfloat16"),
        ({"strategy": "fsdp2", "lora_rank": 0, "frozen_dtype": "bfloat16"}, "give lora_rank too"),
        ({"strategy": "fsdp2", "frozen_device": "cpu"}, "spreads the frozen networks"),
        ({"frozen_dtype": "int8"}, "null or bfloat16"),
    ],
    ids=str,
)
def test_bad_options_are_one_line(folder: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        train(lora(folder, tmp_path / "run", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "base_model_name_or_path"),
        ({"base_model_name_or_path": "lm"}, "adapter_model.safetensors"),
    ],
    ids=str,
)
def test_a_broken_adapter_folder_is_one_line(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "adapter_model.bin").write_bytes(b"a pickle")
    with pytest.raises(BadInput, match=message):
        load_causal_lm(str(tmp_path))
