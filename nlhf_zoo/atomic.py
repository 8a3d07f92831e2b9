"""Files that are whole or not there, and folders that one process writes to at a time."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["UNFINISHED", "alone", "replacing", "sweep", "write_bytes", "write_text"]

UNFINISHED = ".part"
"""How the name ends of what is still being written, beside its place, with a dot in front."""


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """A file to write beside its place, moved there when the block ends; on any failure nothing is left behind.

    A killed process can leave a hidden ".part" file, which `sweep` removes; never half a file under `path`.

    Args:
        durable: wait until the disk has it, so that it outlives a power failure as well.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; it names `path`.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(6)}{UNFINISHED}")
    opened = scratch.open("xb")
    try:
        with opened as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException as error:
        scratch.unlink(missing_ok=True)
        # A write knows no file name, and `torch.save` raises an error of its own over that of the write.
        why = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(why, OSError) and why.errno is not None and why.filename is None:
            raise OSError(why.errno, why.strerror, str(path)) from error
        raise
    if durable:
        _flush_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file as `replacing` does.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`, of any content."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def alone(lock: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file, which is free again at once when its process ends, killed or not. Windows has none: no effect.

    Args:
        wait: until whoever holds it lets go.

    Raises:
        BlockingIOError: another process holds it, and `wait` is false.
        OSError: it cannot be written.
    """
    if os.name == "nt":
        yield
        return
    import fcntl

    with lock.open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def sweep(folder: Path) -> None:
    """Remove the unfinished files and folders that killed writers left in a folder that nobody else writes to."""
    for scratch in folder.glob(f".*{UNFINISHED}"):
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    # The new name is in the folder, not in the file. Windows cannot open one, and needs no flush.
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
