"""The exact proximal point method, the implicit scheme that Nash-MP approximates (arXiv 2505.19731).

    next = argmax P(pi > next) - beta KL(pi || ref) - (beta/eta) KL(pi || pi_k)

the equilibrium of the game whose reference is the weighted geometric mean of ref and pi_k.
"""

from __future__ import annotations

import attrs

from nlhf_zoo.interfaces import (
    ITSELF,
    Game,
    Guarantee,
    Outcome,
    Solver,
    State,
    Update,
    hyperparameter,
    linear_rate,
    span_rate,
)
from nlhf_zoo.registry import hookimpl


@attrs.frozen
class ExactProx(Solver):
    """One implicit improvement a step: the policy that is its own best answer under the anchors.

    Attributes:
        eta: step size, any value > 0; `None` is 2 beta, Nash-MP's.
    """

    name = "exact_prox"
    summary = "exact proximal point: each step the equilibrium of a better conditioned game"
    paper = "arXiv 2505.19731"
    when = (
        "As a yardstick for nash_mp, and where implicit steps are cheap: any step size contracts. On a table a step "
        "asks at most as many queries as there are responses, so that a long one is the equilibrium nearly at once."
    )

    eta: float | None = hyperparameter(above=0)

    def _eta(self, game: Game) -> float:
        return self.eta or 2 * game.beta

    @property
    def guarantees(self) -> tuple[Guarantee, ...]:
        return (
            linear_rate(
                lambda game: 1 / (1 + self._eta(game)),
                assumptions="beta > 0, reverse KL, exact improvements; any eta > 0",
                source="arXiv 2505.19731, the proximal point recursion",
            ),
            span_rate(
                lambda game: 1 / (1 + self._eta(game)),
                lambda game: self._eta(game) / game.beta / (1 + self._eta(game)) ** 1.5 / 2,
                assumptions="beta > 0, reverse KL, exact improvements; any eta > 0",
                source="docs/guarantees.md: from the rate in KL",
            ),
        )

    def scaled(self, factor: float, game: Game) -> ExactProx:
        return attrs.evolve(self, eta=self._eta(game))

    def propose(self, game: Game, state: State) -> Update:
        return Update(
            start=state.current,
            opponent=ITSELF,
            anchors=[(game.reference, game.beta), (state.current, game.beta / self._eta(game))],
        )

    def accept(self, game: Game, state: State, outcome: Outcome) -> State:
        return state.next(current=outcome.policy)


@hookimpl
def nlhf_zoo_solvers():
    return [ExactProx]
