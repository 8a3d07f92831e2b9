"""The file formats of a preference matrix, each brought to one table of numbers with labels."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np

from nlhf_zoo.data.files import file_format, open_text, parsing, require_file
from nlhf_zoo.errors import BadInput
from nlhf_zoo.plain import from_json

__all__ = ["Table", "read_table"]

_LONG_NEEDED = ("i", "j", "wins_i", "wins_j")


@attrs.frozen(eq=False)
class Table:
    """(Y, Y) float64 numbers as a file gives them; `kind` is `None` where the file does not say what they are."""

    values: np.ndarray
    labels: tuple[str, ...] | None = None
    kind: Literal["probabilities", "counts"] | None = None


def read_table(path: Path) -> Table:
    """Read any of the formats; nothing but numbers, rectangular shape and the file's own form is checked.

    Raises:
        BadInput: unreadable, unknown suffix, a cell that is no number, a malformed long form.
    """
    readers: dict[str, Callable[[Path], Table]] = {
        "csv": _read_csv,
        "json": _read_json,
        "npz": _read_npz,
        "npy": _read_npy,
        "parquet": _read_parquet,
    }
    table = readers[file_format(path, plain=("npz", "npy", "parquet"), zipped=("csv", "json"))](path)
    if table.values.ndim != 2:
        raise BadInput(f"{path}: the array has {table.values.ndim} dimension(s); one game is a square of 2")
    return table


def _read_csv(path: Path) -> Table:
    with open_text(path) as handle:
        text = handle.read()
    try:
        # The quick way, in C, for the plain square; everything else is looked at row by row.
        if text.strip():
            plain: np.ndarray = np.loadtxt(io.StringIO(text), delimiter=",", comments=None, ndmin=2)
            if plain.shape[0] == plain.shape[1]:
                return Table(plain)
    except ValueError:
        pass
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text)) if any(map(str.strip, row))]
    except csv.Error as error:
        raise BadInput(f"{path}: not a csv file ({error})") from None
    if not rows:
        raise BadInput(f"{path}: holds nothing but blank lines; give a square of numbers")
    _refuse_other_separators(path, text)
    if {"wins_i", "wins_j"} <= set(rows[0]):
        return _long_form(str(path), _columns(str(path), rows))
    return _square_of_text(str(path), rows)


_SEPARATORS = {";": ("semicolons", ";"), "\t": ("tabs", "\\t")}


def _refuse_other_separators(path: Path, text: str) -> None:
    """A label may hold one; what stands in every line, rows of numbers too, and as often in each, separates."""
    lines = [line for line in text.splitlines() if line.strip()]
    for separator, (name, written) in _SEPARATORS.items():
        counts = {line.count(separator) for line in lines}
        if len(lines) > 1 and len(counts) == 1 and counts != {0}:
            raise BadInput(
                f"{path}: its cells are separated by {name}; save it with commas, and with points in decimals:"
                f" tr ',{written}' '.,' < {path.name} > commas.csv"
            )


def _columns(where: str, rows: list[list[str]]) -> dict[str, list[str]]:
    header, *body = rows
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise BadInput(f"{where}: row {number} has {len(row)} cells, the header {len(header)}; mend that row")
    return {name: [row[k] for row in body] for k, name in enumerate(header)}


def _square_of_text(where: str, rows: list[list[str]]) -> Table:
    first, height = rows[0], len(rows)
    texts = [not _is_number(cell) for cell in first]
    column = [row[0] if row else "" for row in rows[1:]]
    if len(first) == height and texts[0] and _repeats(first, column):
        labels, names, body = first[1:], column, [row[1:] for row in rows[1:]]
    elif rows[1:] and all(len(row) == len(first) + 1 for row in rows[1:]) and len(first) == height - 1:
        labels, names, body = first, column, [row[1:] for row in rows[1:]]
    elif all(texts) or len(first) == height - 1:
        labels, names, body = first, None, rows[1:]
    else:
        labels, names, body = None, None, rows
    if labels is not None and names is not None and list(labels) != list(names):
        k = next(k for k, pair in enumerate(zip(labels, names, strict=True)) if pair[0] != pair[1])
        raise BadInput(
            f"{where}: column {k + 1} is labelled {labels[k]!r} but row {k + 1} {names[k]!r}; put rows and columns"
            " in the same order"
        )
    if labels is not None and "" in labels:
        raise BadInput(f"{where}: the label of column {labels.index('') + 1} is empty; name every response")
    values = _numbers(where, body)
    return Table(values, None if labels is None else tuple(labels))


def _repeats(header: list[str], column: list[str]) -> bool:
    """Whether the first column of a square table stands for row labels, rather than for the first response."""
    texts_above, texts_aside = (not all(map(_is_number, cells)) for cells in (header[1:], column))
    return header[0] == "" or header[1:] == column or (texts_above and texts_aside)


def _numbers(where: str, rows: Sequence[Sequence[Any]]) -> np.ndarray:
    width = len(rows[0]) if rows else 0
    values = np.empty((len(rows), width))
    for i, row in enumerate(rows):
        if len(row) != width:
            raise BadInput(f"{where}: row {i + 1} has {len(row)} cells, row 1 has {width}; give a square")
        try:
            values[i] = [float(cell) for cell in row]
        except (TypeError, ValueError, OverflowError):
            k = next(k for k, cell in enumerate(row) if not _is_number(cell))
            fault = "is empty" if row[k] in ("", None) else f"holds {str(row[k])[:40]!r}"
            raise BadInput(f"{where}: row {i + 1}, column {k + 1} {fault}; a number is needed there") from None
    return values


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _long_form(where: str, columns: Mapping[str, Sequence[Any]]) -> Table:
    """One row a pair: i, j, wins_i, wins_j, and optionally name_i, name_j and ties, half of one to each."""
    missing = [name for name in _LONG_NEEDED if name not in columns]
    if missing:
        raise BadInput(f"{where}: the long form lacks the column {missing[0]}; it needs {', '.join(_LONG_NEEDED)}")
    count = len(columns["i"])
    if not count:
        raise BadInput(f"{where}: a header and no pairs; give one row a compared pair")
    firsts, seconds = ([_index(where, row, columns[side][row]) for row in range(count)] for side in "ij")
    size = max(*firsts, *seconds) + 1
    unseen = set(range(size)) if size <= 2 * count else set(range(2 * count + 1))
    unseen -= {*firsts, *seconds}
    if unseen:
        raise BadInput(
            f"{where}: no pair has the response {min(unseen)}, but one has {size - 1}; number responses from 0"
            " without gaps"
        )
    wins = np.zeros((size, size))
    seen: set[tuple[int, int]] = set()
    for row, (i, j) in enumerate(zip(firsts, seconds, strict=True)):
        if i == j:
            raise BadInput(f"{where}: pair {row + 1} compares response {i} with itself; drop it")
        if (min(i, j), max(i, j)) in seen:
            raise BadInput(f"{where}: pair {row + 1} gives responses {i} and {j} again; add its counts to the first")
        seen.add((min(i, j), max(i, j)))
        ties = _count(where, row, "ties", columns["ties"][row]) if "ties" in columns else 0.0
        wins[i, j] = _count(where, row, "wins_i", columns["wins_i"][row]) + ties / 2
        wins[j, i] = _count(where, row, "wins_j", columns["wins_j"][row]) + ties / 2
    return Table(wins, _names(where, columns, firsts, seconds, size), "counts")


def _index(where: str, row: int, cell: Any) -> int:
    if _is_number(cell) and math.isfinite(float(cell)) and float(cell) >= 0 and float(cell) == int(float(cell)):
        return int(float(cell))
    raise BadInput(f"{where}: pair {row + 1} has the index {str(cell)[:40]!r}; i and j are whole numbers from 0")


def _count(where: str, row: int, name: str, cell: Any) -> float:
    if _is_number(cell) and math.isfinite(float(cell)) and float(cell) >= 0:
        return float(cell)
    raise BadInput(f"{where}: pair {row + 1} has {name} = {str(cell)[:40]!r}; a count is a number >= 0")


def _names(
    where: str, columns: Mapping[str, Sequence[Any]], firsts: list[int], seconds: list[int], size: int
) -> tuple[str, ...] | None:
    if "name_i" not in columns or "name_j" not in columns:
        return None
    names: dict[int, str] = {}
    for side, indices in (("name_i", firsts), ("name_j", seconds)):
        for row, index in enumerate(indices):
            name = "" if columns[side][row] is None else str(columns[side][row])
            if names.setdefault(index, name) != name:
                raise BadInput(
                    f"{where}: pair {row + 1} calls response {index} {name!r}, another pair {names[index]!r};"
                    " give a response one name"
                )
            if not name:
                raise BadInput(f"{where}: pair {row + 1} has no {side}; name every response, or drop both name columns")
    return tuple(names[k] for k in range(size))


def _read_json(path: Path) -> Table:
    with open_text(path) as handle:
        text = handle.read()
    try:
        content = from_json(text)
    except ValueError as error:
        raise BadInput(f"{path}: not json ({error})") from None
    if not isinstance(content, Mapping):
        return Table(_nested(path, content))
    kind, key = _named_array(path, content)
    return Table(_nested(path, content[key]), _labels(path, content.get("labels")), kind)


def _nested(path: Path, content: Any) -> np.ndarray:
    if not (isinstance(content, list) and all(isinstance(row, list) for row in content)):
        raise BadInput(f"{path}: the matrix must be a list of rows, each a list of numbers")
    for i, row in enumerate(content):
        for k, cell in enumerate(row):
            if isinstance(cell, bool) or not isinstance(cell, int | float):
                raise BadInput(
                    f"{path}: row {i + 1}, column {k + 1} holds {json.dumps(cell)[:40]}; a number is needed there"
                )
    return _numbers(str(path), content)


def _named_array(path: Path, names: Mapping[str, Any]) -> tuple[Literal["probabilities", "counts"] | None, str]:
    """Which array is the matrix, and what its name says about it."""
    arrays = [name for name in names if name not in ("labels", "name", "description")]
    known = [name for name in arrays if name in ("probabilities", "matrix", "wins", "counts")]
    chosen = known or arrays
    if len(chosen) != 1:
        raise BadInput(
            f"{path}: exactly one array called probabilities, matrix, wins or counts is needed, found"
            f" {', '.join(map(repr, chosen)) or 'none'}"
        )
    key = chosen[0]
    if key in ("wins", "counts"):
        return "counts", key
    return ("probabilities" if key == "probabilities" else None), key


def _labels(path: Path, labels: Any) -> tuple[str, ...] | None:
    if labels is None:
        return None
    if isinstance(labels, list | tuple) and all(
        isinstance(x, str | int) and not isinstance(x, bool) and x != "" for x in labels
    ):
        return tuple(map(str, labels))
    raise BadInput(f"{path}: labels must be a list of names, one a response, none empty")


def _real(path: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iuf":
        raise BadInput(f"{path}: the array holds {array.dtype}, not real numbers; save it as float64")
    return array.astype(np.float64)


@contextlib.contextmanager
def _unpickled(path: Path) -> Iterator[None]:
    """numpy's advice, allow_pickle=True, would run whatever code is in the file."""
    try:
        yield
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise BadInput(
            f"{path}: holds a pickled array of Python objects, or is no numpy file; pickles are not read. Save numbers"
            " as numpy.save(path, array.astype(float)), and labels as array.astype(str)"
        ) from None


def _read_npz(path: Path) -> Table:
    require_file(path)
    # An open handle, because numpy leaves open the files that it opens itself and cannot read.
    with parsing(path, "npz file"), _unpickled(path), path.open("rb") as handle:
        content = np.load(handle, allow_pickle=False)
        if isinstance(content, np.ndarray):
            raise BadInput(f"{path}: is an npy file; name it .npy")
        with content:
            kind, key = _named_array(path, dict.fromkeys(content.files))
            labels = content["labels"].tolist() if "labels" in content.files else None
            return Table(_real(path, content[key]), _labels(path, labels), kind)


def _read_npy(path: Path) -> Table:
    require_file(path)
    with parsing(path, "npy file"), _unpickled(path), path.open("rb") as handle:
        content = np.load(handle, allow_pickle=False)
        if not isinstance(content, np.ndarray):
            content.close()
            raise BadInput(f"{path}: is an npz file; name it .npz")
        return Table(_real(path, content))


def _read_parquet(path: Path) -> Table:
    require_file(path)
    with parsing(path, "parquet file"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.ParquetFile(path).read()
        if {"wins_i", "wins_j"} <= set(table.column_names):
            return _long_form(str(path), {name: table.column(name).to_pylist() for name in set(table.column_names)})
        texts = [f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
        if len(texts) > 1:
            raise BadInput(f"{path}: the columns {texts[0]!r} and {texts[1]!r} hold text; a matrix holds numbers")
        labels = [name for name in table.column_names if name not in texts]
        if texts and table.column(texts[0]).to_pylist() != labels:
            raise BadInput(f"{path}: the names in column {texts[0]!r} are not the other columns' in the same order")
        columns = [table.column(name).to_numpy() for name in labels]
    values = np.stack([_real(path, column) for column in columns], axis=1) if columns else np.empty((0, 0))
    unnamed = labels == [str(k) for k in range(len(labels))]
    return Table(values, None if unnamed else tuple(labels))
