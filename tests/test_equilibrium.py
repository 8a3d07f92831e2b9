"""Equilibria and von Neumann winners of games of every kind, certified by what they must satisfy."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor

from nlhf_zoo import BadInput, Game, MatrixOracle, TabularPolicy, duality_gap, equilibrium, von_neumann_winner
from nlhf_zoo.registry import lookup
from nlhf_zoo.tabular import NotConverged, find_equilibrium
from nlhf_zoo.tabular.equilibrium_interior import interior
from nlhf_zoo.tabular.equilibrium_newton import newton, proximal
from nlhf_zoo.tabular.equilibrium_passes import Passes, Seen
from nlhf_zoo.tabular.equilibrium_payoffs import Payoffs
from nlhf_zoo.tabular.equilibrium_systems import DenseSystems, SparedSystems
from nlhf_zoo.testing.strategies import matrices, references

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
    found = equilibrium(game, tol=1e-20)
    assert found.log_probs.shape == p.shape[:-1]
    assert bool((duality_gap(game, found) <= 1e-12).all())
    # No pure deviation gains either: u(y) - beta (log pi - log ref)(y) is one constant.
    value = (p @ found.probs.unsqueeze(-1)).squeeze(-1) - beta * (found.log_probs - reference.log_probs)
    assert bool((value.amax(-1) - value.amin(-1) <= 1e-9).all())


def test_the_fallback_alone_finds_the_same() -> None:
    p = matrix(30, 3, "uniform")
    game = Game(MatrixOracle(p), TabularPolicy(torch.linspace(0, 20, 30, dtype=torch.float64)), 1e-3)
    point, _, steps = proximal(Payoffs(p, game.reference.log_probs, 1e-3), 1e-12)
    assert steps > 1
    assert torch.allclose(point.z, equilibrium(game, tol=1e-20).log_probs, atol=1e-8)


def residual(p: Tensor, reference: Tensor, beta: float, log_probs: Tensor) -> float:
    """Span of log pi - log pi_ref - P pi / beta, in extended precision.

    Whatever the game is, |pi - pi*|_1 is at most half of it: beta (KL(pi || pi*) + KL(pi* || pi)) is
    beta sum (pi - pi*) r, P - 1/2 being skew, and Pinsker's inequality does the rest. A small one leaves no doubt.
    """
    z, wide = log_probs.numpy().astype(np.longdouble), p.double().numpy().astype(np.longdouble)
    weights = np.exp(z - z.max())
    r = z - reference.numpy() - (wide @ (weights / weights.sum())) / beta
    return float(r.max() - r.min())


def rounding(reference: Tensor, beta: float) -> float:
    return 1e-14 * (1 / beta + float(reference.abs().max()))


def slowly(p: np.ndarray, reference: np.ndarray, goal: float) -> np.ndarray | None:
    """Log-probabilities of the equilibrium by Newton's method along a path of falling betas; None where it fails."""
    size = len(p)
    skew, z, beta, factor, last = p - 0.5, reference.copy(), 1e3, 2.0, 1e3

    def r_of(z: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
        w = np.exp(z - z.max())
        w /= w.sum()
        r = z - reference - skew @ w / beta
        return w, r - w @ r

    while True:
        trial, done = z, False
        for _ in range(30):
            w, r = r_of(trial, beta)
            if np.abs(r).max() <= 1e-13 * (1 / beta + np.abs(z).max()):
                done = True
                break
            step = np.linalg.solve(np.eye(size) - (skew * w - np.outer(skew @ w, w)) / beta, -r)
            length = 1.0
            while length > 1e-3 and r_of(trial + length * step, beta)[1] @ r_of(trial + length * step, beta)[1] > r @ r:
                length /= 2
            trial = trial + length * step
            trial = trial - trial.max() - np.log(np.exp(trial - trial.max()).sum())
        done = done or float(np.abs(r_of(trial, beta)[1]).max()) <= 1e-13 / beta
        if not done and factor < 1.01:
            return None
        if done and beta <= goal:
            return trial
        if done:
            z, factor = trial, min(2.0, factor**1.5)
            last = beta
        else:
            factor, beta = factor**0.5, last
        beta = max(goal, beta / factor)


@given(data=st.data(), beta=st.sampled_from([10.0**e for e in range(1, -7, -1)]))
@settings(deadline=None, max_examples=100)
def test_it_is_the_equilibrium_of_every_kind_of_game(data: st.DataObject, beta: float) -> None:
    p = torch.tensor(data.draw(matrices()), dtype=torch.float64)
    deepest = data.draw(st.sampled_from([50, 700]))
    reference = TabularPolicy(torch.tensor(data.draw(references(len(p), deepest)), dtype=torch.float64))
    game = Game(MatrixOracle(p), reference, beta)
    rough = find_equilibrium(game)
    assert float(rough.duality_gap) <= 1e-10
    assert residual(p, reference.log_probs, beta, rough.policy.log_probs) <= 2e-5 + rounding(reference.log_probs, beta)
    found = equilibrium(game, tol=1e-20).log_probs
    assert residual(p, reference.log_probs, beta, found) <= 2e-10 + rounding(found, beta)
    other = slowly(p.numpy(), reference.log_probs.numpy(), beta)
    assume(other is not None)
    assert other is not None
    # Equal in probability, and in log-probability as far as the slow one is exact.
    assert np.abs(np.exp(other) - found.exp().numpy()).max() <= 1e-7
    assert np.abs(other - found.numpy()).max() <= 1e-7 + 1e-11 / beta


def test_two_responses_by_hand() -> None:
    """P(a > b) = p: the log-ratio h solves beta h = (p - 1/2) (it does not depend on pi)."""
    game = Game(MatrixOracle([[0.5, 0.9], [0.1, 0.5]]), beta=0.2)
    log_probs = equilibrium(game, tol=1e-24).log_probs
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


# --- large games: few passes over the matrix, few factorisations


@pytest.mark.parametrize("kind", ["random", "low_rank"])
@pytest.mark.parametrize("beta", [1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("spread", [0.0, 30.0])
def test_large_games(kind: str, beta: float, spread: float) -> None:
    oracle = lookup("games", kind)(seed=1, responses=520)
    reference = TabularPolicy(spread * torch.randn(520, generator=torch.Generator().manual_seed(2)).double())
    report = find_equilibrium(Game(oracle, reference, beta))
    found = report.policy.log_probs
    assert float(report.duality_gap) <= 1e-10
    assert residual(oracle.matrix(), reference.log_probs, beta, found) <= 2e-5 + rounding(found, beta)
    finer = find_equilibrium(Game(oracle, reference, beta), tol=1e-18).policy.log_probs
    assert residual(oracle.matrix(), reference.log_probs, beta, finer) <= 2e-9 + rounding(found, beta)


@pytest.mark.parametrize(("size", "rank", "beta"), [(100, 2, 1e-4), (100, 5, 0.1), (600, 2, 1e-3), (600, 6, 1e-2)])
def test_a_game_of_low_rank_takes_one_pass(size: int, rank: int, beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, calls, look = lookup("games", "low_rank")(seed=1, responses=size, rank=rank), 0, Passes.look

    def counted(*args: Any) -> Seen:
        nonlocal calls
        calls += 1
        return look(*args)

    monkeypatch.setattr(Passes, "look", counted)
    report = find_equilibrium(Game(oracle, beta=beta))
    assert (calls, report.method) == (1, "low rank")
    found = report.policy.log_probs
    assert residual(oracle.matrix(), TabularPolicy.uniform(size).log_probs, beta, found) <= 2e-5


def test_a_game_that_looks_of_low_rank_in_the_rows_looked_at_is_solved_all_the_same() -> None:
    """Rank 2 but for two responses, which a few rows are likely to leave out."""
    p = lookup("games", "low_rank")(seed=2, responses=100, rank=2).matrix().clone()
    p[31, 77], p[77, 31] = 0.93, 0.07
    for beta in (1.0, 1e-2, 1e-4):
        report = find_equilibrium(Game(MatrixOracle(p), beta=beta))
        assert residual(p, TabularPolicy.uniform(100).log_probs, beta, report.policy.log_probs) <= 2e-5


@given(seed=st.integers(0, 1000), beta=st.floats(-6, 0).map(lambda x: 10**x), depth=st.floats(0, 40))
@settings(deadline=None, max_examples=10)
def test_both_linear_solvers_solve_the_same_system(seed: int, beta: float, depth: float) -> None:
    p = matrix(90, seed, "uniform")
    payoffs = Payoffs(p, TabularPolicy.uniform(90).log_probs, beta)
    generator = torch.Generator().manual_seed(seed)
    h = torch.exp(-depth * torch.rand(90, generator=generator, dtype=torch.float64)) / beta
    g = torch.randn(90, generator=generator, dtype=torch.float64)
    for systems in (DenseSystems(payoffs), SparedSystems(payoffs)):
        systems.factor(h.numpy())
        x, v = map(torch.from_numpy, systems.solve(g.numpy(), 0.5, 1e-10))
        missing = x / h - (p - 0.5) @ x - v - g
        assert float(x.sum()) == pytest.approx(0.5, abs=1e-9)
        assert float((h.sqrt() * missing).norm()) <= 1e-6 * float((h.sqrt() * g).norm())


def test_a_float32_matrix_is_solved_in_float64() -> None:
    for size in (20, 530):
        narrow = MatrixOracle(matrix(size, 4, "uniform"), dtype=torch.float32)
        wide = MatrixOracle(narrow.matrix().double())
        ours = equilibrium(Game(narrow, beta=0.05)).log_probs
        assert ours.dtype == torch.float64
        assert torch.allclose(ours, equilibrium(Game(wide, beta=0.05)).log_probs, atol=1e-5)
        assert residual(narrow.matrix(), TabularPolicy.uniform(size).log_probs, 0.05, ours) <= 2e-5


def test_a_batch_is_its_games_whatever_each_of_them_takes() -> None:
    kinds = [matrix(12, seed, shape) for seed, shape in enumerate(SHAPES)]
    reference = TabularPolicy(torch.linspace(0, 1, 4).unsqueeze(-1) * torch.linspace(-600, 0, 12).double())
    together = find_equilibrium(Game(MatrixOracle(torch.stack(kinds)), reference, 1e-3), 1e-20)
    for i, one in enumerate(kinds):
        alone = equilibrium(Game(MatrixOracle(one), TabularPolicy(reference.log_probs[i]), 1e-3), 1e-20)
        assert torch.allclose(together.policy.log_probs[i], alone.log_probs, atol=1e-9)
    # One matrix, many references; and no game at all.
    many = equilibrium(Game(MatrixOracle(kinds[0]), reference, 1e-3), 1e-20)
    assert torch.allclose(many.log_probs[0], together.policy.log_probs[0], atol=1e-9)


def test_a_batch_of_large_games() -> None:
    oracle = lookup("games", "random")(seed=3, responses=520, games=2)
    found = find_equilibrium(Game(oracle, beta=0.1))
    assert found.duality_gap.shape == (2,)
    for i in range(2):
        uniform = TabularPolicy.uniform(520).log_probs
        assert residual(oracle.matrix()[i], uniform, 0.1, found.policy.log_probs[i]) <= 2e-5


def test_the_interior_point_method_comes_near_and_newton_finishes() -> None:
    payoffs = Payoffs(matrix(60, 8, "uniform"), TabularPolicy.uniform(60).log_probs, 1e-5)
    systems = DenseSystems(payoffs)
    near = payoffs.at(torch.from_numpy(interior(payoffs, systems, 1.0)))
    assert float(near.size) <= 1.0
    assert systems.solved <= 25
    point, done = newton(payoffs, systems, near, 1e-12)
    assert bool(done)
    assert residual(payoffs.matrix, payoffs.log_reference, 1e-5, point.z) <= 1e-8


@pytest.mark.parametrize("beta", [1e-8, 1e-10])
def test_a_tiny_beta_is_solved(beta: float) -> None:
    p = matrix(15, 2, "uniform")
    found = equilibrium(Game(MatrixOracle(p), beta=beta)).log_probs
    assert residual(p, TabularPolicy.uniform(15).log_probs, beta, found) <= 1e-14 / beta


@pytest.mark.parametrize("beta", [1e-20, 1e-300])
def test_a_beta_beyond_double_precision_is_refused_in_a_line(beta: float) -> None:
    with pytest.raises(NotConverged, match="reached"):
        equilibrium(Game(MatrixOracle(matrix(15, 2, "uniform")), beta=beta))
