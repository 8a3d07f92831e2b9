"""`nlhf-zoo solve` on real preferences: elections, rankings, and votes on language models' answers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nlhf_zoo.cli import main

DATA = Path(os.environ.get("NLHF_ZOO_DATA", Path(__file__).parents[2] / "shared" / "data"))

# name: responses, size of the support of the von Neumann winner (of the one of maximum entropy, where there are
# several: in the two games of votes on language models), whether there is a Condorcet winner
MEASURED = {
    "llmfao_human": (59, 31, False),
    "llmfao_gpt4": (70, 3, False),
    "preflib_glasgow_govan_2007": (11, 3, False),
    "preflib_ers_68": (11, 3, False),
    "preflib_ers_16": (29, 3, False),
    "preflib_countries_2013": (115, 3, False),
    "preflib_sushi10": (10, 1, True),
}


def matrix_file(name: str) -> Path:
    path = DATA / f"pref_{name}.csv.gz"
    if not path.exists():
        pytest.skip(f"needs {path.name} in the folder that NLHF_ZOO_DATA names")
    return path


def solved(capsys: pytest.CaptureFixture[str], name: str) -> dict[str, Any]:
    argv = ["solve", "--game", str(matrix_file(name)), "--solver", "nash_mp", "--beta", "0.01"]
    assert main([*argv, "--steps", "1000", "--tol", "1e-8", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", MEASURED)
def test_winners_and_convergence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    responses, size, condorcet = MEASURED[name]
    found = solved(capsys, name)
    assert found["responses"] == len(found["policy"]) == responses
    assert found["von_neumann_winner"]["size"] == size
    assert (found["condorcet_winner"] is not None) == condorcet
    assert found["converged"]
    assert found["duality_gap"] <= 1e-8
    # gap = 2 beta KL(pi || best response), so a gap of 1e-8 leaves a KL of the order of 1e-6
    assert found["kl_to_equilibrium"] <= 1e-5


def test_condorcet_winner_is_the_von_neumann_winner(capsys: pytest.CaptureFixture[str]) -> None:
    found = solved(capsys, "preflib_sushi10")
    assert found["von_neumann_winner"]["support"] == [found["condorcet_winner"]]
    assert max(found["policy"], key=found["policy"].__getitem__) == found["condorcet_winner"]


def test_govan_ward_winner_is_printed_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    path = matrix_file("preflib_glasgow_govan_2007")
    assert main(["solve", "--game", str(path), "--beta", "0.01", "--steps", "400"]) == 0
    shown = capsys.readouterr().out
    assert "3 of 11 responses: Allison Hunter 0.849, Stephen Dornan 0.121, John Flanagan 0.030" in shown
    assert "Condorcet winner    none" in shown
