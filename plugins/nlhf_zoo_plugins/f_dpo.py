"""f-DPO (Wang et al., "Beyond Reverse KL", ICLR 2024, arXiv 2309.16240), online, with the oracle's soft preference.

Online DPO with the log-ratio replaced by f'(pi/ref): loss(P, h) = -P log sigma(beta h) - (1 - P) log sigma(-beta h),
h = f'(pi/ref (y)) - f'(pi/ref (y')). With the reverse KL it is Online DPO.
"""

from __future__ import annotations

import math
import warnings

import attrs
import torch
from torch import Tensor

import nlhf_zoo as nz
from nlhf_zoo.registry import lookup
from nlhf_zoo_plugins.online_dpo import DPOLoss, is_bradley_terry, span_of_dpo


@attrs.frozen
class FDPOLoss(DPOLoss):
    """Online DPO's loss, seen through the slope of another divergence."""

    divergence: nz.Divergence

    def link(self, log_ratio: Tensor) -> Tensor:
        return self.divergence.derivative_of_log(log_ratio)


@attrs.frozen
class FDPO(nz.Solver):
    """Mirror descent on the loss; on an LLM, one gradient step a batch.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff; `None` is 1 / beta.
        divergence: registered name; the paper's are reverse_kl, forward_kl, jensen_shannon and alpha.
    """

    name = "f_dpo"
    summary = "f-DPO: Online DPO under another divergence to the reference"
    paper = "arXiv 2309.16240"
    when = (
        "For Online DPO under another divergence, to keep more or fewer of the reference's answers. Under Bradley- "
        "Terry f'(pi/ref) is the reward over beta, up to a constant; nothing is claimed of an intransitive game."
    )

    eta: float | None = nz.hyperparameter(above=0)
    divergence: str = "jensen_shannon"

    @property
    def guarantees(self) -> tuple[nz.Guarantee, ...]:
        divergence = self._divergence()

        def optimum(game: nz.Game) -> nz.TabularPolicy:
            """argmax <pi, r> - beta D(pi || pi_ref), r the Bradley-Terry scores."""
            scores = torch.logit(game.oracle.matrix())[..., :, 0]  # type: ignore[attr-defined]  # guarantees are on tables
            return nz.TabularPolicy(divergence.improve(scores, [(game.reference.log_probs, game.beta)]))  # type: ignore[attr-defined]

        kept = nz.Guarantee(
            metric="kl",
            bound=None,
            limit="kept",
            assumptions="beta > 0, P Bradley-Terry, f'(0) = -inf; the target is the reward's f-regularised optimum",
            holds=lambda game: math.isinf(divergence.slope_at_zero) and is_bradley_terry(game),
            target=optimum,
            source="arXiv 2309.16240 for the optimum; docs/guarantees.md: nothing else inside is a fixed point",
        )
        rate = span_of_dpo(self._eta)
        return (kept, rate) if isinstance(divergence, nz.ReverseKL) else (kept,)

    def _divergence(self) -> nz.Divergence:
        return lookup("divergences", self.divergence)()

    def _eta(self, game: nz.Game) -> float:
        return self.eta or 1 / game.beta

    def init(self, game: nz.Game, policy: nz.Policy) -> nz.State:
        """
        Raises:
            BadInput: beta is 0, or f' is constant wherever it has a slope, and the loss has no gradient.
        """
        divergence = self._divergence()
        if not divergence.strictly_convex:
            raise nz.BadInput(
                f"f_dpo: {self.divergence} is not strictly convex, its loss has no gradient and the policy would never"
                " move; take reverse_kl, jensen_shannon, alpha or forward_kl"
            )
        if not math.isinf(divergence.slope_at_zero):
            warnings.warn(
                f"f_dpo: f' of {self.divergence} is finite at 0, where its paper asks for -inf: the loss's gradient"
                " vanishes with a response's probability, so that one which the optimum leaves out goes ever more"
                " slowly and one that is nearly lost hardly comes back; take reverse_kl, jensen_shannon, alpha or"
                " forward_kl, or a beta so large that the optimum leaves none out",
                stacklevel=2,
            )
        return super().init(game, policy)

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        loss = FDPOLoss(game.beta, self._divergence())
        anchors = [(state.current, 1 / self._eta(game))]
        return nz.Update(start=state.current, opponent=state.current, loss=loss, anchors=anchors)

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        return state.next(current=outcome.policy)


@nz.hookimpl
def nlhf_zoo_solvers():
    return [FDPO]
