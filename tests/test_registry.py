"""Third-party plugins in processes of their own: found, broken, clashing, restricted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOLVER = """
import attrs
from nlhf_zoo import Solver, Update, hookimpl

@attrs.frozen
class Mine(Solver):
    name = "{name}"
    def propose(self, game, state):
        return Update(start=state.current, opponent=state.current, anchors=[(game.reference, game.beta + 1.0)])
    def accept(self, game, state, outcome):
        return state.next(current=outcome.policy)

@hookimpl
def nlhf_zoo_solvers():
    return [Mine]
"""
COMMAND = Path(sys.executable).with_name("nlhf-zoo")


def plugin(folder: Path, distribution: str, source: str) -> None:
    """A distribution as pip would have installed it: a module and its metadata."""
    module = distribution.replace("-", "_")
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[nlhf_zoo]\n{module}_point = {module}\n")


def zoo(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    found = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": found, **environment}
    return subprocess.run([COMMAND, *arguments], env=env, capture_output=True, text=True, check=False, timeout=120)


def test_a_third_party_solver_is_found_and_runs(tmp_path: Path) -> None:
    plugin(tmp_path, "my-zoo", SOLVER.format(name="mine"))
    listed = json.loads(zoo(tmp_path, "list", "--json").stdout)
    (mine,) = [s for s in listed["solvers"] if s["name"] == "mine"]
    assert (mine["distribution"], mine["version"]) == ("my-zoo", "1.2")
    ran = zoo(tmp_path, "solve", "--game", "rock_paper_scissors", "--solver", "mine", "--steps", "3", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["solver"] == "mine"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module_at_all", "no_such_module_at_all"),
        ("raise SystemError('on purpose')", "on purpose"),
        ("def broken(:", "SyntaxError"),
        ("from nlhf_zoo import hookimpl\n@hookimpl\ndef nlhf_zoo_solvers():\n    return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_broken_plugin_is_listed_and_harms_nobody(tmp_path: Path, source: str, reason: str) -> None:
    plugin(tmp_path, "bad-zoo", source)
    plugin(tmp_path, "good-zoo", SOLVER.format(name="mine"))
    done = zoo(tmp_path, "list", "--json")
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    names = [solver["name"] for solver in listed["solvers"]]
    assert {"mine", "nash_mp"} <= set(names)
    (broken,) = listed["broken"]
    assert broken["distribution"] == "bad-zoo"
    assert reason in broken["error"]
    shown = zoo(tmp_path, "list")
    assert "bad_zoo_point" in shown.stdout + shown.stderr


def test_two_plugins_with_one_name_are_an_error_that_names_both(tmp_path: Path) -> None:
    plugin(tmp_path, "one-zoo", SOLVER.format(name="same"))
    plugin(tmp_path, "two-zoo", SOLVER.format(name="same"))
    done = zoo(tmp_path, "list")
    assert done.returncode == 2
    assert "one-zoo" in done.stderr
    assert "two-zoo" in done.stderr
    assert "same" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    # The way out that the message names.
    assert zoo(tmp_path, "list", NLHF_ZOO_PLUGINS="nash_mp,one_zoo_point").returncode == 0


def test_a_clash_with_a_first_party_name_is_the_same_error(tmp_path: Path) -> None:
    plugin(tmp_path, "shadow-zoo", SOLVER.format(name="nash_mp"))
    done = zoo(tmp_path, "list")
    assert done.returncode == 2
    assert "shadow-zoo" in done.stderr
    assert "nlhf-zoo" in done.stderr


def test_without_entry_points_there_are_no_solvers(tmp_path: Path) -> None:
    """First-party solvers come in by entry points, and by nothing else."""
    listed = json.loads(zoo(tmp_path, "list", "--json", NLHF_ZOO_PLUGINS="").stdout)
    assert listed["solvers"] == []
    done = zoo(tmp_path, "solve", "--game", "rock_paper_scissors", "--solver", "nash_mp", NLHF_ZOO_PLUGINS="")
    assert done.returncode == 2
