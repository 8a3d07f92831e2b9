"""The engine that is always there: the policy's own networks, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Rollout, RolloutEngine
from nlhf_zoo.llm.generation import Request, generate
from nlhf_zoo.llm.step_graphs import StepGraphs

__all__ = ["BuiltinEngine"]

PATIENCE = 8
"""Tokens between two looks for responses that have ended, on an accelerator: a look makes the host wait for it."""


class BuiltinEngine(RolloutEngine):
    """Generates with the policy's own networks, mixtures included; there is nothing to keep in step.

    On a CUDA device the step of one token is captured once and replayed, as CUDA graphs, for networks where that is
    exact. Launching a step's kernels one by one takes longer there than the work in them.

    Args:
        cuda_graphs: capture and replay.
        held_memory: share of the device's memory, in [0, 1], that keys, values and graphs may hold between two
            generations; what exceeds it is given back after each, and captured anew.

    Raises:
        BadInput: `held_memory` is no share.
    """

    def __init__(self, *, cuda_graphs: bool = True, held_memory: float = 0.1) -> None:
        if not 0 <= held_memory <= 1:
            raise BadInput(f"engine builtin: held_memory is a share from 0 to 1, got {held_memory:g}")
        self._graphs = StepGraphs(share=held_memory) if cuda_graphs else None

    def generate(
        self, requests: Sequence[Sequence[tuple[Any, float]]], prompts: Tensor, prompt_mask: Tensor, **how: Any
    ) -> list[Rollout]:
        if prompts.device.type == "cuda":
            how["patience"] = PATIENCE
            if self._graphs is not None:
                how["open_reader"] = self._graphs.reader
        drawn = generate([Request(tuple(parts)) for parts in requests], prompts, prompt_mask, **how)
        return [Rollout(tokens, mask) for tokens, mask in drawn]
