"""The reference policy of a finite game, read from a file."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from nlhf_zoo.data.files import open_text
from nlhf_zoo.errors import BadInput

__all__ = ["read_reference"]

_TOLERANCE = 1e-6


def read_reference(path: str | PathLike[str], labels: Sequence[str] | None, size: int) -> Tensor:
    """log pi_ref of a text file with one probability a line, or `label,probability` lines in any order.

    A first line whose last cell is a word is a header. A `.gz` file is unpacked.

    Args:
        path: the file.
        labels: the game's labels, `None` where it has none (then lines hold a probability alone).
        size: Y, the number of responses.

    Returns:
        (Y,) float64 log-probabilities, in the order of the game, normalised.

    Raises:
        BadInput: unreadable, not numbers, a probability that is not positive, a sum off 1 by more than 1e-6,
            a wrong number of lines, a label that is unknown, missing or repeated.
    """
    file = Path(path)
    lines = _cells(file)
    header = bool(lines) and _is_header(lines[0][1])
    entries = lines[1:] if header else lines
    if not entries:
        raise BadInput(f"{file}: holds no probabilities; give one a line")
    width = len(entries[0][1])
    for number, cells in entries:
        if len(cells) != width or width > 2:
            raise BadInput(f"{file}: line {number} has {len(cells)} cells; give a probability, or label,probability")
    if width == 2:
        probabilities = _by_label(file, entries, labels)
    else:
        probabilities = [_probability(file, number, cells[-1]) for number, cells in entries]
        if len(probabilities) != size:
            after = f" after the header {lines[0][1][-1]!r}" if header else ""
            raise BadInput(f"{file}: {len(probabilities)} probabilities{after} for {size} responses; give one each")
    total = math.fsum(probabilities)
    if abs(total - 1) > _TOLERANCE:
        raise BadInput(f"{file}: the probabilities add up to {total:.9g}, not 1; divide each by that sum")
    return (torch.tensor(probabilities, dtype=torch.float64) / total).log()


def _cells(file: Path) -> list[tuple[int, list[str]]]:
    try:
        with open_text(file) as handle:
            reader = csv.reader(handle)
            return [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise BadInput(f"{file}: not a text of probabilities ({error}); give one a line") from None


def _is_header(cells: list[str]) -> bool:
    try:
        float(cells[-1])
    except ValueError:
        return not any(character.isdigit() for character in cells[-1]) and cells[-1].isprintable()
    return False


def _by_label(file: Path, entries: list[tuple[int, list[str]]], labels: Sequence[str] | None) -> list[float]:
    if labels is None:
        raise BadInput(f"{file}: names responses, but the game has no labels; give one probability a line")
    given: dict[str, float] = {}
    for number, (label, text) in entries:
        if label in given:
            raise BadInput(f"{file}: line {number} gives the label {label!r} again; give every label once")
        if label not in labels:
            raise BadInput(f"{file}: line {number} names {label!r}, which is no label of the game; mend or drop it")
        given[label] = _probability(file, number, text)
    missing = [label for label in labels if label not in given]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise BadInput(f"{file}: the label {missing[0]!r}{more} has no probability; give every label once")
    return [given[label] for label in labels]


def _probability(file: Path, number: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadInput(f"{file}: line {number} holds {text[:40]!r}, not a number; give a probability") from None
    if value == 0:
        raise BadInput(
            f"{file}: line {number} gives probability 0, so that KL to the reference would be infinite; give a small"
            " positive one, or take the response out of the game"
        )
    if not (math.isfinite(value) and value > 0):
        raise BadInput(f"{file}: line {number} gives {text[:40]}; a probability is positive and finite")
    return value
