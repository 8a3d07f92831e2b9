"""REBEL (Gao et al., arXiv 2404.16767), with the win rate against the last policy as its reward.

next = argmin over pairs from pi_k of ((1/eta) (log pi/pi_k (y) - log pi/pi_k (y')) - (u(y) - u(y')))^2
"""

from __future__ import annotations

import attrs

import nlhf_zoo as nz
from nlhf_zoo_plugins.spo import SPO


@attrs.frozen
class REBEL(SPO):
    """Self-play multiplicative weights, on a language model by least squares on pairs.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff.
    """

    name = "rebel"
    summary = "REBEL: multiplicative weights by regression of win-rate differences (average iterate)"
    paper = "arXiv 2404.16767"
    when = (
        "For spo as least squares on pairs, where the normalising constant cancels. The guarantee is spo's and "
        "speaks of the average iterate, not of the last policy."
    )
    fit = nz.PairRegression()


@nz.hookimpl
def nlhf_zoo_solvers():
    return [REBEL]
