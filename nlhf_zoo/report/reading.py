"""The folder of a comparison, read: whatever of it is there."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from nlhf_zoo.errors import BadInput
from nlhf_zoo.plain import from_json, from_yaml

__all__ = ["Comparison", "PlayedGame", "Runs", "read_comparison"]

Runs = Mapping[str, Mapping[str, Sequence[np.ndarray]]]
"""Metric to solver to its runs, one a seed: (n, 6) float64 in order of the step, with the columns step, queries,
tokens, seconds, value, bound; NaN where something is not known."""


@attrs.frozen(eq=False)
class PlayedGame:
    """One game of a comparison.

    Attributes:
        label: what it is called.
        runs: what was measured, tuning left out; a solver is called as it was entered, "nash_mp tuned", whichever
            hyperparameters this game's tuning chose.
        matrix: (Y, Y) P(row beats column), `None` where it is not written out.
        labels: Y names.
        equilibrium: (Y,) probabilities, `None` where it is not known.
        summary: its part of summary.json, empty where that is missing.
        win_rates: rows of win_rates.parquet.
        samples: rows of samples.jsonl.
    """

    label: str
    runs: Runs
    matrix: np.ndarray | None = None
    labels: tuple[str, ...] = ()
    equilibrium: np.ndarray | None = None
    summary: Mapping[str, Any] = attrs.field(factory=dict)
    win_rates: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[Mapping[str, Any]] = ()

    def claimed(self, metric: str) -> dict[str, np.ndarray]:
        """Solver to its (n, 6) measurements that a bound is claimed of, all seeds, columns as in `Runs`.

        Those of step 0 are left out: a bound begins at what was measured there.
        """
        every = {solver: np.concatenate(runs) for solver, runs in self.runs.get(metric, {}).items()}
        kept = {solver: rows[np.isfinite(rows[:, 5]) & (rows[:, 0] > 0)] for solver, rows in every.items()}
        return {solver: rows for solver, rows in kept.items() if len(rows)}


@attrs.frozen(eq=False)
class Comparison:
    """What a comparison left in its folder.

    Attributes:
        games: in the order in which they were measured.
        names: what each solver is called to its registered name.
        summary: summary.json, empty where it is missing.
        config: config.yaml, the same.
        environment: environment.json, the same.
    """

    games: Sequence[PlayedGame]
    names: Mapping[str, str]
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]


def read_comparison(folder: Path) -> Comparison:
    """Read what is there; only results.parquet must be.

    Raises:
        BadInput: no such folder, no results in it, or a file of it cannot be read.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: is not a folder; give the one that nlhf-zoo compare --out wrote")
    columns = _table(folder / "results.parquet", _COLUMNS)
    if columns is None:
        raise BadInput(
            f"{folder}: holds no results.parquet; give the folder of a comparison, or let nlhf-zoo compare finish it"
        )
    runs = _runs(columns)
    summary = _json(folder / "summary.json")
    boards = {label: board for path in sorted((folder / "games").glob("*.npz")) for label, board in [_board(path)]}
    rates, samples = _rows(folder / "win_rates.parquet"), _lines(folder / "samples.jsonl")
    told = _mapping(folder / "summary.json", summary.get("games") or {})
    for part in (*told.values(), *(summary.get(name) for name in ("cells", "overall"))):
        _mapping(folder / "summary.json", part or {})
    games = dict.fromkeys([*columns["game"].tolist(), *told])
    reported = columns["role"] == "run"
    return Comparison(
        games=[
            PlayedGame(
                label=game,
                runs=runs.get(game, {}),
                summary=told.get(game) or {},
                win_rates=[row for row in rates if row.get("game", game) == game],
                samples=[row for row in samples if row.get("game", game) == game],
                **boards.get(game, {}),
            )
            for game in games
        ],
        names=dict(zip(*(columns[name][reported].tolist() for name in ("entry", "name")), strict=True)),
        summary=summary,
        config=_yaml(folder / "config.yaml"),
        environment=_json(folder / "environment.json"),
    )


_SPENT = ("step", "queries", "tokens", "seconds", "value", "bound")
_COLUMNS = ("game", "entry", "name", "seed", "role", "metric", *_SPENT)


def _runs(columns: Mapping[str, np.ndarray]) -> dict[str, dict[str, dict[str, list[np.ndarray]]]]:
    numbers = np.stack([columns[name].astype(np.float64) for name in _SPENT], axis=1)
    keys = [columns[name] for name in ("game", "metric", "entry", "seed")]
    codes = [np.unique(key, return_inverse=True)[1] for key in keys]
    order = np.lexsort((numbers[:, 0], *reversed(codes)))
    # An infinite gap is no point of a curve.
    order = order[(columns["role"][order] == "run") & np.isfinite(numbers[order, 4])]
    found: dict[str, dict[str, dict[str, list[np.ndarray]]]] = {}
    if not len(order):
        return found
    sorted_codes = np.stack([code[order] for code in codes])
    starts = np.flatnonzero(np.any(np.diff(sorted_codes, axis=1, prepend=-1) != 0, axis=0))
    pieces = np.split(order, starts[1:])
    # In the order of the file, which is the order that was asked for.
    for piece in sorted(pieces, key=lambda rows: int(rows.min())):
        game, metric, solver, _ = (str(key[piece[0]]) for key in keys)
        found.setdefault(game, {}).setdefault(metric, {}).setdefault(solver, []).append(numbers[piece])
    return found


def _board(path: Path) -> tuple[str, dict[str, Any]]:
    """The label of a game, and what is known of it."""
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = dict(file)
        matrix = arrays.get("P")
        size = len(matrix) if matrix is not None else len(arrays.get("equilibrium", ()))
        labels = tuple(map(str, arrays.get("labels", [f"response {i}" for i in range(size)])))
        mass = np.exp(arrays["equilibrium"]) if "equilibrium" in arrays else None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from None
    shapes = [] if matrix is None else [matrix.shape == (size, size)]
    shapes += [] if mass is None else [mass.shape == (size,)]
    if not all(shapes) or (shapes and len(labels) != size):
        raise _unreadable(path, ValueError("matrix, equilibrium and labels are not of one size"))
    label = str(arrays["label"]) if "label" in arrays else path.stem
    return label, {"matrix": matrix, "labels": labels, "equilibrium": mass}


def _table(path: Path, columns: Sequence[str]) -> dict[str, np.ndarray] | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise BadInput(f"{path}: has no column {missing[0]!r}; it is not what nlhf-zoo compare writes")
    return {name: table[name].to_numpy() for name in columns}


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return []
    try:
        return pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


def _json(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        return _mapping(path, from_json(text)) if text else {}
    except BadInput:
        raise
    except ValueError as error:
        raise _unreadable(path, error) from None


def _lines(path: Path) -> list[dict[str, Any]]:
    # Split at line feeds alone: a text of a model may hold any other separator.
    try:
        return [_mapping(path, from_json(line)) for line in _text(path).split("\n") if line.strip()]
    except BadInput:
        raise
    except ValueError as error:
        raise _unreadable(path, error) from None


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return _mapping(path, from_yaml(_text(path)) or {})
    except BadInput:
        raise
    except ValueError as error:
        raise _unreadable(path, error) from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _mapping(path: Path, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise BadInput(
        f"{path}: holds {type(value).__name__} where a mapping is needed; write it again with the comparison"
    )


def _unreadable(path: Path, error: Exception) -> BadInput:
    reason = " ".join(str(error).split())[:160]
    return BadInput(f"{path}: cannot be read ({reason}); write it again with the comparison, or remove it")
