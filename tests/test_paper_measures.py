"""What the reproduction studies compute for themselves: DPO's point of rest, the step-size race, what votes say."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch

import nlhf_zoo as nz
from benchmarks.paper import electorate, votes
from benchmarks.paper.dpo_target import at_distance, rest_at
from benchmarks.paper.intransitivity import drawn_reference, first_from
from benchmarks.paper.landscape import Settings, race
from nlhf_zoo.games import bradley_terry, bradley_terry_cyclic, rock_paper_scissors

REFERENCE = drawn_reference(6, 0)
MIXED = bradley_terry_cyclic(seed=1, responses=6, weight=0.6)


def game(beta: float) -> nz.Game:
    return nz.Game(MIXED, beta=beta, reference=nz.TabularPolicy(torch.from_numpy(REFERENCE)))


@pytest.mark.parametrize("online", [True, False])
def test_dpo_rests_at_the_reward_optimum_under_bradley_terry(online: bool) -> None:
    matrix = bradley_terry(seed=0, responses=6).matrix().numpy()
    rewards = np.log(matrix[:, 0] / matrix[0])
    found = rest_at(matrix, REFERENCE, 0.3, online=online)
    optimum = nz.TabularPolicy(torch.from_numpy(REFERENCE + rewards / 0.3)).log_probs.numpy()
    assert found.log_probs == pytest.approx(optimum, abs=1e-8)


def test_online_dpo_comes_to_the_point_of_rest() -> None:
    done = nz.solve(game(0.3), nz.solvers()["online_dpo"](eta=0.5), steps=1500, every=1500)
    found = rest_at(MIXED.matrix().numpy(), REFERENCE, 0.3)
    assert done.policy.log_probs.numpy() == pytest.approx(found.log_probs, abs=1e-6)
    assert np.abs(found.log_probs - nz.equilibrium(game(0.3)).log_probs.numpy()).max() > 0.1


@pytest.mark.parametrize("online", [True, False])
def test_dpo_at_a_distance(online: bool) -> None:
    assert at_distance(MIXED.matrix().numpy(), REFERENCE, 0.2, online=online).kl(REFERENCE) == pytest.approx(0.2)


def test_no_policy_at_the_same_distance_beats_the_equilibrium() -> None:
    best = nz.equilibrium(game(0.1))
    far = float(best.probs @ (best.log_probs - torch.from_numpy(REFERENCE)))
    rival = at_distance(MIXED.matrix().numpy(), REFERENCE, far)
    assert best.probs.numpy() @ MIXED.matrix().numpy() @ np.exp(rival.log_probs) >= 0.5 - 1e-9


def test_first_weight_from_which_all_intervals_lie_above() -> None:
    def weights(*lows: float) -> dict[str, dict[str, dict[str, float]]]:
        return {f"{at / 10:g}": {"wins": {"low": low}} for at, low in enumerate(lows)}

    assert first_from(weights(-1, 1, -1, 1, 1), "wins") == 0.3
    assert first_from(weights(1, 1), "wins") == 0
    assert first_from(weights(1, -1), "wins") is None


@pytest.mark.parametrize("eta", [0.1, 0.4])
def test_the_race_ends_where_the_solver_does(eta: float) -> None:
    start = float(nz.duality_gap(game(0.1), game(0.1).reference))
    done = nz.solve(game(0.1), nz.solvers()["nash_mp"](eta=eta), steps=500, tol=1e-5 * start)
    one = np.ones(1)
    found = race("exact", MIXED.matrix().numpy(), REFERENCE, Settings(0.1 * one, eta * one, one, one), 1000, 1e-5)
    assert done.queries.total <= found[0] <= 1.05 * done.queries.total + 2


def test_a_step_that_is_too_long_is_not_reached() -> None:
    matrix, reference = rock_paper_scissors().matrix().numpy(), drawn_reference(3, 0)
    columns = np.array([[0.01, 0.02, 1, 1], [0.01, 10, 1, 1]]).T
    found = race("exact", matrix, reference, Settings(*columns), 4000, 1e-5)
    assert np.isfinite(found).tolist() == [True, False]


def test_what_a_cycle_says() -> None:
    wins = 100 * rock_paper_scissors(strength=0.2).matrix().numpy()
    np.fill_diagonal(wins, 0)
    found = electorate.opinion(wins)
    assert not found.condorcet
    assert found.support.all()
    assert found.effective == pytest.approx(3)
    assert electorate.three_cycles(found.matrix) == 1
    assert found.exploited("von_neumann") == pytest.approx(0)
    assert found.exploited("borda") > 0.05


def test_scores_are_found_again_in_simulated_wins() -> None:
    matrix = bradley_terry(seed=3, responses=5).matrix().numpy()
    wins = 100_000 * matrix * (1 - np.eye(5))
    again = electorate.simulated(wins, 0.2, np.random.default_rng(0))
    assert (again + again.T == (wins + wins.T).round()).all()
    assert (again * 2 % 2 == 1).any()  # ties
    scores = [electorate.bradley_terry(table) for table in (wins, again)]
    odds = np.log(matrix[:, 0] / matrix[0])
    for found in scores:
        assert found - found[0] == pytest.approx(odds, abs=0.03)


def test_votes_of_two_judges_on_the_same_answers() -> None:
    pairs = np.array([[0, 1], [0, 1], [0, 2], [1, 2], [0, 3]])
    ballots = {"human": [[1.0, 0.5], [1.0, 1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.5]]}
    table = votes.Votes(("a", "b", "c", "d"), pairs, ballots)
    wins = table.wins("human", np.array([1, 1, 2, 1, 1]))
    assert wins[0].tolist() == [0, 3.5, 0, 0.5]
    assert wins[2, 0] == 4
    first, second = table.halves("human", np.ones(5, dtype=np.int64), np.random.default_rng(0))
    assert (first + first.T == second + second.T).all()
    assert first[0, 3] == 0  # one vote has no second
    core = table.core()
    assert core.labels == ("a", "b", "c")
    assert core.wins("human", np.ones(4, dtype=np.int64)).sum() == 2 + 3 + 2 + 2


def test_settings_are_told_apart_by_row() -> None:
    rows = np.array([[0.1, 0.2, 1, 1], [0.1, 0.2, 1, 1], [0.1, 0.05, 1, 1]]).T
    found = race("exact", MIXED.matrix().numpy(), REFERENCE, Settings(*rows), 2000, 1e-5)
    assert found[0] == found[1] < found[2]
    assert attrs.fields(Settings).inner.default == 1
