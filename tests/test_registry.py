"""Third-party plugins: found, broken, clashing, restricted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.third_party import ThirdParty

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


def test_a_third_party_solver_is_found_and_runs(third_party: ThirdParty) -> None:
    third_party.install("my-zoo", my_zoo=SOLVER.format(name="mine"))
    listed = json.loads(third_party.run("list", "--json").out)
    (mine,) = [s for s in listed["solvers"] if s["name"] == "mine"]
    assert (mine["distribution"], mine["version"]) == ("my-zoo", "1.2")
    # As its user would, once.
    argv = [COMMAND, "solve", "--game", "rock_paper_scissors", "--solver", "mine", "--steps", "3", "--json"]
    ran = subprocess.run(argv, env=third_party.environment, capture_output=True, text=True, check=False, timeout=120)
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
def test_a_broken_plugin_is_listed_and_harms_nobody(third_party: ThirdParty, source: str, reason: str) -> None:
    third_party.install("bad-zoo", bad_point=source)
    third_party.install("good-zoo", good_point=SOLVER.format(name="mine"))
    done = third_party.run("list", "--json")
    assert done.code == 0, done.err
    listed = json.loads(done.out)
    names = [solver["name"] for solver in listed["solvers"]]
    assert {"mine", "nash_mp"} <= set(names)
    (broken,) = listed["broken"]
    assert (broken["plugin"], broken["distribution"]) == ("bad_point", "bad-zoo")
    assert reason in broken["error"]
    shown = third_party.run("list")
    assert "bad_point" in shown.out + shown.err


def test_two_plugins_with_one_name_are_an_error_that_names_both(third_party: ThirdParty) -> None:
    third_party.install("one-zoo", one_point=SOLVER.format(name="same"))
    third_party.install("two-zoo", two_point=SOLVER.format(name="same"))
    done = third_party.run("list")
    assert done.code == 2
    assert "one-zoo" in done.err
    assert "two-zoo" in done.err
    assert "same" in done.err
    assert len(done.err.strip().splitlines()) == 1
    # The way out that the message names.
    assert third_party.run("list", only="nash_mp,one_point").code == 0


def test_a_clash_with_a_first_party_name_is_the_same_error(third_party: ThirdParty) -> None:
    third_party.install("shadow-zoo", shadow_point=SOLVER.format(name="nash_mp"))
    done = third_party.run("list")
    assert done.code == 2
    assert "shadow-zoo" in done.err
    assert "nlhf-zoo" in done.err


def test_without_entry_points_there_are_no_solvers(third_party: ThirdParty) -> None:
    """First-party solvers come in by entry points, and by nothing else."""
    assert json.loads(third_party.run("list", "--json", only="").out)["solvers"] == []
    done = third_party.run("solve", "--game", "rock_paper_scissors", "--solver", "nash_mp", only="")
    assert done.code == 2
