"""Online IPO (Calandriello et al., arXiv 2403.08635), and with it self-play policy gradient (2505.19731v2).

loss(P, h) = (h - (P - 1/2)/beta)^2 on pairs from pi itself,
h = log pi/ref (y) - log pi/ref (y'); a mirror-descent step of size eta along its expected gradient:
log next = log pi_k + eta (u_pi - beta log pi_k/ref) - log Z
"""

from __future__ import annotations

import attrs
from torch import Tensor

import nlhf_zoo as nz


@attrs.frozen
class IPOLoss(nz.PairwiseLoss):
    """Squared regression of the log-ratio; its signal is P - 1/2 - beta h."""

    beta: float

    @property
    def scale(self) -> float:  # type: ignore[override]  # a property serves the attribute
        return self.beta / 2

    def loss(self, preference: Tensor, log_ratio: Tensor) -> Tensor:
        return (log_ratio - (preference - 0.5) / self.beta).square()

    def signal(self, preference: Tensor, log_ratio: Tensor) -> Tensor:
        return preference - 0.5 - self.beta * log_ratio


@attrs.frozen
class OnlineIPO(nz.Solver):
    """Mirror descent on the online IPO loss; on an LLM, one gradient step a batch is online IPO as published.

    Attributes:
        eta: step size, > 0; `None` is the largest that is proved to converge, 4 beta / (1 + 4 beta^2).
    """

    name = "online_ipo"
    summary = "Online IPO: squared pairwise loss on self-play pairs (self-play policy gradient)"
    paper = "arXiv 2403.08635"
    when = (
        "For self-play policy gradient, the plain baseline: one query a step, a linear rate for the last iterate. On "
        "a table it is mmd at another step size, and steps above the proved range may not converge."
    )

    eta: float | None = nz.hyperparameter(above=0)

    def _eta(self, game: nz.Game) -> float:
        return self.eta or 4 * game.beta / (1 + 4 * game.beta**2)

    @property
    def guarantees(self) -> tuple[nz.Guarantee, ...]:
        def small(game: nz.Game) -> bool:
            # With mu = eta / (1 - eta beta) this is magnetic mirror descent of step mu, and needs mu <= 4 beta.
            product = self._eta(game) * game.beta
            return self.eta is None or (product < 1 and self._eta(game) <= 4 * game.beta * (1 - product))

        return (
            nz.linear_rate(
                lambda game: 1 - self._eta(game) * game.beta,
                assumptions="beta > 0, eta/(1 - eta beta) <= 4 beta, reverse KL, exact expectations",
                holds=small,
                source="arXiv 2206.05825, theorem 3.4, with smoothness 1/2 of a preference in [0, 1]",
            ),
        )

    def scaled(self, factor: float, game: nz.Game) -> OnlineIPO:
        return attrs.evolve(self, eta=self._eta(game) / factor)

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        anchors = [(state.current, 1 / self._eta(game))]
        return nz.Update(start=state.current, opponent=state.current, loss=IPOLoss(game.beta), anchors=anchors)

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        return state.next(current=outcome.policy)


@nz.hookimpl
def nlhf_zoo_solvers():
    return [OnlineIPO]
