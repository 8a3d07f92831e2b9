"""Several processes are one run: DDP and FSDP2 on the CPU (gloo), as real processes of the command line."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file

from nlhf_zoo import BadInput
from nlhf_zoo.cli import main
from nlhf_zoo.llm.folders import own_device
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.processes import first_process
from nlhf_zoo.training.run import _rooted
from nlhf_zoo.training.strategies import strategy_of
from tests.tiny_training import command, write_folder

COMMAND = Path(sys.executable).with_name("nlhf-zoo")
ROOT = Path(__file__).parents[1]


def no_best_answer(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    """Three kinds of text, each of which beats the next: no reward says so."""
    kinds = [[sum(map(ord, text)) % 3 for text in side] for side in (first, second)]
    return [(0.5, 0.9, 0.1)[(b - a) % 3] for a, b in zip(*kinds, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = small_llama(byte_tokenizer(), hidden=32, layers=2, heads=2, seed=0)
    path = write_folder(tmp_path_factory.mktemp("devices"), network)
    (path / "prompts.jsonl").write_text(
        "\n".join(json.dumps({"prompt": "say" * (i % 3) + f" {i}:"}) for i in range(40))
    )
    return path


SETTINGS = {
    "oracle_options": {"function": "tests.test_devices:no_best_answer"},
    "batch_size": 3,
    "beta": 0.05,
    "solver": "adaptive_nash_mp",  # it keeps copies, and asks for distances
    "learning_rate": 3e-3,
    "eval_size": 10,
    "eval_batch_size": 4,
}


def train(folder: Path, name: str, check: bool = True, **changes: Any) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"}
    arguments = [str(COMMAND), *command(folder, folder / name, "--json", **{**SETTINGS, **changes})]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, check=False, timeout=280)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def result(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name / "result.json").read_text())


def logged(folder: Path, name: str) -> list[dict[str, float]]:
    """All rows of a run, in order of their steps."""
    rows: list[dict[str, float]] = []
    for log in (folder / name).rglob("metrics.csv"):
        with log.open() as file:
            rows += [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return sorted(rows, key=lambda row: row["step"])


def equal_runs(folder: Path, one: str, other: str) -> None:
    """Same losses, same figures, same weights, up to rounding."""
    first, second = result(folder, one), result(folder, other)
    for key in ("steps", "solver_steps", "queries", "tokens_generated", "models_held", "length", "distinct"):
        assert first[key] == second[key], key
    for key in ("win_rate", "kl_to_reference"):
        assert flat(first[key]) == pytest.approx(flat(second[key]), rel=1e-4, abs=1e-5), key
    rows, others = ([r for r in logged(folder, name) if "train/loss" in r] for name in (one, other))
    assert len(rows) == first["steps"]
    for row, also in zip(rows, others, strict=True):
        # Lightning repeats the last value of what is not measured at every step, but not over a resume.
        assert {"train/loss", "train/queries", "train/kl_to_reference", "train/eta"} <= row.keys() & also.keys()
        shared = row.keys() & also.keys() - {"epoch"}  # a session ends one
        assert {k: row[k] for k in shared} == pytest.approx({k: also[k] for k in shared}, rel=1e-4, abs=1e-5)
    weights, also = (load_file(folder / name / "policy" / "model.safetensors") for name in (one, other))
    start = load_file(folder / "lm" / "model.safetensors")
    assert weights.keys() == also.keys() == start.keys()
    for name, value in weights.items():
        # Adam makes a step of the learning rate's size out of a gradient near 0, whose sign may be rounding.
        torch.testing.assert_close(value, also[name], rtol=1e-4, atol=1e-4)
    assert any(not torch.equal(value, start[name]) for name, value in weights.items())


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for k, v in value.items() for key, leaf in flat(v, f"{name}.{k}").items()}


TWO = {"devices": 2, "strategy": "ddp"}
SPREAD = {"devices": 2, "strategy": "fsdp2"}


@pytest.fixture(scope="module")
def one(folder: Path) -> str:
    """A run on one process that reads two batches a step."""
    train(folder, "one", accumulate=2)
    return "one"


@pytest.mark.slow
def test_two_processes_are_one_run(folder: Path, one: str) -> None:
    done = train(folder, "two", **TWO)
    equal_runs(folder, one, "two")
    assert json.loads(done.stdout)["steps"] == 4, "one document, of the first process"


@pytest.mark.slow
def test_spread_weights_are_the_same_run_and_resume(folder: Path, one: str) -> None:
    # After one step of two the half step is in the student, and the centre on a frozen copy.
    train(folder, "spread", **SPREAD, steps=1)
    saved = torch.load(folder / "spread" / "checkpoints" / "step=1.ckpt", weights_only=True)
    assert saved["nlhf_zoo"]["slots"] == {"current": "0", "half": "student"}
    whole = load_file(folder / "lm" / "model.safetensors")
    assert all(saved["state_dict"][f"pool.student.{name}"].shape == value.shape for name, value in whole.items())
    train(folder, "spread", **SPREAD, resume=True)
    equal_runs(folder, one, "spread")


@pytest.mark.slow
def test_adapters_of_a_spread_model_are_the_same_run_and_resume(folder: Path) -> None:
    train(folder, "adapters", lora_rank=4, accumulate=2)
    train(folder, "spread_adapters", **SPREAD, lora_rank=4, steps=1)
    train(folder, "spread_adapters", **SPREAD, lora_rank=4, steps=3, resume=True)
    train(folder, "spread_adapters", **TWO, lora_rank=4, resume=True)
    equal_runs(folder, "adapters", "spread_adapters")


@pytest.mark.slow
def test_a_run_moves_between_devices(folder: Path, one: str) -> None:
    train(folder, "moves", **TWO, steps=1)
    train(folder, "moves", **SPREAD, steps=2, resume=True)
    train(folder, "moves", accumulate=2, steps=3, resume=True)
    fewer = train(folder, "moves", check=False, steps=4, resume=True)
    assert fewer.returncode == 2
    assert "devices x nodes x accumulate" in fewer.stderr.splitlines()[-1]
    train(folder, "moves", **TWO, resume=True)
    equal_runs(folder, one, "moves")


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "8", "LOCAL_RANK": "0", "WORLD_SIZE": "16"}, False),
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "16"}, True),
        (
            {
                "SLURM_NTASKS": "16",
                "SLURM_NTASKS_PER_NODE": "8",
                "SLURM_PROCID": "8",
                "SLURM_LOCALID": "0",
                "SLURM_JOB_NAME": "a",
            },
            False,
        ),
    ],
)
def test_the_first_process_is_the_first_of_all_nodes(
    environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in os.environ:
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name.endswith("RANK"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert first_process() is first


@pytest.mark.parametrize(
    "name", ["fsdp", "deepspeed_stage_3", "deepspeed_stage_3_offload", "ddp_spawn", "ddp_notebook"]
)
def test_engines_that_would_lose_the_policy_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match=name):
        strategy_of(name)


def test_deepspeed_that_is_not_installed_is_said_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("deepspeed"):
        pytest.skip("DeepSpeed is installed")
    out = tmp_path / "run"
    assert main(command(folder, out, strategy="deepspeed_stage_2")) == 2
    assert "deepspeed" in capsys.readouterr().err.splitlines()[-1].lower()
    assert not out.exists()


def test_a_judge_sits_on_its_process_s_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 3)
    assert own_device() == torch.device("cuda", 3)


def test_saved_paths_hold_from_any_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    config = TrainConfig(model="lm", prompts="prompts.jsonl", oracle="matrix", oracle_options={"path": "lm"}, out="new")
    rooted = _rooted(config)
    assert (rooted.model, rooted.prompts) == (str(folder / "lm"), str(folder / "prompts.jsonl"))
    assert rooted.oracle_options == {"path": str(folder / "lm")}
    assert rooted.out == folder / "new"
    assert _rooted(attrs.evolve(config, model="organisation/model")).model == "organisation/model"
