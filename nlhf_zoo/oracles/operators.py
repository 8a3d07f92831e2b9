"""Oracles that compute payoffs without a preference matrix: what they share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.data.files import parsing, require_file
from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import EnumerableOracle, PairwiseLoss

if TYPE_CHECKING:
    from nlhf_zoo.interfaces import Policy

__all__ = ["LARGEST_MATRIX", "OperatorOracle", "read_arrays", "real_tensor"]

LARGEST_MATRIX = 4096
"""Y up to which an operator writes its matrix out, on request."""
_BLOCK = 1 << 20
"""Entries of P that are ever in memory at once."""


class OperatorOracle(EnumerableOracle):
    """An oracle with a formula for P(i > j), and payoffs by something faster than the formula's Y^2 entries.

    Subclasses set `batch_shape`, `num_responses`, `labels`, `dtype` and `device`, and write `_block`, `_pairs` and
    `_product`. Methods that go through the formula (a pairwise loss, a matrix) hold one block of rows at a time.
    """

    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def _block(self, game: int, rows: Tensor) -> Tensor:
        """(R, Y) rows of P in the game of this flat index; `rows` is (R,) int64."""

    @abstractmethod
    def _pairs(self, game: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """(B,) P(first > second), elementwise in flat game indices and response indices."""

    @abstractmethod
    def _product(self, opponent: Tensor) -> Tensor:
        """(..., Y) sum over y' of opponent(y') P(y > y')."""

    def matrix(self) -> Tensor:
        """(..., Y, Y) P written out, for Y up to 4096 (each call anew).

        Raises:
            BadInput: more responses than that.
        """
        y = self.num_responses
        if y > LARGEST_MATRIX:
            raise BadInput(
                f"{type(self).__name__} writes its matrix out for up to {LARGEST_MATRIX} responses,"
                f" not for {y}; use payoff()"
            )
        everyone = torch.arange(y, device=self.device)
        games = [self._block(game, everyone) for game in range(math.prod(self.batch_shape))]
        return torch.stack(games).reshape(*self.batch_shape, y, y) if games else self._empty(*self.batch_shape, y, y)

    def uniform_policy(self) -> Policy:
        from nlhf_zoo.tabular import TabularPolicy

        return TabularPolicy(torch.zeros(*self.batch_shape, self.num_responses, dtype=self.dtype, device=self.device))

    def payoff(
        self,
        opponent: Tensor,
        *,
        loss: PairwiseLoss | None = None,
        log_ratio: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if opponent.shape[-1:] != (self.num_responses,):
            raise BadInput(
                f"opponent weights of shape {tuple(opponent.shape)} for {self.num_responses} responses;"
                f" give (..., {self.num_responses})"
            )
        if loss is None:
            return self._product(opponent.to(self.dtype)).to(opponent.dtype)
        assert log_ratio is not None
        return self._signals(opponent.to(self.dtype), log_ratio.to(self.dtype), loss).to(opponent.dtype)

    def _signals(self, opponent: Tensor, log_ratio: Tensor, loss: PairwiseLoss) -> Tensor:
        """The mean signals, exactly, in time Y^2 and the memory of a block."""
        y = self.num_responses
        shape = torch.broadcast_shapes((*self.batch_shape, y), opponent.shape, log_ratio.shape)
        weights = opponent.expand(shape).reshape(-1, y)
        ratios = log_ratio.expand(shape).reshape(-1, y)
        games = self._game_of_each(shape[:-1])
        out = self._empty(len(weights), y)
        for number, game in enumerate(games):
            for rows in torch.arange(y, device=self.device).split(max(1, _BLOCK // y)):
                h = ratios[number, rows].unsqueeze(-1) - ratios[number]
                out[number, rows] = loss.signal(self._block(game, rows), h) @ weights[number]
        return out.reshape(shape)

    def _game_of_each(self, leading: Sequence[int]) -> list[int]:
        """The flat game index of each entry of the leading dimensions, flattened too."""
        count = math.prod(self.batch_shape)
        return torch.arange(count).reshape(self.batch_shape).expand(tuple(leading)).flatten().tolist()

    def probability(self, prompts: Any, first: Any, second: Any) -> Tensor:
        """(B,) P(first > second); responses are indices or labels, prompts flat game indices (or `None`)."""
        one, other = self._index(first), self._index(second)
        none = prompts is None or not self.batch_shape
        game = torch.zeros_like(one) if none else torch.as_tensor(prompts, device=self.device).long()
        return self._pairs(game.expand_as(one), one, other)

    def _index(self, responses: Any) -> Tensor:
        if not isinstance(responses, Tensor) and len(responses) and isinstance(responses[0], str):
            if self.labels is None:
                raise BadInput("responses were given as text, but this oracle has no labels")
            position = {label: i for i, label in enumerate(self.labels)}
            unknown = next((r for r in responses if r not in position), None)
            if unknown is not None:
                raise BadInput(f"response {unknown!r} is not a label of this oracle")
            responses = [position[r] for r in responses]
        index = torch.as_tensor(responses, device=self.device)
        return index if index.numel() else index.long()

    def _checked_labels(self, labels: Sequence[str] | None) -> tuple[str, ...] | None:
        if labels is None:
            return None
        if len(labels) != self.num_responses or len(set(labels)) != len(labels):
            raise BadInput(f"{len(labels)} labels for {self.num_responses} responses; give one distinct name to each")
        return tuple(labels)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)


def real_tensor(value: Any, what: str, device: torch.device | str | None) -> Tensor:
    """A float64 tensor of finite numbers.

    Raises:
        BadInput: no numbers, or some that are not finite; `what` names it.
    """
    try:
        tensor = torch.as_tensor(value, dtype=None if hasattr(value, "dtype") else torch.float64)
        if tensor.is_complex():
            raise TypeError("complex numbers")
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BadInput(f"{what}: not an array of numbers ({reason}); give numbers of one shape") from None
    tensor = tensor.to(device, torch.float64)
    if not bool(tensor.isfinite().all()):
        raise BadInput(f"{what}: every entry must be a finite number, {int((~tensor.isfinite()).sum())} are not")
    return tensor


def read_arrays(path: str | PathLike[str], *names: str) -> tuple[Mapping[str, np.ndarray], list[str] | None]:
    """The named arrays of an npz file, and its `labels`, if any; a npy file is the first array alone.

    Raises:
        BadInput: not such a file, or an array is missing.
    """
    file = Path(path)
    require_file(file)
    with parsing(file, "npy or npz file"), file.open("rb") as handle:
        content = np.load(handle, allow_pickle=False)
        if isinstance(content, np.ndarray):
            arrays, labels = {names[0]: content}, None
        else:
            arrays = {name: content[name] for name in names if name in content.files}
            labels = [str(label) for label in content["labels"].tolist()] if "labels" in content.files else None
    missing = [name for name in names if name not in arrays]
    if missing:
        raise BadInput(f"{file}: holds no array {missing[0]!r}; save {', '.join(names)} with numpy.savez")
    return arrays, labels
