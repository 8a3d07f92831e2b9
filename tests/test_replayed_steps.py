"""Recorded steps against played ones, on the CPU: a tape of torch's operations stands for a CUDA graph."""

from __future__ import annotations

import collections
import itertools
from typing import Any

import attrs
import pytest
import torch

from nlhf_zoo import BadInput, Game, MatrixOracle, Outcome, Solver, State, TabularPolicy, Update, drive, solve, solvers
from nlhf_zoo.drive import configure, iterates
from nlhf_zoo.oracles import products
from nlhf_zoo.tabular.graphs import ReplayedSteps
from nlhf_zoo_plugins.nash_mp import NashMP
from tests.tape import Tape


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    tape = Tape()
    monkeypatch.setattr(drive, "_recorder", lambda game: tape)
    monkeypatch.setattr(products, "_plain", lambda matrix, vector: False)  # numpy's products are on no tape
    return tape


def a_game(games: tuple[int, ...] = (3,), size: int = 5, beta: float = 0.3) -> Game:
    generator = torch.Generator().manual_seed(0)
    upper = torch.rand(*games, size, size, generator=generator, dtype=torch.float64).triu(1)
    matrix = upper + (1 - upper).mT.tril(-1)
    matrix.diagonal(dim1=-2, dim2=-1).fill_(0.5)
    reference = torch.randn(*games, size, generator=generator, dtype=torch.float64)
    return Game(MatrixOracle(matrix), TabularPolicy(reference), beta)


def run(game: Game, solver: Solver, steps: int) -> list[State]:
    return list(itertools.islice(iterates(game, solver), steps + 1))


def played(game: Game, solver: Solver, steps: int) -> list[State]:
    """The plain loop: no recorder, no look-ahead."""
    states = [solver.init(game, game.reference)]
    for _ in range(steps):
        states.append(drive._step(game, solver, states[-1], None))
    return states


def assert_same(one: list[State], other: list[State]) -> None:
    for a, b in zip(one, other, strict=True):
        assert (a.step, a.phase, a.numbers, a.queries) == (b.step, b.phase, b.numbers, b.queries)
        assert list(a.policies) == list(b.policies)
        for name, policy in a.policies.items():
            assert torch.equal(policy.log_probs, b.policies[name].log_probs), (a.step, name)


ON_TABLES = [name for name in solvers() if "table" in configure(name).backends]
REPLAYED = {"egpo", "inpo", "mmd", "mnpo", "nash_ema", "nash_mp", "online_dpo", "online_ipo", "optimistic_md", "sppo"}
PLAYED = {
    "adaptive_nash_mp": "reads its numbers",
    "comal": "has a period",
    "exact_prox": "looks for a fixed point, step by step",
    "mpo": "has a period",
    "nash_md": "reads the step for its schedule",
    "onpo": "reads whether it is the first step",
}


@pytest.mark.parametrize("name", ON_TABLES)
def test_replayed_steps_are_the_played_ones_to_the_last_bit(name: str, tape: Tape) -> None:
    games = () if name == "adaptive_nash_mp" else (3,)
    replayed, plain = a_game(games), a_game(games)
    solver = configure(name)
    assert_same(run(replayed, solver, 12), played(plain, solver, 12))
    assert replayed.oracle.queries == plain.oracle.queries
    if name in REPLAYED:
        assert tape.recorded == 1
        assert tape.replays >= 8
    if name in PLAYED:
        assert not tape.replays


def test_the_slots_of_a_step_are_the_policies_that_a_played_step_has(tape: Tape) -> None:
    """A slot that moves on to another slot is one object there, for solvers tell policies apart by `is`."""
    for name in ("optimistic_md", "mnpo", "nash_ema"):
        solver = configure(name)
        for pair in zip(*(itertools.pairwise(made) for made in _both(solver, 14)), strict=True):
            same = [
                [(a, b) for a in before.policies for b in after.policies if before.policies[a] is after.policies[b]]
                for before, after in pair
            ]
            assert same[0] == same[1], name
    assert tape.replays


def _both(solver: Solver, steps: int) -> tuple[list[State], list[State]]:
    return run(a_game(), solver, steps), played(a_game(), solver, steps)


@pytest.mark.parametrize("every", [1, 3, 10**9])
@pytest.mark.parametrize(
    "budget", [{"steps": 20}, {"queries": 29}, {"queries": 29, "strict": True}, {"tol": 1e-3, "steps": 60}]
)
def test_solve_measures_and_stops_as_without(
    every: int, budget: dict[str, Any], tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    game = a_game()
    got = solve(game, "nash_mp", every=every, progress=lambda state: seen.append(state.step), **budget)
    assert tape.replays
    monkeypatch.setattr(drive, "_recorder", lambda game: None)
    plain = a_game()
    want = solve(plain, "nash_mp", every=every, **budget)
    assert (got.state.step, got.converged) == (want.state.step, want.converged)
    assert got.queries == want.queries
    assert seen == list(range(1, got.state.step + 1))
    if "strict" not in budget:  # the step that is taken back has been asked for
        assert game.oracle.queries == plain.oracle.queries == got.queries
    assert torch.equal(got.policy.log_probs, want.policy.log_probs)
    for a, b in zip(got.history, want.history, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a if k != "seconds")


def test_no_step_is_computed_that_solve_does_not_hand_out(tape: Tape) -> None:
    game = a_game()
    result = solve(game, "nash_mp", steps=40, every=7)
    assert result.state.step == 40
    assert tape.replays == 40 - 2  # one step from the reference, one more to see that it repeats itself


def test_a_state_that_was_handed_out_stays_as_it_was(tape: Tape) -> None:
    states = iterates(a_game(), configure("nash_mp"))
    some = list(itertools.islice(states, 6))
    before = [state.current.log_probs.clone() for state in some]
    list(itertools.islice(states, 20))
    assert all(torch.equal(state.current.log_probs, table) for state, table in zip(some, before, strict=True))


def test_steps_may_go_on_from_any_state(tape: Tape) -> None:
    game, solver = a_game(), configure("nash_mp")
    steps = ReplayedSteps(game, solver, lambda watched, state: drive._step(game, watched, state, None), tape)
    states = [solver.init(game, game.reference)]
    for _ in range(9):
        states.append(steps(states[-1], 4))
    again = steps(states[5], 4)
    assert_same([again], [states[6]])
    fresh = solver.init(game, game.reference)  # arranged otherwise: its current policy is the reference
    assert_same([steps(fresh, 4)], [states[1]])
    assert_same([steps(states[8], 4)], [states[9]])


def test_resumed_in_the_middle_of_a_step(tape: Tape) -> None:
    game, solver = a_game(), configure("nash_mp")
    middle = drive.advance(game, solver, solver.init(game, game.reference))
    assert middle.phase == 1
    got = solve(game, solver, steps=12, resume=middle)
    assert torch.equal(got.policy.log_probs, played(a_game(), solver, 12)[-1].current.log_probs)


def test_payoffs_that_turn_nan_in_the_middle_are_named_before_a_spoiled_state_is_handed_out(tape: Tape) -> None:
    game = a_game()
    states = iterates(game, configure("nash_mp"))
    list(itertools.islice(states, 10))
    assert tape.replays
    game.oracle.matrix()[1, 2, 3] = torch.nan
    handed: list[State] = []
    with pytest.raises(BadInput, match="payoffs of an update are no finite numbers"):
        collections.deque(map(handed.append, itertools.islice(states, 20)))
    assert all(bool(state.current.log_probs.isfinite().all()) for state in handed)
    assert game.oracle.queries.exact == 2 * (9 + len(handed)) + 1  # the last is the half step's, which failed


@attrs.frozen
class Scheduled(NashMP):
    """A step that shrinks."""

    def _eta(self, game: Game) -> float:
        return 0.1

    def propose(self, game: Game, state: State) -> Update:
        update = super().propose(game, state)
        return attrs.evolve(update, anchors=[(game.reference, game.beta), (state.current, 1.0 + state.step)])


@attrs.frozen
class Evolving(NashMP):
    """Its step is hidden in a copy of the state."""

    def propose(self, game: Game, state: State) -> Update:
        copy = attrs.evolve(state, phase=0)
        weight = 1.0 + copy.step
        return Update(start=state.current, opponent=state.current, anchors=[(state.current, weight)])

    def accept(self, game: Game, state: State, outcome: Outcome) -> State:
        return state.next(current=outcome.policy)


@attrs.frozen
class Counting(NashMP):
    """Keeps a number of its own, which `accept` passes on."""

    def init(self, game: Game, policy: Any) -> State:
        return attrs.evolve(super().init(game, policy), numbers={"weight": 1.0})

    def accept(self, game: Game, state: State, outcome: Outcome) -> State:
        after = super().accept(game, state, outcome)
        return attrs.evolve(after, numbers={"weight": after.numbers["weight"] * 1.5})


@attrs.frozen
class Peeking(NashMP):
    """A step that depends on a number which it reads off the device."""

    def propose(self, game: Game, state: State) -> Update:
        update = super().propose(game, state)
        sharp = float(state.current.log_probs.max())
        return attrs.evolve(update, anchors=[(game.reference, game.beta), (state.current, 1.0 - sharp)])


@attrs.frozen
class Growing(NashMP):
    """Keeps every policy that it has met."""

    def accept(self, game: Game, state: State, outcome: Outcome) -> State:
        after = super().accept(game, state, outcome)
        if state.phase == 0:
            return after
        kept = {name: policy for name, policy in state.policies.items() if name.startswith("met")}
        return attrs.evolve(after, policies={**after.policies, **kept, f"met{len(kept)}": state.current})


@pytest.mark.parametrize(
    "solver", [Scheduled(), Evolving(), Counting(), Peeking(), Growing()], ids=lambda s: type(s).__name__
)
def test_a_step_that_is_another_function_each_time_is_played(solver: Solver, tape: Tape) -> None:
    assert_same(*_both(solver, 12))
    assert not tape.replays


def test_what_cannot_be_recorded_is_played(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(work: Any) -> Any:
        work()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(tape, "record", refuse)
    game = a_game()
    assert_same(run(game, configure("nash_mp"), 12), played(a_game(), configure("nash_mp"), 12))
    assert game.oracle.queries.exact == 24


class Logging(MatrixOracle):
    """An oracle with a life of its own."""

    def payoff(self, opponent: Any, **keywords: Any) -> Any:
        return super().payoff(opponent, **keywords)


def test_nothing_is_recorded_on_the_cpu_nor_of_an_oracle_that_is_more_than_its_matrix() -> None:
    assert drive._recorder(a_game()) is None
    assert drive._recorder(Game(Logging([[0.5, 0.6], [0.4, 0.5]]))) is None


def test_the_policies_of_a_failed_trial_are_named_as_ever(tape: Tape) -> None:
    game = a_game()
    game.oracle.matrix()[0, 1, 2] = torch.nan
    with pytest.raises(BadInput, match="payoffs of an update are no finite numbers"):
        run(game, configure("nash_mp"), 3)
    assert game.oracle.queries.exact == 1
