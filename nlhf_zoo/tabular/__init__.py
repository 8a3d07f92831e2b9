"""The tabular backend: exact, float64, batched over leading dimensions."""

from nlhf_zoo.tabular.equilibrium import EXACT, EquilibriumReport, NotConverged, equilibrium, find_equilibrium
from nlhf_zoo.tabular.parametric import LogLinearPolicy, MLPPolicy, ParametricPolicy
from nlhf_zoo.tabular.policy import SoftmaxPolicy, TabularPolicy, TabularResponses, enumerable
from nlhf_zoo.tabular.winner import WinnerReport, find_winner, von_neumann_winner

__all__ = [
    "EXACT",
    "EquilibriumReport",
    "LogLinearPolicy",
    "MLPPolicy",
    "NotConverged",
    "ParametricPolicy",
    "SoftmaxPolicy",
    "TabularPolicy",
    "TabularResponses",
    "WinnerReport",
    "enumerable",
    "equilibrium",
    "find_equilibrium",
    "find_winner",
    "von_neumann_winner",
]
