"""Online DPO (Guo et al., arXiv 2402.04792), with the oracle's soft preference.

loss(P, h) = -P log sigma(beta h) - (1 - P) log sigma(-beta h) on pairs from pi itself,
h = log pi/ref (y) - log pi/ref (y'); a mirror-descent step of size eta along its expected gradient:
log next = log pi_k + eta E_{y'~pi_k}[P(y > y') - sigma(beta h(y, y'))] - log Z
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import nlhf_zoo as nz


@attrs.frozen
class DPOLoss(nz.PairwiseLoss):
    """Cross-entropy of the oracle's preference and the policy's implied one; its signal is P - sigma(beta h)."""

    beta: float

    @property
    def scale(self) -> float:  # type: ignore[override]  # a property serves the attribute
        return 1 / self.beta

    def loss(self, preference: Tensor, log_ratio: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(self.beta * log_ratio, preference, reduction="none")

    def signal(self, preference: Tensor, log_ratio: Tensor) -> Tensor:
        return preference - torch.sigmoid(self.beta * log_ratio)


def is_bradley_terry(game) -> bool:
    odds = torch.logit(game.oracle.matrix())
    implied = odds[..., :, :1] + odds[..., :1, :]
    return bool(torch.isfinite(odds).all()) and bool(((odds - implied).abs() <= 1e-6 * (1 + odds.abs())).all())


def rlhf_optimum(game) -> nz.TabularPolicy:
    """pi_ref exp(r / beta) / Z with Bradley-Terry scores r."""
    return nz.TabularPolicy(game.reference.log_probs + torch.logit(game.oracle.matrix())[..., :, 0] / game.beta)


def _range_of_scores(game) -> Tensor:
    """(...) max - min of the Bradley-Terry scores."""
    scores = torch.logit(game.oracle.matrix())[..., :, 0]
    return scores.amax(-1) - scores.amin(-1)


def span_of_dpo(eta: Callable[[nz.Game], float]) -> nz.Guarantee:
    """The linear rate of a mirror step of size eta(game) on DPO's logistic loss, where a reward is behind it."""

    def shrink(game: nz.Game, now: Tensor) -> Tensor:
        flattest = torch.sigmoid(_range_of_scores(game) + game.beta * now)
        return 1 - eta(game) * game.beta * flattest * (1 - flattest)

    def bound(n: int, game: nz.Game, initial: Tensor | None = None) -> Tensor:
        first = _range_of_scores(game) / game.beta if initial is None else initial
        return first * shrink(game, first) ** n

    return nz.Guarantee(
        metric="span",
        bound=bound,
        recursion=lambda step, game, previous: previous * shrink(game, previous),
        assumptions="beta > 0, P Bradley-Terry, eta <= 4 / beta, reverse KL; the target is pi_ref exp(r/beta)",
        holds=lambda game: eta(game) * game.beta <= 4 and is_bradley_terry(game),
        target=rlhf_optimum,
        source="docs/guarantees.md: the step averages over the error",
    )


@attrs.frozen
class OnlineDPO(nz.Solver):
    """Mirror descent on the online DPO loss; on an LLM, one gradient step a batch is online DPO as published.

    Attributes:
        eta: step size, > 0; `None` is 1 / beta.
    """

    name = "online_dpo"
    summary = "Online DPO: logistic pairwise loss on self-play pairs; the reward optimum, under Bradley-Terry only"
    paper = "arXiv 2402.04792"
    when = (
        "Where preferences come from a reward: under Bradley-Terry, and only there, it goes to the RLHF optimum. "
        "That is not the equilibrium of the game; on an intransitive game it settles elsewhere, or with long steps "
        "not at all."
    )
    eta: float | None = nz.hyperparameter(above=0)

    @property
    def guarantees(self) -> tuple[nz.Guarantee, ...]:
        reaches = nz.Guarantee(
            metric="kl",
            bound=None,
            assumptions="beta > 0, P Bradley-Terry; the target is then pi_ref exp(r/beta), not the equilibrium",
            holds=is_bradley_terry,
            target=rlhf_optimum,
            source="arXiv 2305.18290, equation 4: the minimiser of the logistic loss",
        )
        return (reaches, span_of_dpo(lambda game: self.eta or 1 / game.beta))

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        anchors = [(state.current, 1 / (self.eta or 1 / game.beta))]
        return nz.Update(start=state.current, opponent=state.current, loss=DPOLoss(game.beta), anchors=anchors)

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        return state.next(current=outcome.policy)


@nz.hookimpl
def nlhf_zoo_solvers():
    return [OnlineDPO]
