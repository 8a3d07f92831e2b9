"""Networks whose weights are spread over processes (FSDP2): made, gathered to generate with, and made whole."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nlhf_zoo.llm.forward import base_network

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy

__all__ = ["empty_copies", "gathered", "is_spread", "shard", "whole_copy"]


def empty_copies(network: nn.Module) -> Callable[[], nn.Module]:
    """Makes frozen networks of the same shape on the meta device: no memory, tied weights tied."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in network.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    empty = copy.deepcopy(network, memo)
    return lambda: copy.deepcopy(empty)


def shard(
    network: nn.Module, mesh: DeviceMesh, mixed: MixedPrecisionPolicy, whole: Iterable[nn.Parameter] = ()
) -> None:
    """Spread a network's weights over a mesh, in place, one transformer block at a time.

    Blocks are the modules that transformers does not split (`_no_split_modules`); what is outside of them (embeddings,
    the last norm, the head) makes one group more.

    Args:
        whole: parameters that stay as they are on every process; their gradients are not summed either.
    """
    from torch.distributed.fsdp import fully_shard

    how: dict[str, Any] = {"mesh": mesh, "mp_policy": mixed, "reshard_after_forward": True}
    if left := set(whole):
        how["ignored_params"] = left  # a keyword that older versions of torch do not have
    spread = functools.partial(fully_shard, **how)
    blocks = {name for module in network.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    for module in [m for m in network.modules() if type(m).__name__ in blocks]:
        spread(module)
    spread(network)


def whole_copy(network: nn.Module, empty: Any) -> nn.Module:
    """`empty` with all the weights of a spread network, on the CPU of the first process alone; a collective call."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(network, options=options)
    if weights:
        empty.load_state_dict(weights, assign=True)
        empty.tie_weights()
    return empty


@contextlib.contextmanager
def gathered(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Hold spread networks whole on every process while inside; a collective call, and nothing for other networks.

    Generation reads the weights once a token. Gathered once, they cost no communication in between, and processes
    may stop at different lengths. The price is one network's memory, in the precision it is computed in.
    """
    # Adapters share the model that is spread.
    parts = list(dict.fromkeys(part for network in networks for part in _spread_parts(network)))
    try:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def is_spread(network: nn.Module) -> bool:
    """Whether a network's weights, or those of the model that it adapts, are spread over processes."""
    return bool(_spread_parts(network))


def _spread_parts(network: nn.Module) -> list[Any]:
    # Asked of every network that samples: without a process group there is nothing to ask, nor to import.
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in base_network(network).modules() if isinstance(module, FSDPModule)]
