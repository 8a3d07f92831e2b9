"""The finished cells of a comparison: a line each, appended when the cell ends, in one file a session."""

from __future__ import annotations

import base64
import datetime
import json
import secrets
import struct
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from nlhf_zoo.errors import BadInput
from nlhf_zoo.plain import from_json

__all__ = ["Journal"]


class Journal:
    """The folder `cells`: each session appends to a file of its own, and reads those of all before it.

    A line is handed to the system whole as soon as its cell ends. A session that is killed, or finds the disk full,
    leaves at most a piece of a line, which readers pass over: its cell is played again. No two writers share a file,
    so that nothing is locked, and any disk will do, a network's too.

    A line is JSON. A list of floats is {"float64": base64 of its little-endian bytes}, since their digits would take
    most of the time that a line does. Lists of digits, as earlier versions wrote them, are read too.

    Attributes:
        cells: key -> what is known of the cell, without its policy; of cells that need not be tried again.

    Raises:
        BadInput: the folder is an earlier version's, of one file a cell.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cells: dict[str, Mapping[str, Any]] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        self._file: FileIO | None = None
        if next(root.glob("*.json"), None) is not None:
            raise BadInput(f"{root.parent}: was written by an earlier version of nlhf-zoo compare; give a new folder")
        for path in sorted(root.glob("*.jsonl")):
            for offset, line in _lines(path):
                self._note(line, path, offset)

    def append(self, key: str, content: Mapping[str, Any], policy: Any = None) -> None:
        """Write down a cell that has ended.

        Args:
            content: in JSON's types, and NaN and infinities, since a gap may well be infinite.
            policy: the same, and only read again when it is asked for.

        Raises:
            OSError: the disk is full, or the folder has gone; it names the file.
        """
        file = self._own()
        place = Path(str(file.name)), file.tell()
        text = json.dumps(_packed({"key": key, **content, "policy": policy}), separators=(",", ":"))
        _write(file, f"{text}\n".encode())
        self.cells[key] = content
        self._places[key] = place

    def policy(self, key: str) -> Any:
        """The policy that was written down with a cell.

        Raises:
            KeyError: no such cell.
        """
        path, offset = self._places[key]
        with path.open("rb") as file:
            file.seek(offset)
            return json.loads(file.readline(), object_hook=_unpacked)["policy"]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _own(self) -> FileIO:
        """This session's file, made for its first cell."""
        if self._file is None:
            begun = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
            # Unbuffered: what cannot be written must not be tried again when the file is closed.
            self._file = FileIO(self.root / f"{begun}-{secrets.token_hex(4)}.jsonl", "x")
        return self._file

    def _note(self, line: bytes, path: Path, offset: int) -> None:
        try:
            cell = from_json(line, object_hook=_unpacked)
            key = cell.pop("key")
        except (ValueError, KeyError, TypeError, AttributeError, struct.error):
            return
        if cell.get("lasting", True) and key not in self.cells:
            cell.pop("policy", None)
            self.cells[key] = cell
            self._places[key] = path, offset


def _packed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _packed(item) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    kinds = set(map(type, value))
    if kinds == {float}:
        return {"float64": base64.b64encode(struct.pack(f"<{len(value)}d", *value)).decode()}
    return [_packed(item) for item in value] if kinds & {dict, list} else value


def _unpacked(found: dict[str, Any]) -> Any:
    if found.keys() != {"float64"}:
        return found
    data = base64.b64decode(found["float64"])
    return list(struct.unpack(f"<{len(data) // 8}d", data))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    offset = 0
    with path.open("rb") as file:
        for line in file:
            yield offset, line
            offset += len(line)


def _write(file: FileIO, line: bytes) -> None:
    rest = memoryview(line)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file.name)) from error
