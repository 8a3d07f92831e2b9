"""Other divergences than the reverse KL on a causal language model whose responses can be enumerated."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from torch import Tensor

from nlhf_zoo.interfaces import Divergence, Update
from nlhf_zoo.llm import exact_objective, exact_payoff, sampled_objective
from nlhf_zoo_plugins.divergences import ChiSquared, ForwardKL, JensenShannon
from tests.test_same_solver_twice import PROMPTS, Pair, network, pair

OTHERS = [ForwardKL(), JensenShannon(), ChiSquared()]


def case_under(divergence: Divergence, spread: float = 0.02) -> tuple[Pair, Update, list]:
    """A game under this divergence, an update with two anchors, and the student's parameters."""
    case = pair(5, 1, False)
    case = attrs.evolve(case, model=attrs.evolve(case.model, divergence=divergence))
    student = attrs.evolve(case.policy, network=network(2).requires_grad_(True))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in student.network.parameters():
            p.add_(spread * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    anchors = [(case.model.reference, 0.3), (case.policy, 0.2)]
    return attrs.evolve(case, policy=student), Update(start=student, opponent=student, anchors=anchors), anchors


@pytest.mark.parametrize("divergence", OTHERS, ids=repr)
def test_sampled_gradient_is_the_exact_one(divergence: Divergence) -> None:
    """Along 3 fixed directions, within 5 standard errors: a false alarm once in 10^5 runs of this file."""
    case, update, _ = case_under(divergence)
    student, responses = case.policy, case.policy.inner.responses
    parameters, prompts = list(student.network.parameters()), case.policy.encode(PROMPTS)
    generator = torch.Generator().manual_seed(3)
    ways = [[torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters] for _ in range(3)]

    def along(loss: Tensor) -> Tensor:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.stack(
            [sum((g * d).sum() for g, d in zip(found, way, strict=True) if g is not None) for way in ways]
        )

    payoff = exact_payoff(student, update, case.model, prompts, responses)
    exact = along(exact_objective(student, update, case.model, prompts, responses, payoff).loss)
    drawn = [along(sampled_objective(student, update, case.model, prompts, 24, generator).loss) for _ in range(50)]
    samples = torch.stack(drawn)
    standard_error = samples.std(0) / math.sqrt(len(samples))
    assert bool(((samples.mean(0) - exact).abs() <= 5 * standard_error).all()), (samples.mean(0), exact)
    assert bool((exact.abs() > 3 * standard_error).any()), "the test is blind: noise drowns the gradient"


@pytest.mark.parametrize("divergence", OTHERS, ids=repr)
def test_exact_gradient_is_by_hand(divergence: Divergence) -> None:
    case, update, anchors = case_under(divergence)
    student, responses = case.policy, case.policy.inner.responses
    parameters, prompts = list(student.network.parameters()), case.policy.encode(PROMPTS)
    payoff = exact_payoff(student, update, case.model, prompts, responses)
    loss = exact_objective(student, update, case.model, prompts, responses, payoff).loss
    found = torch.autograd.grad(loss, parameters, allow_unused=True)

    log_policy = student.table(PROMPTS, responses)
    slopes = [(log_policy - policy.table(PROMPTS, responses)).detach() for policy, _ in anchors]
    gain = payoff - sum(w * divergence.derivative_of_log(a) for a, (_, w) in zip(slopes, anchors, strict=True))
    wanted = -(log_policy.exp() * gain.detach()).sum(-1).mean()
    pulled = torch.autograd.grad(wanted, parameters, allow_unused=True)
    for g, w in zip(found, pulled, strict=True):
        assert g is None or bool(((g - w).abs() <= 1e-8 * (1 + w.abs())).all())


@pytest.mark.parametrize("divergence", OTHERS, ids=repr)
def test_loss_stays_finite_where_the_ratio_overflows(divergence: Divergence) -> None:
    from nlhf_zoo.llm.objective import _slope

    gap = torch.tensor([[-1e4, -300.0, 0.0, 300.0, 1e4]], dtype=torch.float32)
    slope = _slope(divergence, gap)
    assert slope.dtype == torch.float32
    assert bool(slope.isfinite().all())
    assert bool((slope.diff() >= 0).all())
