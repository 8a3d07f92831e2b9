"""Divergences against each other's formulas, and improvements against their optimality conditions."""

from __future__ import annotations

import math

import attrs
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import nlhf_zoo as nz
from nlhf_zoo.interfaces import Divergence, ReverseKL
from nlhf_zoo.interfaces.proximal import monotone_root, proximal_improvement
from nlhf_zoo.metrics import improvement_value
from nlhf_zoo.registry import load
from nlhf_zoo_plugins.divergences import (
    Alpha,
    ChiSquared,
    ForwardKL,
    JensenShannon,
    SquaredHellinger,
    TotalVariation,
)


@attrs.frozen
class Bare(Divergence):
    """What a third party must write, and no more: Hellinger's."""

    name = "bare"

    def generator(self, ratio):
        return (ratio.sqrt() - 1).square()

    def derivative(self, ratio):
        return 1 - ratio.rsqrt()


@attrs.frozen
class BareChi(Divergence):
    """The same without an upper bound on the slope, and shifted: f'(1) is free."""

    name = "bare_chi"

    def generator(self, ratio):
        return (ratio - 1).square() + 3 * (ratio - 1)

    def derivative(self, ratio):
        return 2 * (ratio - 1) + 3


STRICT = [
    ReverseKL(),
    ForwardKL(),
    JensenShannon(),
    Alpha(),
    Alpha(-1.0),
    Alpha(1.5),
    Alpha(3.0),
    ChiSquared(),
    SquaredHellinger(),
    Bare(),
    BareChi(),
]
ALL = [*STRICT, TotalVariation()]
strict = pytest.mark.parametrize("divergence", STRICT, ids=repr)
every = pytest.mark.parametrize("divergence", ALL, ids=repr)
logs = st.lists(st.floats(-12, 12), min_size=1, max_size=6).map(lambda x: torch.tensor(x, dtype=torch.float64))
quick = settings(max_examples=10, deadline=None)


def tables(rows: int, size: int, seed: int, spread: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(rows, size, generator=generator, dtype=torch.float64)).log_softmax(-1)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-9) -> bool:
    return bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())


def test_all_are_registered() -> None:
    names = {"alpha", "chi_squared", "forward_kl", "jensen_shannon", "reverse_kl", "squared_hellinger"}
    assert names | {"total_variation"} <= set(load().divergences)


@pytest.mark.parametrize("alpha", [0.0, 1.0, math.nan, math.inf])
def test_alpha_excludes_its_limits(alpha: float) -> None:
    with pytest.raises(nz.BadInput, match="alpha must be"):
        Alpha(alpha)


@pytest.mark.parametrize(("alpha", "limit"), [(1 + 1e-6, ReverseKL()), (1e-6, ForwardKL())])
def test_alpha_near_its_limits(alpha: float, limit: Divergence) -> None:
    p, q = tables(2, 6, 0)
    assert close(Alpha(alpha).value(p, q), limit.value(p, q), 1e-4)


def test_alpha_meets_its_neighbours() -> None:
    p, q = tables(2, 6, 1)
    assert close(Alpha(0.5).value(p, q), 2 * SquaredHellinger().value(p, q))
    assert close(2 * Alpha(2.0).value(p, q), ChiSquared().value(p, q))


def test_jensen_shannon_is_the_two_divergences_to_the_middle() -> None:
    p, q = tables(2, 6, 2)
    middle = torch.logaddexp(p, q) - math.log(2)
    kl = ReverseKL()
    assert close(JensenShannon().value(p, q), kl.value(p, middle) + kl.value(q, middle))


@every
@quick
@given(log_ratio=logs)
def test_derivative_is_the_generators(divergence: Divergence, log_ratio: torch.Tensor) -> None:
    t = log_ratio.exp().requires_grad_()
    (slope,) = torch.autograd.grad(divergence.generator(t).sum(), t)
    assert close(divergence.derivative(t.detach()), slope, 1e-6)
    apart = t.detach() != 1  # where exp rounds to 1, a kink there shows on one side only
    assert close(divergence.derivative_of_log(log_ratio)[apart], slope[apart], 1e-6)
    one = torch.ones(1, dtype=torch.float64)
    assert float(divergence.generator(one)) == 0


@strict
@quick
@given(log_ratio=logs)
def test_curvature_is_the_derivatives(divergence: Divergence, log_ratio: torch.Tensor) -> None:
    a = log_ratio.clone().requires_grad_()
    (slope,) = torch.autograd.grad(divergence.derivative_of_log(a).sum(), a)
    assert close(divergence.curvature_of_log(log_ratio), slope)
    assert bool((slope > 0).all())


@strict
@quick
@given(log_ratio=logs)
def test_inverse_undoes_the_derivative(divergence: Divergence, log_ratio: torch.Tensor) -> None:
    slope = divergence.derivative_of_log(log_ratio)
    found = divergence.log_inverse(slope)
    # Where f' is flat its inverse magnifies rounding; what must be right is the slope.
    assert close(divergence.derivative_of_log(found), slope, 1e-12)
    near = log_ratio.abs() < 3
    assert close(found[near], log_ratio[near], 1e-8)
    assert close(divergence.inverse(slope)[near], log_ratio.exp()[near], 1e-8)
    if math.isfinite(divergence.slope_at_infinity):
        assert close(divergence.log_inverse_of_slack(divergence.log_slack(log_ratio))[near], log_ratio[near], 1e-8)


@every
def test_slopes_at_the_ends(divergence: Divergence) -> None:
    ends = divergence.derivative_of_log(torch.tensor([-600.0, 600.0], dtype=torch.float64))
    for end, slope in zip(ends.tolist(), (divergence.slope_at_zero, divergence.slope_at_infinity), strict=True):
        assert end == pytest.approx(slope, abs=1e-9) if math.isfinite(slope) else abs(end) > 100
    beyond = [x for x in (divergence.slope_at_zero - 1,) if math.isfinite(x)]
    assert bool((divergence.inverse(torch.tensor(beyond, dtype=torch.float64)) == 0).all())


@every
@quick
@given(log_ratio=logs, other=st.floats(-12, 12))
def test_fenchel_young(divergence: Divergence, log_ratio: torch.Tensor, other: float) -> None:
    """s t <= f(t) + f*(s), with equality at s = f'(t)."""
    t = log_ratio.exp()
    slope = divergence.derivative_of_log(log_ratio)
    total = divergence.generator(t) + divergence.conjugate(slope)
    assert bool(((total - slope * t).abs() <= 1e-8 * (1 + t + (slope * t).abs())).all())
    elsewhere = divergence.derivative_of_log(torch.tensor(other, dtype=torch.float64))
    bound = divergence.generator(t) + divergence.conjugate(elsewhere) - elsewhere * t
    assert bool((bound >= -1e-8 * (1 + t + (elsewhere * t).abs())).all())


@every
@quick
@given(a=st.floats(-8, 8), b=st.floats(-8, 8), weight=st.floats(0.05, 0.95))
def test_generator_is_convex(divergence: Divergence, a: float, b: float, weight: float) -> None:
    s, t = math.exp(a), math.exp(b)
    ends = divergence.generator(torch.tensor([s, t, weight * s + (1 - weight) * t], dtype=torch.float64)).tolist()
    chord = weight * ends[0] + (1 - weight) * ends[1]
    assert ends[2] <= chord + 1e-12 * (1 + sum(map(abs, ends)))


@every
@quick
@given(seed=st.integers(0, 10**6), size=st.integers(2, 8))
def test_value_is_positive_and_zero_only_at_equality(divergence: Divergence, seed: int, size: int) -> None:
    p, q = tables(2, size, seed)
    assert float(divergence.value(p, q)) > 1e-12
    assert abs(float(divergence.value(p, p))) <= 1e-15
    plain = (q.exp() * divergence.generator((p - q).exp())).sum()
    assert float(divergence.value(p, q)) == pytest.approx(float(plain), rel=1e-9, abs=1e-12)


@every
def test_value_at_the_edge(divergence: Divergence) -> None:
    p = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64).log()
    q = torch.tensor([0.25, 0.0, 0.75, 0.0], dtype=torch.float64).log()
    f = {t: float(divergence.generator(torch.tensor(t, dtype=torch.float64))) for t in (0.0, 2.0)}
    wanted = 0.25 * f[2.0] + 0.5 * divergence.slope_at_infinity + 0.75 * f[0.0]
    assert float(divergence.value(p, q)) == pytest.approx(wanted)


@strict
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_is_differentiable_and_finite_far_apart(divergence: Divergence, dtype: torch.dtype) -> None:
    p = torch.tensor([0.0, -60.0], dtype=dtype).log_softmax(-1).requires_grad_()
    q = torch.tensor([-25.0, 0.0], dtype=dtype).log_softmax(-1)
    (slope,) = torch.autograd.grad(divergence.value(p, q), p)
    assert bool(slope.isfinite().all())
    a = (p - q).detach().double()
    wanted = p.detach().double().exp() * divergence.derivative_of_log(a)
    assert close(slope.double(), wanted, 1e-3 if dtype == torch.float32 else 1e-9)


def residuals(divergence: Divergence, payoff, anchors, log_p) -> tuple[float, float]:
    """Relative KKT residual over responses with a probability that double precision holds; what leaving out loses."""
    left = sum(w * divergence.derivative_of_log(log_p - rho) for rho, w in anchors)
    kept = (log_p > -690) & left.isfinite()
    best = log_p.argmax(-1, keepdim=True)
    multiplier = (payoff - left).gather(-1, best)
    total = sum(w for _, w in anchors)
    scale = payoff.amax() - payoff.amin() + total + left.gather(-1, best).abs()
    inside = torch.where(kept, (payoff - left - multiplier).abs() / (scale + torch.where(kept, left.abs(), 0.0)), 0.0)
    outside = (payoff - total * divergence.slope_at_zero - multiplier) / scale
    outside = torch.where(torch.isneginf(log_p), outside, -1.0)
    return float(inside.amax()), float(outside.amax())


@strict
@pytest.mark.parametrize("count", [1, 2])
@quick
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 9),
    ratio=st.sampled_from([1e-3, 1.0, 30.0, 1e3]),
    spread=st.sampled_from([1.0, 10.0]),
)
def test_improvement_is_optimal(
    divergence: Divergence, count: int, seed: int, size: int, ratio: float, spread: float
) -> None:
    payoff = torch.rand(2, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    anchors = [(tables(2, size, seed + j, spread), (1 + j) / ratio) for j in range(count)]
    log_p = divergence.improve(payoff, anchors)
    assert float((log_p.exp().sum(-1) - 1).abs().max()) <= 1e-12
    inside, outside = residuals(divergence, payoff, anchors, log_p)
    assert inside <= 1e-10
    assert outside <= 1e-10


@pytest.mark.parametrize("divergence", [d for d in STRICT if not d.name.startswith("bare")], ids=repr)
@pytest.mark.parametrize("ratio", [1e-2, 1.0, 1e6])
@pytest.mark.parametrize("count", [1, 2])
def test_improvement_at_the_extremes(divergence: Divergence, ratio: float, count: int) -> None:
    payoff = torch.rand(2, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    floor = torch.tensor([0.0, -700.0, -350.0, -10.0, -699.0], dtype=torch.float64)
    anchors = [((floor.roll(j) + tables(2, 5, j)).log_softmax(-1), 1 / ratio) for j in range(count)]
    log_p = divergence.improve(payoff, anchors)
    assert float((log_p.exp().sum(-1) - 1).abs().max()) <= 1e-12
    inside, outside = residuals(divergence, payoff, anchors, log_p)
    assert inside <= 1e-9
    assert outside <= 1e-9


@strict
def test_improvement_beats_its_neighbours(divergence: Divergence) -> None:
    payoff = torch.rand(7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    anchors = [(tables(1, 7, 3)[0], 0.2), (tables(1, 7, 4)[0], 0.1)]
    log_p = divergence.improve(payoff, anchors)
    others = (log_p.clamp_min(-30) + 0.05 * tables(50, 7, 9)).log_softmax(-1)
    held = [(*anchor, divergence) for anchor in anchors]
    assert bool((improvement_value(others, payoff, held) < improvement_value(log_p, payoff, held)).all())


@quick
@given(seed=st.integers(0, 10**6), size=st.integers(1, 9), ratio=st.sampled_from([0.01, 1.0, 50.0]))
def test_root_solve_finds_the_closed_form(seed: int, size: int, ratio: float) -> None:
    payoff = torch.rand(2, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    anchors = [(tables(2, size, seed + j), (1 + j) / ratio) for j in range(2)]
    kl = ReverseKL()
    assert close(proximal_improvement(kl, payoff, anchors), kl.improve(payoff, anchors), 1e-12)


@every
@quick
@given(seed=st.integers(0, 10**6), order=st.permutations(range(6)))
def test_improvement_knows_no_order_and_no_neighbours(divergence: Divergence, seed: int, order: list[int]) -> None:
    payoff = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    anchors = [(tables(3, 6, seed), 0.3), (tables(3, 6, seed + 1), 0.2)]
    whole = divergence.improve(payoff, anchors).exp()
    alone = divergence.improve(payoff[1], [(rho[1], w) for rho, w in anchors]).exp()
    assert close(alone, whole[1], 1e-11)
    shuffled = divergence.improve(payoff[:, order], [(rho[:, order], w) for rho, w in anchors]).exp()
    assert close(shuffled, whole[:, order], 1e-11)


def test_shifting_the_generator_changes_nothing() -> None:
    p, q = tables(2, 6, 3)
    payoff = torch.linspace(0, 1, 6, dtype=torch.float64)
    assert close(BareChi().value(p, q), ChiSquared().value(p, q))
    assert close(BareChi().improve(payoff, [(q, 0.1)]).exp(), ChiSquared().improve(payoff, [(q, 0.1)]).exp())


@strict
def test_what_an_anchor_leaves_out_stays_out(divergence: Divergence) -> None:
    rho = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    payoff = torch.tensor([0.1, 0.2, 0.9], dtype=torch.float64)
    log_p = divergence.improve(payoff, [(rho, 1.0), (tables(1, 3, 0)[0], 0.5)])
    assert float(log_p[2]) == -math.inf
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_bad_inputs_of_an_improvement() -> None:
    rho = torch.tensor([1.0, 0.0], dtype=torch.float64).log()
    payoff = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(nz.BadInput, match="no response in common"):
        ForwardKL().improve(payoff, [(rho, 1.0), (rho.flip(0), 1.0)])
    with pytest.raises(nz.BadInput, match="finite"):
        ForwardKL().improve(payoff / 0, [(rho, 1.0)])


def test_float32_is_solved_in_float64() -> None:
    payoff, rho = torch.rand(5, generator=torch.Generator().manual_seed(0)), tables(1, 5, 0)[0].float()
    got = JensenShannon().improve(payoff, [(rho, 0.1)])
    assert got.dtype == torch.float32
    assert close(got.double(), JensenShannon().improve(payoff.double(), [(rho.double(), 0.1)]), 1e-6)


@quick
@given(seed=st.integers(0, 10**6), weight=st.sampled_from([0.01, 0.1, 0.5]), count=st.integers(1, 3))
def test_total_variation_solves_its_linear_programme(seed: int, weight: float, count: int) -> None:
    """Against HiGHS: variables p and the parts by which p exceeds and misses each anchor."""
    import numpy as np
    from scipy.optimize import linprog

    size = 5
    payoff = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    anchors = [(tables(1, size, seed + j)[0], weight * (j + 1)) for j in range(count)]
    held = [(*anchor, TotalVariation()) for anchor in anchors]
    value = float(improvement_value(TotalVariation().improve(payoff, anchors), payoff, held))
    eye, zero = np.eye(size), np.zeros((size, size))
    rows = [np.hstack([eye, *(-eye if k == j else zero for k in range(count))]) for j in range(count)]
    rows += [np.hstack([-eye, *(-eye if k == j else zero for k in range(count))]) for j in range(count)]
    limits = [rho.exp().numpy() for rho, _ in anchors]
    cost = np.concatenate([-payoff.numpy(), *(np.full(size, w / 2) for _, w in anchors)])
    total = np.concatenate([np.ones(size), np.zeros(size * count)])[None]
    right = np.concatenate([*limits, *(-x for x in limits)])
    answer = linprog(cost, np.vstack(rows), right, total, [1.0], bounds=(0, None), method="highs")
    assert value == pytest.approx(-answer.fun, abs=1e-10)


def test_total_variation_moves_nothing_without_a_gain() -> None:
    rho = tables(1, 6, 0)[0]
    assert close(TotalVariation().improve(torch.full((6,), 0.5).double(), [(rho, 0.1)]), rho, 1e-12)


def test_monotone_root_with_a_useless_slope() -> None:
    low, high = torch.tensor([-3.0, 0.0, 1.0]).double(), torch.tensor([5.0, 2.0, 4.0]).double()
    root = monotone_root(lambda x: (x**3 - 1, torch.full_like(x, math.nan)), low, high)
    assert close(root, torch.ones(3).double(), 1e-14)
