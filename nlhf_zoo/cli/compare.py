"""`nlhf-zoo compare`: the head-to-head."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nlhf_zoo.cli.verb import Answer, Entries, Verb
from nlhf_zoo.comparison.config import CompareConfig
from nlhf_zoo.training.config import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["VERB"]


def run(config: CompareConfig) -> Answer:
    """Play what is missing, and say who did best; the exit code is 1 where a run failed."""
    from nlhf_zoo.cli.terminal import progress_bar
    from nlhf_zoo.comparison.engine import run_comparison
    from nlhf_zoo.report.markup import redact

    _check_types(config)
    command = redact(shlex.join(["nlhf-zoo", *sys.argv[1:]]))
    with progress_bar("compare", None, lines=True) as move:

        def progress(done: int, total: int) -> None:
            if move is not None:
                move(done, total=total)

        try:
            comparison = run_comparison(config, progress, command)
        except KeyboardInterrupt:
            print(f"nlhf-zoo: what has ended is in {config.out}; the same command goes on with it", file=sys.stderr)
            raise
    document = {"out": str(config.out), **comparison.summary}
    failed = document["cells"]["failed"]
    return Answer(document, lambda console: _show(document, console), code=1 if failed else 0)


def _check_types(config: CompareConfig) -> None:
    """Values of hyperparameters, of policy options and of training runs against the annotations, ahead of any work."""
    import typing

    from nlhf_zoo.cli.flags import typed
    from nlhf_zoo.cli.policies import check_policy_options
    from nlhf_zoo.cli.solvers import configured
    from nlhf_zoo.comparison.entries import divided, grid_points

    check_policy_options(config.policy, config.policy_options)
    for raw in config.solvers:
        if isinstance(raw, Mapping) and isinstance(raw.get("options"), Mapping):
            for point in grid_points(raw["options"]):
                configured(str(raw.get("name")), divided(point)[0])
        elif isinstance(raw, str):
            configured(raw, {})
    hints = typing.get_type_hints(TrainConfig)
    for raw in (*config.games, *config.tuning_games):
        if isinstance(raw, Mapping) and isinstance(raw.get("train"), Mapping):
            typed(raw["train"], hints, f"game {raw.get('name') or raw.get('label') or ''}: train")


def _show(document: Mapping[str, Any], console: Console) -> None:
    from nlhf_zoo.cli.terminal import printable

    for label, game in document["games"].items():
        console.print(_game_table(label, game))
        console.print(f"{printable(label)}: {printable(game['verdict'])}\n")
        for row in game["table"]:
            for error in row["errors"]:
                console.print(f"{printable(row['solver'])} failed: {printable(error)}")
    if document["overall"] is not None and len(document["games"]) > 1:
        console.print(f"overall: {printable(document['overall']['verdict'])}")
    console.print(f"written to {document['out']}")


def _game_table(label: str, game: Mapping[str, Any]) -> Any:
    from nlhf_zoo.cli.terminal import number, table

    def cells(row: Mapping[str, Any]) -> list[str]:
        end = row["final"].get(game["metric"], {})
        span = f"{number(end.get('low'))} to {number(end.get('high'))}"
        ranks = row.get("rank", {})
        rank = f"{number(ranks.get('mean'))} ({number(ranks.get('low'))} to {number(ranks.get('high'))})"
        count = f"{row['queries']:,.0f}" if row["queries"] is not None else "-"
        return [row["solver"], str(row["runs"]), count, number(row["seconds"]), number(end.get("median")), span, rank]

    columns = ("solver", "runs", "queries", "seconds", game["metric"].replace("_", " "), "quartiles", "rank (95 %)")
    return table(label, columns, [cells(row) for row in game["table"]], right=columns[1:])


VERB = Verb(
    name="compare",
    summary="solvers against each other: games x solvers x seeds at one budget, and a report",
    description="""\
Several values of a hyperparameter are a grid: it is tuned on seeds of its own, with as many queries for each solver
that has one, and the best point alone is reported (--no-tune reports all). Several values of a game's parameter are
several games. A comparison that was stopped goes on where it was when the same command is given again; more seeds,
solvers or games may be added. Exit code 1 where a run failed.""",
    example="""\
  nlhf-zoo compare --game low_rank --game-set responses=100 rank=2,5 --beta 0.01 \\
      --solver nash_mp --grid eta=0.02,0.1,0.5 --solver online_ipo --grid eta=0.1,1,10 --solver mmd \\
      --queries 2000 --seeds 10 --jobs 2 --out runs/first
  nlhf-zoo compare --game votes.csv --solver nash_mp --solver online_dpo --queries 500 --out runs/votes --json
  nlhf-zoo compare --config runs/first/config.yaml --seeds 20 --out runs/first
""",
    options=CompareConfig,
    run=run,
    flags={"policy_options": "--policy-set"},
    entries={
        "games": Entries("--game", ("--game-set",), "the game's parameters"),
        "solvers": Entries("--solver", ("--grid", "--set"), "the solver's hyperparameters"),
        "tuning_games": Entries("--tuning-game", ("--tuning-game-set",), "the tuning game's parameters"),
    },
)
