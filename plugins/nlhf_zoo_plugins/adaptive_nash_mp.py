"""Adaptive Nash Mirror Prox: the mirror-prox inequality chooses the step.

A step of size eta is Nash-MP's: `half`, then `next`, both held at pi_k with weight beta/eta. The proof of its
contraction by 1 / (1 + eta) needs <u_half - u_k, next - half> to be at most the Bregman terms
(beta/eta) KL(half || pi_k) + (beta + beta/eta) KL(next || half). Both answers being proximal, the left side *is*
(beta + beta/eta) (KL(next || half) + KL(half || next)), so that the test needs no payoffs:

    (1 + eta) KL(half || next) <= KL(half || pi_k).

Derivation and measurements: docs/adaptive.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs

import nlhf_zoo as nz

WORST = 1.3
"""Queries at most, over those that the fixed step's guarantee needs."""
BEST_RATIO = 0.5
"""A rotation of angular speed w contracts by 1 - x + x^2 under an extragradient step, x = (w * step)^2: best at 1/2."""
MOST_GROWTH = 4.0


@attrs.frozen
class AdaptiveNashMP(nz.Solver):
    """Nash-MP with the largest step that its own proof lets pass.

    What a failed test costs (one query) is paid from what long steps have gained: the run is never behind
    the fixed step's guarantee by more than a factor 1.3 in queries. One game at a time.

    Attributes:
        eta: the first step's size, > 0; `None`, and at least, is the fixed step's 2 beta.
        patience: on sampled responses, how many standard errors a test must fail by, >= 0.
    """

    name = "adaptive_nash_mp"
    summary = "Nash Mirror Prox without a step size: the mirror-prox inequality chooses it"
    paper = "arXiv 2505.19731, with the test of Nemirovski 2004"
    when = (
        "For one game to high accuracy, without a step size to choose: on random games of Y = 100 and 1000 at beta = "
        "0.01 it needs 0.02 to 0.2 of the queries of nash_mp. Not for batches, which it refuses, and its rates are "
        "for exact oracles; under sampling the test is a judgement, not a proof."
        " On a language model it was no better than a fixed step (docs/adaptive.md)."
    )

    eta: float | None = nz.hyperparameter(above=0)
    patience: float = attrs.field(default=1.0, validator=attrs.validators.ge(0))

    @classmethod
    def practical(cls, beta: float) -> dict[str, float]:
        return {"eta": 0.1}

    @property
    def guarantees(self) -> tuple[nz.Guarantee, ...]:
        def left(game: nz.Game) -> Callable[[int], float]:
            return lambda n: (1 + 2 * game.beta) ** (-n / (2 * WORST))

        def plain(game: nz.Game) -> bool:
            return isinstance(game.divergence, nz.ReverseKL) and not game.oracle.answers_by_coin

        return (
            nz.linear_rate(
                lambda game: 1 / (1 + 2 * game.beta),
                assumptions="beta > 0, reverse KL, exact improvements: no step is shorter than the fixed one",
                holds=plain,
                source="arXiv 2505.19731, last-iterate theorem, with the test in place of its Lipschitz bound",
            ),
            nz.Guarantee(
                metric="kl",
                per="query",
                bound=nz.Affine(left),
                assumptions="beta > 0, reverse KL, exact improvements; rejected steps are counted",
                holds=plain,
                source="docs/adaptive.md: a test is risked only where it is paid for",
            ),
        )

    def _fixed(self, game: nz.Game) -> float:
        return 2 * game.beta

    def init(self, game: nz.Game, policy: nz.Policy) -> nz.State:
        if getattr(game.oracle, "batch_shape", ()) not in ((), (1,)):
            raise nz.BadInput(f"{self.name} chooses a step for one game; play the games of a batch one by one")
        first = max(self.eta or 0.0, self._fixed(game))
        return attrs.evolve(super().init(game, policy), numbers={"eta": first, "credit": 0.0})

    def _step(self, game: nz.Game, state: nz.State) -> float:
        """The size to try: the fixed one where a failure could not be paid for."""
        numbers = state.numbers
        risky = numbers["eta"] > self._fixed(game) and not state.phase
        # An answer that was begun is finished; on the LLM's first step a given eta is taken on trust.
        unpaid = numbers["credit"] < 1 and not (self.eta and state.step == 0)
        return self._fixed(game) if risky and unpaid else numbers["eta"]

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        anchors = [(game.reference, game.beta), (state.current, game.beta / self._step(game, state))]
        if not state.phase:
            return nz.Update(start=state.current, opponent=state.current, anchors=anchors)
        half = state["half"]
        wanted = {"moved": (half, state.current), "missed": (half, nz.ITSELF)}
        # From pi_k, as the half step was: on a language model both answers then err alike, and are comparable.
        return nz.Update(start=state.current, opponent=half, anchors=anchors, distances=wanted)

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        eta, credit = self._step(game, state), state.numbers["credit"] - 1
        if not state.phase:
            numbers = {"eta": eta, "credit": credit}
            return attrs.evolve(state.middle(half=outcome.policy), numbers=numbers)
        if "missed" not in outcome.measured:  # not known yet: whatever the answer will be, nothing may be dropped
            return state.middle(answer=outcome.policy)
        ratio = _ratio(outcome.measured, eta, self.patience)
        fixed = self._fixed(game)
        if ratio <= 1 or eta <= fixed:
            earned = 2 * WORST * math.log1p(eta) / math.log1p(fixed)
            following = max(fixed, eta * min(MOST_GROWTH, max(0.5, _longer(ratio))))
            numbers = {"eta": following, "credit": credit + earned}
            return attrs.evolve(state.next(current=outcome.policy), numbers=numbers)
        shorter = max(fixed, eta * min(0.5, _longer(ratio))) if credit >= 1 else fixed
        # The half step of the shorter size is a mixture of this one and pi_k: its payoff is known already.
        weight = 1 - (1 + 1 / eta) / (1 + 1 / shorter)
        half = state["half"].average(state.current, weight)
        return attrs.evolve(state.middle(half=half), numbers={"eta": shorter, "credit": credit})


def _longer(ratio: float) -> float:
    """How much longer the step would have to be for the best ratio, which grows like its square."""
    return math.sqrt(BEST_RATIO / ratio) if ratio > 0 else MOST_GROWTH


def _ratio(measured: Any, eta: float, patience: float) -> float:
    """(1 + eta) KL(half || next) / KL(half || pi_k); above 1 the test fails. Noise speaks for the step."""
    missed = (1 + eta) * (measured["missed"] - patience * measured.get("missed_error", 0.0))
    moved = measured["moved"] + patience * measured.get("moved_error", 0.0)
    if moved <= 1e-24:  # nothing moves any more: what is left is rounding
        return BEST_RATIO
    return max(0.0, missed) / moved


@nz.hookimpl
def nlhf_zoo_solvers():
    return [AdaptiveNashMP]
