"""Answers on their way out: plain JSON values, and folders whose files are whole or not there."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nlhf_zoo.atomic import write_text
from nlhf_zoo.errors import BadInput

__all__ = ["claim_folder", "plain", "write_files"]


def plain(value: Any) -> Any:
    """The value in JSON's types: a number that is not finite is null, an unknown object its text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


def claim_folder(out: Path, overwrite: bool) -> None:
    """Pass where `write_files` will be able to write; asked before the work, not after it.

    Raises:
        BadInput: not a folder, not empty (unless `overwrite`), or not permitted.
    """
    if out.is_dir():
        if not overwrite and any(out.iterdir()):
            raise BadInput(f"--out {out}: the folder is not empty; name another one, or give --overwrite")
    elif out.exists() or out.is_symlink():
        raise BadInput(f"--out {out}: is not a folder; name one that is new or empty")
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise BadInput(f"--out {out}: {nearest} cannot be written to; name another folder")


def write_files(out: Path, files: Mapping[str, str]) -> None:
    """Write texts into a folder, made where missing; each file is replaced whole, in the given order.

    Raises:
        BadInput: the disk is full, or the like.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_text(out / name, content)
    except OSError as error:
        raise BadInput(f"--out {out}: cannot be written: {error.strerror or error}") from None
