"""Steps on a CUDA device without Python between them: one step is recorded as a CUDA graph, and launched again.

A solver is a pure function of the game and its state. Where a step has looked at none of the state's counters and
numbers, and ends in slots that are arranged as those it began with, the next step is the same function of the policies
in the slots, and so are all after it. Whether that is so is watched, not declared: the first steps are played as ever,
with an eye on what the solver reads and on whether the host has to wait for a number from the device. Solvers for which
it is not so (a schedule, an adaptive step, a period) go on being played step by step.

What is recorded reads and writes tensors at their addresses, those of the game's matrix and reference too, so a
recording serves one run. Results are those of the plain steps to the last bit. Steps are launched ahead of the one
that is asked for, so that the device does not wait; they are counted when they are handed out.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from nlhf_zoo.interfaces import Game, Outcome, Policy, QueryCount, Solver, State, Update
from nlhf_zoo.tabular.kernels import loaded
from nlhf_zoo.tabular.policy import TabularPolicy, of_normalised, unchecked

__all__ = ["CudaRecorder", "Recorder", "ReplayedSteps"]

_MOST_TRIALS = 8
"""Watched steps after which slots that are still not arranged alike are taken to be never so."""

Play = Callable[[Solver, State], State]


class Recorder(Protocol):
    """What records work on a device and launches it again."""

    def no_waiting(self) -> contextlib.AbstractContextManager[None]:
        """Inside, whatever makes the host wait for the device raises a RuntimeError."""
        ...

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """A function that launches what `work` launches, and what `work` returned."""
        ...

    def ask(self, flag: Tensor) -> Callable[[], bool]:
        """A function that waits for this flag, and not for what is launched after it."""
        ...


class CudaRecorder:
    """CUDA graphs of torch, on the current stream."""

    def __init__(self, device: torch.device) -> None:
        loaded(device)  # compiling the kernels may wait for the device, which a trial must not

    @contextlib.contextmanager
    def no_waiting(self) -> Iterator[None]:
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*prototype feature")
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        # Not `torch.cuda.graph`: it empties the allocator's cache, which costs more than the recording.
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        collecting = gc.isenabled()
        gc.disable()  # what it frees might have to wait for the device
        try:
            with torch.cuda.stream(side):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    made = work()
                finally:
                    graph.capture_end()
        finally:
            if collecting:
                gc.enable()
        torch.cuda.current_stream().wait_stream(side)
        return graph.replay, made

    def ask(self, flag: Tensor) -> Callable[[], bool]:
        host = torch.empty((), dtype=torch.bool, pin_memory=True)
        host.copy_(flag, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()

        def answer() -> bool:
            arrived.synchronize()
            return bool(host)

        return answer


class ReplayedSteps:
    """Steps of one run: played until they repeat themselves, then replayed.

    Args:
        solver: with exact improvements and no randomness of its own.
        play: the plain step, of a solver (this one, or one that watches it) from a state.
    """

    def __init__(self, game: Game, solver: Solver, play: Play, recorder: Recorder) -> None:
        self.game, self.solver, self.play, self.recorder = game, solver, play, recorder
        self._trials = _MOST_TRIALS
        self._recording: _Recording | None = None
        self._launched: collections.deque[_Launched] = collections.deque()
        self._last: State | None = None

    @property
    def replaying(self) -> bool:
        """Whether steps are replayed by now."""
        return self._recording is not None

    def __call__(self, state: State, ahead: int = 1) -> State:
        """The state after one more step; up to `ahead` steps, this one included, may be computed by then."""
        recording = self._recording
        if recording is None:
            return self._tried(state) if self._trials else self.play(self.solver, state)
        if state is not self._last:
            self._launched.clear()
            if _arrangement(state, self.game) != recording.arrangement:
                return self.play(self.solver, state)
            recording.load(state)
        waiting = sum(len(launched.steps) for launched in self._launched)
        size = max(1, ahead // 2)
        while waiting < max(1, ahead - size + 1):
            self._launched.append(recording.launch(size, self.recorder))
            waiting += size
        if not self._launched[0].sound():
            self._give_up()
            return self.play(self.solver, state)
        tables = self._launched[0].steps.popleft()
        if not self._launched[0].steps:
            self._launched.popleft()
        self._last = recording.after(state, tables)
        self.game.oracle.charge(recording.asked)
        return self._last

    def _tried(self, state: State) -> State:
        """A plain step, watched; the last before the recording is the one that proves that it can be recorded."""
        begun = _arrangement(state, self.game)
        oracle = self.game.oracle
        before = oracle.queries
        if begun is None:
            self._give_up()
            return self.play(self.solver, state)
        watched = _WatchedSolver(self.solver)
        self._trials -= 1
        try:
            with self.recorder.no_waiting(), unchecked():
                after = self.play(watched, state)
            sound = bool(_sound(after))
        except Exception:  # it is raised again by the plain step below, unless the watching was the reason
            after, sound = state, False
        if not sound:
            self._give_up()
            oracle.charge(before - oracle.queries)
            return self.play(self.solver, state)
        if watched.read:
            self._give_up()
        elif _repeats(state, after) and _arrangement(after, self.game) == begun:
            self._record(after, oracle.queries - before)
        return after

    def _record(self, state: State, asked: QueryCount) -> None:
        oracle = self.game.oracle
        before = oracle.queries
        try:
            self._recording = _Recording(self, state, asked)
        except Exception:  # whatever cannot be recorded is played
            self._give_up()
        oracle.charge(before - oracle.queries)  # nothing was asked in earnest
        self._last = None

    def _give_up(self) -> None:
        self._trials = 0
        self._recording = None
        self._launched.clear()


class _Recording:
    """One step, recorded, that begins with the tables in `begin` and writes the next step's over them."""

    def __init__(self, steps: ReplayedSteps, state: State, asked: QueryCount) -> None:
        self.game, self.asked = steps.game, asked
        self.arrangement = _arrangement(state, steps.game)
        self.begin = _copied(state, steps.game)
        watched = _WatchedSolver(steps.solver)

        def work() -> State:
            with unchecked():
                after = steps.play(watched, self.begin)
            self._carry(after)
            return after

        self._replay, end = steps.recorder.record(work)
        if watched.read or not _repeats(self.begin, end) or _arrangement(end, steps.game) != self.arrangement:
            raise RuntimeError("the recorded step is not the one that was tried")
        self.cost = end.queries - self.begin.queries
        old = {id(policy): name for name, policy in self.begin.policies.items()}
        new: dict[int, Tensor] = {}
        for policy in end.policies.values():
            if id(policy) not in old and policy is not self.game.reference:
                new[id(policy)] = _table(policy)
        self.made = tuple(new.values())
        places = {key: place for place, key in enumerate(new)}
        # Of each slot after the step: which table the step made, or which slot held it before.
        self.origin = {
            name: places[id(policy)] if id(policy) in places else old.get(id(policy))
            for name, policy in end.policies.items()
        }

    def _carry(self, end: State) -> None:
        """Where a slot ends is where it begins the next step."""
        moves: dict[int, tuple[Tensor, Tensor]] = {}
        begun = {id(policy) for policy in self.begin.policies.values()}
        for name, policy in self.begin.policies.items():
            later = end.policies[name]
            if policy is not self.game.reference and later is not policy:
                source = _table(later)
                # A table that moves to another slot may be overwritten before it is read.
                moves[id(policy)] = (_table(policy), source.clone() if id(later) in begun else source)
        for target, source in moves.values():
            target.copy_(source)

    def load(self, state: State) -> None:
        for name, policy in self.begin.policies.items():
            if policy is not self.game.reference:
                _table(policy).copy_(_table(state.policies[name]))

    def launch(self, count: int, recorder: Recorder) -> _Launched:
        steps: collections.deque[list[Tensor]] = collections.deque()
        for _ in range(count):
            self._replay()
            steps.append([table.clone() for table in self.made])
        columns = [table[..., 0] for made in steps for table in made]
        return _Launched(steps, recorder.ask(_all_numbers(columns)) if columns else None)

    def after(self, state: State, tables: list[Tensor]) -> State:
        made = [of_normalised(table) for table in tables]
        policies: dict[str, Policy] = {}
        for name, origin in self.origin.items():
            if origin is None:
                policies[name] = self.game.reference
            else:
                policies[name] = made[origin] if isinstance(origin, int) else state.policies[origin]
        return attrs.evolve(state, policies=policies, step=state.step + 1, queries=state.queries + self.cost)


@attrs.define
class _Launched:
    """Steps that are on their way: the tables that each makes, and whether all of them are numbers."""

    steps: collections.deque[list[Tensor]]
    _answer: Callable[[], bool] | None

    def sound(self) -> bool:
        if self._answer is None:
            return True
        sound = self._answer()
        self._answer = None if sound else self._answer
        return sound


class _WatchedSolver(Solver):
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


def _arrangement(state: State, game: Game) -> Mapping[str, Any] | None:
    """Which slots there are, and which of them, and of the reference, are one policy; `None` if not all are tables."""
    seen: dict[int, int] = {id(game.reference): 0}
    slots: dict[str, Any] = {}
    for name, policy in state.policies.items():
        if type(policy) is not TabularPolicy or policy.log_probs.requires_grad:
            return None
        table = policy.log_probs
        slots[name] = (seen.setdefault(id(policy), len(seen)), table.shape, table.dtype, table.device)
    return slots if state.phase == 0 else None


def _repeats(before: State, after: State) -> bool:
    return after.step == before.step + 1 and after.phase == 0 and after.numbers == before.numbers


def _copied(state: State, game: Game) -> State:
    """The same arrangement of policies, their tables copies; the reference stays."""
    copies: dict[int, Policy] = {id(game.reference): game.reference}
    for policy in state.policies.values():
        if id(policy) not in copies:
            copies[id(policy)] = of_normalised(_table(policy).clone())
    return attrs.evolve(state, policies={name: copies[id(policy)] for name, policy in state.policies.items()})


def _sound(state: State) -> Tensor:
    return _all_numbers([_table(policy)[..., 0] for policy in state.policies.values()])


def _all_numbers(columns: list[Tensor]) -> Tensor:
    """Whether these columns, one of each table, are below infinity; a table that is not is NaN all over its row."""
    return (torch.cat([column.reshape(-1) for column in columns]) < torch.inf).all()


def _table(policy: Policy) -> Tensor:
    assert isinstance(policy, TabularPolicy)
    return policy.log_probs
