"""The built-in games: what each name promises about its matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlhf_zoo.errors import BadInput
from nlhf_zoo.games import (
    bradley_terry,
    bradley_terry_cyclic,
    cyclic,
    low_rank,
    nlhf_zoo_games,
    random,
    rock_paper_scissors,
)
from nlhf_zoo.oracles.matrix import MatrixOracle

GAMES = nlhf_zoo_games()
DRAWN = ["random", "low_rank", "bradley_terry", "bradley_terry+cyclic"]
seeds = st.integers(0, 2**63 - 1)
few = settings(max_examples=30, deadline=None)


def small(name: str, **parameters: Any) -> MatrixOracle:
    return GAMES[name](**({} if name == "rock_paper_scissors" else {"responses": 5}), **parameters)


def test_the_names_of_the_contract():
    assert set(GAMES) == {*DRAWN, "cyclic", "rock_paper_scissors"}


@pytest.mark.parametrize("name", GAMES)
@given(seed=seeds)
@few
def test_every_game_is_a_preference_matrix_and_its_seed_decides(name: str, seed: int):
    p = small(name, seed=seed).matrix()
    assert p.dtype == torch.float64
    assert (p + p.mT).eq(1).all()
    assert p.diagonal().eq(0.5).all()
    assert p.ge(0).all()
    assert p.le(1).all()
    assert torch.equal(p, small(name, seed=seed).matrix())


@pytest.mark.parametrize("name", DRAWN)
def test_another_seed_another_game_and_no_hidden_randomness(name: str):
    before = torch.get_rng_state()
    assert not torch.equal(small(name, seed=0).matrix(), small(name, seed=1).matrix())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", DRAWN)
def test_a_batch_holds_different_games(name: str):
    oracle = small(name, seed=0, games=3)
    assert oracle.batch_shape == (3,)
    assert oracle.matrix().shape == (3, 5, 5)
    assert not torch.equal(oracle.matrix()[0], oracle.matrix()[1])
    assert small(name, seed=0).batch_shape == ()


def test_random_pairs_are_uniform():
    p = random(seed=3, responses=200).matrix()
    i, j = torch.triu_indices(200, 200, 1)
    sample = p[i, j].sort().values
    # Kolmogorov-Smirnov distance of n = 19,900 uniform numbers; 2 / sqrt(n) is exceeded with chance below 1e-3.
    uniform = torch.arange(1, len(sample) + 1, dtype=torch.float64) / len(sample)
    assert (sample - uniform).abs().max() < 2 / len(sample) ** 0.5


@given(seed=seeds, rank=st.integers(1, 6), responses=st.integers(6, 12))
@few
def test_low_rank_has_the_even_rank_it_says_and_fills_the_interval(seed: int, rank: int, responses: int):
    p = low_rank(seed=seed, rank=rank, responses=responses).matrix()
    assert torch.linalg.matrix_rank(p - 0.5, rtol=1e-10).item() == rank + rank % 2
    assert p.max() == 1
    assert p.min() == 0


def test_each_low_rank_game_of_a_batch_fills_the_interval():
    assert low_rank(seed=0, responses=8, games=4).matrix().amax((1, 2)).eq(1).all()


@given(seed=seeds, scale=st.floats(0.01, 3))
@few
def test_bradley_terry_log_odds_add_up(seed: int, scale: float):
    odds = torch.logit(bradley_terry(seed=seed, responses=6, scale=scale).matrix())
    cycle = odds.unsqueeze(2) + odds.unsqueeze(0) - odds.unsqueeze(1)
    torch.testing.assert_close(cycle, torch.zeros(6, 6, 6, dtype=torch.float64), rtol=0, atol=1e-9)


def test_bradley_terry_scale_is_the_spread_of_the_scores():
    odds = torch.logit(bradley_terry(seed=1, responses=2000, scale=0.3).matrix()[0])
    assert abs(odds.std().item() / 0.3 - 1) < 0.08  # five standard errors of a standard deviation


@given(responses=st.integers(3, 12), strength=st.floats(0, 1))
@few
def test_cyclic_is_circulant_and_beats_half_of_the_others(responses: int, strength: float):
    p = cyclic(seed=0, responses=responses, strength=strength).matrix()
    assert torch.equal(p.roll((1, 1), (0, 1)), p)
    won, lost = (p[0] == 0.5 + strength / 2).sum(), (p[0] < 0.5).sum()
    if strength > 1e-9:
        assert won == lost == (responses - 1) // 2
        assert p[0, 1] > 0.5
    torch.testing.assert_close(p.mean(1), torch.full((responses,), 0.5, dtype=torch.float64))


def test_the_weight_of_the_cycle_is_the_only_difference():
    pure, around = bradley_terry(seed=5, responses=7), cyclic(responses=7, strength=0.8)
    for weight in (0.0, 0.25, 1.0):
        mixed = bradley_terry_cyclic(seed=5, responses=7, weight=weight, strength=0.8).matrix()
        torch.testing.assert_close(mixed, (1 - weight) * pure.matrix() + weight * around.matrix(), rtol=0, atol=1e-15)


def test_rock_paper_scissors_by_name():
    oracle = rock_paper_scissors(seed=0)
    assert oracle.labels == ("rock", "paper", "scissors")
    first, second = ["rock", "scissors", "paper"], ["scissors", "paper", "rock"]
    assert oracle.probability(None, first, second).tolist() == [1, 1, 1]
    assert oracle.probability(None, second, first).tolist() == [0, 0, 0]
    assert rock_paper_scissors(strength=0.5).probability(None, first, second).tolist() == [0.75] * 3


@pytest.mark.parametrize(
    ("factory", "parameters", "message"),
    [
        (random, {"responses": 0}, "game random: responses must be a whole number >= 1, got 0"),
        (random, {"responses": 2.5}, "whole number"),
        (random, {"responses": True}, "whole number"),
        (random, {"responses": "many"}, "whole number >= 1, got 'many'"),
        (random, {"seed": -1}, "game random: seed"),
        (random, {"seed": 2**63}, "below 2\\*\\*63"),
        (random, {"games": 0}, "game random: games"),
        (low_rank, {"rank": 0}, "game low_rank: rank"),
        (low_rank, {"rank": 5, "responses": 5}, "rank 5 needs at least 6 responses, got 5"),
        (low_rank, {"responses": 1}, "responses must be a whole number >= 2"),
        (bradley_terry, {"scale": -1}, "game bradley_terry: scale must be a finite number >= 0, got -1"),
        (bradley_terry, {"scale": float("inf")}, "scale"),
        (bradley_terry, {"scale": "wide"}, "scale"),
        (cyclic, {"responses": 2}, "game cyclic: responses must be a whole number >= 3"),
        (cyclic, {"strength": 1.5}, r"game cyclic: strength must be a finite number in \[0, 1\], got 1.5"),
        (bradley_terry_cyclic, {"weight": float("nan")}, r"game bradley_terry\+cyclic: weight"),
        (bradley_terry_cyclic, {"responses": 2}, "whole number >= 3"),
        (rock_paper_scissors, {"strength": -0.1}, "game rock_paper_scissors: strength"),
        (rock_paper_scissors, {"seed": "x"}, "game rock_paper_scissors: seed"),
    ],
)
def test_bad_parameters(factory: Callable[..., MatrixOracle], parameters: dict[str, Any], message: str):
    with pytest.raises(BadInput, match=message) as caught:
        factory(**{"seed": 0, **parameters})
    assert "\n" not in str(caught.value)


def test_whole_numbers_may_come_as_floats():
    assert random(seed=0, responses=4.0).num_responses == 4  # type: ignore[arg-type]  # as yaml may give them
