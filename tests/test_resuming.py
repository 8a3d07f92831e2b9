"""What may differ between a run and its resumption, and what is kept of the difference."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from nlhf_zoo import BadInput
from nlhf_zoo.oracles.build import essential_options
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.run import train
from nlhf_zoo.training.watching.watcher import read_warnings
from tests.tiny_training import settings, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("resuming"))


def rates(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as handle:
        return [float(row["lr-AdamW"]) for row in csv.DictReader(handle) if row["lr-AdamW"]]


def run(folder: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return train(TrainConfig(**settings(folder, out, **changes)))


def test_a_gentler_learning_rate_takes_hold_at_a_resumption_and_is_noted(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(folder, out, steps=2)
    changed = {"learning_rate": 1e-5, "warmup_steps": 3, "weight_decay": 0.5}
    result = run(folder, out, steps=4, resume=True, **changed)
    # Warm-up counts the steps of the whole run: the third of four, then all of the rate.
    assert rates(out / "logs" / "resumed_at_2") == pytest.approx([0.75e-5, 1e-5])
    before = {"learning_rate": 1e-3, "warmup_steps": 0, "weight_decay": 0.0}
    noted = [{"step": 2, "setting": name, "was": before[name], "now": now} for name, now in changed.items()]
    assert result["changes"] == noted
    assert "| learning_rate, step 2 | from 0.001 to 1e-05 |" in (out / "policy" / "README.md").read_text()
    assert run(folder, out, steps=4, resume=True, **changed)["changes"] == noted


def test_a_run_without_a_checkpoint_begins_anew_with_other_settings(folder: Path, tmp_path: Path) -> None:
    source, out = "tests.stand_ins:missing", tmp_path / "run"
    failing = {"oracle_options": {"function": "tests.test_resuming:out_of_range"}}
    with pytest.raises(BadInput, match="must be in"):
        run(folder, out, **failing)
    (out / "evaluations.jsonl").write_text('{"step": 9}\n')
    with pytest.raises(BadInput, match=r"cannot import|has no"):
        run(folder, out, resume=True, oracle_options={"function": source})
    result = run(folder, out, resume=True, beta=0.5)
    assert (result["steps"], result["beta"], result["changes"]) == (4, 0.5, [])
    assert not (out / "evaluations.jsonl").exists()


def out_of_range(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    return [2.0] * len(prompts)


def test_a_mended_python_judge_goes_on_once_it_is_meant(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "a_judge_to_mend.py", tmp_path / "run"
    source.write_text("def judge(prompts, first, second):\n    return [0.5] * len(prompts)\n")
    monkeypatch.syspath_prepend(tmp_path)
    options = {"oracle_options": {"function": "a_judge_to_mend:judge"}}
    run(folder, out, steps=1, **options)
    source.write_text(source.read_text() + "# mended\n")
    with pytest.raises(BadInput, match=r"have changed .* delete .*inputs\.json to go on"):
        run(folder, out, steps=2, resume=True, **options)
    (out / "inputs.json").unlink()
    assert run(folder, out, steps=2, resume=True, **options)["steps"] == 2
    assert run(folder, out, steps=3, resume=True, **options)["steps"] == 3


def test_a_warning_of_the_last_evaluation_is_kept_once(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    judge = {"oracle_options": {"function": "tests.test_resuming:undecided"}}
    first = run(folder, out, **judge)["warnings"]
    assert {one["signature"] for one in first} >= {"weak oracle", "collapse to the reference"}
    assert run(folder, out, resume=True, **judge)["warnings"] == first
    assert len(read_warnings(out / "warnings.jsonl")) == len(first)


def undecided(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    return [0.5] * len(prompts)


def test_a_server_may_have_another_address_at_a_resumption() -> None:
    here, there = ({"model": "m", "base_url": f"http://{host}:8000/v1"} for host in ("node1", "node2"))
    assert essential_options("openai", here) == essential_options("openai", there)
    assert essential_options("openai", here) != essential_options("openai", {**here, "model": "n"})
