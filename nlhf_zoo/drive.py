"""The one loop: propose, improve, accept; count, measure, stop. And the head measure, the duality gap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import EnumerableOracle, Game, Policy, QueryCount, ReverseKL, Solver, State, Update
from nlhf_zoo.metrics import duality_gap as gap_of
from nlhf_zoo.metrics import kl_divergence, span
from nlhf_zoo.oracles.matrix import MatrixOracle
from nlhf_zoo.oracles.operators import LARGEST_MATRIX, OperatorOracle
from nlhf_zoo.oracles.products import matrix_vector
from nlhf_zoo.oracles.sampled import SampledOracle
from nlhf_zoo.registry import lookup
from nlhf_zoo.tabular import EXACT, NotConverged, TabularPolicy, equilibrium
from nlhf_zoo.tabular.graphs import CudaRecorder, Recorder, ReplayedSteps
from nlhf_zoo.tabular.lent import Lent

__all__ = ["Result", "advance", "configure", "duality_gap", "equilibrium_of", "iterates", "solve"]

_MOST_UPDATES = 10_000
"""Of one step, in which registered solvers take a few."""
_MOST_SILENT = 10_000
"""Steps without a query, of a run that only its queries end."""
_AHEAD = 6
"""Steps that a CUDA device may be ahead of who asks for iterates: what is lost when they stop asking."""
_FAR_AHEAD = 32
"""The same between two measurements, where nothing is lost and each step is to be shown."""


@attrs.frozen(eq=False)
class Result:
    """What a run came to.

    Attributes:
        policy: the final policy, the last iterate.
        history: one row a measurement, in order, beginning at step 0: step, queries, queries_exact,
            queries_sampled, seconds (solver's time, measurements left out), duality_gap, kl_to_equilibrium,
            span_to_equilibrium. Measures are floats for one game and (...) tensors for a batch; on a
            policy whose responses cannot be listed there are none.
        state: the solver's whole state; `solve(..., resume=state)` goes on from it.
        converged: whether `tol` was given and reached.
    """

    policy: Policy
    history: list[dict[str, Any]] = attrs.field(repr=lambda rows: f"[{len(rows):,} rows, the last {rows[-1]}]")
    state: State = attrs.field(repr=False)
    game: Game
    solver: Solver
    seed: int
    converged: bool

    @property
    def queries(self) -> QueryCount:
        return self.state.queries

    @property
    def seconds(self) -> float:
        return self.history[-1]["seconds"]


def configure(solver: Solver | str, /, **hyperparameters: Any) -> Solver:
    """A solver by registered name and hyperparameters; a solver object passes through.

    Raises:
        BadInput: no solver of this name, no such hyperparameter, or a value out of range.
    """
    if isinstance(solver, Solver):
        return attrs.evolve(solver, **hyperparameters) if hyperparameters else solver  # type: ignore[type-var]
    cls = lookup("solvers", solver)
    try:
        known = [field.name for field in attrs.fields(cls)]
    except attrs.exceptions.NotAnAttrsClassError:
        raise BadInput(
            f"{solver}: its class {cls.__name__} is no attrs class; decorate it with @attrs.frozen"
        ) from None
    for name in hyperparameters:
        if name not in known:
            raise BadInput(f"{solver} has no hyperparameter {name!r}; it has {', '.join(known) or 'none'}")
    missing = [one.name for one in attrs.fields(cls) if one.init and one.default is attrs.NOTHING]
    missing = [name for name in missing if name not in hyperparameters]
    if missing:
        value = f"--set {missing[0]}=VALUE"
        raise BadInput(f"{solver}: {' and '.join(missing)} has no default; give {value}, or {cls.__name__} a default")
    try:
        return cls(**hyperparameters)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{solver}: {error.args[0] if error.args else error}") from None


def duality_gap(game: Game, policy: Policy) -> Tensor:
    """(...) how much the best opponent of `policy` gains over it, twice: 0 only at an equilibrium. Not counted.

    Raises:
        BadInput: not a table.
    """
    table, reference = _tables(game, policy)
    with game.oracle.uncounted():
        payoff = _truth(game.oracle, table)
    return gap_of(payoff, table.log_probs, reference.log_probs, game.beta, game.divergence)


def _tables(game: Game, policy: Policy) -> tuple[TabularPolicy, TabularPolicy]:
    if not (isinstance(policy, TabularPolicy) and isinstance(game.reference, TabularPolicy)):
        raise BadInput("a duality gap needs a tabular policy and reference; responses of this one cannot be listed")
    return policy, game.reference


def _truth(oracle: Any, table: TabularPolicy) -> Tensor:
    # A sampling oracle is judged by what is behind it. An operator is not asked to write its matrix out, even
    # where it can: its payoff is exact, and faster.
    truth = _behind(oracle)
    if isinstance(truth, OperatorOracle):
        return truth.payoff(table.probs)
    try:
        matrix = oracle.matrix().to(table.log_probs.dtype)
        if matrix.is_cuda:
            return matrix_vector(matrix, table.probs)
        return (matrix @ table.probs.unsqueeze(-1)).squeeze(-1)
    except BadInput:
        return oracle.payoff(table.probs)


def advance(game: Game, solver: Solver, state: State, generator: torch.Generator | None = None) -> State:
    """One update: propose, improve, accept, and add what it cost. A step may take several.

    Raises:
        BadInput: the solver's methods return something else than they should.
    """
    with _Named(solver):
        update = solver.propose(game, state)
    if not isinstance(update, Update):
        raise BadInput(f"{solver.name}: propose() returned {_kind(update)}; it must return an Update")
    outcome = update.start.improve(update, game, generator)
    with _Named(solver):
        accepted = solver.accept(game, state, outcome)
    if not isinstance(accepted, State):
        raise BadInput(
            f"{solver.name}: accept() returned {_kind(accepted)}; it must return state.next(...) or state.middle(...)"
        )
    return attrs.evolve(accepted, queries=state.queries + outcome.queries)


class _Named:
    """Input that is refused inside is refused under the solver's name."""

    def __init__(self, solver: Solver) -> None:
        self.name = solver.name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BadInput) and not str(error).startswith(self.name):
            raise BadInput(f"{self.name}: {error}") from None


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def iterates(
    game: Game, solver: Solver, policy: Policy | None = None, generator: torch.Generator | None = None
) -> Iterator[State]:
    """States at the end of each step, without end, beginning with step 0; nothing is measured."""
    state = _begun(solver, game, policy or game.reference)
    step = _stepping(game, solver, generator)
    while True:
        yield state
        state = step(state, _AHEAD)


def _begun(solver: Solver, game: Game, policy: Policy) -> State:
    state = solver.init(game, policy)
    if not isinstance(state, State):
        raise BadInput(f"{solver.name}: init() returned {_kind(state)}; it must return a State, as super().init() does")
    return state


def _lent(game: Game, first: Policy) -> Lent:
    truth = _behind(game.oracle)
    tensors = {"preference matrix": truth.matrix()} if isinstance(truth, MatrixOracle) else {}
    policies = {"reference": game.reference, "first policy": first}
    tables = {name: policy.log_probs for name, policy in policies.items() if type(policy) is TabularPolicy}
    return Lent({**tensors, **tables})


def _stepping(game: Game, solver: Solver, generator: torch.Generator | None) -> Callable[[State, int], State]:
    """The step of one run; its second argument is how many steps may be computed ahead, where they can be."""
    recorder = _recorder(game)
    if recorder is None:
        return lambda state, _: _step(game, solver, state, generator)
    return ReplayedSteps(game, solver, lambda watched, state: _step(game, watched, state, generator), recorder)


def _recorder(game: Game) -> Recorder | None:
    """What records steps of this game; `None` where there is nothing to gain, or an oracle has a life of its own."""
    # A subclass may count, draw or log in its methods, which a replay does not enter.
    if type(game.oracle) is not MatrixOracle:
        return None
    matrix = game.oracle.matrix()
    if not matrix.is_cuda or matrix.requires_grad or matrix.device.index != torch.cuda.current_device():
        return None
    return CudaRecorder(matrix.device)


def _step(game: Game, solver: Solver, state: State, generator: torch.Generator | None) -> State:
    begun = state.step
    for _ in range(_MOST_UPDATES):
        phase, state = state.phase, advance(game, solver, state, generator)
        if state.step != begun:
            return state
        if state.phase == phase:
            raise BadInput(
                f"{solver.name}: accept() gave back step {state.step}, phase {phase} as it was; it must return"
                " state.next(...) or state.middle(...)"
            )
    raise BadInput(
        f"{solver.name}: step {begun} has not ended after {_MOST_UPDATES:,} updates; accept() must return"
        " state.next(...) in the end"
    )


def solve(
    game: Game,
    solver: Solver | str,
    *,
    steps: int | None = None,
    queries: int | None = None,
    tol: float | None = None,
    seed: int = 0,
    policy: Policy | None = None,
    resume: State | None = None,
    every: int | Callable[[State], bool] = 1,
    strict: bool = False,
    target: TabularPolicy | None = None,
    progress: Callable[[State], None] | None = None,
) -> Result:
    """Run a solver until a budget is spent or the duality gap is at most `tol`.

    Args:
        solver: an object, or a registered name with its default hyperparameters.
        steps: at most so many steps, >= 0.
        queries: no step is begun once the count per game has reached this. One of `steps` and `queries`
            is needed.
        tol: stop when the duality gap of every game is at most this (tables only).
        seed: of the generator that sampling oracles draw from.
        policy: where to start; the reference, unless given.
        resume: a state to go on from, instead of `policy`.
        every: measure every so many steps, or where a function of the state says so (the first and the last
            always).
        strict: a step that ends beyond `queries` is taken back, so that no answer has cost more.
        target: the equilibrium, where it is known already; computed otherwise.
        progress: called with the state after each step.

    Raises:
        BadInput: no budget, an unknown solver, a game that the solver cannot play, a solver that never ends its
            step, writes to the game's tensors, or asks nothing where only `queries` would end the run.
    """
    if steps is None and queries is None:
        raise BadInput("solve() needs a budget: give steps= or queries=")
    if steps is not None and steps < 0:
        raise BadInput(f"steps must be >= 0, got {steps}")
    if not callable(every) and every < 1:
        raise BadInput(f"every must be >= 1, got {every}")
    solver = configure(solver)
    first = policy or game.reference
    if "table" not in solver.backends and type(first) is TabularPolicy:
        raise BadInput(f"{solver.name} plays no exact tables ({solver.only}); a softmax table or a language model does")
    lent = _lent(game, first)
    state = resume or _begun(solver, game, first)
    generator = _generator(state.current, seed)
    measure = _Measure(game, state.current, target)
    if tol is not None and not measure.gap_known:
        raise BadInput("tol= needs a duality gap, and so listed responses; give steps= alone")

    seconds, converged, silent = 0.0, False, 0
    history = [measure.row(state, seconds)]
    step = _stepping(game, solver, generator)
    while True:
        measured = history[-1]["step"] == state.step
        converged = tol is not None and measured and bool((torch.as_tensor(history[-1]["duality_gap"]) <= tol).all())
        spent = (steps is not None and state.step >= steps) or (queries is not None and state.queries.total >= queries)
        if converged or spent:
            break
        begun = time.perf_counter()
        if not (isinstance(step, ReplayedSteps) and step.recording):
            # Each step has a seed of its own, so that a resumed run draws what it would have drawn.
            generator.manual_seed(int(np.random.SeedSequence((seed, state.step)).generate_state(1, np.uint64)[0] >> 1))
        room = _room(state, steps, every)
        if isinstance(step, ReplayedSteps) and progress is None and queries is None:
            after = step.leap(state, room)
        else:
            after = step(state, min(room, _FAR_AHEAD))
        lent.check(solver.name, after.step)
        if strict and queries is not None and after.queries.total > queries:
            break
        silent = silent + 1 if after.queries == state.queries else 0
        state, seconds = after, seconds + time.perf_counter() - begun
        if steps is None and not state.queries.total:
            raise BadInput(f"{solver.name} asks its oracle nothing, so that queries= never ends the run; give steps=")
        if steps is None and silent >= _MOST_SILENT:
            raise BadInput(
                f"{solver.name} asked its oracle nothing for {silent:,} steps, so that queries= does not end the run;"
                " give steps="
            )
        if every(state) if callable(every) else state.step % every == 0:
            history.append(measure.row(state, seconds))
        if progress is not None:
            progress(state)
    if history[-1]["step"] != state.step:
        history.append(measure.row(state, seconds))
    return Result(state.current, history, state, game, solver, seed, converged)


def _room(state: State, steps: int | None, every: int | Callable[[State], bool]) -> int:
    """How many steps are sure to come before the next measurement, this one included."""
    if steps is None or callable(every):
        return 1
    return min(steps - state.step, every - state.step % every)


def equilibrium_of(game: Game) -> TabularPolicy | None:
    """The equilibrium that `solve` measures distances to; `None` where there is none to find.

    Raises:
        NotConverged: there is, under the reverse KL, and it was not found.
    """
    if not isinstance(game.oracle, EnumerableOracle) or game.beta == 0 or _is_large(game.oracle):
        return None
    try:
        return equilibrium(game, EXACT)
    except BadInput:  # an operator without a matrix, or a divergence that allows several equilibria
        return None
    except NotConverged:
        # Under the reverse KL that is an error; under others the search has no second method yet.
        if isinstance(game.divergence, ReverseKL):
            raise
        return None


def _generator(policy: Policy, seed: int) -> torch.Generator:
    device = policy.log_probs.device if isinstance(policy, TabularPolicy) else "cpu"
    return torch.Generator(device).manual_seed(seed)


class _Measure:
    """The measurements of one run; the equilibrium is found once."""

    def __init__(self, game: Game, policy: Policy, target: TabularPolicy | None) -> None:
        self.game = game
        self.possible = isinstance(policy, TabularPolicy) and isinstance(game.oracle, EnumerableOracle)
        self.gap_known = self.possible
        self.target = equilibrium_of(game) if self.possible and target is None else target

    def row(self, state: State, seconds: float) -> dict[str, Any]:
        row: dict[str, Any] = {
            "step": state.step,
            "queries": state.queries.total,
            "queries_exact": state.queries.exact,
            "queries_sampled": state.queries.sampled,
            "seconds": seconds,
        }
        if not self.possible:
            return row
        assert isinstance(state.current, TabularPolicy)
        if self.gap_known:
            row["duality_gap"] = _plain(duality_gap(self.game, state.current))
        if self.target is not None:
            goal = self.target.log_probs
            row["kl_to_equilibrium"] = _plain(kl_divergence(goal, state.current.log_probs))
            row["span_to_equilibrium"] = _plain(span(state.current.log_probs, goal))
        return row


def _behind(oracle: Any) -> Any:
    return oracle.base if isinstance(oracle, SampledOracle) else oracle


def _is_large(oracle: Any) -> bool:
    """Whether it is an operator with too many responses for an equilibrium to be found on the side."""
    truth = _behind(oracle)
    return isinstance(truth, OperatorOracle) and truth.num_responses > LARGEST_MATRIX


def _plain(value: Tensor) -> float | Tensor:
    return float(value) if value.ndim == 0 else value
