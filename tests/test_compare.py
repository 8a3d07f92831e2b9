"""The head-to-head: fair, resumable, the same whatever the order and the number of processes."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

import nlhf_zoo as nz
from nlhf_zoo.cli import main
from nlhf_zoo.comparison.claims import claimed
from nlhf_zoo.comparison.config import CompareConfig
from nlhf_zoo.comparison.draws import CommonDraws
from nlhf_zoo.comparison.engine import Comparison
from nlhf_zoo.comparison.entries import game_entries, solver_entries
from nlhf_zoo.comparison.scores import combined, fewest, ranking
from nlhf_zoo.comparison.summary import overall
from nlhf_zoo.comparison.table import setting
from nlhf_zoo.comparison.uncertainty import drawn_matrices

GAME = {"name": "low_rank", "options": {"responses": 12}}
GRID = {"name": "nash_mp", "options": {"eta": [0.05, 0.5]}}


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "games": [GAME],
        "solvers": ["nash_mp", "online_dpo"],
        "queries": 40,
        "seeds": 3,
        "report": False,
        **changes,
    }


def measured(folder: Path) -> list[dict[str, Any]]:
    """All rows but their wall seconds."""
    import pyarrow.parquet as pq

    return pq.read_table(folder / "results.parquet").drop_columns(["seconds"]).to_pylist()


def told(folder: Path) -> Any:
    """The summary without wall seconds."""
    summary = json.loads((folder / "summary.json").read_text())
    for game in summary["games"].values():
        for row in game["table"]:
            del row["seconds"]
    return summary


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison with a grid and a sampled game, played in one go by one process."""
    return nz.compare(**mixed(), out=tmp_path_factory.mktemp("compare") / "plain")


@pytest.fixture(scope="module")
def plain(whole: Comparison) -> Path:
    return whole.folder


def mixed() -> dict[str, Any]:
    return settings(games=[GAME, {**GAME, "comparisons": 2, "label": "sampled"}], solvers=[GRID, "online_dpo"])


def test_folder_holds_what_its_schema_says(whole: Comparison, plain: Path) -> None:
    from nlhf_zoo.comparison.folder import COLUMNS, Folder

    rows = measured(plain)
    assert set(rows[0]) == set(COLUMNS) - {"seconds"}
    runs = [row for row in rows if row["role"] == "run"]
    assert {row["game"] for row in runs} == {"low_rank responses=12", "sampled"}
    assert {row["seed"] for row in runs} == {0, 1, 2}
    assert {row["metric"] for row in runs} == {"duality_gap", "kl_to_equilibrium", "span_to_equilibrium"}
    config = yaml.safe_load((plain / "config.yaml").read_text())
    assert config["seeds"] == 3
    assert "out" not in config
    assert json.loads((plain / "environment.json").read_text())["versions"]["torch"] == torch.__version__
    game = np.load(Folder(plain).game("low_rank responses=12"))
    assert game["P"].shape == (12, 12)
    found = setting(game_entries([GAME], CompareConfig(**settings(out="x")))[0], 0)
    assert np.array_equal(game["equilibrium"], found.target.log_probs.numpy())
    for row in runs:
        policy = whole.policy(row["cell"])
        assert sum(policy["probabilities"]) == pytest.approx(1)
        assert policy["labels"] == [str(at) for at in range(12)]


def test_a_cell_is_what_solve_gives(whole: Comparison, plain: Path) -> None:
    (cell,) = {row["cell"] for row in measured(plain) if row["solver"] == "online_dpo" and row["seed"] == 1
               and row["game"] == "low_rank responses=12"}  # fmt: skip
    from nlhf_zoo.registry import lookup

    game = nz.Game(lookup("games", "low_rank")(seed=1, responses=12), beta=0.1)
    result = nz.solve(game, "online_dpo", queries=40, seed=1)
    assert whole.policy(cell)["probabilities"] == result.policy.probs.tolist()


def test_bounds_stand_beside_what_they_speak_of(plain: Path) -> None:
    spoken = [row for row in measured(plain) if row["bound"] is not None]
    metrics = ("kl_to_equilibrium", "span_to_equilibrium")
    assert {(row["name"], row["metric"]) for row in spoken} == {("nash_mp", metric) for metric in metrics}
    assert {row["options"] for row in spoken} == {'{"eta": 0.05}'}  # eta <= 2 beta; nothing is claimed of 0.5
    assert {row["game"] for row in spoken} == {"low_rank responses=12"}  # nor of sampled payoffs
    assert all(row["value"] <= row["bound"] * (1 + 1e-9) + 1e-12 for row in spoken)
    start = next(row for row in spoken if row["step"] == 0)
    assert start["bound"] == pytest.approx(start["value"])


def test_a_violated_claim_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nlhf_zoo.comparison import table

    def halved(*arguments: Any) -> Any:
        return {metric: [bound / 1e6 for bound in bounds] for metric, bounds in claimed(*arguments).items()}

    monkeypatch.setattr(table, "claimed", halved)
    (row,) = nz.compare(**settings(solvers=["nash_mp"], seeds=1), out=tmp_path).summary["games"][
        "low_rank responses=12"
    ]["table"]
    assert 0 < row["bounds"]["broken"] <= row["bounds"]["points"]


def test_order_and_processes_do_not_matter(plain: Path, tmp_path: Path) -> None:
    again = {**mixed(), "solvers": mixed()["solvers"][::-1], "games": mixed()["games"][::-1]}
    nz.compare(**again, out=tmp_path, jobs=2)

    def by_cell(rows: list[dict[str, Any]]) -> Any:
        return sorted(rows, key=lambda row: (row["cell"], row["metric"], row["step"]))

    assert by_cell(measured(tmp_path)) == by_cell(measured(plain))
    mine, theirs = told(tmp_path)["games"], told(plain)["games"]
    assert {label: game["tuning"] for label, game in mine.items()} == {
        label: game["tuning"] for label, game in theirs.items()
    }


def test_a_second_time_nothing_is_played(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nlhf_zoo.comparison import table

    before = measured(plain)
    monkeypatch.setattr(table, "solve", None)
    nz.compare(**mixed(), out=plain)
    assert measured(plain) == before


def test_only_what_is_missing_is_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nlhf_zoo.comparison import table

    nz.compare(**settings(), out=tmp_path)
    before = {row["cell"] for row in measured(tmp_path)}
    played: list[tuple[str, int]] = []

    def watched(game: Any, solver: Any, *, seed: int, **rest: Any) -> Any:
        played.append((solver.name, seed))
        return nz.solve(game, solver, seed=seed, **rest)

    monkeypatch.setattr(table, "solve", watched)
    nz.compare(**settings(solvers=["nash_mp", "online_dpo", "mmd"], seeds=4), out=tmp_path)
    assert sorted(played) == [("mmd", 0), ("mmd", 1), ("mmd", 2), ("mmd", 3), ("nash_mp", 3), ("online_dpo", 3)]
    assert before < {row["cell"] for row in measured(tmp_path)}


def test_a_changed_file_is_another_game(tmp_path: Path) -> None:
    file = tmp_path / "game.csv"
    file.write_text("0.5,0.9\n0.1,0.5\n")
    first = nz.compare(**settings(games=[str(file)]), out=tmp_path / "out").results()
    file.write_text("0.5,0.2\n0.8,0.5\n")
    second = nz.compare(**settings(games=[str(file)]), out=tmp_path / "out").results()
    gap = [one.column("value").to_pylist() for one in (first, second)]
    assert gap[0] != gap[1]


def test_every_solver_meets_the_same_coins() -> None:
    from nlhf_zoo.registry import lookup

    truth = lookup("games", "random")(seed=0, responses=6)
    uniform = torch.full((6,), 1 / 6, dtype=torch.float64)
    skewed = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    one, other = CommonDraws(truth, 3, seed=5), CommonDraws(truth, 3, seed=5)
    first = [one.payoff(uniform) for _ in range(3)]
    # The other asks something else first, with a generator of its own: its second question meets the same coins.
    other.payoff(skewed, generator=torch.Generator().manual_seed(77))
    assert torch.equal(other.payoff(uniform), first[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(CommonDraws(truth, 3, seed=6).payoff(uniform), first[0])
    assert one.queries.sampled == 3 * 6 * 3


def test_budgets_are_kept(tmp_path: Path) -> None:
    solvers = ["nash_mp", "comal", "mmd"]
    rows = nz.compare(**settings(solvers=solvers, queries=25), out=tmp_path).results().to_pylist()
    assert {row["name"] for row in rows} == set(solvers)
    assert max(row["queries"] for row in rows) <= 25
    assert max(row["queries"] for row in rows if row["name"] == "nash_mp") == 24  # two a step


def test_tuning_is_equal_and_apart(tmp_path: Path) -> None:
    solvers = [
        {"name": "nash_mp", "options": {"eta": [0.02, 0.1, 0.2, 0.5]}},
        {"name": "mmd", "options": {"eta": [0.1, 1.0]}},
        "online_dpo",
    ]
    comparison = nz.compare(**settings(solvers=solvers, tuning_seeds=1), out=tmp_path)
    game = comparison.summary["games"]["low_rank responses=12"]
    tuning = game["tuning"]
    assert {entry: (one["points"], len(one["seeds"]), one["queries"]) for entry, one in tuning.items()} == {
        "nash_mp tuned": (4, 1, 160),
        "mmd tuned": (2, 2, 160),
    }
    rows = comparison.results().to_pylist()
    seeds = {role: {row["seed"] for row in rows if row["role"] == role} for role in ("run", "tuning")}
    assert seeds["run"].isdisjoint(seeds["tuning"])
    ends: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["role"] == "tuning" and row["name"] == "nash_mp" and row["metric"] == "duality_gap":
            ends.setdefault(row["options"], {})[row["seed"]] = row["value"]
    best = min(ends, key=lambda options: sum(np.log10(list(ends[options].values()))))
    assert tuning["nash_mp tuned"]["chosen"] == json.loads(best)
    assert {row["options"] for row in rows if row["role"] == "run" and row["name"] == "nash_mp"} == {best}


def test_tuning_on_other_games(tmp_path: Path) -> None:
    others = [{"name": "random", "options": {"responses": 8}}]
    comparison = nz.compare(
        **settings(games=["rock_paper_scissors"], solvers=[GRID], tuning_games=others), out=tmp_path
    )
    (game,) = comparison.summary["games"].values()
    assert game["tuning"]["nash_mp tuned"]["on"] == ["random responses=8"]


def test_a_grid_without_tuning_is_as_many_contestants(tmp_path: Path) -> None:
    comparison = nz.compare(**settings(solvers=[GRID], tune=False), out=tmp_path)
    (game,) = comparison.summary["games"].values()
    assert {row["solver"] for row in game["table"]} == {"nash_mp eta=0.05", "nash_mp eta=0.5"}
    assert game["tuning"] == {}


def test_a_solver_that_refuses_is_last_and_said(tmp_path: Path) -> None:
    solvers = [{"name": "exact_prox"}, {"name": "nash_mp"}]
    comparison = nz.compare(**settings(games=[{**GAME, "beta": 0.0}], solvers=solvers), out=tmp_path)
    (game,) = comparison.summary["games"].values()
    failed = [row for row in game["table"] if row["failed"]]
    assert comparison.summary["cells"]["failed"] == sum(row["failed"] for row in failed) > 0
    assert all("beta" in error for row in failed for error in row["errors"])


def test_where_nothing_is_random_one_run_is_enough(tmp_path: Path) -> None:
    (tmp_path / "game.csv").write_text("0.5,0.9,0.2\n0.1,0.5,0.7\n0.8,0.3,0.5\n")
    comparison = nz.compare(**settings(games=[str(tmp_path / "game.csv")], queries=100), out=tmp_path / "out")
    (game,) = comparison.summary["games"].values()
    assert game["deterministic"]
    assert game["seeds"] == [0]
    assert game["best"] == ["nash_mp"]
    assert "is ahead" in game["verdict"]


def values(*columns: list[float]) -> Any:
    return np.array(columns).T


def test_ranks_and_verdicts() -> None:
    clear = ranking(values([1e-8] * 7, [1e-3] * 7, [1e-1] * 7), lower=True)
    assert clear.mean.tolist() == [1, 2, 3]
    assert clear.best == (0,)
    few = ranking(values([1e-8] * 5, [1e-3] * 5), lower=True)
    assert few.best == (0, 1)
    generator = np.random.default_rng(0)
    noise = ranking(generator.random((20, 3)), lower=True)
    assert len(noise.best) > 1
    assert all(noise.low[k] < noise.mean[k] < noise.high[k] for k in range(3))
    assert ranking(values([0.6] * 6, [0.4] * 6), lower=False).best == (0,)
    assert ranking(values([1e-3], [1e-2]), lower=True, deterministic=True).best == (0,)


@pytest.mark.parametrize(("runs", "solvers"), [(5, 2), (7, 2), (5, 5), (10, 4), (20, 3)])
def test_among_equals_one_is_seldom_said_to_be_behind(runs: int, solvers: int) -> None:
    generator = np.random.default_rng(1)
    behind = sum(len(ranking(generator.random((runs, solvers)), lower=True).best) < solvers for _ in range(200))
    assert behind <= 20  # 10 expected at the most; with a probability of 0.999


@given(contestants=st.integers(2, 8), more=st.integers(0, 4), seed=st.integers(0, 2**16))
@trials(max_examples=30, deadline=None)
def test_who_leads_in_every_run_is_told_apart_from_the_fewest_runs_on(contestants: int, more: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).random((fewest(contestants) + more, contestants))
    drawn[:, 1] -= 1
    assert ranking(drawn, lower=True).best == (1,)
    assert set(ranking(drawn[: fewest(contestants) - 1], lower=True).best) == set(range(contestants))


def test_a_large_difference_is_found() -> None:
    generator = np.random.default_rng(0)
    found = [ranking(generator.normal([0, 2, 2], size=(20, 3)), lower=True).best for _ in range(50)]
    assert found.count((0,)) > 40


def test_over_games_the_games_are_resampled() -> None:
    ahead = ranking(values([1.0] * 6, [2.0] * 6), lower=True)
    behind = ranking(values([2.0] * 6, [1.0] * 6), lower=True)
    assert combined([ahead] * 4).best == (0,)
    assert len(combined([ahead, ahead, behind, behind]).best) == 2
    assert overall([["a", "b"], ["a"]], [ahead, ahead]) is None


def test_counts_say_how_sure_the_equilibrium_is(tmp_path: Path) -> None:
    many, few = ([[0, 900, 100], [100, 0, 900], [900, 100, 0]], [[0, 2, 1], [1, 0, 2], [2, 1, 0]])
    widths = []
    for name, wins in (("many", many), ("few", few)):
        np.savez(tmp_path / f"{name}.npz", wins=np.array(wins, dtype=float), labels=np.array(["a", "b", "c"]))
        comparison = nz.compare(**settings(games=[str(tmp_path / f"{name}.npz")]), out=tmp_path / name)
        (game,) = comparison.summary["games"].values()
        sure = game["equilibrium"]["uncertainty"]
        assert sure["labels"] == ["a", "b", "c"]
        assert all(low <= mass <= high for low, mass, high in zip(sure["low"], sure["mass"], sure["high"], strict=True))
        widths.append(sure["high"][0] - sure["low"][0])
        assert np.load(tmp_path / name / game["equilibrium"]["file"])["wins"].tolist() == wins
        if name == "many":
            assert sure["in_support"] == [1.0, 1.0, 1.0]
        else:
            assert max(sure["in_support"]) < 1
    assert widths[0] < widths[1] / 3


def test_drawn_matrices_have_the_smoothed_shares_for_means() -> None:
    wins = torch.tensor([[0.0, 8.0, 0.0], [2.0, 0.0, 30.0], [0.0, 10.0, 0.0]])
    drawn = drawn_matrices(wins, 0.5, 20_000, seed=0)
    from nlhf_zoo.data import counts_to_probabilities

    assert torch.allclose(drawn.mean(0), counts_to_probabilities(wins, 0.5), atol=0.01)
    assert torch.equal(drawn + drawn.mT, torch.ones_like(drawn))
    assert drawn[:, 0, 2].std() > 0.3  # never compared: anything


def test_lists_of_parameters_are_several_games() -> None:
    config = CompareConfig(**settings(out="x"))
    raw = {"name": "low_rank", "options": {"rank": [2, 4], "responses": 9}, "beta": [0.1, 0.01]}
    labels = [entry.label for entry in game_entries([raw], config)]
    assert labels == [
        "low_rank rank=2 responses=9 beta=0.1",
        "low_rank rank=4 responses=9 beta=0.1",
        "low_rank rank=2 responses=9 beta=0.01",
        "low_rank rank=4 responses=9 beta=0.01",
    ]
    assert [entry.label for entry in solver_entries(config)] == ["nash_mp", "online_dpo"]


FLAGS = ["--queries", "20", "--seeds", "2", "--no-report"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--game", "low_rank", "--game-set", "responses=8", "--solver", "nash_mp", "--grid", "eta=0.05,0.2"]
    out = str(tmp_path / "out")
    assert main(["compare", *arguments, "--solver", "mmd", *FLAGS, "--out", out, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (game,) = document["games"].values()
    assert {row["entry"] for row in game["table"]} == {"nash_mp tuned", "mmd"}
    # From the saved config to the same rows, by another folder.
    saved = str(tmp_path / "out" / "config.yaml")
    other = str(tmp_path / "other")
    assert main(["compare", "--config", saved, "--out", other, "--no-report"]) == 0
    assert "not distinguishable" in capsys.readouterr().out
    assert measured(tmp_path / "other") == measured(tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--solver mmd", "needs --game"),
        ("--game low_rank --solver mmd --out x", "needs a budget"),
        ("--game low_rank --grid eta=1 --solver mmd", "--grid eta=1: stands before"),
        ("--game low_rank --solver nosuch", "no solver named 'nosuch'"),
        ("--game low_rank --solver mmd --grid eta=-1,2", "eta"),
        ("--game low_rank --solver mmd --grid eta=a,2", "eta must be a number"),
        ("--game low_rank --solver mmd --grid etta=1", "no hyperparameter 'etta'"),
        ("--game low_rank --solver mmd --solver mmd", "two solvers are called 'mmd'"),
        ("--game nosuch --solver mmd", "nor a file of that name"),
        ("--game low_rank --game-set ranks=2 --solver mmd", "no parameter 'ranks'"),
        ("--game low_rank --solver mmd --jobs 2 --cluster auto", "not both"),
        ("--game low_rank --solver mmd --policy mlpp", "no policy kind 'mlpp'"),
        ("--game low_rank --solver mmd --seed 999999 --seeds 5", "must stay below"),
    ],
)
def test_bad_input_is_one_line(arguments: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments.split()
    given += [] if "--out" in given else ["--queries", "20", "--out", str(tmp_path / "out")]
    assert main(["compare", *given]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("game", "words"),
    [
        ({"nam": "low_rank"}, "unknown key 'nam'; did you mean name?"),
        ({"name": "low_rank", "beta": -1}, "beta must be >= 0"),
        ({"name": "lm", "train": {"model": "x", "seed": 3}}, "'seed', which the comparison sets itself"),
        ({"name": "lm", "train": {"model": "x"}}, "missing"),
        ({"name": "lm", "train": {"model": "x", "prompts": "p", "oracle": "nosuch"}}, "no oracle named 'nosuch'"),
        ({"name": "lm", "train": {"modl": "x"}}, "train: unknown key 'modl'; did you mean model?"),
        ({"name": "lm", "train": {"model": "x", "beta": "y"}}, "beta must be >= 0 and a finite number, got 'y'"),
        (3, "must be a name"),
        ({"name": "low_rank", "beta": "x"}, "beta must be >= 0 and a finite number, got 'x'"),
        ({"name": "low_rank", "beta": None}, "beta must be"),
        ({"name": "low_rank", "beta": []}, "beta is a list without a value"),
        ({"name": "low_rank", "options": {"rank": []}}, "rank is a list without a value"),
        ({"name": "low_rank", "comparisons": 0}, "comparisons must be >= 1"),
        ({"name": "low_rank", "comparisons": 2.5}, "a whole number, got 2.5"),
        ({"name": "low_rank", "smoothing": "a"}, "smoothing must be"),
        ({"name": "low_rank", "divergence": ["reverse_kl"]}, "divergence must be a text"),
    ],
)
def test_bad_games(game: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(nz.BadInput, match=words.replace("?", r"\?")):
        nz.compare(**settings(games=[game]), out=tmp_path / "out")


def test_a_label_may_be_a_number(tmp_path: Path) -> None:
    made = nz.compare(**settings(games=[{**GAME, "label": 5}], solvers=[{"name": "mmd", "label": 7}]), out=tmp_path)
    assert set(made.results().column("game").to_pylist()) == {"5"}
    assert [row["entry"] for row in made.summary["games"]["5"]["table"]] == ["7"]


def test_training_options_have_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = {"model": "x", "prompts": "p", "oracle": "callable", "steps": "ten"}
    asked = tmp_path / "asked.yaml"
    asked.write_text(yaml.safe_dump({"games": [{"name": "lm", "train": train}], "solvers": ["mmd"], "queries": 9}))
    assert main(["compare", "--config", str(asked), "--out", str(tmp_path / "out")]) == 2
    assert "game lm: train: steps must be a whole number, got 'ten'" in capsys.readouterr().err


def language_run(folder: Path, **changes: Any) -> Any:
    """One language-model cell, which reads a model, prompts and a judge from `folder`; nothing is played."""
    from nlhf_zoo.comparison.kinds import kind_of

    train = {
        "model": str(folder / "lm"),
        "prompts": str(folder / "prompts.jsonl"),
        "oracle": "ensemble",
        "oracle_options": {"members": [{"oracle": "reward_model", "options": {"path": str(folder / "judge")}}]},
        **changes,
    }
    config = CompareConfig(games=[{"name": "lm", "train": train}], solvers=["mmd"], queries=9, out=folder / "out")
    (game,), (solver,) = game_entries(config.games, config), solver_entries(config)
    return kind_of(game, config, folder).run(solver, {}, 0, "run")


def local_files(folder: Path) -> Path:
    for name in ("lm/model.safetensors", "judge/model.safetensors", "prompts.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("first")
    return folder


@pytest.mark.parametrize("changed", ["lm/model.safetensors", "judge/model.safetensors", "prompts.jsonl"])
def test_a_changed_model_judge_or_prompt_is_another_game(changed: str, tmp_path: Path) -> None:
    before = language_run(local_files(tmp_path)).key
    assert language_run(tmp_path).key == before
    (tmp_path / changed).write_text("second")
    assert language_run(tmp_path).key != before


def test_moved_files_are_the_same_game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = language_run(local_files(tmp_path / "here")).key
    assert language_run(local_files(tmp_path / "there")).key == before
    monkeypatch.chdir(tmp_path / "here")
    relative = language_run(Path())
    assert relative.key == before
    assert relative.config.model == str(tmp_path / "here" / "lm")


def test_saved_settings_name_a_models_files_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    train = {"model": "lm", "prompts": "prompts.jsonl", "oracle": "reward_model", "oracle_options": {"path": "judge"}}
    nz.compare([{"name": "lm", "train": train}], ["mmd"], queries=9, seeds=1, out="out", report=False)
    saved = yaml.safe_load(Path("out/config.yaml").read_text())["games"][0]["train"]
    assert [saved["model"], saved["oracle_options"]["path"]] == [str(tmp_path / "lm"), str(tmp_path / "judge")]


def test_what_a_judge_may_cost_is_no_part_of_the_game(tmp_path: Path) -> None:
    asked = {"model": "m", "base_url": "http://127.0.0.1:1/v1", "key_env": "none"}
    keys = {
        language_run(local_files(tmp_path), oracle="openai", oracle_options={**asked, **free}).key
        for free in ({"max_calls": 3}, {"max_calls": 9, "concurrency": 2})
    }
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("given", "kept"), [({}, True), ({"show_samples": 0}, False), ({"logger": "wandb", "show_samples": 3}, False)]
)
def test_answers_on_the_way_are_kept_unless_withheld_or_sent_elsewhere(given: Any, kept: bool, tmp_path: Path) -> None:
    shown = language_run(local_files(tmp_path), **given).config.show_samples
    assert shown > 10**6 if kept else shown == given["show_samples"]


def test_the_opponents_on_the_way_are_spread_evenly() -> None:
    from nlhf_zoo.comparison.language import _spread

    files = [(step, Path(str(step))) for step in range(0, 100, 10)]
    assert [step for step, _ in _spread(files, 2)] == [20, 70]
    assert [step for step, _ in _spread(files[:1], 2)] == [0]
    assert not _spread(files, 0)
    assert not _spread([], 2)


def test_what_stops_a_language_model_is_tried_again(tmp_path: Path) -> None:
    from nlhf_zoo.comparison.workers import attempt

    done = attempt(language_run(local_files(tmp_path)))
    assert "cannot be loaded" in done.content["error"]
    assert not done.content["lasting"]


def test_an_edited_solver_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nlhf_zoo.comparison.tasks import _source

    def written(text: str) -> type:
        (tmp_path / "my_own_solver.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "my_own_solver", raising=False)
        import importlib

        importlib.invalidate_caches()
        return importlib.import_module("my_own_solver").Mine

    assert _source(written("class Mine: step = 1\n")) != _source(written("class Mine: step = 22\n"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train.beta": 0.1}, "a solver cannot set train.beta, which is the game's; it can set train.learning_rate"),
        ({"train.learning_rate": -1.0}, "learning_rate must be > 0"),
        ({"train.num_samples": [2, "x"]}, "solver nash_mp tuned: train:"),
    ],
)
def test_bad_train_options_of_a_solver(options: Any, words: str, tmp_path: Path) -> None:
    game = {"name": "lm", "train": {"model": "x", "prompts": "y", "oracle": "callable"}}
    solvers = [{"name": "nash_mp", "options": options}]
    with pytest.raises(nz.BadInput, match=words):
        nz.compare(games=[game], solvers=solvers, tokens=10, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_is_not_trained(tmp_path: Path) -> None:
    with pytest.raises(nz.BadInput, match="is a table, which has no train options"):
        nz.compare(**settings(solvers=[{"name": "mmd", "options": {"train.batch_size": 3}}]), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(nz.BadInput, match="holds something that is no comparison"):
        nz.compare(**settings(), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


BEFORE: dict[str, Any] = settings(
    games=["rock_paper_scissors", {**GAME, "comparisons": 2, "label": "sampled"}],
    solvers=[GRID, "online_dpo"],
    seeds=2,
    seed=3,
)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nz.compare(**BEFORE, out=tmp_path_factory.mktemp("compare") / "before").folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"queries": 80}, "with queries 40, not 80"),
        ({"steps": 5}, "with steps none, not 5"),
        ({"seeds": 1}, "with the seeds 3 to 4, not 3 to 3"),
        ({"seed": 4}, "with the seeds 3 to 4, not 4 to 5"),
        ({"games": BEFORE["games"][1:]}, "with a game 'rock_paper_scissors', which this one lacks"),
        ({"games": [BEFORE["games"][0], {**GAME, "label": "sampled"}]}, "with game 'sampled' set otherwise"),
        ({"beta": 0.2}, "with game 'rock_paper_scissors' set otherwise"),
        ({"solvers": ["mmd"]}, "with a solver 'nash_mp tuned', which this one lacks"),
        (
            {"solvers": [{"name": "nash_mp", "options": {"eta": [0.05, 0.1]}}, "online_dpo"]},
            "'nash_mp tuned' set other",
        ),
        ({"tuning_games": ["random"]}, "tuned on its own games"),
    ],
)
def test_another_comparison_is_refused(change: Any, words: str, before: Path) -> None:
    files = {path: path.read_bytes() for path in before.rglob("*") if path.is_file()}
    with pytest.raises(nz.BadInput, match="holds another comparison") as refusal:
        nz.compare(**{**BEFORE, **change}, out=before)
    assert words in str(refusal.value)
    assert files == {path: path.read_bytes() for path in before.rglob("*") if path.is_file()}


def test_a_comparison_grows(before: Path, tmp_path: Path) -> None:
    out = tmp_path / "grown"
    shutil.copytree(before, out)
    larger = {"name": "nash_mp", "options": {"eta": [0.02, 0.05, 0.5]}}
    more = {"games": [*BEFORE["games"], "random"], "solvers": ["online_dpo", larger, "mmd"], "seed": 2, "seeds": 4}
    grown = nz.compare(**{**BEFORE, **more, "draws": 7}, out=out)
    assert set(grown.summary["games"]) == {"rock_paper_scissors", "sampled", "random"}
    old = {row["cell"] for row in measured(before) if row["entry"] == "online_dpo" and row["game"] == "sampled"}
    assert old < {row["cell"] for row in measured(out)}
    assert nz.compare(**{**BEFORE, **more}, out=out).summary["cells"] == grown.summary["cells"]


def test_a_comparison_without_a_cell_may_be_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nlhf_zoo.comparison import engine

    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "performed", stopped)
    with pytest.raises(KeyboardInterrupt):
        nz.compare(**BEFORE, out=tmp_path)
    monkeypatch.undo()
    assert nz.compare(**settings(seeds=1), out=tmp_path).summary["cells"]["done"] == 2


def test_every_contestant_has_rows_of_its_own(tmp_path: Path) -> None:
    chosen = {"name": "nash_mp", "options": {"eta": 0.5}}
    twice = [{**GAME, "label": "one"}, {**GAME, "label": "two"}]
    made = nz.compare(**settings(games=twice, solvers=[GRID, chosen], tuning_games=["random"], seeds=2), out=tmp_path)
    rows = [row for row in made.results().to_pylist() if row["role"] == "run"]
    for game in ("one", "two"):
        assert made.summary["games"][game]["tuning"]["nash_mp tuned"]["chosen"] == {"eta": 0.5}
        cells = {
            entry: {row["cell"] for row in rows if (row["entry"], row["game"]) == (entry, game)}
            for entry in ("nash_mp tuned", "nash_mp eta=0.5")
        }
        assert len(cells["nash_mp tuned"]) == 2
        assert cells["nash_mp tuned"] == cells["nash_mp eta=0.5"]
    tuning = [row for row in made.results().to_pylist() if row["role"] == "tuning"]
    assert {row["entry"] for row in tuning} == {"nash_mp tuned"}
    # Each measurement of a contestant is there once, though both games are tuned on the same cells.
    places = [(row["entry"], row["cell"], row["metric"], row["step"]) for row in tuning]
    assert len(places) == len(set(places))


COMMAND = ["--game", "low_rank", "--game-set", "responses=12", "--solver", "nash_mp", "--grid", "eta=0.05,0.2",
           "--solver", "online_dpo", "--queries", "800", "--seeds", "6", "--no-report"]  # fmt: skip


def started(out: Path, *more: str) -> subprocess.Popen[bytes]:
    """The command in a process group of its own; what it says on stderr goes to a file beside `out`."""
    command = [sys.executable, "-m", "nlhf_zoo", "compare", *COMMAND, "--out", str(out), *more]
    with said(out).open("w", encoding="utf-8") as log:
        # A shell's background jobs, and so their children, ignore Ctrl-C.
        heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True, preexec_fn=heard
        )


def said(out: Path) -> Path:
    return out.with_suffix(".stderr")


def finished(out: Path) -> list[bytes]:
    """The lines of all cells that have ended."""
    return [line for path in (out / "cells").glob("*.jsonl") for line in path.read_bytes().splitlines(keepends=True)]


def wait_for_cells(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    until = time.monotonic() + 120
    while len(finished(out)) < count:
        assert process.poll() is None, said(out).read_text()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_killed_twice_it_ends_with_the_same(jobs: str, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = started(whole)
    assert process.wait(250) == 0
    for count in (2, 9):
        process = started(broken, "--jobs", jobs)
        wait_for_cells(process, broken, count)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (broken / "summary.json").exists()
    kept = finished(broken)
    process = started(broken, "--jobs", jobs)
    assert process.wait(250) == 0
    assert measured(broken) == measured(whole)
    summaries = [told(folder) for folder in (broken, whole)]
    assert summaries[0]["games"] == summaries[1]["games"]
    keys = [json.loads(line)["key"] for line in finished(broken) if line.endswith(b"\n")]
    assert len(keys) == len(set(keys)) == 16
    assert set(kept) <= set(finished(broken))


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_leaves_a_readable_part(jobs: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = started(out, "--jobs", jobs)
    wait_for_cells(process, out, 6)  # four of them are tuning
    process.send_signal(signal.SIGINT)
    assert process.wait(100) == 130
    error = said(out).read_text()
    assert "the same command goes on with it" in error
    assert "Traceback" not in error
    summary = told(out)
    assert summary["partial"]
    assert summary["cells"]["done"] < summary["cells"]["planned"] == 16
    assert measured(out)


def letters(folder: Path) -> dict[str, Any]:
    from tests import tiny_training

    held_out = {"eval_oracle": "callable", "eval_oracle_options": {"function": "tests.test_compare:few_letters"}}
    told = tiny_training.settings(tiny_training.write_folder(folder), folder, **held_out, eval_every=2)
    return {name: value for name, value in told.items() if name not in ("out", "steps", "logger")}


def few_letters(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    from tests.tiny_training import many_letters

    return many_letters(prompts, second, first)


@pytest.mark.slow
def test_language_models(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    from nlhf_zoo.training import tournament

    judged: list[int] = []
    verdicts = tournament.verdicts
    monkeypatch.setattr(tournament, "verdicts", lambda *given: judged.append(len(given[1].texts)) or verdicts(*given))
    game = {"name": "letters", "train": letters(tmp_path)}
    out = tmp_path / "out"
    # 4 prompts of 3 answers: 12 queries and at most 72 tokens a batch.
    asked: Any = settings(games=[game], queries=60, tokens=10_000, seeds=2)
    comparison = nz.compare(**asked, out=out)
    results = comparison.results()
    (summary,) = comparison.summary["games"].values()
    assert {row["queries"] for row in summary["table"]} == {60}
    rows = results.to_pylist()
    assert {row["step"] for row in rows} == {0, 2, 4, 5}
    assert {row["metric"] for row in rows} == {"win_rate_training", "win_rate_held_out", "kl_to_reference", "length"}
    tokens = [
        row["tokens"] for row in rows if row["solver"] == "nash_mp" and row["seed"] == 0 and row["metric"] == "length"
    ]
    assert tokens == sorted(tokens)
    assert 0 < tokens[-1] <= 5 * 72
    rates = pq.read_table(out / "win_rates.parquet").to_pylist()
    names = {row["row"] for row in rates}
    assert names == {"reference"} | {f"{name}, seed {seed}" for name in ("nash_mp", "online_dpo") for seed in (0, 1)}
    mean = {(row["judge"], row["row"], row["column"]): row["mean"] for row in rates}
    for (judge, one, other), value in mean.items():
        assert value + mean[judge, other, one] == pytest.approx(1)
        assert value + mean["held_out" if judge == "training" else "training", one, other] == pytest.approx(1)
    for shares in summary["nash_average"].values():
        assert sum(shares.values()) == pytest.approx(1)
        assert shares.keys() == names
    assert summary["metric"] == "worst_case_training"
    assert summary["budget"]["of"] == "judged comparisons"
    assert set(summary["beside"]) == {"worst_case_held_out"}
    for row in summary["table"]:
        for judge in ("training", "held_out"):
            mine = [value for (by, one, other), value in mean.items() if by == judge and one != other
                    and one.rpartition(", seed ")[0] == row["solver"]]  # fmt: skip
            lost = summary["pool"][judge][row["solver"]]
            assert lost["weakest"]["mean"] <= min(mine)
            assert 0 <= lost["mass"]["low"] <= lost["mass"]["high"] <= 1
            assert row["final"][f"worst_case_{judge}"]["median"] <= max(mine)
    assert summary["pool_queries"] == sum(judged) > 0
    (pool,) = map(np.load, (out / "pools").glob("*.npz"))
    earlier = pool["pool"].tolist()[len(pool["policies"]) :]
    assert sorted(earlier) == [f"{name}, seed 0, step {step}" for name in ("nash_mp", "online_dpo") for step in (2, 4)]
    assert pool["training"].shape == pool["held_out"].shape == (5, 9, 8)
    first, second = (pool["policies"].tolist().index(f"{name}, seed 1") for name in ("nash_mp", "online_dpo"))
    met = mean["training", "nash_mp, seed 1", "online_dpo, seed 1"]
    assert pool["training"][first, second].mean() == pytest.approx(met)
    assert len({row["prompt"] for row in map(json.loads, (out / "samples.jsonl").read_text().splitlines())}) == 8
    assert set(summary["audit"]) == {"training", "held_out"}
    assert "audit of the judge" not in capfd.readouterr().err
    assert not list(out.rglob("*.ckpt"))
    assert nz.compare(**asked, out=out).results().equals(results)
    asked |= {"solvers": ["nash_mp"], "queries": 10_000, "tokens": 100, "seeds": 1}
    tokens_first = nz.compare(**asked, out=tmp_path / "t")
    assert 100 <= tokens_first.results().column("tokens").to_pylist()[-1] < 100 + 72
    tried = {"name": "nash_mp", "options": {"kappa": 0.2, "train.learning_rate": [1e-3, 1e-5]}}
    judged.clear()
    tuned = nz.compare(**asked | {"solvers": [tried], "tuning_seeds": 1}, out=tmp_path / "rates")
    (played,) = tuned.summary["games"].values()
    (choice,) = played["tuning"].values()
    assert choice["pool_queries"] > 0
    assert choice["pool_queries"] + played["pool_queries"] == sum(judged)
    assert len(choice["tried"]) == 2
    assert all(0 <= one["score"] <= 1 for one in choice["tried"])
    assert choice["by"] == "worst-case win rate in the pool, training judge"
    rates = set()
    for path in (tmp_path / "rates" / "runs").glob("*/config.yaml"):
        ran = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert ran["solver_options"] == {"kappa": 0.2}
        rates.add((ran["seed"] >= 1_000_000, ran["learning_rate"]))
    assert rates == {(True, 1e-3), (True, 1e-5), (False, choice["chosen"]["train.learning_rate"])}


def undecided(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    return [0.5] * len(prompts)


@pytest.mark.slow
def test_a_judge_that_decides_nothing_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = letters(tmp_path) | {"oracle_options": {"function": "tests.test_compare:undecided"}}
    asked: Any = settings(games=[{"name": "even", "train": train}], queries=12, seeds=2, report=True)
    nz.compare(**asked, out=tmp_path / "out")
    said = [record.getMessage() for record in caplog.records if "near 1/2" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("game even: training oracle: the oracle is near 1/2")
    assert "Training judge: the oracle is near 1/2" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for path in (tmp_path / "out" / "runs").glob("*/warnings.jsonl"):
        assert "near 1/2" in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_cluster_loses_a_node_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the extra nlhf-zoo[cluster] is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Cells of a second or so, that the node's death falls into.
    asked = settings(queries=1500, seeds=6, games=[{"name": "random", "options": {"responses": 60}}])
    nz.compare(**asked, out=tmp_path / "alone")
    memory = 100 * 2**20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": memory})
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=memory)
        cluster.wait_for_nodes()
        done: list[int] = []
        nodes: list[set[str]] = []

        def alive() -> set[str]:
            return {node["NodeID"] for node in ray.nodes() if node["Alive"]}

        def watching(count: int, total: int) -> None:
            done.append(count)
            nodes.append(alive())
            if count >= 3 and len(nodes[-1]) == 2:
                cluster.remove_node(second, allow_graceful=False)
                deadline = time.monotonic() + 60
                while len(alive()) == 2 and time.monotonic() < deadline:
                    time.sleep(0.1)  # a cluster notices a death after a while

        from nlhf_zoo.comparison.engine import run_comparison

        ray.init(address=cluster.address, log_to_driver=False)
        config = CompareConfig(**asked, out=tmp_path / "cluster", cluster=cluster.address)
        run_comparison(config, watching)
        assert len(nodes[0]) == 2
        assert len(nodes[-1]) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert measured(tmp_path / "cluster") == measured(tmp_path / "alone")


def test_the_report_is_written_and_names_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nlhf_zoo.report.comparison", reason="the page of a comparison is not part of this checkout")
    arguments = ["--game", "rock_paper_scissors", "--solver", "nash_mp", "--solver", "mmd", "--queries", "20"]
    assert main(["compare", *arguments, "--out", str(tmp_path / "out")]) == 0
    assert "rock_paper_scissors" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_cell_of_two_contestants_is_planned_once(tmp_path: Path) -> None:
    shared = ["mmd", {"name": "mmd", "label": "again"}]
    summary = nz.compare(["rock_paper_scissors"], shared, queries=20, out=tmp_path / "out", report=False).summary
    assert summary["cells"] == {"planned": 1, "done": 1, "failed": 0}
