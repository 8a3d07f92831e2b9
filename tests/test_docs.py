"""The documentation is what the code says: generated pages are current, links lead somewhere, claims are played."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import nlhf_zoo as nz
from nlhf_zoo.registry import lookup

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CYCLE = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(generate: ModuleType) -> dict[Path, str]:
    return generate.pages()


# --- generated pages


def test_pages_are_current(generate: ModuleType, made: dict[Path, str]) -> None:
    assert generate.stale(made) == [], "run: python docs/generate.py"


def test_every_solver_has_a_page(made: dict[Path, str]) -> None:
    assert {path.stem for path in made if path.parent.name == "solvers"} == {*nz.solvers(), "README"}


def test_check_finds_a_stale_page_and_a_left_over(
    generate: ModuleType, made: dict[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(DOCS, docs)
    monkeypatch.setattr(generate, "pages", lambda docs: {docs / path.relative_to(DOCS): t for path, t in made.items()})
    assert generate.main(["--check"], docs) == 0
    page = docs / "solvers" / "nash_mp.md"
    page.write_text(page.read_text(encoding="utf-8").replace("two-step", "three-step"), encoding="utf-8")
    (docs / "solvers" / "gone.md").write_text("a solver that is no more\n")
    assert generate.main(["--check"], docs) == 1
    told = capsys.readouterr().err
    assert "nash_mp.md is out of date" in told
    assert "gone.md is out of date" in told
    assert generate.main([], docs) == 0
    assert generate.main(["--check"], docs) == 0
    assert "two-step" in page.read_text(encoding="utf-8")


def test_costs_are_counted(generate: ModuleType) -> None:
    literal, practical = generate.default_and_practical(lookup("solvers", "nash_mp"))
    assert (set(literal.queries), literal.models) == ({2}, (3, 4))
    assert (set(practical.queries), practical.models) == ({1}, (3, 3))
    spin, _ = generate.default_and_practical(lookup("solvers", "spin"))
    assert set(spin.queries) == {0}


# --- what solvers say of themselves


@pytest.mark.parametrize("name", sorted(nz.solvers()))
def test_a_solver_says_when_to_use_it(name: str) -> None:
    cls = nz.solvers()[name]
    assert "when" in vars(cls), "a solver's advice is its own, not its base class's"
    assert cls.when.endswith(".")
    assert 1 <= len(re.findall(r"\.(?:\s|$)", cls.when)) <= 3
    assert bool(cls.only) == (set(cls.backends) != {"table", "llm"})
    named = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", cls.when))
    assert named <= set(nz.solvers()), "it names a solver that is not registered"


def test_choosing_mentions_every_solver_and_no_other() -> None:
    text = (DOCS / "choose.md").read_text(encoding="utf-8")
    by_hand = re.sub(r"<!-- generated.*?<!-- end", "", text, flags=re.DOTALL)
    assert set(nz.solvers()) <= set(re.findall(r"`(\w+)`", by_hand))
    assert set(re.findall(r"`(\w+_\w+)`", text)) <= set(nz.solvers())


def test_the_readme_knows_which_solvers_have_a_guarantee() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{len(nz.solvers())} come with it" in text
    cells = dict(re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|", text, flags=re.MULTILINE))
    assert {name for name, cell in cells.items() if cell.strip() == "none"} == {
        name for name, cls in nz.solvers().items() if not cls().guarantees
    }


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}, which is not there"


# --- claims of docs/choose.md that no guarantee covers


def last_and_average(solver: nz.Solver, game: nz.Game, steps: int) -> tuple[nz.TabularPolicy, nz.TabularPolicy]:
    """The last policy, and the mean of those that were played."""
    played: list[Tensor] = []

    def keep(state: nz.State) -> None:
        assert isinstance(state.current, nz.TabularPolicy)
        played.append(state.current.probs)

    nz.solve(game, solver, steps=steps, every=steps, target=game.oracle.uniform_policy(), progress=keep)  # type: ignore[attr-defined]
    return nz.TabularPolicy(played[-1].log()), nz.TabularPolicy(torch.stack(played).mean(0).log())


def cycle(beta: float, **more: Any) -> nz.Game:
    return nz.Game(nz.MatrixOracle(CYCLE), beta=beta, **more)


def gap(game: nz.Game, policy: nz.TabularPolicy, beta: float | None = None) -> float:
    """Duality gap of the game, or of the same at another beta."""
    return float(nz.duality_gap(game if beta is None else cycle(beta), policy))


@pytest.mark.parametrize("name", ["nash_ema", "mnpo"])
def test_a_lagging_opponent_leads_to_the_regularised_equilibrium(name: str) -> None:
    game = cycle(0.5)
    assert gap(game, last_and_average(lookup("solvers", name)(), game, 1000)[0]) < 1e-12


@pytest.mark.parametrize("name", ["mpo", "comal"])
def test_a_moving_reference_brings_the_last_policy_to_the_winner(name: str) -> None:
    game = cycle(0.1)
    last, _ = last_and_average(lookup("solvers", name)(), game, 1000)
    assert gap(game, last, beta=0.0) < 1e-5
    assert gap(game, last) > 1e-3


@pytest.mark.parametrize("name", ["spo", "sppo", "rebel", "dno"])
def test_the_last_policy_of_multiplicative_weights_is_farther_than_their_average(name: str) -> None:
    last, average = last_and_average(lookup("solvers", name)(), cycle(0.1), 1000)
    assert gap(cycle(0.0), average) < 0.02
    assert gap(cycle(0.0), last) > 0.1


@pytest.mark.parametrize(("name", "own"), [("rspo", "chi_squared"), ("dph_rl", "forward_kl")])
def test_another_divergence_is_another_equilibrium(name: str, own: str) -> None:
    theirs = cycle(0.5, divergence=lookup("divergences", own)())
    last, _ = last_and_average(lookup("solvers", name)(), theirs, 40)
    assert gap(theirs, last) < 1e-9
    assert gap(cycle(0.5), last) > 1e-6


@pytest.mark.parametrize("eta", [None, 1.0])
def test_online_dpo_misses_the_equilibrium_of_a_cycle(eta: float | None) -> None:
    game = cycle(0.1)
    assert gap(game, last_and_average(lookup("solvers", "online_dpo")(eta=eta), game, 1000)[0]) > 1e-3


@pytest.mark.parametrize("divergence", ["reverse_kl", "jensen_shannon"])
def test_f_dpo_finds_the_reward_of_bradley_terry(divergence: str) -> None:
    scores = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    game = nz.Game(nz.MatrixOracle((scores[:, None] - scores).sigmoid()), beta=0.5)
    last, _ = last_and_average(lookup("solvers", "f_dpo")(divergence=divergence), game, 600)
    log_ratio = last.log_probs - last.log_probs.new_full((3,), 1 / 3).log()
    found = game.beta * lookup("divergences", divergence)().derivative_of_log(log_ratio)
    torch.testing.assert_close(found - found[0], scores, rtol=0, atol=1e-6)
    assert gap(game, last) > 0.1


@pytest.mark.parametrize(
    ("name", "options", "same", "others"),
    [
        ("inpo", {}, "mmd", {}),
        ("f_dpg", {}, "mmd", {}),
        ("online_ipo", {"eta": 0.3}, "mmd", {"eta": 0.3 / (1 - 0.3 * 0.1)}),
        ("sppo", {}, "spo", {}),
        ("rebel", {}, "spo", {}),
        ("dno", {}, "spo", {}),
        ("egpo", {"eta": 0.3}, "nash_mp", {"eta": 0.3 * 0.1 / (1 - 0.3 * 0.1)}),
        ("nash_prox", {}, "exact_prox", {}),
        ("nash_ema", {"kappa": 1.0}, "mmd", {}),
        ("mnpo", {"players": 1}, "mmd", {}),
        ("comal", {"inner": "mmd"}, "mpo", {}),
    ],
)
def test_two_names_of_the_same_steps(name: str, options: dict, same: str, others: dict) -> None:
    game = cycle(0.1)
    for steps in (1, 7, 60):
        one, _ = last_and_average(lookup("solvers", name)(**options), game, steps)
        other, _ = last_and_average(lookup("solvers", same)(**others), game, steps)
        torch.testing.assert_close(one.log_probs, other.log_probs, rtol=0, atol=1e-10)
