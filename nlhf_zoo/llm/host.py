"""Frozen networks whose weights are kept in the host's memory, and copied to the accelerator for their work."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from nlhf_zoo.interfaces import weights_changed

__all__ = ["HostNetwork", "at_work", "copy_weights", "frozen_copy"]


def frozen_copy(
    network: nn.Module, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> nn.Module:
    """A copy without gradients, in eval mode; weights are cast and moved one by one, never copied twice.

    Args:
        dtype: of floating-point parameters; buffers (rotary frequencies) keep theirs.
    """
    made: dict[int, Any] = {}
    for parameter in network.parameters():
        cast = dtype if parameter.is_floating_point() else None
        value = parameter.detach().to(device=device, dtype=cast, copy=True)
        made[id(parameter)] = nn.Parameter(value, requires_grad=False)
    for buffer in network.buffers():
        made[id(buffer)] = buffer.detach().to(device=device, copy=True)
    return copy.deepcopy(network, made).eval()


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Parameters and buffers of one network into another of the same shape, in place."""
    for theirs, mine in zip(source.parameters(), target.parameters(), strict=True):
        mine.copy_(theirs)
    for theirs, mine in zip(source.buffers(), target.buffers(), strict=True):
        mine.copy_(theirs)
    weights_changed(target)


class HostNetwork(nn.Module):
    """A frozen network that rests in the host's memory and works beside another, through a copy made for it.

    What is at rest is exact: averages add up there in its own dtype, whatever the copy's, and a student that goes
    back to it loses nothing. Moving the module it belongs to leaves it where it is.

    Attributes:
        network: the weights at rest, on the CPU.
        resident: whether the copy stays between two calls, at its place.
    """

    def __init__(
        self, network: nn.Module, beside: nn.Module, *, dtype: torch.dtype | None = None, resident: bool = False
    ) -> None:
        """Args:
        beside: a network on whose device the work is done.
        dtype: of the copy; the same, unless given.
        resident: keep the copy between two calls, and renew it when the weights have changed.
        """
        super().__init__()
        self.network = network
        self._beside = (beside,)  # in a tuple: no part of this module
        self._dtype, self.resident = dtype, resident
        self._worker: tuple[nn.Module, ...] = ()
        self._made_of: list[int] = []
        self._working = False

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return self._beside[0].device  # type: ignore[return-value]  # transformers models have one

    @property
    def config(self) -> Any:
        return self.network.config

    @property
    def generation_config(self) -> Any:
        return self.network.generation_config

    @property
    def worker(self) -> nn.Module:
        """The copy, while it is there."""
        return self._worker[0]

    @property
    def copied(self) -> list[nn.Parameter]:
        """The weights of the copy, while there is one."""
        return [parameter for worker in self._worker for parameter in worker.parameters()]

    def get_base_model(self) -> Any:
        return self.network

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the weights at rest."""
        self.network.save_pretrained(path)  # type: ignore[operator]  # transformers models have it

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """The copy is there until the end of the block."""
        if self._working:
            yield
            return
        self._working = True
        try:
            self._prepare()
            yield
        finally:
            self._working = False
            if not self.resident:
                self._worker = ()

    def _prepare(self) -> None:
        versions = [parameter._version for parameter in self.network.parameters()]
        if not self._worker:
            self._worker = (frozen_copy(self.network, self._dtype, self.device),)
        elif versions != self._made_of:
            copy_weights(self.network, self._worker[0])
        self._made_of = versions

    def forward(self, **inputs: Any) -> Any:
        with self.at_work():
            return self._worker[0](**inputs)

    def _apply(self, fn: Any, recurse: bool = True) -> HostNetwork:
        return self


@contextlib.contextmanager
def at_work(networks: Iterable[Any]) -> Iterator[None]:
    """Bring every network that rests in the host's memory to where it works, for as long as the block takes."""
    with contextlib.ExitStack() as stack:
        for network in networks:
            if isinstance(network, HostNetwork):
                stack.enter_context(network.at_work())
        yield
