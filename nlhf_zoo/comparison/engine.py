"""The comparison itself: plan, tune, play what is missing, and write down what came of it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from nlhf_zoo.atomic import alone, write_text
from nlhf_zoo.comparison.config import CompareConfig
from nlhf_zoo.comparison.entries import GameEntry, SolverEntry, game_entries, solver_entries
from nlhf_zoo.comparison.environment import environment
from nlhf_zoo.comparison.folder import WIN_RATE_COLUMNS, Folder
from nlhf_zoo.comparison.journal import Journal
from nlhf_zoo.comparison.kinds import kind_of
from nlhf_zoo.comparison.plan import check_continues, plan
from nlhf_zoo.comparison.results import write_results
from nlhf_zoo.comparison.summary import Played, game_summary, overall
from nlhf_zoo.comparison.tasks import Run, Task
from nlhf_zoo.comparison.tuning import Choice, chosen, together, tuning_seeds
from nlhf_zoo.comparison.workers import performed
from nlhf_zoo.errors import BadInput
from nlhf_zoo.plain import plain
from nlhf_zoo.training.local_files import rooted

__all__ = ["Comparison", "run_comparison"]

Progress = Callable[[int, int], None]

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)
"""What some disks of a network say to a lock; sessions write no file in common but the last, so that none is needed."""


@attrs.frozen(eq=False)
class Comparison:
    """A finished comparison.

    Attributes:
        folder: where everything lies.
        summary: what summary.json holds.
    """

    folder: Path
    summary: Mapping[str, Any] = attrs.field(repr=False)
    _journal: Journal = attrs.field(repr=False)

    def results(self) -> Any:
        """results.parquet as a pyarrow table, one row a measurement."""
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / "results.parquet")

    def policy(self, cell: str) -> Any:
        """The final policy of a cell, which the column `cell` of the results names.

        Returns:
            On a table a mapping with the (Y,) lists `labels` and `probabilities`; of a language model its folder,
            from this one.

        Raises:
            KeyError: there is no such cell.
        """
        return self._journal.policy(cell)


def run_comparison(config: CompareConfig, progress: Progress | None = None, command: str | None = None) -> Comparison:
    """Play what is missing and write the folder.

    Args:
        progress: called with the count of finished cells, and of all.
        command: what was typed, for the report.

    Raises:
        BadInput: a setting that cannot be used, or a folder that holds something else; nothing was played then.
        KeyboardInterrupt: stopped; what had ended is in the folder, the report too.
    """
    with contextlib.ExitStack() as held:
        work = _Work(config, progress, command, held)
        try:
            work.tune()
            work.play()
        except KeyboardInterrupt:
            work.write(partial=True)
            raise
        return Comparison(config.out, work.write(partial=False), work.journal)


class _Work:
    """One session's work on a comparison."""

    def __init__(
        self, config: CompareConfig, progress: Progress | None, command: str | None, held: contextlib.ExitStack
    ) -> None:
        """`held` gets what is to be closed when the work ends: the folder's lock, and its journal."""
        self.config, self.progress, self.command = config, progress, command
        self.solvers = solver_entries(config)
        self.games = game_entries(config.games, config)
        self.tuning_games = game_entries(config.tuning_games, config)
        self.folder = Folder(config.out.absolute())
        self.kinds = {game.label: kind_of(game, config, self.folder.root) for game in (*self.games, *self.tuning_games)}
        self.tuned = [entry for entry in self.solvers if len(entry.points) > 1]
        self.choices: dict[str, dict[str, Choice]] = {game.label: {} for game in self.games}
        self.tuning = {game.label: self._tuning(game) for game in self.games}
        self.runs: dict[str, dict[str, list[Run]]] = {game.label: {} for game in self.games}
        for game, entry in itertools.product(self.games, self.solvers):
            for point in entry.points:  # what a game refuses is said before a folder is made
                self._run(game, entry, point, config.seed, "run")
        self.planned = self._planned()
        self.journal = held.enter_context(contextlib.closing(self._claim(held)))
        self._cells: dict[str, Mapping[str, Any]] = {}

    # What is to be done

    def _tuning(self, game: GameEntry) -> dict[str, list[list[Run]]]:
        """Contestant -> grid point -> runs, on seeds that no run has."""
        largest = max((len(entry.points) for entry in self.tuned), default=0)
        tasks: dict[str, list[list[Run]]] = {}
        for entry in self.tuned:
            seeds = tuning_seeds(entry, largest, self.config.tuning_seeds)
            tasks[entry.label] = [
                [
                    self._run(on, entry, point, seed, "tuning")
                    for on in self.tuning_games or (game,)
                    for seed in self.kinds[on.label].seeds(seeds)
                ]
                for point in entry.points
            ]
        return tasks

    def _run(self, game: GameEntry, entry: SolverEntry, options: Mapping[str, Any], seed: int, role: Any) -> Run:
        return self.kinds[game.label].run(entry, options, seed, role)

    def seeds(self, game: GameEntry) -> Sequence[int]:
        return self.kinds[game.label].seeds(range(self.config.seed, self.config.seed + self.config.seeds))

    def _planned(self) -> int:
        """Distinct cells; until the contestants' hyperparameters are chosen, as if no two of them shared one."""
        tuning = {run.key for run in self._tuning_runs()}
        chosen = {run.key for run in self._reported_runs()}
        most = len(self.solvers) * sum(len(self.seeds(game)) for game in self.games)
        return len(tuning) + (len(chosen) or most)

    def _tuning_runs(self) -> list[Run]:
        return [run for game in self.tuning.values() for points in game.values() for runs in points for run in runs]

    def _reported_runs(self) -> list[Run]:
        return [run for game in self.runs.values() for runs in game.values() for run in runs]

    def _claim(self, held: contextlib.ExitStack) -> Journal:
        """Pass where the folder is new, empty, or this comparison's; and write down what is being done.

        Returns:
            Its finished cells.

        Raises:
            BadInput: it holds something else, another process is at work in it, or it cannot be written to.
        """
        out = self.folder.root
        try:
            if out.exists() and any(out.iterdir()) and not self.folder.cells.is_dir():
                raise BadInput(f"out: {out} holds something that is no comparison; give a new folder")
            planned = plan(self.config, self.games, self.tuning_games, self.solvers)
            self.folder.make()
            self._lock(held)
            journal = Journal(self.folder.cells)
            if journal.cells:
                check_continues(self.folder.plan, planned)
            self.folder.write_json(self.folder.plan.name, planned)
            self.folder.write_yaml("config.yaml", self._saved())
            self.folder.write_json("environment.json", environment(self.command))
            return journal
        except OSError as error:
            raise BadInput(f"out: {out} cannot be written to: {error.strerror or error}") from None

    def _lock(self, held: contextlib.ExitStack) -> None:
        try:
            held.enter_context(alone(self.folder.root / ".lock"))
        except BlockingIOError:
            raise BadInput(
                f"out: another process is comparing in {self.folder.root}; wait until it ends, or end it"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise

    def _saved(self) -> dict[str, Any]:
        config = attrs.asdict(self.config, filter=lambda field, _: field.metadata.get("saved", True), recurse=False)
        found = plain(config)
        for name, raws in (("games", self.config.games), ("tuning_games", self.config.tuning_games)):
            found[name] = [self._rooted(raw) for raw in raws]
        return found

    def _rooted(self, raw: Any) -> Any:
        """Files named from the root, so that the saved config works from any folder."""
        from nlhf_zoo.games.named import is_registered

        given = plain({"name": raw} if isinstance(raw, str) else raw)
        if given.get("train") is not None:
            return {**given, "train": rooted(given["train"])}
        if not is_registered(given["name"]):
            given["name"] = str(Path(given["name"]).absolute())
        if given.get("reference"):
            given["reference"] = str(Path(given["reference"]).absolute())
        return given

    # Doing it

    def tune(self) -> None:
        """Play all grids and choose; nothing to do where there is no grid."""
        self._perform(self._tuning_runs())
        grids = [(game, entry, self.tuning[game.label][entry.label]) for game in self.games for entry in self.tuned]
        after = [together(runs, self.kinds, self._cells) for _, _, runs in grids]
        self._perform(task for tasks in after for mine in tasks.values() for task in mine)
        for (game, entry, runs), tasks in zip(grids, after, strict=True):
            criteria = {on: self.kinds[on].criteria(self.folder, self._cells, mine)[0] for on, mine in tasks.items()}
            asked = sum(self.kinds[on].asked_after(self._cells, mine) for on, mine in tasks.items())
            self.choices[game.label][entry.label] = chosen(entry, runs, self._cells, criteria, asked)
        for game in self.games:
            for entry in self.solvers:
                choice = self.choices[game.label].get(entry.label)
                options = entry.points[0] if choice is None else choice.options
                runs = [self._run(game, entry, options, seed, "run") for seed in self.seeds(game)]
                self.runs[game.label][entry.label] = runs
        self.planned = self._planned()

    def play(self) -> None:
        """The runs that are reported, and what else a game asks for when they have ended."""
        ordered: list[Task] = []
        for game in self.games:
            # Solvers meet on a game one after another, so that a process draws and solves it once.
            ordered += [run for same_seed in zip(*self.runs[game.label].values(), strict=True) for run in same_seed]
            ordered += self.kinds[game.label].beside()
        self._perform(ordered)
        self._perform([task for game in self.games for task in self._after(game)])

    def _after(self, game: GameEntry) -> list[Task]:
        """Work on a game's finished runs."""
        runs = [run for runs in self.runs[game.label].values() for run in runs]
        return self.kinds[game.label].after([run for run in runs if "rows" in self._cells.get(run.key, {})])

    def _perform(self, tasks: Iterable[Task]) -> None:
        """Those of the tasks that have not been done; each is written down when it ends."""
        missing: dict[str, Task] = {}
        for task in tasks:
            key = task.key
            if key in self.journal.cells:
                self._cells[key] = self.journal.cells[key]
            else:
                missing[key] = task
        self._tell()
        for task, done in performed(list(missing.values()), self.config.jobs, self.config.cluster):
            content = {"task": plain(task.identity), **done.content}
            self.journal.append(task.key, content, done.policy)
            self._cells[task.key] = content
            if isinstance(task, Run):
                self.kinds[task.game.label].ended(task)
            self._tell()

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(min(len(self._cells), self.planned), self.planned)

    # What came of it

    def write(self, partial: bool) -> dict[str, Any]:
        """results.parquet, summary.json, the games and the report, out of the cells that have ended."""
        # One cell may be that of two contestants, one of them tuned, or of a game under two labels.
        every = (*self._tuning_runs(), *self._reported_runs())
        distinct = {(run.key, run.game.label, run.entry, run.role): run for run in every}.values()
        ended = [(run, self._cells[run.key]) for run in distinct if run.key in self._cells]
        write_results(self.folder, ended)
        summary = self._summary(partial, ended)
        self.folder.write_json("summary.json", summary)
        if self.config.report and any(run.role == "run" and "rows" in cell for run, cell in ended):
            from nlhf_zoo.report.comparison import write_comparison

            write_comparison(self.folder.root)
        return summary

    def _summary(self, partial: bool, ended: Sequence[tuple[Run, Mapping[str, Any]]]) -> dict[str, Any]:
        games: dict[str, Any] = {}
        contestants, rankings, win_rates, samples = [], [], [], []
        for game in self.games:
            kind, after = self.kinds[game.label], self._after(game)
            played = Played(
                game=game,
                criteria=kind.criteria(self.folder, self._cells, after),
                seeds=self.seeds(game),
                cells={
                    entry: {run.seed: (run, self._cells[run.key]) for run in runs if run.key in self._cells}
                    for entry, runs in self.runs[game.label].items()
                },
                choices=self.choices[game.label],
                deterministic=kind.deterministic,
            )
            extra = kind.describe(self.folder, self._cells, after)
            win_rates += [{"game": game.label, **row} for row in extra.pop("win_rates", ())]
            samples += [{"game": game.label, **row} for row in extra.pop("samples", ())]
            games[game.label], ranks = game_summary(played, {"budget": kind.budget, **extra})
            contestants.append(played.entries)
            rankings.append(ranks)
        if win_rates:
            columns = {name: [row[name] for row in win_rates] for name in WIN_RATE_COLUMNS}
            self.folder.write_table("win_rates.parquet", WIN_RATE_COLUMNS, columns)
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in samples)
            write_text(self.folder.root / "samples.jsonl", "".join(lines))
        done = {run.key: cell for run, cell in ended}
        failed = sum("error" in cell for cell in done.values())
        return plain(
            {
                "command": self.command,
                "partial": partial,
                "cells": {"planned": self.planned, "done": len(done), "failed": failed},
                "games": games,
                "overall": overall(contestants, rankings),
            }
        )
