"""Properties of promises: what a solver's guarantees claim, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import hypothesis
import torch
from hypothesis import strategies as st

from nlhf_zoo.interfaces import Guarantee, Solver
from nlhf_zoo.metrics import span
from nlhf_zoo.testing import strategies
from nlhf_zoo.testing.case import Case, Skip, Violation
from nlhf_zoo.testing.catalogue import named
from nlhf_zoo.testing.hardest import hard_cases, near_equilibrium
from nlhf_zoo.testing.measure import Reading, heights, readings, recursion_readings
from nlhf_zoo.testing.play import Play
from nlhf_zoo.testing.runs import walk, walk_with_rounding
from nlhf_zoo.testing.statistics import FALSE_ALARM, expectation_refuted, probability_refuted

__all__ = [
    "average_iterate_meets_its_bound",
    "each_step_meets_its_recursion",
    "last_iterate_meets_its_bound",
    "reaches_its_target_in_the_limit",
    "sampled_runs_meet_their_bound",
    "target_is_a_fixed_point",
]

REPETITIONS = 40
FIRST_STEPS = (1, 2, 3, 6, 21, 101)


def _needs(what: str, wanted: Callable[[Guarantee], bool]) -> Callable[[Solver], str | None]:
    def applies(solver: Solver) -> str | None:
        if not solver.guarantees:
            return f"the solver declares no guarantee{_why(solver)}"
        return None if any(map(wanted, solver.guarantees)) else f"no guarantee {what}"

    return applies


def _why(solver: Solver) -> str:
    reason = solver.no_guarantee
    return f": {reason}" if reason else "; if nothing is proved of it, its class can say why: no_guarantee = '...'"


def _rated(iterate: str) -> Callable[[Guarantee], bool]:
    return lambda g: g.bound is not None and g.iterate == iterate and g.certainty == "sure"


def each_applicable(solver: Solver, wanted: Callable[[Guarantee], bool], judge: Callable[[Guarantee], None]) -> None:
    """Judge every wanted guarantee; where each of them says nothing about the case, so does the property."""
    reasons: list[str] = []
    judged = False
    for guarantee in filter(wanted, solver.guarantees):
        try:
            judge(guarantee)
            judged = True
        except Skip as skip:
            reasons.append(str(skip))
    if not judged:
        raise Skip(reasons[0])


def _judge(found: Sequence[Reading], guarantee: Guarantee, what: str) -> None:
    if hypothesis.currently_in_test_context() and found:
        # Hypothesis climbs: a bound that is barely broken is found, too.
        for height, value in heights(found).items():
            hypothesis.target(
                value, label=f"{height}: {what} of {guarantee.metric} per {guarantee.per} ({guarantee.source})"
            )
    # Above 1e-12, where there is such a one, nobody can put it down to rounding.
    for reading in sorted(found, key=lambda r: r.measured < 1e-12):
        if reading.violated:
            value, bound = reading.shown
            raise Violation(
                f"step {reading.step}: {guarantee.metric} is {value}, and {what} {bound} ({guarantee.source})"
            )


def _runs(low: float = 1e-4) -> st.SearchStrategy[dict[str, Any]]:
    short = strategies.cases(low=low, high=100, steps=6, elsewhere=True)
    long = strategies.cases(
        sizes=(2, 3, 4), kinds=[k for k in strategies.KINDS if k != "many"], low=0.01, steps=(30, 100, 200)
    )
    return st.fixed_dictionaries({"case": short | short | short | long | near_equilibrium(low=low, high=100)})


def _hard_runs() -> list[dict[str, Any]]:
    return [{"case": case} for case in hard_cases(steps=12)]


@named(_runs, applies=_needs("is about the last iterate, with a rate", _rated("last")), share=1.5, fixed=_hard_runs)
def last_iterate_meets_its_bound(solver: Solver, case: Case) -> None:
    """metric(target, pi_n) <= bound(n, game, metric(target, pi_0)) for the last iterate pi_n at every n >= 1.

    From the reference also the bound that knows no initial value. No average of iterates is looked at. A claim about
    every m-th policy is tested on runs that are m times as long.
    """
    play = Play(solver, case)
    each_applicable(solver, _rated("last"), lambda g: _judge(readings(play, g), g, "the bound on the last iterate is"))


@named(_runs, applies=_needs("is about the average iterate", _rated("average")), share=1.5, fixed=_hard_runs)
def average_iterate_meets_its_bound(solver: Solver, case: Case) -> None:
    """metric(target, (pi_0 + ... + pi_{n-1}) / n) <= bound(n, game, metric(target, pi_0)) at every n >= 1."""
    play = Play(solver, case)
    each_applicable(
        solver, _rated("average"), lambda g: _judge(readings(play, g), g, "the bound on the average iterate is")
    )


def _recursive(guarantee: Guarantee) -> bool:
    return guarantee.recursion is not None and guarantee.certainty == "sure"


def _single_steps() -> st.SearchStrategy[dict[str, Any]]:
    anywhere = strategies.cases(high=1000, steps=2, elsewhere=True)
    case = anywhere | anywhere | near_equilibrium(high=1000, steps=(2, 1, 5))
    return st.fixed_dictionaries({"case": case, "first_step": st.sampled_from(FIRST_STEPS)})


def _hard_single_steps() -> list[dict[str, Any]]:
    return [{"case": case, "first_step": 1} for case in hard_cases(steps=3)]


@named(_single_steps, applies=_needs("bounds a single step", _recursive), share=3.0, fixed=_hard_single_steps)
def each_step_meets_its_recursion(solver: Solver, case: Case, first_step: int = 1) -> None:
    """metric(target, pi_{k+1}) <= recursion(k, game, metric(target, pi_k)), from any policy pi_k.

    With a contraction that is the linear rate of each single step; with recursion = previous, that the metric
    never grows. The first step taken is the solver's step number `first_step`, where its state is a policy and a
    counter only.
    """
    play = Play(solver, case)
    each_applicable(
        solver,
        _recursive,
        lambda g: _judge(recursion_readings(play, g, first_step), g, "one step from where it was it may be"),
    )


def _keeps(guarantee: Guarantee) -> bool:
    """Whether the guarantee says that a run which begins at the target stays there."""
    if guarantee.certainty != "sure" or guarantee.metric == "unregularised_gap" or guarantee.every > 1:
        return False
    if guarantee.bound is None:
        return guarantee.limit != "open"
    zero = torch.zeros((), dtype=torch.float64)
    game = Case(matrix=[[0.5, 0.75], [0.25, 0.5]], reference=[0.0, 0.0], beta=1.0).game()
    return guarantee.start == "any" and float(guarantee.bound(1, game, zero)) <= 0


def _fixed() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"case": strategies.cases(steps=3)})


@named(_fixed, applies=_needs("says that a run from its target stays there", _keeps))
def target_is_a_fixed_point(solver: Solver, case: Case) -> None:
    """pi_0 = target implies pi_k = target: the equilibrium (or what else is claimed) is a fixed point.

    Derived from a bound that is 0 where the initial distance is 0, from a claim of convergence without rate, and from
    a claim of that fixed point alone.
    """

    play = Play(solver, case)

    def judge(guarantee: Guarantee) -> None:
        target = play.initial_target(guarantee)
        goal = target.policy.log_probs
        if not bool(goal.isfinite().all()):
            raise Skip("the target leaves a response out, and no run that begins there has it")
        there = attrs.evolve(case, start=goal.tolist())
        for step, (log_probs, limit) in enumerate(zip(*walk_with_rounding(solver, there), strict=True)):
            moved = float(span(log_probs, goal))
            if not moved <= limit + 10 * target.blur:
                raise Violation(
                    f"step {step}: from its own target it moved by {moved:.3g} in log-probability,"
                    f" from {goal.exp().tolist()} to {log_probs.exp().tolist()}"
                )

    each_applicable(solver, _keeps, judge)


def _rateless(guarantee: Guarantee) -> bool:
    return guarantee.bound is None and guarantee.limit == "reached" and guarantee.certainty == "sure"


def _friendly() -> st.SearchStrategy[dict[str, Any]]:
    case = strategies.cases(
        sizes=(2, 3, 4), kinds=strategies.MODERATE, low=0.1, high=1.0, deepest=2, steps=(600,), elsewhere=True
    )
    return st.fixed_dictionaries({"case": case})


@named(_friendly, applies=_needs("claims convergence without a rate", _rateless), share=0.2)
def reaches_its_target_in_the_limit(solver: Solver, case: Case) -> None:
    """metric(target, pi_n) -> 0, told by games that are easy: beta >= 0.1, no response nearly impossible.

    A limit cannot be refuted in finite time; what is asked is that 600 steps bring the metric below 1e-9, or
    below a thousandth of where it began.
    """

    play = Play(solver, case)

    def judge(guarantee: Guarantee) -> None:
        goal = play.initial_target(guarantee).policy.log_probs
        if float(goal.amin()) < -12:
            raise Skip("the target leaves a response nearly impossible")
        from nlhf_zoo.metrics import kl_divergence

        run = walk(solver, case)
        first, last = float(kl_divergence(goal, run[0])), float(kl_divergence(goal, run[-1]))
        if not last <= max(1e-9, first / 1000):
            raise Violation(f"after {case.steps} steps KL(target || pi) is {last:.3g}, having begun at {first:.3g}")

    each_applicable(solver, _rateless, judge)


def _random(guarantee: Guarantee) -> bool:
    return guarantee.certainty != "sure" and guarantee.bound is not None


@st.composite
def _repeated(draw: st.DrawFn) -> dict[str, Any]:
    case = draw(strategies.cases(sizes=(2, 3), kinds=strategies.MODERATE, low=0.1, deepest=2, steps=(10, 3, 30)))
    return {"case": attrs.evolve(case, comparisons=draw(st.sampled_from([1, 4])), seed=draw(st.integers(0, 1000)))}


@named(_repeated, applies=_needs("is about sampled comparisons", _random), share=0.2)
def sampled_runs_meet_their_bound(solver: Solver, case: Case) -> None:
    """E metric(target, pi_n) <= bound(n), or P(metric > bound(n)) <= delta, refuted by 40 independent runs.

    Expectations by a one-sided t-test, probabilities by the exact binomial law; either alarms on a true claim
    with probability at most 1e-6. Bounds are judged at the last step of the run.
    """

    def judge(guarantee: Guarantee) -> None:
        ends = [
            readings(Play(solver, attrs.evolve(case, seed=case.seed + 7919 * run)), guarantee)[-1]
            for run in range(REPETITIONS)
        ]
        if guarantee.certainty == "expectation":
            mean = sum(r.measured for r in ends) / len(ends)
            bound = sum(r.bound for r in ends) / len(ends)
            chance = expectation_refuted([r.measured for r in ends], bound)
            said = f"the mean of {guarantee.metric} over {REPETITIONS} runs is {mean:.4g}, and the bound {bound:.4g}"
        else:
            missed = sum(r.violated for r in ends)
            chance = probability_refuted(missed, REPETITIONS, guarantee.delta)
            said = f"{missed} of {REPETITIONS} runs miss a bound that holds with probability {1 - guarantee.delta:g}"
        if chance < FALSE_ALARM:
            raise Violation(f"step {case.steps}: {said}; were the claim true, the chance of this is {chance:.1e}")

    each_applicable(solver, _random, judge)
