"""Payoffs: the fast matrix-vector product, and oracles that have no matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nlhf_zoo as nz
from nlhf_zoo.oracles import SampledOracle, nlhf_zoo_oracles, products
from nlhf_zoo.oracles.operators import OperatorOracle
from nlhf_zoo.oracles.sigmoid_sum import SigmoidSum

F64 = torch.float64


class Squares(nz.PairwiseLoss):
    """(h - tan(P - 1/2))^2: a signal that is not linear in P, so that a mean of it is not a signal of the mean."""

    def loss(self, preference: torch.Tensor, log_ratio: torch.Tensor) -> torch.Tensor:
        return (log_ratio - (preference - 0.5).tan()) ** 2


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(*shape: int, seed: int, dtype: torch.dtype = F64) -> torch.Tensor:
    """Signed weights that add up to 1, as of an optimistic opponent 2 p - q."""
    p, q = (torch.randn(*shape, generator=rng(seed + i), dtype=F64).softmax(-1) for i in (0, 1))
    return (2 * p - q).to(dtype)


def bradley_terry(seed: int, y: int, batch: tuple[int, ...] = (), scale: float = 1.0) -> OperatorOracle:
    return nz.BradleyTerryOracle(torch.randn(*batch, y, generator=rng(seed), dtype=F64) * scale)


def factors(seed: int, y: int, batch: tuple[int, ...] = (), rank: int = 4, tight: bool = False) -> OperatorOracle:
    u = torch.randn(*batch, y, rank, generator=rng(seed), dtype=F64)
    s = torch.randn(*batch, rank, rank, generator=rng(seed + 1), dtype=F64)
    s = s - s.mT
    # `tight`: the largest preference is 1 exactly, which the bound by norms cannot see.
    largest = (u @ s @ u.mT).abs().amax((-2, -1), keepdim=True) if tight else u.norm(dim=-1).amax() ** 2 * s.norm()
    return nz.FactorOracle(u, s / (2 * largest.clamp_min(1e-9)))


def same_in_a_matrix(oracle: OperatorOracle) -> nz.MatrixOracle:
    """P entry by entry, by `probability` alone."""
    y, games = oracle.num_responses, math.prod(oracle.batch_shape)
    game, i, j = torch.meshgrid(torch.arange(games), torch.arange(y), torch.arange(y), indexing="ij")
    p = oracle.probability(game.flatten(), i.flatten(), j.flatten())
    return nz.MatrixOracle(p.reshape(*oracle.batch_shape, y, y))


kinds = st.sampled_from([bradley_terry, factors])
batches = st.sampled_from([(), (3,), (2, 2)])
seeds = st.integers(0, 10_000)


@given(
    games=st.sampled_from([(), (1,), (5,), (2, 3), (0,)]),
    rows=st.sampled_from([1, 2, 10, 31, 32, 33, 64]),
    extra=st.sampled_from(["same", "fewer", "one", "more", "unit"]),
    dtype=st.sampled_from([F64, torch.float32]),
    seed=seeds,
)
@settings(max_examples=150, deadline=None)
def test_products_agree_with_matmul(games: tuple[int, ...], rows: int, extra: str, dtype: torch.dtype, seed: int):
    matrix = torch.rand(*games, rows, rows, generator=rng(seed), dtype=dtype)
    leading = {"same": games, "fewer": games[1:], "one": (), "more": (4, *games), "unit": tuple(1 for _ in games)}[
        extra
    ]
    vector = torch.randn(*leading, rows, generator=rng(seed + 1), dtype=dtype)
    got = products.matrix_vector(matrix, vector)
    expected = (matrix @ vector.unsqueeze(-1)).squeeze(-1)
    assert got.shape == expected.shape
    assert got.dtype == dtype
    assert torch.allclose(got, expected, rtol=0, atol=rows * 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(64, 64, 64), (3, 300, 300), (2000, 12, 12), (1, 600, 600), (600, 600)])
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    matrix = torch.rand(*shape, generator=rng(0), dtype=F64)
    vector = torch.rand(*shape[:-1], generator=rng(1), dtype=F64)
    alone = products.matrix_vector(matrix, vector)
    expected = (matrix @ vector.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(alone, expected, rtol=1e-13)
    monkeypatch.setattr(products, "_WORTH_THREADS", 0)
    for threads in (2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        assert torch.equal(products.matrix_vector(matrix, vector), alone)


def test_products_of_other_strides_and_types():
    matrix = torch.rand(6, 40, 40, generator=rng(0), dtype=F64)
    vector = torch.rand(6, 40, generator=rng(1), dtype=F64)
    for one in (matrix.mT, matrix[::2], matrix[:1].expand(6, 40, 40)):
        v = vector[: len(one)]
        assert torch.allclose(products.matrix_vector(one, v), (one @ v.unsqueeze(-1)).squeeze(-1), rtol=1e-13)
    half = products.matrix_vector(matrix.bfloat16(), vector.bfloat16())
    assert half.dtype == torch.bfloat16
    with pytest.raises(RuntimeError):
        products.matrix_vector(matrix, vector.float())


def test_a_gradient_is_kept():
    oracle = nz.MatrixOracle(same_in_a_matrix(bradley_terry(0, 40, (3,))).matrix())
    p = torch.full((3, 40), 1 / 40, dtype=F64, requires_grad=True)
    oracle.payoff(p)[:, 0].sum().backward()
    assert torch.allclose(p.grad, oracle.matrix()[:, 0], rtol=1e-12)


@given(kind=kinds, y=st.sampled_from([1, 2, 7, 40]), batch=batches, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_operators_agree_with_their_matrix(kind, y: int, batch: tuple[int, ...], seed: int):
    oracle = kind(seed, y, batch)
    truth = same_in_a_matrix(oracle)
    assert torch.allclose(oracle.matrix(), truth.matrix(), rtol=0, atol=1e-12)
    for leading in (batch, (2, *batch), ()):
        mu = weights(*leading, y, seed=seed)
        assert torch.allclose(oracle.payoff(mu), truth.payoff(mu), rtol=0, atol=1e-10)
    mu, h = weights(*batch, y, seed=seed), weights(*batch, y, seed=seed + 9)
    got = oracle.payoff(mu, loss=Squares(), log_ratio=h)
    assert torch.allclose(got, truth.payoff(mu, loss=Squares(), log_ratio=h), rtol=0, atol=1e-10)
    assert got.shape == (*batch, y)


@given(
    y=st.integers(1, 3000),
    scale=st.sampled_from([0.0, 1e-9, 0.1, 1.0, 30.0, 1e6, 1e300, 3e307]),
    centre=st.sampled_from([0.0, -7.25, 1e5]),
    ties=st.booleans(),
    seed=seeds,
)
@settings(max_examples=80, deadline=None)
def test_sigmoid_sums_agree_with_the_direct_sum(y: int, scale: float, centre: float, ties: bool, seed: int):
    scores = torch.randn(y, generator=rng(seed), dtype=F64)
    scores = (scores.round() if ties else scores) * scale + centre
    w = weights(y, seed=seed)
    sums = SigmoidSum(scores).of(w)
    some = torch.arange(0, y, max(1, y // 100))
    direct = (scores[some].unsqueeze(-1) - scores).sigmoid() @ w
    assert torch.allclose(sums[some], direct, rtol=0, atol=1e-13)


def test_sigmoid_sums_of_crowds_and_loners():
    crowd = torch.randn(4000, generator=rng(0), dtype=F64) * 0.2
    scores = torch.cat([crowd, crowd[:50] + 39.9, torch.linspace(-1e4, 1e4, 777, dtype=F64)])
    scores = scores[torch.randperm(len(scores), generator=rng(1))]
    w = weights(len(scores), seed=2)
    direct = (scores.unsqueeze(-1) - scores).sigmoid() @ w
    assert torch.allclose(SigmoidSum(scores).of(w), direct, rtol=0, atol=1e-13)


def test_sigmoid_sums_where_the_kernel_is_not_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nlhf_zoo.oracles.sigmoid_sum._KEPT", 300_000)
    scores = torch.randn(3000, generator=rng(0), dtype=F64) * 50
    w = weights(3000, seed=0)
    sums = SigmoidSum(scores)
    assert 0 < len(sums._kernel._kept) < len(sums._kernel._blocks)
    assert torch.allclose(sums.of(w), (scores.unsqueeze(-1) - scores).sigmoid() @ w, rtol=0, atol=1e-13)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_bradley_terry_beyond_the_small_table(batch: tuple[int, ...]):
    oracle = bradley_terry(3, 1500, batch)
    mu = weights(2, *batch, 1500, seed=4)
    assert torch.allclose(oracle.payoff(mu), (oracle.matrix() @ mu.unsqueeze(-1)).squeeze(-1), rtol=0, atol=1e-12)
    h = weights(*batch, 1500, seed=5)
    truth = nz.MatrixOracle(oracle.matrix())
    got = oracle.payoff(mu[0], loss=Squares(), log_ratio=h)
    assert torch.allclose(got, truth.payoff(mu[0], loss=Squares(), log_ratio=h), rtol=0, atol=1e-10)


def test_float32_is_computed_in_float32_from_exact_differences():
    scores = torch.randn(2000, generator=rng(0), dtype=F64) + 1e6
    oracle = nz.BradleyTerryOracle(scores, dtype=torch.float32)
    assert oracle.uniform_policy().log_probs.dtype == torch.float32
    mu = weights(2000, seed=1, dtype=torch.float32)
    payoff = oracle.payoff(mu)
    assert payoff.dtype == torch.float32
    direct = (scores.unsqueeze(-1) - scores).sigmoid() @ mu.double()
    assert torch.allclose(payoff.double(), direct, rtol=0, atol=1e-5)
    assert oracle.payoff(mu.double()).dtype == F64


@pytest.mark.parametrize("kind", [bradley_terry, factors])
def test_queries_are_counted(kind):
    oracle = kind(0, 30)
    mu = weights(30, seed=0)
    oracle.payoff(mu)
    oracle.payoff(mu, loss=Squares(), log_ratio=mu)
    assert oracle.queries == nz.QueryCount(exact=2)
    oracle.probability(None, [0, 1, 2], [3, 4, 5])
    oracle.matrix()
    assert oracle.queries == nz.QueryCount(exact=2, sampled=3)
    result = nz.solve(nz.Game(oracle, beta=0.5), "nash_mp", steps=5)
    assert result.queries == nz.QueryCount(exact=10)


@pytest.mark.parametrize("kind", [bradley_terry, factors])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_solvers_find_the_same_on_both(kind, batch: tuple[int, ...]):
    oracle = kind(1, 25, batch)
    one, other = (
        nz.solve(nz.Game(o, beta=0.3), "nash_mp", steps=60) for o in (oracle, nz.MatrixOracle(oracle.matrix()))
    )
    assert torch.allclose(one.policy.log_probs, other.policy.log_probs, rtol=0, atol=1e-10)
    gaps = [torch.as_tensor(r.history[-1]["duality_gap"]) for r in (one, other)]
    assert bool((gaps[0] < 1e-6).all())
    assert torch.allclose(*gaps, rtol=1e-6, atol=1e-15)
    assert "kl_to_equilibrium" in one.history[-1]


@pytest.mark.parametrize("kind", [bradley_terry, factors])
def test_a_large_operator_is_solved_and_measured_without_a_matrix(kind):
    oracle = kind(0, 5000)
    with pytest.raises(nz.BadInput, match="4096 responses"):
        oracle.matrix()
    oracle.matrix = lambda: pytest.fail("the matrix was asked for")
    result = nz.solve(nz.Game(oracle, beta=1.0), "nash_mp", steps=30)
    gap = nz.duality_gap(result.game, result.policy)
    assert float(gap) < 1e-9
    assert "kl_to_equilibrium" not in result.history[-1]
    sampled = nz.Game(SampledOracle(oracle), beta=1.0)
    assert float(nz.duality_gap(sampled, result.policy)) == pytest.approx(float(gap), abs=1e-15)


def test_a_small_operator_is_measured_by_its_payoff():
    oracle = bradley_terry(0, 12)
    policy = nz.TabularPolicy(weights(12, seed=0).abs().log())
    game = nz.Game(oracle)
    expected = nz.duality_gap(nz.Game(nz.MatrixOracle(oracle.matrix())), policy)
    oracle.matrix = lambda: pytest.fail("the matrix was asked for")
    assert torch.allclose(nz.duality_gap(game, policy), expected, rtol=1e-9)
    assert oracle.queries == nz.QueryCount()


def test_probabilities_by_label_and_game():
    oracle = nz.BradleyTerryOracle([[0.0, 1.0], [3.0, 0.0]], ["a", "b"])
    p = oracle.probability([0, 1], ["a", "a"], ["b", "b"])
    assert torch.allclose(p, torch.tensor([-1.0, 3.0], dtype=F64).sigmoid())
    assert oracle.probability([], [], []).shape == (0,)
    with pytest.raises(nz.BadInput, match="'c' is not a label"):
        oracle.probability([0], ["c"], ["a"])
    with pytest.raises(nz.BadInput, match="no labels"):
        bradley_terry(0, 2).probability(None, ["a"], ["b"])
    linear = nz.FactorOracle([[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.5], [-0.5, 0.0]], labels=["a", "b"])
    assert linear.probability(None, ["a", "b", "a"], ["b", "a", "a"]).tolist() == [1.0, 0.0, 0.5]


def test_factors_at_the_very_edge_are_taken():
    oracle = factors(0, 60, tight=True)
    assert float(oracle.matrix().amax()) == pytest.approx(1, abs=1e-9)
    assert oracle.payoff(weights(60, seed=0)).shape == (60,)


E3 = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nz.BradleyTerryOracle([0.0, math.nan]), "finite"),
        (lambda: nz.BradleyTerryOracle([]), "Y >= 1"),
        (lambda: nz.BradleyTerryOracle(1.0), "Y >= 1"),
        (lambda: nz.BradleyTerryOracle(["x"]), "not an array of numbers"),
        (lambda: nz.BradleyTerryOracle([1.0, 2.0], ["a"]), "1 labels for 2"),
        (lambda: nz.BradleyTerryOracle([1.0, 2.0], ["a", "a"]), "distinct"),
        (lambda: nz.BradleyTerryOracle([1.0, 2.0]).payoff(torch.ones(3)), "for 2 responses"),
        (lambda: nz.FactorOracle(E3, [[0.0, 0.1], [0.1, 0.0]]), "skew"),
        (lambda: nz.FactorOracle(E3, [[0.0]]), r"\(..., 2, 2\)"),
        (lambda: nz.FactorOracle([1.0], [[0.0]]), "shape"),
        (lambda: nz.FactorOracle([E3, E3], torch.zeros(3, 2, 2)), "games"),
        (lambda: nz.FactorOracle(E3, [[0.0, 0.7], [-0.7, 0.0]]), r"P\(0 > 1\) = 1/2 \+ 0.7 is outside .*0.7143"),
    ],
)
def test_refusals(make, words: str):
    with pytest.raises(nz.BadInput, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_too_many_pairs_to_check_are_sampled_and_said_to_be():
    u = torch.rand(20_000, 2, generator=rng(0), dtype=F64)
    u[[17, 18_000]] = torch.tensor([[4.0, 0.0], [0.0, 4.0]], dtype=F64)
    skew = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
    nz.FactorOracle(u, skew * 0.5 / 16)
    with pytest.raises(nz.BadInput, match=r"1/2 [+-] ?-?0\.56.*256 responses with the largest"):
        nz.FactorOracle(u, skew * 0.56 / 16)


def test_operators_come_from_files(tmp_path):
    make = nlhf_zoo_oracles()
    np.save(tmp_path / "s.npy", np.array([0.0, 1.0]))
    assert float(make["bradley_terry"](path=str(tmp_path / "s.npy")).probability(None, [1], [0])) == pytest.approx(
        1 / (1 + math.exp(-1))
    )
    np.savez(tmp_path / "s.npz", scores=[0.0, 1.0], labels=["a", "b"])
    assert make["bradley_terry"](path=str(tmp_path / "s.npz")).labels == ("a", "b")
    np.savez(tmp_path / "f.npz", U=np.eye(2), S=[[0, 0.2], [-0.2, 0]])
    assert float(make["factors"](path=str(tmp_path / "f.npz")).probability(None, [0], [1])) == pytest.approx(0.7)
    for name, file in (("factors", "s.npz"), ("factors", "s.npy"), ("bradley_terry", "f.npz"), ("factors", "no.npz")):
        with pytest.raises(nz.BadInput, match=r"no array|no such file"):
            make[name](path=str(tmp_path / file))


def test_an_improvement_that_is_no_number_is_still_refused():
    class Broken(nz.MatrixOracle):
        def payoff(self, opponent, **_):
            return torch.where(torch.arange(opponent.shape[-1]) == 1, math.nan, opponent)

    game = nz.Game(Broken([[0.5, 0.6, 0.5], [0.4, 0.5, 0.5], [0.5, 0.5, 0.5]]), beta=1.0)
    with pytest.raises(nz.BadInput, match="no finite numbers"):
        nz.solve(game, "nash_mp", steps=1)
