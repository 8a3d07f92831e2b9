"""How parametric policies approach the answer of an update: losses whose minimum it is."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import nlhf_zoo as nz
from nlhf_zoo.drive import advance, configure
from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game, State, Update
from nlhf_zoo.llm import exact_objective, exact_payoff, sampled_objective
from nlhf_zoo.metrics import kl_divergence
from nlhf_zoo.registry import lookup
from nlhf_zoo.tabular.policy import update_value
from tests.test_same_solver_twice import PROMPTS, network, pair

FITS = {
    "pairs": nz.PairRegression(),
    "logistic": nz.LogisticPairs(),
    "jensen-shannon": nz.DivergenceToAnswer(lookup("divergences", "jensen_shannon")()),
    "forward KL": nz.DivergenceToAnswer(lookup("divergences", "forward_kl")()),
    "reverse KL": nz.DivergenceToAnswer(nz.ReverseKL()),
}


def table(size: int, generator: torch.Generator) -> nz.TabularPolicy:
    return nz.TabularPolicy(torch.randn(size, generator=generator, dtype=torch.float64))


def setting(seed: int, size: int, fit: nz.Fit | None) -> tuple[Game, Update]:
    generator = torch.Generator().manual_seed(seed)
    game = nz.Game(lookup("games", "random")(seed=seed, responses=size), table(size, generator), 0.2)
    start, other = table(size, generator), table(size, generator)
    anchors = [(game.reference, 0.2), (start, 0.7)]
    return game, Update(start=start, opponent=other, anchors=anchors, fit=fit)


def gradient(game: Game, update: Update, log_probs: Tensor) -> Tensor:
    payoff = update.start.payoff(update, game, None)
    logits = log_probs.clone().requires_grad_()
    (slope,) = torch.autograd.grad(update_value(logits.log_softmax(-1), payoff, update, game), logits)
    return slope


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_pair_regression_begins_like_the_policy_gradient(seed: int, size: int) -> None:
    game, update = setting(seed, size, nz.PairRegression())
    regressed = gradient(game, update, update.start.log_probs)
    climbed = gradient(game, attrs.evolve(update, fit=None), update.start.log_probs)
    assert float((regressed - climbed).abs().max()) <= 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_the_reverse_kl_to_the_answer_is_the_policy_gradient_anywhere(seed: int, size: int) -> None:
    game, update = setting(seed, size, FITS["reverse KL"])
    point = table(size, torch.Generator().manual_seed(seed + 1)).log_probs
    towards = gradient(game, update, point)
    climbed = gradient(game, attrs.evolve(update, fit=None), point)
    assert float((towards - climbed).abs().max()) <= 1e-12


@pytest.mark.parametrize("name", FITS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 6))
def test_the_answer_is_where_the_gradient_ends(name: str, seed: int, size: int) -> None:
    game, update = setting(seed, size, FITS[name])
    answer = update.start.improve(update, game).policy.log_probs
    at_answer = gradient(game, update, answer).abs().max()
    at_start = gradient(game, update, update.start.log_probs).abs().max()
    assert float(at_answer) <= 1e-12
    assert float(at_start) >= 1e-9 or float(kl_divergence(answer, update.start.log_probs)) <= 1e-9


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_point_regression_ends_at_the_answer_where_its_centre_is_right(seed: int, size: int) -> None:
    game, update = setting(seed, size, None)
    answer = update.start.improve(update, game).policy.log_probs
    payoff = update.start.payoff(update, game, None)
    gap = sum(a.weight * (answer - a.policy.log_probs) for a in update.anchors)
    centre = float((payoff - gap).mean())
    right = attrs.evolve(update, fit=nz.PointRegression(centre=centre))
    assert float(gradient(game, right, answer).abs().max()) <= 1e-12
    wrong = attrs.evolve(update, fit=nz.PointRegression(centre=centre + 1))
    skewed = attrs.evolve(update, start=table(size, torch.Generator().manual_seed(seed + 2)))
    assert float(gradient(game, attrs.evolve(wrong, start=skewed.start), answer).abs().max()) >= 1e-6


def test_softmax_policies_arrive_by_regression() -> None:
    game, update = setting(3, 5, nz.PairRegression())
    answer = update.start.improve(update, game).policy.log_probs
    climber = nz.SoftmaxPolicy(update.start.log_probs, learning_rate=1 / update.weight, steps=3000)
    got = climber.improve(attrs.evolve(update, start=climber), game).policy.log_probs
    assert float(kl_divergence(answer, got)) <= 1e-10


def test_a_fit_refuses_other_divergences() -> None:
    game, update = setting(3, 5, nz.PairRegression())
    other = attrs.evolve(game, divergence=lookup("divergences", "jensen_shannon")())
    with pytest.raises(BadInput, match="reverse KL only"):
        gradient(other, update, update.start.log_probs)


def test_a_fit_and_a_loss_exclude_each_other() -> None:
    loss = configure("online_ipo")
    game, update = setting(3, 5, None)
    proposed = loss.propose(game, loss.init(game, update.start))
    with pytest.raises(BadInput, match="not both"):
        attrs.evolve(proposed, fit=nz.PairRegression())


def middle(name: str):
    """The second update of a run on the language model: learner, start and reference are three networks."""
    case = pair(5, 1, False)
    solver = configure(name)
    moved = attrs.evolve(case.policy, network=network(5))
    first = solver.init(case.model, case.policy)
    state = State({**first.policies, "current": moved}, step=1, numbers=first.numbers)
    student = attrs.evolve(case.policy, network=network(7).requires_grad_(True))
    return case, solver.propose(case.model, state), student


@pytest.mark.parametrize("name", ["inpo", "sppo", "mnpo", "spin", "f_dpo", "xpo", "optimistic_md"])
def test_sampled_gradient_is_the_exact_one(name: str) -> None:
    case, update, student = middle(name)
    if update.loss is not None:  # on-policy, as the expectation over the start's pairs is
        student = attrs.evolve(student, network=update.start.network.requires_grad_(True))
        update = attrs.evolve(update, start=student, opponent=case.model.reference if name == "xpo" else student)
    responses, prompts = case.policy.inner.responses, case.policy.encode(PROMPTS)
    generator = torch.Generator().manual_seed(0)
    parameters = list(student.network.parameters())
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def along(loss: Tensor) -> Tensor:
        slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
        return sum(((g * d).sum() for g, d in zip(slopes, direction, strict=True) if g is not None), torch.zeros(()))

    payoff = exact_payoff(student, update, case.model, prompts, responses)
    exact = along(exact_objective(student, update, case.model, prompts, responses, payoff).loss)
    drawn = torch.stack(
        [along(sampled_objective(student, update, case.model, prompts, 16, generator).loss) for _ in range(80)]
    )
    error = drawn.std() / math.sqrt(len(drawn))
    assert abs(float(drawn.mean() - exact)) <= 5 * float(error)


@pytest.mark.parametrize("name", ["inpo", "dno", "f_dpg"])
def test_the_language_model_visits_the_tables_policies(name: str) -> None:
    case = pair(5, 1, False)
    solver = configure(name)
    mine = solver.init(case.table, nz.TabularPolicy(case.tables(case.policy)))
    other = solver.init(case.model, case.policy)
    while mine.step < 2:
        mine, other = advance(case.table, solver, mine), advance(case.model, solver, other)
    assert float(kl_divergence(mine.current.log_probs, case.tables(other.current)).max()) <= 1e-6


def test_xpo_by_gradient_stays_near_the_optimum_of_online_dpo() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    game = nz.Game(nz.MatrixOracle(torch.sigmoid(scores.unsqueeze(1) - scores)), beta=0.5)
    solver = configure("xpo")
    state = solver.init(game, nz.SoftmaxPolicy(game.reference.log_probs))
    for _ in range(1000):
        state = advance(game, solver, state)
    optimum = (scores / 0.5).log_softmax(-1)
    assert 1e-6 < float(kl_divergence(optimum, state.current.log_probs)) < 1e-3
    assert bool((state.current.log_probs[:2] < optimum[:2]).all()), "the bonus makes what DPO disfavours rarer still"
