"""The pieces of work of a comparison: each has a key made of all that its outcome depends on."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs

from nlhf_zoo.comparison.entries import GameEntry, label_of

__all__ = ["Done", "Role", "Run", "Task", "run_version"]

Role = Literal["run", "tuning"]


@attrs.frozen
class Done:
    """What a task came to.

    Attributes:
        content: what is written down, in JSON's types.
        policy: of a run, the final policy (labels and probabilities), or where it lies; in JSON's types.
    """

    content: Mapping[str, Any]
    policy: Mapping[str, Any] | str | None = None


class Task(ABC):
    """Work that any process may do, in any order, with the same outcome.

    Class attributes:
        refusals_last: input that is refused would be refused again, since all that is read is part of `identity`.
    """

    refusals_last: ClassVar[bool] = True

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """All that the outcome depends on, in JSON's types."""

    @abstractmethod
    def perform(self) -> Done: ...

    @functools.cached_property
    def key(self) -> str:
        text = json.dumps(self.identity, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


@attrs.frozen(kw_only=True)
class Run(Task):
    """One solver on one game under one seed: a cell."""

    game: GameEntry
    entry: str
    name: str
    options: Mapping[str, Any]
    seed: int
    role: Role
    queries: int | None
    tokens: int | None
    steps: int | None
    tol: float | None = None

    @property
    def solver(self) -> str:
        return label_of(self.name, self.options)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {
            "game": self.game.identity,
            "solver": self.name,
            "options": dict(self.options),
            "seed": self.seed,
            "queries": self.queries,
            "tokens": self.tokens,
            "steps": self.steps,
            **({} if self.tol is None else {"tol": self.tol}),
            "version": run_version(self.name),
        }


@functools.cache
def run_version(solver: str) -> str:
    """Of the zoo, of the solver's distribution and of its source: what another version computed is another cell."""
    from importlib.metadata import version

    from nlhf_zoo.registry import load

    entry = load().solvers[solver]
    return f"{version('nlhf-zoo')}, {entry.distribution} {entry.version}, {_source(entry.factory)}"


def _source(solver: type) -> str:
    """Of the files in which the solver and its bases are written: a plugin at work changes without a new version."""
    found = hashlib.sha256()
    for module in dict.fromkeys(cls.__module__ for cls in solver.__mro__):
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is not None and module.partition(".")[0] not in ("nlhf_zoo", *sys.stdlib_module_names):
            found.update(Path(file).read_bytes())
    return found.hexdigest()[:20]
