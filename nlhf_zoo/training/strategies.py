"""`--strategy`: Lightning's engines by their names, and `fsdp2`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from nlhf_zoo.errors import BadInput
from nlhf_zoo.llm.sharding import shard
from nlhf_zoo.training.checkpoints import read_checkpoint

__all__ = ["ShardedStrategy", "strategy_of"]


def strategy_of(name: str) -> str | Strategy:
    """What Lightning's Trainer takes for `--strategy NAME`.

    Raises:
        BadInput: an engine that spreads weights in a way that generation or the saved policy would not survive, or one
            whose processes cannot give back what they trained.
    """
    if name == "fsdp2":
        return ShardedStrategy()
    if re.match(r"fsdp|model_parallel|xla|deepspeed_stage_3", name) or name == "deepspeed":
        raise BadInput(f"strategy {name} is not supported; fsdp2 spreads weights, deepspeed_stage_2 all but weights")
    if name.startswith("deepspeed"):
        strategy = StrategyRegistry.get(name)
        # Its engine looks for every frozen weight among those it was given, and copies are made as solvers need them.
        strategy.exclude_frozen_parameters = True
        return strategy
    if re.search(r"spawn|fork|notebook", name):
        raise BadInput(f"strategy {name}: processes started from memory cannot hand the run back; use ddp")
    return name


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices of all nodes.

    Checkpoints are single files of whole tensors, in the form that one device writes: they load without pickle, on
    any number of devices and under any other strategy. The first process gathers them in its CPU memory.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def shard(self, network: nn.Module, whole: Iterable[nn.Parameter] = ()) -> None:
        """Spread a network over all devices, in place; computed in the precision of the run, summed in float32.

        Args:
            whole: its parameters that every device holds all of, whose gradients `post_backward` brings together.
        """
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        mixed = MixedPrecisionPolicy()
        if self.precision_plugin.precision == "bf16-mixed":
            mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        shard(network, mesh, mixed, whole)

    def post_backward(self, closure_loss: Tensor) -> None:
        super().post_backward(closure_loss)
        assert self.model is not None
        gradients = [p.grad for p in self.model.parameters() if not (p.grad is None or isinstance(p, DTensor))]
        if gradients:
            # Of earlier batches of the step they are equal on all processes already, and a mean leaves them so.
            together = torch.cat([gradient.flatten() for gradient in gradients])
            torch.distributed.all_reduce(together)
            parts = (together / self.world_size).split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        # Read only: networks that the checkpoint holds and this process does not are made before weights are loaded.
        return read_checkpoint(Path(checkpoint_path), map_location="cpu", mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.model, dict(checkpoint["state_dict"]), options=options)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state with parameters by number, on the first process; nothing on the others."""
        assert self.model is not None
        plain = _plain(optimizer)
        if not _spread(plain):
            return plain.state_dict() if self.global_rank == 0 else {}
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        named = cast(dict[str, Any], get_optimizer_state_dict(self.model, plain, options=options))
        if self.global_rank != 0:
            return {}
        numbers = {name: number for number, name in enumerate(self._names(plain))}
        state = {numbers[name]: value for name, value in named["state"].items()}
        groups = [{**g, "params": [numbers[name] for name in g["params"]]} for g in named["param_groups"]]
        return {"state": state, "param_groups": groups}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True)
        for optimizer, numbered in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            plain = _plain(optimizer)
            if not _spread(plain):
                plain.load_state_dict(numbered)
                continue
            names = self._names(plain)
            state = {names[number]: value for number, value in numbered["state"].items()}
            groups = [{**g, "params": [names[number] for number in g["params"]]} for g in numbered["param_groups"]]
            named: Any = {"state": state, "param_groups": groups}
            set_optimizer_state_dict(self.model, plain, named, options=options)

    def _names(self, optimizer: Optimizer) -> list[str]:
        """Names of the optimizer's parameters, in its order, which numbers them."""
        assert self.model is not None
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _spread(optimizer: Optimizer) -> bool:
    return any(isinstance(parameter, DTensor) for group in optimizer.param_groups for parameter in group["params"])


def _plain(optimizer: Optimizer | LightningOptimizer) -> Optimizer:
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
