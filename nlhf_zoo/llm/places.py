"""Where a model lies: a folder here, or an id on the hub. What can be neither is said at once.

Asked for an id that is really a misspelt path, the hub's client tries for half a minute where there is no network.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from nlhf_zoo.errors import BadInput

__all__ = ["require_place", "similar_folders"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def require_place(what: str, source: str) -> None:
    """Pass where `source` is there, or may be on the hub: one name, or two with a slash between.

    Raises:
        BadInput: it is the path of nothing; similar names beside it are suggested.
    """
    if Path(source).exists() or (_HUB_ID.fullmatch(source) and not source.endswith(("/", ".safetensors", ".bin"))):
        return
    raise BadInput(f"{what}: there is no folder {source!r}{similar_folders(source) or '; give a folder or a hub id'}")


def similar_folders(source: str) -> str:
    """ "; did you mean ...?" with folders that are called nearly so; an empty text where there are none."""
    path = Path(source).expanduser()
    if path.is_dir():
        return f"; write out {str(path)!r}"
    beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(str(path.parent / name)) for name in near)}?" if near else ""
