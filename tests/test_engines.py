"""Engines that generate: the same policy whoever draws, weights that follow the training, plugins, refusals."""

from __future__ import annotations

import copy
import csv
import gc
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import nlhf_zoo.engines.vllm as vllm_engine
from nlhf_zoo import BadInput, CausalLMPolicy, RolloutEngine, weights_changed, weights_version
from nlhf_zoo.engines import weights
from nlhf_zoo.engines.vllm import VLLMEngine
from nlhf_zoo.engines.weights import write_weights
from nlhf_zoo.llm import Decoding
from nlhf_zoo.llm.builtin_engine import BuiltinEngine
from nlhf_zoo.llm.policy import average_into
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.registry import load, lookup
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.networks import copy_weights
from nlhf_zoo.training.run import train
from tests.tiny_training import settings, write_folder

TOKENIZER = byte_tokenizer()
LETTERS = tuple(TOKENIZER.convert_tokens_to_ids(list("abcdefgh")))
PROMPTS = ["one", "a longer prompt", "three"]
GREEDY = 0.01
"""A temperature at which every draw is the likeliest token."""


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, imported as vLLM would be."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "stand_ins"))
    import vllm  # pyright: ignore[reportMissingImports]

    vllm.calls.clear()
    yield vllm
    del sys.modules["vllm"]


def network(seed: int = 0) -> Any:
    """A model with opinions: at its first weights, a small one says its last token again."""
    model, generator = small_llama(TOKENIZER, hidden=32, layers=1, heads=2, seed=seed), seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.6 * torch.randn(parameter.shape, generator=generator))
    return model


def policy(engine: RolloutEngine, model: Any, **decoding: Any) -> CausalLMPolicy:
    return CausalLMPolicy(model, TOKENIZER, Decoding(**{"max_new_tokens": 6, "engine": engine, **decoding}))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def step(model: Any) -> None:
    """One step of an optimizer, large enough to change every answer."""
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=0.2), seeded(5)
    torch.stack([(p * torch.randn(p.shape, generator=generator)).sum() for p in model.parameters()]).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def mismatch(mine: CausalLMPolicy, seed: int = 0) -> float:
    """Largest |log-probability by the engine - by the policy| of a token drawn."""
    drawn = mine.sample(PROMPTS, 3, seeded(seed))
    assert drawn.log_probs is not None
    return float((mine.token_log_prob(PROMPTS, drawn).detach() - drawn.log_probs).abs().max())


@pytest.mark.parametrize("name", ["builtin", "vllm"])
def test_every_engine_draws_from_the_policy(name: str, vllm: Any) -> None:
    """Frequencies of 3,000 draws against the policy's own probabilities: chi-squared, false alarms 1e-6."""
    mine = policy(lookup("engines", name)(), network(), max_new_tokens=1, allowed_tokens=LETTERS, temperature=0.7)
    drawn = mine.sample(["say"], 3000, seeded())
    counts = torch.bincount(drawn.tokens.flatten(), minlength=len(TOKENIZER))[list(LETTERS)].double()
    assert counts.sum() == 3000
    expected = (
        3000 * mine.log_prob(["say"], [[TOKENIZER.decode([t]) for t in LETTERS]]).detach().exp().flatten().double()
    )
    assert float(expected.sum()) == pytest.approx(3000)
    assert float(((counts - expected).square() / expected).sum()) < 40.6  # 7 degrees of freedom


def test_vllm_answers_as_the_built_in_engine_does(vllm: Any) -> None:
    """The likeliest answers are the same tokens, masks and texts, ended by the same stop tokens."""
    model = network(6)  # its likeliest tokens lead by far
    with torch.no_grad():  # an end-of-sequence token that is drawn now and then
        model.lm_head.weight[TOKENIZER.eos_token_id] *= 4
    how: dict[str, Any] = {"temperature": GREEDY, "max_new_tokens": 12}
    theirs = policy(VLLMEngine(), model, **how).sample(PROMPTS, 2, seeded())
    ours = policy(BuiltinEngine(), model, **how).sample(PROMPTS, 2, seeded())
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.mask, theirs.mask)
    assert ours.texts == theirs.texts
    warm = policy(VLLMEngine(), model, max_new_tokens=12)
    drawn = warm.sample(PROMPTS, 16, seeded())
    ended = (drawn.tokens == TOKENIZER.eos_token_id) & drawn.mask
    assert 0 < int(ended.sum()) < ended[..., 0].numel()  # some ended, and some ran to the end
    assert bool((drawn.lengths[ended.any(-1)] <= 12).all())
    assert torch.equal(drawn.mask.sum(-1), drawn.lengths)
    assert mismatch(warm) < 1e-5


CHANGES: dict[str, Callable[[Any], None]] = {
    "a step": step,
    "another network copied": lambda model: copy_weights(network(7), model),
    "an average": lambda model: average_into(model, network(7), 0.5),
    "a checkpoint": lambda model: model.load_state_dict(network(7).state_dict()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_vllm_follows_every_change_of_the_weights(change: str, vllm: Any) -> None:
    model = network()
    mine = policy(VLLMEngine(), model, temperature=GREEDY)
    before = mine.sample(PROMPTS, 1, seeded())
    assert mismatch(mine) < 1e-3  # rounding of logits, over a temperature of 0.01
    assert vllm.calls.count("start") == 1
    assert "reload_weights" not in vllm.calls  # nothing has changed, so nothing is fetched
    CHANGES[change](model)
    after = mine.sample(PROMPTS, 1, seeded())
    assert vllm.calls.count("reload_weights") == 1
    expected = policy(BuiltinEngine(), model, temperature=GREEDY).sample(PROMPTS, 1, seeded())
    assert after.texts == expected.texts != before.texts
    assert mismatch(mine) < 1e-3
    assert vllm.calls.count("reload_weights") == 1


def test_writes_that_torch_does_not_see_are_announced(vllm: Any) -> None:
    model = network()
    mine = policy(VLLMEngine(), model)
    mine.sample(PROMPTS, 1, seeded())
    version = weights_version(model)
    for parameter in model.parameters():
        parameter.data.add_(0.5)
    assert weights_version(model) == version
    assert mismatch(mine) > 1e-2  # stale, and seen to be
    weights_changed(model)
    assert weights_version(model) != version
    assert mismatch(mine) < 1e-5


def test_two_networks_share_one_engine(vllm: Any) -> None:
    engine, first = VLLMEngine(), network(0)
    second = copy.deepcopy(first)
    step(second)
    for model in (first, second, first, second):
        assert mismatch(policy(engine, model)) < 1e-5
    assert vllm.calls.count("start") == 1
    assert vllm.calls.count("reload_weights") == 3
    assert vllm.calls.count("reset_prefix_cache") == 3


def test_an_engine_that_sleeps_wakes_with_the_weights(vllm: Any) -> None:
    mine = policy(VLLMEngine(sleep=True), network())
    assert mismatch(mine) < 1e-5
    assert mismatch(mine) < 1e-5
    assert vllm.calls == [
        *("start", "generate", "sleep 2"),
        *("wake_up ['weights']", "reload_weights", "wake_up ['kv_cache']", "reset_prefix_cache", "generate", "sleep 2"),
    ]


def test_draws_are_those_of_the_generator(vllm: Any) -> None:
    mine = policy(VLLMEngine(), network(), max_new_tokens=8)
    one, same, other = (mine.sample(["x", "x"], 3, seeded(seed)) for seed in (1, 1, 2))
    assert one.texts == same.texts != other.texts
    assert len({text for row in one.texts for text in row}) == 6  # equal prompts, and samples, draw on their own


def test_log_probabilities_are_of_what_is_sampled_from(vllm: Any) -> None:
    mine = policy(VLLMEngine(), network(), temperature=0.6, allowed_tokens=LETTERS)
    assert mismatch(mine) < 1e-5


def test_a_mixture_is_generated_by_the_built_in_engine(vllm: Any, caplog: pytest.LogCaptureFixture) -> None:
    engine = VLLMEngine()
    mixed = policy(engine, network(0)).mixture(policy(engine, network(1)), 0.3)
    plain = policy(BuiltinEngine(), network(0)).mixture(policy(BuiltinEngine(), network(1)), 0.3)
    with caplog.at_level(logging.WARNING, "nlhf_zoo"):
        drawn = mixed.sample(PROMPTS, 2, seeded())
        mixed.sample(PROMPTS, 2, seeded())
    assert drawn.texts == plain.sample(PROMPTS, 2, seeded()).texts
    assert drawn.log_probs is None
    assert vllm.calls == []
    assert [record.getMessage() for record in caplog.records].count(caplog.records[0].getMessage()) == 1
    assert "built-in" in caplog.text


def test_weights_travel_as_safetensors_once_each_and_do_not_stay(vllm: Any, tmp_path: Path) -> None:
    from safetensors import safe_open

    model, passed = network(), tmp_path / "passed"
    write_weights(model, passed)
    with safe_open(passed / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(dict(model.named_parameters()))  # tied embeddings are one parameter
    assert mismatch(policy(VLLMEngine(weights_folder=str(passed)), model)) < 1e-5
    assert {path.suffix for path in passed.iterdir()} == {".json"}


def test_a_folder_of_its_own_goes_with_the_engine(vllm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights, "_IN_MEMORY", tmp_path)
    mine = policy(VLLMEngine(), network())
    mine.sample(PROMPTS, 1, seeded())
    assert len(list(tmp_path.iterdir())) == 1
    del mine
    gc.collect()
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("engines"), network())


def run(folder: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return train(TrainConfig(**settings(folder, out, learning_rate=1e-2, eval_size=4) | changes))


def column(out: Path, name: str) -> list[float]:
    (log,) = out.rglob("metrics.csv")
    with log.open() as handle:
        return [float(row[name]) for row in csv.DictReader(handle) if row.get(name)]


@pytest.mark.parametrize("solver", ["nash_mp", "online_dpo"])
def test_a_run_on_vllm_trains_on_policy(solver: str, folder: Path, tmp_path: Path, vllm: Any) -> None:
    result = run(folder, tmp_path / "run", solver=solver, engine="vllm", engine_options={"dtype": "float32"})
    assert result["steps"] == 4
    mismatches = column(tmp_path / "run", "train/engine_mismatch")
    assert len(mismatches) == 4
    assert max(mismatches) < 1e-5
    assert vllm.calls.count("start") == 1
    assert "engine: vllm" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_stale_engine_is_seen(folder: Path, tmp_path: Path, vllm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above would see if the weights were not passed on after an update."""
    monkeypatch.setattr(vllm_engine, "weights_version", lambda network: (0, 0))
    run(folder, tmp_path / "run", engine="vllm")
    assert max(column(tmp_path / "run", "train/engine_mismatch")[1:]) > 1e-3


def test_a_literal_nash_mp_keeps_both_of_its_networks_apart(folder: Path, tmp_path: Path, vllm: Any) -> None:
    run(folder, tmp_path / "run", solver_options={"kappa": None, "eta": None}, inner_steps=2, engine="vllm")
    mismatches = column(tmp_path / "run", "train/engine_mismatch")
    assert len(mismatches) == 4
    assert max(mismatches) < 1e-5


def test_nothing_is_logged_where_the_engine_is_the_policy(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "run", steps=1)
    assert column(tmp_path / "run", "train/engine_mismatch") == []


def test_engines_are_plugins() -> None:
    assert {"builtin", "vllm"} <= set(load().engines)
    assert isinstance(lookup("engines", "builtin")(), BuiltinEngine)


def test_vllm_that_is_not_there_is_said_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"vllm.*pip install vllm") as caught:
        run(folder, tmp_path / "run", engine="vllm")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "vlllm"}, "no engine named 'vlllm'.*vllm"),
        ({"engine": "builtin", "engine_options": {"dtype": "float32"}}, "engine builtin .*dtype"),
        ({"engine": "vllm", "engine_options": {"gpu_memory": 0.5}}, "engine vllm.*gpu_memory"),
        ({"engine": "vllm", "engine_options": {"gpu_memory_utilization": 5}}, "engine vllm.*must be in"),
        ({"engine": "vllm", "temperature": 3.0}, "engine vllm.*temperature"),
        ({"engine": "vllm", "temperature": 0.001}, "engine vllm.*temperature"),
    ],
)
def test_engine_settings_that_do_not_fit(
    changes: dict[str, Any], message: str, folder: Path, tmp_path: Path, vllm: Any
) -> None:
    with pytest.raises(BadInput, match=message):
        run(folder, tmp_path / "run", **changes)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # in peft
def test_adapters_are_refused(vllm: Any) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(network(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    with pytest.raises(BadInput, match="adapters"):
        policy(VLLMEngine(), model).sample(PROMPTS, 1, seeded())
