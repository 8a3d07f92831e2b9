"""SPO (Swamy et al., arXiv 2401.04056): self-play multiplicative weights on the win rate against oneself.

    next = argmax P(pi > pi_k) - (1/eta) KL(pi || pi_k)

The average of the policies approaches a von Neumann winner; the reference is only where the run begins.
"""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor

import nlhf_zoo as nz


@attrs.frozen
class SPO(nz.Solver):
    """One mirror step a step, against the policy itself, without a pull to the reference.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff.
    """

    name = "spo"
    summary = "self-play preference optimisation: multiplicative weights on win rates (average iterate)"
    paper = "arXiv 2401.04056"
    when = (
        "For a von Neumann winner as the average of all policies that were played; the last policy may go round in "
        "circles, and is what a language model would keep. Nothing pulls it to the reference: for that, mmd."
    )
    needs_beta = False
    fit: ClassVar[nz.Fit | None] = None

    eta: float = nz.hyperparameter(0.1, above=0)

    @classmethod
    def practical(cls, beta: float) -> dict[str, float]:
        return {"eta": 1000.0}  # the weight 1/1000 of SPPO's paper

    @property
    def guarantees(self) -> tuple[nz.Guarantee, ...]:
        def regret(n: int, game: nz.Game, initial: Tensor | None = None) -> Tensor:
            rarest: Tensor = game.reference.log_probs.amin(-1)  # type: ignore[attr-defined]  # guarantees are on tables
            return 2 * (-rarest / (self.eta * n) + torch.tensor(self.eta / 8, dtype=rarest.dtype))

        return (
            nz.Guarantee(
                metric="unregularised_gap",
                iterate="average",
                start="reference",
                bound=regret,
                assumptions="reverse KL, exact expectations",
                holds=lambda game: isinstance(game.divergence, nz.ReverseKL),
                source="Freund and Schapire 1999, multiplicative weights: regret log(1/min ref)/eta + eta n/8",
            ),
        )

    def scaled(self, factor: float, game: nz.Game) -> SPO:
        return attrs.evolve(self, eta=self.eta / factor)

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        anchors = [(state.current, 1 / self.eta)]
        return nz.Update(start=state.current, opponent=state.current, anchors=anchors, fit=self.fit)

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        return state.next(current=outcome.policy)


@nz.hookimpl
def nlhf_zoo_solvers():
    return [SPO]
