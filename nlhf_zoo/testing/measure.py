"""A guarantee measured: the metric along a run, the bound beside it, and how far rounding blurs the two."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game, Guarantee, Policy, Solver, State
from nlhf_zoo.metrics import duality_gap, kl_divergence, span
from nlhf_zoo.tabular import NotConverged, TabularPolicy, find_equilibrium
from nlhf_zoo.testing.case import Case, Skip
from nlhf_zoo.testing.runs import states, tables

__all__ = ["Reading", "Target", "readings", "recursion_readings", "target_of"]


@attrs.frozen(eq=False)
class Target:
    """What a guarantee measures the distance to.

    Attributes:
        policy: (Y,).
        blur: how far, in log-probability, it may be off.
    """

    policy: TabularPolicy
    blur: float


def target_of(guarantee: Guarantee, game: Game) -> Target:
    """The target of a guarantee in a game.

    Raises:
        Skip: it does not hold for this game, or no equilibrium was found.
    """
    try:
        if not guarantee.holds(game):
            raise Skip(f"its assumptions do not hold: {guarantee.assumptions}")
        if guarantee.target is not None:
            policy = guarantee.target(game)
            assert isinstance(policy, TabularPolicy)
            return Target(policy, 1e-13 * (1 + float(policy.log_probs.abs().amax())))
        report = find_equilibrium(game)
    except NotConverged as failure:
        raise Skip(f"no ground truth: {failure}") from None
    except BadInput as refusal:
        raise Skip(f"no ground truth: {refusal}") from None
    # gap = 2 beta KL, and KL is half a squared distance.
    off = 4 * float(report.duality_gap.clamp_min(0) / game.beta) ** 0.5 if game.beta else 0.0
    return Target(report.policy, off + 1e-15 * (1 + float(report.policy.log_probs.abs().amax())))


@attrs.frozen
class Reading:
    """One measurement beside its bound.

    Attributes:
        step: completed steps.
        measured: the metric.
        bound: what the guarantee allows.
        blur: what rounding may add to the square root of a KL or a gap, and to a span.
    """

    step: int
    measured: float
    bound: float
    blur: float
    squared: bool

    @property
    def allowed(self) -> float:
        """The bound, widened by rounding."""
        bound = max(self.bound, 0.0)
        return ((bound**0.5 + self.blur) ** 2 if self.squared else bound + self.blur) * (1 + 1e-9)

    @property
    def violated(self) -> bool:
        return not self.measured <= self.allowed

    @property
    def ratio(self) -> float:
        """measured / bound; 0 where rounding is all that is measured."""
        noise = (10 * self.blur) ** 2 if self.squared else 10 * self.blur
        if self.measured <= noise:
            return 0.0
        return self.measured / self.bound if self.bound > 0 else float("inf")


class _Meter:
    """One guarantee in one game."""

    def __init__(self, guarantee: Guarantee, case: Case) -> None:
        self.guarantee, self.game = guarantee, case.game()
        self.target = target_of(guarantee, self.game)
        self.truth = case.matrix

    def metric(self, log_probs: Tensor) -> Tensor:
        kind, goal = self.guarantee.metric, self.target.policy.log_probs
        if kind == "kl":
            return kl_divergence(goal, log_probs)
        if kind == "span":
            return span(log_probs, goal)
        reference = self.game.reference
        assert isinstance(reference, TabularPolicy)
        payoff = torch.tensor(self.truth, dtype=torch.float64) @ log_probs.exp()
        beta = self.game.beta if kind == "duality_gap" else 0.0
        return duality_gap(payoff, log_probs, reference.log_probs, beta)

    def blur(self, step: int, log_probs: Tensor) -> float:
        size = 1 + float(log_probs.abs().amax()) + (1 / self.game.beta if self.game.beta else 0.0)
        return self.target.blur + 2e-15 * (1 + step) * size

    def reading(self, step: int, log_probs: Tensor, bound: Tensor) -> Reading:
        measured = float(self.metric(log_probs))
        return Reading(step, measured, float(bound), self.blur(step, log_probs), self.guarantee.metric != "span")


def _count(guarantee: Guarantee, state: State) -> int:
    return state.step if guarantee.per == "step" else state.queries.total


def readings(solver: Solver, guarantee: Guarantee, case: Case) -> list[Reading]:
    """Metric and bound after steps 1 to `case.steps`: against the initial distance, and from the reference a priori.

    Raises:
        Skip: the guarantee says nothing about this game or start.
    """
    assert guarantee.bound is not None
    meter = _Meter(guarantee, case)
    if guarantee.start == "reference" and case.start is not None:
        raise Skip("the guarantee is about runs that begin at the reference")
    run = states(solver, meter.game, case.first(), torch.Generator().manual_seed(case.seed))
    initial: Tensor | None = None
    mean: Tensor | None = None
    found: list[Reading] = []
    for state in run:
        log_probs = tables(state.current)
        last = log_probs
        if guarantee.iterate == "average":
            if mean is not None:
                log_probs = mean.log()
            mean = last.exp() if mean is None else (mean * (state.step) + last.exp()) / (state.step + 1)
        if initial is None:
            initial = meter.metric(last)
        else:
            n = _count(guarantee, state)
            found.append(meter.reading(state.step, log_probs, guarantee.bound(n, meter.game, initial)))
            if case.start is None:
                found.append(meter.reading(state.step, log_probs, guarantee.bound(n, meter.game)))
        if state.step == case.steps:
            return found
    raise AssertionError


def recursion_readings(solver: Solver, guarantee: Guarantee, case: Case, step: int) -> list[Reading]:
    """The metric after each of `case.steps` steps beside what the recursion makes of the metric before it.

    The first of them is the solver's step number `step`, where its state is a policy and a counter only.
    """
    assert guarantee.recursion is not None
    meter = _Meter(guarantee, case)
    if guarantee.start == "reference" and case.start is not None:
        raise Skip("the guarantee is about runs that begin at the reference")
    start: Policy = case.first()
    run = states(solver, meter.game, start, torch.Generator().manual_seed(case.seed))
    state = next(run)
    if step and set(state.policies) == {"current"} and not state.numbers:
        run = states(solver, meter.game, start, None, attrs.evolve(state, step=step))
        state = next(run)
    found: list[Reading] = []
    for _ in range(case.steps):
        before = meter.metric(tables(state.current))
        allowed = guarantee.recursion(state.step, meter.game, before)
        state = next(run)
        found.append(meter.reading(state.step - step, tables(state.current), allowed))
    return found
