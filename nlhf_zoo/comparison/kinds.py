"""What differs between a game on a table and a language model's: how it is run, measured and described."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from nlhf_zoo.comparison.config import CompareConfig
from nlhf_zoo.comparison.entries import GameEntry, SolverEntry, divided
from nlhf_zoo.comparison.folder import Folder
from nlhf_zoo.comparison.scores import Criterion, FinalGap, QueriesToTolerance
from nlhf_zoo.comparison.table import TableRun, labels_of, setting
from nlhf_zoo.comparison.tasks import Role, Run, Task
from nlhf_zoo.comparison.uncertainty import Uncertainty
from nlhf_zoo.data.coverage import unmet
from nlhf_zoo.errors import BadInput
from nlhf_zoo.games.named import named_game
from nlhf_zoo.tabular import find_winner

__all__ = ["Kind", "kind_of"]

_LARGEST_SHOWN = 2000


class Kind(ABC):
    """How one game of a comparison is played.

    Attributes:
        deterministic: nothing is random, so that one seed says all.
        asked: what a query is, on this game.
    """

    deterministic: bool
    asked: str

    def __init__(self, game: GameEntry, config: CompareConfig) -> None:
        self.game, self.config = game, config

    @property
    def budget(self) -> dict[str, Any]:
        """What a run may spend: queries, tokens, `None` where it is not bounded, and `of`, which kind of queries."""
        return {"queries": self._queries(), "tokens": self.game.tokens or self.config.tokens, "of": self.asked}

    def _queries(self) -> int | None:
        """Of single comparisons, unless this is a game of exact payoffs."""
        return self.game.queries or self.config.sampled_queries or self.config.queries

    def seeds(self, seeds: Sequence[int]) -> Sequence[int]:
        """Those that are worth running."""
        return list(seeds)[: 1 if self.deterministic else None]

    @abstractmethod
    def run(self, entry: SolverEntry, options: Mapping[str, Any], seed: int, role: Role) -> Run: ...

    def beside(self) -> list[Task]:
        """What else is to be found out about the game, whoever plays it."""
        return []

    def after(self, runs: Sequence[Run]) -> list[Task]:
        """What is to be found out about the finished runs together."""
        return []

    def asked_after(self, cells: Mapping[str, Mapping[str, Any]], after: Sequence[Task]) -> int:
        """Queries of what `after` gave: they measure, teach nobody, and are no part of a budget."""
        return 0

    def ended(self, run: Run) -> None:  # noqa: B027  # nothing has to be said of most
        """Called in the comparison's own process when a run has come back."""

    @abstractmethod
    def criteria(
        self, folder: Folder, cells: Mapping[str, Mapping[str, Any]], after: Sequence[Task]
    ) -> tuple[Criterion, ...]:
        """What solvers are ranked by, and after it what else they are compared by.

        Args:
            after: what `after` gave for these runs.
        """

    @abstractmethod
    def describe(self, folder: Folder, cells: Mapping[str, Mapping[str, Any]], after: Sequence[Task]) -> dict[str, Any]:
        """What the summary says of the game; files about it are written."""

    def _arguments(self, entry: SolverEntry, options: Mapping[str, Any], seed: int, role: Role) -> dict[str, Any]:
        return {
            "game": self.game,
            "entry": entry.label,
            "name": entry.name,
            "options": options,
            "seed": seed,
            "role": role,
            "queries": self.budget["queries"],
            "tokens": self.budget["tokens"],
            "steps": self.config.steps,
            "tol": self.config.tol,
        }


def kind_of(game: GameEntry, config: CompareConfig, root: Path) -> Kind:
    """The table's or the language model's.

    Raises:
        BadInput: the game cannot be made.
    """
    if game.train is None:
        return _Table(game, config)
    from nlhf_zoo.comparison.language import LanguageKind

    return LanguageKind(game, config, root)


class _Table(Kind):
    def __init__(self, game: GameEntry, config: CompareConfig) -> None:
        super().__init__(game, config)
        self.sampled = game.comparisons is not None
        self.asked = "sampled comparisons" if self.sampled else "exact payoff queries"
        if self._queries() is None:
            raise BadInput(f"game {game.label}: is played on a table, which generates no tokens; give --queries")
        named = named_game(game.name, game.options, seed=config.seed, smoothing=game.smoothing, kind=game.kind)
        self.wins = named.wins
        self.deterministic = game.comparisons is None and game.policy in ("table", "softmax") and self._fixed()

    def _queries(self) -> int | None:
        return super()._queries() if self.sampled else self.game.queries or self.config.queries

    def _fixed(self) -> bool:
        """Whether another seed gives the same game."""
        matrices = []
        for seed in (self.config.seed, self.config.seed + 1):
            named = named_game(
                self.game.name, self.game.options, seed=seed, smoothing=self.game.smoothing, kind=self.game.kind
            )
            if named.wins is not None:
                return True
            try:
                matrices.append(named.oracle.matrix())
            except BadInput:  # an operator
                return False
        return torch.equal(*matrices)

    def run(self, entry: SolverEntry, options: Mapping[str, Any], seed: int, role: Role) -> Run:
        if divided(options)[1]:
            raise BadInput(f"solver {entry.label}: game {self.game.label} is a table, which has no train options")
        return TableRun(**self._arguments(entry, options, seed, role))

    def beside(self) -> list[Task]:
        if self.wins is None or not self.config.draws:
            return []
        return [Uncertainty(game=self.game, draws=self.config.draws)]

    def criteria(
        self, folder: Folder, cells: Mapping[str, Mapping[str, Any]], after: Sequence[Task]
    ) -> tuple[Criterion, ...]:
        return (FinalGap() if self.config.tol is None else QueriesToTolerance(self.config.tol),)

    def describe(self, folder: Folder, cells: Mapping[str, Mapping[str, Any]], after: Sequence[Task]) -> dict[str, Any]:
        found = setting(self.game, self.config.seed)
        described: dict[str, Any] = {
            "kind": "sampled" if self.sampled else "exact",
            "comparisons": self.game.comparisons,
            "responses": found.oracle.num_responses,
            "equilibrium": None,
        }
        try:
            matrix = found.oracle.matrix()
        except BadInput:  # an operator
            return described
        if len(matrix) > _LARGEST_SHOWN:
            return described
        target = found.target if found.target is not None else find_winner(found.oracle).policy
        arrays = {
            "label": np.array(self.game.label),
            "P": np.asarray(matrix),
            "labels": np.array(labels_of(found.oracle), dtype=str),
            "reference": np.asarray(found.game.reference.log_probs),  # type: ignore[attr-defined]  # a table's
            "equilibrium": np.asarray(target.log_probs),
            "beta": np.array(self.game.beta),
            "kind": np.array(described["kind"]),
        }
        if self.wins is not None:
            arrays["wins"] = np.asarray(self.wins)
        path = folder.game(self.game.label)
        folder.write_npz(path, arrays)
        described["equilibrium"] = {"file": str(path.relative_to(folder.root)), "uncertainty": None}
        if self.wins is not None:
            met = unmet(self.wins, find_winner(found.oracle).support)
            described["equilibrium"]["never_compared"] = {**attrs.asdict(met), "warning": met.warning}
        for task in self.beside():
            cell = cells.get(task.key, {})
            if "error" in cell:
                described["equilibrium"]["uncertainty_error"] = cell["error"]
            elif cell:
                kept = {key: value for key, value in cell.items() if key != "task"}
                described["equilibrium"]["uncertainty"] = kept
        return described
