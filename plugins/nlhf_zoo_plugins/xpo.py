"""XPO, exploratory preference optimisation (Xie et al., arXiv 2405.21046): Online DPO with a bonus for the unseen.

loss = online DPO on pairs (y ~ pi, y' ~ ref) + bonus * E_{y'~ref} log pi(y'): what the reference would answer is
made less likely than DPO would have it. In payoffs, -bonus * ref/pi (y) is added to Online DPO's.
"""

from __future__ import annotations

import attrs
from torch import Tensor

import nlhf_zoo as nz
from nlhf_zoo_plugins.online_dpo import DPOLoss


@attrs.frozen
class XPOLoss(DPOLoss):
    """Online DPO's loss, and a price on being the reference."""

    bonus: float
    both_learn: bool = True

    def point(self, log_ratio: Tensor) -> Tensor:
        # On sampled responses ref/pi is unbounded; e^8 keeps one surprising answer from outweighing a batch.
        return -self.bonus * (-log_ratio).clamp_max(8.0).exp()


@attrs.frozen
class XPO(nz.Solver):
    """Mirror descent on the loss; on an LLM, one gradient step a batch.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff; `None` is 1 / beta.
        bonus: the paper's alpha over beta, in (0, 1]: weight of the exploration bonus, in units of payoff.
    """

    name = "xpo"
    summary = "XPO: Online DPO with an exploration bonus away from the reference"
    paper = "arXiv 2405.21046"
    when = (
        "For a reference that rarely gives the good answers, where Online DPO would not look for others. The bonus "
        "moves even the Bradley-Terry optimum a little."
    )
    no_guarantee = (
        "its paper bounds the number of samples that exploration needs, and exact expectations leave nothing to "
        "explore; there the bonus only moves the optimum: online_dpo's is no fixed point"
    )
    backends = ("llm",)
    only = (
        "an exact mirror step multiplies by exp(eta ref/pi), which overshoots wherever pi is far below the reference; "
        "the gradient steps of a language model, in which pi cancels, do not"
    )

    eta: float | None = nz.hyperparameter(above=0)
    bonus: float = nz.hyperparameter(1e-3, above=0, at_most=1)

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        anchors = [(state.current, 1 / (self.eta or 1 / game.beta))]
        loss = XPOLoss(game.beta, self.bonus)
        return nz.Update(start=state.current, opponent=game.reference, loss=loss, anchors=anchors)

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        return state.next(current=outcome.policy)


@nz.hookimpl
def nlhf_zoo_solvers():
    return [XPO]
