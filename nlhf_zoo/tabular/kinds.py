"""The policies that a table can be: exact, or one of the parametrised kinds, from the same reference."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.tabular.ascent import Optimizer
from nlhf_zoo.tabular.parametric import LogLinearPolicy, MLPPolicy
from nlhf_zoo.tabular.policy import SoftmaxPolicy, TabularPolicy

__all__ = ["PolicyKind", "option_types", "parametrised"]

PolicyKind = Literal["table", "softmax", "log_linear", "mlp"]
_SOFTMAX = {"learning_rate": float, "steps": int}
_LOG_LINEAR = {**_SOFTMAX, "optimizer": Optimizer, "damping": float, "tolerance": float, "features": int}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "table": {},
    "softmax": _SOFTMAX,
    "log_linear": _LOG_LINEAR,
    "mlp": {**_LOG_LINEAR, "hidden": int},
}


def option_types(kind: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name -> type hint of what this kind takes.

    Raises:
        BadInput: no such kind, or one of `options` that it does not have.
    """
    if kind not in _OPTIONS:
        raise BadInput(f"no policy kind {kind!r}; known are {', '.join(typing.get_args(PolicyKind))}")
    known = _OPTIONS[kind]
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        has = f"it has {', '.join(known)}" if known else "it is exact"
        raise BadInput(f"policy {kind} has no option {unknown!r}; {has}")
    return known


def parametrised(kind: str, options: Mapping[str, Any], reference: TabularPolicy, seed: int) -> TabularPolicy:
    """The reference (Y,) as a policy of this kind.

    Args:
        options: attributes of the policy's class; for "log_linear" and "mlp" also `features`, how many Gaussian
            features each response has (the identity where it is left out), and for "mlp" `hidden`.
        seed: of the features and of the MLP's first layer.

    Raises:
        BadInput: an option that this kind does not have, or a value that does not fit.
    """
    option_types(kind, options)
    if kind == "table":
        return reference
    try:
        if kind == "softmax":
            return SoftmaxPolicy(reference.log_probs, **options)
        rest = {name: value for name, value in options.items() if name != "features"}
        generator = _generator(seed)
        features = _features(reference.log_probs, options.get("features"), generator)
        if kind == "log_linear":
            return LogLinearPolicy.initial(features, reference.log_probs, **rest)
        return MLPPolicy.initial(features, reference.log_probs, generator=generator, **rest)
    except BadInput:
        raise
    except (TypeError, ValueError) as error:  # attrs' own validators
        raise BadInput(f"policy {kind}: {error.args[0] if error.args else error}") from None


def _generator(seed: int) -> torch.Generator:
    # The game is drawn from the seed itself; the features must not repeat its numbers.
    child = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(child >> 1))


def _features(log_probs: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
    responses = log_probs.shape[-1]
    if count is None:
        return torch.eye(responses, dtype=log_probs.dtype)
    if count < 1:
        raise BadInput(f"features must be >= 1, got {count}")
    return torch.randn(responses, count, generator=generator, dtype=log_probs.dtype)
