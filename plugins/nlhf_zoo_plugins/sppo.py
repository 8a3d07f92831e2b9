"""SPPO (Wu et al., arXiv 2405.00675): multiplicative weights by a regression on single responses.

next = argmin over responses from pi_k of ((1/eta) log pi/pi_k (y) - (P(y > pi_k) - 1/2))^2
"""

from __future__ import annotations

import attrs

import nlhf_zoo as nz
from nlhf_zoo_plugins.spo import SPO


@attrs.frozen
class SPPO(SPO):
    """Self-play multiplicative weights, on a language model by least squares on win rates.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff.
    """

    name = "sppo"
    summary = "SPPO: multiplicative weights by regression on single responses (average iterate)"
    paper = "arXiv 2405.00675"
    when = (
        "For spo as a regression on single responses, without pairs. The guarantee is spo's and speaks of the "
        "average iterate, not of the last policy; the regression takes the normalising constant to be known."
    )
    fit = nz.PointRegression()


@nz.hookimpl
def nlhf_zoo_solvers():
    return [SPPO]
