"""Divergences at ratios from 1e-300 to 1e300 and log-ratios to 700: never NaN, and still each other's inverse."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from nlhf_zoo.interfaces import Divergence
from nlhf_zoo.interfaces.proximal import _BySlack
from tests.test_divergences import STRICT, every, strict, tables

far = st.lists(st.floats(-690, 690), min_size=1, max_size=8).map(lambda x: torch.tensor(x, dtype=torch.float64))
several = settings(max_examples=15, deadline=None)


@every
@several
@given(log_ratio=far)
def test_nothing_is_nan(divergence: Divergence, log_ratio: torch.Tensor) -> None:
    slope = divergence.derivative_of_log(log_ratio)
    for value in (
        divergence.generator(log_ratio.exp()),
        divergence.derivative(log_ratio.exp()),
        slope,
        divergence.curvature_of_log(log_ratio),
        divergence.log_inverse(slope),
        divergence.conjugate(slope),
    ):
        assert not bool(value.isnan().any())


@strict
@several
@given(log_ratio=far)
def test_the_inverse_finds_the_slope_again(divergence: Divergence, log_ratio: torch.Tensor) -> None:
    slope = divergence.derivative_of_log(log_ratio)
    found = divergence.log_inverse(slope)
    inside = slope.isfinite() & (slope > divergence.slope_at_zero) & (slope < divergence.slope_at_infinity)
    again = divergence.derivative_of_log(torch.where(inside, found, 0.0))
    assert bool(torch.where(inside, (again - slope).abs() <= 1e-11 * (1 + slope.abs()), True).all())


@strict
@several
@given(log_ratio=far)
def test_the_slack_keeps_what_the_slope_loses(divergence: Divergence, log_ratio: torch.Tensor) -> None:
    if math.isinf(divergence.slope_at_infinity) or divergence.name.startswith("bare"):
        return
    found = divergence.log_inverse_of_slack(divergence.log_slack(log_ratio))
    # log(-a) is all that the slack of Jensen-Shannon says of a very rare response.
    assert bool(((found - log_ratio).abs() <= 1e-11 * (1 + log_ratio.abs())).all())


@strict
@several
@given(seed=st.integers(0, 10**6), exponent=st.floats(-6, 6))
def test_values_and_improvements_are_finite(divergence: Divergence, seed: int, exponent: float) -> None:
    deep = 700 * torch.rand(2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p, q = (-deep).log_softmax(-1)
    assert not bool(divergence.value(p, q).isnan())
    improved = divergence.improve(tables(1, 6, seed)[0].exp(), [(q, 10**exponent)])
    assert not bool(improved.isnan().any())
    assert abs(float(improved.exp().sum()) - 1) <= 1e-12


def test_deep_references_take_no_bisection(monkeypatch) -> None:
    """Where one response takes all, the multiplier is the end of its bracket; it was once crept up to by halves."""
    asked: list[int] = []
    respond = _BySlack.respond
    monkeypatch.setattr(_BySlack, "respond", lambda self, m: asked.append(1) or respond(self, m))
    generator = torch.Generator().manual_seed(0)
    log_rho = (-700 * torch.rand(256, 20, generator=generator, dtype=torch.float64)).log_softmax(-1)
    payoff = torch.rand(256, 20, generator=generator, dtype=torch.float64)
    for divergence in STRICT:
        if math.isfinite(divergence.slope_at_infinity) and not divergence.name.startswith("bare"):
            asked.clear()
            divergence.improve(payoff, [(log_rho, 0.1)])
            assert len(asked) <= 25
