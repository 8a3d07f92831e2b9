"""RSPO (Tang et al., arXiv 2503.00030): self-play under a regulariser of one's choice.

    next = argmax P(pi > pi_k) - beta D(pi || ref) - (1/eta) KL(pi || pi_k)

`dph_rl` ("The Choice of Divergence", 2025) is the same step with a mass-covering D, as rehearsal of what the
reference could already do.
"""

from __future__ import annotations

import attrs

import nlhf_zoo as nz
from nlhf_zoo.registry import lookup


@attrs.frozen
class RSPO(nz.Solver):
    """Magnetic mirror descent whose pull to the reference is another divergence than the game's.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff; `None` is 4 beta.
        divergence: registered name of D.
    """

    name = "rspo"
    summary = "regularised self-play: mirror descent, pulled to the reference by a divergence of one's choice"
    paper = "arXiv 2503.00030"
    when = (
        "To be pulled to the reference by another divergence than the reverse KL. It aims at the equilibrium of the "
        "game under that divergence, not under the game's own; no rate is declared."
    )

    eta: float | None = nz.hyperparameter(above=0)
    divergence: str = "chi_squared"

    @classmethod
    def practical(cls, beta: float) -> dict[str, float]:
        return {"eta": 0.1 / beta} if beta else {}

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        pull = nz.Anchor(game.reference, game.beta, lookup("divergences", self.divergence)())
        near = nz.Anchor(state.current, 1 / (self.eta or 4 * game.beta), nz.ReverseKL())
        return nz.Update(start=state.current, opponent=state.current, anchors=[pull, near])

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        return state.next(current=outcome.policy)


@attrs.frozen
class DPHRL(RSPO):
    """RSPO with a divergence that covers the reference's mass, so that no answer of it is forgotten.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff; `None` is 4 beta.
        divergence: registered name of D; the paper's are forward_kl and jensen_shannon.
    """

    name = "dph_rl"
    summary = "DPH-RL: self-play with a mass-covering divergence to the reference, as rehearsal"
    paper = "The Choice of Divergence, 2025"
    when = (
        "To lose none of the reference's answers while learning, by a mass-covering divergence. It aims at the "
        "equilibrium of the game under that divergence, not under the reverse KL; no rate is declared."
    )

    divergence: str = "forward_kl"


@nz.hookimpl
def nlhf_zoo_solvers():
    return [RSPO, DPHRL]
