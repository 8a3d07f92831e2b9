"""f-DPG (Go et al., arXiv 2302.08215): policy gradient towards an explicit target under any f-divergence.

The target is magnetic mirror descent's next policy p, and the loss is D_f(pi || p): on a table the same step for
every f; on a language model f says what is given up where p cannot be reached. With the reverse KL it is the plain
policy gradient.
"""

from __future__ import annotations

import attrs

import nlhf_zoo as nz
from nlhf_zoo.registry import lookup
from nlhf_zoo_plugins.magnetic_mirror_descent import MagneticMirrorDescent


@attrs.frozen
class FDPG(MagneticMirrorDescent):
    """Magnetic mirror descent, approached under another divergence.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff; `None` is the largest that is proved to converge, 4 beta.
        divergence: registered name of f.
    """

    name = "f_dpg"
    summary = "f-DPG: mirror descent whose target is approached under any f-divergence"
    paper = "arXiv 2302.08215"
    when = (
        "To choose what a language model gives up where it cannot reach its target. On a table it is mmd, step for "
        "step, with its guarantee; on a language model the divergence is to the update's answer, not to the "
        "reference."
    )

    divergence: str = "jensen_shannon"

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        fit = nz.DivergenceToAnswer(lookup("divergences", self.divergence)())
        return attrs.evolve(super().propose(game, state), fit=fit)


@nz.hookimpl
def nlhf_zoo_solvers():
    return [FDPG]
