"""The implicit improvement: its own best answer, for few queries, whatever the weight and the oracle."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlhf_zoo.drive import configure, iterates
from nlhf_zoo.interfaces import Game, ReverseKL
from nlhf_zoo.metrics import span
from nlhf_zoo.oracles import MatrixOracle, SampledOracle
from nlhf_zoo.tabular.implicit import solve_implicit
from nlhf_zoo.testing import strategies

WEIGHTS = st.sampled_from([1e-4, 1e-3, 0.02, 0.3, 0.4999, 0.5, 0.5001, 0.7, 3.0, 50.0])


@settings(deadline=None)
@given(strategies.cases(sizes=(1, 2, 3, 5, 40)), WEIGHTS, st.sampled_from([0.0, 0.3]))
def test_it_is_its_own_best_answer_for_at_most_three_queries_a_response(case, total, share):
    game = case.game()
    anchors = [(game.reference.log_probs, total * (1 - share)), (case.first().log_probs, total * share)]
    anchors = [(rho, weight) for rho, weight in anchors if weight > 0]
    answer, _ = solve_implicit(game.oracle, anchors, ReverseKL(), case.first().log_probs, None)
    asked = game.oracle.queries.exact
    assert asked <= 3 * case.size + 20
    best = ReverseKL().improve(game.oracle.payoff(answer.exp()), anchors)
    assert float(span(best, answer)) <= 1e-9 * (1 + float(best.abs().amax()))


def test_a_batch_of_games_takes_one_reference_for_all():
    matrices = torch.tensor([[[0.5, 0.9], [0.1, 0.5]], [[0.5, 0.2], [0.8, 0.5]]], dtype=torch.float64)
    start = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    together, _ = solve_implicit(MatrixOracle(matrices), [(start, 1e-3)], ReverseKL(), start.expand(2, 2), None)
    for matrix, answer in zip(matrices, together, strict=True):
        alone, _ = solve_implicit(MatrixOracle(matrix), [(start, 1e-3)], ReverseKL(), start, None)
        assert torch.allclose(answer, alone, rtol=0, atol=1e-9)


def test_noisy_answers_are_asked_for_once_and_end_in_an_equilibrium():
    matrix = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]], dtype=torch.float64)
    game = Game(SampledOracle(MatrixOracle(matrix), comparisons=8), beta=1e-3)
    run = iterates(game, configure("exact_prox", eta=1.0), generator=torch.Generator().manual_seed(0))
    states = list(itertools.islice(run, 6))
    assert game.oracle.queries.sampled == 5 * 3 * 3 * 8  # steps, corners, responses, comparisons
    assert torch.isfinite(states[-1].current.log_probs).all()
