"""Which networks decode by captured steps, and the buffers and graphs that are kept for them between generations."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from nlhf_zoo.llm.forward import base_network
from nlhf_zoo.llm.host import HostNetwork
from nlhf_zoo.llm.reading import GrowingReader, Reader, attends_by_position, read_prompts
from nlhf_zoo.llm.speculative import LONGEST

__all__ = ["StepGraphs"]

logger = logging.getLogger("nlhf_zoo.llm")

COLUMNS = 128
"""Texts get a multiple of so many columns, that those of the next batch fit into the same graph."""


_LENDING = threading.Lock()


class StepGraphs:
    """Opens readers, whose buffers and captured steps serve later generations too.

    Captured steps read weights where they lie. An update in place (an optimizer's, an average) is seen by the next
    replay; where a weight lies elsewhere than it did, or an adapter or the precision is another, the step is captured
    anew.
    """

    def __init__(
        self,
        *,
        share: float = 0.1,
        kinds: Sequence[str] = ("cuda",),
        capture: Callable[[torch.device], Any] | None = None,
    ) -> None:
        """Args:
        share: of a device's memory that may be held between generations, in [0, 1].
        kinds: of devices on which steps are captured.
        capture: makes what captures the steps of one set of buffers on a device; CUDA graphs, unless given.
        """
        self._share, self._kinds, self._capture = share, kinds, capture
        self._held: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()
        self._refused: WeakSet[Any] = WeakSet()
        self._told: WeakSet[Any] = WeakSet()
        self._uses = itertools.count()

    def reader(self, network: Any, prompts: Tensor, mask: Tensor, rows: Tensor, new_tokens: int) -> Reader:
        """Read (B, S) prompts for the (N,) rows that go on from them by at most so many tokens."""
        out = read_prompts(network, prompts, mask)
        if prompts.device.type not in self._kinds or network in self._refused:
            return GrowingReader.after(out, network, mask, rows)
        from nlhf_zoo.llm.static_cache import plain_layers  # it loads transformers
        from nlhf_zoo.llm.static_reading import StaticReader

        layers = plain_layers(out.cache)
        reason = "its cache is not plain keys and values" if layers is None else _reason_against(network)
        if layers is not None and reason is None:
            width = -(-(prompts.shape[1] + new_tokens + LONGEST) // COLUMNS) * COLUMNS
            buffers, new = self._lend(network, layers, len(rows), width)
            buffers.fill(layers, mask, rows, width)
            wanted = out.logits[rows, -1:]
            reason = _difference(buffers, network, prompts[rows, -1:], mask[rows], wanted) if new else None
            if reason is None:
                return StaticReader(network, wanted, buffers, lambda: self._take_back(network, buffers))
            self._held[network].remove(buffers)
            self._refused.add(network)
        if network not in self._told:
            self._told.add(network)
            logger.info("%s decodes without CUDA graphs: %s", type(base_network(network)).__name__, reason)
        return GrowingReader.after(out, network, mask, rows)

    def _lend(self, network: Any, layers: Sequence[Any], rows: int, columns: int) -> tuple[Any, bool]:
        """Buffers with so much room at least, and whether they are new."""
        from nlhf_zoo.llm.static_reading import Buffers, Capture

        device = layers[0].keys.device
        signature = _signature(network, device.type)
        with _LENDING:
            held = self._held.setdefault(network, [])
            for one in [one for one in held if not one.busy]:
                if one.signature != signature:
                    held.remove(one)
                elif one.room[0] >= rows and one.room[1] >= columns:
                    one.busy = True
                    return one, False
                else:
                    rows, columns = max(rows, one.room[0]), max(columns, one.room[1])
                    held.remove(one)
                del one  # before there are others
            base = _working(network)
            embedded = base.get_input_embeddings().weight.dtype
            made = Buffers.like(
                layers, rows, columns, dtype=_autocast(device.type),
                additive=embedded if base.config._attn_implementation == "eager" else None,
                capture=(self._capture or Capture)(device), signature=signature,
            )  # fmt: skip
            held.append(made)
            return made, True

    def _take_back(self, network: Any, buffers: Any) -> None:
        """Hold what was lent for a later generation, within the limit; the least recently used goes first."""
        with _LENDING:
            buffers.busy, buffers.used = False, next(self._uses)
            if buffers.refused:
                self._held[network].remove(buffers)
                self._refused.add(network)
            limit = self._share * _memory(buffers.shift.device)
            everything = [(one, held) for held in self._held.values() for one in held]
            total = sum(one.bytes for one, _ in everything)
            idle = sorted((pair for pair in everything if not pair[0].busy), key=lambda pair: pair[0].used)
            for one, held in idle:
                if total <= limit:
                    return
                held.remove(one)
                total -= one.bytes

    @property
    def bytes(self) -> int:
        """Memory held on devices."""
        return sum(one.bytes for held in self._held.values() for one in held)


def _memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 2**40


def _autocast(kind: str) -> torch.dtype | None:
    """What autocast makes of an attention's inputs: keys and values are held in it, and not cast for every token."""
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _working(network: Any) -> Any:
    """The model of transformers whose weights are read."""
    return network.worker if isinstance(network, HostNetwork) else base_network(network)


def _reason_against(network: Any) -> str | None:
    if isinstance(network, HostNetwork) and not network.resident:
        return "its weights rest in the host's memory"
    if not attends_by_position(network):
        return "its attention is not full, or counts columns and not positions"
    working = _working(network)
    if network.training:
        return "it is in training mode"
    if getattr(working, "is_quantized", False):
        return "its weights are quantised"
    if any(_listened_to(module) for module in (network, *working.modules())):
        return "something listens to its forward calls, which a replay does not make"
    return None


def _listened_to(module: Any) -> bool:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    # Gradient checkpointing leaves one that wants gradients of the embeddings: nothing where there are none.
    heard = [hook for hook in hooks if getattr(hook, "__name__", "") != "make_inputs_require_grads"]
    return bool(heard) or hasattr(module, "_hf_hook")


def _signature(network: Any, kind: str) -> Any:
    """What a captured step depends on besides its inputs."""
    working = _working(network)
    weights = itertools.chain(working.parameters(), working.buffers())
    adapters = [
        (tuple(module.active_adapters), module.disable_adapters, tuple(module.merged_adapters), {**module.scaling})
        for module in working.modules()
        if hasattr(module, "active_adapters") and hasattr(module, "scaling")
    ]
    places = [(weight.data_ptr(), weight.dtype) for weight in weights]
    return places, adapters, _autocast(kind), working.config._attn_implementation


def _difference(buffers: Any, network: Any, last: Tensor, mask: Tensor, wanted: Tensor) -> str | None:
    """What is wrong, where reading the last token of each prompt again does not give the logits seen before.

    Args:
        last: (N, 1) tokens.
        mask: (N, S) of the prompts.
        wanted: (N, 1, V) logits.
    """
    from nlhf_zoo.llm.static_reading import agree

    length = mask.sum(-1)
    try:
        found = buffers.read(network, last, (length - 1).clamp_min(0)[:, None])
    except Exception as error:  # whatever a model says to a mask of its own kind
        return f"it cannot read with a cache of fixed size ({str(error).partition(chr(10))[0][:200]})"
    text = (length > 0)[:, None, None]  # an empty prompt's logits mean nothing
    if agree(found.masked_fill(~text, 0), wanted.masked_fill(~text, 0)):
        return None
    return "its logits are others when its cache has a fixed size"
