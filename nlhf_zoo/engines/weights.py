"""How a network's weights reach an engine outside of torch's reach: as safetensors in a folder."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from nlhf_zoo.errors import BadInput

__all__ = ["passing_folder", "remove_weights", "write_weights"]

_IN_MEMORY = Path("/dev/shm")


def passing_folder(owner: object, network: Any) -> Path:
    """A new folder that goes when `owner` does: in memory, where that has twice the room that the weights take."""
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    roomy = _IN_MEMORY.is_dir() and shutil.disk_usage(_IN_MEMORY).free > 2 * size
    folder = tempfile.mkdtemp(prefix="nlhf_zoo_weights_", dir=_IN_MEMORY if roomy else None)
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def write_weights(network: Any, folder: Path) -> None:
    """A model of transformers as config and safetensors, by the names that checkpoints use; tied weights once.

    Raises:
        BadInput: the network is one with adapters.
    """
    if hasattr(network, "peft_config"):
        raise BadInput("engine vllm passes on full weights, and this network has adapters; use engine: builtin")
    from transformers.utils import logging

    folder.mkdir(parents=True, exist_ok=True)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # one a step would be many
    try:
        network.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()


def remove_weights(folder: Path) -> None:
    """Take the weights away that were read: what lies in memory is to be short-lived, should the process be killed."""
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
