"""The terminal: tables that stay whole in a pipe, and a progress bar where someone watches."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["console", "cut", "number", "printable", "progress_bar", "table"]

_AS_WIDE_AS_NEEDED = 100_000
_APART, _SILENT = 2.0, 30.0
"""Seconds: plain lines of progress are at least so far apart, and come at the latest after so long."""


def console() -> Console:
    """stdout for people. In a pipe: no colours, no line broken. Labels from files are never read as markup."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="replace")
    width = None if sys.stdout.isatty() else _AS_WIDE_AS_NEEDED
    return Console(width=width, markup=False, highlight=False, emoji=False)


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> Table:
    """A light table; columns in `right` are numbers."""
    from rich import box
    from rich.table import Table

    called = None if title is None else printable(title)
    made = Table(title=called, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(printable(column), justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(printable, row))
    return made


def printable(text: str) -> str:
    """Without control characters, which could steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def cut(text: str, length: int = 60) -> str:
    """At most so many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def number(value: Any) -> str:
    """A measurement with three digits, a dash where there is none."""
    return "-" if value is None else f"{value:.3g}"


@contextlib.contextmanager
def progress_bar(title: str, total: int | None, lines: bool = False) -> Iterator[Callable[..., None] | None]:
    """A bar on stderr, moved by `move(done, total=, title=)`; `None` where stderr is no terminal.

    Args:
        lines: where it is none, a plain line now and then instead: at every tenth of the whole, or after half a
            minute.
    """
    if not sys.stderr.isatty():
        yield _plain_lines(title) if lines else None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        shown = 0.0

        def move(done: int, *, total: int | None = None, title: str | None = None) -> None:
            nonlocal shown
            # A step on a small table takes less time than a stroke of the bar.
            if (now := time.monotonic()) - shown > 0.1:
                shown = now
                bar.update(task, completed=done, total=total, description=title)

        yield move


def _plain_lines(title: str) -> Callable[..., None]:
    begun = at = time.monotonic()
    told: int | None = None

    def move(done: int, *, total: int) -> None:
        nonlocal at, told
        told = done if told is None else told
        now = time.monotonic()
        tenth = (done - told) * 10 >= total and now - at >= _APART
        if done > told and (tenth or now - at >= _SILENT):
            at, told = now, done
            print(f"{title}: {done:,} of {total:,} done after {now - begun:,.0f} s", file=sys.stderr, flush=True)

    return move
