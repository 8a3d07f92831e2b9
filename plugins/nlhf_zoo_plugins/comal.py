"""COMAL (Liu et al., arXiv 2410.23223): any solver of the regularised game inside, a moving reference outside.

Every `period` steps of the inner solver, which plays the game with reference `magnet` and coefficient tau, the
magnet becomes the policy. That is the proximal point method on the game without regularisation.
"""

from __future__ import annotations

from abc import abstractmethod

import attrs

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

    def _inside(self, game: nz.Game, state: nz.State) -> tuple[nz.Game, nz.State]:
        """The inner game, and the state as the inner solver sees it."""
        policies = {name: policy for name, policy in state.policies.items() if name != "magnet"}
        inside = attrs.evolve(state, policies=policies, step=state.step % self.period)
        return attrs.evolve(game, reference=state["magnet"], beta=self.tau or game.beta), inside

    def init(self, game: nz.Game, policy: nz.Policy) -> nz.State:
        if not (self.tau or game.beta):
            raise nz.BadInput(f"{self.name} needs tau > 0 where beta is 0; give --set tau=0.1, for instance")
        state = self._solver().init(attrs.evolve(game, reference=policy, beta=self.tau or game.beta), policy)
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
        "the regularised game inside, none with a pairwise loss; with mmd inside it is mpo. It does not stay near "
        "the reference, and no rate is declared."
    )

    inner: str = attrs.field(default="inpo", validator=[attrs.validators.instance_of(str), _other])

    def _inside_name(self) -> str:
        return self.inner


@nz.hookimpl
def nlhf_zoo_solvers():
    return [COMAL]
