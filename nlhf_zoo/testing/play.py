"""A case played by a solver: every state of the run, and the equilibria that claims about it are measured by."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import attrs
import torch

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game, Guarantee, Solver, State
from nlhf_zoo.tabular import EXACT, NotConverged, TabularPolicy, find_equilibrium
from nlhf_zoo.testing.case import Case, Skip
from nlhf_zoo.testing.runs import states

__all__ = ["Play", "Target", "same_game"]

_T = TypeVar("_T")


@attrs.frozen(eq=False)
class Target:
    """What a guarantee measures the distance to.

    Attributes:
        policy: (Y,).
        blur: how far, in log-probability, it may be off.
    """

    policy: TabularPolicy
    blur: float


class Play:
    """One case in a solver's hands: its runs are made, and its equilibria found, once for all claims about them."""

    def __init__(self, solver: Solver, case: Case) -> None:
        self.solver, self.case = solver, case
        self.game = case.game()
        self._runs: dict[int, _Run] = {}
        self._equilibria: list[tuple[Game, Target | Skip]] = []

    def begins(self, first_step: int = 1) -> State:
        """The state before the solver's step number `first_step`."""
        return next(self.states(first_step))

    def states(self, first_step: int = 1) -> Iterator[State]:
        """The state after each step, without end, from the one before the solver's step number `first_step`.

        Raises:
            Skip: the solver refuses the game, or takes too many payoffs.
        """
        if first_step not in self._runs:
            self._runs[first_step] = _Run(self._play(first_step))
        return iter(self._runs[first_step])

    def _play(self, first_step: int) -> Iterator[State]:
        if first_step == 1:
            generator = torch.Generator().manual_seed(self.case.seed)
            return states(self.solver, self.game, self.case.first(), generator)
        begun = attrs.evolve(self.begins(), step=first_step - 1)
        return states(self.solver, self.game, begun.current, None, begun)

    def require(self, guarantee: Guarantee) -> None:
        """
        Raises:
            Skip: the guarantee does not speak of this game, or not of this start.
        """
        if not guarantee.holds(self.game):
            raise Skip(f"its assumptions do not hold: {guarantee.assumptions}")
        if guarantee.start == "reference" and self.case.start is not None:
            raise Skip("the guarantee is about runs that begin at the reference")

    def about(self, guarantee: Guarantee, state: State) -> Game:
        """The game that a guarantee speaks of, for a run, or a step, that begins at `state`."""
        return self.game if guarantee.about is None else guarantee.about(self.game, state)

    def initial_target(self, guarantee: Guarantee) -> Target:
        """What the guarantee measures the distance to, for a run that begins where this one does.

        Raises:
            Skip: it does not hold for this game, or no equilibrium was found.
        """
        if not guarantee.holds(self.game):
            raise Skip(f"its assumptions do not hold: {guarantee.assumptions}")
        return self.target(guarantee, self.about(guarantee, self.begins()))

    def target(self, guarantee: Guarantee, about: Game) -> Target:
        """What the guarantee measures the distance to, where it speaks of the game `about`.

        Raises:
            Skip: no equilibrium was found.
        """
        if guarantee.target is not None:
            policy = _found(lambda: guarantee.target(self.game))  # type: ignore[misc]  # it is not None
            assert isinstance(policy, TabularPolicy)
            return Target(policy, 1e-13 * (1 + _largest(policy)))
        known = next((target for game, target in self._equilibria if same_game(game, about)), None)
        if known is None:
            try:
                known = _equilibrium(about)
            except Skip as skip:
                known = skip
            self._equilibria.append((about, known))
        if isinstance(known, Skip):
            raise known
        return known


class _Run:
    """A run's states, each made when it is first asked for and kept; where the run was skipped, it is again."""

    def __init__(self, run: Iterator[State]) -> None:
        self.run, self.made = run, list[State]()
        self.skip: Skip | None = None

    def __iter__(self) -> Iterator[State]:
        for step in itertools.count():
            if step == len(self.made):
                self._go_on()
            yield self.made[step]

    def _go_on(self) -> None:
        if self.skip is None:
            try:
                self.made.append(next(self.run))
            except Skip as skip:
                self.skip = skip
        if self.skip is not None:
            raise self.skip


def same_game(one: Game, other: Game) -> bool:
    """Whether two games over one oracle are equal."""
    return (one.reference, one.beta, one.divergence) == (other.reference, other.beta, other.divergence)


def _found(search: Callable[[], _T]) -> _T:
    try:
        return search()
    except (NotConverged, BadInput, ArithmeticError) as failure:
        raise Skip(f"no ground truth: {failure}") from None


def _equilibrium(game: Game) -> Target:
    report = _found(lambda: find_equilibrium(game, EXACT))
    # gap = 2 beta KL, and KL is half a squared distance; at beta = 0 a winner's gap is what its own win rates miss.
    off = 4 * float(report.duality_gap.clamp_min(0) / (game.beta or 16)) ** 0.5
    return Target(report.policy, off + 1e-15 * (1 + _largest(report.policy)))


def _largest(policy: TabularPolicy) -> float:
    """The largest log-probability by size, of responses that are not left out."""
    return float(torch.where(policy.log_probs > -math.inf, policy.log_probs, 0.0).abs().amax())
