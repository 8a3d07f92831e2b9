"""The von Neumann winner: proved by its certificate, exact, and chosen as promised where there are several."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.optimize import linprog
from torch import Tensor

from nlhf_zoo import BadInput, Game, MatrixOracle, TabularPolicy, equilibrium, von_neumann_winner
from nlhf_zoo.tabular import EXACT, WinnerReport, find_winner, winner, winner_closest
from nlhf_zoo.testing.strategies import KINDS, matrices, orders, references

DECIMAL = [kind for kind in KINDS if "bradley" not in kind and kind != "many"]


def random_matrix(size: int, seed: int, levels: int | None = None) -> Tensor:
    draws = torch.rand(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    upper = (draws if levels is None else (draws * levels).round() / levels).triu(1)
    return upper + _mirrored(upper)


def _mirrored(upper: Tensor) -> Tensor:
    return (1 - upper.mT).tril(-1) + 0.5 * torch.eye(len(upper), dtype=upper.dtype)


def split(matrix: Tensor, copies: Sequence[int]) -> Tensor:
    """Every response i as copies[i] equal ones, one after the other."""
    index = torch.repeat_interleave(torch.arange(len(matrix)), torch.tensor(copies))
    return matrix[index][:, index]


def assert_proved(report: WinnerReport, matrix: Tensor) -> None:
    """Nobody beats it, everybody on the support draws, and, where it is unique, everybody else loses."""
    payoffs = (matrix @ report.policy.probs.unsqueeze(-1)).squeeze(-1)
    assert float(report.duality_gap.max()) <= 1e-12
    assert float(payoffs.max()) <= 0.5 + 5e-13
    assert torch.equal(report.support, report.policy.probs > 0)
    assert float((payoffs - 0.5)[report.support].abs().max()) <= 5e-13
    losers = ~report.support & report.unique.unsqueeze(-1)
    assert bool((payoffs[losers] < 0.5).all())


def excess(report: WinnerReport, matrix: Tensor, log_reference: Tensor) -> float:
    """Frank and Wolfe's gap: an upper bound on KL(policy || reference) less its least value over all winners."""
    on = report.support
    slope = (report.policy.log_probs - log_reference.log_softmax(-1))[on].numpy()
    answer = linprog(
        slope,
        A_ub=(matrix - 0.5)[:, on].numpy(),
        b_ub=np.zeros(len(matrix)),
        A_eq=np.ones((1, len(slope))),
        b_eq=[1.0],
        method="highs",
    )
    assert answer.status == 0
    return float(slope @ report.policy.probs[on].numpy() - answer.fun)


@given(data=st.data(), kind=st.sampled_from(sorted(KINDS)))
@settings(deadline=None, max_examples=80)
def test_every_kind_of_game(data: st.DataObject, kind: str) -> None:
    drawn = data.draw(matrices(sizes=(2, 3, 1, 5, 8, 12), kinds=(kind,)))
    log_reference = torch.tensor(data.draw(references(len(drawn))), dtype=torch.float64)
    oracle = MatrixOracle(drawn)
    report = find_winner(oracle, TabularPolicy(log_reference))
    assert_proved(report, oracle.matrix())
    assert int(report.dimension) >= 0
    # HiGHS itself is good to about 1e-7.
    assert abs(excess(report, oracle.matrix(), log_reference)) <= 1e-6


def solutions(rows: list[list[Fraction]]) -> list[Fraction] | None:
    """The solution of a square system [A | b] in exact arithmetic, if it is the only one."""
    rows = [row[:] for row in rows]
    size = len(rows)
    for column in range(size):
        pivot = next((r for r in range(column, size) if rows[r][column]), None)
        if pivot is None:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for r in range(size):
            if r != column and rows[r][column]:
                factor = rows[r][column]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[column], strict=True)]
    return [row[-1] for row in rows]


def exact_vertices(drawn: list[list[float]]) -> list[list[Fraction]]:
    """All vertices of {x >= 0, sum x = 1, P x <= 1/2}, by trying every set of Y - 1 constraints."""
    skew = [[Fraction(str(p)) - Fraction(1, 2) for p in row] for row in drawn]
    size = len(skew)
    unit = [[Fraction(int(i == j)) for j in range(size)] for i in range(size)]
    found: list[list[Fraction]] = []
    for tight in itertools.combinations(unit + skew, size - 1):
        x = solutions([[*row, Fraction(0)] for row in tight] + [[Fraction(1)] * (size + 1)])
        if x is None or x in found or min(x) < 0:
            continue
        if all(sum(a * b for a, b in zip(row, x, strict=True)) <= 0 for row in skew):
            found.append(x)
    return found


@given(drawn=matrices(sizes=(3, 4, 2, 1), kinds=DECIMAL))
@settings(deadline=None, max_examples=60)
def test_against_exact_arithmetic(drawn: list[list[float]]) -> None:
    vertices = exact_vertices(drawn)
    report = find_winner(MatrixOracle(drawn))
    assert bool(report.unique) == (len(vertices) == 1)
    assert report.support.tolist() == [any(x[i] > 0 for x in vertices) for i in range(len(drawn))]
    corners = np.array(vertices, dtype=np.float64)
    assert int(report.dimension) == np.linalg.matrix_rank(corners - corners[0], tol=1e-6)
    if len(vertices) == 1:
        assert np.allclose(report.policy.probs.numpy(), corners[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [None, 1, 2, 100])
def test_large_games(levels: int | None) -> None:
    """Tournaments (levels 0 and 1) have a unique winner on an odd number of responses (Fisher and Ryan 1992)."""
    matrix = random_matrix(201, 4, levels)
    report = find_winner(MatrixOracle(matrix))
    assert_proved(report, matrix)
    assert bool(report.unique)
    assert int(report.support.sum()) % 2 == 1
    assert float(report.margin) > 1e-8


def test_copies_of_a_response_share_its_probability() -> None:
    matrix = random_matrix(15, 2)
    alone = von_neumann_winner(MatrixOracle(matrix)).probs
    copies = [1 + i % 3 for i in range(15)]
    report = find_winner(MatrixOracle(split(matrix, copies)))
    each = torch.repeat_interleave(alone / torch.tensor(copies), torch.tensor(copies))
    assert torch.allclose(report.policy.probs, each, atol=1e-14, rtol=0)
    assert int(report.dimension) == sum(c - 1 for c, p in zip(copies, alone, strict=True) if p > 0)
    assert report.choices == (
        f"closest to the reference in KL(winner || reference), in a set of dimension {int(report.dimension)}",
    )


@pytest.mark.parametrize("depth", [1.0, 700.0])
def test_where_every_policy_wins_the_reference_does(depth: float) -> None:
    oracle = MatrixOracle(torch.full((40, 40), 0.5, dtype=torch.float64))
    assert torch.allclose(von_neumann_winner(oracle).probs, torch.full((40,), 1 / 40, dtype=torch.float64))
    reference = TabularPolicy(torch.linspace(-depth, 0, 40, dtype=torch.float64))
    found = find_winner(oracle, reference)
    assert torch.allclose(found.policy.log_probs, reference.log_probs, atol=1e-12, rtol=1e-12)
    assert (int(found.dimension), bool(found.unique)) == (39, False)


def test_unbeaten_responses_that_tie() -> None:
    """Two beat all the rest and draw with each other: any mixture of them wins."""
    matrix = torch.tensor([[0.5, 0.5, 0.9], [0.5, 0.5, 0.6], [0.1, 0.4, 0.5]], dtype=torch.float64)
    assert torch.allclose(von_neumann_winner(MatrixOracle(matrix)).probs, torch.tensor([0.5, 0.5, 0.0]).double())
    reference = TabularPolicy(torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64).log())
    found = von_neumann_winner(MatrixOracle(matrix), reference)
    assert torch.allclose(found.probs, torch.tensor([0.25, 0.75, 0.0]).double(), atol=1e-14)
    # It is where the regularised equilibria go.
    near = equilibrium(Game(MatrixOracle(matrix), reference, 1e-3), EXACT)
    assert torch.allclose(near.probs, found.probs, atol=1e-12)


def test_a_response_off_the_support_can_bind() -> None:
    """a and b tie; c beats a by 0.4 and loses to b by 0.1, so a winner has x_a <= 0.2. The largest entropy: at 0.2."""
    matrix = torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.5, 0.6], [0.9, 0.4, 0.5]], dtype=torch.float64)
    report = find_winner(MatrixOracle(matrix))
    assert torch.allclose(report.policy.probs, torch.tensor([0.2, 0.8, 0.0], dtype=torch.float64), atol=1e-14)
    assert report.support.tolist() == [True, True, False]
    assert float(report.margin) > 1e-3  # of a winner inside the set, where c does lose


def test_condorcet_winner() -> None:
    report = find_winner(MatrixOracle([[0.5, 0.4, 0.3], [0.6, 0.5, 0.8], [0.7, 0.2, 0.5]]))
    assert report.policy.probs.tolist() == [0, 1, 0]
    assert bool(report.unique)
    assert float(report.margin) == pytest.approx(0.1)
    assert (report.choices, report.methods) == (("the only winner",), ("Condorcet winner",))


def test_batches_with_a_reference_a_game() -> None:
    games = torch.stack([random_matrix(6, seed, 4) for seed in range(6)] + [torch.full((6, 6), 0.5).double()] * 2)
    log_references = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = find_winner(MatrixOracle(games.reshape(2, 4, 6, 6)), TabularPolicy(log_references))
    assert together.policy.log_probs.shape == together.support.shape == (2, 4, 6)
    assert together.unique.shape == together.duality_gap.shape == together.margin.shape == (2, 4)
    for i, (game, reference) in enumerate(zip(games, log_references.reshape(8, 6), strict=True)):
        alone = find_winner(MatrixOracle(game), TabularPolicy(reference))
        assert torch.equal(together.policy.probs.reshape(8, 6)[i], alone.policy.probs)
        assert int(together.dimension.reshape(8)[i]) == int(alone.dimension)
        assert together.choices[i] == alone.choices[0]


@given(data=st.data(), drawn=matrices(sizes=(4, 7)))
@settings(deadline=None, max_examples=30)
def test_names_do_not_matter(data: st.DataObject, drawn: list[list[float]]) -> None:
    matrix = MatrixOracle(drawn).matrix()
    order = data.draw(orders(len(drawn)))
    first, second = find_winner(MatrixOracle(matrix)), find_winner(MatrixOracle(matrix[order][:, order]))
    assert torch.allclose(first.policy.probs[order], second.policy.probs, atol=1e-9, rtol=0)
    assert torch.equal(first.dimension, second.dimension)


def test_a_path_that_must_be_kept_central() -> None:
    """Ties broken at 1e-6: pure predictor-corrector steps run into the boundary here."""
    rng = np.random.default_rng(1)
    for size in (4, 6, 12):
        for _ in range(20):
            upper = np.clip(
                np.triu(rng.integers(0, 3, (size, size)) / 2 + 1e-6 * rng.normal(size=(size, size)), 1), 0, 1
            )
            matrix = torch.from_numpy(upper)
            matrix = matrix + _mirrored(matrix)
            report = find_winner(MatrixOracle(matrix))
            assert_proved(report, matrix)
            assert int(report.dimension) == 0


def test_what_double_precision_cannot_tell_is_not_claimed() -> None:
    """Margins of 5e-14 are below what a certificate can show; the policy is a winner to 1e-12 all the same."""
    m = 5e-14
    matrix = torch.tensor([[0.5, 0.5 + m, 0.5 - m], [0.5 - m, 0.5, 0.5 + m], [0.5 + m, 0.5 - m, 0.5]]).double()
    matrix = torch.cat([torch.cat([matrix, torch.full((3, 1), 0.5 + m).double()], 1), torch.full((1, 4), 0.5 - m)])
    matrix[3, 3] = 0.5
    report = find_winner(MatrixOracle(matrix.double()))
    assert float(report.duality_gap) <= 1e-12
    assert not bool(report.unique)


def test_the_matrix_is_left_as_it_is_and_float32_will_do() -> None:
    matrix = random_matrix(30, 7)
    oracle = MatrixOracle(matrix)
    before = oracle.matrix().clone()
    found = von_neumann_winner(oracle)
    assert torch.equal(oracle.matrix(), before)
    rough = find_winner(MatrixOracle(matrix, dtype=torch.float32))
    assert rough.policy.log_probs.dtype == torch.float64
    assert float(rough.duality_gap) <= 1e-12
    assert torch.allclose(rough.policy.probs, found.probs, atol=1e-3)


def test_a_gap_out_of_reach_is_an_error_that_says_what_was_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winner, "_TOLERANCE", -1.0)
    with pytest.raises(ArithmeticError, match="reached"):
        von_neumann_winner(MatrixOracle(random_matrix(9, 0)))


def test_a_choice_that_failed_is_not_passed_off_as_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winner_closest, "_MOST_STEPS", 0)
    matrix = split(torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]], dtype=torch.float64), [2, 1, 1])
    report = find_winner(MatrixOracle(matrix))
    assert_proved(report, matrix)
    assert "was not reached" in report.choices[0]


def test_bad_input() -> None:
    oracle = MatrixOracle(random_matrix(3, 0))
    with pytest.raises(BadInput, match="probability zero"):
        von_neumann_winner(oracle, TabularPolicy([0.0, 0.0, -torch.inf]))
    with pytest.raises(BadInput, match="2 responses, the oracle 3"):
        von_neumann_winner(oracle, TabularPolicy([0.0, 0.0]))
    with pytest.raises(BadInput, match="shape"):
        von_neumann_winner(oracle, TabularPolicy.uniform(2, 3))

    class Skewed(MatrixOracle):
        def matrix(self) -> Tensor:
            return super().matrix() * 0.9

    with pytest.raises(BadInput, match="off 1"):
        von_neumann_winner(Skewed(random_matrix(3, 0)))
