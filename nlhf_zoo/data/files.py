"""Opening what a person named: every way in which a file can be unreadable becomes one line."""

from __future__ import annotations

import contextlib
import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from nlhf_zoo.errors import BadInput

__all__ = ["file_format", "open_text", "parsing", "require_file"]


def file_format(path: Path, *, plain: Sequence[str], zipped: Sequence[str]) -> str:
    """The format by the suffix, lower case and without dot; `.gz` is accepted after those in `zipped`.

    Raises:
        BadInput: a suffix that is in neither list.
    """
    suffixes = [suffix.lower().removeprefix(".") for suffix in path.suffixes]
    if suffixes and suffixes[-1] == "gz":
        if len(suffixes) > 1 and suffixes[-2] in zipped:
            return suffixes[-2]
    elif suffixes and suffixes[-1] in (*plain, *zipped):
        return suffixes[-1]
    known = ", ".join([*(f".{s}" for s in zipped), *(f".{s}" for s in plain)])
    raise BadInput(
        f"{path}: cannot tell the format by the suffix {''.join(path.suffixes[-2:]) or '(none)'!r};"
        f" name it {known} (and .gz after {', '.join(f'.{s}' for s in zipped)})"
    )


def require_file(path: Path) -> None:
    """Pass where `path` is a file with something in it that may be read.

    Raises:
        BadInput: missing, a folder, not permitted, or empty.
    """
    try:
        with path.open("rb") as handle:
            empty = os.fstat(handle.fileno()).st_size == 0
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise BadInput(f"{path}: is a folder; name a file in it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{str(path)!r}: cannot be opened: {reason}") from None
    if empty:
        raise BadInput(f"{path}: the file is empty; give it content")


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file, gzipped where the name ends in `.gz`; what goes wrong while it is read is one line too.

    Raises:
        BadInput: missing, a folder, empty, not gzip, or not UTF-8 text.
    """
    require_file(path)
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        # utf-8-sig drops the byte-order mark that spreadsheets write before the first cell.
        with opener(path, "rt", encoding="utf-8-sig", newline="") as handle:
            yield handle  # type: ignore[misc]  # "rt" makes a text handle of both openers
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{path}: not a sound gzip file ({error}); make it again, or drop the suffix .gz") from None


@contextlib.contextmanager
def parsing(path: Path, what: str) -> Iterator[None]:
    """Around a foreign parser: whatever it raises says that the file is not what it claims to be."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # parsers raise anything on garbage: KeyError, EOFError, MemoryError, their own
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: not a readable {what} ({type(error).__name__}: {reason})") from None
