"""Magnetic mirror descent (Sokota et al., arXiv 2206.05825) in self-play.

next = argmax P(pi > pi_k) - beta KL(pi || ref) - (1/eta) KL(pi || pi_k)
"""

from __future__ import annotations

from typing import ClassVar

import attrs

import nlhf_zoo as nz


@attrs.frozen
class MagneticMirrorDescent(nz.Solver):
    """One proximal improvement a step, against the policy itself, pulled to the reference (the magnet).

    Attributes:
        eta: step size, > 0, in units of 1 / payoff; `None` is the largest that is proved to converge, 4 beta.
    """

    name = "mmd"
    summary = "magnetic mirror descent: proximal self-play, pulled to the reference"
    paper = "arXiv 2206.05825"
    when = (
        "For one query a step and a linear rate; the simplest solver that reaches the regularised equilibrium. The "
        "proved factor 1 / (1 + 4 beta^2) a step is slow at small beta, where nash_mp has 1 / (1 + 2 beta)."
    )
    fit: ClassVar[nz.Fit | None] = None

    eta: float | None = nz.hyperparameter(above=0)

    @classmethod
    def practical(cls, beta: float) -> dict[str, float]:
        # The proximal weight 10 beta of Nash-MP's practical form.
        return {"eta": 0.1 / beta} if beta else {}

    def _eta(self, game: nz.Game) -> float:
        return self.eta or 4 * game.beta

    @property
    def guarantees(self) -> tuple[nz.Guarantee, ...]:
        return (
            nz.linear_rate(
                lambda game: 1 / (1 + self._eta(game) * game.beta),
                assumptions="beta > 0, eta <= 4 beta, reverse KL, exact expectations",
                holds=lambda game: self._eta(game) <= 4 * game.beta,
                source="arXiv 2206.05825, theorem 3.4, with smoothness 1/2 of a preference in [0, 1]",
            ),
            nz.span_rate(
                lambda game: 1 / (1 + self._eta(game) * game.beta),
                lambda game: self._eta(game) / (1 + self._eta(game) * game.beta) / 2,
                assumptions="beta > 0, eta <= 4 beta, reverse KL, exact expectations",
                holds=lambda game: self._eta(game) <= 4 * game.beta,
                source="docs/guarantees.md: from the rate in KL",
            ),
        )

    def scaled(self, factor: float, game: nz.Game) -> MagneticMirrorDescent:
        return attrs.evolve(self, eta=self._eta(game) / factor)

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        anchors = [(game.reference, game.beta), (state.current, 1 / self._eta(game))]
        return nz.Update(start=state.current, opponent=state.current, anchors=anchors, fit=self.fit)

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        return state.next(current=outcome.policy)


@nz.hookimpl
def nlhf_zoo_solvers():
    return [MagneticMirrorDescent]
