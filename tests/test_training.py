"""Training through Lightning: five solvers, real processes, and a kill in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nlhf_zoo import BadInput, solvers
from nlhf_zoo.cli import main
from nlhf_zoo.llm.loading import load_causal_lm
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.module import NashTraining
from nlhf_zoo.training.run import train
from nlhf_zoo.training.stream import prompt_order
from tests.kills import KILLED, kill_when, run_whole
from tests.test_kills import assert_same_end, reached
from tests.tiny_training import command, many_letters, settings, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model and a file of prompts."""
    return write_folder(tmp_path_factory.mktemp("training"))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "policy" / "model.safetensors")


RUNS = {
    "nash_mp": {},
    "nash_mp literal": {"solver_options": {"kappa": None, "eta": None}, "inner_steps": 2},
    "nash_md": {},
    "online_dpo": {},
    "online_ipo": {},
    "exact_prox": {"inner_steps": 2},
}


@pytest.mark.parametrize("name", RUNS)
def test_every_solver_trains(name: str, folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "run"
    result = train(TrainConfig(**settings(folder, out, solver=name.split()[0], **RUNS[name])))
    assert result["steps"] == 4
    # Self-play judges each of the 3 pairs of a prompt once; another opponent is met 3 times: 4 batches of 4.
    assert result["queries"] == 4 * 4 * 3
    assert result["win_rate"]["training"]["low"] <= result["win_rate"]["training"]["mean"]
    assert json.loads((out / "result.json").read_text())["kl_to_reference"] == result["kl_to_reference"]
    assert len((out / "samples" / "step=4.jsonl").read_text().splitlines()) == 8
    model = AutoModelForCausalLM.from_pretrained(out / "policy")
    tokenizer = AutoTokenizer.from_pretrained(out / "policy")
    assert model.generate(**tokenizer("say 3:", return_tensors="pt"), max_new_tokens=3, do_sample=False).shape[1] > 6
    before = load_file(folder / "lm" / "model.safetensors")
    assert any(not torch.equal(before[key], value) for key, value in weights(out).items())
    assert TrainConfig(**yaml.safe_load((out / "config.yaml").read_text())).steps == 4


@pytest.mark.parametrize("name", sorted(solvers()))
def test_every_registered_solver_trains(name: str, folder: Path, tmp_path: Path) -> None:
    if "llm" not in solvers()[name].backends:
        pytest.skip(f"{name} does not run on language models: {solvers()[name].only}")
    out = tmp_path / "run"
    result = train(TrainConfig(**settings(folder, out, solver=name, inner_steps=2, eval_size=4)))
    assert result["steps"] == 4
    assert (result["queries"] > 0) == (name != "spin")
    before = load_file(folder / "lm" / "model.safetensors")
    after = weights(out)
    assert all(bool(torch.isfinite(value).all()) for value in after.values())
    # spin begins at its goal, the reference: what moves it there is rounding.
    assert name == "spin" or any(not torch.equal(before[key], value) for key, value in after.items())


def test_adaptive_steps_are_logged_and_kept(folder: Path, tmp_path: Path) -> None:
    import csv

    out = tmp_path / "run"
    train(TrainConfig(**settings(folder, out, solver="adaptive_nash_mp", inner_steps=1, steps=6, learning_rate=1e-2)))
    (log,) = out.rglob("metrics.csv")
    with log.open() as file:
        rows = list(csv.DictReader(file))
    etas = [float(row["train/eta"]) for row in rows if row.get("train/eta")]
    assert etas[0] == pytest.approx(0.1), "the practical form begins at 0.1"
    assert len(set(etas)) > 1, "the test changes the step"
    moved = [float(row["train/moved"]) for row in rows if row.get("train/moved")]
    assert moved
    assert max(moved) > 0


def test_training_improves_the_win_rate(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, tmp_path / "run", steps=60, learning_rate=1e-2, batch_size=8, eval_size=12)
    result = train(TrainConfig(**config))
    assert result["win_rate"]["training"]["mean"] > 0.75
    assert result["kl_to_reference"]["mean"] > 0.1


def test_same_config_same_weights(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        train(TrainConfig(**settings(folder, tmp_path / name, steps=3)))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        ("cosine", [1 / 3, 2 / 3, 1, (2 + 2**0.5) / 4, 1 / 2, (2 - 2**0.5) / 4]),
    ],
)
def test_the_learning_rate_follows_its_schedule(
    schedule: str, shares: list[float], folder: Path, tmp_path: Path
) -> None:
    config = settings(folder, tmp_path / "run", steps=6, warmup_steps=2, lr_schedule=schedule, learning_rate=1e-3)
    with recorded_rates() as rates:
        train(TrainConfig(**config))
    assert rates == pytest.approx([1e-3 * share for share in shares])


@contextlib.contextmanager
def recorded_rates() -> Iterator[list[float]]:
    """The learning rate of each step that AdamW takes."""
    rates: list[float] = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    try:
        yield rates
    finally:
        handle.remove()


def killed_and_resumed(folder: Path, tmp_path: Path, kills: int, **changes: Any) -> None:
    chance = random.Random(5)
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    steps = 12 * (kills + 1)
    length = {"steps": steps, "checkpoint_every": 1, **changes}
    assert run_whole(command(folder, whole, **length), log) == 0, log.read_text()[-2000:]

    for kill in range(kills):
        arguments = command(folder, broken, **length, resume=kill > 0)
        # A checkpoint early in the run's next stretch, and a moment later: most of the stretch is left.
        least = reached(broken) + chance.randint(1, 4)
        code = kill_when(arguments, lambda least=least: reached(broken) >= least, chance.uniform(0, 0.1), log)
        assert code == KILLED, log.read_text()[-2000:]
    assert 0 < reached(broken) < steps, "the run was over before it could be killed"
    assert not (broken / "policy").exists()
    assert run_whole(command(folder, broken, **length, resume=True), log) == 0, log.read_text()[-2000:]
    assert_same_end(whole, broken)


def test_killed_run_resumes_to_identical_weights(folder: Path, tmp_path: Path) -> None:
    killed_and_resumed(folder, tmp_path, kills=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        # Two phases of three batches each: most kills fall inside an update.
        {"solver": "nash_mp", "solver_options": {"kappa": None, "eta": None}, "inner_steps": 3},
        {"solver": "nash_md"},
        {"solver": "nash_mp", "warmup_steps": 5, "weight_decay": 0.1, "checkpoint_every": 3},
    ],
    ids=str,
)
def test_killed_thrice(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    killed_and_resumed(folder, tmp_path, kills=3 if changes.get("checkpoint_every") is None else 1, **changes)


def test_bf16_weights_train_the_policy_that_is_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules: list[NashTraining] = []
    log = NashTraining._log
    monkeypatch.setattr(NashTraining, "_log", lambda self: (modules.append(self), log(self)))
    train(TrainConfig(**settings(folder, tmp_path / "run", precision="bf16-true", steps=1)))
    student = modules[0].pool.student
    saved = load_causal_lm(str(tmp_path / "run" / "policy"), dtype=torch.bfloat16)
    frequencies = dict(saved.named_buffers())
    assert frequencies
    assert next(student.parameters()).dtype == torch.bfloat16
    for name, buffer in student.named_buffers():
        torch.testing.assert_close(buffer, frequencies[name], rtol=0, atol=0)


def test_bf16_autocast_trains(folder: Path, tmp_path: Path) -> None:
    """Generation under no_grad must not leave weights without gradient in autocast's cache."""
    result = train(TrainConfig(**settings(folder, tmp_path / "run", precision="bf16-mixed", steps=2)))
    before = load_file(folder / "lm" / "model.safetensors")
    after = weights(tmp_path / "run")
    assert result["steps"] == 2
    assert all(not torch.equal(before[key], value) for key, value in after.items() if "proj" in key)


def test_gradient_checkpointing_changes_nothing(folder: Path, tmp_path: Path) -> None:
    for name, on in (("off", False), ("on", True)):
        train(TrainConfig(**settings(folder, tmp_path / name, steps=2, gradient_checkpointing=on)))
    off, on = weights(tmp_path / "off"), weights(tmp_path / "on")
    assert all(torch.allclose(off[key], on[key], atol=1e-6) for key in off)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "no/such/folder/here"}, "no/such/folder/here"),
        ({"solver": "nash_pm"}, "nash_mp"),
        ({"solver_options": {"etta": 1}}, "etta"),
        ({"oracle": "calable"}, "callable"),
        ({"oracle_options": {"function": "no.such.module:f"}}, "no.such.module"),
        ({"prompts": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"prompt_column": "question"}, "question"),
        ({"beta": 0.0}, "beta"),
        ({"steps": 0}, "steps"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": 1, "solver": "online_dpo"}, "meets itself"),
        ({"precision": "foo"}, "foo"),
        ({"devices": "abc"}, "abc"),
        ({"devices": 0}, "devices 0"),
        ({"strategy": "foo"}, "foo"),
        ({"accelerator": "cuda"}, "cuda"),
        ({"seed": 2**40}, "seed"),
        ({"max_new_tokens": 1020}, "the model reads 1024 tokens"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_bad_settings_are_named_and_write_nothing(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        train(TrainConfig(**settings(folder, tmp_path / "run", **changes)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_used_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        train(TrainConfig(**settings(folder, tmp_path / "run")))


def test_another_run_is_not_resumed(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(TrainConfig(**settings(folder, out)))
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step=4.ckpt"]
    for changes in ({"solver": "online_dpo"}, {"beta": 0.5}, {"seed": 7}, {"solver_options": {"eta": 0.3}}):
        with pytest.raises(BadInput, match=next(iter(changes))):
            train(TrainConfig(**settings(folder, out, resume=True, **changes)))
    longer = train(TrainConfig(**settings(folder, out, resume=True, steps=6)))
    whole = train(TrainConfig(**settings(folder, tmp_path / "whole", steps=6)))
    assert longer["steps"] == 6
    assert all(torch.equal(value, weights(tmp_path / "whole")[key]) for key, value in weights(out).items())
    assert longer["seconds"] > 0
    assert longer["tokens_generated"] == whole["tokens_generated"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="no run to resume"):
        train(TrainConfig(**settings(folder, tmp_path / "other", resume=True)))


def test_a_run_whose_prompts_have_changed_is_not_resumed(folder: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "run"
    prompts.write_text((folder / "prompts.jsonl").read_text())
    train(TrainConfig(**settings(folder, out, steps=1, prompts=str(prompts))))
    prompts.write_text(prompts.read_text() + '\n{"prompt": "one more"}')
    with pytest.raises(BadInput, match=r"resume: the files of prompts .* have changed"):
        train(TrainConfig(**settings(folder, out, steps=2, prompts=str(prompts), resume=True)))


def test_a_run_whose_python_judge_has_changed_is_not_resumed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "a_judge_of_mine.py", tmp_path / "run"
    source.write_text("def judge(prompts, first, second):\n    return [0.5] * len(prompts)\n")
    monkeypatch.syspath_prepend(tmp_path)
    options = {"oracle_options": {"function": "a_judge_of_mine:judge"}}
    train(TrainConfig(**settings(folder, out, steps=1, **options)))
    assert train(TrainConfig(**settings(folder, out, steps=2, resume=True, **options)))["steps"] == 2
    source.write_text(source.read_text().replace("0.5", "0.6"))
    with pytest.raises(BadInput, match=r"resume: the files of oracle_options .* have changed"):
        train(TrainConfig(**settings(folder, out, steps=3, resume=True, **options)))


def test_two_processes_do_not_train_in_one_folder(folder: Path, tmp_path: Path) -> None:
    from nlhf_zoo.atomic import alone

    out = tmp_path / "run"
    out.mkdir()
    with alone(out / ".lock"), pytest.raises(BadInput, match="another process is training in"):
        train(TrainConfig(**settings(folder, out)))
    assert train(TrainConfig(**settings(folder, out, steps=1)))["steps"] == 1


def test_one_held_out_prompt_is_told_without_an_interval(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "asked.yaml"
    config.write_text(yaml.safe_dump(settings(folder, tmp_path / "run", steps=1, eval_size=1, progress=False)))
    assert main(["train", "--config", str(config)]) == 0
    assert "too few samples for an interval" in capsys.readouterr().out


def failing_judge(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    if Path(os.environ["JUDGE_IS_DOWN"]).exists():
        raise ConnectionError("nobody\nthere")
    return many_letters(prompts, first, second)


def test_a_function_that_raises_costs_no_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is kept at the step where it stood, and ends as one that was never stopped."""
    monkeypatch.setenv("JUDGE_IS_DOWN", str(tmp_path / "down"))
    asked = settings(folder, tmp_path / "run", oracle_options={"function": "tests.test_training:failing_judge"})
    taken = NashTraining.on_train_batch_end

    def goes_down(self: NashTraining, *arguments: Any) -> None:
        taken(self, *arguments)
        if self.trainer.global_step == 2:
            (tmp_path / "down").touch()

    with monkeypatch.context() as patched:
        patched.setattr(NashTraining, "on_train_batch_end", goes_down)
        with pytest.raises(BadInput, match=r"raised ConnectionError: nobody\sthere \(.*test_training.py, line \d+\)"):
            train(TrainConfig(**asked))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step=2.ckpt"]
    (tmp_path / "down").unlink()
    assert train(TrainConfig(**asked, resume=True))["steps"] == 4
    train(TrainConfig(**settings(folder, tmp_path / "whole")))
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def broken_judge(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    return [2.0] * len(prompts)


def test_a_broken_second_judge_is_found_before_training(folder: Path, tmp_path: Path) -> None:
    judge = {"eval_oracle": "callable", "eval_oracle_options": {"function": "tests.test_training:broken_judge"}}
    with pytest.raises(BadInput, match="2"):
        train(TrainConfig(**settings(folder, tmp_path / "run", steps=4, **judge)))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_opponents_tokens_are_counted(folder: Path, tmp_path: Path) -> None:
    """Online DPO generates 4 batches of 4 x 3 responses of at most 6 tokens, NashMD as many for its opponent."""
    alone, both = (
        train(TrainConfig(**settings(folder, tmp_path / name, solver=name)))["tokens_generated"]
        for name in ("online_dpo", "nash_md")
    )
    assert 200 < alone <= 4 * 4 * 3 * 6 < both <= 2 * 4 * 4 * 3 * 6


def test_prompt_order_visits_all_before_any_again() -> None:
    order = prompt_order(10, seed=3, start=0, length=30)
    assert all(sorted(order[i : i + 10]) == list(range(10)) for i in (0, 10, 20))
    assert order[:10] != order[10:20]
    assert prompt_order(10, seed=3, start=7, length=11) == order[7:18]
