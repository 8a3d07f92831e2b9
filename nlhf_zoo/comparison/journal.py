"""The finished cells of a comparison: a line each, appended when the cell ends, in one file a session."""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from nlhf_zoo.errors import BadInput

__all__ = ["Journal"]


class Journal:
    """The folder `cells`: each session appends to a file of its own, and reads those of all before it.

    A line is handed to the system whole as soon as its cell ends. A session that is killed, or finds the disk full,
    leaves at most a piece of a line, which readers pass over: its cell is played again. No two writers share a file,
    so that nothing is locked, and any disk will do, a network's too.

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
        text = json.dumps({"key": key, **content, "policy": policy}, separators=(",", ":"))
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
            return json.loads(file.readline())["policy"]

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
            cell = json.loads(line)
            key = cell.pop("key")
        except (ValueError, KeyError, AttributeError):
            return
        if cell.get("lasting", True) and key not in self.cells:
            cell.pop("policy", None)
            self.cells[key] = cell
            self._places[key] = path, offset


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
