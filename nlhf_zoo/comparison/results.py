"""From finished cells to results.parquet: tidy, one row a measurement."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nlhf_zoo.comparison.folder import COLUMNS, Folder
from nlhf_zoo.comparison.tasks import Run

__all__ = ["write_results"]

Cells = Sequence[tuple[Run, Mapping[str, Any]]]

_OF_A_CELL: Mapping[str, Callable[[Run], str]] = {
    "game": lambda run: run.game.label,
    "solver": lambda run: run.solver,
    "entry": lambda run: run.entry,
    "name": lambda run: run.name,
    "options": lambda run: json.dumps(dict(run.options)),
    "role": lambda run: run.role,
    "cell": lambda run: run.key,
}
_OF_A_POINT = ("step", "queries", "tokens", "seconds")


def write_results(folder: Folder, cells: Cells) -> None:
    """All measurements of all cells that have some, in the order of the cells."""
    import pyarrow as pa

    ended = [(run, cell["rows"]) for run, cell in cells if "rows" in cell]
    lengths = [len(rows["step"]) * len(rows["metrics"]) for _, rows in ended]
    columns: dict[str, Any] = {
        name: _repeated([of(run) for run, _ in ended], lengths) for name, of in _OF_A_CELL.items()
    }
    columns["seed"] = pa.array(np.repeat(np.array([run.seed for run, _ in ended], dtype=np.int64), lengths))
    for name in _OF_A_POINT:
        kind = np.float64 if name == "seconds" else np.int64
        columns[name] = pa.array(_joined([rows[name] * len(rows["metrics"]) for _, rows in ended], kind))
    blocks = [(rows, metric) for _, rows in ended for metric in rows["metrics"]]
    columns["metric"] = _repeated([metric for _, metric in blocks], [len(rows["step"]) for rows, _ in blocks])
    columns["value"] = pa.array(_joined([rows["metrics"][metric] for rows, metric in blocks], np.float64))
    none = [np.nan]
    bounds = [rows["bounds"].get(metric, none * len(rows["step"])) for rows, metric in blocks]
    columns["bound"] = pa.array(_joined(bounds, np.float64), from_pandas=True)
    folder.write_table("results.parquet", COLUMNS, columns)


def _repeated(texts: Sequence[str], lengths: Sequence[int]) -> Any:
    import pyarrow as pa

    distinct = {text: code for code, text in enumerate(dict.fromkeys(texts))}
    codes = np.repeat(np.array([distinct[text] for text in texts], dtype=np.int32), lengths)
    return pa.DictionaryArray.from_arrays(codes, pa.array(list(distinct), pa.string())).cast(pa.string())


def _joined(lists: Sequence[Sequence[float]], kind: Any) -> Any:
    return np.concatenate([np.empty(0, kind), *(np.asarray(one, kind) for one in lists)])
