"""The preference matrix as an oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlhf_zoo.data.matrices import check_probabilities
from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import EnumerableOracle, PairwiseLoss
from nlhf_zoo.oracles.products import matrix_vector

if TYPE_CHECKING:
    from nlhf_zoo.interfaces import Policy

__all__ = ["MatrixOracle"]


class MatrixOracle(EnumerableOracle):
    """P[..., i, j] = P(response i > response j), for one game or a batch of games.

    Args:
        matrix: (..., Y, Y) tensor, array or nested list, entries in [0, 1], P + P^T = 1.
        labels: Y distinct names; they let the same oracle judge texts, by label.
        prompts: names of the games in the leading dimension, in order; they let it judge by prompt.
        dtype: what to compute in; float64, unless asked otherwise.
        device: where; that of `matrix`, unless asked otherwise.

    Raises:
        BadInput: not a preference matrix (the first offending cell is named), or labels that do not fit.
    """

    def __init__(
        self,
        matrix: Any,
        labels: Sequence[str] | None = None,
        *,
        prompts: Sequence[str] | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        self._matrix = check_probabilities(matrix, where="preference matrix", labels=labels).to(device, dtype)
        self.batch_shape = tuple(self._matrix.shape[:-2])
        self.num_responses = self._matrix.shape[-1]
        self.labels = None if labels is None else tuple(labels)
        self._index = None if labels is None else {label: i for i, label in enumerate(labels)}
        if prompts is not None and self.batch_shape != (len(prompts),):
            raise BadInput(f"{len(prompts)} prompt names for games of shape {self.batch_shape}; give one a game")
        self._games = None if prompts is None else {prompt: i for i, prompt in enumerate(prompts)}

    def matrix(self) -> Tensor:
        return self._matrix

    def uniform_policy(self) -> Policy:
        from nlhf_zoo.tabular import TabularPolicy

        shape = (*self.batch_shape, self.num_responses)
        return TabularPolicy(torch.zeros(shape, dtype=self._matrix.dtype, device=self._matrix.device))

    def payoff(
        self,
        opponent: Tensor,
        *,
        loss: PairwiseLoss | None = None,
        log_ratio: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if loss is None:
            return matrix_vector(self._matrix, opponent)
        assert log_ratio is not None
        signal = loss.signal(self._matrix, log_ratio.unsqueeze(-1) - log_ratio.unsqueeze(-2))
        return matrix_vector(signal, opponent)

    def probability(self, prompts: Any, first: Any, second: Any) -> Tensor:
        """(B,) P(first > second); responses are indices or labels, prompts game indices or names (or `None`)."""
        rows = self._matrix.reshape(-1, self.num_responses, self.num_responses)
        return rows[self._game(prompts), self._response(first), self._response(second)]

    def _response(self, responses: Any) -> Tensor:
        if isinstance(responses, Tensor):
            return responses
        if len(responses) and isinstance(responses[0], str):
            if self._index is None:
                raise BadInput("responses were given as text, but this preference matrix has no labels")
            unknown = next((r for r in responses if r not in self._index), None)
            if unknown is not None:
                raise BadInput(f"response {unknown!r} is not a label of this preference matrix")
            responses = [self._index[r] for r in responses]
        return torch.as_tensor(responses, device=self._matrix.device)

    def _game(self, prompts: Any) -> Tensor | int:
        if self._games is not None and len(prompts) and isinstance(prompts[0], str):
            unknown = next((p for p in prompts if p not in self._games), None)
            if unknown is not None:
                raise BadInput(f"prompt {unknown!r} names no game of this preference matrix")
            prompts = [self._games[p] for p in prompts]
        elif prompts is None or not self.batch_shape:
            return 0
        return torch.as_tensor(prompts, device=self._matrix.device)
