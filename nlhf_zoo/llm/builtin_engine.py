"""The engine that is always there: the policy's own networks, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nlhf_zoo.interfaces import Rollout, RolloutEngine
from nlhf_zoo.llm.generation import Request, generate

__all__ = ["BuiltinEngine"]


class BuiltinEngine(RolloutEngine):
    """Generates with the policy's own networks, mixtures included; there is nothing to keep in step."""

    def generate(
        self, requests: Sequence[Sequence[tuple[Any, float]]], prompts: Tensor, prompt_mask: Tensor, **how: Any
    ) -> list[Rollout]:
        drawn = generate([Request(tuple(parts)) for parts in requests], prompts, prompt_mask, **how)
        return [Rollout(tokens, mask) for tokens, mask in drawn]
