"""The folder of a comparison: what lies where, and how it is read and written.

config.yaml             the resolved settings
plan.json               what is compared, by which a later command is known to go on with it
environment.json        versions, device, commit, command line, when
cells/<session>.jsonl   one line a finished cell: what it was, its measurements, how it ended, its final policy
results.parquet         tidy: one row a measurement, the columns in `COLUMNS`
games/<slug>.npz        P, labels, reference, equilibrium (both log-probabilities), beta, kind, and for win
                        counts `wins`; of a game drawn from a seed, the one of the first seed
win_rates.parquet       language models: row, column, judge, mean, low, high, n, game (`WIN_RATE_COLUMNS`)
samples.jsonl           language models: game, policy, prompt, text
pools/<key>.npz         language models: every verdict of the policies that met
runs/<key>/             language models: the training run's own folder
summary.json            per game: table, ranks, verdict, tuning, uncertainty of the equilibrium
report.html             the page
.lock                   held by the process that is at work here
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlhf_zoo.atomic import write_bytes, write_text

__all__ = ["COLUMNS", "WIN_RATE_COLUMNS", "Folder", "slug"]

COLUMNS: Mapping[str, str] = {
    "game": "string",
    "solver": "string",
    "entry": "string",
    "name": "string",
    "options": "string",
    "seed": "int64",
    "role": "string",
    "step": "int64",
    "queries": "int64",
    "tokens": "int64",
    "seconds": "float64",
    "metric": "string",
    "value": "float64",
    "bound": "float64",
    "cell": "string",
}
"""Of results.parquet, with their Arrow types.

game: the label of a game; solver: the label of a solver with its hyperparameters, "nash_mp eta=0.1"; entry: what the
contestant is called, "nash_mp tuned"; name: the registered name; options: JSON text; role: "run", or "tuning" on
seeds that no run has; step, queries, tokens, seconds: spent so far (seconds of the solver alone, measurements left
out); metric: "duality_gap",
"kl_to_equilibrium", "span_to_equilibrium", and for language models "win_rate_training", "win_rate_held_out",
"kl_to_reference", "length"; bound: what a guarantee of this solver claims of this metric here, null where none
does; cell: the key of the cell that it comes from.
"""

WIN_RATE_COLUMNS: Mapping[str, str] = {
    "game": "string",
    "row": "string",
    "column": "string",
    "judge": "string",
    "mean": "float64",
    "low": "float64",
    "high": "float64",
    "n": "int64",
}
"""Of win_rates.parquet: how often the policy `row` beats the policy `column` (a cell's solver label and seed, or
"reference") under the judge "training" or "held_out", with a 95 % interval from n comparisons."""


def slug(label: str) -> str:
    """A file name for a label: readable, and distinct for distinct labels."""
    plain = re.sub(r"[^A-Za-z0-9.=+-]+", "_", label).strip("_.")[:80]
    return plain if plain == label else f"{plain or 'game'}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


class Folder:
    """The files of one comparison."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def make(self) -> None:
        for part in (self.cells, self.root / "games"):
            part.mkdir(parents=True, exist_ok=True)

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def cells(self) -> Path:
        return self.root / "cells"

    def game(self, label: str) -> Path:
        return self.root / "games" / f"{slug(label)}.npz"

    def run(self, key: str) -> Path:
        return self.root / "runs" / key

    def write_json(self, name: str, content: Any) -> None:
        write_text(self.root / name, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_yaml(self, name: str, content: Mapping[str, Any]) -> None:
        import yaml

        write_text(self.root / name, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))

    def write_npz(self, path: Path, arrays: Mapping[str, Any]) -> None:
        import numpy as np

        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_bytes(path, buffer.getvalue())

    def write_table(self, name: str, columns: Mapping[str, str], values: Mapping[str, Any]) -> None:
        """Columns of equal length, Arrow's or lists, as a parquet file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([(column, pa.type_for_alias(kind)) for column, kind in columns.items()])
        table = pa.table({column: values[column] for column in columns}, schema=schema)
        sink = io.BytesIO()
        pq.write_table(table, sink)
        write_bytes(self.root / name, sink.getvalue())
