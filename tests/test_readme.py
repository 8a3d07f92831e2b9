"""The README's Python runs as it stands, and its solver works on a game."""

from __future__ import annotations

import re
from pathlib import Path

import nlhf_zoo as nz
from nlhf_zoo.registry import lookup
from nlhf_zoo.testing.properties import declares_itself

README = Path(__file__).parents[1] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_matrix_example_runs() -> None:
    exec(blocks()[0], {})


def test_the_solver_example_converges() -> None:
    names: dict = {}
    exec(blocks()[1], names)
    game = nz.Game(lookup("games", "random")(seed=0, responses=10), beta=0.2)
    (solver,) = names["nlhf_zoo_solvers"]()
    assert nz.solve(game, solver(), steps=2000, every=2000).history[-1]["kl_to_equilibrium"] < 1e-12
    declares_itself(solver())  # or `nlhf-zoo check mine` would try nothing else


def test_every_solver_is_in_the_table() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(name for name in nz.solvers() if name in listed)
    assert set(nz.solvers()) == set(listed)
