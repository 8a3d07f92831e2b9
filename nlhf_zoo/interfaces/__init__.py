"""The ground floor: abstract classes and frozen data, without torch at import time."""

from nlhf_zoo.interfaces.divergence import Divergence, ReverseKL
from nlhf_zoo.interfaces.engine import Rollout, RolloutEngine, weights_changed, weights_version
from nlhf_zoo.interfaces.fit import DivergenceToAnswer, Fit, LogisticPairs, PairRegression, PointRegression
from nlhf_zoo.interfaces.game import Game
from nlhf_zoo.interfaces.guarantee import Affine, Guarantee, contraction, linear_rate, span_rate
from nlhf_zoo.interfaces.oracle import EnumerableOracle, PreferenceOracle, QueryCount
from nlhf_zoo.interfaces.policy import Policy, Responses
from nlhf_zoo.interfaces.solver import Solver, State, hyperparameter
from nlhf_zoo.interfaces.update import ITSELF, Anchor, Itself, Opponent, Outcome, PairwiseLoss, Update

__all__ = [
    "ITSELF",
    "Affine",
    "Anchor",
    "Divergence",
    "DivergenceToAnswer",
    "EnumerableOracle",
    "Fit",
    "Game",
    "Guarantee",
    "Itself",
    "LogisticPairs",
    "Opponent",
    "Outcome",
    "PairRegression",
    "PairwiseLoss",
    "PointRegression",
    "Policy",
    "PreferenceOracle",
    "QueryCount",
    "Responses",
    "ReverseKL",
    "Rollout",
    "RolloutEngine",
    "Solver",
    "State",
    "Update",
    "contraction",
    "hyperparameter",
    "linear_rate",
    "span_rate",
    "weights_changed",
    "weights_version",
]
