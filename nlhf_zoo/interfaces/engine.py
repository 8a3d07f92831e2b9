"""Who generates: the engine that draws responses from the networks of a policy, and how it knows their weights."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import attrs

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Rollout", "RolloutEngine", "weights_changed", "weights_version"]


@attrs.frozen(eq=False)
class Rollout:
    """K responses to each of B prompts, as an engine drew them.

    Attributes:
        tokens: (B, K, T) int64, padded on the right.
        mask: (B, K, T) bool, True on tokens of the response, its stop token included.
        log_probs: (B, K, T) float32 log-probability of each token as the engine saw it, temperature and allowed
            tokens included, 0 on padding; `None` where the engine computes just what the policy computes.
    """

    tokens: Tensor
    mask: Tensor
    log_probs: Tensor | None = None


class RolloutEngine(ABC):
    """Draws responses. It travels with a policy's `Decoding`, and may serve many policies in turn.

    An engine that holds a copy of the weights compares `weights_version(network)` with that of its copy before
    every generation, and fetches them anew where the two differ.
    """

    @abstractmethod
    def generate(
        self,
        requests: Sequence[Sequence[tuple[Any, float]]],
        prompts: Tensor,
        prompt_mask: Tensor,
        *,
        num_samples: int,
        max_new_tokens: int,
        stop: Sequence[int],
        padding: int,
        temperature: float,
        allowed: Tensor | None,
        generator: torch.Generator | None,
    ) -> list[Rollout]:
        """Draw `num_samples` continuations of each prompt for each request, all randomness from `generator`.

        Args:
            requests: whose responses are wanted: causal language models of transformers, and their weights in the
                token-level geometric mixture; one model of weight 1 is plain sampling.
            prompts: (B, S) int64, padded on the left.
            prompt_mask: (B, S) bool.
            stop: ids that end a response.
            padding: id that fills what follows a response.
            temperature: logits are divided by it, > 0.
            allowed: (V,) bool, tokens that may be drawn; all, where `None`.
        """


_changes: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_numbers = itertools.count(1)


def weights_version(network: Any) -> tuple[int, int]:
    """A value that is another whenever the weights are: no two networks, nor states of one, have it in common.

    Writes that torch sees (an optimizer's step, `copy_`, `load_state_dict`) are counted by torch. Whoever writes
    behind its back, through `.data` or a kernel of its own, says so by `weights_changed`.
    """
    if network not in _changes:
        weights_changed(network)
    return _changes[network], sum(parameter._version for parameter in network.parameters())


def weights_changed(network: Any) -> None:
    """Note that the network's weights may be others now."""
    _changes[network] = next(_numbers)
