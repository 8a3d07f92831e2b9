"""The file of verdicts: SQLite in WAL mode, shared by threads and processes of one machine."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import attrs

from nlhf_zoo.errors import BadInput
from nlhf_zoo.oracles.verdicts.owner import alive, me
from nlhf_zoo.oracles.verdicts.question import Verdict

__all__ = ["Spending", "VerdictStore"]

_FORMAT = 1
_PATIENCE = 60.0
"""Seconds to wait for another process's transaction; one takes milliseconds."""
_CHUNK = 500
"""Keys a query; SQLite takes at least 999 parameters."""
_TABLES = """
CREATE TABLE IF NOT EXISTS verdicts (
    key BLOB PRIMARY KEY, judge TEXT NOT NULL, probability REAL NOT NULL, parsed INTEGER NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS unread ON verdicts (judge) WHERE NOT parsed;
CREATE TABLE IF NOT EXISTS judges (
    judge TEXT PRIMARY KEY, identity TEXT NOT NULL, calls INTEGER NOT NULL DEFAULT 0, money REAL NOT NULL DEFAULT 0,
    dearest REAL NOT NULL DEFAULT 0, tokens_in INTEGER NOT NULL DEFAULT 0, tokens_out INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (
    key BLOB PRIMARY KEY, pid INTEGER NOT NULL, started INTEGER NOT NULL
) WITHOUT ROWID;
"""


@attrs.frozen
class Spending:
    """What a judge has cost, all runs that share the file together.

    Attributes:
        calls: requests that the server may have charged for.
        money: in the currency of the prices; a call whose answer was lost counts as the dearest one seen.
        dearest: the most that one call has cost.
        tokens_in, tokens_out: as the server counted them.
    """

    calls: int = 0
    money: float = 0.0
    dearest: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0


class VerdictStore:
    """Verdicts, what they have cost, and which are being asked for right now.

    A verdict is on the disk when `record` returns, and stays there through a SIGKILL or a power cut. Claims
    keep two threads or processes from asking the same at the same time; those of a process that has died are
    void at once. WAL mode needs shared memory: the processes must run on one machine, and the file must lie
    on a local disk.

    Args:
        path: the file, made with its folder at the first use; `None` keeps everything in memory.

    Raises:
        BadInput: by each method, where the file cannot be used: not writable, disk full, not of this kind.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        self._lock = threading.RLock()
        self._open: tuple[int, sqlite3.Connection] | None = None

    def __repr__(self) -> str:
        return f"VerdictStore({str(self.path)!r})"

    def introduce(self, judge: str, identity: str) -> None:
        """Make a judge known, with all that changes its answers, as JSON; once is enough, more do no harm."""
        with self._transaction() as run:
            run("INSERT OR IGNORE INTO judges (judge, identity) VALUES (?, ?)", (judge, identity))

    def known(self, keys: Collection[bytes]) -> dict[bytes, Verdict]:
        """Those of the verdicts that there are."""
        found: dict[bytes, Verdict] = {}
        with self._usable() as connection:
            for some in _chunks(keys):
                marks = ",".join("?" * len(some))
                rows = connection.execute(f"SELECT key, probability, parsed FROM verdicts WHERE key IN ({marks})", some)
                found |= {bytes(key): Verdict(probability, bool(parsed)) for key, probability, parsed in rows}
        wrong = next((v.probability for v in found.values() if not _is_probability(v.probability)), None)
        if wrong is not None:
            raise BadInput(f"verdict cache {self.path}: holds {wrong!r} for a probability; name another file")
        return found

    def claim(self, keys: Collection[bytes]) -> set[bytes]:
        """Those that the caller is to ask for: neither answered yet nor being asked for by anybody alive."""
        taken: set[bytes] = set()
        pid, started = me()
        with self._transaction() as run:
            for key in keys:
                if run("SELECT 1 FROM verdicts WHERE key = ?", (key,)).fetchone():
                    continue
                owner = run("SELECT pid, started FROM claims WHERE key = ?", (key,)).fetchone()
                if owner is None or not alive(owner):
                    run("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (key, pid, started))
                    taken.add(key)
        return taken

    def release(self, keys: Collection[bytes]) -> None:
        """Give up claims; those that were answered have gone with the answer."""
        if keys:
            with self._transaction() as run:
                for key in keys:
                    run("DELETE FROM claims WHERE key = ?", (key,))

    def record(self, judge: str, verdicts: Mapping[bytes, Verdict]) -> None:
        """Commit verdicts, once and for all: one that is there already stays."""
        now = time.time()
        with self._transaction(durable=True) as run:
            for key, verdict in verdicts.items():
                row = (key, judge, verdict.probability, verdict.parsed, now)
                run("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?)", row)
                run("DELETE FROM claims WHERE key = ?", (key,))

    def begin_call(self, judge: str, *, max_calls: int | None, max_money: float | None) -> float | None:
        """Count a call before it is made, in the calls and, by what the dearest so far has cost, in the money.

        Returns:
            The money set aside, or `None` where the call would go over a limit and must not be made.
        """
        with self._transaction() as run:
            spent = _spending(run("SELECT * FROM judges WHERE judge = ?", (judge,)).fetchone())
            over_calls = max_calls is not None and spent.calls >= max_calls
            over_money = max_money is not None and (
                spent.money >= max_money or spent.money + spent.dearest > max_money * (1 + 1e-9)
            )
            if over_calls or over_money:
                return None
            run("UPDATE judges SET calls = calls + 1, money = money + dearest WHERE judge = ?", (judge,))
        return spent.dearest

    def void_call(self, judge: str, aside: float) -> None:
        """A call that the server refused, and so did not charge for."""
        with self._transaction() as run:
            run("UPDATE judges SET calls = calls - 1, money = money - ? WHERE judge = ?", (aside, judge))

    def end_call(self, judge: str, aside: float, *, money: float, tokens_in: int, tokens_out: int) -> None:
        """What an answered call has cost, in place of what was set aside for it."""
        with self._transaction() as run:
            run(
                "UPDATE judges SET money = money - ? + ?, dearest = MAX(dearest, ?), tokens_in = tokens_in + ?,"
                " tokens_out = tokens_out + ? WHERE judge = ?",
                (aside, money, money, tokens_in, tokens_out, judge),
            )

    def spending(self, judge: str) -> Spending:
        with self._usable() as connection:
            return _spending(connection.execute("SELECT * FROM judges WHERE judge = ?", (judge,)).fetchone())

    def unread(self, judge: str) -> int:
        """How many verdicts of a judge are ties that stand for answers nobody can read."""
        with self._usable() as connection:
            return connection.execute(
                "SELECT COUNT(*) FROM verdicts WHERE judge = ? AND NOT parsed", (judge,)
            ).fetchone()[0]

    def close(self) -> None:
        with self._lock:
            if self._open is not None and self._open[0] == os.getpid():
                self._open[1].close()
            self._open = None

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[_Run]:
        with self._usable() as connection:
            # A verdict is paid for and waits for the disk; counts and claims need only outlive the process, and
            # the next verdict takes them to the disk with it.
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection.execute
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def _usable(self) -> Iterator[sqlite3.Connection]:
        """The connection, to one thread at a time."""
        try:
            with self._lock:
                yield self._connection()
        except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: a NUL byte in the name
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"verdict cache {self.path}: {error}; name a file on a local disk with room left") from None

    def _connection(self) -> sqlite3.Connection:
        # After a fork the parent's connection must not be touched: SQLite's locks belong to the process.
        if self._open is None or self._open[0] != os.getpid():
            self._open = os.getpid(), self._connect()
        return self._open[1]

    def _connect(self) -> sqlite3.Connection:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self.path or ":memory:", timeout=_PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            self._check_own(connection)
            _switch_to_wal(connection)
            connection.execute("BEGIN IMMEDIATE")
            for statement in _TABLES.split(";")[:-1]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_own(self, connection: sqlite3.Connection) -> None:
        """Refuse another program's database, before anything in it is changed."""
        # One statement, and so one moment: version and tables are committed together.
        found, tables = connection.execute(
            "SELECT user_version, (SELECT COUNT(*) FROM sqlite_master) FROM pragma_user_version"
        ).fetchone()
        if found != _FORMAT and (found or tables):
            raise BadInput(f"verdict cache {self.path}: of format {found}, not {_FORMAT}; name another file")


_Run = Callable[..., sqlite3.Cursor]


def _is_probability(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """The switch takes a lock for which SQLite does not wait, where several processes open a new file at once."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _spending(row: tuple[str, str, int, float, float, int, int] | None) -> Spending:
    return Spending() if row is None else Spending(*row[2:])


def _chunks(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    every = list(keys)
    return (every[start : start + _CHUNK] for start in range(0, len(every), _CHUNK))
