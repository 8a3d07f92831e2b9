"""SPIN (Chen et al., arXiv 2401.01335): self-play that imitates data, with the reference in the data's place.

    next = pi_k^(1 - 1/weight) data^(1/weight) / Z

the closed form of its logistic self-play step (theorem 5.4 of the paper). It asks nobody for a preference.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

import nlhf_zoo as nz


@attrs.frozen
class SPIN(nz.Solver):
    """A geometric step from the policy to the data. On a game the reference is what plays the data.

    Attributes:
        weight: the paper's lambda, >= 1: how many steps it takes, roughly.
    """

    name = "spin"
    summary = "SPIN: self-play imitation of data (the reference stands for it); asks for no preference"
    paper = "arXiv 2401.01335"
    when = (
        "For imitation of data without a judge. It asks for no preference, so that it reaches the data's policy (on "
        "a game the reference stands for it) and never the equilibrium: a baseline, not a way to learn from "
        "preferences."
    )
    needs_beta = False

    weight: float = attrs.field(default=2.0, validator=attrs.validators.ge(1))

    @property
    def guarantees(self) -> tuple[nz.Guarantee, ...]:
        shrink = 1 - 1 / self.weight

        def bound(n: int, game: nz.Game, initial: Tensor | None = None) -> Tensor:
            return (torch.zeros((), dtype=torch.float64) if initial is None else initial) * shrink**n

        return (
            nz.Guarantee(
                metric="span",
                bound=bound,
                recursion=lambda step, game, previous: shrink * previous,
                target=lambda game: game.reference,
                assumptions="reverse KL; the target is the data, not the equilibrium",
                holds=lambda game: isinstance(game.divergence, nz.ReverseKL),
                source="arXiv 2401.01335, theorem 5.4",
            ),
        )

    def scaled(self, factor: float, game: nz.Game) -> SPIN:
        return self

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        share = 1 / self.weight
        return nz.Update(
            start=state.current, opponent=None, anchors=[(state.current, 1 - share), (game.reference, share)]
        )

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        return state.next(current=outcome.policy)


@nz.hookimpl
def nlhf_zoo_solvers():
    return [SPIN]
