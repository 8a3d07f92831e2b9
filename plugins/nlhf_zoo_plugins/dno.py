"""Direct Nash Optimisation (Rosset et al., arXiv 2404.03715), in its on-policy form.

next = argmin over pairs from pi_k of the cross-entropy between sigma(u(y) - u(y')) and
sigma((1/eta) (log pi/pi_k (y) - log pi/pi_k (y')))
"""

from __future__ import annotations

import attrs

import nlhf_zoo as nz
from nlhf_zoo_plugins.spo import SPO


@attrs.frozen
class DNO(SPO):
    """Self-play multiplicative weights, on a language model by a cross-entropy on pairs.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff.
    """

    name = "dno"
    summary = "DNO: multiplicative weights by logistic regression on pairs (average iterate)"
    paper = "arXiv 2404.03715"
    when = (
        "For spo as a logistic regression on pairs, less moved by large differences than rebel's squares. The "
        "guarantee is spo's and speaks of the average iterate, not of the last policy."
    )
    fit = nz.LogisticPairs()


@nz.hookimpl
def nlhf_zoo_solvers():
    return [DNO]
