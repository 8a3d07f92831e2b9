"""results.csv and verdict.json of a study."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlhf_zoo.atomic import write_text

Row = dict[str, Any]
"""One measurement: numbers as floats, names as text, "" where there is nothing."""


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Write a tidy csv, floats to six digits, and give it as `read_rows` reads it: a verdict rests on what is kept."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _shown(value) for name, value in row.items()} for row in rows)
    write_text(path, buffer.getvalue())
    return read_rows(path)


def read_rows(path: Path) -> list[Row]:
    """The rows of a csv that `write_rows` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _read(value) for name, value in row.items()} for row in csv.DictReader(file)]


def write_verdict(path: Path, verdict: Mapping[str, Any]) -> None:
    """Write what a study found as JSON."""
    write_text(path, json.dumps(verdict, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _shown(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def _read(value: str) -> Any:
    try:
        return float(value)
    except ValueError:
        return value
