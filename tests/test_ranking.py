"""What solvers are ranked by: a criterion that going in circles cannot fool, and one of what a tolerance costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

import nlhf_zoo as nz
from nlhf_zoo.cli import main
from nlhf_zoo.comparison.config import CompareConfig
from nlhf_zoo.comparison.entries import SolverEntry, game_entries
from nlhf_zoo.comparison.pool import Member, nash_average, resampled, worst_case
from nlhf_zoo.comparison.scores import DRAWS, FinalGap, QueriesToTolerance, WorstCase, fewest, ranking
from nlhf_zoo.comparison.summary import Played, game_summary
from nlhf_zoo.comparison.table import TableRun
from nlhf_zoo.comparison.tuning import chosen
from nlhf_zoo.report.latex import latex_table
from nlhf_zoo.report.reading import read_comparison

REFERENCE, CIRCLER, STEADY, HUNTER = range(4)
RATES = np.array(
    [
        [0.50, 0.10, 0.45, 0.45],
        [0.90, 0.50, 0.45, 0.10],  # wins most over the reference, and loses to whoever hunts it
        [0.55, 0.55, 0.50, 0.48],
        [0.55, 0.90, 0.52, 0.50],
    ]
)


def judged(rates: np.ndarray, prompts: int, seed: int = 0) -> np.ndarray:
    """(m, m, prompts) verdicts of one coin a prompt, P + P^T = 1."""
    coins = np.random.default_rng(seed).random((*rates.shape, prompts))
    upper = np.triu(np.ones_like(rates), 1)[..., None] * (coins < rates[..., None])
    lower = np.swapaxes(np.triu(np.ones_like(rates), 1)[..., None] * (1 - upper), 0, 1)
    return upper + lower + 0.5 * np.eye(len(rates))[..., None]


def test_a_circle_does_not_hide_in_the_worst_case() -> None:
    found = worst_case(np.repeat(RATES[..., None], 6, -1))
    assert found == pytest.approx([0.10, 0.10, 0.48, 0.52])
    assert np.argmax(RATES[:, REFERENCE]) == CIRCLER
    assert np.argmin(found[1:]) + 1 == CIRCLER


def test_those_who_are_no_contestants_are_opponents_too() -> None:
    hunted = np.repeat(RATES[:3, :, None], 6, -1)  # the hunter is met, and does not play
    assert worst_case(hunted) == pytest.approx([0.10, 0.10, 0.48])
    assert worst_case(hunted[:, :3]) == pytest.approx([0.10, 0.45, 0.55])


def test_the_worst_of_many_equals_is_a_half_on_average() -> None:
    equal = np.full((20, 20), 0.5)
    verdicts = [judged(equal, 100, seed) for seed in range(20)]
    plain = np.mean([v.mean(-1).min(-1) for v in verdicts])
    assert plain < 0.43  # the least of noisy numbers
    assert np.mean([worst_case(v) for v in verdicts]) == pytest.approx(0.5, abs=0.01)


def test_one_prompt_is_enough_for_a_number() -> None:
    assert worst_case(RATES[..., None]) == pytest.approx([0.10, 0.10, 0.48, 0.52])


def test_samples_of_the_prompts_spread_as_the_noise_does() -> None:
    rates = np.array([[0.5, 0.3], [0.7, 0.5]])
    verdicts = judged(rates, 200)
    drawn = worst_case(verdicts, resampled(200, 1000, np.random.default_rng(0)))
    assert drawn.shape == (1000, 2)
    assert drawn.mean(0) == pytest.approx(worst_case(verdicts), abs=0.01)
    assert drawn.std(0) == pytest.approx(np.sqrt(0.3 * 0.7 / 200), rel=0.15)


def test_nash_average_gives_a_circle_its_parts_and_copies_one() -> None:
    rock = np.array([[0.5, 0.2, 0.2, 0.2, 0.2], [0.8, 0.5, 0.9, 0.1, 0.1], [0.8, 0.1, 0.5, 0.9, 0.9],
                     [0.8, 0.9, 0.1, 0.5, 0.5], [0.8, 0.9, 0.1, 0.5, 0.5]])  # fmt: skip
    members = [Member(), Member("a", 0), Member("b", 0), Member("c", 0), Member("c", 1)]
    found = nash_average(np.repeat(rock[..., None], 4, -1), members, draws=20)
    assert found.shares == pytest.approx([0, 1 / 3, 1 / 3, 1 / 6, 1 / 6])
    assert found.mass["c"].value == pytest.approx(1 / 3)
    assert found.skill["a"].value == pytest.approx(0.5)
    assert all(0 <= share.low <= share.high <= 1 for share in (*found.mass.values(), *found.skill.values()))


def test_nash_averages_intervals_speak_of_prompts_and_seeds() -> None:
    members = [Member(), *(Member(name, seed) for seed in range(3) for name in ("good", "bad"))]
    rates = np.full((7, 7), 0.5)
    good = [1, 3, 5]
    for one in good:
        for other in (0, 2, 4, 6):
            rates[one, other], rates[other, one] = 0.9, 0.1
    sure, unsure = (nash_average(judged(rates, prompts), members, draws=60) for prompts in (400, 5))
    assert sure.mass["good"].low > 0.99
    assert sure.mass["bad"].high < 0.01
    assert unsure.skill["bad"].high - unsure.skill["bad"].low > sure.skill["bad"].high - sure.skill["bad"].low


# --- ranks


GAME = {"name": "low_rank", "options": {"responses": 6}}


def run_of(solver: str, seed: int, role: Any = "run") -> TableRun:
    config = CompareConfig(games=[GAME], solvers=[solver], queries=9, out=Path("x"))
    (game,) = game_entries([GAME], config)
    rest = {"queries": 9, "tokens": None, "steps": None}
    return TableRun(game=game, entry=solver, name="nash_mp", options={"eta": 0.1}, seed=seed, role=role, **rest)


def pooled(rates: np.ndarray, seeds: Sequence[int], prompts: int = 400) -> tuple[Any, Any]:
    """Runs of three contestants, and what they came to in one pool; every seed has policies of the same strength."""
    names = ("circler", "steady", "hunter")
    runs = {
        (name, seed): attrs.evolve(run_of(name, seed), options={"eta": 0.1 * at})
        for at, name in enumerate(names, 1)
        for seed in seeds
    }
    kinds = [REFERENCE, *(kind for kind in (CIRCLER, STEADY, HUNTER) for _ in seeds)]
    verdicts = judged(rates[np.ix_(kinds, kinds)], prompts)
    found = np.concatenate(
        [worst_case(verdicts)[None], worst_case(verdicts, resampled(prompts, DRAWS, np.random.default_rng(0)))]
    )
    values = {run.key: found[:, at] for at, run in enumerate(runs.values(), 1)}
    return runs, WorstCase("training", values)


def cell(**metrics: Any) -> dict[str, Any]:
    length = len(next(iter(metrics.values())))
    spent = {name: list(range(0, 10 * length, 10)) for name in ("step", "queries", "tokens", "seconds")}
    return {"rows": {**spent, "metrics": metrics, "bounds": {}}}


def told(runs: Mapping[tuple[str, int], Any], criterion: Any, cells: Mapping[str, Any]) -> Any:
    names = dict.fromkeys(name for name, _ in runs)
    seeds = sorted({seed for _, seed in runs})
    played = Played(
        game=next(iter(runs.values())).game, criteria=[criterion], seeds=seeds, choices={}, deterministic=False,
        cells={name: {seed: (runs[name, seed], cells[name]) for seed in seeds} for name in names},
    )  # fmt: skip
    return game_summary(played, {})[0]


def test_the_circler_is_first_over_the_reference_and_last_in_the_pool() -> None:
    runs, criterion = pooled(RATES, range(fewest(3)))
    cells = {name: cell(win_rate_training=[0.5, rate]) for name, rate in
             (("circler", 0.9), ("steady", 0.55), ("hunter", 0.55))}  # fmt: skip
    summary = told(runs, criterion, cells)
    order = [row["entry"] for row in summary["table"]]
    assert order[-1] == "circler"
    assert max(summary["table"], key=lambda row: row["final"]["win_rate_training"]["median"])["entry"] == "circler"
    assert "circler" not in {row["entry"] for row in summary["table"] if row["best"]}
    assert summary["metric"] == "worst_case_training"
    assert summary["verdict"].startswith("by worst-case win rate in the pool, training judge: ")


def test_noise_of_the_prompts_alone_is_no_lead() -> None:
    # Seeds that agree, on so few prompts that they agree by their luck.
    lucky = np.full((fewest(2), 2), 0.5) + np.array([0.05, -0.05])
    generator = np.random.default_rng(0)
    redrawn = lucky + generator.normal(0, 0.2, (DRAWS, 1, 2))
    assert ranking(lucky, lower=False).best == (0,)
    assert len(ranking(lucky, lower=False, redrawn=redrawn).best) == 2


def test_who_has_not_met_is_not_ranked() -> None:
    runs, _ = pooled(RATES, range(2))
    cells = {name: cell(win_rate_training=[0.5, 0.6]) for name, _ in runs}
    summary = told(runs, WorstCase("training"), cells)
    assert summary["verdict"].endswith("not known yet")
    assert summary["best"] == []


def test_a_failed_run_is_last_in_the_pool() -> None:
    runs, criterion = pooled(RATES, range(fewest(3)))
    cells = {name: cell(win_rate_training=[0.5, 0.6]) for name, _ in runs} | {"hunter": {"error": "went astray"}}
    assert [row["entry"] for row in told(runs, criterion, cells)["table"]][-1] == "hunter"


def test_grids_are_chosen_by_the_worst_case_among_variants() -> None:
    # Variant 0 wins 0.9 over the reference and loses to variant 2; variant 1 loses to none by much.
    found = worst_case(np.repeat(RATES[..., None], 4, -1))
    points = ({"eta": 0.1}, {"eta": 0.2}, {"eta": 0.3})
    runs = [[attrs.evolve(run_of("nash_mp", 10**6, "tuning"), options=dict(point))] for point in points]
    cells = {run.key: cell(win_rate_training=[0.5, rate]) for (run,), rate in zip(runs, (0.9, 0.55, 0.55), strict=True)}
    criterion = WorstCase("training", {run.key: found[[at]] for at, (run,) in enumerate(runs, 1)})
    choice = chosen(
        SolverEntry(name="nash_mp", label="nash_mp tuned", points=points),
        runs,
        cells,
        {runs[0][0].game.label: criterion},
        pool_queries=0,
    )
    assert choice.options == {"eta": 0.3}
    assert [one["score"] for one in choice.tried] == pytest.approx([0.10, 0.48, 0.52])
    assert choice.by == criterion.words


# --- a tolerance


def test_queries_to_a_tolerance_are_the_first_and_what_never_gets_there_is_behind() -> None:
    criterion = QueriesToTolerance(1e-3)
    quick, late, never = (cell(duality_gap=gaps) for gaps in ([1, 1e-4, 1e-2], [1, 1e-2, 1e-3], [1, 1e-2, 2e-3]))
    assert [criterion.known("", one) for one in (quick, late, never)] == [10, 20, np.inf]
    costs = [criterion.cost("", one) for one in (quick, late, never)]
    assert costs == sorted(costs)
    assert criterion.shown_score(costs[0]) == pytest.approx(1)
    assert criterion.shown_score(costs[2]) is None


def test_gaps_below_rounding_are_equal() -> None:
    ends = [FinalGap().known("", cell(duality_gap=[1, gap])) for gap in (1e-17, -1e-18, 0.0)]
    assert len(set(ends)) == 1


def test_a_comparison_ends_runs_at_the_tolerance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "game.csv").write_text("0.5,0.9,0.2\n0.1,0.5,0.7\n0.8,0.3,0.5\n")
    arguments = ["--game", str(tmp_path / "game.csv"), "--solver", "nash_mp", "--solver", "online_dpo", "--set",
                 "eta=0.001", "--queries", "60", "--tol", "1e-4", "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(["compare", *arguments]) == 0
    shown = capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    (game,) = summary["games"].values()
    first, last = game["table"]
    assert (first["name"], last["name"]) == ("nash_mp", "online_dpo")
    assert first["queries"] == first["final"]["queries_to_tol"]["median"] < 60
    assert (first["reached"]["runs"], last["reached"]["runs"]) == (1, 0)
    assert last["final"]["queries_to_tol"]["median"] is None
    assert first["final"]["duality_gap"]["median"] <= 1e-4 < last["final"]["duality_gap"]["median"]
    assert "queries to a duality gap of 0.0001" in game["verdict"]
    assert "> 60" in shown
    assert "0 of 1" in shown
    assert "&gt; 60" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert r"$>60$" in latex_table(read_comparison(tmp_path / "out"))


def test_a_run_that_may_end_early_is_another() -> None:
    run = run_of("nash_mp", 0)
    assert attrs.evolve(run, tol=1e-4).key != run.key
    assert "tol" not in run.identity  # runs of before there was one are found again


def test_another_tolerance_or_budget_is_another_comparison(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"games": [GAME], "solvers": ["mmd"], "queries": 4, "seeds": 1, "report": False}
    nz.compare(**asked, out=tmp_path)
    nz.compare(**asked, out=tmp_path)
    with pytest.raises(nz.BadInput, match="holds another comparison, with tol"):
        nz.compare(**asked, tol=0.1, out=tmp_path)
    with pytest.raises(nz.BadInput, match="set otherwise"):
        nz.compare(**asked | {"games": [{**GAME, "queries": 5}]}, out=tmp_path)


def test_where_nobody_gets_there_nobody_is_ahead(tmp_path: Path) -> None:
    found = nz.compare([GAME], ["nash_mp", "mmd"], queries=4, tol=1e-12, seeds=5, out=tmp_path, report=False)
    (game,) = found.summary["games"].values()
    assert game["verdict"].endswith("no run got there within its budget")
    assert {row["rank"]["mean"] for row in game["table"]} == {1.5}


# --- budgets


def test_each_kind_of_query_and_each_game_may_have_its_budget(tmp_path: Path) -> None:
    sampled = {**GAME, "comparisons": 1}
    games = [GAME, {**sampled, "label": "sampled"}, {**sampled, "label": "own", "queries": 120}]
    found = nz.compare(games, ["mmd"], queries=20, sampled_queries=60, seeds=1, out=tmp_path, report=False)
    budgets = {
        label: (game["budget"]["queries"], game["budget"]["of"]) for label, game in found.summary["games"].items()
    }
    assert budgets == {
        "low_rank responses=6": (20, "exact payoff queries"),
        "sampled": (60, "sampled comparisons"),
        "own": (120, "sampled comparisons"),
    }
    spent = {label: game["table"][0]["queries"] for label, game in found.summary["games"].items()}
    assert spent == {"low_rank responses=6": 20, "sampled": 60, "own": 120}


def test_a_budget_alone_is_no_other_game() -> None:
    config = CompareConfig(games=[GAME], solvers=["mmd"], queries=9, out=Path("x"))
    identities = [game_entries([{**GAME, **own}], config)[0].identity for own in ({}, {"queries": 5})]
    assert identities[0] == identities[1]


def test_a_language_model_has_no_tolerance(tmp_path: Path) -> None:
    train = {"model": "x", "prompts": "y", "oracle": "callable"}
    with pytest.raises(nz.BadInput, match="tol is a duality gap, which is not known of a language model"):
        nz.compare([{"name": "lm", "train": train}], ["mmd"], queries=9, tol=0.1, out=tmp_path / "out")


# --- pairs that never met


def test_a_winner_of_pairs_that_never_met_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # a, b, c each beat d, and were never compared with one another.
    wins = np.zeros((4, 4))
    wins[:3, 3] = 9
    np.savez(tmp_path / "votes.npz", wins=wins, labels=np.array(list("abcd")))
    file, words = str(tmp_path / "votes.npz"), "3 of their 3 pairs were never compared"
    assert main(["solve", "--game", file, "--steps", "5", "--json"]) == 0
    out, err = capsys.readouterr()
    assert words in err
    assert "redraws the counts" in err
    assert json.loads(out)["never_compared"]["never"] == 3
    assert main(["compare", "--game", file, "--solver", "mmd", "--queries", "20", "--out", str(tmp_path / "out")]) == 0
    assert words in capsys.readouterr().out
    assert words in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    wins[:3, :3] = 5
    np.savez(tmp_path / "votes.npz", wins=wins, labels=np.array(list("abcd")))
    assert main(["solve", "--game", file, "--steps", "5"]) == 0
    assert "never compared" not in capsys.readouterr().err
