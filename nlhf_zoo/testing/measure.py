"""A guarantee measured: the metric along a run, the bound beside it, and how far rounding blurs the two."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Guarantee, Solver, State
from nlhf_zoo.metrics import duality_gap, kl_divergence, span
from nlhf_zoo.tabular import TabularPolicy
from nlhf_zoo.testing.case import Case
from nlhf_zoo.testing.play import Play, same_game
from nlhf_zoo.testing.runs import tables

__all__ = ["Reading", "heights", "measured", "readings", "recursion_readings", "rounds"]


@attrs.frozen
class Reading:
    """One measurement beside its bound.

    Attributes:
        step: completed steps.
        measured: the metric.
        bound: what the guarantee allows.
        blur: what rounding may add to the square root of a KL or a gap, and to a span.
        squared: whether the metric is a KL or a gap.
        before: the metric that the bound starts from; `None` for a bound that knows none.
    """

    step: int
    measured: float
    bound: float
    blur: float
    squared: bool
    before: float | None = None

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

    @property
    def share(self) -> float | None:
        """log(measured / before) / log(bound / before): the rate achieved as a share of the one claimed.

        Below 1 the claim is broken. Unlike `ratio` it does not tend to 1 where nothing moves and nothing is
        claimed to (a tiny beta, a far start). What rounding may have added is taken off first. `None` where
        the bound claims no progress, or all of it.
        """
        if self.before is None or not 0 < self.bound < self.before:
            return None
        least = max(self.measured**0.5 - self.blur, 0.0) ** 2 if self.squared else self.measured - self.blur
        most = (self.before**0.5 + self.blur) ** 2 if self.squared else self.before + self.blur
        return math.log(least / most) / math.log(self.bound / self.before) if least > 0 else math.inf

    @property
    def shown(self) -> tuple[str, str]:
        """What was measured and its bound, in six digits or as many as tell them apart."""
        pair = "", ""
        for digits in range(6, 18):
            pair = f"{self.measured:.{digits}g}", f"{self.bound:.{digits}g}"
            if pair[0] != pair[1]:
                break
        return pair

    def __str__(self) -> str:
        rate = "" if self.share is None else f", {self.share:.6g} of the claimed rate"
        measured, bound = self.shown
        return f"step {self.step}: measured {measured}, bound {bound}, ratio {self.ratio:.6g}{rate}"


def heights(found: Sequence[Reading]) -> dict[str, float]:
    """What a search for the worst game climbs: the rate that is missing and, where none is claimed, the ratio."""
    shares = [reading.share for reading in found if reading.share is not None]
    ratios = [reading.ratio for reading in found if reading.share is None]
    made = {"claimed rate that is missing": max(1 - min(shares), -1e6)} if shares else {}
    return made | ({"measured / bound": min(max(ratios), 1e6)} if ratios else {})


class _Meter:
    """One guarantee in one game, for a run, or a step, that begins at a state."""

    def __init__(self, guarantee: Guarantee, play: Play, state: State) -> None:
        self.guarantee, self.play = guarantee, play
        self.about = play.about(guarantee, state)
        self.target = play.target(guarantee, self.about)

    def moved(self, state: State) -> _Meter:
        """The meter of a step that begins at another state."""
        same = same_game(self.play.about(self.guarantee, state), self.about)
        return self if same else _Meter(self.guarantee, self.play, state)

    def metric(self, log_probs: Tensor) -> Tensor:
        kind, goal = self.guarantee.metric, self.target.policy.log_probs
        if kind == "kl":
            return kl_divergence(goal, log_probs)
        if kind == "span":
            return span(log_probs, goal)
        reference = self.about.reference
        assert isinstance(reference, TabularPolicy)
        payoff = torch.tensor(self.play.case.matrix, dtype=torch.float64) @ log_probs.exp()
        beta = self.about.beta if kind == "duality_gap" else 0.0
        return duality_gap(payoff, log_probs, reference.log_probs, beta, self.about.divergence)

    def blur(self, step: int, log_probs: Tensor) -> float:
        size = 1 + float(log_probs.abs().amax()) + (1 / self.about.beta if self.about.beta else 0.0)
        return self.target.blur + 2e-15 * (1 + step) * size

    def reading(self, step: int, log_probs: Tensor, bound: Tensor, before: Tensor | None, taken: int) -> Reading:
        """The policy after step number `step`, the last of `taken` that rounding had to add up in."""
        squared, blur = self.guarantee.metric != "span", self.blur(taken, log_probs)
        started = None if before is None else float(before)
        return Reading(step, float(self.metric(log_probs)), float(bound), blur, squared, started)


LONGEST = 600
"""Steps of a run that is read every so many steps."""


def rounds(guarantee: Guarantee, case: Case) -> int:
    """How often a run of this case is read: after `case.steps` times the steps between two readings, or fewer."""
    return case.steps if guarantee.every == 1 else max(1, min(case.steps, LONGEST // guarantee.every))


def _count(guarantee: Guarantee, state: State) -> int:
    return state.step if guarantee.per == "step" else state.queries.total


def readings(play: Play, guarantee: Guarantee) -> list[Reading]:
    """Metric and bound, `rounds` times: against the initial distance, and from the reference a priori.

    Raises:
        Skip: the guarantee says nothing about this game or start.
    """
    assert guarantee.bound is not None
    play.require(guarantee)
    game, case = play.game, play.case
    initial: Tensor | None = None
    mean: Tensor | None = None
    meter: _Meter | None = None
    found: list[Reading] = []
    last_step = rounds(guarantee, case) * guarantee.every
    for state in play.states():
        if state.step % guarantee.every:
            continue
        if meter is None:
            meter = _Meter(guarantee, play, state)
        seen = state.step // guarantee.every
        log_probs = tables(state.current)
        last = log_probs
        if guarantee.iterate == "average":
            if mean is not None:
                log_probs = mean.log()
            mean = last.exp() if mean is None else (mean * seen + last.exp()) / (seen + 1)
        if initial is None:
            initial = meter.metric(last)
        else:
            n = _count(guarantee, state)
            allowed = guarantee.bound(n, game, initial)
            found.append(meter.reading(state.step, log_probs, allowed, initial, state.step))
            if case.start is None:
                allowed = guarantee.bound(n, game)
                found.append(meter.reading(state.step, log_probs, allowed, None, state.step))
        if state.step == last_step:
            return found
    raise AssertionError


def recursion_readings(play: Play, guarantee: Guarantee, first_step: int = 1) -> list[Reading]:
    """The metric beside what the recursion makes of the metric before it, `rounds` times.

    The first step is the solver's step number `first_step` >= 1, where its state is a policy and a counter only and
    the recursion is about single steps, and else its step number 1.
    """
    assert guarantee.recursion is not None
    play.require(guarantee)
    state = play.begins()
    late = guarantee.every == 1 and set(state.policies) == {"current"} and not state.numbers
    run = play.states(first_step if late else 1)
    state = next(run)
    meter = _Meter(guarantee, play, state)
    found: list[Reading] = []
    for taken in range(1, rounds(guarantee, play.case) + 1):
        meter = meter.moved(state)
        before = meter.metric(tables(state.current))
        allowed = guarantee.recursion(state.step, play.game, before)
        for _ in range(guarantee.every):
            state = next(run)
        found.append(meter.reading(state.step, tables(state.current), allowed, before, taken * guarantee.every))
    return found


def measured(
    solver: Solver, case: Case, *, claim: int = 0, each_step: bool = False, first_step: int = 1
) -> list[Reading]:
    """One guarantee of a solver in one game: metric and bound, step by step; print them to see.

    Args:
        claim: index into `solver.guarantees`.
        each_step: against the guarantee's recursion, from the metric one step before; else against its bound.
        first_step: see `recursion_readings`; for `each_step` only.

    Raises:
        BadInput: no such guarantee, or none with a bound (a recursion) to compare with.
        Skip: it says nothing about this game or start.
    """
    if not 0 <= claim < len(solver.guarantees):
        raise BadInput(f"{solver.name} has {len(solver.guarantees)} guarantees, and none at index {claim}")
    guarantee = solver.guarantees[claim]
    if (guarantee.recursion if each_step else guarantee.bound) is None:
        what = "recursion" if each_step else "bound"
        raise BadInput(f"guarantee {claim} of {solver.name} has no {what}; give each_step={not each_step}")
    play = Play(solver, case)
    return recursion_readings(play, guarantee, first_step) if each_step else readings(play, guarantee)
