"""Equilibria and von Neumann winners of games of every kind, certified by what they must satisfy."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from nlhf_zoo import BadInput, Game, MatrixOracle, TabularPolicy, duality_gap, equilibrium, von_neumann_winner
from nlhf_zoo.registry import lookup
from nlhf_zoo.tabular import NotConverged, find_equilibrium
from nlhf_zoo.tabular.equilibrium import _Payoffs, _proximal

SHAPES = {
    "uniform": lambda a: a,
    "deterministic": torch.round,
    "quarters": lambda a: (4 * a).round() / 4,
    "nearly deterministic": lambda a: torch.sigmoid(30 * (a - 0.5)),
}


def matrix(size: int, seed: int, shape: str, games: int | None = None) -> Tensor:
    lead = () if games is None else (games,)
    draws = torch.rand(*lead, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    upper = SHAPES[shape](draws)
    return upper.triu(1) + (1 - upper).triu(1).transpose(-1, -2) + 0.5 * torch.eye(size, dtype=torch.float64)


@given(
    size=st.integers(1, 20),
    games=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 10_000),
    shape=st.sampled_from(sorted(SHAPES)),
    beta=st.floats(-4, 1).map(lambda x: 10**x),
    spread=st.sampled_from([0.0, 2.0, 15.0]),
)
@settings(deadline=None, max_examples=60)
def test_equilibrium_of_any_game(
    size: int, games: int | None, seed: int, shape: str, beta: float, spread: float
) -> None:
    """Gap <= 1e-12, references down to e^-60 and preferences of 0 and 1 included."""
    p = matrix(size, seed, shape, games)
    generator = torch.Generator().manual_seed(seed + 1)
    reference = TabularPolicy(spread * torch.randn(p.shape[:-1], generator=generator, dtype=torch.float64))
    game = Game(MatrixOracle(p), reference, beta)
    found = equilibrium(game, tol=1e-12)
    assert found.log_probs.shape == p.shape[:-1]
    assert bool((duality_gap(game, found) <= 1e-12).all())
    # No pure deviation gains either: u(y) - beta (log pi - log ref)(y) is one constant.
    value = (p @ found.probs.unsqueeze(-1)).squeeze(-1) - beta * (found.log_probs - reference.log_probs)
    assert bool((value.amax(-1) - value.amin(-1) <= 1e-9).all())


def test_the_fallback_alone_finds_the_same() -> None:
    p = matrix(30, 3, "uniform")
    game = Game(MatrixOracle(p), TabularPolicy(torch.linspace(0, 20, 30, dtype=torch.float64)), 1e-3)
    payoffs = _Payoffs(p, game.reference.log_probs)
    z, _, steps = _proximal(payoffs, game.reference.log_probs.clone(), 1e-3)
    assert steps > 1
    assert torch.allclose(z.log_softmax(-1), equilibrium(game).log_probs, atol=1e-8)


def test_two_responses_by_hand() -> None:
    """P(a > b) = p: the log-ratio h solves beta h = (p - 1/2) (it does not depend on pi)."""
    game = Game(MatrixOracle([[0.5, 0.9], [0.1, 0.5]]), beta=0.2)
    log_probs = equilibrium(game).log_probs
    assert float(log_probs[0] - log_probs[1]) == pytest.approx(0.4 / 0.2, abs=1e-12)


def test_a_tolerance_out_of_reach_is_an_error_that_says_what_was_reached() -> None:
    game = Game(MatrixOracle(matrix(5, 0, "uniform")), beta=0.1)
    with pytest.raises(NotConverged, match="reached"):
        find_equilibrium(game, tol=-1.0)


def test_a_reference_that_leaves_a_response_out_is_refused() -> None:
    reference = TabularPolicy(torch.tensor([0.0, -torch.inf], dtype=torch.float64))
    with pytest.raises(BadInput, match="probability zero"):
        equilibrium(Game(MatrixOracle(matrix(2, 0, "uniform")), reference, 0.1))


@given(size=st.integers(1, 15), seed=st.integers(0, 10_000), shape=st.sampled_from(sorted(SHAPES)))
@settings(deadline=None, max_examples=60)
def test_nobody_beats_the_von_neumann_winner(size: int, seed: int, shape: str) -> None:
    oracle = MatrixOracle(matrix(size, seed, shape))
    winner = von_neumann_winner(oracle)
    assert float((oracle.matrix() @ winner.probs).max()) <= 0.5 + 1e-12
    assert float(winner.probs.sum()) == pytest.approx(1, abs=1e-12)
    game = Game(oracle, beta=0)
    assert float(duality_gap(game, equilibrium(game))) <= 2e-12


def test_rock_paper_scissors_by_hand() -> None:
    """With strengths a, b, c around the cycle the winner is (b, c, a) / (a + b + c), by indifference."""
    a, b, c = 0.1, 0.2, 0.3  # rock over scissors, scissors over paper, paper over rock
    p = torch.tensor([[0.5, 0.5 - c, 0.5 + a], [0.5 + c, 0.5, 0.5 - b], [0.5 - a, 0.5 + b, 0.5]], dtype=torch.float64)
    winner = von_neumann_winner(MatrixOracle(p)).probs
    assert torch.allclose(winner, torch.tensor([b, a, c], dtype=torch.float64) / (a + b + c), atol=1e-12)


def test_winners_of_a_batch() -> None:
    oracle = lookup("games", "random")(seed=0, responses=6, games=4)
    together = von_neumann_winner(oracle)
    assert together.log_probs.shape == (4, 6)
    for i in range(4):
        assert torch.allclose(together.probs[i], von_neumann_winner(MatrixOracle(oracle.matrix()[i])).probs)


@pytest.mark.parametrize("scale", [0.3, 12.0])
def test_one_hard_game_holds_up_no_batch(scale: float) -> None:
    """Games settle one by one: one that has stopped falling, at rounding, must not keep the others going."""
    oracle = lookup("games", "random")(seed=5, responses=3, games=400)
    reference = TabularPolicy(scale * torch.randn(400, 3, generator=torch.Generator().manual_seed(1)).double())
    for beta in (0.3, 0.1, 1e-4):
        assert float(find_equilibrium(Game(oracle, reference, beta), tol=1e-12).duality_gap.max()) <= 1e-12
