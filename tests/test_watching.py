"""Failure signatures: seen on series made for them and on runs made to fail, and not seen on healthy ones."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from nlhf_zoo.intervals import wilson_interval
from nlhf_zoo.llm.observed import decisiveness, distinct_pairs, length_correlation
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.training.checkpoints import checkpoints_in, step_of
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.run import train
from nlhf_zoo.training.watching.divergence import Diverged
from nlhf_zoo.training.watching.history import History, swings
from nlhf_zoo.training.watching.signatures import REMEDIES, RULES, Limits, exploding
from nlhf_zoo.training.watching.watcher import Watcher, read_warnings
from tests.tiny_training import settings

LIMITS = Limits()


def seen(history: History) -> set[str]:
    return {name for name, rule in RULES.items() if rule(history, LIMITS) is not None}


def series(steps: int, **columns: Callable[[int], float]) -> History:
    rows = [{"step": float(t), **{name: f(t) for name, f in columns.items()}} for t in range(1, steps + 1)]
    return History(training=rows, steps=steps)


def evaluations(*wins: float, prompts: int = 64, kl: float = 1.0, every: int = 10) -> History:
    rows = []
    for number, wins_ in enumerate(wins, start=1):
        low, high = wilson_interval(wins_ * prompts, prompts)
        step = float(number * every)
        rows.append({"step": step, "win_rate": wins_, "win_rate_low": low, "win_rate_high": high, "kl": kl})
    return History(evaluations=rows, steps=every * len(wins))


def healthy(chance: random.Random, steps: int) -> History:
    """Distance and win rate rise to a plateau, with noise that remembers; length and entropy drift a little."""
    memory, far, pace = chance.choice([0.0, 0.5, 0.9]), chance.uniform(1, 20), chance.uniform(0.05, 0.4) * steps
    noise, rows, measured = 0.0, [], []
    for t in range(1, steps + 1):
        noise = memory * noise + math.sqrt(1 - memory**2) * chance.gauss(0, 1)
        way = 1 - math.exp(-t / pace)
        kl = far * way
        rows.append(
            {
                "step": float(t),
                "loss": chance.gauss(-0.02, 0.05) * (1 + kl / 5),
                "kl_to_reference": kl * (1 + 0.08 * noise) + chance.gauss(0, 0.3 * math.sqrt(kl)),
                "length": 60 + 6 * way + chance.gauss(0, 5),
                "log_prob_per_token": -2.5 + 1.2 * way + chance.gauss(0, 0.1),
                "distinct": min(1.0, 1 - 0.1 * way + chance.gauss(0, 0.02)),
                "decisiveness": 0.1 + chance.gauss(0, 0.03),
                "length_correlation": 0.15 + chance.gauss(0, 0.3),
            }
        )
        if t % (steps // 20) == 0:
            wins = sum(chance.random() < 0.5 + 0.25 * way for _ in range(64))
            low, high = wilson_interval(wins, 64)
            row = {"step": float(t), "win_rate": wins / 64, "win_rate_low": low, "win_rate_high": high, "kl": kl}
            measured.append(row)
    return History(training=rows, evaluations=measured, steps=steps)


def prefixes(history: History, every: int) -> list[History]:
    """The history as it was at every so many steps."""
    return [
        History(history.training[:t], [row for row in history.evaluations if row["step"] <= t], history.steps)
        for t in range(every, history.steps + 1, every)
    ]


def test_healthy_runs_raise_no_alarm() -> None:
    alarms = [
        {name for past in prefixes(healthy(random.Random(seed), 300), every=30) for name in seen(past)}
        for seed in range(40)
    ]
    assert sum(map(len, alarms)) <= 1, alarms


def test_collapse_needs_small_distance_and_even_win_rate_for_a_while() -> None:
    assert seen(evaluations(0.5, 0.52, 0.48, 0.5, 0.5, kl=0.001)) == {"collapse to the reference"}
    assert seen(evaluations(0.5, kl=0.001)) == {"collapse to the reference"}, "the run's last evaluation is enough"
    assert not seen(evaluations(0.5, 0.52, 0.48, 0.5, 0.5, kl=1.0))
    assert not seen(evaluations(0.5, 0.6, 0.7, 0.8, 0.8, kl=0.001))
    whole = evaluations(*[0.5] * 20, kl=0.001)
    early = History(evaluations=whole.evaluations[:5], steps=whole.steps)
    assert not seen(early), "a policy may be at its start in the first quarter"


def test_oscillating_win_rates() -> None:
    assert seen(evaluations(0.5, 0.9, 0.5, 0.9, 0.5, 0.9)) == {"oscillation"}
    assert not seen(evaluations(0.5, 0.9, 0.5, 0.9, prompts=8)), "within the intervals"
    assert not seen(evaluations(0.5, 0.7, 0.9, 0.9, 0.6, 0.6)), "up, and down once"


@pytest.mark.parametrize("name", ["loss", "kl_to_reference"])
def test_oscillating_training_numbers(name: str) -> None:
    chance = random.Random(0)
    assert seen(series(400, **{name: lambda t: 2 + math.sin(t / 20) + chance.gauss(0, 0.2)})) == {"oscillation"}
    assert not seen(series(400, **{name: lambda t: chance.gauss(0, 1)})), "noise"
    assert not seen(series(400, **{name: lambda t: t / 100 + chance.gauss(0, 0.2)})), "a rise"
    assert not seen(series(400, **{name: lambda t: 10 + math.sin(t / 20) + chance.gauss(0, 0.2)})), "a ripple"


def test_swings_are_counted_between_disjoint_intervals() -> None:
    def counted(*values: float, width: float = 0.1, least: float = 0.0) -> int:
        return swings([v - width for v in values], [v + width for v in values], least)

    assert counted(0, 1, 0, 1, 0) == 4
    assert counted(0, 1, 2, 3) == 1
    assert counted(3, 2, 1, 2) == 2
    assert counted(0, 0.1, 0, 0.1) == 0
    assert counted(0, 1, 0, 1, least=2) == 0
    assert counted() == 0


def test_weak_oracle_is_one_that_hardly_prefers() -> None:
    chance = random.Random(0)
    assert seen(series(300, decisiveness=lambda t: 0.005 + chance.uniform(0, 0.01))) == {"weak oracle"}
    assert not seen(series(300, decisiveness=lambda t: 0.05 + chance.gauss(0, 0.01)))
    assert not seen(series(10, decisiveness=lambda t: 0.0)), "too few batches to say"
    won = attrs.evolve(series(300, decisiveness=lambda t: 0.001), evaluations=evaluations(0.9).evaluations)
    assert not seen(won), "it tells the policy from the reference: the policy's answers are equally good by now"


def test_length_exploitation_needs_growth_and_correlation() -> None:
    chance = random.Random(0)

    def grows(t: int) -> float:
        return 30 + t / 5 + chance.gauss(0, 4)

    def pays(t: int) -> float:
        return 0.6 + chance.gauss(0, 0.2)

    assert seen(series(300, length=grows, length_correlation=pays)) == {"length exploitation"}
    assert not seen(series(300, length=grows, length_correlation=lambda t: chance.gauss(0, 0.3)))
    assert not seen(series(300, length=lambda t: 30 + chance.gauss(0, 4), length_correlation=pays))
    assert not seen(series(300, length=grows)), "no correlation was ever defined"


def test_what_changed_in_the_first_window_is_seen_against_the_start() -> None:
    chance = random.Random(0)
    longest = series(300, length=lambda t: 16.0, length_correlation=lambda t: 0.6 if t < 20 else math.nan)
    assert not seen(longest), "the first window is at the limit already"
    start = {"length": 6.0, "length_error": 0.2, "log_prob_per_token": -3.0, "log_prob_per_token_error": 0.1}
    start |= {"distinct": 1.0, "distinct_error": 0.0}
    assert seen(attrs.evolve(longest, start=start)) == {"length exploitation"}
    same = series(300, log_prob_per_token=lambda t: -0.1 + chance.gauss(0, 0.01), distinct=lambda t: 0.1)
    assert not seen(same)
    assert seen(attrs.evolve(same, start=start)) == {"entropy collapse"}


def test_entropy_collapse_needs_certainty_and_equal_answers() -> None:
    def certain(t: int) -> float:
        return -3 * math.exp(-t / 50)

    assert seen(series(300, log_prob_per_token=certain, distinct=lambda t: math.exp(-t / 50))) == {"entropy collapse"}
    assert not seen(series(300, log_prob_per_token=certain, distinct=lambda t: 1.0)), "answers still differ"
    assert not seen(series(300, log_prob_per_token=lambda t: -0.01, distinct=lambda t: 0.1)), "so from the start"


def test_explosions_are_told_by_what_was_usual() -> None:
    usual = [1.0, 2.0, 1.5] * 10
    assert exploding("gradient norm", [*usual, 2000.0], LIMITS)
    assert exploding("gradient norm", [*usual, 20.0], LIMITS) is None
    assert exploding("gradient norm", [*usual[:3], 1e9], LIMITS) is None, "too few to know what is usual"
    assert exploding("loss", [*usual, 1e4], LIMITS)
    assert exploding("loss", [*usual, 500.0, 600.0], LIMITS) is None
    assert exploding("gradient norm", [1e-7] * 20 + [0.5], LIMITS) is None, "a judge that seldom decides"
    assert exploding("gradient norm", [0.0] * 20 + [1.0], LIMITS) is None, "after zeros anything is infinitely more"


def test_an_episode_is_said_once_and_its_return_again(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path, steps=100)
    for step in (10, 12, 20, 60):
        watcher.warn(step, "oscillation", f"at {step}")
    assert [warned.step for warned in read_warnings(tmp_path / "warnings.jsonl")] == [10, 60]
    assert all(warned.remedy == REMEDIES["oscillation"] for warned in read_warnings(tmp_path / "warnings.jsonl"))


def test_what_is_observed_of_responses() -> None:
    assert float(distinct_pairs([["a", "b", "a"], ["c", "c", "c"]])) == pytest.approx(2 / 6)
    lengths = torch.tensor([[1, 2, 3], [10, 20, 30]])
    worth = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    assert float(length_correlation(lengths, worth)["length_correlation"]) > 0.7
    assert float(length_correlation(lengths, -worth)["length_correlation"]) < -0.7
    assert not length_correlation(torch.ones(2, 3), worth)
    judged = torch.tensor([[0.9, 0.5], [0.1, 0.5]], dtype=torch.float64)
    assert float(decisiveness(judged, [True, False, True, False])) == pytest.approx(0.4)
    assert decisiveness(judged, [False] * 4) is None


# --- real runs


def letters(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    """Prefers more letters a-j."""
    counts = [torch.tensor([sum(c in "abcdefghij" for c in text) for text in side]) for side in (first, second)]
    return torch.sigmoid((counts[0] - counts[1]).double()).tolist()


def half(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    return [0.5] * len(prompts)


def first_place(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    return [0.9] * len(prompts)


def longer(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    gaps = torch.tensor([len(a) - len(b) for a, b in zip(first, second, strict=True)])
    return torch.sigmoid(gaps.double()).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny language models: in lm no token is likely, short ends an answer after a few tokens."""
    path = tmp_path_factory.mktemp("watching")
    tokenizer = byte_tokenizer()
    model = small_llama(tokenizer, hidden=16, layers=1, heads=2, seed=0)
    for name in ("lm", "short"):
        tokenizer.save_pretrained(path / name)
    model.save_pretrained(path / "lm")
    with torch.no_grad():
        state = model.model(tokenizer("say 1:ab", return_tensors="pt").input_ids).last_hidden_state[0].mean(0)
        model.lm_head.weight[tokenizer.eos_token_id] = 4.2 * state / state.square().sum()
    model.save_pretrained(path / "short")
    (path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"say {i}:"}) for i in range(64)))
    return path


def run(folder: Path, out: Path, judge: str = "letters", start: str = "lm", **changes: Any) -> dict[str, Any]:
    length = {"steps": 60, "eval_every": 15, "eval_size": 32, "checkpoint_every": 20}
    mine = {
        "model": str(folder / start),
        "oracle_options": {"function": f"tests.test_watching:{judge}"},
        "num_samples": 4,
        "learning_rate": 1e-2,
        "logger": "none",
    }
    return train(TrainConfig(**settings(folder, out, **{**length, **mine, **changes})))


def signatures(result: dict[str, Any]) -> list[str]:
    return [warned["signature"] for warned in result["warnings"]]


@pytest.mark.slow
def test_a_healthy_run_is_left_in_peace(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "run")
    assert result["win_rate"]["training"]["mean"] > 0.6
    assert result["warnings"] == []
    assert not (tmp_path / "run" / "warnings.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signature", "judge", "changes"),
    [
        ("collapse to the reference", "letters", {"beta": 1e4, "learning_rate": 1e-4, "steps": 45}),
        ("weak oracle", "half", {"steps": 30, "eval_every": 0}),
        (
            "length exploitation",
            "longer",
            {"start": "short", "max_new_tokens": 16, "learning_rate": 1e-3, "eval_every": 0},
        ),
        ("entropy collapse", "letters", {"beta": 1e-5, "learning_rate": 3e-2, "max_new_tokens": 3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_runs_made_to_fail_are_told_why(
    signature: str, judge: str, changes: dict[str, Any], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = run(folder, tmp_path / "run", judge, **changes)
    assert signature in signatures(result)
    written = (tmp_path / "run" / "warnings.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == result["warnings"]
    assert signatures(result).count(signature) == 1, "an episode is said once"
    assert REMEDIES[signature] in caplog.text


def test_a_judge_that_contradicts_itself_is_named_at_the_start(folder: Path, tmp_path: Path) -> None:
    options = {"function": "tests.test_watching:first_place", "symmetrise": False}
    result = run(folder, tmp_path / "run", steps=1, eval_every=0, oracle_options=options)
    assert signatures(result)[0] == "weak oracle"
    assert result["warnings"][0]["step"] == 0
    assert "contradicts itself" in result["warnings"][0]["seen"]


def test_growing_weights_stop_the_run_and_leave_the_checkpoint_from_before(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Diverged, match="weights grew") as stop:
        run(folder, out, learning_rate=1e3, steps=10, checkpoint_every=1, eval_every=0)
    assert stop.value.step == 1
    assert stop.value.checkpoint is None
    assert not (out / "policy").exists()


def test_a_loss_that_is_no_number_stops_before_the_weights_are_touched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nlhf_zoo.cli.main import main
    from nlhf_zoo.training import module

    out, calls, right = tmp_path / "run", 0, module.sampled_objective

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        objective = right(*args, **kwargs)
        return attrs.evolve(objective, loss=objective.loss * math.nan) if calls == 6 else objective

    monkeypatch.setattr(module, "sampled_objective", poisoned)
    with pytest.raises(Diverged, match="is nan"):
        run(folder, out, steps=10, checkpoint_every=1, keep_checkpoints=3, eval_every=0)
    # The weights after five steps gave the gradient that is no number: those after four are the last known good ones.
    result = json.loads((out / "result.json").read_text())
    assert result["steps"] == 5
    assert result["stopped"]["checkpoint"] == str(out / "checkpoints" / "step=4.ckpt")
    assert [step_of(path) for path in checkpoints_in(out)] == [3, 4]
    assert (out / "checkpoints" / "step=5.suspect").exists()
    assert signatures(result) == ["divergence"]
    saved = torch.load(checkpoints_in(out)[-1], weights_only=True)
    assert all(bool(torch.isfinite(v).all()) for v in saved["state_dict"].values() if v.is_floating_point())
    # With the poison gone, the run goes on from there, and its result no longer says that it was stopped.
    assert main(["train", "--config", str(out / "config.yaml"), "--resume", "--json"]) == 0
    assert "stopped" not in json.loads((out / "result.json").read_text())


def test_the_command_line_ends_with_one_line_and_its_exit_code(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nlhf_zoo.cli.main import main

    out = tmp_path / "run"
    flags = [
        *("--model", str(folder / "lm"), "--prompts", str(folder / "prompts.jsonl"), "--oracle", "callable"),
        *("--oracle-set", "function=tests.test_watching:letters", "--out", str(out), "--steps", "4"),
        *("--max-new-tokens", "4", "--learning-rate", "1e3", "--accelerator", "cpu", "--logger", "none"),
    ]
    assert main(["train", *flags]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(r"nlhf-zoo: diverged at step \d: the weights grew", last)
    assert REMEDIES["divergence"] in last
