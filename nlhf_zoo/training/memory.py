"""How a run holds its networks: whole, with the frozen ones in bfloat16 or in the host's memory, or as adapters."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nlhf_zoo.errors import BadInput
from nlhf_zoo.llm.adapters import AdapterNetwork, SharedModel, lora_config
from nlhf_zoo.llm.host import HostNetwork, copy_weights, frozen_copy
from nlhf_zoo.llm.loading import load_causal_lm, load_in_4bit
from nlhf_zoo.llm.tokens import Decoding
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.networks import NetworkPool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["adapter_pool", "check_holding", "load_pool", "whole_pool"]


def load_pool(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> NetworkPool:
    """The networks of a run, loaded as its config says.

    Raises:
        BadInput: a model that cannot be loaded, or options that do not go together.
    """
    check_holding(config)
    frozen = torch.bfloat16 if config.frozen_dtype == "bfloat16" else torch.float32
    load = functools.partial(load_causal_lm, trust_remote_code=config.trust_remote_code)
    if config.lora_rank:
        base = _quantised(config) if config.load_in_4bit else load(config.model, dtype=frozen)
        pool = adapter_pool(base, config, tokenizer, decoding)
    else:
        base = load(config.model, dtype=torch.float32)
        reference = load(config.reference or config.model, dtype=frozen, what="reference")
        pool = whole_pool(base, reference, config, tokenizer, decoding)
    if config.gradient_checkpointing:
        base.activation_checkpointing_enable()
    return pool


_NOT_SPREAD = {
    "load_in_4bit": "fsdp2 cannot spread weights in 4 bit; give frozen_dtype bfloat16 instead",
    "frozen_device": "fsdp2 spreads the frozen networks over the devices instead; leave it out",
    "frozen_dtype": "fsdp2 holds every whole network in float32, in shares; give lora_rank too, or leave it out",
}


def check_holding(config: TrainConfig) -> None:
    """Raises:
    BadInput: options for holding networks that do not go together.
    """
    if config.strategy == "fsdp2":
        refused = _NOT_SPREAD.keys() - ({"frozen_dtype"} if config.lora_rank else set())
        for name in (name for name in _NOT_SPREAD if name in refused and getattr(config, name)):
            raise BadInput(f"{name}: {_NOT_SPREAD[name]}; or use ddp")
    if config.load_in_4bit and not config.lora_rank:
        raise BadInput("load_in_4bit: weights in 4 bit cannot be trained; give lora_rank too")
    if config.lora_targets and not config.lora_rank:
        raise BadInput("lora_targets without lora_rank says nothing; give lora_rank too")
    if not config.lora_rank:
        return
    if config.reference not in (None, config.model):
        raise BadInput("lora_rank: the reference is the frozen base, the model itself; leave reference out")
    if config.frozen_device is not None:
        raise BadInput("frozen_device: with lora_rank the frozen weights are the student's too; leave it out")


def _quantised(config: TrainConfig) -> Any:
    gpu = config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if gpu else "cpu"
    compute = torch.bfloat16 if config.precision.startswith("bf16") else torch.float32
    return load_in_4bit(config.model, device=device, compute=compute, trust_remote_code=config.trust_remote_code)


def whole_pool(
    student: Any,
    reference: Any,
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    decoding: Decoding,
) -> NetworkPool:
    """Every network a model of its own, the frozen ones held as `frozen_dtype` and `frozen_device` say.

    A spare may be averaged into, or trained on again, and in bfloat16 either would lose what one step changes. So
    in both cases its own weights are float32 in the host's memory, and what the accelerator holds is a copy: in
    bfloat16 and for good with `frozen_dtype` alone, for the time of its work with `frozen_device`.

    Args:
        reference: in the dtype that it shall be held in.
    """
    if config.frozen_dtype is None and config.frozen_device is None:
        return NetworkPool(student, reference.eval(), tokenizer, decoding)
    dtype = torch.bfloat16 if config.frozen_dtype == "bfloat16" else None
    resident = config.frozen_device is None

    def spare(network: nn.Module) -> nn.Module:
        return HostNetwork(frozen_copy(network, device="cpu"), student, dtype=dtype, resident=resident).eval()

    reference = reference.eval()
    held = reference if resident else HostNetwork(reference, student).eval()
    return NetworkPool(student, held, tokenizer, decoding, spare=spare)


def adapter_pool(
    base: Any, config: TrainConfig, tokenizer: PreTrainedTokenizerBase | None, decoding: Decoding
) -> NetworkPool:
    """Student, reference and spares as LoRA adapters of one model.

    The reference is the adapter that the student starts as, B = 0, so that it can be averaged with and copied from
    like any other; as it changes nothing, it is left out of the forward pass.

    Args:
        base: frozen from here on; adapters are put on it in place.
    """
    where = str(Path(config.model).resolve()) if Path(config.model).exists() else config.model
    settings = lora_config(config.lora_rank, config.lora_alpha, config.lora_targets, where)
    shared = SharedModel.of(base.eval(), settings, resting="student", seed=config.seed)
    shared.model.eval()
    student = AdapterNetwork(shared, "student")
    shared.add("reference")
    reference = AdapterNetwork(shared, "reference", bare=True)
    copy_weights(student, reference)

    def spare(network: nn.Module) -> nn.Module:
        name = f"spare_{len(shared.model.peft_config) - 2}"
        shared.add(name)
        made = AdapterNetwork(shared, name)
        copy_weights(network, made)
        return made

    return NetworkPool(student, reference, tokenizer, decoding, spare=spare, base=shared.model)
