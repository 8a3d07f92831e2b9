"""The policy that `solve` trains, from its kind and KEY=VALUE pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from nlhf_zoo.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

    from nlhf_zoo.tabular import TabularPolicy

__all__ = ["PolicyKind", "parametrised"]

PolicyKind = Literal["table", "softmax", "log_linear", "mlp"]


def parametrised(kind: PolicyKind, options: Mapping[str, Any], reference: TabularPolicy, seed: int) -> TabularPolicy:
    """The reference (Y,) as a policy of this kind.

    Args:
        options: attributes of the policy's class; for "log_linear" and "mlp" also `features`, how many Gaussian
            features each response has (the identity where it is left out), and for "mlp" `hidden`.
        seed: of the features and of the MLP's first layer.

    Raises:
        BadInput: an option that this kind does not have, or a value that does not fit.
    """
    from nlhf_zoo.cli.flags import typed
    from nlhf_zoo.tabular import LogLinearPolicy, MLPPolicy, SoftmaxPolicy

    known = _known(kind)
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        has = f"it has {', '.join(known)}" if known else "it is exact"
        raise BadInput(f"policy {kind} has no option {unknown!r}; {has}")
    typed(options, known, f"--policy-set, {kind}")
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
        raise BadInput(f"--policy-set, {kind}: {error.args[0] if error.args else error}") from None


def _known(kind: PolicyKind) -> dict[str, Any]:
    from nlhf_zoo.tabular.ascent import Optimizer

    softmax = {"learning_rate": float, "steps": int}
    log_linear = {**softmax, "optimizer": Optimizer, "damping": float, "tolerance": float, "features": int}
    kinds = {"table": {}, "softmax": softmax, "log_linear": log_linear, "mlp": {**log_linear, "hidden": int}}
    return kinds[kind]


def _generator(seed: int) -> Any:
    import numpy as np
    import torch

    # The game is drawn from the seed itself; the features must not repeat its numbers.
    child = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(child >> 1))


def _features(log_probs: Tensor, count: int | None, generator: Any) -> Tensor:
    import torch

    responses = log_probs.shape[-1]
    if count is None:
        return torch.eye(responses, dtype=log_probs.dtype)
    if count < 1:
        raise BadInput(f"features must be >= 1, got {count}")
    return torch.randn(responses, count, generator=generator, dtype=log_probs.dtype)
