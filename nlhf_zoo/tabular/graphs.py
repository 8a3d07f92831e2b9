"""Steps on a CUDA device without Python between them: one step is recorded as a CUDA graph, and launched again.

A solver is a pure function of the game and its state. Where a step has looked at none of the state's counters and
numbers, and ends in slots that are arranged as those it began with, the next step is the same function of the policies
in the slots, and so are all after it. Whether that is so is watched, not declared: the first step is played as ever,
with an eye on what the solver reads and on whether the host has to wait for a number from the device; so is the second
while it is recorded. Solvers for which it is not so (a schedule, an adaptive step, a period) go on being played step
by step.

Results are those of the plain steps to the last bit. Steps are launched ahead of the one that is asked for, so that
the device does not wait; they are counted when they are handed out. A recording outlives its run: the next run of the
same solver in the same game begins with it.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import attrs
import torch
from torch import Tensor

from nlhf_zoo.interfaces import Game, Solver, State
from nlhf_zoo.tabular.kernels import loaded
from nlhf_zoo.tabular.policy import TabularPolicy, unchecked
from nlhf_zoo.tabular.recordings import Play, Recorder, Recording, Spares, arrangement, repeats
from nlhf_zoo.tabular.watched import WatchedSolver

__all__ = ["CudaRecorder", "Recorder", "ReplayedSteps"]

_MOST_TRIALS = 8
"""Watched steps after which slots that are still not arranged alike are taken to be never so."""
_MOST_LEAPT = 256
"""Steps in one go: so many are in vain where the first of them comes to no numbers."""

_spares = Spares()


class CudaRecorder:
    """CUDA graphs of torch, on the current stream."""

    def __init__(self, device: torch.device) -> None:
        loaded(device)  # compiling the kernels may wait for the device, which a trial must not
        self.place: Hashable = (device, torch.cuda.current_stream(device).cuda_stream)

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

    def ask(self, numbers: Tensor) -> Callable[[], bool]:
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()

        def answer() -> bool:
            arrived.synchronize()
            return bool((host < torch.inf).all())

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
        self._promising: State | None = None
        self._launched: collections.deque[_Launched] = collections.deque()
        self._last: State | None = None
        # A list, which the finaliser can look into when this object is gone.
        self._recordings = _spares.take(game, solver, recorder.place)
        self._resumed = bool(self._recordings)
        end = weakref.finalize(self, _spares.keep, game, solver, recorder.place, self._recordings)
        end.atexit = False

    @property
    def recording(self) -> Recording | None:
        """The step that is replayed by now."""
        return self._recordings[0] if self._recordings else None

    def __call__(self, state: State, ahead: int = 1) -> State:
        """The state after one more step; up to `ahead` steps, this one included, may be computed by then."""
        recording = self._ready(state)
        if recording is None:
            return self._tried(state)
        if not recording.loops:
            return self._leapt(recording, state, 1)
        waiting = sum(len(launched.steps) for launched in self._launched)
        size = max(1, ahead // 2)
        while waiting < max(1, ahead - size + 1):
            steps = collections.deque(recording.step() for _ in range(size))
            self._launched.append(_Launched(steps, recording.ask()))
            waiting += size
        if not self._launched[0].sound():
            return self._spoiled(state)
        tables = self._launched[0].steps.popleft()
        if not self._launched[0].steps:
            self._launched.popleft()
        self._last = recording.after(state, tables)
        self.game.oracle.charge(recording.asked)
        return self._last

    def leap(self, state: State, most: int) -> State:
        """A state up to `most` > 0 steps later; those between are not handed out."""
        if self._launched:
            self._last = None  # the device is ahead of this state
        recording = self._ready(state)
        if recording is None:
            return self._tried(state)
        return self._leapt(recording, state, min(most, _MOST_LEAPT) if recording.loops else 1)

    def _leapt(self, recording: Recording, state: State, count: int) -> State:
        after = recording.leap(state, count)
        if after is None:
            return self._spoiled(state)
        self._last = after if recording.loops else None
        for _ in range(count):
            self.game.oracle.charge(recording.asked)
        return after

    def _ready(self, state: State) -> Recording | None:
        """The recording that is about to go on from this state; `None` where this step has to be played."""
        if state is self._promising:
            self._record(state)
        if state is self._last:
            return self.recording
        self._launched.clear()
        begun = arrangement(state, self.game)
        if self._resumed and all(begun != recording.arrangement for recording in self._recordings):
            self._resumed = False
            self._record(state, loops=False)  # this run's first step, and the first of those to come
        for recording in self._recordings:
            if begun == recording.arrangement:
                recording.load(state)
                self._last = state if recording.loops else None
                return recording
        return None

    def _tried(self, state: State) -> State:
        """A plain step, which is watched while there is hope that the one after it can be recorded."""
        begun = arrangement(state, self.game)
        if not self._trials or self.recording is not None or begun is None:
            return self.play(self.solver, state)
        oracle = self.game.oracle
        before = oracle.queries
        watched = WatchedSolver(self.solver)
        self._trials -= 1
        try:
            with self.recorder.no_waiting(), unchecked():
                after = self.play(watched, state)
            sound = bool(_sound(after))
        except Exception:  # it is raised again by the plain step below, unless the watching was the reason
            after, sound = state, False
        if not sound:
            self._trials = 0
            oracle.charge(before - oracle.queries)
            return self.play(self.solver, state)
        if watched.read or not repeats(state, after):
            self._trials = 0 if watched.read else self._trials
        elif arrangement(after, self.game) == begun or (self._trials == _MOST_TRIALS - 1 and _aligned(after)):
            self._promising = after  # a first step mostly begins elsewhere: all slots are one policy
        return after

    def _record(self, state: State, loops: bool = True) -> None:
        """Record the step that begins here, if it can be recorded."""
        self._promising = None
        oracle = self.game.oracle
        before = oracle.queries
        try:
            self._recordings.append(Recording(self.game, self.solver, self.play, self.recorder, state, loops))
        except Exception:  # whatever cannot be recorded is played
            if self._trials < _MOST_TRIALS - 1:
                self._trials = 0
        oracle.charge(before - oracle.queries)  # nothing was asked in earnest

    def _spoiled(self, state: State) -> State:
        """The plain step, which says what is wrong, or after which it goes wrong."""
        self._trials = 0
        self._recordings.clear()
        self._launched.clear()
        return self.play(self.solver, state)


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


def _aligned(state: State) -> bool:
    """Whether no kernel is compiled anew for an address of the next step, which must not be inside a recording."""
    tables = [policy.both for policy in state.policies.values() if isinstance(policy, TabularPolicy)]
    return all(both[1].data_ptr() % 16 == 0 for both in tables if both is not None)


def _sound(state: State) -> Tensor:
    """Whether all tables are numbers below infinity; a table that is not is NaN all over its row: a column tells."""
    columns: list[Tensor] = []
    for policy in state.policies.values():
        assert isinstance(policy, TabularPolicy)
        columns.append(policy.log_probs[..., 0].reshape(-1))
    return (torch.cat(columns) < torch.inf).all()
