"""Keys and values in buffers that never move, written at columns that a tensor names: what a captured graph replays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

__all__ = ["Place", "StaticLayer", "plain_layers", "static_cache"]


@attrs.define(eq=False)
class Place:
    """Where the layers of a model write next, and what they read.

    Attributes:
        numbers: (N, 1) int64, 0, 1, ...
        columns: (n, S) int64, where the keys and values of n <= N rows go.
        width: columns that are read, from the first on.
    """

    numbers: Tensor
    columns: Tensor
    width: int


class StaticLayer(CacheLayerMixin):
    """Keys and values (N, heads, C, size) of one layer; `update` answers with the first n rows, whole. No gradients."""

    is_compileable = False
    is_croppable = False
    is_sliding = False

    keys: Any
    values: Any

    def __init__(self, keys: Tensor, values: Tensor, place: Place) -> None:
        super().__init__()
        self.keys, self.values, self.place = keys, values, place
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the buffers are there from the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        columns, width = self.place.columns, self.place.width
        rows = self.place.numbers[: len(columns)]
        found: list[Tensor] = []
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            mine = buffer[: len(columns), :, :width]
            mine.transpose(1, 2)[rows, columns] = states.transpose(1, 2).to(buffer.dtype)
            found.append(mine)
        return found[0], found[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.place.width, 0

    def get_seq_length(self) -> int:
        return self.place.width

    def get_max_length(self) -> int:
        return self.keys.shape[-2]


def plain_layers(cache: Any) -> Sequence[Any] | None:
    """The layers of a filled cache, where each holds all keys and values as (B, heads, S, size); else `None`."""
    layers = getattr(cache, "layers", None)
    plain = isinstance(layers, list) and all(
        type(layer) is DynamicLayer and isinstance(layer.keys, torch.Tensor) and layer.keys.dim() == 4
        for layer in layers
    )
    return layers if plain else None


def static_cache(like: Sequence[Any], rows: int, columns: int, dtype: torch.dtype | None, place: Place) -> Cache:
    """Buffers for so many rows and columns, shaped like the layers of a filled cache.

    Args:
        dtype: of keys and values; the layers' own, unless given.
    """

    def buffer(states: Tensor) -> Tensor:
        _, heads, _, size = states.shape
        return states.new_zeros(rows, heads, columns, size, dtype=dtype or states.dtype)

    return Cache(layers=[StaticLayer(buffer(layer.keys), buffer(layer.values), place) for layer in like])
