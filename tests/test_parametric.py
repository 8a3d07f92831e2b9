"""Parametric policies over listed responses: gradients, optimisers, averages, and every solver of language models."""

from __future__ import annotations

import itertools
import json
from typing import Any

import attrs
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from nlhf_zoo import (
    ITSELF,
    BadInput,
    Game,
    LogLinearPolicy,
    MatrixOracle,
    MLPPolicy,
    SampledOracle,
    SoftmaxPolicy,
    TabularPolicy,
    Update,
    duality_gap,
    equilibrium,
    solve,
    solvers,
)
from nlhf_zoo.cli import main
from nlhf_zoo.cli.policies import parametrised
from nlhf_zoo.drive import advance, configure
from nlhf_zoo.interfaces import Itself
from nlhf_zoo.metrics import improvement_value, kl_divergence, span
from nlhf_zoo.tabular import ParametricPolicy
from nlhf_zoo.tabular.policy import update_value
from nlhf_zoo.testing.runs import spied

BETA = 0.3
FORMS = ("log_linear", "mlp")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(seed: int, size: int, *batch: int) -> Tensor:
    upper = torch.sigmoid(2 * normal(seed, *batch, size, size)).triu(1)
    return upper + (1 - upper).mT.tril(-1) + 0.5 * torch.eye(size, dtype=torch.float64)


def game(seed: int = 0, size: int = 5, *batch: int, beta: float = BETA) -> Game:
    return Game(MatrixOracle(matrix(seed, size, *batch)), TabularPolicy(normal(seed + 1, *batch, size)), beta)


def policy(form: str, seed: int = 0, size: int = 5, width: int = 3, *, base=None, **options) -> ParametricPolicy:
    """Somewhere in its class: features, parameters and nothing else are random."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(size, width, generator=generator, dtype=torch.float64)
    if form == "log_linear":
        start = LogLinearPolicy.initial(features, base, **options)
    else:
        start = MLPPolicy.initial(features, base, generator=generator, hidden=4, **options)
    return attrs.evolve(start, theta=torch.randn(start.theta.shape, generator=generator, dtype=torch.float64))


def mirror(start: TabularPolicy, played: Game, **options) -> Update:
    return Update(start=start, opponent=start, anchors=[(played.reference, BETA), (start, 0.5)], **options)


# --- gradients


@given(seed=st.integers(0, 1000), form=st.sampled_from(FORMS))
@settings(deadline=None, max_examples=20)
def test_gradient_is_the_slope_of_the_objective(seed: int, form: str) -> None:
    played, start = game(seed), policy(form, seed)
    update = mirror(start, played)
    payoff = start.payoff(update, played, None)
    got = start.gradient(update, played, payoff)

    def value(theta: Tensor) -> float:
        anchors = [(played.reference.log_probs, BETA), (start.log_probs, 0.5)]
        return float(improvement_value(start.log_probs_at(theta), payoff, [(*a, played.divergence) for a in anchors]))

    for index in range(len(start.theta)):
        step = torch.zeros_like(start.theta)
        step[index] = 1e-5
        slope = (value(start.theta + step) - value(start.theta - step)) / 2e-5
        assert abs(float(got[index]) - slope) <= 1e-8


@pytest.mark.parametrize("form", FORMS)
def test_tangent_is_the_derivative_of_the_scores(form: str) -> None:
    start = policy(form, 3)
    by_hand = start._tangent(start.theta)
    automatic = torch.autograd.functional.jacobian(start._scores, start.theta)
    assert torch.allclose(by_hand, automatic, atol=1e-13)


@given(seed=st.integers(0, 1000), rate=st.sampled_from([0.1, 1.0, 3.0]), against=st.sampled_from(["fixed", "itself"]))
@settings(deadline=None, max_examples=20)
def test_identity_features_are_the_softmax_table(seed: int, rate: float, against: str) -> None:
    played = game(seed)
    soft = SoftmaxPolicy(normal(seed + 2, 5), learning_rate=rate, steps=7)
    linear = LogLinearPolicy.initial(torch.eye(5), soft.log_probs, learning_rate=rate, steps=7)
    answers = []
    for start in (soft, linear):
        update = mirror(start, played)
        if against == "itself":
            update = attrs.evolve(update, opponent=ITSELF)
        answers.append(start.improve(update, played))
    assert float(span(answers[0].policy.log_probs, answers[1].policy.log_probs)) <= 1e-12
    assert answers[0].queries == answers[1].queries


def test_a_fit_is_followed_as_a_softmax_table_follows_it() -> None:
    from nlhf_zoo import PairRegression

    played = game(2)
    soft = SoftmaxPolicy(normal(4, 5), learning_rate=0.5, steps=5)
    linear = LogLinearPolicy.initial(torch.eye(5), soft.log_probs, learning_rate=0.5, steps=5)
    answers = [s.improve(mirror(s, played, fit=PairRegression()), played).policy.log_probs for s in (soft, linear)]
    plain = linear.improve(mirror(linear, played), played).policy.log_probs
    assert float(span(*answers)) <= 1e-12
    assert float(span(plain, answers[1])) > 1e-6


# --- optimisers


@given(seed=st.integers(0, 1000), steep=st.sampled_from([1.0, 8.0]), features=st.sampled_from(["identity", "full"]))
@settings(deadline=None, max_examples=25)
def test_one_natural_step_is_the_exact_improvement(seed: int, steep: float, features: str) -> None:
    """Full rank, reverse KL: (F^+ g) moves log pi by v - sum_j w_j log pi/rho_j, and 1 / sum_j w_j of it arrives."""
    played = game(seed)
    of_responses = torch.eye(5, dtype=torch.float64) if features == "identity" else normal(seed + 2, 5, 4)
    start = LogLinearPolicy.initial(
        of_responses, steep * normal(seed + 3, 5), optimizer="natural", learning_rate=1 / (BETA + 0.5)
    )
    update = mirror(start, played)
    exact = played.reference.improve(update, played).policy
    assert float(span(start.improve(update, played).policy.log_probs, exact.log_probs)) <= 1e-8
    halfway = start.improve(update, attrs.evolve(played)).policy
    stopped = attrs.evolve(start, learning_rate=0.5 / (BETA + 0.5)).improve(update, played).policy
    middle = start.log_probs + 0.5 * (halfway.log_probs - start.log_probs)
    assert float(span(stopped.log_probs, middle)) <= 1e-8


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_natural_gradient_divides_by_the_fisher_information(form: str, damping: float) -> None:
    played = game(1)
    start = policy(form, 5, optimizer="natural", damping=damping, learning_rate=0.25)
    update = mirror(start, played)
    gradient = start.gradient(update, played, start.payoff(update, played, None))
    tangent = start._tangent(start.theta)
    p = start.probs
    fisher = tangent.mT @ (torch.diag(p) - p[:, None] * p) @ tangent
    if damping:
        direction = torch.linalg.solve(fisher + damping * torch.eye(len(fisher)), gradient)
    else:
        direction = torch.linalg.pinv(fisher, hermitian=True, rtol=1e-12) @ gradient
    moved = start.improve(update, played).policy.theta - start.theta
    assert torch.allclose(moved, 0.25 * direction, atol=1e-9 * float(direction.abs().max()))


def test_adam_remembers_from_update_to_update() -> None:
    played = game(3)
    start = policy("log_linear", 2, optimizer="adam", learning_rate=0.05)
    target = policy("log_linear", 9)
    update = Update(start=start, opponent=target, anchors=[(played.reference, BETA)])
    whole = start.improve(attrs.evolve(update, steps=6), played).policy
    current = start
    for _ in range(6):
        current = current.improve(attrs.evolve(update, start=current, steps=1), played).policy
    assert torch.equal(whole.theta, current.theta)

    theta = start.theta.clone()
    adam = torch.optim.Adam([theta], lr=0.05)
    payoff = start.payoff(update, played, None)
    for _ in range(6):
        theta.grad = -attrs.evolve(start, theta=theta).gradient(update, played, payoff)
        adam.step()
    assert torch.allclose(theta, whole.theta, atol=1e-14)
    assert start.moments is None


@pytest.mark.parametrize("opponent", ["fixed", "itself"])
@pytest.mark.parametrize("form", ["log_linear", "mlp"])
def test_full_capacity_reaches_the_closed_form(form: str, opponent: str) -> None:
    for seed in range(3):
        played = game(seed)
        options = {"optimizer": "lbfgs", "steps": 40, "tolerance": 1e-10}
        if form == "log_linear":
            start = LogLinearPolicy.initial(normal(seed + 5, 5, 4), normal(seed + 6, 5), **options)
        else:
            generator = torch.Generator().manual_seed(seed)
            start = MLPPolicy.initial(normal(seed + 5, 5, 4), normal(seed + 6, 5), generator=generator, **options)
        update = mirror(start, played)
        if opponent == "itself":
            update = attrs.evolve(update, opponent=ITSELF)
        exact = played.reference.improve(update, played).policy
        found = start.improve(update, played).policy
        assert float(kl_divergence(exact.log_probs, found.log_probs)) <= 1e-7
        assert float(kl_divergence(exact.log_probs, start.log_probs)) > 1e-3


def test_no_optimiser_changes_the_policy_it_starts_from() -> None:
    played = game(4)
    for form, optimizer in itertools.product(FORMS, ("sgd", "adam", "natural", "lbfgs")):
        start = policy(form, 1, optimizer=optimizer, learning_rate=0.1, steps=3)
        theta, table = start.theta.clone(), start.log_probs.clone()
        answer = start.improve(mirror(start, played), played).policy
        assert torch.equal(start.theta, theta)
        assert torch.equal(start.log_probs, table)
        assert float(span(answer.log_probs, table)) > 1e-4


# --- queries


def test_queries_are_counted_as_a_softmax_table_counts_them() -> None:
    played = game(0)
    for form, steps in itertools.product(FORMS, (1, 6)):
        start = policy(form, learning_rate=0.1, steps=steps)
        fixed = mirror(start, played)
        nobody = attrs.evolve(fixed, opponent=None)
        itself = attrs.evolve(fixed, opponent=ITSELF)
        asked = [start.improve(update, played).queries.exact for update in (fixed, nobody, itself)]
        assert asked == [1, 0, steps]
        assert start.improve(attrs.evolve(itself, steps=4), played).queries.exact == 4
        sampled = attrs.evolve(played, oracle=SampledOracle(played.oracle, comparisons=3))
        outcome = start.improve(fixed, sampled, torch.Generator().manual_seed(0))
        assert (outcome.queries.exact, outcome.queries.sampled) == (0, 5 * 3)


def test_a_tolerance_ends_an_update_early_and_its_last_question_is_counted() -> None:
    played = game(0)
    start = LogLinearPolicy.initial(
        normal(1, 5, 4), optimizer="natural", learning_rate=1 / (BETA + 0.5), steps=50, tolerance=1e-9
    )
    update = attrs.evolve(mirror(start, played), opponent=ITSELF)
    outcome = start.improve(update, played)
    taken = outcome.measured["inner_iterations"]
    assert outcome.measured["gradient"] <= 1e-9
    assert 1 < taken < 50
    assert outcome.queries.exact == taken + 1


# --- averages and mixtures


@given(seed=st.integers(0, 1000), form=st.sampled_from(FORMS), weight=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(deadline=None, max_examples=20)
def test_average_is_of_parameters_and_mixture_of_distributions(seed: int, form: str, weight: float) -> None:
    one = policy(form, seed, base=normal(seed + 1, 5))
    other = attrs.evolve(one, theta=normal(seed + 2, len(one.theta)))
    average, mixture = one.average(other, weight), one.mixture(other, weight)
    assert torch.allclose(average.theta, (1 - weight) * one.theta + weight * other.theta, atol=1e-14)
    geometric = ((1 - weight) * one.log_probs + weight * other.log_probs).log_softmax(-1)
    assert float(span(mixture.log_probs, geometric)) <= 1e-12
    if form == "log_linear":
        assert isinstance(mixture, LogLinearPolicy)
        assert float(span(average.log_probs, geometric)) <= 1e-12


def test_an_mlp_s_average_is_no_mixture_and_its_mixture_cannot_be_trained() -> None:
    played, one = game(), policy("mlp", 1)
    other = attrs.evolve(one, theta=normal(7, len(one.theta)))
    mixture = one.mixture(other, 0.5)
    assert float(span(one.average(other, 0.5).log_probs, mixture.log_probs)) > 1e-2
    duality_gap(played, mixture)
    held = Update(start=one, opponent=mixture, anchors=[(mixture, 1.0)])
    assert one.improve(held, played).queries.exact == 1
    again = mixture.mixture(one, 0.25)
    assert float(span(again.log_probs, 0.75 * mixture.log_probs + 0.25 * one.log_probs)) <= 1e-12
    with pytest.raises(BadInput, match="cannot be trained"):
        mixture.improve(mirror(mixture, played), played)
    with pytest.raises(BadInput, match="no parameters of its own"):
        again.average(one, 0.5)


def test_average_forgets_no_base() -> None:
    one = policy("log_linear", 1, base=normal(2, 5))
    other = attrs.evolve(one, base=None, theta=normal(3, 3))
    geometric = (0.75 * one.log_probs + 0.25 * other.log_probs).log_softmax(-1)
    assert float(span(one.average(other, 0.25).log_probs, geometric)) <= 1e-12


# --- batches


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "natural"])
@pytest.mark.parametrize("form", FORMS)
def test_games_with_parameters_of_their_own_do_not_meet(form: str, optimizer: str) -> None:
    played = game(0, 5, 2, 3)
    one = policy(form, 2, learning_rate=0.3, optimizer=optimizer, steps=4)
    bases = normal(5, 3, 5)
    together = attrs.evolve(one, theta=normal(4, 2, 3, len(one.theta)), base=bases)
    assert together.log_probs.shape == (2, 3, 5)
    answer = together.improve(mirror(together, played), played).policy
    for i, j in itertools.product(range(2), range(3)):
        alone = attrs.evolve(one, theta=together.theta[i, j], base=bases[j])
        single = Game(MatrixOracle(played.oracle.matrix()[i, j]), TabularPolicy(played.reference.log_probs[i, j]), BETA)
        apart = alone.improve(mirror(alone, single), single).policy
        assert torch.allclose(answer.theta[i, j], apart.theta, atol=1e-10)


@pytest.mark.parametrize("shared", [(), (1, 3), (2, 1)], ids=str)
def test_shared_parameters_climb_the_mean_of_their_games(shared: tuple[int, ...]) -> None:
    played = game(0, 5, 2, 3)
    start = attrs.evolve(policy("log_linear", 2), theta=normal(4, *shared, 3), learning_rate=0.5)
    update = mirror(start, played)
    payoff = start.payoff(attrs.evolve(update, opponent=TabularPolicy(start.log_probs.expand(2, 3, 5))), played, None)
    theta = start.theta.clone().requires_grad_()
    objective = update_value(start.log_probs_at(theta).expand(2, 3, 5), payoff, update, played)
    owners = {(): (0, 1), (1, 3): (0,), (2, 1): (1,)}[shared]
    (gradient,) = torch.autograd.grad(objective.mean(owners).sum(), theta)
    moved = start.improve(update, played).policy.theta - start.theta
    assert torch.allclose(moved, 0.5 * gradient, atol=1e-13)

    tangent = start._tangent(start.theta)
    p = start.log_probs.exp().expand(2, 3, 5)
    fisher = tangent.mT @ (torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)) @ tangent
    fisher = fisher.mean(owners).reshape(*start.theta.shape, 3)
    direction = torch.linalg.solve(fisher + 0.1 * torch.eye(3), gradient)
    natural = attrs.evolve(start, optimizer="natural", damping=0.1)
    moved = natural.improve(attrs.evolve(update, start=natural), played).policy.theta - start.theta
    assert torch.allclose(moved, 0.5 * direction, atol=1e-10)


# --- solvers


def _of_language_models() -> list[str]:
    return sorted(name for name, solver in solvers().items() if "llm" in solver.backends)


@pytest.mark.parametrize(
    ("reference", "hyperparameters"), [("a table", "default"), ("the policy itself", "practical")], ids=str
)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", _of_language_models())
def test_every_solver_of_language_models_runs(name: str, form: str, reference: str, hyperparameters: str) -> None:
    played, spy = spied(game(6))
    start = policy(form, 3, base=played.reference.log_probs, learning_rate=0.1, steps=2)
    start = attrs.evolve(start, theta=0.1 * start.theta)
    if reference == "the policy itself":
        played = attrs.evolve(played, reference=start)
    chosen = solvers()[name].practical(BETA) if hyperparameters == "practical" else {}
    solver = configure(name, **chosen)
    state, due, generator = solver.init(played, start), 0, torch.Generator().manual_seed(0)
    while state.step < 3:
        update = solver.propose(played, state)
        if isinstance(update.opponent, Itself):
            due += update.steps or 2
        elif update.opponent is not None:
            due += 1 + (update.loss is not None and update.loss.joins(update))
        state = advance(played, solver, state, generator)
        table = state.current.log_probs
        assert isinstance(state.current, type(start))
        assert bool(torch.isfinite(table).all())
        assert abs(float(table.exp().sum()) - 1) <= 1e-12
    assert state.queries == spy.asked
    assert state.queries.exact == due
    assert spy.peeked == 0


def test_parametric_runs_are_repeated_to_the_bit() -> None:
    sampled = attrs.evolve(game(6), oracle=SampledOracle(game(6).oracle, comparisons=2))
    runs = [
        solve(sampled, configure("nash_mp", kappa=0.1, eta=0.5), steps=20, seed=5, policy=policy("mlp", 4))
        for _ in range(2)
    ]
    assert torch.equal(runs[0].policy.theta, runs[1].policy.theta)
    half = solve(sampled, runs[0].solver, steps=8, seed=5, policy=policy("mlp", 4))
    resumed = solve(sampled, runs[0].solver, steps=20, seed=5, resume=half.state)
    assert torch.equal(resumed.policy.theta, runs[0].policy.theta)


def class_gap(played: Game, current: ParametricPolicy) -> float:
    """The duality gap against opponents of the policy's own class only, their best one found by L-BFGS."""
    climber = attrs.evolve(current, optimizer="lbfgs", steps=20, tolerance=1e-10)
    update = Update(start=climber, opponent=current, anchors=[(played.reference, played.beta)])
    with played.oracle.uncounted():
        best = climber.improve(update, played).policy
        payoff = current.payoff(update, played, None)
    anchors = [(played.reference.log_probs, played.beta)]
    values = [
        improvement_value(p.log_probs, payoff, [(*a, played.divergence) for a in anchors]) for p in (best, current)
    ]
    return 2 * float(values[0] - values[1])


@pytest.mark.parametrize(
    ("form", "options"),
    [("log_linear", {"learning_rate": 1.0}), ("mlp", {"optimizer": "adam", "learning_rate": 0.03})],
    ids=FORMS,
)
def test_practical_nash_mp_finds_the_equilibrium_of_its_class(form: str, options: dict[str, Any]) -> None:
    """Three features for eight responses: the game's own equilibrium is out of reach of the log-linear policy."""
    for seed in range(2):
        played = game(seed, 8)
        start = policy(form, seed, 8, base=played.reference.log_probs, **options)
        start = attrs.evolve(start, theta=0.1 * start.theta)
        result = solve(played, configure("nash_mp", eta=0.5, kappa=0.1), steps=300, policy=start, every=300)
        first, last = class_gap(played, start), class_gap(played, result.policy)
        assert first > 5e-3
        assert last <= 1e-3 * first
        whole = [row["duality_gap"] for row in result.history]
        assert whole[-1] < 0.7 * whole[0]
        assert (whole[-1] > 1e-4) == (form == "log_linear")


def test_nash_mp_beats_where_it_began() -> None:
    played = game(3, 8, beta=0.01)
    start = policy("log_linear", 3, 8, base=played.reference.log_probs, learning_rate=1.0)
    start = attrs.evolve(start, theta=torch.zeros(3))
    result = solve(played, configure("nash_mp", eta=0.1, kappa=0.1), steps=300, policy=start, every=300)
    won = float(result.policy.probs @ played.oracle.matrix() @ start.probs)
    assert won > 0.55


@pytest.mark.parametrize("optimizer", ["sgd", "natural"])
def test_a_class_that_cannot_reach_the_answer_ends_where_the_gradient_vanishes(optimizer: str) -> None:
    played = game(2, 8)
    start = policy("log_linear", 2, 8, optimizer=optimizer, learning_rate=1.0, steps=3000, tolerance=1e-10)
    update = mirror(start, played)
    exact = played.reference.improve(update, played).policy
    outcome = start.improve(update, played)
    assert outcome.measured["gradient"] <= 1e-10
    found = outcome.policy
    assert float(kl_divergence(exact.log_probs, found.log_probs)) > 1e-4
    # Stationary: what is left of v - sum_j w_j log pi/rho_j has no correlation with any feature.
    payoff = start.payoff(update, played, None)
    left = payoff - BETA * (found.log_probs - played.reference.log_probs) - 0.5 * (found.log_probs - start.log_probs)
    centred = found.features - (found.probs[:, None] * found.features).sum(0)
    assert float((centred.mT @ (found.probs * left)).abs().max()) <= 1e-10
    assert float((found.probs * (left - found.probs @ left)).abs().max()) > 1e-3


def test_literal_nash_mp_with_natural_steps_is_the_exact_one() -> None:
    played = game(5)
    eta = 2 * BETA
    start = LogLinearPolicy.initial(
        normal(3, 5, 4), played.reference.log_probs, optimizer="natural", learning_rate=1 / (BETA + BETA / eta)
    )
    exact = solve(played, configure("nash_mp"), steps=5)
    climbed = solve(played, configure("nash_mp"), steps=5, policy=start)
    assert float(span(exact.policy.log_probs, climbed.policy.log_probs)) <= 1e-10
    assert exact.queries == climbed.queries
    assert float(duality_gap(played, climbed.policy)) < 0.1 * float(duality_gap(played, start))
    assert (
        float(span(solve(played, "nash_mp", steps=200, policy=start).policy.log_probs, equilibrium(played).log_probs))
        <= 1e-8
    )


# --- refusals


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LogLinearPolicy(torch.zeros(3), torch.zeros(3)), "shape"),
        (lambda: LogLinearPolicy(torch.zeros(5, 3), torch.zeros(4)), "does not fit d = 3 features"),
        (lambda: LogLinearPolicy(torch.full((5, 3), torch.nan), torch.zeros(3)), "features must be finite"),
        (lambda: LogLinearPolicy(torch.zeros(5, 3), torch.zeros(3), [0.0, 0, 0, 0, -torch.inf]), "base must be finite"),
        (lambda: LogLinearPolicy(torch.zeros(5, 3), torch.zeros(3), torch.zeros(4)), "do not go together"),
        (lambda: LogLinearPolicy([[1e200], [0.0]], [1e200]), "overflow"),
        (lambda: MLPPolicy(torch.zeros(5, 3), torch.zeros(7)), "does not fit d = 3 features"),
        (lambda: MLPPolicy.initial(torch.zeros(5, 3), generator=torch.Generator(), hidden=0), "hidden unit"),
        (lambda: LogLinearPolicy.uniform(5), "initial"),
        (lambda: policy("mlp").average(policy("log_linear"), 0.5), "cannot be averaged with a LogLinearPolicy"),
        (lambda: policy("mlp", 1).average(policy("mlp", 2), 0.5), "same features"),
    ],
)
def test_refuses(build, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        build()


def test_refuses_updates_that_it_cannot_follow() -> None:
    played, start = game(), policy("log_linear")
    with pytest.raises(BadInput, match="cannot begin at a TabularPolicy"):
        start.improve(mirror(played.reference, played), played)
    holed = TabularPolicy([0.0, 0.0, 0.0, 0.0, -torch.inf])
    with pytest.raises(BadInput, match="probability zero"):
        start.improve(Update(start=start, opponent=start, anchors=[(holed, 1.0)]), played)
    wild = attrs.evolve(start, features=1e6 * start.features, theta=0 * start.theta, learning_rate=1e308)
    with pytest.raises(ArithmeticError, match="take a smaller one"):
        wild.improve(mirror(wild, played), played)


def test_lbfgs_refuses_a_fit_that_is_no_loss() -> None:
    from nlhf_zoo import DivergenceToAnswer, ReverseKL

    played = game()
    start = policy("log_linear", optimizer="lbfgs")
    with pytest.raises(BadInput, match="DivergenceToAnswer is a gradient only"):
        start.improve(mirror(start, played, fit=DivergenceToAnswer(ReverseKL())), played)


# --- the command line


def _solved(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    argv = ["solve", "--game", "random", "--game-set", "responses=6", "--set", "eta=0.5", "kappa=0.1", "--steps", "40"]
    assert main([*argv, *flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_solve_trains_the_policy_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    soft = _solved(capsys, "--policy", "softmax", "--policy-set", "learning_rate=0.5")
    linear = _solved(capsys, "--policy", "log_linear", "--policy-set", "learning_rate=0.5")
    assert linear["policy"] == pytest.approx(soft["policy"], abs=1e-12)
    narrow = ("--policy", "log_linear", "--policy-set", "features=2", "optimizer=natural")
    first, again, other = (_solved(capsys, *narrow, "--seed", seed) for seed in ("3", "3", "4"))
    assert first["policy"] == again["policy"]
    # Two features: whatever game and start, log-probabilities lie in a plane of the six-dimensional space.
    features = parametrised("log_linear", {"features": 2}, TabularPolicy.uniform(6), 3).features
    span_of = torch.cat([features, torch.ones(6, 1)], 1)
    logs = torch.tensor(first["policy"], dtype=torch.float64).log()
    assert float((logs - span_of @ torch.linalg.pinv(span_of) @ logs).abs().max()) <= 1e-10
    assert float((logs - logs.mean()).abs().max()) > 1e-2
    assert other["policy"] != pytest.approx(first["policy"], abs=1e-3)
    mlp = _solved(capsys, "--policy", "mlp", "--policy-set", "hidden=3", "optimizer=adam", "learning_rate=0.05")
    assert mlp["duality_gap"] < 0.5 * float(duality_gap(_random_game(), TabularPolicy.uniform(6)))
    assert (mlp["policy_kind"], mlp["queries"]) == ("mlp", 40)


def _random_game() -> Game:
    from nlhf_zoo.registry import lookup

    return Game(lookup("games", "random")(seed=0, responses=6), beta=0.1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policy", "table", "--policy-set", "steps=2"], "table has no option 'steps'; it is exact"),
        (["--policy", "softmax", "--policy-set", "hidden=2"], "softmax has no option 'hidden'"),
        (["--policy", "mlp", "--policy-set", "features=0"], "features must be >= 1"),
        (["--policy", "mlp", "--policy-set", "hidden=many"], "hidden must be a whole number"),
        (["--policy", "mlp", "--policy-set", "optimizer=newton"], "optimizer must be one of sgd"),
        (["--policy", "log_linear", "--policy-set", "learning_rate=-1"], "'learning_rate' must be > 0"),
    ],
)
def test_solve_refuses_options_that_do_not_fit(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", "--game", "random", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
