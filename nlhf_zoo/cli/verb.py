"""What a verb is, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["UNSAVED", "Answer", "Entries", "Verb"]


UNSAVED = {"saved": False}
"""Metadata of a field that says where an answer goes, not what it is: no part of a saved config."""


@attrs.frozen
class Answer:
    """What a verb came to.

    Attributes:
        document: what `--json` prints; tensors and paths are made plain, numbers that are not finite null.
        show: prints the same for people.
        code: the exit code.
        silent: print nothing; of several processes of one run, the first speaks for all.
    """

    document: Mapping[str, Any]
    show: Callable[[Console], None]
    code: int = 0
    silent: bool = False


@attrs.frozen
class Entries:
    """A field that is a list of mappings: one flag begins an entry, others say more of the entry before them.

    Attributes:
        flag: takes the `name` of a new entry.
        fill: flags that take KEY=VALUE, or KEY=VALUE,VALUE for several, into the entry's `options`; the first is
            the one that help names.
        filled: what KEY=VALUE is, for help.
    """

    flag: str
    fill: tuple[str, ...]
    filled: str


@attrs.frozen
class Verb:
    """One verb of the command line.

    Attributes:
        name: what it is called by.
        summary: one line.
        description: what else `--help` says, ahead of the options.
        example: worked examples, printed as they are.
        options: an attrs class: its fields are the flags and the keys of a config file, its docstring's
            Attributes section is their help. A field without default is required.
        run: does it.
        flags: flags of fields where the field's own name would not do.
        entries: fields that are lists of entries.
        positional: the one field given without a flag, if any.
        configurable: whether `--config FILE` is taken.
        record: file that a run's folder holds beside the config.yaml it has written. Such a config is about the run in
            its folder, wherever that has been moved or copied to.
    """

    name: str
    summary: str
    example: str
    options: type
    run: Callable[[Any], Answer]
    description: str = ""
    flags: Mapping[str, str] = attrs.field(factory=dict)
    entries: Mapping[str, Entries] = attrs.field(factory=dict)
    positional: str | None = None
    configurable: bool = True
    record: str | None = None
