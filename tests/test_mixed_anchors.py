"""Improvements held by anchors of several divergences: optimal, merged exactly, and right at the extremes."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import nlhf_zoo as nz
from nlhf_zoo.interfaces import Divergence, ReverseKL, proximal
from nlhf_zoo.interfaces.proximal import mixed_improvement
from nlhf_zoo_plugins.divergences import (
    Alpha,
    ChiSquared,
    ForwardKL,
    JensenShannon,
    SquaredHellinger,
    TotalVariation,
)
from tests.test_divergences import STRICT, close, tables

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
    payoff = torch.rand(2, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    anchors = [(tables(2, size, seed + j, spread), (1 + j) / ratio, kind) for j, kind in enumerate(held)]
    log_p = mixed_improvement(payoff, anchors)
    assert float((log_p.exp().sum(-1) - 1).abs().max()) <= 1e-12
    assert residual(payoff, anchors, log_p) <= 1e-11
