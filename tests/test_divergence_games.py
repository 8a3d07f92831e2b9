"""Games under other divergences: duality gap, equilibrium, implicit updates, and whole runs."""

from __future__ import annotations

import math
import warnings

import attrs
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import nlhf_zoo as nz
from nlhf_zoo.interfaces import Divergence, ReverseKL
from nlhf_zoo.metrics import duality_gap, improvement_value, span
from nlhf_zoo.tabular import EXACT, NotConverged, find_equilibrium
from nlhf_zoo.tabular.central_path import central_path
from nlhf_zoo.tabular.general_equilibrium import _by_answers, _Problem, general_equilibrium
from nlhf_zoo_plugins.divergences import Alpha, ChiSquared, JensenShannon, TotalVariation
from tests.test_divergences import STRICT, close, every, quick, strict, tables

several = settings(max_examples=25, deadline=None)


def game(divergence: Divergence, size: int, seed: int, beta: float, rows: int | None = None) -> nz.Game:
    generator = torch.Generator().manual_seed(seed)
    shape = (size, size) if rows is None else (rows, size, size)
    raw = torch.randn(shape, generator=generator, dtype=torch.float64)
    reference = torch.randn(shape[:-1], generator=generator, dtype=torch.float64)
    return nz.Game(nz.MatrixOracle((raw - raw.mT).sigmoid()), nz.TabularPolicy(reference), beta, divergence)


@strict
@pytest.mark.parametrize("beta", [1.0, 0.05])
def test_equilibrium_is_its_own_best_response(divergence: Divergence, beta: float) -> None:
    found = general_equilibrium(game(divergence, 6, 4, beta, rows=2))
    assert float(found.duality_gap.max()) <= 1e-13
    mine = game(divergence, 6, 4, beta, rows=2)
    answer = divergence.improve(mine.oracle.payoff(found.policy.probs), [(mine.reference.log_probs, beta)])
    assert close(answer.exp(), found.policy.probs, 1e-9)


def test_equilibrium_under_the_reverse_kl_is_the_known_one() -> None:
    mine = game(ReverseKL(), 8, 2, 0.02)
    assert close(general_equilibrium(mine).policy.log_probs, nz.equilibrium(mine).log_probs, 1e-9)


def test_equilibrium_refuses_what_is_not_unique() -> None:
    with pytest.raises(nz.BadInput, match="not strictly convex"):
        general_equilibrium(game(TotalVariation(), 4, 0, 0.1))


@every
@quick
@given(seed=st.integers(0, 10**6))
def test_duality_gap_is_what_the_best_opponents_win(divergence: Divergence, seed: int) -> None:
    """max_mu f(mu, pi) - min_mu f(pi, mu), by its definition, at the best of many opponents and at the exact one."""
    mine = game(divergence, 4, seed, 0.3)
    policy = nz.TabularPolicy(tables(1, 4, seed)[0])
    gap = float(nz.duality_gap(mine, policy))
    ref, matrix = mine.reference.log_probs, mine.oracle.matrix()

    def f(mu: torch.Tensor, pi: torch.Tensor) -> torch.Tensor:
        won = ((mu.exp() @ matrix) * pi.exp()).sum(-1)
        return won - 0.3 * divergence.value(mu, ref) + 0.3 * divergence.value(pi, ref)

    best = divergence.improve(matrix @ policy.probs, [(ref, 0.3)])
    exact = f(best, policy.log_probs) - (1 - f(best, policy.log_probs))
    assert gap == pytest.approx(float(exact), abs=1e-12)
    others = tables(200, 4, seed + 1)
    assert bool((2 * f(others, policy.log_probs) - 1 <= gap + 1e-12).all())


def test_duality_gap_of_the_generic_form_agrees_with_the_closed_one() -> None:
    @attrs.frozen
    class Plain(Divergence):
        name = "plain"

        def generator(self, ratio):
            return torch.xlogy(ratio, ratio)

        def derivative(self, ratio):
            return ratio.log() + 1

    payoff = torch.rand(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = tables(2, 5, 0)
    assert close(duality_gap(payoff, p, q, 0.1, Plain()), duality_gap(payoff, p, q, 0.1), 1e-12)


@strict
def test_solve_reaches_a_tolerance(divergence: Divergence) -> None:
    """Magnetic steps towards the reference by a solver that knows nothing of the divergence."""
    mine = game(divergence, 5, 7, 0.5)
    result = nz.solve(mine, "nash_mp", steps=400, tol=1e-8)
    assert result.converged
    assert all(math.isfinite(row["duality_gap"]) for row in result.history)


@pytest.mark.parametrize("divergence", [JensenShannon(), ChiSquared(), Alpha(1.5)], ids=repr)
@pytest.mark.parametrize("beta", [1.0, 0.05])
def test_implicit_update_is_the_equilibrium(divergence: Divergence, beta: float) -> None:
    mine = game(divergence, 5, 3, beta)
    update = nz.Update(start=mine.reference, opponent=nz.ITSELF, anchors=[(mine.reference, beta)])
    outcome = mine.reference.improve(update, mine)
    assert float(nz.duality_gap(mine, outcome.policy)) <= 1e-13
    assert outcome.queries.exact > 1


def test_span_where_both_leave_a_response_out() -> None:
    p = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    assert float(span(p, p)) == 0


def preferences(kind: str, size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "cyclic":
        ahead = (torch.arange(size)[:, None] - torch.arange(size)) % size
        return torch.where(
            ahead == 0, 0.5, torch.where(2 * ahead < size, 1.0, torch.where(2 * ahead == size, 0.5, 0.0))
        )
    levels = {"deterministic": 2, "quarters": 5, "random": 10**6}[kind]
    drawn = torch.randint(0, levels, (size, size), generator=generator).double() / (levels - 1)
    upper = drawn.triu(1)
    return upper + (1 - upper.T).tril(-1) + torch.eye(size).double() / 2


BOUNDED = [d for d in STRICT if math.isfinite(d.slope_at_infinity) and not d.name.startswith("bare")]


@pytest.mark.parametrize("divergence", BOUNDED, ids=repr)
@several
@given(
    kind=st.sampled_from(["cyclic", "deterministic", "quarters", "random"]),
    size=st.sampled_from([1, 2, 3, 8, 21, 40]),
    seed=st.integers(0, 10**6),
    exponent=st.floats(-5, 1),
    depth=st.sampled_from([0.0, 3.0, 30.0, 69.0]),
)
def test_equilibrium_of_hard_games(
    divergence: Divergence, kind: str, size: int, seed: int, exponent: float, depth: float
) -> None:
    """Deterministic preferences and references down to 1e-30: found within the tolerance, by the gap's definition."""
    reference = -depth * torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    oracle = nz.MatrixOracle(preferences(kind, size, seed).double())
    mine = nz.Game(oracle, nz.TabularPolicy(reference), 10**exponent, divergence)
    found = general_equilibrium(mine)
    assert float(found.duality_gap) <= 1e-10
    held = [(mine.reference.log_probs, mine.beta, divergence)]
    payoff = oracle.payoff(found.policy.probs)
    best = divergence.improve(payoff, [(mine.reference.log_probs, mine.beta)])
    gained = improvement_value(best, payoff, held) - improvement_value(found.policy.log_probs, payoff, held)
    assert abs(2 * float(gained)) <= 2e-10


@pytest.mark.parametrize("divergence", BOUNDED, ids=repr)
def test_the_two_ways_to_an_equilibrium_meet(divergence: Divergence) -> None:
    mine = game(divergence, 9, 5, 0.02, rows=3)
    skew = mine.oracle.matrix() - 0.5
    log_p, _ = central_path(skew, mine.reference.log_probs, divergence, mine.beta)
    problem = _Problem(skew, mine.reference.log_probs, divergence)
    assert close(log_p, _by_answers(problem, mine.beta)[0], 1e-9)


def test_what_was_not_reached_is_said() -> None:
    with pytest.raises(NotConverged, match=r"duality gap .* reached, -1\.0e\+00 asked for"):  # no gap is negative
        general_equilibrium(game(JensenShannon(), 5, 0, 0.1), tol=-1.0)


@pytest.mark.parametrize("divergence", [ChiSquared(), Alpha(1.5)], ids=repr)
def test_a_response_that_is_lost_for_good_is_said(divergence: Divergence) -> None:
    matrix = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]], dtype=torch.float64)
    mine = nz.Game(nz.MatrixOracle(matrix), nz.TabularPolicy([-0.1, -4.0, -5.0]), 1e-3, divergence)
    assert bool((general_equilibrium(mine).policy.probs > 0.2).all())
    with pytest.warns(UserWarning, match="keeps that response out for good"):
        result = nz.solve(mine, nz.drive.configure("mmd", eta=10.0), steps=50)
    assert bool((result.policy.probs == 0).any())


def test_covering_mass_loses_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nz.solve(game(JensenShannon(), 5, 1, 0.01), "mmd", steps=20)


@pytest.mark.parametrize("beta", [1.0, 0.1, 0.01])
@strict
def test_the_tightest_tolerance_is_no_reason_to_fail(divergence: Divergence, beta: float) -> None:
    assert float(find_equilibrium(game(divergence, 6, 4, beta), EXACT).duality_gap) <= 1e-13
