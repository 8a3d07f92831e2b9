"""What the studies' figures share: a plain style, and small PNG files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlhf_zoo.atomic import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST = 120_000
"""Bytes of a figure that is kept."""

_STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "lines.linewidth": 1.3, "legend.frameon": False, "figure.constrained_layout.use": True,
}  # fmt: skip


@contextmanager
def figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure in the studies' style, size in inches; draw and save it within the block."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height))


def save(figure: Figure, path: Path) -> None:
    """Write a PNG of 128 colours, less than `LARGEST` bytes: at 160 dots an inch, or fewer where that is too large."""
    from PIL import Image

    for dpi in (160, 130, 100, 80):
        drawn, buffer = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png", dpi=dpi)
        Image.open(drawn).convert("RGB").quantize(128).save(buffer, format="png", optimize=True)
        if buffer.tell() < LARGEST:
            write_bytes(path, buffer.getvalue())
            return
    raise ValueError(f"{path.name} has {buffer.tell()} bytes at {dpi} dots an inch; draw less")
