"""Training runs that are killed again and again come out bit for bit as if nothing had happened."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.training.checkpoints import checkpoints_in, newest_checkpoint, step_of
from tests import tiny_training
from tests.judge_server import KEY, MODEL, judge_server
from tests.kills import KILLED, STAGES, kill_at, kill_when, run_whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = small_llama(byte_tokenizer(), hidden=16, layers=1, heads=2, seed=0)
    return tiny_training.write_folder(tmp_path_factory.mktemp("kills"), network)


LEAN = {
    **{"batch_size": 2, "num_samples": 2, "max_new_tokens": 4, "eval_size": 4, "logger": "none"},
    # So that the optimizer and its schedule have something to lose.
    **{"checkpoint_every": 1, "warmup_steps": 20, "weight_decay": 0.01},
}


def command(folder: Path, out: Path, *flags: str, **changes: Any) -> list[str]:
    return tiny_training.command(folder, out, *flags, **{**LEAN, **changes})


def reached(out: Path) -> int:
    return max((step_of(path) for path in checkpoints_in(out)), default=0)


def assert_same_end(one: Path, two: Path) -> None:
    first, second = (json.loads((out / "result.json").read_text()) for out in (one, two))
    for key in ("steps", "queries", "tokens_generated", "solver_steps", "win_rate", "kl_to_reference"):
        assert first[key] == second[key], key
    mine, theirs = (load_file(out / "policy" / "model.safetensors") for out in (one, two))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    # Target network, moments, schedule and counters too: whatever would show only later.
    last = [torch.load(checkpoints_in(out)[-1], weights_only=True) for out in (one, two)]
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal(last[0][key], last[1][key], key)
    counted = [{k: v for k, v in saved["nlhf_zoo"].items() if k != "seconds"} for saved in last]
    assert counted[0] == counted[1]


def assert_equal(one: Any, two: Any, where: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key, value in one.items():
            assert_equal(value, two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        for place, (mine, theirs) in enumerate(zip(one, two, strict=True)):
            assert_equal(mine, theirs, f"{where}[{place}]")
    else:
        assert one == two, where


@pytest.mark.slow
def test_twenty_kills_change_nothing(folder: Path, tmp_path: Path) -> None:
    chance, whole, broken, log = random.Random(7), tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    # No session gets further than about 8 batches: the run cannot end before the last kill.
    kills: list[str | None] = [*STAGES, *chance.choices(list(STAGES), k=4), *[None] * 8]
    chance.shuffle(kills)
    steps = 8 * len(kills)
    assert len(kills) == 20
    assert run_whole(command(folder, whole, steps=steps), log) == 0, log.read_text()[-2000:]
    argv = command(folder, broken, "--resume", steps=steps)
    for stage in kills:
        before = reached(broken)
        if stage is None:
            goal = before + chance.randint(0, 3)
            code = kill_when(argv, lambda goal=goal: reached(broken) >= goal, chance.uniform(0, 0.3), log)
        else:
            code = kill_at(argv, STAGES[stage], chance.randint(2, 6), log)
        assert code == KILLED, f"{stage} at {before}: {log.read_text()[-2000:]}"
    assert 0 < reached(broken) < steps
    assert not (broken / "policy").exists()
    assert run_whole(argv, log) == 0, log.read_text()[-2000:]
    assert_same_end(whole, broken)
    assert not [path for path in broken.rglob(".*") if path.name.endswith(".part")]


def kept(out: Path) -> int:
    """Verdicts that are on the disk."""
    with contextlib.closing(sqlite3.connect(out / "verdicts.sqlite")) as file:
        return file.execute("SELECT count(*) FROM verdicts").fetchone()[0]


@pytest.mark.slow
def test_a_paid_judges_verdicts_outlive_the_kills_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_JUDGES_KEY", KEY)
    chance, whole, broken, log = random.Random(5), tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    concurrency = 2
    options = {"model": MODEL, "key_env": "A_JUDGES_KEY", "backoff": 0.01, "concurrency": concurrency}
    settings = {"oracle": "openai", "num_samples": 3, "steps": 12}
    with judge_server(quality=letters, soft=True) as server:
        argv = command(folder, whole, **settings, oracle_options={**options, "base_url": server.url})
        assert run_whole(argv, log) == 0, log.read_text()[-2000:]
        calls = len(server.delivered)
        assert set(server.given.values()) == {1}
        assert kept(whole) == calls
    lives = [0]
    with judge_server(
        quality=letters, soft=True, plan=lambda *_: chance.choices(["ok", "slow", "500"], [5, 4, 1])[0]
    ) as server:
        argv = command(folder, broken, "--resume", **settings, oracle_options={**options, "base_url": server.url})
        for kill in range(5):
            goal = len(server.delivered) + chance.randint(3, 18)
            code = kill_when(argv, lambda goal=goal: len(server.delivered) >= goal, chance.uniform(0, 0.1), log)
            assert code == KILLED, f"kill {kill}: {log.read_text()[-2000:]}"
            server.settle()
            lives.append(len(server.delivered))
        before = kept(broken)
        assert run_whole(argv, log) == 0, log.read_text()[-2000:]
        handed = list(server.delivered)
    # Whatever a process has sent a further question after, it has committed.
    for begin, end in itertools.pairwise(lives):
        safe = handed[begin : max(begin, end - concurrency)]
        assert not set(safe) & set(handed[end:]), "a verdict that was committed is asked for again"
    # The last life, which nobody cut short, paid for what was missing and for nothing else.
    assert kept(broken) == calls == len(set(handed))
    assert len(handed) - lives[-1] == calls - before
    assert_same_end(whole, broken)


def letters(text: str) -> float:
    return float(sum(c in "abcdefghij" for c in text))


@pytest.fixture(scope="module")
def six_steps(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    log = out.with_name("log")
    assert run_whole(command(folder, out, steps=6), log) == 0, log.read_text()[-2000:]
    return out


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage.startswith("checkpoint")])
def test_a_kill_while_a_checkpoint_is_written_leaves_no_half_file(
    stage: str, folder: Path, six_steps: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    assert kill_at(command(folder, out, steps=6), STAGES[stage], 3, log) == KILLED, log.read_text()[-2000:]
    for path in checkpoints_in(out):
        torch.load(path, weights_only=True)
    assert reached(out) == (3 if "older" in stage else 2)
    assert run_whole(command(folder, out, "--resume", steps=6), log) == 0, log.read_text()[-2000:]
    assert_same_end(six_steps, out)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (5, 10):
        torch.save({"step": step}, folder / f"step={step}.ckpt")
    half = (folder / "step=10.ckpt").read_bytes()
    (folder / "step=10.ckpt").write_bytes(half[: len(half) // 2])
    assert newest_checkpoint(tmp_path) == folder / "step=5.ckpt"
    assert "step=10.ckpt is damaged" in caplog.text
