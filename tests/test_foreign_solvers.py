"""Solvers of others' making that are wrong in one place: what is said, and that nobody else is harmed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch

import nlhf_zoo as nz
from nlhf_zoo.comparison.config import CompareConfig
from nlhf_zoo.comparison.entries import game_entries
from nlhf_zoo.comparison.table import TableRun
from nlhf_zoo.comparison.workers import attempt
from nlhf_zoo.drive import configure
from nlhf_zoo.registry import plugins
from nlhf_zoo.testing import check_property

MATRIX = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]]


class Plain(nz.Solver):
    summary = "for tests"

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        anchors = [(game.reference, game.beta), (state.current, 1.0)]
        return nz.Update(start=state.current, opponent=state.current, anchors=anchors)

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        return state.next(current=outcome.policy)


def wrong(**members: Any) -> Any:
    return attrs.frozen(type("Wrong", (Plain,), {"name": "wrong", **members}))


def update(**changes: Any) -> Callable[..., nz.Update]:
    def propose(self: Any, game: nz.Game, state: nz.State) -> nz.Update:
        right = {"start": state.current, "opponent": state.current, "anchors": [(state.current, 1.0)]}
        return nz.Update(**right | {name: make(game, state) for name, make in changes.items()})

    return propose


def of_matrix(game: nz.Game, state: nz.State) -> torch.Tensor:
    return game.oracle.matrix()  # type: ignore[attr-defined]  # games here have one


def of_reference(game: nz.Game, state: nz.State) -> torch.Tensor:
    return game.reference.log_probs  # type: ignore[attr-defined]  # a table's


def changing(lent: Callable[[nz.Game, nz.State], torch.Tensor]) -> Callable[..., nz.State]:
    def accept(self: Any, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        lent(game, state)[0] *= 0.5
        return state.next(current=outcome.policy)

    return accept


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"propose": update(start=lambda g, s: "current")}, "wrong: an update's start is a policy"),
        ({"propose": update(opponent=lambda g, s: s.current.probs)}, "an update's opponent is a policy.* a Tensor"),
        ({"propose": update(opponent=lambda g, s: [s.current])}, r"a list of pairs, Opponent\(\[\(policy, weight"),
        ({"propose": update(anchors=lambda g, s: (s.current, 1.0))}, "anchors are a list of pairs.* TabularPolicy in"),
        ({"propose": update(anchors=lambda g, s: s.current)}, "anchors are a list of pairs"),
        ({"propose": update(anchors=lambda g, s: [(None, 1.0)])}, "anchor holds by is a policy.* a NoneType"),
        ({"propose": update(start=lambda g, s: s["half"])}, "wrong: in step 0, phase 0, there is no slot 'half' but"),
        ({"accept": lambda self, g, s, o: s.next(current=o.policy.probs)}, "wrong: a slot of a state .* 'current' a T"),
        ({"init": lambda self, game, policy: None}, r"wrong: init\(\) returned None"),
        ({"accept": changing(of_matrix)}, "wrong: step 1 changed the preference matrix in place"),
        ({"accept": changing(of_reference)}, "wrong: step 1 changed the reference in place"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_solver_and_the_mend(members: Any, words: str) -> None:
    game = nz.Game(nz.MatrixOracle(MATRIX), beta=0.1)
    with pytest.raises(nz.BadInput, match=words) as raised:
        nz.solve(game, wrong(**members)(), steps=3)
    assert "\n" not in str(raised.value)


def only(monkeypatch: pytest.MonkeyPatch, **factories: Any) -> None:
    """Beside what is registered, these solvers."""
    known = plugins.load()
    mine = {name: plugins.Entry(name, factory, "tests", "1") for name, factory in factories.items()}
    registry = attrs.evolve(known, solvers={**known.solvers, **mine})
    monkeypatch.setattr(plugins, "load", lambda: registry)
    monkeypatch.setattr("nlhf_zoo.registry.load", lambda: registry)


def played(name: str) -> Any:
    config = CompareConfig(games=["rock_paper_scissors"], solvers=["mmd"], queries=9, out="nowhere")  # type: ignore[arg-type]
    (game,) = game_entries(config.games, config)
    budget: Any = {"queries": 9, "tokens": None, "steps": None}
    run = TableRun(game=game, entry=name, name=name, options={}, seed=0, role="run", **budget)
    content = dict(attempt(run).content)
    return content["error"] if "error" in content else content["rows"]["metrics"]


@pytest.mark.parametrize("lent", [of_matrix, of_reference])
def test_rivals_play_the_game_as_it_was(lent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = played("nash_mp")
    only(monkeypatch, wrong=wrong(accept=changing(lent)))
    assert "in place" in played("wrong")
    assert played("nash_mp") == before


def nothing(n: int, game: nz.Game, initial: Any = None) -> torch.Tensor:
    return torch.tensor(torch.nan)


@pytest.mark.parametrize(
    ("guarantees", "words"),
    [
        (property(lambda self: 1 / 0), "guarantees cannot be read: ZeroDivisionError"),
        (lambda self: (), "guarantees cannot be read: TypeError"),
        (property(lambda self: (nz.Guarantee(metric="kl", bound=nothing, source="x"),)), "bound by 'x' is no number"),
    ],
)
def test_a_bound_that_is_no_number_is_not_counted_as_kept(
    guarantees: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, wrong=wrong(guarantees=guarantees))
    assert words in played("wrong")


@pytest.mark.parametrize(
    ("guarantees", "mend"),
    [
        (lambda self: (), "put @property above it"),
        (property(lambda self: nz.linear_rate(0.5, assumptions="a", source="s")), "write (guarantee,) for"),
    ],
)
def test_guarantees_of_the_wrong_shape_are_told_with_the_mend(guarantees: Any, mend: str) -> None:
    result = check_property(wrong(guarantees=guarantees)(), "declares-itself")
    assert result.status == "failed"
    assert mend in result.detail


def test_a_hyperparameter_without_default_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, wrong=wrong(eta=attrs.field(), __annotations__={"eta": float}))
    with pytest.raises(nz.BadInput, match="wrong: eta has no default; give --set eta=VALUE"):
        configure("wrong")
    assert configure("wrong", eta=0.5).eta == 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Plain, "not the class Plain alone"),
        ("mine", "not an object of type str alone"),
        (SimpleNamespace(), "not an object of type SimpleNamespace alone"),
        ([wrong()()], "an object of type Wrong is in it"),
        ([Plain], "the class Plain has no name"),
        ({"mine": 3}, "an object of type int is in it"),
    ],
)
def test_what_a_hook_gives_is_a_list_of_classes(given: Any, words: str) -> None:
    with pytest.raises(nz.BadInput, match=words):
        list(plugins._items("solvers", given))


def test_of_a_plugin_that_does_not_load_the_line_is_named() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        of_nothing()
    assert plugins._words(raised.value, __name__).startswith("ZeroDivisionError: division by zero (test_foreign_sol")
    assert plugins._words(ValueError("a\nb"), "elsewhere") == "ValueError: a"


def of_nothing() -> float:
    return 1 / 0
