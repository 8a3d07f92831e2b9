"""One model that reads rows of text: its KV cache, the columns of it that count, and rows that leave."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import attrs
import torch
from torch import Tensor

from nlhf_zoo.llm.forward import base_network, forward, takes_positions

__all__ = ["GrowingReader", "Reader", "attends_by_position", "read_prompts"]

_WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")


def attends_by_position(network: Any) -> bool:
    """Whether a model has full attention by positions that are given: what a mask hides leaves no trace."""
    base = base_network(network)
    return (
        takes_positions(type(base))
        # Where a window counts columns, those taken back would take the place of text.
        and all(getattr(base.config, window, None) is None for window in _WINDOWS)
        and getattr(base.config, "_attn_implementation", None) in ("eager", "sdpa")
    )


def read_prompts(network: Any, prompts: Tensor, mask: Tensor) -> Any:
    """The model's output after (B, S) int64 prompts, padded on the left: a cache, and logits (B, >= 1, V)."""
    position = (mask.cumsum(-1) - 1).clamp_min(0)
    return forward(network, prompts, mask, position, use_cache=True, keep=1)


@attrs.define(eq=False)
class Reader(ABC):
    """A model in the middle of N texts.

    Attributes:
        unused: (N, 1, V) logits after the prompt, until they are asked for.
    """

    network: Any
    unused: Tensor | None

    @property
    @abstractmethod
    def takes_back(self) -> bool:
        """Whether columns in the middle of a text may be masked out."""

    def read(self, tokens: Tensor, position: Tensor) -> Tensor:
        """(N, S, V) logits after each of (N, S) tokens at text positions (N, S).

        The first time, the first token is the prompt's last, which has been read.
        """
        seen, self.unused = self.unused, None
        if seen is not None:
            tokens, position = tokens[:, 1:], position[:, 1:]
            if not tokens.shape[1]:
                return seen
        logits = self._go_on(tokens, position)
        return logits if seen is None else torch.cat([seen, logits], 1)

    @abstractmethod
    def _go_on(self, tokens: Tensor, position: Tensor) -> Tensor:
        """`read`, S >= 1, behind what was read."""

    @abstractmethod
    def take_back(self, kept: Tensor, count: int) -> None:
        """Leave the first (N,) `kept` >= 1 of the last `count` columns."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, (n,) indices."""
        if len(rows):
            self._select(rows)
            self.unused = None if self.unused is None else self.unused[rows]

    @abstractmethod
    def _select(self, rows: Tensor) -> None:
        """`keep`, of what was read."""

    def close(self) -> None:  # noqa: B027  # most have nothing to do
        """Nothing more will be read."""


@attrs.define(eq=False)
class GrowingReader(Reader):
    """A reader whose cache is as long as what was read.

    Attributes:
        cache: keys and values of the C columns read so far.
        mask: (N, C) int64, 1 on columns that are text; 0 on padding and on what was taken back.
    """

    cache: Any
    mask: Tensor

    @classmethod
    def of_prompts(cls, network: Any, prompts: Tensor, mask: Tensor, rows: Tensor) -> GrowingReader:
        """Read each prompt once, for the N `rows` that go on from it.

        Args:
            prompts, mask: (B, S) int64, padded on the left.
            rows: (N,) which prompt each text begins with.
        """
        return cls.after(read_prompts(network, prompts, mask), network, mask, rows)

    @classmethod
    def after(cls, out: Any, network: Any, mask: Tensor, rows: Tensor) -> GrowingReader:
        """Go on from prompts that were read, whose cache is taken over."""
        from nlhf_zoo.llm.growing_cache import grow_in_place  # it loads transformers

        out.cache.batch_select_indices(rows)
        grow_in_place(out.cache)
        return cls(network, out.logits[rows, -1:], out.cache, mask[rows])

    @property
    def takes_back(self) -> bool:
        from nlhf_zoo.llm.growing_cache import GrowingLayer

        return attends_by_position(self.network) and all(
            isinstance(layer, GrowingLayer) for layer in getattr(self.cache, "layers", [None])
        )

    def _go_on(self, tokens: Tensor, position: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(tokens.shape)], 1)
        return forward(self.network, tokens, self.mask, position, cache=self.cache, use_cache=True).logits

    def take_back(self, kept: Tensor, count: int) -> None:
        if count > 1:
            self.mask[:, -count:] *= torch.arange(count, device=kept.device) < kept[:, None]

    def _select(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]
