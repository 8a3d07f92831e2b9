"""Bradley-Terry preferences from scores alone, without the matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.oracles.operators import OperatorOracle, read_arrays, real_tensor
from nlhf_zoo.oracles.products import matrix_vector
from nlhf_zoo.oracles.sigmoid_sum import SigmoidSum

__all__ = ["BradleyTerryOracle"]

_TABLE = 1 << 20
"""Entries of P, over all games, up to which writing them out is the fastest sum there is (8 MB)."""


class BradleyTerryOracle(OperatorOracle):
    """P(i > j) = sigmoid(s_i - s_j), a reward model's preference, with payoffs in O(Y) time and memory.

    Payoffs are summed by `SigmoidSum`, within 1e-13 of the direct sum (for weights whose absolute values add up
    to 1; in float32, to its own rounding); small games by the direct sum itself.

    Args:
        scores: (..., Y) finite numbers; one game or a batch.
        labels: Y distinct names.
        dtype: what to compute in; float64, unless asked otherwise.
        device: where; that of `scores`, unless asked otherwise.

    Raises:
        BadInput: scores that are not finite numbers, or labels that do not fit.
    """

    def __init__(
        self,
        scores: Any,
        labels: Sequence[str] | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        self._scores = real_tensor(scores, "scores", device)
        if self._scores.ndim == 0 or self._scores.shape[-1] == 0:
            raise BadInput(f"scores have shape (..., Y) with Y >= 1, got {tuple(self._scores.shape)}")
        self.batch_shape = tuple(self._scores.shape[:-1])
        self.num_responses = self._scores.shape[-1]
        self.labels = self._checked_labels(labels)
        self.dtype, self.device = dtype, self._scores.device
        flat = self._scores.reshape(-1, self.num_responses)
        small = math.prod(self.batch_shape) * self.num_responses**2 <= _TABLE
        self._table = self._chances(self._scores.unsqueeze(-1), self._scores.unsqueeze(-2)) if small else None
        self._sums = () if small else tuple(SigmoidSum(scores, dtype) for scores in flat)

    @classmethod
    def load(cls, path: str | PathLike[str], **options: Any) -> Self:
        """From a npy file of scores, or an npz file with the arrays scores and, where there are, labels.

        Raises:
            BadInput: not such a file.
        """
        arrays, labels = read_arrays(path, "scores")
        return cls(arrays["scores"], labels, **options)

    def _product(self, opponent: Tensor) -> Tensor:
        if self._table is not None:
            return matrix_vector(self._table, opponent)
        shape = torch.broadcast_shapes((*self.batch_shape, self.num_responses), opponent.shape)
        weights = opponent.expand(shape).reshape(-1, self.num_responses)
        out = self._empty(*weights.shape)
        for number, game in enumerate(self._game_of_each(shape[:-1])):
            out[number] = self._sums[game].of(weights[number])
        return out.reshape(shape)

    def _block(self, game: int, rows: Tensor) -> Tensor:
        scores = self._scores.reshape(-1, self.num_responses)[game]
        return self._chances(scores[rows].unsqueeze(-1), scores)

    def _pairs(self, game: Tensor, first: Tensor, second: Tensor) -> Tensor:
        scores = self._scores.reshape(-1, self.num_responses)
        return self._chances(scores[game, first], scores[game, second])

    def _chances(self, first: Tensor, second: Tensor) -> Tensor:
        # Scores of 1e6 that differ by 1 are one float32; their difference is taken before anything is rounded.
        return (first - second).sigmoid().to(self.dtype)
