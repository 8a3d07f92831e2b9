"""Values as YAML and JSON have them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["plain"]


def plain(value: Any, *, infinite: bool = False) -> Any:
    """Paths as texts, tuples as lists, keys as texts; a number that is not finite is `None`, but where YAML has it."""
    if isinstance(value, Mapping):
        return {str(k): plain(v, infinite=infinite) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, infinite=infinite) for v in value]
    if isinstance(value, float) and not (infinite or math.isfinite(value)):
        return None
    return str(value) if isinstance(value, Path) else value
