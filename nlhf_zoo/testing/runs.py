"""Running a solver under observation: every iterate, every question to the oracle, and how far rounding carries."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.drive import advance
from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import EnumerableOracle, Game, Policy, QueryCount, Solver, State
from nlhf_zoo.metrics import span
from nlhf_zoo.tabular import TabularPolicy
from nlhf_zoo.testing.case import Case, Endless, Skip, Violation

__all__ = [
    "SpyOracle",
    "Watch",
    "agree",
    "begin",
    "other_global_seeds",
    "states",
    "tables",
    "walk",
    "walk_with_rounding",
]

MOST_UPDATES = 64
"""Updates that one step may take."""
MOST_QUERIES = 20_000
"""Payoffs that one update, and one run of whole steps, may ask for; a case that needs more is skipped, and said so."""


class SpyOracle(EnumerableOracle):
    """An oracle that keeps its own count of what it was asked, and by which door.

    Attributes:
        asked: payoffs seen, in the currency of the wrapped oracle.
        peeked: times that the matrix itself was read.
    """

    def __init__(self, oracle: EnumerableOracle) -> None:
        self.base = oracle
        self.batch_shape = oracle.batch_shape
        self.num_responses = oracle.num_responses
        self.labels = oracle.labels
        self.asked = QueryCount()
        self.calls = 0
        self.begun = 0
        self.peeked = 0

    def query_cost(self, method: str, *args: Any, **kwargs: Any) -> QueryCount:
        return self.base.query_cost(method, *args, **kwargs)

    def _note(self, method: str, *args: Any) -> None:
        self.asked = self.asked + self.base.query_cost(method, *args)
        self.calls += 1
        if self.calls - self.begun > MOST_QUERIES:
            raise Skip(f"an update of more than {MOST_QUERIES} payoffs")

    def payoff(self, opponent: Tensor, **keywords: Any) -> Tensor:
        self._note("payoff", opponent)
        return self.base.payoff(opponent, **keywords)

    def probability(self, prompts: Any, first: Any, second: Any) -> Tensor:
        self._note("probability", prompts, first, second)
        return self.base.probability(prompts, first, second)

    def matrix(self) -> Tensor:
        self.peeked += 1
        return self.base.matrix()

    def uniform_policy(self) -> Policy:
        return self.base.uniform_policy()


class Watch:
    """Asked before each update of a run, it ends the run that would never end, or take too long."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.step = -1
        self.updates = 0

    def __call__(self, state: State) -> None:
        """
        Raises:
            Endless: the step has had as many updates as it may.
            Skip: a step has ended after too many payoffs in all; so does the oracle, for those of one update.
        """
        spy = self.game.oracle if isinstance(self.game.oracle, SpyOracle) else None
        if spy is not None:
            spy.begun = spy.calls
        if state.step != self.step:
            self.step, self.updates = state.step, 0
            if spy is not None and spy.calls > MOST_QUERIES:
                raise Skip(f"a run of more than {MOST_QUERIES} payoffs")
        self.updates += 1
        if self.updates > MOST_UPDATES:
            raise Endless(
                f"step {state.step + 1} has not ended after {MOST_UPDATES} updates: accept() must call next()"
            )


def spied(game: Game) -> tuple[Game, SpyOracle]:
    """The same game with a `SpyOracle` before its oracle."""
    assert isinstance(game.oracle, EnumerableOracle)
    spy = SpyOracle(game.oracle)
    return attrs.evolve(game, oracle=spy), spy


def begin(solver: Solver, game: Game, policy: Policy) -> State:
    """The solver's first state; a refusal of the game is a reason to skip, and no failure."""
    try:
        return solver.init(game, policy)
    except BadInput as refusal:
        raise Skip(f"the solver refuses the game: {refusal}") from None


def states(
    solver: Solver, game: Game, policy: Policy, generator: torch.Generator | None = None, state: State | None = None
) -> Iterator[State]:
    """The state after each step, without end, beginning with the first; a step that never ends is a violation."""
    if isinstance(game.oracle, SpyOracle):
        watched = game
    else:
        watched, _ = spied(game)
    state = begin(solver, watched, policy) if state is None else state
    watch = Watch(watched)
    while True:
        yield state
        begun = state.step
        while state.step == begun:
            watch(state)
            state = advance(watched, solver, state, generator)
        if state.step != begun + 1:
            raise Violation(f"the step counter went from {begun} to {state.step}: accept() must add 1")


def tables(policy: Policy) -> Tensor:
    """(..., Y) log-probabilities of a tabular policy."""
    if not isinstance(policy, TabularPolicy):
        raise Violation(f"on a table the current policy is a {type(policy).__name__}, not a TabularPolicy")
    return policy.log_probs


def walk(solver: Solver, case: Case, game: Game | None = None, policy: Policy | None = None) -> list[Tensor]:
    """(steps + 1) log-probability tables (..., Y): the iterates of a whole run, the start included."""
    generator = torch.Generator().manual_seed(case.seed)
    run = states(solver, game or case.game(), policy or case.first(), generator)
    return [tables(next(run).current) for _ in range(case.steps + 1)]


def agree(one: Tensor, other: Tensor, tolerance: Tensor | float) -> bool:
    """Whether two log-probability tables (..., Y) agree up to `tolerance` in span."""
    return bool((span(one, other) <= tolerance).all())


def walk_with_rounding(solver: Solver, case: Case) -> tuple[list[Tensor], list[float]]:
    """The iterates of `walk`, and how far rounding may have carried each, in span, at the very most.

    Start and reference are moved by 1e-12 of their size, ten thousand times the rounding of a float64, and the
    run is repeated; a run that rounding alone decides is skipped.
    """
    plain = walk(solver, case)
    nudge = 1e-12 * (1 + max(map(abs, (*case.reference, *(case.start or ())))))
    signs = [nudge * (1 if i % 2 else -1) for i in range(case.size)]
    moved = attrs.evolve(
        case,
        reference=[x + s for x, s in zip(case.reference, signs, strict=True)],
        start=None if case.start is None else [x + s for x, s in zip(case.start, signs, strict=True)],
    )
    bounds = []
    for one, other in zip(plain, walk(solver, moved), strict=True):
        bound = 1e-11 * (1 + float(one.abs().amax())) + float(span(one, other).amax())
        if bound > 1e-4:
            raise Skip("rounding alone decides where this run goes")
        bounds.append(bound)
    return plain, bounds


@contextlib.contextmanager
def other_global_seeds(seed: int) -> Iterator[None]:
    """Inside, the global generators of torch, numpy and random stand at `seed`; after, as they were."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # the very thing tested
    try:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
