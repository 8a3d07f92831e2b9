"""COMAL (Liu et al., arXiv 2410.23223): any solver of the regularised game inside, a moving reference outside.

Every `period` steps of the inner solver, which plays the game with reference `magnet` and coefficient tau, the
magnet becomes the policy. That is the proximal point method on the game without regularisation.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import attrs
import torch
from torch import Tensor

import nlhf_zoo as nz
from nlhf_zoo.registry import lookup


def _whole(_: object, field: object, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise nz.BadInput(f"period is a whole number of inner steps >= 1, got {value!r}")


@attrs.frozen
class MovingReference(nz.Solver):
    """A solver of the regularised game, and a reference that follows it.

    Attributes:
        period: inner steps between two moves of the reference.
        tau: regularisation of the inner games, > 0; `None` is the game's beta.
    """

    needs_beta = False

    period: int = attrs.field(default=50, validator=_whole)
    tau: float | None = nz.hyperparameter(above=0)

    @classmethod
    def practical(cls, beta: float) -> dict[str, float]:
        return {"tau": beta} if beta else {}

    @abstractmethod
    def _inside_name(self) -> str:
        """Name of the solver inside, played with its default hyperparameters."""

    def _solver(self) -> nz.Solver:
        return lookup("solvers", self._inside_name())()

    def _regularised(self, game: nz.Game, **changes: nz.Policy) -> nz.Game:
        if not changes and self.tau in (None, game.beta):
            return game
        return attrs.evolve(game, beta=self.tau or game.beta, **changes)

    @property
    def guarantees(self) -> tuple[nz.Guarantee, ...]:
        """What is proved of the solver inside, within a period; and of the policies that become the reference."""
        found: list[nz.Guarantee] = []
        for claim in self._solver().guarantees:
            if claim.recursion is not None and _of_the_equilibrium(claim):
                found.append(self._within(claim))
            if claim.metric == "span" and claim.bound is not None and _of_the_equilibrium(claim):
                found += [self._across(claim), self._on_average(claim)]
        return tuple(found)

    def _within(self, claim: nz.Guarantee) -> nz.Guarantee:
        assert claim.recursion is not None
        recursion = claim.recursion
        return nz.Guarantee(
            metric=claim.metric,
            bound=None,
            limit="open",
            recursion=lambda step, game, previous: recursion(step % self.period, self._regularised(game), previous),
            about=lambda game, state: self._inside(game, state)[0],
            assumptions=f"within a period, of the game with its reference and beta = tau; {claim.assumptions}",
            holds=lambda game: claim.holds(self._regularised(game)),
            source=claim.source,
        )

    def _miss(self, claim: nz.Guarantee, game: nz.Game) -> float:
        """How far, in span of log-probabilities, a period may end from the equilibrium of its game."""
        assert claim.bound is not None
        inside = self._regularised(game)
        return float(claim.bound(self.period, inside, torch.tensor(1 / inside.beta, dtype=torch.float64)))

    def _drift(self, game: nz.Game) -> float:
        """How much KL(winner || policy) may grow in a period, whatever the period's length."""
        return math.inf

    def _across(self, claim: nz.Guarantee) -> nz.Guarantee:
        def recursion(step: int, game: nz.Game, previous: Tensor) -> Tensor:
            miss = self._miss(claim, game)
            near = miss**2 / 8 + miss * (previous / 2).sqrt().clamp_max(1.0)
            return previous + near.clamp_max(min(miss, self._drift(game)))

        def bound(n: int, game: nz.Game, initial: Tensor | None = None) -> Tensor:
            farthest: Tensor = -game.reference.log_probs.amin(-1)  # type: ignore[attr-defined]  # guarantees are on tables
            reached = farthest if initial is None else initial
            for _ in range(n // self.period):
                reached = recursion(0, game, reached)
            return reached

        return nz.Guarantee(
            metric="kl",
            every=self.period,
            bound=bound,
            recursion=recursion,
            about=lambda game, state: attrs.evolve(game, beta=0.0),
            assumptions=f"of any von Neumann winner, whenever the reference moves; {claim.assumptions}",
            holds=lambda game: claim.holds(self._regularised(game)),
            source="docs/guarantees.md: inexact proximal points; arXiv 2410.23223 for exact ones",
        )

    def _on_average(self, claim: nz.Guarantee) -> nz.Guarantee:
        def bound(n: int, game: nz.Game, initial: Tensor | None = None) -> Tensor:
            farthest: Tensor = -game.reference.log_probs.amin(-1)  # type: ignore[attr-defined]  # guarantees are on tables
            tau, miss, moves = self._regularised(game).beta, self._miss(claim, game), n // self.period
            return 2 * (0.5 + tau * farthest + (moves - 1) * (tau + 0.25) * miss) / moves

        return nz.Guarantee(
            metric="unregularised_gap",
            iterate="average",
            every=self.period,
            start="reference",
            bound=bound,
            assumptions=f"of the references' average; {claim.assumptions}",
            holds=lambda game: claim.holds(self._regularised(game)),
            source="docs/guarantees.md: inexact proximal points",
        )

    def _inside(self, game: nz.Game, state: nz.State) -> tuple[nz.Game, nz.State]:
        """The inner game, and the state as the inner solver sees it."""
        policies = {name: policy for name, policy in state.policies.items() if name != "magnet"}
        inside = attrs.evolve(state, policies=policies, step=state.step % self.period)
        return self._regularised(game, reference=state["magnet"]), inside

    def init(self, game: nz.Game, policy: nz.Policy) -> nz.State:
        if not (self.tau or game.beta):
            raise nz.BadInput(f"{self.name} needs tau > 0 where beta is 0; give --set tau=0.1, for instance")
        state = self._solver().init(self._regularised(game, reference=policy), policy)
        return attrs.evolve(state, policies={**state.policies, "magnet": policy})

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        update = self._solver().propose(*self._inside(game, state))
        if update.loss is not None:
            raise nz.BadInput(
                f"{self.name}: {self._inside_name()} regresses on the game's own reference, and cannot play inside"
            )
        return update

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        inner_game, inside = self._inside(game, state)
        after = self._solver().accept(inner_game, inside, outcome)
        if after.step == inside.step:  # in the middle of an inner step
            return attrs.evolve(after, policies={**after.policies, "magnet": state["magnet"]}, step=state.step)
        if after.step < self.period:
            return attrs.evolve(after, policies={**after.policies, "magnet": state["magnet"]}, step=state.step + 1)
        # The next inner game is a new one: whatever the inner solver remembers of this one is left behind.
        moved = attrs.evolve(inner_game, reference=after.current)
        fresh = self._solver().init(moved, after.current)
        return attrs.evolve(fresh, policies={**fresh.policies, "magnet": after.current}, step=state.step + 1)


def _of_the_equilibrium(claim: nz.Guarantee) -> bool:
    return claim.certainty == "sure" and claim.start == "any" and claim.target is None and claim.about is None


def _other(_: object, field: object, value: str) -> None:
    if value in ("comal", "mpo"):
        raise nz.BadInput(f"comal: {value} moves its reference itself, and cannot be the inner solver")


@attrs.frozen
class COMAL(MovingReference):
    """Any registered solver inside, the reference moved to its answer after every `period` steps.

    Attributes:
        period: inner steps between two moves of the reference.
        tau: regularisation of the inner games, > 0; `None` is the game's beta.
        inner: registered name of the solver inside, played with its default hyperparameters.
    """

    name = "comal"
    summary = "COMAL: a regularised solver inside a moving reference, to the unregularised equilibrium"
    paper = "arXiv 2410.23223"
    when = (
        "For the last iterate near an equilibrium of the game without regularisation, with any proximal solver of "
        "the regularised game inside, none with a pairwise loss; with mmd inside it is mpo. A period must be long "
        "enough for the solver inside: with inpo about 1/tau^2 steps, with nash_mp 1/tau. It does not stay near the "
        "reference."
    )

    inner: str = attrs.field(default="inpo", validator=[attrs.validators.instance_of(str), _other])

    def _inside_name(self) -> str:
        return self.inner


@nz.hookimpl
def nlhf_zoo_solvers():
    return [COMAL]
