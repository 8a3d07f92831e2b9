"""A plugin's solver that would never end is refused in one line, on whatever it gets stuck."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

import nlhf_zoo as nz
from nlhf_zoo.interfaces import Outcome, Solver, State, Update
from nlhf_zoo.registry import lookup


@attrs.frozen
class Asking(Solver):
    name = "asking"

    def propose(self, game: nz.Game, state: State) -> Update:
        return Update(start=state.current, opponent=state.current, anchors=[(state.current, 1.0)])

    def accept(self, game: nz.Game, state: State, outcome: Outcome) -> State:
        return state.next(current=outcome.policy)


@attrs.frozen
class Standing(Asking):
    name = "standing"

    def accept(self, game: nz.Game, state: State, outcome: Outcome) -> State:
        return state


@attrs.frozen
class Halfway(Asking):
    name = "halfway"

    def accept(self, game: nz.Game, state: State, outcome: Outcome) -> State:
        return state.middle(half=outcome.policy)


@attrs.frozen
class Mute(Asking):
    name = "mute"

    def propose(self, game: nz.Game, state: State) -> Update:
        return Update(start=state.current, opponent=None, anchors=[(state.current, 1.0)])


@attrs.frozen
class FallsSilent(Asking):
    name = "falls silent"

    def propose(self, game: nz.Game, state: State) -> Update:
        return Mute().propose(game, state) if state.step else super().propose(game, state)


def game() -> nz.Game:
    return nz.Game(lookup("games", "rock_paper_scissors")(), beta=0.1)


@pytest.mark.parametrize(
    ("solver", "budget", "words"),
    [
        (Standing(), {"steps": 2}, r"standing: accept\(\) gave back step 0, phase 0 as it was; it must"),
        (Standing(), {"queries": 20}, "standing: accept"),
        (Halfway(), {"steps": 2}, r"halfway: step 0 has not ended after 10,000 updates; accept\(\) must"),
        (Mute(), {"queries": 20}, "mute asks its oracle nothing, so that queries= never ends the run; give steps="),
        (FallsSilent(), {"queries": 20}, "falls silent asked its oracle nothing for 10,000 steps, .* give steps="),
    ],
)
def test_it_is_refused(solver: Solver, budget: dict[str, Any], words: str) -> None:
    with pytest.raises(nz.BadInput, match=words):
        nz.solve(game(), solver, **budget, every=1_000_000)


def test_with_steps_silence_is_no_fault() -> None:
    assert nz.solve(game(), FallsSilent(), steps=50, queries=1_000_000).state.step == 50
    assert nz.solve(game(), Mute(), steps=3).queries.total == 0
