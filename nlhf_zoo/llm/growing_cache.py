"""Keys and values that grow in place, where transformers' own cache copies all of them for every new token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

__all__ = ["GrowingLayer", "grow_in_place"]

ROOM = 64
"""Tokens by which the buffers are enlarged at a time, at least."""


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` whose keys and values are views of buffers with room for more tokens. No gradients."""

    keys: Tensor  # type: ignore[assignment]  # None only before it is filled
    values: Tensor  # type: ignore[assignment]

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.is_initialized = True
        self.dtype, self.device = layer.keys.dtype, layer.keys.device
        self.keys, self.values = layer.keys, layer.values
        self._full_keys, self._full_values = layer.keys, layer.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if end > self._full_keys.shape[-2]:
            room = max(ROOM, start // 2, end - start)
            self._full_keys, self._full_values = _enlarged(self.keys, room), _enlarged(self.values, room)
        self._full_keys[..., start:end, :] = key_states
        self._full_values[..., start:end, :] = value_states
        self.keys, self.values = self._full_keys[..., :end, :], self._full_values[..., :end, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        length = self.keys.shape[-2]
        self._full_keys, self._full_values = self._full_keys[indices], self._full_values[indices]
        self.keys, self.values = self._full_keys[..., :length, :], self._full_values[..., :length, :]


def _enlarged(content: Tensor, room: int) -> Tensor:
    rows, heads, length, size = content.shape
    buffer = content.new_empty(rows, heads, length + room, size)
    buffer[..., :length, :] = content
    return buffer


def grow_in_place(cache: Any) -> None:
    """Replace the plain layers of a filled cache by growing ones; sliding, linear and other layers stay as they are."""
    layers = getattr(cache, "layers", None)
    if not isinstance(layers, list):
        return
    for i, layer in enumerate(layers):
        if type(layer) is DynamicLayer and isinstance(layer.keys, torch.Tensor) and layer.keys.dim() == 4:
            layers[i] = GrowingLayer(layer)
