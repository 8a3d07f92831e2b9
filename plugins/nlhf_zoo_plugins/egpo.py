"""EGPO, extragradient preference optimisation (Zhou et al., arXiv 2503.08942).

    half = argmax P(pi > pi_k)  - beta KL(pi || ref) - (1/eta - beta) KL(pi || pi_k)
    next = argmax P(pi > half)  - beta KL(pi || ref) - (1/eta - beta) KL(pi || pi_k)

the explicit steps log half = (1 - eta beta) log pi_k + eta beta log ref + eta u. It is Nash Mirror Prox with
its step size written as eta beta / (1 - eta beta).
"""

from __future__ import annotations

import math

import attrs

import nlhf_zoo as nz


@attrs.frozen
class EGPO(nz.Solver):
    """Two explicit mirror steps a step, both from the step's own start.

    Attributes:
        eta: step size, 0 < eta < 1/beta, in units of 1 / payoff; `None` is the largest that is proved to converge,
            2 (sqrt(1 + beta^2) - beta).
    """

    name = "egpo"
    summary = "extragradient preference optimisation: Nash-MP's two steps in explicit form, linear last-iterate rate"
    paper = "arXiv 2503.08942"
    when = (
        "Where steps are given in the explicit form of its paper: on a table it is nash_mp with the step size eta "
        "beta / (1 - eta beta), with the same rate."
    )

    eta: float | None = nz.hyperparameter(above=0)

    @classmethod
    def practical(cls, beta: float) -> dict[str, float]:
        return {"eta": 0.1 / beta / (1 + 0.1)} if beta else {}  # Nash-MP's practical step of 0.1

    def _eta(self, game: nz.Game) -> float:
        return self.eta or 2 * (math.sqrt(1 + game.beta**2) - game.beta)

    @property
    def guarantees(self) -> tuple[nz.Guarantee, ...]:
        def small(game: nz.Game) -> bool:
            # The two proximal weights 1/eta and 1/eta - beta must outweigh a skew payoff in [-1/2, 1/2].
            return self.eta is None or self.eta**2 <= 4 * (1 - self.eta * game.beta)

        return (
            nz.linear_rate(
                lambda game: 1 - self._eta(game) * game.beta,
                assumptions="beta > 0, eta^2 <= 4 (1 - eta beta), reverse KL, exact expectations",
                holds=small,
                source="arXiv 2503.08942, theorem 1; the range of eta is derived in docs/guarantees.md",
            ),
        )

    def scaled(self, factor: float, game: nz.Game) -> EGPO:
        return attrs.evolve(self, eta=self._eta(game) / factor)

    def init(self, game: nz.Game, policy: nz.Policy) -> nz.State:
        if game.beta and self._eta(game) * game.beta >= 1:
            raise nz.BadInput(f"egpo needs eta < 1/beta = {1 / game.beta:g}, got {self._eta(game):g}")
        return super().init(game, policy)

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        opponent = state["half"] if state.phase else state.current
        anchors = [(game.reference, game.beta), (state.current, 1 / self._eta(game) - game.beta)]
        return nz.Update(start=opponent, opponent=opponent, anchors=anchors)

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        return state.next(current=outcome.policy) if state.phase else state.middle(half=outcome.policy)


@nz.hookimpl
def nlhf_zoo_solvers():
    return [EGPO]
