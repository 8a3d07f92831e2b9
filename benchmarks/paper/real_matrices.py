"""The preferences of real people that some studies are about: win counts in files that are no part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import nlhf_zoo as nz
from nlhf_zoo.data import PreferenceMatrix

DATA = Path(os.environ.get("NLHF_ZOO_DATA", Path(__file__).parents[3] / "shared" / "data"))


def data_file(name: str) -> Path:
    """One of the files.

    Raises:
        BadInput: it is not there.
    """
    if not (DATA / name).exists():
        raise nz.BadInput(f"{name} is not here; name its folder in NLHF_ZOO_DATA")
    return DATA / name


def real_matrices() -> dict[str, PreferenceMatrix]:
    """Name -> the matrix of each `pref_NAME.csv.gz`, smoothed by half a win to each side.

    Raises:
        BadInput: none is there.
    """
    files = sorted(DATA.glob("pref_*.csv.gz"))
    if not files:
        raise nz.BadInput("the real matrices (pref_*.csv.gz) are not here; name their folder in NLHF_ZOO_DATA")
    return {file.name.removeprefix("pref_").removesuffix(".csv.gz"): nz.read_matrix(str(file)) for file in files}
