"""Recorded steps against played ones, on the CPU: a tape of torch's operations stands for a CUDA graph."""

from __future__ import annotations

import collections
import gc
import itertools
import weakref
from typing import Any

import attrs
import pytest
import torch

from nlhf_zoo import BadInput, Game, MatrixOracle, Outcome, Solver, State, TabularPolicy, Update, drive, solve, solvers
from nlhf_zoo.drive import configure, iterates
from nlhf_zoo.interfaces import Divergence
from nlhf_zoo.oracles import products
from nlhf_zoo.tabular import graphs
from nlhf_zoo.tabular import policy as tables
from nlhf_zoo.tabular.graphs import ReplayedSteps
from nlhf_zoo.tabular.kernels import carried
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
        assert 1 <= tape.recorded <= 2
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
    assert tape.replays == 40 - 1  # one step from the reference


@pytest.mark.parametrize("name", sorted(REPLAYED))
def test_steps_in_one_go_end_where_single_ones_do(name: str, tape: Tape) -> None:
    game, solver = a_game(), configure(name)
    steps = ReplayedSteps(game, solver, lambda watched, state: drive._step(game, watched, state, None), tape)
    states = [solver.init(game, game.reference)]
    for most in (1, 1, 1, 1, 1, 4, 3, 300):
        states.append(steps.leap(states[-1], most))
        if states[-1].step % 5 == 0:  # single steps between, which compute ahead
            states.append(steps(states[-1], 4))
    plain = a_game()
    want = played(plain, solver, states[-1].step)
    assert_same(states, [want[state.step] for state in states])
    assert game.oracle.queries == plain.oracle.queries
    assert states[-1].step > 256
    assert_same([steps.leap(states[-3], 2)], [want[states[-3].step + 2]])


def test_a_run_begins_with_the_recordings_of_the_last_one(tape: Tape) -> None:
    game, solver = a_game(), configure("nash_mp")
    want = played(a_game(), solver, 12)
    for recorded in (1, 2, 2):  # the step that repeats itself; the first step; nothing
        replays = tape.replays
        assert_same(run(game, solver, 12), want)
        assert tape.recorded == recorded
    assert tape.replays >= replays + 12
    other = configure("nash_mp", eta=0.05)
    assert_same(run(game, other, 12), played(a_game(), other, 12))
    assert tape.recorded == 3


def test_runs_side_by_side_have_recordings_of_their_own(tape: Tape) -> None:
    game, solver = a_game(), configure("nash_mp")
    want = played(a_game(), solver, 12)
    run(game, solver, 12)
    side = list(
        zip(*itertools.islice(zip(iterates(game, solver), iterates(game, solver), strict=True), 13), strict=True)
    )
    for states in side:
        assert_same(list(states), want)


def test_recordings_are_forgotten_with_their_game(tape: Tape) -> None:
    game = a_game()
    run(game, configure("nash_mp"), 5)
    assert game in graphs._spares._spares
    gone = weakref.ref(game)
    del game
    gc.collect()
    assert gone() is None


def test_payoffs_that_are_nan_in_a_later_run_are_named_at_once(tape: Tape) -> None:
    game = a_game()
    first = solve(game, "nash_mp", steps=10, every=10**9)
    replays = tape.replays
    game.oracle.matrix()[1, 2, 3] = torch.nan
    before = game.oracle.queries.exact
    with pytest.raises(BadInput, match="payoffs of an update are no finite numbers"):
        solve(game, "nash_mp", steps=30, every=10**9, resume=first.state, target=first.policy)
    assert tape.replays == replays + 20
    assert game.oracle.queries.exact == before + 1


def test_what_has_once_been_no_number_is_remembered() -> None:
    seen = torch.zeros(3, dtype=torch.float64)
    source = torch.zeros(2, 3, 4, dtype=torch.float64)
    source[0, 1] = torch.nan
    source[0, 2, 0] = -torch.inf  # a response that is left out
    for table in (source, source[0], torch.zeros_like(source)):
        target = torch.empty_like(table)
        carried(target, table, seen)
        assert torch.equal(target.nan_to_num(), table.nan_to_num())
        assert seen.isnan().tolist() == [False, True, False]


def test_the_probabilities_that_a_kernel_gives_along_are_carried_too(
    tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They need not equal torch's to the last bit, so that a recording must not compute them anew."""

    def improved(divergence: Divergence, payoff: torch.Tensor, anchors: Any) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs = divergence.improve(payoff, anchors)
        both = torch.stack([log_probs, log_probs.exp() * (1 + 1e-9)])
        return both[0], both

    plainly = played(a_game(), configure("nash_mp"), 12)
    monkeypatch.setattr(tables, "_improved", improved)
    for name in sorted(REPLAYED):
        game = a_game()
        for _ in range(3):
            assert_same(run(game, configure(name), 12), played(a_game(), configure(name), 12))
    got = run(a_game(), configure("nash_mp"), 12)[-1].current.log_probs
    assert not torch.equal(got, plainly[-1].current.log_probs)
    assert torch.allclose(got, plainly[-1].current.log_probs)


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
