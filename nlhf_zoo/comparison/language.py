"""Cells that train a language model, and the tournament of what came of them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from nlhf_zoo.atomic import alone
from nlhf_zoo.comparison.config import CompareConfig
from nlhf_zoo.comparison.entries import GameEntry, SolverEntry, divided
from nlhf_zoo.comparison.folder import Folder
from nlhf_zoo.comparison.kinds import Kind
from nlhf_zoo.comparison.pool import Member, NashAverage, nash_average, resampled, worst_case
from nlhf_zoo.comparison.scores import DRAWS, Criterion, WorstCase
from nlhf_zoo.comparison.tasks import Done, Role, Run, Task
from nlhf_zoo.errors import BadInput
from nlhf_zoo.oracles.audit import Audit
from nlhf_zoo.registry import lookup
from nlhf_zoo.training.config import TrainConfig

__all__ = ["LanguageKind", "LanguageRun", "Tournament"]

logger = logging.getLogger("nlhf_zoo.comparison")

_UNLIMITED = 10**9
_SHOWN = attrs.fields(TrainConfig).show_samples.default
_METRICS = ("win_rate_training", "win_rate_held_out", "kl_to_reference", "length")
# One split into training and held-out prompts, whatever the seed: nobody may train on what another is judged by.
_ALIKE = {"progress": False, "logger": "none", "show_audit": False, "split_seed": 0}


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
                **self._kept_answers,
                "queries": self.queries,
                "tokens": self.tokens,
                "solver": self.name,
                "solver_options": solver,
                "seed": self.seed,
                "out": self.out,
                "resume": True,
            }
        )

    @property
    def _kept_answers(self) -> dict[str, int]:
        """All answers of evaluations on the way are kept, for the pool, where none are withheld or sent elsewhere."""
        given = self.game.train or {}
        kept = given.get("show_samples", _SHOWN) and given.get("logger", "none") == "none"
        return {"show_samples": _UNLIMITED} if kept else {}

    def samples(self) -> list[tuple[int, Path]]:
        """Steps and files of the answers at each evaluation, in order; the last are those of the final policy."""
        files = (self.out / "samples").glob("step=*.jsonl")
        return sorted((int(file.stem.removeprefix("step=")), file) for file in files)

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
    earlier: int

    @property
    def tuning(self) -> bool:
        """Whether a grid is chosen by it: the held-out judge must have no say then."""
        return all(run.role == "tuning" for run in self.runs)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"pool": [run.key for run in self.runs], "tuning": self.tuning, "earlier": self.earlier}

    def perform(self) -> Done:
        from nlhf_zoo.training.tournament import play_tournament

        config = self.runs[0].config
        if self.tuning:
            config = attrs.evolve(config, eval_oracle=None, eval_oracle_options={})
        members = {_called(run): Member(run.solver, run.seed) for run in self.runs}
        folders = {_called(run): str(run.out / "policy") for run in self.runs}
        shown = 0 if self.tuning else (self.runs[0].game.train or {}).get("show_samples", _SHOWN)
        played = play_tournament(attrs.evolve(config, show_samples=shown), folders, self._earlier())
        policies, judged = played["policies"], played.pop("verdicts")
        found: dict[str, Any] = {**played, "runs": {run.key: policies.index(_called(run)) for run in self.runs}}
        if not self.tuning:
            places = [members.get(name, Member()) for name in policies]
            averages = {judge: nash_average(met[:, : len(met)], places) for judge, met in judged.items()}
            found["nash_average"] = {judge: _plain(average, policies) for judge, average in averages.items()}
        # Each answer's verdict, too many for a cell.
        self.verdicts.parent.mkdir(exist_ok=True)
        names = {name: np.array(played[name], dtype=str) for name in ("policies", "pool")}
        Folder(Path(self.runs[0].root)).write_npz(self.verdicts, {**names, **judged})
        return Done(found)

    @property
    def verdicts(self) -> Path:
        """The file of them: `policies`, `pool`, and by judge (policies, pool, prompts) float64."""
        return Path(self.runs[0].root) / "pools" / f"{self.key}.npz"

    def _earlier(self) -> dict[str, Path]:
        """Answers from the course of every solver's first run: where a run goes in a circle, they are on it."""
        first = min(run.seed for run in self.runs)
        found: dict[str, Path] = {}
        for run in self.runs:
            if run.seed == first:
                for step, file in _spread(run.samples()[:-1], self.earlier):
                    found[f"{_called(run)}, step {step}"] = file
        return found


def _spread(files: Sequence[tuple[int, Path]], most: int) -> Sequence[tuple[int, Path]]:
    """So many of them, evenly."""
    count = min(most, len(files))
    return [files[(2 * at + 1) * len(files) // (2 * count)] for at in range(count)]


def _called(run: Run) -> str:
    return f"{run.solver}, seed {run.seed}"


def _plain(average: NashAverage, policies: Sequence[str]) -> dict[str, Any]:
    found = attrs.asdict(average)
    return {**found, "shares": dict(zip(policies, average.shares.tolist(), strict=True))}


class LanguageKind(Kind):
    """Each seed trains every solver on the same batches of prompts, from the same model, by the same dice."""

    deterministic = False
    asked = "judged comparisons"

    def __init__(self, game: GameEntry, config: CompareConfig, root: Path) -> None:
        super().__init__(game, config)
        self.root = root
        self._heard = False
        if config.tol is not None:
            raise BadInput(f"game {game.label}: tol is a duality gap, which is not known of a language model; drop it")
        if self.budget["queries"] is None and self.budget["tokens"] is None:
            raise BadInput(f"game {game.label}: has no budget; give --sampled-queries, --queries or --tokens")
        checked = self.run(SolverEntry(name="nash_mp", label="", points=({},)), {}, config.seed, "run").config
        for oracle in filter(None, (checked.oracle, checked.eval_oracle)):
            lookup("oracles", oracle)
        self.judges = ("training", *(["held_out"] if checked.eval_oracle else []))

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
        return [Tournament(runs=mine, earlier=self.config.earlier_policies)] if mine else []

    def asked_after(self, cells: Mapping[str, Mapping[str, Any]], after: Sequence[Task]) -> int:
        played = _played(cells, after)
        return 0 if played is None else _questions(played[1])

    def ended(self, run: Run) -> None:
        """Say once, and not in every run, what is wrong with the judges."""
        assert isinstance(run, LanguageRun)
        audited = run.out / "audit.json"
        if self._heard or not audited.exists():
            return
        self._heard = True
        for role, one in json.loads(audited.read_text(encoding="utf-8")).items():
            for warning in Audit(**one).warnings:
                logger.warning("game %s: %s oracle: %s", self.game.label, role, warning)

    def criteria(
        self, folder: Folder, cells: Mapping[str, Mapping[str, Any]], after: Sequence[Task]
    ) -> tuple[Criterion, ...]:
        played = _played(cells, after)
        if played is None:
            return tuple(WorstCase(judge) for judge in self.judges)
        task, cell = played
        if not task.verdicts.exists():
            raise BadInput(f"{task.verdicts}: the policies' verdicts are gone; put it back, or give a new folder")
        with np.load(task.verdicts, allow_pickle=False) as verdicts:
            judges = [judge for judge in self.judges if judge in verdicts]
            return tuple(WorstCase(judge, _worst_cases(verdicts[judge], cell["runs"])) for judge in judges)

    def describe(self, folder: Folder, cells: Mapping[str, Mapping[str, Any]], after: Sequence[Task]) -> dict[str, Any]:
        described: dict[str, Any] = {"kind": "language_model", "responses": None, "equilibrium": None}
        described["audit"] = _audit(after)
        played = _played(cells, after)
        if played is None:
            failed = next((cells[task.key] for task in after if task.key in cells), {})
            described["tournament_error"] = failed.get("error")
            return described
        cell = played[1]
        described["win_rates"], described["samples"] = cell["rows"], cell["samples"]
        averages = cell["nash_average"]
        described["nash_average"] = {judge: average["shares"] for judge, average in averages.items()}
        described["pool"] = _pool(cell)
        described["pool_queries"] = self.asked_after(cells, after)
        return described


def _played(
    cells: Mapping[str, Mapping[str, Any]], after: Sequence[Task]
) -> tuple[Tournament, Mapping[str, Any]] | None:
    """The tournament, where it has been played."""
    tasks = (task for task in after if isinstance(task, Tournament))
    return next(((task, cells[task.key]) for task in tasks if "rows" in cells.get(task.key, {})), None)


def _questions(cell: Mapping[str, Any]) -> int:
    """Pairs that a tournament's judges were asked about, all together."""
    contestants, prompts = len(cell["policies"]), cell["rows"][0]["n"]
    pairs = contestants * (contestants - 1) // 2 + contestants * (len(cell["pool"]) - contestants)
    return pairs * prompts * len({row["judge"] for row in cell["rows"]})


def _audit(after: Sequence[Task]) -> dict[str, Any] | None:
    """What each judge is like, once: every run asks it about answers of the same reference."""
    runs = [run for task in after if isinstance(task, Tournament) for run in task.runs]
    files = (run.out / "audit.json" for run in runs)
    return next((json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()), None)


def _worst_cases(verdicts: Any, places: Mapping[str, int]) -> dict[str, Any]:
    """Key of a run -> what `WorstCase` holds of it."""
    counts = resampled(verdicts.shape[-1], DRAWS, np.random.default_rng(3))
    found = np.concatenate([worst_case(verdicts)[None], worst_case(verdicts, counts)])
    return {key: found[:, place] for key, place in places.items()}


def _pool(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Judge -> solver -> its part in the Nash average, and the pair in which one of its policies wins least."""
    found: dict[str, Any] = {}
    for judge, average in cell["nash_average"].items():
        every = [row for row in (*cell["rows"], *cell["rows_earlier"]) if row["judge"] == judge]
        rows = [row for row in every if row["row"] != row["column"]]
        found[judge] = {
            solver: {
                "mass": mass,
                "skill": average["skill"][solver],
                "weakest": min((row for row in rows if _solver(row["row"]) == solver), key=lambda row: row["mean"]),
            }
            for solver, mass in average["mass"].items()
        }
    return found


def _solver(policy: str) -> str:
    return policy.rpartition(", seed ")[0]
