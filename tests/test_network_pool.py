"""The pool keeps the promise that policies are values, whatever a solver remembers."""

from __future__ import annotations

from typing import Any

import attrs
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from nlhf_zoo import Game, Outcome, Policy, PreferenceOracle, QueryCount, Solver, State, Update
from nlhf_zoo.drive import configure
from nlhf_zoo.llm import Decoding
from nlhf_zoo.training.networks import NetworkPool, models_held


class Even(PreferenceOracle):
    def probability(self, prompts: Any, first: Any, second: Any) -> torch.Tensor:
        return torch.full((len(first),), 0.5)


@attrs.frozen(eq=False)
class Number(Policy):
    """A policy that is one number: what the weights of a network should be."""

    value: float

    def average(self, other: Policy, weight: float) -> Policy:
        return Number((1 - weight) * self.value + weight * other.value)

    def mixture(self, other: Policy, weight: float) -> Policy:
        return self

    def sample(self, prompts: Any, num_samples: int, generator: torch.Generator) -> Any:
        raise NotImplementedError

    def log_prob(self, prompts: Any, responses: Any) -> torch.Tensor:
        raise NotImplementedError

    def improve(self, update: Update, game: Game, generator: torch.Generator | None = None) -> Outcome:
        raise NotImplementedError


@attrs.frozen
class Remembers(Solver):
    """A solver with any memory: what it keeps, where it starts from, what it averages, in how many phases."""

    name = "remembers"
    keep_previous: bool = False
    keep_first: bool = False
    ema: float | None = None
    start_from: str = "current"
    phases: int = 1
    steps: int | None = 1

    def init(self, game: Game, policy: Policy) -> State:
        slots = {"current": policy, "previous": policy, "first": policy, "target": policy}
        return State({name: slots[name] for name in self._names()})

    def _names(self) -> list[str]:
        wanted = ["current", *(["previous"] * self.keep_previous), *(["first"] * self.keep_first)]
        return [*wanted, *(["target"] if self.ema is not None else [])]

    def propose(self, game: Game, state: State) -> Update:
        start = state.policies.get(self.start_from, state.current)
        anchors = [(policy, 1.0) for policy in state.policies.values()]
        return Update(start=start, opponent=state.current, anchors=anchors, steps=self.steps)

    def accept(self, game: Game, state: State, outcome: Outcome) -> State:
        if state.phase + 1 < self.phases:
            return state.middle(half=outcome.policy)
        slots = {"current": outcome.policy, "previous": state.current, "first": state.policies.get("first")}
        if self.ema is not None:
            slots["target"] = state["target"].average(outcome.policy, self.ema)
        return state.next(**{name: slots[name] for name in self._names()})


def number_net(value: float) -> nn.Module:
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(net.weight, value)
    return net


def run(solver: Solver, steps: int, inner: int) -> int:
    """Play the pool against plain numbers; returns the networks that it held."""
    oracle = Even()
    pool = NetworkPool(number_net(1.0), number_net(-7.0), None, Decoding())
    game = Game(oracle, pool.policy(pool.reference), 0.5)
    plain = Game(oracle, Number(-7.0), 0.5)
    state, numbers = pool.own_slots(solver.init(game, pool.policy())), solver.init(plain, Number(1.0))
    numbers = attrs.evolve(numbers, policies={name: Number(1.0) for name in numbers.policies})
    trained = 0
    while state.step < steps:
        update, wanted = solver.propose(game, state), solver.propose(plain, numbers)
        batches = update.steps or inner
        pool.begin(solver, game, state, update, batches)
        value = wanted.start.value
        for batch in range(batches):
            if batch > 0 or batches == 1:
                # What the update refers to is read in every batch, before the step is taken.
                for mine, number in zip(update.anchors, wanted.anchors, strict=True):
                    seen = mine.policy.network.weight.item()
                    assert seen == pytest.approx(number.policy.value, abs=1e-12)
            trained += 1
            value += 0.1 * trained
            with torch.no_grad():
                next(pool.student.parameters()).add_(0.1 * trained)
        state = solver.accept(game, state, Outcome(pool.policy(), QueryCount()))
        pool.settle(state)
        numbers = solver.accept(plain, numbers, Outcome(Number(value), QueryCount()))
        for name, policy in state.policies.items():
            assert policy.network.weight.item() == pytest.approx(numbers[name].value, abs=1e-12), name
        described = pool.describe(state)
        again = pool.restore(described)
        assert all(again[name].network is state[name].network for name in state.policies)
    return 2 + len(pool.spares)


@settings(deadline=None, max_examples=150)
@given(
    keep_previous=st.booleans(),
    keep_first=st.booleans(),
    ema=st.sampled_from([None, 0.25, 1.0]),
    start_from=st.sampled_from(["current", "previous", "first", "target", "half"]),
    phases=st.integers(1, 3),
    steps=st.sampled_from([None, 1]),
    inner=st.integers(1, 3),
)
def test_slots_hold_what_values_would(inner: int, **memory: Any) -> None:
    solver = Remembers(**memory)
    held = run(solver, steps=4, inner=inner)
    assert held <= 2 + len(solver._names()) + 2
    assert models_held(solver, Game(Even(), Number(0.0), 0.5), inner) <= held


@pytest.mark.parametrize(
    ("name", "options", "inner", "models"),
    [
        ("nash_mp", {"kappa": 0.1}, 1, 3),  # student, reference, target
        ("nash_mp", {}, 4, 4),  # student, reference, and two frozen: the centre, and the opponent
        ("nash_md", {"eta": 0.25}, 1, 2),
        ("online_dpo", {}, 1, 2),
        ("online_ipo", {}, 1, 2),
        ("exact_prox", {}, 4, 3),
    ],
)
def test_no_more_networks_than_needed(name: str, options: dict[str, Any], inner: int, models: int) -> None:
    solver = configure(name, **options)
    assert run(solver, steps=3, inner=inner) == models
    assert models_held(solver, Game(Even(), Number(0.0), 0.5), inner) == models
