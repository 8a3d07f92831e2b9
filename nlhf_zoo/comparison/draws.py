"""Common random numbers: every solver's n-th question meets the same coins."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.interfaces import EnumerableOracle
from nlhf_zoo.oracles.sampled import SampledOracle

__all__ = ["CommonDraws"]


class CommonDraws(SampledOracle):
    """A sampled oracle whose stream depends on the seed and on how much it was asked before, not on who asks.

    The generator that a caller passes is left alone. What differs between two solvers under the same seed is then
    what they ask, and not their luck, which makes their difference less noisy. One object serves one run.

    Args:
        oracle, comparisons: as `SampledOracle`.
        seed: of the stream.
    """

    def __init__(self, oracle: EnumerableOracle, comparisons: int, seed: int) -> None:
        super().__init__(oracle, comparisons)
        self.seed = seed

    def payoff(self, opponent: Tensor, *, generator: torch.Generator | None = None, **asked: Any) -> Tensor:
        words = np.random.SeedSequence((self.seed, self.queries.sampled)).generate_state(1, np.uint64)
        own = torch.Generator(opponent.device).manual_seed(int(words[0] >> 1))
        return super().payoff(opponent, generator=own, **asked)
