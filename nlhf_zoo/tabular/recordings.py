"""One step of a solver, recorded: how it is launched, what it leaves, and where it waits for the next run of its game.

A recording reads and writes tensors at their addresses, those of the game's matrix and reference too. It is therefore
kept with its game, and lent to one run at a time.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from nlhf_zoo.interfaces import Game, Policy, Solver, State
from nlhf_zoo.tabular.kernels import carried
from nlhf_zoo.tabular.policy import TabularPolicy, of_both, of_normalised, unchecked
from nlhf_zoo.tabular.watched import WatchedSolver

__all__ = ["Play", "Recorder", "Recording", "Spares", "arrangement", "held", "repeats"]

Play = Callable[[Solver, State], State]


class Recorder(Protocol):
    """What records work on a device and launches it again."""

    @property
    def place(self) -> Hashable:
        """Where it launches: what is recorded in one place is launched there only."""
        ...

    def no_waiting(self) -> contextlib.AbstractContextManager[None]:
        """Inside, whatever makes the host wait for the device raises a RuntimeError."""
        ...

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """A function that launches what `work` launches, and what `work` returned."""
        ...

    def ask(self, numbers: Tensor) -> Callable[[], bool]:
        """A function that says whether these are below infinity; it does not wait for what is launched after them."""
        ...


class Recording:
    """One step, recorded, that begins with the tables in `begin`.

    Args:
        loops: the step ends as it begins, and writes the next step's beginning over its own; otherwise the next step
            is another recording's.

    Raises:
        RuntimeError: the step reads the state's counters or numbers, or does not end as it began though it is to.
    """

    def __init__(
        self, game: Game, solver: Solver, play: Play, recorder: Recorder, state: State, loops: bool = True
    ) -> None:
        self.loops = loops
        self.reference = game.reference  # not the game, with which the recording is to be forgotten
        self.recorder = recorder
        self.arrangement = arrangement(state, game)
        if self.arrangement is None or len({slot[1] for slot in self.arrangement.values()}) != 1:
            raise RuntimeError("the slots are no tables of one shape")
        # NaN in the games, and for good, where a table has been none of numbers.
        self._seen = torch.zeros_like(_table(state.current)[..., 0])
        self.begin = self._copied(state)
        watched = WatchedSolver(solver)
        before = game.oracle.queries

        def work() -> State:
            with recorder.no_waiting(), unchecked():
                after = play(watched, self.begin)
            if loops:
                self._carry(after)
            return after

        self.replay, end = recorder.record(work)
        if watched.read or not repeats(self.begin, end):
            raise RuntimeError("the step is another one each time")
        if loops and arrangement(end, game) != self.arrangement:
            raise RuntimeError("the step does not end as it began")
        self.asked = game.oracle.queries - before
        self.cost = end.queries - self.begin.queries
        old = {id(policy): name for name, policy in self.begin.policies.items()}
        new: dict[int, Policy] = {}
        for policy in end.policies.values():
            if id(policy) not in old and policy is not self.reference:
                new[id(policy)] = policy
        self._made = [(held(policy), _is_both(policy)) for policy in new.values()]
        places = {key: place for place, key in enumerate(new)}
        # Of each slot after the step: which table the step made, or which slot held it before.
        self._origin = {
            name: places[id(policy)] if id(policy) in places else old.get(id(policy))
            for name, policy in end.policies.items()
        }
        # A run of several steps is told by where its tables end; each slot's beginning is the last one's end.
        self._stays = all(isinstance(origin, int) or origin in (None, name) for name, origin in self._origin.items())

    def _copied(self, state: State) -> State:
        """The same arrangement of policies, their tables copies; the reference stays."""
        copies: dict[int, Policy] = {id(self.reference): self.reference}
        for policy in state.policies.values():
            if id(policy) not in copies:
                copy = torch.empty_like(held(policy))
                carried(copy, held(policy), self._seen)  # a kernel's first launch must not be inside a recording
                copies[id(policy)] = _policy(copy, _is_both(policy))
        return attrs.evolve(state, policies={name: copies[id(policy)] for name, policy in state.policies.items()})

    def _carry(self, end: State) -> None:
        """Where a slot ends is where it begins the next step."""
        moves: dict[int, tuple[Tensor, Tensor]] = {}
        begun = {id(policy) for policy in self.begin.policies.values()}
        for name, policy in self.begin.policies.items():
            later = end.policies[name]
            if policy is not self.reference and later is not policy:
                source = held(later)
                # A table that moves to another slot may be overwritten before it is read.
                moves[id(policy)] = (held(policy), source.clone() if id(later) in begun else source)
        for target, source in moves.values():
            carried(target, source, self._seen)

    def load(self, state: State) -> None:
        for name, policy in self.begin.policies.items():
            if policy is not self.reference:
                held(policy).copy_(held(state.policies[name]))

    def step(self) -> list[Tensor]:
        """Launch one step; the tables that it makes."""
        self.replay()
        copies = [torch.empty_like(table) for table, _ in self._made]
        for copy, (table, _) in zip(copies, self._made, strict=True):
            if self.loops:
                copy.copy_(table)
            else:
                carried(copy, table, self._seen)
        return copies

    def ask(self) -> Callable[[], bool]:
        """A function that says whether all tables up to now were numbers."""
        return self.recorder.ask(self._seen)

    def after(self, state: State, tables: list[Tensor]) -> State:
        """The state that comes after this one, given the tables that the step made."""
        made = [_policy(table, both) for table, (_, both) in zip(tables, self._made, strict=True)]
        policies: dict[str, Policy] = {}
        for name, origin in self._origin.items():
            if origin is None:
                policies[name] = self.reference
            else:
                policies[name] = made[origin] if isinstance(origin, int) else state.policies[origin]
        return attrs.evolve(state, policies=policies, step=state.step + 1, queries=state.queries + self.cost)

    def leap(self, state: State, count: int) -> State | None:
        """The state `count` > 0 steps later; `None` if some table on the way was none of numbers."""
        for _ in range(count - 1):
            self.replay()
        before = state
        if not self._stays and count > 1:
            before = self._copied(attrs.evolve(state, policies=self.begin.policies))
        tables = self.step()
        if not self.ask()():
            return None
        after = self.after(before, tables)
        queries = state.queries
        for _ in range(count):
            queries = queries + self.cost
        return attrs.evolve(after, step=state.step + count, queries=queries)


class Spares:
    """The recordings of each game whose last run has ended, in case that the same solver comes to it again."""

    def __init__(self) -> None:
        self._spares: weakref.WeakKeyDictionary[Game, tuple[Solver, Hashable, list[Recording]]] = (
            weakref.WeakKeyDictionary()
        )

    def take(self, game: Game, solver: Solver, place: Hashable) -> list[Recording]:
        spare = self._spares.pop(game, None)
        # Solvers are frozen attrs classes, and equal ones are the same function; any other is only itself.
        return spare[2] if spare is not None and spare[:2] == (solver, place) else []

    def keep(self, game: Game, solver: Solver, place: Hashable, recordings: list[Recording]) -> None:
        if recordings:
            self._spares[game] = (solver, place, recordings)


def arrangement(state: State, game: Game) -> Mapping[str, Any] | None:
    """Which slots there are, and which of them, and of the reference, are one policy; `None` if not all are tables."""
    seen: dict[int, int] = {id(game.reference): 0}
    slots: dict[str, Any] = {}
    for name, policy in state.policies.items():
        if type(policy) is not TabularPolicy or policy.log_probs.requires_grad:
            return None
        table = policy.log_probs
        place = seen.setdefault(id(policy), len(seen))
        slots[name] = (place, table.shape, table.dtype, table.device, _is_both(policy))
    return slots if state.phase == 0 else None


def repeats(before: State, after: State) -> bool:
    """Whether this is one whole step, which leaves the numbers as they were."""
    return after.step == before.step + 1 and after.phase == 0 and after.numbers == before.numbers


def held(policy: Policy) -> Tensor:
    """All that is stored of a policy: its log-probabilities, with its probabilities where they are known."""
    assert isinstance(policy, TabularPolicy)
    return policy.log_probs if policy.both is None else policy.both


def _is_both(policy: Policy) -> bool:
    assert isinstance(policy, TabularPolicy)
    return policy.both is not None


def _policy(table: Tensor, both: bool) -> TabularPolicy:
    return of_both(table) if both else of_normalised(table)


def _table(policy: Policy) -> Tensor:
    assert isinstance(policy, TabularPolicy)
    return policy.log_probs
