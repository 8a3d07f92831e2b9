"""Who judges. Classes are imported when asked for: this module alone loads neither torch nor transformers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nlhf_zoo.errors import BadInput
from nlhf_zoo.registry.hookspecs import hookimpl

if TYPE_CHECKING:
    from nlhf_zoo.interfaces import PreferenceOracle
    from nlhf_zoo.oracles.bradley_terry import BradleyTerryOracle
    from nlhf_zoo.oracles.callable import CallableOracle
    from nlhf_zoo.oracles.factors import FactorOracle
    from nlhf_zoo.oracles.matrix import MatrixOracle
    from nlhf_zoo.oracles.pairwise_model import PairwiseModelOracle
    from nlhf_zoo.oracles.reward_model import RewardModelOracle
    from nlhf_zoo.oracles.sampled import SampledOracle

__all__ = [
    "BradleyTerryOracle",
    "CallableOracle",
    "FactorOracle",
    "MatrixOracle",
    "PairwiseModelOracle",
    "RewardModelOracle",
    "SampledOracle",
]

_HOMES = {
    "BradleyTerryOracle": "bradley_terry",
    "CallableOracle": "callable",
    "FactorOracle": "factors",
    "MatrixOracle": "matrix",
    "PairwiseModelOracle": "pairwise_model",
    "RewardModelOracle": "reward_model",
    "SampledOracle": "sampled",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@hookimpl
def nlhf_zoo_oracles() -> Mapping[str, Callable[..., PreferenceOracle]]:
    return {
        "bradley_terry": _bradley_terry,
        "callable": _callable,
        "factors": _factors,
        "matrix": _matrix,
        "pairwise_model": _pairwise_model,
        "reward_model": _reward_model,
    }


def _pairwise_model(*, path: str, **options: Any) -> PreferenceOracle:
    """A transformer that reads a prompt and two responses: `path` and the options of `PairwiseModelOracle.load`."""
    from nlhf_zoo.oracles.pairwise_model import PairwiseModelOracle

    return PairwiseModelOracle.load(str(path), **_judge_options("pairwise_model", options))


def _reward_model(*, path: str, **options: Any) -> PreferenceOracle:
    """A scalar reward model, Bradley-Terry: `path` and the options of `RewardModelOracle.load`."""
    from nlhf_zoo.oracles.reward_model import RewardModelOracle

    return RewardModelOracle.load(str(path), **_judge_options("reward_model", options, temperature=float))


def _callable(*, function: str, symmetrise: bool | str = True) -> PreferenceOracle:
    """A Python function "package.module:function" of prompts, first and second responses."""
    from nlhf_zoo.oracles.callable import CallableOracle

    return CallableOracle.load(str(function), symmetrise=_switch(symmetrise))


def _matrix(*, path: str, smoothing: float | str = 0.5, kind: str = "auto") -> PreferenceOracle:
    """A preference matrix, or win counts, from a file: `path` and the options of `nlhf_zoo.data.read_matrix`."""
    from nlhf_zoo.data import read_matrix
    from nlhf_zoo.oracles.matrix import MatrixOracle

    if kind not in ("auto", "probabilities", "counts"):
        raise BadInput(f"oracle matrix: kind must be auto, probabilities or counts, got {kind!r}")
    read = read_matrix(str(path), smoothing=_convert("smoothing", float, smoothing), kind=kind)
    return MatrixOracle(read.probabilities, read.labels)


def _bradley_terry(*, path: str) -> PreferenceOracle:
    """Scores from a npy or npz file (`scores`, `labels`), without a matrix: for up to millions of responses."""
    from nlhf_zoo.oracles.bradley_terry import BradleyTerryOracle

    return BradleyTerryOracle.load(str(path))


def _factors(*, path: str) -> PreferenceOracle:
    """P = 1/2 + U S U^T from an npz file (`U`, `S`, `labels`), without a matrix: for up to millions of responses."""
    from nlhf_zoo.oracles.factors import FactorOracle

    return FactorOracle.load(str(path))


def _judge_options(oracle: str, options: Mapping[str, Any], **more: Callable[[Any], Any]) -> dict[str, Any]:
    kinds: dict[str, Callable[[Any], Any]] = {
        "device": str,
        "dtype": str,
        "batch_size": int,
        "max_length": int,
        "template": str,
        "revision": str,
        "trust_remote_code": _switch,
        **more,
    }
    unknown = next((name for name in options if name not in kinds), None)
    if unknown is not None:
        raise BadInput(f"oracle {oracle} has no option {unknown!r}; it takes path, {', '.join(kinds)}")
    return {name: _convert(name, kinds[name], value) for name, value in options.items() if value is not None}


def _convert(name: str, kind: Callable[[Any], Any], value: Any) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise BadInput(f"oracle option {name}: {value!r} does not fit ({error})") from error


def _switch(value: bool | str) -> bool:
    # A command line gives text, and bool("false") is true: here that would let foreign code run.
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    raise BadInput(f"must be true or false, got {value!r}")
