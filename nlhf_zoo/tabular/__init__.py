"""The tabular backend: exact, float64, batched over leading dimensions."""

from nlhf_zoo.tabular.equilibrium import EquilibriumReport, NotConverged, equilibrium, find_equilibrium
from nlhf_zoo.tabular.policy import SoftmaxPolicy, TabularPolicy, TabularResponses, enumerable
from nlhf_zoo.tabular.winner import von_neumann_winner

__all__ = [
    "EquilibriumReport",
    "NotConverged",
    "SoftmaxPolicy",
    "TabularPolicy",
    "TabularResponses",
    "enumerable",
    "equilibrium",
    "find_equilibrium",
    "von_neumann_winner",
]
