"""Who holds a claim, and whether that process still lives."""

from __future__ import annotations

import functools
import os
from pathlib import Path

__all__ = ["Owner", "alive", "me"]

Owner = tuple[int, int]
"""Process id, and when it started (0 where the system does not say): ids are used again, above all in containers."""


def me() -> Owner:
    return os.getpid(), _started(os.getpid())


def alive(owner: Owner) -> bool:
    """Whether this very process is running on this machine."""
    pid, started = owner
    if os.name != "posix":  # elsewhere signal 0 is no question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _start_time(pid) == started


@functools.cache
def _started(pid: int) -> int:
    return _start_time(pid)


def _start_time(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces
    # A zombie, killed and not yet waited for, asks no more.
    return -1 if fields[0] == "Z" else int(fields[19])
