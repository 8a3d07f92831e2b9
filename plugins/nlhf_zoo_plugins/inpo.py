"""INPO (Zhang et al., arXiv 2407.00617): magnetic mirror descent as a regression of log-ratios on pairs.

next = argmin over pairs from pi_k of (gap(y) - gap(y') - (P(y > y') - 1/2))^2,
gap = beta log pi/ref + (1/eta) log pi/pi_k; its minimum is magnetic mirror descent's step.
"""

from __future__ import annotations

import attrs

import nlhf_zoo as nz
from nlhf_zoo_plugins.magnetic_mirror_descent import MagneticMirrorDescent


@attrs.frozen
class INPO(MagneticMirrorDescent):
    """Magnetic mirror descent, on a language model by least squares on pairs from the last policy.

    The paper's eta is the total weight beta + 1/eta, and its tau is beta.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff; `None` is the largest that is proved to converge, 4 beta.
    """

    name = "inpo"
    summary = "iterative Nash policy optimisation: mirror descent by regression on pairs"
    paper = "arXiv 2407.00617"
    when = (
        "For mmd on a language model as a regression on pairs, which come from the policy that the update began "
        "with, whatever it has become since. On a table it is mmd, step for step, with its guarantee."
    )
    fit = nz.PairRegression()


@nz.hookimpl
def nlhf_zoo_solvers():
    return [INPO]
