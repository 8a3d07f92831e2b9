"""Improvements held by anchors of several divergences: optimal, merged exactly, and right at the extremes."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings

from nlhf_zoo.interfaces import Divergence, ReverseKL
from nlhf_zoo.interfaces.proximal import mixed_improvement
from nlhf_zoo_plugins.divergences import (
    Alpha,
    ChiSquared,
    ForwardKL,
    JensenShannon,
    SquaredHellinger,
)
from tests.test_divergences import STRICT, Bare, tables

Anchors = list[tuple[torch.Tensor, float, Divergence]]
MERGED = [ReverseKL(), ForwardKL(), Alpha(), Alpha(-1.0), Alpha(1.5), Alpha(3.0), ChiSquared(), SquaredHellinger()]
several = settings(max_examples=60, deadline=None)
kinds = st.lists(st.sampled_from(STRICT), min_size=2, max_size=3)


def residual(payoff: torch.Tensor, anchors: Anchors, log_p: torch.Tensor) -> float:
    """How far the conditions of optimality are from holding, relative to the terms that they are made of."""
    terms = torch.stack([w * kind.derivative_of_log(log_p - rho) for rho, w, kind in anchors])
    floor = sum(w * kind.slope_at_zero for _, w, kind in anchors)
    best = log_p.argmax(-1, keepdim=True)
    inside = (log_p > -690) & terms.isfinite().all(0)
    left = torch.where(inside, terms, 0.0)
    multiplier = (payoff - left.sum(0)).gather(-1, best)
    # A log-probability is rounded too, and the slope is steep where a response is rare.
    steep = torch.stack([w * kind.curvature_of_log(log_p - rho) for rho, w, kind in anchors]).sum(0)
    size = 1 + left.abs().sum(0) + left.abs().sum(0).gather(-1, best) + torch.where(inside, steep, 0.0) * (1 - log_p)
    off = torch.where(inside, (payoff - left.sum(0) - multiplier).abs() / size, 0.0)
    out = torch.where(torch.isneginf(log_p), (payoff - floor - multiplier).clamp_min(0) / size, 0.0)
    return float(torch.maximum(off, out.nan_to_num(0.0)).amax())


@several
@given(
    held=kinds,
    seed=st.integers(0, 10**6),
    size=st.integers(1, 9),
    ratio=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    spread=st.sampled_from([1.0, 10.0, 100.0]),
)
def test_mixed_improvement_is_optimal(
    held: list[Divergence], seed: int, size: int, ratio: float, spread: float
) -> None:
    # Of a bounded slope whose logarithm nobody has written, ratios beyond e^30 leave no digit.
    assume(spread <= 10 or Bare() not in held)
    payoff = torch.rand(2, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    anchors = [(tables(2, size, seed + j, spread), (1 + j) / ratio, kind) for j, kind in enumerate(held)]
    log_p = mixed_improvement(payoff, anchors)
    assert float((log_p.exp().sum(-1) - 1).abs().max()) <= 1e-12
    assert residual(payoff, anchors, log_p) <= 1e-11


@pytest.mark.parametrize("divergence", MERGED, ids=repr)
@several
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.1, 1.0, 10.0]), share=st.floats(0.01, 0.99))
def test_one_anchor_stands_for_several(divergence: Divergence, seed: int, spread: float, share: float) -> None:
    log_rhos, (log_p,) = tables(2, 5, seed, spread), tables(1, 5, seed + 1, spread)
    one = divergence.merge(log_rhos, [share, 1 - share])
    assert one is not None
    slopes = divergence.derivative_of_log(log_p - log_rhos)
    size = share * slopes[0].abs() + (1 - share) * slopes[1].abs()
    off = share * slopes[0] + (1 - share) * slopes[1] - divergence.derivative_of_log(log_p - one)
    assert bool((off.abs() <= 1e-12 * (1 + size)).all())


def test_the_best_response_may_take_everything() -> None:
    """log p = 0 there: the others' answers still hang on the multiplier, which no longer shows in the sum."""
    log_rhos = torch.tensor([[0.0, -80.0], [0.0, -250.0]], dtype=torch.float64).log_softmax(-1)
    payoff = torch.tensor([0.7, 0.3], dtype=torch.float64)
    anchors = [(log_rhos[0], 9000.0, JensenShannon()), (log_rhos[1], 9000.0, ForwardKL())]
    assert residual(payoff, anchors, mixed_improvement(payoff, anchors)) <= 1e-12


@pytest.mark.parametrize("floor", [-300.0, -700.0])
@several
@given(held=st.lists(st.sampled_from(STRICT[:9]), min_size=2, max_size=3), seed=st.integers(0, 10**6))
def test_mixed_improvement_at_the_extremes(floor: float, held: list[Divergence], seed: int) -> None:
    payoff = torch.rand(2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    deep = [floor * torch.rand(2, 5, generator=torch.Generator().manual_seed(seed + j)).double() for j in range(3)]
    anchors = [
        (rho.log_softmax(-1), 10.0 ** (j - 2), kind) for j, (rho, kind) in enumerate(zip(deep, held, strict=False))
    ]
    log_p = mixed_improvement(payoff, anchors)
    assert float((log_p.exp().sum(-1) - 1).abs().max()) <= 1e-12
    assert residual(payoff, anchors, log_p) <= 1e-11
