"""Properties of conduct: what any solver owes its caller, whatever it computes."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import attrs
import torch
from hypothesis import strategies as st
from torch import Tensor

from nlhf_zoo.drive import advance
from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Anchor, Game, Guarantee, Opponent, Policy, QueryCount, Solver, State, Update
from nlhf_zoo.tabular import TabularPolicy
from nlhf_zoo.testing import strategies
from nlhf_zoo.testing.case import Case, Violation
from nlhf_zoo.testing.catalogue import named
from nlhf_zoo.testing.runs import (
    Watch,
    agree,
    begin,
    other_global_seeds,
    spied,
    states,
    tables,
    walk,
    walk_with_rounding,
)

__all__ = [
    "counts_every_query",
    "declares_itself",
    "depends_on_the_seed_alone",
    "is_a_pure_function",
    "leaks_nothing_between_games",
    "leaves_its_inputs_untouched",
    "resumes_in_the_middle",
    "starts_at_the_given_policy",
    "stays_normalised_and_finite",
    "uses_no_hidden_randomness",
]

PLAIN_GAME = Case(matrix=[[0.5, 0.7, 0.4], [0.3, 0.5, 0.6], [0.6, 0.4, 0.5]], reference=[0.0, -1.0, -0.5], beta=0.1)

WHOLE_STEPS = 3


@named()
def declares_itself(solver: Solver) -> None:
    """A solver is a frozen attrs class with a name, a summary and well-formed guarantees, and plays a plain game.

    Guarantees must name their source, and have bounds that can be computed. On the plain game (3 responses,
    beta = 0.1) `init` gives a `State` at step 0 and phase 0 with a slot "current", `propose` gives an `Update`,
    `accept` a `State`, and the first three steps end.
    """
    cls = type(solver)
    if not attrs.has(cls):
        raise Violation(f"{cls.__name__} is no attrs class; decorate it with @attrs.frozen")
    try:
        frozen = copy.copy(solver)
        frozen.probe = None  # type: ignore[attr-defined]  # that this fails is what is tested
    except attrs.exceptions.FrozenInstanceError:
        pass
    else:
        raise Violation(f"{cls.__name__} can be changed; decorate it with @attrs.frozen")
    if not isinstance(getattr(solver, "name", None), str) or not solver.name.isidentifier():
        raise Violation(f"{cls.__name__}.name must be an identifier, got {getattr(solver, 'name', None)!r}")
    if not solver.summary:
        raise Violation(f"{cls.__name__}.summary is empty; nlhf-zoo list shows it")
    if not set(solver.backends) <= {"table", "llm"} or not solver.backends:
        raise Violation(f'{cls.__name__}.backends must be of "table" and "llm", got {solver.backends!r}')
    if not isinstance(solver.no_guarantee, str):
        raise Violation(f"{cls.__name__}.no_guarantee is a sentence, got {solver.no_guarantee!r}")
    declared = solver.guarantees
    if not isinstance(declared, tuple | list):
        mend = "put @property above it" if callable(declared) else "write (guarantee,) for a single one"
        raise Violation(f"{cls.__name__}.guarantees must be a tuple, got a {type(declared).__name__}; {mend}")
    for guarantee in declared:
        if not isinstance(guarantee, Guarantee) or not guarantee.source:
            raise Violation(f"{cls.__name__}.guarantees must be Guarantee objects with a source, got {guarantee!r}")
    game = PLAIN_GAME.game()
    _check_bounds(solver, game)
    if "table" in solver.backends:
        _check_a_step(solver, game)


def _check_bounds(solver: Solver, game: Game) -> None:
    one = torch.ones((), dtype=torch.float64)
    for guarantee in solver.guarantees:
        try:
            if not guarantee.holds(game):
                continue
            found = [] if guarantee.bound is None else [guarantee.bound(1, game, one), guarantee.bound(1, game)]
            found += [] if guarantee.recursion is None else [guarantee.recursion(0, game, one)]
            numbers = [float(bound) for bound in found]
        except Exception as error:
            raise Violation(f"the guarantee by {guarantee.source!r} has no bound at beta = 0.1: {error}") from None
        if any(math.isnan(number) for number in numbers):
            raise Violation(f"the guarantee by {guarantee.source!r} has a bound that is no number at beta = 0.1")


def _check_a_step(solver: Solver, game: Game) -> None:
    try:
        state = solver.init(game, game.reference)
    except BadInput as refusal:
        raise Violation(f"it refuses a plain game with 3 responses and beta = 0.1: {refusal}") from None
    if not isinstance(state, State) or "current" not in state.policies or state.step or state.phase:
        raise Violation(f"init() must give a State at step 0, phase 0 with a slot 'current', got {state!r}")
    update = solver.propose(game, state)
    if not isinstance(update, Update):
        raise Violation(f"propose() must give an Update, got {type(update).__name__}")
    watch = Watch(game)
    while state.step < WHOLE_STEPS:
        watch(state)
        before = state
        try:
            state = advance(game, solver, state, torch.Generator().manual_seed(0))
        except BadInput as refusal:
            raise Violation(str(refusal)) from None
        if (state.step, state.phase) == (before.step, before.phase):
            raise Violation("accept() must call state.next() or state.middle(): neither step nor phase has moved")


def _case(**keywords: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"case": strategies.cases(**keywords)})


@named(lambda: _case(steps=1, elsewhere=True), share=0.5)
def starts_at_the_given_policy(solver: Solver, case: Case) -> None:
    """pi_0 = policy: before the first step, `state.current` is the policy that the caller gave."""
    game = case.game()
    first = case.first()
    state = begin(solver, game, first)
    if not agree(tables(state.current), first.log_probs, 1e-12 * (1 + float(first.log_probs.abs().amax()))):
        raise Violation(f"step 0 is at {_show(state.current)}, and the given policy is {_show(first)}")


def _show(policy: Policy) -> list[float]:
    return [round(x, 6) for x in tables(policy).exp().tolist()]


def _contents(update: Update) -> list[Any]:
    terms = update.opponent.terms if isinstance(update.opponent, Opponent) else []
    anchors = [(anchor.policy, anchor.weight) for anchor in update.anchors if isinstance(anchor, Anchor)]
    pairs = [(update.start, 1.0), *terms, *anchors]
    return [(tables(policy).tolist(), weight) for policy, weight in pairs]


@named(lambda: _case(steps=3, elsewhere=True), share=0.5)
def is_a_pure_function(solver: Solver, case: Case) -> None:
    """`propose` and `accept` are functions: asked twice they answer the same, and neither changes state or solver."""
    game, _ = spied(case.game())
    state = begin(solver, game, case.first())
    fields = attrs.asdict(solver, recurse=False)  # type: ignore[arg-type]  # solvers are attrs classes
    before = copy.deepcopy(fields)
    generator, watch = torch.Generator().manual_seed(case.seed), Watch(game)
    while state.step < case.steps:
        watch(state)
        slots = {name: (policy, tables(policy).tolist()) for name, policy in state.policies.items()}
        update, again = solver.propose(game, state), solver.propose(game, state)
        if _contents(update) != _contents(again):
            raise Violation(f"propose() asked twice in step {state.step + 1} gives two different updates")
        outcome = update.start.improve(update, game, generator)
        after, second = solver.accept(game, state, outcome), solver.accept(game, state, outcome)
        if _tables_of(after) != _tables_of(second) or (after.step, after.phase) != (second.step, second.phase):
            raise Violation(f"accept() asked twice in step {state.step + 1} gives two different states")
        for name, (policy, values) in slots.items():
            if state.policies.get(name) is not policy or tables(policy).tolist() != values:
                raise Violation(f"step {state.step + 1} changed the slot {name!r} of the state it was given")
        if attrs.asdict(solver, recurse=False) != before:  # type: ignore[arg-type]
            raise Violation(f"step {state.step + 1} changed the solver: {before} became {fields}")
        if (after.step, after.phase) == (state.step, state.phase):
            raise Violation("accept() must call state.next() or state.middle(): neither step nor phase has moved")
        state = after


def _tables_of(state: State) -> dict[str, list[float]]:
    return {name: tables(policy).tolist() for name, policy in state.policies.items()}


@named(lambda: _case(steps=(3, 10, 40), deepest=1000, elsewhere=True))
def stays_normalised_and_finite(solver: Solver, case: Case) -> None:
    """sum over y of pi_k(y) = 1 and log pi_k(y) is finite, at every step, where the reference is positive.

    Log-probabilities of -10^4 are met at beta = 1e-4 and are no excuse: stay in the log domain.
    """
    run = states(solver, case.game(), case.first(), torch.Generator().manual_seed(case.seed))
    for step in range(case.steps + 1):
        try:
            log_probs = tables(next(run).current)
        except BadInput as error:  # no table can be made of it
            raise Violation(f"step {step}: {error}") from None
        if log_probs.shape != (case.size,) or log_probs.dtype != torch.float64:
            raise Violation(f"step {step}: a float64 table of {case.size} became {log_probs.dtype} {log_probs.shape}")
        if not bool(torch.isfinite(log_probs).all()):
            raise Violation(f"step {step}: log-probabilities {log_probs.tolist()} are not finite")
        total = float(log_probs.exp().sum())
        if abs(total - 1) > 1e-10:
            raise Violation(f"step {step}: probabilities add up to {total!r}, not to 1")


@named(lambda: _case(steps=3, elsewhere=True), share=0.5)
def leaves_its_inputs_untouched(solver: Solver, case: Case) -> None:
    """Reference, first policy and preference matrix are the caller's: a run leaves every bit of them as it was."""
    game, first = case.game(), case.first()
    reference = game.reference
    assert isinstance(reference, TabularPolicy)
    given = {"reference": reference.log_probs, "first policy": first.log_probs, "matrix": _matrix(game)}
    before = {name: tensor.clone() for name, tensor in given.items()}
    walk(solver, case, game, first)
    for name, tensor in given.items():
        if not torch.equal(tensor, before[name]):
            raise Violation(f"the run changed the caller's {name} from {before[name].tolist()} to {tensor.tolist()}")


def _matrix(game: Game) -> Tensor:
    return game.oracle.matrix()  # type: ignore[attr-defined]  # cases have enumerable oracles


def _sampled(**keywords: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"case": strategies.sampled_cases(**keywords)})


def _same(one: list[Tensor], other: list[Tensor], why: str) -> None:
    for step, (a, b) in enumerate(zip(one, other, strict=True)):
        if not torch.equal(a, b):
            raise Violation(f"step {step}: {why}: {a.exp().tolist()} against {b.exp().tolist()}")


@named(lambda: _sampled(steps=3, elsewhere=True), share=0.5)
def depends_on_the_seed_alone(solver: Solver, case: Case) -> None:
    """pi_k is a function of game, first policy and seed: two runs give the same iterates to the last bit."""
    with other_global_seeds(0):
        one = walk(solver, case)
    with other_global_seeds(0):
        other = walk(solver, case)
    _same(one, other, "two runs with the same seed differ")


@named(lambda: _sampled(steps=3, elsewhere=True), share=0.5)
def uses_no_hidden_randomness(solver: Solver, case: Case) -> None:
    """pi_k does not depend on the global generators of torch, numpy or random, only on the generator it is given."""
    with other_global_seeds(1):
        one = walk(solver, case)
    with other_global_seeds(2):
        other = walk(solver, case)
    _same(one, other, "runs differ with the global random state")


def _two_games() -> st.SearchStrategy[dict[str, Any]]:
    # Two games of the same size are told apart by nothing but their numbers.
    alike = strategies.batches(2, steps=3).map(lambda pair: {"case": pair[0], "other": pair[1]})
    return alike | st.fixed_dictionaries({"case": strategies.cases(steps=3), "other": strategies.cases(steps=3)})


@named(_two_games, share=0.5)
def leaks_nothing_between_games(solver: Solver, case: Case, other: Case) -> None:
    """A run of one game is the same before, after and between the steps of another: all memory is in `State`."""
    alone = [walk(solver, case), walk(solver, other)]
    _same(alone[0], walk(solver, case), "a game played after another one goes differently")
    generators = [torch.Generator().manual_seed(one.seed) for one in (case, other)]
    runs = [
        states(solver, one.game(), one.first(), generator)
        for one, generator in zip((case, other), generators, strict=True)
    ]
    for step in range(max(case.steps, other.steps) + 1):
        for run, expected in zip(runs, alone, strict=True):
            if step < len(expected) and not torch.equal(tables(next(run).current), expected[step]):
                raise Violation(f"step {step}: two games played in turns disturb each other")


@named(lambda: _sampled(steps=3, elsewhere=True), share=0.5)
def counts_every_query(solver: Solver, case: Case) -> None:
    """`state.queries` is what the oracle was asked: no payoff beside the updates, no reading of the matrix.

    A solver that calls the oracle in `propose` or `accept` (a line search, say) asks what nobody counts.
    """
    game, spy = spied(case.game())
    run = states(solver, game, case.first(), torch.Generator().manual_seed(case.seed))
    if spy.asked != QueryCount() or spy.peeked:
        raise Violation(f"init() asked the oracle: {spy.asked}, matrix read {spy.peeked} times")
    for _ in range(case.steps + 1):
        state = next(run)
        if state.queries != spy.asked:
            raise Violation(f"after step {state.step} it reports {state.queries}; the oracle saw {spy.asked}")
        if spy.peeked:
            raise Violation(f"by step {state.step} it has read the preference matrix {spy.peeked} times, uncounted")


def _interrupted() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"case": strategies.cases(steps=4, elsewhere=True), "after": st.integers(0, 6)})


@named(_interrupted, share=0.5)
def resumes_in_the_middle(solver: Solver, case: Case, after: int) -> None:
    """A run saved after any number of updates, in the middle of a step too, and gone on with, ends the same.

    What is saved is `State`: policies, step, phase, and `numbers` through JSON; the solver is made anew.
    """
    run, limits = walk_with_rounding(solver, case)
    game, _ = spied(case.game())
    generator = torch.Generator().manual_seed(case.seed)
    state = begin(solver, game, case.first())
    for _ in range(after):
        if state.step < case.steps:
            state = advance(game, solver, state, generator)
    state, fresh, watch = _saved_and_loaded(state), copy.deepcopy(solver), Watch(game)
    while state.step < case.steps:
        watch(state)
        state = advance(game, fresh, state, generator)
    if not agree(tables(state.current), run[-1], limits[-1]):
        raise Violation(
            f"interrupted after {after} updates the run ends at {_show(state.current)}, and else at"
            f" {run[-1].exp().tolist()}: something is remembered outside the State"
        )


def _saved_and_loaded(state: State) -> State:
    copies: dict[int, Policy] = {}
    for policy in state.policies.values():
        copies[id(policy)] = TabularPolicy(tables(policy).clone())
    try:
        numbers = json.loads(json.dumps(dict(state.numbers)))
    except TypeError as error:
        raise Violation(f"state.numbers must be JSON values: {error}") from None
    return attrs.evolve(
        state, policies={name: copies[id(policy)] for name, policy in state.policies.items()}, numbers=numbers
    )
