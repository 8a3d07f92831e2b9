"""What a solver reads of its state: the policies in the slots, or its counters and numbers too."""

from __future__ import annotations

from typing import Any

import attrs

from nlhf_zoo.interfaces import Game, Outcome, Policy, Solver, State, Update

__all__ = ["WatchedSolver"]


class WatchedSolver(Solver):
    """A solver that is given states which know what of them is read."""

    def __init__(self, solver: Solver) -> None:
        self._solver = solver
        self.name = solver.name  # type: ignore[misc]  # an instance's, for messages
        self.read: set[str] = set()

    def propose(self, game: Game, state: State) -> Update:
        return self._solver.propose(game, _WatchedState(state, self.read))

    def accept(self, game: Game, state: State, outcome: Outcome) -> State:
        accepted = self._solver.accept(game, _WatchedState(state, self.read), outcome)
        return accepted.plain if isinstance(accepted, _WatchedState) else accepted


_FIELDS = frozenset(field.name for field in attrs.fields(State))
_COUNTERS = frozenset({"step", "numbers", "queries"})


class _WatchedState(State):
    """The same state, which notes who reads its counters and numbers."""

    __slots__ = ("plain", "read")
    plain: State
    read: set[str]

    def __init__(self, plain: State, read: set[str]) -> None:
        object.__setattr__(self, "plain", plain)
        object.__setattr__(self, "read", read)

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":  # what evolves from it is a plain state, and has read all of this one
            return State
        own = object.__getattribute__
        if name in _COUNTERS:
            own(self, "read").add(name)
        return getattr(own(self, "plain"), name) if name in _FIELDS else own(self, name)

    def middle(self, **slots: Policy) -> State:
        return object.__getattribute__(self, "plain").middle(**slots)

    def next(self, **slots: Policy) -> State:
        return object.__getattribute__(self, "plain").next(**slots)
