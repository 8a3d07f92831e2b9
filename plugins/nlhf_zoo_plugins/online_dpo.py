"""Online DPO (Guo et al., arXiv 2402.04792), with the oracle's soft preference.

loss(P, h) = -P log sigma(beta h) - (1 - P) log sigma(-beta h) on pairs from pi itself,
h = log pi/ref (y) - log pi/ref (y'); a mirror-descent step of size eta along its expected gradient:
log next = log pi_k + eta E_{y'~pi_k}[P(y > y') - sigma(beta h(y, y'))] - log Z
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from nlhf_zoo import TabularPolicy
from nlhf_zoo.interfaces import EnumerableOracle, Game, Guarantee, Outcome, PairwiseLoss, Solver, State, Update
from nlhf_zoo.registry import hookimpl


@attrs.frozen
class DPOLoss(PairwiseLoss):
    """Cross-entropy of the oracle's preference and the policy's implied one; its signal is P - sigma(beta h)."""

    beta: float

    @property
    def scale(self) -> float:  # type: ignore[override]  # a property serves the attribute
        return 1 / self.beta

    def loss(self, preference: Tensor, log_ratio: Tensor) -> Tensor:
        implied = self.beta * log_ratio
        return -preference * logsigmoid(implied) - (1 - preference) * logsigmoid(-implied)

    def signal(self, preference: Tensor, log_ratio: Tensor) -> Tensor:
        return preference - torch.sigmoid(self.beta * log_ratio)


def _log_odds(game: Game) -> Tensor:
    assert isinstance(game.oracle, EnumerableOracle)
    return torch.logit(game.oracle.matrix())


def _is_bradley_terry(game: Game) -> bool:
    odds = _log_odds(game)
    implied = odds[..., :, :1] + odds[..., :1, :]
    return bool(torch.isfinite(odds).all()) and bool(((odds - implied).abs() <= 1e-6 * (1 + odds.abs())).all())


def _rlhf_optimum(game: Game) -> TabularPolicy:
    """pi_ref exp(r / beta) / Z with Bradley-Terry scores r."""
    assert isinstance(game.reference, TabularPolicy)
    return TabularPolicy(game.reference.log_probs + _log_odds(game)[..., :, 0] / game.beta)


@attrs.frozen
class OnlineDPO(Solver):
    """Mirror descent on the online DPO loss; on an LLM, one gradient step a batch is online DPO as published.

    Attributes:
        eta: step size, > 0; `None` is 1 / beta.
    """

    name = "online_dpo"
    summary = "Online DPO: logistic pairwise loss on self-play pairs; the reward optimum, under Bradley-Terry only"
    paper = "arXiv 2402.04792"

    eta: float | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(0)))

    @property
    def guarantees(self) -> tuple[Guarantee, ...]:
        return (
            Guarantee(
                metric="kl",
                bound=None,
                assumptions="beta > 0, P Bradley-Terry; the target is then pi_ref exp(r/beta), not the equilibrium",
                holds=_is_bradley_terry,
                target=_rlhf_optimum,
                source="arXiv 2305.18290, equation 4: the minimiser of the logistic loss",
            ),
        )

    def propose(self, game: Game, state: State) -> Update:
        return Update(
            start=state.current,
            opponent=state.current,
            loss=DPOLoss(game.beta),
            anchors=[(state.current, 1 / (self.eta or 1 / game.beta))],
        )

    def accept(self, game: Game, state: State, outcome: Outcome) -> State:
        return state.next(current=outcome.policy)


@hookimpl
def nlhf_zoo_solvers():
    return [OnlineDPO]
