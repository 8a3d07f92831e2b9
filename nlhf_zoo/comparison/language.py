"""Cells that train a language model, and the tournament of what came of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from nlhf_zoo.atomic import alone
from nlhf_zoo.comparison.config import CompareConfig
from nlhf_zoo.comparison.entries import GameEntry, SolverEntry, divided
from nlhf_zoo.comparison.folder import Folder
from nlhf_zoo.comparison.kinds import Kind
from nlhf_zoo.comparison.tasks import Done, Role, Run, Task
from nlhf_zoo.errors import BadInput
from nlhf_zoo.oracles import MatrixOracle
from nlhf_zoo.registry import lookup
from nlhf_zoo.tabular import find_winner
from nlhf_zoo.training.config import TrainConfig

__all__ = ["LanguageKind", "LanguageRun", "Tournament"]

_UNLIMITED = 10**9
_METRICS = ("win_rate_training", "win_rate_held_out", "kl_to_reference", "length")
# One split into training and held-out prompts, whatever the seed: nobody may train on what another is judged by.
_ALIKE = {"progress": False, "logger": "none", "split_seed": 0}


@attrs.frozen(kw_only=True)
class LanguageRun(Run):
    """One solver on one language-model set-up; `root` is the comparison's folder, on disk that all workers share."""

    # A judge that is down, a budget that is spent or a full disk is no part of the key, and may be mended.
    refusals_last = False
    root: str

    @property
    def out(self) -> Path:
        return Folder(Path(self.root)).run(self.key)

    @property
    def config(self) -> TrainConfig:
        assert self.game.train is not None
        solver, train = divided(self.options)
        return TrainConfig(
            **{
                **_ALIKE,
                "steps": _UNLIMITED if self.steps is None else self.steps,
                **self.game.train,
                **train,
                "queries": self.queries,
                "tokens": self.tokens,
                "solver": self.name,
                "solver_options": solver,
                "seed": self.seed,
                "out": self.out,
                "resume": True,
            }
        )

    def perform(self) -> Done:
        from nlhf_zoo.training.run import train

        self.out.parent.mkdir(parents=True, exist_ok=True)
        # A worker whose comparison was killed goes on to the end of its run; this one takes over from there.
        with alone(self.out.with_suffix(".lock"), wait=True):
            return self._trained(train)

    def _trained(self, train: Callable[[TrainConfig], Mapping[str, Any]]) -> Done:
        ended = self.out / "result.json"
        result = json.loads(ended.read_text(encoding="utf-8")) if ended.exists() else train(self.config)
        if "stopped" in result:  # it diverged, and was killed before that was written down as the cell
            raise ArithmeticError(result["stopped"]["seen"])
        rows = _rows(self.out / "evaluations.jsonl", result)
        # Checkpoints are for going on with a run that was stopped; this one has ended.
        shutil.rmtree(self.out / "checkpoints", ignore_errors=True)
        return Done({"rows": rows}, str((self.out / "policy").relative_to(self.root)))


def _rows(evaluations: Path, result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The run's measurements in columns: the reference at step 0, evaluations on the way, and the end."""
    judges = list(result["win_rate"])
    start = {f"win_rate_{judge}": 0.5 for judge in judges} | {"kl_to_reference": 0.0}
    start |= {"step": 0, "queries": 0, "tokens": 0, "seconds": 0.0, "length": result["reference_length"]}
    last = {f"win_rate_{judge}": found["mean"] for judge, found in result["win_rate"].items()}
    last |= {"kl_to_reference": result["kl_to_reference"]["mean"], "length": result["length"]}
    last |= {"tokens": result["tokens_generated"], **{k: result[k] for k in ("queries", "seconds")}}
    last["step"] = result["steps"]
    between: dict[int, Any] = {}
    if evaluations.exists():
        for line in evaluations.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            between[row["step"]] = row
    rows = [start, *(row for step, row in sorted(between.items()) if step < last["step"]), last]
    metrics = [name for name in _METRICS if all(name in row for row in rows)]
    return {
        **{name: [row[name] for row in rows] for name in ("step", "queries", "tokens", "seconds")},
        "metrics": {name: [row[name] for row in rows] for name in metrics},
        "bounds": {},
    }


@attrs.frozen(kw_only=True)
class Tournament(Task):
    """Everyone against everyone, when the runs of a game have ended."""

    refusals_last = False
    runs: tuple[LanguageRun, ...]

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"tournament": [run.key for run in self.runs]}

    def perform(self) -> Done:
        from nlhf_zoo.training.tournament import play_tournament

        policies = {f"{run.solver}, seed {run.seed}": str(run.out / "policy") for run in self.runs}
        return Done(play_tournament(self.runs[0].config, policies))


class LanguageKind(Kind):
    """Each seed trains every solver on the same batches of prompts, from the same model, by the same dice."""

    metric = "win_rate_training"
    deterministic = False

    def __init__(self, game: GameEntry, config: CompareConfig, root: Path) -> None:
        super().__init__(game, config)
        self.root = root
        checked = self.run(SolverEntry(name="nash_mp", label="", points=({},)), {}, config.seed, "run").config
        for oracle in filter(None, (checked.oracle, checked.eval_oracle)):
            lookup("oracles", oracle)

    def run(self, entry: SolverEntry, options: Mapping[str, Any], seed: int, role: Role) -> LanguageRun:
        run = LanguageRun(**self._arguments(entry, options, seed, role), root=str(self.root))
        try:
            assert run.config
        except (TypeError, ValueError) as error:
            whose = f"solver {entry.label}" if divided(options)[1] else f"game {self.game.label}"
            raise BadInput(f"{whose}: train: {str(error).replace('TrainConfig.__init__() ', '')}") from None
        return run

    def after(self, runs: Sequence[Run]) -> list[Task]:
        mine = tuple(run for run in runs if isinstance(run, LanguageRun))
        return [Tournament(runs=mine)] if mine else []

    def describe(self, folder: Folder, cells: Mapping[str, Mapping[str, Any]], after: Sequence[Task]) -> dict[str, Any]:
        described: dict[str, Any] = {"kind": "language_model", "responses": None, "equilibrium": None}
        played = next((cells[task.key] for task in after if task.key in cells), None)
        if played is None or "rows" not in played:
            described["tournament_error"] = None if played is None else played.get("error")
            return described
        described["win_rates"] = played["rows"]
        described["samples"] = played["samples"]
        described["nash_average"] = {
            judge: _nash_average([row for row in played["rows"] if row["judge"] == judge])
            for judge in dict.fromkeys(row["judge"] for row in played["rows"])
        }
        return described


def _nash_average(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Policy -> its share in the von Neumann winner of the policies' own game, the one of the largest entropy."""
    names = list(dict.fromkeys(row["row"] for row in rows))
    place = {name: at for at, name in enumerate(names)}
    matrix = torch.full((len(names), len(names)), 0.5, dtype=torch.float64)
    for row in rows:
        matrix[place[row["row"]], place[row["column"]]] = row["mean"]
    shares = find_winner(MatrixOracle(matrix)).policy.probs
    return dict(zip(names, shares.tolist(), strict=True))
