"""Batches of about equal length, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

__all__ = ["LengthBuckets"]

WINDOW = 32
"""Batches that are sorted together: few keep the order random, many leave little padding."""


class LengthBuckets(Sampler[list[int]]):
    """Yields lists of at most `batch_size` indices; every index once an epoch, every epoch in a new order.

    Args:
        lengths: of the items, in tokens.
        batch_size: >= 1.
        seed: the order of epoch e is that of the generator seeded with (seed, e).
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = list(lengths), batch_size, seed
        self._epoch = 0

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        self._epoch += 1
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        size, window = self._batch_size, self._batch_size * WINDOW
        batches: list[list[int]] = []
        for at in range(0, len(order), window):
            near = sorted(order[at : at + window], key=self._lengths.__getitem__)
            batches += [near[start : start + size] for start in range(0, len(near), size)]
        for place in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[place]
