"""Nash-EMA (Munos et al., arXiv 2312.00886, section 7): best answers to a moving average of one's own past.

next = argmax P(pi > average_k) - beta KL(pi || ref) - (1/eta) KL(pi || pi_k),
average_{k+1} = (1 - kappa) average_k + kappa next, in parameters (on a table: a geometric mixture).
"""

from __future__ import annotations

import attrs

import nlhf_zoo as nz


@attrs.frozen
class NashEMA(nz.Solver):
    """One proximal improvement a step, against an exponential moving average of the policies.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff; `None` is 4 beta.
        kappa: weight in (0, 1] of the newest policy in the average; 1 is magnetic mirror descent.
    """

    name = "nash_ema"
    summary = "best answers to a moving average of the policy's own past"
    paper = "arXiv 2312.00886"
    when = (
        "For a steadier opponent than oneself, at the cost of one more model. No rate is declared; with kappa = 1 it "
        "is mmd, which has one."
    )

    eta: float | None = nz.hyperparameter(above=0)
    kappa: float = nz.hyperparameter(0.125, above=0, at_most=1)

    @classmethod
    def practical(cls, beta: float) -> dict[str, float]:
        return {"eta": 0.1 / beta} if beta else {}

    def init(self, game: nz.Game, policy: nz.Policy) -> nz.State:
        return attrs.evolve(super().init(game, policy), policies={"current": policy, "average": policy})

    def scaled(self, factor: float, game: nz.Game) -> NashEMA:
        return attrs.evolve(self, eta=(self.eta or 4 * game.beta) / factor)

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        anchors = [(game.reference, game.beta), (state.current, 1 / (self.eta or 4 * game.beta))]
        return nz.Update(start=state.current, opponent=state["average"], anchors=anchors)

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        return state.next(current=outcome.policy, average=state["average"].average(outcome.policy, self.kappa))


@nz.hookimpl
def nlhf_zoo_solvers():
    return [NashEMA]
