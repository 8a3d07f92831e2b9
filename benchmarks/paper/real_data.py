"""Where the studies find real preferences: in the folder that NLHF_ZOO_DATA names, none of which is shipped."""

from __future__ import annotations

import os
from pathlib import Path

from nlhf_zoo.errors import BadInput

__all__ = ["DataAbsent", "data_file"]

DATA = Path(os.environ.get("NLHF_ZOO_DATA", Path(__file__).parents[3] / "shared" / "data"))


class DataAbsent(BadInput):
    """The study needs a file that is not there."""


def data_file(name: str) -> Path:
    """Raises `DataAbsent`, a `BadInput`, where it is not."""
    path = DATA / name
    if not path.exists():
        raise DataAbsent(f"needs {name} in the folder that NLHF_ZOO_DATA names")
    return path
