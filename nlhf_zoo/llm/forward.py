"""One forward pass, for every causal language model of transformers."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import Tensor

__all__ = ["base_network", "forward", "takes_positions"]


def forward(
    network: Any,
    tokens: Tensor,
    mask: Tensor,
    position: Tensor,
    *,
    cache: Any = None,
    use_cache: bool,
    keep: int = 0,
) -> Any:
    """The model's output, with `logits`, and `cache` where `use_cache`.

    Args:
        tokens: (N, S) int64, padded on either side.
        mask: (N, C + S) int64, 1 on text, over the C cached tokens too.
        position: (N, S) int64, the text positions of `tokens`. Models without position ids (ALiBi, recurrent
            ones) read them off the mask, or need none.
        cache: keys and values of the first C tokens.
        keep: logits are wanted at the last so many places only; 0 is all.
    """
    options: dict[str, Any] = {"attention_mask": mask, "use_cache": use_cache}
    if cache is not None:
        options["cache"] = cache
    if keep:
        options["logits_to_keep"] = keep
    if takes_positions(type(base_network(network))):
        options["position_ids"] = position
    return network(input_ids=tokens, **options)


def base_network(network: Any) -> Any:
    """The model of transformers itself, out of an adapter model."""
    # An adapter model of peft passes everything on to the model inside.
    return network.get_base_model() if hasattr(network, "get_base_model") else network


@functools.cache
def takes_positions(kind: type) -> bool:
    """Whether a kind of model is told the text positions of its tokens."""
    return "position_ids" in inspect.signature(kind.forward).parameters
