"""Models in transformers format on disk: written file by file atomically, read without pickles or surprises."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlhf_zoo.atomic import UNFINISHED
from nlhf_zoo.errors import BadInput
from nlhf_zoo.llm.places import similar_folders

__all__ = ["load_classifier", "moved", "own_device", "save_folder"]


def save_folder(path: str | os.PathLike[str], model: Any, tokenizer: Any, texts: Mapping[str, str]) -> Path:
    """Write a model (safetensors), its tokenizer and small text files into a folder.

    Everything is written beside the folder first and moved in file by file; weights of an earlier save
    that the new one does not overwrite are removed, so that old shards are never read again.

    Args:
        path: the folder, made where missing.
        texts: name of a file -> its content.

    Raises:
        OSError: the disk is full, or the like.
    """
    from safetensors import SafetensorError

    target = Path(path)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=UNFINISHED) as scratch:
        try:
            model.save_pretrained(scratch)
        except SafetensorError as error:
            raise OSError(f"{target}: {error}") from error
        tokenizer.save_pretrained(scratch)
        for name, content in texts.items():
            Path(scratch, name).write_text(content, encoding="utf-8")
        written = sorted(Path(scratch).iterdir())
        for file in written:
            os.replace(file, target / file.name)
    for stale in set(target.glob("model*.safetensors*")) - {target / file.name for file in written}:
        stale.unlink()
    return target


def load_classifier(
    path: str | os.PathLike[str], *, dtype: Any, device: Any, revision: str | None, trust_remote_code: bool
) -> tuple[Any, Any]:
    """A trained sequence classifier with one output, in eval mode, and its tokenizer.

    Args:
        path: folder or hub id.
        dtype: torch dtype or its name; `None` keeps the checkpoint's.
        device: torch device or its name, or "auto" for this process's current accelerator where there is one.

    Raises:
        BadInput: nothing there, several outputs, or a checkpoint whose classification head is missing.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=_dtype(dtype), use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:  # a config made by anybody brings transformers to raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "" if Path(path).exists() else similar_folders(str(path))
        raise BadInput(f"cannot load a judge from {str(path)!r}: {reason}{hint}") from error
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:3])
        raise BadInput(f"{str(path)!r} is not a trained sequence classifier: it has no weights for {missing}")
    if model.config.num_labels != 1:
        raise BadInput(f"{str(path)!r} has {model.config.num_labels} outputs, a judge has one; use another model")
    return moved(model, device).eval(), tokenizer


def moved(model: Any, device: Any) -> Any:
    """The judge's model on a device; "auto" is this process's current accelerator where there is one.

    Raises:
        BadInput: there is no such device here.
    """
    try:
        return model.to(own_device() if device == "auto" else device)
    except (RuntimeError, AssertionError) as error:  # a build of torch without the device asserts that it has it
        if "out of memory" in str(error):
            raise
        raise BadInput(f"oracle option device: {device!r} cannot be used here ({str(error).splitlines()[0]})") from None


def own_device() -> Any:
    """The accelerator that this process works on, with its number, so that processes do not crowd on the first."""
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if kind is None else torch.device(kind.type, torch.accelerator.current_device_index())


def _dtype(dtype: Any) -> Any:
    import torch

    if dtype is None:
        return "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype):
        raise BadInput(f"unknown dtype {dtype!r}; use float32, bfloat16 or float16")
    return found
