"""Folders that answers go to, whose files are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from nlhf_zoo.atomic import write_text
from nlhf_zoo.errors import BadInput

__all__ = ["claim_folder", "write_files"]


def claim_folder(out: Path, overwrite: bool | None = None) -> None:
    """Pass where `write_files` will be able to write; asked before the work, not after it.

    Args:
        overwrite: what --overwrite says; `None` for a verb without it.

    Raises:
        BadInput: not a folder, not empty (unless `overwrite`), or not permitted.
    """
    if out.is_dir():
        if not overwrite and any(out.iterdir()):
            mend = "name another one" if overwrite is None else "name another one, or give --overwrite"
            raise BadInput(f"--out {out}: the folder is not empty; {mend}")
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
