"""Broken solvers, each with one mistake that people make, and the property that has to find it."""

# What is wrong here is wrong on purpose, and tables are taken for granted.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportReturnType=false, reportArgumentType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import torch

from nlhf_zoo import (
    ITSELF,
    Guarantee,
    Opponent,
    Outcome,
    PairwiseLoss,
    QueryCount,
    Solver,
    TabularPolicy,
    Update,
    contraction,
    linear_rate,
)
from nlhf_zoo.metrics import kl_divergence
from nlhf_zoo_plugins.exact_prox import ExactProx
from nlhf_zoo_plugins.f_dpo import FDPO
from nlhf_zoo_plugins.mnpo import MNPO
from nlhf_zoo_plugins.mpo import MPO
from nlhf_zoo_plugins.nash_ema import NashEMA
from nlhf_zoo_plugins.nash_md import NashMD
from nlhf_zoo_plugins.nash_mp import NashMP
from nlhf_zoo_plugins.online_dpo import DPOLoss, OnlineDPO
from nlhf_zoo_plugins.online_ipo import IPOLoss, OnlineIPO
from nlhf_zoo_plugins.rspo import DPHRL, RSPO

BOUND = "last-iterate-meets-its-bound"
AVERAGE = "average-iterate-meets-its-bound"
STEP = "each-step-meets-its-recursion"
FORMULA = "follows-its-formula"
FIXED = "target-is-a-fixed-point"

MUTANTS: dict[str, tuple[Solver, str]] = {}
"""By name: the broken solver, and the property that explains it."""


def mutant(prop: str) -> Callable[[type[Solver]], type[Solver]]:
    def register(cls: type[Solver]) -> type[Solver]:
        made = cls if attrs.has(cls) and "__attrs_attrs__" in cls.__dict__ else attrs.frozen(cls)
        MUTANTS[cls.__name__] = made(), prop
        return made

    return register


class MP(NashMP):
    """Nash-MP with its parts exchangeable."""

    def opponent(self, game, state):
        return state["half"] if state.phase else state.current

    def centre(self, game, state):
        return state.current

    def anchors(self, game, state):
        return [(game.reference, game.beta), (self.centre(game, state), game.beta / self._eta(game))]

    def loss(self, game):
        return None

    def propose(self, game, state):
        opponent = self.opponent(game, state)
        return Update(start=state.current, opponent=opponent, anchors=self.anchors(game, state), loss=self.loss(game))


class Turned(PairwiseLoss):
    def loss(self, preference, log_ratio):
        return (preference - 0.5) * log_ratio


# --- what is improved against what, held by what


@mutant(STEP)
class PayoffWithTheWrongSign(MP):
    def loss(self, game):
        return Turned()


@mutant(STEP)
class BetaOnTheWrongAnchor(MP):
    def anchors(self, game, state):
        return [(game.reference, game.beta / self._eta(game)), (state.current, game.beta)]


@mutant(STEP)
class EtaInsteadOfBetaOverEta(MP):
    def anchors(self, game, state):
        return [(game.reference, game.beta), (state.current, self._eta(game))]


@mutant(STEP)
class EtaOverBetaInsteadOfBetaOverEta(MP):
    def anchors(self, game, state):
        return [(game.reference, game.beta), (state.current, self._eta(game) / game.beta)]


@mutant(STEP)
class OneOverEtaInsteadOfBetaOverEta(MP):
    def anchors(self, game, state):
        return [(game.reference, game.beta), (state.current, 1 / self._eta(game))]


@mutant(FORMULA)
class OpponentStaleByOneStep(MP):
    def opponent(self, game, state):
        return state["half"] if state.phase else state.policies.get("previous", state.current)

    def accept(self, game, state, outcome):
        if state.phase:
            return state.next(current=outcome.policy, previous=state.current)
        return state.middle(half=outcome.policy)


@mutant(STEP)
class HalfStepNotUsed(MP):
    def opponent(self, game, state):
        return state.current


@mutant(STEP)
class HalfStepIsTheAnswer(MP):
    def accept(self, game, state, outcome):
        return state.next(current=outcome.policy)


@mutant(STEP)
class HalfStepAsCentre(MP):
    def centre(self, game, state):
        return state["half"] if state.phase else state.current


@mutant(FIXED)
class BetaIgnored(MP):
    def anchors(self, game, state):
        return [(state.current, 0.5)]


@mutant(FIXED)
class BetaFixed(MP):
    def anchors(self, game, state):
        return [(game.reference, 0.1), (state.current, game.beta / self._eta(game))]


@mutant(FIXED)
class BetaHalved(MP):
    def anchors(self, game, state):
        return [(game.reference, game.beta / 2), (state.current, game.beta / self._eta(game))]


@mutant("large-beta-gives-the-reference")
class BetaCapped(MP):
    def anchors(self, game, state):
        return [(game.reference, min(game.beta, 0.05)), (state.current, 0.5)]


@mutant(FIXED)
class UniformInsteadOfReference(MP):
    def anchors(self, game, state):
        return [(game.oracle.uniform_policy(), game.beta), (state.current, game.beta / self._eta(game))]


@mutant(FIXED)
class FirstPolicyInsteadOfReference(MP):
    def init(self, game, policy):
        return attrs.evolve(super().init(game, policy), policies={"current": policy, "first": policy})

    def anchors(self, game, state):
        return [(state["first"], game.beta), (state.current, game.beta / self._eta(game))]

    def accept(self, game, state, outcome):
        if state.phase:
            return state.next(current=outcome.policy, first=state["first"])
        return state.middle(half=outcome.policy)


@mutant(BOUND)
class AnchoredAtTheAverage(MP):
    def init(self, game, policy):
        return attrs.evolve(super().init(game, policy), policies={"current": policy, "average": policy})

    def centre(self, game, state):
        return state["average"]

    def accept(self, game, state, outcome):
        if not state.phase:
            return state.middle(half=outcome.policy)
        average = state["average"].average(outcome.policy, 1 / (state.step + 2))
        return state.next(current=outcome.policy, average=average)


@mutant(BOUND)
class AverageIsTheAnswer(MP):
    """Declares the last iterate, and shows the average."""

    def init(self, game, policy):
        return attrs.evolve(super().init(game, policy), policies={"current": policy, "last": policy})

    def opponent(self, game, state):
        return state["half"] if state.phase else state["last"]

    def centre(self, game, state):
        return state["last"]

    def accept(self, game, state, outcome):
        if not state.phase:
            return state.middle(half=outcome.policy)
        return state.next(current=state.current.average(outcome.policy, 1 / (state.step + 2)), last=outcome.policy)


# --- when it begins and ends


@mutant("starts-at-the-given-policy")
class StartsAtTheReference(MP):
    def init(self, game, policy):
        return super().init(game, game.reference)


@mutant("starts-at-the-given-policy")
class StartsAtUniform(MP):
    def init(self, game, policy):
        return super().init(game, game.oracle.uniform_policy())


@mutant("starts-at-the-given-policy")
class AStepAheadAtTheStart(MP):
    def init(self, game, policy):
        state = super().init(game, policy)
        outcome = policy.improve(self.propose(game, state), game)
        return attrs.evolve(state, policies={"current": outcome.policy}, queries=outcome.queries)


@mutant(BOUND)
class FirstStepDoesNothing(MP):
    def accept(self, game, state, outcome):
        after = super().accept(game, state, outcome)
        return after if state.step or not state.phase else state.next(current=state.current)


@mutant(BOUND)
class StopsAfterTwentySteps(MP):
    def accept(self, game, state, outcome):
        after = super().accept(game, state, outcome)
        return after if state.step < 20 or not state.phase else state.next(current=state.current)


@mutant(BOUND)
class StopsWhenItMovesLittle(MP):
    def accept(self, game, state, outcome):
        after = super().accept(game, state, outcome)
        moved = float(kl_divergence(state.current.log_probs, after.current.log_probs).amax())
        return state.next(current=state.current) if state.phase and moved < 1e-4 else after


@mutant("stays-normalised-and-finite")
class StepNeverEnds(MP):
    def accept(self, game, state, outcome):
        return state.middle(half=outcome.policy)


@mutant("stays-normalised-and-finite")
class CountsStepsByTwo(MP):
    def accept(self, game, state, outcome):
        after = super().accept(game, state, outcome)
        return attrs.evolve(after, step=state.step + 2) if state.phase else after


# --- randomness and memory


@mutant("uses-no-hidden-randomness")
class TorchRandomness(MP):
    def anchors(self, game, state):
        jitter = 1 + 1e-9 * float(torch.rand(()))
        return [(game.reference, game.beta), (state.current, jitter * game.beta / self._eta(game))]


@mutant("uses-no-hidden-randomness")
class PythonRandomness(MP):
    def opponent(self, game, state):
        return state["half"] if state.phase and random.random() < 0.9 else state.current


@mutant("depends-on-the-seed-alone")
class LooksAtTheClock(MP):
    def anchors(self, game, state):
        jitter = 1 + 1e-9 * (time.perf_counter_ns() % 1000)
        return [(game.reference, game.beta), (state.current, jitter * game.beta / self._eta(game))]


@mutant("leaks-nothing-between-games")
@attrs.frozen
class RemembersTheLastGame(MP):
    memory: dict[str, Any] = attrs.field(factory=dict, eq=False)

    def opponent(self, game, state):
        last = self.memory.get("half")
        if state.phase and last is not None and last.log_probs.shape == state.current.log_probs.shape:
            return last
        return super().opponent(game, state)

    def accept(self, game, state, outcome):
        if state.phase:
            self.memory["half"] = state["half"]
        return super().accept(game, state, outcome)


@mutant("leaks-nothing-between-games")
class CachesTheReference(MP):
    cache: ClassVar[dict[int, Any]] = {}

    def anchors(self, game, state):
        reference = self.cache.setdefault(game.reference.log_probs.shape[-1], game.reference)
        if reference.log_probs.shape != game.reference.log_probs.shape or not state.step:
            self.cache[game.reference.log_probs.shape[-1]] = reference = game.reference
        return [(reference, game.beta), (state.current, game.beta / self._eta(game))]


@mutant("is-a-pure-function")
@attrs.frozen
class CountsItsOwnSteps(MP):
    calls: list[int] = attrs.field(factory=list)

    def anchors(self, game, state):
        self.calls.append(state.step)
        return super().anchors(game, state)


@mutant("resumes-in-the-middle")
@attrs.frozen
class HalfStepOutsideTheState(MP):
    memory: dict[int, Any] = attrs.field(factory=dict, eq=False)

    def opponent(self, game, state):
        return self.memory.get(id(state.current), (None, state.current))[1] if state.phase else state.current

    def accept(self, game, state, outcome):
        if state.phase:
            return state.next(current=outcome.policy)
        # What is kept alive has its number for itself.
        self.memory[id(state.current)] = state.current, outcome.policy
        return state.middle()


@mutant("resumes-in-the-middle")
class NumbersThatCannotBeSaved(MP):
    def accept(self, game, state, outcome):
        return attrs.evolve(super().accept(game, state, outcome), numbers={"eta": torch.tensor(0.1)})


@mutant("is-a-pure-function")
class ChangesTheStateInPlace(MP):
    def accept(self, game, state, outcome):
        if state.phase:
            state.policies["current"] = outcome.policy
            return attrs.evolve(state, step=state.step + 1, phase=0)
        return state.middle(half=outcome.policy)


@mutant("leaves-its-inputs-untouched")
class ChangesTheCallersPolicy(MP):
    def accept(self, game, state, outcome):
        if not state.phase:
            return state.middle(half=outcome.policy)
        state.current.log_probs.copy_(outcome.policy.log_probs)
        return state.next(current=state.current)


@mutant("leaves-its-inputs-untouched")
class ClampsTheReferenceInPlace(MP):
    def init(self, game, policy):
        game.reference.log_probs.clamp_(min=-5)
        return super().init(game, policy)


# --- queries


class LyingPolicy(TabularPolicy):
    def improve(self, update, game, generator=None):
        outcome = TabularPolicy(self.log_probs).improve(update, game, generator)
        fewer = outcome.queries - QueryCount(*(min(1, n) for n in attrs.astuple(outcome.queries)))
        return Outcome(LyingPolicy(outcome.policy.log_probs), fewer)


@mutant("counts-every-query")
class QueriesOffByOne(MP):
    def init(self, game, policy):
        return super().init(game, LyingPolicy(policy.log_probs))


@mutant("counts-every-query")
class LineSearchNotCounted(MP):
    def accept(self, game, state, outcome):
        payoff = game.oracle.payoff(outcome.policy.probs, generator=torch.Generator())
        return super().accept(game, state, outcome) if bool((payoff <= 2).all()) else state


@mutant("counts-every-query")
class AsksWhereNobodyCounts(MP):
    def accept(self, game, state, outcome):
        with game.oracle.uncounted():
            game.oracle.payoff(outcome.policy.probs, generator=torch.Generator())
        return super().accept(game, state, outcome)


@mutant("counts-every-query")
class ReadsTheMatrix(MP):
    def opponent(self, game, state):
        best = game.oracle.matrix().mean(-1).argmax()
        return state["half"] if state.phase and best >= 0 else state.current


@mutant("counts-every-query")
class ImprovesTwice(MP):
    def propose(self, game, state):
        update = super().propose(game, state)
        update.start.improve(update, game, torch.Generator())
        return update


# --- numerics and shapes


class Rounded(MP):
    def made(self, log_probs):
        return TabularPolicy(log_probs)

    def accept(self, game, state, outcome):
        return super().accept(game, state, Outcome(self.made(outcome.policy.log_probs), outcome.queries))


@mutant("works-in-double-precision")
class SinglePrecisionInside(Rounded):
    def made(self, log_probs):
        return TabularPolicy(log_probs.float().double())


@mutant("stays-normalised-and-finite")
class SinglePrecisionOutside(MP):
    def accept(self, game, state, outcome):
        after = super().accept(game, state, outcome)
        return after if after.phase else state.next(current=TabularPolicy(outcome.policy.log_probs.float()))


@mutant("stays-normalised-and-finite")
class LeavesTheLogDomain(Rounded):
    def made(self, log_probs):
        return TabularPolicy(log_probs.exp().log())


@mutant("stays-normalised-and-finite")
class NotANumberAtExtremes(Rounded):
    def made(self, log_probs):
        odds = log_probs.exp() / log_probs.exp().amin(-1, keepdim=True)
        return TabularPolicy(odds.log())


@mutant(FIXED)
class FloorOnProbabilities(Rounded):
    def made(self, log_probs):
        return TabularPolicy(log_probs.clamp(min=-12))


class RawPolicy(TabularPolicy):
    """A table that nobody has normalised."""

    @classmethod
    def of(cls, log_probs):
        made = cls(log_probs)
        object.__setattr__(made, "log_probs", log_probs)
        return made


@mutant("stays-normalised-and-finite")
class NotNormalised(Rounded):
    def made(self, log_probs):
        return RawPolicy.of(log_probs - 0.01)


@mutant("plays-a-batch-as-its-games")
class BatchesShareTheirStep(MP):
    def accept(self, game, state, outcome):
        after = super().accept(game, state, outcome)
        log_probs = after.current.log_probs
        if log_probs.ndim > 1:
            log_probs = log_probs - 0.01 * (log_probs - log_probs.mean(0))
        return attrs.evolve(after, policies={**after.policies, "current": TabularPolicy(log_probs)})


@mutant("plays-a-batch-as-its-games")
class BatchUsesTheFirstReference(MP):
    def anchors(self, game, state):
        table = game.reference.log_probs
        first = (
            TabularPolicy(table.reshape(-1, table.shape[-1])[0].expand_as(table)) if table.ndim > 1 else game.reference
        )
        return [(first, game.beta), (state.current, game.beta / self._eta(game))]


@mutant("permuting-responses-permutes-the-result")
class FavoursTheFirstResponse(Rounded):
    def made(self, log_probs):
        tilt = torch.zeros_like(log_probs)
        tilt[..., 0] = 1e-6
        return TabularPolicy(log_probs + tilt)


@mutant("twins-share-their-mass")
class ExploresByTheNumberOfResponses(MP):
    def opponent(self, game, state):
        chosen = super().opponent(game, state)
        return Opponent([(chosen, 0.99), (game.oracle.uniform_policy(), 0.01)])


@mutant("stays-where-nobody-is-preferred")
class DriftsToUniform(MP):
    def anchors(self, game, state):
        return [*super().anchors(game, state), (game.oracle.uniform_policy(), 1e-4)]


@mutant("payoffs-and-beta-scale-together")
class AbsoluteStepInAScaleFreePlace(MP):
    def anchors(self, game, state):
        return [(game.reference, game.beta), (state.current, 0.5)]


# --- declarations


@mutant("declares-itself")
@attrs.define
class NotFrozen(Solver):
    name = "not_frozen"
    summary = "self-play, with hyperparameters that anyone may change"
    eta: float = 0.1

    def propose(self, game, state):
        return Update(start=state.current, opponent=state.current, anchors=[(state.current, 1 / self.eta)])

    def accept(self, game, state, outcome):
        return state.next(current=outcome.policy)


@mutant("declares-itself")
class NoSource(MP):
    @property
    def guarantees(self):
        return tuple(attrs.evolve(guarantee, source="") for guarantee in super().guarantees)


@mutant(BOUND)
class ClaimsTwiceTheRate(MP):
    @property
    def guarantees(self):
        bound = contraction(lambda game: 1 / (1 + 2 * self._eta(game)))
        return (Guarantee(metric="kl", bound=bound, source="wishful thinking"),)


@mutant(BOUND)
class ClaimsAnyStepSize(MP):
    def _eta(self, game):
        return 16 * game.beta

    @property
    def guarantees(self):
        bound = contraction(lambda game: 1 / (1 + self._eta(game)))
        return (Guarantee(metric="kl", bound=bound, source="wishful thinking"),)


class LookAhead(Solver):
    """Three improvements a step, each against the one before, all held at the step's own start.

    Near the equilibrium of an odd cycle its rate 1 / (1 + eta) holds up to eta = 4 beta, as beta -> 0, and far away
    and in small games much further.
    """

    name = "look_ahead"
    summary = "Nash-MP with one more half-step"
    eta_over_beta: ClassVar[float] = 4.2

    @property
    def guarantees(self):
        rate = linear_rate(lambda game: 1 / (1 + self.eta_over_beta * game.beta), assumptions="none", source="a hunch")
        return (rate,)

    def propose(self, game, state):
        opponent = state[("current", "half", "half2")[state.phase]]
        anchors = [(game.reference, game.beta), (state.current, 1 / self.eta_over_beta)]
        return Update(start=opponent, opponent=opponent, anchors=anchors)

    def accept(self, game, state, outcome):
        if state.phase == 2:
            return state.next(current=outcome.policy)
        return state.middle(**{("half", "half2")[state.phase]: outcome.policy})


@mutant(STEP)
class ClaimsALargerStepThanIsTrue(LookAhead):
    """By 5%, at steps that are twice as long as Nash-MP's proof allows."""


@mutant(BOUND)
class ClaimsALargerStepThanIsTrueOfRuns(LookAhead):
    @property
    def guarantees(self):
        return tuple(attrs.evolve(guarantee, recursion=None) for guarantee in super().guarantees)


@mutant(STEP)
class ClaimsNashMPAtThreePointThree(MP):
    """True up to eta = pi beta, as beta -> 0; proved up to 2 beta."""

    def _eta(self, game):
        return 3.3 * game.beta

    @property
    def guarantees(self):
        return (linear_rate(lambda game: 1 / (1 + self._eta(game)), assumptions="none", source="a hunch"),)


@mutant("declares-itself")
class ClaimsARateThatGrows(MP):
    @property
    def guarantees(self):
        return (linear_rate(lambda game: 1 + self._eta(game), assumptions="none", source="a slip"),)


@mutant("declares-itself")
class ForgetsToReturn(MP):
    def accept(self, game, state, outcome):
        super().accept(game, state, outcome)


@mutant("declares-itself")
class ImplicitStepNeverEnds(ExactProx):
    def accept(self, game, state, outcome):
        return state.middle(current=outcome.policy)


@mutant(BOUND)
class ClaimsTheGapInsteadOfKL(MP):
    @property
    def guarantees(self):
        bound = contraction(lambda game: 1 / (1 + self._eta(game)) ** 2)
        return (Guarantee(metric="span", bound=bound, source="wishful thinking"),)


# --- NashMD


class MD(NashMD):
    def mixed(self, game, state, mixing):
        return state.current.mixture(game.reference, mixing)

    def anchors(self, game, state, mixing):
        return [(state.current, (1 - mixing) * game.beta / mixing), (game.reference, game.beta)]

    def propose(self, game, state):
        mixing = self._mixing(game, state.step)
        opponent, anchors = self.mixed(game, state, mixing), self.anchors(game, state, mixing)
        return Update(start=state.current, opponent=opponent, anchors=anchors)


@mutant(FORMULA)
class ArithmeticMixture(MD):
    def mixed(self, game, state, mixing):
        return Opponent([(state.current, 1 - mixing), (game.reference, mixing)])


@mutant(FORMULA)
class MixtureNotRenormalised(MD):
    def mixed(self, game, state, mixing):
        return RawPolicy.of((1 - mixing) * state.current.log_probs + mixing * game.reference.log_probs)


@mutant(FORMULA)
class MixtureTheWrongWayRound(MD):
    def mixed(self, game, state, mixing):
        return state.current.mixture(game.reference, 1 - mixing)


@mutant(FORMULA)
class MixtureForgotten(MD):
    def mixed(self, game, state, mixing):
        return state.current


@mutant(STEP)
class AnchorWeightsExchanged(MD):
    def anchors(self, game, state, mixing):
        return [(game.reference, (1 - mixing) * game.beta / mixing), (state.current, game.beta)]


@mutant(FORMULA)
class StepDoesNotDecay(MD):
    def _mixing(self, game, step):
        return super()._mixing(game, 0 if step == 0 else 1)


@mutant(FORMULA)
class StepWithoutBeta(MD):
    def anchors(self, game, state, mixing):
        return [(state.current, (1 - mixing) / mixing), (game.reference, game.beta)]


# --- pairwise losses


class IPO(OnlineIPO):
    loss: ClassVar[type[PairwiseLoss]] = IPOLoss

    def propose(self, game, state):
        return attrs.evolve(super().propose(game, state), loss=self.loss(game.beta))


class LogRatioSign(IPOLoss):
    def loss(self, preference, log_ratio):
        return (log_ratio + (preference - 0.5) / self.beta).square()


@mutant("loss-is-antisymmetric")
class LossAndSignalDisagree(IPO):
    loss = LogRatioSign


class NoHalf(IPOLoss):
    def loss(self, preference, log_ratio):
        return (log_ratio - preference / self.beta).square()

    def signal(self, preference, log_ratio):
        return preference - self.beta * log_ratio


@mutant("loss-is-antisymmetric")
class HalfForgotten(IPO):
    loss = NoHalf


class NoBeta(IPOLoss):
    @property
    def scale(self):
        return 0.5

    def loss(self, preference, log_ratio):
        return (log_ratio - (preference - 0.5)).square()

    def signal(self, preference, log_ratio):
        return preference - 0.5 - log_ratio


@mutant(FIXED)
class LossWithoutBeta(IPO):
    loss = NoBeta


class Climbing(IPOLoss):
    def loss(self, preference, log_ratio):
        return -super().loss(preference, log_ratio)

    def signal(self, preference, log_ratio):
        return -super().signal(preference, log_ratio)


@mutant(STEP)
class LossClimbed(IPO):
    loss = Climbing


@mutant(STEP)
class GradientTwiceAsLong(IPO):
    def propose(self, game, state):
        return attrs.evolve(super().propose(game, state), anchors=[(state.current, 0.5 / self._eta(game))])


@mutant(STEP)
class PairsFromTheReference(IPO):
    def propose(self, game, state):
        return attrs.evolve(super().propose(game, state), opponent=game.reference)


class DPO(OnlineDPO):
    loss: ClassVar[type[PairwiseLoss]] = DPOLoss

    def propose(self, game, state):
        return attrs.evolve(super().propose(game, state), loss=self.loss(game.beta))


class DPOWithoutBeta(DPOLoss):
    @property
    def scale(self):
        return 1.0

    def loss(self, preference, log_ratio):
        return DPOLoss(1.0).loss(preference, log_ratio)

    def signal(self, preference, log_ratio):
        return DPOLoss(1.0).signal(preference, log_ratio)


@mutant(FIXED)
class LogisticWithoutBeta(DPO):
    loss = DPOWithoutBeta


@mutant("reaches-its-target-in-the-limit")
class LogisticClimbed(DPO):
    class _Climbing(DPOLoss):
        def loss(self, preference, log_ratio):
            return -super().loss(preference, log_ratio)

        def signal(self, preference, log_ratio):
            return -super().signal(preference, log_ratio)

    loss = _Climbing


@mutant("reaches-its-target-in-the-limit")
class StopsShort(DPO):
    def accept(self, game, state, outcome):
        return super().accept(game, state, outcome) if state.step < 5 else state.next(current=state.current)


@mutant(FIXED)
class ClaimsTheEquilibrium(DPO):
    """Online DPO's limit is the reward optimum; this says that it is the game's equilibrium."""

    @property
    def guarantees(self):
        return (attrs.evolve(super().guarantees[0], target=None, source="wishful thinking"),)


@mutant(FORMULA)
class LogisticPairsFromTheReference(DPO):
    """Keeps the one promise of Online DPO: under Bradley-Terry P - sigma(beta h) vanishes at the target for each
    pair alone, so that whoever draws the pairs, the limit is the same. The formula tells it apart."""

    def propose(self, game, state):
        return attrs.evolve(super().propose(game, state), opponent=game.reference)


# --- exact prox


@mutant(STEP)
class ExplicitInsteadOfImplicit(ExactProx):
    def propose(self, game, state):
        return attrs.evolve(super().propose(game, state), opponent=state.current)


@mutant(STEP)
class CentreIsTheReference(ExactProx):
    def propose(self, game, state):
        weight = game.beta + game.beta / self._eta(game)
        return attrs.evolve(super().propose(game, state), anchors=[(game.reference, weight)])


# --- a moving reference


def no_farther(n, game, initial=None):
    return torch.tensor(math.inf, dtype=torch.float64) if initial is None else initial


class Moving(MPO):
    """MPO with its parts exchangeable."""

    def moved(self, state, after):
        return after

    def accept(self, game, state, outcome):
        after = super().accept(game, state, outcome)
        return after if after.step % self.period else self.moved(state, after)


@mutant(AVERAGE)
class ReferenceNeverMoves(Moving):
    def moved(self, state, after):
        return attrs.evolve(after, policies={**after.policies, "magnet": state["magnet"]})


@mutant("starts-at-the-given-policy")
class ReferenceIsTheStart(Moving):
    def init(self, game, policy):
        state = super().init(game, policy)
        return attrs.evolve(state, policies={**state.policies, "current": game.reference})


@mutant(STEP)
class InsideTurnedRound(Moving):
    def propose(self, game, state):
        return attrs.evolve(super().propose(game, state), loss=Turned())


@mutant(STEP)
class InsideAStepTooLong(Moving):
    """40 tau with the promises of 4 tau."""

    def propose(self, game, state):
        update = super().propose(game, state)
        tau = self.tau or game.beta
        anchors = [(state["magnet"], tau), (state.current, 1 / (40 * tau))]
        return attrs.evolve(update, anchors=anchors)


@mutant(BOUND)
class ClaimsThatKLNeverGrows(Moving):
    """True of exact proximal points, which mmd's answer after 50 steps at small tau is not."""

    @property
    def guarantees(self):
        return tuple(
            attrs.evolve(
                claim, bound=lambda n, game, initial=None: torch.tensor(math.inf) if initial is None else initial
            )
            for claim in super().guarantees
            if claim.every > 1 and claim.metric == "kl"
        )


# --- averages and populations


@mutant(BOUND)
class AverageWithMMDsStep(NashEMA):
    """4 beta, which is proved without the lag of an average."""

    def _eta(self, game):
        return 4 * game.beta

    @property
    def guarantees(self):
        (claim,) = super().guarantees
        return (
            attrs.evolve(claim, holds=lambda game: True, bound=lambda n, game, initial=None: initial or 1 / game.beta),
        )


@mutant(FIXED)
class AverageBeginsAtTheReference(NashEMA):
    def init(self, game, policy):
        return attrs.evolve(super().init(game, policy), policies={"current": policy, "average": game.reference})


@mutant(BOUND)
class AverageIsTheCentre(NashEMA):
    def propose(self, game, state):
        anchors = [(game.reference, game.beta), (state["average"], 1 / self._eta(game))]
        return Update(start=state.current, opponent=state["average"], anchors=anchors)


@mutant(BOUND)
class PopulationWithTooLongAStep(MNPO):
    def _eta(self, game):
        return 12 * game.beta

    def _contracts(self, game):
        return True


@mutant(FIXED)
class PopulationWithTheReference(MNPO):
    def propose(self, game, state):
        opponent = Opponent([(state.current, 0.75), (game.reference, 0.25)])
        return attrs.evolve(super().propose(game, state), opponent=opponent)


# --- other divergences


@mutant(FIXED)
class DivergencesExchanged(RSPO):
    def propose(self, game, state):
        update = super().propose(game, state)
        kinds = [anchor.divergence for anchor in reversed(update.anchors)]
        anchors = [attrs.evolve(anchor, divergence=kind) for anchor, kind in zip(update.anchors, kinds, strict=True)]
        return attrs.evolve(update, anchors=anchors)


@mutant(FIXED)
class ClaimsTheGamesOwnEquilibrium(RSPO):
    @property
    def guarantees(self):
        return tuple(attrs.evolve(claim, about=None) for claim in super().guarantees)


@mutant(STEP)
@attrs.frozen
class ClaimsALongStepOfForwardKL(DPHRL):
    """40 beta, twenty times what is proved where the reference is uniform over two responses."""

    def _eta(self, game):
        return 40 * game.beta

    @property
    def guarantees(self):
        (claim,) = super().guarantees
        never = {"bound": None, "recursion": lambda step, game, previous: previous}
        return (attrs.evolve(claim, holds=lambda game: True, **never),)


@mutant(STEP)
class ChiSquaredWithTooLongAStep(RSPO):
    def _eta(self, game):
        return 120 * game.beta

    @property
    def guarantees(self):
        return tuple(attrs.evolve(claim, holds=lambda game: True) for claim in super().guarantees)


@mutant(FIXED)
class SlopeForgotten(FDPO):
    """Online DPO's own log-ratio, with the optimum of another divergence claimed."""

    def propose(self, game, state):
        return attrs.evolve(super().propose(game, state), loss=DPOLoss(game.beta))


@mutant("reaches-its-target-in-the-limit")
@attrs.frozen
class ClaimsToReachTheOptimumUnderAlpha(FDPO):
    """A fixed point it is, but steps of 1 / beta are too long where f' is steep."""

    divergence: str = "alpha"

    @property
    def guarantees(self):
        return tuple(attrs.evolve(claim, limit="reached") for claim in super().guarantees)


@mutant(STEP)
class ClaimsTwiceTheRateOfDPO(OnlineDPO):
    @property
    def guarantees(self):
        _, rate = super().guarantees
        assert rate.recursion is not None

        def twice(step, game, previous):
            assert rate.recursion is not None
            return previous - 2 * (previous - rate.recursion(step, game, previous))

        return (attrs.evolve(rate, recursion=twice),)


@mutant("trains-batch-by-batch")
class KeepsAMixture(MP):
    """On a table a mixture is a policy like any other."""

    def accept(self, game, state, outcome):
        accepted = super().accept(game, state, outcome)
        return attrs.evolve(accepted, policies={**accepted.policies, "old": state.current.mixture(outcome.policy, 0.5)})


# --- equivalent: different code that keeps every promise made


@attrs.frozen
class SolvesOutright(ExactProx):
    """Without a centre the first step is the equilibrium itself: every bound on a distance holds, at distance 0."""

    def propose(self, game, state):
        return attrs.evolve(super().propose(game, state), opponent=ITSELF, anchors=[(game.reference, game.beta)])


@attrs.frozen
class PayoffsShifted(MP):
    """u + 1 instead of u: argmax over policies does not see a constant."""

    class _Shifted(PairwiseLoss):
        def loss(self, preference, log_ratio):
            return -(preference - 0.5) * log_ratio

    def loss(self, game):
        return self._Shifted()


EQUIVALENT: dict[str, Solver] = {
    "SolvesOutright": SolvesOutright(),
    "PayoffsShifted": PayoffsShifted(),
}
"""Not wrong by any promise: the docstring of each says why."""
