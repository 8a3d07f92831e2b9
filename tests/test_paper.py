"""The reproduction studies run in their quick form, and what is said of their results follows from results.csv."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import nlhf_zoo as nz
from benchmarks.paper.__main__ import main, studies
from benchmarks.paper.figures import LARGEST
from benchmarks.paper.intervals import median_interval, statistic_interval
from benchmarks.paper.results import read_rows, write_rows
from benchmarks.paper.winner_queries import Entry, batch, first_reached
from nlhf_zoo.drive import configure, iterates

KEPT = Path(__file__).parents[1] / "docs" / "reproduction"
CYCLE = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]]

LONG = ("language_models",)
"""Studies whose quick form trains more than a dozen models."""


def module(study: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.paper.{study}")


def agrees(study: str, folder: Path) -> None:
    verdict = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    assert verdict == json.loads(json.dumps(module(study).verdict(read_rows(folder / "results.csv"))))


@pytest.mark.parametrize(
    "study", [pytest.param(study, marks=[pytest.mark.slow] * (study in LONG)) for study in studies()]
)
def test_quick_study(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([study, "--quick", "--out", str(tmp_path)])
    if code == 2 and "NLHF_ZOO_DATA" in (why := capsys.readouterr().err):
        pytest.skip(why.strip())
    assert code == 0
    agrees(study, tmp_path)
    figures = [*tmp_path.glob("*.png")]
    assert figures
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)


@pytest.mark.parametrize("study", studies())
def test_kept_results(study: str) -> None:
    agrees(study, KEPT / study)
    page = (KEPT / f"{study}.md").read_text(encoding="utf-8")
    for found in (KEPT / study).glob("verdict.md"):
        for table in found.read_text(encoding="utf-8").split("\n\n"):
            assert table.strip() in page
    for figure in (KEPT / study).glob("*.png"):
        assert figure.stat().st_size < LARGEST
        assert f"{study}/{figure.name}" in page


@pytest.mark.parametrize("study", studies())
def test_the_index_has_it(study: str) -> None:
    index = (KEPT.parent / "reproduction.md").read_text(encoding="utf-8")
    assert f"(reproduction/{study}.md)" in index
    assert f"python -m benchmarks.paper {study}" in index
    assert studies()[study].endswith((".", "?"))


def test_without_a_study_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(study in shown for study in studies())


def test_an_unknown_study_is_told_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["matrix_games"])
    assert end.value.code == 2
    assert "matrix_game" in capsys.readouterr().err


def test_a_median_that_was_never_reached_is_none() -> None:
    assert median_interval([1.0, 2.0, math.inf, math.inf, math.inf])["median"] is None
    assert median_interval([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(5).normal(size=(60, 30))
    found = [statistic_interval(sample, lambda rows: float(rows.mean())) for sample in draws]
    held = sum((one["low"] or 0) <= 0 <= (one["high"] or 0) for one in found)
    assert 50 <= held <= 59


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"name": "a", "value": 1 / 3, "target": None}, {"name": "b", "value": math.inf, "target": 2}]
    kept = write_rows(tmp_path / "results.csv", rows)
    assert kept == [{"name": "a", "value": 0.333333, "target": ""}, {"name": "b", "value": math.inf, "target": 2.0}]


def test_a_batch_of_games_of_unlike_sizes_plays_as_each_alone() -> None:
    matrices = [torch.tensor(CYCLE, dtype=torch.float64), torch.tensor([[0.5, 0.9], [0.1, 0.5]], dtype=torch.float64)]
    together = nz.solve(batch(matrices, 0.1), "nash_mp", steps=7)
    for at, matrix in enumerate(matrices):
        alone = nz.solve(nz.Game(nz.MatrixOracle(matrix), beta=0.1), "nash_mp", steps=7)
        torch.testing.assert_close(together.policy.probs[at, : len(matrix)], alone.policy.probs, rtol=0, atol=1e-14)
        assert together.queries.total == alone.queries.total


def test_what_is_counted_until_a_winner() -> None:
    matrix = torch.tensor(CYCLE, dtype=torch.float64)
    entry = Entry("nash_mp")
    (reached,) = first_reached([matrix], configure("nash_mp"), 0.01, 0.05, 1000, entry)
    history = nz.solve(nz.Game(nz.MatrixOracle(matrix), beta=0.01), "nash_mp", steps=int(reached // 2)).history
    winning = [float((matrix @ p).max()) <= 0.55 for p in played(matrix, int(reached // 2))]
    assert winning == [False] * (len(winning) - 1) + [True]
    assert history[-1]["queries"] == reached
    assert first_reached([matrix], configure("nash_mp"), 0.01, 0.05, int(reached) - 1, entry) == [math.inf]


def played(matrix: torch.Tensor, steps: int) -> list[torch.Tensor]:
    states = iterates(nz.Game(nz.MatrixOracle(matrix), beta=0.01), configure("nash_mp"))
    return [state.current.probs for state, _ in zip(states, range(steps + 1), strict=False)]
