"""One model that reads rows of text: its KV cache, the columns of it that count, and rows that leave."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from nlhf_zoo.llm.forward import base_network, forward, takes_positions

__all__ = ["Reader"]

_WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")


@attrs.define(eq=False)
class Reader:
    """A model in the middle of N texts.

    Attributes:
        cache: keys and values of the C columns read so far.
        mask: (N, C) int64, 1 on columns that are text; 0 on padding and on what was taken back.
        unused: (N, 1, V) logits after the prompt, until they are asked for.
    """

    network: Any
    cache: Any
    mask: Tensor
    unused: Tensor | None

    @classmethod
    def of_prompts(cls, network: Any, prompts: Tensor, mask: Tensor, rows: Tensor) -> Reader:
        """Read each prompt once, for the N `rows` that go on from it.

        Args:
            prompts, mask: (B, S) int64, padded on the left.
            rows: (N,) which prompt each text begins with.
        """
        from nlhf_zoo.llm.growing_cache import grow_in_place  # it loads transformers

        position = (mask.cumsum(-1) - 1).clamp_min(0)
        out = forward(network, prompts, mask, position, use_cache=True, keep=1)
        out.cache.batch_select_indices(rows)
        grow_in_place(out.cache)
        return cls(network, out.cache, mask[rows], out.logits[rows, -1:])

    @property
    def takes_back(self) -> bool:
        """Whether columns in the middle of a text may be masked out: full attention by positions that are given."""
        from nlhf_zoo.llm.growing_cache import GrowingLayer

        base = base_network(self.network)
        return (
            takes_positions(type(base))
            # Where a window counts columns, those taken back would take the place of text.
            and all(getattr(base.config, window, None) is None for window in _WINDOWS)
            and getattr(base.config, "_attn_implementation", None) in ("eager", "sdpa")
            and all(isinstance(layer, GrowingLayer) for layer in getattr(self.cache, "layers", [None]))
        )

    def read(self, tokens: Tensor, position: Tensor) -> Tensor:
        """(N, S, V) logits after each of (N, S) tokens at text positions (N, S).

        The first time, the first token is the prompt's last, which has been read.
        """
        seen, self.unused = self.unused, None
        if seen is not None:
            tokens, position = tokens[:, 1:], position[:, 1:]
            if not tokens.shape[1]:
                return seen
        self.mask = torch.cat([self.mask, self.mask.new_ones(tokens.shape)], 1)
        logits: Tensor = forward(self.network, tokens, self.mask, position, cache=self.cache, use_cache=True).logits
        return logits if seen is None else torch.cat([seen, logits], 1)

    def take_back(self, kept: Tensor, count: int) -> None:
        """Leave the first (N,) `kept` >= 1 of the last `count` columns."""
        if count > 1:
            self.mask[:, -count:] *= torch.arange(count, device=kept.device) < kept[:, None]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, (n,) indices."""
        if len(rows):
            self.cache.batch_select_indices(rows)
            self.mask = self.mask[rows]
            self.unused = None if self.unused is None else self.unused[rows]
