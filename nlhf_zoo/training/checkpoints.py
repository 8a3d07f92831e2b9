"""Checkpoints on disk: written whole or not at all, read without unpickling, found by their step."""

from __future__ import annotations

import logging
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from nlhf_zoo.atomic import replacing
from nlhf_zoo.errors import BadInput

__all__ = [
    "WholeCheckpoints",
    "checkpoint_at",
    "checkpoints_in",
    "newest_checkpoint",
    "prune",
    "read_checkpoint",
    "step_of",
]

logger = logging.getLogger("nlhf_zoo.training")

_REMOVE = "remove it, to go on from the one before"


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint files, written beside their place, flushed to the disk and renamed.

    Lightning itself writes into the system's temporary folder and moves the file from there, which is a copy, and
    can be half a file after a kill, where that folder is on another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place, durable=True) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path), map_location=map_location or "cpu")


def read_checkpoint(path: Path, **how: Any) -> dict[str, Any]:
    """A checkpoint, of which no code is run.

    Args:
        how: further options of `torch.load`.

    Raises:
        BadInput: no checkpoint of a training, or one that holds more than tensors and plain values.
    """
    try:
        found = torch.load(path, **{**how, "weights_only": True})
        whole = "state_dict" in found and "pytorch-lightning_version" in found
    # torch reports a missing record, an archive of something else and a class it does not know by these.
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split(". ")[0].split())[:160]
        raise BadInput(f"{path}: is damaged, or holds code, which is not run ({reason}); {_REMOVE}") from None
    if not whole:
        raise BadInput(f"{path}: is no checkpoint of a training; {_REMOVE}")
    return found


def checkpoint_at(out: Path, step: int) -> Path:
    """Where the checkpoint of a run's step is, or will be."""
    return out / "checkpoints" / f"step={step}.ckpt"


def step_of(path: Path) -> int:
    """Gradient steps of "step=N.ckpt"; -1 for a file of another name."""
    number = path.stem.removeprefix("step=")
    return int(number) if number.isdigit() else -1


def checkpoints_in(out: Path) -> list[Path]:
    """Those of a run's folder, the oldest first."""
    return sorted((out / "checkpoints").glob("step=*.ckpt"), key=step_of)


def newest_checkpoint(out: Path) -> Path | None:
    """The newest that is whole, `None` where there is none; damaged ones are named in the log and passed over."""
    for path in reversed(checkpoints_in(out)):
        # A sharded checkpoint is a folder; a file is a zip archive, whose index comes last.
        if path.is_dir() or zipfile.is_zipfile(path):
            return path
        logger.warning("checkpoint %s is damaged; going on from the one before", path)
    return None


def prune(out: Path, keep: int) -> None:
    """Remove all checkpoints of a run but the newest so many, those of sessions before this one too."""
    for path in checkpoints_in(out)[:-keep]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
