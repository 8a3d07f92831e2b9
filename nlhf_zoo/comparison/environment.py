"""Where a comparison ran: versions, device, commit."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["environment"]

_PACKAGES = ("nlhf-zoo", "torch", "numpy", "scipy", "transformers", "lightning", "joblib", "ray")


def environment(command: str | None) -> Mapping[str, Any]:
    """What a reader needs to know to get the same numbers; `command` is what was typed."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "command": command,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "processors": os.cpu_count(),
        "commit": _commit(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Of the checkout that this package is part of, with "+" where files were changed; none where it is installed."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        # Only looked at: a `git status` that is stopped while it refreshes the index would leave that locked.
        looking = ["git", "--no-optional-locks", "-C", str(here.parent)]
        told = subprocess.run([*looking, *arguments], capture_output=True, text=True, timeout=10, check=True)
        return told.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
