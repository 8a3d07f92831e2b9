"""Whether what lies in a folder is still what a verdict was given by."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["fingerprint"]


def fingerprint(source: str) -> str:
    """A name for what a path leads to: names, sizes and dates of the files there. A hub id stands for itself."""
    path = Path(source)
    if not path.exists():
        return source
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    lines = [f"{file.relative_to(path)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join([str(path.resolve()), *lines]).encode()).hexdigest()
