"""Runs that are told to stop by a signal keep the step at hand, say how to go on, and end as if never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from nlhf_zoo.training.checkpoints import checkpoints_in, step_of
from tests.kills import STAGES, kill_at, kill_when, run_whole
from tests.test_devices import SPREAD, TWO, equal_runs
from tests.test_devices import folder as two_folder
from tests.test_devices import train as train_on
from tests.test_kills import assert_same_end, command, folder, reached
from tests.tiny_training import many_letters

__all__ = ["folder", "two_folder"]

COMMAND = Path(sys.executable).with_name("nlhf-zoo")
TERMINATED, INTERRUPTED = 143, 130


def steps_kept(out: Path) -> list[int]:
    return [step_of(path) for path in checkpoints_in(out)]


def last_line(log: Path) -> str:
    return log.read_text().splitlines()[-1]


RUNS: dict[str, tuple[int, str, int, dict[str, Any]]] = {
    # The audit generates twice.
    "after generation": (signal.SIGTERM, "generate", 6, {}),
    "Ctrl-C in the backward pass": (signal.SIGINT, "backward", 4, {}),
    # Two batches a step, three steps an update: the signal falls inside both.
    "accumulating": (
        signal.SIGTERM,
        "backward",
        7,
        {"accumulate": 2, "inner_steps": 3, "solver_options": {"kappa": None, "eta": None}},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_goes_on_as_if_never_stopped(name: str, folder: Path, tmp_path: Path) -> None:
    signum, stage, count, changes = RUNS[name]
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    settings = {"steps": 7, "checkpoint_every": 100, "eval_every": 4, **changes}
    assert run_whole(command(folder, whole, **settings), log) == 0, log.read_text()[-2000:]
    argv = command(folder, broken, "--resume", **settings)
    assert kill_at(argv, STAGES[stage], count, log, signum) == 128 + signum, log.read_text()[-2000:]
    assert steps_kept(broken) == [4], "the step in which the signal came is the last"
    go_on = f"nlhf-zoo train --config {broken / 'config.yaml'} --resume"
    assert last_line(log) == f"nlhf-zoo: stopped by {signal.Signals(signum).name}; step 4 is kept; go on with: {go_on}"
    assert not (broken / "policy").exists()
    assert run_whole(go_on.split()[1:], log) == 0, log.read_text()[-2000:]
    assert_same_end(whole, broken)
    rows, also = (
        [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()] for out in (whole, broken)
    )
    for one, other in zip(rows, also, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_run_stopped_again_and_again_keeps_as_many_checkpoints_as_told(folder: Path, tmp_path: Path) -> None:
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    settings = {"steps": 12, "checkpoint_every": 5, "keep_checkpoints": 2}
    argv = command(folder, broken, "--resume", **settings)
    for stop in range(3):
        assert kill_at(argv, STAGES["optimizer"], 3, log, signal.SIGTERM) == TERMINATED, log.read_text()[-2000:]
        assert steps_kept(broken) == [[3], [5, 6], [6, 9]][stop]
    assert run_whole(argv, log) == 0
    assert run_whole(command(folder, whole, **settings), log) == 0
    assert_same_end(whole, broken)


def slow(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    if Path(os.environ["JUDGE_IS_SLOW"]).exists():
        for _ in range(300):
            time.sleep(0.1)
    return many_letters(prompts, first, second)


def test_lightning_says_its_lines_once(folder: Path, tmp_path: Path) -> None:
    """In a fresh process, where Lightning finds no handlers but its own."""
    out, log = tmp_path / "run", tmp_path / "log"
    assert run_whole(command(folder, out, steps=1, progress=False), log) == 0
    argv = [str(COMMAND), *command(folder, out, "--resume", steps=2, progress=False)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True, timeout=200)
    lines = done.stderr.splitlines()
    assert sum("Restoring states from the checkpoint" in line for line in lines) == 1
    assert sum(line.startswith("nash_mp holds 3 models in memory") for line in lines) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_second_signal_stops_at_once(
    signum: signal.Signals, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    monkeypatch.setenv("JUDGE_IS_SLOW", str(tmp_path / "slow"))
    options = {"function": "tests.test_stopping:slow"}
    argv = command(folder, out, steps=100_000, oracle_options=options)

    def asked() -> bool:
        if reached(out) >= 2:
            (tmp_path / "slow").touch()
            return True
        return False

    begun = time.monotonic()
    code = kill_when(argv, asked, 0.3, log, signum, signum, apart=1.2)
    assert code == (INTERRUPTED if signum == signal.SIGINT else -signal.SIGTERM), log.read_text()[-2000:]
    assert time.monotonic() - begun < 28, "the judge would have taken longer"
    assert f"{signum.name}: stopping after this step; once more stops at once" in log.read_text()
    assert reached(out) < 100_000


def test_an_echo_of_the_signal_is_not_a_second_one(folder: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    argv = command(folder, out, steps=100_000)
    code = kill_when(argv, lambda: reached(out) >= 2, 0.0, log, signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
    # Of signals that come together Python hears the one with the lower number first.
    assert code in (TERMINATED, INTERRUPTED), log.read_text()[-2000:]
    assert "go on with" in last_line(log)


def test_slurm_s_signal_is_ours_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning would write half a step into a checkpoint of its own and requeue the job."""
    job = {"NTASKS": "1", "NTASKS_PER_NODE": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "a"}
    for name, value in {**job, "JOB_ID": "7", "NODELIST": "localhost"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    requeue = tmp_path / "scontrol"
    requeue.write_text(f"#!/bin/sh\ntouch {tmp_path / 'requeued'}\n")
    requeue.chmod(0o755)
    out, log = tmp_path / "run", tmp_path / "log"
    argv = command(folder, out, steps=6, checkpoint_every=100)
    assert kill_at(argv, STAGES["backward"], 3, log, signal.SIGUSR1) == 128 + signal.SIGUSR1, log.read_text()[-2000:]
    assert steps_kept(out) == [3]
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    assert not (tmp_path / "requeued").exists()


# --- several processes


def stops_second(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    """Of two processes, the second gets the signal, in its third batch."""
    global _ASKED
    _ASKED += 1
    if os.environ.get("LOCAL_RANK") == "1" and _ASKED == 3 and not Path(os.environ["STOPPED"]).exists():
        Path(os.environ["STOPPED"]).touch()
        os.kill(os.getpid(), signal.SIGTERM)
    return many_letters(prompts, first, second)


_ASKED = 0


@pytest.mark.slow
@pytest.mark.timeout(600)  # three runs of two processes
@pytest.mark.parametrize("devices", [TWO, SPREAD], ids=["ddp", "fsdp2"])
def test_a_signal_to_one_process_stops_all(
    devices: dict[str, Any], two_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOPPED", str(tmp_path / "stopped"))
    name = devices["strategy"]
    settings = {**devices, "steps": 5, "oracle_options": {"function": "tests.test_stopping:stops_second"}}
    done = train_on(two_folder, f"broken_{name}", check=False, **settings)
    assert done.returncode == TERMINATED, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if "go on with" in line]
    assert len(lines) == 1, "the first process speaks for all"
    (kept,) = steps_kept(two_folder / f"broken_{name}")
    assert 1 <= kept < 5
    again = train_on(two_folder, f"broken_{name}", **settings, resume=True)
    assert json.loads(again.stdout)["steps"] == 5
    train_on(two_folder, f"whole_{name}", **settings)
    equal_runs(two_folder, f"broken_{name}", f"whole_{name}")
    saved = yaml.safe_load((two_folder / f"broken_{name}" / "config.yaml").read_text())
    assert saved["strategy"] == name
