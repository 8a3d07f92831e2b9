"""MPO, magnetic preference optimisation (arXiv 2410.16714): magnetic mirror descent whose magnet moves.

    next = argmax P(pi > pi_k) - tau KL(pi || magnet) - (1/eta) KL(pi || pi_k)

and after every `period` steps the magnet is the policy: the last iterate goes to an equilibrium of the game
without regularisation.
"""

from __future__ import annotations

import attrs

import nlhf_zoo as nz
from nlhf_zoo_plugins.comal import MovingReference


@attrs.frozen
class MPO(MovingReference):
    """Magnetic mirror descent, with the magnet moved to the policy now and then.

    Attributes:
        period: steps between two moves of the magnet.
        tau: weight of the magnet, > 0; `None` is the game's beta.
    """

    name = "mpo"
    summary = "magnetic preference optimisation: mirror descent with a moving magnet, to the unregularised equilibrium"
    paper = "arXiv 2410.16714"
    when = (
        "For the last iterate near an equilibrium of the game without regularisation: mmd inside, the magnet moved "
        "after every `period` steps, and a period of about 1/tau^2 steps: in a shorter one mmd has not arrived, and "
        "the policy may spiral outwards. It does not stay near the reference."
    )

    def _inside_name(self) -> str:
        return "mmd"

    def _drift(self, game: nz.Game) -> float:
        # The default step inside is 4 tau.
        tau = self._regularised(game).beta
        return (1 - (1 + 4 * tau**2) ** -self.period) / 2


@nz.hookimpl
def nlhf_zoo_solvers():
    return [MPO]
