"""Nash Learning from Human Feedback: games, solvers, and the policies they train.

The names below are imported when first used, so that `import nlhf_zoo` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlhf_zoo import testing
    from nlhf_zoo.comparison import compare
    from nlhf_zoo.data import read_matrix
    from nlhf_zoo.drive import Result, duality_gap, solve
    from nlhf_zoo.errors import BadInput
    from nlhf_zoo.interfaces import (
        ITSELF,
        Affine,
        Anchor,
        Divergence,
        DivergenceToAnswer,
        EnumerableOracle,
        Fit,
        Game,
        Guarantee,
        Itself,
        LogisticPairs,
        Opponent,
        Outcome,
        PairRegression,
        PairwiseLoss,
        PointRegression,
        Policy,
        PreferenceOracle,
        QueryCount,
        Responses,
        ReverseKL,
        Rollout,
        RolloutEngine,
        Solver,
        State,
        Update,
        contraction,
        hyperparameter,
        linear_rate,
        span_rate,
        weights_changed,
        weights_version,
    )
    from nlhf_zoo.llm import CausalLMPolicy
    from nlhf_zoo.oracles import BradleyTerryOracle, FactorOracle, MatrixOracle, SampledOracle
    from nlhf_zoo.registry import hookimpl, solvers
    from nlhf_zoo.tabular import (
        LogLinearPolicy,
        MLPPolicy,
        SoftmaxPolicy,
        TabularPolicy,
        equilibrium,
        von_neumann_winner,
    )

    __version__: str

__all__ = [
    "ITSELF",
    "Affine",
    "Anchor",
    "BadInput",
    "BradleyTerryOracle",
    "CausalLMPolicy",
    "Divergence",
    "DivergenceToAnswer",
    "EnumerableOracle",
    "FactorOracle",
    "Fit",
    "Game",
    "Guarantee",
    "Itself",
    "LogLinearPolicy",
    "LogisticPairs",
    "MLPPolicy",
    "MatrixOracle",
    "Opponent",
    "Outcome",
    "PairRegression",
    "PairwiseLoss",
    "PointRegression",
    "Policy",
    "PreferenceOracle",
    "QueryCount",
    "Responses",
    "Result",
    "ReverseKL",
    "Rollout",
    "RolloutEngine",
    "SampledOracle",
    "SoftmaxPolicy",
    "Solver",
    "State",
    "TabularPolicy",
    "Update",
    "__version__",
    "compare",
    "contraction",
    "duality_gap",
    "equilibrium",
    "hookimpl",
    "hyperparameter",
    "linear_rate",
    "read_matrix",
    "solve",
    "solvers",
    "span_rate",
    "testing",
    "von_neumann_winner",
    "weights_changed",
    "weights_version",
]

_ELSEWHERE = {
    "BadInput": "errors",
    "BradleyTerryOracle": "oracles",
    "CausalLMPolicy": "llm",
    "FactorOracle": "oracles",
    "LogLinearPolicy": "tabular",
    "MLPPolicy": "tabular",
    "MatrixOracle": "oracles",
    "Result": "drive",
    "SampledOracle": "oracles",
    "SoftmaxPolicy": "tabular",
    "TabularPolicy": "tabular",
    "compare": "comparison",
    "duality_gap": "drive",
    "equilibrium": "tabular",
    "hookimpl": "registry",
    "read_matrix": "data",
    "solve": "drive",
    "solvers": "registry",
    "von_neumann_winner": "tabular",
}
"""The module of each exported name; all others are those of `interfaces`."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value = version("nlhf-zoo")
    elif name == "testing":
        value = importlib.import_module("nlhf_zoo.testing")
    elif name in __all__:
        value = getattr(importlib.import_module(f"nlhf_zoo.{_ELSEWHERE.get(name, 'interfaces')}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
