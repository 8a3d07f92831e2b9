"""What is not trained, in bfloat16 and in the host's memory: the same run, from exact weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nlhf_zoo.llm import Decoding
from nlhf_zoo.llm.host import HostNetwork, frozen_copy
from nlhf_zoo.llm.policy import average_into
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.training import memory, run
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.networks import NetworkPool
from nlhf_zoo.training.run import train
from tests.test_adapters import aligned
from tests.test_training import folder, weights
from tests.tiny_training import settings

__all__ = ["aligned", "folder"]  # fixtures


def model(seed: int = 0) -> Any:
    return small_llama(byte_tokenizer(), hidden=32, layers=1, heads=2, seed=seed)


def logits(network: Any) -> torch.Tensor:
    return network(input_ids=torch.arange(10).reshape(1, -1)).logits


def test_a_copy_is_frozen_and_its_own() -> None:
    original = model()
    copied: Any = frozen_copy(original, torch.bfloat16)
    assert {p.dtype for p in copied.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in copied.parameters())
    assert all(p.requires_grad for p in original.parameters())
    assert copied.lm_head.weight is copied.model.embed_tokens.weight, "tied weights stay tied"
    assert [b.dtype for b in copied.buffers()] == [b.dtype for b in original.buffers()]
    before = copied.lm_head.weight.clone()
    with torch.no_grad():
        original.lm_head.weight.add_(1)
    assert torch.equal(copied.lm_head.weight, before)


def test_averages_are_exact_though_the_work_is_in_bf16() -> None:
    """A thousand steps of weight 1e-3: bfloat16 itself would not move at all."""
    student = model(seed=1)
    target = HostNetwork(frozen_copy(model(), device="cpu"), student, dtype=torch.bfloat16, resident=True)
    first = logits(target)
    assert first.dtype == torch.bfloat16
    for _ in range(1000):
        average_into(target, student, 1e-3)
    start, end = model(), student
    kept = (1 - 1e-3) ** 1000
    for mine, old, new in zip(target.parameters(), start.parameters(), end.parameters(), strict=True):
        assert mine.dtype == torch.float32
        assert torch.allclose(mine, kept * old + (1 - kept) * new, atol=1e-5)
    again = logits(target)
    assert not torch.equal(again, first), "the copy is renewed"
    assert all(torch.equal(c, p.bfloat16()) for c, p in zip(target.copied, target.parameters(), strict=True))


def test_the_copy_is_there_for_the_work_only() -> None:
    student = model(seed=1)
    away = HostNetwork(frozen_copy(model()), student)
    assert torch.equal(logits(away), logits(model()))
    assert away.copied == []
    with away.at_work():
        once = away.copied
        logits(away)
        assert all(a is b for a, b in zip(once, away.copied, strict=True)), "one copy serves the whole block"
    assert away.copied == []


@pytest.mark.parametrize("options", [{"frozen_device": "cpu"}, {"frozen_dtype": "bfloat16"}], ids=str)
def test_the_host_keeps_what_the_student_leaves_behind(options: dict[str, Any]) -> None:
    """Moving the pool moves the student; "meta" stands for an accelerator."""
    config = TrainConfig(model="-", prompts="-", oracle="-", out="-", **options)
    pool = memory.whole_pool(model(), model(), config, None, Decoding())
    spare = pool.make_spare(pool.student)
    pool.spares.append(spare)
    pool.to("meta")
    devices = [{p.device.type for p in network.parameters()} for network in (pool.student, pool.reference, spare)]
    reference = "cpu" if config.frozen_device else "meta"
    assert devices == [{"meta"}, {reference}, {"cpu"}]
    assert pool.policy(spare).device.type == "meta", "prompts go where the work is done"


LITERAL = {"solver_options": {"kappa": None, "eta": None}, "inner_steps": 2}


@pytest.mark.usefixtures("aligned")
@pytest.mark.parametrize("changes", [{}, LITERAL, {"solver": "nash_ema"}], ids=str)
def test_host_memory_changes_nothing(changes: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    for name, options in (("plain", {}), ("host", {"frozen_device": "cpu"})):
        train(TrainConfig(**settings(folder, tmp_path / name, eval_size=4, **options, **changes)))
    plain, host = weights(tmp_path / "plain"), weights(tmp_path / "host")
    assert all(torch.equal(plain[key], host[key]) for key in plain)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_bf16_is_for_work_and_the_reference(
    device: str | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[NetworkPool] = []
    monkeypatch.setattr(run, "load_pool", lambda *given: pools.append(memory.load_pool(*given)) or pools[-1])
    options = {"frozen_dtype": "bfloat16", "frozen_device": device, "eval_size": 4, **LITERAL}
    train(TrainConfig(**settings(folder, tmp_path / "broken", steps=3, **options)))
    train(TrainConfig(**settings(folder, tmp_path / "broken", steps=6, resume=True, **options)))
    train(TrainConfig(**settings(folder, tmp_path / "whole", steps=6, **options)))
    broken, whole = weights(tmp_path / "broken"), weights(tmp_path / "whole")
    assert all(torch.equal(broken[key], whole[key]) for key in whole)
    pool = pools[-1]
    assert {p.dtype for p in pool.reference.parameters()} == {torch.bfloat16}
    assert pool.spares
    for spare in pool.spares:
        assert isinstance(spare, HostNetwork)
        assert {p.dtype for p in spare.parameters()} == {torch.float32}
        assert {p.dtype for p in spare.copied} == (set() if device else {torch.bfloat16})
